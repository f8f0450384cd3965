"""Slurm's pages: the queue, the nodes, and the job behind each GPU."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flask import Blueprint, Response, abort, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.slurm import Finished, Job, Picture, Slurm, word
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.web import export, fleet, rows, slurm_words
from cluster_dash_server.web.answers import html
from cluster_dash_server.web.fleet import Page
from cluster_dash_server.web.parameters import choice
from cluster_dash_server.web.slurm_lists import (
    CLUSTER_COLUMNS,
    JOB_COLUMNS,
    JOB_ORDERS,
    NODE_COLUMNS,
    NODE_ORDERS,
    asked_jobs,
    asked_nodes,
    chosen,
    cluster_row,
    job_row,
    node_rows,
)
from cluster_dash_server.web.views import here

MOST_SHARES, MOST_SHUT = 15, 12
KEPT_SECONDS = 5.0
"""How old the counts of the overview may be: Slurm's are a minute old anyway."""
CHOICES = ("cluster", "state", "user", "account", "partition", "text", "sort")
"""Parameters that choose rows, or their order."""
LONGEST_CHOICE = 400


class Paged(NamedTuple):
    """One page of a table: its rows, and which they are of how many."""

    rows: Sequence[object]
    part: Page


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
        return _paged(found, "1")

    def page(template: str, picture: Picture, pictures: Sequence[Picture], now: float, **context: object) -> Response:
        return html(
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
        )

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
        picture, pictures = chosen(slurm, now)
        if picture is None:
            return no_slurm()
        form = choice("format", export.FORMS)
        if form != "html":
            return taken(form, CLUSTER_COLUMNS, [cluster_row(each, now) for each in pictures], now)
        orders, sort = slurm_words.SHARE_ORDERS, choice("sort", slurm_words.SHARE_ORDERS.choices())
        found = counted(picture, now)
        ordered = {name: orders.of(found[name], sort)[:MOST_SHARES] for name in ("users", "accounts")}
        return page(
            "slurm.html",
            picture,
            pictures,
            now,
            tab="",
            has_forms=True,
            json_path="api/v1/slurm",
            orders=orders,
            sort=sort,
            **{**found, **ordered},
        )

    def taken(form: str, columns: Sequence[str], table: Sequence[Sequence[object]], now: float) -> Response:
        """Answer with a table to take away, and what chose its rows."""
        chosen = {key: request.args[key][:LONGEST_CHOICE] for key in CHOICES if request.args.get(key)}
        return export.of_asked(form, export.Table(columns=columns, rows=table), now, name, asked=chosen)

    def no_slurm() -> Response:
        return html("no_slurm.html", 404, page="slurm")

    @routes.get("/slurm/jobs")
    @needs("state:read")
    def jobs_page() -> Response:
        now = clock()
        picture, pictures = chosen(slurm, now)
        if picture is None:
            return no_slurm()
        found = asked_jobs(picture)
        form = choice("format", export.FORMS)
        if form != "html":
            return taken(form, JOB_COLUMNS, [job_row(job, JOB_COLUMNS) for job in found], now)
        return page(
            "slurm_jobs.html",
            picture,
            pictures,
            now,
            tab="jobs",
            has_forms=True,
            json_path="api/v1/slurm/jobs",
            table=_paged(found, request.args.get("page", "")),
            states=_words(job.state for job in picture.jobs or ()),
            parts=_words(part for job in picture.jobs or () for part in job.partition.split(",")),
            orders=JOB_ORDERS,
        )

    @routes.get("/slurm/nodes")
    @needs("state:read")
    def nodes_page() -> Response:
        now = clock()
        picture, pictures = chosen(slurm, now)
        if picture is None:
            return no_slurm()
        form = choice("format", export.FORMS)
        if form != "html":
            return taken(form, NODE_COLUMNS, node_rows(picture, slurm, cluster), now)
        return page(
            "slurm_nodes.html",
            picture,
            pictures,
            now,
            tab="nodes",
            has_forms=True,
            json_path="api/v1/slurm/nodes",
            table=_paged(asked_nodes(picture), request.args.get("page", "")),
            states=_words(word(node.state) for node in picture.nodes or ()),
            parts=_words(part for node in picture.nodes or () for part in node.partitions.split(",")),
            orders=NODE_ORDERS,
            host_of=slurm.host_of(picture, list(cluster.names())),
        )

    @routes.get("/slurm/job/<label>")
    @needs("state:read")
    def job_page(label: str) -> Response:
        now = clock()
        picture, pictures = chosen(slurm, now)
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
        "users": slurm_words.shares(jobs, views, cluster.thresholds, by="user"),
        "accounts": slurm_words.shares(jobs, views, cluster.thresholds, by="account"),
        "outside": outside[:MOST_SHUT],
        "outside_count": len(outside),
        "host_of": host_of,
    }


def _words(values: object) -> list[str]:
    return sorted({value for value in values if value})  # type: ignore[attr-defined]


def _paged(found: Sequence[object], number: str) -> Paged:
    part = fleet.page(len(found), number, at_once=fleet.PAGE)
    return Paged(part.of(found), part)
