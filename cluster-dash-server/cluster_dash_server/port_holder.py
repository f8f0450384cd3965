"""Who listens on a port of this machine, from /proc."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_LISTENS = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that listens; both None where it is another user's and may not be seen."""

    pid: int | None
    program: str | None

    def __str__(self) -> str:
        """Word it as messages do: `pid 4121 (jupyter)`."""
        return "a process of another user" if self.pid is None else f"pid {self.pid} ({self.program or '?'})"


def holder_of(port: int, proc: Path = PROC) -> Holder | None:
    """Return the process that listens on a TCP port, at whatever address; None where none does."""
    inodes = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not inodes:
        return None
    for process in sorted(proc.iterdir()):
        if process.name.isdigit() and inodes & set(_links(process / "fd")):
            try:
                program = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                program = None
            return Holder(pid=int(process.name), program=program)
    return Holder(pid=None, program=None)


def _listening(port: int, proc: Path) -> Iterator[str]:
    """Give the inode of each socket that listens on the port."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue  # a machine without IPv6 has no tcp6
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _links(folder: Path) -> Iterator[str]:
    try:
        entries = list(folder.iterdir())
    except OSError:  # another user's process, or one that just ended
        return
    for entry in entries:
        try:
            yield str(entry.readlink())
        except OSError:
            continue
