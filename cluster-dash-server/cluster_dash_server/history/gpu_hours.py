"""How GPU-hours and uses are asked for, whatever keeps them: of which hours and days, under which keys, in order."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from cluster_dash_server.history.rollups import DAY, HOUR
from cluster_dash_server.store import Usage, UsageQuery, Use, UseQuery

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


def sums_of(
    span: Span, ask: UsageQuery, figures: str, one_of: Callable[[str, Sequence[str]], tuple[str, list[object]]]
) -> tuple[str, list[object]]:
    """Return the statement that reads a span, and its parameters; a row of it is a `Key`, then the figures.

    Args:
        span: what to read.
        ask: the question.
        figures: names of the columns to add up, parted by commas.
        one_of: words that a column is one of some values, and gives the parameters of that: databases differ in it.
    """
    joined = parts_hosts(ask)
    columns = {
        "user": '"user"',
        "host": "hosts.name" if joined else "NULL",
        "model": "model",
        "hour": "hour" if span.moment == "hour" else "NULL",
        "day": f"{span.moment} / {DAY} * {DAY}",
    }
    keys = [columns[part] if part in ask.by else "NULL" for part in columns]
    where, values = [f"{span.moment} >= ?", f"{span.moment} < ?"], list[object]([span.begin, span.end])
    wishes: list[tuple[str, Sequence[str] | None]] = [("model", ask.models)]
    if "user" in ask.by or ask.users is not None:
        where.append("\"user\" <> ''")
        wishes.append(('"user"', ask.users))
    else:
        where.append("\"user\" = ''")
    if joined:
        wishes.append(("hosts.name", ask.hosts))
    for column, wanted in wishes:
        if wanted is not None:
            condition, told = one_of(column, wanted)
            where.append(condition)
            values += told
    groups = [key for key in keys if key != "NULL"]
    statement = (
        f"SELECT {', '.join(keys)}, {', '.join(f'SUM({name})' for name in figures.split(', '))} FROM {span.table}"  # noqa: S608 - names of ours
        + (f" JOIN hosts ON hosts.id = {span.table}.host" if joined else "")
        + f" WHERE {' AND '.join(where)}"
        + (f" GROUP BY {', '.join(groups)}" if groups else "")
    )
    return statement, values


def asked_for(found: Iterable[Use], ask: UseQuery) -> list[Use]:
    """Return those uses of some hosts that belong to an answer, in its order."""
    return sorted(
        (
            use
            for use in found
            if use.from_at <= ask.end
            and use.to_at >= ask.begin
            and (ask.gpus is None or use.gpu in ask.gpus)
            and (ask.users is None or use.user in ask.users)
        ),
        key=lambda use: (use.from_at, use.host, use.gpu, use.user),
    )


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
