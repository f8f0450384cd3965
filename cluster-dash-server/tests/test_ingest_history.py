"""What an answer says of history, and what becomes of a snapshot that history has already."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster_dash_server.access.auth import Auth, Caller, Passcode
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.ingest import Answer, Ingest, Limits, Post
from cluster_dash_server.snapshot import checker
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import SeriesQuery

LOCAL = Caller(peer="127.0.0.1", host="localhost", forwarded=False, origin=None, fetch_site=None)
MakeSnapshot = Callable[..., dict[str, Any]]


class Kept(MemoryStore):
    keeps = True
    trouble: str | None = None


class Bench:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.history = Kept(clock)
        self.cluster = Cluster(Thresholds())
        self.ingest = Ingest(
            cluster=self.cluster,
            auth=Auth(Passcode(None)),
            check=checker(),
            limits=Limits(),
            clock=clock,
            history=self.history,
        )

    def post(self, *snapshots: dict[str, Any]) -> Answer:
        lines = [json.dumps({**each, "auth_code": "lab_cluster_2025"}).encode() for each in snapshots]
        way = self.ingest if len(lines) == 1 else self.ingest.batch
        return way(Post(caller=LOCAL, headers={}, body=b"\n".join(lines)))


@pytest.fixture
def bench(clock: Callable[[], float]) -> Bench:
    return Bench(clock)


def test_an_answer_says_what_is_durable_and_what_was_there(bench: Bench, make_snapshot: MakeSnapshot) -> None:
    def post(seq: int, oldest: int | None = 1) -> Any:
        return bench.post(make_snapshot(boot_id="b", seq=seq, spool={"oldest_seq": oldest})).body

    assert (post(1)["durable_seq"], post(2)["durable_seq"], post(4)["durable_seq"]) == (1, 2, 2)
    assert (post(4)["duplicate"], post(3)["durable_seq"], post(4, None)["durable_seq"]) == (True, 4, 4)
    assert "durable_seq" not in bench.post(make_snapshot()).body


def test_a_snapshot_that_only_history_knows_is_a_duplicate_and_does_not_turn_the_live_view_back(
    bench: Bench, make_snapshot: MakeSnapshot
) -> None:
    old, new = make_snapshot(boot_id="old", seq=9), make_snapshot(boot_id="new", seq=1)
    bench.post(old)
    bench.post(new)

    assert bench.post(old).body["duplicate"] is True
    (known,) = bench.cluster.known(["gpu01"])
    assert known.seen.boot_id == "new"


def test_a_batch_says_what_of_each_boot_is_durable(bench: Bench, make_snapshot: MakeSnapshot) -> None:
    lines = [make_snapshot(host, boot_id="b", seq=seq) for host, seq in (("a", 1), ("a", 2), ("c", 7))]

    assert bench.post(*lines).body["durable"] == [
        {"hostname": "a", "boot_id": "b", "seq": 2},
        {"hostname": "c", "boot_id": "b", "seq": 7},
    ]


def test_while_history_cannot_be_written_backlogs_wait_and_live_posts_are_taken(
    bench: Bench, make_snapshot: MakeSnapshot
) -> None:
    bench.history.trouble = "database or disk is full"

    answer = bench.post(make_snapshot("a", boot_id="b", seq=1), make_snapshot("a", boot_id="b", seq=2))
    assert (answer.status, answer.retry_after_seconds is None) == (503, False)
    assert "full" in answer.body["msg"]
    assert bench.post(make_snapshot("a", boot_id="b", seq=3)).status == 200
    assert [known.seen.seq for known in bench.cluster.known(["a"])] == [3]


def test_what_was_let_go_of_is_taken_though_the_live_view_has_it(bench: Bench, make_snapshot: MakeSnapshot) -> None:
    bench.post(make_snapshot(boot_id="b", seq=1))
    bench.history._rows.clear()

    assert bench.post(make_snapshot(boot_id="b", seq=1)).body["durable_seq"] == 1
    ask = SeriesQuery(metric="gpu_util", begin=1_699_999_900, end=1_700_000_100)
    assert len(bench.history.series(ask)) == 1
