"""How soon a server answers after its start: with an empty data folder, and with thousands of hosts in it."""

import statistics
import tempfile
import time
from pathlib import Path

from bench.harness import Figure, get
from bench.live import fill
from tests.processes import start_server, wait_until

HOSTS = 5_000


def run(runs: int) -> list[Figure]:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="cluster-dash-bench-") as name:
        first, again = Path(name, "first"), Path(name, "again")
        with start_server("--data", again) as server:
            fill(server, HOSTS)
        seconds = statistics.median(_seconds(first / str(number)) for number in range(runs))
        with_hosts = statistics.median(_seconds(again) for _ in range(runs))
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


def _seconds(folder: Path) -> float:
    begin = time.monotonic()
    with start_server("--data", folder) as server:
        wait_until(lambda: get(server.url, "/healthz") is not None)
        return time.monotonic() - begin
