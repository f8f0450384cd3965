"""A batch that a relay has put together: live posts of many hosts, each with its own moment and its own answer."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster_dash_server.access.auth import Auth, Caller, Passcode
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.ingest import Answer, Ingest, Limits, Post
from cluster_dash_server.pace import Pace
from cluster_dash_server.received import Reception
from cluster_dash_server.snapshot import checker
from cluster_dash_server.states import Thresholds

MakeSnapshot = Callable[..., dict[str, Any]]
RELAY = Caller(peer="10.0.0.9", host="dash", forwarded=True, origin=None, fetch_site=None)
OURS = "a passcode of this site"


class Kept(MemoryStore):
    keeps = True
    trouble: str | None = None


class Bench:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.history, self.cluster, self.pace = Kept(clock), Cluster(Thresholds()), Pace()
        self.ingest = Ingest(
            cluster=self.cluster,
            auth=Auth(Passcode(OURS)),
            check=checker(),
            limits=Limits(),
            clock=clock,
            history=self.history,
            pace=self.pace,
        )

    def relayed(self, *snapshots: dict[str, Any], dates: str) -> Answer:
        lines = [json.dumps({"auth_code": OURS, **each}).encode() for each in snapshots]
        return self.ingest.batch(Post(caller=RELAY, headers={"relayed-dates": dates}, body=b"\n".join(lines)))


@pytest.fixture
def bench(clock: Callable[[], float]) -> Bench:
    return Bench(clock)


def test_each_line_gets_the_answer_that_it_would_have_had_alone(bench: Bench, make_snapshot: MakeSnapshot) -> None:
    first = make_snapshot("gpu01", boot_id="b", seq=1, spool={"oldest_seq": 1}, interval_seconds=2)
    wrong = {**make_snapshot("gpu02"), "auth_code": "not it"}
    broken = make_snapshot("gpu03")
    broken["cpu"]["cpu_percent"] = 700
    answer = bench.relayed(first, wrong, broken, make_snapshot("gpu04"), first, dates="-,-,-,-,-")
    assert answer.status == 200
    taken = {"status": 200, "success": True, "msg": "stored result"}
    known = {"next_seconds": 2, "durable_seq": 1}
    said = answer.body["answers"]
    assert said[0] == {**taken, **known, "duplicate": False}
    assert (said[1]["status"], said[1]["success"]) == (401, False)
    assert said[1]["msg"].startswith("auth_code: ")
    assert (said[2]["status"], said[2]["msg"].startswith("cpu.cpu_percent: ")) == (400, True)
    assert said[3] == taken
    assert said[4] == {**taken, **known, "duplicate": True}
    assert (answer.body["accepted"], answer.body["duplicates"], len(answer.body["rejected"])) == (2, 1, 2)
    reception = Reception(lambda: 0.0)
    reception.note(answer)
    assert (reception.so_far().taken, reception.so_far().refused) == (2, 2)


def test_each_line_is_dated_by_the_clock_of_its_own_mole(bench: Bench, make_snapshot: MakeSnapshot) -> None:
    now = bench.ingest._clock()
    behind = make_snapshot("gpu01", boot_id="b", seq=1, timestamp=now - 3600)
    right = make_snapshot("gpu02", boot_id="b", seq=1, timestamp=now)
    bench.relayed(behind, right, dates=f"{now - 3600:.0f}, -")
    skews = {host.host: host.seen.skew_seconds for host in bench.cluster.hosts(now)}
    assert skews == {"gpu01": -3600, "gpu02": None}


def test_live_posts_wait_neither_for_backlogs_nor_for_history(bench: Bench, make_snapshot: MakeSnapshot) -> None:
    while bench.pace.begin_backlog() is None:
        pass
    bench.history.trouble = "the disk is full"
    answer = bench.relayed(make_snapshot(boot_id="b", seq=1), dates="-")
    assert [each["status"] for each in answer.body["answers"]] == [200]


@pytest.mark.parametrize("dates", ["", "-,-", "now", "nan", "1e999", "-,"])
def test_moments_that_are_not_one_for_each_line_are_refused(
    bench: Bench, make_snapshot: MakeSnapshot, dates: str
) -> None:
    answer = bench.relayed(make_snapshot(), dates=dates)
    assert (answer.status, answer.body["success"]) == (400, False)
    assert answer.body["msg"].startswith("Relayed-Dates: ")
