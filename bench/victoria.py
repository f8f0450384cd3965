"""VictoriaMetrics from Debian, where it is installed, holding the figures that our history was given: a reference."""

import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from bench.harness import free_port
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures, SeriesQuery
from tests.processes import Process, wait_until

PROGRAM = "victoria-metrics"
ROWS_A_PUSH = 100
"""Snapshots in one request: as many as an agent in front of it would gather."""


def is_installed() -> bool:
    """Say whether there is one to compare with."""
    return shutil.which(PROGRAM) is not None


class Victoria:
    """A running VictoriaMetrics."""

    def __init__(self, process: Process, url: str, folder: Path) -> None:
        self._process = process
        self._url = url
        self._folder = folder

    def push(self, rows: Sequence[Figures]) -> float:
        """Give it rows in the order of time; return the CPU seconds that it took for them."""
        before = self._process.cpu_seconds()
        for first in range(0, len(rows), ROWS_A_PUSH):
            lines = "".join(map(_lines, rows[first : first + ROWS_A_PUSH]))
            request = urllib.request.Request(f"{self._url}/api/v1/import/prometheus", lines.encode(), method="POST")
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
        self._ask("/internal/force_flush")
        return self._process.cpu_seconds() - before

    def size(self) -> int:
        """Return the bytes that it takes on disk, after it has merged what it holds."""
        self._ask("/internal/force_merge")
        before, size = 0, self._bytes()
        while size != before:  # it merges beside
            time.sleep(1)
            before, size = size, self._bytes()
        return size

    def series_ms(self, ask: SeriesQuery, times: int) -> float:
        """Return the CPU that one answer takes: the mean of some, for its clock ticks in hundredths of a second."""
        span = {"start": ask.begin, "end": ask.end, "step": 60, "nocache": 1}
        queries = [
            urlencode({"query": f'{kind}_over_time({ask.metric}{{host="{(ask.hosts or ("",))[0]}"}}[1m])', **span})
            for kind in ("min", "avg", "max")
        ]
        self._ask(f"/api/v1/query_range?{queries[0]}")
        before = self._process.cpu_seconds()
        for _ in range(times):
            for query in queries:
                self._ask(f"/api/v1/query_range?{query}")
        return (self._process.cpu_seconds() - before) / times * 1000

    def _ask(self, path: str) -> None:
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            answer.read()

    def _bytes(self) -> int:
        return sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())


@contextmanager
def running() -> Iterator[Victoria]:
    """Start one with an empty folder."""
    with tempfile.TemporaryDirectory(prefix="cluster-dash-bench-") as name:
        port = free_port()
        options = [f"-httpListenAddr=127.0.0.1:{port}", f"-storageDataPath={name}", "-retentionPeriod=100y"]
        with Process([PROGRAM, *options, "-loggerLevel=ERROR"]) as process:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: _answers(url), 60, "VictoriaMetrics answers")
            yield Victoria(process, url, Path(name))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _lines(row: Figures) -> str:
    """Write a snapshot's known figures as exporters would."""
    at, count, values = round(row.at * 1000), len(row.gpus), row.values
    of_gpus = [
        f'{name}{{host="{row.host}",gpu="{gpu.gpu}"}} {value:g} {at}\n'
        for metric, name in enumerate(GPU_METRICS)
        for place, gpu in enumerate(row.gpus)
        if (value := values[metric * count + place]) == value
    ]
    of_host = [
        f'{name}{{host="{row.host}"}} {value:g} {at}\n'
        for name, value in zip(HOST_METRICS, values[-len(HOST_METRICS) :], strict=True)
        if value == value
    ]
    return "".join(of_gpus + of_host)
