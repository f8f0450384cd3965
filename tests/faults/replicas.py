"""Replicas behind the nginx that etc/ ships, each part a process that can be killed and paused."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self

from tests import nginx
from tests.processes import BIN, TOP, Listening, Process, wait_until

PASSCODE = "lab_cluster_2025"
"""Set by the site, as the shipped one is not taken through a proxy."""
SITE = (TOP / "etc" / "nginx" / "cluster-dash-replicas.conf").read_text()


class Part(Protocol):
    """A part of a site that can fail."""

    name: str
    process: Process

    def start(self) -> None:
        """Start it where it was, with what it kept; return once it answers."""


def kill(part: Part) -> None:
    """End a part as a power cut does, with all its processes."""
    for pid in part.process.family():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    part.process.popen.wait()
    part.process.__exit__()


@contextmanager
def paused(part: Part) -> Iterator[None]:
    """Let a part stand still meanwhile, with all its connections open, as on a machine that hangs."""
    pids = part.process.family()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Replica:
    """One server; what it keeps beside the engines lies in its folder.

    Args:
        name: for messages.
        folder: its data folder.
        environment: its settings.
        options: of the command line.
    """

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], options: tuple[str, ...] = ()) -> None:
        self.name = name
        self.port = nginx.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._environment = {
            "CLUSTER_DASH_INGEST__PASSCODE": PASSCODE,
            "CLUSTER_DASH_SERVER__TRUSTED_PROXIES": "127.0.0.1",
            **environment,
        }
        self._options = options
        self.process: Process

    def start(self) -> None:
        """See `Part`."""
        command: list[str | Path] = [BIN / "cluster-dash-server", "serve", "--port", str(self.port), *self._options]
        self.process = Listening([*command, "--data", self._folder], environment=self._environment)
        wait_until(lambda: nginx.is_open(self.port), 60, f"{self.name} listens")


class Nginx:
    """nginx as etc/ has it for replicas, with their addresses for those of the file.

    Args:
        folder: for its files.
        ports: of the replicas.
        tls: a folder with a certificate, see `nginx.make_certificates`; None: without TLS, for who listens on the way.
    """

    name = "nginx"

    def __init__(self, folder: Path, ports: tuple[int, int], tls: Path | None) -> None:
        self.port = nginx.free_port()
        self.url = f"{'http' if tls is None else 'https'}://localhost:{self.port}"
        site = SITE
        for number, port in enumerate(ports):
            site = site.replace(f"10.0.0.1{number + 1}:8080", f"127.0.0.1:{port}")
        site = site.replace("listen 443", f"listen 127.0.0.1:{self.port}")
        if tls is None:
            site = re.sub(r"^ +ssl_.*\n", "", site, flags=re.MULTILINE).replace(" ssl http2;", ";")
        else:
            site = site.replace("/etc/ssl/dash.pem", f"{tls}/site.pem").replace("/etc/ssl/dash.key", f"{tls}/site.key")
        self._site = site
        self._folder = folder
        self._folder.mkdir()
        self.process: Process

    def start(self) -> None:
        """See `Part`."""
        self.process = nginx.start(self._site, self.port, self._folder)


class Site:
    """Two replicas behind nginx; what was started ends with the block.

    Args:
        folder: for all that is kept.
        environment: settings of all replicas.
        tls: as of `Nginx`.
        options: of the replicas' command line.
    """

    def __init__(
        self, folder: Path, *, environment: Mapping[str, str], tls: Path | None = None, options: tuple[str, ...] = ()
    ) -> None:
        self.replicas = [
            Replica(f"replica {number}", folder / f"replica{number}", environment, options) for number in range(2)
        ]
        self.front = Nginx(folder / "nginx", (self.replicas[0].port, self.replicas[1].port), tls)
        self.url = self.front.url
        parts: list[Part] = [*self.replicas, self.front]
        self.parts = {part.name: part for part in parts}

    def __enter__(self) -> Self:
        started: list[Part] = []
        try:
            for part in self.parts.values():
                part.start()
                started.append(part)
        except BaseException:
            for part in started:
                part.process.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for part in reversed(self.parts.values()):
            part.process.__exit__()


class Looking:
    """Asks for something over and over, in a thread of its own; `found` is what it got, each with when (monotonic s).

    Args:
        ask: what is asked; an exception is an answer, too.
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
