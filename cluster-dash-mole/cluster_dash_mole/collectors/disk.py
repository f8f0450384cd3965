"""The file systems that hold files: local disks and network mounts."""

import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cluster_dash_mole.mole import Reading
from cluster_dash_mole.snapshot import clean, within

# Kinds without a block device of their own (nodev in /proc/filesystems) that hold files all the same.
_WITHOUT_DEVICE = re.compile(
    r"9p|afs|beegfs|ceph|cifs|fuse\.(glusterfs|sshfs)|gpfs|lustre|nfs4?|orangefs|panfs|pvfs2|smb3|smbfs|virtiofs|wekafs|zfs"
)
_IMAGES = frozenset({"squashfs", "iso9660", "udf", "erofs"})  # always full, and nobody writes there
_ESCAPE = re.compile(r"\\([0-7]{3})")
_GB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of /proc/mounts."""

    device: str
    mount_point: str
    kind: str


class Usage(Protocol):
    """What os.statvfs returns, as far as it is used."""

    @property
    def f_frsize(self) -> int: ...  # noqa: D102 - as in statvfs(3)
    @property
    def f_blocks(self) -> int: ...  # noqa: D102
    @property
    def f_bfree(self) -> int: ...  # noqa: D102
    @property
    def f_bavail(self) -> int: ...  # noqa: D102


@dataclass(slots=True)
class _Reader:
    """Mounts that one thread asks, one after the other; `asking` is the one it waits for."""

    mounts: list[Mount]
    usages: dict[str, Usage | OSError] = field(default_factory=dict)
    asking: str | None = None


class DiskCollector:
    """Reads the part `disk`. A mount that does not answer in time is left out, with the reason, until it does.

    A dead network mount blocks the thread that asks it, for hours if need be, so each round asks in a thread, waits at
    most `deadline_seconds` for any one mount, and leaves a thread that hangs to itself. At most `MAX_STUCK` hang.
    """

    name = "disk"
    MAX_STUCK = 8

    def __init__(
        self,
        proc: str = "/proc",
        *,
        statvfs: Callable[[str], Usage] = os.statvfs,
        deadline_seconds: float = 1.0,
    ) -> None:
        self._proc = Path(proc)
        self._statvfs = statvfs
        self._deadline = deadline_seconds
        self._stuck: dict[str, threading.Thread] = {}
        self._text = ""
        self._mounts: list[Mount] = []

    def collect(self) -> Reading:
        """Ask each file system for its size and use."""
        mounts = self._real_mounts()
        usages = self._ask(mounts)
        disk: dict[str, object] = {}
        errors = [f"{clean(point)}: no answer" for point in self._stuck]
        for mount in mounts:
            usage = usages.get(mount.mount_point)
            if isinstance(usage, OSError):
                errors.append(f"{clean(mount.mount_point)}: {usage.strerror}")
            elif usage is not None and usage.f_blocks:
                disk[key_of(mount)] = entry(mount, usage)
        return Reading(parts={"disk": disk}, ok=not errors, error="; ".join(errors) or None)

    def _real_mounts(self) -> list[Mount]:
        text = (self._proc / "self/mounts").read_text(errors="replace")
        if text != self._text:  # hundreds of lines on a host with containers, and seldom others than before
            nodev = parse_nodev((self._proc / "filesystems").read_text())
            self._mounts, self._text = real_mounts(parse_mounts(text), nodev=nodev), text
        return self._mounts

    def _ask(self, mounts: Iterable[Mount]) -> dict[str, Usage | OSError]:
        self._stuck = {point: thread for point, thread in self._stuck.items() if thread.is_alive()}
        usages: dict[str, Usage | OSError] = {}
        waiting = [mount for mount in mounts if mount.mount_point not in self._stuck]
        while waiting and len(self._stuck) < self.MAX_STUCK:
            reader = _Reader(waiting)
            thread = threading.Thread(target=self._read, args=(reader,), name="disk", daemon=True)
            thread.start()
            thread.join(self._deadline)
            usages |= dict(reader.usages)
            asked = reader.asking
            if not thread.is_alive() or asked is None:
                break
            self._stuck[asked] = thread
            waiting = [mount for mount in waiting if mount.mount_point not in usages and mount.mount_point != asked]
        return usages

    def _read(self, reader: _Reader) -> None:
        for mount in reader.mounts:
            reader.asking = mount.mount_point
            try:
                reader.usages[mount.mount_point] = self._statvfs(mount.mount_point)
            except OSError as error:
                reader.usages[mount.mount_point] = error
            if mount.mount_point in self._stuck:
                return  # given up on long ago: another thread has asked the rest
        reader.asking = None


def parse_mounts(text: str) -> list[Mount]:
    """Return the lines of /proc/mounts; blanks in names are written there as octal escapes."""
    mounts = []
    for line in text.splitlines():
        device, mount_point, kind = (
            _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), word) for word in line.split()[:3]
        )
        mounts.append(Mount(device=device, mount_point=mount_point, kind=kind))
    return mounts


def parse_nodev(text: str) -> frozenset[str]:
    """Return the kinds of file systems without a block device from /proc/filesystems."""
    return frozenset(line.split()[1] for line in text.splitlines() if line.startswith("nodev"))


def real_mounts(mounts: Iterable[Mount], *, nodev: frozenset[str]) -> list[Mount]:
    """Return the mounts to show, each device once.

    Only the root may be an overlay (a container's). Further mounts of a device (bind mounts, subvolumes) tell nothing
    new.
    """
    last = {mount.mount_point: mount for mount in mounts}  # a later mount hides an earlier one at the same place
    shown: dict[str, Mount] = {}
    for mount in last.values():
        virtual = mount.kind in nodev and not _WITHOUT_DEVICE.fullmatch(mount.kind)
        if mount.kind in _IMAGES or (virtual and not (mount.kind == "overlay" and mount.mount_point == "/")):
            continue
        known = shown.get(mount.device)
        if known is None or len(mount.mount_point) < len(known.mount_point):
            shown[mount.device] = mount
    return list(shown.values())


def key_of(mount: Mount) -> str:
    """Return the key of a file system: its block device, else where it is mounted."""
    return clean(mount.device if mount.device.startswith("/dev/") else mount.mount_point)


def entry(mount: Mount, usage: Usage) -> dict[str, object]:
    """Return the entry of a file system. The percentage is that of df: of what users may fill."""
    used = usage.f_blocks - usage.f_bfree
    usable = used + usage.f_bavail
    return {
        "mount_point": clean(mount.mount_point),
        "device": clean(mount.device),
        "total_gb": round(usage.f_blocks * usage.f_frsize / _GB, 3),
        "used_gb": round(used * usage.f_frsize / _GB, 3),
        "percent_used": within(round(100 * used / usable, 2), 0, 100) if usable else None,
    }
