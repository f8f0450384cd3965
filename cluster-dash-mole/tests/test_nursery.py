import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from cluster_dash_mole.collectors.gpu.nursery import Nursery


def echo_pid(connection: socket.socket) -> None:
    connection.sendall(f"{os.getpid()} {os.getppid()} {len(os.listdir('/proc/self/fd'))}\n".encode())  # noqa: PTH208
    connection.recv(1)


def told(connection: socket.socket) -> list[int]:
    return [int(word) for word in connection.recv(100).split()]


def ends(pid: int) -> bool:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def with_nursery(check: Callable[[Nursery], None]) -> None:
    nursery = Nursery(echo_pid)
    try:
        check(nursery)
    finally:
        nursery.close()


def test_each_birth_is_another_child_of_the_same_parent() -> None:
    def check(nursery: Nursery) -> None:
        with nursery.birth() as first, nursery.birth() as second:
            one, two = told(first), told(second)
            assert one[0] != two[0]
            assert one[1] == two[1] != os.getpid()

    with_nursery(check)


def test_a_child_inherits_no_file_of_the_mole(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w"), socket.socket():

        def check(nursery: Nursery) -> None:
            with nursery.birth() as connection:
                assert told(connection)[2] <= 6  # standard ones, its connection, /dev/null, the listing

        with_nursery(check)


def test_a_child_ends_with_its_connection_and_the_nursery_with_the_mole() -> None:
    nursery = Nursery(echo_pid)
    with nursery.birth() as connection:
        child, parent, _ = told(connection)
    assert ends(child)
    nursery.close()
    assert ends(parent)


def test_neither_is_ended_by_a_signal_to_the_whole_group() -> None:
    def check(nursery: Nursery) -> None:
        with nursery.birth() as connection:
            child, parent, _ = told(connection)
            for pid in (child, parent):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
            with nursery.birth() as another:
                assert told(another)[1] == parent
            assert Path(f"/proc/{child}").exists()

    with_nursery(check)


def test_a_nursery_that_was_killed_is_replaced() -> None:
    def check(nursery: Nursery) -> None:
        with nursery.birth() as connection:
            parent = told(connection)[1]
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        with nursery.birth() as connection:
            assert told(connection)[1] != parent

    with_nursery(check)
