"""Several replicas share one live view. The root's tests run it on a real Redis, too."""

import dataclasses
import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cluster_dash_server.cluster import Cluster, KnownHost
from cluster_dash_server.history.settled import Identity
from cluster_dash_server.live import Live
from cluster_dash_server.privacy import Unnaming
from cluster_dash_server.restart import unnamed
from cluster_dash_server.sharing import replica as module
from cluster_dash_server.sharing.engine import MOST_CHANGES, Away
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds

Json = dict[str, Any]
MakeSeen = Callable[..., Seen]


def known(server: Any, host: str) -> KnownHost | None:
    """Return what a replica knows of a host, but for what counts its own changes."""
    return next((dataclasses.replace(each, change=0) for each in server.cluster.known([host])), None)


def meet(*servers: Any) -> None:
    """Have each know what all others know."""
    for server in (*servers, *servers):
        server.replica.tick()


def test_what_one_replica_is_posted_another_knows(make_server: Any, make_seen: MakeSeen, make_gpu: Any) -> None:
    one, other = make_server(), make_server()
    one.cluster.offer(
        make_seen(
            "gpu01",
            [make_gpu(0, gpu_util=0.0, used_mem=9000.0, users={"ann": {"1": {"type": "C"}}}), make_gpu(1, uuid=None)],
            boot_id="boot",
            seq=7,
            machine_id="m",
            general={"labels": {"rack": "r1"}, "ephemeral": True},
            events=[{"at": 1.0, "kind": "xid", "code": 79}],
            disk={"/": {"mount_point": "/", "percent_used": 93.0}},
            collectors={"disk": {"ok": False, "error": "no"}},
        )
    )
    meet(one, other)
    assert known(other, "gpu01") is not None
    assert known(other, "gpu01") == known(one, "gpu01")
    assert known(other, "gpu01").seen.snapshot["gpu"]  # type: ignore[union-attr]
    assert other.told == []  # it witnessed no post


def test_what_is_remembered_of_a_host_goes_on_whoever_is_posted(
    make_server: Any, make_seen: MakeSeen, make_gpu: Any
) -> None:
    servers = make_server(), make_server()
    idle = make_gpu(0, used_mem=9000.0, users={"ann": {"1": {"type": "C"}}})
    for seq in range(4):
        meet(*servers)
        gpus = [idle, make_gpu(1)] if seq < 2 else [idle]
        now = make_server.now.now
        servers[seq % 2].cluster.offer(make_seen("gpu01", gpus, boot_id="b", seq=seq, received_at=now))
        make_server.now.now += 5
    meet(*servers)
    first, second = known(servers[1], "gpu01").gpus  # type: ignore[union-attr]
    assert first.idle_since == make_server.now.now - 20
    assert (second.gpu.index, second.missing_since) == (1, make_server.now.now - 10)


def test_a_host_that_was_forgotten_is_forgotten_by_all(make_server: Any, make_seen: MakeSeen) -> None:
    one, other = make_server(), make_server()
    one.cluster.offer(make_seen("gpu01"))
    meet(one, other)
    make_server.now.now += 1
    other.cluster.forget(["gpu01"])
    meet(other, one)
    assert (known(one, "gpu01"), one.forgotten, other.forgotten) == (None, ["gpu01"], [])

    late = make_server()
    late.cluster.offer(make_seen("gpu01"))  # of its file, from before
    meet(late, one)
    assert known(late, "gpu01") is None
    assert known(one, "gpu01") is None

    one.cluster.offer(make_seen("gpu01", received_at=make_server.now.now + 1))
    meet(one, other, late)
    assert all(known(each, "gpu01") for each in (one, other, late))


def test_a_post_that_came_after_a_host_was_forgotten_elsewhere_stays(make_server: Any, make_seen: MakeSeen) -> None:
    one, other = make_server(), make_server()
    one.cluster.offer(make_seen("gpu01"))
    meet(one, other)
    make_server.now.now += 1
    other.cluster.forget(["gpu01"])
    other.replica.tick()
    one.cluster.offer(make_seen("gpu01", received_at=make_server.now.now + 1))
    meet(one, other)
    assert known(one, "gpu01") is not None
    assert known(other, "gpu01") is not None


def test_a_gpu_that_is_expected_no_longer_is_not_expected_by_all(
    make_server: Any, make_seen: MakeSeen, make_gpu: Any
) -> None:
    one, other = make_server(), make_server()
    for gpus in ([make_gpu(0), make_gpu(1)], [make_gpu(0)]):
        one.cluster.offer(make_seen("gpu01", gpus, received_at=make_server.now.now))
        make_server.now.now += 5
    meet(one, other)
    assert other.cluster.forget_gpu("gpu01", make_gpu(1)["uuid"])
    meet(other, one)
    assert [each.gpu.index for each in known(one, "gpu01").gpus] == [0]  # type: ignore[union-attr]


def test_a_name_that_was_taken_out_is_taken_out_everywhere(
    make_server: Any, make_seen: MakeSeen, make_gpu: Any
) -> None:
    one, other = make_server(), make_server()
    asked: list[str] = []
    other.replica.errands["forget_user"] = asked.append
    one.cluster.offer(make_seen("gpu01", [make_gpu(0, users={"ann": {"1": {"type": "C"}}})], boot_id="b", seq=1))
    meet(one, other)
    one.cluster.amend("gpu01", lambda host: unnamed(host, "ann"))
    one.replica.tell("forget_user", "ann")
    meet(one, other)
    for thread in threading.enumerate():
        if thread.name == "errand":
            thread.join(60)
    assert asked == ["ann"]
    assert known(other, "gpu01").gpus[0].gpu.users == {Unnaming("ann").person("ann"): 1}  # type: ignore[union-attr]


def test_an_errand_is_done_once_and_told_no_further(make_server: Any) -> None:
    servers = [make_server() for _ in range(3)]
    done: list[int] = []
    for number, server in enumerate(servers):

        def do(text: str, number: int = number, server: Any = server) -> None:
            done.append(number)
            server.replica.tell("forget_user", text)

        server.replica.errands["forget_user"] = do
    servers[0].replica.tell("forget_user", "ann")
    for _ in range(3):
        meet(*servers)
        for thread in threading.enumerate():
            if thread.name == "errand":
                thread.join(60)
    assert sorted(done) == [1, 2]


def test_two_machines_of_one_name_are_told_apart_across_replicas(make_server: Any, make_seen: MakeSeen) -> None:
    one, other = make_server(), make_server()
    one.cluster.offer(make_seen("gpu01", machine_id="m1"))
    meet(one, other)
    with pytest.raises(Exception, match="still reports from another machine"):
        other.cluster.offer(make_seen("gpu01", machine_id="m2", received_at=make_server.now.now + 1))


def test_the_same_post_to_two_replicas_is_known_once(make_server: Any, make_seen: MakeSeen) -> None:
    one, other = make_server(), make_server()
    assert one.cluster.offer(make_seen("gpu01", boot_id="b", seq=1))
    meet(one, other)
    assert not other.cluster.offer(make_seen("gpu01", boot_id="b", seq=1, received_at=make_server.now.now + 3))


def block(at: float, state: str) -> Json:
    return {
        "collected_at": at,
        "interval_seconds": 60,
        "cluster": "hpc",
        "sources": {"nodes": {"ok": True, "at": at}, "jobs": {"ok": True, "at": at}},
        "strings": ["", state, f"a reason of {at}"],
        "nodes": {"name": ["gpu01"], "state": [1], "reason": [2], "gpus": [1], "gpus_allocated": [0]},
        "jobs": {"id": []},
    }


def test_what_slurm_says_reaches_all_and_their_viewers(make_server: Any, make_seen: MakeSeen) -> None:
    one, other = make_server(), make_server()
    one.cluster.offer(make_seen("gpu01", [], received_at=make_server.now.now))
    one.cluster.offer(make_seen("gpu02", [], received_at=make_server.now.now))
    meet(one, other)
    make_server.now.now += 2
    version = other.ask(make_server.now.now)["version"]
    one.slurm.offer("gpu02", block(make_server.now.now, "idle+drain"), make_server.now.now)
    reason = f"a reason of {make_server.now.now}"
    meet(one, other)
    make_server.now.now += 2
    for server in (one, other):
        body = server.ask(make_server.now.now, version)
        assert (body["full"], body["hosts"]["host"], body["hosts"]["drained"]) == (False, ["gpu01"], [reason])
        assert [each.cluster for each in server.slurm.pictures(make_server.now.now)] == ["hpc"]
    one.replica.tick()
    assert one.replica.status()["waiting"] == 0


def test_an_engine_that_has_lost_all_is_given_all_again_by_whoever_holds_it(
    make_server: Any, make_seen: MakeSeen, kind: Any
) -> None:
    one, other = make_server(), make_server()
    for number in range(MOST_CHANGES + 5):
        (one, other)[number % 2].cluster.offer(make_seen(f"gpu{number:04}"))
    one.slurm.offer("gpu0000", block(make_server.now.now, "idle"), make_server.now.now)
    meet(one, other)
    make_server.now.now += 2
    version = one.ask(make_server.now.now)["version"]

    kind.lose_all()
    other.replica.tick()
    late = make_server()
    late.replica.tick()

    assert len(late.cluster) == MOST_CHANGES + 5
    assert late.slurm.is_known
    meet(one)
    make_server.now.now += 2
    body = one.ask(make_server.now.now, version)
    assert body["full"]
    assert body["version"].partition("-")[0] == late.ask(make_server.now.now)["version"].partition("-")[0]


def test_a_host_that_left_by_itself_leaves_the_engine(make_server: Any, make_seen: MakeSeen) -> None:
    one, other = make_server(), make_server()
    one.cluster.offer(make_seen("pod", general={"ephemeral": True}))
    one.cluster.offer(make_seen("gpu01"))
    meet(one, other)
    make_server.now.now += 2 * 86_400 + 5
    version = one.ask(make_server.now.now)["version"]
    meet(one, other)
    assert other.cluster.names() == {"gpu01"}
    assert other.forgotten == []
    make_server.now.now += 2
    assert other.ask(make_server.now.now, version)["gone"] == ["pod"]
    make_server.now.now += module.DEPARTED_SECONDS + 20
    meet(one, other)
    late = make_server()
    late.replica.tick()
    assert late.replica.versions(2**40).gone == {}
    assert late.replica.versions(2**40).whole_from > 0


def test_while_the_engine_is_away_posts_are_taken_for_a_time_and_the_view_stands_still(
    make_server: Any, make_seen: MakeSeen, kind: Any
) -> None:
    server: Any = make_server()
    server.cluster.offer(make_seen("gpu01", received_at=make_server.now.now))
    server.replica.tick()
    began = make_server.now.now

    kind.part(is_away=True)
    make_server.now.now += 4
    assert not server.replica.notice
    assert server.clock.of_view() == make_server.now.now
    make_server.now.now += 56
    with pytest.raises(Away):
        server.replica.tick()
    assert not server.replica.refusal
    assert server.replica.notice == "Live view 60 s old"
    assert server.clock.of_view() == began
    body = server.ask(server.clock.of_view())
    assert body["summary"] == "Live view 60 s old. 1 of 1 GPU free: 1 × H100 80G."
    make_server.now.now += 1
    assert "away for 61 s" in server.replica.refusal

    kind.part(is_away=False)
    server.replica.tick()
    assert (server.replica.refusal, server.replica.notice) == (None, None)
    assert server.clock.of_view() == make_server.now.now


def test_a_viewer_hears_of_each_step_of_the_age(make_server: Any, make_seen: MakeSeen) -> None:
    server = make_server()
    server.cluster.offer(make_seen("gpu01"))
    server.replica.tick()
    said = set()
    for _ in range(4):
        make_server.now.now += 5.5
        said.add(server.ask(server.clock.of_view())["version"])
    assert len(said) == 4


def test_what_waits_while_the_engine_is_away_is_put_when_it_is_back(
    make_server: Any, make_seen: MakeSeen, kind: Any
) -> None:
    one, other = make_server(), make_server()
    meet(one, other)
    kind.part(is_away=True)
    for seq in range(3):
        one.cluster.offer(make_seen("gpu01", boot_id="b", seq=seq, received_at=make_server.now.now + seq))
        with pytest.raises(Away):
            one.replica.tick()
    kind.part(is_away=False)
    meet(one, other)
    assert known(other, "gpu01") == known(one, "gpu01")
    assert known(other, "gpu01").seen.seq == 2  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------- viewers


class Viewer:
    """A page: merges what it gets, whoever gives it."""

    def __init__(self) -> None:
        self.version: str | None = None
        self.rows: dict[str, Json] = {}

    def look(self, body: Json) -> None:
        if body["full"]:
            self.rows = {}
        for host in body["gone"]:
            self.rows.pop(host, None)
        self.rows |= rows(body)
        self.version = body["version"]


def rows(body: Json) -> dict[str, Json]:
    """Turn the columns of a body into one object a host, its GPUs inside."""
    hosts = {
        name: {**{column: values[place] for column, values in body["hosts"].items()}, "gpus": []}
        for place, name in enumerate(body["hosts"]["host"])
    }
    for place, host in enumerate(body["gpus"]["host"]):
        gpu = {column: values[place] for column, values in body["gpus"].items() if column != "host"}
        hosts[body["hosts"]["host"][host]]["gpus"].append(gpu)
    return hosts


@pytest.mark.parametrize("seed", range(6))
def test_who_asks_replicas_in_turn_sees_what_one_server_would_have_shown(
    make_server: Any, make_seen: MakeSeen, make_gpu: Any, kind: Any, seed: int
) -> None:
    chance = random.Random(seed)
    now = make_server.now
    servers = [make_server() for _ in range(3)]
    alone = Cluster(Thresholds())
    slurm = Slurm(place=alone.place)
    reference = Live(alone, "alone")
    viewers = [Viewer() for _ in range(3)]
    seq = 0

    def post() -> None:
        nonlocal seq
        seq += 1
        taker = chance.choice(servers)
        meet(*servers)  # what came before is known to it
        gpus = [make_gpu(0, gpu_util=float(chance.choice((0, 80))), used_mem=chance.choice((3.0, 9000.0)))]
        gpus += [make_gpu(1)] if chance.random() < 0.7 else []
        host = f"gpu{chance.randrange(5):02}"
        general = {"ephemeral": host == "gpu04"}
        seen = make_seen(host, gpus, received_at=now.now, boot_id="b", seq=seq, interval_seconds=5, general=general)
        for cluster in (taker.cluster, alone):
            cluster.offer(seen)

    def forget() -> None:
        taker, host = chance.choice(servers), f"gpu{chance.randrange(5):02}"
        meet(*servers, taker)
        now.now += 0.5
        for cluster in (taker.cluster, alone):
            cluster.forget([host])
        taker.replica.tick()  # it is forgotten as of then
        now.now += 0.5

    def tell_slurm() -> None:
        taker = chance.choice(servers)
        meet(*servers)
        said = block(now.now, chance.choice(("idle", "idle+drain", "down")))
        for each in (taker.slurm, slurm):
            each.offer("gpu00", said, now.now)

    def wait() -> None:
        now.now += chance.choice((0.3, 2.0, 2.0, 30.0, 70.0, 700.0))

    def look() -> None:
        viewer = chance.choice(viewers)
        viewer.look(chance.choice(servers).ask(now.now, viewer.version))

    def tick() -> None:
        chance.choice(servers).replica.tick()

    def lose() -> None:
        meet(*servers)
        kind.lose_all()

    steps = (post, forget, tell_slurm, wait, look, tick, lose)
    for step in chance.choices(steps, weights=(8, 1, 1, 6, 12, 8, 0.3), k=150):
        step()
    meet(*servers)
    now.now += 2
    shown = rows(json_of(reference, now.now))
    for number, viewer in enumerate(viewers * 2):
        viewer.look(servers[number % 3].ask(now.now, viewer.version))
        assert viewer.rows == shown
    for server in servers:
        body = server.ask(now.now)
        assert rows(body) == shown
        assert server.ask(now.now, body["version"])["hosts"]["host"] == []


def json_of(live: Live, now: float) -> Json:
    body: Json = json.loads(live.body(now, None, "identity").content)
    return body


def test_one_that_is_behind_its_viewer_has_nothing_new_and_takes_nothing_back(
    make_server: Any, make_seen: MakeSeen
) -> None:
    ahead, behind = make_server(), make_server()
    for at in (0.0, 5.0):
        ahead.cluster.offer(make_seen("gpu01", received_at=make_server.now.now + at))
        ahead.replica.tick()
        if not at:
            behind.replica.tick()
    make_server.now.now += 6
    viewer = Viewer()
    viewer.look(ahead.ask(make_server.now.now))
    before, version = dict(viewer.rows), viewer.version
    viewer.look(behind.ask(make_server.now.now, version))
    assert (viewer.rows, viewer.version) == (before, version)
    behind.replica.tick()
    make_server.now.now += 2
    viewer.look(behind.ask(make_server.now.now, version))
    assert viewer.rows == before


def test_a_version_of_another_view_or_of_nobody_gives_everything(make_server: Any, make_seen: MakeSeen) -> None:
    server = make_server()
    server.cluster.offer(make_seen("gpu01"))
    server.replica.tick()
    make_server.now.now += 2
    version = server.ask(make_server.now.now)["version"]
    epoch = version.partition("-")[0]
    for since in (
        "",
        "x",
        "life-1",
        f"{epoch}v-1.0",
        f"{epoch}-1",
        f"{epoch}-1.x",
        f"{epoch}-1.0.0.0",
        f"{epoch}-\u0661.0",
    ):
        assert server.ask(make_server.now.now, since)["full"], since
    assert not server.ask(make_server.now.now, version)["full"]


def test_until_an_engine_has_answered_the_view_is_this_servers_own(
    make_server: Any, make_seen: MakeSeen, kind: Any
) -> None:
    server = make_server()
    kind.part(is_away=True)
    server.cluster.offer(make_seen("gpu01"))
    with pytest.raises(Away):
        server.replica.tick()
    body = server.ask(make_server.now.now)
    assert (body["hosts"]["host"], body["version"]) == (["gpu01"], "life-1")
    assert server.live.version(make_server.now.now) == "life-1"
    kind.part(is_away=False)
    server.replica.tick()
    assert server.ask(make_server.now.now, "life-1")["full"]


def test_what_was_put_though_nobody_heard_of_it_is_put_once(
    make_server: Any, make_seen: MakeSeen, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_server(), make_server()
    meet(one, other)
    one.cluster.offer(make_seen("gpu01", boot_id="b", seq=1))
    one.slurm.offer("gpu01", block(make_server.now.now, "idle"), make_server.now.now)
    one.settled.add([Identity("gpu01", "b", 1)])
    one.replica.tell("forget_user", "ann")
    exchange = one.replica._engine.exchange

    def unheard(*said: Any) -> None:
        exchange(*said)
        raise Away("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(one.replica._engine, "exchange", unheard)
        with pytest.raises(Away):
            one.replica.tick()
    for _ in range(3):
        one.replica.tick()
        make_server.now.now += 1
    said = one.replica.status()
    assert (said["version"], said["waiting"]) == (4, 0)
    other.replica.tick()
    assert known(other, "gpu01") == known(one, "gpu01")


def test_a_version_says_no_more_than_what_was_shown_with_it(make_server: Any, make_seen: MakeSeen) -> None:
    one, other = make_server(), make_server()
    one.cluster.offer(make_seen("gpu01", received_at=make_server.now.now))
    meet(one, other)
    viewers = [Viewer(), Viewer()]
    make_server.now.now += 2
    for server in (one, other):
        server.ask(make_server.now.now)
    one.cluster.offer(make_seen("gpu01", [], received_at=make_server.now.now))
    meet(one, other)
    for viewer, server in zip(viewers, (one, other), strict=True):  # bodies are made anew once a second
        viewer.look(server.ask(make_server.now.now))
    make_server.now.now += 2
    for viewer, server in zip(viewers, (other, one), strict=True):
        viewer.look(server.ask(make_server.now.now, viewer.version))
        assert viewer.rows["gpu01"]["last_at"] == make_server.now.now - 2


@pytest.mark.parametrize(
    ("took_seconds", "waits_seconds"), [(0.0, 0.2), (0.05, 0.15), (0.1, 0.1), (0.15, 0.15), (0.3, 0.2), (2.0, 0.2)]
)
def test_ticks_begin_at_an_even_pace_and_take_half_of_the_time_at_most(
    took_seconds: float, waits_seconds: float
) -> None:
    assert module.pause(took_seconds, 0.2) == pytest.approx(waits_seconds)
