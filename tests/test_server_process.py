"""The server as a process of its own: what it tells systemd, and what it says of a port that it cannot have."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import BIN, start_server


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A stand-in for systemd's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stand_in:
        stand_in.bind(str(tmp_path / "notify"))
        stand_in.settimeout(100)
        yield stand_in


@pytest.mark.parametrize("kind", ["waitress", "granian"])
def test_systemd_is_told_ready_then_that_it_answers_then_that_it_ends(
    kind: str, manager: socket.socket, tmp_path: Path
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "800000"}
    with start_server("--server", kind, environment=environment) as server:
        assert [manager.recv(64) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        assert server.stop() == 0
        told = manager.recv(64)
        while told == b"WATCHDOG=1":
            told = manager.recv(64)
        assert told == b"STOPPING=1"


def test_a_worker_process_that_hangs_ends_the_pings(manager: socket.socket, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "800000"}
    with start_server("--server", "granian", environment=environment) as server:
        assert [manager.recv(64), manager.recv(64)] == [b"READY=1", b"WATCHDOG=1"]
        holder = subprocess.run(
            [
                BIN / "python",
                "-c",
                f"from cluster_dash_server.port_holder import *; print(holder_of({_port(server.url)}).pid)",
            ],
            **{"capture_output": True, "text": True, "check": True},  # type: ignore[call-overload]
        )
        worker = next(pid for pid in server.family()[1:] if pid == int(holder.stdout))
        os.kill(worker, signal.SIGSTOP)
        try:
            manager.settimeout(0.8)
            with pytest.raises(TimeoutError):
                [manager.recv(64) for _ in range(100)]  # those on their way come at once, no more after them
        finally:
            os.kill(worker, signal.SIGCONT)
        manager.settimeout(100)
        assert manager.recv(64) == b"WATCHDOG=1"


@pytest.mark.parametrize("kind", ["waitress", "granian"])
def test_a_port_that_another_has_is_named_with_pid_and_program(kind: str) -> None:
    with start_server() as server:
        port = _port(server.url)
        refused = subprocess.run(
            [BIN / "cluster-dash-server", "serve", "--port", str(port), "--server", kind],
            **{"capture_output": True, "text": True, "check": False, "timeout": 120},  # type: ignore[call-overload]
        )
        comm = Path(f"/proc/{server.popen.pid}/comm").read_text().strip()
    assert refused.returncode == 78
    assert f"CD601 port {port} in use by pid {server.popen.pid} ({comm})" in refused.stderr


def test_the_doctor_sees_the_server_that_runs() -> None:
    with start_server() as server:
        told = subprocess.run(
            [BIN / "cluster-dash-server", "doctor"],
            env={**os.environ, "CLUSTER_DASH_SERVER__PORT": str(_port(server.url))},
            **{"capture_output": True, "text": True, "check": False, "timeout": 120},  # type: ignore[call-overload]
        )
    assert told.returncode == 0, told.stdout
    assert f"answers at 127.0.0.1:{_port(server.url)}, with 0 hosts" in told.stdout


def test_the_server_may_open_a_file_for_each_host_it_takes() -> None:
    with start_server(environment={"CLUSTER_DASH_LIMITS__MAX_HOSTS": "1500"}) as server:
        limits = Path(f"/proc/{server.popen.pid}/limits").read_text()
    files = next(line.split() for line in limits.splitlines() if line.startswith("Max open files"))
    assert int(files[3]) >= min(1500, int(files[4]))


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
