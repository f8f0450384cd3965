"""The server is gone for a day, or a fleet of thousands comes back at once: time is compressed, all else is real."""

import itertools
import logging
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing import Queue, get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tests.faults.crew import Crew, Log
from tests.faults.oracle import Oracle
from tests.processes import PATIENCE, start_server, wait_until

DAY = 86_400.0


def outage(folder: Path, *, moles: int, snapshots: int, interval: float, seconds: float) -> None:
    """Moles hold a day of snapshots when the server comes: all must be in history once, and live figures first."""
    data, port_taker = folder / "data", start_server("--data", folder / "data")
    with port_taker as server:
        crew = Crew(server.url, moles=moles, gpus=8, interval_seconds=interval, folder=folder / "spools")
        with crew:
            crew.be_without_server(snapshots, DAY)
            for path in (folder / "spools").iterdir():
                size = sum(each.stat().st_size for each in path.iterdir())
                assert size / snapshots * 8640 <= 16 * 2**20, "a day at 10 s"
            began = time.monotonic()
            crew.start()
            wait_until(lambda: len(crew.log.first_live) == moles, 60, "each is live")
            wait_until(lambda: crew.waiting == 0, seconds, "the backlog is drained")
            drained = time.monotonic() - began
            log = crew.log
        time.sleep(1.5)  # the last commit
        assert server.stop() == 0
    assert max(log.first_live.values()) - began <= 2 * interval + PATIENCE
    first_batch = min(min(moments) for moments in log.batches.values())
    assert first_batch >= min(log.first_live.values()), "live figures come first"
    for moments in log.batches.values():
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        assert not gaps or min(gaps) >= 0.99, "a batch a second at most"
    oracle = Oracle(sent=crew.sent)
    verdict = oracle.judge(data)
    assert (verdict.double, verdict.changed, verdict.unsent, verdict.lost) == ([], [], [], [])
    assert verdict.rows >= moles * snapshots
    print(f"{moles} moles x {snapshots}: drained in {drained:.0f} s, live p99 {p99(log.live_seconds):.2f} s")  # noqa: T201


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


@pytest.mark.clocked
def test_after_an_outage_of_a_day_every_snapshot_is_in_history_once(tmp_path: Path) -> None:
    outage(tmp_path, moles=10, snapshots=150, interval=2, seconds=90)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_the_same_for_fifty_moles_with_a_snapshot_every_ten_seconds(tmp_path: Path) -> None:
    outage(tmp_path, moles=50, snapshots=8640, interval=10, seconds=3 * 3600)


@dataclass(frozen=True)
class Herd:
    """A part of a fleet that comes back: what it is, and for how long it may take (s)."""

    url: str
    moles: int
    snapshots: int
    interval: float
    seconds: float
    part: tuple[int, int]


def come_back(herd: Herd, together: Barrier, said: "Queue[tuple[float, Log, float, int]]") -> None:
    """Post until the backlog is drained; say when it began, what was posted, how long that took, who still has one."""
    logging.disable()
    crew = Crew(
        herd.url,
        moles=herd.moles,
        gpus=1,
        interval_seconds=herd.interval,
        folder=None,
        workers=max(32, herd.moles // herd.part[1] // 5),
        part=herd.part,
    )
    with crew:
        crew.be_without_server(herd.snapshots, 600)
        together.wait(900)
        began, began_at = time.monotonic(), time.time()
        crew.start()
        while crew.behind(began_at) and time.monotonic() - began < herd.seconds:
            time.sleep(0.5)
        took, behind = time.monotonic() - began, crew.behind(began_at)
        time.sleep(max(0.0, 3 * herd.interval - took))
    said.put((began, crew.log, took, behind))


def herd(folder: Path, *, moles: int, snapshots: int, interval: float, seconds: float, processes: int) -> None:
    """Moles lose a server and get it back: they come as ever, not all at once, and the backlog behind."""
    spawn = get_context("spawn")
    together, said = spawn.Barrier(processes), spawn.Queue()
    with start_server("--data", folder / "data") as server:
        parts = [
            spawn.Process(
                target=come_back,
                args=(Herd(server.url, moles, snapshots, interval, seconds, (number, processes)), together, said),
            )
            for number in range(processes)
        ]
        for each in parts:
            each.start()
        found = [said.get(timeout=2 * seconds + 900) for _ in parts]
        for each in parts:
            each.join(60)
    began = min(began for began, *_ in found)
    logs = [log for _, log, *_ in found]
    posts = Counter(int(at) for log in logs for at, _ in log.began)
    failures = [(at - began, text) for log in logs for at, _, text in log.failures]
    late = [text for at, text in failures if at > 5 and ("(5" in text or "answered 5" in text)]
    live = max(at for log in logs for at in log.first_live.values()) - began
    mean, behind = moles / interval, sum(behind for *_, behind in found)
    print(  # noqa: T201
        f"{moles} moles at {interval} s: at most {max(posts.values())} posts in a second, mean {mean:.0f}; all live in"
        f" {live:.0f} s, p99 {1000 * p99([each for log in logs for each in log.live_seconds]):.0f} ms; the backlogs of"
        f" {moles - behind} drained in {max(took for *_, took, _ in found):.0f} s; {len(failures)} refused"
    )
    assert late == []
    assert max(posts.values()) <= 3 * mean
    assert sum(len(log.first_live) for log in logs) == moles
    assert live <= 2 * interval + PATIENCE
    assert behind == 0


@pytest.mark.clocked
def test_a_fleet_that_comes_back_does_not_come_all_at_once(tmp_path: Path) -> None:
    herd(tmp_path, moles=200, snapshots=12, interval=4, seconds=60 * PATIENCE, processes=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_same_for_five_thousand_moles_at_ten_seconds(tmp_path: Path) -> None:
    herd(tmp_path, moles=5000, snapshots=60, interval=10, seconds=1800, processes=4)
