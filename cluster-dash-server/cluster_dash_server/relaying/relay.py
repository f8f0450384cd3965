"""A relay: takes the posts of many hosts and passes them on to one server, the centre, many in a body. Keeps nothing.

Live posts are put together: 50 lines, or what came in half a second, are one batch over a connection that is kept; the
centre answers each line, and each mole gets the answer to its own. Backlogs and large snapshots pass as they came, over
a second connection, so that live posts need not wait for them.

A relay has no secret and knows none: the secret of each host travels in its line, and the centre judges it as if it had
come by itself. It answers 200 only where the centre did. So whatever happens to a relay, moles still have what the
centre has not, and a centre that is away is answered for by 503: then the moles' spools fill.
"""

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from cluster_dash_server.access.auth import Auth, AuthError
from cluster_dash_server.access.tokens import looks_like
from cluster_dash_server.inflate import InflateError, inflate
from cluster_dash_server.ingest import (
    LARGE_BODY_BYTES,
    REFUSALS,
    RELAYED,
    Answer,
    Limits,
    Post,
    bearer,
    date,
    refused,
)
from cluster_dash_server.relaying.centre import CentreError, Said
from cluster_dash_server.snapshot import Json, SnapshotError, decode, dumps, loads, printable

log = logging.getLogger(__name__)

THREADS = 256
"""Posts that wait for the centre's answer at a time: each has a thread, which sleeps."""
ONE, MANY, ENROL, HEALTH = "/", "/api/v1/snapshots", "/api/v1/enrol", "/healthz"
BATCH_BYTES = 4_000_000
"""What a batch may be: by contract 4 MiB when inflated."""
ANSWER_SECONDS = 12.0
"""How long a post waits for its answer at most: its mole gives up after 15 s."""
TOO_LATE_SECONDS = 5.0
"""A post that has waited so long for a thread would not be answered in time."""
PASSED_ASIDE = 8
"""Backlogs and large snapshots that are here at a time."""
ASIDE_WAIT_SECONDS = 5
LONGEST_PAUSE_SECONDS = 5.0
"""How long a centre that is away is left alone at most; it is asked by the posts that come then."""
QUIET_SECONDS = 10.0
"""After so long without a post the centre is asked whether it is there, by who wants to know."""
HOST_SECONDS = 600.0
"""For how long a host that was taken counts as passed on here."""
TOKEN = "auth_code: this token"  # noqa: S105 - what a refusal is about
_FINAL = (400, 413, 422)
_PASSED_ON = (*_FINAL, 401, 403, 409, 415, 429, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """The section `[relay]`."""

    to: str | None = field(
        default=None,
        metadata={
            "help": "the server to pass all snapshots on to, such as https://dash.example.org; this one then keeps "
            "and shows nothing itself"
        },
    )
    ca_file: str | None = field(
        default=None, metadata={"help": "a PEM file of that server's CA, where the system does not know it"}
    )
    lines: int = field(default=50, metadata={"help": "snapshots in one body", "minimum": 1, "maximum": 100})
    wait_seconds: float = field(
        default=0.5, metadata={"help": "how long a snapshot waits for others to go with", "minimum": 0, "maximum": 5}
    )
    waiting_bytes: int = field(
        default=64 * 2**20,
        metadata={"help": "snapshots that wait here, inflated; one more is answered 503", "minimum": 2**20},
    )
    allow_plaintext: bool = field(
        default=False, metadata={"help": "pass snapshots, with their secrets, on to an http:// address"}
    )


class Way(Protocol):
    """A way to the centre: `centre.Centre`."""

    def exchange(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Said:
        """Send a request and return the answer; raises CentreError."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Line:
    """A live post that waits for its answer."""

    body: bytes
    sent_at: float | None
    host: object
    came_at: float
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None

    def give(self, answer: Answer) -> None:
        self.answer = answer
        self.answered.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a relay does.

    Attributes:
        trouble: why the centre gives no answers; None: it does.
        hosts: how many were taken in the last ten minutes.
        waiting: live posts that are here now.
        lines: live posts that the centre answered, and so for the others.
        body_bytes: of those bodies, packed.
        aside: backlogs and large snapshots that it answered.
        round_trip_seconds: what its last answer took; None: there was none yet.
    """

    trouble: str | None
    hosts: int
    waiting: int
    lines: int
    batches: int
    body_bytes: int
    aside: int
    round_trip_seconds: float | None


class Relay:
    """Takes posts as `Ingest` does, and has the centre answer them.

    Args:
        settings: the section `[relay]`.
        limits: how large a post may be.
        live: the way of live posts.
        aside: the way of all others.
        auth: knows which way of a secret others can listen in on; judges no secret.
        headers: what each request to the centre carries.
        clock: monotonic, in s.
    """

    def __init__(
        self,
        *,
        settings: RelaySettings,
        limits: Limits,
        live: Way,
        aside: Way,
        auth: Auth,
        headers: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._settings = settings
        self._live = live
        self._aside = aside
        self._auth = auth
        # `Via`: what a server takes from its own machine only must not come in by a relay that is on it
        self._headers = {"Via": "1.1 relay", **(headers or {})}
        self._clock = clock
        self._changed = threading.Condition()
        self._lines: deque[_Line] = deque()
        self._here = 0  # live posts that are not answered yet, also those under way
        self._bytes_here = 0
        self._closed_until = float("-inf")
        self._pause_seconds = 0.0
        self._trouble: str | None = None
        self._heard_at = float("-inf")
        self._round_trip_seconds: float | None = None
        self._places_aside = threading.BoundedSemaphore(PASSED_ASIDE)
        self._asks = threading.Lock()
        self._hosts: OrderedDict[str, float] = OrderedDict()
        self._answered = self._batches = self._body_bytes = self._passed_aside = 0
        self._compressor: Any = None
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------- the way in

    def __call__(self, post: Post) -> Answer:
        """Pass one snapshot on and return the centre's answer to it; never raises."""
        if post.waited_seconds >= TOO_LATE_SECONDS:
            return refused(503, f"request: the relay is behind by {post.waited_seconds:.0f} s", ASIDE_WAIT_SECONDS)
        try:
            self._refuse_a_page_or_too_much(post)
            body = self._small(post)
            if body is None:
                return self._as_it_came(ONE, post)
            snapshot, presented, compact, *_ = decode(body)
            if presented in (None, ""):
                presented = bearer(post.headers.get("authorization"))
            if _is_token(presented):
                self._auth.refuse_in_clear(post.caller, TOKEN)
        except REFUSALS as refusal:
            return refused(refusal.status, refusal.text)
        line = _Line(
            body=_with_secret(compact, presented),
            sent_at=date(post.headers.get("date")),
            host=snapshot.get("hostname"),
            came_at=self._clock(),
        )
        return self._answer_to(line)

    def at_once(self, post: Post) -> Answer | None:
        """Take none: each waits for the centre's answer."""
        return None

    def batch(self, post: Post) -> Answer:
        """Pass a backlog, or one snapshot, on as it came; never raises."""
        try:
            self._refuse_a_page_or_too_much(post)
            return self._as_it_came(MANY, post)
        except REFUSALS as refusal:
            return refused(refusal.status, refusal.text)

    def enrol(self, post: Post) -> Answer:
        """Pass the wish of a host for a token of its own on; never raises."""
        try:
            self._refuse_a_page_or_too_much(post)
            self._auth.refuse_in_clear(post.caller, "code: this code")
            return self._as_it_came(ENROL, post)
        except REFUSALS as refusal:
            return refused(refusal.status, refusal.text)

    def _refuse_a_page_or_too_much(self, post: Post) -> None:
        if post.caller.from_a_page:
            raise AuthError(403, "Origin: a page in a browser may not post snapshots")
        if len(post.body) > self.limits.body_bytes:
            raise SnapshotError(f"body: {len(post.body)} bytes, limit {self.limits.body_bytes}", 413)

    def _small(self, post: Post) -> bytes | None:
        """Return a body as it was before it was compressed; None where it is too large to go with others."""
        try:
            body = inflate(post.body, post.headers.get("content-encoding"), LARGE_BODY_BYTES)
        except InflateError as error:
            if error.status != 413:
                raise
            return None
        return body if len(body) <= LARGE_BODY_BYTES else None

    # ------------------------------------------------------------------------------------------------- live posts

    def _answer_to(self, line: _Line) -> Answer:
        """Let a live post go with others, and wait for its answer."""
        with self._changed:
            if (away := self._away()) is not None:
                return away
            if self._bytes_here + len(line.body) > self._settings.waiting_bytes:
                return refused(503, "request: too many snapshots wait here: [relay] waiting_bytes", ASIDE_WAIT_SECONDS)
            self._here += 1
            self._bytes_here += len(line.body)
            self._lines.append(line)
            if len(self._lines) in (1, self._settings.lines):  # else nobody waits for this one in particular
                self._changed.notify()
            self._start()
        try:
            if not line.answered.wait(ANSWER_SECONDS):
                return refused(503, "request: the centre did not answer in time", ASIDE_WAIT_SECONDS)
        finally:
            with self._changed:
                self._here -= 1
                self._bytes_here -= len(line.body)
                if not line.answered.is_set():
                    # where it is under way already: its mole sends it again, and the centre knows it then
                    self._lines = deque(each for each in self._lines if each is not line)
        assert line.answer is not None  # noqa: S101 - given before the event is set
        return line.answer

    def _away(self) -> Answer | None:
        """Answer for a centre that is away; None where it is not, or is to be tried again."""
        seconds = self._closed_until - self._clock()
        if seconds <= 0:
            return None
        return refused(503, f"centre: {self._trouble}", math.ceil(seconds))

    def _start(self) -> None:
        """Begin with the first post: a server may fork before it serves."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            lines = self._next()
            try:
                self._forward(lines)
            except Exception:  # a fault of ours must not end the thread, nor leave moles waiting
                log.exception("a batch was not passed on")
                _give_all(lines, refused(503, "request: a fault of the relay; its log names it"))

    def _next(self) -> list[_Line]:
        """Wait for lines to go together, and take them."""
        with self._changed:
            while (wait_seconds := self._due_in()) != 0:
                self._changed.wait(wait_seconds)
            lines: list[_Line] = []
            size = 0
            while self._lines and len(lines) < self._settings.lines:
                size += len(self._lines[0].body) + 1
                if lines and size > BATCH_BYTES:
                    break
                lines.append(self._lines.popleft())
            return lines

    def _due_in(self) -> float | None:
        """Return the seconds until a batch is to go; None: nobody waits."""
        if not self._lines:
            return None
        if len(self._lines) >= self._settings.lines:
            return 0
        return max(0.0, self._lines[0].came_at + self._settings.wait_seconds - self._clock())

    def _forward(self, lines: Sequence[_Line]) -> None:
        """Have the centre answer some lines."""
        if self._compressor is None:  # of this thread only
            self._compressor = import_module("zstandard").ZstdCompressor(level=3)
        body = self._compressor.compress(b"\n".join(line.body for line in lines))
        dates = ",".join("-" if line.sent_at is None else f"{line.sent_at:.0f}" for line in lines)
        headers = {**self._headers, "Content-Type": "application/x-ndjson", "Content-Encoding": "zstd", RELAYED: dates}
        began = self._clock()
        try:
            said = self._live.exchange("POST", MANY, body, headers)
        except CentreError as error:
            self._lost(str(error), lines)
            return
        self._round_trip_seconds = self._clock() - began
        answers = _answers(said, len(lines))
        if answers is not None:
            self._heard()
            self._answered += len(lines)
            self._batches += 1
            self._body_bytes += len(body)
            for line, answer in zip(lines, answers, strict=True):
                self._note_host(line.host, answer)
                line.give(answer)
        elif said.status in _FINAL and len(lines) > 1:  # of whom it is true is for each to hear alone
            middle = len(lines) // 2
            self._forward(lines[:middle])
            self._forward(lines[middle:])
        elif said.status in (*_FINAL, 429, 503):
            self._heard()
            _give_all(lines, _passed_on(said))
        else:
            self._lost(_unusual(said), lines)

    def _lost(self, why: str, lines: Sequence[_Line] = ()) -> None:
        """Learn that the centre is away: who waits, and who comes in the next seconds, is told to come later."""
        with self._changed:
            if self._trouble is None:
                log.warning("the centre is away: %s", printable(why))
            self._trouble = printable(why)
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, max(1.0, 2 * self._pause_seconds))
            self._heard_at = self._clock()
            self._closed_until = self._heard_at + self._pause_seconds
            told = [*lines, *self._lines]
            self._lines.clear()
            answer = self._away() or refused(503, f"centre: {self._trouble}", 1)
        _give_all(told, answer)

    def _heard(self) -> None:
        """Learn that the centre answers."""
        with self._changed:
            if self._trouble is not None:
                log.info("the centre answers again")
            self._trouble = None
            self._pause_seconds = 0.0
            self._heard_at = self._clock()
            self._closed_until = float("-inf")

    def _note_host(self, host: object, answer: Answer) -> None:
        if answer.status != 200 or not isinstance(host, str):
            return
        with self._changed:
            self._hosts[host] = self._clock()
            self._hosts.move_to_end(host)
            if len(self._hosts) > self.limits.max_hosts:
                self._hosts.popitem(last=False)

    # ------------------------------------------------------------------------------------------------- all others

    def _as_it_came(self, path: str, post: Post) -> Answer:
        """Pass a backlog or a large snapshot on.

        Raises:
            AuthError: 403.
            InflateError, SnapshotError: it came unencrypted, and whose secrets are in it cannot be seen.
        """
        with self._changed:
            if (away := self._away()) is not None:
                return away
        if not self._places_aside.acquire(blocking=False):
            return refused(503, "body: other backlogs have their turn", ASIDE_WAIT_SECONDS)
        try:
            if path != ENROL:
                self._refuse_any_in_clear(post)
            said = self._aside.exchange("POST", path, post.body, {**self._headers, **_named(post.headers)})
        except CentreError as error:
            return refused(503, f"centre: {error}", ASIDE_WAIT_SECONDS)
        finally:
            self._places_aside.release()
        with self._changed:
            self._passed_aside += 1
        return _passed_on(said)

    def _refuse_any_in_clear(self, post: Post) -> None:
        """Refuse a body with a token in it that others could have read on its way here."""
        try:
            self._auth.refuse_in_clear(post.caller, TOKEN)
        except AuthError:
            body = inflate(post.body, post.headers.get("content-encoding"), self.limits.inflated_bytes)
            if len(body) > self.limits.inflated_bytes:
                raise SnapshotError(f"body: {len(body)} bytes, limit {self.limits.inflated_bytes}", 413) from None
            if any(_is_token(each) for each in (bearer(post.headers.get("authorization")), *_secrets(body))):
                raise

    # ------------------------------------------------------------------------------------------------- how it does

    def ask(self) -> None:
        """Ask the centre whether it is there, where no post has for some time."""
        if self._clock() - self._heard_at < QUIET_SECONDS or not self._asks.acquire(blocking=False):
            return
        try:
            said = self._aside.exchange("GET", HEALTH, headers=self._headers)
            if said.status == 200:
                self._heard()
            else:
                self._lost(_unusual(said))
        except CentreError as error:
            self._lost(str(error))
        finally:
            self._asks.release()

    def standing(self) -> Standing:
        """Return how it does."""
        with self._changed:
            oldest = self._clock() - HOST_SECONDS
            while self._hosts and next(iter(self._hosts.values())) < oldest:
                self._hosts.popitem(last=False)
            return Standing(
                trouble=self._trouble,
                hosts=len(self._hosts),
                waiting=self._here,
                lines=self._answered,
                batches=self._batches,
                body_bytes=self._body_bytes,
                aside=self._passed_aside,
                round_trip_seconds=self._round_trip_seconds,
            )


def _with_secret(compact: bytes, presented: object) -> bytes:
    """Return a snapshot as one line, with the secret of its host in it, as moles write it."""
    if presented is None:
        return compact
    secret = dumps({"auth_code": presented})
    return secret if compact == b"{}" else compact[:-1] + b"," + secret[1:]


def _is_token(presented: object) -> bool:
    return looks_like(presented, "host")


def _secrets(body: bytes) -> list[object]:
    """Return what each snapshot of a body has as its secret.

    Raises:
        SnapshotError: one of them cannot be read.
    """
    lines = [line for line in body.splitlines() if line.strip()]
    if lines and not lines[0].rstrip().endswith(b"}"):
        lines = [body]  # one snapshot, laid out over lines
    return [decode(line).auth_code for line in lines]


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    """Return what of a post's headers counts at the centre."""
    known = ("authorization", "content-encoding", "date", RELAYED)  # the last one of a relay before this one
    return {name: headers[name] for name in known if name in headers}


def _answers(said: Said, count: int) -> list[Answer] | None:
    """Return the centre's answer to each line; None where it gave no such answers."""
    if said.status != 200:
        return None
    each = _object(said).get("answers")
    if not isinstance(each, list) or len(each) != count:
        return None
    answers = []
    for one in each:
        if not isinstance(one, dict) or one.get("status") not in (200, *_PASSED_ON):
            return None
        status = one.pop("status")
        answers.append(Answer(status=status, body=one, retry_after_seconds=10 if status in (429, 503) else None))
    return answers


def _passed_on(said: Said) -> Answer:
    """Return the centre's answer to a whole body as ours."""
    body = _object(said)
    wait_seconds = said.retry_after_seconds or 10
    if said.status not in (200, *_PASSED_ON) or (said.status == 200 and not body):
        return refused(503, f"centre: {_unusual(said)}", wait_seconds)
    if not body:
        return refused(said.status, f"centre: {_unusual(said)}", wait_seconds)
    return Answer(
        status=said.status, body=body, retry_after_seconds=wait_seconds if said.status in (429, 503) else None
    )


def _unusual(said: Said) -> str:
    """Word an answer that no server of ours gives a relay."""
    if 300 <= said.status < 400:
        return f"answers {said.status}, a redirect, which is not followed: name the address it leads to as [relay] to"
    if said.status == 200:
        return "answers 200, and not as a server that knows relays: is it of an older release, or a sign-in page?"
    return f"answers {said.status}, and not in the words of a cluster-dash server"


def _object(said: Said) -> Json:
    try:
        body = loads(said.body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _give_all(lines: Sequence[_Line], answer: Answer) -> None:
    for line in lines:
        line.give(answer)
