"""Two replicas behind nginx on their engines: what a post costs each of them, and how soon all replicas show it."""

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.harness import WITHOUT_HISTORY, Figure, get, post
from tests.faults.replicas import Part, Replica, Site, postgresql, shared_by, victoria_metrics
from tests.processes import TOP, Process, body_of, snapshot, start_server, wait_until
from tests.redis_servers import RedisServer

HOSTS, ALL_HOSTS = 2_000, 10_000
INTERVAL_SECONDS, SLOW_SECONDS = 5, 60
WARM_SECONDS, SECONDS = 30, 25
"""Each replica has then seen nearly every host, and made what it needs for it once."""
LAG_SECONDS = 40
"""For so long one snapshot after the other is looked for in the view, meanwhile all others post: about a hundred."""


class _Load(NamedTuple):
    """Who posts, and whether replicas keep history and ledger in engines."""

    hosts: int
    interval_seconds: int
    is_whole: bool

    @property
    def rate(self) -> float:
        """Posts of a second."""
        return self.hosts / self.interval_seconds

    @property
    def warm_seconds(self) -> float:
        """How long it posts before anything is measured."""
        return WARM_SECONDS + self.interval_seconds


@dataclass
class _Told:
    """What one run told: CPU in µs a post of each part, lags in s, posts of a second, bytes of Redis a host.

    Attributes:
        replica_mib: memory of the larger one.
    """

    cpu: dict[str, float]
    lags: list[float]
    rate: float
    redis_bytes: float
    replica_mib: float
    lost: int
    lag: float = field(init=False)

    def __post_init__(self) -> None:
        self.lag = statistics.quantiles(self.lags, n=100)[-1]


def run(runs: int, *, full: bool = False) -> list[Figure]:
    """Measure: the live view alone, then with history and ledger in engines, too; then many hosts that seldom post.

    What a post costs falls with their rate, for then less of it has left the processor's caches. What a host costs
    does not: it is shown where they post once a minute, which two cores carry beside who posts.

    Args:
        runs: at most two are made of each.
        full: 10,000 hosts at 5 s, for which the machine needs some cores.
    """
    hosts = ALL_HOSTS if full else HOSTS
    loads = [_Load(hosts, INTERVAL_SECONDS, is_whole=False), _Load(hosts, INTERVAL_SECONDS, is_whole=True)]
    if not full:
        loads.append(_Load(ALL_HOSTS, SLOW_SECONDS, is_whole=True))
    return [figure for load in loads for figure in _figures(load, min(runs, 2))]


def _figures(load: _Load, runs: int) -> list[Figure]:
    told, alone = [], []
    for _ in range(runs):
        alone.append(_one_server(load))
        told.append(_measure(load))

    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    what = "all engines" if load.is_whole else "live view only"
    name = f"{load.hosts:,} hosts at {load.interval_seconds} s, two replicas by granian, {what}"
    costs = {part: median(each.cpu[part] for each in told) for part in told[0].cpu}
    is_target = load.interval_seconds == INTERVAL_SECONDS  # the targets of a post are for that rate, or above
    lag = median(each.lag for each in told)
    size = median(each.redis_bytes for each in told)
    lost = max(each.lost for each in told)
    return [
        Figure(
            name=f"{name}: posts answered",
            value=median(each.rate for each in told),
            unit="/s",
            target=f"≥ {0.95 * load.rate:,.0f} /s",
            met=all(each.rate >= 0.95 * load.rate for each in told),
            more_is_better=True,
        ),
        Figure(name=f"{name}: posts not answered 200", value=lost, unit="", target="0", met=lost == 0),
        Figure(
            name=f"{name}: CPU of the replicas per post, beside one server alone",
            value=costs["replicas"],
            unit="µs",
            reference=median(alone),
            target="≤ 500 µs" if is_target else "",
            met=costs["replicas"] <= 500 if is_target else None,
        ),
        Figure(
            name=f"{name}: CPU of Redis per post",
            value=costs["Redis"],
            unit="µs",
            target="≤ 40 µs" if is_target else "",
            met=costs["Redis"] <= 40 if is_target else None,
        ),
        *(
            Figure(name=f"{name}: CPU of {part} per post", value=cost, unit="µs")
            for part, cost in costs.items()
            if part not in ("replicas", "Redis")
        ),
        Figure(
            name=f"{name}: from the begin of a post to the view of the other replica, p99",
            value=lag,
            unit="s",
            target="≤ 0.6 s",
            met=lag <= 0.6,
        ),
        Figure(
            name=f"{name}: memory of Redis for a host",
            value=size / 1024,
            unit="KB",
            target="≤ 4 KB",
            met=size <= 4 * 1024,
        ),
        Figure(name=f"{name}: memory of a replica", value=median(each.replica_mib for each in told), unit="MiB"),
    ]


def _measure(load: _Load) -> _Told:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-dash-bench-")))
        shared = RedisServer()
        stack.callback(shared.remove)
        beneath = [Part.of("Redis", shared)]
        settings = shared_by(shared.url) | {
            "CLUSTER_DASH_LIMITS__NEW_HOSTS_PER_MINUTE": "100000",
            "CLUSTER_DASH_LIMITS__MAX_HOSTS": str(load.hosts + 10),
            "CLUSTER_DASH_HISTORY__KIND": "none",
        }
        if load.is_whole:
            engine, more = victoria_metrics(folder / "victoria")
            beneath.append(engine)
            database, ledger = postgresql()
            stack.callback(database.remove)
            beneath.append(Part.of("PostgreSQL", database))
            settings |= more | ledger | {"CLUSTER_DASH_HISTORY__FLUSH_SECONDS": "10"}
        options = ("--server", "granian")
        site = stack.enter_context(Site(folder, environment=settings, beneath=beneath, options=options))
        asked = shared.client()
        stack.callback(asked.close)
        empty = asked.info("memory")["used_memory"]
        fleet = stack.enter_context(_fleet(site.url, load))
        urls = [each.url for each in site.replicas]
        parts = {each.name: each for each in site.parts.values() if not isinstance(each, Replica)}
        time.sleep(load.warm_seconds)

        def used() -> dict[str, float]:
            found = {name: part.cpu_seconds() for name, part in parts.items()}
            found["replicas"] = sum(each.cpu_seconds() for each in site.replicas)
            return found

        before, taken, began = used(), _taken(urls), time.monotonic()
        time.sleep(SECONDS)
        after, count, seconds = used(), _taken(urls) - taken, time.monotonic() - began
        lags = _lags(site.replicas, LAG_SECONDS)
        size = (asked.info("memory")["used_memory"] - empty) / load.hosts
        fleet.popen.wait(60)
        told = json.loads(fleet.output.splitlines()[-1])
        return _Told(
            cpu={name: (after[name] - before[name]) / count * 1e6 for name in before},
            lags=lags,
            rate=count / seconds,
            redis_bytes=size,
            replica_mib=max(each.memory_mib() for each in site.replicas),
            lost=told["lost"] + sum(count for status, count in told["statuses"].items() if status != "200"),
        )


def _one_server(load: _Load) -> float:
    """Return the CPU of a post (µs) at a server that shares nothing, and keeps its history in its file."""
    few = load._replace(hosts=min(load.hosts, HOSTS * load.interval_seconds // INTERVAL_SECONDS))
    settings = {
        "CLUSTER_DASH_LIMITS__NEW_HOSTS_PER_MINUTE": "100000",
        "CLUSTER_DASH_LIMITS__MAX_HOSTS": str(load.hosts),
    }
    with start_server(
        "--server", "granian", environment=settings | ({} if load.is_whole else WITHOUT_HISTORY)
    ) as server:
        wait_until(lambda: get(server.url, "/healthz") is not None)
        with _fleet(server.url, few):
            time.sleep(few.warm_seconds)
            before, taken = server.cpu_seconds(), _taken([server.url])
            time.sleep(SECONDS)
            return (server.cpu_seconds() - before) / (_taken([server.url]) - taken) * 1e6


@contextmanager
def _fleet(url: str, load: _Load) -> Iterator[Process]:
    """Let a fleet post until all is measured; begins once it does."""
    seconds = load.warm_seconds + SECONDS + LAG_SECONDS + 5
    command = [sys.executable, TOP / "bench" / "prepared.py", url, load.hosts, load.interval_seconds, seconds]
    with Process([str(part) for part in command]) as fleet:
        wait_until(lambda: b"posts" in fleet.output or fleet.popen.poll() is not None, 60, "its snapshots are made")
        if fleet.popen.poll() is not None:
            raise RuntimeError(fleet.output.decode())
        yield fleet


def _taken(urls: Iterable[str]) -> int:
    return sum(int(json.loads(get(url, "/api/v1/status") or b"{}")["ingest"]["taken"]) for url in urls)


def _lags(replicas: Sequence[Replica], seconds: float) -> list[float]:
    """Post a host of our own to one replica, and look how soon the other one has each snapshot (s)."""
    here, there = replicas
    lags: list[float] = []
    until = time.monotonic() + seconds
    while len(lags) < 2 or time.monotonic() < until:
        figure = len(lags) % 200 / 2
        load = {"cpu_percent": figure, "load_avgs": [0, 0, 0], "num_cpus": 1}
        body = body_of({**snapshot("probe"), "cpu": load})
        began = time.monotonic()
        poster = threading.Thread(target=post, args=(here.url, [body]))
        poster.start()
        wait_until(lambda figure=figure: _shown(there.url) == figure, what="it is shown")  # type: ignore[misc]
        lags.append(time.monotonic() - began)
        poster.join()
    return lags


def _shown(url: str) -> float | None:
    """Return what a replica knows of our host."""
    said = json.loads(get(url, "/api/v1/hosts/probe") or b"{}")
    cpu = said.get("snapshot", {}).get("cpu", {})
    return None if "cpu_percent" not in cpu else float(cpu["cpu_percent"])
