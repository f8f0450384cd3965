"""Answers from the file of history: reads only, on a connection of the asking thread."""

import json
import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import compress, groupby
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any

from cluster_dash_server.history.chunks import Layout, Rows, Slots, columns_of, unpack_stretches
from cluster_dash_server.history.gpu_hours import (
    Key,
    asked_for,
    hours_of,
    is_wanted,
    key_of,
    order,
    parts_hosts,
    spans_of,
    sums_of,
    usage_of,
)
from cluster_dash_server.history.late_numpy import np
from cluster_dash_server.history.rollups import (
    DAY,
    HOUR,
    Share,
    Stretch,
    UsageKey,
    cluster_figures,
    stretches,
    uses,
    whole_minutes,
)
from cluster_dash_server.history.sqlite.opened import OpenHours
from cluster_dash_server.history.sqlite.sealing import USAGE_COLUMNS, Names, hot_rows
from cluster_dash_server.history.steps import SETTLING_SECONDS, Steps, covered_seconds, hours_in, steps_of, user_series
from cluster_dash_server.store import (
    CLUSTER_METRICS,
    HOST_METRICS,
    Event,
    EventQuery,
    Figures,
    KeptEvent,
    Series,
    SeriesQuery,
    StoreError,
    Usage,
    UsageQuery,
    Use,
    UseQuery,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Point = tuple[int, float, float, float, float]
"""Which step, and the least, total (see `_FINEST`), most and number of what is added to it."""
_Told = tuple["NDArray[Any]", ...]
"""When (Unix s), columns × moments of the least, total and most from then on, and from how many rows each is."""

_FINEST = 1000.0
"""Totals are gathered in thousandths: whole numbers where figures are decimals, so that the mean of equal ones is one
of them."""
_AT_ONCE = 64
"""So many hours and days of a host are put into steps at a time."""


class _Lines:
    """Series while they are gathered: under each key, for each step the least, sum and most of its figures."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._begins: dict[Any, int] = {}
        self._least, self._total, self._most, self._count = (np.empty(0) for _ in range(4))

    def begins(self, keys: Sequence[Any]) -> list[int]:
        """Return where the steps of lines begin; those that are not there are made."""
        new = [key for key in dict.fromkeys(keys) if key not in self._begins]
        for key in new:
            self._begins[key] = len(self._begins) * self._steps.count
        if new:
            of_new = len(new) * self._steps.count
            self._least, self._most = (np.append(each, np.full(of_new, np.nan)) for each in (self._least, self._most))
            self._total, self._count = (np.append(each, np.zeros(of_new)) for each in (self._total, self._count))
        return [self._begins[key] for key in keys]

    def add(
        self,
        at: "NDArray[np.intp]",
        least: "NDArray[np.float64]",
        total: "NDArray[np.float64]",
        most: "NDArray[np.float64]",
        count: "NDArray[np.float64]",
    ) -> None:
        """Add figures, all of them known, each to a step.

        Args:
            at: the step of each: where its line begins, and how many steps behind that. Many may be of the same one.
            least: the least of the rows of which each tells.
            total: their sum (see `_FINEST`).
            most: the most of them; of a single row it is the least, too.
            count: how many they are.
        """
        # `at` adds one after the other; an index would keep the last of those that are of the same step
        np.fmin.at(self._least, at, least)
        np.fmax.at(self._most, at, most)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            np.add.at(self._total, at, total)
        np.add.at(self._count, at, count)

    def series(self, key: Any, starts: Sequence[float], host: str | None, **whose: Any) -> Series:
        """Return a line; `starts` are those of the steps."""
        steps = slice(self._begins[key], self._begins[key] + self._steps.count)
        count = self._count[steps]
        empty = np.flatnonzero(count == 0).tolist()
        with np.errstate(invalid="ignore"):  # where there are none
            mean = self._total[steps] / (count * _FINEST)
        least, most = self._least[steps], self._most[steps]
        mean = np.clip(mean, least, most)  # what was rounded may lie a bit beside equal ones
        told: list[list[float | None]] = [each.tolist() for each in (least, mean, most)]
        for each in told:
            for place in empty:
                each[place] = None
        lows, means, highs = told
        return Series(step_seconds=self._steps.seconds, t=starts, min=lows, mean=means, max=highs, host=host, **whose)


class Reader:
    """Answers on one connection; one thread.

    Args:
        db: a connection that reads.
        open_: what is not sealed yet.
    """

    def __init__(self, db: sqlite3.Connection, open_: OpenHours) -> None:
        self._db = db
        self._open = open_
        self._names = Names(db)

    def series(self, ask: SeriesQuery, now: float) -> list[Series]:
        """See `Store.series`."""
        steps = steps_of(ask)
        if ask.by in ("gpu", "host"):
            return self._figures(ask, steps)
        if ask.by == "user":
            return self._users(ask, steps, now)
        return self._cluster(ask, steps, now)

    # ------------------------------------------------------------------------------------------- GPUs and hosts

    def _hosts(self, hosts: tuple[str, ...] | None) -> list[tuple[int, str]]:
        if hosts is None:
            return self._db.execute("SELECT id, name FROM hosts ORDER BY name").fetchall()
        marks = ", ".join("?" * len(hosts))
        query = f"SELECT id, name FROM hosts WHERE name IN ({marks}) ORDER BY name"  # noqa: S608 - marks
        return self._db.execute(query, hosts).fetchall()

    def _figures(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        found = []
        starts = steps.starts()
        for host, name in self._hosts(ask.hosts):
            gather = _Gather(ask, steps)
            self._gather_host(gather, host, name)
            found += gather.series(starts, name)
        return found

    def _gather_host(self, gather: "_Gather", host: int, name: str) -> None:
        """Gather one host: from the finest tier that each hour still has; whole hours from their own tier."""
        db, names, steps = self._db, self._names, gather.steps
        begin, end = steps.begin, steps.end
        days = (begin // DAY * DAY, end)
        by_hours = steps.seconds % HOUR == 0
        fine: set[int] = set()
        for (hour,) in db.execute(
            "SELECT DISTINCT hour FROM hot WHERE host = ? AND hour >= ? AND hour < ?",
            (host, begin // HOUR * HOUR, end),
        ).fetchall():
            fine.add(hour)
            gather.rows(hot_rows(db, names, host, hour, name))
        if not by_hours:
            for hour, layout, blob in db.execute(
                "SELECT hour, layout, rows FROM sealed WHERE host = ? AND hour >= ? AND hour < ? ORDER BY hour",
                (host, begin // HOUR * HOUR, end),
            ):
                fine.add(hour)
                gather.sealed(blob, names.layout_of(layout))
            for day, layout, blob in db.execute(
                "SELECT day, layout, slots FROM minutes WHERE host = ? AND day >= ? AND day < ? ORDER BY day",
                (host, *days),
            ):
                fine |= gather.slots(blob, names.layout_of(layout), day, 60, frozenset())
        else:
            # an hour with late rows is in both: its sealed part counts beside the rows
            fine = set()
        for day, layout, blob in db.execute(
            "SELECT day, layout, slots FROM hours WHERE host = ? AND day >= ? AND day < ? ORDER BY day", (host, *days)
        ):
            gather.slots(blob, names.layout_of(layout), day, HOUR, fine)

    # ------------------------------------------------------------------------------------------ cluster and models

    def _cluster(self, ask: SeriesQuery, steps: Steps, now: float) -> list[Series]:
        place = CLUSTER_METRICS.index(ask.metric)
        found: defaultdict[str, list[_Point]] = defaultdict(list)
        models = ("",) if ask.by == "cluster" else ask.models
        wanted = None if models is None else set(models)
        open_minutes = self._open.minutes(now)
        open_hours: set[int] | None
        if steps.seconds % HOUR == 0:
            # hours that are still open in part are made of their minutes
            open_hours = {minute // HOUR * HOUR for minute, _ in open_minutes}
            self._cluster_hours(steps, place, wanted, open_hours, found)
            minutes = {
                key: share
                for hour in open_hours
                for key, share in self._cluster_minutes(hour - 120, hour + HOUR + 120, wanted)
            }
        else:
            open_hours = None
            minutes = dict(self._cluster_minutes(steps.begin - 120, steps.end + 120, wanted))
            if not minutes or min(minutes)[0] > steps.begin + HOUR:  # older than minutes are kept
                covered = {minute // HOUR * HOUR for minute, _ in minutes}
                self._cluster_hours(steps, place, wanted, covered, found)
        for key, share in open_minutes.items():
            if steps.begin - 120 <= key[0] < steps.end + 120 and (key[1] != "" if wanted is None else key[1] in wanted):
                was = minutes.get(key)
                minutes[key] = share if was is None else tuple(map(add, was, share))
        settled = now - SETTLING_SECONDS - 60
        for minute, model, share in whole_minutes(minutes):
            if minute > settled or not steps.begin <= minute < steps.end:
                continue
            if open_hours is not None and minute // HOUR * HOUR not in open_hours:
                continue  # it is in its hour
            points, value = found[model], cluster_figures(share, 60)[place]
            if value is not None:
                points.append((int((minute - steps.begin) // steps.seconds), value, value * _FINEST, value, 1))
        lines, starts = _Lines(steps), steps.starts()
        for begin, points in zip(lines.begins(list(found)), found.values(), strict=True):
            if points:
                at, *figures = np.array(points).T
                lines.add(begin + at.astype(np.intp), *figures)
        return [lines.series(model, starts, None, model=model or None) for model in sorted(found)]

    def _cluster_minutes(
        self, begin: float, end: float, wanted: set[str] | None
    ) -> Iterator[tuple[tuple[int, str], Share]]:
        for minute, model, share in self._db.execute(
            "SELECT minute, model, share FROM cluster_minutes WHERE minute >= ? AND minute < ?", (begin, end)
        ):
            if model != "" if wanted is None else model in wanted:
                yield (minute, model), tuple(array("d", share))

    def _cluster_hours(
        self, steps: Steps, place: int, wanted: set[str] | None, but: set[int], found: defaultdict[str, list[_Point]]
    ) -> None:
        if wanted is None:
            where, models = "model != ''", []
        else:
            where, models = f"model IN ({', '.join('?' * len(wanted))})", sorted(wanted)
        at = 4 * place
        for hour, model, blob in self._db.execute(
            f"SELECT hour, model, figures FROM cluster_hours WHERE {where} AND hour >= ? AND hour < ?",  # noqa: S608 - marks
            (*models, steps.begin // HOUR * HOUR, steps.end),
        ):
            points = found[model]
            count, least, mean, most = array("d", blob)[at : at + 4]
            step = int((hour - steps.begin) // steps.seconds)
            if hour not in but and mean == mean and step >= 0:
                points.append((step, least, mean * count * _FINEST, most, count))

    # ------------------------------------------------------------------------------------------------------ users

    def _users(self, ask: SeriesQuery, steps: Steps, now: float) -> list[Series]:
        found = self.usage(
            UsageQuery(begin=steps.begin, end=steps.end, by=("user", "hour"), users=ask.users, hosts=ask.hosts)
        )
        measured = self.usage(UsageQuery(begin=steps.begin, end=steps.end, by=("hour",)))
        total = replace(ask, metric="total_gpus", by="cluster")
        covered = covered_seconds(measured, self._cluster(total, hours_in(steps), now))
        return user_series(found, covered, ask.metric, steps)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger.usage`."""
        first, last = hours_of(ask)
        sums: dict[Key, list[float]] = {}
        for span in spans_of(ask):
            for row in self._db.execute(*sums_of(span, ask, USAGE_COLUMNS, _one_of)):
                if row[-1] is not None:
                    _add_to(sums, row[:5], row[5:])
        opened: Iterable[tuple[tuple[int, str | None], dict[UsageKey, Share]]]
        if parts_hosts(ask):
            opened = self._open.usage_of_hosts().items()
        else:
            opened = [((hour, None), usage) for hour, usage in self._open.usage().items()]
        for (hour, name), usage in opened:
            if first <= hour < last and (ask.hosts is None or name in ask.hosts):
                for (user, model), share in usage.items():
                    if is_wanted(ask, user, model):
                        _add_to(sums, key_of(ask, user, name, model, hour), share)
        return [
            usage_of(key, held, busy, idle, util, seen)
            # the fourth place is for what Slurm gave away; nothing fills it yet
            for key, (held, busy, idle, _, util, seen) in sorted(sums.items(), key=lambda each: order(each[0]))
            if seen > 1e-3  # what is left when all was taken out again
        ]

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger.uses`."""
        hosts = self._hosts(ask.hosts)
        if ask.users is not None:
            there = self._hosts_of(ask)
            hosts = [(host, name) for host, name in hosts if name in there]
        found = []
        for host, name in hosts:
            found += uses(name, self._stretches(host, name, ask))
        return asked_for(found, ask)

    def _hosts_of(self, ask: UseQuery) -> set[str]:
        """Return the hosts on which users had GPUs."""
        found = self.usage(UsageQuery(begin=ask.begin, end=ask.end + HOUR, by=("host",), users=ask.users))
        return {str(each.host) for each in found}

    def _stretches(self, host: int, name: str, ask: UseQuery) -> list[Stretch]:
        """Return the stretches of a host, oldest first; of hours with late rows the sealed part only."""
        db = self._db
        pieces: list[tuple[int, list[Stretch]]] = []
        span = (host, ask.begin // HOUR * HOUR, ask.end)
        for hour, packed in db.execute(
            "SELECT hour, stretches FROM uses WHERE host = ? AND hour >= ? AND hour <= ?", span
        ):
            pieces.append((hour, unpack_stretches(packed)))
        known = {hour for hour, _ in pieces}
        for (hour,) in db.execute(
            "SELECT DISTINCT hour FROM hot WHERE host = ? AND hour >= ? AND hour <= ?", span
        ).fetchall():
            if hour not in known:
                rows = hot_rows(db, self._names, host, hour, name)
                pieces.append((hour, stretches(rows, hour, hour + HOUR)))
        return [stretch for _, piece in sorted(pieces, key=lambda each: each[0]) for stretch in piece]

    # ------------------------------------------------------------------------------------------- events and moments

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger.events`."""
        where, values = ["at >= ?", "at <= ?"], [ask.begin, ask.end]
        for column, wanted in (("host", ask.hosts), ("kind", ask.kinds)):
            if wanted is not None:
                where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
                values += wanted  # type: ignore[arg-type]
        query = f"SELECT at, host, gpu, kind, code, text FROM events WHERE {' AND '.join(where)} ORDER BY at DESC, id DESC LIMIT ?"  # noqa: S608, E501 - marks
        return [
            Event(at=at, host=host, gpu=json.loads(gpu), kind=kind, code=json.loads(code), text=text)
            for at, host, gpu, kind, code, text in self._db.execute(query, (*values, ask.most))
        ]

    def kept_events(self, most: int) -> list[KeptEvent]:
        """Return the newest events, oldest first."""
        found = self._db.execute(
            "SELECT at, host, gpu, kind, code, text, told, boot_id, seq FROM events ORDER BY at DESC, id DESC LIMIT ?",
            (most,),
        ).fetchall()
        return [
            KeptEvent(
                Event(at=at, host=host, gpu=json.loads(gpu), kind=kind, code=json.loads(code), text=text),
                bool(told),
                None if boot_id is None else (boot_id, seq),
            )
            for at, host, gpu, kind, code, text, told, boot_id, seq in reversed(found)
        ]

    def last_seen(self) -> list[tuple[str, float, float | None, bytes, bytes]]:
        """Return (host, received_at, skew_seconds, packed, known) of each host."""
        return self._db.execute("SELECT host, received_at, skew_seconds, packed, known FROM last").fetchall()

    def moment(self, at: float, silent_seconds: float) -> list[Figures]:
        """See `Store.moment`."""
        found: dict[str, Figures] = {}
        begin = at - silent_seconds
        for host, name in self._hosts(None):
            span = (host, begin // HOUR * HOUR, at)
            rows: list[Figures] = []
            for layout, blob in self._db.execute(
                "SELECT layout, rows FROM sealed WHERE host = ? AND hour >= ? AND hour <= ?", span
            ):
                rows += Rows(blob, self._names.layout_of(layout)).figures(name)
            for (hour,) in self._db.execute(
                "SELECT DISTINCT hour FROM hot WHERE host = ? AND hour >= ? AND hour <= ?", span
            ).fetchall():
                rows += hot_rows(self._db, self._names, host, hour, name)
            rows = [row for row in rows if begin <= row.at <= at]
            if rows:
                found[name] = max(rows, key=lambda row: row.at)
        return [found[name] for name in sorted(found)]


class _Gather:
    """Puts figures of one host into steps: what is told of hours and days waits for others, to be put in together."""

    def __init__(self, ask: SeriesQuery, steps: Steps) -> None:
        self.steps = steps
        self._ask = ask
        self._lines = _Lines(steps)
        self._of_host = ask.metric in HOST_METRICS
        self._whose: dict[int | None, tuple[str | None, str | None]] = {}
        self._waiting: list[_Told] = []
        self._layout = Layout(())

    def series(self, starts: Sequence[float], host: str) -> list[Series]:
        """Return what was gathered."""
        self._put()
        return [
            self._lines.series(gpu, starts, host, gpu=gpu, uuid=uuid, model=model)
            for gpu, (uuid, model) in sorted(self._whose.items(), key=lambda each: each[0] or 0)
        ]

    def _tell(self, layout: Layout, told: "_Told") -> None:
        if layout is not self._layout or len(self._waiting) >= _AT_ONCE:
            self._put()
        self._layout = layout
        self._waiting.append(told)

    def _put(self) -> None:
        """Put what waits into the steps in which it began."""
        if not self._waiting:
            return
        at, least, total, most, count = (np.concatenate(kind, axis=-1) for kind in zip(*self._waiting, strict=True))
        self._waiting.clear()
        steps = np.floor_divide(at - self.steps.begin, self.steps.seconds)
        are_in = (steps >= 0) & (steps < self.steps.count)
        if not are_in.any():
            return  # no line is made of a host that has nothing in any step
        lines = self._begins(self._layout)
        wanted = ~np.isnan(least) & are_in & (lines >= 0)[:, None]
        places = np.add.outer(lines, steps.astype(np.intp))
        self._lines.add(*[each[wanted] for each in (places, least, total, most, np.broadcast_to(count, least.shape))])

    def _begins(self, layout: Layout) -> "NDArray[np.intp]":
        """Return where the line of each column of the metric begins; -1: it is not asked for."""
        if self._of_host:
            self._whose[None] = None, None
            return np.array(self._lines.begins([None]))
        ask = self._ask
        wanted = [
            (ask.gpus is None or gpu.gpu in ask.gpus) and (ask.models is None or gpu.model in ask.models)
            for gpu in layout.gpus
        ]
        keys = [gpu.gpu if ask.by == "gpu" else None for gpu in compress(layout.gpus, wanted)]
        for key, gpu in zip(keys, compress(layout.gpus, wanted), strict=True):
            self._whose[key] = (gpu.uuid, gpu.model) if ask.by == "gpu" else (None, None)
        found = np.full(len(layout.gpus), -1)
        found[wanted] = self._lines.begins(keys)
        return found

    def rows(self, rows: Sequence[Figures]) -> None:
        """Take rows as they came."""
        for gpus, group in groupby(rows, key=attrgetter("gpus")):
            part = list(group)
            layout = Layout(gpus)
            frame = layout.frame_of(self._ask.metric)
            if frame is not None:
                at = HOST_METRICS.index(self._ask.metric) - len(HOST_METRICS) if self._of_host else frame[0] * len(gpus)
                times = np.array([row.at for row in part])
                figures = columns_of([row.values for row in part])[at:][: frame[1]].astype(np.float64)
                self._tell(layout, (times, figures, figures * _FINEST, figures, np.ones(len(part))))

    def sealed(self, blob: bytes, layout: Layout) -> None:
        """Take a sealed hour; a damaged one is a gap."""
        with suppress(StoreError):
            rows = Rows(blob, layout)
            columns = rows.columns(self._ask.metric)
            if columns is not None:
                figures, total = columns.figures(), columns.numbers * (_FINEST / columns.scales)
                self._tell(layout, (rows.times, figures, total, figures, np.ones(len(rows.times))))

    def slots(self, blob: bytes, layout: Layout, day: int, size: int, but: "frozenset[int] | set[int]") -> set[int]:
        """Take a day of steps, less the hours that a finer tier has; return the hours that it has."""
        try:
            slots = Slots(blob, layout)
            if slots.is_alone:
                self._hour_alone(slots, layout, day, but)
                return {day}
            at = day + slots.places * size
            hours = at // HOUR * HOUR
            are_finest = ~np.isin(hours, list(but))
            columns, rows = slots.columns(self._ask.metric), slots.rows
        except StoreError:
            return set()
        if columns is not None:
            least, mean, most = (each.figures()[:, are_finest] for each in columns)
            count = rows[are_finest].astype(np.float64)
            self._tell(layout, (at[are_finest], least, mean * (count * _FINEST), most, count))
        return set(hours.tolist())

    def _hour_alone(self, slots: Slots, layout: Layout, hour: int, but: "frozenset[int] | set[int]") -> None:
        """Take an hour of a day that is not over."""
        kinds = None if hour in but else slots.alone(self._ask.metric)
        if kinds is not None:
            count = float(slots.rows_alone)
            least, mean, most = kinds
            self._tell(layout, (np.array([hour]), least, mean * (count * _FINEST), most, np.array([count])))


def _add_to(sums: dict[Key, list[float]], key: Key, share: Sequence[float]) -> None:
    was = sums.get(key)
    sums[key] = list(share) if was is None else list(map(add, was, share))


def _one_of(column: str, wanted: Sequence[str]) -> tuple[str, list[object]]:
    return f"{column} IN ({', '.join('?' * len(wanted))})", list(wanted)
