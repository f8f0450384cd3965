"""History moved from the file of one server to the engines of replicas, and back: an hour at a time, oldest first.

What is moved as it came: figures, with who had which GPU, of as many days as `rows_days` keeps; GPU-hours, who had
which GPU and events of all time. Of figures that the file has as minutes or hours only, the means are moved.
"""

import json
import math
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from cluster_dash_server.history.chunks import Slots
from cluster_dash_server.history.postgresql.adding import HostHour
from cluster_dash_server.history.postgresql.answers import EVENT, kept_of
from cluster_dash_server.history.postgresql.ledger import PostgresqlLedger
from cluster_dash_server.history.postgresql.numbered import USAGE, Names
from cluster_dash_server.history.remote.store import RemoteStore
from cluster_dash_server.history.rollups import DAY, HOUR, Share, cluster_figures, whole_minutes
from cluster_dash_server.history.sqlite.sealing import Names as NamesOfFile
from cluster_dash_server.history.sqlite.sealing import hot_rows, sealed_rows
from cluster_dash_server.history.sqlite.store import FILE, SqliteStore
from cluster_dash_server.postgresql import Database
from cluster_dash_server.store import CLUSTER_METRICS, Event, Figures, KeptEvent, StoreError

ROWS_AT_ONCE = 2_000


class Marks(Protocol):
    """What was moved already, so that a move that was stopped goes on."""

    def __contains__(self, part: str) -> bool: ...

    def add(self, part: str) -> None:
        """Note a part as moved."""


class Moved(NamedTuple):
    """A part that was moved: what it is, how many of how many parts are done, and how many rows it had."""

    what: str
    done: int
    parts: int
    rows: int


# ----------------------------------------------------------------------------------------- the file to the engines


def to_engines(
    folder: Path, store: RemoteStore, ledger: PostgresqlLedger, oldest: float, marks: Marks
) -> Iterator[Moved]:
    """Move the history of a data folder, and tell of each part.

    Args:
        folder: the data folder; no server has it.
        store: the engine; its minutes are made of what the ledger adds up.
        ledger: the database; it leads.
        oldest: rows of before (Unix s) are not kept there.
        marks: what was moved.

    Raises:
        StoreError: something cannot be read or written; the next time goes on there.
    """
    with closing(sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True, timeout=30)) as db:
        try:
            yield from _to_engines(db, store, ledger, oldest, marks)
        except sqlite3.Error as error:
            raise StoreError(f"{folder / FILE}: cannot be read: {error}") from error


def _to_engines(
    db: sqlite3.Connection, store: RemoteStore, ledger: PostgresqlLedger, oldest: float, marks: Marks
) -> Iterator[Moved]:
    names = NamesOfFile(db)
    hosts: dict[int, str] = dict(db.execute("SELECT id, name FROM hosts").fetchall())
    with_rows = {hour for (hour,) in db.execute("SELECT hour FROM sealed UNION SELECT hour FROM hot")}
    raw = sorted(hour for hour in with_rows if hour >= oldest)
    added_up = [hour for (hour,) in db.execute("SELECT DISTINCT hour FROM usage_hours") if hour not in set(raw)]
    found = db.execute("SELECT day FROM minutes UNION SELECT day FROM hours")
    days = sorted({begin // DAY * DAY for (begin,) in found})  # of the newest day each hour stands alone
    parts: list[tuple[str, Callable[[], int]]] = []
    for hour in sorted(added_up):
        parts.append((f"GPU-hours of {hour}", partial(_put_hour, db, hosts, ledger, hour)))
    for day in days:
        parts.append((f"minutes of {day}", partial(_put_day, db, names, hosts, store, day, with_rows)))
    parts += [
        ("older sums", partial(_put_cluster, db, store, set(raw))),
        ("events", partial(_put_events, db, ledger)),
    ]
    for hour in raw:
        parts.append((f"rows of {hour}", partial(_put_rows, db, names, hosts, store, ledger, hour)))
    yield from _done(parts, marks)


def _done(parts: Sequence[tuple[str, Callable[[], int]]], marks: Marks) -> Iterator[Moved]:
    for place, (what, move) in enumerate(parts, 1):
        if what not in marks:
            rows = move()
            marks.add(what)
            yield Moved(what, place, len(parts), rows)


def _put_rows(
    db: sqlite3.Connection,
    names: NamesOfFile,
    hosts: dict[int, str],
    store: RemoteStore,
    ledger: PostgresqlLedger,
    hour: int,
) -> int:
    count = 0
    for host, name in hosts.items():
        for row in (*sealed_rows(db, names, host, hour, name), *hot_rows(db, names, host, hour, name)):
            store.append(row)
            ledger.append(row)
            count += 1
            if count % ROWS_AT_ONCE == 0:  # neither takes more than it has room for
                store.flush()
                ledger.write()
    ledger.flush()  # adds the hour up, and gives it to the store for the minutes of the cluster
    store.flush()
    return count


def _put_hour(db: sqlite3.Connection, hosts: dict[int, str], ledger: PostgresqlLedger, hour: int) -> int:
    usage: dict[str, dict[tuple[str, str], Share]] = {}
    for host, user, model, *share in db.execute(
        "SELECT host, user, model, held, busy, idle, allocated, util, seen FROM usage_hours WHERE hour = ?", (hour,)
    ):
        usage.setdefault(hosts[host], {})[user, model] = tuple(share)
    held = {hosts[host]: blob for host, blob in db.execute("SELECT host, stretches FROM uses WHERE hour = ?", (hour,))}
    ledger.put_hour(hour, {name: HostHour(of, held.get(name)) for name, of in usage.items()})
    return len(usage)


def _put_day(
    db: sqlite3.Connection,
    names: NamesOfFile,
    hosts: dict[int, str],
    store: RemoteStore,
    day: int,
    with_rows: set[int],
) -> int:
    """Move the means of minutes, and of hours where there are not even those; rows as they came are moved elsewhere."""
    count = 0
    for host, name in hosts.items():
        finer = {hour for hour in range(day, day + DAY, HOUR) if hour in with_rows}
        for table, seconds in (("minutes", 60), ("hours", HOUR)):
            told = set()
            for begin, layout, blob in db.execute(
                f"SELECT day, layout, slots FROM {table} WHERE host = ? AND day >= ? AND day < ?",  # noqa: S608 - names of ours
                (host, day, day + DAY),
            ):
                of = names.layout_of(layout)
                for place, slot in Slots(blob, of).slots().items():
                    at = begin + place * seconds
                    told.add(at // HOUR * HOUR)
                    if at // HOUR * HOUR not in finer:
                        store.append(_figures(name, at, of.gpus, array("f", slot.mean.tobytes())))
                        count += 1
                        if count % ROWS_AT_ONCE == 0:
                            store.flush()
            finer |= told
    store.flush()
    return count


def _figures(name: str, at: float, gpus: tuple[object, ...], values: "array[float]") -> Figures:
    return Figures(
        host=name,
        at=at,
        boot_id=None,
        seq=None,
        oldest_seq=None,
        gpus=gpus,  # type: ignore[arg-type]
        values=values,
        holders=(),
        holder_mem=array("f"),
    )


def _put_cluster(db: sqlite3.Connection, store: RemoteStore, raw: set[int]) -> int:
    """Move what was added up of the cluster and of models, where no rows are left that it could be made of."""
    count = 0
    told: set[int] = set()
    for (hour,) in db.execute("SELECT DISTINCT minute / 3600 * 3600 FROM cluster_minutes").fetchall():
        told.add(hour)
        if hour in raw:
            continue
        minutes = {
            (minute, model): tuple(array("d", share))
            for minute, model, share in db.execute(
                "SELECT minute, model, share FROM cluster_minutes WHERE minute >= ? AND minute < ?", (hour, hour + HOUR)
            )
        }
        store.put_minutes(
            (minute, model, cluster_figures(share, 60)) for minute, model, share in whole_minutes(minutes)
        )
        count += len(minutes)
        store.flush()
    for hour, model, blob in db.execute("SELECT hour, model, figures FROM cluster_hours ORDER BY hour").fetchall():
        if hour not in told and hour not in raw:
            means = array("d", blob)[2 : 4 * len(CLUSTER_METRICS) : 4]
            store.put_minutes([(hour, model, [None if math.isnan(mean) else mean for mean in means])])
            count += 1
            if count % ROWS_AT_ONCE == 0:
                store.flush()
    store.flush()
    return count


def _put_events(db: sqlite3.Connection, ledger: PostgresqlLedger) -> int:
    count = 0
    for at, host, gpu, kind, code, text, told, boot_id, seq in db.execute(f"SELECT {EVENT} FROM events ORDER BY id"):  # noqa: S608 - names of ours
        event = Event(at=at, host=host, gpu=json.loads(gpu), kind=kind, code=json.loads(code), text=text)
        ledger.record(KeptEvent(event, bool(told), None if boot_id is None else (boot_id, seq)))
        count += 1
        if count % ROWS_AT_ONCE == 0:
            ledger.flush()
    ledger.flush()
    return count


# ----------------------------------------------------------------------------------------- the engines to the file


def to_file(database: Database, store: RemoteStore, file: SqliteStore, marks: Marks) -> Iterator[Moved]:
    """Move the history of replicas into the file of one server, and tell of each part.

    Args:
        database: what they shared.
        store: the engine.
        file: an open file, which is closed at the end.
        marks: what was moved.

    Raises:
        StoreError: something cannot be read or written; the next time goes on there.
    """
    names = Names(database)
    with database.reading() as db:
        (times,) = db.execute("SELECT times FROM forgotten").fetchone()
        pieces = db.execute("SELECT DISTINCT hour, part FROM pieces ORDER BY hour, part").fetchall()
        raw = {hour for hour, _ in pieces}
        added_up = [hour for (hour,) in db.execute("SELECT DISTINCT hour FROM usage_hours") if hour not in raw]
        days = [day for (day,) in db.execute("SELECT DISTINCT day FROM usage_days ORDER BY day")]
    names.begin_anew(times)
    parts: list[tuple[str, Callable[[], int]]] = [("events", partial(_take_events, database, file))]
    for hour, part in pieces:
        parts.append(
            (
                f"rows of {hour} {part}",
                partial(_take_rows, database, names, store, file, hour, part),
            )
        )
    parts.append(("sealing", partial(_seal, file)))
    yield from _done(parts, marks)
    file.close()
    with closing(sqlite3.connect(file.path, timeout=30, isolation_level=None)) as db:
        more: list[tuple[str, Callable[[], int]]] = [
            (f"GPU-hours of {hour}", partial(_take_hour, database, db, hour)) for hour in sorted(added_up)
        ]
        more.append(("days", partial(_add_up_days, db, days)))
        yield from _done(more, marks)


def _take_rows(database: Database, names: Names, store: RemoteStore, file: SqliteStore, hour: int, part: int) -> int:
    with database.reading() as db:
        found = db.execute("SELECT body FROM pieces WHERE hour = ? AND part = ?", (hour, part)).fetchall()
    whole = names.hour(bytes(body) for (body,) in found)
    count = 0
    for host in whole.hosts():
        rows = whole.rows(host, names.host(host))
        store.fill(rows)
        for row in rows:
            row.boot_id = None if row.boot_id is None else names.boot(int(row.boot_id))
            file.append(row)
        count += len(rows)
        file.flush()
    return count


def _seal(file: SqliteStore) -> int:
    file.seal_all()
    return 0


def _take_events(database: Database, file: SqliteStore) -> int:
    with database.reading() as db:
        found = db.execute(f"SELECT {EVENT} FROM events WHERE NOT is_gone ORDER BY id").fetchall()  # noqa: S608 - names of ours
    for row in found:
        file.record(kept_of(row))
    file.flush()
    return len(found)


def _take_hour(database: Database, db: sqlite3.Connection, hour: int) -> int:
    with database.reading() as there:
        usage = there.execute(
            f'SELECT name, "user", model, {USAGE} FROM usage_hours JOIN hosts ON hosts.id = host WHERE hour = ?',  # noqa: S608 - names of ours
            (hour,),
        ).fetchall()
        held = there.execute(
            "SELECT name, stretches FROM uses JOIN hosts ON hosts.id = host WHERE hour = ?", (hour,)
        ).fetchall()
    names = NamesOfFile(db)
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM usage_hours WHERE hour = ?", (hour,))
    db.executemany(
        "INSERT INTO usage_hours (hour, host, user, model, held, busy, idle, allocated, util, seen) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
        [(hour, names.host(name), *rest) for name, *rest in usage],
    )
    db.executemany(
        "INSERT OR REPLACE INTO uses (host, hour, stretches) VALUES (?, ?, ?)",
        [(names.host(name), hour, bytes(blob)) for name, blob in held],
    )
    db.execute("DELETE FROM user_hours WHERE hour = ?", (hour,))
    db.execute(
        f"INSERT INTO user_hours SELECT hour, user, model, {_SUMS} FROM usage_hours "  # noqa: S608 - names of ours
        "WHERE hour = ? GROUP BY user, model",
        (hour,),
    )
    db.execute("COMMIT")
    return len(usage)


def _add_up_days(db: sqlite3.Connection, days: Iterable[int]) -> int:
    """Add days up anew: some of their hours came as rows, and others added up."""
    for day in days:
        db.execute("BEGIN IMMEDIATE")
        for table, hours, key in (("usage_days", "usage_hours", "host, "), ("user_days", "user_hours", "")):
            db.execute(f"DELETE FROM {table} WHERE day = ?", (day,))  # noqa: S608 - names of ours
            db.execute(
                f"INSERT INTO {table} SELECT ?, {key}user, model, {_SUMS} FROM {hours} "  # noqa: S608 - names of ours
                f"WHERE hour >= ? AND hour < ? GROUP BY {key}user, model",
                (day, day, day + DAY),
            )
        db.execute("COMMIT")
    return 0


_SUMS = ", ".join(f"SUM({name})" for name in ("held", "busy", "idle", "allocated", "util", "seen"))
