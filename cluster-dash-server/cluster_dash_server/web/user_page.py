"""What the page of one user says, in words: their GPUs, how many of them do nothing, their jobs. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.hostlist import compress, natural
from cluster_dash_server.states import Thresholds
from cluster_dash_server.web import rows, words
from cluster_dash_server.web.views import View

MOST_ROWS = 200
MOST_HOSTS = 200
"""Hosts whose snapshots are opened for the jobs in them: a tenth of a millisecond each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job of a user, as far as it has GPUs: how many, and on which hosts."""

    job: str
    gpus: int
    hosts: str


def words_of(user: str, view: View, thresholds: Thresholds) -> dict[str, object]:
    """Return what the page of a user says.

    Args:
        user: as the moles call them.
        view: their GPUs.
        thresholds: say what idle is.
    """
    gpus = list(view.gpus)
    return {
        "now": view.now,
        "user": user,
        "view": view,
        "sentence": sentence(gpus, thresholds, view.now),
        "icon": rows.icon(view.narrowed),
        "rows": rows.gpu_rows(view.narrowed, MOST_ROWS),
        "gpu_count": len(gpus),
        "jobs": jobs(user, view.hosts),
    }


def sentence(gpus: Sequence[tuple[HostView, GpuView]], thresholds: Thresholds, now: float) -> str:
    """Say how many GPUs somebody has, and the share of them that does nothing."""
    if not gpus:
        return "On no GPU now."
    live = [view for host, view in gpus if host.silent is None]
    on = len({host.host for host, _ in gpus})
    said = [f"On {words.plural(len(gpus), 'GPU')} of {words.plural(on, 'host')}"]
    known = [view.gpu.gpu_util for view in live if view.gpu.gpu_util is not None and not view.is_past]
    idle = sum(util < thresholds.busy_percent for util in known)
    if known:
        said.append(f"{idle} of {len(known)} idle now ({words.percent(100 * idle / len(known))})")
    held = [now - view.idle_since for view in live if view.state == "held" and view.idle_since is not None]
    if held:
        said.append(f"{len(held)} held without work, the longest for {words.age(max(held))}")
    if len(live) < len(gpus):
        said.append(f"{len(gpus) - len(live)} on hosts that are silent: as last seen")
    return ". ".join(said) + "."


def jobs(user: str, hosts: Sequence[HostView]) -> list[Job]:
    """Return the jobs of a user on some hosts, the largest first; of a shared GPU only what is theirs counts."""
    on: dict[str, list[str]] = {}
    for host in hosts[:MOST_HOSTS]:
        for entry in host.seen.snapshot["gpu"].values():
            processes = (entry.get("users") or {}).get(user) or {}
            for job in {str(each["job_id"]) for each in processes.values() if each.get("job_id") not in (None, "")}:
                on.setdefault(job, []).append(host.host)
    ordered = sorted(on.items(), key=lambda each: (-len(each[1]), natural(each[0])))
    return [Job(job=job, gpus=len(hosts), hosts=compress(hosts)) for job, hosts in ordered[:MOST_ROWS]]
