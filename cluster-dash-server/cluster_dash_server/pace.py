"""How much comes in at a time: live posts first, backlogs behind them, and all of it slower before it is too much.

A backlog is taken for at most half of the time, whoever comes meanwhile is told when his turn may be. What a post has
waited for a thread tells how loaded the server is: from a second on, moles are asked to post less often; a post that
nobody waits for any more is refused unread, so that the next ones are taken in time.
"""

import math
import threading
import time
from collections.abc import Callable

CALM_SECONDS = 5.0
"""A server with nothing to complain of lets hosts post as often as that, or as they like."""
SLOWEST_SECONDS = 60.0
"""A host that is silent for longer counts as stale."""
LATE_SECONDS = 1.0
"""From so long a wait on, the pace slows."""
TOO_LATE_SECONDS = 10.0
"""After so long a post is refused unread: its mole gives up after 15 s."""
STEP_SECONDS = 5.0
"""How often the pace changes at most."""
QUIET_SECONDS = 60.0
"""How long no post may have been late for the pace to quicken."""
BACKLOG_SHARE = 0.5
"""The share of the time that backlogs may take."""
BURST_SECONDS = 1.0
"""How much of it may be taken in one go."""
AT_ONCE = 2
"""Batches in work at a time."""
LONGEST_WAIT_SECONDS = 60
"""The longest turn given: what a batch will cost is a guess, and while all sleep on a wrong one nothing is drained."""
MEAN_JITTER = 1.5
"""A mole waits once to twice what it was told."""


class Pace:
    """Thread-safe. `clock` is monotonic, in s."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pace = CALM_SECONDS
        self._changed_at = self._late_at = float("-inf")
        self._in_work = 0
        self._credit = BURST_SECONDS  # how long backlogs may be worked at now
        self._credited_at = self._clock()
        self._promised_until = float("-inf")  # turns are given away up to there
        self._cost = 0.1  # what a batch takes, on average, in s

    def waited(self, seconds: float) -> int | None:
        """Learn how long a post has waited for a thread; return the seconds to wait where it comes too late."""
        now = self._clock()
        with self._lock:
            if seconds >= LATE_SECONDS:
                self._late_at = now
                if now - self._changed_at >= STEP_SECONDS:
                    self._changed_at, self._pace = now, min(SLOWEST_SECONDS, 1.5 * self._pace)
            elif (
                self._pace > CALM_SECONDS
                and now - self._late_at >= QUIET_SECONDS
                and now - self._changed_at >= STEP_SECONDS
            ):
                self._changed_at, self._pace = now, max(CALM_SECONDS, self._pace / 1.5)
            return math.ceil(self._pace) if seconds >= TOO_LATE_SECONDS else None

    def next_seconds(self, interval_seconds: float | None) -> float | None:
        """Return how soon the next live post may come, of a host that posts every `interval_seconds`."""
        if self._pace > CALM_SECONDS:
            return round(self._pace, 1)
        return None if interval_seconds is None else min(interval_seconds, CALM_SECONDS)

    def begin_backlog(self) -> int | None:
        """Begin a batch, to be ended by `end_backlog`; or return the seconds after which to come again."""
        now = self._clock()
        with self._lock:
            self._credit = min(BURST_SECONDS, self._credit + BACKLOG_SHARE * (now - self._credited_at))
            self._credited_at = now
            if self._in_work < AT_ONCE and self._credit > 0:
                self._in_work += 1
                return None
            turn = self._cost / BACKLOG_SHARE / MEAN_JITTER
            self._promised_until = min(max(self._promised_until, now) + turn, now + LONGEST_WAIT_SECONDS)
            return math.ceil(self._promised_until - now)

    def end_backlog(self, seconds: float) -> None:
        """End a batch that took so long."""
        with self._lock:
            self._cost += (seconds - self._cost) / 8
            self._credit -= seconds
            self._in_work -= 1
