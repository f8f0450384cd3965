"""What a round of alerts costs: 10,000 hosts × 8 GPUs × 30 rules, a fifth of them changed, beside a look at all."""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import Figure, medians
from cluster_dash_server.alerts import rules
from cluster_dash_server.alerts.rules import Rule
from cluster_dash_server.alerts.watch import Watch
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.events import EventLog
from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import read
from cluster_dash_server.states import Thresholds
from tests.processes import snapshot

HOSTS, GPUS, RULES = 10_000, 8, 30
CHANGED = 5
"""One of so many hosts posts between two rounds."""
ILL = 100
"""One of so many hosts has a GPU in error, another a hot one."""
OWN = """
[busy-cpu]
when = "cpu > 99"
[own-hot]
when = "temp > 85"
filter = "model:h100"
[own-power]
when = "power > 690"
for = "5m"
[full-gpu]
when = "free_mem < 1G"
filter = "label:rack=r1"
[loaded]
when = "load > 512"
"""


class _Fleet:
    """Hosts that post, and a clock that a round moves by five seconds."""

    def __init__(self, chosen: list[Rule], folder: Path) -> None:
        self.now = 1_700_000_000.0
        self._seq = itertools.count(1)
        self._places = itertools.cycle(range(CHANGED))
        self._entries: list[dict[str, Any]] = [_host(place) for place in range(HOSTS)]
        events = EventLog(Thresholds())
        self.cluster = Cluster(Thresholds(), HOSTS, events.witness)
        book = SqliteBook(folder / "alerts.db", lambda: self.now)
        self.watch = Watch(self.cluster, events, Slurm(), book, lambda: chosen, clock=lambda: self.now)
        for _ in range(2 * CHANGED):
            self.round_ms()

    def round_ms(self, *, everything: bool = False) -> float:
        """Let a fifth of the hosts post, and return what a round costs (ms of CPU)."""
        self.now += 5
        for entry in self._entries[next(self._places) :: CHANGED]:
            seen = read({**entry, "timestamp": self.now, "seq": next(self._seq)}, received_at=self.now, packed=b"{}")
            self.cluster.offer(seen)
        if everything:
            self.watch.look_at_all()
        began = time.process_time()
        self.watch.round()
        return (time.process_time() - began) * 1000


def _host(place: int) -> dict[str, Any]:
    entry = snapshot(f"gpu{place:05}", GPUS)
    gpus = list(entry["gpu"].values())
    if place % ILL == 0:
        gpus[0]["error"] = "NVML 15: lost"
    elif place % ILL == 1:
        gpus[0] |= {"temperature_c": 91.0, "temperature_slowdown_c": 90.0, "throttle_reasons": ["hw_thermal_slowdown"]}
    return {**entry, "boot_id": "b", "interval_seconds": 25.0}


def run(runs: int) -> list[Figure]:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "rules.toml"
        own.write_text(OWN)
        chosen = list(rules.load(own))[-RULES:]
        fleet = _Fleet(chosen, Path(folder))
        ours, everything = medians(max(runs, 5), fleet.round_ms, lambda: fleet.round_ms(everything=True))
    return [
        Figure(
            name=f"a round of alerts: {HOSTS:,} hosts × {GPUS} GPUs × {len(chosen)} rules, a fifth changed "
            "(reference: all looked at)",
            value=ours,
            unit="ms of CPU",
            reference=everything,
            target="≤ 200 ms",
            met=ours <= 200,
        )
    ]
