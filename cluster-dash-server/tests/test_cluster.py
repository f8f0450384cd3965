"""The live view: newest wins, nothing is forgotten."""

from collections.abc import Callable
from typing import Any

import pytest

from cluster_dash_server.cluster import Cluster, Refused
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Headline, Thresholds

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
NOW = 1_700_000_000.0


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(Thresholds(), max_hosts=3)


def test_the_newest_snapshot_of_a_host_is_shown(cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0)], received_at=NOW))
    cluster.offer(make_seen(gpus=[make_gpu(0, gpu_util=90.0)], received_at=NOW + 5))
    (host,) = cluster.hosts(NOW + 6)
    assert host.headline == Headline("busy", 1)
    assert host.seen.received_at == NOW + 5


def test_a_silent_host_becomes_stale_then_down_and_is_never_gone(cluster: Cluster, make_seen: MakeSeen) -> None:
    cluster.offer(make_seen(interval_seconds=5, received_at=NOW))
    states = [cluster.hosts(NOW + silent)[0].headline.state for silent in (60, 61, 600, 601, 10**9)]
    assert states == ["free", "stale", "stale", "down", "down"]
    assert [gpu.state for gpu in cluster.hosts(NOW + 601)[0].gpus] == ["down"]


def test_a_host_that_never_says_its_interval_is_expected_by_its_last_gaps(
    cluster: Cluster, make_seen: MakeSeen
) -> None:
    cluster.offer(make_seen(received_at=NOW))
    assert cluster.hosts(NOW)[0].interval_seconds == 300
    cluster.offer(make_seen(received_at=NOW + 120))
    assert cluster.hosts(NOW + 120)[0].interval_seconds == 120
    cluster.offer(make_seen(received_at=NOW + 121))  # sent again by hand: not its interval
    assert cluster.hosts(NOW + 121)[0].interval_seconds == 120


def test_a_gpu_in_use_without_work_is_held_after_30_minutes_and_no_longer_when_it_works(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    def post(at: float, util: float) -> str:
        cluster.offer(make_seen(gpus=[make_gpu(0, used_mem=60_000.0, gpu_util=util)], received_at=at))
        return cluster.hosts(at)[0].gpus[0].state

    assert post(NOW, 90.0) == "busy"
    assert post(NOW + 60, 0.0) == "busy"
    assert post(NOW + 60 + 1799, 0.0) == "busy"
    assert post(NOW + 60 + 1800, 0.0) == "held"
    assert post(NOW + 60 + 1860, 40.0) == "busy"
    assert post(NOW + 60 + 1920, 0.0) == "busy"


def test_a_gpu_that_is_missing_keeps_its_place_in_error(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1), make_gpu(2)], received_at=NOW))
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(2)], received_at=NOW + 5))
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(2)], received_at=NOW + 10))
    gpus = cluster.hosts(NOW + 11)[0].gpus
    assert [(gpu.gpu.index, gpu.state) for gpu in gpus] == [(0, "free"), (1, "error"), (2, "free")]
    assert gpus[1].missing_since == NOW + 5
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1), make_gpu(2)], received_at=NOW + 15))
    assert [gpu.state for gpu in cluster.hosts(NOW + 16)[0].gpus] == ["free"] * 3


def test_when_the_driver_goes_all_gpus_of_the_host_are_missing(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1)], received_at=NOW))
    broken = {"gpu_error": {"name": "error", "uuid": "none", "index": 0, "error": "driver not loaded"}}
    cluster.offer(make_seen(gpu=broken, received_at=NOW + 5))
    (host,) = cluster.hosts(NOW + 6)
    assert [gpu.state for gpu in host.gpus] == ["error", "error"]
    assert host.seen.gpu_error == "driver not loaded"


def test_another_card_in_the_slot_of_a_missing_one_is_a_replacement(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1)], received_at=NOW))
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1, uuid="GPU-new")], received_at=NOW + 5))
    assert [(gpu.gpu.uuid, gpu.state) for gpu in cluster.hosts(NOW + 6)[0].gpus][1] == ("GPU-new", "free")
    assert len(cluster.hosts(NOW + 6)[0].gpus) == 2


def test_a_gpu_that_can_no_longer_be_read_is_the_one_of_its_index(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1)], received_at=NOW))
    lost = {"1_unknown": {"index": 1, "name": None, "uuid": None, "users": None, "error": "GPU is lost"}}
    cluster.offer(make_seen(gpu=lost, received_at=NOW + 5))
    first, second = cluster.hosts(NOW + 6)[0].gpus
    assert (first.state, first.missing_since) == ("error", NOW + 5)
    assert (second.state, second.missing_since, second.gpu.error) == ("error", None, "GPU is lost")
    assert second.gpu.name == "NVIDIA H100 80GB HBM3"


def test_the_same_snapshot_twice_is_a_duplicate_and_an_older_one_never_goes_back(
    cluster: Cluster, make_seen: MakeSeen
) -> None:
    assert cluster.offer(make_seen(boot_id="b", seq=7, received_at=NOW))
    assert not cluster.offer(make_seen(boot_id="b", seq=7, received_at=NOW + 1))
    assert cluster.offer(make_seen(boot_id="b", seq=6, received_at=NOW + 2))
    assert cluster.hosts(NOW + 3)[0].seen.seq == 7
    assert cluster.offer(make_seen(boot_id="c", seq=1, received_at=NOW + 4))
    assert cluster.hosts(NOW + 5)[0].seen.boot_id == "c"


def test_two_machines_with_one_name_are_kept_apart_while_the_first_one_posts(
    cluster: Cluster, make_seen: MakeSeen
) -> None:
    cluster.offer(make_seen(machine_id="one", interval_seconds=5, received_at=NOW))
    with pytest.raises(Refused, match="another machine") as refusal:
        cluster.offer(make_seen(machine_id="two", interval_seconds=5, received_at=NOW + 5))
    assert refusal.value.status == 409
    cluster.offer(make_seen(machine_id="two", interval_seconds=5, received_at=NOW + 61))
    assert cluster.hosts(NOW + 62)[0].seen.machine_id == "two"


def test_there_is_room_for_so_many_hosts_and_known_ones_always_have_theirs(
    cluster: Cluster, make_seen: MakeSeen
) -> None:
    for name in ("a", "b", "c"):
        cluster.offer(make_seen(name))
    with pytest.raises(Refused, match="max_hosts") as refusal:
        cluster.offer(make_seen("d"))
    assert refusal.value.status == 429
    cluster.offer(make_seen("a"))
    assert [host.host for host in cluster.hosts(NOW)] == ["a", "b", "c"]


def test_an_unknown_host_is_none(cluster: Cluster) -> None:
    assert cluster.host("nowhere", NOW) is None
