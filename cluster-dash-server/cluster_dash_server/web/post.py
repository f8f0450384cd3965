"""The ways in for snapshots as routes, and the route by which a mole gets a token of its own."""

import logging
from collections.abc import Callable

from flask import Blueprint, Response, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.wsgi import get_input_stream

from cluster_dash_server.access.auth import Auth, AuthError
from cluster_dash_server.access.viewers import needs
from cluster_dash_server.ingest import Answer, refused
from cluster_dash_server.snapshot import SnapshotError, decode, printable
from cluster_dash_server.web.edge import Way, caller_of
from cluster_dash_server.web.hot import worded

log = logging.getLogger(__name__)

ENROL_BYTES = 4096
"""The largest wish to enrol: a code, a name, an id."""


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
        return Response(*worded(answer))

    return enrol
