"""The digest: the page `/digest`, a night in some fifteen lines, also as text and JSON."""

from collections.abc import Callable

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.digest import Digest
from cluster_dash_server.nights import Nights
from cluster_dash_server.snapshot import Json
from cluster_dash_server.web.answers import html, json_response
from cluster_dash_server.web.parameters import choice, span
from cluster_dash_server.web.past import say_what_fails

DEFAULT_FROM = "now-24h"
PRESETS = (
    ("24 h", "now-24h", None),
    ("yesterday", "now-1d/d", "now-1d/d"),
    ("7 d", "now-7d", None),
    ("last week", "now-1w/w", "now-1w/w"),
)
MOST_SECONDS = 31 * 86_400.0 + 3600.0
"""31 days, also where one of them has 25 hours."""


def blueprint(nights: Nights, clock: Callable[[], float]) -> Blueprint:
    """Build the route.

    Args:
        nights: tells nights, with no more names than the viewer may know.
        clock: Unix s.
    """
    routes = Blueprint("digest", __name__, template_folder="../templates")
    say_what_fails(routes)

    @routes.get("/digest")
    @needs("history:read")
    def page() -> Response:
        form = choice("format", ("html", "text", "json"))
        now = clock()
        asked = span(DEFAULT_FROM, now, nights.zone, most_seconds=MOST_SECONDS)
        told = nights.told(asked, now)
        if form == "text":
            return Response(told.text, mimetype="text/plain")
        if form == "json":
            return json_response({"at": now, **as_json(told)})
        return html(
            "digest.html",
            page="digest",
            now=now,
            json_path="digest?format=json",
            told=told,
            presets=PRESETS,
            from_text=request.args.get("from") or DEFAULT_FROM,
            to_text=request.args.get("to") or "now",
            utc=request.args.get("tz") == "UTC",
            zone=str(nights.zone),
            poll_seconds=300,
        )

    return routes


def as_json(told: Digest) -> Json:
    """Return a digest for machines."""
    return {
        "from": told.span.begin,
        "to": told.span.end,
        "title": told.title,
        "lines": [{"topic": line.topic, "text": line.text, "path": line.path} for line in told.lines],
    }
