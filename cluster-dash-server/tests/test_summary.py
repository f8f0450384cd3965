"""The sentence on top of the page."""

from collections.abc import Callable
from typing import Any

import pytest

from cluster_dash_server.cluster import Cluster
from cluster_dash_server.snapshot import Seen, read
from cluster_dash_server.states import Thresholds
from cluster_dash_server.summary import Tally, model, sentence_of, standing, tally

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
NOW = 1_700_000_000.0


def test_it_says_what_is_free_by_model_and_what_is_wrong(make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster = Cluster(Thresholds())
    a100: dict[str, Any] = {"name": "NVIDIA A100-SXM4-40GB", "total_mem": 40960.0}
    cluster.offer(make_seen("gpu01", [make_gpu(0), make_gpu(1), make_gpu(2, error="GPU is lost")], received_at=NOW))
    cluster.offer(make_seen("gpu02", [make_gpu(0, **a100), make_gpu(1, gpu_util=99.0)], received_at=NOW))
    cluster.offer(make_seen("gpu03", [make_gpu(0)], interval_seconds=5, received_at=NOW - 100))
    cluster.offer(make_seen("cpu01", [], received_at=NOW))
    assert (
        sentence_of(cluster.hosts(NOW))
        == "3 of 6 GPUs free: 2 × H100 80G, 1 × A100 40G. 1 in error. 1 of 4 hosts stale."
    )


def test_it_says_when_there_is_nothing_to_say(make_seen: MakeSeen) -> None:
    assert sentence_of([]) == "No host has reported yet."
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("cpu01", []))
    assert sentence_of(cluster.hosts(NOW)) == "1 host, no GPU."


def test_a_host_that_cannot_read_its_gpus_is_counted(make_seen: MakeSeen) -> None:
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("gpu01", gpu={"gpu_error": {"index": 0, "error": "driver not loaded"}}))
    assert sentence_of(cluster.hosts(NOW)) == "1 host, no GPU. 1 of 1 host cannot read its GPUs."
    cluster.offer(make_seen("gpu02", gpu={"gpu_error": {"index": 0, "error": "driver not loaded"}}))
    assert sentence_of(cluster.hosts(NOW)) == "2 hosts, no GPU. 2 of 2 hosts cannot read their GPUs."


@pytest.mark.parametrize(
    ("name", "mib", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", 81559.0, "H100 80G"),
        ("NVIDIA A100-SXM4-40GB", 40960.0, "A100 40G"),
        ("NVIDIA H200", 143771.0, "H200 141G"),
        ("NVIDIA GeForce RTX 3090", 24576.0, "RTX 3090 24G"),
        ("NVIDIA L40S", 46068.0, "L40S 48G"),
        ("Tesla T4", 15360.0, "T4 16G"),
        ("NVIDIA H100 PCIe", 81559.0, "H100 80G"),
        ("NVIDIA GB10", None, "GB10"),
        ("GeForce", 1024.0, "GeForce 1G"),
        (None, 1024.0, "GPU"),
    ],
)
def test_models_are_named_as_people_say_them(
    name: str | None, mib: float | None, wanted: str, make_snapshot: Any, make_gpu: MakeGpu
) -> None:
    seen = read(make_snapshot(gpus=[make_gpu(0, name=name, total_mem=mib)]), received_at=NOW)
    assert model(seen.gpus[0]) == wanted


def test_tallies_of_parts_add_up_and_what_is_taken_away_leaves_no_trace(make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("gpu01", [make_gpu(0), make_gpu(1, gpu_util=90.0)], received_at=NOW))
    cluster.offer(make_seen("gpu02", [make_gpu(0, error="lost")], received_at=NOW))
    first, second = map(tally, cluster.hosts(NOW))
    assert first + second - second == first
    assert first + second - first == second
    assert first - first == Tally()


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ("f", ("Free since", NOW)),
        ("ff", ("Free since", NOW)),
        ("fb", ("GPU 0 is free since", NOW)),
        ("ffb", ("GPUs 0, 1 are free, the longest since", NOW)),
        ("fffffffffb", ("9 GPUs are free, the longest since", NOW)),
        ("h", ("No GPU free; 1 held, without work since", NOW)),
        ("hb", ("No GPU free; 1 held, without work since", NOW)),
        ("b", ("Busy", None)),
        ("bb", ("All 2 GPUs busy", None)),
        ("be", ("No GPU free; 1 of 2 busy", None)),
        ("", ("No GPU", None)),
    ],
)
def test_a_host_stands_as_who_looks_for_a_gpu_asks(states: str, said: Any, make_seen: Any, make_gpu: Any) -> None:
    fields: dict[str, dict[str, Any]] = {
        "f": {},
        "b": {"gpu_util": 50.0},
        "h": {"used_mem": 9000.0},
        "e": {"error": "lost"},
    }
    cluster = Cluster(Thresholds(held_seconds=100))
    gpus = [make_gpu(index, **fields[state]) for index, state in enumerate(states)]
    for after in (0, 100):
        cluster.offer(make_seen(gpus=gpus, interval_seconds=300, received_at=NOW + after))
    assert standing(cluster.hosts(NOW + 100)[0]) == said


def test_a_host_that_is_silent_or_cannot_read_its_gpus_stands_so(make_seen: Any) -> None:
    cluster = Cluster(Thresholds())
    broken = {"gpu_error": {"name": "error", "uuid": "none", "index": 0, "error": "driver not loaded"}}
    cluster.offer(make_seen(gpu=broken, interval_seconds=5, received_at=NOW))
    assert standing(cluster.hosts(NOW)[0]) == ("Its GPUs cannot be read", None)
    assert standing(cluster.hosts(NOW + 61)[0]) == ("Silent since", NOW)
