"""Ports that Prometheus scrapes: what the last round saw as text, for sites that prefer to ask each host.

A scrape reads nothing and waits for nothing: it gets what the last round saw. Each connection has a thread, and there
are few of them, so that a slow scraper delays neither a round nor another one.
"""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from cluster_dash_mole.mole import Clock
from cluster_dash_mole.senders.listen import slurm_text, text
from cluster_dash_mole.snapshot import Snapshot

MOST_CONNECTIONS = 16
IDLE_SECONDS = 75.0
"""How long a connection may say nothing, or take to take an answer: longer than most scrape intervals."""
SILENT_INTERVALS = 3
SILENT_SECONDS = 60.0
"""What is older than both is not told any more: the round hangs, and `up` must say so."""


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `:9400`, `10.0.0.7:9400` or `[::1]:9400`; no host means all of this machine's.

    Raises:
        ValueError: it is none of these.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and int(port) < 65536) or (":" in host) != (host[:1] == "["):
        raise ValueError(f"got {address!r}, expected [HOST]:PORT, such as :9400")
    return host.strip("[]"), int(port)


class Page(Protocol):
    """What one port tells of the snapshots that come: `note` takes one, `text` writes what is known now.

    `text` is None where nothing is known yet. `noted_at` is when it was last heard of, by the clock that does not jump;
    after `silent_seconds` it is not told any more.
    """

    noted_at: float
    silent_seconds: float

    def note(self, snapshot: Snapshot, at: float) -> None: ...  # noqa: D102 - the class says it
    def text(self) -> str | None: ...  # noqa: D102


class GpuPage:
    """The GPUs of the newest snapshot, under dcgm-exporter's names.

    Args:
        interval: seconds between two snapshots.
        hostname_label: how the label is called that names the host.
    """

    def __init__(self, *, interval: float, hostname_label: str = "hostname") -> None:
        self.noted_at = float("-inf")
        self.silent_seconds = max(SILENT_SECONDS, SILENT_INTERVALS * interval)
        self._old_after_seconds = SILENT_INTERVALS * interval
        self._hostname_label = hostname_label
        self._newest: Snapshot | None = None
        self._xids: dict[int, int] = {}

    def note(self, snapshot: Snapshot, at: float) -> None:
        """Take a snapshot as the newest."""
        events = snapshot.parts.get("events")
        for event in events if isinstance(events, list) else ():
            if event["kind"] == "xid" and event["gpu"] is not None and event["code"] is not None:
                self._xids[event["gpu"]] = event["code"]
        self._newest, self.noted_at = snapshot, at

    def text(self) -> str | None:
        """Write it."""
        if self._newest is None:
            return None
        return text.dcgm(
            self._newest.document(),
            self._xids,
            hostname_label=self._hostname_label,
            old_after_seconds=self._old_after_seconds,
        )


class SlurmPage:
    """What Slurm said last, under the names of vpenso's exporter; `users`: whether they are named."""

    def __init__(self, *, interval: float, users: bool) -> None:
        self.noted_at = float("-inf")
        self.silent_seconds = max(SILENT_SECONDS, SILENT_INTERVALS * interval)
        self._users = users
        self._newest: Mapping[str, object] | None = None

    def note(self, snapshot: Snapshot, at: float) -> None:
        """Take what Slurm says, where the snapshot has it: few do."""
        block = snapshot.parts.get("slurm")
        if isinstance(block, Mapping) and block is not self._newest:
            self._newest, self.noted_at = block, at

    def text(self) -> str | None:
        """Write it."""
        return None if self._newest is None else slurm_text.vpenso(self._newest, users=self._users)


class ListenSender:
    """Answers `GET /metrics` with a page.

    Args:
        address: where to listen: `:9400`.
        page: what is told there.
        clock: tells how old that is.

    Raises:
        ValueError: the address is none.
        OSError: it cannot be listened on.
    """

    def __init__(self, address: str, page: Page, *, clock: Clock, name: str = "listen") -> None:
        self.name = name
        self._page = page
        self._clock = clock
        self._taken = 0
        self._made: tuple[int, bytes, bytes] | None = None
        self._server = _Server(parse_address(address), self._answer)
        self.port = self._server.server_port
        threading.Thread(target=self._server.take, name=name, daemon=True).start()

    def send(self, snapshot: Snapshot) -> None:
        """Take the snapshot as the newest."""
        self._page.note(snapshot, self._clock.monotonic())
        self._taken += 1

    def close(self) -> None:
        """Listen no more."""
        self._server.end()

    def _answer(self, path: str, packed: bool) -> tuple[int, bytes, bool]:
        """Return status and body of an answer, and whether it is packed."""
        if path != "/metrics":
            return 404, b"metrics are at /metrics\n", False
        noted_at, taken, made = self._page.noted_at, self._taken, self._made
        seconds = self._clock.monotonic() - noted_at
        if seconds > self._page.silent_seconds:
            why = "nothing was read yet" if noted_at == float("-inf") else f"what was read last is {seconds:.0f} s old"
            return 503, f"{why}\n".encode(), False
        if made is None or made[0] != taken:
            body = (self._page.text() or "").encode()
            made = self._made = taken, body, gzip.compress(body, 1, mtime=0)
        return 200, made[2] if packed else made[1], packed


class _Server(ThreadingHTTPServer):
    """Few connections at once; one more is closed at once, and a thread that is stuck keeps nobody from ending."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], answer: Callable[[str, bool], tuple[int, bytes, bool]]) -> None:
        host, port = address
        self.answer = answer
        self._ended = False
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        both = not host and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        self._both = both
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind, for both families where no host is named; without asking a name server who we are."""
        if self._both:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def take(self) -> None:
        """Take connections until it is closed; unlike `serve_forever` this sleeps where none comes."""
        while not self._ended:
            try:
                request, client_address = self.get_request()
            except OSError:  # closed, or no file is left to open
                time.sleep(0.0 if self._ended else 1.0)
                continue
            self.process_request(request, client_address)

    def end(self) -> None:
        """Take no more connections."""
        self._ended = True
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes `take`, which closing does not
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there is one left."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a scraper that went away is its own affair."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "cluster-dash-mole", ""
    timeout = IDLE_SECONDS
    wbufsize = -1  # headers and body in one piece
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer a scrape."""
        server = self.server
        assert isinstance(server, _Server)  # noqa: S101 - for the type checker
        wants_packed = "gzip" in self.headers.get("Accept-Encoding", "")
        status, body, packed = server.answer(self.path.partition("?")[0], wants_packed)
        self.send_response(status)
        self.send_header("Content-Type", text.CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: a line every 15 s for each scraper helps nobody."""
