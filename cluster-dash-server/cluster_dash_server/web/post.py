"""The ways in for snapshots: from a WSGI request to `Ingest` and back."""

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Blueprint, Response, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.wsgi import get_input_stream

from cluster_dash_server.ingest import Answer, Ingest, Post, refused
from cluster_dash_server.snapshot import dumps
from cluster_dash_server.viewers import needs
from cluster_dash_server.web.edge import Reply, Way, caller_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_HEADERS = {"authorization": "HTTP_AUTHORIZATION", "content-encoding": "HTTP_CONTENT_ENCODING", "date": "HTTP_DATE"}
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


def ways(ingest: Ingest) -> tuple[Way, Way]:
    """Build the ways in front of Flask: one snapshot, and many."""
    return (
        Way("POST", "/", "ingest", lambda environ: _reply(ingest, ingest, environ)),
        Way("POST", "/api/v1/snapshots", "ingest", lambda environ: _reply(ingest, ingest.batch, environ)),
    )


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


def _reply(ingest: Ingest, take: Callable[[Post], Answer], environ: "WSGIEnvironment") -> Reply:
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
        answer = take(Post(caller=caller_of(environ), headers=headers, body=body))
    # the second header tells a mole that it may compress its posts and send its secret in a header
    own = [("Content-Type", "application/json"), ("Accept-Encoding", "gzip, zstd")]
    if answer.retry_after_seconds is not None:
        own.append(("Retry-After", str(answer.retry_after_seconds)))
    return Reply(dumps(answer.body) + b"\n", _STATUS_LINES[answer.status], own)
