"""The lock of the data folder, so that one server has it at a time, and the file system that it is on.

`control.find_data_folder` says where that folder is, and `commands.folder` takes it for a command.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

LOCK = "lock"
ROOT = 0
NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs", "glusterfs"),
        *("lustre", "gpfs", "beegfs", "fuse.ceph", "orangefs", "panfs", "weka", "fuse.s3fs", "fuse.juicefs"),
    )
)
"""Where the shared memory of SQLite's WAL does not work, by the words of /proc/self/mountinfo."""


class FolderHeld(Exception):
    """Another server has the folder: the text says which."""


def take(folder: Path) -> int:
    """Take the folder for this process until it ends; returns the lock's file descriptor.

    Raises:
        FolderHeld: another process has it.
        OSError: the lock cannot be written.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = ""
        with contextlib.suppress(OSError):
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise
        raise FolderHeld(f"{folder} belongs to another server, {holder or 'which did not say its name'}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
    return lock


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep servers out of a folder for the length of a block; it is made where it is not there.

    What root leaves there then belongs to whom the folder belongs: else the server could not open it.

    Raises:
        FolderHeld: another process has it.
        OSError: it cannot be made, or the lock cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = take(folder)
    try:
        yield
    finally:
        if os.geteuid() == ROOT:
            _give(folder)
        os.close(lock)


def _give(folder: Path) -> None:
    """Give root's files in a folder to its owner; none that has another name elsewhere: the owner may have made it."""
    owner = folder.stat()
    for each in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found = each.lstat()
            is_plain = stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
            if is_plain and found.st_uid == ROOT:
                os.chown(each, owner.st_uid, owner.st_gid, follow_symlinks=False)


def file_system(folder: Path, mounts: str | None = None) -> str | None:
    """Return the kind of file system that a folder is on, None where that is not known.

    Args:
        folder: the folder; of one that is not there yet, where it would be.
        mounts: the text of /proc/self/mountinfo; None: it is read.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            return None
    path, best, kind = str(folder.resolve()), "", None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, words = before.split(), after.split()
        if len(fields) < 5 or not words:
            continue
        point = fields[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, words[0]
    return kind
