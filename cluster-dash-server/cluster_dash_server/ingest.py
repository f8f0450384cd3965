"""A post, from bytes to the live view: a pure function of the request and the clock. Knows no HTTP library."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple, Protocol

from cluster_dash_server.access.auth import Auth, AuthError, Caller
from cluster_dash_server.cluster import Cluster, Refused
from cluster_dash_server.entries import Entries, entries_of
from cluster_dash_server.figures import figures
from cluster_dash_server.inflate import InflateError, inflate
from cluster_dash_server.pace import Pace
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.slurm import check as check_slurm
from cluster_dash_server.snapshot import Json, Seen, SnapshotError, decode, decode_by_types, dumps, printable, read
from cluster_dash_server.store import Store

log = logging.getLogger(__name__)


LINES_A_MINUTE = 100
"""Refusals of a minute that are logged one by one."""
LARGE_BODY_BYTES = 2**20
LARGE_BODIES = 2
"""Bodies above that size which are worked on at once: each takes some ten times its size while it is."""
AT_ONCE_BYTES = 65_536
"""What is taken without a thread, inflated: some five times what a host with 8 GPUs sends; to read it takes 10 ms."""
RELAYED = "relayed-dates"
"""The header of a batch that a relay has put together: when each line was sent by its mole's clock, Unix s, `-` where
it did not say. Such a batch is of live posts, and its answer holds the answer to each of them."""
REFUSALS = (SnapshotError, AuthError, InflateError, Refused)
"""What a snapshot may be refused with; each has a `status` and a `text`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the server takes: the section `[limits]` of the settings."""

    max_hosts: int = field(
        default=10_000, metadata={"help": "hosts in the live view; one more is answered 429", "minimum": 1}
    )
    new_hosts_per_minute: int = field(
        default=600,
        metadata={
            "help": "hosts not seen before, in a minute; this machine itself is free; counted by each replica",
            "minimum": 1,
        },
    )
    gpus: int = field(default=64, metadata={"help": "GPUs of one host", "minimum": 1})
    processes: int = field(default=2000, metadata={"help": "processes on the GPUs of one host", "minimum": 1})
    mounts: int = field(default=500, metadata={"help": "disks of one host", "minimum": 1})
    body_bytes: int = field(default=2 * 2**20, metadata={"help": "size of a post as it comes in", "minimum": 1024})
    inflated_bytes: int = field(
        default=8 * 2**20, metadata={"help": "size of a snapshot when inflated", "minimum": 1024}
    )
    batch_bytes: int = field(default=4 * 2**20, metadata={"help": "size of a batch when inflated", "minimum": 1024})
    kept_bytes: int = field(
        default=2**28,
        metadata={"help": "the newest snapshots of all hosts, packed; one more is answered 429", "minimum": 2**20},
    )
    batch_lines: int = field(default=100, metadata={"help": "snapshots in a batch", "minimum": 1})
    failures_per_minute: int = field(
        default=10,
        metadata={
            "help": "wrong secrets of one address in a minute, after which it hears 429; 0: any number; "
            "counted by each replica",
            "minimum": 0,
        },
    )


class _Later(Exception):
    """To take it might mean to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One request to store a snapshot.

    Attributes:
        headers: by lower-case name; `authorization`, `content-encoding`, `date` and `relayed-dates` are read.
        waited_seconds: how long it has lain here until a thread was free.
    """

    caller: Caller
    headers: Mapping[str, str]
    body: bytes
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to answer: an HTTP status and a JSON object; `retry_after_seconds` with 429 and 503."""

    status: int
    body: Json
    retry_after_seconds: int | None = None


class History(Store, Protocol):
    """A store that may be away."""

    @property
    def keeps(self) -> bool:
        """Whether what is taken is written, at once or as soon as it can be."""

    @property
    def trouble(self) -> str | None:
        """Why it is not written now; None: it is."""


class _Taken(NamedTuple):
    """What became of a snapshot; boot_id is None where it has no identity."""

    host: str
    boot_id: str | None = None
    oldest_seq: int | None = None
    duplicate: bool = False
    next_seconds: float | None = None


class Ingest:
    """Limits, JSON, authentication, schema, live view: in this order, each refusal by its row of the contract.

    Args:
        cluster: takes what passes.
        auth: who may post.
        check: the schema (`snapshot.checker`).
        limits: how much is taken.
        clock: Unix s; the time of receipt.
        slurm: takes what a mole says of Slurm.
        history: keeps the figures; None: nobody does.
        pace: slows moles down before they are too many.
        veil: takes out of a snapshot the names that nobody is to know; None: there are none.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        auth: Auth,
        check: Callable[[Json], None],
        limits: Limits,
        clock: Callable[[], float],
        slurm: Slurm | None = None,
        history: History | None = None,
        pace: Pace | None = None,
        veil: Callable[[Json], Json] | None = None,
    ) -> None:
        self._history = history
        self._pace = pace or Pace()
        self._veil = veil
        self._slurm = slurm or Slurm()
        self.limits = limits
        self._cluster = cluster
        self._auth = auth
        self._check = check
        self._clock = clock
        self._lock = threading.Lock()
        self._large_bodies = threading.BoundedSemaphore(LARGE_BODIES)
        self._refusals_in = (0, 0)  # a minute, and how many posts were refused in it
        self._new_hosts: deque[float] = deque()  # when each host of the last minute that was not known came

    def __call__(self, post: Post) -> Answer:
        """Take one snapshot, or say why not; never raises."""
        if (late := self._too_late(post)) is not None:
            return late
        try:
            body = self._open(post, self.limits.inflated_bytes)
            taken = self._take(body, post, self._clock(), date(post.headers.get("date")))
        except REFUSALS as refusal:
            return self._refuse(refusal, post)
        return Answer(status=200, body=self._said_of(taken))

    def at_once(self, post: Post) -> Answer | None:
        """Take one snapshot as a call does; None: nothing was done, for it is large, or might wait for a disk."""
        if self._auth.waits(self._clock()):
            return None
        if (late := self._too_late(post)) is not None:
            return late
        try:
            body = self._open(post, AT_ONCE_BYTES)
            taken = self._take_now(body, post, self._clock(), date(post.headers.get("date")), at_once=True)
        except _Later:
            return None
        except REFUSALS as refusal:
            return None if refusal.status == 413 else self._refuse(refusal, post)
        return Answer(status=200, body=self._said_of(taken))

    def _said_of(self, taken: _Taken) -> Json:
        """Word the answer to one snapshot that was taken."""
        said: Json = {"success": True, "msg": "stored result"}
        if taken.boot_id is not None:
            said |= {"duplicate": taken.duplicate, "next_seconds": taken.next_seconds}
            if self._history is not None and self._history.keeps:
                said["durable_seq"] = self._history.durable_seq(taken.host, taken.boot_id, taken.oldest_seq)
        return said

    def batch(self, post: Post) -> Answer:
        """Take many snapshots, one a line, each for itself; never raises.

        The answer names each line that was refused, with the status it would have had alone. Where not one line could
        be taken for want of room, or while other batches have their turn, the whole batch is answered 429; while
        history can't be written, 503. What a relay has put together are live posts, which wait for neither.
        """
        if (late := self._too_late(post)) is not None:
            return late
        if RELAYED in post.headers:
            return self._batch(post)
        if self._history is not None and self._history.keeps and self._history.trouble is not None:
            return refused(503, f"history: {self._history.trouble}: try again later")
        wait_seconds = self._pace.begin_backlog()
        if wait_seconds is not None:
            return refused(429, "body: other backlogs have their turn", wait_seconds)
        began = time.monotonic()
        try:
            return self._batch(post)
        finally:
            self._pace.end_backlog(time.monotonic() - began)

    def _too_late(self, post: Post) -> Answer | None:
        """Refuse a post unread that has waited so long that its mole will not wait for the answer."""
        wait_seconds = self._pace.waited(post.waited_seconds)
        if wait_seconds is None:
            return None
        return refused(503, f"request: the server is behind by {post.waited_seconds:.0f} s", wait_seconds)

    def _batch(self, post: Post) -> Answer:
        try:
            whole = self._open(post, self.limits.batch_bytes)
            # in JSON both may only stand between values; to look for one of them takes a tenth of the time
            lines = [line for line in (whole.splitlines() if b"\r" in whole else whole.split(b"\n")) if line.strip()]
            if lines and not lines[0].rstrip().endswith(b"}"):
                lines = [whole]  # one snapshot, laid out over lines
            if len(lines) > self.limits.batch_lines:
                raise SnapshotError(f"body: {len(lines)} lines, limit {self.limits.batch_lines}", 413)
            if not lines:
                raise SnapshotError("body: no snapshot in it")
            relayed = post.headers.get(RELAYED)
            sent_at = [date(post.headers.get("date"))] * len(lines) if relayed is None else _dates(relayed, len(lines))
        except REFUSALS as refusal:
            return self._refuse(refusal, post)
        now = self._clock()
        duplicates = 0
        rejected: list[Json] = []
        answers: list[Json] = []
        boots: dict[tuple[str, str], int | None] = {}
        for number, line in enumerate(lines):
            try:
                taken = self._take(line, post, now, sent_at[number])
                duplicates += taken.duplicate
                if relayed is not None:
                    answers.append({"status": 200, **self._said_of(taken)})
                elif taken.boot_id is not None:
                    boots[taken.host, taken.boot_id] = taken.oldest_seq
            except REFUSALS as refusal:
                rejected.append({"line": number, "status": refusal.status, "msg": refusal.text})
                answers.append({"status": refusal.status, **refused(refusal.status, refusal.text).body})
        if relayed is None and len(rejected) == len(lines) and all(each["status"] == 429 for each in rejected):
            return refused(429, rejected[0]["msg"])
        if rejected and self._is_worth_a_line():
            first, which = rejected[0], f"{len(rejected)} of {len(lines)} lines"
            why = f"{first['status']}: {printable(first['msg'])}"
            log.info("refused %s from %s, such as %s", which, post.caller.peer, why)
        body = {"accepted": len(lines) - len(rejected) - duplicates, "duplicates": duplicates, "rejected": rejected}
        if relayed is not None:
            return Answer(status=200, body={"success": True, **body, "answers": answers})
        return Answer(status=200, body={"success": True, **body, "durable": self._durable(boots)})

    def _durable(self, boots: Mapping[tuple[str, str], int | None]) -> list[Json]:
        """Return what of each boot of a host is in history, of those of which something is."""
        history = self._history
        if history is None or not history.keeps:
            return []
        found = [
            {"hostname": host, "boot_id": boot_id, "seq": history.durable_seq(host, boot_id, oldest_seq)}
            for (host, boot_id), oldest_seq in boots.items()
        ]
        return [each for each in found if each["seq"] is not None]

    def _open(self, post: Post, inflated_bytes: int) -> bytes:
        """Return the body of a request as it was before it was compressed."""
        if post.caller.from_a_page:
            raise AuthError(403, "Origin: a page in a browser may not post snapshots")
        if len(post.body) > self.limits.body_bytes:
            raise SnapshotError(f"body: {len(post.body)} bytes, limit {self.limits.body_bytes}", 413)
        body = inflate(post.body, post.headers.get("content-encoding"), inflated_bytes)
        if len(body) > inflated_bytes:
            raise SnapshotError(f"body: {len(body)} bytes, limit {inflated_bytes}", 413)
        return body

    def _take(self, body: bytes, post: Post, received_at: float, sent_at: float | None) -> _Taken:
        """Take one snapshot; return what its answer tells."""
        if len(body) <= LARGE_BODY_BYTES:
            return self._take_now(body, post, received_at, sent_at)
        with self._large_bodies:
            return self._take_now(body, post, received_at, sent_at)

    def _take_now(
        self, body: bytes, post: Post, received_at: float, sent_at: float | None, *, at_once: bool = False
    ) -> _Taken:
        # a veil takes names out of JSON, so it is given all as such
        decoded = (decode_by_types if self._veil is None else decode)(body)
        snapshot, presented, compact, entries, is_checked = decoded
        if presented in (None, ""):
            presented = bearer(post.headers.get("authorization"))
        token = self._auth.admit(presented, post.caller, received_at)
        if token is not None:
            if at_once and token.binds(snapshot.get("machine_id")):
                raise _Later  # that is written down
            self._auth.refuse_another(token, snapshot)
        try:
            if not is_checked:
                self._check(snapshot)
            if block := snapshot.get("slurm"):
                check_slurm(block)
        except SnapshotError as error:  # it quotes what is wrong, and that may be the secret in another field
            raise SnapshotError(error.text.replace(str(presented), "***"), error.status) from None
        if self._veil is not None:
            snapshot = self._veil(snapshot)
            compact = dumps(snapshot)
            block = snapshot.get("slurm")
        if entries is None:
            entries = entries_of(snapshot["gpu"])
        skew_seconds = None if sent_at is None else sent_at - received_at
        seen = read(snapshot, received_at=received_at, skew_seconds=skew_seconds, entries=entries, packed=compact)
        self._refuse_too_many(snapshot, entries, seen)
        if token is None:
            self._refuse_a_flood_of_names(seen.host, post.caller, received_at)
        spool = snapshot.get("spool") or {}
        backlog = spool.get("backlog") is True
        is_new = self._keep(snapshot, entries, seen, backlog=backlog)
        if block and not backlog:
            self._slurm.offer(seen.host, block, received_at)
        self._auth.used(token, seen.host, seen.machine_id, received_at)
        if seen.boot_id is None or seen.seq is None:
            return _Taken(seen.host)
        return _Taken(
            seen.host, seen.boot_id, spool.get("oldest_seq"), not is_new, self._pace.next_seconds(seen.interval_seconds)
        )

    def _keep(self, snapshot: Json, entries: Entries, seen: Seen, *, backlog: bool) -> bool:
        """Give a snapshot to the live view and to history; False where it was taken before."""
        history = self._history
        if history is None or not history.keeps:
            return self._cluster.offer(seen, backlog=backlog)
        if seen.boot_id is not None and seen.seq is not None and history.knows(seen.host, seen.boot_id, seen.seq):
            return False
        is_new = self._cluster.offer(seen, backlog=backlog)
        # also what the live view has: it may have been let go while history could not be written
        history.append(figures(snapshot, entries, seen, self._cluster.thresholds))
        return is_new

    def _refuse_too_many(self, snapshot: Json, entries: Entries, seen: Seen) -> None:
        """Refuse what no real host has: pages and memory must stay bounded."""
        users = [gpu.users for gpu in seen.gpus if gpu.users]
        if "gpu_error" in entries:  # no GPU that anybody sees, but kept and told as it came
            of_error = entries["gpu_error"].users or {}
            users.append({user: len(processes) for user, processes in of_error.items()})
        counts = (
            ("gpu", "entries", len(entries), self.limits.gpus),
            ("gpu.users", "processes", sum([sum(each.values()) for each in users]), self.limits.processes),
            ("gpu.users", "users", sum(map(len, users)), self.limits.processes),
            ("disk", "entries", len(snapshot.get("disk") or ()), self.limits.mounts),
        )
        for name, what, count, limit in counts:
            if count > limit:
                raise SnapshotError(f"{name}: {count} {what}, limit {limit}", 422)

    def _refuse_a_flood_of_names(self, host: str, caller: Caller, now: float) -> None:
        """Refuse invented host names at a high rate, by which one secret could fill the live view."""
        if self._cluster.knows(host) or caller.local:
            return
        with self._lock:
            while self._new_hosts and self._new_hosts[0] <= now - 60:
                self._new_hosts.popleft()
            if len(self._new_hosts) >= self.limits.new_hosts_per_minute:
                most = self.limits.new_hosts_per_minute
                raise Refused(429, f"hostname: more than {most} new hosts in a minute: [limits] new_hosts_per_minute")
            self._new_hosts.append(now)

    def _refuse(self, refusal: "SnapshotError | AuthError | InflateError | Refused", post: Post) -> Answer:
        if self._is_worth_a_line():
            log.info("refused %d from %s: %s", refusal.status, post.caller.peer, printable(refusal.text))
        return refused(refusal.status, refusal.text)

    def _is_worth_a_line(self) -> bool:
        """Say whether a refusal is to be logged: not each of thousands a minute."""
        minute = int(self._clock() // 60)
        with self._lock:
            if minute != self._refusals_in[0]:
                if self._refusals_in[1] > LINES_A_MINUTE:
                    log.info("refused %d posts more in that minute", self._refusals_in[1] - LINES_A_MINUTE)
                self._refusals_in = minute, 0
            self._refusals_in = minute, self._refusals_in[1] + 1
            return self._refusals_in[1] <= LINES_A_MINUTE


def refused(status: int, text: str, wait_seconds: int = 10) -> Answer:
    """Word a refusal: the one shape of all errors. `wait_seconds` counts with 429 and 503."""
    return Answer(
        status=status,
        body={"success": False, "msg": printable(text)},
        retry_after_seconds=wait_seconds if status in (429, 503) else None,
    )


def bearer(authorization: str | None) -> str | None:
    """Return the token of an `Authorization: Bearer` header, None where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


@lru_cache(maxsize=32)  # hosts whose clocks agree say the same for a second
def date(header: str | None) -> float | None:
    """Return the moment (Unix s) of an HTTP Date header, None where there is none or it cannot be read."""
    if header is None:
        return None
    try:
        return parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError):
        return None


def _dates(relayed: str, count: int) -> list[float | None]:
    """Return the moments that a relay names for the lines of its batch.

    Raises:
        SnapshotError: 400: not one for each line, or no numbers.
    """
    parts = [part.strip() for part in relayed.split(",")]
    try:
        moments = [None if part == "-" else float(part) for part in parts]
    except ValueError:
        moments = []
    if len(moments) != count or not all(each is None or math.isfinite(each) for each in moments):
        raise SnapshotError(f"Relayed-Dates: expected {count} moments (Unix s, or -), one for each line")
    return moments
