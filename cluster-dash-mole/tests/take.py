"""Take snapshots of a recorded machine: a process of its own, as NVML's library is chosen when Python starts.

Its one argument is JSON: {machine: folder, proc: another /proc, interval, deadline, patience, retry, mismatch_retry,
renew: s}. For each line of input it prints one: {"document": a snapshot, "took": s, "children": the pids of the
processes it has begotten and that live, "births": how many children the nursery was asked for so far}.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO

from cluster_dash_mole.collectors import gpu as gpus
from cluster_dash_mole.collectors.cpu import CpuCollector
from cluster_dash_mole.collectors.disk import DiskCollector
from cluster_dash_mole.collectors.gpu.nursery import Nursery
from cluster_dash_mole.collectors.gpu.processes import ProcessTable
from cluster_dash_mole.collectors.memory import MemoryCollector
from cluster_dash_mole.collectors.network import NetworkCollector
from cluster_dash_mole.collectors.slurm import SlurmCollector
from cluster_dash_mole.host import read_host
from cluster_dash_mole.mole import Collector, Mole

USERS = {0: "root", 1001: "ada", 1002: "grace"}


class CountingNursery(Nursery):
    """Counts its births: a child that cannot begin may be gone before anybody looks for it."""

    births = 0

    def birth(self) -> socket.socket:
        CountingNursery.births += 1
        return super().birth()


class StandingClock:
    """A clock that stands still, so that what is recorded is the same each time."""

    def now(self) -> float:
        return 1_790_000_000.0  # 14:13:20 UTC

    def monotonic(self) -> float:
        return 5000.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


class RunningClock(StandingClock):
    """For what is about time: only the moment shown stands still."""

    def monotonic(self) -> float:
        return time.monotonic()


SLURM_FILES = {
    **{"-V": "version", "node": "nodes", "job": "details", "partition": "partitions"},
    **{"sdiag": "sdiag", "squeue": "queue", "sacct": "finished"},
}


class RecordedSlurm:
    """Slurm's commands, answered from files; by the last word of each that tells them apart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, command: Sequence[str], limit_seconds: float) -> IO[str]:
        name = next(file for word, file in SLURM_FILES.items() if word in (command[0], command[-1]))
        return (self._folder / f"{name}.txt").open()


def main() -> None:
    given = json.loads(sys.argv[1])
    machine = Path(given["machine"])
    tree = machine if (machine / "proc").exists() else machine.parent / "common"
    proc, sysfs = str(tree / "proc"), str((machine if (machine / "sys").exists() else tree) / "sys")
    clock = RunningClock() if given.get("retry") is not None else StandingClock()
    recorded = ProcessTable(proc, owner_of=lambda _: 0, user_of=USERS.get, uptime=lambda: 9e9)
    gpus.Nursery = CountingNursery  # type: ignore[attr-defined]
    gpu = gpus.GpuCollector(
        interval=given.get("interval", 20),
        clock=clock,
        proc=given.get("proc", proc),
        sys=sysfs,
        processes=None if "proc" in given else recorded,
        deadline_seconds=given.get("deadline"),
        patience_seconds=given.get("patience"),
        retry_seconds=given.get("retry") or 60.0,
        mismatch_retry_seconds=given.get("mismatch_retry", 300.0),
        renew_seconds=given.get("renew", 86_400.0),
    )
    usage = SimpleNamespace(f_frsize=4096, f_blocks=244_000_000, f_bfree=90_000_000, f_bavail=78_000_000)
    kinds: list[Collector] = [
        gpu,
        CpuCollector(proc),
        MemoryCollector(proc),
        DiskCollector(proc, statvfs=lambda _: usage),
        NetworkCollector(proc, sysfs),
    ]
    if (machine / "slurm").exists():
        kinds.append(SlurmCollector(clock=clock, interval=60, commands=RecordedSlurm(machine / "slurm"), at_once=True))
    host = read_host(hostname=machine.name, proc=proc, etc=str(tree / "etc"))
    mole = Mole(host=host, collectors=kinds, lanes=[], interval=given.get("interval", 20), clock=clock)
    for _ in sys.stdin:
        started = time.monotonic()
        document = mole.snapshot().document()
        took = time.monotonic() - started
        told = {"document": document, "took": took, "children": descendants(os.getpid())}
        sys.stdout.write(json.dumps({**told, "births": CountingNursery.births}) + "\n")
        sys.stdout.flush()


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has just ended
        return []
    return children + [pid for child in children for pid in descendants(child)]


if __name__ == "__main__":
    main()
