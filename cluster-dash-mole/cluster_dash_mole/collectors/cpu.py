"""The processors: how busy, how much load, how many."""

from pathlib import Path
from typing import NamedTuple

from cluster_dash_mole.mole import Reading
from cluster_dash_mole.snapshot import within


class CpuTimes(NamedTuple):
    """Clock ticks since boot, over all processors."""

    busy: int
    total: int


class CpuCollector:
    """Reads the part `cpu`. `cpu_percent` is the busy share since the round before, so None in the first."""

    name = "cpu"

    def __init__(self, proc: str = "/proc") -> None:
        self._stat = Path(proc, "stat")
        self._loadavg = Path(proc, "loadavg")
        self._last = parse_cpu_times(self._stat.read_text())

    def collect(self) -> Reading:
        """Read /proc/stat and /proc/loadavg."""
        stat = self._stat.read_text()
        times = parse_cpu_times(stat)
        percent = busy_percent(self._last, times)
        self._last = times
        loads = [within(load, 0, 1e18) for load in parse_loadavg(self._loadavg.read_text())]
        return Reading(parts={"cpu": {"cpu_percent": percent, "load_avgs": loads, "num_cpus": count_cpus(stat)}})


def parse_cpu_times(stat: str) -> CpuTimes:
    """Return the times from the first line of /proc/stat: waiting for a disk is not busy, guests are in user."""
    name, *ticks = stat[: stat.index("\n")].split()
    if name != "cpu" or len(ticks) < 4:
        raise ValueError(f"/proc/stat: no line of all processors in {stat[:80]!r}")
    user, nice, system, idle, iowait, irq, softirq, steal = (int(tick) for tick in [*ticks, *"0000"][:8])
    busy = user + nice + system + irq + softirq + steal
    return CpuTimes(busy=busy, total=busy + idle + iowait)


def busy_percent(before: CpuTimes, after: CpuTimes) -> float | None:
    """Return the busy share between two readings in percent, None where no time passed or the counters went back."""
    passed = after.total - before.total
    return within(round(100 * (after.busy - before.busy) / passed, 2), 0, 100) if passed > 0 else None


def count_cpus(stat: str) -> int | None:
    """Return the number of processors online."""
    return stat.count("\ncpu") or None


def parse_loadavg(text: str) -> list[float]:
    """Return the load of the last 1, 5 and 15 minutes."""
    return [float(load) for load in text.split()[:3]]
