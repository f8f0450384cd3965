"""How a question is cut into steps: pure; every kind of store answers with the same ones."""

import math
from collections.abc import Iterable, Mapping, Sequence
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


def hours_in(steps: Steps) -> Steps:
    """Return the hours of steps, which are hours or longer."""
    return Steps(steps.begin, HOUR, round(steps.count * steps.seconds / HOUR))


def covered_seconds(measured: Iterable[Usage], total_gpus: Iterable[Series]) -> dict[float, float]:
    """Return for how many seconds of each hour rows tell what GPUs did: with a gap in it, or running, less than 3600.

    Args:
        measured: GPU-seconds by hour.
        total_gpus: how many GPUs there were, in steps of an hour, where that is known.
    """
    gpus = {at: mean for line in total_gpus for at, mean in zip(line.t, line.mean, strict=True) if mean}
    return {
        each.hour: min(HOUR, each.seen_seconds / gpus[each.hour])
        for each in measured
        if each.hour is not None and each.hour in gpus and each.seen_seconds
    }


def passed_seconds(measured: Iterable[Usage], counted_to: float) -> dict[float, float]:
    """Return how many seconds of each hour in which GPUs were seen have passed, where no more is known of it.

    Args:
        measured: GPU-seconds by hour.
        counted_to: up to which moment GPU-seconds are counted (Unix s).
    """
    return {
        each.hour: passed if 0 < (passed := counted_to - each.hour) < HOUR else HOUR
        for each in measured
        if each.hour is not None and each.seen_seconds
    }


def user_series(found: Iterable[Usage], covered: Mapping[float, float], metric: str, steps: Steps) -> list[Series]:
    """Return how many GPUs each user had in each step, on average; None where nothing was measured.

    Args:
        found: GPU-seconds by user and hour.
        covered: for how many seconds of each hour it is known what GPUs did; others are in no average.
        metric: one of USER_METRICS.
        steps: hours or longer.
    """

    def step_of(hour: float) -> int:
        return int((hour - steps.begin) // steps.seconds)

    seconds = [0.0] * steps.count
    for hour, known in covered.items():
        if 0 <= (place := step_of(hour)) < steps.count:
            seconds[place] += known
    lines: dict[str, list[float | None]] = {}
    for each in found:
        held = dict(zip(USER_METRICS, (each.held_seconds, each.busy_seconds, each.idle_seconds), strict=True))
        line = lines.setdefault(str(each.user), [0.0 if known else None for known in seconds])
        if each.hour is not None and each.hour in covered and 0 <= (place := step_of(each.hour)) < steps.count:
            line[place] = (line[place] or 0.0) + held[metric] / seconds[place]
    return [
        Series(step_seconds=steps.seconds, t=steps.starts(), min=line, mean=line, max=line, user=user)
        for user, line in sorted(lines.items())
    ]
