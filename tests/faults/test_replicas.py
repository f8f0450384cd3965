"""Two replicas behind the nginx of etc/, while parts of the site are killed and stand still under load."""

import json
import random
import ssl
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.harness import post
from cluster_dash_mole import spool
from cluster_dash_server.history.postgresql.ledger import PostgresqlLedger
from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.history.sqlite.store import Keep, SqliteStore
from cluster_dash_server.postgresql import Database
from cluster_dash_server.store import Ledger, UseQuery
from tests.faults.crew import Crew
from tests.faults.oracle import Oracle, Verdict
from tests.faults.proxy import FaultProxy
from tests.faults.replicas import Looking, Part, Redises, Site, postgresql, shared_by, victoria_metrics
from tests.nginx import make_certificates
from tests.processes import start_server, wait_until
from tests.redis_servers import RedisServer

pytestmark = pytest.mark.needs("nginx")


@pytest.mark.slow
@pytest.mark.needs("openssl")
def test_no_post_and_no_page_fails_while_a_replica_is_killed_and_one_hangs(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

    def look() -> int:
        with urllib.request.urlopen(f"{site.url}/api/v1/cluster", timeout=60, context=trusted) as answer:
            return int(answer.status)

    with (
        Site(tmp_path, environment={"CLUSTER_DASH_HISTORY__KIND": "none"}, tls=tmp_path) as site,
        Crew(site.url, moles=40, gpus=1, interval_seconds=2.0, folder=None, ca_file=str(tmp_path / "ca.pem")) as crew,
    ):
        crew.start()
        wait_until(lambda: len(crew.log.first_live) == 40, 60, "each is live")

        def more(posts: int) -> None:
            wanted = len(crew.log.live_seconds) + posts
            wait_until(lambda: len(crew.log.live_seconds) >= wanted, 60, "posts are answered")

        with Looking(look) as looked:
            with site.replicas[1].paused():
                time.sleep(7)
            more(60)
            with site.replicas[0].paused():
                more(60)  # meanwhile some have gone to it
                site.replicas[0].kill()
            more(60)
            site.replicas[0].start()
            more(60)
    assert crew.log.failures == []
    assert {answer for _, answer in looked.found} == {200}


class Fault(NamedTuple):
    """What becomes of a part, and for how long (s)."""

    part: str
    is_killed: bool
    seconds: float


Turn = tuple[str, int, str, float, float]
"""Host, GPU, user, from when to when."""
KEEP = Keep(
    **dict.fromkeys(("rows_seconds", "minutes_seconds", "hours_seconds", "users_seconds"), 30 * 86_400.0),
    file_bytes=2**30,
)


@dataclass
class Told:
    """What a run told.

    Attributes:
        verdict: of the figures in the engine.
        oldest: from which number on each mole still held its snapshots.
        statuses: what posts were answered, on the far side of nginx; 0: nothing.
        uses: who had which GPU when, and what it should be.
        late: after each fault, how many intervals went by until every replica showed every host anew.
    """

    verdict: Verdict
    oldest: dict[str, int]
    statuses: Counter[int]
    uses: Counter[Turn]
    uses_wanted: Counter[Turn]
    late: list[tuple[Fault, float]] = field(default_factory=list)


BETWEEN_SECONDS = 2.0
"""From the end of one fault to the next: any one part may fail, and nginx asks a replica again after a second."""
PARTS = ("replica 1", "replica 2", "nginx", "Redis", "VictoriaMetrics", "PostgreSQL")


def each_part(times: int, seconds: float, seed: int) -> list[Fault]:
    """Return faults: each part is killed, and stands still, so many times, in an order that the seed decides.

    Replicas are killed first: what dies with one comes again after a minute.
    """
    faults = [Fault(part, is_killed, seconds) for part in PARTS for is_killed in (True, False)] * times
    random.Random(seed).shuffle(faults)
    return sorted(faults, key=lambda fault: not (fault.is_killed and fault.part.startswith("replica")))


def rage(folder: Path, faults: Sequence[Fault], *, moles: int, interval: float, sentinels: bool = False) -> Told:
    """Let faults come one after the other, under load; with Sentinels, `Redis` is whichever is master."""
    oracle = Oracle(keeps_lines=True)
    with ExitStack() as stack:
        engine, more = victoria_metrics(folder / "victoria")
        database, ledger = postgresql()
        stack.callback(database.remove)
        beneath = [engine, Part.of("PostgreSQL", database)]
        if sentinels:
            redises = Redises()
            stack.callback(redises.remove)
            settings = shared_by(redises.url)
        else:
            server = RedisServer()
            stack.callback(server.remove)
            settings = shared_by(server.url)
            beneath.append(Part.of("Redis", server))
        settle = {"CLUSTER_DASH_HISTORY__SETTLE_SECONDS": "12"}  # VictoriaMetrics loses ten at a kill
        site = stack.enter_context(Site(folder, environment={**settings, **more, **ledger, **settle}, beneath=beneath))
        way = stack.enter_context(FaultProxy(site.front.port, watch=oracle.watch))
        crew = Crew(
            way.url, moles=moles, gpus=1, interval_seconds=interval, folder=folder / "spools", workers=64, turns=True
        )
        oracle.sent = crew.sent
        late = []
        with crew:
            crew.start()
            wait_until(lambda: len(crew.log.first_live) == moles, 60, "each is live")
            for fault in faults:
                part = redises.master() if sentinels and fault.part == "Redis" else site.parts[fault.part]
                if fault.is_killed:
                    part.kill()
                    time.sleep(fault.seconds)
                    part.start()
                else:
                    with part.paused():
                        time.sleep(fault.seconds)
                returned_at = time.time()
                wait_until(lambda since=returned_at: is_whole(site, moles, since), 60, f"whole after {fault}")  # type: ignore[misc]
                late.append((fault, (time.time() - returned_at) / interval))
                time.sleep(BETWEEN_SECONDS)
            newest: dict[str, int] = {}
            for who in list(crew.sent):
                newest[who.hostname] = max(who.seq, newest.get(who.hostname, 0))
            wait_until(lambda: all(seq > newest[host] for host, seq in crew.oldest().items()), 120, "all is durable")
            oldest = crew.oldest()
        for replica in site.replicas:
            replica.stop()
        address = more["CLUSTER_DASH_HISTORY__WRITE_URL"].removesuffix("/api/v1/write")
        urllib.request.urlopen(f"{address}/internal/force_flush", timeout=60).close()
        assert oracle.claimed
        verdict = oracle.judge_engine(address, more["CLUSTER_DASH_HISTORY__CLUSTER"])
        uses = uses_in(database.url())
    return Told(verdict, oldest, oracle.statuses, uses, uses_of_one_server(oracle, folder / "plain"), late)


def later() -> float:
    """Return a moment (Unix s) at which the hours of a run are over, and added up for good."""
    return time.time() + 2 * HOUR


def uses_in(database_url: str) -> Counter[Turn]:
    """Return who had which GPU when, as the replicas' database says it."""
    database = Database(database_url)
    ledger = PostgresqlLedger(database, clock=later, keep=KEEP)
    try:
        ledger.flush()
        return turns(ledger)
    finally:
        ledger.close()
        database.close()


def uses_of_one_server(oracle: Oracle, data: Path) -> Counter[Turn]:
    """Return who had which GPU when, as a single server says it that was told each snapshot once, in order."""
    lines = [zlib.decompress(line) for _, line in sorted(oracle.lines.items())]
    with start_server("--data", data) as server:
        for first in range(0, len(lines), 100):
            batch = b"\n".join(with_secret(line) for line in lines[first : first + 100])
            assert post(f"{server.url}/api/v1/snapshots", [batch]) == 1
    store = SqliteStore(data, clock=later, keep=KEEP)
    try:
        return turns(store)
    finally:
        store.close()


def with_secret(line: bytes) -> bytes:
    return json.dumps({**json.loads(line), "auth_code": "lab_cluster_2025"}).encode()


def turns(ledger: Ledger) -> Counter[Turn]:
    found = ledger.uses(UseQuery(begin=time.time() - 86_400, end=time.time()))
    return Counter((use.host, use.gpu, use.user, round(use.from_at, 2), round(use.to_at, 2)) for use in found)


def is_whole(site: Site, moles: int, since: float) -> bool:
    """Say whether each replica shows a snapshot of each host that it got since a moment (Unix s)."""
    for replica in site.replicas:
        try:
            with urllib.request.urlopen(f"{replica.url}/api/v1/cluster", timeout=60) as answer:
                shown = json.load(answer)["hosts"]["last_at"]
        except OSError:
            return False
        if len(shown) < moles or min(shown) < since:
            return False
    return True


def judge(told: Told) -> None:
    """Fail where anything was lost, doubled or wrongly called durable."""
    verdict = told.verdict
    assert (verdict.missing, verdict.double, verdict.changed, verdict.unsent) == ([], [], [], [])
    assert [who for who in verdict.lost if who.seq < told.oldest[who.hostname]] == []
    assert verdict.rows > 2 * len(told.oldest)
    assert told.uses == told.uses_wanted
    assert len(told.uses) > 2 * len(told.oldest)


@pytest.mark.slow
@pytest.mark.clocked
@pytest.mark.needs("redis-server")
@pytest.mark.needs("victoria-metrics")
@pytest.mark.needs("postgres")
def test_nothing_is_lost_or_doubled_whichever_part_is_killed_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "AGAIN_SECONDS", 20.0)  # a minute in the field; here who tests would wait for it
    judge(rage(tmp_path, each_part(1, 1.0, seed=1), moles=6, interval=1.0))


@pytest.mark.soak
@pytest.mark.needs("redis-sentinel")
@pytest.mark.needs("victoria-metrics")
@pytest.mark.needs("postgres")
@pytest.mark.timeout(7200)
def test_the_same_five_times_each_and_the_view_is_whole_within_an_interval(tmp_path: Path) -> None:
    told = rage(tmp_path, each_part(5, 8.0, seed=2), moles=100, interval=5.0, sentinels=True)
    judge(told)
    assert set(told.statuses) <= {200, 429, 503, 0}, told.statuses
    # a second for the tick, for the live view that is made once a second, and for this machine
    assert [(fault, late) for fault, late in told.late if late > 1.4] == []
