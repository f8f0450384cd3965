"""Find me a GPU: enough on one host, the smallest that fits, the fullest host first."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.free import Card, Wish, cards, find, free_mem
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen, read
from cluster_dash_server.states import Thresholds

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
NOW = 1_700_000_000.0
A100 = {"name": "NVIDIA A100-PCIE-40GB", "total_mem": 40_960.0}
UNSIZED = {"name": "NVIDIA GB10", "total_mem": None, "used_mem": None}


@pytest.fixture
def fleet(make_seen: MakeSeen, make_gpu: MakeGpu) -> list[HostView]:
    cluster = Cluster(Thresholds())
    busy = {"gpu_util": 90.0}
    for host, gpus in {
        "gpu10": [make_gpu(0), make_gpu(1)],
        "gpu2": [make_gpu(index) for index in range(8)],
        "gpu3": [make_gpu(0, **busy), make_gpu(1)],
        "small": [make_gpu(0, **A100), make_gpu(1, **A100), make_gpu(2, **A100, used_mem=500.0), make_gpu(3)],
        "spark": [make_gpu(0, **UNSIZED)],
        "full": [make_gpu(0, **busy)],
        "broken": [make_gpu(0, error="lost")],
    }.items():
        cluster.offer(make_seen(host, gpus, interval_seconds=5, received_at=NOW))
    cluster.offer(make_seen("silent", [make_gpu(0)], interval_seconds=5, received_at=NOW - 100))
    return cluster.hosts(NOW)


def found(fleet: list[HostView], **wish: Any) -> list[tuple[str, list[int]]]:
    return [(offer.host, [view.gpu.index for view in offer.gpus]) for offer in find(fleet, Wish(**wish))]


def test_the_smallest_cards_come_first_then_the_hosts_with_the_fewest_left(fleet: list[HostView]) -> None:
    assert found(fleet) == [
        *(("small", [0, 1, 2, 3]), ("gpu3", [1]), ("gpu10", [0, 1]), ("gpu2", list(range(8))), ("spark", [0]))
    ]


def test_enough_are_on_one_host(fleet: list[HostView]) -> None:
    assert found(fleet, count=2) == [("small", [0, 1, 2, 3]), ("gpu10", [0, 1]), ("gpu2", list(range(8)))]
    assert found(fleet, count=4) == [("gpu2", list(range(8))), ("small", [0, 1, 2, 3])]  # alike before mixed
    assert found(fleet, count=9) == []


def test_memory_must_be_free_and_known(fleet: list[HostView]) -> None:
    assert ("small", [0, 1, 3]) in found(fleet, free_mem=40_600.0)
    assert ("small", [3]) in found(fleet, free_mem=40_958.0)
    assert "spark" not in [host for host, _ in found(fleet, free_mem=1.0)]


@pytest.mark.parametrize(
    ("model", "hosts"),
    [
        ("a100", ["small"]),
        ("H100", ["gpu3", "small", "gpu10", "gpu2"]),
        ("h100 80g", ["gpu3", "small", "gpu10", "gpu2"]),
        ("nvidia a100-pcie", ["small"]),
        ("h200", []),
    ],
)
def test_a_model_is_named_as_people_say_it_or_in_full(fleet: list[HostView], model: str, hosts: list[str]) -> None:
    assert [host for host, _ in found(fleet, model=model)] == hosts


def test_a_card_counts_the_free_gpus_of_a_model(fleet: list[HostView]) -> None:
    assert cards(fleet) == [
        Card(model="H100 80G", count=12, hosts="gpu[2-3,10],small"),
        Card(model="A100 40G", count=3, hosts="small"),
        Card(model="GB10", count=1, hosts="spark"),
    ]
    assert cards([]) == []


@pytest.mark.parametrize(
    ("nodes", "asks"),
    [
        ({"gpu2": ("all,gpu", "h100:8"), "gpu10": ("gpu", "h100:8")}, "-p gpu --gres=gpu:h100:1"),
        ({"gpu2": ("a,b", "8"), "gpu10": ("a,b", "8")}, "-p a --gres=gpu:1"),
        ({"gpu2": ("a", "h100:4,a100:4"), "gpu10": ("a", "h100:4,a100:4")}, "-p a --gres=gpu:1"),
        ({"gpu2": ("gpu", "8")}, None),  # the other one is not Slurm's
        ({"gpu2": ("gpu; ls", "8"), "gpu10": ("gpu", "$(ls):8")}, None),
        ({"gpu2": ("", "8"), "gpu10": ("gpu", "8")}, None),
    ],
)
def test_a_card_asks_slurm_where_slurm_gives_all_of_its_gpus(
    make_seen: MakeSeen, make_gpu: MakeGpu, nodes: dict[str, tuple[str, str]], asks: str | None
) -> None:
    block = {
        "sources": {"nodes": {"ok": True, "at": NOW}},
        "strings": ["idle", *(text for each in nodes.values() for text in each)],
        "nodes": {
            "name": list(nodes),
            "state": [0] * len(nodes),
            "partitions": [1 + 2 * place for place in range(len(nodes))],
            "gpu": [2 + 2 * place for place in range(len(nodes))],
            "gpus": [8] * len(nodes),
            "gpu_index": [""] * len(nodes),
        },
    }
    cluster = Cluster(Thresholds())
    slurm = Slurm(place=cluster.place)
    slurm.offer("head", block, NOW)
    for host in ("gpu2", "gpu10"):
        cluster.offer(make_seen(host, [make_gpu(index) for index in range(8)], interval_seconds=5, received_at=NOW))
    assert [card.asks for card in cards(cluster.hosts(NOW))] == [asks]


sizes = st.lists(st.sampled_from([None, 8192.0, 24_576.0, 81_559.0]), max_size=6)


@given(st.lists(sizes, max_size=5), st.integers(1, 4), st.sampled_from([0, 8000.0, 24_000.0]))
def test_every_offer_fits_none_is_left_out_and_each_needs_no_smaller_cards_than_the_one_before(
    fleet: list[Any], count: int, least: float
) -> None:
    cluster = Cluster(Thresholds())
    for number, totals in enumerate(fleet):
        gpus = {
            f"{index}_X_{index}": {"index": index, "uuid": f"{number}-{index}", "users": {}, "total_mem": total}
            | ({} if total is None else {"used_mem": 0.0})
            for index, total in enumerate(totals)
        }
        cluster.offer(read({"hostname": f"h{number}", "timestamp": 0, "cpu": {}, "gpu": gpus}, received_at=NOW))
    hosts = cluster.hosts(NOW)
    offers = find(hosts, Wish(count=count, free_mem=least))
    fitting = {host.host: sum(least == 0 or (free_mem(view) or 0) >= least for view in host.gpus) for host in hosts}
    assert {offer.host: len(offer.gpus) for offer in offers} == {
        host: number for host, number in fitting.items() if number >= count
    }
    needed = [offer.gpus[count - 1].gpu.total_mem or float("inf") for offer in offers]
    assert needed == sorted(needed)
