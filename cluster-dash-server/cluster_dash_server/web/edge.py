"""In front of Flask, on every server alike: the base path, the Host rule, and requests with two lengths."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cluster_dash_server.auth import Caller

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

FORWARDING_HEADERS = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")


def caller_of(environ: "WSGIEnvironment") -> Caller:
    """Read from a request's environment where it comes from."""
    return Caller(
        peer=environ.get("REMOTE_ADDR") or "",
        host=environ.get("HTTP_HOST"),
        forwarded=any(name.startswith(FORWARDING_HEADERS) for name in environ),
        origin=environ.get("HTTP_ORIGIN"),
        fetch_site=environ.get("HTTP_SEC_FETCH_SITE"),
    )


class Edge:
    """Wrap a WSGI application.

    Args:
        app: what answers in the end.
        base_path: '' or '/dash': where the site lives; a proxy may cut it off or leave it.
        trusted_hosts: the names in the Host header that are answered; empty: any.
    """

    def __init__(self, app: "WSGIApplication", *, base_path: str, trusted_hosts: Iterable[str]) -> None:
        self._app = app
        self._base_path = base_path
        self._trusted_hosts = frozenset(host.lower() for host in trusted_hosts)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request."""
        if "HTTP_TRANSFER_ENCODING" in environ and environ.get("CONTENT_LENGTH"):
            # of two lengths a proxy may believe the one and we the other: what is left over becomes a second request
            return _plain(start_response, "400 Bad Request", "a request with both Content-Length and Transfer-Encoding")
        if self._trusted_hosts and not self._trusts(environ.get("HTTP_HOST", "")):
            return _plain(
                start_response, "421 Misdirected Request", "this name is not in [viewers] trusted_hosts of the server"
            )
        if self._base_path:
            path = environ.get("PATH_INFO", "")
            environ["SCRIPT_NAME"] = self._base_path
            if path == self._base_path or path.startswith(self._base_path + "/"):
                environ["PATH_INFO"] = path[len(self._base_path) :] or "/"
        return self._app(environ, start_response)

    def _trusts(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return name.lower() in self._trusted_hosts


def _plain(start_response: "StartResponse", status: str, text: str) -> Iterable[bytes]:
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
