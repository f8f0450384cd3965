"""Slurm's view, joined with hosts and GPUs: pure."""

from typing import Any

import pytest

from cluster_dash_server import slurm
from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.slurm import Picture, Place, Slurm, SlurmSettings, indexes, places_of, word
from cluster_dash_server.snapshot import SnapshotError, read
from cluster_dash_server.states import Thresholds
from cluster_dash_server.tables import TEXTS

NOW = 1_000_000.0
Json = dict[str, Any]


def columns(table: str, rows: list[Json]) -> tuple[Json, list[str]]:
    """Rows as columns, and the strings that they name."""
    strings = [""]
    found: Json = {}
    for name in {name for row in rows for name in row}:
        values = [row.get(name) for row in rows]
        if name in TEXTS[table]:
            strings += [text for text in dict.fromkeys(values) if isinstance(text, str) and text not in strings]
            values = [0 if text is None else strings.index(text) for text in values]
        found[name] = values
    return found, strings


def block(nodes: list[Json] | None = None, jobs: list[Json] | None = None, at: float = NOW, **more: Any) -> Json:
    """A block of the given rows."""
    strings = [""]
    found: Json = {"collected_at": at, "interval_seconds": 60, "cluster": "hpc", **more}
    found.setdefault("sources", {name: {"ok": True, "at": at} for name in ("nodes", "jobs")})
    for table, rows in (("nodes", nodes), ("jobs", jobs)):
        if rows is None:
            continue
        found[table], here = columns(table, rows)
        for name in TEXTS[table] & found[table].keys():
            found[table][name] = [place + len(strings) if place else 0 for place in found[table][name]]
        strings += here
    found["strings"] = strings
    return found


def node(name: str, state: str = "idle", **more: Any) -> Json:
    return {"name": name, "state": state, "gpus": 4, "gpu_index": "", "gpus_allocated": 0, **more}


def job(number: int, index: str, **more: Any) -> Json:
    return {"id": number, "user": "alice", "state": "running", "name": "train", "gpus": 2, "gpu_index": index, **more}


def picture(found: Json) -> Picture:
    slurm.check(found)
    return slurm.read("head", found, NOW)


def host(
    name: str, *, working: bool = False, util: float = 0, used: float = 0, minors: list[int] | None = None
) -> Json:
    """A snapshot of a host with four GPUs."""
    gpus = {}
    for index in range(4):
        gpus[f"{index}_g"] = {
            "index": index,
            "minor_number": index if minors is None else minors[index],
            "name": "H100",
            "uuid": f"GPU-{name}-{index}",
            "total_mem": 80_000,
            "used_mem": used,
            "gpu_util": util,
            "users": {"bob": {"1": {"mem": used, "type": "C"}}} if working else {},
        }
    return {"hostname": name, "timestamp": NOW, "interval_seconds": 60, "cpu": {}, "gpu": gpus}


def view(found: Json, snapshot: Json, *, now: float = NOW, after: float = 0) -> HostView:
    """What the live view shows of a host under a block."""
    cluster = Cluster(Thresholds())
    joined = Slurm(None, cluster.place)
    joined.known_by(cluster.knows)
    joined.offer("head", found, NOW)
    cluster.offer(read(snapshot, received_at=NOW))
    if after:
        cluster.offer(read({**snapshot, "timestamp": NOW + after}, received_at=NOW + after))
    shown = cluster.host(snapshot["hostname"], now)
    assert shown is not None
    return shown


def states(shown: HostView) -> list[str]:
    return [gpu.state for gpu in shown.gpus]


# ------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    "state", ["idle+drain", "mixed+drain", "down", "down+not_responding", "idle+maintenance", "idle+fail"]
)
def test_the_gpus_of_a_node_that_takes_no_jobs_are_drained_also_while_in_use(state: str) -> None:
    assert states(view(block([node("gpu1", state)]), host("gpu1"))) == ["drained"] * 4
    assert states(view(block([node("gpu1", state)]), host("gpu1", working=True, util=90))) == ["drained"] * 4


def test_a_reserved_node_takes_the_place_of_free_only() -> None:
    assert states(view(block([node("gpu1", "idle+reserved")]), host("gpu1"))) == ["drained"] * 4
    assert states(view(block([node("gpu1", "idle+reserved")]), host("gpu1", working=True, util=90))) == ["busy"] * 4


def test_a_gpu_that_slurm_gave_away_is_not_free_and_without_work_for_half_an_hour_it_is_held() -> None:
    found = block([node("gpu1", "mixed", gpu_index="1-2", gpus_allocated=2)], [job(7, "gpu1:1-2")])
    assert states(view(found, host("gpu1"))) == ["free", "busy", "busy", "free"]
    found = block(
        [node("gpu1", "mixed", gpu_index="1-2", gpus_allocated=2)],
        [job(7, "gpu1:1-2")],
        sources={"nodes": {"ok": True, "at": NOW}, "jobs": {"ok": True, "at": NOW}},
        interval_seconds=600,
    )
    later = view(found, host("gpu1"), now=NOW + 1801, after=1801)
    assert states(later) == ["free", "held", "held", "free"]
    assert later.gpus[1].since == NOW


def test_a_node_that_is_planned_or_mixed_changes_nothing() -> None:
    assert states(view(block([node("gpu1", "mixed+planned")]), host("gpu1"))) == ["free"] * 4


def test_what_slurm_said_long_ago_decides_nothing() -> None:
    drained = block([node("gpu1", "idle+drain")])
    assert states(view(drained, host("gpu1"), now=NOW + 599, after=599)) == ["drained"] * 4
    assert states(view(drained, host("gpu1"), now=NOW + 601, after=601)) == ["free"] * 4


def test_without_slurm_nothing_changes() -> None:
    shown = view(block([node("gpu2")]), host("gpu1"))
    assert (states(shown), shown.place, shown.gpus[0].slurm) == (["free"] * 4, None, None)


def test_the_live_view_changes_where_slurm_says_something_new_and_there_only() -> None:
    cluster = Cluster(Thresholds())
    joined = Slurm(None, cluster.place)
    for name in ("gpu1", "gpu2"):
        cluster.offer(read(host(name), received_at=NOW))
    joined.offer("head", block([node("gpu1"), node("gpu2")]), NOW)
    was = cluster.changes
    joined.offer("head", block([node("gpu1"), node("gpu2", "idle+drain")], at=NOW + 60), NOW + 60)
    assert cluster.changed_since(was) == ["gpu2"]
    assert cluster.next_change_at("gpu1", NOW + 601) == NOW + 60 + 600


# --------------------------------------------------------------------------------------------------------- join


def test_a_job_is_on_the_gpu_whose_device_has_its_index() -> None:
    found = block([node("gpu1", gpu_index="0-1", gpus_allocated=2)], [job(7, "gpu1:0-1", array="4711_7")])
    shown = view(found, host("gpu1", minors=[3, 2, 1, 0]))
    assert [[each.id for each in gpu.slurm.jobs] if gpu.slurm else None for gpu in shown.gpus] == [
        *([], []),
        *(["4711_7"], ["4711_7"]),
    ]


def test_a_job_over_several_nodes_is_on_the_gpus_of_each() -> None:
    found = picture(block([node("gpu1"), node("gpu2"), node("gpu3")], [job(7, "gpu[1-2]:1;gpu3:0,3")]))
    places = places_of(found)
    on = {name: [number for number, each in place.allotments.items() if each.jobs] for name, place in places.items()}
    assert on == {"gpu1": [1], "gpu2": [1], "gpu3": [0, 3]}


def test_where_slurm_counts_more_gpus_than_the_host_has_nobody_says_which_is_whose() -> None:
    found = block([node("gpu1", gpus=28, gpu_index="0-3", gpus_allocated=4)], [job(7, "gpu1:0-3")])
    shown = view(found, host("gpu1"))
    assert [gpu.slurm and (gpu.slurm.allocated, gpu.slurm.jobs) for gpu in shown.gpus] == [(None, ())] * 4


def test_indexes_that_are_not_told_leave_all_or_none_or_nobody_knows() -> None:
    def allocated(count: int) -> list[bool | None]:
        found = picture(block([node("gpu1", gpu_index=None, gpus_allocated=count)]))
        return [each.allocated for each in places_of(found)["gpu1"].allotments.values()]

    assert allocated(0) == [False] * 4
    assert allocated(4) == [True] * 4
    assert allocated(2) == [None] * 4


def places(found: Json, *hosts: str, settings: SlurmSettings | None = None) -> dict[str, str | None]:
    """The node of each host, of those that report."""
    joined = Slurm(settings)
    joined.known_by(lambda name: name in hosts)
    joined.offer("head", found, NOW)

    def name(place: Place | None) -> str | None:
        return None if place is None else place.node

    return {each: name(joined.place_of(each)) for each in hosts}


def test_hosts_and_nodes_meet_by_name_with_or_without_domain() -> None:
    found = block([node("gpu1"), node("gpu2.lab")])
    assert places(found, "gpu1.lab", "gpu2", "gpu3") == {"gpu1.lab": "gpu1", "gpu2": "gpu2.lab", "gpu3": None}
    assert places(found, "gpu1", "gpu1.elsewhere") == {"gpu1": "gpu1", "gpu1.elsewhere": None}


def test_a_node_of_another_name_is_found_by_what_slurm_calls_its_host_unless_several_share_it() -> None:
    found = block([node("n1", host="alpha.lab"), node("n2", host="vm"), node("n3", host="vm")])
    assert places(found, "alpha", "vm") == {"alpha": "n1", "vm": None}
    assert places(found, "alpha", "n1") == {"alpha": None, "n1": "n1"}


def test_the_settings_join_what_no_name_does() -> None:
    found = block([node("n1"), node("n2")])
    assert places(found, "box-a", settings=SlurmSettings(hosts=("n1=box-a",))) == {"box-a": "n1"}


# ----------------------------------------------------------------------------------------------------- pictures


def test_of_two_moles_the_newest_counts_and_the_page_knows_of_both() -> None:
    joined = Slurm()
    joined.offer("head1", block([node("gpu1")], at=NOW), NOW)
    joined.offer("head2", block([node("gpu1"), node("gpu2")], at=NOW + 5), NOW + 5)
    joined.offer("head1", block([node("gpu1")], at=NOW + 3), NOW + 6)
    (shown,) = joined.pictures(NOW + 6)
    assert (shown.host, len(shown.nodes or ()), shown.others) == ("head2", 2, ("head1",))
    assert joined.pictures(NOW + 3600)[0].others == ()


def test_what_was_held_back_for_want_of_a_server_is_no_picture() -> None:
    joined = Slurm()
    joined.offer("head", block([node("gpu1")]), NOW)
    joined.offer("head", {"collected_at": NOW + 5, "cluster": "hpc", "totals": {}}, NOW + 5)
    assert len(joined.pictures(NOW + 5)[0].nodes or ()) == 1


def test_two_clusters_stand_side_by_side() -> None:
    joined = Slurm()
    joined.offer("head1", block([node("gpu1")], cluster="small"), NOW)
    joined.offer("head2", block([node("a1"), node("a2")], cluster="large"), NOW)
    assert [each.cluster for each in joined.pictures(NOW)] == ["large", "small"]
    assert [joined.place_of(name) is not None for name in ("gpu1", "a2")] == [True, True]


def test_a_cluster_that_learns_its_name_is_still_one() -> None:
    joined = Slurm()
    joined.offer("head", block([node("gpu1")], cluster=None), NOW)
    joined.offer("head", block([node("gpu1")], at=NOW + 60), NOW + 60)
    joined.offer("head", block([node("gpu1")], at=NOW + 120, cluster=None), NOW + 120)
    assert [each.cluster for each in joined.pictures(NOW)] == ["hpc"]


def test_the_age_is_that_of_the_oldest_answer_that_counts_by_our_own_clock() -> None:
    sources = {
        "nodes": {"ok": True, "at": 5000},
        "jobs": {"ok": False, "at": 4820, "error": "no"},
        "sdiag": {"ok": False},
    }
    found = picture(block([], [], at=5000, sources=sources))
    assert found.at == NOW - 180
    assert (found.is_late(NOW), found.is_late(NOW + 1)) == (False, True)
    assert [name for name, _ in found.failures] == ["jobs", "sdiag"]


def test_a_slurm_that_never_answered_has_no_tables_and_no_age() -> None:
    found = picture({"collected_at": NOW, "sources": {"nodes": {"ok": False, "at": None, "error": "no such command"}}})
    assert (found.nodes, found.jobs, found.at, found.is_late(NOW)) == (None, None, None, True)


def test_columns_that_a_mole_does_not_send_are_unknown() -> None:
    found = picture(block([{"name": "gpu1"}], [{"id": 7}]))
    assert found.nodes is not None
    assert (found.nodes[0].state, found.nodes[0].gpus) == ("", None)
    assert found.job("7") is not None
    assert found.job("8") is None


def test_a_block_whose_columns_do_not_fit_is_refused() -> None:
    found = block([node("gpu1")])
    found["nodes"]["gpus"] = [1, 2]
    with pytest.raises(SnapshotError) as refusal:
        slurm.check(found)
    assert refusal.value.status == 422


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("idle+drain", "drained"),
        ("mixed+drain", "draining"),
        ("down+drain", "down"),
        ("allocated", "allocated"),
        ("", ""),
    ],
)
def test_one_word_for_each_state(state: str, said: str) -> None:
    assert word(state) == said


def test_indexes_of_any_text() -> None:
    assert indexes("0-3,7") == [0, 1, 2, 3, 7]
    assert indexes("") == indexes("N/A") == indexes("a-b") == indexes("-") == []
    assert len(indexes("0-99999")) == slurm.MOST_INDEX + 1
