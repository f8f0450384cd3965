"""A Redis as a real process, on loopback and with nothing kept; Sentinels beside it."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.processes import Process, free_port, wait_until

PASSWORD = "a secret of tests/%@:"
"""It stands in addresses, so that a test can look for it where it must not be."""


class RedisServer:
    """A Redis that is not started yet; it forgets everything when it ends.

    Args:
        password: what it asks for; None: nothing.
        replica_of: the port of the one that it follows.
    """

    def __init__(self, password: str | None = None, replica_of: int | None = None) -> None:
        self.port = free_port()
        self.process: Process | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="cluster-dash-test-redis-"))
        self._options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self._folder)]
        self._options += [] if password is None else ["--requirepass", password]
        self._options += [] if replica_of is None else ["--replicaof", "127.0.0.1", str(replica_of)]
        self._options += ["--repl-diskless-sync-delay", "0"]
        self._password = password

    @property
    def url(self) -> str:
        """Its address, without a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """Return a client of it."""
        return redis.Redis(port=self.port, password=self._password)

    def start(self) -> None:
        """Start it, empty, and return once it answers."""
        self.process = Process(["redis-server", "--port", str(self.port), *self._options], folder=self._folder)
        wait_until(self._answers, what="Redis answers")

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def signal(self, number: int) -> None:
        """Send it a signal: SIGSTOP, SIGCONT."""
        assert self.process is not None
        os.kill(self.process.popen.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL, as an outage does."""
        if self.process is not None:
            self.process.popen.kill()
            self.process.__exit__()
            self.process = None

    def remove(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder)


class Sentinels:
    """Some Sentinels that watch a master; they agree by more than half.

    Args:
        master: the one that they watch at first.
        count: how many there are.
        down_seconds: after how long a silent master is another's.
    """

    NAME = "dash"

    def __init__(self, master: RedisServer, *, count: int = 3, down_seconds: float = 3.0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="cluster-dash-test-sentinel-"))
        self.ports = [free_port() for _ in range(count)]
        self.processes: list[Process] = []
        for port in self.ports:
            folder = self._folder / str(port)
            folder.mkdir()
            config = folder / "sentinel.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor {self.NAME} 127.0.0.1 {master.port} {count // 2 + 1}\n"
                f"sentinel down-after-milliseconds {self.NAME} {down_seconds * 1000:.0f}\n"
                f"sentinel failover-timeout {self.NAME} 5000\n"
            )
            self.processes.append(Process(["redis-sentinel", config], folder=folder))
        wait_until(lambda: all(map(self._knows_all, self.ports)), what="the Sentinels know one another and the replica")

    def _knows_all(self, port: int) -> bool:
        with contextlib.suppress(redis.RedisError, KeyError), redis.Redis(port=port) as client:
            known = client.sentinel_master(self.NAME)
            return bool(known["num-slaves"] >= 1 and known["num-other-sentinels"] == len(self.ports) - 1)
        return False

    @property
    def url(self) -> str:
        """The address of whichever Redis is master."""
        places = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{places}/{self.NAME}/0"

    def master_port(self) -> int:
        """Return which Redis is master by now."""
        with redis.Redis(port=self.ports[0]) as client:
            return int(client.sentinel_get_master_addr_by_name(self.NAME)[1])

    def remove(self) -> None:
        """End them and remove their folders."""
        for process in self.processes:
            process.popen.kill()
            process.__exit__()
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def running(password: str | None = None) -> Iterator[RedisServer]:
    """Start one, and end it with the block."""
    server = RedisServer(password)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            with contextlib.suppress(ProcessLookupError):
                server.signal(signal.SIGCONT)
        server.remove()
