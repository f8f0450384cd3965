"""What a mole can read: one file a subject, one line of the table each."""

from collections.abc import Callable

from cluster_dash_mole.collectors.cpu import CpuCollector
from cluster_dash_mole.collectors.disk import DiskCollector
from cluster_dash_mole.collectors.gpu import GpuCollector
from cluster_dash_mole.collectors.memory import MemoryCollector
from cluster_dash_mole.collectors.network import NetworkCollector
from cluster_dash_mole.mole import Clock, Collector


def build(
    *,
    interval: float,
    clock: Clock,
    proc: str = "/proc",
    sys: str = "/sys",
    slurm: Callable[[], Collector] | None = None,
) -> list[Collector]:
    """Return every collector, to read below the given roots every `interval` s; one for Slurm where it is in use.

    To be called before any thread is started: the GPU collector forks.
    """
    kinds: list[Collector] = [
        GpuCollector(interval=interval, clock=clock, proc=proc, sys=sys),
        CpuCollector(proc),
        MemoryCollector(proc),
        DiskCollector(proc),
        NetworkCollector(proc, sys),
    ]
    return kinds if slurm is None else [*kinds, slurm()]


def slurm(*, clock: Clock, interval: float, folder: str, at_once: bool) -> Callable[[], Collector]:
    """Return what makes the collector for Slurm; the other moles of a cluster do not load it: memory."""

    def make() -> Collector:
        from cluster_dash_mole.collectors.slurm import SlurmCollector

        return SlurmCollector(clock=clock, interval=interval, folder=folder, at_once=at_once)

    return make
