"""Many hosts on one page: order, parts, groups."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.filters import EVERYTHING, parse
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds
from cluster_dash_server.web import fleet, views

NOW = 1_700_000_000.0
MakeSeen = Callable[..., Seen]


@pytest.fixture
def hosts(make_seen: MakeSeen, make_gpu: Any) -> list[HostView]:
    cluster = Cluster(Thresholds())
    busy = {"gpu_util": 90.0, "used_mem": 60_000.0}

    def general(part: str) -> dict[str, Any]:
        return {"labels": {"partition": part}}

    cluster.offer(make_seen("gpu10", [make_gpu(0), make_gpu(1)], received_at=NOW, general=general("long")))
    cluster.offer(
        make_seen(
            "gpu9",
            [make_gpu(0, users={"eve": {"1": {}}, "bob": {"2": {}}}, **busy), make_gpu(1, name="NVIDIA L4")],
            received_at=NOW - 20,
            cpu={"cpu_percent": 80.0, "load_avgs": [9.0, 1, 1]},
            general=general("long,debug"),
        )
    )
    cluster.offer(make_seen("login", [], received_at=NOW - 10, cpu={}))
    cluster.offer(make_seen("odd", [make_gpu(0, error="Xid 79", gpu_util=None, used_mem=None)], received_at=NOW - 5))
    return cluster.hosts(NOW)


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("worst", "odd gpu10 gpu9 login"),
        ("host", "gpu9 gpu10 login odd"),
        ("-host", "odd login gpu10 gpu9"),
        ("-free", "gpu10 gpu9 odd login"),
        ("free", "odd gpu9 gpu10 login"),
        ("busy", "gpu10 gpu9 login odd"),
        ("-busy", "gpu9 gpu10 login odd"),
        ("-mem", "gpu9 gpu10 login odd"),
        ("-cpu", "gpu9 gpu10 odd login"),
        ("-load", "gpu9 gpu10 odd login"),
        ("seen", "gpu10 odd login gpu9"),
        ("-users", "gpu9 gpu10 login odd"),
    ],
)
def test_hosts_are_put_in_order_and_what_is_not_known_comes_last(hosts: list[HostView], sort: str, names: str) -> None:
    assert [host.host for host in fleet.order(hosts, sort)] == names.split()


def test_every_order_can_be_asked_for(hosts: list[HostView]) -> None:
    for sort in fleet.ORDERS.choices():
        assert len(fleet.order(hosts, sort)) == len(hosts)


def test_a_column_is_sorted_by_its_useful_end_then_the_other_then_not(hosts: list[HostView]) -> None:
    clicks = ["worst"]
    for _ in range(3):
        clicks.append(fleet.ORDERS.next("free", clicks[-1]))
    assert clicks == ["worst", "-free", "free", "worst"]
    assert fleet.ORDERS.next("host", "-free") == "host"


@given(st.integers(0, 5000), st.text(max_size=8) | st.integers(-5, 200).map(str))
def test_any_page_that_is_asked_for_is_one_that_there_is(total: int, number: str) -> None:
    part = fleet.page(total, number)
    assert 1 <= part.number <= part.pages
    shown = part.last - part.first + 1 if total else part.last
    assert 0 <= shown <= max(fleet.PAGE, fleet.ALL_AT_ONCE)
    assert part.last <= total


def test_the_pages_hold_every_row_once() -> None:
    rows: list[int] = []
    pages = fleet.page(1234, "1").pages
    for number in range(1, pages + 1):
        part = fleet.page(1234, str(number))
        rows += range(part.first, part.last + 1)
    assert rows == list(range(1, 1235))


def test_groups_count_gpus_hosts_states_and_users(hosts: list[HostView]) -> None:
    found = fleet.groups(hosts, "model", EVERYTHING)
    assert [(each.name, each.hosts, each.gpus, each.free, each.users) for each in found] == [
        ("H100 80G", 3, 4, 2, "bob ×1, eve ×1"),
        ("L4 80G", 1, 1, 1, ""),
    ]
    assert found[0].bar == (("free", 2, "50"), ("busy", 1, "25"), ("error", 1, "25"))
    assert [each.name for each in fleet.groups(hosts, "state", EVERYTHING)] == ["free", "busy", "error"]
    assert [(each.name, each.gpus, each.q) for each in fleet.groups(hosts, "part", EVERYTHING)] == [
        ("long", 4, "part:long"),
        ("debug", 2, "part:debug"),
        ("", 1, None),
    ]


@pytest.mark.parametrize("by", list(fleet.GROUPINGS))
def test_the_filter_of_a_group_shows_its_gpus_and_no_others(hosts: list[HostView], by: str) -> None:
    wish = parse("-user:eve")
    view = views.look(hosts, str(wish), NOW)
    for group in fleet.groups(view.narrowed, by, wish):
        if group.q is not None:
            assert views.look(hosts, group.q, NOW).matching.gpus == group.gpus


def test_many_hosts_are_grouped_until_somebody_asks_for_something_else() -> None:
    many = fleet.GROUPED_FROM + 1
    assert fleet.grouping(None, many, EVERYTHING) == "model"
    assert fleet.grouping(None, many - 1, EVERYTHING) is None
    assert fleet.grouping(None, many, parse("state:free")) is None
    assert fleet.grouping("part", 1, EVERYTHING) == "part"
    assert fleet.grouping("none", many, EVERYTHING) is None
