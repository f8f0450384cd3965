"""Slurm's lists, as pages choose from them and as programs get them: clusters, jobs, nodes, in JSON, CSV and text."""

from collections.abc import Callable, Sequence

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.hostlist import natural
from cluster_dash_server.slurm import Finished, Job, Node, Picture, Slurm, word
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.web import slurm_words, words
from cluster_dash_server.web.answers import in_columns, json_response
from cluster_dash_server.web.export import csv_response
from cluster_dash_server.web.parameters import choice

CLUSTER_COLUMNS = (
    *("cluster", "version", "host", "read_at", "late", "nodes"),
    *("cpus_total", "cpus_allocated", "cpus_idle", "cpus_other"),
    *("gpus_total", "gpus_allocated", "gpus_idle", "gpus_drained", "gpus_down", "jobs_running", "jobs_pending"),
    "pending_gpus",
)
JOB_COLUMNS = (
    *("id", "array", "tasks", "name", "user", "account", "partition", "qos", "state", "reason", "reason_text", "nodes"),
    *("node_count", "cpus", "memory_mib", "gpus", "gpu_type", "gpu_index", "submitted_at", "started_at"),
    *("time_limit_seconds", "expected_start_at", "priority"),
)
FINISHED_COLUMNS = (
    *("id", "array", "name", "user", "account", "partition", "state", "exit", "nodes", "cpus", "gpus"),
    *("submitted_at", "started_at", "ended_at"),
)
NODE_COLUMNS = (
    *("name", "host", "state", "word", "partitions", "cpus", "cpus_allocated", "memory_mib", "memory_allocated_mib"),
    *("load", "gpu", "gpus", "gpus_allocated", "gpu_index", "features", "reason", "reason_at", "boot_at"),
)

JOB_ORDERS: dict[str, Callable[[Job], object]] = {
    "": lambda job: (job.state == "pending", -(job.gpus or 0), -(job.priority or 0), job.id),
    "id": lambda job: job.id,
    "user": lambda job: (job.user, job.id),
    "gpus": lambda job: (-(job.gpus or 0), job.id),
    "priority": lambda job: (-(job.priority or 0), job.id),
    "waiting": lambda job: (job.submitted_at or 0, job.id),
    "started": lambda job: (-(job.started_at or 0), job.id),
}
NODE_ORDERS: dict[str, Callable[[Node], object]] = {
    "": lambda node: (word(node.state) in ("idle", "mixed", "allocated"), natural(node.name)),
    "name": lambda node: natural(node.name),
    "gpus": lambda node: ((node.gpus_allocated or 0) - (node.gpus or 0), natural(node.name)),
    "load": lambda node: (-(node.load or 0), natural(node.name)),
}


def blueprint(slurm: Slurm, cluster: Cluster, clock: Callable[[], float]) -> Blueprint:
    """Build the routes.

    Args:
        slurm: the newest picture of each cluster of Slurm.
        cluster: the live view.
        clock: Unix s.
    """
    routes = Blueprint("slurm_lists", __name__)

    @routes.get("/api/v1/slurm")
    @needs("state:read")
    def api_slurm() -> Response:
        now = clock()
        pictures = slurm.pictures(now)
        form = choice("format", ("json", "csv", "text"))
        if form == "json":
            return json_response({"at": now, "slurm": [_cluster(each, now) for each in pictures]})
        table = [cluster_row(each, now) for each in pictures]
        return csv_response(CLUSTER_COLUMNS, table) if form == "csv" else _text(CLUSTER_COLUMNS, table)

    @routes.get("/api/v1/slurm/jobs")
    @needs("state:read")
    def api_jobs() -> Response:
        now = clock()
        picture, _ = chosen(slurm, now)
        form = choice("format", ("json", "csv", "text"))
        finished = choice("table", ("queue", "finished")) == "finished"
        columns: Sequence[str] = FINISHED_COLUMNS if finished else JOB_COLUMNS
        found: Sequence[Job | Finished] = ()
        if picture is not None:
            found = (picture.finished or ()) if finished else asked_jobs(picture)
        table = [job_row(job, columns) for job in found]
        return _answer(form, "jobs", columns, table, now, picture)

    @routes.get("/api/v1/slurm/nodes")
    @needs("state:read")
    def api_nodes() -> Response:
        now = clock()
        picture, _ = chosen(slurm, now)
        form = choice("format", ("json", "csv", "text"))
        table = [] if picture is None else node_rows(picture, slurm, cluster)
        return _answer(form, "nodes", NODE_COLUMNS, table, now, picture)

    return routes


def chosen(slurm: Slurm, now: float) -> tuple[Picture | None, list[Picture]]:
    """Return the picture of the cluster that the request means, None where there is none, and those of all."""
    pictures = slurm.pictures(now)
    wanted = request.args.get("cluster")
    return next((each for each in pictures if wanted in (None, each.cluster)), None), pictures


def _text_of(*values: object) -> str:
    return " ".join(str(value) for value in values if value is not None).lower()


def asked_jobs(picture: Picture) -> list[Job]:
    """Return the jobs that the request asks for: `state`, `user`, `account`, `partition`, `text`, `sort`."""
    wanted = {name: request.args.get(name, "") for name in ("state", "user", "account", "partition", "text")}
    order = JOB_ORDERS[choice("sort", tuple(JOB_ORDERS))]
    text = wanted["text"].strip().lower()
    found = [
        job
        for job in picture.jobs or ()
        if wanted["state"] in ("", job.state)
        and wanted["user"] in ("", job.user)
        and wanted["account"] in ("", job.account)
        and (not wanted["partition"] or wanted["partition"] in job.partition.split(","))
        and (not text or text in _text_of(job.label, job.id, job.name, job.user, job.account, job.reason, job.nodes))
    ]
    return sorted(found, key=order)  # type: ignore[arg-type]  # orders of one table compare


def asked_nodes(picture: Picture) -> list[Node]:
    """Return the nodes that the request asks for: `state` (the one word), `partition`, `text`, `sort`."""
    wanted = {name: request.args.get(name, "") for name in ("state", "partition", "text")}
    order = NODE_ORDERS[choice("sort", tuple(NODE_ORDERS))]
    text = wanted["text"].strip().lower()
    found = [
        node
        for node in picture.nodes or ()
        if wanted["state"] in ("", word(node.state))
        and (not wanted["partition"] or wanted["partition"] in node.partitions.split(","))
        and (not text or text in _text_of(node.name, node.state, node.gpu, node.features, node.reason))
    ]
    return sorted(found, key=order)  # type: ignore[arg-type]  # orders of one table compare


def node_rows(picture: Picture, slurm: Slurm, cluster: Cluster) -> list[list[object]]:
    """Return the nodes that the request asks for, a row of `NODE_COLUMNS` each."""
    host_of = slurm.host_of(picture, list(cluster.names()))
    rows_of = []
    for node in asked_nodes(picture):
        said = {**node._asdict(), "word": word(node.state), "host": host_of.get(node.name)}
        rows_of.append([said[column] for column in NODE_COLUMNS])
    return rows_of


def job_row(job: Job | Finished, columns: Sequence[str]) -> list[object]:
    """Return what is known of a job, in the order of some columns."""
    said = job._asdict()
    if isinstance(job, Job):
        said["reason_text"] = slurm_words.reason(job.reason) or None
    return [said[name] for name in columns]


def _flat(picture: Picture, now: float) -> Json:
    totals = picture.totals
    flat: Json = {
        "cluster": picture.cluster,
        "version": picture.version,
        "host": picture.host,
        "read_at": picture.at,
        "late": picture.is_late(now),
        "nodes": None if picture.nodes is None else len(picture.nodes),
        "jobs_running": (totals.get("jobs") or {}).get("running", 0) if "jobs" in totals else None,
        "jobs_pending": (totals.get("jobs") or {}).get("pending", 0) if "jobs" in totals else None,
        "pending_gpus": totals.get("pending_gpus"),
    }
    for name in CLUSTER_COLUMNS:
        table, _, kind = name.partition("_")
        if table in ("cpus", "gpus"):
            flat[name] = (totals.get(table) or {}).get(kind)
    return flat


def cluster_row(picture: Picture, now: float) -> list[object]:
    """Return a cluster of Slurm as a row of `CLUSTER_COLUMNS`."""
    flat = _flat(picture, now)
    return [flat[column] for column in CLUSTER_COLUMNS]


def _cluster(picture: Picture, now: float) -> Json:
    return {
        "cluster": picture.cluster,
        "version": picture.version,
        "host": picture.host,
        "others": list(picture.others),
        "read_at": picture.at,
        "late": picture.is_late(now),
        "interval_seconds": picture.interval_seconds,
        "sources": {
            name: {"ok": each.ok, "at": each.at, "error": each.error} for name, each in picture.sources.items()
        },
        "notes": list(picture.notes),
        "totals": picture.totals,
        "scheduler": dict(picture.scheduler),
        "partitions": list(picture.partitions),
        "pending_reasons": [
            {"reason": name, "jobs": count, "gpus": gpus, "text": said or None}
            for name, count, gpus, said in slurm_words.waiting(picture)
        ],
    }


def _answer(
    form: str, name: str, columns: Sequence[str], table: Sequence[Sequence[object]], now: float, picture: Picture | None
) -> Response:
    if form == "csv":
        return csv_response(columns, table)
    if form == "text":
        return _text(columns, table)
    found = [dict(zip(columns, row, strict=True)) for row in table]
    return json_response({"at": now, "read_at": None if picture is None else picture.at, name: found})


def _text(columns: Sequence[str], table: Sequence[Sequence[object]]) -> Response:
    lines = [list(columns)]
    lines += [[words.DASH if value in (None, "") else printable(str(value), 60) for value in row] for row in table]
    return Response(in_columns(lines), mimetype="text/plain")
