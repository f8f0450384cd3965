"""A fleet that was without its server for ten minutes: live posts while its backlogs drain, and how long that takes."""

import statistics
import tempfile
from pathlib import Path

from bench.harness import Figure
from tests.faults.herd import Herd, come_back

HERD = Herd(moles=1000, snapshots=60, interval_seconds=10, seconds=600, processes=2)
"""As many as leave the server its share of two cores: real moles each have a machine of their own."""


def run(runs: int) -> list[Figure]:
    """Measure; a run takes a minute or two, so there are at most three."""
    told = []
    for _ in range(min(runs, 3)):
        with tempfile.TemporaryDirectory() as folder:
            told.append(come_back(Path(folder), HERD))
    name = f"{HERD.moles:,} moles at {HERD.interval_seconds:.0f} s come back, each with {HERD.snapshots} snapshots"
    p99_ms = 1000 * statistics.median(each.p99_seconds for each in told)
    left = HERD.moles - min(each.drained for each in told)
    late = max(len(each.failed_late) for each in told)
    return [
        Figure(
            name=f"{name}: p99 of a live post while they drain",
            value=p99_ms,
            unit="ms",
            target="≤ 500 ms",
            met=p99_ms <= 500,
        ),
        Figure(
            name=f"{name}: until the last is drained",
            value=statistics.median(each.drained_seconds for each in told),
            unit="s",
        ),
        Figure(
            name=f"{name}: the server's CPU meanwhile, of a core",
            value=100 * statistics.median(each.server_cpu_seconds / each.drained_seconds for each in told),
            unit="%",
        ),
        Figure(name=f"{name}: hosts with a backlog left", value=left, unit="", target="0", met=left == 0),
        Figure(name=f"{name}: 5xx after the first 5 s", value=late, unit="", target="0", met=late == 0),
    ]
