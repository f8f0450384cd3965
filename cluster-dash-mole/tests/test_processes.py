import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_mole.collectors.gpu.processes import (
    NOBODY,
    Process,
    ProcessTable,
    Stat,
    parse_cgroup,
    parse_hidepid,
    parse_job_environ,
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


ID = "3f1c9a7e5b2d4c608f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978"
POD = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", "docker:3f1c9a7e5b2d"),
        (f"/docker/{ID}", "docker:3f1c9a7e5b2d"),
        (f"/user.slice/user-1001.slice/user@1001.service/libpod-{ID}.scope", "podman:3f1c9a7e5b2d"),
        (
            f"/user.slice/user-1001.slice/user@1001.service/libpod-{ID}.scope/container",
            "podman:3f1c9a7e5b2d",
        ),
        (
            f"/system.slice/kubepods-besteffort-pod{POD.replace('-', '_')}.slice:cri-containerd:{ID}",
            f"containerd:3f1c9a7e5b2d pod {POD}",
        ),
        (f"/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/crio-{ID}.scope", f"cri-o:3f1c9a7e5b2d pod {POD}"),
        (f"/kubepods/burstable/pod{POD}/{ID}", f"kubernetes:3f1c9a7e5b2d pod {POD}"),
        ("/lxc.payload.train/init.scope", "lxc:train"),
        ("/user.slice/user-1001.slice/session-3.scope", None),
        ("/system.slice/slurmstepd.scope/job_42/step_0/user/task_0", None),
    ],
)
def test_a_container_is_told_by_the_control_group(path: str, container: str | None) -> None:
    assert parse_cgroup(f"0::{path}\n").container == container


@pytest.mark.parametrize(
    ("path", "job_id", "uid"),
    [
        ("/slurm/uid_1000/job_42/step_0/task_0", "42", 1000),
        ("/slurm_gpu01/uid_1000/job_42/step_batch", "42", 1000),
        ("/system.slice/slurmstepd.scope/job_42/step_0/user/task_0", "42", None),
        ("/system.slice/gpu01_slurmstepd.scope/job_42", "42", None),
        ("/system.slice/slurmstepd.scope/sABCDEF/step_0", None, None),
        ("/system.slice/slurmstepd.scope/s6KXM7ZXA15900/step_0/user/task_0", "s6KXM7ZXA15900", None),  # since 26.05
        ("/user.slice/user-1001.slice/slurmstepd.scope/s6KXM7ZXA15900/step_0", None, None),
        ("/user.slice/user-1001.slice/slurmstepd.scope/job_42/step_0", None, None),  # anybody may call theirs so
        ("/user.slice/user-1001.slice/slurm/uid_1000/job_42/step_0", None, None),
    ],
)
def test_a_job_is_told_by_the_control_group(path: str, job_id: str | None, uid: int | None) -> None:
    for version in ("0::", "11:devices:"):
        cgroup = parse_cgroup(f"{version}{path}\n1:name=systemd:/\n")
        assert (cgroup.job_id, cgroup.job_uid) == (job_id, uid)


@pytest.mark.parametrize(
    ("environ", "job_id"),
    [
        (b"A=1\0SLURM_JOB_ID=42\0SLURM_JOB_UID=1001\0", "42"),
        (b"SLURM_JOB_ID=42\0SLURM_JOB_UID=1002\0", None),
        (b"SLURM_JOB_ID=42\0", None),
        (b"SLURM_JOB_ID=x; rm\0SLURM_JOB_UID=1001\0", None),
        (b"", None),
    ],
)
def test_a_job_of_the_environment_counts_only_if_it_is_its_owners(environ: bytes, job_id: str | None) -> None:
    assert parse_job_environ(environ, 1001) == job_id


@pytest.mark.parametrize(
    ("uid", "cgroup", "loginuid", "user", "source"),
    [
        (0, "/system.slice/x.service/user.slice/user-1002.slice/session-3.scope", "", "root", "process"),
        (1001, "/user.slice/user-1002.slice/session-3.scope", "1002", "ada", "process"),
        (0, "/user.slice/user-1002.slice/session-3.scope", "4294967295", "grace", "session"),
        (0, "/slurm/uid_1001/job_42/step_0", "1002", "ada", "slurm"),
        (100_005, "/user.slice/user-1002.slice/user@1002.service/app.slice", "", "grace", "session"),
        (0, f"/system.slice/docker-{ID}.scope", "1001", "ada", "login"),
        (0, f"/system.slice/docker-{ID}.scope", "4294967295", "root", "process"),
        (0, "/user.slice/user-0.slice/session-1.scope", "0", "root", "process"),
        (100_005, "/system.slice/x.service", "", "100005", "process"),
    ],
)
def test_a_person_stands_behind_root_where_that_is_known(
    uid: int, cgroup: str, loginuid: str, user: str, source: str, tmp_path: Path
) -> None:
    proc = recorded(tmp_path, uid=uid)
    (tmp_path / "42/cgroup").write_text(f"0::{cgroup}\n")
    (tmp_path / "42/loginuid").write_text(loginuid)
    table = ProcessTable(proc, owner_of=lambda _: uid, user_of={0: "root", 1001: "ada", 1002: "grace"}.get)
    process = table.read(42, 1e9)
    assert (process.user, process.details["user_from"]) == (user, source)


def test_a_process_is_read_in_full_once_and_let_go_when_it_is_not_asked_for(tmp_path: Path) -> None:
    table = ProcessTable(recorded(tmp_path, uid=1001), owner_of=lambda _: 0, user_of=lambda uid: f"user{uid}")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    table.read(42, 1e9)
    (tmp_path / "42/status").unlink()
    assert table.read(42, 1e9).user == "user1001"
    table.forget_unread()
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    table.forget_unread()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert table.read(42, 1e9).user == "user0"  # read anew, without its status


def test_a_process_that_ended_is_nobody_even_if_it_was_known() -> None:
    table = ProcessTable()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert table.read(process.pid, 1e9) != NOBODY
        process.kill()
    assert table.read(process.pid, 1e9) == NOBODY


def test_more_processes_than_may_be_kept_open_are_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster_dash_mole.collectors.gpu.processes._FILES_KEPT", 0)
    table = ProcessTable()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        assert table.read(os.getpid(), 1e9).name == Path("/proc/self/comm").read_text().strip()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_is_told_of_a_process_holds_no_argument_and_no_variable() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "--token=planted"],
        stdin=subprocess.PIPE,
        env={"SECRET": "planted", "SLURM_JOB_ID": "7", "SLURM_JOB_UID": str(os.getuid())},
    ) as process:
        until = time.monotonic() + 60
        while (told := ProcessTable().read(process.pid, 1e9)).details.get("job_id") != "7":
            assert time.monotonic() < until  # it has not yet become Python
        assert told.details["command"] == Path(sys.executable).resolve().name
        assert abs(float(str(told.details["started_at"])) - time.time()) < 120
        assert "planted" not in str(told)
        process.kill()


def forked(name: str) -> int:
    pid = os.fork()
    if pid == 0:
        Path("/proc/self/comm").write_text(name)
        time.sleep(60)
        os._exit(0)
    while Path(f"/proc/{pid}/comm").read_text().strip() != name:
        time.sleep(0.001)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def forked_as(pid: int, name: str) -> int:
    """Give a pid that is free to a new process; others on this machine may be quicker some times."""
    for _ in range(100):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError as error:
            pytest.skip(f"needs the right to choose a pid: {error}")
        made = forked(name)
        if made == pid:
            return made
        end(made)
    return pytest.fail(f"others were quicker to have the pid {pid}, a hundred times")


@pytest.mark.skipif(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), reason="needs the right to choose a pid")
def test_a_pid_that_was_given_to_another_process_is_the_other_one() -> None:
    table = ProcessTable()
    first = forked("first")
    assert table.read(first, table.mark()).name == "first"
    end(first)
    second = forked_as(first, "second")
    try:
        assert table.read(second, table.mark()).name == "second"
    finally:
        end(second)
