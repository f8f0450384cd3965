"""History in a SQLite file: one thread writes, in groups of at most a second; any thread reads.

What can't be written (disk full, read-only, damage) waits in memory while there is room, is tried again every few
seconds, and `trouble` says why. What was committed is `durable_seq`; what was only taken is not.
"""

import contextlib
import json
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster_dash_server.history import late_numpy
from cluster_dash_server.history.boots import MOST_BOOTS, Boots
from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.history.seqs import Seqs
from cluster_dash_server.history.settled import Identity
from cluster_dash_server.history.sqlite import first_version, schema, unnaming
from cluster_dash_server.history.sqlite.opened import OpenHours
from cluster_dash_server.history.sqlite.questions import Reader
from cluster_dash_server.history.sqlite.sealing import (
    Names,
    Sums,
    drop_old,
    fold_day,
    hot_rows,
    make_room,
    oldest_day,
    seal,
)
from cluster_dash_server.store import (
    Event,
    EventQuery,
    Figures,
    KeptEvent,
    LastSeen,
    Series,
    SeriesQuery,
    StoreError,
    Unnamed,
    Usage,
    UsageQuery,
    Use,
    UseQuery,
)

log = logging.getLogger(__name__)

FILE = "history.db"
COMMIT_SECONDS = 0.5
"""How long rows wait for others before they are committed together."""
RETRY_SECONDS = 5.0
"""How long to wait after a failure before writing is tried again."""
WAITING_ROWS = 50_000
"""Rows that wait in memory at most, the newest (some 70 MB), while nothing can be written: moles hold the others."""
SEAL_AFTER_SECONDS = 60.0
"""An hour is sealed so long after its end, and after the last row of it came."""
SEALED_AT_ONCE = 6
"""So many hours of hosts are sealed together: about a tenth of `CHORE_SECONDS`."""
LATE_SECONDS = 5.0
"""An open hour is added up anew so long after the last row of it that came late: those of a backlog come together."""
START_SECONDS = 5.0
"""For how long after its start the server has the machine to itself."""
CHORE_SECONDS = 0.25
"""For how long at a time hours are sealed or let go: rows that come in wait meanwhile."""
ROOM = 0.95
"""From this share of its size on, the oldest is let go of."""
FREE_PAGES = 2_000
"""Free pages that a file may hold: 8 MB."""
ROOM_SECONDS = 2.0
"""For how long room is made for rows that would not find it."""
PRUNE_SECONDS = 3600.0
"""How often it is looked for what is too old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """For how long what is kept (seconds), and how large the file may become."""

    rows_seconds: float
    minutes_seconds: float
    hours_seconds: float
    users_seconds: float
    file_bytes: int


_Item = (
    tuple[Literal["figures"], Figures]
    | tuple[Literal["record", "retract"], KeptEvent]
    | tuple[Literal["forget"], str]
    | tuple[Literal["unname"], str, Callable[[LastSeen], LastSeen]]
)


class SqliteStore:
    """A `Store` and a `Ledger` in a file.

    Args:
        folder: where the file is, or will be.
        clock: Unix s.
        keep: for how long.
        last_seen: what the live view knows of hosts, asked for by the writing thread; None: nothing is kept of it.
        wal: whether the file system can hold a write-ahead log; one of a network cannot.
        first: the history of the first version, to be taken in once.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float],
        keep: Keep,
        last_seen: Callable[[Iterable[str]], Iterable[LastSeen]] | None = None,
        wal: bool = True,
        first: Path | None = None,
    ) -> None:
        self.path = folder / FILE
        self.trouble: str | None = None
        self.loss: str | None = None
        self._clock = clock
        self._keep = keep
        self._last_seen = last_seen
        self._wal = wal
        self._wake = threading.Condition()  # guards what follows
        self._queue: list[_Item] = []
        self._snapshots = Boots()
        self._unnamed: dict[str, Unnamed | str] = {}  # by user: how far it is, or why it goes no further
        self._ends = False
        self._flushes = 0
        self._flushed = 0
        self._suspect = False
        self._open = OpenHours()
        self._readers = threading.local()
        self._generation = 0
        # of the writing thread alone
        self._db: sqlite3.Connection | None = None
        self._names: Names | None = None
        self._doubted: tuple[float, Sequence[_Item], list[Figures]] | None = None  # what a failed COMMIT was to write
        self._boots: dict[tuple[str, str], int] = {}
        self._hot: dict[tuple[int, int], float] = {}
        self._left_over: set[tuple[int, int]] = set()
        self._late: dict[tuple[str, int], float] = {}
        self._sweeps: list[unnaming.Sweep] = []
        self._is_out = False  # the first sweep's name is out of the tables, not yet out of free pages and journal
        self._pruned_at = float("-inf")
        self._chores_from = time.monotonic() + START_SECONDS
        try:
            self._connect(())
            if first is not None:
                self._take_in_first_version(first)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------- taking

    def append(self, figures: Figures) -> None:
        """See `Store`."""
        with self._wake:
            boot_id, seq = figures.boot_id, figures.seq
            if boot_id is not None and seq is not None:
                has_room = len(self._queue) < WAITING_ROWS
                if not (has_room and self._snapshots.take(figures.host, boot_id, seq, figures.at)):
                    return
            self._put(("figures", figures))

    def record(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        with self._wake:
            self._put(("record", kept))

    def retract(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        with self._wake:
            self._put(("retract", kept))

    def forget(self, hosts: Iterable[str]) -> None:
        """See `Ledger`."""
        with self._wake:
            for host in hosts:
                self._put(("forget", host))

    def forget_user(self, user: str, strip: Callable[[LastSeen], LastSeen]) -> None:
        """See `Ledger`."""
        with self._wake:
            self._unnamed[user] = Unnamed(hosts_left=1, host_hours=0, events=0, snapshots=0)
            self._chores_from = 0.0
            self._put(("unname", user, strip))

    def unnamed(self, user: str) -> Unnamed | None:
        """See `Ledger`."""
        if self.trouble is not None:
            raise StoreError(self.trouble)
        with self._wake:
            told = self._unnamed.get(user)
        if isinstance(told, str):
            raise StoreError(told)
        return told

    def _put(self, item: _Item) -> None:
        self._queue.append(item)
        if len(self._queue) == 1:
            self._wake.notify_all()

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Store`."""
        with self._wake:
            return self._snapshots.knows(host, boot_id, seq)

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Store`."""
        with self._wake:
            return self._snapshots.last_from(host, boot_id, oldest_seq)

    def flush(self) -> None:
        """See `Store`."""
        with self._wake:
            self._flushes += 1
            mine = self._flushes
            self._wake.notify_all()
            while self._flushed < mine and self._thread.is_alive():
                self._wake.wait(0.1)
        if self.trouble is not None:
            raise StoreError(self.trouble)

    def close(self) -> None:
        """Write what waits, and end."""
        with self._wake:
            self._ends = True
            self._wake.notify_all()
        self._thread.join()

    # ------------------------------------------------------------------------------------------------- writing

    def _run(self) -> None:
        waiting: list[_Item] = []
        chores_left = True
        while True:
            with self._wake:
                if not chores_left and not waiting:
                    self._wake.wait_for(lambda: self._queue or self._is_asked(), 1.0)
                if self._queue and not waiting:
                    self._wake.wait_for(self._is_asked, COMMIT_SECONDS)
                flushes, ends = self._flushes, self._ends
                waiting += self._queue
                self._queue = []
            try:
                if self._db is None:
                    self._connect(waiting)
                    waiting = self._undone(waiting)
                self._make_room(time.monotonic() + ROOM_SECONDS, sum(map(_size, waiting)))
                self._write(waiting)
                waiting = []
                chores_left = False if ends else self._do_chores()
                self._say(None)
            except Exception as error:  # whatever it is: history must not end for good while the server lives
                if not isinstance(error, sqlite3.Error | OSError | schema.Damaged | StoreError):
                    log.exception("a fault in writing history")
                self._failed(error)
                waiting = self._let_go(waiting)
            with self._wake:
                self._flushed = max(self._flushed, flushes)
                self._wake.notify_all()
                if ends:
                    break
                if self.trouble is not None:
                    self._wake.wait_for(self._is_asked, RETRY_SECONDS)
        self._disconnect()

    def _is_asked(self) -> bool:
        """Say whether somebody waits for the writing thread."""
        return self._ends or self._flushed < self._flushes

    def _write(self, items: Sequence[_Item]) -> None:
        """Commit what was taken."""
        db, names = self._connection()
        rows: list[Figures] = []
        if not items:
            return
        oldest = self._clock() - self._keep.rows_seconds
        mark = float(secrets.randbits(53))  # the time would do, but for a clock that is set back
        self._doubted = mark, items, rows
        with _transaction(db):
            # so that the file itself says which group was the last: of a COMMIT that fails nobody else knows
            db.execute(
                "INSERT INTO done VALUES ('group', ?) ON CONFLICT (what) DO UPDATE SET at = excluded.at", (mark,)
            )
            settled: list[Figures] = []
            wishes: list[tuple[str, Callable[[LastSeen], LastSeen]]] = []
            for item in items:
                if item[0] == "figures":
                    settled.append(item[1])
                elif item[0] == "record":
                    _record(db, item[1])
                elif item[0] == "retract":
                    _retract(db, item[1])
                elif item[0] == "unname":
                    wishes.append((item[1], item[2]))
                else:
                    db.execute("DELETE FROM last WHERE host = ?", (item[1],))
                    db.execute("DELETE FROM events WHERE host = ?", (item[1],))
            boots = self._write_boots(db, names, settled)
            # what is older nobody keeps any more; its mole may let it go
            rows += [row for row in settled if row.at >= oldest]
            hot = [_hot_row(names, row, boots) for row in rows]
            db.executemany(
                "INSERT INTO hot (host, hour, at, boot, seq, layout, holding, figures) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                hot,
            )
            if self._last_seen is not None:
                db.executemany(
                    # in its place: to replace it would move it behind all others, and write twice the pages
                    "INSERT INTO last VALUES (?, ?, ?, ?, ?) ON CONFLICT (host) DO UPDATE SET "
                    "received_at = excluded.received_at, skew_seconds = excluded.skew_seconds, "
                    "packed = excluded.packed, known = excluded.known",
                    [
                        (last.host, last.received_at, last.skew_seconds, last.packed, last.known)
                        for last in self._last_seen({row.host for row in settled})
                    ],
                )
            begun = [self._begin_unnaming(db, *wish) for wish in wishes]
        self._doubted = None
        with self._wake:
            for row in settled:
                if row.boot_id is not None and row.seq is not None:
                    self._snapshots.write(row.host, row.boot_id, row.seq, row.at)
        self._hot.update(dict.fromkeys({each[:2] for each in hot}, time.monotonic()))
        self._count(rows)
        for sweep in begun:
            self._open.unname(sweep.user)
            self._sweeps = [each for each in self._sweeps if each.user != sweep.user] + [sweep]

    def _undone(self, waiting: list[_Item]) -> list[_Item]:
        """Return what is still to be written: a COMMIT that was said to have failed may have been done all the same."""
        if self._doubted is None:
            return waiting
        db, _ = self._connection()
        mark, items, rows = self._doubted
        found = db.execute("SELECT 1 FROM done WHERE what = 'group' AND at = ?", (mark,)).fetchone()
        self._doubted = None  # not before: where the file cannot be read either, it stays in doubt
        if found is None:
            return waiting
        self._count(rows)
        for item in items:
            if item[0] == "unname":
                self._open.unname(item[1])
        done = set(map(id, items))
        return [item for item in waiting if id(item) not in done]

    def _count(self, rows: Iterable[Figures]) -> None:
        """Add up rows that are in the file; a fault in it must not make them be written again."""
        try:
            late = self._open.take(rows)
        except Exception:  # whatever it is: the rows are in the file, and to write them again would double them
            log.exception("a fault in adding up the open hour: it lacks some rows until it is over")
            return
        self._late.update(dict.fromkeys(late, time.monotonic()))

    def _begin_unnaming(
        self, db: sqlite3.Connection, user: str, strip: Callable[[LastSeen], LastSeen]
    ) -> unnaming.Sweep:
        db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        return unnaming.begin(db, user, strip, self._clock())

    def _write_boots(
        self, db: sqlite3.Connection, names: Names, rows: Iterable[Figures]
    ) -> dict[tuple[str, str | None], int]:
        """Write which snapshots there will be, and return the ids of their boots, by host and boot_id."""
        ids: dict[tuple[str, str | None], int] = {}
        new: dict[int, tuple[Seqs, float]] = {}
        for row in rows:
            if row.boot_id is None or row.seq is None:
                continue
            found = ids.get((row.host, row.boot_id))
            if found is None:
                found = ids[row.host, row.boot_id] = self._boot(db, names, row.host, row.boot_id)
                with self._wake:
                    new[found] = self._snapshots.written(row.host, row.boot_id), row.at
            seqs, newest_at = new[found]
            seqs.add(row.seq)
            if row.at > newest_at:
                new[found] = seqs, row.at
        db.executemany(
            "UPDATE boots SET seqs = ?, newest_at = MAX(newest_at, ?) WHERE id = ?",
            [(json.dumps(seqs.ranges()), newest_at, boot) for boot, (seqs, newest_at) in new.items()],
        )
        return ids

    def _boot(self, db: sqlite3.Connection, names: Names, name: str, boot_id: str) -> int:
        """Return the id of a boot, made where there is none."""
        key = name, boot_id
        if (known := self._boots.get(key)) is not None:
            return known
        host = names.host(name)
        db.execute(
            "INSERT OR IGNORE INTO boots (host, boot_id, seqs, newest_at) VALUES (?, ?, '[]', 0)", (host, boot_id)
        )
        (found,) = db.execute("SELECT id FROM boots WHERE host = ? AND boot_id = ?", (host, boot_id)).fetchone()
        self._boots[key] = int(found)
        return int(found)

    # ------------------------------------------------------------------------------------------------- chores

    def _do_chores(self) -> bool:
        """Seal hours and let go of what is too old or too much, for a while; True: there is more to do."""
        until = time.monotonic() + CHORE_SECONDS
        if until < self._chores_from:
            return False
        late_numpy.load()  # here: who asks first would wait for it
        if self._suspect:
            self._look_through()
        if self._sweeps:  # no hour is sealed meanwhile: its rows would pass from where it comes to where it was
            return self._unname(until)
        self._add_late_rows(until)
        more = self._make_room(until) or self._seal_what_is_due(until)
        now = self._clock()
        if not more and now - self._pruned_at >= PRUNE_SECONDS:
            more = self._let_age(now, until)
        return more

    def _unname(self, until: float) -> bool:
        """Take a user's name out of hours for a while; True: there is more to do."""
        db, names = self._connection()
        sweep = self._sweeps[0]
        if sweep.hosts or not self._is_out:
            with _transaction(db):
                more = unnaming.go_on(db, names, sweep, until)
            if more:
                with self._wake:
                    self._unnamed[sweep.user] = sweep.told(is_done=False)
                return True
            self._is_out = True
        names.forget_holdings()
        self._generation += 1  # so that readers forget it, too
        db.execute("PRAGMA incremental_vacuum").fetchall()  # the free pages may hold what was there long ago
        (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:  # somebody reads: the journal holds the name as long
            return True
        db.execute("PRAGMA secure_delete = FAST")
        self._is_out = False
        self._sweeps.pop(0)
        with self._wake:
            self._unnamed[sweep.user] = sweep.told(is_done=True)
        return True

    def _add_late_rows(self, until: float) -> None:
        """Add up open hours anew of which rows came late, for a while: sums would lack them until the hour is over."""
        db, names = self._connection()
        quiet = time.monotonic() - LATE_SECONDS
        for (name, hour), last_at in list(self._late.items()):
            if last_at <= quiet:
                del self._late[name, hour]
                self._open.anew(name, hour, hot_rows(db, names, names.host(name), hour, name))
                if time.monotonic() >= until:
                    return

    def _seal_what_is_due(self, until: float) -> bool:
        now, quiet = self._clock(), time.monotonic() - SEAL_AFTER_SECONDS
        due = [
            (hour, host)
            for (host, hour), last_at in self._hot.items()
            if (hour + HOUR + SEAL_AFTER_SECONDS <= now and last_at <= quiet) or (host, hour) in self._left_over
        ]
        return self._seal(sorted(due), until) if due else False

    def _seal(self, due: Sequence[tuple[int, int]], until: float) -> bool:
        """Seal hours until a moment (of the monotonic clock), some at least; True: some are left."""
        db, names = self._connection()
        done: list[tuple[int, int]] = []
        with _transaction(db):
            sums = Sums(db)
            for first in range(0, len(due), SEALED_AT_ONCE):
                some = due[first : first + SEALED_AT_ONCE]
                seal(db, names, sums, some)
                done += some
                if time.monotonic() >= until:
                    break
            sums.write()
        for hour, host in done:
            self._hot.pop((host, hour), None)
            self._left_over.discard((host, hour))
            self._open.close(names.host_name(host), hour)
        return len(done) < len(due)

    def seal_all(self) -> None:
        """Seal all that is written, the open hours too."""
        self._chores_from = 0.0
        self.flush()
        while self._hot:
            with self._wake:
                self._left_over |= set(self._hot)
            self.flush()

    def _let_age(self, now: float, until: float) -> bool:
        """Turn rows that are too old into minutes, then drop what is too old altogether."""
        db, names = self._connection()
        keep = self._keep
        while (found := oldest_day(db, now - keep.rows_seconds)) is not None:
            with _transaction(db):
                fold_day(db, names, *found)
            if time.monotonic() >= until:
                return True
        with _transaction(db):
            drop_old(
                db,
                rows=now - keep.rows_seconds,
                minutes=now - keep.minutes_seconds,
                hours=now - keep.hours_seconds,
                users=now - keep.users_seconds,
            )
            db.execute(
                "DELETE FROM boots WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER "
                "(PARTITION BY host ORDER BY newest_at DESC) AS place FROM boots) WHERE place > ?) "
                "AND id NOT IN (SELECT boot FROM hot WHERE boot NOT NULL)",
                (MOST_BOOTS,),
            )
        with self._wake:
            self._snapshots.forget_before(now - keep.rows_seconds)
        names.forget_holdings()
        self._generation += 1  # ids of holdings are given anew: readers must not remember them
        self._boots.clear()
        self._pruned_at = now
        return False

    def _make_room(self, until: float, coming_bytes: int = 0) -> bool:
        """Let go of the oldest while the file is nearly as large as it may become; True: there is more to do."""
        db, names = self._connection()
        while self._used_bytes() + coming_bytes > ROOM * self._keep.file_bytes:
            with _transaction(db):
                if not make_room(db, names, self._clock()):
                    return False
            self._give_pages_back()
            if time.monotonic() >= until:
                return True
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        if free > FREE_PAGES:
            self._give_pages_back()
        return False

    def _used_bytes(self) -> int:
        db, _ = self._connection()
        (pages,), (free,), (size,) = (
            db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _give_pages_back(self) -> None:
        """Make the file smaller by what is free in it: some pages at a time, for it takes their weight in writing."""
        db, _ = self._connection()
        db.execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()

    def prune(self, now: float) -> None:
        """See `Store`."""
        self._pruned_at = float("-inf")
        self._chores_from = 0.0
        self.flush()

    # ------------------------------------------------------------------------------------------------- trouble

    def _say(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            if trouble is None:
                log.info("history is written again")
            else:
                log.error("history cannot be written: %s; the live view goes on", trouble)
            self.trouble = trouble

    def _failed(self, error: Exception) -> None:
        """Let go of the connection, and of the file where it is damaged."""
        self._disconnect()
        if schema.is_damage(error):
            try:
                aside = schema.set_aside(self.path, self._clock())
            except OSError as why_not:
                self._say(f"the file is damaged ({error}) and cannot be moved away: {why_not}")
                return
            self.loss = f"the file of history was damaged ({error}) and is now {aside.name}; a new one was begun"
            log.error("%s", self.loss)
            with self._wake:
                self._snapshots.begin_anew(())
            self._open = OpenHours()
            self._doubted = None
            # hours go by the numbers of hosts in that file
            self._hot.clear()
            self._left_over.clear()
            return
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
            self._suspect = True  # after a failed fsync nobody knows what the file holds
        self._say(str(error))

    def _look_through(self) -> None:
        """Check the whole file, after a reader or the disk said that something is wrong with it."""
        db, _ = self._connection()
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        self._suspect = False
        if verdict != "ok":
            raise schema.Damaged(verdict)

    def _let_go(self, waiting: list[_Item]) -> list[_Item]:
        """Keep what there is room for, the newest."""
        gone = waiting[:-WAITING_ROWS]
        with self._wake:
            for item in gone:
                if item[0] == "figures" and item[1].boot_id is not None and item[1].seq is not None:
                    self._snapshots.let_go([Identity(item[1].host, item[1].boot_id, item[1].seq)])
        return waiting[-WAITING_ROWS:]

    # ------------------------------------------------------------------------------------------------- the file

    def _connection(self) -> tuple[sqlite3.Connection, Names]:
        if self._db is None or self._names is None:
            raise StoreError("history: the file is not open")
        return self._db, self._names

    def _connect(self, waiting: Iterable[_Item]) -> None:
        """Open the file for writing, and read what this object must know of it.

        Args:
            waiting: what is to be written, beside the queue.

        Raises:
            StoreError: it is of a newer release, or no history of ours.
            sqlite3.Error: it cannot be written now.
            OSError: the same.
        """
        try:
            db = self._opened()
        except schema.Damaged as error:
            self._failed(error)
            db = self._opened()
        self._db, self._names = db, Names(db)
        found = db.execute(
            "SELECT name, boot_id, seqs, newest_at FROM boots JOIN hosts ON hosts.id = boots.host ORDER BY newest_at"
        )
        written = [
            (name, boot_id, [(first, last) for first, last in json.loads(seqs)], newest_at)
            for name, boot_id, seqs, newest_at in found
        ]
        with self._wake:
            self._snapshots.begin_anew(written)
            self._snapshots.let_go_unwritten()  # the file may have less than was written: that is to come again
            for item in (*waiting, *self._queue):
                if item[0] == "figures" and item[1].boot_id is not None and item[1].seq is not None:
                    self._snapshots.take(item[1].host, item[1].boot_id, item[1].seq, item[1].at)
        hot = db.execute("SELECT DISTINCT host, hour FROM hot").fetchall()
        for host, hour in hot:
            self._hot.setdefault((host, hour), 0.0)
        self._sweeps, self._is_out = unnaming.pending(db), False
        if self._sweeps:
            db.execute("PRAGMA secure_delete = ON")
        self._tell_who_is_unnamed(waiting)
        if not self._generation:  # rows of before a restart: nothing else has added them up
            self._left_over = {(host, hour) for host, hour in hot}
        self._generation += 1

    def _tell_who_is_unnamed(self, waiting: Iterable[_Item]) -> None:
        """Go by what the file knows of it: where a wish went with what the file lost, who waits for it hears so."""
        with self._wake:
            going_on = {item[1] for item in (*waiting, *self._queue) if item[0] == "unname"}
            for sweep in self._sweeps:
                self._unnamed[sweep.user] = sweep.told(is_done=False)
                going_on.add(sweep.user)
            for user, told in self._unnamed.items():
                if user not in going_on and isinstance(told, Unnamed) and told.hosts_left:
                    why = self.loss or "writing to it failed"
                    self._unnamed[user] = f"{why}, before the name was out of all that the file held"

    def _opened(self) -> sqlite3.Connection:
        return schema.opened(self.path, wal=self._wal, file_bytes=self._keep.file_bytes)

    def _disconnect(self) -> None:
        db, self._db, self._names = self._db, None, None
        self._boots.clear()
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with contextlib.suppress(sqlite3.Error):
                db.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._suspect = self._suspect or schema.is_damage(error)
            raise StoreError(f"history cannot be read: {error}") from error

    def _reader(self) -> Reader:
        """Return a reader of this thread."""
        if getattr(self._readers, "generation", None) != self._generation:
            self._readers.generation = self._generation
            db = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=5, isolation_level=None)
            self._readers.reader = Reader(db, self._open)
        reader: Reader = self._readers.reader
        return reader

    def _take_in_first_version(self, file: Path) -> None:
        """Take in what the first version kept, once; a file that cannot be read is let be, and said."""
        db, names = self._connection()
        if db.execute("SELECT 1 FROM done WHERE what = ?", (first_version.DONE,)).fetchone():
            return
        try:
            rows = first_version.read(file)
        except sqlite3.Error as error:
            log.warning("%s: the history of the first version cannot be read: %s", file, error)
            return
        with _transaction(db):
            first_version.take_in(db, names, rows)
        log.info("%s: %d rows of the first version's history were taken in", file, len(rows))

    # ------------------------------------------------------------------------------------------- after a restart

    def last_seen(self) -> list[LastSeen]:
        """Return the newest snapshot of each host."""
        with self._reading():
            return [
                LastSeen(host=host, received_at=received_at, skew_seconds=skew_seconds, packed=packed, known=known)
                for host, received_at, skew_seconds, packed, known in self._reader().last_seen()
            ]

    def kept_events(self, most: int = 20_000) -> list[KeptEvent]:
        """Return the newest events, oldest first."""
        with self._reading():
            return self._reader().kept_events(most)

    # ------------------------------------------------------------------------------------------------- asking

    def series(self, ask: SeriesQuery) -> list[Series]:
        """See `Store`."""
        with self._reading():
            return self._reader().series(ask, self._clock())

    def moment(self, at: float, silent_seconds: float = 600) -> list[Figures]:
        """See `Store`."""
        with self._reading():
            return self._reader().moment(at, silent_seconds)

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger`."""
        with self._reading():
            return self._reader().events(ask)

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger`."""
        with self._reading():
            return self._reader().uses(ask)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger`."""
        with self._reading():
            return self._reader().usage(ask)


def _hot_row(
    names: Names, row: Figures, boots: Mapping[tuple[str, str | None], int]
) -> tuple[int, int, float, int | None, int | None, int, int, bytes]:
    """Return a row as the table `hot` has it; from now on its GPUs and holders are one object with equal ones."""
    host, layout, holding = names.numbers(row)
    boot, figures = boots.get((row.host, row.boot_id)), row.values.tobytes() + row.holder_mem.tobytes()
    return host, int(row.at // HOUR) * HOUR, row.at, boot, row.seq, layout, holding, figures


def _size(item: _Item) -> int:
    """Return about how many bytes something takes in the file."""
    return 100 + 5 * len(item[1].values) if item[0] == "figures" else 300


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # raised again: whatever ends it, half of it must not stand
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _record(db: sqlite3.Connection, kept: KeptEvent) -> None:
    event = kept.event
    db.execute(
        "INSERT INTO events (at, host, gpu, kind, code, text, told, boot_id, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(event.at, event.host, json.dumps(event.gpu), event.kind, json.dumps(event.code), event.text, kept.told),
            *((None, None) if kept.source is None else kept.source),
        ),
    )


def _retract(db: sqlite3.Connection, kept: KeptEvent) -> None:
    event = kept.event
    db.execute(
        "DELETE FROM events WHERE id = (SELECT id FROM events WHERE at = ? AND host = ? AND gpu = ? AND kind = ? "
        "AND told = ? LIMIT 1)",
        (event.at, event.host, json.dumps(event.gpu), event.kind, kept.told),
    )
