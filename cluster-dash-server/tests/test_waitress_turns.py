"""waitress' turns: who is asked what it wants, on real sockets."""

import http.client
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from waitress.server import create_server

from cluster_dash_server.settings import Settings
from cluster_dash_server.web import waitress_limits, waitress_turns
from cluster_dash_server.web.waitress_limits import Channel

LONG = b"x" * 8_000_000
"""More than the buffers of a connection hold."""


def answer(environ: Any, start_response: Any) -> list[bytes]:
    body = LONG if environ["PATH_INFO"] == "/long" else b"short"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    waitress_limits.apply(Settings().limits.body_bytes)
    server: Any = create_server(answer, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server.effective_port
    server.task_dispatcher.shutdown()
    server.close()
    thread.join(60)
    assert not thread.is_alive()


def ask(connection: http.client.HTTPConnection, path: str = "/") -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


def test_connections_that_rest_are_asked_nothing_while_another_is_answered(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def readable(channel: Channel) -> object:
        nonlocal asked
        asked += 1
        return as_before(channel)

    as_before = Channel.readable
    monkeypatch.setattr(Channel, "readable", readable)
    with ExitStack() as stack:
        resting = [
            stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60))) for _ in range(50)
        ]
        for connection in resting:
            ask(connection)
        asked, begin = 0, time.monotonic()
        for _ in range(50):
            ask(resting[0])
        sweeps = (time.monotonic() - begin) / waitress_turns.SWEEP_SECONDS + 2
        assert asked < 50 * 20 + sweeps * len(resting)  # waitress' own loop asks 50 times 50, some times over


def test_an_answer_longer_than_the_buffers_arrives_whole_and_its_connection_goes_on(port: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        for _ in range(3):
            assert ask(connection, "/long") == LONG
            assert ask(connection) == b"short"


def test_who_gets_the_descriptor_of_one_that_has_gone_is_answered(port: int) -> None:
    for _ in range(20):
        with ExitStack() as stack:
            some = [
                stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)))
                for _ in range(5)
            ]
            assert [ask(each) for each in some] == [b"short"] * 5


def test_many_who_ask_at_once_are_all_answered(port: int) -> None:
    answers: list[bytes] = []

    def ask_some() -> None:
        for _ in range(5):
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                answers.extend(ask(connection) for _ in range(5))

    threads = [threading.Thread(target=ask_some) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [b"short"] * 16 * 5 * 5


class Door:
    """A socket that listens, and at which so many stand."""

    accepting = True

    def __init__(self, map: dict[int, Any], standing: int, most: int = 100) -> None:
        self._map, self._standing, self._most = map, standing, most

    def readable(self) -> bool:
        return len(self._map) < self._most

    def handle_read_event(self) -> None:
        if self._standing:
            self._standing -= 1
            self._map[len(self._map)] = "one more"


@pytest.mark.parametrize(
    ("all_of_them", "most", "taken_in"), [(False, 100, 1), (True, 100, 5), (True, 4, 4)], ids=["calm", "busy", "full"]
)
def test_where_there_is_much_to_do_all_who_stand_at_the_door_are_taken_in(
    all_of_them: bool, most: int, taken_in: int
) -> None:
    map: dict[int, Any] = {}
    due: set[int] = set()
    waitress_turns._accept(Door(map, 5, most), select.POLLIN, map, due, all_of_them=all_of_them)
    assert due == set(map) == set(range(taken_in))


ENDING = """
import os, signal
from waitress.server import create_server
from cluster_dash_server.web import waitress_limits, waitress_turns
from cluster_dash_server.web.edge import Reply

class Application:
    def ready(self, environ):
        os.kill(os.getpid(), signal.SIGTERM)
        return Reply(b"x" * 100_000, "200 OK", [("Content-Length", "100000")])

waitress_limits.apply(2**20)
signal.signal(signal.SIGTERM, waitress_turns.end)
server = create_server(Application(), host="127.0.0.1", port=0)
print(server.effective_port, flush=True)
server.run()
"""


def test_an_answer_that_is_begun_is_sent_whole_before_a_signal_ends_the_loop() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        with closing(http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=60)) as connection:
            assert ask(connection) == b"x" * 100_000
        assert process.wait(60) == 0


def test_a_loop_that_waits_is_ended_at_once() -> None:
    code = ENDING.replace("server.run()", "signal.setitimer(signal.ITIMER_REAL, 0.5); server.run()")
    code = code.replace("SIGTERM, waitress_turns.end", "SIGALRM, waitress_turns.end")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True).stderr == b""


LAST = """
import os, signal, sys
from cluster_dash_server.web import waitress_turns

class Last:
    accepting = False

    def readable(self):
        return True

    def writable(self):
        return False

    def handle_read_event(self):
        connections.clear()
        if sys.argv[1] == "meanwhile":
            os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, waitress_turns.end)
reads, writes = os.pipe()
os.write(writes, b"x")
connections = {reads: Last()}
try:
    waitress_turns.loop(1, True, connections)
finally:
    print("ended")
os.kill(os.getpid(), signal.SIGTERM)
print("goes on")
"""


@pytest.mark.parametrize("when", ["meanwhile", "afterwards"])
def test_a_signal_ends_a_program_whose_loop_has_lost_its_last_connection(when: str) -> None:
    found = subprocess.run([sys.executable, "-c", LAST, when], capture_output=True, text=True, timeout=60, check=False)
    assert (found.stdout, found.returncode) == ("ended\n", 0), found.stderr


def test_where_the_system_has_no_epoll_waitress_keeps_its_own_loop() -> None:
    code = (
        "import select; del select.epoll; from waitress.server import BaseWSGIServer; own = BaseWSGIServer.asyncore;"
        "from cluster_dash_server.web import waitress_limits; waitress_limits.apply(1);"
        "assert BaseWSGIServer.asyncore is own"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
