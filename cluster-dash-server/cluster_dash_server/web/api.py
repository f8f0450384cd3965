"""What machines read of the live view: `/api/v1/…`, and the health of the server."""

from collections.abc import Callable, Iterable

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.live import choose_encoding
from cluster_dash_server.narrowed import Narrowed
from cluster_dash_server.snapshot import printable, schema_text
from cluster_dash_server.web.answers import failure, json_response
from cluster_dash_server.web.edge import Way
from cluster_dash_server.web.hot import ALIVE, ready


def blueprint(
    cluster: Cluster,
    narrowed: Narrowed,
    looks: Way,
    clock: Callable[[], float],
    version: str,
    failing: Callable[[], Iterable[tuple[str, str, bool]]],
) -> Blueprint:
    """Build the routes; `failing` tells the parts that fail: name, why, whether another replica would do better."""
    api = Blueprint("api", __name__)

    @api.get(ALIVE.path)
    @needs("public")
    def healthz() -> Response:
        return Response(*ALIVE.answer(request.environ))

    @api.get("/readyz")
    @needs("public")
    def readyz() -> Response:
        parts = list(failing())
        body = {
            "success": not parts,
            "failing": [{"part": part, "why": why} for part, why, _ in parts],
            "hosts": len(cluster),
            "version": version,
        }
        # people look at the cluster all the same while a mail server is away, and what all replicas lack is no reason
        # to send everybody away from all of them
        return json_response(body, 503 if any(is_ours for _, _, is_ours in parts) else 200)

    @api.get(looks.path)
    @needs("state:read")
    def live_cluster() -> Response:
        return Response(*looks.answer(request.environ))

    @api.get("/api/v1/facets")
    @needs("state:read")
    def filter_facets() -> Response:
        encoding = choose_encoding(request.headers.get("Accept-Encoding"))
        body = narrowed.facets(clock(), request.args.get("q", "").strip(), encoding)
        return Response(*ready(body, request.environ))

    @api.get("/api/v1/hosts/<host>")
    @needs("state:read")
    def one_host(host: str) -> Response:
        view = cluster.host(host, clock())
        if view is None:
            return failure(404, f"host: {printable(host, 64)} is not known here")
        return json_response(
            {
                "host": view.host,
                "received_at": view.seen.received_at,
                "state": view.headline.state,
                "skew_seconds": view.seen.skew_seconds,
                "snapshot": view.seen.snapshot,
            }
        )

    @api.get("/api/v1/schema")
    @needs("public")
    def schema() -> Response:
        return Response(schema_text(), mimetype="application/schema+json")

    return api
