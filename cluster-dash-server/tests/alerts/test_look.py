"""What rules see of Slurm, and that a glance never overlooks what a look finds."""

from collections.abc import Callable
from typing import Any

import pytest

from cluster_dash_server.alerts import rules
from cluster_dash_server.alerts.disks import Disklog
from cluster_dash_server.alerts.look import Looker, waiting_jobs
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.slurm import Job, Node, Picture, Place
from cluster_dash_server.snapshot import read
from cluster_dash_server.states import Allotment, JobOnGpu, Thresholds

NOW = 1_700_000_000.0
HOUR = 3600.0
Gpu = Callable[..., dict[str, Any]]
MakeSnapshot = Callable[..., dict[str, Any]]


def place(state: str = "mixed", reason: str = "", *, jobs: tuple[JobOnGpu, ...] = ()) -> Place:
    drained = "drain" in state or state == "down"
    given_away = Allotment(drained=drained, reserved=False, allocated=bool(jobs), jobs=jobs)
    other = Allotment(drained=drained, reserved=False, allocated=False, jobs=())
    return Place(
        node="gpu01",
        state=state,
        reason=reason,
        partitions=("gpu",),
        gpus=2,
        allotments={0: given_away, 1: other},
        other=other,
    )


def test_a_gpu_that_slurm_gave_away_and_nobody_uses_is_told_to_concern_its_user_once(site: Any, make_gpu: Gpu) -> None:
    site.cluster.place(lambda name: place(jobs=(JobOnGpu("4711", "alice", None),)), site.now + 24 * HOUR)
    site.host("gpu01", [make_gpu(0), make_gpu(1)])
    site.run(4 * HOUR)
    assert site.titles == ["firing alice, gpu01 GPU 0: allocated, and no process"]
    facts = dict(site.book.firing()[0].facts)
    assert (facts["what"], facts["who"]) == ("allocated by Slurm and no process, job 4711", "alice, job 4711")


@pytest.mark.parametrize(
    ("state", "expected"),
    [("idle+drain", "firing gpu01: drained in Slurm"), ("down", "firing gpu01: down in Slurm"), ("mixed", None)],
)
def test_a_node_that_slurm_has_shut_is_told_with_its_reason(
    site: Any, make_gpu: Gpu, state: str, expected: str | None
) -> None:
    site.cluster.place(lambda name: place(state, "bad fan"), site.now + 24 * HOUR)
    site.host("gpu01", [make_gpu(0), make_gpu(1)])
    site.run(HOUR)
    assert site.titles == ([] if expected is None else [expected])
    assert [dict(alert.facts)["what"] for alert in site.book.firing()] == (
        [] if expected is None else [f"Slurm has it as {state}: bad fan"]
    )


# ---------------------------------------------------------------------------------------------------- jobs that wait


def node(**more: Any) -> Node:
    known = {
        **{"name": "gpu01", "state": "mixed", "partitions": "gpu,long", "gpu": "gpu:h100:8", "gpus": 8},
        **{"gpus_allocated": 4, "cpus": 64, "cpus_allocated": 32, "memory_mib": 512_000.0},
        **{"memory_allocated_mib": 100_000.0, **more},
    }
    return Node._make([known.get(name) for name in Node._fields])


def job(**more: Any) -> Job:
    known = {
        **{"id": 7, "user": "alice", "partition": "gpu", "state": "pending", "reason": "Resources", "gpus": 4},
        **{"node_count": 1, "cpus": 16, "memory_mib": 64_000.0, "gpu_type": "", **more},
    }
    return Job._make([known.get(name) for name in Job._fields])


def picture(nodes: list[Node], jobs: list[Job]) -> Picture:
    return Picture(
        host="head",
        cluster="hpc",
        version=None,
        received_at=NOW,
        collected_at=NOW,
        interval_seconds=60,
        sources={},
        notes=(),
        totals={},
        scheduler={},
        partitions=(),
        nodes=nodes,
        jobs=jobs,
        omitted={},
        finished=None,
    )


def test_a_job_that_waits_though_what_fits_is_free_is_told_with_where() -> None:
    assert list(waiting_jobs(picture([node()], [job()]))) == [
        ("jobs_wait", "partition gpu", "1 job waits; job 7 of alice asks for 4 GPUs, free on gpu01")
    ]


@pytest.mark.parametrize(
    ("nodes", "jobs"),
    [
        ([node()], [job(gpus=5)]),
        ([node()], [job(cpus=33)]),
        ([node()], [job(memory_mib=500_000.0)]),
        ([node()], [job(gpu_type="a100")]),
        ([node()], [job(partition="debug")]),
        ([node()], [job(reason="QOSMaxGRESPerUser")]),
        ([node()], [job(reason="Priority")]),
        ([node()], [job(state="running")]),
        ([node()], [job(gpus=0)]),
        ([node()], [job(gpus=8, node_count=2)]),
        ([node(state="mixed+drain")], [job()]),
        ([node(state="idle+reserved")], [job()]),
        ([node(gpus_allocated=None)], [job()]),
    ],
)
def test_a_job_that_waits_for_good_reason_is_no_trouble(nodes: list[Node], jobs: list[Job]) -> None:
    assert list(waiting_jobs(picture(nodes, jobs))) == []


# ---------------------------------------------------------------------------------------------------------- glances

_ALICE = {"alice": {"1": {"mem": 1.0, "time": 1.0, "name": "python"}}}
_GIVEN = place(jobs=(JobOnGpu("1", "alice", None),))


@pytest.mark.parametrize(
    ("fields", "slurm", "expected"),
    [
        ({}, None, set()),
        ({"users": _ALICE, "gpu_util": 97.0, "used_mem": 70_000.0}, place(), set()),
        ({"error": "lost"}, None, {"gpu-error"}),
        ({"temperature_c": 90.0, "temperature_slowdown_c": 90.0}, None, {"gpu-too-hot"}),
        ({"temperature_c": 86.0, "temperature_slowdown_c": 90.0}, None, {"gpu-too-hot"}),  # it lingers
        ({"throttle_reasons": ["hw_thermal_slowdown"]}, None, {"gpu-throttled"}),
        ({"throttle_reasons": ["sw_power_cap"]}, None, set()),
        ({"unattributed_mem": 5_000.0}, None, {"memory-unexplained"}),
        ({"unattributed_mem": 5_000.0, "users": _ALICE}, None, set()),
        ({"pcie": {"width": 8, "width_max": 16}}, None, {"pcie-narrow"}),
        ({"ecc": {"uncorrected": 1}}, None, {"ecc-uncorrected"}),
        ({"ecc": {"remap_pending": True}}, None, {"remap-pending"}),
        ({"ecc": {"remap_failed": True}}, None, {"remap-failed"}),
        ({"used_mem": 40_000.0, "users": _ALICE}, None, {"gpu-held"}),
        ({}, _GIVEN, {"allocated-unused"}),
        ({"gpu_util": None}, _GIVEN, {"allocated-unused"}),
        ({}, place("down"), {"node-down"}),
        ({}, place("idle+drain"), {"node-drained"}),
    ],
)
def test_a_glance_overlooks_nothing_that_a_look_finds(
    make_snapshot: MakeSnapshot, make_gpu: Gpu, fields: dict[str, Any], slurm: Place | None, expected: set[str]
) -> None:
    cluster = Cluster(Thresholds(), 10)
    cluster.place(lambda name: slurm, NOW + 24 * HOUR)
    now = NOW + 3 * HOUR
    for at in (NOW, now):
        snapshot = make_snapshot("gpu01", [make_gpu(0, **fields), make_gpu(1)], interval_seconds=2 * HOUR)
        cluster.offer(read(snapshot, received_at=at))
    looker = Looker(rules.load(), Disklog())
    host = cluster.host("gpu01", now)
    assert host is not None
    assert {name for name, _ in looker.host(host, now)} == expected
    (known,) = cluster.known(["gpu01"])
    assert looker.may_find(known, cluster.node("gpu01", now), now) or not expected


@pytest.mark.parametrize(
    ("fields", "skew_seconds", "expected"),
    [
        ({}, 10.0, set()),
        ({}, -100.0, {"clock-skew"}),
        ({"disk": {"/": {"mount_point": "/", "percent_used": 96.0}}}, None, {"disk-full"}),
        ({"collectors": {"disk": {"ok": False, "seconds": 1.0, "error": "no answer"}}}, None, {"collector-failing"}),
        ({"gpu": {"gpu_error": {"index": 0, "error": "no driver"}}}, None, {"gpus-unreadable"}),
    ],
)
def test_a_glance_overlooks_no_trouble_of_a_host(
    make_snapshot: MakeSnapshot, fields: dict[str, Any], skew_seconds: float | None, expected: set[str]
) -> None:
    cluster = Cluster(Thresholds(), 10)
    snapshot = make_snapshot("gpu01") | fields
    cluster.offer(read(snapshot, received_at=NOW, skew_seconds=skew_seconds))
    looker = Looker(rules.load(), Disklog())
    host = cluster.host("gpu01", NOW)
    assert host is not None
    assert {name for name, _ in looker.host(host, NOW)} == expected
    (known,) = cluster.known(["gpu01"])
    assert looker.may_find(known, None, NOW) or not expected
