"""Replicas behind the nginx that etc/ ships, on their engines: each part a process that can be killed and paused."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, Self

from tests import databases, engines, nginx, redis_servers
from tests.processes import BIN, TOP, Listening, Process, free_port, wait_until

PASSCODE = "lab_cluster_2025"
"""Set by the site, as the shipped one is not taken through a proxy."""
SITE = (TOP / "etc" / "nginx" / "cluster-dash-replicas.conf").read_text()


class Starts(Protocol):
    """What starts a process: an engine of `tests.engines` or `tests.databases`."""

    process: Process | None

    def start(self) -> None:
        """Start it where it was, with what it kept; return once it answers."""


class Part:
    """A part of a site, which can fail.

    Args:
        name: for messages.
        begin: starts it where it was, with what it kept, and returns once it answers.
    """

    def __init__(self, name: str, begin: Callable[[], Process]) -> None:
        self.name = name
        self.process: Process | None = None
        self._begin = begin

    @classmethod
    def of(cls, name: str, engine: Starts) -> "Part":
        """Make one of an engine."""

        def begin() -> Process:
            engine.start()
            assert engine.process is not None
            return engine.process

        return cls(name, begin)

    def start(self) -> None:
        """Start it."""
        self.process = self._begin()

    def kill(self) -> None:
        """End it as a power cut does, with all its processes."""
        self._signal(signal.SIGKILL)
        self.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it stand still meanwhile, with all its connections open, as on a machine that hangs."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it in good order; nothing where it does not run."""
        if self.process is not None:
            process, self.process = self.process, None
            process.__exit__()

    def cpu_seconds(self) -> float:
        """Return what it has used, see `Process`."""
        assert self.process is not None
        return self.process.cpu_seconds()

    def memory_mib(self) -> float:
        """Return what it takes, see `Process`."""
        assert self.process is not None
        return self.process.memory_mib()

    def _signal(self, number: int) -> None:
        for pid in [] if self.process is None else self.process.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Replica(Part):
    """One server; what it keeps beside the engines lies in its folder.

    Args:
        name: for messages.
        folder: its data folder.
        environment: its settings.
        options: of the command line.
    """

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], options: Sequence[str] = ()) -> None:
        super().__init__(name, self._serve)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command: list[str | Path] = [BIN / "cluster-dash-server", "serve", "--port", str(self.port), *options]
        self._command += ["--data", folder]
        self._environment = {
            "CLUSTER_DASH_INGEST__PASSCODE": PASSCODE,
            "CLUSTER_DASH_SERVER__TRUSTED_PROXIES": "127.0.0.1",
            **environment,
        }

    def _serve(self) -> Process:
        process = Listening(self._command, environment=self._environment)
        wait_until(lambda: nginx.is_open(self.port), 60, f"{self.name} listens")
        return process


class Nginx(Part):
    """nginx as etc/ has it for replicas, with their addresses for those of the file.

    Args:
        folder: for its files.
        ports: of the replicas.
        tls: a folder with a certificate, see `nginx.make_certificates`; None: without TLS, for who listens on the way.
    """

    def __init__(self, folder: Path, ports: Sequence[int], tls: Path | None) -> None:
        super().__init__("nginx", lambda: nginx.start(self._site, self.port, folder))
        folder.mkdir()
        self.port = free_port()
        self.url = f"{'http' if tls is None else 'https'}://localhost:{self.port}"
        site = SITE.replace("listen 443", f"listen 127.0.0.1:{self.port}")
        for number, port in enumerate(ports, 1):
            site = site.replace(f"10.0.0.1{number}:8080", f"127.0.0.1:{port}")
        if tls is None:
            site = re.sub(r"^ +ssl_.*\n", "", site, flags=re.MULTILINE).replace(" ssl http2;", ";")
        else:
            site = site.replace("/etc/ssl/dash.pem", f"{tls}/site.pem").replace("/etc/ssl/dash.key", f"{tls}/site.key")
        self._site = site


class Site:
    """Two replicas behind nginx; what was started ends with the block.

    Args:
        folder: for all that is kept.
        environment: settings of all replicas.
        beneath: what they stand on; started first, ended last.
        tls: as of `Nginx`.
        options: of the replicas' command line.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environment: Mapping[str, str],
        beneath: Sequence[Part] = (),
        tls: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.replicas = [
            Replica(f"replica {number}", folder / f"replica{number}", environment, options) for number in (1, 2)
        ]
        self.front = Nginx(folder / "nginx", [replica.port for replica in self.replicas], tls)
        self.url = self.front.url
        self.parts: dict[str, Part] = {part.name: part for part in (*beneath, *self.replicas, self.front)}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for part in self.parts.values():
                part.start()
                started.callback(part.stop)
            self._stack = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def shared_by(url: str) -> dict[str, str]:
    """Return the settings by which replicas share their live view in a Redis."""
    return {"CLUSTER_DASH_LIVE__KIND": "redis", "CLUSTER_DASH_LIVE__URL": url}


class Redises:
    """Two Redis, one of which follows the other, and three Sentinels that say which is master; started at once."""

    def __init__(self) -> None:
        first = redis_servers.RedisServer()
        self._servers = [first, redis_servers.RedisServer(replica_of=first.port)]
        self._parts = {server.port: Part.of(f"Redis {server.port}", server) for server in self._servers}
        for part in self._parts.values():
            part.start()
        self._sentinels = redis_servers.Sentinels(first)
        self.url = self._sentinels.url

    def master(self) -> Part:
        """Return the one that is master now."""
        return self._parts[self._sentinels.master_port()]

    def remove(self) -> None:
        """End all."""
        self._sentinels.remove()
        for server in self._servers:
            server.remove()


def victoria_metrics(folder: Path) -> tuple[Part, dict[str, str]]:
    """Return VictoriaMetrics, and the settings by which replicas keep their figures there."""
    folder.mkdir()
    engine = engines.victoria_metrics(folder)
    settings = {
        "CLUSTER_DASH_HISTORY__KIND": "remote",
        "CLUSTER_DASH_HISTORY__WRITE_URL": engine.access.write_url,
        "CLUSTER_DASH_HISTORY__FLUSH_SECONDS": "1",
        "CLUSTER_DASH_HISTORY__CLUSTER": "test",
    }
    return Part.of("VictoriaMetrics", engine), settings


def postgresql() -> tuple[databases.Postgresql, dict[str, str]]:
    """Return a PostgreSQL that can be killed, and the settings of its ledger; whose data who calls removes."""
    database = databases.Postgresql(is_safe=True)
    settings = {"CLUSTER_DASH_LEDGER__KIND": "postgresql", "CLUSTER_DASH_LEDGER__URL": database.url()}
    return database, settings


class Looking:
    """Asks for something over and over, in a thread of its own; `found` is what it got, each with when (monotonic s).

    Args:
        ask: what is asked; an OSError is an answer, too.
        pause_seconds: between two questions.
    """

    def __init__(self, ask: Callable[[], object], pause_seconds: float = 0.1) -> None:
        self.found: list[tuple[float, object]] = []
        self._ask, self._pause_seconds = ask, pause_seconds
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ends.wait(self._pause_seconds):
            try:
                answer = self._ask()
            except OSError as error:
                answer = error
            self.found.append((time.monotonic(), answer))
