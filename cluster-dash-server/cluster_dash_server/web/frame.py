"""What stands round every page: its head with the other pages, its look, and words for numbers and moments."""

from collections.abc import Callable
from dataclasses import dataclass

from flask import Blueprint, Response, abort, request, url_for

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.web import charts, theme, views, words
from cluster_dash_server.web.assets import add_assets

NAV = (
    ("Overview", "", ("overview", "host", "user")),
    ("GPUs", "gpu-data", ("gpus", "chart")),
    ("Slurm", "slurm", ("slurm",)),
    ("History", "history", ("history",)),
    ("Waste", "waste", ("waste",)),
    ("Alerts", "alerts", ("alerts", "digest", "waiting")),
    ("Status", "status", ("status",)),
)
"""The pages that exist, as the frame names them: name, path, and the pages below it, its own first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What every page says of this site.

    Attributes:
        public_url: where people reach it; None: where they just did.
        notices: what people must know who look here: an open viewer, a shared passcode. Asked on each page.
        keeps_history: whether figures of the past can be asked for.
    """

    name: str
    version: str
    public_url: str | None = None
    notices: Callable[[], tuple[str, ...]] = tuple
    keeps_history: Callable[[], bool] = bool


def poll_seconds(hosts: int) -> int:
    """Return how often a page asks again: more hosts, fewer questions."""
    return 5 if hosts <= 100 else 10 if hosts <= 1000 else 15


def blueprint(site: Site, hosts: Callable[[], int], clock: Callable[[], float]) -> Blueprint:
    """Build what templates are given, and the routes of style and scripts.

    Args:
        site: what every page says.
        hosts: how many there are.
        clock: Unix s.
    """
    routes = Blueprint("frame", __name__)
    assets = add_assets(routes)
    for name, say in words.FILTERS.items():
        routes.add_app_template_filter(say, name)

    @routes.app_context_processor
    def of_every_page() -> dict[str, object]:
        """Give every template, the error page too, what the frame needs."""
        base = url_for("pages.overview")
        # what a proxy that ends TLS hands on came by http, and what is copied from a page must not
        root = request.root_url if site.public_url is None else f"{site.public_url.rstrip('/')}/"
        return {
            "site": site,
            "base": base,
            "root": root,
            "address": root + request.full_path.lstrip("/").rstrip("?"),
            "nav": NAV,
            "page": None,
            "now": clock(),
            "poll_seconds": poll_seconds(hosts()),
            "glyphs": words.GLYPHS,
            "here": views.here,
            "asset": lambda name: f"{base}assets/{assets.digest}/{name}",
            "plotly": f"{base}plotly-{charts.PLOTLY_JS.tag}.min.js",
        }

    @routes.get("/theme.css")
    @needs("public")
    def theme_css() -> Response:
        return assets.answer("theme.css", immutable=False) or abort(404)

    @routes.get("/favicon.ico")  # what a browser asks for beside whatever is no page: a badge, a JSON body
    @routes.get("/icon.svg")
    @needs("public")
    def icon() -> Response:
        says = request.args.get("says", "none")
        response = Response(theme.icon(says if says in theme.ICONS else "none"), mimetype="image/svg+xml")
        response.headers["Cache-Control"] = "public, max-age=86400"
        return response

    return routes
