"""What is shown outside of the pages: a wall screen, parts to embed in other sites' pages, a badge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from flask import Blueprint, Response, abort, request

from cluster_dash_server import free
from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.states import STATES
from cluster_dash_server.summary import standing
from cluster_dash_server.web import fleet, rows, theme, views, words
from cluster_dash_server.web.answers import html
from cluster_dash_server.web.views import View

MOST_TILES = 48
"""Hosts that a wall screen shows one by one; more are shown in groups."""
MOST_GROUPS, MOST_NOTES, MOST_CARDS = 8, 5, 6
"""What can be read across a room at once."""
BADGE_SECONDS = 30
"""For how long a badge may be kept: other sites' proxies ask for it."""
LETTER_PX = 7
"""How wide a letter of a badge is taken to be, at 11 px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Which pages may show these ones in a frame.

    Attributes:
        policy: the Content-Security-Policy of all other pages.
        embed_from: origins of the pages that may; none: nobody.
    """

    policy: str
    embed_from: Sequence[str]

    @property
    def header(self) -> str:
        """The policy of what may be embedded."""
        ancestors = " ".join(self.embed_from) or "'none'"
        return self.policy.replace("frame-ancestors 'none'", f"frame-ancestors {ancestors}")


def blueprint(cluster: Cluster, clock: Callable[[], float], site: str, frames: Frames) -> Blueprint:
    """Build the routes."""
    wall = Blueprint("wall", __name__)

    def asked() -> View:
        now = clock()
        return views.asked(cluster.hosts(now), now)

    def page(template: str, **context: object) -> Response:
        answer = html(template, **context)
        answer.headers["Content-Security-Policy"] = frames.header
        return answer

    @wall.get("/tv")
    @needs("state:read")
    def tv() -> Response:
        return page("tv.html", wide=True, **_overview(asked(), site))

    @wall.get("/embed/overview")
    @needs("state:read")
    def embed_overview() -> Response:
        return page("embed_overview.html", **_overview(asked(), site))

    @wall.get("/embed/host/<host>")
    @needs("state:read")
    def embed_host(host: str) -> Response:
        now = clock()
        view = cluster.host(host, now)
        if view is None:
            abort(404, description=f"No host {words.cut(host, 64)} has reported.")
        (row,) = rows.rows([view], now, {view.host: [True] * len(view.gpus)})
        said = standing(view)
        return page("embed_host.html", now=now, row=row, standing=said.text, standing_at=said.at)

    @wall.get("/badge/free.svg")
    @needs("state:read")
    def free_badge() -> Response:
        answer = Response(badge(asked()), mimetype="image/svg+xml")
        answer.headers["Cache-Control"] = f"max-age={BADGE_SECONDS}"
        return answer

    return wall


def _overview(view: View, site: str) -> dict[str, object]:
    """Return what a wall screen and an embedded overview say."""
    shows_groups = len(view.hosts) > MOST_TILES
    ordered: list[HostView] = [] if shows_groups else fleet.order(view.hosts, fleet.ORDERS.usual)
    return {
        "now": view.now,
        "view": view,
        "title": rows.title(view.narrowed, site),
        "sentence": view.sentence,
        "notes": rows.attention(view.narrowed, view.now)[:MOST_NOTES],
        "cards": free.cards(view.narrowed)[:MOST_CARDS],
        "counts": rows.state_counts(view.narrowed),
        "states": STATES[::-1],
        "groups": fleet.groups(view.narrowed, "model", view.wish)[:MOST_GROUPS] if shows_groups else [],
        "rows": rows.rows(ordered, view.now, view.marks_of),
        "top": f"{request.script_root}/?{request.query_string.decode('ascii', 'ignore')}".rstrip("?"),
    }


def badge(view: View) -> str:
    """Draw how many GPUs are free, as SVG of one line: `free GPUs 31 of 64`."""
    counts = rows.state_counts(view.narrowed)
    label, value = "free GPUs", f"{counts['free']} of {view.matching.gpus}" if view.matching.gpus else "no data"
    left, right = (LETTER_PX * len(text) + 14 for text in (label, value))
    state = "free" if counts["free"] else "stale"
    title = escape(f"{label}: {value}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label="{title}">'
        f"<title>{title}</title><style>{_badge_colours(state)}</style>"
        f'<rect class="label" width="{left}" height="20"/>'
        f'<rect class="value" x="{left}" width="{right}" height="20"/>'
        '<g font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f'<text class="label" x="{left / 2:g}" y="14">{escape(label)}</text>'
        f'<text class="value" x="{left + right / 2:g}" y="14">{escape(value)}</text></g></svg>\n'
    )


def _badge_colours(state: str) -> str:
    rule = "rect.label{{fill:{surface}}}text.label{{fill:{text}}}rect.value{{fill:{ink}}}text.value{{fill:{bg}}}"
    light, dark = (
        rule.format(**{name: colours[name] for name in ("surface", "text", "bg")}, ink=colours[f"{state}-ink"])
        for colours in theme.inks()
    )
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"
