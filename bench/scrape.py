"""What a scrape costs: the whole cluster, one host, a mole's own port; beside prometheus-client and nvitop-exporter."""

import shutil
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from bench.harness import Figure, get, post
from bench.ingest import MANY
from bench.live import fill
from tests.processes import BIN, TOP, Process, fake_nvml, start_server, wait_until

HOSTS, GPUS = 2000, 8
TARGET_MS, HOST_TARGET_MS = 300.0, 20.0
SCRAPES = 200
REST_SECONDS = 30
REST_CPU_SECONDS = 0.02
"""What a server takes at most in a second in which it has nothing to do."""
METRICS = ("busy_ratio", "memory_used_bytes", "memory_total_bytes", "power_watts", "temperature_celsius", "pending")


class _Cards(Collector):
    """As many GPUs, with six metrics of the eight that we have, in the way of prometheus-client's manual."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        names = ["host", "gpu", "uuid", "model"]
        for metric in METRICS:
            family = GaugeMetricFamily(f"cluster_dash_gpu_{metric}", "a metric", labels=names)
            for host in range(HOSTS):
                for gpu in range(GPUS):
                    family.add_metric([f"gpu{host:05}", str(gpu), f"GPU-{host:08x}-{gpu}", "H100 80G"], 0.5 * gpu)
            yield family


def run(runs: int) -> list[Figure]:
    """Measure."""
    figures = []
    with start_server() as server, ExitStack() as stack:
        batches = fill(server, HOSTS)

        def cpu_ms(path: str, between: bool) -> float:
            if between:  # every host has posted since the last scrape, as it is in life
                post(server.url + MANY, batches)
                _rests(server)
            before = server.cpu_seconds()
            get(server.url, path, "gzip")
            return (server.cpu_seconds() - before) * 1000

        whole = statistics.median(cpu_ms("/metrics", True) for _ in range(max(3, runs)))
        registry = CollectorRegistry()
        registry.register(_Cards())
        began = time.process_time()
        generate_latest(registry)
        reference = (time.process_time() - began) * 1000
        figures.append(
            Figure(
                name=f"/metrics of {HOSTS:,} hosts × {GPUS} GPUs, all new, gzip (reference: prometheus-client)",
                value=whole,
                unit="ms",
                reference=reference,
                target=f"≤ {TARGET_MS:.0f} ms",
                met=whole <= TARGET_MS,
            )
        )
        before = server.cpu_seconds()
        for number in range(SCRAPES):
            get(server.url, f"/metrics?family=dcgm&host=gpu{number:05}", "gzip")
        one = (server.cpu_seconds() - before) / SCRAPES * 1000
        figures.append(
            Figure(
                name="one host under dcgm-exporter's names",
                value=one,
                unit="ms",
                target=f"≤ {HOST_TARGET_MS:.0f} ms",
                met=one <= HOST_TARGET_MS,
            )
        )
        ours_ms, ours_bytes = _exporter(stack, "cluster-dash-mole")
        theirs = _exporter(stack, "nvitop-exporter") if shutil.which("nvitop-exporter") else None
        figures += [
            Figure(
                name="a scrape of the mole's own port, 8 GPUs (reference: nvitop-exporter, where installed)",
                value=ours_ms,
                unit="ms",
                reference=theirs and theirs[0],
            ),
            Figure(name="bytes of it", value=ours_bytes / 1000, unit="kB", reference=theirs and theirs[1] / 1000),
        ]
    return figures


def _rests(server: Process) -> None:
    """Wait until a server has written what was posted: on a busy machine that takes its time, and is no scrape."""
    for _ in range(REST_SECONDS):
        before = server.cpu_seconds()
        time.sleep(1)
        if server.cpu_seconds() - before <= REST_CPU_SECONDS:
            return


def _exporter(stack: ExitStack, program: str) -> tuple[float, float]:
    """Return what a scrape of an exporter costs it (CPU ms, rounds of its own left out) and its bytes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    ours: list[str | Path] = [BIN / "cluster-dash-mole", "run", "--listen", f"127.0.0.1:{port}"]
    theirs: list[str | Path] = [program, "--bind-address", "127.0.0.1", "--port", str(port), "--interval", "5"]
    driver = {"LD_LIBRARY_PATH": str(fake_nvml()), "FAKE_NVML_CONFIG": str(TOP / "tests/fake-nvml/h100x8.conf")}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    process = stack.enter_context(
        Process(ours if program == "cluster-dash-mole" else theirs, environment=driver, folder=folder)
    )

    def body() -> bytes:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                read: bytes = answer.read()
        except OSError:
            return b""
        return read

    wait_until(lambda: b"GPU-" in body(), 30, f"{program} answers")
    idle = _seconds_of(process, lambda: time.sleep(5))
    began = time.monotonic()
    busy = _seconds_of(process, lambda: [body() for _ in range(SCRAPES)])
    own = idle / 5 * (time.monotonic() - began)
    return max(0.0, busy - own) / SCRAPES * 1000, float(len(body()))


def _seconds_of(process: Process, work: object) -> float:
    before = process.cpu_seconds()
    assert callable(work)  # noqa: S101 - for the type checker
    work()
    return process.cpu_seconds() - before
