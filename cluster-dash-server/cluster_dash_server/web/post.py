"""The routes that take snapshots: from a WSGI request to `Ingest` and back.

`entry` answers them in front of Flask, which would cost as much as the work itself; the Flask routes behind it call the
same function, so that the route map is whole.
"""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Blueprint, Response, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.wsgi import get_input_stream

from cluster_dash_server.ingest import Answer, Ingest, Post, refused
from cluster_dash_server.snapshot import dumps
from cluster_dash_server.viewers import needs
from cluster_dash_server.web.edge import caller_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ONE, MANY = "/", "/api/v1/snapshots"
_HEADERS = {"authorization": "HTTP_AUTHORIZATION", "content-encoding": "HTTP_CONTENT_ENCODING", "date": "HTTP_DATE"}
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


def blueprint(ingest: Ingest) -> Blueprint:
    """Build the routes."""
    post = Blueprint("post", __name__)

    @post.post(ONE)
    @needs("ingest")
    def take_snapshot() -> Response:
        return Response(*_answer(ingest, ingest, request.environ))

    @post.post(MANY)
    @needs("ingest")
    def take_snapshots() -> Response:
        return Response(*_answer(ingest, ingest.batch, request.environ))

    return post


def entry(app: "WSGIApplication", ingest: Ingest, headers: Iterable[tuple[str, str]]) -> "WSGIApplication":
    """Answer posts of snapshots, and hand everything else on.

    Args:
        app: what answers everything else.
        ingest: takes the snapshots.
        headers: what every answer carries.
    """
    ways: dict[str, Callable[[Post], Answer]] = {ONE: ingest, MANY: ingest.batch}
    always = list(headers)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        way = ways.get(environ["PATH_INFO"]) if environ["REQUEST_METHOD"] == "POST" else None
        if way is None:
            return app(environ, start_response)
        content, status, own = _answer(ingest, way, environ)
        start_response(status, [*own, *always, ("Content-Length", str(len(content)))])
        return [content]

    return answer


def _answer(
    ingest: Ingest, way: Callable[[Post], Answer], environ: "WSGIEnvironment"
) -> tuple[bytes, str, list[tuple[str, str]]]:
    """Return body, status line and headers."""
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
        answer = way(Post(caller=caller_of(environ), headers=headers, body=body))
    # the second header tells a mole that it may compress its posts and send its secret in a header
    own = [("Content-Type", "application/json"), ("Accept-Encoding", "gzip, zstd")]
    if answer.retry_after_seconds is not None:
        own.append(("Retry-After", str(answer.retry_after_seconds)))
    return dumps(answer.body) + b"\n", _STATUS_LINES[answer.status], own
