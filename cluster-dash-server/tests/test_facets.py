"""Facets: counts that a click makes true, and the filter that the click writes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server import facets
from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.filters import parse
from cluster_dash_server.snapshot import read
from cluster_dash_server.states import Allotment, JobOnGpu, Thresholds
from cluster_dash_server.web.fleet import groups

NOW = 1_700_000_000.0
USERS = ["alice", "Bob", "a,b", 'c"d', "*", "user:x", "-e", "ö", " f ", "[1]"]


@pytest.fixture(scope="module")
def fleet() -> list[HostView]:
    cluster = Cluster(Thresholds())
    for place in range(12):
        gpus: dict[str, Any] = {
            f"{index}_X_{place}": {
                "index": index,
                "uuid": f"GPU-{place}-{index}",
                "name": ("NVIDIA H100", "NVIDIA H100 NVL", "NVIDIA L4", None)[(place + index) % 4],
                "used_mem": 3.0,
                "gpu_util": 0.0 if index else 90.0,
                "users": {} if index else {USERS[place % len(USERS)]: {"1": {}}},
            }
            for index in range(place % 5)
        }
        labels = {
            "rack": f"r{place % 3}",
            "odd,key": None if place % 2 else 'x "y"',
            "partition": ("a", "a,b", "c d")[place % 3],
        }
        snapshot = {"hostname": f"h{place}", "timestamp": NOW, "cpu": {}, "gpu": gpus, "general": {"labels": labels}}
        cluster.offer(read(snapshot, received_at=NOW))
    return cluster.hosts(NOW)


terms = st.lists(
    st.sampled_from(
        [
            "state:free",
            "state:busy,free",
            "model:h100",
            "-model:l4",
            "user:alice,Bob",
            "part:a",
            "util<5",
            "label:rack=r1",
            "h1",
        ]
    ),
    max_size=4,
    unique=True,
).map(" ".join)


@given(terms)
@settings(max_examples=60, deadline=None)
def test_each_count_is_what_a_look_through_that_value_alone_shows(fleet: list[HostView], q: str) -> None:
    wish = parse(q)
    counted = facets.count(fleet, wish, NOW)
    for key, choices in counted.choices.items():
        rest = wish.of(tuple(term for term in wish.terms if term.key != key))
        for choice in choices:
            one = parse(str(facets.toggled(rest, key, choice.value)))
            assert one.problems == ()
            seen = sum(sum(one.means(host, NOW) or []) for host in fleet)
            assert (key, choice.value, choice.count) == (key, choice.value, seen)


@given(terms, st.sampled_from(["state", "user", "model", "part", "label"]))
@settings(max_examples=60, deadline=None)
def test_what_is_chosen_twice_is_not_chosen(fleet: list[HostView], q: str, key: str) -> None:
    for choice in facets.count(fleet, parse(q), NOW).choices[key]:
        once = parse(choice.q)
        chosen = {each.value: each.is_chosen for each in facets.count(fleet, once, NOW).choices[key]}
        assert chosen.get(choice.value, False) is not choice.is_chosen


def test_a_second_value_of_a_facet_is_an_or_and_states_keep_their_order(fleet: list[HostView]) -> None:
    choices = {each.value: each for each in facets.count(fleet, parse("state:free util<5"), NOW).choices["state"]}
    assert list(choices) == ["free", "unknown", "busy", "held", "drained", "error", "stale", "down"]
    assert (choices["busy"].q, choices["free"].q, choices["free"].is_chosen) == (
        "state:free,busy util<5",
        "util<5",
        True,
    )


def test_a_user_counts_by_gpus_not_by_processes_and_by_what_slurm_gave_them(fleet: list[HostView]) -> None:
    host = next(each for each in fleet if len(each.gpus) > 1)
    job = JobOnGpu(id="9", user="dan", name=None)
    given = Allotment(drained=False, reserved=False, allocated=True, jobs=(job, job))
    two = replace(host.gpus[0].gpu, users={"dan": 3, "eve": 2})
    view = replace(host, gpus=(replace(host.gpus[0], gpu=two), replace(host.gpus[1], slurm=given)))
    counted = {each.value: each.count for each in facets.count([view], parse(""), NOW).choices["user"]}
    assert counted == {"dan": 2, "eve": 1}
    assert next(group.users for group in groups([view], "part", parse(""))) == "dan ×2, eve ×1"


def test_of_many_values_the_most_frequent_are_shown_and_those_that_are_chosen() -> None:
    cluster = Cluster(Thresholds())
    for place in range(40):
        gpu = {"index": 0, "uuid": f"GPU-{place}", "users": {f"u{place:02}": {"1": {}}}}
        cluster.offer(
            read({"hostname": f"h{place}", "timestamp": NOW, "cpu": {}, "gpu": {"0_X": gpu}}, received_at=NOW)
        )
    counted = facets.count(cluster.hosts(NOW), parse("user:u39"), NOW)
    assert [each.value for each in counted.choices["user"]][-2:] == ["u19", "u39"]
    assert counted.more["user"] == 19
