"""Nights: when a digest is due, of which stretch of time it tells, and all that there is to tell of it."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, tzinfo

from cluster_dash_server import waste
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.digest import Digest, Night, mean_of, tell
from cluster_dash_server.events import silences
from cluster_dash_server.incidents import BEGINS, ENDS
from cluster_dash_server.slurm import Picture
from cluster_dash_server.snapshot import Json
from cluster_dash_server.store import Event, EventQuery, Ledger, Series, SeriesQuery, Store, StoreError
from cluster_dash_server.when import Span, WhenError, span

BEFORE_SECONDS = 7 * 86_400.0
"""How far before the night one looks for the beginning of what was broken in it."""
NOW_SECONDS = 3600.0
"""A night that ended longer ago than this is not told together with how things stand now."""
MOST_SECONDS = 31 * 86_400.0
"""The longest stretch of time that the command `digest` is told of."""


def last_due(minute_of_day: int, now: float, zone: tzinfo) -> float:
    """Return the newest moment at or before now at which a digest was due (Unix s).

    Args:
        minute_of_day: at which minute of the day, by the clock on the wall: 7:30 is 450.
        now: Unix s.
        zone: of that clock; where it jumps over the minute, the digest comes as much later.
    """
    there = datetime.fromtimestamp(now, zone)
    for days in (0, 1, 2):
        day = there.date() - timedelta(days=days)
        due = datetime(day.year, day.month, day.day, minute_of_day // 60, minute_of_day % 60, tzinfo=zone).timestamp()
        if due <= now:
            return due
    raise AssertionError("of three days in a row the first begins before now")


def night_before(due: float, zone: tzinfo) -> Span:
    """Return the night of a digest: from the same minute of the day before on; 23 or 25 hours where clocks change."""
    there = datetime.fromtimestamp(due, zone)
    return Span(begin=(there - timedelta(days=1)).timestamp(), end=due, is_relative=False)


class Nights:
    """Tells nights.

    Args:
        store: figures.
        ledger: events and GPU-hours.
        newest: gives the events in memory between two moments.
        cluster: the hosts as they stand.
        pictures: gives Slurm, by the time.
        zone: of the site.
        firing: gives the titles of alerts that nobody has taken on.
    """

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        newest: Callable[[float, float], Iterable[Event]],
        cluster: Cluster,
        pictures: Callable[[float], Sequence[Picture]],
        zone: tzinfo,
        firing: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._newest = newest
        self._cluster = cluster
        self._pictures = pictures
        self._firing = firing
        self.zone = zone

    def told(self, span: Span, now: float) -> Digest:
        """Tell a night, of all that is known of it; where no history can be read, of what is in memory."""
        return tell(self.looked_at(span, now), self.zone)

    def looked_at(self, span: Span, now: float) -> Night:
        """Gather what there is to tell."""
        begin = span.begin - BEFORE_SECONDS
        hosts = self._cluster.hosts(now)
        lasting = (each for each in silences(hosts, self._cluster.thresholds) if each.at <= span.end)
        events = {*self._newest(begin, span.end), *lasting}
        report, free_before = None, None
        try:
            faults = tuple({*BEGINS, *ENDS})
            events.update(self._ledger.events(EventQuery(begin=begin, end=span.begin, kinds=faults)))
            events.update(self._ledger.events(EventQuery(begin=span.begin, end=span.end)))
            report = waste.report(self._store, self._ledger, span, self.zone, lambda _: None)
            # each hour is counted whole: the one in which the night begins is not of the day before
            before = Span(begin=span.begin - span.seconds, end=span.begin - 3600, is_relative=False)
            free_before = mean_of(_free(self._store, before)) if before.seconds > 0 else None
        except StoreError:
            pass  # the pages and /readyz say what is wrong with history
        is_now = now - span.end <= NOW_SECONDS
        return Night(
            span=span,
            events=tuple(events),
            hosts=hosts if is_now else None,
            pictures=self._pictures(now) if is_now else (),
            report=report,
            free_before=free_before,
            firing=self._firing() if is_now else (),
        )


def _free(store: Store, span: Span) -> Series | None:
    ask = SeriesQuery(metric="free_gpus", begin=span.begin, end=span.end, by="cluster", step_seconds=3600)
    return next(iter(store.series(ask)), None)


def obey_digest(nights: Nights, wish: Json, now: float) -> Json:
    """Do what the command `digest` asks of the server: tell all names, as who may use its socket may know them."""
    try:
        asked = span(wish["begin"], wish["end"], now, nights.zone, most_seconds=MOST_SECONDS)
    except WhenError as error:
        return {"success": False, "msg": str(error)}
    return {"success": True, "text": nights.told(asked, now).text}
