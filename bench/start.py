"""How soon a server answers after its start: with an empty data folder, and with thousands of hosts in it."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench.harness import Figure, get
from bench.live import fill
from tests.processes import start_server, wait_until

HOSTS = 5_000


def run(runs: int) -> list[Figure]:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="cluster-dash-bench-") as name:
        first, again = Path(name, "first"), Path(name, "again")
        # a server of a site finds what Python compiled before, wherever this machine keeps that, if at all
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(name, "compiled"))}
        with start_server("--data", again, environment=compiled) as server:
            fill(server, HOSTS)
        seconds = statistics.median(_seconds(first / str(number), compiled) for number in range(runs))
        with_hosts = statistics.median(_seconds(again, compiled) for _ in range(runs))
    return [
        Figure(name="server answers after its start", value=seconds, unit="s", target="≤ 0.5 s", met=seconds <= 0.5),
        Figure(
            name=f"the same with the last snapshots of {HOSTS:,} hosts, all there in the first answer",
            value=with_hosts,
            unit="s",
            target="≤ 2 s",
            met=with_hosts <= 2,
        ),
    ]


def _seconds(folder: Path, environment: Mapping[str, str]) -> float:
    begin = time.monotonic()
    with start_server("--data", folder, environment=environment) as server:
        wait_until(lambda: get(server.url, "/healthz") is not None)
        return time.monotonic() - begin
