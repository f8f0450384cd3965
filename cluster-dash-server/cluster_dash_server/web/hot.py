"""The hot ways, from a WSGI request to an answer without Flask: posts, the live view, whether the server is alive."""

import threading
import time
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import parse_qs

from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.http import parse_etags
from werkzeug.wsgi import get_input_stream

from cluster_dash_server.ingest import RELAYED, Answer, Limits, Post, refused
from cluster_dash_server.live import Body, Columns, Live, choose_encoding, chosen_columns
from cluster_dash_server.narrowed import Narrowed
from cluster_dash_server.snapshot import dumps
from cluster_dash_server.web.edge import Reply, Way, caller_of
from cluster_dash_server.web.waitress_limits import WHOLE_SINCE

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

VIEWED_SECONDS = 60
"""For how long somebody who asked for the live view counts as looking: pages ask every 5 to 15 s."""
MOST_VIEWERS = 10_000
ALIVE = Way(
    "GET",
    "/healthz",
    "public",
    lambda _: Reply(dumps({"success": True}) + b"\n", "200 OK", [("Content-Type", "application/json")]),
)
_HEADERS = {
    "authorization": "HTTP_AUTHORIZATION",
    "content-encoding": "HTTP_CONTENT_ENCODING",
    "date": "HTTP_DATE",
    RELAYED: "HTTP_RELAYED_DATES",
}
_LONG_DIGITS = 19
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


_Said = TypeVar("_Said", Answer, Answer | None)


class Takes(Protocol):
    """What takes snapshots: `Ingest`, or a relay."""

    limits: Limits

    def __call__(self, post: Post) -> Answer:
        """Take one snapshot, or say why not; never raises."""

    def batch(self, post: Post) -> Answer:
        """Take many, one a line; never raises."""

    def at_once(self, post: Post) -> Answer | None:
        """Take one snapshot where that is a small thing and waits for nothing; None: nothing was done."""


def ways(ingest: Takes, count: Callable[[Answer], None] = lambda _: None) -> tuple[Way, Way]:
    """Build the ways of posts: one snapshot, and many; `count` is told of each answer."""
    one, many = way("/", ingest, ingest, count), way("/api/v1/snapshots", ingest, ingest.batch, count)
    return one._replace(ready=lambda environ: _at_once(ingest, count, environ)), many


def way(
    path: str, ingest: Takes, take: Callable[[Post], Answer], count: Callable[[Answer], None] = lambda _: None
) -> Way:
    """Build the way of one kind of post."""

    def answer(environ: "WSGIEnvironment") -> Reply:
        said = _answered(ingest.limits.body_bytes, take, environ)
        count(said)
        return worded(said)

    return Way("POST", path, "ingest", answer)


def _at_once(ingest: Takes, count: Callable[[Answer], None], environ: "WSGIEnvironment") -> Reply | None:
    body = environ["wsgi.input"]
    begin = body.tell()
    said = _answered(ingest.limits.body_bytes, ingest.at_once, environ)
    if said is None:
        body.seek(begin)  # a thread reads it again
        return None
    count(said)
    return worded(said)


def _answered(most_bytes: int, take: Callable[[Post], _Said], environ: "WSGIEnvironment") -> _Said | Answer:
    try:
        body = _body(environ, most_bytes)
    except RequestEntityTooLarge:
        return refused(413, f"body: larger than {most_bytes} bytes")
    except ClientDisconnected:
        return refused(400, "body: shorter than its Content-Length")
    headers = {name: environ[key] for name, key in _HEADERS.items() if key in environ}
    since = float(environ.get(f"HTTP_{WHOLE_SINCE}", "inf"))
    waited_seconds = max(0.0, time.monotonic() - since)
    return take(Post(caller=caller_of(environ), headers=headers, body=body, waited_seconds=waited_seconds))


def _body(environ: "WSGIEnvironment", most_bytes: int) -> bytes:
    """Return the body of a request; its content type is not asked: `curl -d @file` says it is a form.

    Raises:
        RequestEntityTooLarge: it says that it is larger; one that does not say it is cut a byte behind `most_bytes`.
        ClientDisconnected: it is shorter than it says.
    """
    told = environ.get("CONTENT_LENGTH") or ""
    if "HTTP_TRANSFER_ENCODING" in environ or not (told.isascii() and told.isdigit() and len(told) < _LONG_DIGITS):
        return get_input_stream(environ, max_content_length=most_bytes + 1).read()
    # nearly always: in a third of the time, as nothing is asked for behind the end, nor copied
    length = int(told)
    if length > most_bytes:
        raise RequestEntityTooLarge
    read = environ["wsgi.input"].read
    try:
        body: bytes = read(length)
        while len(body) < length and (more := read(length - len(body))):
            body += more
    except (OSError, ValueError):
        raise ClientDisconnected from None
    if len(body) < length:
        raise ClientDisconnected
    return body


def worded(answer: Answer) -> Reply:
    """Return what `Ingest` answers as the answer to a request."""
    # the second header tells a mole that it may compress its posts and send its secret in a header
    own = [("Content-Type", "application/json"), ("Accept-Encoding", "gzip, zstd")]
    if answer.retry_after_seconds is not None:
        own.append(("Retry-After", str(answer.retry_after_seconds)))
    return Reply(dumps(answer.body) + b"\n", _STATUS_LINES[answer.status], own)


class Viewers:
    """Who looks at the live view, as far as one can tell: by address and browser. Thread-safe."""

    def __init__(self) -> None:
        self._seen_at: dict[tuple[str, str, str], float] = {}
        self._counted_at = float("-inf")
        self._lock = threading.Lock()

    def note(self, environ: "WSGIEnvironment", now: float) -> None:
        """Note somebody who asks for the live view."""
        who = (
            environ.get("REMOTE_ADDR") or "",
            environ.get("HTTP_X_FORWARDED_FOR") or "",
            environ.get("HTTP_USER_AGENT") or "",
        )
        if len(self._seen_at) >= MOST_VIEWERS and who not in self._seen_at:
            if not 0 <= now - self._counted_at < 1:  # it takes milliseconds
                self.count(now)
            if len(self._seen_at) >= MOST_VIEWERS:
                return
        self._seen_at[who] = now

    def count(self, now: float) -> int:
        """Return how many have looked in the last minute; forget the others."""
        with self._lock:
            self._counted_at = now
            self._seen_at = {who: at for who, at in self._seen_at.copy().items() if now - at <= VIEWED_SECONDS}
            return len(self._seen_at)


def live_way(
    live: Live,
    narrowed: Narrowed,
    clock: Callable[[], float],
    note: "Callable[[WSGIEnvironment, float], None]" = lambda *_: None,
) -> Way:
    """Build the way to the live view; `note` is told of who looks."""

    def answer(environ: "WSGIEnvironment") -> Reply:
        now = clock()
        note(environ, now)
        encoding = choose_encoding(environ.get("HTTP_ACCEPT_ENCODING"))
        q, since, columns = _wish(environ.get("QUERY_STRING", ""))
        if q:
            return ready(narrowed.body(now, q, since, encoding, columns), environ)
        return ready(live.body(now, since, encoding, columns), environ)

    def answer_if_ready(environ: "WSGIEnvironment") -> Reply | None:
        now = clock()
        encoding = choose_encoding(environ.get("HTTP_ACCEPT_ENCODING"))
        q, since, columns = _wish(environ.get("QUERY_STRING", ""))
        body = None if q else live.ready(now, since, encoding, columns)
        if body is None:
            return None
        note(environ, now)
        return ready(body, environ)

    return Way("GET", "/api/v1/cluster", "state:read", answer, answer_if_ready)


@lru_cache(256)  # all who have the same version ask alike
def _wish(query: str) -> tuple[str, str, Columns]:
    """Read filter, version and columns."""
    values = parse_qs(query)
    since, q = values.get("since", [""])[0], values.get("q", [""])[0].strip()
    return q, since, chosen_columns(values.get("columns", [""])[0])


def ready(body: Body, environ: "WSGIEnvironment") -> Reply:
    """Answer with a body that is ready, or by 304 who has it."""
    headers = [
        *(("Content-Type", "application/json"), ("ETag", f'"{body.version}"')),
        *(("Cache-Control", "no-cache"), ("Vary", "Accept-Encoding")),
    ]
    known = environ.get("HTTP_IF_NONE_MATCH")
    if known and body.version in parse_etags(known):
        return Reply(b"", "304 Not Modified", headers)
    if body.encoding != "identity":
        headers.append(("Content-Encoding", body.encoding))
    return Reply(body.content, "200 OK", headers)
