"""A real Slurm of five nodes on this machine, for tests: `tests/slurm-lab/README.md` says what is in it."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Self

from tests.processes import TOP

SCRIPTS = TOP / "tests" / "slurm-lab"
PORTS = 20
"""Ports of one lab, from its first on."""
LIMIT_SECONDS = 90


class Lab:
    """A cluster that runs as long as its block does; as root only."""

    def __init__(self, *, accounting: bool = True) -> None:
        # jobs run as ordinary users, who must be able to enter it: pytest's own folders are closed to them
        self.folder = Path(tempfile.mkdtemp(prefix="slab", dir="/tmp"))
        self._accounting = accounting
        worker = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or "0"
        self.environment = {
            "SLURM_LAB_PORT": str(21817 + PORTS * int(worker)),
            "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
            "SLURM_LAB_DIR": str(self.folder),
        }

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if (self.folder / "env.sh").exists():
            self._script("down.sh", "--purge")
        shutil.rmtree(self.folder, ignore_errors=True)

    def up(self) -> None:
        """Start what does not run."""
        self._script("up.sh", *([] if self._accounting else ["--no-dbd"]))

    def fill(self) -> None:
        """Submit jobs of all kinds, drain one node and crash another; takes half a minute."""
        self._script("jobs.sh")

    def _script(self, name: str, *options: str) -> str:
        command = [str(SCRIPTS / name), str(self.folder), *options]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def run(self, *command: str, user: str | None = None) -> str:
        """Run a command of Slurm, as root or as one of the lab's users; return what it prints."""
        become = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        environment = {**os.environ, **self.environment, "HOME": "/tmp", "LC_ALL": "C"}
        done = subprocess.run(
            [*become, *command], env=environment, capture_output=True, text=True, timeout=60, check=False, cwd="/tmp"
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, user: str, name: str, *options: str, script: str = "sleep 3000") -> str:
        """Submit a job; return its id."""
        account = "biology" if user == "labbob" else "physics"
        fixed = ["--parsable", "-A", account, "-J", name, "-D", "/tmp", "-o", "/dev/null", "-t", "60"]
        return self.run("sbatch", *fixed, *options, "--wrap", script, user=user).strip()

    def daemon(self, name: str) -> int:
        """Return the pid of a daemon: `slurmctld`, `slurmdbd`, or a slurmd by its node."""
        return int((self.folder / "run" / f"{name}.pid").read_text())

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a daemon."""
        os.kill(self.daemon(name), number)

    def rpcs(self) -> Counter[str]:
        """Return how many RPCs of each kind slurmctld has answered since `sdiag -r`."""
        found = re.findall(
            r"^\s(REQUEST_\w+|MESSAGE_\w+|ACCOUNTING_\w+)\s+\(\s*\d+\) count:(\d+)", self.run("sdiag"), re.M
        )
        return Counter({kind: int(count) for kind, count in found})
