"""What Prometheus reads: the text of the cluster, of one host, and the list of hosts to scrape."""

from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.events import EventLog
from cluster_dash_server.live import Encoding, choose_encoding, pack
from cluster_dash_server.prometheus import dcgm
from cluster_dash_server.prometheus import slurm as slurm_metrics
from cluster_dash_server.prometheus.exposition import (
    CONTENT_TYPE,
    OPEN_METRICS_END,
    OPEN_METRICS_TYPE,
    section,
    wants_open_metrics,
)
from cluster_dash_server.prometheus.metrics import Metrics
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.web.answers import failure, json_response


def blueprint(
    metrics: Metrics,
    cluster: Cluster,
    events: EventLog,
    slurm: Slurm,
    clock: Callable[[], float],
    *,
    hostname_label: str,
    slurm_family: str,
    users: bool,
    public_url: str | None,
) -> Blueprint:
    """Build the routes."""
    scrape = Blueprint("metrics", __name__)

    @scrape.get("/metrics")
    @needs("metrics:read")
    def metrics_text() -> Response:
        family = request.args.get("family")
        if family == "dcgm":
            return _of_host(request.args.get("host", ""))
        if "host" in request.args:
            return failure(400, "host: only with family=dcgm")
        if family is None:
            return _text(lambda encoding, open_metrics: metrics.body(clock(), encoding, open_metrics=open_metrics))
        if family == slurm_family != "none":
            return _of_slurm()
        known = "" if slurm_family == "none" else f", {slurm_family}"
        return failure(400, f"family: got {printable(family, 32)}, expected dcgm{known}, or none for our own names")

    def _of_host(host: str) -> Response:
        now = clock()
        view = cluster.host(host, now)
        if view is None:
            return failure(404, f"host: {printable(host, 64)} is not known here" if host else "host: missing")
        if view.silent is not None:
            silent_seconds = now - view.seen.received_at
            return failure(503, f"host: {printable(host, 64)} has been silent for {silent_seconds:.0f} s")
        snapshot = view.seen.snapshot
        xids = _last_xids(events, host)

        def write(encoding: Encoding, open_metrics: bool) -> bytes:
            text = dcgm.text(
                snapshot,
                xids,
                hostname_label=hostname_label,
                old_after_seconds=cluster.thresholds.stale_intervals * view.interval_seconds,
                open_metrics=open_metrics,
            )
            return pack(text.encode(), encoding)

        return _text(write)

    def _of_slurm() -> Response:
        now = clock()
        named = request.args.get("cluster")
        picture = next((each for each in slurm.pictures(now) if named in (None, each.cluster)), None)
        if picture is None:
            return failure(404, "cluster: no mole has told of Slurm" if named is None else "cluster: not known here")
        if picture.is_late(now):
            return failure(503, "cluster: what Slurm said last is too old")
        sections = slurm_metrics.vpenso(picture, users=users)

        def write(encoding: Encoding, open_metrics: bool) -> bytes:
            parts = [section(family, samples, open_metrics=open_metrics) for family, samples in sections]
            return pack("".join([*parts, OPEN_METRICS_END if open_metrics else ""]).encode(), encoding)

        return _text(write)

    @scrape.get("/api/v1/http-sd")
    @needs("metrics:read")
    def targets() -> Response:
        address = urlsplit(public_url or request.host_url)
        base = {"__metrics_path__": f"{address.path.rstrip('/')}/metrics", "__param_family": "dcgm"}
        if address.scheme == "https":
            base["__scheme__"] = "https"
        names: list[Json] = [
            {"targets": [address.netloc], "labels": {"instance": host.host, **base, "__param_host": host.host}}
            for host in cluster.hosts(clock())
        ]
        answer = json_response(names)
        answer.headers["Cache-Control"] = "no-store"  # without public_url it names the address that was asked
        return answer

    return scrape


def _text(write: Callable[[Encoding, bool], bytes]) -> Response:
    """Answer with a text, in the format and the encoding that the caller asks for."""
    open_metrics = wants_open_metrics(request.headers.get("Accept"))
    encoding = choose_encoding(request.headers.get("Accept-Encoding"))
    answer = Response(write(encoding, open_metrics), content_type=OPEN_METRICS_TYPE if open_metrics else CONTENT_TYPE)
    answer.headers["Vary"] = "Accept, Accept-Encoding"
    if encoding != "identity":
        answer.headers["Content-Encoding"] = encoding
    return answer


def _last_xids(events: EventLog, host: str) -> dict[int, int]:
    """Return the number of the last Xid of each GPU of a host, by its index."""
    last: dict[int, int] = {}
    for event in events.newest([host]):
        if event.kind == "xid" and isinstance(event.gpu, int) and isinstance(event.code, int):
            last.setdefault(event.gpu, event.code)
    return last
