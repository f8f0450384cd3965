"""What systemd is told, with a stand-in for its socket."""

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from waitress.server import create_server

from cluster_dash_server import notify
from cluster_dash_server.app import create_app
from cluster_dash_server.probe import ask
from cluster_dash_server.settings import Settings


class StandIn:
    """The service manager's end: a datagram socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(10)

    def next(self) -> str:
        return self.socket.recv(4096).decode()


class Script:
    """A server that answers as it is told to; ends the test's loop when its answers are used up."""

    def __init__(self, *answers: bool) -> None:
        self.answers, self.told, self.slept = list(answers), list[str](), list[float]()

    def __call__(self, seconds: float) -> bool:
        if not self.answers:
            raise StopIteration
        return self.answers.pop(0)

    def follow(self, period_seconds: float | None) -> list[str]:
        with contextlib.suppress(StopIteration):
            notify.follow(self, self.told.append, period_seconds, self.slept.append)
        return self.told


def test_ready_is_told_with_the_first_answer_and_not_before() -> None:
    script = Script(False, False, True)
    assert script.follow(None) == ["READY=1"]
    assert script.slept == [notify.START_SECONDS] * 2


def test_only_an_answer_pings_the_watchdog() -> None:
    script = Script(True, True, False, False, True)
    assert script.follow(60) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    assert set(script.slept) == {15.0}  # four chances in the time that systemd waits


def test_pings_are_for_the_process_that_systemd_watches() -> None:
    assert notify.watchdog_seconds({"WATCHDOG_USEC": "60000000"}) == 60
    assert notify.watchdog_seconds({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}) == 60
    assert notify.watchdog_seconds({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}) is None
    assert notify.watchdog_seconds({"WATCHDOG_USEC": "0"}) is None
    assert notify.watchdog_seconds({}) is None


def test_without_a_manager_nothing_is_told_and_no_thread_starts() -> None:
    before = threading.active_count()
    notify.tell("READY=1", {})
    notify.watch("127.0.0.1", 1, {})
    assert threading.active_count() == before


def test_an_abstract_socket_is_reached() -> None:
    name = f"cluster-dash-test-{os.getpid()}"
    stand_in = StandIn("\0" + name)
    notify.tell("STOPPING=1", {"NOTIFY_SOCKET": f"@{name}"})
    assert stand_in.next() == "STOPPING=1"
    stand_in.socket.close()


def test_a_manager_that_is_gone_costs_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notify.tell("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert "cannot be told READY=1" in caplog.text


def test_a_server_whose_threads_all_hang_is_not_pinged() -> None:
    app, hang, freed = create_app(Settings()), threading.Event(), threading.Event()

    def answer(environ: Any, start_response: Any) -> Any:
        if hang.is_set():
            freed.wait(60)
        return app(environ, start_response)

    server: Any = create_server(answer, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    answers: list[bool] = []

    def sleep(seconds: float) -> None:
        if len(answers) == 2:
            hang.set()
        if len(answers) == 3:
            raise StopIteration

    def ask_it(seconds: float) -> bool:
        given = seconds if hang.is_set() else 60  # a busy machine may take longer
        answers.append(ask("127.0.0.1", server.effective_port, "/healthz", seconds=given) is not None)
        return answers[-1]

    told: list[str] = []
    with pytest.raises(StopIteration):
        notify.follow(ask_it, told.append, 1.0, sleep)
    freed.set()
    server.close()
    thread.join(5)
    assert answers == [True, True, False]
    assert told == ["READY=1", "WATCHDOG=1"]
