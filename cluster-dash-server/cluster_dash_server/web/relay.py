"""The application of a relay: the ways in for posts, and a page that says what it passes on.

The page names no host and no person, so anybody may see it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import HTTPException

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.prometheus import exposition
from cluster_dash_server.prometheus.exposition import Family
from cluster_dash_server.received import Reception
from cluster_dash_server.relaying.relay import ENROL, THREADS, Relay, Standing
from cluster_dash_server.snapshot import Json
from cluster_dash_server.web import edge, hot, post, status, waitress_limits, words
from cluster_dash_server.web.answers import failure, html, json_response
from cluster_dash_server.web.assets import add_assets

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_METRICS: tuple[tuple[Family, Callable[[Standing], float | None]], ...] = tuple(
    (Family(name=f"cluster_dash_relay_{name}", kind=kind, help=text), value)  # type: ignore[arg-type]
    for name, kind, text, value in (
        ("centre_up", "gauge", "Whether the centre answers.", lambda standing: float(standing.trouble is None)),
        ("hosts", "gauge", "Hosts whose snapshots were taken in ten minutes.", lambda standing: standing.hosts),
        ("waiting", "gauge", "Snapshots that wait for the centre's answer.", lambda standing: standing.waiting),
        ("snapshots_total", "counter", "Live snapshots the centre has answered.", lambda standing: standing.lines),
        ("batches_total", "counter", "Bodies in which those went.", lambda standing: standing.batches),
        ("sent_bytes_total", "counter", "Bytes of those bodies, packed.", lambda standing: standing.body_bytes),
        ("aside_total", "counter", "Backlogs and large snapshots it has answered.", lambda standing: standing.aside),
        ("round_trip_seconds", "gauge", "What its last answer took.", lambda standing: standing.round_trip_seconds),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """What a relay's application is made of.

    Attributes:
        to: the centre's address.
        name: what the pages call this cluster.
        base_path: '' or '/dash': where the relay lives.
        trusted_hosts: the names in the Host header that are answered; empty: any.
        began_at: Unix s.
        clock: Unix s.
    """

    relay: Relay
    to: str
    name: str
    version: str
    base_path: str
    trusted_hosts: tuple[str, ...]
    reception: Reception
    began_at: float
    clock: Callable[[], float]

    def said(self) -> Json:
        """Tell how the relay does."""
        self.relay.ask()
        received = self.reception.so_far()
        now = self.clock()
        return {
            "at": now,
            "version": self.version,
            "uptime_seconds": now - self.began_at,
            "memory_bytes": status.memory_bytes(),
            "to": self.to,
            "relay": asdict(self.relay.standing()),
            "posts": {
                "per_second": received.per_second,
                "taken": received.taken,
                "duplicate": received.duplicate,
                "refused": received.refused,
                # without the words: they may name a host
                "refusals": [
                    {"status": each.status, "subject": each.subject, "count": each.count, "last_at": each.last_at}
                    for each in received.refusals
                ],
            },
        }


def application(passing: Passing, headers: Iterable[tuple[str, str]]) -> Flask:
    """Build a relay; `headers` are what every answer carries."""
    relay = passing.relay
    ways = (*hot.ways(relay, passing.reception.note), hot.way(ENROL, relay, relay.enrol))
    app = Flask(__name__, static_folder=None, template_folder="../templates")
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = relay.limits.body_bytes
    app.extensions["start"] = lambda: None
    app.register_blueprint(post.blueprint(*ways[:2]))
    app.register_blueprint(_blueprint(passing))
    common = list(headers)

    @app.post(ENROL)
    @needs("ingest")
    def enrol() -> Response:
        return Response(*ways[2].answer(request.environ))

    @app.after_request
    def add_headers(response: Response) -> Response:
        for name, value in common:
            response.headers.setdefault(name, value)
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        text = f"request: {error.name.lower()}: this is a relay: pages and figures are at {passing.to}"
        return failure(error.code or 500, text)

    @app.errorhandler(Exception)
    def own_error(error: Exception) -> Response:
        return failure(500, edge.numbered(error, request.method, request.path))

    app.wsgi_app = edge.Edge(  # type: ignore[method-assign]
        app.wsgi_app,
        ways=ways,
        headers=common,
        admit=_nobody,
        base_path=passing.base_path,
        trusted_hosts=passing.trusted_hosts,
    )
    waitress_limits.apply(relay.limits.body_bytes, threads=THREADS)
    return app


def _nobody(environ: "WSGIEnvironment", scope: object) -> None:
    """Stand where viewers are let in: no way of a relay is for them."""


def _blueprint(passing: Passing) -> Blueprint:
    routes = Blueprint("relay", __name__)
    assets = add_assets(routes)
    for name, say in words.FILTERS.items():
        routes.add_app_template_filter(say, name)

    @routes.get("/")
    @routes.get("/status")
    @needs("public")
    def page() -> Response:
        base = f"{request.script_root}/"
        return html(
            "relay.html",
            said=passing.said(),
            name=passing.name,
            base=base,
            asset=lambda name: f"{base}assets/{assets.digest}/{name}",
        )

    @routes.get("/api/v1/status")
    @needs("public")
    def as_json() -> Response:
        return json_response(passing.said())

    @routes.get("/healthz")
    @needs("public")
    def healthz() -> Response:
        return json_response({"success": True})

    @routes.get("/readyz")
    @needs("public")
    def readyz() -> Response:
        passing.relay.ask()
        standing = passing.relay.standing()
        failing = [] if standing.trouble is None else [{"part": "centre", "why": standing.trouble}]
        body = {"success": not failing, "failing": failing, "hosts": standing.hosts, "version": passing.version}
        return json_response(body, 503 if failing else 200)

    @routes.get("/metrics")
    @needs("public")
    def metrics() -> Response:
        passing.relay.ask()
        open_metrics = exposition.wants_open_metrics(request.headers.get("Accept"))
        kind = exposition.OPEN_METRICS_TYPE if open_metrics else exposition.CONTENT_TYPE
        text = "".join(_metrics(passing.relay.standing(), open_metrics=open_metrics))
        return Response(text + exposition.OPEN_METRICS_END * open_metrics, content_type=kind)

    return routes


def _metrics(standing: Standing, *, open_metrics: bool) -> Iterator[str]:
    for family, value in _METRICS:
        yield exposition.section(family, [("", value(standing))], open_metrics=open_metrics)
