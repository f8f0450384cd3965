"""How a question is cut into steps: pure; every kind of store answers with the same ones."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.store import (
    CLUSTER_METRICS,
    GPU_METRICS,
    HOST_METRICS,
    MOST_POINTS,
    USER_METRICS,
    By,
    Series,
    SeriesQuery,
    StoreError,
    Usage,
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


def user_series(
    found: Iterable[Usage], measured: Iterable[Usage], metric: str, steps: Steps, counted_to: float
) -> list[Series]:
    """Return how many GPUs each user had in each step, on average; None where nothing was measured.

    Args:
        found: GPU-seconds by user and hour.
        measured: GPU-seconds by hour alone: an hour in which no GPU was seen is in no average.
        metric: one of USER_METRICS.
        steps: hours or longer.
        counted_to: up to which moment GPU-seconds are counted (Unix s): no more of the running hour is in the average.
    """

    def step_of(each: Usage) -> int:
        return int(((each.hour or 0) - steps.begin) // steps.seconds)

    seconds = [0.0] * steps.count
    for each in measured:
        if each.seen_seconds and (place := step_of(each)) < steps.count:
            counted = counted_to - (each.hour or 0)
            seconds[place] += counted if 0 < counted < HOUR else HOUR
    lines: dict[str, list[float | None]] = {}
    for each in found:
        held = dict(zip(USER_METRICS, (each.held_seconds, each.busy_seconds, each.idle_seconds), strict=True))
        line = lines.setdefault(str(each.user), [0.0 if known else None for known in seconds])
        if (place := step_of(each)) < steps.count and seconds[place]:
            line[place] = (line[place] or 0.0) + held[metric] / seconds[place]
    return [
        Series(step_seconds=steps.seconds, t=steps.starts(), min=line, mean=line, max=line, user=user)
        for user, line in sorted(lines.items())
    ]
