"""History behind an engine: figures by remote write, questions by PromQL; what no engine tells is in a local file."""

import logging
import math
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

from cluster_dash_server.history.boots import Boots
from cluster_dash_server.history.remote import sending
from cluster_dash_server.history.remote.encoding import Encoder
from cluster_dash_server.history.remote.engine import Access, AccessError, Connection, EngineError, access_of, refusal
from cluster_dash_server.history.remote.promql import Asker
from cluster_dash_server.history.remote.recording import Recorder
from cluster_dash_server.history.remote.sending import Item, Minute, Sender, Snapshot
from cluster_dash_server.history.rollups import DAY
from cluster_dash_server.history.settings import HistorySettings
from cluster_dash_server.history.settled import FORGET_SECONDS, SETTLED_SECONDS, Identity, Settled
from cluster_dash_server.snapshot import printable
from cluster_dash_server.store import (
    GPU_METRICS,
    HOST_METRICS,
    Event,
    EventQuery,
    Figures,
    Holder,
    KeptEvent,
    LastSeen,
    Ledger,
    Series,
    SeriesQuery,
    StoreError,
    Unnamed,
    Usage,
    UsageQuery,
    Use,
    UseQuery,
)

__all__ = ["AccessError", "Pace", "RemoteHistory", "RemoteStore", "StoreError", "check", "of"]

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
"""How long what waits may take to be sent at the end; moles hold what is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When figures are written, and when that counts.

    Attributes:
        flush_seconds: how long they wait for others.
        settle_seconds: how long a connection must live on after the engine's yes before they are durable.
        window_seconds: how old a figure may be that the engine takes; None: of any age.
        rows_seconds: how long it is known which snapshots came, at least.
    """

    flush_seconds: float
    settle_seconds: float
    window_seconds: float | None
    rows_seconds: float = SETTLED_SECONDS


class RemoteStore:
    """A `Store` behind an engine.

    Args:
        access: where the engine is.
        cluster: the label `cluster` of all that is written, and of all that is asked for.
        pace: when figures are written.
        clock: Unix s.
        sees_all: whether all rows of the cluster come here; else the minutes are made of what `add_up` is given.
    """

    def __init__(
        self, access: Access, cluster: str, pace: Pace, clock: Callable[[], float], *, sees_all: bool = True
    ) -> None:
        self._sees_all = sees_all
        self._pace = pace
        self._clock = clock
        self._asker = Asker(access, cluster, clock)
        self._recorder = Recorder(cluster)
        self._wake = threading.Condition()  # guards what follows
        self._queue: list[Figures] = []
        self._snapshots = Boots()
        self._ends = False
        self._flushes = self._flushed = 0
        self._read_trouble: str | None = None
        self._fault: str | None = None
        self._forgot_at = clock()
        self.settled: Callable[[list[Identity]], None] = lambda settled: None
        """Told of snapshots that are settled here."""
        self._of_all: list[Figures] = []
        self._minutes: list[Minute] = []
        self._unnaming: dict[str, str | None] = {}  # what became of users who are to be forgotten; "": nothing yet
        self._sender = Sender(
            access,
            Encoder(cluster),
            self._are_settled,
            clock=clock,
            settle_seconds=pace.settle_seconds,
            window_seconds=pace.window_seconds,
        )
        self._thread = threading.Thread(target=self._run, name="history-remote", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str | None:
        """Why nothing is written now, in words; None: it is."""
        return self._fault or self._sender.trouble

    # --------------------------------------------------------------------------------------------------- taking

    def append(self, figures: Figures) -> None:
        """See `Store`; where there is no room its mole keeps it, for it does not become durable."""
        item = Snapshot.of(figures)
        with self._wake:
            if figures.boot_id is not None and figures.seq is not None:
                of = figures.host, figures.boot_id, figures.seq
                if self._snapshots.knows(*of) or not self._sender.reserve(item.size):
                    return
                self._snapshots.take(*of, figures.at)
            elif not self._sender.reserve(item.size):
                return
            self._queue.append(figures)

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Store`."""
        with self._wake:
            return self._snapshots.knows(host, boot_id, seq)

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Store`."""
        with self._wake:
            return self._snapshots.last_from(host, boot_id, oldest_seq)

    def settled_of(self, snapshots: Iterable[Identity]) -> list[Identity]:
        """Return those of some snapshots that are settled here."""
        with self._wake:
            return [each for each in snapshots if self._snapshots.has_written(*each)]

    def let_go(self, snapshots: Iterable[Identity]) -> None:
        """Forget snapshots: what is settled everywhere is known elsewhere."""
        with self._wake:
            self._snapshots.let_go(snapshots)

    def _are_settled(self, items: Iterable[Item]) -> None:
        settled = []
        with self._wake:
            for item in items:
                if isinstance(item, Snapshot) and (row := item.row).boot_id is not None and row.seq is not None:
                    self._snapshots.write(row.host, row.boot_id, row.seq, row.at)
                    settled.append(Identity(row.host, row.boot_id, row.seq))
        self.settled(settled)

    def add_up(self, rows: Sequence[Figures]) -> None:
        """Take rows of all hosts, those of other replicas too, for the minutes of the cluster."""
        with self._wake:
            self._of_all += rows

    def put_minutes(self, minutes: Iterable[tuple[int, str, Sequence[float | None]]]) -> None:
        """Take CLUSTER_METRICS of minutes that are not recorded yet, each with its model; '' is all of them."""
        items = [Minute.of(minute, list(self._recorder.encoded(minute, *of))) for minute, *of in minutes]  # type: ignore[arg-type]
        with self._wake:
            self._minutes += [item for item in items if item.encoded_parts and self._sender.reserve(item.size)]

    @property
    def left_out(self) -> int:
        """How many items the engine does not take: too old for it, or refused."""
        return self._sender.too_old + self._sender.refused

    def is_empty(self) -> bool:
        """Say whether nothing of the cluster was written in the last 400 days.

        Raises:
            StoreError: it cannot be asked.
        """
        return self._asker.is_empty(self._clock())

    def fill(self, rows: Sequence[Figures]) -> None:
        """See `promql.Asker`."""
        self._asker.fill(rows)

    def flush(self) -> None:
        """See `Store`; the minutes that are settled are recorded, too."""
        with self._wake:
            self._flushes += 1
            mine = self._flushes
            self._wake.notify_all()
            while self._flushed < mine and self._thread.is_alive():
                self._wake.wait(0.1)
        if self.trouble is not None:
            raise StoreError(self.trouble)
        if self._read_trouble is not None:
            raise StoreError(self._read_trouble)

    def prune(self, now: float) -> None:
        """See `Store`: engines have a retention of their own."""

    def close(self) -> None:
        """Send what waits, once, and end."""
        with self._wake:
            self._ends = True
            self._wake.notify_all()
        self._thread.join(CLOSE_SECONDS)
        self._asker.close()

    # -------------------------------------------------------------------------------------------------- sending

    def _run(self) -> None:
        wait = self._pace.flush_seconds
        while True:
            with self._wake:
                most = 1.0 if "" in self._unnaming.values() else self._pace.flush_seconds
                self._wake.wait_for(self._is_asked, max(0.05, min(wait, most)))
                rows, self._queue = self._queue, []
                of_all, self._of_all = self._of_all, []
                minutes, self._minutes = self._minutes, []
                flushes, ends = self._flushes, self._ends
            try:
                self._sender.put(chain(map(Snapshot.of, rows), minutes))
                self._record(rows if self._sees_all else of_all, also_late=self._flushed < flushes)
                leaving = [user for user, became in list(self._unnaming.items()) if became == ""]
                for user in leaving:
                    self._recorder.forget_user(user)
                wait = self._sender.send(is_last_try=ends or self._flushed < flushes)
                self._delete(leaving)
                self._fault = None
            except Exception:  # whatever it is: history must not end for good while the server lives
                log.exception("a fault in writing history: what was on its way is to come again")
                self._fault = "a fault of this server: see its log"
                self._begin_anew()
                wait = self._pace.flush_seconds
            if self._clock() - self._forgot_at > FORGET_SECONDS:
                self._forgot_at = self._clock()
                with self._wake:
                    self._snapshots.forget_before(self._forgot_at - self._pace.rows_seconds)
            with self._wake:
                self._flushed = flushes
                self._wake.notify_all()
                if ends:
                    break
        self._sender.close()

    def _begin_anew(self) -> None:
        """Let go of all that is not written: nobody knows what a fault left half done, and moles hold all of it."""
        with self._wake:
            self._queue, self._of_all, self._minutes = [], [], []
            self._sender.begin_anew()
            self._snapshots.let_go_unwritten()

    def _is_asked(self) -> bool:
        return self._ends or self._flushed < self._flushes

    def _delete(self, users: list[str]) -> None:
        """Have the engine forget users, once their last rows are there; where it is away, later."""
        for user in users:
            if not self._sender.is_idle:
                return
            try:
                why_not = self._asker.delete_user(user)
            except StoreError as error:
                log.warning("the rows of a user are not deleted yet: %s", error)
                return
            self._unnaming[user] = why_not and (
                "the engine keeps how many GPUs the user had, minute by minute, as long as it keeps anything: "
                f"{why_not} (Prometheus deletes where it runs with --web.enable-admin-api)"
            )

    def forget_user(self, user: str) -> None:
        """Begin to take what a user had out of the engine; `unnamed` tells what became of it."""
        with self._wake:
            self._unnaming[user] = ""

    def unnamed(self, user: str) -> tuple[bool, str | None]:
        """Say whether that has ended, and what stays."""
        became = self._unnaming.get(user)
        return became != "", became

    def _record(self, rows: list[Figures], *, also_late: bool) -> None:
        """Add rows up, and pass on the minutes that they made whole."""
        for row in rows:
            try:
                self._recorder.take(row)
            except Exception:  # whatever it is: the minute lacks that row, and no other one
                log.exception("%s: a fault in adding up its figures", printable(row.host, 64))
        now = self._clock()
        minutes = self._recorder.due(now, also_late=also_late)
        if not minutes:
            return
        newest = self._recorder.newest
        try:
            # a minute is recorded once: of those before the last one, or before this process, the engine may have some
            known = self._asker.recorded(minutes[0], minutes[-1]) if newest is None or minutes[0] <= newest else set()
            self._read_trouble = None
        except StoreError as error:
            self._read_trouble = str(error)
            return
        for minute, parts in self._recorder.give(minutes, known):
            item = Minute.of(minute, parts)
            if parts and self._sender.reserve(item.size):
                self._sender.put([item])

    # --------------------------------------------------------------------------------------------------- asking

    def series(self, ask: SeriesQuery) -> list[Series]:
        """See `Store`."""
        return self._asker.series(ask)

    def moment(self, at: float, silent_seconds: float = 600) -> list[Figures]:
        """See `Store`; who had which GPU is not in it."""
        return self._asker.moment(at, silent_seconds)


def of(settings: HistorySettings, clock: Callable[[], float], *, sees_all: bool = True) -> RemoteStore:
    """Return the store of the settings, which were looked at before; see `RemoteStore`.

    Raises:
        AccessError: they cannot be used.
    """
    pace = Pace(
        flush_seconds=settings.flush_seconds,
        settle_seconds=settings.settle_seconds,
        window_seconds=settings.window_seconds,
        rows_seconds=settings.rows_days * DAY,
    )
    return RemoteStore(access_of(settings), settings.cluster, pace, clock, sees_all=sees_all)


def of_move(settings: HistorySettings, clock: Callable[[], float]) -> RemoteStore:
    """Return the store of the settings for who moves a site: it sends when it is flushed, and counts a yes as one.

    Raises:
        AccessError: they cannot be used.
    """
    pace = Pace(flush_seconds=3600, settle_seconds=0, window_seconds=settings.window_seconds)
    return RemoteStore(access_of(settings), settings.cluster, pace, clock, sees_all=False)


def check(settings: HistorySettings) -> None:
    """Write nothing to the engine of the settings, and ask it for nothing much.

    Raises:
        AccessError: the settings cannot be used.
        StoreError: it does not take what is written, or cannot be asked.
    """
    access = access_of(settings)
    with closing(Connection(access.write_url, access)) as connection:
        try:
            answer = connection.post("", sending.packed(b""), sending.HEADERS)
        except EngineError as error:
            raise StoreError(str(error)) from None
    if not answer.is_good:
        raise StoreError(f"{access.write_url}: {refusal(answer)}")
    with closing(Asker(access, settings.cluster, time.time)) as asker:
        asker.check()


class OwnLedger(Ledger, Protocol):
    """Where what no engine can tell is kept: in a file, or in a database that replicas share."""

    @property
    def trouble(self) -> str | None:
        """Why it is not written now; None: it is."""

    @property
    def loss(self) -> str | None:
        """What was lost, in words; None: nothing."""

    def append(self, figures: Figures) -> None:
        """See `Store`."""

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Store`."""

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Store`."""

    def series(self, ask: SeriesQuery) -> list[Series]:
        """See `Store`; of users."""

    def prune(self, now: float) -> None:
        """See `Store`."""

    def flush(self) -> None:
        """See `Store`."""

    def last_seen(self) -> list[LastSeen]:
        """Return the newest snapshot of each host."""

    def kept_events(self, most: int = ...) -> list[KeptEvent]:
        """Return the newest events, oldest first."""

    def close(self) -> None:
        """Write what waits, and end."""


class SharedLedger(OwnLedger, Protocol):
    """A ledger that replicas share."""

    settled: Callable[[list[Identity]], None]
    """Told of snapshots that are settled there."""

    @property
    def refusal(self) -> str | None:
        """Why posts have to wait; None: they need not."""

    def settled_of(self, snapshots: Iterable[Identity]) -> list[Identity]:
        """Return those of some snapshots that are settled there."""

    def let_go(self, snapshots: Iterable[Identity]) -> None:
        """Forget snapshots: others know them."""


def shared(store: RemoteStore, ledger: SharedLedger, settled: Settled) -> "RemoteHistory":
    """Return the history of one of several replicas: a snapshot is settled once the engine and the ledger have it.

    Args:
        store: takes the figures.
        ledger: takes the rest.
        settled: what all replicas know to be settled.
    """

    def note(snapshots: list[Identity]) -> None:
        both = ledger.settled_of(store.settled_of(snapshots))
        settled.add(both)
        # each replica takes some of a host's posts: what it took itself would be ever more ranges of numbers
        store.let_go(both)
        ledger.let_go(both)

    store.settled = ledger.settled = note
    return RemoteHistory(store, ledger, settled, lambda: ledger.refusal)


class RemoteHistory:
    """A `Store` behind an engine, and a `Ledger` for what no engine can tell.

    Args:
        store: takes the figures.
        ledger: takes events, who had which GPU, and the newest snapshots.
        settled: where it is known what is settled in both, where replicas share that; None: both are asked.
        refusal: says why posts have to wait; None: they need not.
    """

    def __init__(
        self,
        store: RemoteStore,
        ledger: OwnLedger,
        settled: Settled | None = None,
        refusal: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._refusal = refusal
        self._store = store
        self._ledger = ledger
        self._settled = settled

    @property
    def trouble(self) -> str | None:
        """Why history is not written now; None: it is."""
        return self._ledger.trouble or self._store.trouble

    @property
    def loss(self) -> str | None:
        """What was lost, in words; None: nothing."""
        return self._ledger.loss

    @property
    def refusal(self) -> str | None:
        """Why posts have to wait; None: they need not."""
        return self._refusal()

    def last_seen(self) -> list[LastSeen]:
        """Return the newest snapshot of each host."""
        return self._ledger.last_seen()

    def kept_events(self, most: int = 20_000) -> list[KeptEvent]:
        """Return the newest events, oldest first."""
        return self._ledger.kept_events(most)

    def close(self) -> None:
        """Write what waits, and end."""
        self._store.close()
        self._ledger.close()

    # ---------------------------------------------------------------------------------------------------- Store

    def append(self, figures: Figures) -> None:
        """See `Store`."""
        self._store.append(figures)
        self._ledger.append(_for_ledger(figures) if self._settled is None else figures)

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Store`: what only one of both took must come again."""
        if self._store.knows(host, boot_id, seq) and self._ledger.knows(host, boot_id, seq):
            return True
        return self._settled is not None and self._settled.knows(host, boot_id, seq)

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Store`."""
        if self._settled is not None:
            return self._settled.last_from(host, boot_id, oldest_seq)
        there = self._store.durable_seq(host, boot_id, oldest_seq)
        here = self._ledger.durable_seq(host, boot_id, oldest_seq)
        return None if there is None or here is None else min(there, here)

    def series(self, ask: SeriesQuery) -> list[Series]:
        """See `Store`; of the users of some hosts the ledger tells, and of all users one that replicas share."""
        if ask.by == "user" and (ask.hosts is not None or self._settled is not None):
            return self._ledger.series(ask)
        return self._store.series(ask)

    def moment(self, at: float, silent_seconds: float = 600) -> list[Figures]:
        """See `Store`; the ledger tells who had which GPU."""
        rows = self._store.moment(at, silent_seconds)
        held: dict[tuple[str, int], list[Use]] = {}
        if rows:
            for use in self._ledger.uses(UseQuery(begin=min(row.at for row in rows), end=at)):
                held.setdefault((use.host, use.gpu), []).append(use)
        for row in rows:
            found = [
                Holder(place, use.user, use.job)
                for place, gpu in enumerate(row.gpus)
                for use in held.get((row.host, gpu.gpu), ())
                if use.from_at <= row.at < use.to_at
            ]
            row.holders = tuple(dict.fromkeys(found))
            row.holder_mem = array("f", [math.nan] * len(row.holders))
        return rows

    def prune(self, now: float) -> None:
        """See `Store`."""
        self._ledger.prune(now)

    def flush(self) -> None:
        """See `Store`."""
        self._ledger.flush()  # first: what it adds up goes to the engine, too
        self._store.flush()

    # --------------------------------------------------------------------------------------------------- Ledger

    def record(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        self._ledger.record(kept)

    def retract(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        self._ledger.retract(kept)

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger`."""
        return self._ledger.events(ask)

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger`."""
        return self._ledger.uses(ask)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger`."""
        return self._ledger.usage(ask)

    def forget(self, hosts: Iterable[str]) -> None:
        """See `Ledger`."""
        self._ledger.forget(hosts)

    def forget_user(self, user: str, strip: Callable[[LastSeen], LastSeen]) -> None:
        """See `Ledger`."""
        self._ledger.forget_user(user, strip)
        self._store.forget_user(user)

    def unnamed(self, user: str) -> Unnamed | None:
        """See `Ledger`."""
        told = self._ledger.unnamed(user)
        if told is None or told.hosts_left:
            return told
        is_done, stays = self._store.unnamed(user)
        return replace(told, hosts_left=0 if is_done else 1, stays=stays)


_KEPT = frozenset(GPU_METRICS.index(name) for name in ("gpu_util", "doing"))


def _for_ledger(row: Figures) -> Figures:
    """Return a row with no more figures than who had which GPU is told by: the others would be kept twice."""
    count = len(row.gpus)
    unknown = [math.nan] * count
    columns = (
        row.values[metric * count : (metric + 1) * count] if metric in _KEPT else unknown
        for metric in range(len(GPU_METRICS))
    )
    of_host = [math.nan] * (len(HOST_METRICS) - 1)
    return Figures(
        host=row.host,
        at=row.at,
        boot_id=row.boot_id,
        seq=row.seq,
        oldest_seq=row.oldest_seq,
        gpus=row.gpus,
        values=array("f", [*chain.from_iterable(columns), *of_host, row.values[-1]]),
        holders=row.holders,
        holder_mem=row.holder_mem,
    )
