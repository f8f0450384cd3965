"""Who a process belongs to, by one look at /proc.

psutil would cost more than all of the rest of a round: 0.2 ms a process.
"""

import os
import pwd
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cluster_dash_mole.host import parse_boottime
from cluster_dash_mole.snapshot import clean

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_FILES_KEPT = 512  # half of what a process may usually have open
_NO_UID = 2**32 - 1
UNKNOWN_USER = "unknown"

# what is below a user's own slice could be of that user's making
_SLURM = re.compile(
    r"^\d*:[^:\n]*:(?!/user\.slice/)[^\n]*?"
    r"(?:/slurm(?:_[^/\n]+)?/uid_(?P<uid>\d+)|/(?:[^/\n]+_)?slurmstepd\.scope)/"
    r"(?:job_(?P<job>\d{1,19})|(?P<sluid>s[0-9A-Z]{13}))(?:/|$)",  # an SLUID, since 26.05: the server knows its job
    re.MULTILINE,
)
_SESSION = re.compile(r":/user\.slice/user-(?P<uid>\d{1,10})\.slice(?:/|$)", re.MULTILINE)
_CONTAINER = re.compile(
    r"[/:](?:(?P<runtime>docker|libpod|cri-containerd|containerd|crio|nerdctl)[-/:])?"
    r"(?P<id>[0-9a-f]{64})(?:\.scope)?(?:/|$)",
    re.MULTILINE,
)
_RUNTIMES = {"libpod": "podman", "cri-containerd": "containerd", "crio": "cri-o"}
_POD = re.compile(r"pod(?P<pod>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")
_LXC = re.compile(r"/lxc(?:\.payload\.|/)(?P<name>[^/\n]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process as its GPU entry shows it: `cpu_seconds` and `name` (the program's, never an argument) may be None.

    `details` are the fields that stay the same: started_at, command, container, job_id, user_from, where known.
    """

    user: str
    name: str | None
    cpu_seconds: float | None
    details: Mapping[str, object] = field(default_factory=dict)


NOBODY = Process(user=UNKNOWN_USER, name=None, cpu_seconds=None)


class Stat(NamedTuple):
    """What is used of /proc/<pid>/stat; times in clock ticks, `start` since boot."""

    name: str
    cpu: int
    start: int


@dataclass(slots=True, kw_only=True)
class _Known:
    """A process that was read in full, and its open /proc/<pid>/stat.

    That file stays this very process's: once it has ended a read fails, even if its pid was given to another.
    """

    stat: int
    start: int
    user: str
    details: Mapping[str, object]
    used: bool = True


class ProcessTable:
    """Looks up processes: once in full, then by one read of an open file in each round.

    Names of users are kept: asking the directory of a site costs a network round trip.
    """

    def __init__(
        self,
        proc: str = "/proc",
        *,
        owner_of: Callable[[int], int] = lambda folder: os.fstat(folder).st_uid,
        user_of: Callable[[int], str | None] | None = None,
        uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._proc = proc
        self._owner_of = owner_of
        self._user_of = user_of or user_name
        self._uptime = uptime
        self._users: dict[int, str | None] = {}
        self._known: dict[int, _Known] = {}
        self._boottime: float | None = None

    def mark(self) -> float:
        """Return the present moment, to be given to `read`: take it before NVML is asked for pids."""
        return self._uptime()

    def read(self, pid: int, mark: float) -> Process:
        """Return the process that had this pid at `mark`. What cannot be known is None or "unknown"."""
        known = self._known.get(pid)
        if known is None:
            return self._meet(pid, mark)
        try:
            stat = parse_stat(os.pread(known.stat, 4096, 0))
        except (OSError, ValueError):  # it has ended
            self._forget(pid)
            return self._meet(pid, mark)
        known.used = True
        return Process(user=known.user, name=stat.name, cpu_seconds=stat.cpu / _TICKS_PER_SECOND, details=known.details)

    def forget_unread(self) -> None:
        """Let go of the processes that were not read since the last call."""
        for pid in [pid for pid, known in self._known.items() if not known.used]:
            self._forget(pid)
        for known in self._known.values():
            known.used = False

    def _forget(self, pid: int) -> None:
        os.close(self._known.pop(pid).stat)

    def _meet(self, pid: int, mark: float) -> Process:
        """Read a process in full.

        All is read through one open folder, that of one process, even if the pid is given to another one meanwhile;
        and a process that began after `mark` is not the one NVML meant.
        """
        stat, uid, file = None, None, -1
        try:
            folder = os.open(f"{self._proc}/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return NOBODY
        try:
            uid = self._owner_of(folder)
            file = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            stat = parse_stat(os.pread(file, 4096, 0))
            if stat.start / _TICKS_PER_SECOND > mark + 0.05:
                os.close(file)
                return NOBODY
            if uid == 0:  # root, or a process that is not dumpable: its folder belongs to root too
                uid = parse_uid(_read(folder, "status"))
            user, details = self._who(folder, uid, stat)
            os.pread(file, 1, 0)  # still the same process: all of the above was about it
        except (OSError, ValueError):  # gone, or hidden by hidepid
            if file >= 0:
                os.close(file)
            return NOBODY if uid is None else self._half(uid, stat)
        finally:
            os.close(folder)
        if len(self._known) < _FILES_KEPT:
            self._known[pid] = _Known(stat=file, start=stat.start, user=user, details=details)
        else:
            os.close(file)
        return Process(user=user, name=stat.name, cpu_seconds=stat.cpu / _TICKS_PER_SECOND, details=details)

    def _half(self, uid: int, stat: Stat | None) -> Process:
        """Return what is known of a process that ended while it was read, or may not be looked into."""
        return Process(
            user=self._name(uid) or str(uid),
            name=stat.name if stat else None,
            cpu_seconds=stat.cpu / _TICKS_PER_SECOND if stat else None,
        )

    def _who(self, folder: int, uid: int, stat: Stat) -> tuple[str, Mapping[str, object]]:
        """Return whose process it is, and the fields that stay the same."""
        cgroup = parse_cgroup(_read_or(folder, "cgroup", b"").decode(errors="replace"))
        job_id = cgroup.job_id or parse_job_environ(_read_or(folder, "environ", b"", 2**17), uid)
        user, source = self._person(folder, uid, cgroup)
        details = {
            "started_at": self._started_at(stat.start),
            "command": _program(folder),
            "container": cgroup.container,
            "job_id": job_id,
            "user_from": source,
        }
        return user, {name: value for name, value in details.items() if value is not None}

    def _person(self, folder: int, uid: int, cgroup: "Cgroup") -> tuple[str, str]:
        """Return the user of a process, and how it is known: root, or a uid without a name, may stand for a person."""
        name = self._name(uid)
        if uid != 0 and name:
            return name, "process"
        login = _read_or(folder, "loginuid", b"").strip()
        found = {
            "slurm": cgroup.job_uid,
            "session": cgroup.session_uid,
            "login": int(login) if login.isdigit() else None,
        }
        for source, person in found.items():
            if person and person != _NO_UID and (their := self._name(person)):
                return their, source
        return name or str(uid), "process"

    def _started_at(self, ticks: int) -> float | None:
        if self._boottime is None:
            try:
                self._boottime = parse_boottime(Path(self._proc, "stat").read_text())
            except OSError:
                return None
        return None if self._boottime is None else round(self._boottime + ticks / _TICKS_PER_SECOND, 2)

    def _name(self, uid: int) -> str | None:
        if uid not in self._users:
            name = self._user_of(uid)
            self._users[uid] = clean(name, 256) if name else None
        return self._users[uid]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """What the path of a control group tells of a process: nobody but root can forge it."""

    container: str | None = None
    job_id: str | None = None
    job_uid: int | None = None
    session_uid: int | None = None


def parse_cgroup(text: str) -> Cgroup:
    """Return what /proc/<pid>/cgroup tells."""
    job = _SLURM.search(text)
    session = _SESSION.search(text)
    return Cgroup(
        container=_container(text),
        job_id=job["job"] or job["sluid"] if job else None,
        job_uid=int(job["uid"]) if job and job["uid"] else None,
        session_uid=int(session["uid"]) if session else None,
    )


def _container(text: str) -> str | None:
    """Return the container as "<runtime>:<12 of its id>", and the pod where it is in one; "lxc:<name>"."""
    if lxc := _LXC.search(text):
        return clean(f"lxc:{lxc['name']}", 256)
    found = _CONTAINER.search(text)
    pod = _POD.search(text)
    if not found:
        return None
    kind = _RUNTIMES.get(found["runtime"] or "", found["runtime"]) or ("kubernetes" if pod else "container")
    name = f"{kind}:{found['id'][:12]}"
    return f"{name} pod {pod['pod'].replace('_', '-')}" if pod else name


def parse_job_environ(environ: bytes, uid: int) -> str | None:
    """Return Slurm's job from /proc/<pid>/environ: second best, as its user can forge it; only one of that user's."""
    variables = dict(part.partition(b"=")[::2] for part in environ.split(b"\0") if part.startswith(b"SLURM_JOB_"))
    job, owner = variables.get(b"SLURM_JOB_ID", b""), variables.get(b"SLURM_JOB_UID", b"")
    return job.decode() if re.fullmatch(rb"\d{1,19}", job) and owner == str(uid).encode() else None


def parse_stat(text: bytes) -> Stat:
    """Return what is used of /proc/<pid>/stat. The name may hold anything, blanks, brackets and newlines too."""
    begin, end = text.index(b"(") + 1, text.rindex(b")")
    rest = text[end + 1 :].split()
    if len(rest) < 20:
        raise ValueError(f"/proc/<pid>/stat: cut short: {text[:80]!r}")
    name = text[begin:end].decode(errors="replace")
    return Stat(name=clean(name, 256), cpu=int(rest[11]) + int(rest[12]), start=int(rest[19]))


def parse_uid(status: bytes) -> int:
    """Return the real user id from /proc/<pid>/status."""
    return int(status[status.index(b"\nUid:") + 5 :].split(None, 1)[0])


def hides_processes(proc: str) -> bool:
    """Return whether /proc is mounted so that processes of other users do not show."""
    try:
        return parse_hidepid(Path(proc, "self/mounts").read_text(errors="replace"))
    except OSError:
        return False


def parse_hidepid(mounts: str) -> bool:
    """Return whether /proc/mounts has a /proc with the option hidepid."""
    return re.search(r"^\S+ /proc proc \S*\bhidepid=(?!0|off)", mounts, re.MULTILINE) is not None


def user_name(uid: int) -> str | None:
    """Return a user's name; None of one that nobody knows."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _program(folder: int) -> str | None:
    """Return the file name of the program: not from the command line, whose first word may hold a whole line."""
    try:
        program = os.readlink("exe", dir_fd=folder)
    except OSError:  # of another user, and the mole is not root
        return None
    return clean(Path(program.removesuffix(" (deleted)")).name, 256) or None


def _read(folder: int, name: str, limit: int = 4096) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(file, limit)
    finally:
        os.close(file)


def _read_or(folder: int, name: str, default: bytes, limit: int = 4096) -> bytes:
    """Return what a file holds, `default` where it may not be read or does not exist."""
    try:
        return _read(folder, name, limit)
    except OSError:
        return default
