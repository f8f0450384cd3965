"""Events, who had which GPU, and GPU-hours in PostgreSQL, for replicas that each see a part of the posts.

Each replica puts the rows that it took into *pieces* (`segments`), and a snapshot is durable here once its piece is
committed. One of them, the leader, reads the pieces of all: what the running hour adds up to is written every half
minute, and an hour that is over is made of all of its rows at once, by the same pure functions as in the file of one
server, and anew whenever rows of it come late. So it matters neither in which order rows come, nor how often, nor to
whom; a leader that was asleep can do no harm, for an hour is written only in the place of the very pieces it was made
of.
"""

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster_dash_server.history.boots import Boots
from cluster_dash_server.history.postgresql.adding import HostHour, Retention, Sum
from cluster_dash_server.history.postgresql.answers import EVENT, Asking, Questions, kept_of
from cluster_dash_server.history.postgresql.numbered import PART, SCHEMA, Names, part_of
from cluster_dash_server.history.postgresql.segments import Row, packed
from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.history.settled import Identity
from cluster_dash_server.postgresql import Database, PostgresqlError, Statements
from cluster_dash_server.privacy import unnamed
from cluster_dash_server.store import (
    Event,
    EventQuery,
    Figures,
    Heard,
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

FLUSH_SECONDS = 1.0
ROWS_SECONDS = 5.0
"""How long rows wait for others: the engine takes longer to settle their figures."""
RETRY_SECONDS = 2.0
ADD_UP_SECONDS = 20.0
"""How often the leader looks for new rows."""
HEAR_SECONDS = 3.0
"""How often it is asked what other replicas heard."""
KEPT_EVENTS = 20_000
MOST_ROW_BYTES = 64 * 2**20
"""Rows that wait here at most; of those that find no room, moles keep the snapshots."""
MOST_NOTES = 10_000
"""Events and wishes that wait at most; then posts are refused, for nobody else keeps these."""
OVERLAP_SECONDS = 30
"""A transaction that began so long ago may still be committed."""

_Item = (
    tuple[Literal["record", "retract"], KeptEvent, bytes]
    | tuple[Literal["forget"], str]
    | tuple[Literal["unname"], str]
)


@dataclass(slots=True)
class _Batch:
    """What is written in one transaction; written again as it is where it is not known whether it was."""

    items: list[_Item] = field(default_factory=list)
    rows: list[Figures] = field(default_factory=list)
    pieces: list[tuple[uuid.UUID, int, int, bytes]] | None = None
    times: int = -1
    """How often somebody had been forgotten when the pieces were made."""


class PostgresqlLedger:
    """A `Ledger` that replicas share, and which of the snapshots that this one took are in it.

    Args:
        database: where it is kept.
        clock: Unix s.
        keep: for how long.
        leads: whether this replica is the one that adds up.
        added: given the rows of all replicas, by the leader, in the order of time; for who adds up something else.
        heard: given what became of events, by whichever replica.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float],
        keep: Retention,
        leads: Callable[[], bool] = lambda: True,
        added: Callable[[Sequence[Figures]], None] = lambda rows: None,
        heard: Callable[[Iterable[Heard]], None] = lambda heard: None,
    ) -> None:
        self.trouble: str | None = None
        self.loss: str | None = None
        self.settled: Callable[[list[Identity]], None] = lambda settled: None
        """Told of snapshots that are written."""
        self._db = database
        self._clock = clock
        self._keep = keep
        self._leads = leads
        self._names = Names(database)
        self._answers = Questions(database, clock)
        self._sum = Sum(database, self._names, clock=clock, keep=keep, added=added)
        self._wake = threading.Condition()  # guards what follows
        self._batch = _Batch()
        self._notes = 0
        self._unbegun: Counter[str] = Counter()  # users who are to be forgotten, of whom the database does not know yet
        self._row_bytes = 0
        self._snapshots = Boots()
        self._untold: list[Identity] = []
        self._flushes = self._flushed = 0
        self._ends = False
        self._ordinals: dict[str, tuple[tuple[str, int] | None, Counter[bytes]]] = {}
        self._heard = heard
        self._heard_to: float | None = None  # of who asks what became of events
        self._known: set[tuple[object, ...]] = set()
        database.expects(PART, SCHEMA)
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for run, name in (
                (self._write_on, "ledger-writer"),
                (self._add_up_on, "ledger-sums"),
                (self._hear_on, "ledger-events"),
            )
        ]
        for thread in self._threads:
            thread.start()

    # --------------------------------------------------------------------------------------------------- taking

    def append(self, figures: Figures) -> None:
        """Take a row; where there is no room its mole keeps it, for it does not become durable."""
        size = 300 + 4 * len(figures.values)
        with self._wake:
            if self._row_bytes + size > MOST_ROW_BYTES:
                return
            boot_id, seq = figures.boot_id, figures.seq
            if (
                boot_id is not None
                and seq is not None
                and not self._snapshots.take(figures.host, boot_id, seq, figures.at)
            ):
                return
            self._batch.rows.append(figures)
            self._row_bytes += size

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """Say whether this replica took the snapshot: it is written, or waits to be."""
        with self._wake:
            return self._snapshots.knows(host, boot_id, seq)

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """Return up to which seq all is written that this replica took; see `Store`."""
        with self._wake:
            return self._snapshots.last_from(host, boot_id, oldest_seq)

    @property
    def refusal(self) -> str | None:
        """Why posts have to wait: no event can be taken any more; None: they need not."""
        if self._notes < MOST_NOTES:
            return None
        return f"history: {MOST_NOTES} events wait to be written: {self.trouble or 'the database is slow'}"

    def record(self, kept: KeptEvent) -> None:
        """See `Ledger`; one that another replica has recorded of the same snapshot is not doubled."""
        with self._wake:
            self._note(("record", kept, self._key(kept)))

    def retract(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        with self._wake:
            self._note(("retract", kept, b""))

    def forget(self, hosts: Iterable[str]) -> None:
        """See `Ledger`."""
        with self._wake:
            for host in hosts:
                self._note(("forget", host))

    def forget_user(self, user: str, strip: Callable[[LastSeen], LastSeen]) -> None:
        """See `Ledger`; newest snapshots are not kept here."""
        with self._wake:
            self._unbegun[user] += 1
            self._note(("unname", user))

    def _note(self, item: _Item) -> None:
        self._batch.items.append(item)
        self._notes += 1
        self._wake.notify_all()

    def _key(self, kept: KeptEvent) -> bytes:
        """Return what is the same wherever the same event is recorded; of equal ones in a snapshot each counts."""
        event = kept.event
        what: tuple[object, ...] = (event.host, event.gpu, event.kind, event.code, kept.told)
        if kept.told:  # a mole tells it again until it knows that it was heard
            what = (*what, event.at)
        elif kept.source is not None:
            what = (*what, *kept.source)
        else:
            return uuid.uuid4().bytes
        digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=16).digest()
        source, counts = self._ordinals.get(event.host, (None, Counter[bytes]()))
        if source != kept.source:
            counts = Counter()
        self._ordinals[event.host] = kept.source, counts
        counts[digest] += 1
        return hashlib.blake2b(digest + counts[digest].to_bytes(4), digest_size=16).digest()

    def flush(self) -> None:
        """Return when what was taken so far is written, and added up where this replica does that.

        Raises:
            StoreError: it cannot be.
        """
        self.write()
        if self._leads():
            with Asking():
                self._sum.add_up(at_once=True)

    def write(self) -> None:
        """Return when what was taken so far is written.

        Raises:
            StoreError: it cannot be.
        """
        with self._wake:
            self._flushes += 1
            mine = self._flushes
            self._wake.notify_all()
            while self._flushed < mine and self._threads[0].is_alive():
                self._wake.wait(0.1)
        if self.trouble is not None:
            raise StoreError(self.trouble)

    def close(self) -> None:
        """Write what waits, once, and end."""
        with self._wake:
            self._ends = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    # -------------------------------------------------------------------------------------------------- writing

    def _write_on(self) -> None:
        pending: list[_Batch] = []
        rows_at = time.monotonic()
        while True:
            with self._wake:
                is_asked = self._wake.wait_for(self._is_asked, RETRY_SECONDS if pending else FLUSH_SECONDS)
                flushes, ends = self._flushes, self._ends
                new, self._batch = self._batch, _Batch()
                if is_asked or time.monotonic() - rows_at >= ROWS_SECONDS:
                    rows_at = time.monotonic()
                else:
                    self._batch.rows, new.rows = new.rows, []
            if new.items or new.rows:
                pending.append(new)
            while pending:
                try:
                    self._write(pending[0])
                except PostgresqlError as error:
                    if not error.is_of_values:  # away, read-only, no right, no table: what waits may be written later
                        self._say(str(error))
                        break
                    self._part(pending, error)
                except Exception as error:  # whatever it is: what waits behind it must not wait for ever
                    self._part(pending, error)
                else:
                    self._is_written(pending.pop(0))
            if not pending:
                self._say(None)
            with self._wake:
                self._flushed = max(self._flushed, flushes)
                self._wake.notify_all()
                if ends:
                    return

    def _part(self, pending: list[_Batch], error: Exception) -> None:
        """Part what cannot be written until what is bad stands alone; that is let go of."""
        whole = pending.pop(0)
        rows, items = whole.rows, whole.items
        if len(rows) + len(items) <= 1:
            log.error("something cannot be written to the ledger, and is let go of", exc_info=error)
            self._is_written(whole)
        elif rows and items:
            pending[:0] = [_Batch(rows=rows), _Batch(items=items)]
        else:
            pending[:0] = [
                _Batch(rows=rows[: len(rows) // 2], items=items[: len(items) // 2]),
                _Batch(rows=rows[len(rows) // 2 :], items=items[len(items) // 2 :]),
            ]

    def _is_asked(self) -> bool:
        return self._ends or self._flushed < self._flushes

    def _say(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            if trouble is None:
                log.info("the ledger is written again")
            else:
                log.error("the ledger cannot be written: %s; the live view goes on", trouble)
            self.trouble = trouble

    def _write(self, batch: _Batch) -> None:
        oldest = self._clock() - self._keep.rows_seconds
        while True:
            if batch.pieces is None:
                batch.times = self._names.times
                batch.pieces = self._pieces([row for row in batch.rows if row.at >= oldest])
            with self._db.transaction() as db:
                (times,) = db.execute("SELECT times FROM forgotten FOR SHARE").fetchone()
                if times != batch.times:  # somebody was forgotten: what is kept under numbers may lack a name
                    self._names.begin_anew(times)
                    batch.pieces = None
                    continue
                if batch.pieces:
                    marks = ", ".join(["(?, ?, ?, false, ?)"] * len(batch.pieces))
                    db.execute(
                        f"INSERT INTO pieces (id, hour, part, is_sealed, body) VALUES {marks} "  # noqa: S608 - marks
                        "ON CONFLICT DO NOTHING",
                        [value for piece in batch.pieces for value in piece],
                    )
                for item in batch.items:
                    _do(db, item)
                return

    def _pieces(self, rows: Sequence[Figures]) -> list[tuple[uuid.UUID, int, int, bytes]]:
        of: dict[tuple[int, int], list[tuple[Row, Figures]]] = {}
        for ids, row in zip(self._names.ids(rows), rows, strict=True):
            of.setdefault((int(row.at // HOUR) * HOUR, part_of(row.host)), []).append((ids, row))
        return [(uuid.uuid4(), hour, part, packed(found)) for (hour, part), found in of.items()]

    def _is_written(self, batch: _Batch) -> None:
        with self._wake:
            self._notes -= len(batch.items)
            self._unbegun -= Counter(item[1] for item in batch.items if item[0] == "unname")
            self._row_bytes -= sum(300 + 4 * len(row.values) for row in batch.rows)
            for row in batch.rows:
                if row.boot_id is not None and row.seq is not None:
                    self._snapshots.write(row.host, row.boot_id, row.seq, row.at)
                    self._untold.append(Identity(row.host, row.boot_id, row.seq))
        if self._untold:
            try:
                self.settled(self._untold)
            except Exception:  # whatever it is: it is told with the next ones, and writing goes on
                log.exception("a fault in telling what is written")
            else:
                self._untold = []

    def settled_of(self, snapshots: Iterable[Identity]) -> list[Identity]:
        """Return those of some snapshots that this replica took that are written."""
        with self._wake:
            return [each for each in snapshots if self._snapshots.has_written(*each)]

    def let_go(self, snapshots: Iterable[Identity]) -> None:
        """Forget snapshots: what is settled everywhere is known elsewhere."""
        with self._wake:
            self._snapshots.let_go(snapshots)

    # ------------------------------------------------------------------------------------------------ adding up

    def _add_up_on(self) -> None:
        said: str | None = None
        while True:
            with self._wake:
                if self._wake.wait_for(lambda: self._ends, ADD_UP_SECONDS):
                    return
            try:
                with self._wake:
                    self._snapshots.forget_before(self._clock() - self._keep.rows_seconds)
                if self._leads():
                    self._sum.add_up(at_once=False)
                else:
                    self._sum.lay_down()
                said = None
            except (PostgresqlError, StoreError) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("GPU-hours are not added up: %s", error)
            except Exception:  # whatever it is: the next round may go better, and nothing is lost meanwhile
                log.exception("a fault in adding up GPU-hours")

    # ---------------------------------------------------------------------------------------------------- asking

    def last_seen(self) -> list[LastSeen]:
        """Return nothing: what replicas share holds the newest snapshots, or moles tell them again."""
        return []

    def kept_events(self, most: int = KEPT_EVENTS) -> list[KeptEvent]:
        """Return the newest events, oldest first; none where they cannot be read now: `heard` is told later."""
        try:
            return self._newest(most)
        except StoreError as error:
            log.warning("what happened before is not known yet: %s", error)
            return []

    def _newest(self, most: int) -> list[KeptEvent]:
        with Asking(), self._db.reading() as db:
            (now,) = db.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
            found = db.execute(
                f"SELECT {EVENT} FROM events WHERE NOT is_gone ORDER BY at DESC, id DESC LIMIT ?",  # noqa: S608 - names of ours
                (most,),
            ).fetchall()
        self._heard_to = float(now)
        return [kept_of(row) for row in reversed(found)]

    def _hear_on(self) -> None:
        while True:
            with self._wake:
                if self._wake.wait_for(lambda: self._ends, HEAR_SECONDS):
                    return
            try:
                self.hear()
            except StoreError:
                continue  # the next time tells that, too
            except Exception:  # whatever it is: what happens elsewhere must be heard of as long as the server lives
                log.exception("a fault in hearing of events")

    def hear(self) -> None:
        """Tell what became of events since the last time, or since they were read, by whichever replica.

        Raises:
            StoreError: it cannot be asked now; the next time tells that, too.
        """
        self._heard(self._new_events())

    def _new_events(self) -> list[Heard]:
        if self._heard_to is None:
            return [Heard(kept, False) for kept in self._newest(KEPT_EVENTS)]
        with Asking(), self._db.reading() as db:
            found = db.execute(
                f"SELECT {EVENT}, is_gone, id, extract(epoch FROM changed_at) FROM events "  # noqa: S608 - names of ours
                "WHERE changed_at >= to_timestamp(?) ORDER BY changed_at",
                (self._heard_to - OVERLAP_SECONDS,),
            ).fetchall()
        known, self._known = self._known, {tuple(row[-3:]) for row in found}
        if found:
            self._heard_to = max(self._heard_to, float(found[-1][-1]))
        return [Heard(kept_of(row), row[-3]) for row in found if tuple(row[-3:]) not in known]

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger`."""
        return self._answers.events(ask)

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger`; of the running hour what was added up, some half a minute ago."""
        return self._answers.uses(ask)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger`."""
        return self._answers.usage(ask)

    def series(self, ask: SeriesQuery) -> list[Series]:
        """Return how many GPUs users had over time: see `Store`."""
        return self._answers.series(ask)

    def unnamed(self, user: str) -> Unnamed | None:
        """See `Ledger`."""
        if self.trouble is not None:
            raise StoreError(self.trouble)
        with self._wake:
            is_to_begin = self._unbegun[user] > 0
        if is_to_begin:  # the writer is busy; what the database says is of an earlier time that this was asked for
            return Unnamed(hosts_left=1, host_hours=0, events=0, snapshots=0)
        return self._answers.unnamed(user)

    def put_hour(self, hour: int, of_hosts: Mapping[str, HostHour]) -> None:
        """Take an hour that was added up elsewhere, and of which there are no rows here.

        Raises:
            StoreError: it cannot be written.
        """
        with Asking():
            self._sum.put(hour, of_hosts)

    def prune(self, now: float) -> None:
        """Drop what is older than the settings keep."""
        self._sum.prune(now)


def _do(db: Statements, item: _Item) -> None:
    if item[0] == "record":
        kept, event = item[1], item[1].event
        db.execute(
            f"INSERT INTO events (key, {EVENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",  # noqa: S608 - names of ours
            (
                *(item[2], event.at, event.host, json.dumps(event.gpu), event.kind, json.dumps(event.code), event.text),
                *(kept.told, *((None, None) if kept.source is None else kept.source)),
            ),
        )
    elif item[0] == "retract":
        event = item[1].event
        db.execute(
            "UPDATE events SET is_gone = true, changed_at = clock_timestamp() WHERE id = (SELECT id FROM events "
            "WHERE at = ? AND host = ? AND gpu = ? AND kind = ? AND told = ? AND NOT is_gone LIMIT 1)",
            (event.at, event.host, json.dumps(event.gpu), event.kind, item[1].told),
        )
    elif item[0] == "forget":
        db.execute(
            "UPDATE events SET is_gone = true, changed_at = clock_timestamp() WHERE host = ? AND NOT is_gone",
            (item[1],),
        )
    else:
        _begin_forgetting(db, item[1])


def _begin_forgetting(db: Statements, user: str) -> None:
    """Take a name out of rows and events; the hours that hold it are done one after the other."""
    db.execute("UPDATE forgotten SET times = times + 1")
    for number, text in db.execute(
        "SELECT id, text FROM holdings WHERE position(? IN text) > 0", (json.dumps(user, ensure_ascii=False)[1:-1],)
    ).fetchall():
        holders = [[place, None if name == user else name, job] for place, name, job in json.loads(text)]
        db.execute(
            "UPDATE holdings SET text = ?, is_whole = false WHERE id = ?",
            (json.dumps(holders, ensure_ascii=False, separators=(",", ":")), number),
        )
    db.execute("DELETE FROM running")
    changed = 0
    # the database looks, for it is quick: of millions of events a row each would take longer than a statement may
    for number, text, code in db.execute(
        "SELECT id, text, code FROM events WHERE position(? IN text) > 0 OR position(? IN code) > 0",
        (user, json.dumps(user)[1:-1]),
    ).fetchall():
        read = json.loads(code)
        now = unnamed(text, user), json.dumps(unnamed(read, user) if isinstance(read, str) else read)
        if now != (text, code):
            db.execute(
                "UPDATE events SET text = ?, code = ?, changed_at = clock_timestamp() WHERE id = ?", (*now, number)
            )
            changed += 1
    # each replica is told of the same wish: what was counted for it already stays
    db.execute("DELETE FROM forgetting WHERE asked_at < now() - interval '10 minutes'")
    db.execute(
        'INSERT INTO forgetting AS known ("user", events) VALUES (?, ?) ON CONFLICT ("user") DO UPDATE SET '
        "events = known.events + excluded.events, "
        "host_hours = CASE WHEN known.host_hours < 0 THEN -1 - known.host_hours ELSE known.host_hours END",
        (user, changed),
    )
