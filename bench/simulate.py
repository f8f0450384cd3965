"""How many snapshots one process of the simulated fleet posts, and what each costs it: the generator of load."""

import json
import statistics
import subprocess
import sys

from bench.harness import Figure
from tests.processes import BIN, TOP, Listening

HOSTS = 1000
SECONDS = 6
AT_LEAST_A_SECOND = 1000


def run(runs: int) -> list[Figure]:
    """Measure against a server that does nothing with a post."""
    with Listening([sys.executable, TOP / "bench" / "sink.py"]) as sink:
        paced = [_post(sink.url, interval_seconds=1.0) for _ in range(runs)]
        pushed = [_post(sink.url, interval_seconds=0.1) for _ in range(runs)]
    rate = statistics.median(each["posts_per_second"] for each in pushed)
    cpu_ms = statistics.median(1000 * each["cpu_seconds"] / each["posts"] for each in paced)
    what = "one process, 8 GPUs, a connection each"
    return [
        Figure(
            name=f"simulated snapshots posted ({what})",
            value=rate,
            unit="/s",
            target=f"≥ {AT_LEAST_A_SECOND:,} /s",
            met=rate >= AT_LEAST_A_SECOND,
        ),
        Figure(name=f"CPU per simulated snapshot ({what}, at 1,000 /s)", value=cpu_ms, unit="ms"),
    ]


def _post(url: str, *, interval_seconds: float) -> dict[str, float]:
    command = [str(BIN / "cluster-dash-mole"), "simulate", "--server", url, "--hosts", str(HOSTS), "--quiet", "--json"]
    command += ["--interval", str(interval_seconds), "--seconds", str(SECONDS)]
    said: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if said["refused"] or said["timeouts"] or said["failed"]:
        raise RuntimeError(f"posts were lost: {said}")
    return said
