"""Engines of history as real processes, on loopback and with their data in a temporary folder."""

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster_dash_server.history.remote.engine import Access
from tests.processes import Process, free_port, wait_until

PROMETHEUS = "storage: {tsdb: {out_of_order_time_window: 30d}}\n"


class Engine:
    """An engine that runs.

    Args:
        command: its argument list; `{port}` becomes its port.
        folder: where its data are.
        ready: a path that is answered once it is ready.
        flush_path: a path that makes what was written visible; None: it is at once.
    """

    def __init__(self, command: list[str], folder: Path, ready: str, flush_path: str | None = None) -> None:
        self.port = free_port()
        self.name = command[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.access = Access(write_url=f"{self.url}/api/v1/write", read_url=self.url)
        self.command = [part.replace("{port}", str(self.port)) for part in command]
        self._folder, self._ready, self._flush_path = folder, ready, flush_path
        self.process: Process | None = None

    def start(self) -> None:
        """Start it, and return once it answers."""
        self.process = Process(self.command, folder=self._folder)
        wait_until(lambda: self._answers(self._ready), 60, f"{self.command[0]} is ready")

    def kill(self) -> None:
        """End it by SIGKILL."""
        assert self.process is not None
        self.process.popen.kill()
        self.process.popen.wait()
        self.process.__exit__()

    def stop(self) -> None:
        """End it."""
        assert self.process is not None
        self.process.__exit__()

    def flush(self) -> None:
        """Make visible what was written."""
        if self._flush_path is not None:
            assert self._answers(self._flush_path)

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def victoria_metrics(folder: Path) -> Engine:
    """VictoriaMetrics, as docs/history.md says to start it."""
    command = [
        *("victoria-metrics", "-httpListenAddr=127.0.0.1:{port}", f"-storageDataPath={folder / 'data'}"),
        *("-retentionPeriod=100y", "-dedup.minScrapeInterval=1ms", "-search.latencyOffset=1s"),
    ]
    return Engine(command, folder, "/health", "/internal/force_flush")


def prometheus(folder: Path) -> Engine:
    """Prometheus that takes remote writes, and what comes late."""
    (folder / "prometheus.yml").write_text(PROMETHEUS)
    command = [
        *("prometheus", "--config.file=prometheus.yml", f"--storage.tsdb.path={folder / 'data'}"),
        *("--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver"),
        *("--storage.tsdb.retention.time=100y", "--web.enable-admin-api"),
    ]
    return Engine(command, folder, "/-/ready")


KINDS: dict[str, Callable[[Path], Engine]] = {"victoria-metrics": victoria_metrics, "prometheus": prometheus}


@contextmanager
def running(kind: str, folder: Path) -> Iterator[Engine]:
    """Start an engine, and end it with the block."""
    engine = KINDS[kind](folder)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
