"""Who has a port: on this machine, and on recorded tables."""

import os
import socket
from pathlib import Path

import pytest

from cluster_dash_server.port_holder import Holder, holder_of

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Process 4121 (jupyter) listens on 8080 by IPv6, 12 is connected from there; nobody is seen behind 9000."""
    (tmp_path / "net").mkdir()
    connected = ROW.format(address="0100007F:1F90", state="01", inode=900)
    hidden = ROW.format(address="00000000:2328", state="0A", inode=902)
    (tmp_path / "net" / "tcp").write_text(HEAD + connected + hidden)
    listens = ROW.format(address="00000000000000000000000000000000:1F90", state="0A", inode=901)
    (tmp_path / "net" / "tcp6").write_text(HEAD + listens)
    for pid, name, inode in ((12, "curl", 900), (4121, "jupyter", 901)):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
        (tmp_path / str(pid) / "fd" / "3").symlink_to(f"socket:[{inode}]")
    return tmp_path


def test_the_process_that_listens_is_named_not_one_that_is_connected(proc: Path) -> None:
    assert str(holder_of(8080, proc)) == "pid 4121 (jupyter)"


def test_a_process_that_may_not_be_seen_is_said_to_be_there(proc: Path) -> None:
    assert holder_of(9000, proc) == Holder(pid=None, program=None)
    assert str(holder_of(9000, proc)) == "a process of another user"


def test_a_free_port_has_nobody(proc: Path) -> None:
    assert holder_of(8081, proc) is None


def test_a_machine_without_ipv6_is_read(proc: Path) -> None:
    (proc / "net" / "tcp6").unlink()
    assert holder_of(8080, proc) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_this_process_is_found_on_this_machine(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listening = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {address}")
    with listening:
        holder = holder_of(listening.getsockname()[1])
    assert holder is not None
    assert holder.pid == os.getpid()
