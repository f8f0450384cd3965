"""The live view: newest wins, nothing is forgotten."""

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server.cluster import Cluster, Refused
from cluster_dash_server.inflate import is_packed
from cluster_dash_server.snapshot import Seen, read
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


@pytest.mark.parametrize("gap", [0.003, 0.0, -5.0])
def test_two_posts_by_hand_at_one_time_are_no_interval(cluster: Cluster, make_seen: MakeSeen, gap: float) -> None:
    cluster.offer(make_seen(received_at=NOW))
    cluster.offer(make_seen(received_at=NOW + gap))
    (host,) = cluster.hosts(NOW + 120)
    assert (host.interval_seconds, host.silent) == (300, None)
    cluster.offer(make_seen(received_at=NOW + gap + 120))
    cluster.offer(make_seen(received_at=NOW + gap + 120))
    assert cluster.hosts(NOW + 121)[0].interval_seconds == 120


def test_a_host_that_goes_on_posting_twice_a_second_is_expected_every_second(
    cluster: Cluster, make_seen: MakeSeen
) -> None:
    for half_second in range(10):
        cluster.offer(make_seen(received_at=NOW + half_second / 2))
    (host,) = cluster.hosts(NOW + 120)
    assert (host.interval_seconds, host.silent) == (1, "stale")


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


def test_one_host_cannot_fill_the_memory_and_those_that_are_known_go_on(make_seen: MakeSeen) -> None:
    junk = random.Random(1).randbytes(2000).hex()
    size, more = len(make_seen("a").packed), len(make_seen("a", junk=junk).packed)
    cluster = Cluster(Thresholds(), kept_bytes=2 * size + more)
    for name in ("a", "b"):
        cluster.offer(make_seen(name))
    cluster.offer(make_seen("junk", junk=junk))
    with pytest.raises(Refused, match="kept_bytes") as refusal:
        cluster.offer(make_seen("b", junk=junk))
    assert refusal.value.status == 429
    cluster.offer(make_seen("b", received_at=NOW + 5))
    cluster.forget(["junk"])
    cluster.offer(make_seen("b", junk=junk, received_at=NOW + 10))
    assert len(cluster) == 2


def test_an_unknown_host_is_none(cluster: Cluster) -> None:
    assert cluster.host("nowhere", NOW) is None


def test_a_card_that_moved_to_another_index_is_the_same_one(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    first, second, third = (make_gpu(index) for index in range(3))
    cluster.offer(make_seen(gpus=[first, second, third], received_at=NOW))
    cluster.offer(make_seen(gpus=[first, {**third, "index": 1}], received_at=NOW + 5))
    gpus = cluster.hosts(NOW + 6)[0].gpus
    assert {(gpu.gpu.uuid, gpu.gpu.index, gpu.state) for gpu in gpus} == {
        (first["uuid"], 0, "free"),
        (second["uuid"], 1, "error"),
        (third["uuid"], 1, "free"),
    }


def test_a_card_that_cannot_be_read_is_known_by_its_slot_before_its_index(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1)], received_at=NOW))
    lost = {"index": 0, "uuid": None, "pci_bus_id": make_gpu(1)["pci_bus_id"].replace("0000", "", 1), "error": "lost"}
    cluster.offer(make_seen(gpu={"0_unknown": lost}, received_at=NOW + 5))
    unread = [gpu.gpu.uuid for gpu in cluster.hosts(NOW + 6)[0].gpus if gpu.missing_since is None]
    assert unread == [make_gpu(1)["uuid"]]


def test_a_mig_instance_that_ends_is_not_missed(cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0, uuid="MIG-1"), make_gpu(1, uuid="MIG-2")], received_at=NOW))
    cluster.offer(make_seen(gpus=[make_gpu(0, uuid="MIG-3")], received_at=NOW + 5))
    assert [gpu.gpu.uuid for gpu in cluster.hosts(NOW + 6)[0].gpus] == ["MIG-3"]


def test_the_cards_of_a_machine_that_was_taken_over_are_not_expected_of_the_next(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1)], machine_id="one", interval_seconds=5, received_at=NOW))
    new = make_gpu(0, uuid="GPU-new", pci_bus_id="00000000:99:00.0")
    cluster.offer(make_seen(gpus=[new], machine_id="two", interval_seconds=5, received_at=NOW + 61))
    assert [gpu.gpu.uuid for gpu in cluster.hosts(NOW + 62)[0].gpus] == ["GPU-new"]


def test_figures_older_than_three_intervals_say_nothing_of_the_state(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    def post(read_at: float) -> tuple[str, bool]:
        gpus = [make_gpu(0, gpu_util=90.0, read_at=read_at)]
        cluster.offer(make_seen(gpus=gpus, timestamp=NOW, interval_seconds=5, received_at=NOW))
        (gpu,) = cluster.hosts(NOW)[0].gpus
        return gpu.state, gpu.old

    assert post(NOW - 15) == ("busy", False)
    assert post(NOW - 16) == ("unknown", True)


def test_free_since_survives_a_short_silence_and_no_long_one(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    def post(after: float, **fields: Any) -> float | None:
        cluster.offer(make_seen(gpus=[make_gpu(0, **fields)], interval_seconds=5, received_at=NOW + after))
        since = cluster.hosts(NOW + after)[0].gpus[0].since
        return None if since is None else since - NOW

    assert post(0, gpu_util=50.0) is None
    assert post(5) == 5
    assert post(10) == 5
    assert post(310) == 5
    assert post(910) == 5
    assert post(1511) == 1511
    assert post(1516, used_mem=9000.0, gpu_util=50.0) is None
    assert post(1521) == 1521


def test_a_forgotten_host_is_a_new_one_when_it_posts_again(
    cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1)], received_at=NOW))
    cluster.forget(["gpu01", "nowhere"])
    assert (cluster.hosts(NOW), cluster.host("gpu01", NOW), cluster.forgets) == ([], None, 1)
    cluster.offer(make_seen(gpus=[make_gpu(0)], received_at=NOW + 5))
    assert [gpu.state for gpu in cluster.hosts(NOW + 5)[0].gpus] == ["free"]


def test_only_a_missing_gpu_is_forgotten(cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster.offer(make_seen(gpus=[make_gpu(0), make_gpu(1)], received_at=NOW))
    cluster.offer(make_seen(gpus=[make_gpu(0)], received_at=NOW + 5))
    change = cluster.changes
    assert not cluster.forget_gpu("gpu01", make_gpu(0)["uuid"])
    assert not cluster.forget_gpu("nowhere", make_gpu(1)["uuid"])
    assert cluster.forget_gpu("gpu01", make_gpu(1)["uuid"])
    assert [gpu.gpu.index for gpu in cluster.hosts(NOW + 6)[0].gpus] == [0]
    assert cluster.changed_since(change) == ["gpu01"]


def test_an_ephemeral_host_leaves_the_lists_and_its_room(cluster: Cluster, make_seen: MakeSeen) -> None:
    for name in ("a", "b", "c"):
        cluster.offer(make_seen(name, general={"ephemeral": name != "c"}, interval_seconds=5, received_at=NOW))
    gone_at = NOW + 600 + 86_400
    assert [host.host for host in cluster.hosts(gone_at - 1)] == ["a", "b", "c"]
    assert [host.host for host in cluster.hosts(gone_at)] == ["c"]
    assert cluster.host("a", gone_at) is None
    cluster.offer(make_seen("d", received_at=gone_at))
    assert cluster.names() == {"c", "d"}


def test_each_snapshot_that_is_taken_is_witnessed_once(make_seen: MakeSeen) -> None:
    told: list[tuple[int | None, bool, bool]] = []
    cluster = Cluster(
        Thresholds(), witness=lambda seen, before, after: told.append((seen.seq, before is None, after is None))
    )
    for seq in (7, 7, 6, 8):
        cluster.offer(make_seen(boot_id="b", seq=seq))
    assert told == [(7, True, False), (6, False, True), (8, False, False)]


cards = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([1, 2, 3, 4, None])),
    unique_by=lambda card: card[0],
    max_size=6,
)


@given(st.lists(cards, max_size=8))
@settings(max_examples=150, deadline=None)
def test_every_card_ever_seen_has_one_cell_until_another_sits_in_its_slot(posts: list[list[tuple[str, Any]]]) -> None:
    cluster = Cluster(Thresholds())
    expected: dict[str, Any] = {}
    for step, post in enumerate(posts):
        taken = set()
        gpus = {}
        for index, (uuid, bus) in enumerate(post):
            bus = None if bus in taken else bus
            taken.add(bus)
            gpus[f"{index}_X_{uuid}"] = {"index": index, "uuid": uuid, "pci_bus_id": bus and f"00000000:0{bus}:00.0"}
            expected.pop(uuid, None)
        for uuid in [uuid for uuid, bus in expected.items() if bus is not None and bus in taken]:
            del expected[uuid]
        cluster.offer(read({"hostname": "h", "timestamp": 0, "cpu": {}, "gpu": gpus}, received_at=NOW + step))
        present = {str(entry["uuid"]) for entry in gpus.values()}
        shown = [(gpu.gpu.uuid, gpu.missing_since is None) for gpu in cluster.hosts(NOW + step)[0].gpus]
        assert sorted(shown) == sorted([*((uuid, True) for uuid in present), *((uuid, False) for uuid in expected)])
        for entry in gpus.values():
            expected[str(entry["uuid"])] = entry["pci_bus_id"] and int(str(entry["pci_bus_id"])[9:11])


def test_a_backlog_shows_nothing_live_and_is_told_to_the_witness(make_seen: MakeSeen) -> None:
    told: list[tuple[int | None, bool]] = []
    cluster = Cluster(Thresholds(), witness=lambda seen, _, after: told.append((seen.seq, after is None)))
    assert cluster.offer(make_seen("old-name", boot_id="a", seq=1), backlog=True)
    assert len(cluster) == 0
    cluster.offer(make_seen("gpu01", boot_id="b", seq=5, received_at=NOW))
    cluster.offer(make_seen("gpu01", boot_id="a", seq=9, received_at=NOW + 1), backlog=True)
    view = cluster.host("gpu01", NOW + 1)
    assert view is not None
    assert (view.seen.boot_id, view.seen.seq, view.seen.received_at) == ("b", 5, NOW)
    assert told == [(1, True), (5, False), (9, True)]


@pytest.mark.parametrize("skew", [0.0, 86_400.0])
def test_a_clone_is_refused_while_the_first_posts_and_a_reboot_is_not(make_seen: MakeSeen, skew: float) -> None:
    cluster = Cluster(Thresholds())

    def post(boot_id: str, at: float, booted_at: float) -> None:
        general = {"boottime": booted_at + skew}
        seen = make_seen(boot_id=boot_id, machine_id="m", seq=1, received_at=at, skew_seconds=skew, general=general)
        cluster.offer(seen)

    post("a", NOW, booted_at=NOW - 5000)
    with pytest.raises(Refused, match="another machine, that was up at the same time") as refusal:
        post("b", NOW + 2, booted_at=NOW - 900)
    assert refusal.value.status == 409
    post("c", NOW + 40, booted_at=NOW + 5)  # rebooted in haste
    with pytest.raises(Refused):
        post("b", NOW + 60, booted_at=NOW - 900)
    post("b", NOW + 40 + 400, booted_at=NOW - 900)  # the other has fallen silent


def test_the_newest_snapshots_are_kept_as_they_came_until_they_take_an_eighth_of_the_room(make_seen: MakeSeen) -> None:
    cluster = Cluster(Thresholds(), kept_bytes=8 * 2500)

    def seen(name: str, received_at: float = NOW, size: int = 1000) -> Seen:
        made = make_seen(name, received_at=received_at)
        return dataclasses.replace(made, packed=json.dumps({"of": name, "junk": "x" * size}).encode())

    def plain() -> list[str]:
        return [name for name in sorted(cluster.names()) if not is_packed(cluster.known([name])[0].seen.packed)]

    for name in ("a", "b"):
        cluster.offer(seen(name))
    assert plain() == ["a", "b"]
    cluster.offer(seen("a", NOW + 1))
    cluster.offer(seen("c", NOW + 1))
    assert plain() == ["a", "c"]
    cluster.offer(seen("large", NOW + 2, 25_000))  # there is room for it only when it is packed
    assert plain() == ["a", "c"]
    cluster.offer(seen("large", NOW + 2, 5_000))
    assert plain() == []
    assert [host.seen.snapshot["of"] for host in cluster.hosts(NOW + 2)] == ["a", "b", "c", "large"]
    for turn in range(100):
        cluster.offer(seen("a", NOW + 3 + turn))
        cluster.offer(seen("b", NOW + 3 + turn))
        cluster.forget(["b"])
    assert plain() == ["a"]
