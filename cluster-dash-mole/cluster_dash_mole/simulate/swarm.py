"""The sending of a simulated fleet: one thread, a connection for each post as moles make them, thousands at a time.

An event loop of our own, as each post costs little else: 1,000 a second take a small part of a core.
"""

import errno
import heapq
import math
import re
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster_dash_mole.senders.http.exchange import TOTAL_SECONDS

PROGRESS_SECONDS = 5.0
_STARTS_AT_ONCE = 32  # then answers get their turn
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Latencies:
    """How long posts took, in buckets that are 2 % wide, so that a night of them takes a few KiB."""

    _WIDTH = math.log(1.02)

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.max_ms: float | None = None

    def add(self, ms: float) -> None:
        """Count one."""
        self._counts[math.ceil(math.log(max(ms, 0.01)) / self._WIDTH)] += 1
        self.max_ms = ms if self.max_ms is None else max(ms, self.max_ms)

    def merge(self, other: "Latencies") -> None:
        """Count those of another, too."""
        self._counts += other._counts  # positive ones only: a bucket has no other
        if other.max_ms is not None:
            self.max_ms = other.max_ms if self.max_ms is None else max(self.max_ms, other.max_ms)

    def percentile(self, share: float) -> float | None:
        """Return the time (ms) within which a share of the posts, of 1, was answered; None where there were none."""
        wanted = share * self._counts.total()
        for bucket in sorted(self._counts):
            wanted -= self._counts[bucket]
            if wanted <= 0:
                return math.exp(bucket * self._WIDTH)
        return None


@dataclass(slots=True)
class Tally:
    """What became of posts.

    Attributes:
        statuses: how often each HTTP status was answered.
        refused: connections that the server refused.
        timeouts: posts without an answer in time.
        failed: those that ended in any other way.
        late: rounds left out, as the post before was still under way or this process is too slow.
        latencies: of those that were answered.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    timeouts: int = 0
    failed: int = 0
    late: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def merge(self, other: "Tally") -> None:
        """Add another up."""
        self.statuses += other.statuses
        self.refused += other.refused
        self.timeouts += other.timeouts
        self.failed += other.failed
        self.late += other.late
        self.latencies.merge(other.latencies)

    def words(self, seconds: float) -> str:
        """Say it in a line."""
        answered = self.statuses.total()
        others = ", ".join(f"{count} × {status}" for status, count in sorted(self.statuses.items()) if status != 200)
        p50, p99 = (_ms(self.latencies.percentile(share)) for share in (0.5, 0.99))
        troubles = [
            f"{getattr(self, name)} {word}"
            for name, word in (
                ("refused", "refused"),
                ("timeouts", "timed out"),
                ("failed", "failed"),
                ("late", "late"),
            )
        ]
        return "; ".join(
            [f"{answered / seconds:,.1f} posts/s answered", f"p50 {p50}, p99 {p99}", ", ".join(troubles)]
            + ([f"answers other than 200: {others}"] if others else [])
        )


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


@dataclass(slots=True, eq=False)
class _Post:
    """A post under way."""

    place: int
    connection: socket.socket
    began: float
    unsent: memoryview
    answer: bytearray = field(default_factory=bytearray)


class Swarm:
    """Posts for many hosts, each on its own phase of the interval, each over a connection of its own.

    Args:
        family: the socket's.
        peer: the address to connect to, as `getpeername` gives it.
        head: the request line and headers of a post, each line with its end, but for Content-Length.
        bodies: one function a host: the time (Unix s) to the body of its post; None: it posts nothing this round.
        interval_seconds: between two posts of a host.
        most_open: how many connections may be open at a time.
    """

    def __init__(
        self,
        *,
        family: int,
        peer: object,
        head: Callable[[float], bytes],
        bodies: Sequence[Callable[[float], bytes | None]],
        interval_seconds: float,
        most_open: int,
    ) -> None:
        self._family = family
        self._peer = peer
        self._head = head
        self._bodies = bodies
        self._interval = interval_seconds
        self._most_open = most_open
        self._selector = selectors.DefaultSelector()
        self._open: dict[int, _Post] = {}  # by place, the oldest first
        self._due: list[tuple[float, int]] = []
        self._window = Tally()
        self._total = Tally()

    def total(self) -> Tally:
        """Return what became of all posts so far."""
        self._total.merge(self._window)
        self._window = Tally()
        return self._total

    def run(self, seconds: float | None, say: Callable[[str], None]) -> None:
        """Post until the time is over (None: for ever), and say every few seconds how it goes."""
        began = said = time.monotonic()
        until = math.inf if seconds is None else began + seconds
        step = self._interval / len(self._bodies)
        self._due = [(began + place * step, place) for place in range(len(self._bodies))]
        try:
            while (now := time.monotonic()) < until:
                self._start_due(now)
                if now - said >= PROGRESS_SECONDS:
                    say(f"{now - began:.0f} s: {self._window.words(now - said)}")
                    said = now
                    self.total()
                wake = min(self._due[0][0], until, said + PROGRESS_SECONDS)
                for key, _ in self._selector.select(max(0.0, wake - time.monotonic())):
                    self._continue(key.data)
                self._give_up_on_slow(time.monotonic())
        finally:
            for post in list(self._open.values()):  # under way when the time is over
                self._end(post)
            self._selector.close()

    def _start_due(self, now: float) -> None:
        for _ in range(_STARTS_AT_ONCE):
            due, place = self._due[0]
            if due > now:
                return
            missed = int((now - due) / self._interval)  # whole rounds gone by
            self._window.late += missed
            heapq.heapreplace(self._due, (due + (1 + missed) * self._interval, place))
            if place in self._open or len(self._open) >= self._most_open:
                self._window.late += 1
                continue
            at = time.time()
            body = self._bodies[place](at)
            if body is not None:
                self._start(place, b"%bContent-Length: %d\r\n\r\n%b" % (self._head(at), len(body), body))

    def _start(self, place: int, request: bytes) -> None:
        try:
            connection = socket.socket(self._family, socket.SOCK_STREAM)
        except OSError:
            self._window.failed += 1
            return
        connection.setblocking(False)
        post = _Post(place, connection, time.monotonic(), memoryview(request))
        self._open[place] = post
        code = connection.connect_ex(self._peer)  # type: ignore[arg-type] # as getpeername gave it
        if code not in (0, errno.EINPROGRESS):
            self._failed(post, code)
            return
        self._selector.register(connection, selectors.EVENT_WRITE, post)
        self._continue(post)  # on this machine it is connected by now

    def _continue(self, post: _Post) -> None:
        try:
            if post.unsent:
                post.unsent = post.unsent[post.connection.send(post.unsent) :]
                if not post.unsent:
                    self._selector.modify(post.connection, selectors.EVENT_READ, post)
                return
            got = post.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(post, error.errno)
            return
        post.answer += got
        if got and not _is_whole(post.answer):
            return
        found = _STATUS.match(post.answer)
        if found is None:
            self._failed(post, None)
            return
        self._end(post)
        self._window.statuses[int(found[1])] += 1
        self._window.latencies.add((time.monotonic() - post.began) * 1000)

    def _failed(self, post: _Post, code: int | None) -> None:
        self._end(post)
        if code == errno.ECONNREFUSED:
            self._window.refused += 1
        elif code == errno.ETIMEDOUT:
            self._window.timeouts += 1
        else:
            self._window.failed += 1

    def _end(self, post: _Post) -> None:
        del self._open[post.place]
        if post.connection in self._selector.get_map():
            self._selector.unregister(post.connection)
        post.connection.close()

    def _give_up_on_slow(self, now: float) -> None:
        while self._open:
            oldest = next(iter(self._open.values()))
            if now - oldest.began < TOTAL_SECONDS:
                return
            self._failed(oldest, errno.ETIMEDOUT)


def _is_whole(answer: bytearray) -> bool:
    """Say whether an answer is complete; one that does not say its length is when the server closes."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = _LENGTH.search(answer, 0, end + 2)
    return length is not None and len(answer) >= end + 4 + int(length[1])
