"""Who asks, as a request says: where it comes from, its cookie, its token, what a proxy says."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster_dash_server.access.viewers import Asked, Gate
from cluster_dash_server.web.edge import KEPT, caller_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

COOKIE = "cluster_dash"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""A browser takes a cookie of such a name over https only, and from this very host."""


def reader(
    gate: Gate, proxy_header: str, csrf: Callable[[], str | None] = lambda: None
) -> "Callable[[WSGIEnvironment], Asked]":
    """Build what reads from a request who asks.

    Args:
        gate: what signs people in.
        proxy_header: by which a trusted proxy says who they are.
        csrf: returns what the page hands back that changes something; only Flask's routes change anything.
    """
    proxy_key = f"HTTP_{proxy_header.upper().replace('-', '_')}"

    def asked_of(environ: "WSGIEnvironment") -> Asked:
        kept: dict[object, Asked] = environ.get(KEPT, {})
        asked = kept.get(asked_of)
        if asked is None:
            asked = kept[asked_of] = Asked(
                caller=caller_of(environ),
                method=environ["REQUEST_METHOD"],
                authorization=environ.get("HTTP_AUTHORIZATION"),
                session=cookie(environ, gate, ""),
                proxy_says=environ.get(proxy_key),
                csrf=csrf,
                sends_json=environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() == "application/json",
            )
        return asked

    return asked_of


def is_secure(environ: "WSGIEnvironment", gate: Gate) -> bool:
    """Say whether the browser speaks https, to us or to a proxy in front of us."""
    caller = caller_of(environ)
    return not gate.proxies.in_clear(caller) and "https" in (caller.scheme, (caller.forwarded_proto or "").lower())


def cookie_name(environ: "WSGIEnvironment", gate: Gate, ending: str) -> str:
    """Return the name of one of our cookies, as this browser is to send it."""
    return (SECURE_COOKIE if is_secure(environ, gate) else COOKIE) + ending


def cookie(environ: "WSGIEnvironment", gate: Gate, ending: str) -> str | None:
    """Return one of our cookies; None: it was not sent."""
    sent = environ.get("HTTP_COOKIE")
    if not sent:
        return None
    wanted = cookie_name(environ, gate, ending)
    for part in sent.split(";"):
        name, _, value = part.strip().partition("=")
        if name == wanted:
            return str(value)
    return None
