"""Answers from the file of history: reads only, on a connection of the asking thread."""

import json
import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from operator import add, le, lt, truediv
from typing import Any, NamedTuple, cast

from cluster_dash_server.history.chunks import Layout, Rows, Slots
from cluster_dash_server.history.columns import Column
from cluster_dash_server.history.gpu_hours import (
    Key,
    hours_of,
    is_wanted,
    key_of,
    order,
    parts_hosts,
    spans_of,
    usage_of,
)
from cluster_dash_server.history.lanes import least_sum_most
from cluster_dash_server.history.opened import OpenHours
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
from cluster_dash_server.history.sealing import USAGE_COLUMNS, Names, hot_rows, unpack_stretches
from cluster_dash_server.history.steps import SETTLING_SECONDS, Steps, steps_of, user_series
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


class _Sums(NamedTuple):
    """The least, sum and most of `rows` figures each, times a scale, step by step from `first` on."""

    first: int
    least: "array[Any]"
    total: "array[Any]"
    most: "array[Any]"
    scale: float
    rows: int

    def is_followed_by(self, other: "_Sums") -> bool:
        """Say whether others can be put behind these."""
        kinds = [[each.typecode for each in sums[1:4]] for sums in (self, other)]
        touch = self.first + len(self.least) == other.first
        return touch and self[4:] == other[4:] and kinds[0] == kinds[1]


@dataclass(slots=True)
class _Line:
    """One series while it is gathered: for each step the least, sum and most, from so many figures.

    What `put` gives is kept beside them and laid into its place when no more follows: all of a day at once.
    """

    least: list[float]
    total: list[float]
    most: list[float]
    count: list[float]
    uuid: str | None = None
    model: str | None = None
    beside: _Sums | None = None

    @classmethod
    def of(cls, steps: Steps) -> "_Line":
        count = steps.count
        return cls([float("inf")] * count, [0.0] * count, [float("-inf")] * count, [0] * count)

    def add(self, step: int, least: float, total: float, most: float, count: int) -> None:
        """Add figures to a step."""
        if self.beside is not None:
            self._lay()
        if least < self.least[step]:
            self.least[step] = least
        if most > self.most[step]:
            self.most[step] = most
        self.total[step] += total
        self.count[step] += count

    def put(self, new: _Sums) -> None:
        """Give steps what they are made of: they have nothing yet."""
        self.count[new.first : new.first + len(new.least)] = [new.rows] * len(new.least)
        was = self.beside
        if was is not None and was.is_followed_by(new):
            for sums, more in zip(was[1:4], new[1:4], strict=True):
                sums.extend(more)
        else:
            self._lay()
            self.beside = new

    def _lay(self, *, is_last: bool = False) -> None:
        """Lay what is kept beside into its place; the last of it need not be divided but for the mean."""
        if self.beside is None:
            return
        first, least, total, most, scale, rows = self.beside
        steps = slice(first, first + len(least))
        self.least[steps] = _divided(least, scale)
        self.most[steps] = _divided(most, scale)
        if is_last:
            self.total[steps] = total
            self.count[steps] = [rows * scale] * len(total)
        else:
            self.total[steps] = _divided(total, scale)
        self.beside = None

    def series(self, steps: Steps, starts: Sequence[float], host: str, gpu: int | None) -> Series:
        """Return it; what was gathered is used up."""
        self._lay(is_last=True)
        least: list[float | None] = [*self.least]
        most: list[float | None] = [*self.most]
        empty: list[int] = []
        with suppress(ValueError):
            while True:
                empty.append(self.count.index(0, empty[-1] + 1 if empty else 0))
        for place in empty:
            self.count[place] = 1
        mean: list[float | None] = [*map(truediv, self.total, self.count)]
        for place in empty:
            least[place] = mean[place] = most[place] = None
        return Series(
            step_seconds=steps.seconds,
            t=starts,
            min=least,
            mean=mean,
            max=most,
            host=host,
            gpu=gpu,
            uuid=self.uuid,
            model=self.model,
        )


def _divided(numbers: "array[Any]", scale: float) -> Iterable[float]:
    return numbers if scale == 1 else map(truediv, numbers, repeat(scale))


def _added(parts: list[Sequence[float]], rows: int) -> "list[array[Any]]":
    """Return the least, the sum and the most of each so many figures, one part after the other."""
    if all(isinstance(part, array) and part.typecode == "i" for part in parts):
        whole = array("i", b"".join([cast("array[int]", part).tobytes() for part in parts]))
        return [whole] * 3 if rows == 1 else [*least_sum_most([whole[place::rows] for place in range(rows)])]
    figures = list(chain.from_iterable(parts))
    places = list(zip(*[figures[place::rows] for place in range(rows)], strict=True))
    return [array("d", map(of_figures, places)) for of_figures in (min, sum, max)]


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
            lines: dict[int | None, _Line] = {}
            gather = _Gather(ask, steps, starts, lines)
            self._gather_host(gather, host, name)
            found += [
                line.series(steps, starts, name, gpu)
                for gpu, line in sorted(lines.items(), key=lambda each: each[0] or 0)
            ]
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
        lines: dict[str, _Line] = {}
        models = ("",) if ask.by == "cluster" else ask.models
        wanted = None if models is None else set(models)

        def line_of(model: str) -> _Line:
            line = lines.get(model)
            if line is None:
                line = lines[model] = _Line.of(steps)
            return line

        open_minutes = self._open.minutes()
        if steps.seconds % HOUR == 0:
            # hours that are still open in part are made of their minutes
            open_hours = {minute // HOUR * HOUR for minute, _ in open_minutes}
            self._cluster_hours(steps, place, wanted, open_hours, line_of)
            minutes = {
                key: share for hour in open_hours for key, share in self._cluster_minutes(hour, hour + HOUR, wanted)
            }
        else:
            minutes = dict(self._cluster_minutes(steps.begin - 60, steps.end + 60, wanted))
            if not minutes or min(minutes)[0] > steps.begin + HOUR:  # older than minutes are kept
                covered = {minute // HOUR * HOUR for minute, _ in minutes}
                self._cluster_hours(steps, place, wanted, covered, line_of)
        for key, share in open_minutes.items():
            if steps.begin - 60 <= key[0] < steps.end + 60 and (key[1] != "" if wanted is None else key[1] in wanted):
                was = minutes.get(key)
                minutes[key] = share if was is None else tuple(map(add, was, share))
        settled = now - SETTLING_SECONDS - 60
        for minute, model, share in whole_minutes(minutes):
            if minute > settled or not steps.begin <= minute < steps.end:
                continue
            line, value = line_of(model), cluster_figures(share, 60)[place]
            if value is not None:
                line.add(int((minute - steps.begin) // steps.seconds), value, value, value, 1)
        found = []
        starts = steps.starts()
        for model, line in sorted(lines.items()):
            line.model = model or None
            found.append(line.series(steps, starts, "", None))
        return [_without_host(series) for series in found]

    def _cluster_minutes(
        self, begin: float, end: float, wanted: set[str] | None
    ) -> Iterator[tuple[tuple[int, str], Share]]:
        for minute, model, share in self._db.execute(
            "SELECT minute, model, share FROM cluster_minutes WHERE minute >= ? AND minute < ?", (begin, end)
        ):
            if model != "" if wanted is None else model in wanted:
                yield (minute, model), tuple(array("d", share))

    def _cluster_hours(self, steps: Steps, place: int, wanted: set[str] | None, but: set[int], line_of: Any) -> None:
        if wanted is None:
            where, models = "model != ''", []
        else:
            where, models = f"model IN ({', '.join('?' * len(wanted))})", sorted(wanted)
        at = 4 * place
        for hour, model, blob in self._db.execute(
            f"SELECT hour, model, figures FROM cluster_hours WHERE {where} AND hour >= ? AND hour < ?",  # noqa: S608 - marks
            (*models, steps.begin // HOUR * HOUR, steps.end),
        ):
            line = line_of(model)
            count, least, mean, most = array("d", blob)[at : at + 4]
            step = int((hour - steps.begin) // steps.seconds)
            if hour not in but and mean == mean and step >= 0:
                line.add(step, least, mean * count, most, int(count))

    # ------------------------------------------------------------------------------------------------------ users

    def _users(self, ask: SeriesQuery, steps: Steps, now: float) -> list[Series]:
        found = self.usage(
            UsageQuery(begin=steps.begin, end=steps.end, by=("user", "hour"), users=ask.users, hosts=ask.hosts)
        )
        measured = self.usage(UsageQuery(begin=steps.begin, end=steps.end, by=("hour",), hosts=ask.hosts))
        counted_to = self._open.counted_to()
        return user_series(found, measured, ask.metric, steps, counted_to if now - counted_to < HOUR else now)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger.usage`."""
        first, last = hours_of(ask)
        sums: dict[Key, list[float]] = {}
        for span in spans_of(ask):
            for key, share in self._usage_of(*span, ask):
                _add_to(sums, key, share)
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

    def _usage_of(
        self, table: str, moment: str, begin: int, end: int, ask: UsageQuery
    ) -> Iterator[tuple[tuple[Any, ...], Sequence[float]]]:
        joined = table.startswith("usage")
        columns = {
            "user": "user",
            "host": "hosts.name" if joined else "NULL",
            "model": "model",
            "hour": "hour" if moment == "hour" else "NULL",
            "day": f"{moment} / {DAY} * {DAY}",
        }
        keys = [columns[part] if part in ask.by else "NULL" for part in columns]
        where, values = [f"{moment} >= ?", f"{moment} < ?"], [begin, end]
        wishes: list[tuple[str, Sequence[Any] | None]] = [("model", ask.models)]
        if "user" in ask.by or ask.users is not None:
            where.append("user != ''")
            wishes.append(("user", ask.users))
        else:
            where.append("user = ''")
        if joined and ask.hosts is not None:
            wishes.append(("hosts.name", ask.hosts))
        for column, wanted in wishes:
            if wanted is not None:
                where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
                values += wanted
        groups = [key for key in keys if key != "NULL"]
        query = (
            f"SELECT {', '.join(keys)}, {', '.join(f'SUM({name})' for name in USAGE_COLUMNS.split(', '))} FROM {table}"  # noqa: S608 - names of ours
            + (f" JOIN hosts ON hosts.id = {table}.host" if joined else "")
            + f" WHERE {' AND '.join(where)}"
            + (f" GROUP BY {', '.join(groups)}" if groups else "")
        )
        for row in self._db.execute(query, values):
            if row[-1] is not None:
                yield row[:5], row[5:]

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger.uses`."""
        hosts = self._hosts(ask.hosts)
        if ask.users is not None:
            there = self._hosts_of(ask)
            hosts = [(host, name) for host, name in hosts if name in there]
        found = []
        for host, name in hosts:
            found += uses(name, self._stretches(host, name, ask))
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
    """Puts figures of one host into steps."""

    def __init__(self, ask: SeriesQuery, steps: Steps, starts: Sequence[float], lines: dict[int | None, _Line]) -> None:
        self.steps = steps
        self._ask = ask
        self._lines = lines
        self._of_host = ask.metric in HOST_METRICS
        self._starts = starts

    def _line(self, gpu: int | None) -> _Line:
        line = self._lines.get(gpu)
        if line is None:
            line = self._lines[gpu] = _Line.of(self.steps)
        return line

    def _targets(self, layout: Layout) -> list[_Line | None]:
        """Return for each column of the metric the line that it goes to; None: it is not asked for."""
        if self._of_host:
            return [self._line(None)]
        ask, targets = self._ask, list[_Line | None]()
        for gpu in layout.gpus:
            if (ask.gpus is not None and gpu.gpu not in ask.gpus) or (
                ask.models is not None and gpu.model not in ask.models
            ):
                targets.append(None)
                continue
            line = self._line(gpu.gpu if ask.by == "gpu" else None)
            if ask.by == "gpu":
                line.uuid, line.model = gpu.uuid, gpu.model
            targets.append(line)
        return targets

    def rows(self, rows: Sequence[Figures]) -> None:
        """Take rows as they came."""
        first = 0
        for place in range(1, len(rows) + 1):
            if place == len(rows) or rows[place].gpus != rows[first].gpus:
                part = rows[first:place]
                layout = Layout(part[0].gpus)
                frame = layout.frame_of(self._ask.metric)
                if frame is not None:
                    at = frame[0] * len(layout.gpus)
                    if self._of_host:
                        at = HOST_METRICS.index(self._ask.metric) - len(HOST_METRICS)
                    columns = [
                        Column([row.values[at + number] for row in part], 1.0, None) for number in range(frame[1])
                    ]
                    self._columns([row.at for row in part], columns, layout)
                first = place

    def sealed(self, blob: bytes, layout: Layout) -> None:
        """Take a sealed hour; a damaged one is a gap."""
        try:
            rows = Rows(blob, layout)
            if not self._evenly(rows, layout):
                self._columns(rows.times, rows.columns(self._ask.metric), layout)
        except StoreError:
            return

    def _evenly(self, rows: Rows, layout: Layout) -> bool:
        """Take a sealed hour of which each step has as many rows; False: that is not so, or some are unknown."""
        bounds = self._even_bounds(rows.times)
        if bounds is None:
            return False
        targets = self._targets(layout)  # not before: it makes lines, and there may be no row in any step
        if not _are_apart(targets):
            return False
        first, after, rows_each = bounds
        if any(line is not None and any(line.count[first:after]) for line in targets):
            return False
        found = rows.added(self._ask.metric, rows_each)
        if found is None:
            return False
        steps = after - first
        for at, line in zip(range(0, steps * len(targets), steps), targets, strict=True):
            if line is not None:
                own = slice(at, at + steps)
                line.put(_Sums(first, found.least[own], found.total[own], found.most[own], found.scale, rows_each))
        return True

    def _even_bounds(self, times: Sequence[float]) -> tuple[int, int, int] | None:
        """Return from which step on up to which one there are how many rows in each; None: they differ."""
        begin, seconds, count = self.steps.begin, self.steps.seconds, self.steps.count
        if not times:
            return None
        first, after = int((times[0] - begin) // seconds), int((times[-1] - begin) // seconds) + 1
        if first < 0 or after > count or len(times) % (after - first):
            return None
        rows = len(times) // (after - first)
        starts = self._starts[first:after]
        are_in = all(map(le, starts, times[::rows])) and all(map(lt, times[rows - 1 :: rows], starts[1:]))
        return (first, after, rows) if are_in else None

    def _columns(self, times: Sequence[float], columns: Sequence[Column], layout: Layout) -> None:
        bounds = self._bounds(times)
        if not bounds:
            return
        (begin, first, after), last = bounds[0], bounds[-1]
        rows, steps = after - first, slice(begin, last[0] + 1)
        even = last[0] - begin == len(bounds) - 1 and {after - start for _, start, after in bounds} == {rows}
        together: list[tuple[Column, _Line]] = []
        rest: list[tuple[Column, _Line]] = []
        targets = self._targets(layout)
        are_apart = _are_apart(targets)
        for column, line in zip(columns, targets, strict=False):
            if line is not None:
                is_free = not any(line.count[steps]) and (are_apart or not together)
                (together if even and is_free and column.is_known() else rest).append((column, line))
        if together:
            scale, length = together[0][0].scale, len(bounds)
            parts = [column.numbers[first : last[2]] for column, _ in together]
            least, total, most = _added(parts, rows)
            for place, (_, line) in enumerate(together):
                own = slice(place * length, (place + 1) * length)
                line.put(_Sums(begin, least[own], total[own], most[own], scale, rows))
        for column, line in rest:
            if not column.is_known():
                if not column.stays():
                    _add_known(line, column.floats(), bounds)
                continue
            for step, first, after in bounds:
                part = column.numbers[first:after]
                scale = column.scale
                line.add(step, min(part) / scale, sum(part) / scale, max(part) / scale, after - first)

    def _bounds(self, times: Sequence[float]) -> list[tuple[int, int, int]]:
        """Return (step, from, up to) of the rows in each step that has some."""
        begin, seconds, count = self.steps.begin, self.steps.seconds, self.steps.count
        if not times:
            return []
        steps = range(max(0, int((times[0] - begin) // seconds)), min(count, int((times[-1] - begin) // seconds) + 1))
        edges = [bisect_left(times, begin + step * seconds) for step in (*steps, steps.stop)]
        found = zip(steps, pairwise(edges), strict=True)
        return [(step, first, after) for step, (first, after) in found if first < after]

    def slots(self, blob: bytes, layout: Layout, day: int, size: int, but: "frozenset[int] | set[int]") -> set[int]:
        """Take a day of steps, less the hours that a finer tier has; return the hours that it has."""
        try:
            slots = Slots(blob, layout)
            hours, wanted = set(), []
            for number, place in enumerate(slots.places):
                at = day + place * size
                hour = at // HOUR * HOUR
                hours.add(hour)
                step = (at - self.steps.begin) // self.steps.seconds
                if hour not in but and 0 <= step < self.steps.count:
                    wanted.append((number, int(step)))
            if not wanted:
                return hours
            columns, rows = slots.columns(self._ask.metric), slots.rows
        except StoreError:
            return set()
        for (least, mean, most), line in zip(columns, self._targets(layout), strict=False):
            if line is not None:
                for number, step in wanted:
                    value = mean[number]
                    if value == value:
                        line.add(step, least[number], value * rows[number], most[number], rows[number])
        return hours


def _are_apart(targets: Sequence[_Line | None]) -> bool:
    """Say whether each column goes to a line of its own."""
    wanted = [id(line) for line in targets if line is not None]
    return len(set(wanted)) == len(wanted)


def _add_known(line: _Line, values: Sequence[float], bounds: Iterable[tuple[int, int, int]]) -> None:
    for step, first, after in bounds:
        part = [value for value in values[first:after] if value == value]
        if part:
            line.add(step, min(part), sum(part), max(part), len(part))


def _without_host(series: Series) -> Series:
    return Series(
        step_seconds=series.step_seconds,
        t=series.t,
        min=series.min,
        mean=series.mean,
        max=series.max,
        model=series.model,
    )


def _add_to(sums: dict[Key, list[float]], key: Key, share: Sequence[float]) -> None:
    was = sums.get(key)
    sums[key] = list(share) if was is None else list(map(add, was, share))
