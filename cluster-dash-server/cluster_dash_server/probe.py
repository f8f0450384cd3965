"""Asking a server at the address that its settings name, as its users do: over HTTP, or HTTPS where it speaks it."""

import http.client
import json
import ssl
from contextlib import closing
from dataclasses import dataclass

_ALL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        json: the object of its body; None where the body holds none.
    """

    status: int
    json: dict[str, object] | None


def reachable(host: str) -> str:
    """Return an address of this machine at which a server is reached that listens on `host`."""
    return _ALL_ADDRESSES.get(host, host)


def ask(
    host: str, port: int, path: str, *, seconds: float, name: str | None = None, is_secure: bool = False
) -> Answer | None:
    """Send one GET.

    Args:
        host: what the server listens on, as in its settings.
        port: the port it listens on.
        path: with its query.
        seconds: how long each step of it may take.
        name: what the Host header says; None: the address.
        is_secure: by https. Its certificate is not looked at: it is for another name than that of this address, and
            nothing secret is sent.

    Returns:
        the answer; None where nothing answers in HTTP.
    """
    headers = {"Connection": "close"} if name is None else {"Connection": "close", "Host": name}
    try:
        with closing(_connection(reachable(host), port, seconds, is_secure=is_secure)) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read(65_536)
    except (OSError, http.client.HTTPException, UnicodeError):
        return None
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    return Answer(status=response.status, json=parsed if isinstance(parsed, dict) else None)


def _connection(address: str, port: int, seconds: float, *, is_secure: bool) -> http.client.HTTPConnection:
    if not is_secure:
        return http.client.HTTPConnection(address, port, timeout=seconds)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(address, port, timeout=seconds, context=context)
