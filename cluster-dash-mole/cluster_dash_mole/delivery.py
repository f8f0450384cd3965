"""The way to a server that keeps history: every snapshot arrives there once, whatever fails in between.

The newest goes out live, as by any lane; what the server has not made durable is held by the spool, and sent as backlog
behind a live post that was taken.
"""

import logging
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster_dash_mole.batches import Held, Source
from cluster_dash_mole.lane import Manners, row_of
from cluster_dash_mole.mole import Clock, Row
from cluster_dash_mole.snapshot import Outcome, Snapshot, encode
from cluster_dash_mole.spool import AGAIN_SECONDS, Spool

log = logging.getLogger(__name__)

MOST_LINES = 100
MOST_BYTES = 4_000_000
"""What a batch may be: by contract 4 MiB when inflated."""
LONGEST_PACE_SECONDS = 60.0
"""However loaded a server is: a host that is silent for longer counts as stale."""
STRANGER_SECONDS = 900.0
"""When a snapshot is tried again whose host or secret the server did not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The answer to a snapshot that was taken.

    Attributes:
        keeps_history: the server says what is durable. Where it does not, the answer itself is the receipt.
        durable_seq: up to where it is, None where nothing is.
        next_seconds: how soon it wants the next one at the earliest.
    """

    keeps_history: bool = False
    durable_seq: int | None = None
    next_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReceipt:
    """The answer to a batch of which something was taken.

    Attributes:
        rejected: what was refused, by its place in the batch, and why: a SendError each.
        durable: up to which number each source is in history.
        next_seconds: how soon it wants the next batch at the earliest.
    """

    rejected: Mapping[int, Exception]
    durable: Mapping[Source, int]
    next_seconds: float | None = None


class Post(Protocol):
    """Posts snapshots: their JSON objects, into each of which `more` members are put. Raises SendError."""

    @property
    def name(self) -> str: ...  # noqa: D102 - the class says it
    @property
    def takes_batches(self) -> bool: ...  # noqa: D102
    def post_one(self, body: bytes, more: Mapping[str, object]) -> Receipt: ...  # noqa: D102
    def post_many(self, bodies: Sequence[tuple[bytes, Mapping[str, object]]]) -> BatchReceipt: ...  # noqa: D102


class Delivery:
    """Sends what is offered live, and what was not taken or not made durable as backlog.

    A live post is tried for each snapshot, and tried again within a minute or two intervals. The backlog waits for one
    that was taken, then a random time of up to two intervals and a minute, so that a fleet does not come back at once;
    then goes a batch a second, or as slowly as the server asks. A server that takes no batches, of the first version,
    would show old snapshots as its newest: for such a one the backlog is kept until another server is there.

    Args:
        post: how to send.
        spool: what is held.
        interval: seconds between two snapshots.
        clock: the time.
        min_interval: at least so many seconds between two snapshots that are sent.
        jitter: gives numbers from 0 to 1.
    """

    SET_ASIDE = 20

    def __init__(
        self,
        post: Post,
        spool: Spool,
        *,
        interval: float,
        clock: Clock,
        min_interval: float = 0.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = post.name
        self.finished: Snapshot | None = None
        self.set_aside: deque[bytes] = deque(maxlen=self.SET_ASIDE)
        self.refused = 0
        self.pace_seconds = 0.0  # how far apart the server wants snapshots at least; read by the loop
        self._post = post
        self._spool = spool
        self._clock = clock
        self._jitter = jitter
        self._manners = Manners(post.name, clock=clock, jitter=jitter)
        self._backlog_manners = Manners(f"{post.name}, backlog", clock=clock, jitter=jitter)
        self._min_interval = min_interval - interval / 2  # grace: as in Lane
        self._retry_seconds = min(60.0, 2 * interval)
        self._changed = threading.Condition()
        self._slot: tuple[Snapshot, Held] | None = None
        self._wanted_at = -math.inf
        self._tried: Held | None = None
        self._retry_at = -math.inf
        self._backlog_at = math.inf
        self._most_lines = MOST_LINES
        self._keeps_history = False

    @property
    def outcome(self) -> Outcome | None:
        """How the last live post went."""
        return self._manners.outcome

    def wants(self) -> bool:
        """Return whether the next snapshot is to be sent: only such a one may have a number, as they are counted."""
        now = self._clock.monotonic()
        if now - self._wanted_at < self._min_interval:
            return False
        self._wanted_at = now
        return True

    def offer(self, snapshot: Snapshot) -> None:
        """Hold a snapshot and send it; one without an identity was not wanted."""
        if snapshot.boot_id is None or snapshot.seq is None:
            return
        source = Source(snapshot.hostname, snapshot.boot_id)
        held = Held(source, snapshot.seq, snapshot.timestamp, encode(snapshot.document_to_keep()))
        self._spool.add(held)
        with self._changed:
            self._slot = snapshot, held
            self._changed.notify()

    def start(self) -> None:
        """Send from now on, in a thread that ends with the process."""
        threading.Thread(target=self._run, name=f"send-{self.name}", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while (wait := self.due_in()) != 0:
                    self._changed.wait(wait)
            self.step()

    def due_in(self) -> float | None:
        """Return the seconds until there is something to send, None while there is nothing."""
        due = min(self._live_at(), max(self._backlog_at, self._backlog_manners.closed_until))
        return None if due == math.inf else max(0.0, due - self._clock.monotonic())

    def _live_at(self) -> float:
        if self._slot is None:
            return math.inf
        closed_until = self._manners.closed_until
        return max(closed_until, self._retry_at) if self._slot[1] is self._tried else closed_until

    def step(self) -> None:
        """Send what is due, the live snapshot first."""
        with self._changed:
            slot = self._slot
            if self.due_in() != 0:
                return
            live = self._live_at() <= self._clock.monotonic()
        started = self._clock.monotonic()
        if live and slot:
            try:
                self._send_live(*slot)
            except Exception as error:  # also a fault of ours: it must not end the thread
                self._live_failed(*slot, error, self._clock.monotonic() - started)
            else:
                self._manners.success(self._clock.monotonic() - started)
        else:
            batch: list[Held] = []
            try:
                batch = self._next_batch()
                if batch:
                    self._send_batch(batch)
            except Exception as error:  # the same
                self._batch_failed(batch, error, self._clock.monotonic() - started)
            else:
                self._backlog_manners.success(self._clock.monotonic() - started)

    # ------------------------------------------------------------------------------------------------- live

    def _send_live(self, snapshot: Snapshot, held: Held) -> None:
        body = encode(snapshot.document()) if "slurm" in snapshot.parts else held.body
        receipt = self._post.post_one(body, {"spool": self._part(held)})
        now = self._clock.monotonic()
        self._keeps_history = receipt.keeps_history
        if receipt.keeps_history:
            self._spool.took([held], now)
            if receipt.durable_seq is not None:
                self._spool.durable(held.source, receipt.durable_seq)
        else:
            self._spool.let_go([held])
        self._spool.settle(now)
        self.pace_seconds = min(receipt.next_seconds or 0.0, LONGEST_PACE_SECONDS)
        self._done(snapshot, held)
        if self._backlog_at == math.inf and self._post.takes_batches and self._spool.due(now):
            self._backlog_at = now + self._jitter() * self._retry_seconds

    def _live_failed(self, snapshot: Snapshot, held: Held, error: Exception, seconds: float) -> None:
        never = row_of(error) is Row.NEVER
        if never:
            self._give_up([held])
        row = self._manners.failure(error, seconds, self._aside() if never else "")
        if never:
            self._done(snapshot, held)
            return
        self._broke()
        if row is Row.TROUBLE:
            self._tried, self._retry_at = held, self._clock.monotonic() + self._retry_seconds

    def _done(self, snapshot: Snapshot, held: Held) -> None:
        self.finished = snapshot
        with self._changed:
            if self._slot is not None and self._slot[1] is held:
                self._slot = None

    def _broke(self) -> None:
        """Learn that the server may have died with what it had taken."""
        self.pace_seconds = 0.0  # whoever asked for it is gone
        self._backlog_at = math.inf
        self._spool.failed(self._clock.monotonic())

    def _part(self, held: Held) -> dict[str, object]:
        """Return the part `spool` of a snapshot: what is held beside it, and the oldest number with it."""
        holding = self._spool.holding()
        oldest_seq = self._spool.oldest_seq(held.source)
        return {
            "waiting": max(0, holding.waiting - 1),
            "unsent": max(0, holding.unsent - 1),
            "dropped": holding.dropped,
            "oldest_at": held.at if holding.oldest_at is None else holding.oldest_at,
            "oldest_seq": held.seq if oldest_seq is None else oldest_seq,
        }

    # ---------------------------------------------------------------------------------------------- backlog

    def _next_batch(self) -> list[Held]:
        due = self._spool.take(self._most_lines, self._clock.monotonic())
        size, batch = 0, list[Held]()
        for held in due:
            size += len(held.body) + 200  # what is put into each
            if batch and size > MOST_BYTES:
                break
            batch.append(held)
        if not batch:
            self._backlog_at = math.inf
        return batch

    def _send_batch(self, batch: list[Held]) -> None:
        oldest = {source: self._spool.oldest_seq(source) for source in {held.source for held in batch}}
        receipt = self._post.post_many(
            [(held.body, {"spool": {"oldest_seq": oldest[held.source], "backlog": True}}) for held in batch]
        )
        now = self._clock.monotonic()
        rows = {place: row_of(error) for place, error in receipt.rejected.items()}
        taken = [held for place, held in enumerate(batch) if place not in rows]
        if self._keeps_history:
            self._spool.took(taken, now)
            for source, seq in receipt.durable.items():
                self._spool.durable(source, seq)
        else:
            self._spool.let_go(taken)
        self._give_up([batch[place] for place, row in rows.items() if row is Row.NEVER])
        for row, seconds in ((Row.NOT_NOW, AGAIN_SECONDS), (Row.WHO_ARE_YOU, STRANGER_SECONDS)):
            if put_off := [batch[place] for place, its in rows.items() if its is row]:
                self._spool.put_off(put_off, now + seconds)
        if rows:
            error = next(iter(receipt.rejected.values()))
            log.warning("%s: %d of %d of the backlog refused, such as %s", self.name, len(rows), len(batch), error)
        self._most_lines = min(MOST_LINES, 2 * self._most_lines)
        self._spool.settle(now)
        pace = max(1.0, min(receipt.next_seconds or 0.0, LONGEST_PACE_SECONDS))
        self._backlog_at = now + pace if self._spool.due(now) else math.inf

    def _batch_failed(self, batch: list[Held], error: Exception, seconds: float) -> None:
        now, never = self._clock.monotonic(), row_of(error) is Row.NEVER
        if never and len(batch) > 1:
            self._most_lines = len(batch) // 2
            self._backlog_at = now + 1.0
            return
        if never:
            self._give_up(batch)
            self._backlog_at = now + 1.0
        row = self._backlog_manners.failure(error, seconds, self._aside() if never else "")
        if row is Row.TROUBLE:
            self._broke()  # then it waits for a live post that is taken

    def _give_up(self, refused: Sequence[Held]) -> None:
        self._spool.let_go(refused)
        self.set_aside.extend(held.body for held in refused)
        self.refused += len(refused)

    def _aside(self) -> str:
        return f"; snapshots set aside so far: {self.refused}"
