"""A fleet of moles, each with a connection of its own a post: time-outs, delay, and CPU of the server.

The delay is as the simulated fleet sees it, on the same cores. What of it is its own is told beside: the same fleet at
a server that does nothing.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.harness import Figure, get
from tests.processes import BIN, TOP, Listening, Process, start_server, wait_until

INTERVAL_SECONDS = 5
SECONDS = 25


def run(runs: int) -> list[Figure]:
    """Measure; one run of each kind is long already, so there are at most three."""
    runs = min(runs, 3)
    figures = []
    for kind, hosts, core_percent, p99_ms in (("waitress", 1000, 40, 100), ("granian", 3000, 100, None)):
        told, own_ms = [], []
        for _ in range(runs):
            with Listening([sys.executable, TOP / "bench" / "sink.py"]) as sink:
                own_ms.append(_storm(sink, hosts)["p99_ms"])
            with start_server("--server", kind) as server:
                wait_until(lambda server=server: get(server.url, "/healthz") is not None)  # type: ignore[misc]
                told.append(_storm(server, hosts))
        percent = statistics.median(each["cpu_percent"] for each in told)
        delay = statistics.median(each["p99_ms"] for each in told)
        lost = max(each["lost"] for each in told)
        name = f"{hosts:,} moles at {INTERVAL_SECONDS} s, {kind}"
        figures += [
            Figure(
                name=f"{name}: CPU of the server",
                value=percent,
                unit="% of a core",
                target=f"≤ {core_percent} %",
                met=percent <= core_percent,
            ),
            Figure(name=f"{name}: posts not answered 200", value=lost, unit="", target="0", met=lost == 0),
            Figure(
                name=f"{name}: p99 of a post, beside a server that does nothing",
                value=delay,
                unit="ms",
                reference=statistics.median(own_ms),
                target="" if p99_ms is None else f"≤ {p99_ms} ms",
                met=None if p99_ms is None else delay <= p99_ms,
            ),
        ]
    return figures


def _storm(server: Listening, hosts: int) -> dict[str, Any]:
    """Post for some intervals; return what the simulation tells, and the server's share of a core meanwhile."""
    command: list[str | Path] = [
        BIN / "cluster-dash-mole",
        "simulate",
        "--server",
        server.url,
        "--hosts",
        str(hosts),
        "--quiet",
        "--json",
    ]
    command += ["--interval", str(INTERVAL_SECONDS), "--seconds", str(SECONDS)]
    with Process(command) as fleet:
        time.sleep(INTERVAL_SECONDS + 2)  # the first round makes the hosts known
        cpu, begin = server.cpu_seconds(), time.monotonic()
        time.sleep(SECONDS - INTERVAL_SECONDS - 4)
        percent = (server.cpu_seconds() - cpu) / (time.monotonic() - begin) * 100
        fleet.popen.wait(60)
        told: dict[str, Any] = json.loads(fleet.output.splitlines()[-1])
    taken = told["statuses"].get("200", 0)
    return {**told, "cpu_percent": percent, "lost": told["posts"] - taken}
