"""The routes of the live view that were kept from the first version: in their first shapes, by its own rules."""

from collections import Counter
from collections.abc import Callable, Iterable

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster, GpuView, HostView
from cluster_dash_server.history.rollups import LIGHT_PERCENT
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.states import STATES
from cluster_dash_server.web import views
from cluster_dash_server.web.answers import json_response

OFFLINE_MINUTES = 10
"""The kept routes' own rule, older than the states: a host is offline after so long."""

_BOLD, _GREEN, _YELLOW, _RED, _RESET = "\x1b[1m", "\x1b[92m", "\x1b[93m", "\x1b[91m", "\x1b[0m"


def blueprint(cluster: Cluster, clock: Callable[[], float]) -> Blueprint:
    """Build the routes."""
    first = Blueprint("first_live", __name__)

    @first.get("/data-out/gpu-data-simple")
    @needs("state:read")
    def gpu_data_simple() -> Response:
        now = clock()
        view = views.asked(cluster.hosts(now), now)
        return json_response({host.host: gpu_entries(host, now) for host in view.narrowed})

    @first.get("/api/dashboard-data")
    @needs("state:read")
    def dashboard_data() -> Response:
        now = clock()
        view = views.asked(cluster.hosts(now), now)
        return json_response({"timestamp": now, "servers": {host.host: server(host, now) for host in view.hosts}})

    @first.get("/api/gpu-summary")
    @needs("state:read")
    def gpu_summary() -> Response:
        now = clock()
        view = views.asked(cluster.hosts(now), now)
        table = summary_table(view.hosts, now, color=request.args.get("color") != "no")
        return Response(views.problems_text(view) + table, mimetype="text/plain")

    return first


def gpu_entries(host: HostView, now: float) -> Json:
    """Return the entries of a host's GPUs in its snapshot, each with the age of the snapshot."""
    snapshot = host.seen.snapshot
    age_seconds = now - host.seen.received_at
    ages = {"received_timestamp": age_seconds, "time_received_mins": age_seconds / 60}
    left_out = {gpu.key for gpu in host.seen.gpus} - {view.gpu.key for view in host.gpus}
    return {key: {**entry, **ages} for key, entry in snapshot["gpu"].items() if key not in left_out}


def _memory_percent(gpu: GpuView) -> float | None:
    used, total = gpu.gpu.used_mem, gpu.gpu.total_mem
    return None if used is None or not total else used / total * 100


def _is_free(gpu: GpuView) -> bool:
    memory, util = _memory_percent(gpu), gpu.gpu.gpu_util
    return memory is not None and util is not None and memory < LIGHT_PERCENT and util < LIGHT_PERCENT


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _reporting(host: HostView) -> list[GpuView]:
    """Return the GPUs that the newest snapshot holds: the kept routes know no missing ones."""
    return [gpu for gpu in host.gpus if gpu.missing_since is None]


def _status(host: HostView, now: float) -> str:
    return "offline" if now - host.seen.received_at > OFFLINE_MINUTES * 60 else "online"


def server(host: HostView, now: float) -> Json:
    """Return one host of `/api/dashboard-data`."""
    users = {key: entry.get("users") for key, entry in gpu_entries(host, now).items()}
    gpus = _reporting(host)
    body: Json = {
        "status": _status(host, now),
        "last_seen_mins": (now - host.seen.received_at) / 60,
        "cpu": {"cpu_percent": host.seen.cpu_percent, "num_cpus": host.seen.num_cpus},
        "gpus": [
            {
                "index": gpu.gpu.index,
                "name": gpu.gpu.name,
                "total_mem_mb": gpu.gpu.total_mem,
                "used_mem_mb": gpu.gpu.used_mem,
                "memory_percent": _memory_percent(gpu),
                "gpu_util": gpu.gpu.gpu_util,
                "users": users.get(gpu.gpu.key),
            }
            for gpu in gpus
        ],
        "summary": {
            "total_gpus": len(gpus),
            "free_gpus": sum(_is_free(gpu) for gpu in gpus),
            "state_free_gpus": sum(gpu.state == "free" for gpu in gpus),
            "avg_gpu_memory_percent": _mean(_memory_percent(gpu) for gpu in gpus),
            "avg_gpu_util": _mean(gpu.gpu.gpu_util for gpu in gpus),
        },
    }
    if host.seen.gpu_error is not None:
        body["gpu_error"] = host.seen.gpu_error
    return body


def _percent(value: float | None, *, color: bool) -> str:
    text = f"{'–' if value is None else f'{value:.0f}%':>5}"
    if value is None or not color:
        return text
    return f"{_GREEN if value < 50 else _YELLOW if value < 80 else _RED}{text}{_RESET}"


def _by_state(host: HostView) -> str:
    counts = Counter(gpu.state for gpu in host.gpus)
    return ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])


def summary_table(hosts: Iterable[HostView], now: float, *, color: bool) -> str:
    """Draw the table for `curl`: columns are padded, and parted by a tab for `cut`.

    `Free` is by the first version's rule, so that scripts go on as they did; the last column says what the pages say.
    """
    hosts = list(hosts)
    width = max([len("Server"), *(len(printable(host.host)) for host in hosts)])
    heads = (f"{'Server':<{width}}", "GPUs", "Free", " GPU%", " CPU%", f"{'Status':<7}", "By state")
    lines = ["\t".join(f"{_BOLD}{head}{_RESET}" if color else head for head in heads)]
    for host in hosts:
        status = _status(host, now)
        gpus = _reporting(host)
        lines.append(
            "\t".join(
                (
                    f"{printable(host.host):<{width}}",
                    f"{len(gpus):>4}",
                    f"{sum(_is_free(gpu) for gpu in gpus):>4}",
                    _percent(_mean(_memory_percent(gpu) for gpu in gpus), color=color),
                    _percent(host.seen.cpu_percent, color=color),
                    f"{_GREEN if status == 'online' else _RED}{status:<7}{_RESET}" if color else f"{status:<7}",
                    _by_state(host),
                )
            )
        )
    return "\n".join(lines) + "\n"
