"""The one clock of all replicas."""

import pytest

from cluster_dash_server.sharing.clock import EngineClock


class Hand:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("engine_at", "ahead"), [(1000.9, 0.0), (999.1, 0.0), (1002.0, 2.0), (900.0, -100.0)])
def test_a_clock_that_differs_by_more_than_a_second_goes_by_the_engines(engine_at: float, ahead: float) -> None:
    clock = EngineClock(Hand())
    clock.hear(engine_at, clock())
    assert clock() == 1000.0 + ahead


def test_a_slow_answer_says_less_of_the_time() -> None:
    hand = Hand()
    clock = EngineClock(hand)
    asked_at = clock()
    hand.now += 1.8
    clock.hear(1003.0, asked_at)
    assert clock.ahead_seconds == 0.0


def test_a_clock_that_was_set_right_is_gone_by_again() -> None:
    hand = Hand()
    clock = EngineClock(hand)
    clock.hear(1050.0, clock())
    assert clock.ahead_seconds == 50.0
    hand.now += 50
    clock.hear(1050.2, clock())
    assert clock.ahead_seconds == 0.0
