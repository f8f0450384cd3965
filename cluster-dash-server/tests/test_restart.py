"""What the live view begins with: as it stood, with the age of what it shows."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from cluster_dash_server.app import create_app
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.events import EventLog
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.inflate import unpack
from cluster_dash_server.restart import newest, recall, recall_slurm, remember, stripped, unnamed_block
from cluster_dash_server.settings import ServerSettings, Settings
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import EventQuery

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
NOW = 1_700_000_000.0


def restarted(cluster: Cluster) -> Cluster:
    after = Cluster(Thresholds())
    after.begin_with(recall([remember(known) for known in cluster.known(cluster.names())]))
    return after


def test_hosts_stand_as_they_stood(make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster = Cluster(Thresholds())
    held = {"gpu_util": 0.0, "used_mem": 40_000.0}
    hot = {"throttle_reasons": ["hw_slowdown"], "gpu_util": 9.0}
    gpus = [make_gpu(0, **held), make_gpu(1), make_gpu(2, **hot)]
    cluster.offer(make_seen("gpu01", gpus, received_at=NOW, interval_seconds=5, boot_id="b", seq=1))
    gpus = [gpus[0], {**gpus[1], "uuid": None}]  # one has no name now, one is missing
    cluster.offer(make_seen("gpu01", gpus, received_at=NOW + 5, interval_seconds=5, boot_id="b", seq=2))
    cluster.offer(make_seen("gpu02", [], received_at=NOW, boot_id="b", seq=2))
    cluster.offer(make_seen("gpu02", [], received_at=NOW + 200, boot_id="b", seq=3))

    after = restarted(cluster)

    moment = NOW + 1900
    for host in ("gpu01", "gpu02"):
        was, now = cluster.host(host, moment), after.host(host, moment)
        assert was is not None
        assert now is not None
        assert replace(now, seen=was.seen) == was
        assert now.seen.snapshot == was.seen.snapshot
        assert now.seen.received_at == was.seen.received_at
    assert after.host("gpu01", NOW + 10).gpus[0].idle_since == NOW  # type: ignore[union-attr]


def drained(by: str = "alice", **more: Any) -> dict[str, Any]:
    """A block in which gpu01 takes no jobs."""
    texts = ["", "running", f"fan, says {by}", by, "idle+drain"]
    return {
        "collected_at": NOW,
        "interval_seconds": 60,
        "cluster": "hpc",
        "sources": {name: {"ok": True, "at": NOW - 2} for name in ("nodes", "jobs")},
        "strings": texts,
        "nodes": {"name": ["gpu01"], "state": [4], "reason": [2], "gpus": [1]},
        "jobs": {"id": [7], "user": [3], "state": [1]},
        **more,
    }


def with_slurm(cluster: Cluster) -> Slurm:
    slurm = Slurm(None, cluster.place)
    slurm.known_by(cluster.knows)
    return slurm


def test_gpus_that_slurm_gives_no_jobs_are_drained_from_the_first_moment(
    make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW))
    cluster.offer(make_seen("head", [], received_at=NOW))
    slurm = with_slurm(cluster)
    slurm.offer("head", drained(), NOW)
    kept = newest(cluster.known(["gpu01", "head"]), slurm)

    after = Cluster(Thresholds())
    slurm = with_slurm(after)
    after.begin_with(recall(kept))
    recall_slurm(kept, slurm)

    assert [gpu.state for gpu in after.host("gpu01", NOW + 30).gpus] == ["drained"]  # type: ignore[union-attr]
    (picture,) = slurm.pictures(NOW)
    assert (picture.host, picture.at) == ("head", NOW - 2)
    assert [gpu.state for gpu in after.host("gpu01", NOW + 3600).gpus] != ["drained"]  # type: ignore[union-attr]
    assert sorted(known.seen.host for known in after.known(after.names())) == ["gpu01", "head"]


def test_what_slurm_said_is_written_with_the_snapshot_that_brought_it_not_with_each(make_seen: MakeSeen) -> None:
    cluster = Cluster(Thresholds())
    slurm = with_slurm(cluster)
    slurm.offer("head", drained(), NOW)

    def written(*hosts: str, at: float) -> list[str]:
        for host in hosts:
            cluster.offer(make_seen(host, [], received_at=at))
        return [each.host for each in newest(cluster.known(hosts), slurm)]

    assert written("gpu01", at=NOW) == ["gpu01"]
    assert written("head", "gpu01", at=NOW) == ["head", "gpu01", "slurm/hpc"]
    assert written("head", at=NOW + 20) == ["head"]
    slurm.offer("head", drained(), NOW + 60)
    assert written("head", at=NOW + 60) == ["head", "slurm/hpc"]


def test_a_cluster_that_learnt_its_name_is_one_after_a_restart_too(make_seen: MakeSeen) -> None:
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("head", [], received_at=NOW))
    slurm = with_slurm(cluster)
    slurm.offer("head", drained(cluster=""), NOW)
    before = newest(cluster.known(["head"]), slurm)
    slurm.offer("head", drained(), NOW + 1)
    kept = [*newest(cluster.known(["head"]), slurm), *before]

    again = Slurm()
    recall_slurm(kept, again)

    assert [(picture.cluster, picture.received_at) for picture in again.pictures(NOW)] == [("hpc", NOW + 1)]


def test_who_is_forgotten_is_forgotten_in_what_slurm_said(make_seen: MakeSeen) -> None:
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("head", [], received_at=NOW))
    slurm = with_slurm(cluster)
    slurm.offer("head", drained("zoe"), NOW)
    (_, kept) = newest(cluster.known(["head"]), slurm)
    assert stripped(kept, "bob") is kept

    after = Slurm()
    recall_slurm([stripped(kept, "zoe")], after)
    slurm.amend(lambda block: unnamed_block(block, "zoe"))

    for each in (after, slurm):
        (picture,) = each.pictures(NOW)
        assert picture.jobs is not None
        assert picture.nodes is not None
        assert picture.jobs[0].user == "unknown"
        assert picture.nodes[0].reason == "fan, says unknown"
        assert b"zoe" not in unpack(each.told()["hpc"].packed)


def test_a_block_that_cannot_be_read_back_is_left_out(make_seen: MakeSeen, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("head", [], received_at=NOW))
    slurm = with_slurm(cluster)
    slurm.offer("head", drained(), NOW)
    (_, kept) = newest(cluster.known(["head"]), slurm)

    again = Slurm()
    recall_slurm([replace(kept, packed=kept.packed[:-3])], again)

    assert again.pictures(NOW) == []
    assert "could not be read back" in caplog.text


def test_what_cannot_be_read_back_is_left_out(
    make_seen: MakeSeen, make_gpu: MakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("gpu01", [make_gpu(0)]))
    cluster.offer(make_seen("gpu02", [make_gpu(0)]))
    first, second = [remember(known) for known in cluster.known(("gpu01", "gpu02"))]

    found = list(recall([replace(first, packed=first.packed[:-3]), replace(first, known=b"[1"), second]))

    assert [known.seen.host for known in found] == ["gpu02"]
    assert caplog.text.count("could not be read back") == 2


def test_a_host_that_posted_meanwhile_stays_as_it_is(make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    before, after = Cluster(Thresholds()), Cluster(Thresholds())
    before.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW))
    after.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW + 60))

    after.begin_with(recall([remember(known) for known in before.known(["gpu01"])]))

    assert after.host("gpu01", NOW + 61).seen.received_at == NOW + 60  # type: ignore[union-attr]


def test_events_are_there_again_and_the_servers_own_absence_is_nobodys_silence(
    make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    ledger = MemoryStore(lambda: NOW)
    log = EventLog(Thresholds(), ledger=ledger)
    cluster = Cluster(Thresholds(), witness=log.witness)
    xid = [{"at": NOW, "kind": "xid", "gpu": 0, "code": 79, "text": "fell off"}]
    cluster.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW, boot_id="b", seq=1, events=xid))
    kept = log.newest()
    assert ledger.events(EventQuery(begin=0, end=NOW * 2)) == kept != []

    again = EventLog(Thresholds(), ledger=ledger)
    again.begin_with([ledger._events[0]], NOW + 3600)
    after = Cluster(Thresholds(), witness=again.witness)
    after.begin_with(recall([remember(known) for known in cluster.known(["gpu01"])]))
    assert again.newest() == kept
    after.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW + 3610, boot_id="b", seq=2, events=xid))
    assert "host_silent" not in [event.kind for event in again.newest()]


def test_a_server_begins_with_what_slurm_said_to_the_one_before_and_forgets_who_is_to_be_forgotten(
    tmp_path: Path, make_snapshot: Callable[..., dict[str, Any]], make_gpu: MakeGpu
) -> None:
    def served() -> Flask:
        app = create_app(Settings(server=ServerSettings(data=str(tmp_path))), clock=lambda: NOW)
        app.extensions["start"]()
        return app

    def states_and_users(app: Flask) -> tuple[str, bool]:
        (gpu,) = app.test_client().get("/gpu-data?format=json").get_json()["rows"]
        return gpu["state"], "zoe" in app.test_client().get("/slurm/jobs").text

    first = served()
    body = make_snapshot("gpu01", [make_gpu(0)], timestamp=NOW, slurm=drained("zoe"), auth_code="lab_cluster_2025")
    assert first.test_client().post("/", json=body).status_code == 200
    first.extensions["history"].close()

    second = served()
    assert states_and_users(second) == ("drained", True)
    answer = second.extensions["control"].answer(b'{"forget_user": {"user": "zoe", "begin": true}}', os.geteuid())
    assert answer["success"]
    assert states_and_users(second) == ("drained", False)
    second.extensions["history"].close()

    third = served()
    assert states_and_users(third) == ("drained", False)
    third.extensions["history"].close()
