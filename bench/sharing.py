"""What a post costs replicas beside HTTP, step by step: two of them in one process, one thread, nothing else to do.

A post of a whole site (`replicas`) costs more: HTTP, and caches and cores that are shared with all the rest. What the
caches are worth is told, too: the same work, begun a while after the last one, while this thread waits without a pause.
"""

import statistics
import time
from collections.abc import Callable, Sequence

from bench.harness import Figure
from bench.prepared import PASSCODE, bodies_of
from cluster_dash_mole.simulate.fleet import Fleet
from cluster_dash_server.access.auth import Auth, Caller, Passcode
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.ingest import Ingest, Limits, Post
from cluster_dash_server.sharing.clock import EngineClock
from cluster_dash_server.sharing.redis import RedisEngine
from cluster_dash_server.sharing.replica import Replica
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import checker
from cluster_dash_server.states import Thresholds
from tests.redis_servers import running

HOSTS, AT_ONCE = 500, 100
"""So many are posted between two ticks: half a second of 1,000 hosts at 5 s."""
INTERVAL_SECONDS = 5
APART_SECONDS = 0.0025
"""Between two posts of a server of 2,000 hosts at 5 s."""
APART = f"taken, {1000 * APART_SECONDS:g} ms after the last one"
ROUNDS = 6
"""The first one makes what is made once, and does not count."""


def run(runs: int) -> list[Figure]:
    """Measure."""
    steps: dict[str, list[float]] = {}
    for _ in range(runs):
        for step, cost in _costs().items():
            steps.setdefault(step, []).append(cost)
    return [
        Figure(name=f"replicas in one process: CPU of a post, {step}", value=statistics.median(costs), unit="µs")
        for step, costs in steps.items()
    ]


def _costs() -> dict[str, float]:
    """Return what each step costs (µs a post), the cheapest round."""
    fleet = Fleet(
        seed=1, hosts=HOSTS, gpus=8, interval_seconds=INTERVAL_SECONDS, began_at=time.time(), faults=False
    ).build()
    bodies = [bodies_of(host, INTERVAL_SECONDS) for host in fleet]
    rounds: list[dict[str, float]] = []
    with running() as server:
        (here, ingest), (there, _) = (_replica(server.url) for _ in range(2))
        for number in range(ROUNDS):
            now = time.time() + number * INTERVAL_SECONDS
            spent = {"taken": 0.0, "put": 0.0, "taken over": 0.0, APART: 0.0}
            for first in range(0, HOSTS, AT_ONCE):
                some = [body(now) for body in bodies[first : first + AT_ONCE]]
                spent["taken"] += _cpu_seconds(lambda some=some: _post(ingest, some))  # type: ignore[misc]
                spent["put"] += _cpu_seconds(here.tick)
                spent["taken over"] += _cpu_seconds(there.tick)
            for body in [each(now + 1) for each in bodies]:
                _wait(APART_SECONDS)
                spent[APART] += _cpu_seconds(lambda body=body: _post(ingest, [body]))  # type: ignore[misc]
            here.tick()
            there.tick()
            rounds.append(spent)
        here.stop()
        there.stop()
    return {step: min(each[step] for each in rounds[1:]) / HOSTS * 1e6 for step in rounds[0]}


def _replica(url: str) -> tuple[Replica, Ingest]:
    cluster = Cluster(Thresholds())
    slurm = Slurm(place=cluster.place)
    replica = Replica(RedisEngine(url), cluster, slurm, EngineClock(), tick_seconds=1, grace_seconds=60)
    ingest = Ingest(
        cluster=cluster,
        auth=Auth(Passcode(PASSCODE)),
        check=checker(),
        limits=Limits(),
        clock=time.time,
        slurm=slurm,
    )
    return replica, ingest


def _post(ingest: Ingest, bodies: Sequence[bytes]) -> None:
    caller = Caller(peer="127.0.0.1", host="localhost", forwarded=False, origin=None, fetch_site=None)
    for body in bodies:
        answer = ingest(Post(caller=caller, headers={}, body=body))
        if answer.status != 200:
            raise RuntimeError(answer.body)


def _wait(seconds: float) -> None:
    """Stay on the core, and touch nothing: what is gone from its caches meanwhile, others of the machine put out."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began
