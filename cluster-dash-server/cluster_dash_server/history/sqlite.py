"""History in a SQLite file: one thread writes, in groups of at most a second; any thread reads.

What can't be written (disk full, read-only, damage) waits in memory while there is room, is tried again every few
seconds, and `trouble` says why. What was committed is `durable_seq`; what was only taken is not.
"""

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster_dash_server.history import schema
from cluster_dash_server.history.opened import OpenHours
from cluster_dash_server.history.questions import Reader
from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.history.sealing import Names, Sums, seal
from cluster_dash_server.history.seqs import Seqs
from cluster_dash_server.store import (
    Event,
    EventQuery,
    Figures,
    KeptEvent,
    LastSeen,
    Series,
    SeriesQuery,
    StoreError,
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
WAITING_BYTES = 64 * 2**20
"""How much waits in memory while nothing can be written; beyond, the oldest is let go: its mole still holds it."""
SEAL_AFTER_SECONDS = 60.0
"""An hour is sealed so long after its end, and after the last row of it came."""
SEALS_AT_ONCE = 20
"""Host-hours in a transaction of the sealing: more would keep rows that come in waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """For how long what is kept (seconds), and how large the file may become."""

    rows_seconds: float
    minutes_seconds: float
    hours_seconds: float
    users_seconds: float
    file_bytes: int


_Item = (
    tuple[Literal["figures"], Figures] | tuple[Literal["record", "retract"], KeptEvent] | tuple[Literal["forget"], str]
)


class SqliteStore:
    """A `Store` and a `Ledger` in a file.

    Args:
        folder: where the file is, or will be.
        clock: Unix s.
        keep: for how long.
        last_seen: what the live view knows of hosts, asked for by the writing thread; None: nothing is kept of it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float],
        keep: Keep,
        last_seen: Callable[[Iterable[str]], Iterable[LastSeen]] | None = None,
    ) -> None:
        self.path = folder / FILE
        self.trouble: str | None = None
        self._clock = clock
        self._keep = keep
        self._last_seen = last_seen
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0
        self._wake = threading.Condition()
        self._taken: dict[tuple[str, str], Seqs] = {}
        self._written: dict[tuple[str, str], Seqs] = {}
        self._ends = False
        self._flushes = 0
        self._flushed = 0
        self._hot: dict[tuple[int, int], float] = {}
        self._open = OpenHours()
        self._db: sqlite3.Connection | None = None
        self._names: Names | None = None
        self._boots: dict[tuple[str, str], int] = {}
        self._readers = threading.local()
        self._generation = 0
        self._pruned_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._connect()
        self._thread.start()

    # ------------------------------------------------------------------------------------------------- taking

    def append(self, figures: Figures) -> None:
        """See `Store`."""
        with self._wake:
            if figures.boot_id is not None and figures.seq is not None:
                key = (figures.host, figures.boot_id)
                seqs = self._taken.get(key)
                if seqs is None:
                    seqs = self._taken[key] = Seqs()
                if not seqs.add(figures.seq):
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

    def _put(self, item: _Item) -> None:
        self._queue.append(item)
        if len(self._queue) == 1:
            self._wake.notify_all()

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Store`."""
        seqs = self._taken.get((host, boot_id))
        if seqs is None:
            return False
        with self._wake:
            return seq in seqs

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Store`."""
        seqs = self._written.get((host, boot_id))
        if seqs is None:
            return None
        with self._wake:
            return seqs.last_from(oldest_seq)

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
        while True:
            with self._wake:
                while not self._queue and not waiting and not self._ends and self._flushed == self._flushes:
                    self._wake.wait(1.0)
                    if not self._queue and self._flushed == self._flushes:
                        break
                if not self._ends and self._flushed == self._flushes and (self._queue or waiting):
                    self._wake.wait_for(lambda: self._ends or self._flushed < self._flushes, COMMIT_SECONDS)
                flushes, ends = self._flushes, self._ends
                waiting += self._queue
                self._queue.clear()
            try:
                if self._db is None:
                    self._connect()
                self._write(waiting)
                waiting = []
                self._seal_what_is_due()
                self._say(None)
            except (sqlite3.Error, OSError, StoreError) as error:
                self._failed(error)
                waiting = self._let_go(waiting)
            with self._wake:
                self._flushed = max(self._flushed, flushes)
                self._wake.notify_all()
                if ends:
                    break
                if self.trouble is not None:
                    self._wake.wait_for(lambda: self._ends or self._flushed < self._flushes, RETRY_SECONDS)
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()

    def _write(self, items: Sequence[_Item]) -> None:
        """Commit what was taken."""
        db, names = self._connection()
        rows: list[Figures] = []
        if not items:
            return
        oldest = self._clock() - self._keep.rows_seconds
        with _transaction(db):
            hot: list[tuple[object, ...]] = []
            new: dict[tuple[str, str], tuple[Seqs, float]] = {}
            settled: list[Figures] = []
            for item in items:
                if item[0] == "figures":
                    row = item[1]
                    settled.append(row)
                    if row.at < oldest:
                        continue  # nobody keeps it any more; its mole may let it go
                    rows.append(row)
                    boot = self._boot(db, names, row)
                    hour = int(row.at // HOUR) * HOUR
                    hot.append(
                        (
                            *(names.host(row.host), hour, row.at, boot, row.seq, names.layout(row.gpus)),
                            *(names.holding(row.holders), row.values.tobytes() + row.holder_mem.tobytes()),
                        )
                    )
                elif item[0] == "record":
                    _record(db, item[1])
                elif item[0] == "retract":
                    _retract(db, item[1])
                else:
                    db.execute("DELETE FROM last WHERE host = ?", (item[1],))
                    db.execute("DELETE FROM events WHERE host = ?", (item[1],))
            db.executemany(
                "INSERT INTO hot (host, hour, at, boot, seq, layout, holding, figures) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                hot,
            )
            for row in settled:
                if row.boot_id is not None and row.seq is not None:
                    key = (row.host, row.boot_id)
                    if key not in new:
                        written = self._written.get(key)
                        new[key] = (Seqs(written.ranges() if written else ()), row.at)
                    new[key][0].add(row.seq)
                    new[key] = (new[key][0], max(new[key][1], row.at))
            for key, (seqs, newest_at) in new.items():
                boot_row = self._boots.get(key)
                if boot_row is None:
                    boot_row = self._make_boot(db, names, key)
                db.execute(
                    "UPDATE boots SET seqs = ?, newest_at = MAX(newest_at, ?) WHERE id = ?",
                    (json.dumps(seqs.ranges()), newest_at, boot_row),
                )
            if self._last_seen is not None:
                db.executemany(
                    "INSERT OR REPLACE INTO last VALUES (?, ?, ?, ?, ?)",
                    [
                        (last.host, last.received_at, last.skew_seconds, last.packed, last.known)
                        for last in self._last_seen({row.host for row in settled})
                    ],
                )
        with self._wake:
            for key, (seqs, _) in new.items():
                self._written[key] = seqs
        now = time.monotonic()
        for each in hot:
            self._hot[each[0], each[1]] = now  # type: ignore[index]
        self._open.take(rows)

    def _boot(self, db: sqlite3.Connection, names: Names, row: Figures) -> int | None:
        if row.boot_id is None:
            return None
        key = (row.host, row.boot_id)
        found = self._boots.get(key)
        return self._make_boot(db, names, key) if found is None else found

    def _make_boot(self, db: sqlite3.Connection, names: Names, key: tuple[str, str]) -> int:
        name, boot_id = key
        host = names.host(name)
        db.execute(
            "INSERT OR IGNORE INTO boots (host, boot_id, seqs, newest_at) VALUES (?, ?, '[]', 0)", (host, boot_id)
        )
        (found,) = db.execute("SELECT id FROM boots WHERE host = ? AND boot_id = ?", (host, boot_id)).fetchone()
        self._boots[key] = int(found)
        return int(found)

    def _seal_what_is_due(self) -> None:
        """Seal some of the hours that have ended."""
        now, quiet = self._clock(), time.monotonic() - SEAL_AFTER_SECONDS
        due = [
            (hour, host)
            for (host, hour), last_at in self._hot.items()
            if hour + HOUR + SEAL_AFTER_SECONDS <= now and last_at <= quiet
        ]
        self._seal(sorted(due)[:SEALS_AT_ONCE])

    def _seal(self, due: Sequence[tuple[int, int]]) -> None:
        if not due:
            return
        db, names = self._connection()
        with _transaction(db):
            sums = Sums(db)
            for hour, host in due:
                seal(db, names, sums, host, hour)
            sums.write()
        for hour, host in due:
            self._hot.pop((host, hour), None)
            self._open.close(names.host_name(host), hour)

    def seal_all(self) -> None:
        """Seal all that is written, the open hours too; for tests and benchmarks, beside no other call."""
        self.flush()
        while self._hot:
            self._seal(sorted((hour, host) for host, hour in self._hot)[:SEALS_AT_ONCE])

    # ------------------------------------------------------------------------------------------------- trouble

    def _say(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            if trouble is None:
                log.info("history is written again")
            else:
                log.error("history cannot be written: %s; the live view goes on", trouble)
            self.trouble = trouble

    def _failed(self, error: Exception) -> None:
        self._say(str(error))
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self._db = self._names = None
        self._boots.clear()

    def _let_go(self, waiting: list[_Item]) -> list[_Item]:
        """Keep what there is room for, the newest."""
        size, kept = 0, len(waiting)
        while kept and size < WAITING_BYTES:
            kept -= 1
            item = waiting[kept]
            size += 2_000 + 4 * len(item[1].values) if item[0] == "figures" else 500
        with self._wake:
            for item in waiting[:kept]:
                if item[0] == "figures" and item[1].boot_id is not None and item[1].seq is not None:
                    self._taken[item[1].host, item[1].boot_id].discard(item[1].seq)
        return waiting[kept:]

    # ------------------------------------------------------------------------------------------------- the file

    def _connection(self) -> tuple[sqlite3.Connection, Names]:
        if self._db is None or self._names is None:
            raise StoreError("history: the file is not open")
        return self._db, self._names

    def _connect(self) -> None:
        """Open the file for writing, and read what this object must know of it."""
        db = sqlite3.connect(self.path, timeout=5, isolation_level=None, check_same_thread=False, cached_statements=256)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.executescript(f"BEGIN; {schema.TABLES} PRAGMA user_version = {schema.VERSION}; COMMIT;")
        self._db, self._names = db, Names(db)
        written = {}
        for name, boot_id, seqs in db.execute(
            "SELECT name, boot_id, seqs FROM boots JOIN hosts ON hosts.id = boots.host"
        ):
            written[name, boot_id] = Seqs(tuple(each) for each in json.loads(seqs))
        with self._wake:
            for key, seqs in written.items():
                self._written[key] = seqs
                self._taken.setdefault(key, Seqs(seqs.ranges()))
        self._hot = dict.fromkeys(db.execute("SELECT DISTINCT host, hour FROM hot"), 0.0)
        self._generation += 1

    def _reader(self) -> Reader:
        """Return a reader of this thread."""
        if getattr(self._readers, "generation", None) != self._generation:
            self._readers.generation = self._generation
            db = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=5, isolation_level=None)
            self._readers.reader = Reader(db, self._open)
        reader: Reader = self._readers.reader
        return reader

    # ------------------------------------------------------------------------------------------- after a restart

    def last_seen(self) -> list[LastSeen]:
        """Return the newest snapshot of each host."""
        with _reading():
            return [
                LastSeen(host=host, received_at=received_at, skew_seconds=skew_seconds, packed=packed, known=known)
                for host, received_at, skew_seconds, packed, known in self._reader().last_seen()
            ]

    def kept_events(self, most: int = 20_000) -> list[KeptEvent]:
        """Return the newest events, oldest first."""
        with _reading():
            return self._reader().kept_events(most)

    # ------------------------------------------------------------------------------------------------- asking

    def series(self, ask: SeriesQuery) -> list[Series]:
        """See `Store`."""
        with _reading():
            return self._reader().series(ask, self._clock())

    def moment(self, at: float, silent_seconds: float = 600) -> list[Figures]:
        """See `Store`."""
        with _reading():
            return self._reader().moment(at, silent_seconds)

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger`."""
        with _reading():
            return self._reader().events(ask)

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger`."""
        with _reading():
            return self._reader().uses(ask)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger`."""
        with _reading():
            return self._reader().usage(ask)

    def prune(self, now: float) -> None:
        """See `Store`."""


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"history cannot be read: {error}") from error


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
