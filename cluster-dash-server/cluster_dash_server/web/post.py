"""The ways in for snapshots: from a WSGI request to `Ingest` and back."""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from flask import Blueprint, Response, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.wsgi import get_input_stream

from cluster_dash_server.access.auth import Auth, AuthError
from cluster_dash_server.access.viewers import needs
from cluster_dash_server.ingest import RELAYED, Answer, Limits, Post, refused
from cluster_dash_server.snapshot import SnapshotError, decode, dumps, printable
from cluster_dash_server.web.edge import Reply, Way, caller_of
from cluster_dash_server.web.waitress_limits import WHOLE_SINCE

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = logging.getLogger(__name__)

ENROL_BYTES = 4096
"""The largest wish to enrol: a code, a name, an id."""
_HEADERS = {
    "authorization": "HTTP_AUTHORIZATION",
    "content-encoding": "HTTP_CONTENT_ENCODING",
    "date": "HTTP_DATE",
    RELAYED: "HTTP_RELAYED_DATES",
}
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class Takes(Protocol):
    """What takes snapshots: `Ingest`, or a relay."""

    limits: Limits

    def __call__(self, post: Post) -> Answer:
        """Take one snapshot, or say why not; never raises."""

    def batch(self, post: Post) -> Answer:
        """Take many, one a line; never raises."""


def ways(ingest: Takes, count: Callable[[Answer], None] = lambda _: None) -> tuple[Way, Way]:
    """Build the ways in front of Flask: one snapshot, and many; `count` is told of each answer."""
    return way("/", ingest, ingest, count), way("/api/v1/snapshots", ingest, ingest.batch, count)


def way(
    path: str, ingest: Takes, take: Callable[[Post], Answer], count: Callable[[Answer], None] = lambda _: None
) -> Way:
    """Build the way of one kind of post."""
    return Way("POST", path, "ingest", lambda environ: _reply(ingest, take, count, environ))


def blueprint(one: Way, many: Way) -> Blueprint:
    """Build the same ways as routes, so that the route map is whole."""
    post = Blueprint("post", __name__)

    @post.post(one.path)
    @needs("ingest")
    def take_snapshot() -> Response:
        return Response(*one.answer(request.environ))

    @post.post(many.path)
    @needs("ingest")
    def take_snapshots() -> Response:
        return Response(*many.answer(request.environ))

    return post


def enrolment(auth: Auth, clock: Callable[[], float]) -> Blueprint:
    """Build the route by which a mole trades a code for a token of its own."""
    enrol = Blueprint("enrol", __name__)

    @enrol.post("/api/v1/enrol")
    @needs("ingest")
    def enrol_host() -> Response:
        caller = caller_of(request.environ)
        try:
            if caller.from_a_page:
                raise AuthError(403, "Origin: a page in a browser may not enrol hosts")
            body = get_input_stream(request.environ, max_content_length=ENROL_BYTES + 1).read()
            if len(body) > ENROL_BYTES:
                raise AuthError(413, f"body: larger than {ENROL_BYTES} bytes")
            wish = decode(body).snapshot
            token = auth.enrol(wish.get("code"), wish.get("hostname"), wish.get("machine_id"), caller, clock())
            answer = Answer(status=200, body={"success": True, "token": token})
        except (AuthError, SnapshotError) as refusal:
            log.info("enrolment refused %d from %s: %s", refusal.status, caller.peer, printable(refusal.text))
            answer = refused(refusal.status, refusal.text)
        except (RequestEntityTooLarge, ClientDisconnected):
            answer = refused(413, f"body: larger than {ENROL_BYTES} bytes, or shorter than it says")
        return Response(*_worded(answer))

    return enrol


def _reply(
    ingest: Takes, take: Callable[[Post], Answer], count: Callable[[Answer], None], environ: "WSGIEnvironment"
) -> Reply:
    try:
        # The content type is not asked: `curl -d @file` says it is a form. One byte more than the limit: a chunked body
        # is cut there without a word, and must be seen to be too large.
        body = get_input_stream(environ, max_content_length=ingest.limits.body_bytes + 1).read()
    except RequestEntityTooLarge:
        answer = refused(413, f"body: larger than {ingest.limits.body_bytes} bytes")
    except ClientDisconnected:
        answer = refused(400, "body: shorter than its Content-Length")
    else:
        headers = {name: environ[key] for name, key in _HEADERS.items() if key in environ}
        since = float(environ.get(f"HTTP_{WHOLE_SINCE}", "inf"))
        waited_seconds = max(0.0, time.monotonic() - since)
        answer = take(Post(caller=caller_of(environ), headers=headers, body=body, waited_seconds=waited_seconds))
    count(answer)
    return _worded(answer)


def _worded(answer: Answer) -> Reply:
    # the second header tells a mole that it may compress its posts and send its secret in a header
    own = [("Content-Type", "application/json"), ("Accept-Encoding", "gzip, zstd")]
    if answer.retry_after_seconds is not None:
        own.append(("Retry-After", str(answer.retry_after_seconds)))
    return Reply(dumps(answer.body) + b"\n", _STATUS_LINES[answer.status], own)
