"""Moments and stretches of time as people write them, in Grafana's grammar. Pure: the time and the zone are arguments.

`now`, `now-6h`, `now-1d/d`, Unix seconds, `2026-03-01` and `2026-03-01T09:14`, with `Z` or an offset or in the zone of
the site. `/d` cuts to the day: its start, or where the end of a stretch is asked for, its end; so `now/d` to `now/d` is
all of today. Seconds, minutes and hours are as long as they are; days, weeks, months and years go by the calendar of
the zone, where a day may have 23 hours.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

GRAMMAR = "now, now-6h, now-1d/d, Unix seconds, or a date such as 2026-03-01T09:14"
LOCAL_ZONE = Path("/etc/localtime")
"""The zone of this machine: most often a link to `…/zoneinfo/Europe/Berlin`."""
MOST_STEPS = 8
"""How many shifts and cuts a moment may have."""
NICE_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 604_800)
"""Lengths of steps that people can read; days begin with one of each."""

MOST_SECONDS = 100 * 366 * 86_400.0
"""How long a stretch of time may be: a hundred years."""

_LENGTH = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s?(s|min|m|h|d|w)", re.IGNORECASE | re.ASCII)
_SECONDS_BY_UNIT = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)
_FIXED = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}
_MONTHS = {"M": 1, "Q": 3, "y": 12}
# a + in a query means a blank
_STEPS = re.compile(r"([-+ ])([0-9]{0,6})([smhdwMQy])|/([smhdwMQy])")


class WhenError(Exception):
    """A text that names no moment; it says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time.

    Attributes:
        begin: Unix s.
        end: Unix s, not before `begin`.
        is_relative: it moves with the time: one of its ends hangs on `now`.
    """

    begin: float
    end: float
    is_relative: bool

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.begin


def zone(name: str | None) -> tzinfo:
    """Return a time zone by its name; None: the one this machine is set to. Its `str` is a name to show.

    Raises:
        WhenError: there is none of this name, or this machine knows no zones.
    """
    try:
        if name is not None:
            return ZoneInfo(name)
        with LOCAL_ZONE.open("rb") as file:
            _, zones, of_zone = str(LOCAL_ZONE.resolve()).rpartition("/zoneinfo/")
            return ZoneInfo.from_file(file, key=of_zone if zones else "this machine")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        if name is None or name == "UTC":
            return UTC
        raise WhenError(f"got {name!r}, expected a time zone such as Europe/Berlin (of the system's tzdata)") from None


def moment(text: str, now: float, site_zone: tzinfo = UTC, *, is_end: bool = False) -> float:
    """Read a moment, to Unix s.

    Args:
        text: what somebody wrote.
        now: Unix s.
        site_zone: in which days begin, and in which a date without an offset is meant.
        is_end: it ends a stretch: what is cut to a unit, and a date without a time, is meant up to its end.

    Raises:
        WhenError: it names none, or one that no calendar has.
    """
    try:
        at = _moment(text.strip(), now, site_zone, is_end=is_end)
        if at is not None and 0 <= at < 253_402_300_800:  # the year 10000
            return at
    except (ValueError, OverflowError, OSError):
        pass  # the calendar ends
    raise WhenError(f"expected {GRAMMAR}")


def seconds(text: str) -> float | None:
    """Read a length of time such as `2h`, to seconds; None where it is none."""
    match = _LENGTH.fullmatch(text.strip())
    return None if match is None else float(match[1]) * _SECONDS_BY_UNIT[match[2].lower()]


def until(text: str, now: float, site_zone: tzinfo = UTC) -> float:
    """Read until when, to Unix s: `2h`, `18:00` (the next one), or a moment.

    Raises:
        WhenError: it says no moment.
    """
    length = seconds(text)
    if length is not None:
        return now + length
    clock = _CLOCK.fullmatch(text.strip())
    if clock is not None:
        here = datetime.fromtimestamp(now, site_zone)
        then = here.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return (then if then > here else then + timedelta(days=1)).timestamp()
    try:
        return moment(text, now, site_zone)
    except WhenError as error:
        raise WhenError(f"{error}, or 2h, or 18:00") from None


def span(
    from_text: str, to_text: str, now: float, site_zone: tzinfo = UTC, *, most_seconds: float = MOST_SECONDS
) -> Span:
    """Read a stretch of time.

    Raises:
        WhenError: one of its ends is no moment, or it ends before it begins; the text begins with `from` or `to`.
    """
    ends = []
    for name, text, is_end in (("from", from_text, False), ("to", to_text, True)):
        try:
            ends.append(moment(text, now, site_zone, is_end=is_end))
        except WhenError as error:
            raise WhenError(f"{name}: got {text[:64]!r}, {error}") from None
    begin, end = ends
    if end < begin:
        raise WhenError("from: is later than to")
    if end - begin > most_seconds:
        raise WhenError(f"from: more than {most_seconds / 86_400:.0f} days before to")
    return Span(begin=begin, end=end, is_relative=any("now" in text for text in (from_text, to_text)))


def step_seconds(seconds: float, most_steps: int) -> float:
    """Return the shortest step that people can read which cuts so many seconds into no more than so many steps."""
    least = seconds / most_steps
    return next((float(nice) for nice in NICE_SECONDS if nice >= least), -(-least // 604_800) * 604_800)


def _moment(text: str, now: float, site_zone: tzinfo, *, is_end: bool) -> float | None:
    if text.startswith("now"):
        return _shifted(datetime.fromtimestamp(now, site_zone), now, text[3:], is_end=is_end)
    if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", text):
        return float(text)
    if re.fullmatch(r"[0-9]{13}", text):
        return int(text) / 1000  # what Grafana writes into its links
    if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return None
    # a blank parts the day from the time; behind a time it was the + of an offset
    then = datetime.fromisoformat(re.sub(r"(?<=:[0-9]{2}) (?=[0-9]{2}:?[0-9]{2}$)", "+", text))
    if then.tzinfo is None:
        then = then.replace(tzinfo=site_zone)
    if is_end and len(text) == 10:
        then += timedelta(days=1)
    return then.timestamp()


def _shifted(then: datetime, now: float, steps: str, *, is_end: bool) -> float | None:
    found = list(_STEPS.finditer(steps))
    if "".join(each[0] for each in found) != steps or len(found) > MOST_STEPS:
        return None
    if not found:
        return now
    for sign, count, unit, cut in (each.groups() for each in found):
        if cut:
            then = _cut(then, cut)
            then = _plus(then, 1, cut) if is_end else then
        else:
            then = _plus(then, int(count or 1) * (-1 if sign == "-" else 1), unit)
    return then.timestamp()


def _plus(then: datetime, count: int, unit: str) -> datetime:
    if unit in _FIXED:
        return (then.astimezone(UTC) + count * _FIXED[unit]).astimezone(then.tzinfo)
    if unit in _MONTHS:
        months = then.year * 12 + then.month - 1 + count * _MONTHS[unit]
        first = then.replace(year=months // 12, month=months % 12 + 1, day=1)
        last = (first.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
        return first.replace(day=min(then.day, last.day))
    return then + timedelta(days=count * (7 if unit == "w" else 1))  # by the calendar: the clock shows the same


_CUTS: dict[str, Callable[[datetime], datetime]] = {
    "s": lambda then: then.replace(microsecond=0),
    "m": lambda then: then.replace(second=0, microsecond=0),
    "h": lambda then: then.replace(minute=0, second=0, microsecond=0),
}


def _cut(then: datetime, unit: str) -> datetime:
    if unit in _CUTS:
        return _CUTS[unit](then)
    day = then.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if unit == "w":
        return day - timedelta(days=day.weekday())
    if unit == "Q":
        return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
    return day if unit == "d" else day.replace(day=1) if unit == "M" else day.replace(month=1, day=1)
