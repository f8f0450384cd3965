"""A fleet that lost its server and gets it back: moles in some processes, each with its backlog; and what they saw."""

import logging
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Queue, get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

from tests.faults.crew import Crew, Log
from tests.processes import start_server

SETTLED_SECONDS = 5.0
"""After so long nobody is answered 5xx any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Herd:
    """A fleet, and for how long it was without a server.

    Attributes:
        moles: how many.
        snapshots: that each holds.
        interval_seconds: between two that it takes.
        seconds: how long the backlogs may take.
        processes: that the moles are in.
    """

    moles: int
    snapshots: int
    interval_seconds: float
    seconds: float
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """How a herd came back.

    Attributes:
        most_a_second: posts of the fullest second.
        mean_a_second: live posts, by its interval.
        seen: moles that were live.
        live_seconds: until the last of them was.
        p99_seconds: of live posts, while backlogs drained.
        drained: moles whose backlog is in history.
        drained_seconds: until the last of them was, or the time was over.
        refused: posts that were told to come later, or failed.
        failed_late: answers of 5xx after SETTLED_SECONDS.
        server_cpu_seconds: of the server, meanwhile.
    """

    most_a_second: int
    mean_a_second: float
    seen: int
    live_seconds: float
    p99_seconds: float
    drained: int
    drained_seconds: float
    refused: int
    failed_late: Sequence[str]
    server_cpu_seconds: float


def p99(seconds: Sequence[float]) -> float:
    """Return the time within which 99 of 100 were done."""
    return statistics.quantiles(seconds, n=100)[98]


def come_back(folder: Path, herd: Herd) -> Return:
    """Have a herd meet a server, with its data in a folder, and post until all backlogs are drained."""
    spawn = get_context("spawn")
    together, said = spawn.Barrier(herd.processes), spawn.Queue()
    with start_server("--data", folder) as server:
        before = server.cpu_seconds()
        parts = [
            spawn.Process(target=_post, args=(server.url, herd, number, together, said))
            for number in range(herd.processes)
        ]
        for each in parts:
            each.start()
        found = [said.get(timeout=2 * herd.seconds + 900) for _ in parts]
        for each in parts:
            each.join(60)
        cpu_seconds = server.cpu_seconds() - before
    began = min(began for began, *_ in found)
    logs = [log for _, log, *_ in found]
    failures = [(at - began, text) for log in logs for at, _, text in log.failures]
    firsts = [at for log in logs for at in log.first_live.values()]
    return Return(
        most_a_second=max(Counter(int(at) for log in logs for at, _ in log.began).values()),
        mean_a_second=herd.moles / herd.interval_seconds,
        seen=len(firsts),
        live_seconds=max(firsts) - began,
        p99_seconds=p99([each for log in logs for each in log.live_seconds]),
        drained=herd.moles - sum(behind for *_, behind in found),
        drained_seconds=max(took for *_, took, _ in found),
        refused=len(failures),
        failed_late=[text for at, text in failures if at > SETTLED_SECONDS and ("(5" in text or "answered 5" in text)],
        server_cpu_seconds=cpu_seconds,
    )


def _post(url: str, herd: Herd, part: int, together: Barrier, said: "Queue[tuple[float, Log, float, int]]") -> None:
    """Post in one process; say when it began, what was posted, how long the backlog took, and who still has one."""
    logging.disable()
    crew = Crew(
        url,
        moles=herd.moles,
        gpus=1,
        interval_seconds=herd.interval_seconds,
        folder=None,
        workers=max(32, herd.moles // herd.processes // 5),
        part=(part, herd.processes),
    )
    with crew:
        crew.be_without_server(herd.snapshots, 600)
        together.wait(900)
        began, began_at = time.monotonic(), time.time()
        crew.start()
        while crew.behind(began_at) and time.monotonic() - began < herd.seconds:
            time.sleep(1)
        took, behind = time.monotonic() - began, crew.behind(began_at)
        time.sleep(max(0.0, 3 * herd.interval_seconds - took))
    said.put((began, crew.log, took, behind))
