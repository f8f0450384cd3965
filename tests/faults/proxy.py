"""A small TCP proxy that lets things go wrong on the way: a thread for each connection, loopback only."""

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

MOST_BYTES = 65536


@dataclass(slots=True, kw_only=True)
class Weather:
    """What happens to connections; may be changed at any time and holds for those that come then.

    Attributes:
        refuse: close each connection at once.
        delay_seconds: before anything is passed on, each way.
        cut_request: pass on so many bytes of a request, then reset both ends.
        truncate_answer: pass on so many bytes of an answer, then close.
        blackhole: take connections and bytes, and answer nothing.
        half_open: pass the request on, and answer nothing.
        drop_answers: the share of answers, of 1, that the server gives and nobody gets: the connection is reset.
        duplicate: the share of requests that reach the server twice, the second time after they were answered.
        bytes_per_second: how wide the way is.
    """

    refuse: bool = False
    delay_seconds: float = 0.0
    cut_request: int | None = None
    truncate_answer: int | None = None
    blackhole: bool = False
    half_open: bool = False
    drop_answers: float = 0.0
    duplicate: float = 0.0
    bytes_per_second: float | None = None


@dataclass(slots=True, kw_only=True)
class Passage:
    """One connection as it was: what was asked, what the server answered, and whether that got through."""

    began: float
    request: bytearray = field(default_factory=bytearray)
    answer: bytearray = field(default_factory=bytearray)
    delivered: bool = False


class FaultProxy:
    """Stands before a server: `port` here leads to `port` there. Its own connections end with its block.

    Args:
        port: where the server listens, on loopback; may be changed when it comes back elsewhere.
        seed: decides whose answers are lost.
        watch: is told of each passage when it is over.
    """

    def __init__(self, port: int, *, seed: int = 1, watch: Callable[[Passage], None] = lambda _: None) -> None:
        self.weather = Weather()
        self.server_port = port
        self._random = random.Random(seed)
        self._watch = watch
        self._closed = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        for thread in self._threads:
            thread.join(10)

    @property
    def is_busy(self) -> bool:
        """Whether a connection is still open, or not yet told of to who watches."""
        return any(each.is_alive() for each in self._threads)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def _serve(self, client: socket.socket) -> None:
        weather, passage = self.weather, Passage(began=time.monotonic())
        with self._lock:
            lost, twice = self._random.random() < weather.drop_answers, self._random.random() < weather.duplicate
            self._open.add(client)
        try:
            with client:
                if weather.refuse:
                    _reset(client)
                elif weather.blackhole:
                    while client.recv(MOST_BYTES):
                        pass
                else:
                    self._pass_on(client, weather, passage, lost=lost)
                    if twice and passage.answer:
                        self._again(bytes(passage.request))
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            self._watch(passage)

    def _pass_on(self, client: socket.socket, weather: Weather, passage: Passage, *, lost: bool) -> None:
        time.sleep(weather.delay_seconds)
        with socket.create_connection(("127.0.0.1", self.server_port), timeout=60) as server:
            with self._lock:
                self._open.add(server)
            try:
                self._shuffle(client, server, weather, passage, lost=lost)
            finally:
                with self._lock:
                    self._open.discard(server)

    def _shuffle(
        self, client: socket.socket, server: socket.socket, weather: Weather, passage: Passage, *, lost: bool
    ) -> None:
        while True:
            readable, _, _ = select.select([client, server], [], [], 60)
            if not readable:
                return
            if client in readable:
                data = client.recv(MOST_BYTES)
                if not data:
                    return
                passage.request += data
                if weather.cut_request is not None and len(passage.request) >= weather.cut_request:
                    server.sendall(data[: weather.cut_request])
                    _reset(client)
                    return
                server.sendall(data)
                if weather.bytes_per_second:
                    time.sleep(len(data) / weather.bytes_per_second)
            if server in readable:
                try:
                    data = server.recv(MOST_BYTES)
                except OSError:  # it was killed: so it is for the client
                    _reset(client)
                    return
                passage.answer += data
                if not data:
                    passage.delivered = not lost and not weather.half_open and bool(passage.answer)
                    if lost:
                        _reset(client)
                    return
                if lost or weather.half_open:
                    continue
                time.sleep(weather.delay_seconds)
                if weather.truncate_answer is not None:
                    client.sendall(data[: weather.truncate_answer])
                    return
                client.sendall(data)

    def _again(self, request: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.server_port), timeout=60) as server:
            server.sendall(request)
            while server.recv(MOST_BYTES):
                pass


def _reset(connection: socket.socket) -> None:
    """Close it in the way of a machine that is gone: the other end gets an error, not an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
