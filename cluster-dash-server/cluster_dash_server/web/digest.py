"""The digest: the page `/digest`, a night in some fifteen lines, also as text and JSON."""

from collections.abc import Callable

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.digest import Digest
from cluster_dash_server.nights import Nights
from cluster_dash_server.snapshot import Json
from cluster_dash_server.web import views
from cluster_dash_server.web.answers import html, json_response
from cluster_dash_server.web.history import say_what_fails
from cluster_dash_server.web.views import QueryError
from cluster_dash_server.when import WhenError, span

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
        form = views.choice("format", ("html", "text", "json"))
        now = clock()
        from_text, to_text = request.args.get("from") or DEFAULT_FROM, request.args.get("to") or "now"
        try:
            asked = span(from_text, to_text, now, nights.zone, most_seconds=MOST_SECONDS)
        except WhenError as error:
            raise QueryError(str(error)) from None
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
            from_text=from_text,
            to_text=to_text,
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
