"""From rows as they came to what is kept: sealed hours, roll-ups, and what becomes of them with age.

Everything is made of the rows of one hour of one host, so rows that come late are added by doing that hour anew: what
it gave to sums before is taken out, what it gives now is put in. All functions work inside the caller's transaction.
"""

import json
import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import add, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster_dash_server.history.chunks import (
    Day,
    Layout,
    Rows,
    Slot,
    Slots,
    columns_of,
    minutes_of,
    pack_day,
    pack_rows,
    pack_slot,
    pack_slots,
    pack_stretches,
    slot_of,
)
from cluster_dash_server.history.columns import NAN
from cluster_dash_server.history.late_numpy import np
from cluster_dash_server.history.rollups import (
    DAY,
    HOUR,
    HourRows,
    Minutes,
    Rolled,
    Run,
    Share,
    Stretch,
    UsageKey,
    cluster_figures,
    roll,
    roll_together,
    stretches_of,
    whole_minutes,
)
from cluster_dash_server.store import Figures, GpuId, Holder, StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

USAGE_COLUMNS = "held, busy, idle, allocated, util, seen"
_EPSILON = 1e-6
"""What is left of a sum when all parts are taken out again."""


class _Numbered(NamedTuple):
    """The GPUs and holders of the newest row of a host as they came, what stands for them, and the ids."""

    gpus: tuple[GpuId, ...]
    holders: tuple[Holder, ...]
    same_gpus: tuple[GpuId, ...]
    same_holders: tuple[Holder, ...]
    ids: tuple[int, int, int]


class Names:
    """The ids of names in the file, read when first asked for. One thread."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._ids: dict[tuple[str, str], int] = {}
        self._layouts: dict[int, Layout] = {}
        self._holdings: dict[int, tuple[Holder, ...]] = {}
        self._layout_ids: dict[tuple[GpuId, ...], tuple[int, tuple[GpuId, ...]]] = {}
        self._holding_ids: dict[tuple[Holder, ...], tuple[int, tuple[Holder, ...]]] = {}
        self._newest: dict[str, _Numbered] = {}

    def numbers(self, row: Figures) -> tuple[int, int, int]:
        """Return the ids of a row's host, GPUs and holders, which become one object each with equal ones."""
        newest = self._newest.get(row.host)
        if newest is None or newest.gpus is not row.gpus or newest.holders is not row.holders:
            layout, gpus = self.known_gpus(row.gpus)
            holding, holders = self.known_holders(row.holders)
            newest = _Numbered(row.gpus, row.holders, gpus, holders, (self.host(row.host), layout, holding))
            self._newest[row.host] = newest
        row.gpus, row.holders = newest.same_gpus, newest.same_holders
        return newest.ids

    def host(self, name: str) -> int:
        """Return the id of a host, made where there is none."""
        return self._id("hosts", "name", name)

    def host_name(self, host: int) -> str:
        """Return the name of a host."""
        (name,) = self._db.execute("SELECT name FROM hosts WHERE id = ?", (host,)).fetchone()
        return str(name)

    def layout(self, gpus: tuple[GpuId, ...]) -> int:
        """Return the id of the layout of GPUs, made where there is none."""
        return self.known_gpus(gpus)[0]

    def known_gpus(self, gpus: tuple[GpuId, ...]) -> tuple[int, tuple[GpuId, ...]]:
        """Return the id of the layout, and the one object that stands for equal ones: it is quicker to compare."""
        found = self._layout_ids.get(gpus)
        if found is None:
            found = self._layout_ids[gpus] = self._id("layouts", "text", Layout(gpus).text()), gpus
        return found

    def layout_of(self, layout: int) -> Layout:
        """Return a layout by its id."""
        if layout not in self._layouts:
            (text,) = self._db.execute("SELECT text FROM layouts WHERE id = ?", (layout,)).fetchone()
            self._layouts[layout] = Layout.of(text)
        return self._layouts[layout]

    def holding(self, holders: tuple[Holder, ...]) -> int:
        """Return the id of who has what, made where there is none."""
        return self.known_holders(holders)[0]

    def known_holders(self, holders: tuple[Holder, ...]) -> tuple[int, tuple[Holder, ...]]:
        """Return the id of who has what, and the one object that stands for equal ones."""
        found = self._holding_ids.get(holders)
        if found is None:
            if len(self._holding_ids) > 20_000:
                self._holding_ids.clear()
            text = json.dumps(holders, ensure_ascii=False, separators=(",", ":"))
            found = self._holding_ids[holders] = self._id("holdings", "text", text, remember=False), holders
        return found

    def holders_of(self, holding: int) -> tuple[Holder, ...]:
        """Return who has what by its id."""
        if holding not in self._holdings:
            if len(self._holdings) > 20_000:
                self._holdings.clear()
            (text,) = self._db.execute("SELECT text FROM holdings WHERE id = ?", (holding,)).fetchone()
            self._holdings[holding] = tuple(Holder(*each) for each in json.loads(text))
        return self._holdings[holding]

    def forget_holdings(self) -> None:
        """Forget who has what: rows of the file that nothing refers to any more were dropped."""
        self._holdings.clear()
        self._holding_ids.clear()
        self._newest.clear()

    def _id(self, table: str, column: str, text: str, *, remember: bool = True) -> int:
        found = self._ids.get((table, text))
        if found is None:
            row = self._db.execute(f"SELECT id FROM {table} WHERE {column} = ?", (text,)).fetchone()  # noqa: S608 - names of ours
            if row is None:
                row = (self._db.execute(f"INSERT INTO {table} ({column}) VALUES (?)", (text,)).lastrowid,)  # noqa: S608 - names of ours
            found = int(row[0])
            if remember:
                self._ids[table, text] = found
        return found


def hot_rows(db: sqlite3.Connection, names: Names, host: int, hour: int, name: str) -> list[Figures]:
    """Return the rows of an hour that are not sealed yet, oldest first."""
    boots = dict(db.execute("SELECT id, boot_id FROM boots WHERE host = ?", (host,)).fetchall())
    rows = []
    for at, boot, seq, layout_id, holding, blob in db.execute(
        "SELECT at, boot, seq, layout, holding, figures FROM hot WHERE host = ? AND hour = ? ORDER BY at", (host, hour)
    ):
        layout, holders = names.layout_of(layout_id), names.holders_of(holding)
        split = len(blob) - 4 * len(holders)
        rows.append(
            Figures(
                host=name,
                at=at,
                boot_id=boots.get(boot),
                seq=seq,
                oldest_seq=None,
                gpus=layout.gpus,
                values=layout.as_now(array("f", blob[:split])),
                holders=holders,
                holder_mem=array("f", blob[split:]),
            )
        )
    return rows


def _hot_hour(db: sqlite3.Connection, names: Names, host: int, hour: int) -> HourRows | None:
    """Return the same column by column: a matrix of figures for each run, and no object for each row."""
    found = db.execute(
        "SELECT at, boot, seq, layout, holding, figures FROM hot WHERE host = ? AND hour = ?", (host, hour)
    ).fetchall()
    if not found:
        return None
    found.sort(key=itemgetter(0))  # they came in this order, nearly always
    times, boots, seqs, layouts, holdings, blobs = zip(*found, strict=True)
    boot_ids = dict(db.execute("SELECT id, boot_id FROM boots WHERE host = ?", (host,)).fetchall())
    runs: list[Run] = []
    first = 0
    for (layout_id, holding), same in groupby(zip(layouts, holdings, strict=True)):
        after = first + len(list(same))
        layout, holders = names.layout_of(layout_id), names.holders_of(holding)
        figures = np.frombuffer(b"".join(blobs[first:after]), np.float32).reshape(after - first, -1)
        if not layout.is_of_now():
            kept = figures.shape[1] - len(holders)
            figures = np.hstack([layout.columns_as_now(figures[:, :kept].T).T, figures[:, kept:]])
        runs.append(Run(layout.gpus, holders, figures))
        first = after
    return HourRows(times, list(map(boot_ids.get, boots)), seqs, runs)


def sealed_rows(db: sqlite3.Connection, names: Names, host: int, hour: int, name: str) -> list[Figures]:
    """Return the rows of a sealed hour, oldest first; those that are damaged are left out."""
    rows: list[Figures] = []
    found = db.execute("SELECT layout, rows FROM sealed WHERE host = ? AND hour = ?", (host, hour)).fetchall()
    for layout, blob in found:
        try:
            rows += Rows(blob, names.layout_of(layout)).figures(name)
        except StoreError:
            continue
    return sorted(rows, key=lambda row: row.at)


class Sums:
    """What a transaction adds to the sums over all hosts; written at its end, for many hosts share a minute."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._hours: dict[int, Rolled] = {}
        self._host_days: dict[tuple[int, int, str, str], Share] = {}

    def add(self, rolled: Rolled, host: int) -> None:
        """Add what an hour of a host gives."""
        self._hours.setdefault(rolled.hour, Rolled(rolled.hour)).put(rolled)
        _gather(self._host_days, ((_host_day(rolled, host, key), usage) for key, usage in rolled.by_user().items()))

    def take_out(self, rolled: Rolled, host: int) -> None:
        """Take out what an hour of a host gave."""
        less = Rolled(rolled.hour)
        less.take_out(rolled)
        self.add(less, host)

    def write(self) -> None:
        """Write them."""
        hours: dict[tuple[int, str, str], Share] = {}
        days: dict[tuple[int, str, str], Share] = {}
        told: set[tuple[int, str]] = set()
        for hour, rolled in self._hours.items():
            for model, shares in rolled.of_all().items():
                self._write_minutes(hour, model, shares)
                told |= {(hour + beside, model) for beside in (-HOUR, 0, HOUR)}
            usage = rolled.by_user()
            hours.update({(hour, *key): share for key, share in usage.items()})
            _gather(days, (((hour // DAY * DAY, *key), share) for key, share in usage.items()))
        for hour, model in told:
            self._tell_hour(hour, model)
        _add_usage(self._db, "user_hours", "hour, user, model", hours.items())
        _add_usage(self._db, "user_days", "day, user, model", days.items())
        _add_usage(self._db, "usage_days", "day, host, user, model", self._host_days.items())

    def _write_minutes(self, hour: int, model: str, shares: "NDArray[np.float64]") -> None:
        """Add to the minutes of an hour."""
        db, total = self._db, shares.copy()
        for minute, share in db.execute(
            "SELECT minute, share FROM cluster_minutes WHERE minute >= ? AND minute < ? AND model = ?",
            (hour, hour + HOUR, model),
        ):
            total[(minute - hour) // 60] += np.frombuffer(share)
        changed = [(hour + 60 * place, total[place]) for place in np.flatnonzero(shares.any(axis=1)).tolist()]
        db.executemany(
            "INSERT OR REPLACE INTO cluster_minutes VALUES (?, ?, ?)",
            [(minute, model, share.tobytes()) for minute, share in changed if share[0] >= _EPSILON],
        )
        db.executemany(
            "DELETE FROM cluster_minutes WHERE minute = ? AND model = ?",
            [(minute, model) for minute, share in changed if share[0] < _EPSILON],
        )

    def _tell_hour(self, hour: int, model: str) -> None:
        """Tell an hour by its minutes; whether those at its edges are whole, the hours beside it say."""
        db = self._db
        seen: Minutes = {
            (minute, model): tuple(array("d", share))
            for minute, share in db.execute(
                "SELECT minute, share FROM cluster_minutes WHERE minute >= ? AND minute < ? AND model = ?",
                (hour - 120, hour + HOUR + 120, model),
            )
        }
        whole = [(minute, share) for minute, _, share in whole_minutes(seen) if hour <= minute < hour + HOUR]
        of_minutes = [cluster_figures(share, 60) for _, share in whole]
        if not of_minutes:
            if hour in self._hours:  # of one beside it the minutes may be let go by their age
                db.execute("DELETE FROM cluster_hours WHERE hour = ? AND model = ?", (hour, model))
            return
        figures = array("d")
        for column in zip(*of_minutes, strict=True):
            known = [value for value in column if value is not None]
            figures.append(len(known))
            figures.extend([min(known), sum(known) / len(known), max(known)] if known else [NAN] * 3)
        db.execute("INSERT OR REPLACE INTO cluster_hours VALUES (?, ?, ?)", (hour, model, figures.tobytes()))


def _host_day(rolled: Rolled, host: int, key: UsageKey) -> tuple[int, int, str, str]:
    return (rolled.hour // DAY * DAY, host, *key)


def _gather(sums: dict[Any, Share], new: Iterable[tuple[Any, Share]]) -> None:
    for key, share in new:
        was = sums.get(key)
        sums[key] = share if was is None else tuple(map(add, was, share))


def _add_usage(
    db: sqlite3.Connection, table: str, key: str, sums: Iterable[tuple[tuple[int | str, ...], Share]]
) -> None:
    marks = ", ".join("?" * (key.count(",") + 7))
    update = ", ".join(f"{name} = {name} + excluded.{name}" for name in USAGE_COLUMNS.split(", "))
    db.executemany(
        f"INSERT INTO {table} ({key}, {USAGE_COLUMNS}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {update}",  # noqa: S608 - names of ours
        [(*each, *share) for each, share in sums],
    )


def seal(db: sqlite3.Connection, names: Names, sums: Sums, due: Iterable[tuple[int, int]]) -> None:
    """Seal hours of hosts, anew where they were sealed before and rows came late; each is (hour, host).

    Some together: to add up those of several hosts takes little more than those of one.
    """
    rows_of: dict[tuple[int, int], HourRows] = {}
    for hour, host in due:
        rows = _hot_hour(db, names, host, hour)
        if rows is None:
            continue
        name = names.host_name(host)
        before = sealed_rows(db, names, host, hour, name)
        if before:
            sums.take_out(roll(before, hour, hour + HOUR), host)
            rows = HourRows.of(sorted(before + hot_rows(db, names, host, hour, name), key=lambda row: row.at))
        rows_of[hour, host] = rows
    parts = [(rows.runs, rows.covers(hour, hour + HOUR)) for (hour, _), rows in rows_of.items()]
    for (hour, host), part, rolled in zip(rows_of, parts, roll_together(parts), strict=True):
        sums.add(rolled, host)
        _seal(db, names, host, hour, rows_of[hour, host], rolled, stretches_of(*part))


def _seal(
    db: sqlite3.Connection,
    names: Names,
    host: int,
    hour: int,
    rows: HourRows,
    rolled: Rolled,
    held: Sequence[Stretch],
) -> None:
    """Put an hour of a host in the place of its rows, and of what there is of it."""
    db.execute("DELETE FROM sealed WHERE host = ? AND hour = ?", (host, hour))
    for gpus, part in rows.by_gpus().items():
        values = np.concatenate([run.values for run in part.runs])
        blob = pack_rows(part, columns_of(values))
        db.execute("INSERT INTO sealed VALUES (?, ?, ?, ?)", (host, hour, names.layout(gpus), blob))
        _put_hour(db, names, host, hour, gpus, slot_of(values))
    db.execute("DELETE FROM usage_hours WHERE hour = ? AND host = ?", (hour, host))
    db.executemany(
        "INSERT INTO usage_hours VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(hour, host, user, model, *usage) for (user, model), usage in rolled.by_user().items()],
    )
    db.execute("DELETE FROM uses WHERE host = ? AND hour = ?", (host, hour))
    if held:
        db.execute("INSERT INTO uses VALUES (?, ?, ?)", (host, hour, pack_stretches(held)))
    db.execute("DELETE FROM hot WHERE host = ? AND hour = ?", (host, hour))


def _put_hour(db: sqlite3.Connection, names: Names, host: int, hour: int, gpus: tuple[GpuId, ...], slot: Slot) -> None:
    """Put an hour beside the others of its day: alone, until the next day begins and they are packed together."""
    day, layout = hour // DAY * DAY, names.layout(gpus)
    of_day = "SELECT slots FROM hours WHERE host = ? AND day = ? AND layout = ?"
    row = db.execute(of_day, (host, day, layout)).fetchone()
    if row is not None and not _is_alone(row[0], names.layout_of(layout)):
        if hour != day:  # one that stood alone all the same, where that of the day was damaged
            db.execute("DELETE FROM hours WHERE host = ? AND day = ? AND layout = ?", (host, hour, layout))
        put_slots(db, names, "hours", host, day, gpus, {(hour - day) // HOUR: slot})
        return
    db.execute("INSERT OR REPLACE INTO hours VALUES (?, ?, ?, ?)", (host, hour, layout, pack_slot(slot)))
    (newest,) = db.execute("SELECT MAX(day) FROM hours WHERE host = ? AND day < ?", (host, day)).fetchone()
    if newest is not None and newest % DAY:
        _pack_hours(db, names, host, newest // DAY * DAY)


def _is_alone(blob: bytes, layout: Layout) -> bool:
    try:
        return Slots(blob, layout).is_alone
    except StoreError:  # whoever puts something beside it begins anew
        return False


def _pack_hours(db: sqlite3.Connection, names: Names, host: int, day: int) -> None:
    """Pack the hours of a day together that stand alone; they stand under their own start, and then under the day."""
    span = (host, day, day + DAY)
    found: dict[tuple[GpuId, ...], dict[int, Slot]] = {}
    for begin, layout_id, blob in db.execute(
        "SELECT day, layout, slots FROM hours WHERE host = ? AND day >= ? AND day < ? ORDER BY day", span
    ).fetchall():
        layout = names.layout_of(layout_id)
        with suppress(StoreError):  # what is damaged is left out
            for place, slot in Slots(blob, layout).slots().items():
                found.setdefault(layout.gpus, {})[(begin - day) // HOUR + place] = slot
    db.execute("DELETE FROM hours WHERE host = ? AND day >= ? AND day < ?", span)
    for gpus, slots in found.items():
        blob = pack_slots(slots, len(gpus))
        db.execute("INSERT INTO hours VALUES (?, ?, ?, ?)", (host, day, names.layout(gpus), blob))


def put_slots(
    db: sqlite3.Connection,
    names: Names,
    table: str,
    host: int,
    day: int,
    gpus: tuple[GpuId, ...],
    new: dict[int, Slot],
) -> None:
    """Put steps into the blob of their day, beside those that are there."""
    layout = names.layout(gpus)
    key = (host, day, layout)
    row = db.execute(f"SELECT slots FROM {table} WHERE host = ? AND day = ? AND layout = ?", key).fetchone()  # noqa: S608 - names of ours
    slots: dict[int, Slot] = {}
    if row is not None:
        with suppress(StoreError):
            slots = Slots(row[0], names.layout_of(layout)).slots()
    blob = pack_slots({**slots, **new}, len(gpus))
    db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", (*key, blob))  # noqa: S608 - names of ours


# ------------------------------------------------------------------------------------------------------------- age


def oldest_day(db: sqlite3.Connection, before: float) -> tuple[int, int] | None:
    """Return (host, day) of the oldest sealed hours of a day that ended before a moment; None: there are none."""
    row = db.execute("SELECT MIN(hour) FROM sealed").fetchone()
    if row[0] is None or row[0] // DAY * DAY + DAY > before:
        return None
    (host,) = db.execute("SELECT host FROM sealed WHERE hour = ? LIMIT 1", row).fetchone()
    return int(host), int(row[0]) // DAY * DAY


def drop_old(db: sqlite3.Connection, *, rows: float, minutes: float, hours: float, users: float) -> None:
    """Drop what ended before the moments named (Unix s); rows become minutes elsewhere."""
    db.execute(
        "DELETE FROM boots WHERE newest_at < ? AND id NOT IN (SELECT boot FROM hot WHERE boot NOT NULL)", (rows,)
    )
    db.execute("DELETE FROM minutes WHERE day < ?", (minutes - DAY,))
    db.execute("DELETE FROM cluster_minutes WHERE minute < ?", (minutes,))
    db.execute("DELETE FROM hours WHERE day < ?", (hours - DAY,))
    db.execute("DELETE FROM events WHERE at < ?", (hours,))
    for table, moment in (("usage_hours", "hour"), ("user_hours", "hour"), ("uses", "hour")):
        db.execute(f"DELETE FROM {table} WHERE {moment} < ?", (users - HOUR,))  # noqa: S608 - names of ours
    for table in ("usage_days", "user_days"):
        db.execute(f"DELETE FROM {table} WHERE day < ?", (users - DAY,))  # noqa: S608 - names of ours
    db.execute("DELETE FROM holdings WHERE id NOT IN (SELECT holding FROM hot)")


def make_room(db: sqlite3.Connection, names: Names, now: float) -> bool:
    """Let go of the oldest and finest that there is; False: there is nothing left to let go."""
    found = oldest_day(db, now - HOUR)
    if found is not None:
        fold_day(db, names, *found)
        return True
    for table, moment, step in (
        *(
            ("minutes", "day", DAY),
            ("cluster_minutes", "minute", DAY),
            ("sealed", "hour", HOUR),
            ("uses", "hour", HOUR),
        ),
        ("hours", "day", DAY),
    ):
        (oldest,) = db.execute(f"SELECT MIN({moment}) FROM {table}").fetchone()  # noqa: S608 - names of ours
        if oldest is not None and (table != "cluster_minutes" or oldest < now - 2 * DAY):
            end = oldest // step * step + step  # an hour that stands alone has its own start
            db.execute(f"DELETE FROM {table} WHERE {moment} < ?", (end,))  # noqa: S608 - names of ours
            return True
    return False


def fold_day(db: sqlite3.Connection, names: Names, host: int, day: int) -> None:
    """Make minutes of a day of sealed hours of a host, and drop the hours."""
    (newest,) = db.execute("SELECT MAX(day) FROM hours WHERE host = ? AND day < ?", (host, day + DAY)).fetchone()
    if newest is not None and newest > day:  # no later hour of this host came
        _pack_hours(db, names, host, day)
    days: dict[tuple[GpuId, ...], Day] = {}
    for layout_id, blob in db.execute(
        "SELECT layout, rows FROM sealed WHERE host = ? AND hour >= ? AND hour < ? ORDER BY hour",
        (host, day, day + DAY),
    ).fetchall():
        layout = names.layout_of(layout_id)
        with suppress(StoreError):  # what is damaged is left out
            minutes = minutes_of(blob, layout, day)
            if layout.gpus in days:
                days[layout.gpus].extend(minutes)
            else:
                days[layout.gpus] = minutes
    for gpus, minutes in days.items():
        key = (host, day, names.layout(gpus))
        if db.execute("SELECT 1 FROM minutes WHERE host = ? AND day = ? AND layout = ?", key).fetchone():
            put_slots(db, names, "minutes", host, day, gpus, minutes.slots())  # rows of it came late
        else:
            db.execute("INSERT INTO minutes VALUES (?, ?, ?, ?)", (*key, pack_day(minutes, len(gpus))))
    db.execute("DELETE FROM sealed WHERE host = ? AND hour >= ? AND hour < ?", (host, day, day + DAY))
