"""Two replicas behind nginx on their engines: what a post costs each of them, and how soon all replicas show it."""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.harness import WITHOUT_HISTORY, Figure, get, post
from tests.faults.replicas import Part, Replica, Site, postgresql, shared_by, victoria_metrics
from tests.processes import BIN, Process, body_of, snapshot, start_server, wait_until
from tests.redis_servers import RedisServer

HOSTS, ALL_HOSTS = 2_000, 10_000
INTERVAL_SECONDS = 5
WARM_SECONDS, SECONDS = 30, 25
"""Each replica has then seen nearly every host, and made what it needs for it once."""
PROBES = 100


@dataclass
class _Told:
    """What one run told: CPU in µs a post of each part, lags in s, posts of a second, bytes of Redis a host."""

    cpu: dict[str, float]
    lags: list[float]
    rate: float
    redis_bytes: float
    lost: int
    lag: float = field(init=False)

    def __post_init__(self) -> None:
        self.lag = statistics.quantiles(self.lags, n=100)[-1]


def run(runs: int, *, full: bool = False) -> list[Figure]:
    """Measure: the live view alone, then with history and ledger in engines, too.

    Args:
        runs: at most two are made of each.
        full: 10,000 hosts, for which the machine needs some cores.
    """
    hosts = ALL_HOSTS if full else HOSTS
    figures = []
    for what, is_whole in (("live view only", False), ("all engines", True)):
        told, alone = [], []
        for _ in range(min(runs, 2)):
            alone.append(_one_server(min(hosts, HOSTS), keeps_history=is_whole))
            told.append(_measure(hosts, is_whole=is_whole))

        def median(values: Sequence[float]) -> float:
            return statistics.median(values)

        name = f"{hosts:,} hosts at {INTERVAL_SECONDS} s, two replicas by granian, {what}"
        costs = {part: median([each.cpu[part] for each in told]) for part in told[0].cpu}
        lag = median([each.lag for each in told])
        size = median([each.redis_bytes for each in told])
        lost = max(each.lost for each in told)
        figures += [
            Figure(
                name=f"{name}: posts answered",
                value=median([each.rate for each in told]),
                unit="/s",
                target=f"≥ {0.95 * hosts / INTERVAL_SECONDS:,.0f} /s",
                met=all(each.rate >= 0.95 * hosts / INTERVAL_SECONDS for each in told),
                more_is_better=True,
            ),
            Figure(name=f"{name}: posts not answered 200", value=lost, unit="", target="0", met=lost == 0),
            Figure(
                name=f"{name}: CPU of the replicas per post, beside one server alone",
                value=costs["replicas"],
                unit="µs",
                reference=median(alone),
                target="≤ 500 µs",
                met=costs["replicas"] <= 500,
            ),
            Figure(
                name=f"{name}: CPU of Redis per post",
                value=costs["Redis"],
                unit="µs",
                target="≤ 40 µs",
                met=costs["Redis"] <= 40,
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
        ]
    return figures


def _measure(hosts: int, *, is_whole: bool) -> _Told:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-dash-bench-")))
        shared = RedisServer()
        stack.callback(shared.remove)
        beneath = [Part.of("Redis", shared)]
        settings = shared_by(shared.url) | {
            "CLUSTER_DASH_LIMITS__NEW_HOSTS_PER_MINUTE": "100000",
            "CLUSTER_DASH_LIMITS__MAX_HOSTS": str(hosts + 10),
            "CLUSTER_DASH_HISTORY__KIND": "none",
        }
        if is_whole:
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
        fleet = stack.enter_context(Process(_fleet(site.url, hosts)))
        urls = [each.url for each in site.replicas]
        parts = {each.name: each for each in site.parts.values() if not isinstance(each, Replica)}
        time.sleep(WARM_SECONDS)

        def used() -> dict[str, float]:
            found = {name: part.cpu_seconds() for name, part in parts.items()}
            found["replicas"] = sum(each.cpu_seconds() for each in site.replicas)
            return found

        before, taken, began = used(), _taken(urls), time.monotonic()
        time.sleep(SECONDS)
        after, count, seconds = used(), _taken(urls) - taken, time.monotonic() - began
        lags = _lags(site.replicas)
        size = (asked.info("memory")["used_memory"] - empty) / hosts
        fleet.popen.wait(60)
        told = json.loads(fleet.output.splitlines()[-1])
        return _Told(
            cpu={name: (after[name] - before[name]) / count * 1e6 for name in before},
            lags=lags,
            rate=count / seconds,
            redis_bytes=size,
            lost=sum(told[each] for each in ("refused", "timeouts", "failed"))
            + told["posts"]
            - told["statuses"].get("200", 0),
        )


def _one_server(hosts: int, *, keeps_history: bool) -> float:
    """Return the CPU of a post (µs) at a server that shares nothing, and keeps its history in its file."""
    with start_server("--server", "granian", environment={} if keeps_history else WITHOUT_HISTORY) as server:
        wait_until(lambda: get(server.url, "/healthz") is not None)
        with Process(_fleet(server.url, hosts)):
            time.sleep(WARM_SECONDS)
            before, taken = server.cpu_seconds(), _taken([server.url])
            time.sleep(SECONDS)
            return (server.cpu_seconds() - before) / (_taken([server.url]) - taken) * 1e6


def _fleet(url: str, hosts: int) -> list[str | Path]:
    """Return the command that lets a fleet post until all is measured."""
    command: list[str | Path] = [BIN / "cluster-dash-mole", "simulate", "--quiet", "--json"]
    command += ["--server", url, "--hosts", str(hosts), "--interval", str(INTERVAL_SECONDS)]
    return [*command, "--seconds", str(WARM_SECONDS + SECONDS + 5)]


def _taken(urls: Iterable[str]) -> int:
    return sum(int(json.loads(get(url, "/api/v1/status") or b"{}")["ingest"]["taken"]) for url in urls)


def _lags(replicas: Sequence[Replica]) -> list[float]:
    """Post a host of our own to one replica, and look how soon the other one has each snapshot (s)."""
    here, there = replicas
    lags = []
    for number in range(PROBES):
        load = {"cpu_percent": number / 2, "load_avgs": [0, 0, 0], "num_cpus": 1}
        body = body_of({**snapshot("probe"), "cpu": load})
        began = time.monotonic()
        poster = threading.Thread(target=post, args=(here.url, [body]))
        poster.start()
        wait_until(lambda number=number: _shown(there.url) == number / 2, what="it is shown")  # type: ignore[misc]
        lags.append(time.monotonic() - began)
        poster.join()
    return lags


def _shown(url: str) -> float | None:
    """Return what a replica knows of our host."""
    said = json.loads(get(url, "/api/v1/hosts/probe") or b"{}")
    cpu = said.get("snapshot", {}).get("cpu", {})
    return None if "cpu_percent" not in cpu else float(cpu["cpu_percent"])
