"""In front of Flask, on every server alike: the base path, the Host rule, requests with two lengths, and the hot ways.

A hot way (a post, the live view) is answered here: through Flask it would cost as much again as its own work. Behind it
stands a route that calls the same function, so that the route map is whole.
"""

import logging
import secrets
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from cluster_dash_server.access.auth import Caller, name_of
from cluster_dash_server.access.viewers import Denied, Scope
from cluster_dash_server.snapshot import dumps, printable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
KEPT = "cluster_dash.kept"
"""In an environment: a dictionary for what follows from path and headers alone; it comes again where these do."""
FORWARDING_HEADERS = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")


def caller_of(environ: "WSGIEnvironment") -> Caller:
    """Read from a request's environment where it comes from."""
    names = "\n".join(environ)  # to look for four in one text takes half the time of looking at each name
    return Caller(
        peer=environ.get("REMOTE_ADDR") or "",
        host=environ.get("HTTP_HOST"),
        forwarded=any(map(names.__contains__, FORWARDING_HEADERS)),
        origin=environ.get("HTTP_ORIGIN"),
        fetch_site=environ.get("HTTP_SEC_FETCH_SITE"),
        scheme=environ.get("wsgi.url_scheme", "http"),
        forwarded_proto=environ.get("HTTP_X_FORWARDED_PROTO"),
        forwarded_for=environ.get("HTTP_X_FORWARDED_FOR"),
    )


class Reply(NamedTuple):
    """An answer: its body, its status line, its headers but for Content-Length and those that every answer has."""

    content: bytes
    status: str
    headers: list[tuple[str, str]]


class Way(NamedTuple):
    """A request that is answered in front of Flask.

    Attributes:
        ready: what `Edge.ready` asks; None: nothing ever is.
    """

    method: str
    path: str
    scope: Scope
    answer: "Callable[[WSGIEnvironment], Reply]"
    ready: "Callable[[WSGIEnvironment], Reply | None] | None" = None


class Edge:
    """Wrap a WSGI application.

    Args:
        app: what answers in the end.
        ways: what is answered here.
        headers: what every answer carries.
        base_path: '' or '/dash': where the site lives; a proxy may cut it off or leave it.
        admit: lets a request pass that a way answers, or raises Denied; a post is let in by `ingest`.
        trusted_hosts: the names in the Host header that are answered; empty: any.
        admit_at_once: does as `admit` where nothing has to be looked up, else returns None; it never waits.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        *,
        ways: Iterable[Way],
        headers: Iterable[tuple[str, str]],
        admit: "Callable[[WSGIEnvironment, Scope], object]",
        base_path: str,
        trusted_hosts: Iterable[str],
        admit_at_once: "Callable[[WSGIEnvironment, Scope], object | None]" = lambda *_: None,
    ) -> None:
        self._app = app
        self.ways = tuple(ways)
        self._by_request = {(way.method, way.path): way for way in self.ways}
        self._admit = admit
        self._admit_at_once = admit_at_once
        self._headers = list(headers)
        self._base_path = base_path
        self._trusted_hosts = frozenset(map(name_of, trusted_hosts))

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request."""
        refusal = self._refusal(environ)
        if refusal is not None:
            return plain(start_response, *refusal)
        way = self._way(environ)
        if way is None:
            return self._app(environ, start_response)
        try:
            if way.scope != "ingest":
                self._admit(environ, way.scope)
            reply = way.answer(environ)
        except Denied as denied:
            reply = denial(denied, environ)
        except Exception as error:  # as Flask does for its routes: the caller gets a number, the log the traceback
            reply = _broken(error, environ)
        content, status, headers = self._whole(reply)
        start_response(status, headers)
        return [content]

    def ready(self, environ: "WSGIEnvironment") -> Reply | None:
        """Return the whole answer to a request where it lies ready, or is made at once; None: call the application.

        Never waits for a disk or a hash, nor long for a lock: the loop of a server may ask, which serves all who come.
        """
        way = None if self._refusal(environ) else self._way(environ)
        if way is None or way.ready is None:
            return None
        try:
            may = way.scope == "ingest" or self._admit_at_once(environ, way.scope)
            reply = way.ready(environ) if may else None
        except Exception as error:
            if way.scope != "ingest":  # a thread meets it again, and says what it is
                return None
            reply = _broken(error, environ)  # its body is read, and cannot be read again
        return None if reply is None else self._whole(reply)

    def _refusal(self, environ: "WSGIEnvironment") -> tuple[str, str] | None:
        """Return status line and text where a request is refused whatever it asks for."""
        if "HTTP_TRANSFER_ENCODING" in environ and environ.get("CONTENT_LENGTH"):
            # of two lengths a proxy may believe the one and we the other: what is left over becomes a second request
            return "400 Bad Request", "a request with both Content-Length and Transfer-Encoding"
        if self._trusted_hosts and name_of(environ.get("HTTP_HOST", "")) not in self._trusted_hosts:
            return "421 Misdirected Request", "this name is not in [viewers] trusted_hosts of the server"
        return None

    def _way(self, environ: "WSGIEnvironment") -> Way | None:
        """Cut off the base path, and find what is answered here."""
        if self._base_path:
            path = environ.get("PATH_INFO", "")
            environ["SCRIPT_NAME"] = self._base_path
            if path == self._base_path or path.startswith(self._base_path + "/"):
                environ["PATH_INFO"] = path[len(self._base_path) :] or "/"
        return self._by_request.get((environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")))

    def _whole(self, reply: Reply) -> Reply:
        """Add what every answer carries."""
        content, status, headers = reply
        length = [] if status.startswith("304") else [("Content-Length", str(len(content)))]
        return Reply(content, status, [*headers, *length, *self._headers])


def denial(denied: Denied, environ: "WSGIEnvironment") -> Reply:
    """Word a refusal for a program; curl is told that it may send a password, a browser would ask for one itself."""
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    if denied.status == 401 and denied.sign_in_helps and "HTTP_SEC_FETCH_SITE" not in environ:
        headers.append(("WWW-Authenticate", 'Basic realm="cluster-dash", charset="UTF-8"'))
    if denied.status == 429:
        headers.append(("Retry-After", "60"))
    body = dumps({"success": False, "msg": printable(denied.text)}) + b"\n"
    return Reply(body, f"{denied.status} {HTTPStatus(denied.status).phrase}", headers)


def _broken(error: Exception, environ: "WSGIEnvironment") -> Reply:
    text = numbered(error, environ["REQUEST_METHOD"], environ["PATH_INFO"])
    body = dumps({"success": False, "msg": text}) + b"\n"
    return Reply(body, "500 Internal Server Error", [("Content-Type", "application/json")])


def numbered(error: Exception, method: str, path: str) -> str:
    """Log an error of our own under a number, and word it for the caller, who learns nothing else."""
    number = secrets.token_hex(6)
    log.error("error %s in %s %s", number, method, path, exc_info=error)
    return f"request: an error of the server; its log names it {number}"


def plain(start_response: "StartResponse", status: str, text: str) -> Iterable[bytes]:
    """Answer with the one shape of all errors; `text` needs no escaping."""
    body = b'{"success": false, "msg": "%b"}\n' % text.encode()
    start_response(
        status,
        [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
        ],
    )
    return [body]
