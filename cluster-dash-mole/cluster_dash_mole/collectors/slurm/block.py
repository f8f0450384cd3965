"""The part `slurm` of a snapshot: columns, not rows, and repeated text as an index. Pure.

20,000 jobs are 9 MiB as rows of objects and 3 MiB so; a server takes bodies of 2 MiB, packed.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cluster_dash_mole.collectors.slurm.text import ON_NODES, OVER, Detail, Finished, Job, Node, Partition

Block = dict[str, object]

MOST_JOBS, MOST_FINISHED = 20_000, 2_000
FINISHED_SECONDS, DAY_SECONDS = 3600.0, 86_400.0
MOST_PACKED_BYTES = 900 * 1024
_MOST_OMITTED = 1000
_DRAINED = ("drain", "fail", "maint")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How the asking for one table went: `at` is when it last went well (Unix s), `error` what it said last."""

    ok: bool
    at: float | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that is known of Slurm. A table that was never read is None; the others are the last good ones."""

    collected_at: float
    interval_seconds: float
    sources: Mapping[str, Source]
    version: str | None = None
    cluster: str | None = None
    nodes: Sequence[Node] | None = None
    jobs: Sequence[Job] | None = None
    details: Mapping[int, Detail] = field(default_factory=dict)
    partitions: Sequence[Partition] | None = None
    finished: Sequence[Finished] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    scheduler: Mapping[str, int | None] | None = None
    notes: Sequence[str] = ()


class _Strings:
    """Texts that come often: each stands once, and tables name its place. The first is ""."""

    def __init__(self) -> None:
        self.all: list[str] = [""]
        self._place = {"": 0}

    def __call__(self, text: str) -> int:
        place = self._place.get(text)
        if place is None:
            place = self._place[text] = len(self.all)
            self.all.append(text)
        return place


def build(found: Found) -> Block:
    """Return the block. One that would be too large leaves pending jobs out, and says how many of whom."""
    most = min(MOST_JOBS, len(found.jobs or ()))
    while True:
        block = _build(found, most)
        text = json.dumps(block, separators=(",", ":")).encode()
        if len(text) <= MOST_PACKED_BYTES or len(zlib.compress(text, 2)) <= MOST_PACKED_BYTES or most < 100:
            return block
        most //= 2


def _build(found: Found, most: int) -> Block:
    strings = _Strings()
    block: Block = {
        "version": found.version,
        "cluster": found.cluster,
        "collected_at": found.collected_at,
        "interval_seconds": found.interval_seconds,
        "sources": {
            name: {"ok": each.ok, "at": each.at, "seconds": each.seconds, "error": each.error}
            for name, each in found.sources.items()
        },
        "notes": list(found.notes),
        "totals": _totals(found),
        "scheduler": found.scheduler,
    }
    if found.partitions is not None:
        block["partitions"] = _partitions(found)
    if found.nodes is not None:
        block["nodes"] = _columns(_NODE, found.nodes, strings)
    if found.jobs is not None:
        shown, omitted = _chosen(found.jobs, most)
        block["jobs"] = _columns(_JOB, [(job, found.details.get(job.id)) for job in shown], strings)
        block["jobs_omitted"] = _omitted(omitted)
    if found.finished is not None:
        recent = [job for job in found.finished if (job.ended_at or 0) >= found.collected_at - FINISHED_SECONDS]
        recent.sort(key=lambda job: -(job.ended_at or 0))
        block["finished"] = _columns(
            _FINISHED, [(job, found.names.get(job.id)) for job in recent[:MOST_FINISHED]], strings
        )
    block["strings"] = strings.all
    return block


# ------------------------------------------------------------------------------------------------------- totals


def is_down(state: str) -> bool:
    """Say whether a node's state is down or unknown to Slurm."""
    return state.partition("+")[0] in ("down", "error", "unknown", "future")


def is_drained(state: str) -> bool:
    """Say whether a node's state keeps new jobs away by an admin's will: drain, fail, maintenance."""
    return any(flag.startswith(_DRAINED) for flag in state.split("+"))


def node_word(state: str) -> str:
    """Return the one word for a node's state, as `sinfo` chooses it: `drained`, `draining`, `down`, `mixed`."""
    base, *flags = state.split("+")
    if is_down(state):
        return "down"
    if any(flag.startswith("drain") for flag in flags):
        return "draining" if base in ("mixed", "allocated") or "completing" in flags else "drained"
    for flag in ("fail", "maintenance", "maint", "reserved"):
        if flag in flags:
            return "maint" if flag == "maintenance" else flag
    return base


def _totals(found: Found) -> Block:
    totals: Block = {}
    if found.nodes is not None:
        gpu_types: dict[str, Counter[str]] = {}
        counts: Counter[str] = Counter()
        for node in found.nodes:
            left_over = "down" if is_down(node.state) else "drained" if is_drained(node.state) else "idle"
            for kind, count in node.gpus.items():
                taken = min(count, node.gpus_allocated.get(kind, 0))
                split = Counter({"total": count, "allocated": taken, left_over: count - taken})
                gpu_types.setdefault(kind or "gpu", Counter()).update(split)
                counts.update(split)
        totals["cpus"] = _cpus(found.nodes)
        totals["gpus"] = _gpus(counts)
        totals["gpu_types"] = {kind: _gpus(counts) for kind, counts in sorted(gpu_types.items())}
        totals["nodes"] = dict(Counter(node_word(node.state) for node in found.nodes))
    if found.jobs is not None:
        states: Counter[str] = Counter()
        for job in found.jobs:
            states[job.state] += job.tasks
        totals["jobs"] = dict(states)
        totals["pending_gpus"] = sum(
            gpus(job, found.details.get(job.id)) * job.tasks for job in found.jobs if job.state == "pending"
        )
    if found.finished is not None:
        totals["finished_day"] = dict(Counter(job.state for job in found.finished))
    return totals


def _gpus(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in ("total", "allocated", "idle", "drained", "down")}


def _cpus(nodes: Iterable[Node]) -> dict[str, int]:
    """Count as `sinfo -o %C` does: what is not allocated on a node that is down or drained is `other`."""
    counts: Counter[str] = Counter()
    for node in nodes:
        total, taken = node.cpus or 0, min(node.cpus or 0, node.cpus_allocated or 0)
        shut = is_down(node.state) or is_drained(node.state)
        counts.update({"total": total, "allocated": taken, "other" if shut else "idle": total - taken})
    return {name: counts[name] for name in ("total", "allocated", "idle", "other")}


def _partitions(found: Found) -> list[Block]:
    of_nodes: Counter[str] = Counter()
    for node in found.nodes or ():
        for name in node.partitions.split(","):
            of_nodes[name] += sum(node.gpus.values())
    running: Counter[str] = Counter()
    pending: Counter[str] = Counter()
    pending_gpus: Counter[str] = Counter()
    for job in found.jobs or ():
        if job.state == "pending":
            for name in job.partition.split(","):
                pending[name] += job.tasks
                pending_gpus[name] += gpus(job, found.details.get(job.id)) * job.tasks
        elif job.state == "running":
            running[job.partition] += 1
    return [
        {
            "name": each.name,
            "state": each.state,
            "default": each.default,
            "nodes": each.node_count,
            "cpus": each.cpus,
            "gpus": of_nodes[each.name] if found.nodes is not None else None,
            "max_time_seconds": each.max_time_seconds,
            "running": running[each.name] if found.jobs is not None else None,
            "pending": pending[each.name] if found.jobs is not None else None,
            "pending_gpus": pending_gpus[each.name] if found.jobs is not None else None,
        }
        for each in (found.partitions or ())[:2000]
    ]


# ------------------------------------------------------------------------------------------------------- tables

Row = TypeVar("Row")


def _columns(
    kinds: Mapping[str, tuple[bool, Callable[[Row], object]]], rows: Sequence[Row], strings: _Strings
) -> dict[str, list[object]]:
    """Lay rows out as columns; those that say so as places in `strings`."""
    columns: dict[str, list[object]] = {}
    for name, (is_text, value) in kinds.items():
        if is_text:
            columns[name] = [strings(str(value(row))) for row in rows]
        else:
            columns[name] = [value(row) for row in rows]
    return columns


def _kinds(gpus: Mapping[str, int]) -> str:
    """Write GPUs by type: `h100:8`; `8` where Slurm names no type."""
    return ",".join(f"{kind}:{count}" if kind else str(count) for kind, count in gpus.items())


_NODE: dict[str, tuple[bool, Callable[[Node], object]]] = {
    "name": (False, lambda node: node.name),
    "host": (False, lambda node: None if node.host == node.name else node.host),
    "state": (True, lambda node: node.state),
    "partitions": (True, lambda node: node.partitions),
    "cpus": (False, lambda node: node.cpus),
    "cpus_allocated": (False, lambda node: node.cpus_allocated),
    "memory_mib": (False, lambda node: node.memory_mib),
    "memory_allocated_mib": (False, lambda node: node.memory_allocated_mib),
    "load": (False, lambda node: node.load),
    "gpu": (True, lambda node: _kinds(node.gpus)),
    "gpus": (False, lambda node: sum(node.gpus.values())),
    "gpus_allocated": (False, lambda node: sum(node.gpus_allocated.values())),
    "gpu_index": (False, lambda node: node.gpu_index),
    "features": (True, lambda node: node.features),
    "reason": (True, lambda node: node.reason),
    "reason_at": (False, lambda node: node.reason_at),
    "boot_at": (False, lambda node: node.boot_at),
}

_JobRow = tuple[Job, Detail | None]
_JOB: dict[str, tuple[bool, Callable[[_JobRow], object]]] = {
    "id": (False, lambda row: row[0].id),
    "array": (False, lambda row: row[0].array if row[0].array != str(row[0].id) else None),
    "tasks": (False, lambda row: row[0].tasks),
    "name": (False, lambda row: row[1].name if row[1] else None),
    "user": (True, lambda row: row[0].user),
    "account": (True, lambda row: row[0].account),
    "partition": (True, lambda row: row[0].partition),
    "qos": (True, lambda row: row[0].qos),
    "state": (True, lambda row: row[0].state),
    "reason": (True, lambda row: row[0].reason),
    "nodes": (False, lambda row: row[0].nodes),
    "node_count": (False, lambda row: row[0].node_count),
    "cpus": (False, lambda row: row[0].cpus),
    "memory_mib": (False, lambda row: row[0].memory_mib),
    "gpus": (False, lambda row: gpus(*row)),
    "gpu_type": (True, lambda row: row[0].gpu_type),
    "gpu_index": (False, lambda row: gpu_index(*row)),
    "sluid": (False, lambda row: row[1].sluid if row[1] else None),
    "submitted_at": (False, lambda row: row[0].submitted_at),
    "started_at": (False, lambda row: row[0].started_at if row[0].state != "pending" else None),
    "time_limit_seconds": (False, lambda row: row[0].time_limit_seconds),
    "expected_start_at": (False, lambda row: row[0].started_at if row[0].state == "pending" else None),
    "priority": (False, lambda row: row[0].priority),
}

_FinishedRow = tuple[Finished, str | None]
_FINISHED: dict[str, tuple[bool, Callable[[_FinishedRow], object]]] = {
    "id": (False, lambda row: row[0].id),
    "array": (False, lambda row: row[0].array if row[0].array != str(row[0].id) else None),
    "name": (False, lambda row: row[1]),
    "user": (True, lambda row: row[0].user),
    "account": (True, lambda row: row[0].account),
    "partition": (True, lambda row: row[0].partition),
    "state": (True, lambda row: row[0].state),
    "exit": (True, lambda row: row[0].exit),
    "nodes": (False, lambda row: row[0].nodes),
    "cpus": (False, lambda row: row[0].cpus),
    "gpus": (False, lambda row: row[0].gpus),
    "submitted_at": (False, lambda row: row[0].submitted_at),
    "started_at": (False, lambda row: row[0].started_at),
    "ended_at": (False, lambda row: row[0].ended_at),
}


def gpu_index(job: Job, detail: Detail | None) -> str | None:
    """Return on which GPUs a job runs, as in Detail: "" for one that needs none, None where nobody told."""
    if job.state not in ON_NODES or (detail is None and not job.gpus):
        return ""
    if detail is None or (not detail.gpu_index and job.gpus):
        return None
    return detail.gpu_index


def gpus(job: Job, detail: Detail | None) -> int:
    """Return how many GPUs a job has or wants: of a Slurm that does not track them as TRES, by its details."""
    return job.gpus or (detail.gpus if detail else 0)


def _chosen(jobs: Iterable[Job], most: int) -> tuple[list[Job], list[Job]]:
    """Choose which jobs to list: those on nodes, then the pending ones by priority; return also what is left out."""
    alive = [job for job in jobs if job.state not in OVER]
    alive.sort(key=lambda job: (job.state == "pending", -(job.priority or 0), job.id))
    on_nodes = sum(job.state != "pending" for job in alive)
    most = max(most, min(on_nodes, MOST_JOBS))
    return alive[:most], alive[most:]


def _omitted(jobs: Sequence[Job]) -> Block:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    wanted: Counter[tuple[str, str, str, str]] = Counter()
    for job in jobs:
        key = (job.user, job.account, job.partition, job.reason)
        counts[key] += job.tasks
        wanted[key] += job.gpus * job.tasks
    return {
        "count": sum(job.tasks for job in jobs),
        "by": [
            {
                "user": key[0],
                "account": key[1],
                "partition": key[2],
                "reason": key[3],
                "jobs": count,
                "gpus": wanted[key],
            }
            for key, count in counts.most_common(_MOST_OMITTED)
        ],
    }
