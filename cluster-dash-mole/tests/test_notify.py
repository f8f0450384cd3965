import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_dash_mole.notify import ServiceManager


@pytest.fixture(params=["a path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A stand-in for systemd: what it puts into NOTIFY_SOCKET, and its end."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.settimeout(5)
        if request.param == "abstract":
            name = f"cluster-dash-test-{os.getpid()}"
            listening.bind(f"\0{name}")
            yield f"@{name}", listening
        else:
            listening.bind(str(tmp_path / "notify"))
            yield str(tmp_path / "notify"), listening


def test_each_word_is_a_datagram(manager: tuple[str, socket.socket]) -> None:
    where, listening = manager
    subject = ServiceManager({"NOTIFY_SOCKET": where, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())})
    for say in (subject.ready, subject.alive, subject.stopping):
        say()
    assert [listening.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]
    assert subject.alive_seconds == 20


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}], ids=str
)
def test_a_watchdog_that_is_not_ours_is_not_fed(manager: tuple[str, socket.socket], watchdog: dict[str, str]) -> None:
    where, listening = manager
    subject = ServiceManager({"NOTIFY_SOCKET": where, **watchdog})
    subject.alive()
    subject.stopping()
    assert listening.recv(100) == b"STOPPING=1"
    assert subject.alive_seconds == float("inf")


def test_nobody_is_told_where_nobody_listens(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}, {"NOTIFY_SOCKET": "x" * 200}):
        ServiceManager(environ).ready()


def test_a_manager_that_does_not_read_stops_nobody(manager: tuple[str, socket.socket]) -> None:
    where, _ = manager
    subject = ServiceManager({"NOTIFY_SOCKET": where})
    for _ in range(2000):
        subject.ready()
