"""Slurm's pages and lists: the queue, the nodes, and the job behind each GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flask import Blueprint, Response, abort, render_template, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.hostlist import natural
from cluster_dash_server.slurm import Finished, Job, Node, Picture, Slurm, word
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.web import export, rows, slurm_words, words
from cluster_dash_server.web.api import failure, json_response
from cluster_dash_server.web.export import csv_response
from cluster_dash_server.web.views import QueryError, choice, here

PAGE = 50
"""Rows of a table on one page."""
MOST_SHARES, MOST_SHUT = 15, 12
KEPT_SECONDS = 5.0
"""How old the counts of the overview may be: Slurm's are a minute old anyway."""
CHOICES = ("cluster", "state", "user", "account", "partition", "text", "sort")
"""Parameters that choose rows, or their order."""
LONGEST_CHOICE = 400

CLUSTER_COLUMNS = (
    *(
        "cluster",
        "version",
        "host",
        "read_at",
        "late",
        "nodes",
        "cpus_total",
        "cpus_allocated",
        "cpus_idle",
        "cpus_other",
    ),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Paged:
    """One page of a table; pages count from 1."""

    rows: Sequence[object]
    count: int
    page: int
    pages: int


def blueprint(slurm: Slurm, cluster: Cluster, clock: Callable[[], float], name: str) -> Blueprint:
    """Build the routes.

    Args:
        slurm: the newest picture of each cluster of Slurm.
        cluster: the live view.
        clock: Unix s.
        name: of this site.
    """
    routes = Blueprint("slurm", __name__)

    @routes.app_context_processor
    def known() -> dict[str, object]:
        """Tell the frame whether there is a page on Slurm, and the page of a user what of the queue is theirs."""
        return {"has_slurm": slurm.is_known, "queue_of": queue_of, "reason_of": slurm_words.reason}

    def queue_of(user: str) -> Paged:
        every = [job for picture in slurm.pictures(clock()) for job in picture.jobs or () if job.user == user]
        found = sorted(every, key=JOB_ORDERS[""])  # type: ignore[arg-type]  # orders of one table compare
        return Paged(rows=found[:PAGE], count=len(found), page=1, pages=1)

    @routes.errorhandler(QueryError)
    def wrong_query(error: QueryError) -> Response | tuple[str, int]:
        if request.path.startswith("/api/"):
            return failure(400, str(error))
        return render_template("error.html", title="Bad request", text=str(error)), 400

    def chosen(now: float) -> tuple[Picture | None, list[Picture]]:
        pictures = slurm.pictures(now)
        wanted = request.args.get("cluster")
        return next((each for each in pictures if wanted in (None, each.cluster)), None), pictures

    def page(template: str, picture: Picture, pictures: Sequence[Picture], now: float, **context: object) -> Response:
        response = Response(
            render_template(
                template,
                page="slurm",
                now=now,
                slurm=picture,
                pictures=pictures,
                age=slurm_words.age(picture, now),
                late=picture.is_late(now),
                here=here,
                badge_of=slurm_words.badge,
                state_title=slurm_words.state_title,
                reason_of=slurm_words.reason,
                **context,
            ),
            mimetype="text/html",
        )
        response.headers["Cache-Control"] = "no-cache"
        return response

    kept: dict[str, tuple[float, float, Json]] = {}  # by cluster: of when, made when, what

    def counted(picture: Picture, now: float) -> Json:
        """Count what the overview shows, once for all who look within a few seconds: 0.1 s with 20,000 jobs."""
        of, made, found = kept.get(picture.cluster, (0.0, 0.0, {}))
        if of != picture.received_at or not 0 <= now - made < KEPT_SECONDS:
            found = _counted(picture, slurm, cluster, now)
            kept[picture.cluster] = picture.received_at, now, found
        return found

    @routes.get("/slurm")
    @needs("state:read")
    def overview() -> Response:
        now = clock()
        picture, pictures = chosen(now)
        if picture is None:
            return no_slurm()
        form = choice("format", export.FORMS)
        if form != "html":
            return taken(form, CLUSTER_COLUMNS, [_flat_row(each, now) for each in pictures], now)
        return page(
            "slurm.html",
            picture,
            pictures,
            now,
            tab="",
            has_forms=True,
            json_path="api/v1/slurm",
            **counted(picture, now),
        )

    def taken(form: str, columns: Sequence[str], table: Sequence[Sequence[object]], now: float) -> Response:
        """Answer with a table to take away, and what chose its rows."""
        chosen = {key: request.args[key][:LONGEST_CHOICE] for key in CHOICES if request.args.get(key)}
        return export.of_asked(form, export.Table(columns=columns, rows=table), now, name, asked=chosen)

    def node_rows(picture: Picture) -> list[list[object]]:
        host_of = slurm.host_of(picture, list(cluster.names()))
        rows_of = []
        for node in _asked_nodes(picture):
            said = {**node._asdict(), "word": word(node.state), "host": host_of.get(node.name)}
            rows_of.append([said[column] for column in NODE_COLUMNS])
        return rows_of

    def no_slurm() -> Response:
        response = Response(render_template("no_slurm.html", page="slurm"), mimetype="text/html")
        response.status_code = 404
        return response

    @routes.get("/slurm/jobs")
    @needs("state:read")
    def jobs_page() -> Response:
        now = clock()
        picture, pictures = chosen(now)
        if picture is None:
            return no_slurm()
        found = _asked_jobs(picture)
        form = choice("format", export.FORMS)
        if form != "html":
            return taken(form, JOB_COLUMNS, [_row(job, JOB_COLUMNS) for job in found], now)
        return page(
            "slurm_jobs.html",
            picture,
            pictures,
            now,
            tab="jobs",
            has_forms=True,
            json_path="api/v1/slurm/jobs",
            table=_paged(found),
            states=_words(job.state for job in picture.jobs or ()),
            parts=_words(part for job in picture.jobs or () for part in job.partition.split(",")),
            orders=JOB_ORDERS,
        )

    @routes.get("/slurm/nodes")
    @needs("state:read")
    def nodes_page() -> Response:
        now = clock()
        picture, pictures = chosen(now)
        if picture is None:
            return no_slurm()
        form = choice("format", export.FORMS)
        if form != "html":
            return taken(form, NODE_COLUMNS, node_rows(picture), now)
        return page(
            "slurm_nodes.html",
            picture,
            pictures,
            now,
            tab="nodes",
            has_forms=True,
            json_path="api/v1/slurm/nodes",
            table=_paged(_asked_nodes(picture)),
            states=_words(word(node.state) for node in picture.nodes or ()),
            parts=_words(part for node in picture.nodes or () for part in node.partitions.split(",")),
            orders=NODE_ORDERS,
            host_of=slurm.host_of(picture, list(cluster.names())),
        )

    @routes.get("/slurm/job/<label>")
    @needs("state:read")
    def job_page(label: str) -> Response:
        now = clock()
        picture, pictures = chosen(now)
        if picture is None:
            return no_slurm()
        for each in [picture, *pictures]:
            job = each.job(label)
            if job is not None:
                picture = each
                break
        else:
            abort(404, f"Slurm's queue and its finished jobs of the last hour do not know job {printable(label, 40)}.")
        gpus: list[object] = []
        if isinstance(job, Job):
            hosts = {host.host: host for host in cluster.hosts(now)}
            found = slurm_words.gpus_on([job], hosts, slurm.host_of(picture, list(hosts))).get(job.id, [])
            wanted = {(host.host, view.gpu.key) for host, view in found}
            every = rows.gpu_rows(list({host.host: host for host, _ in found}.values()))
            gpus = [row for row in every if (row.host, row.key) in wanted]
        return page(
            "slurm_job.html",
            picture,
            pictures,
            now,
            tab=None,
            json_path="api/v1/slurm/jobs",
            job=job,
            is_finished=isinstance(job, Finished),
            gpus=gpus,
            reason_text=slurm_words.reason(job.reason) if isinstance(job, Job) else "",
        )

    # ------------------------------------------------------------------------------------------------- for machines

    @routes.get("/api/v1/slurm")
    @needs("state:read")
    def api_slurm() -> Response:
        now = clock()
        pictures = slurm.pictures(now)
        form = choice("format", ("json", "csv", "text"))
        if form == "json":
            return json_response({"at": now, "slurm": [_cluster(each, now) for each in pictures]})
        table = [_flat_row(each, now) for each in pictures]
        return csv_response(CLUSTER_COLUMNS, table) if form == "csv" else _text(CLUSTER_COLUMNS, table)

    @routes.get("/api/v1/slurm/jobs")
    @needs("state:read")
    def api_jobs() -> Response:
        now = clock()
        picture, _ = chosen(now)
        form = choice("format", ("json", "csv", "text"))
        finished = choice("table", ("queue", "finished")) == "finished"
        columns: Sequence[str] = FINISHED_COLUMNS if finished else JOB_COLUMNS
        found: Sequence[Job | Finished] = ()
        if picture is not None:
            found = (picture.finished or ()) if finished else _asked_jobs(picture)
        table = [_row(job, columns) for job in found]
        return _answer(form, "jobs", columns, table, now, picture)

    @routes.get("/api/v1/slurm/nodes")
    @needs("state:read")
    def api_nodes() -> Response:
        now = clock()
        picture, _ = chosen(now)
        form = choice("format", ("json", "csv", "text"))
        table = [] if picture is None else node_rows(picture)
        return _answer(form, "nodes", NODE_COLUMNS, table, now, picture)

    return routes


def _counted(picture: Picture, slurm: Slurm, cluster: Cluster, now: float) -> Json:
    """Count what the overview of a cluster shows: what is allocated, beside what its hosts say is used."""
    hosts = {host.host: host for host in cluster.hosts(now)}
    host_of = slurm.host_of(picture, list(hosts))
    jobs, nodes, totals = picture.jobs or (), picture.nodes or (), picture.totals
    on = slurm_words.gpus_on(jobs, hosts, host_of)
    views = {number: [view for _, view in found] for number, found in on.items()}
    outside = [
        (host.host, view.gpu.index, ", ".join(view.gpu.users or ()))
        for host in hosts.values()
        if host.place is not None and host.silent is None
        for view in host.gpus
        if view.slurm is not None and view.slurm.is_passed_by(view.gpu.working)
    ]
    shut = slurm_words.shut(nodes)
    return {
        "bars": slurm_words.bars(totals),
        "gpu_types": totals.get("gpu_types") or {},
        "queue": slurm_words.counts(totals.get("jobs") or {}),
        "day": None if picture.finished is None else slurm_words.counts(totals.get("finished_day") or {}),
        "node_counts": slurm_words.node_counts(nodes),
        "shut": shut[:MOST_SHUT],
        "shut_more": max(0, len(shut) - MOST_SHUT),
        "waiting": slurm_words.waiting(picture),
        "users": slurm_words.shares(jobs, views, cluster.thresholds, by="user")[:MOST_SHARES],
        "accounts": slurm_words.shares(jobs, views, cluster.thresholds, by="account")[:MOST_SHARES],
        "outside": outside[:MOST_SHUT],
        "outside_count": len(outside),
        "host_of": host_of,
    }


def _words(values: object) -> list[str]:
    return sorted({value for value in values if value})  # type: ignore[attr-defined]


def _text_of(*values: object) -> str:
    return " ".join(str(value) for value in values if value is not None).lower()


def _asked_jobs(picture: Picture) -> list[Job]:
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


def _asked_nodes(picture: Picture) -> list[Node]:
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


def _paged(found: Sequence[object]) -> Paged:
    text = request.args.get("page", "1")
    pages = max(1, -(-len(found) // PAGE))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1
    number = min(max(number, 1), pages)
    return Paged(rows=found[(number - 1) * PAGE : number * PAGE], count=len(found), page=number, pages=pages)


def _row(job: Job | Finished, columns: Sequence[str]) -> list[object]:
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


def _flat_row(picture: Picture, now: float) -> list[object]:
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
    """Draw a table for `curl`: columns are padded, and parted by a tab for `cut`."""
    lines = [list(columns)]
    lines += [[words.DASH if value in (None, "") else printable(str(value), 60) for value in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "".join(
        "\t".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )
    return Response(text, mimetype="text/plain")
