"""What a mole can read: one file a subject, one line of the table each."""

from cluster_dash_mole.collectors.cpu import CpuCollector
from cluster_dash_mole.collectors.disk import DiskCollector
from cluster_dash_mole.collectors.gpu import GpuCollector
from cluster_dash_mole.collectors.memory import MemoryCollector
from cluster_dash_mole.collectors.network import NetworkCollector
from cluster_dash_mole.mole import Clock, Collector


def build(*, interval: float, clock: Clock, proc: str = "/proc", sys: str = "/sys") -> list[Collector]:
    """Return every collector, to read below the given roots every `interval` s.

    To be called before any thread is started: the GPU collector forks.
    """
    return [
        GpuCollector(interval=interval, clock=clock, proc=proc, sys=sys),
        CpuCollector(proc),
        MemoryCollector(proc),
        DiskCollector(proc),
        NetworkCollector(proc, sys),
    ]
