"""What tells this host and its snapshots from all others: names, ids, and the counter of snapshots."""

import contextlib
import fcntl
import logging
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster_dash_mole import __version__
from cluster_dash_mole.snapshot import Event, clean

try:  # hashlib itself loads OpenSSL: 4 MiB of memory for one hash
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

log = logging.getLogger(__name__)

_STATE = re.compile(rb"cluster-dash-mole (?P<version>\d+)\n(?P<boot_id>\S+) (?P<seq>\d+) *\n\Z")
_STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What stays the same of a host while a mole runs; `boottime` in Unix s; `ephemeral`: it comes and goes, a pod."""

    hostname: str
    boot_id: str | None
    machine_id: str | None
    boottime: float | None
    os: str | None
    kernel: str | None
    ephemeral: bool = False

    def general(self, now: float, labels: Mapping[str, str]) -> dict[str, object]:
        """Return the `general` part of a snapshot taken at `now` (Unix s)."""
        known = {"boottime": self.boottime, "os": self.os, "kernel": self.kernel, "labels": dict(labels) or None}
        return {
            "hostname": self.hostname,
            "system_time": now,
            "mole_version": __version__,
            **({"ephemeral": True} if self.ephemeral else {}),
            **{name: value for name, value in known.items() if value is not None},
        }


def read_host(*, hostname: str | None = None, ephemeral: bool = False, proc: str = "/proc", etc: str = "/etc") -> Host:
    """Read who this host is; what cannot be read is None."""
    machine_id = _read(Path(etc, "machine-id")).strip()
    return Host(
        hostname=hostname or socket.gethostname(),
        boot_id=_read(Path(proc, "sys/kernel/random/boot_id")).strip() or None,
        machine_id=machine_id_of(machine_id) if machine_id else None,
        boottime=parse_boottime(_read(Path(proc, "stat"))),
        os=parse_os_release(_read(Path(etc, "os-release"))),
        kernel=_read(Path(proc, "sys/kernel/osrelease")).strip() or None,
        ephemeral=ephemeral,
    )


def machine_id_of(text: str) -> str:
    """Return the id to show of /etc/machine-id: salted, since the file itself is not to be shown to a network."""
    return blake2b(text.encode(), digest_size=16, person=b"cluster-dash").hexdigest()


def parse_boottime(stat: str) -> float | None:
    """Return the moment of boot (Unix s) from /proc/stat."""
    found = re.search(r"^btime (\d+)$", stat, re.MULTILINE)
    return float(found[1]) if found else None


def parse_os_release(text: str) -> str | None:
    """Return the system's name from /etc/os-release."""
    found = re.search(r"^PRETTY_NAME=(?:\"(.*)\"|'(.*)'|(.*))$", text, re.MULTILINE)
    return clean(next(filter(None, found.groups()), ""), 256) or None if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def state_folder(environ: Mapping[str, str], hostname: str) -> Path:
    """Return where the mole of this host keeps its state: one folder a host, as several may share a home."""
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    home = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "/", ".local/state"))
    return Path(home, "cluster-dash-mole", hostname)


class HostPast:
    """What a mole remembers of its host from one start to the next: its boot and its driver's version.

    The first line of the file is its format. What cannot be read or kept is not remembered: no event is made up.
    """

    def __init__(self, folder: Path, *, boot_id: str) -> None:
        self._file = folder / "host"
        past = dict(line.partition(" ")[::2] for line in _read(self._file).splitlines())
        known = past if past.pop("cluster-dash-mole", "") == str(_STATE_VERSION) else {}
        self._boot_id = known.get("boot_id")
        self._driver = known.get("driver_version")
        self._now_id = boot_id

    def changes(self, general: Mapping[str, object], now: float) -> list[Event]:
        """Return what changed since it was last asked; `general` is that part of a snapshot, `now` in Unix s."""
        events = []
        driver, boottime = general.get("driver_version"), general.get("boottime")
        rebooted = self._boot_id != self._now_id
        if rebooted and self._boot_id is not None:
            at = boottime if isinstance(boottime, float) else now
            events.append(Event(at=at, kind="rebooted", text="the host was started anew"))
        other = isinstance(driver, str) and driver != self._driver
        if other and self._driver is not None:
            events.append(Event(at=now, kind="driver_changed", text=f"driver {driver}, before {self._driver}"))
        if rebooted or other:
            self._boot_id, self._driver = self._now_id, str(driver) if other else self._driver
            self._keep()
        return events

    def _keep(self) -> None:
        driver = f"driver_version {self._driver}\n" if self._driver else ""
        fresh = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_text(f"cluster-dash-mole {_STATE_VERSION}\nboot_id {self._boot_id}\n{driver}")
            fresh.rename(self._file)
        except OSError as error:
            log.debug("boot and driver are not remembered: %s", error)


class SnapshotCounter:
    """Counts the snapshots of a boot, and never gives a number twice or below an earlier one under one boot_id.

    The last number stands in the state folder, written before it is used. Without one (first start, lost or damaged
    file, no folder, another mole at work there) counting begins at the time in Unix ms: more than any earlier count
    can have reached, as snapshots are at least a second apart. No fsync: after a power cut the boot_id is another.
    """

    def __init__(self, folder: Path, *, boot_id: str, now: float) -> None:
        self._boot_id = boot_id
        self._file: int | None = None
        self._last = int(now * 1000) - 1
        path = folder / "snapshots"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("no state is kept: %s", error)
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.warning("no state is kept: another mole of this host uses %s", folder)
            os.close(file)
            return
        self._file = file
        past = _STATE.match(os.pread(file, 4096, 0))
        if past and int(past["version"]) == _STATE_VERSION and past["boot_id"].decode() == boot_id:
            self._last = int(past["seq"])

    @property
    def owns_folder(self) -> bool:
        """Whether the state folder can be written, and by this mole alone."""
        return self._file is not None

    @property
    def last(self) -> int:
        """The last number that was given."""
        return self._last

    def next(self) -> int:
        """Return the number of the next snapshot."""
        self._last += 1
        if self._file is not None:
            state = f"cluster-dash-mole {_STATE_VERSION}\n{self._boot_id} {self._last:<20}\n".encode()
            try:
                if os.pwrite(self._file, state, 0) == len(state):
                    os.ftruncate(self._file, len(state))
            except OSError as error:
                log.warning("no state is kept any more: %s", error)
                with contextlib.suppress(OSError):  # an old number left behind would be given again
                    os.ftruncate(self._file, 0)
                self.close()
        return self._last

    def close(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
