"""How GPU-hours are asked for, whatever keeps them: of which hours and days, under which keys, in which order."""

from typing import Any, NamedTuple

from cluster_dash_server.history.rollups import DAY, HOUR
from cluster_dash_server.store import Usage, UsageQuery

Key = tuple[Any, ...]
"""User, host, model, hour and day; None where a question does not part by it."""


class Span(NamedTuple):
    """Whole hours or days: their table, its column of time, from when to when (Unix s)."""

    table: str
    moment: str
    begin: int
    end: int


def spans_of(ask: UsageQuery) -> list[Span]:
    """Return what to read: days where they serve, hours beside them and where hours are asked for; none is empty."""
    first, last = hours_of(ask)
    hours, days = ("usage_hours", "usage_days") if parts_hosts(ask) else ("user_hours", "user_days")
    first_day, last_day = -(-first // DAY) * DAY, last // DAY * DAY
    if "hour" in ask.by or first_day >= last_day:
        return [Span(hours, "hour", first, last)]
    spans = [
        Span(hours, "hour", first, first_day),
        Span(days, "day", first_day, last_day),
        Span(hours, "hour", last_day, last),
    ]
    return [span for span in spans if span.begin < span.end]


def hours_of(ask: UsageQuery) -> tuple[int, int]:
    """Return the begin of the first hour that is asked for, and the end of the last."""
    first = int(ask.begin // HOUR) * HOUR
    return first, max(-int(-ask.end // HOUR) * HOUR, first + HOUR)


def parts_hosts(ask: UsageQuery) -> bool:
    """Say whether a question needs to know of each host by itself."""
    return "host" in ask.by or ask.hosts is not None


def is_wanted(ask: UsageQuery, user: str, model: str) -> bool:
    """Say whether sums of a user ('': of each GPU once) and a model belong to the answer."""
    if ("user" in ask.by or ask.users is not None) == (user == ""):
        return False
    return (ask.users is None or user in ask.users) and (ask.models is None or model in ask.models)


def key_of(ask: UsageQuery, user: str, host: str | None, model: str, hour: int) -> Key:
    """Return the key under which sums of an hour count."""
    of = {"user": user, "host": host, "model": model, "hour": hour, "day": hour // DAY * DAY}
    return tuple([of[part] if part in ask.by else None for part in of])


def order(key: Key) -> tuple[tuple[bool, Any], ...]:
    """Return by what answers are sorted."""
    return tuple((part is not None, part or 0 if not isinstance(part, str) else part) for part in key)


def usage_of(key: Key, held: float, busy: float, idle: float, util: float, seen: float) -> Usage:
    """Return an answer; of what Slurm gave away nothing is known yet."""
    user, host, model, hour, day = key
    return Usage(
        user=user,
        host=host,
        model=model,
        hour=hour,
        day=day,
        held_seconds=held,
        busy_seconds=busy,
        idle_seconds=idle,
        allocated_seconds=None,
        util_seconds=util,
        seen_seconds=seen,
    )
