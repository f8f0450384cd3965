"""The first version's `/api/history-data`: the cluster and its hosts in buckets of time.

`waste_percent` is the share of the GPUs that was free, on average.
"""

from collections.abc import Callable, Sequence

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.history.rollups import LIGHT_PERCENT
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.store import Series, SeriesQuery, Store, StoreError
from cluster_dash_server.web.answers import failure, json_response
from cluster_dash_server.web.parameters import digits

MOST_HOURS = 200_000
"""Over 22 years: what may be asked for."""
MOST_HOSTS = 200
"""Hosts that each bucket names: with more, an answer would be hundreds of megabytes; the first by name are there."""
_BUCKETS = ((24, 300), (7 * 24, 900), (30 * 24, 3600))
_LONGEST_BUCKET = 4 * 3600


def blueprint(cluster: Cluster, store: Store, clock: Callable[[], float]) -> Blueprint:
    """Build the route."""
    routes = Blueprint("first_history", __name__)

    @routes.get("/api/history-data")
    @needs("history:read")
    def history_data() -> Response:
        text = request.args.get("hours", "24")
        hours = digits(text, 9)
        if hours is None or not 1 <= hours <= MOST_HOURS:
            return failure(400, f"hours: got {printable(text, 32)}, expected a whole number from 1 to {MOST_HOURS}")
        return json_response(first_shape(cluster, store, clock(), hours))

    return routes


def first_shape(cluster: Cluster, store: Store, now: float, hours: int) -> Json:
    """Return what `/api/history-data` answers, in the first version's shape."""
    bucket = next((seconds for most, seconds in _BUCKETS if hours <= most), _LONGEST_BUCKET)
    begin = max(0.0, now - hours * 3600)

    def of_all(metric: str) -> Series | None:
        ask = SeriesQuery(metric=metric, begin=begin, end=now, by="cluster", step_seconds=bucket)
        try:
            return next(iter(store.series(ask)), None)
        except StoreError:
            return None  # no history is kept, which /readyz and the pages say: an empty series, as ever

    names = ("total_gpus", "light_gpus", "gpu_util", "memory_percent")
    found = [each for name in names if (each := of_all(name)) is not None]
    times: Sequence[float] = found[0].t if found else ()
    total, free, util, memory = [each.mean for each in found] if found else [()] * 4
    of_hosts = _buckets_of_hosts(cluster, store, begin, now, bucket) if found else {}
    series: list[Json] = [
        {
            "timestamp": at,
            "total_gpus": total[place],
            "free_gpus": free[place],
            "avg_gpu_util": util[place],
            "avg_gpu_memory_percent": memory[place],
            "servers": of_hosts.get(at, {}),
        }
        for place, at in enumerate(times)
        if total[place]
    ]
    known_free = [each["free_gpus"] for each in series if each["free_gpus"] is not None]
    gpus, unused = _mean([each["total_gpus"] for each in series]), _mean(known_free)
    stats = {
        "avg_total_gpus": gpus,
        "avg_free_gpus": unused,
        "peak_free_gpus": max(known_free, default=None),
        "min_free_gpus": min(known_free, default=None),
        "avg_cluster_util": _mean([each["avg_gpu_util"] for each in series]),
        "avg_cluster_mem": _mean([each["avg_gpu_memory_percent"] for each in series]),
        "waste_percent": 100 * unused / gpus if gpus and unused is not None else None,
        "total_snapshots": len(series),
    }
    return {"hours": hours, "generated_at": now, "series": series, "stats": stats}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _buckets_of_hosts(
    cluster: Cluster, store: Store, begin: float, end: float, bucket: float
) -> dict[float, dict[str, Json]]:
    """Return what each bucket says of each host: a GPU is free by the kept routes' own rule."""
    found: dict[float, dict[str, Json]] = {}
    totals = {(host.host, gpu.gpu.index): gpu.gpu.total_mem for host in cluster.hosts(end) for gpu in host.gpus}
    for name in sorted(cluster.names())[:MOST_HOSTS]:
        utils, mems = (
            store.series(SeriesQuery(metric=metric, begin=begin, end=end, by="gpu", step_seconds=bucket, hosts=(name,)))
            for metric in ("gpu_util", "used_mem")
        )
        mem_of = {each.gpu: each.mean for each in mems}
        for each in utils:
            total_mem = totals.get((name, -1 if each.gpu is None else each.gpu))
            of_gpu = mem_of.get(each.gpu, [None] * len(each.t))
            for at, util, mem in zip(each.t, each.mean, of_gpu, strict=True):
                if util is None and mem is None:
                    continue
                said = found.setdefault(at, {}).setdefault(name, {"free_gpus": 0, "total_gpus": 0, "utils": []})
                said["total_gpus"] += 1
                if util is not None:
                    said["utils"].append(util)
                    light = mem is not None and total_mem and 100 * mem < LIGHT_PERCENT * total_mem
                    said["free_gpus"] += bool(light and util < LIGHT_PERCENT)
    for servers in found.values():
        for said in servers.values():
            said["avg_gpu_util"] = _mean(said.pop("utils"))
    return found
