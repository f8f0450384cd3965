"""Slurm's view of the cluster for Prometheus: under our own names, and those of an exporter that boards know. Pure.

What Slurm was asked once a minute answers all scrapes; none of them asks Slurm anything.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cluster_dash_server.prometheus.exposition import Family, labels
from cluster_dash_server.slurm import Job, Node, Picture, is_down, is_drained, word

Samples = Iterable[tuple[str, float | None]]
Sections = Iterator[tuple[Family, Samples]]


def _gauge(name: str, text: str) -> Family:
    return Family(name=name, kind="gauge", help=text)


def own(pictures: Sequence[Picture], now: float) -> Sections:
    """Give all clusters under our own names; of one whose figures are late only when they were read."""
    fresh = [picture for picture in pictures if not picture.is_late(now)]

    def each(counts: str, label: str) -> list[tuple[str, float | None]]:
        return [
            (labels({"cluster": picture.cluster, label: name}), count)
            for picture in fresh
            for name, count in sorted((picture.totals.get(counts) or {}).items())
            if name != "total"
        ]

    def of_partitions(field: str) -> list[tuple[str, float | None]]:
        return [
            (labels({"cluster": picture.cluster, "partition": partition.get("name")}), partition.get(field))
            for picture in fresh
            for partition in picture.partitions
        ]

    def cycles() -> Iterator[tuple[str, float | None]]:
        for picture in fresh:
            for cycle in ("main", "backfill"):
                mean = picture.scheduler.get(f"{cycle}_mean_us")
                yield labels({"cluster": picture.cluster, "cycle": cycle}), None if mean is None else mean / 1e6

    by_cluster = [(labels({"cluster": picture.cluster}), picture) for picture in pictures]
    yield (
        _gauge("cluster_dash_slurm_last_read_timestamp_seconds", "When Slurm's nodes and queue were last read."),
        [(where, picture.at) for where, picture in by_cluster],
    )
    yield _gauge("cluster_dash_slurm_nodes", "Nodes, by state."), each("nodes", "state")
    yield _gauge("cluster_dash_slurm_cpus", "CPUs, by what Slurm does with them."), each("cpus", "state")
    yield _gauge("cluster_dash_slurm_gpus", "GPUs, by what Slurm does with them."), each("gpus", "state")
    yield _gauge("cluster_dash_slurm_jobs", "Jobs, by state; the tasks of an array count."), each("jobs", "state")
    yield (
        _gauge("cluster_dash_slurm_pending_gpus", "GPUs that pending jobs wait for."),
        [(labels({"cluster": picture.cluster}), picture.totals.get("pending_gpus")) for picture in fresh],
    )
    for name, text in (("running", "Jobs that run."), ("pending", "Jobs that wait."), ("gpus", "GPUs.")):
        family = _gauge(f"cluster_dash_slurm_partition_{name}", f"{text} By partition.")
        yield family, dict(of_partitions(name)).items()
    yield (
        _gauge(
            "cluster_dash_slurm_node_unavailable", "1 for a node that is down, or takes no jobs by somebody's will."
        ),
        [
            (labels({"cluster": picture.cluster, "node": node.name, "state": word(node.state)}), 1)
            for picture in fresh
            for node in picture.nodes or ()
            if is_down(node.state) or is_drained(node.state)
        ],
    )
    yield _gauge("cluster_dash_slurm_scheduler_cycle_seconds", "Mean time of a cycle of the scheduler."), cycles()


# ---------------------------------------------------------------------------------------------------- vpenso's names

_NODE_STATES = {
    "alloc": ("allocated",),
    "comp": ("completing",),
    "down": ("down",),
    "drain": ("drained", "draining"),
    "err": ("error",),
    "fail": ("fail",),
    "idle": ("idle",),
    "maint": ("maint",),
    "mix": ("mixed",),
    "resv": ("reserved",),
}
_JOB_STATES = (
    *("pending", "running", "suspended", "cancelled", "completing", "completed", "configuring", "failed", "timeout"),
    *("preempted", "node_fail"),
)
_SCHEDULER = {
    "threads": "server_threads",
    "queue_size": "agent_queue",
    "dbd_queue_size": "dbd_agent_queue",
    "mean_cycle": "main_mean_us",
    "backfill_mean_cycle": "backfill_mean_us",
}


def vpenso(picture: Picture, *, users: bool) -> Sections:
    """Give a cluster under the names and labels of vpenso's exporter; those of users only where `users`."""
    totals = picture.totals

    def plain(name: str, text: str, value: float | None) -> tuple[Family, Samples]:
        return _gauge(f"slurm_{name}", text), [("", value)]

    cpus, gpus = totals.get("cpus") or {}, totals.get("gpus") or {}
    for short, name in (("alloc", "allocated"), ("idle", "idle"), ("other", "other"), ("total", "total")):
        yield plain(f"cpus_{short}", f"CPUs, {name}.", cpus.get(name))
    for short, name in (("alloc", "allocated"), ("idle", "idle"), ("total", "total")):
        yield plain(f"gpus_{short}", f"GPUs, {name}.", gpus.get(name))
    share = gpus["allocated"] / gpus["total"] if gpus.get("allocated") is not None and gpus.get("total") else None
    yield plain("gpus_utilization", "Share of the GPUs that is allocated.", share)
    if picture.nodes is not None:
        words = Counter(word(node.state) for node in picture.nodes)
        for short, names in _NODE_STATES.items():
            yield plain(f"nodes_{short}", f"Nodes, {names[0]}.", sum(words[name] for name in names))
        yield from _nodes(picture.nodes)
        yield from _partitions(picture.nodes)
    jobs = totals.get("jobs")
    if jobs is not None:
        for state in _JOB_STATES:
            yield plain(f"queue_{state}", f"Jobs, {state}.", jobs.get(state, 0))
    if picture.jobs is not None:
        waiting = [job for job in picture.jobs if job.state == "pending"]
        dependent = sum(job.tasks or 1 for job in waiting if job.reason == "Dependency")
        yield plain("queue_pending_dependency", "Jobs that wait for another one.", dependent)
        pending: Counter[str] = Counter()
        for job in waiting:
            for name in job.partition.split(","):
                pending[name] += job.tasks or 1
        yield _gauge("slurm_partition_jobs_pending", "Jobs that wait."), _labelled("partition", pending)
        yield from _by("account", picture.jobs)
        if users:
            yield from _by("user", picture.jobs)
    for name, field in _SCHEDULER.items():
        yield plain(f"scheduler_{name}", f"What sdiag says: {field}.", picture.scheduler.get(field))


def _labelled(label: str, counts: Mapping[str, float]) -> Samples:
    return [(labels({label: name}), count) for name, count in sorted(counts.items()) if name]


def _nodes(nodes: Iterable[Node]) -> Sections:
    named = {labels({"node": node.name, "status": word(node.state)}): node for node in nodes}
    figures: tuple[tuple[str, Any], ...] = (
        ("cpu_alloc", lambda node: node.cpus_allocated),
        ("cpu_idle", lambda node: _left(node, other=False)),
        ("cpu_other", lambda node: _left(node, other=True)),
        ("cpu_total", lambda node: node.cpus),
        ("mem_alloc", lambda node: node.memory_allocated_mib),
        ("mem_total", lambda node: node.memory_mib),
    )
    for name, value in figures:
        family = _gauge(f"slurm_node_{name}", f"{name.replace('_', ', ')} of a node.")
        yield family, [(where, value(node)) for where, node in named.items()]


def _left(node: Node, *, other: bool) -> int | None:
    """Return the CPUs that are not allocated: of a node that takes no jobs they are `other`, else idle."""
    if node.cpus is None:
        return None
    left = node.cpus - min(node.cpus, node.cpus_allocated or 0)
    return left if (is_down(node.state) or is_drained(node.state)) is other else 0


def _partitions(nodes: Iterable[Node]) -> Sections:
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("allocated", "idle", "other", "total")}
    for node in nodes:
        for name in node.partitions.split(","):
            counts["allocated"][name] += node.cpus_allocated or 0
            counts["idle"][name] += _left(node, other=False) or 0
            counts["other"][name] += _left(node, other=True) or 0
            counts["total"][name] += node.cpus or 0
    for kind, of in counts.items():
        yield _gauge(f"slurm_partition_cpus_{kind}", f"CPUs of a partition, {kind}."), _labelled("partition", of)


def _by(label: str, jobs: Iterable[Job]) -> Sections:
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("jobs_pending", "jobs_running", "cpus_running", "jobs_suspended")
    }
    for job in jobs:
        name = getattr(job, label)
        if job.state in ("pending", "running", "suspended"):
            counts[f"jobs_{job.state}"][name] += job.tasks or 1
        if job.state == "running":
            counts["cpus_running"][name] += job.cpus or 0
    for kind, of in counts.items():
        yield _gauge(f"slurm_{label}_{kind}", f"{kind.replace('_', ', ')} of a {label}."), _labelled(label, of)
