import heapq
import itertools
import random

import pytest

from cluster_dash_server.pace import CALM_SECONDS, SLOWEST_SECONDS, Pace
from tests.clocks import StillClock


@pytest.fixture
def clock() -> StillClock:
    return StillClock(1000.0)


@pytest.fixture
def pace(clock: StillClock) -> Pace:
    return Pace(clock)


def test_a_calm_server_lets_hosts_post_as_they_like_also_one_that_was_slowed(pace: Pace) -> None:
    assert [pace.next_seconds(interval) for interval in (1.0, 5.0, 10.0, 300.0, None)] == [1, 5, 5, 5, None]


def test_late_posts_slow_the_fleet_step_by_step_and_quiet_quickens_it(pace: Pace, clock: StillClock) -> None:
    told = []
    for _ in range(60):
        assert pace.waited(2.0) is None
        told.append(pace.next_seconds(5.0) or 0.0)
        clock.now += 1
    assert told[0] == 7.5
    assert all(earlier <= later for earlier, later in itertools.pairwise(told))
    assert told[-1] == SLOWEST_SECONDS
    clock.now += 30
    pace.waited(0.0)
    assert pace.next_seconds(5.0) == SLOWEST_SECONDS, "one quick post says nothing"
    for _ in range(300):
        clock.now += 1
        pace.waited(0.01)
    assert pace.next_seconds(5.0) == CALM_SECONDS


def test_a_post_that_nobody_waits_for_is_told_to_come_again(pace: Pace) -> None:
    assert pace.waited(9.9) is None
    wait = pace.waited(10.1)
    assert wait is not None
    assert 5 <= wait <= SLOWEST_SECONDS


def test_backlogs_take_half_of_the_time_and_two_at_once(pace: Pace, clock: StillClock) -> None:
    assert [pace.begin_backlog() for _ in range(2)] == [None, None]
    assert pace.begin_backlog() is not None
    pace.end_backlog(0.01)
    pace.end_backlog(0.01)
    worked, began = 0.0, clock.now
    for _ in range(2000):
        if pace.begin_backlog() is None:
            clock.now += 0.04
            worked += 0.04
            pace.end_backlog(0.04)
        else:
            clock.now += 0.01
    assert worked / (clock.now - began) == pytest.approx(0.5, abs=0.05)


def test_a_lone_batch_never_waits(pace: Pace, clock: StillClock) -> None:
    for _ in range(50):
        assert pace.begin_backlog() is None
        pace.end_backlog(0.05)
        clock.now += 1


@pytest.mark.parametrize("late_seconds", [0.04, 0.4])
def test_a_herd_is_drained_in_the_time_that_it_takes(pace: Pace, clock: StillClock, late_seconds: float) -> None:
    """5,000 moles with a batch each, which costs 40 ms, in the first minute perhaps ten times as much."""
    chance = random.Random(1)
    due = sorted((clock.now + chance.uniform(0, 20), mole) for mole in range(5000))
    begun_at, refusals, free_at, worked = clock.now, 0, 0.0, 0.0
    while due:
        at, mole = heapq.heappop(due)
        clock.now = max(clock.now, at, free_at)
        wait = pace.begin_backlog()
        if wait is None:
            cost = late_seconds if clock.now - begun_at < 60 else 0.04
            free_at = clock.now + cost
            worked += cost
            pace.end_backlog(cost)
        else:
            refusals += 1
            heapq.heappush(due, (clock.now + wait * (1 + chance.random()), mole))
    assert clock.now - begun_at <= 1.1 * worked / 0.5
    assert refusals <= 5 * 5000
