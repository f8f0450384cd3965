"""A PostgreSQL as real processes, on loopback and with its data in a temporary folder; a database for each test."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg

from tests.processes import Process, free_port, wait_until

USER = "dash"
PASSWORD = "a secret of tests/%"
"""It stands in every address, so that a test can look for it where it must not be."""
UNSAFE = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
"""What is quick, and right as long as the machine lives."""


def program(name: str) -> Path | None:
    """Return where a program of PostgreSQL's server is: Debian keeps them out of the PATH; None: nowhere."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    folders = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return folders[-1] if folders else None


class Postgresql:
    """A database server that runs; it refuses to be root's, and is another user's then.

    Args:
        is_safe: whether it writes as it should where the machine may die: for tests that kill it.
    """

    def __init__(self, *, is_safe: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="cluster-dash-test-pg-"))
        self._as: list[str] = []
        if os.geteuid() == 0:
            owner = _somebody()
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
            self._as = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        self.port = free_port()
        self._count = 0
        self._is_safe = is_safe
        self.process: Process | None = None
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                *(*self._as, str(program("initdb")), "-D", str(self._folder / "data"), "-U", USER),
                *("--auth=scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--no-locale", "--no-sync"),
            ],
            check=True,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> None:
        """Start it, and return once it answers."""
        self.process = Process(
            [
                *(*self._as, str(program("postgres")), "-D", str(self._folder / "data"), "-p", str(self.port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "jit=off"),
                *("-c", "shared_buffers=16MB", "-c", "max_connections=60", *(() if self._is_safe else UNSAFE)),
            ],
            folder=self._folder,
        )
        wait_until(self._answers, 60, "PostgreSQL is ready")

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database of it."""
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def new_database(self, how: str = "") -> str:
        """Make a database and return its address.

        Args:
            how: what else is said to make it.
        """
        self._count += 1
        name = f"test_{self._count}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} {how}".encode())
        return self.url(name)

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes: SIGSTOP, SIGCONT."""
        assert self.process is not None
        for pid in self.process.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End it by SIGKILL, as an outage does; its data stay."""
        assert self.process is not None
        family = self.process.family()
        self.signal(signal.SIGKILL)
        self.process.__exit__()
        wait_until(lambda: not any(_lives(pid) for pid in family), 60, "all of PostgreSQL ended")
        self.process = None

    def stop(self) -> None:
        """End it: connections that are open end with it; its data stay."""
        if self.process is not None:
            self.process.popen.send_signal(signal.SIGINT)  # on SIGTERM it waits for who is connected
            self.process.popen.wait(60)
            self.process.__exit__()
            self.process = None

    def remove(self) -> None:
        """Remove its data."""
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.popen.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended: {self.process.output.decode()}")
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _somebody() -> pwd.struct_passwd:
    """Return a user who is not root: the one that Debian's package makes, else nobody."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("this machine has neither a user postgres nor nobody")


@contextlib.contextmanager
def running(*, is_safe: bool = False) -> Iterator[Postgresql]:
    """Start one, and end it with the block."""
    server = Postgresql(is_safe=is_safe)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.signal(signal.SIGCONT)
        server.stop()
        server.remove()
