"""How the server itself does: what it takes and refuses, versions of agents, how far behind it is, its memory."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flask import Blueprint, Response

from cluster_dash_server import facets
from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.filters import EVERYTHING
from cluster_dash_server.hostlist import natural
from cluster_dash_server.ingest import Limits
from cluster_dash_server.live import Live
from cluster_dash_server.received import Received, Reception
from cluster_dash_server.snapshot import Json
from cluster_dash_server.web.answers import html, json_response
from cluster_dash_server.web.hot import Viewers
from cluster_dash_server.web.parameters import choice

SKEWED_SECONDS = 60
MOST_VERSIONS = 50
MOST_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of the mole: how many hosts have it, and the filter that shows them."""

    version: str
    hosts: int
    q: str


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the server is made of, as far as its own state is told from it.

    Attributes:
        shared: tells how the live view is shared with other replicas; None: it is not.
    """

    cluster: Cluster
    live: Live
    reception: Reception
    viewers: Viewers
    limits: Limits
    began_at: float
    version: str
    shared: Callable[[], Json] | None = None


def status(about: About, now: float) -> Json:
    """Tell how the server does.

    Args:
        about: what its state is told from.
        now: Unix s.
    """
    hosts = about.cluster.hosts(now)
    received = about.reception.so_far()
    silent = Counter(host.silent for host in hosts if host.silent is not None)
    skewed = [
        host for host in hosts if host.seen.skew_seconds is not None and abs(host.seen.skew_seconds) > SKEWED_SECONDS
    ]
    skewed.sort(key=lambda host: (-abs(host.seen.skew_seconds or 0), natural(host.host)))
    return {
        "at": now,
        "version": about.version,
        "uptime_seconds": now - about.began_at,
        "memory_bytes": memory_bytes(),
        "hosts": len(hosts),
        "gpus": sum(len(host.gpus) for host in hosts),
        "stale": silent["stale"],
        "down": silent["down"],
        "expected_per_second": sum(1 / host.interval_seconds for host in hosts if host.silent is None),
        "ingest": _ingest(received),
        "live": {"behind_seconds": about.live.behind(now), "made_in_seconds": about.live.cost_seconds},
        "shared": None if about.shared is None else about.shared(),
        "viewers": about.viewers.count(now),
        "moles": [asdict(each) for each in versions(Counter(host.seen.mole_version for host in hosts))],
        "skewed": [{"host": host.host, "skew_seconds": host.seen.skew_seconds} for host in skewed[:MOST_NAMED]],
        "skewed_hosts": len(skewed),
        "limits": asdict(about.limits),
    }


def _ingest(received: Received) -> Json:
    return {
        **received._asdict(),
        "refusals": [asdict(each) for each in received.refusals],
    }


def versions(counts: Mapping[str | None, int]) -> list[Version]:
    """Return the versions of moles, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], natural(each[0] or "")))
    return [
        Version(
            version=version or "unknown",
            hosts=count,
            q=str(EVERYTHING.of((facets.only("mole", version or "unknown"),))),
        )
        for version, count in ordered[:MOST_VERSIONS]
    ]


def memory_bytes() -> int | None:
    """Return how much memory this process holds; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def blueprint(about: About, clock: Callable[[], float]) -> Blueprint:
    """Build the page and its JSON."""
    routes = Blueprint("status", __name__)

    @routes.get("/status")
    @needs("state:read")
    def page() -> Response:
        if choice("format", ("html", "json")) == "json":
            return json_response(status(about, clock()))
        now = clock()
        return html("status.html", page="status", now=now, json_path="api/v1/status", said=status(about, now))

    @routes.get("/api/v1/status")
    @needs("state:read")
    def as_json() -> Response:
        return json_response(status(about, clock()))

    return routes
