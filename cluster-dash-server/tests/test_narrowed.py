"""The live view under a filter: the same whatever way a viewer got there, made once for all who look alike."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server import filters, narrowed
from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.live import Live
from cluster_dash_server.narrowed import Narrowed
from cluster_dash_server.snapshot import Seen, read
from cluster_dash_server.states import Thresholds
from cluster_dash_server.summary import tally_of

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
Json = dict[str, Any]
NOW = 1_700_000_000.0


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(Thresholds())


@pytest.fixture
def looks(cluster: Cluster) -> Narrowed:
    return Narrowed(Live(cluster, "life"), "life")


def ask(looks: Narrowed, now: float, q: str, since: str | None = None) -> Json:
    body: Json = json.loads(looks.body(now, q, since, "identity").content)
    return body


def marks(body: Json) -> dict[str, list[bool]]:
    """Return which GPUs of each host in a body are meant."""
    found: dict[str, list[bool]] = {host: [] for host in body["hosts"]["host"]}
    for place, is_meant in zip(body["gpus"]["host"], body["gpus"]["matches"], strict=True):
        found[body["hosts"]["host"][place]].append(is_meant)
    return found


def test_a_host_that_is_meant_comes_in_full_with_the_gpus_marked(
    looks: Narrowed, cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen("gpu01", [make_gpu(0), make_gpu(1, gpu_util=90.0)], received_at=NOW))
    cluster.offer(make_seen("gpu02", [make_gpu(0, gpu_util=90.0)], received_at=NOW))
    cluster.offer(make_seen("login", [], received_at=NOW))
    body = ask(looks, NOW, "state:free")
    assert (body["hosts"]["host"], body["gpus"]["state"], body["gpus"]["matches"]) == (
        ["gpu01"],
        ["free", "busy"],
        [True, False],
    )
    assert (body["matching"], body["of"]) == ({"hosts": 1, "gpus": 1}, {"hosts": 3, "gpus": 3})
    assert body["summary"] == "1 of 1 GPU free: 1 × H100 80G."
    assert ask(looks, NOW, "host:login")["summary"] == "1 host, no GPU."
    assert ask(looks, NOW, "host:other")["summary"] == "Nothing matches."


def test_a_host_that_is_meant_no_more_is_gone(
    looks: Narrowed, cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    for name in ("a", "b", "c", "d", "e"):
        cluster.offer(make_seen(name, [make_gpu(0)], received_at=NOW))
    version = ask(looks, NOW, "state:free")["version"]
    cluster.offer(make_seen("b", [make_gpu(0, gpu_util=90.0)], received_at=NOW + 1))
    body = ask(looks, NOW + 1, "state:free", version)
    assert (body["full"], body["gone"], body["hosts"]["host"]) == (False, ["b"], [])
    cluster.offer(make_seen("b", [make_gpu(0)], received_at=NOW + 2))
    cluster.forget("c")
    body = ask(looks, NOW + 2, "state:free", version)
    assert (body["full"], body["gone"], body["hosts"]["host"]) == (False, ["c"], ["b"])
    assert ask(looks, NOW + 2, "state:busy", version)["full"] is True


def test_the_version_stands_still_while_nothing_that_is_meant_changes(
    looks: Narrowed, cluster: Cluster, make_seen: MakeSeen
) -> None:
    cluster.offer(make_seen("a", received_at=NOW))
    cluster.offer(make_seen("b", received_at=NOW))
    version = ask(looks, NOW, "host:a")["version"]
    cluster.offer(make_seen("b", received_at=NOW + 1))
    body = ask(looks, NOW + 1, "host:a", version)
    assert (body["version"], body["hosts"]["host"], body["at"]) == (version, [], NOW + 1)
    cluster.offer(make_seen("c", received_at=NOW + 2))
    body = ask(looks, NOW + 2, "host:a", version)
    assert body["version"] != version
    assert body["of"]["hosts"] == 3


def test_idle_changes_by_time_alone(looks: Narrowed, cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster.offer(make_seen("a", [make_gpu(0)], interval_seconds=86_400, received_at=NOW))
    version = ask(looks, NOW, "idle>1h")["version"]
    assert ask(looks, NOW + 3599, "idle>1h", version)["hosts"]["host"] == []
    assert ask(looks, NOW + 3605, "idle>1h", version)["hosts"]["host"] == ["a"]


def test_problems_are_said_and_what_they_speak_of_hides_nothing(
    looks: Narrowed, cluster: Cluster, make_seen: MakeSeen
) -> None:
    cluster.offer(make_seen("a", received_at=NOW))
    body = ask(looks, NOW, "usr:bob state:free")
    assert (body["q"], body["problems"]) == ("state:free", ["usr: no such key, did you mean user?"])
    assert body["hosts"]["host"] == ["a"]


step = st.one_of(
    st.tuples(st.just("post"), st.sampled_from("abcd"), st.integers(0, 3), st.sampled_from([0.0, 90.0])),
    st.tuples(st.just("forget"), st.sets(st.sampled_from("abcd"))),
    st.tuples(st.just("wait"), st.sampled_from([1, 5, 61, 700, 86_400])),
    st.tuples(st.just("ask"), st.integers(0, 2)),
)


@given(
    st.lists(step, max_size=40), st.sampled_from(["state:free", "-state:free", "a,b", "util>5 -d", "idle>10min", "zz:"])
)
@settings(max_examples=150, deadline=None)
def test_a_viewer_who_merges_changes_sees_what_one_who_asks_for_everything_sees(
    steps: list[tuple[Any, ...]], q: str
) -> None:
    cluster = Cluster(Thresholds())
    live = Live(cluster, "life")
    looks = Narrowed(live, "life")
    wish = filters.parse(q)
    now = NOW
    viewers: list[tuple[str | None, dict[str, Any]]] = [(None, {}), (None, {}), (None, {})]
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
            now += 5
            version, known = viewers[facts[0]]
            body = ask(looks, now, q, version)
            kept = {} if body["full"] else {name: row for name, row in known.items() if name not in body["gone"]}
            assert body["full"] or set(body["gone"]).isdisjoint(body["hosts"]["host"])
            known = {**kept, **marks(body)}
            viewers[facts[0]] = (body["version"], known)
            meant = [(host, wish.means(host, now)) for host in cluster.hosts(now)]
            assert known == {host.host: marks for host, marks in meant if marks is not None}
            total = tally_of((host, marks) for host, marks in meant if marks is not None)
            assert body["matching"] == {"hosts": total.hosts, "gpus": total.gpus}


def test_many_viewers_of_one_filter_cost_one_look(
    looks: Narrowed, cluster: Cluster, make_seen: MakeSeen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(50):
        cluster.offer(make_seen(f"h{place}", received_at=NOW))
    calls: list[str] = []
    means = filters.Filter.means

    def counted(wish: filters.Filter, host: HostView, now: float) -> list[bool] | None:
        calls.append(host.host)
        return means(wish, host, now)

    monkeypatch.setattr(filters.Filter, "means", counted)
    bodies = {id(looks.body(NOW, "state:free", None, "gzip").content) for _ in range(100)}
    assert (len(bodies), len(calls)) == (1, 50)
    cluster.offer(make_seen("h7", received_at=NOW + 1))
    looks.body(NOW + 1, "state:free", None, "gzip")
    assert calls[50:] == ["h7"]


def test_filters_and_their_bodies_are_bounded(
    looks: Narrowed, cluster: Cluster, make_seen: MakeSeen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(20):
        cluster.offer(make_seen(f"h{place}", received_at=NOW))
    monkeypatch.setattr(narrowed, "KEPT_FILTERS", 3)
    monkeypatch.setattr(narrowed, "KEPT_BYTES", 20_000)
    version = ask(looks, NOW, "h1")["version"]
    for place in range(2, 10):
        assert ask(looks, NOW, f"h{place}")["hosts"]["host"] == [f"h{place}"]
    assert ask(looks, NOW, "h1", version)["full"] is True
    for place in range(2, 10):
        ask(looks, NOW, f"-h{place}")
    assert sum(each.size for each in looks._selections.values()) < 40_000


@pytest.mark.parametrize("since", ["", "nonsense", "life-1", "life-q1-", "life-q1-99", "life-q1-x", "life-q2-1", "-1"])
def test_a_version_of_another_filter_or_life_gets_everything(
    looks: Narrowed, cluster: Cluster, make_seen: MakeSeen, since: str
) -> None:
    cluster.offer(make_seen("a", received_at=NOW))
    assert ask(looks, NOW, "a", since)["full"] is True


def test_facets_count_what_the_rest_of_the_filter_means(
    looks: Narrowed, cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(
        make_seen("gpu01", [make_gpu(0), make_gpu(1, gpu_util=90.0, users={"eve": {"1": {}}})], received_at=NOW)
    )
    cluster.offer(make_seen("gpu02", [make_gpu(0, name="NVIDIA L4")], received_at=NOW))
    packed = looks.facets(NOW, "state:free model:h100", "gzip")
    body = json.loads(gzip.decompress(packed.content))
    counts = {key: {each["value"]: each["count"] for each in values} for key, values in body["facets"].items()}
    assert counts["state"] == {
        **dict.fromkeys(("unknown", "held", "drained", "error", "stale", "down"), 0),
        "free": 1,
        "busy": 1,
    }
    assert counts["model"] == {"H100 80G": 1, "L4 80G": 1}
    assert counts["user"] == {}
    assert (body["matching"], body["summary"]) == ({"hosts": 1, "gpus": 1}, "1 of 1 GPU free: 1 × H100 80G.")
    assert looks.facets(NOW, "state:free model:h100", "gzip").content is packed.content
    cluster.offer(make_seen("gpu03", [make_gpu(0, name="NVIDIA L4")], received_at=NOW + 1))
    assert looks.facets(NOW + 1, "state:free model:h100", "gzip").version != packed.version
