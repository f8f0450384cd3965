"""Writing to an engine by remote write: what waits, what is on its way, and what is settled there. One thread sends.

What the engine said yes to is settled when the connection on which it did has lived for a while longer: an engine that
is killed may lose its last seconds, and is then sent them again.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import cramjam

from cluster_dash_server.history.remote.encoding import Encoder, can_be_told
from cluster_dash_server.history.remote.engine import Access, Answer, Connection, EngineError, refusal
from cluster_dash_server.store import Figures

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20
"""What may wait here and be on its way, in memory; moles hold what comes after."""
MOST_SERIES = 5_000
"""Series in a request at most."""
OLD_SECONDS = 600.0
"""What is older never shares a request with what is new: some engines refuse both together."""
RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 30.0
MOST_FAILURES = 5
"""After so many failures of one request, while others pass, it is looked for what in it makes the engine fail."""
SAY_SECONDS = 60.0
HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": "cluster-dash-server",
}
_ROW_BYTES = 600
_HALVED = (400, 413, 422)
_AWAY_BEHIND = (502, 503, 504)
"""What a proxy answers whose engine went: that may lack its last seconds, though no connection of ours broke.

Only after another failure: one alone is said by engines that are busy too, and would else keep all from being settled.
"""


def packed(body: bytes | bytearray) -> bytes:
    """Pack a request as engines want it."""
    return bytes(cramjam.snappy.compress_raw(body))


class Item(Protocol):
    """What is settled as a whole: a snapshot, or what a minute added up to."""

    at: float
    size: int

    @property
    def whose(self) -> str:
        """Return of which host it is, or of what else."""

    def series(self) -> int:
        """Return how many series it has, about."""

    def encoded(self, encoder: Encoder) -> bytes:
        """Return all of it."""

    def parts(self, encoder: Encoder) -> list[bytes]:
        """Return its series one by one."""


@dataclass(slots=True)
class Snapshot:
    """The figures of a snapshot, to be written."""

    row: Figures
    at: float
    size: int

    @classmethod
    def of(cls, row: Figures) -> "Snapshot":
        """Take a row."""
        return cls(row, row.at, _ROW_BYTES + 4 * len(row.values))

    @property
    def whose(self) -> str:
        """See `Item`."""
        return self.row.host

    def series(self) -> int:
        """See `Item`."""
        return len(self.row.values)

    def encoded(self, encoder: Encoder) -> bytes:
        """See `Item`."""
        return encoder.encoded(self.row)

    def parts(self, encoder: Encoder) -> list[bytes]:
        """See `Item`."""
        return encoder.parts(self.row)


@dataclass(slots=True)
class Minute:
    """The samples of a minute, to be written."""

    encoded_parts: list[bytes]
    at: float
    size: int

    @classmethod
    def of(cls, at: float, parts: list[bytes]) -> "Minute":
        """Take encoded samples."""
        return cls(parts, at, sum(map(len, parts)))

    @property
    def whose(self) -> str:
        """See `Item`."""
        return ""  # of the cluster

    def series(self) -> int:
        """See `Item`."""
        return len(self.encoded_parts)

    def encoded(self, encoder: Encoder) -> bytes:
        """See `Item`."""
        return b"".join(self.encoded_parts)

    def parts(self, encoder: Encoder) -> list[bytes]:
        """See `Item`."""
        return self.encoded_parts


@dataclass(slots=True)
class _Piece:
    """An item, or one series of it while it is looked for a bad one."""

    item: Item
    body: bytes | None = None


@dataclass(slots=True, eq=False)
class _Batch:
    """What goes in one request."""

    pieces: list[_Piece]
    failures: int = 0
    passed_before: int = 0


@dataclass(slots=True)
class _Lane:
    """What waits in an order of its own: the new, or the old."""

    waiting: deque[Item] = field(default_factory=deque)
    batches: deque[_Batch] = field(default_factory=deque)
    not_before: float = 0.0
    failures: int = 0
    passed: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.batches

    def next(self) -> _Batch:
        """Return what goes next, the first of the batches."""
        if not self.batches:
            items: list[_Piece] = []
            count = 0
            while self.waiting and (not items or count + self.waiting[0].series() <= MOST_SERIES):
                count += self.waiting[0].series()
                items.append(_Piece(self.waiting.popleft()))
            self.batches.append(_Batch(items))
        return self.batches[0]


class Sender:
    """Sends items to an engine until they are settled; `send` is called by one thread, `room` by any.

    Args:
        access: where the engine is.
        encoder: makes requests of items.
        settled: told of items that are in the engine for good, or never will be.
        clock: Unix s.
        settle_seconds: for how long a connection must live on after a yes.
        window_seconds: what is older is not sent; None: the engine takes any age.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        access: Access,
        encoder: Encoder,
        settled: Callable[[Iterable[Item]], None],
        *,
        clock: Callable[[], float],
        settle_seconds: float,
        window_seconds: float | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trouble: str | None = None
        self.refused = 0
        self.too_old = 0
        self._connection = Connection(access.write_url, access)
        self._where = urlsplit(access.write_url).netloc
        self._encoder = encoder
        self._settled = settled
        self._clock = clock
        self._monotonic = monotonic
        self._settle_seconds = settle_seconds
        self._window_seconds = window_seconds
        self._lanes = (_Lane(), _Lane())
        self._on_trial: deque[tuple[float, _Lane, list[_Piece]]] = deque()
        self._left: dict[int, int] = {}
        self._short_lived = 0
        self._took: _Piece | None = None  # what the engine took last
        self._said_yes = False  # to the last request
        self._said_at = float("-inf")
        self._bytes = 0
        self._lock = threading.Lock()

    # ---------------------------------------------------------------------------------------------------- taking

    def reserve(self, size: int) -> bool:
        """Keep room for an item that will be put; False where there is none."""
        with self._lock:
            if self._bytes + size > MOST_BYTES:
                return False
            self._bytes += size
            return True

    def put(self, items: Iterable[Item]) -> None:
        """Take items for which room was reserved."""
        now = self._clock()
        gone: list[Item] = []
        for item in items:
            is_outside = self._window_seconds is not None and item.at < now - self._window_seconds
            if is_outside or not can_be_told(item.at):
                gone.append(item)
            else:
                self._lanes[item.at < now - OLD_SECONDS].waiting.append(item)
        if gone:
            self.too_old += len(gone)
            self._say(f"{self.too_old} snapshots so far are not sent: older than window_seconds, or of a year far off")
            self._done(gone)

    def begin_anew(self) -> None:
        """Let go of all that is here, and of the room that it has, that of items too that were not put yet."""
        self._connection.close()
        self._lanes = (_Lane(), _Lane())
        self._on_trial.clear()
        self._left.clear()
        self._took = None
        with self._lock:
            self._bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether all was sent that is here."""
        return all(lane.is_empty for lane in self._lanes)

    # --------------------------------------------------------------------------------------------------- sending

    def send(self, *, is_last_try: bool = False) -> float:
        """Send what is due; return in how many seconds something will be.

        Args:
            is_last_try: once, whatever the last failure said of when.
        """
        waits = []
        for lane in self._lanes:
            tried = False
            while not lane.is_empty and not (is_last_try and tried):
                wait = lane.not_before - self._monotonic()
                if wait > 0 and not is_last_try:
                    waits.append(wait)
                    break
                tried = not self._send(lane)
        if self._on_trial and self.is_idle:
            wait = self._on_trial[0][0] + self._settle_seconds - self._monotonic()
            if wait <= 0:
                self._probe()
            else:
                waits.append(wait)
        return min(waits, default=float("inf"))

    def _send(self, lane: _Lane) -> bool:
        """Send the next batch of a lane; False where it failed and is to be tried again."""
        batch, said_yes = lane.next(), self._said_yes
        body = self._body(batch)
        if not batch.pieces:
            lane.batches.remove(batch)
            return True
        answer = self._post(body)
        if answer is None:
            self._fail(lane)
            return False
        if answer.is_good:
            lane.batches.remove(batch)  # what is sent again may stand before it now
            self._hear_yes(lane, batch.pieces, answer)
            return True
        if answer.status in _HALVED:
            return self._find_what_is_refused(lane, batch, answer, said_yes=said_yes)
        self._tell(refusal(answer))
        if answer.status >= 500:
            if answer.status in _AWAY_BEHIND and lane.failures:
                self._again()
            other = self._other(lane)
            if not batch.failures:
                batch.passed_before = other.passed
            batch.failures += 1
            if batch.failures >= MOST_FAILURES and other.passed > batch.passed_before:
                self._halve(lane, batch, answer)
                return True
        self._fail(lane, answer.retry_after)
        return False

    def _other(self, lane: _Lane) -> _Lane:
        return self._lanes[lane is self._lanes[0]]

    def _hear_yes(self, lane: _Lane, pieces: list[_Piece], answer: Answer) -> None:
        lane.failures, lane.not_before = 0, 0.0
        lane.passed += 1
        if pieces:
            self._took = pieces[-1]
        self.trouble = None
        self._take_yes(lane, pieces, answer)

    def _find_what_is_refused(self, lane: _Lane, batch: _Batch, answer: Answer, *, said_yes: bool) -> bool:
        """Halve a batch, or let go of what stands alone, where the engine takes others: then it is that which is bad.

        Args:
            lane: of the batch.
            batch: what was refused.
            answer: how.
            said_yes: whether the request before was taken.

        Returns:
            False where it takes nothing: a wrong path, a proxy, a limit. Nothing is bad, and all is tried again.
        """
        if self._took is None and len(batch.pieces) == 1 and batch.pieces[0].body is None:
            batch.pieces = self._parts(batch.pieces[0].item)  # else there may be nothing else to try
        is_alone = len(batch.pieces) == 1
        if (said_yes and not is_alone) or self._takes_others(lane, batch):
            if is_alone or len(batch.pieces) > 1:
                self._halve(lane, batch, answer)
            return True
        self._tell(f"{refusal(answer)}, whatever it is sent")
        self._fail(lane, answer.retry_after)
        return False

    def _takes_others(self, lane: _Lane, batch: _Batch) -> bool:
        """Say whether the engine takes something else than a batch: what it took before, or what waits."""
        if self._took is not None:
            answer = self._post(self._encoded(self._took))
            if answer is not None and answer.is_good:
                self._settle(self._monotonic(), answer)
                return True
            if answer is None or answer.status not in _HALVED:
                return False
        for where, piece in self._others(lane, batch):
            try:
                body = self._encoded(piece)
            except Exception as error:  # said and let go of in its turn
                log.debug("%r", error)
                continue
            answer = self._post(body)
            if answer is not None and answer.is_good:
                if where.waiting and where.waiting[-1] is piece.item:
                    where.waiting.pop()
                else:
                    batch.pieces = [each for each in batch.pieces if each is not piece]
                self._hear_yes(where, [piece], answer)
                return True
            if answer is None or answer.status not in _HALVED:
                return False
        return False

    def _others(self, lane: _Lane, batch: _Batch) -> Iterator[tuple[_Lane, _Piece]]:
        """Give some of what waits: two of a batch, then the newest that there is."""
        # first of their host: there are engines that take nothing older of it afterwards
        firsts: dict[object, _Piece] = {}
        for piece in batch.pieces if len(batch.pieces) > 1 else ():
            firsts.setdefault(piece.item.whose if piece.body is None else id(piece), piece)
        for piece in random.sample(list(firsts.values()), min(2, len(firsts))):
            yield lane, piece
        for where in (lane, self._other(lane)):
            if where.waiting:
                yield where, _Piece(where.waiting[-1])

    def _encoded(self, piece: _Piece) -> bytes:
        return piece.item.encoded(self._encoder) if piece.body is None else piece.body

    def _body(self, batch: _Batch) -> bytes | bytearray:
        """Return a request; what cannot be said in one is counted and let go of."""
        try:
            return self._joined(batch.pieces)
        except Exception as error:  # of any of them: which one is found below
            log.debug("%r", error)
        left = []
        for piece in batch.pieces:
            try:
                self._encoded(piece)
                left.append(piece)
            except Exception as error:  # whatever it is that is odd in one: the others must not wait for it
                self.refused += 1
                self._say(f"a snapshot cannot be written: {error!r}")
                self._finish([piece])
        batch.pieces = left
        return self._joined(left)

    def _joined(self, pieces: Sequence[_Piece]) -> bytes | bytearray:
        rows, others = [], []
        for piece in pieces:
            if piece.body is None and isinstance(piece.item, Snapshot):
                rows.append(piece.item.row)
            else:
                others.append(self._encoded(piece))
        body = self._encoder.together(rows)
        body += b"".join(others)
        return body

    def _post(self, body: bytes | bytearray) -> Answer | None:
        """Post a request; None where no answer came. What is on trial on a connection that broke is sent again."""
        count = self._connection.count
        self._said_yes = False
        try:
            answer = self._connection.post("", packed(body), HEADERS)
        except EngineError as error:
            self._again()
            self._tell(str(error))
            return None
        except OSError as error:  # the file of the token
            self._tell(f"[history] bearer_file: {error}")
            return None
        if self._connection.count != count and self._on_trial:
            self._again()
        self._said_yes = answer.is_good and bool(body)
        return answer

    def _probe(self) -> None:
        """Ask by a request of nothing whether the connection still lives, so that what is on trial can be settled."""
        answer = self._post(b"")
        if answer is not None:
            self._settle(self._monotonic(), answer)

    def _fail(self, lane: _Lane, retry_after: float | None = None) -> None:
        wait = min(MOST_RETRY_SECONDS, RETRY_SECONDS * 2.0**lane.failures) * random.uniform(0.8, 1.2)
        lane.failures = min(lane.failures + 1, 10)
        lane.not_before = self._monotonic() + max(wait, min(retry_after or 0.0, 10 * MOST_RETRY_SECONDS))

    def _halve(self, lane: _Lane, batch: _Batch, answer: Answer) -> None:
        """Part a batch that the engine refuses, until what is bad stands alone; that is counted and let go of."""
        place = lane.batches.index(batch)
        lane.batches.remove(batch)
        pieces = batch.pieces
        if len(pieces) == 1 and pieces[0].body is None:
            pieces = self._parts(pieces[0].item)
        if len(pieces) == 1:
            self.refused += 1
            self._say(f"the engine at {self._where} refused {self.refused} samples so far: {refusal(answer)}")
            self._finish(pieces)
            return
        middle = len(pieces) // 2
        for half in (pieces[middle:], pieces[:middle]):
            lane.batches.insert(place, _Batch(half, max(0, batch.failures - 1), batch.passed_before))

    def _parts(self, item: Item) -> list[_Piece]:
        """Return an item in its series."""
        pieces = [_Piece(item, body) for body in item.parts(self._encoder)]
        self._left[id(item)] = len(pieces)
        return pieces

    # -------------------------------------------------------------------------------------------------- settling

    def _take_yes(self, lane: _Lane, pieces: list[_Piece], answer: Answer) -> None:
        now = self._monotonic()
        if self._settle_seconds <= 0:
            self._finish(pieces)
            return
        self._on_trial.append((now, lane, pieces))
        self._settle(now, answer)

    def _settle(self, now: float, answer: Answer) -> None:
        """Settle what was said yes to long enough ago on the connection that has just answered."""
        while self._on_trial and self._on_trial[0][0] + self._settle_seconds <= now:
            self._finish(self._on_trial.popleft()[2])
        if answer.is_kept:
            self._short_lived = 0
            return
        self._short_lived += 1
        if self._short_lived > 1 and self._on_trial:
            self.trouble = (
                f"the engine at {self._where}, or a proxy before it, ends each connection: nobody can see there "
                "whether it was started anew; let it keep connections, or set [history] settle_seconds = 0"
            )
            self._short_lived = 0
            self._not_now()
        self._again()

    def _not_now(self) -> None:
        for lane in self._lanes:
            lane.not_before = self._monotonic() + MOST_RETRY_SECONDS

    def _again(self) -> None:
        """Put what is on trial back in front: the connection broke, and with it the engine may have."""
        while self._on_trial:
            _, lane, pieces = self._on_trial.pop()
            lane.batches.appendleft(_Batch(pieces))

    def _finish(self, pieces: Sequence[_Piece]) -> None:
        """Tell of items of which all pieces are settled or refused."""
        done = []
        for piece in pieces:
            if piece.body is not None:
                self._left[id(piece.item)] -= 1
                if self._left[id(piece.item)]:
                    continue
                del self._left[id(piece.item)]
            done.append(piece.item)
        self._done(done)

    def _done(self, items: Sequence[Item]) -> None:
        with self._lock:
            self._bytes -= sum(item.size for item in items)
        self._settled(items)

    # --------------------------------------------------------------------------------------------------- telling

    def _tell(self, why: str) -> None:
        trouble = (
            why
            if why.startswith("[history]")
            else f"the engine at {self._where}: {why.removeprefix(f'{self._where}: ')}"
        )
        if self.trouble is None:
            log.error("history cannot be written: %s; the live view goes on", trouble)
        self.trouble = trouble

    def _say(self, text: str) -> None:
        """Log what is no trouble, at most once a minute."""
        now = self._monotonic()
        if now - self._said_at >= SAY_SECONDS:
            self._said_at = now
            log.warning("history: %s", text)

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()
