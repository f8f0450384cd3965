"""Who a process belongs to, by one look at /proc.

psutil would cost more than all of the rest of a round: 0.2 ms a process.
"""

import os
import pwd
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cluster_dash_mole.snapshot import clean

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_OWNERS_KEPT = 4096
UNKNOWN_USER = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process as its GPU entry shows it: `cpu_seconds` and `name` (the program's, never an argument) may be None."""

    user: str
    name: str | None
    cpu_seconds: float | None


class Stat(NamedTuple):
    """What is used of /proc/<pid>/stat; times in clock ticks, `start` since boot."""

    name: str
    cpu: int
    start: int


class ProcessTable:
    """Looks up processes. Names of users are kept: asking the directory of a site costs a network round trip."""

    def __init__(
        self,
        proc: str = "/proc",
        *,
        owner_of: Callable[[int], int] = lambda folder: os.fstat(folder).st_uid,
        user_of: Callable[[int], str] | None = None,
        uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._proc = proc
        self._owner_of = owner_of
        self._user_of = user_of or user_name
        self._uptime = uptime
        self._users: dict[int, str] = {}
        self._owners: dict[tuple[int, int], int] = {}  # by (pid, start), of those whose folder is root's

    def mark(self) -> float:
        """Return the present moment, to be given to `read`: take it before NVML is asked for pids."""
        return self._uptime()

    def read(self, pid: int, mark: float) -> Process:
        """Return the process that had this pid at `mark`.

        All is read through one open folder, that of one process, even if the pid is given to another one meanwhile;
        and a process that began after `mark` is not the one NVML meant. What cannot be known is None or "unknown".
        """
        stat, uid = None, None
        try:
            folder = os.open(f"{self._proc}/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return Process(user=UNKNOWN_USER, name=None, cpu_seconds=None)
        try:
            uid = self._owner_of(folder)
            stat = parse_stat(_read(folder, "stat"))
            if uid == 0:  # root, or a process that is not dumpable: its folder belongs to root too
                uid = self._owner(folder, (pid, stat.start))
        except (OSError, ValueError):  # gone, or hidden by hidepid
            pass
        finally:
            os.close(folder)
        if stat and stat.start / _TICKS_PER_SECOND > mark + 0.05:
            return Process(user=UNKNOWN_USER, name=None, cpu_seconds=None)
        return Process(
            user=UNKNOWN_USER if uid is None else self._user(uid),
            name=stat.name if stat else None,
            cpu_seconds=stat.cpu / _TICKS_PER_SECOND if stat else None,
        )

    def _owner(self, folder: int, process: tuple[int, int]) -> int:
        if process not in self._owners:
            if len(self._owners) >= _OWNERS_KEPT:
                self._owners.clear()
            self._owners[process] = parse_uid(_read(folder, "status"))
        return self._owners[process]

    def _user(self, uid: int) -> str:
        if uid not in self._users:
            self._users[uid] = clean(self._user_of(uid), 256)
        return self._users[uid]


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


def user_name(uid: int) -> str:
    """Return a user's name, or the number of one that nobody knows."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read(folder: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)
