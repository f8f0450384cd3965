"""How a question is cut into steps: pure; every kind of store answers with the same ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster_dash_server.store import (
    CLUSTER_METRICS,
    GPU_METRICS,
    HOST_METRICS,
    MOST_POINTS,
    USER_METRICS,
    By,
    SeriesQuery,
    StoreError,
)

METRICS: dict[By, Sequence[str]] = {
    "gpu": GPU_METRICS,
    "host": HOST_METRICS + GPU_METRICS,
    "cluster": CLUSTER_METRICS,
    "model": CLUSTER_METRICS,
    "user": USER_METRICS,
}
"""Which metrics can be asked for, by whom they are asked for."""
FINEST_SECONDS: dict[By, float] = {"gpu": 1, "host": 1, "cluster": 60, "model": 60, "user": 3600}
SETTLING_SECONDS = 120
"""The newest minutes of the cluster are still being counted for so long."""
_NICE = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 3600, 7200, 14_400, 21_600, 43_200, 86_400)


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of an answer: `count` of them, each `seconds` long, the first from `begin` on."""

    begin: float
    seconds: float
    count: int

    @property
    def end(self) -> float:
        """The end of the last step."""
        return self.begin + self.count * self.seconds

    def starts(self) -> list[float]:
        """Return where each step begins."""
        return [self.begin + place * self.seconds for place in range(self.count)]


def steps_of(ask: SeriesQuery) -> Steps:
    """Cut a question into steps: multiples of the step since 1970 that begin within it, at least one.

    Raises:
        StoreError: there is no such metric, or the time ends before it begins.
    """
    if ask.metric not in METRICS[ask.by]:
        raise StoreError(f"metric: {ask.metric} is not known by {ask.by}: choose of {', '.join(METRICS[ask.by])}")
    if not ask.begin <= ask.end:
        raise StoreError("from: later than to")
    span, finest = ask.end - ask.begin, FINEST_SECONDS[ask.by]
    least = max(finest, ask.step_seconds or 0, span / (MOST_POINTS - 1))
    if finest >= 60 and least > 60:
        least = math.ceil(least / finest) * finest
    if ask.step_seconds is None or least > ask.step_seconds:
        least = next((nice for nice in _NICE if nice >= least), math.ceil(least / 86_400) * 86_400)
    first, last = math.ceil(ask.begin / least), math.floor(ask.end / least)
    if last < first:  # a step longer than the time asked for
        first = last = math.floor(ask.begin / least)
    return Steps(first * least, least, last - first + 1)
