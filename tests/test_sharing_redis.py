"""The shared live view on a real Redis: the suites of the seam, and what only a Redis can do wrong."""

import inspect
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import pytest

from cluster_dash_server.commands.doctor import engine_of_the_live_view
from cluster_dash_server.sharing.engine import Away, Offer, Order
from cluster_dash_server.sharing.kinds import LiveSettings, problem
from cluster_dash_server.sharing.redis import RedisEngine, client_of, without_secret
from tests import suites
from tests.processes import wait_until
from tests.redis_servers import PASSWORD, RedisServer, Sentinels, running

pytestmark = pytest.mark.needs("redis-server")

common = suites.load("sharing", "conftest")
snapshots = suites.load("", "conftest")
clock, make_gpu, make_snapshot = snapshots.clock, snapshots.make_gpu, snapshots.make_snapshot
make_seen, make_server = snapshots.make_seen, common.make_server
for suite in (
    suites.load("sharing", "test_engines"),
    suites.load("sharing", "test_replica"),
    suites.load("sharing", "test_settled"),
):
    globals().update(
        {
            name: found
            for name, found in vars(suite).items()
            if name.startswith("test_") and {"kind", "make_server"} & set(inspect.signature(found).parameters)
        }
    )


class InRedis:
    """Engines with a connection each to one Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        if server.process is None:  # a test before has killed it
            server.start()
        self.lose_all()

    def open(self) -> RedisEngine:
        return RedisEngine(self._server.url)

    def lose_all(self) -> None:
        with self._server.client() as client:
            client.flushall()

    def part(self, *, is_away: bool) -> None:
        if is_away:
            self._server.kill()
        else:
            self._server.start()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def kind(server: RedisServer) -> InRedis:
    return InRedis(server)


# ---------------------------------------------------------------------------------------------- what only Redis can do


def offer(key: str, at: float = 1.0) -> Offer:
    return Offer(key, Order("", None, at, 0), b"row")


def test_a_redis_that_was_started_anew_with_its_data_is_in_another_epoch(kind: InRedis, server: RedisServer) -> None:
    engine = kind.open()
    epoch = engine.exchange("", 0, ()).epoch
    engine.exchange(epoch, 0, [offer("gpu01")])
    with server.client() as client:
        meta, rows = client.hgetall("{cd:0}:meta"), client.hgetall("{cd:0}:row")
        orders = client.hgetall("{cd:0}:order")
        changed = client.zrange("{cd:0}:changed", 0, -1, withscores=True)
    server.kill()
    server.start()
    with server.client() as client:  # as it would come back of a file that lacks the last seconds
        client.hset("{cd:0}:meta", mapping=meta)
        client.hset("{cd:0}:row", mapping=rows)
        client.hset("{cd:0}:order", mapping=orders)
        client.zadd("{cd:0}:changed", dict(changed))
    answer = engine.exchange(epoch, 1, ())
    assert answer.epoch not in ("", epoch)
    assert [each.key for each in engine.exchange(answer.epoch, 0, ()).changes] == ["gpu01"]


@pytest.mark.parametrize("gone", ["meta", "row", "order", "changed"])
def test_after_a_key_was_evicted_replicas_offer_all_anew(gone: str, kind: InRedis, server: RedisServer) -> None:
    """As a Redis does that is a cache for others, too, when its memory is full."""
    engine = kind.open()
    epoch = engine.exchange("", 0, ()).epoch
    engine.exchange(epoch, 0, [offer("gpu01"), offer("gpu02")])
    with server.client() as client:
        client.delete(f"{{cd:0}}:{gone}")
    answer = engine.exchange(epoch, 2, [offer("gpu03")])
    assert answer.epoch not in ("", epoch)
    engine.exchange(answer.epoch, 0, [offer("gpu02"), offer("gpu01")])
    found = engine.exchange(answer.epoch, 0, ()).changes
    assert {each.key: each.row for each in found} == {"gpu01": b"row", "gpu02": b"row"}


def test_a_row_that_changes_while_it_is_fetched_is_told_again(kind: InRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = kind.open(), kind.open()
    epoch = one.exchange("", 0, ()).epoch
    one.exchange(epoch, 0, [offer("gpu01"), offer("gpu02"), offer("gpu03")])
    fetch = other._client.hmget

    def fetch_late(*asked: Any) -> Any:
        monkeypatch.setattr(other._client, "hmget", fetch)
        one.exchange(epoch, 3, [Offer("gpu02", Order("", None, 2.0, 0), b"newer")])
        one.drop({"gpu03": offer("gpu03").order})
        return fetch(*asked)

    monkeypatch.setattr(other._client, "hmget", fetch_late)
    answer = other.exchange(epoch, 0, ())
    assert answer.changes == [("gpu01", 1, b"row"), ("gpu02", 2, b"newer")]
    assert answer.version == 3
    later = other.exchange(epoch, answer.version, ())
    assert (later.changes, later.version, later.whole_from) == ([("gpu02", 4, b"newer")], 4, 3)


def test_a_redis_without_room_is_away_as_far_as_it_goes_and_half_of_nothing_is_put(
    kind: InRedis, server: RedisServer
) -> None:
    engine = kind.open()
    epoch = engine.exchange("", 0, ()).epoch
    engine.exchange(epoch, 0, [offer("gpu01")])
    with server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(Away, match="used memory > 'maxmemory'"):
                engine.exchange(epoch, 0, [offer("gpu02")])
            assert [each.key for each in engine.exchange(epoch, 0, ()).changes] == ["gpu01"]
        finally:
            client.config_set("maxmemory", 0)
    assert engine.exchange(epoch, 1, [offer("gpu02")]).taken == [2]


def test_a_redis_that_may_evict_what_is_shared_is_told_of(kind: InRedis, server: RedisServer) -> None:
    engine = kind.open()
    assert "evict" not in engine.check()
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert "may evict what is shared: set maxmemory-policy noeviction" in engine.check()
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_a_script_that_redis_has_lost_is_loaded_again(kind: InRedis, server: RedisServer) -> None:
    engine = kind.open()
    epoch = engine.exchange("", 0, ()).epoch
    with server.client() as client:
        client.script_flush()
    assert engine.exchange(epoch, 0, [offer("gpu01")]).taken == [1]


def test_a_redis_that_hangs_is_given_up_after_the_time_out(kind: InRedis, server: RedisServer) -> None:
    engine = kind.open()
    engine.exchange("", 0, ())
    server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(Away, match="no answer within 2 s"):
            engine.exchange("", 0, ())
    finally:
        server.signal(signal.SIGCONT)
    assert engine.exchange("", 0, ()).epoch


def test_no_message_holds_the_password() -> None:
    with running(PASSWORD) as server:
        secret = quote(PASSWORD, safe="")
        good = RedisEngine(f"redis://:{secret}@127.0.0.1:{server.port}/0")
        assert "0 changes so far" in good.check()
        wrong = RedisEngine(f"redis://:{secret}x@127.0.0.1:{server.port}/0")
        for ask in (wrong.check, lambda: wrong.exchange("", 0, ())):
            with pytest.raises(Away) as raised:
                ask()
            assert "127.0.0.1" in str(raised.value)
            assert secret not in str(raised.value)
            assert PASSWORD not in str(raised.value)
        good.close()
        wrong.close()


def test_the_doctor_says_whether_the_engine_answers() -> None:
    with running(PASSWORD) as server:
        secret = quote(PASSWORD, safe="")
        good = engine_of_the_live_view(LiveSettings(kind="redis", url=f"redis://:{secret}@127.0.0.1:{server.port}/0"))
        assert good.mark == "✔"
        assert "answers, Redis " in good.measured
        wrong = engine_of_the_live_view(LiveSettings(kind="redis", url=f"redis://:x@127.0.0.1:{server.port}/0"))
        assert wrong.is_problem
        assert "invalid" in wrong.measured
        server.kill()
        gone = engine_of_the_live_view(LiveSettings(kind="redis", url=f"redis://:{secret}@127.0.0.1:{server.port}/0"))
        assert gone.is_problem
        assert "connection refused" in gone.measured
        for said in (good, wrong, gone):
            assert secret not in str(said)
            assert PASSWORD not in str(said)


def test_who_shares_nothing_imports_nothing_for_it() -> None:
    code = "import sys; from cluster_dash_server.app import create_app; create_app(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("redis", "sharing.redis", "sharing.replica", "sharing.view", "sharing.clock", "sharing.settled"):
        assert f"{name}'" not in done.stdout


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:a%2Fb@host:6379/0", "redis://***@host:6379/0"),
        ("redis://host/0?password=secret", "redis://host/0"),
        (
            "redis+sentinel://user:a@b@host:1,other:2/dash?sentinel_password=s",
            "redis+sentinel://***@host:1,other:2/dash",
        ),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secret(url) == shown


@pytest.mark.parametrize("url", ["redis+sentinel://host:1", "redis+sentinel:///dash", "redis+sentinel://a:b:c/dash"])
def test_an_address_of_sentinels_that_names_none_or_no_master_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected redis\\+sentinel://"):
        client_of(url)


@pytest.mark.parametrize("sign", "/?#")
def test_of_a_password_that_is_not_written_as_such_nothing_is_shown(sign: str) -> None:
    settings = LiveSettings(kind="redis", url=f"redis://dash:first{sign}second@host:6379/0")
    told = problem(settings)
    assert told is not None
    assert "%2F" in told
    assert "first" not in told
    assert "second" not in told


@pytest.mark.needs("redis-sentinel")
@pytest.mark.parametrize("down_seconds", [0.5, pytest.param(3.0, marks=pytest.mark.soak)])
def test_when_another_redis_takes_over_nothing_stays_lost(make_seen: Any, down_seconds: float) -> None:
    with ExitStack() as stack:
        master = stack.enter_context(running())
        follower = RedisServer(replica_of=master.port)
        stack.callback(follower.remove)
        follower.start()
        sentinels = Sentinels(master, down_seconds=down_seconds)
        stack.callback(sentinels.remove)
        servers = [common.Server(RedisEngine(sentinels.url), time.time, time.monotonic) for _ in range(2)]
        for server in servers:
            stack.callback(server.replica.stop)
            server.replica.start()
        servers[0].cluster.offer(make_seen("gpu01", received_at=time.time()))
        wait_until(lambda: servers[1].cluster.knows("gpu01"))
        epoch = servers[1].replica.status()["epoch"]

        master.kill()
        servers[0].cluster.offer(make_seen("gpu02", received_at=time.time()))
        wait_until(lambda: servers[1].cluster.knows("gpu02"), 60, "the other Redis has taken over")

        assert sentinels.master_port() == follower.port
        assert servers[1].replica.status()["epoch"] != epoch
        with follower.client() as client:
            wait_until(lambda: client.hlen("{cd:0}:row") == 2, what="both hosts are there")
