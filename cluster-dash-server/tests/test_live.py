"""Bodies ready to send: whole, as changes, and the same whatever way a viewer got there."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server.cluster import Cluster
from cluster_dash_server.live import GPU_COLUMNS, HOST_COLUMNS, Live, choose_encoding
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen, read
from cluster_dash_server.states import Thresholds
from cluster_dash_server.summary import model, sentence_of

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
Json = dict[str, Any]
NOW = 1_700_000_000.0


def ask(live: Live, now: float, since: str | None = None) -> Json:
    """Return a body; what lies ready before and after is the very same."""
    ready = live.ready(now, since, "identity")
    made = live.body(now, since, "identity")
    assert ready in (None, made)
    assert live.ready(now, since, "identity") == made
    body: Json = json.loads(made.content)
    return body


def rows(body: Json) -> dict[str, Json]:
    """Turn the columns of a body into one object a host, its GPUs inside."""
    hosts = {
        name: {**{column: values[place] for column, values in body["hosts"].items()}, "gpus": []}
        for place, name in enumerate(body["hosts"]["host"])
    }
    for place, host in enumerate(body["gpus"]["host"]):
        gpu = {column: values[place] for column, values in body["gpus"].items() if column != "host"}
        hosts[body["hosts"]["host"][host]]["gpus"].append(gpu)
    return hosts


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(Thresholds())


@pytest.fixture
def live(cluster: Cluster) -> Live:
    return Live(cluster, "life")


def test_what_slurm_says_anew_after_a_silence_of_hours_is_shown(
    cluster: Cluster, live: Live, make_seen: MakeSeen
) -> None:
    slurm = Slurm(place=cluster.place)
    cluster.offer(make_seen("gpu01", received_at=NOW, interval_seconds=3600))
    block = {
        "cluster": "hpc",
        "interval_seconds": 60,
        "sources": {},
        "strings": ["", "idle+drain"],
        "nodes": {"name": ["gpu01"], "state": [1], "gpus": [1], "gpus_allocated": [0]},
    }
    shown = []
    for told_at, looked_at in ((0, 1), (None, 1000), (1100, 1101)):
        if told_at is not None:
            said = {"ok": True, "at": NOW + told_at}
            slurm.offer("gpu01", {**block, "sources": {"nodes": said, "jobs": said}}, NOW + told_at)
        shown.append(ask(live, NOW + looked_at)["gpus"]["state"])
    assert shown == [["drained"], ["free"], ["drained"]]


def test_an_empty_cluster_has_every_column_and_nothing_in_it(live: Live) -> None:
    body = ask(live, NOW)
    assert (body["version"], body["at"], body["full"], body["gone"]) == ("life-1", NOW, True, [])
    assert list(body["hosts"]) == list(HOST_COLUMNS)
    assert list(body["gpus"]) == ["host", *GPU_COLUMNS]
    assert not any(body["hosts"].values())
    assert body["summary"] == "No host has reported yet."


def test_rows_hold_what_the_columns_say(live: Live, cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster.offer(make_seen("b", [make_gpu(0), make_gpu(1, gpu_util=90.0, users={"eve": {"1": {}}})], received_at=NOW))
    cluster.offer(make_seen("a", [], received_at=NOW))
    cluster.offer(make_seen("c", [make_gpu(7)], received_at=NOW))
    body = ask(live, NOW)
    assert body["hosts"]["host"] == ["a", "b", "c"]
    assert body["gpus"]["host"] == [1, 1, 2]
    for view in cluster.hosts(NOW):
        row = rows(body)[view.host]
        of_its_own: Json = {
            **{"state": view.headline.state, "state_count": view.headline.count, "last_at": view.seen.received_at},
            **{"interval_seconds": view.interval_seconds, "drained": view.drained},
            **{"partitions": [], "asks": []},
        }
        assert row == {
            **{name: getattr(view.seen, name) for name in HOST_COLUMNS if name not in of_its_own},
            **of_its_own,
            "gpus": row["gpus"],
        }
        for gpu, laid_out in zip(view.gpus, row["gpus"], strict=True):
            of_its_view = {
                **{"model": model(gpu.gpu), "state": gpu.state, "since": gpu.since, "slurm": None},
                "read_at": gpu.gpu.read_at if gpu.old else None,
            }
            assert laid_out == {
                **{name: getattr(gpu.gpu, name) for name in GPU_COLUMNS if name not in of_its_view},
                **of_its_view,
            }


@pytest.mark.parametrize("name", ["],[", '"],["', "],[],[", "[[", "a\\", ""])
def test_a_text_that_looks_like_the_end_of_a_column_stays_a_text(
    live: Live, cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu, name: str
) -> None:
    cluster.offer(
        make_seen(f"x{name}", [make_gpu(0, users={name: {"1": {}}}, error=name), make_gpu(1)], received_at=NOW)
    )
    row = rows(ask(live, NOW))[f"x{name}"]
    assert [(gpu["users"], gpu["error"]) for gpu in row["gpus"]] == [({name: 1}, name or None), ({}, None)]


def test_a_body_is_made_once_a_second_and_is_not_older_than_that_where_it_arrives(
    live: Live, cluster: Cluster, make_seen: MakeSeen
) -> None:
    first = live.body(NOW, None, "identity")
    cluster.offer(make_seen(received_at=NOW))
    assert live.body(NOW + 0.6, None, "identity").content is first.content
    assert live.body(NOW + 0.95, None, "identity").version == "life-2"


def test_nothing_is_ready_that_has_to_be_made_or_that_somebody_is_making(
    live: Live, cluster: Cluster, make_seen: MakeSeen
) -> None:
    assert live.ready(NOW, None, "gzip") is None
    body = live.body(NOW, None, "gzip")
    assert live.ready(NOW + 0.6, None, "gzip") == body
    assert live.ready(NOW + 0.6, None, "zstd") is None
    cluster.offer(make_seen(received_at=NOW))
    assert live.ready(NOW + 1, None, "gzip") is None
    live.body(NOW + 1, None, "gzip")
    with live._lock:  # as a thread has it that lays out thousands of hosts
        assert live.ready(NOW + 1, None, "gzip") is None


def test_nothing_new_is_no_new_version(live: Live, cluster: Cluster, make_seen: MakeSeen) -> None:
    cluster.offer(make_seen(received_at=NOW))
    version = live.version(NOW)
    assert live.version(NOW + 30) == version
    assert ask(live, NOW + 30, version)["hosts"]["host"] == []


def test_the_moment_of_an_answer_is_fresh_even_where_nothing_changes(live: Live) -> None:
    assert [ask(live, NOW + after)["at"] - NOW for after in (0, 4, 5, 9, 10)] == [0, 0, 5, 5, 10]


def test_a_state_that_changes_by_time_alone_moves_the_version(
    live: Live, cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    held = make_gpu(0, used_mem=60_000.0)
    cluster.offer(make_seen("quiet", [make_gpu(0)], interval_seconds=5, received_at=NOW))
    cluster.offer(make_seen("slow", [held], interval_seconds=86400, received_at=NOW))
    seen, version = [], None
    for after in (0, 59, 60, 61, 62, 599, 600, 601, 602, 1799, 1800, 1801):
        body = ask(live, NOW + after, version)
        version = body["version"]
        seen += [(after, host, row["state"]) for host, row in rows(body).items()]
    changed = [
        each for place, each in enumerate(seen) if each[2] not in [old[2] for old in seen[:place] if old[1] == each[1]]
    ]
    assert changed == [
        *((0, "quiet", "free"), (0, "slow", "busy"), (61, "quiet", "stale")),
        *((601, "quiet", "down"), (1800, "slow", "held")),
    ]


@pytest.mark.parametrize("since", ["", "nonsense", "other-1", "life-", "life-99", "life-x", "life-1-1", "life-²", "-1"])
def test_a_version_of_another_life_gets_everything(
    live: Live, cluster: Cluster, make_seen: MakeSeen, since: str
) -> None:
    cluster.offer(make_seen(received_at=NOW))
    assert ask(live, NOW, since)["full"] is True


SAYS = ("free", "busy", "another model", "more memory", "gone")
UNREADABLE = {"gpu_error": {"name": "gpu_error", "error": "no driver"}}


@given(st.lists(st.tuples(st.sampled_from(["", *SAYS, "unreadable"]), st.sampled_from([2, 70, 700])), max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_sentence_counts_what_stands_whatever_was_counted_before(posts: list[tuple[str, int]]) -> None:
    cluster = Cluster(Thresholds())
    live = Live(cluster, "life")
    now = NOW
    for says, seconds in posts:
        now += seconds
        assert ask(live, now)["summary"] == sentence_of(cluster.hosts(now))
        gpu: Json = {"index": 0, "uuid": "a", "used_mem": 1.0, "gpu_util": 90.0 if says == "busy" else 0.0}
        gpu["name"] = "NVIDIA B200" if says == "another model" else "NVIDIA H100"
        gpu["total_mem"] = 160_000.0 if says == "more memory" else 80_000.0
        gpus = {} if says == "gone" else UNREADABLE if says == "unreadable" else {"0": gpu}
        if says:
            body = {"hostname": "a", "timestamp": now, "cpu": {}, "gpu": gpus, "interval_seconds": 5}
            cluster.offer(read(body, received_at=now))
        now += 2
        assert ask(live, now)["summary"] == sentence_of(cluster.hosts(now))


step = st.one_of(
    st.tuples(st.just("post"), st.sampled_from("abcd"), st.integers(0, 3), st.sampled_from([0.0, 90.0])),
    st.tuples(st.just("forget"), st.sets(st.sampled_from("abcd"))),
    st.tuples(st.just("wait"), st.sampled_from([1, 5, 61, 700, 86_400])),
    st.tuples(st.just("ask"), st.integers(0, 2)),
)


@given(st.lists(step, max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_viewer_who_merges_changes_sees_what_one_who_asks_for_everything_sees(steps: list[tuple[Any, ...]]) -> None:
    cluster = Cluster(Thresholds())
    live = Live(cluster, "life")
    now = NOW
    viewers: list[tuple[str | None, dict[str, Json]]] = [(None, {}), (None, {}), (None, {})]
    for kind, *facts in [*steps, ("ask", 0), ("ask", 1), ("ask", 2)]:
        if kind == "post":
            name, count, util = facts
            gpus = {
                f"{i}_X_{i}": {"index": i, "uuid": f"{name}{i}", "used_mem": 1.0, "gpu_util": util}
                for i in range(count)
            }
            body = {"hostname": name, "timestamp": now, "cpu": {}, "gpu": gpus, "interval_seconds": 5}
            cluster.offer(read({**body, "general": {"ephemeral": name in "ab"}}, received_at=now))
        elif kind == "forget":
            cluster.forget(facts[0])
        elif kind == "wait":
            now += facts[0]
        else:
            now += 1
            version, known = viewers[facts[0]]
            body = ask(live, now, version)
            kept = {} if body["full"] else {name: row for name, row in known.items() if name not in body["gone"]}
            known = {**kept, **rows(body)}
            viewers[facts[0]] = (body["version"], known)
            everything = ask(live, now)
            assert known == rows(everything)
            assert body["summary"] == everything["summary"] == sentence_of(cluster.hosts(now))


def test_a_forgotten_host_is_gone_from_the_next_answer_on(live: Live, cluster: Cluster, make_seen: MakeSeen) -> None:
    cluster.offer(make_seen("a", received_at=NOW))
    cluster.offer(make_seen("b", received_at=NOW))
    version = ask(live, NOW)["version"]
    cluster.forget(["a", "never seen"])
    body = ask(live, NOW + 1, version)
    assert (body["full"], body["gone"], body["hosts"]["host"]) == (False, ["a"], [])
    assert ask(live, NOW + 2, body["version"])["gone"] == []
    cluster.offer(make_seen("a", received_at=NOW + 3))
    back = ask(live, NOW + 3, version)
    assert (back["gone"], back["hosts"]["host"]) == ([], ["a"])


def test_who_missed_more_names_than_are_kept_gets_everything(
    live: Live, cluster: Cluster, make_seen: MakeSeen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster_dash_server.live.KEPT_GONE", 2)
    for name in "abcd":
        cluster.offer(make_seen(name, received_at=NOW))
    first = ask(live, NOW)["version"]
    cluster.forget("a")
    second = ask(live, NOW + 1, first)["version"]
    cluster.forget("bc")
    assert sorted(ask(live, NOW + 2, second)["gone"]) == ["b", "c"]
    assert ask(live, NOW + 2, first)["full"] is True


def test_an_ephemeral_host_leaves_24_h_after_it_went_down(live: Live, cluster: Cluster, make_seen: MakeSeen) -> None:
    cluster.offer(make_seen("pod", general={"ephemeral": True}, interval_seconds=5, received_at=NOW))
    version = ask(live, NOW)["version"]
    before = ask(live, NOW + 600 + 86_399, version)
    assert before["hosts"]["state"] == ["down"]
    after = ask(live, NOW + 600 + 86_400, before["version"])
    assert (after["gone"], after["summary"]) == (["pod"], "No host has reported yet.")


def test_each_encoding_holds_the_same_bytes(live: Live, cluster: Cluster, make_seen: MakeSeen) -> None:
    cluster.offer(make_seen(received_at=NOW))
    plain = live.body(NOW, None, "identity").content
    assert gzip.decompress(live.body(NOW, None, "gzip").content) == plain
    assert zstandard.ZstdDecompressor().decompress(live.body(NOW, None, "zstd").content) == plain


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "gzip"),
        ("zstd;q=0, gzip;q=0.5", "gzip"),
        ("GZIP; q=0", "identity"),
        ("br", "identity"),
    ],
)
def test_the_encoding_is_one_the_viewer_takes(accepted: str | None, chosen: str) -> None:
    assert choose_encoding(accepted) == chosen
