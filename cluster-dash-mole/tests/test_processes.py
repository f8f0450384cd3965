import contextlib
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_mole.collectors.gpu.processes import (
    Process,
    ProcessTable,
    Stat,
    parse_hidepid,
    parse_stat,
    parse_uid,
    user_name,
)

UNKNOWN = Process(user="unknown", name=None, cpu_seconds=None)
REST = b" S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 40 0 300000 1000000 500 0 0 0\n"


def test_a_process_of_this_user_is_named() -> None:
    table = ProcessTable()
    mine = table.read(os.getpid(), table.mark())
    assert mine.user == pwd.getpwuid(os.getuid()).pw_name
    assert mine.name == Path("/proc/self/comm").read_text().strip()
    assert mine.cpu_seconds
    assert mine.cpu_seconds > 0


@pytest.mark.parametrize("pid", [0, 4294967295, 2**22 + 1])
def test_a_pid_that_is_none_belongs_to_nobody_known(pid: int) -> None:
    assert ProcessTable().read(pid, 1e9) == UNKNOWN


def test_a_process_younger_than_the_list_it_should_be_on_is_another_one() -> None:
    table = ProcessTable()
    mark = table.mark()
    time.sleep(0.1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as young:
        assert table.read(young.pid, mark) == UNKNOWN
        assert table.read(young.pid, table.mark() + 1) != UNKNOWN
        young.kill()


def test_a_dead_process_nobody_has_buried_yet_still_has_its_owner() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        assert ProcessTable().read(dead.pid, 1e9).user != "unknown"


def recorded(folder: Path, *, uid: int) -> str:
    process = folder / "42"
    process.mkdir()
    (process / "stat").write_bytes(b"42 (python3)" + REST)
    (process / "status").write_text(f"Name:\tpython3\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    return str(folder)


def test_a_process_that_is_not_dumpable_is_not_taken_for_roots(tmp_path: Path) -> None:
    table = ProcessTable(recorded(tmp_path, uid=1001), owner_of=lambda _: 0, user_of=lambda uid: f"user{uid}")
    expected = Process(user="user1001", name="python3", cpu_seconds=3.0, details={"user_from": "process"})
    assert table.read(42, 1e9) == expected


def test_a_process_that_may_not_be_looked_into_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    table = ProcessTable(str(tmp_path), owner_of=lambda _: 1001, user_of=lambda uid: f"user{uid}")
    assert table.read(42, 1e9) == Process(user="user1001", name=None, cpu_seconds=None)


def test_a_users_name_is_asked_for_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask(uid: int) -> str:
        asked.append(uid)
        return "ada"

    table = ProcessTable(recorded(tmp_path, uid=0), owner_of=lambda _: 1001, user_of=ask)
    for _ in range(3):
        assert table.read(42, 1e9).user == "ada"
    assert asked == [1001]


def test_a_user_nobody_knows_is_a_number(tmp_path: Path) -> None:
    assert user_name(4_000_000_001) is None
    table = ProcessTable(recorded(tmp_path, uid=4_000_000_001), owner_of=lambda _: 0)
    assert table.read(42, 1e9).user == "4000000001"


@given(st.binary(max_size=15))
def test_a_name_may_hold_anything(name: bytes) -> None:
    stat = parse_stat(b"42 (" + name + b")" + REST)
    assert (stat.cpu, stat.start) == (300, 300000)
    assert stat.name.isprintable()


@given(st.binary(max_size=200))
def test_what_is_no_stat_raises_a_value_error(text: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_stat(text), Stat)


@pytest.mark.parametrize(
    ("options", "hidden"),
    [("rw,nosuid", False), ("rw,hidepid=2", True), ("rw,hidepid=invisible,gid=5", True), ("rw,hidepid=0", False)],
)
def test_hidden_processes_are_told_by_the_mount_of_proc(options: str, hidden: bool) -> None:
    assert parse_hidepid(f"sysfs /sys sysfs rw 0 0\nproc /proc proc {options} 0 0\n") == hidden


def test_the_user_is_the_real_one() -> None:
    assert parse_uid(b"Name:\tUid: 5\nUmask:\t0022\nUid:\t1001\t0\t0\t0\nGid:\t5\n") == 1001
    with pytest.raises(ValueError, match="not found"):
        parse_uid(b"")
