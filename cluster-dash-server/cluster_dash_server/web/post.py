"""`POST /`: from a WSGI request to `Ingest` and back."""

from flask import Blueprint, Response, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.wsgi import get_input_stream

from cluster_dash_server.ingest import Answer, Ingest, Post, refused
from cluster_dash_server.snapshot import dumps
from cluster_dash_server.viewers import needs
from cluster_dash_server.web.edge import caller_of

_HEADERS = {"authorization": "HTTP_AUTHORIZATION", "content-encoding": "HTTP_CONTENT_ENCODING", "date": "HTTP_DATE"}


def blueprint(ingest: Ingest) -> Blueprint:
    """Build the route that takes snapshots."""
    post = Blueprint("post", __name__)

    @post.post("/")
    @needs("ingest")
    def take_snapshot() -> Response:
        environ = request.environ
        try:
            # the content type is not asked: `curl -d @file` says it is a form
            body = get_input_stream(environ, max_content_length=ingest.limits.body_bytes).read()
        except RequestEntityTooLarge:
            return _response(refused(413, f"body: larger than {ingest.limits.body_bytes} bytes"))
        except ClientDisconnected:
            return _response(refused(400, "body: shorter than its Content-Length"))
        headers = {name: environ[key] for name, key in _HEADERS.items() if key in environ}
        return _response(ingest(Post(caller=caller_of(environ), headers=headers, body=body)))

    return post


def _response(answer: Answer) -> Response:
    response = Response(dumps(answer.body) + b"\n", status=answer.status, mimetype="application/json")
    # tells a mole that it may compress its posts and send its secret in a header
    response.headers["Accept-Encoding"] = "gzip, zstd"
    if answer.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(answer.retry_after_seconds)
    return response
