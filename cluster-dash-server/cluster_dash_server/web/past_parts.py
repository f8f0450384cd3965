"""What pages of the live view say of the past: a host's last day, a user's GPU-hours. Asked for by their templates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flask import Blueprint

from cluster_dash_server.store import SeriesQuery, StoreError, UsageQuery, Use, UseQuery
from cluster_dash_server.summary import model_by_name
from cluster_dash_server.web import words
from cluster_dash_server.web.past import Past

DAY = 86_400.0
BEAT_SECONDS = 900.0
TICK_SECONDS = 21_600.0
"""How far the moments on the axis of a day are apart: so few fit on a phone."""
CAME_BY = ("interval_seconds", "cpu_percent")
"""A snapshot of today tells the first, one of the first version the second: with either of them one came."""
MOST_USES = 200
"""Uses drawn of one GPU: a page of thousands helps nobody; the rest is in the export."""
MOST_LISTED = 20
BUSY_SHARE = 0.5
"""From this share of work on, a use is drawn as busy, else as held without work."""


class Beat(NamedTuple):
    """A quarter of an hour of a host: whether a snapshot came; None: before its first one."""

    at: float
    came: bool | None


class Tick(NamedTuple):
    """A moment on the axis of the day: how far along it is, in percent."""

    at: float
    left: float


class Stay(NamedTuple):
    """Somebody's time on a GPU, as a piece of a bar: where it begins and how long it is, in percent of the day."""

    left: float
    width: float
    user: str
    state: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LastDay:
    """The last 24 hours of a host.

    Attributes:
        beats: a cell for each quarter of an hour, and what they say together.
        ticks: the axis, of the beats and of who had which GPU.
        gpus: each GPU that somebody had, by index, with who had it when.
    """

    beats: Sequence[Beat]
    ticks: Sequence[Tick]
    said: str
    gpus: Sequence[tuple[int, Sequence[Stay]]]


def blueprint(past: Past) -> Blueprint:
    """Build what gives templates these parts; it has no routes."""
    parts = Blueprint("past_parts", __name__)

    @parts.app_context_processor
    def of_pages() -> dict[str, object]:
        return {"last_day_of": lambda host: last_day(past, host), "past_of": lambda user: of_user(past, user)}

    return parts


def last_day(past: Past, host: str) -> LastDay | None:
    """Return the last 24 hours of a host; None: nothing is kept of it."""
    now = past.clock()
    try:
        lines = [
            line
            for metric in CAME_BY
            for line in past.store.series(
                SeriesQuery(
                    metric=metric, by="host", begin=now - DAY, end=now, step_seconds=BEAT_SECONDS, hosts=(host,)
                )
            )
        ]
        if not lines:
            return None
        begin, end = lines[0].t[0], lines[0].t[-1] + BEAT_SECONDS
        uses = past.ledger.uses(UseQuery(begin=begin, end=now, hosts=(host,)))
    except StoreError:
        return None
    came = [any(mean is not None for mean in means) for means in zip(*(line.mean for line in lines), strict=True)]
    first = came.index(True) if True in came else len(came)
    beats = [
        Beat(at, None if place < first else each) for place, (at, each) in enumerate(zip(lines[0].t, came, strict=True))
    ]
    known = came[first:]
    said = (
        f"Snapshots came in {sum(known)} of {words.plural(len(known), 'quarter hour')}" if known else "No snapshot came"
    )
    of_gpu: dict[int, list[Stay]] = {}
    for use in uses:
        of_gpu.setdefault(use.gpu, []).append(_stay(use, begin, end))
    return LastDay(
        beats=beats,
        ticks=_ticks(begin, end),
        said=said,
        gpus=[(gpu, stays[-MOST_USES:]) for gpu, stays in sorted(of_gpu.items())],
    )


def _ticks(begin: float, end: float) -> list[Tick]:
    first, last = math.ceil(begin / TICK_SECONDS), math.floor(end / TICK_SECONDS)
    moments = [number * TICK_SECONDS for number in range(first, last + 1)]
    return [Tick(at, round(100 * (at - begin) / (end - begin), 2)) for at in moments]


def _stay(use: Use, begin: float, end: float) -> Stay:
    first, last = max(use.from_at, begin), min(use.to_at, end)
    working = use.busy_seconds + use.idle_seconds
    state = "busy" if working <= 0 or use.busy_seconds >= BUSY_SHARE * working else "held"
    job = "" if use.job is None else f", job {words.cut(use.job, 20)}"
    busy = "" if use.mean_util is None else f", {words.percent(use.mean_util)} busy"
    text = f"{words.cut(use.user, 40)}{job}: {words.age(use.to_at - use.from_at)}{busy}"
    share = 100 / (end - begin)
    return Stay(round((first - begin) * share, 2), round(max(0.3, (last - first) * share), 2), use.user, state, text)


class Hours(NamedTuple):
    """GPU-seconds of a user in a stretch of time, by model; `span` says which."""

    span: str
    model: str
    held_seconds: float
    busy_seconds: float
    idle_seconds: float

    @property
    def idle_share(self) -> float | None:
        """How much of what was held did nothing, 0 to 1."""
        return self.idle_seconds / self.held_seconds if self.held_seconds > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OfUser:
    """What a user had: hours of the last 7 and 30 days, and the newest uses."""

    hours: Sequence[Hours]
    uses: Sequence[Use]
    more: int


def of_user(past: Past, user: str) -> OfUser | None:
    """Return what a user had; None: history says nothing of them."""
    now = past.clock()
    try:
        hours = [
            Hours(span, model_by_name(each.model or "unknown"), each.held_seconds, each.busy_seconds, each.idle_seconds)
            for span, days in (("7 d", 7), ("30 d", 30))
            for each in past.ledger.usage(
                UsageQuery(begin=now - days * DAY, end=now, by=("user", "model"), users=(user,))
            )
        ]
        uses = past.ledger.uses(UseQuery(begin=now - 7 * DAY, end=now, users=(user,)))
    except StoreError:
        return None
    if not hours and not uses:
        return None
    newest = sorted(uses, key=lambda use: -use.to_at)
    return OfUser(hours=hours, uses=newest[:MOST_LISTED], more=max(0, len(newest) - MOST_LISTED))
