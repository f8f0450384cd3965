"""Machines of their own on this kernel: systemd is PID 1, in namespaces, on a copy of this machine's files.

What one changes lies in its memory and goes with it; it sees no process, no network and no device of this machine.
"""

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dev.dist import PYTHONS
from tests.processes import Process, wait_until

_BOOT = r"""
hostname "$1"
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for each in null zero full random urandom tty; do touch dev/$each; mount --bind /dev/$each dev/$each; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
ip link set lo up
echo "$1" > etc/hostname
rm -f etc/machine-id; : > etc/machine-id   # systemd makes one
# none of the services that this machine has; a journal and logins are static
rm -rf etc/systemd/system/*.wants; mkdir -p var/log/journal
mkdir before; pivot_root . before
umount -l before; rmdir before
mount --make-rshared /    # as it is after a real boot: credentials of units need it
exec env -i container=other /lib/systemd/systemd
"""
"""With `container` systemd leaves alone what belongs to the kernel."""
_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
SYSTEMD = Path("/lib/systemd/systemd")
_SPACES = ("--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")


class Machine:
    """One that has booted.

    Attributes:
        pid: its PID 1, as this machine counts.
        address: its IPv4 address, once it is linked to another one.
    """

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.address: str | None = None

    def path(self, path: str) -> Path:
        """Return where one of its files lies for this machine."""
        return Path(f"/proc/{self.pid}/root", path.lstrip("/"))

    def types(self, text: str, *, folder: str = "/srv", user: str | None = None) -> str:
        """Type lines in its shell, as root or as a user; return what was said.

        Raises:
            AssertionError: a line failed.
        """
        who = {} if user is None else {"HOME": f"/home/{user}", "USER": user}
        if user is not None:
            text = f"export XDG_RUNTIME_DIR=/run/user/$(id -u)\n{text}"
        done = subprocess.run(
            ["nsenter", "--all", "--target", str(self.pid), f"--wdns={folder}"]
            + (["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if user else [])
            + ["sh", "-exc", text],
            env=_ENVIRONMENT | who,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{self.name}: {text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def link(self, other: "Machine", net: str) -> None:
        """Lay a cable to another one; `net` is the begin of their addresses, as in 10.99.78."""
        ends = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(other.pid)]
        subprocess.run(["nsenter", "--net", "--target", str(self.pid), *ends], check=True)
        for number, each in enumerate((self, other), 1):
            each.address = f"{net}.{number}"
            each.types(f"ip addr add {each.address}/24 dev eth0; ip link set eth0 up")


@contextmanager
def machine(name: str) -> Iterator[Machine]:
    """Boot one; it ends, with all that runs on it, with the block."""
    groups = _groups()
    assert groups is not None
    group = Path(tempfile.mkdtemp(prefix="cluster-dash-test-", dir=groups))
    group.chmod(0o755)  # those who log in have theirs within it
    unshare = ["unshare", *_SPACES, "--fork", "--kill-child", "sh", "-ec", _BOOT, "sh", name]
    try:
        with Process(["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *unshare]) as outside:
            try:
                booted = Machine(name, wait_until(lambda: _children(outside.popen.pid), what="it has a PID 1")[0])
                wait_until(lambda: _has_booted(booted, outside), 30, f"{name} has booted")
                yield booted
            finally:
                outside.popen.kill()  # and with it PID 1, and with that all others
    finally:
        wait_until(lambda: _is_gone(group), what="its processes have ended")


@functools.cache
def can_be_made() -> bool:
    """Say whether one boots here: that needs root, systemd, cgroups of version 2, and the right to make namespaces."""
    if os.geteuid() != 0 or not SYSTEMD.exists() or _groups() is None:
        return False
    try:
        with machine("trial"):
            return True
    except (OSError, RuntimeError, TimeoutError):
        return False


def python() -> str | None:
    """Return which Python `install.sh` takes for the server on a machine, as 3.11; None where it has none."""
    return next(
        (each for each in PYTHONS["server"][::-1] if shutil.which(f"python{each}", path=_ENVIRONMENT["PATH"])), None
    )


def _has_booted(machine: Machine, outside: Process) -> bool:
    if outside.popen.poll() is not None:
        raise RuntimeError(f"it ended with {outside.popen.returncode}: {outside.output.decode()}")
    with suppress(AssertionError):
        return machine.types("systemctl is-system-running --wait || test $? = 1").strip() in ("running", "degraded")
    return False


def _children(pid: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _groups() -> Path | None:
    """Return where groups of processes are, by version 2."""
    found = re.search(r"^\S+ (\S+) cgroup2 rw", Path("/proc/self/mounts").read_text(), re.MULTILINE)
    return None if found is None else Path(found[1])


def _is_gone(group: Path) -> bool:
    """Take away a group, and those in it."""
    for folder, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):  # somebody is in it yet
            Path(folder).rmdir()
    return not group.exists()
