"""Values taken in per CPU second: snapshots in batches, beside a real Prometheus that scrapes as many values."""

import json
import shutil
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.harness import WITHOUT_HISTORY, Figure, free_port, get, medians, post
from bench.ingest import BATCH, MANY
from tests.processes import Listening, Process, body_of, snapshot, start_server, wait_until

AT_LEAST = 2
TARGETS = 150
SECONDS = 10
CONSTANTS = {
    *("index", "minor_number", "total_mem", "temperature_slowdown_c", "power_limit_w", "pstate"),
    *("sm_clock_max_mhz", "memory_clock_max_mhz", "gen", "gen_max", "width", "width_max", "active"),
}
"""Numbers of a GPU entry that are no figures over time."""


def figures_of(body: dict[str, Any]) -> int:
    """Count the values of a snapshot that a history stores: figures of GPUs and host, no process, no constant."""

    def numbers(part: dict[str, Any]) -> int:
        own = [value for name, value in part.items() if name not in CONSTANTS and not isinstance(value, bool)]
        inner = [value for name, value in part.items() if name in ("pcie", "nvlink", "ecc")]
        return sum(isinstance(value, int | float) for value in own) + sum(map(numbers, inner))

    gpus = sum(map(numbers, body["gpu"].values()))
    host = 1 + len(body["cpu"]["load_avgs"]) + 2 + numbers(body["network"])  # CPU, loads, memory used and available
    return gpus + host + len(body["disk"])


def run(runs: int) -> list[Figure]:
    """Measure; without Prometheus there is no reference."""
    bodies = [snapshot(f"gpu{number:02}") for number in range(BATCH)]
    values = figures_of(bodies[0])
    batch = b"\n".join(map(body_of, bodies))

    def per_cpu_second(server: Listening) -> float:
        before = server.cpu_seconds()
        taken = post(server.url + MANY, [batch] * 20)
        return taken * BATCH * values / (server.cpu_seconds() - before)

    with start_server(environment=WITHOUT_HISTORY) as live_only, start_server() as server:
        for each in (live_only, server):
            wait_until(lambda each=each: get(each.url, "/healthz") is not None)  # type: ignore[misc]
            post(each.url + MANY, [batch])
        ours, with_history = medians(runs, lambda: per_cpu_second(live_only), lambda: per_cpu_second(server))
    what = f"values taken in ({values} a snapshot, batches of {BATCH}"
    if shutil.which("prometheus") is None:
        off, on = (f"{what}, history {kept}; no Prometheus here to compare with)" for kept in ("off", "on"))
        return [
            Figure(name=name, value=value, unit="/ CPU s", more_is_better=True)
            for name, value in ((off, ours), (on, with_history))
        ]
    theirs = _prometheus(values, runs)
    return [
        Figure(
            name=f"{what}, history {kept}; reference: Prometheus scraping as many)",
            value=value,
            unit="/ CPU s",
            reference=theirs,
            target=f"≥ {AT_LEAST} × Prometheus" if kept == "off" else "",
            met=value >= AT_LEAST * theirs if kept == "off" else None,
            more_is_better=True,
        )
        for kept, value in (("off", ours), ("on", with_history))
    ]


def _prometheus(values: int, runs: int) -> float:
    """Return how many samples per CPU second a Prometheus appends that scrapes TARGETS targets each second."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        targets = stack.enter_context(_targets(values))
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {
                    "job_name": "bench",
                    "metrics_path": "/metrics",
                    "static_configs": [
                        {"targets": [targets], "labels": {"instance": f"gpu{number}", "__param_n": str(number)}}
                        for number in range(TARGETS)
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        port = free_port()
        options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        prometheus = stack.enter_context(Process(["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"]))

        def appended() -> float:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    lines = answer.read().decode().splitlines()
            except OSError:
                return 0.0
            found = [line for line in lines if line.startswith("prometheus_tsdb_head_samples_appended_total")]
            return sum(float(line.rpartition(" ")[2]) for line in found)

        wait_until(lambda: appended() > 3 * values * TARGETS, 60, "some scrapes of all targets")

        def per_cpu_second() -> float:
            samples, cpu = appended(), prometheus.cpu_seconds()
            time.sleep(SECONDS)
            return (appended() - samples) / (prometheus.cpu_seconds() - cpu)

        return statistics.median(per_cpu_second() for _ in range(runs))


@contextmanager
def _targets(values: int) -> Iterator[str]:
    """Serve a text of so many samples, with labels as exporters of GPUs have them; it changes at each scrape."""
    labels = [f'{{gpu="{gpu}",uuid="GPU-{gpu:02x}a1c0f3-0f6b-4f0e-9a53-2d1f6c1b7e{gpu:02x}"}}' for gpu in range(8)]

    def line(place: int, tick: int) -> str:
        return f"bench_figure_{place // 8}{labels[place % 8]} {(place * 7 + tick * 13) % 101}.5\n"

    texts = ["".join(line(place, tick) for place in range(values)) for tick in range(7)]

    class Target(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = texts[int(time.monotonic()) % len(texts)].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Target)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
