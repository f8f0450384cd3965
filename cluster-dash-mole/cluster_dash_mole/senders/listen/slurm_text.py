"""What Slurm says as text for Prometheus, under the names and labels of vpenso's exporter. Pure.

Slurm was asked by the mole's own round; a scrape asks it nothing. The server tells the same: `/metrics?family=vpenso`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster_dash_mole.senders.listen.text import family, labels

Block = Mapping[str, Any]
Row = Mapping[str, Any]

_TEXTS = {"nodes": ("state", "partitions"), "jobs": ("user", "account", "partition", "state", "reason")}
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


def vpenso(block: Block, *, users: bool) -> str:
    """Write the part `slurm` of a snapshot; those of users only where `users`."""
    return "".join(
        family({"name": f"slurm_{name}", "kind": "gauge", "help": text}, samples)
        for name, text, samples in _families(block, users)
    )


def _families(block: Block, users: bool) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    totals = block.get("totals") or {}
    cpus, gpus = totals.get("cpus") or {}, totals.get("gpus") or {}

    def plain(value: float | None) -> dict[str, float]:
        return {} if value is None else {"": value}

    for short, name in (("alloc", "allocated"), ("idle", "idle"), ("other", "other"), ("total", "total")):
        yield f"cpus_{short}", f"CPUs, {name}.", plain(cpus.get(name))
    for short, name in (("alloc", "allocated"), ("idle", "idle"), ("total", "total")):
        yield f"gpus_{short}", f"GPUs, {name}.", plain(gpus.get(name))
    share = gpus["allocated"] / gpus["total"] if gpus.get("allocated") is not None and gpus.get("total") else None
    yield "gpus_utilization", "Share of the GPUs that is allocated.", plain(share)
    nodes, jobs = _rows(block, "nodes"), _rows(block, "jobs")
    if nodes is not None:
        words = Counter(_word(node["state"]) for node in nodes)
        for short, names in _NODE_STATES.items():
            yield f"nodes_{short}", f"Nodes, {names[0]}.", plain(sum(words[name] for name in names))
        yield from _of_nodes(nodes)
        yield from _of_partitions(nodes)
    if totals.get("jobs") is not None:
        for state in _JOB_STATES:
            yield f"queue_{state}", f"Jobs, {state}.", plain(totals["jobs"].get(state, 0))
    if jobs is not None:
        waiting = [job for job in jobs if job["state"] == "pending"]
        dependent = sum(job.get("tasks") or 1 for job in waiting if job["reason"] == "Dependency")
        yield "queue_pending_dependency", "Jobs that wait for another one.", plain(dependent)
        pending: Counter[str] = Counter()
        for job in waiting:
            for name in job["partition"].split(","):
                pending[name] += job.get("tasks") or 1
        yield "partition_jobs_pending", "Jobs that wait.", _labelled("partition", pending)
        yield from _by("account", jobs)
        if users:
            yield from _by("user", jobs)
    for name, field in _SCHEDULER.items():
        yield f"scheduler_{name}", f"What sdiag says: {field}.", plain((block.get("scheduler") or {}).get(field))


def _rows(block: Block, table: str) -> Sequence[Row] | None:
    """Return a table's rows, with texts in their places; None where it was never read."""
    columns = block.get(table)
    if columns is None:
        return None
    strings = block.get("strings") or [""]
    names = list(columns)
    rows: list[dict[str, Any]] = [
        dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    for row in rows:
        for name in _TEXTS[table]:
            row[name] = strings[row.get(name) or 0]
    return rows


def _is_shut(state: str) -> bool:
    base, *flags = state.split("+")
    return base in ("down", "error", "unknown", "future") or any(
        flag.startswith(("drain", "fail", "maint")) for flag in (base, *flags)
    )


def _word(state: str) -> str:
    """Return the one word for a node's state, as `sinfo` chooses it."""
    base, *flags = state.split("+")
    if base in ("down", "error", "unknown", "future"):
        return "down"
    if any(flag.startswith("drain") for flag in flags):
        return "draining" if base in ("mixed", "allocated") or "completing" in flags else "drained"
    for flag in ("fail", "maintenance", "maint", "reserved"):
        if flag in flags:
            return "maint" if flag == "maintenance" else flag
    return base


def _labelled(label: str, counts: Mapping[str, float]) -> dict[str, float]:
    return {labels({label: name}): count for name, count in sorted(counts.items()) if name}


def _left(node: Row, *, other: bool) -> int | None:
    """Return the CPUs that are not allocated: of a node that takes no jobs they are `other`, else idle."""
    if node.get("cpus") is None:
        return None
    left: int = node["cpus"] - min(node["cpus"], node.get("cpus_allocated") or 0)
    return left if _is_shut(node["state"]) is other else 0


def _of_nodes(nodes: Sequence[Row]) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    named = {labels({"node": node.get("name"), "status": _word(node["state"])}): node for node in nodes}
    values = {
        where: {
            "cpu_alloc": node.get("cpus_allocated"),
            "cpu_idle": _left(node, other=False),
            "cpu_other": _left(node, other=True),
            "cpu_total": node.get("cpus"),
            "mem_alloc": node.get("memory_allocated_mib"),
            "mem_total": node.get("memory_mib"),
        }
        for where, node in named.items()
    }
    for name in ("cpu_alloc", "cpu_idle", "cpu_other", "cpu_total", "mem_alloc", "mem_total"):
        known = {where: value for where, each in values.items() if (value := each[name]) is not None}
        yield f"node_{name}", f"{name.replace('_', ', ')} of a node.", known


def _of_partitions(nodes: Sequence[Row]) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("allocated", "idle", "other", "total")}
    for node in nodes:
        for name in node["partitions"].split(","):
            counts["allocated"][name] += node.get("cpus_allocated") or 0
            counts["idle"][name] += _left(node, other=False) or 0
            counts["other"][name] += _left(node, other=True) or 0
            counts["total"][name] += node.get("cpus") or 0
    for kind, of in counts.items():
        yield f"partition_cpus_{kind}", f"CPUs of a partition, {kind}.", _labelled("partition", of)


def _by(label: str, jobs: Sequence[Row]) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("jobs_pending", "jobs_running", "cpus_running", "jobs_suspended")
    }
    for job in jobs:
        if job["state"] in ("pending", "running", "suspended"):
            counts[f"jobs_{job['state']}"][job[label]] += job.get("tasks") or 1
        if job["state"] == "running":
            counts["cpus_running"][job[label]] += job.get("cpus") or 0
    for kind, of in counts.items():
        yield f"{label}_{kind}", f"{kind.replace('_', ', ')} of a {label}.", _labelled(label, of)
