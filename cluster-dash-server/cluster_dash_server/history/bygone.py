"""The cluster at a past moment: what history kept of each host, made into the views that pages show. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from cluster_dash_server.cluster import Cluster, HostView, KnownGpu, KnownHost
from cluster_dash_server.snapshot import Json, Seen, read
from cluster_dash_server.states import DEFAULT_INTERVAL_SECONDS, Thresholds, idle_while_in_use
from cluster_dash_server.store import DOINGS, GPU_METRICS, HOST_METRICS, Figures, SeriesQuery, Store

SILENT_SECONDS = 3600.0
"""A host that had been silent for longer at that moment is not shown."""
SLOWEST_SECONDS = 600.0
"""How far before the time after which a GPU is held its last figures may lie."""
_IDLE = DOINGS.index("idle")
_ERROR = DOINGS.index("error")
_DOING = GPU_METRICS.index("doing")


def hosts_at(store: Store, at: float, thresholds: Thresholds) -> list[HostView]:
    """Return the hosts as they stood at a moment, by name; what history does not keep is unknown.

    Raises:
        StoreError: history cannot be read.
    """
    cluster = Cluster(thresholds, max_hosts=1_000_000)
    found = store.moment(at, SILENT_SECONDS)
    idle = _idle_for_long(store, at, thresholds)
    cluster.begin_with(_known(figures, idle, at, thresholds) for figures in found)
    return cluster.hosts(at)


def _idle_for_long(store: Store, at: float, thresholds: Thresholds) -> set[tuple[str, int]]:
    """Return which GPUs had done nothing for as long as makes them held."""
    held_since = at - thresholds.held_seconds
    ask = SeriesQuery(metric="doing", begin=held_since - SLOWEST_SECONDS, end=at, step_seconds=60)
    idle = set()
    for each in store.series(ask):
        known = [
            (then, low == high == _IDLE)
            for then, low, high in zip(each.t, each.min, each.max, strict=True)
            if low is not None
        ]
        before = [place for place, (then, _) in enumerate(known) if then <= held_since]
        if before and all(is_idle for _, is_idle in known[before[-1] :]):
            idle.add((each.host or "", -1 if each.gpu is None else each.gpu))
    return idle


def _known(figures: Figures, idle: Iterable[tuple[str, int]], at: float, thresholds: Thresholds) -> KnownHost:
    seen = _seen(figures)
    held_since = at - thresholds.held_seconds
    return KnownHost(
        seen=seen,
        interval_seconds=seen.interval_seconds or DEFAULT_INTERVAL_SECONDS,
        gaps=(),
        gpus=tuple(
            KnownGpu(
                gpu=gpu,
                idle_since=_idle_since((figures.host, gpu.index) in idle, held_since, at)
                if idle_while_in_use(gpu, thresholds)
                else None,
                missing_since=None,
                free_since=None,
            )
            for gpu in seen.gpus
        ),
        change=0,
    )


def _idle_since(is_long: bool, held_since: float, at: float) -> float:
    return held_since if is_long else at


def _seen(figures: Figures) -> Seen:
    of_host = dict(
        zip(HOST_METRICS, (_known_value(value) for value in figures.values[-len(HOST_METRICS) :]), strict=True)
    )
    snapshot: Json = {
        "hostname": figures.host,
        "timestamp": figures.at,
        "interval_seconds": of_host["interval_seconds"],
        "cpu": {"cpu_percent": of_host["cpu_percent"], "load_avgs": [of_host["load_avg_1"], None, None]},
        "memory": {"used_gb": of_host["memory_used_gb"]},
        "disk": {},
        "gpu": {f"{gpu.gpu}_{place}": _entry(figures, place) for place, gpu in enumerate(figures.gpus)},
    }
    return read(snapshot, received_at=figures.at)


def _entry(figures: Figures, place: int) -> Mapping[str, Any]:
    count = len(figures.gpus)
    index, uuid, model, total_mem = figures.gpus[place]
    entry = {name: _known_value(figures.values[row * count + place]) for row, name in enumerate(GPU_METRICS)}
    doing = figures.values[_DOING * count + place]
    users: dict[str, Json] = {}
    for number, (holder, mem) in enumerate(zip(figures.holders, figures.holder_mem, strict=True)):
        if holder.place == place:
            process = {"mem": _known_value(mem), "job_id": holder.job}
            users.setdefault(holder.user, {})[str(number)] = process
    return {
        **entry,
        "index": index,
        "uuid": uuid,
        "name": model,
        "total_mem": total_mem,
        "users": users if doing == doing and doing != DOINGS.index("unknown") else None,
        "error": "in error at that time" if doing == _ERROR else None,
    }


def _known_value(value: float) -> float | None:
    return value if value == value else None
