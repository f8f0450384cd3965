"""Events: what snapshots say, what differs between two, and the log that keeps each once."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_server.cluster import Cluster
from cluster_dash_server.events import EventLog, silences
from cluster_dash_server.snapshot import Seen, read
from cluster_dash_server.states import Thresholds

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
NOW = 1_700_000_000.0
THROTTLED = ["sw_power_cap", "hw_thermal_slowdown"]


class Watched:
    """A cluster whose events are kept, and a host that posts to it every 5 s."""

    def __init__(self, make_seen: MakeSeen, *, per_host: int = 1000, in_all: int = 50_000) -> None:
        self.log = EventLog(Thresholds(), per_host=per_host, in_all=in_all)
        self.cluster = Cluster(Thresholds(), witness=self.log.witness)
        self.after = 0.0
        self._make_seen = make_seen

    def post(self, *gpus: dict[str, Any], host: str = "gpu01", wait: float = 5, **fields: Any) -> list[str]:
        """Post a snapshot; return the kinds of what it brought, the oldest first."""
        known = len(self.log.newest())
        self.after += wait
        usual = {"received_at": NOW + self.after, "interval_seconds": 5}
        self.cluster.offer(self._make_seen(host, list(gpus), **{**usual, **fields}))
        return [event.kind for event in reversed(self.log.newest()[: len(self.log.newest()) - known])]

    def texts(self) -> list[tuple[int | str | None, str]]:
        return [(event.gpu, event.text) for event in self.log.newest()]


@pytest.fixture
def watched(make_seen: MakeSeen) -> Watched:
    return Watched(make_seen)


def test_nothing_happens_while_snapshots_say_the_same(watched: Watched, make_gpu: MakeGpu) -> None:
    assert watched.post(make_gpu(0), boot_id="b", seq=1) == []
    assert watched.post(make_gpu(0, gpu_util=90.0), boot_id="b", seq=2) == []


def test_a_gpu_that_goes_missing_and_comes_back_is_two_events(watched: Watched, make_gpu: MakeGpu) -> None:
    watched.post(make_gpu(0), make_gpu(1))
    assert watched.post(make_gpu(0)) == ["gpu_lost"]
    assert watched.post(make_gpu(0)) == []
    assert watched.post(make_gpu(0), make_gpu(1)) == ["gpu_back"]
    assert watched.texts() == [(1, "can be read again"), (1, "missing: the snapshot does not hold it")]


def test_a_gpu_that_reports_an_error_is_lost_with_its_words(watched: Watched, make_gpu: MakeGpu) -> None:
    watched.post(make_gpu(0), make_gpu(1))
    assert watched.post(make_gpu(0), make_gpu(1, error="GPU is lost")) == ["gpu_lost"]
    assert watched.post(make_gpu(0), make_gpu(1, error="GPU is lost, still")) == []
    assert watched.post(make_gpu(0)) == ["gpu_lost"]
    assert watched.texts()[1] == (1, "GPU is lost")


def test_a_driver_that_goes_takes_all_gpus_in_one_event(watched: Watched, make_gpu: MakeGpu) -> None:
    gpus = [make_gpu(index) for index in range(8)]
    watched.post(*gpus)
    assert watched.post(collectors={"gpu": {"ok": False, "error": "driver not loaded"}}) == ["gpu_error"]
    assert watched.post(*gpus) == ["gpu_back"]
    assert watched.texts() == [(None, "all 8 GPUs are back"), (None, "all 8 GPUs are missing: driver not loaded")]


def test_another_card_in_a_slot_is_a_replacement(watched: Watched, make_gpu: MakeGpu) -> None:
    watched.post(make_gpu(0), make_gpu(1))
    assert watched.post(make_gpu(0), make_gpu(1, uuid="GPU-new")) == ["gpu_replaced"]
    gpu, text = watched.texts()[0]
    assert gpu == 1
    assert text == f"{make_gpu(1)['uuid']} was replaced by GPU-new in slot {make_gpu(1)['pci_bus_id']}"


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ({"driver_version": "550.1"}, {"driver_version": "560.2"}, ["driver_changed"]),
        ({"driver_version": "550.1"}, {"driver_version": None}, []),
        ({"boottime": NOW - 900}, {"boottime": NOW - 845}, []),
        ({"boottime": NOW - 900}, {"boottime": NOW - 2}, ["rebooted"]),
        ({"boottime": NOW - 2}, {"boottime": NOW - 900}, []),
    ],
)
def test_a_new_driver_and_a_reboot_are_told(watched: Watched, first: Any, second: Any, kinds: list[str]) -> None:
    watched.post(general=first)
    assert watched.post(general=second) == kinds


def test_a_reboot_is_known_by_the_boot_id_where_there_is_one(watched: Watched) -> None:
    watched.post(boot_id="b", seq=7, general={"boottime": NOW - 900})
    assert watched.post(boot_id="b", seq=8, general={"boottime": NOW}) == []
    assert watched.post(boot_id="c", seq=1, general={"boottime": NOW}) == ["rebooted"]


def test_throttling_begins_and_ends_for_harmful_reasons_only(watched: Watched, make_gpu: MakeGpu) -> None:
    watched.post(make_gpu(0))
    assert watched.post(make_gpu(0, throttle_reasons=["sw_power_cap"])) == []
    assert watched.post(make_gpu(0, throttle_reasons=THROTTLED)) == ["throttling_began"]
    assert watched.post(make_gpu(0, throttle_reasons=[*THROTTLED, "hw_slowdown"])) == []
    assert watched.post(make_gpu(0)) == ["throttling_ended"]
    assert watched.texts()[1] == (0, "slowed down: hw thermal slowdown")


def test_throttling_that_comes_and_goes_is_one_spell(watched: Watched, make_gpu: MakeGpu) -> None:
    watched.post(make_gpu(0))
    for _ in range(50):
        watched.post(make_gpu(0, throttle_reasons=THROTTLED))
        watched.post(make_gpu(0))
    assert [event.kind for event in watched.log.newest()] == ["throttling_ended", "throttling_began"]
    watched.post(make_gpu(0), wait=301, interval_seconds=300)
    assert watched.post(make_gpu(0, throttle_reasons=THROTTLED), interval_seconds=300) == ["throttling_began"]


def test_a_host_that_was_silent_is_told_when_it_is_back(watched: Watched) -> None:
    watched.post()
    assert watched.post(wait=60) == []
    assert watched.post(wait=720) == ["host_silent", "host_back"]
    newest, before = watched.log.newest()
    assert (newest.text, before.at) == ("posts again, after 12 min", NOW + 65 + 60)


def test_a_host_that_is_silent_now_is_told_without_a_post(watched: Watched) -> None:
    watched.post()
    assert silences(watched.cluster.hosts(NOW + 65), Thresholds()) == []
    (event,) = silences(watched.cluster.hosts(NOW + 66), Thresholds())
    assert (event.at, event.host, event.kind, event.text) == (NOW + 65, "gpu01", "host_silent", "no snapshot for 60 s")


def test_a_machine_that_takes_a_name_over_is_told_and_its_cards_are_not_lost(
    watched: Watched, make_gpu: MakeGpu
) -> None:
    watched.post(make_gpu(0), machine_id="one", boot_id="b", seq=1)
    other = make_gpu(0, uuid="GPU-other")
    assert watched.post(other, machine_id="two", boot_id="c", seq=1, wait=90) == [
        *("host_silent", "host_back", "machine_changed")
    ]


def test_an_event_of_the_mole_names_its_gpu_by_index_and_has_its_words(watched: Watched, make_gpu: MakeGpu) -> None:
    xid = {"at": NOW + 3, "kind": "XID", "code": 79, "text": "fallen off the bus: power it off and on"}
    for gpu in (make_gpu(0)["uuid"], "0_H100_000000", make_gpu(0)["pci_bus_id"], 0, "elsewhere", None):
        watched.post(make_gpu(0), events=[{**xid, "gpu": gpu, "at": NOW + watched.after}])
    assert [gpu for gpu, _ in reversed(watched.texts())] == [0, 0, 0, 0, "elsewhere", None]
    assert {(event.kind, event.code, event.text) for event in watched.log.newest()} == {("xid", 79, xid["text"])}
    watched.post(make_gpu(0), events=[{"kind": "xid", "code": 7}, {}])
    assert [event.text for event in watched.log.newest()[:2]] == ["event", "xid 7"]


def test_an_event_is_dated_by_the_server_where_the_clocks_differ(make_seen: MakeSeen) -> None:
    log = EventLog(Thresholds())
    for skew, at in ((3600.0, NOW + 3590), (59.0, NOW + 49), (-3600.0, NOW - 3610), (None, NOW - 10)):
        seen = read(
            {
                "hostname": "h",
                "timestamp": NOW,
                "cpu": {},
                "gpu": {},
                "events": [{"at": at, "kind": "xid", "code": int(skew or 1)}],
            },
            received_at=NOW,
            skew_seconds=skew,
        )
        log.witness(seen, None, None)
    assert [event.at - NOW for event in log.newest()] == [0, -10, -10, -10]


def test_what_the_mole_says_itself_is_not_said_again(watched: Watched, make_gpu: MakeGpu) -> None:
    watched.post(make_gpu(0), make_gpu(1), make_gpu(2))
    said = [{"kind": "gpu_lost", "gpu": 1, "text": "as the mole saw it"}]
    assert watched.post(make_gpu(0), events=said) == ["gpu_lost", "gpu_lost"]
    assert sorted(watched.texts(), key=str) == [
        *((1, "as the mole saw it"), (2, "missing: the snapshot does not hold it"))
    ]


def test_what_the_mole_says_a_little_later_takes_the_place_of_what_the_server_saw(
    watched: Watched, make_gpu: MakeGpu
) -> None:
    watched.post(make_gpu(0, throttle_reasons=THROTTLED))
    assert watched.post(make_gpu(0)) == ["throttling_ended"]
    told = [{"kind": "throttling_ended", "gpu": 0, "text": "after 3 min"}]
    watched.post(make_gpu(0), wait=60, events=told)
    assert watched.texts() == [(0, "after 3 min")]
    watched.post(make_gpu(0), wait=60, events=told)  # two equal ones of the mole are two
    assert watched.texts() == [(0, "after 3 min")] * 2
    watched.post(make_gpu(0, error="no answer"), wait=60, events=told)
    assert [event.kind for event in watched.log.newest()] == ["gpu_error", *["throttling_ended"] * 3]


def test_two_equal_events_of_a_snapshot_are_two_and_told_again_they_stay_two(
    watched: Watched, make_gpu: MakeGpu
) -> None:
    xid = {"at": NOW, "kind": "xid", "gpu": 0, "code": 31}
    watched.post(make_gpu(0), boot_id="b", seq=1, events=[xid, xid])
    watched.post(make_gpu(0), boot_id="b", seq=2, events=[xid])
    assert len(watched.log.newest()) == 2
    watched.post(make_gpu(0), boot_id="b", seq=2, events=[xid])
    watched.post(make_gpu(0), boot_id="b", seq=1, events=[xid, xid])
    assert len(watched.log.newest()) == 2


@pytest.mark.parametrize("skew", [None, 0.3, 86400.0])
def test_an_event_told_again_after_a_lost_answer_is_one(
    watched: Watched, make_gpu: MakeGpu, skew: float | None
) -> None:
    at = NOW + (skew or 0) - 7
    for number, late in enumerate((0.0, 0.4, 0.9)):
        events = [{"at": at, "kind": "xid", "gpu": 0, "code": 79}, {"at": at, "kind": "xid", "gpu": 0, "code": 31}]
        watched.post(
            make_gpu(0),
            boot_id="b",
            seq=number,
            skew_seconds=None if skew is None else skew + late,
            events=events,
        )
    assert {event.code for event in watched.log.newest()} == {31, 79}
    assert len(watched.log.newest()) == 2


def test_a_backlog_brings_what_happened_while_the_server_was_away(watched: Watched, make_gpu: MakeGpu) -> None:
    watched.post(make_gpu(0), boot_id="b", seq=9)
    late = [{"at": NOW - 100, "kind": "xid", "gpu": 0, "code": 48}]
    assert watched.post(make_gpu(0, error="lost"), boot_id="b", seq=3, events=late) == ["xid"]
    assert watched.post(make_gpu(0, error="lost"), boot_id="b", seq=3, events=late) == []


def test_the_newest_of_each_host_are_kept(watched: Watched, make_seen: MakeSeen) -> None:
    watched = Watched(make_seen, per_host=3, in_all=5)
    for number in range(5):
        watched.post(boot_id="b", seq=number, events=[{"kind": "n", "code": number}])
    assert [event.code for event in watched.log.newest(["gpu01"])] == [4, 3, 2]
    watched.post(boot_id="b", seq=0, events=[{"at": NOW + 5, "kind": "n", "code": 0}])
    assert [event.code for event in watched.log.newest(["gpu01"])] == [4, 3, 2]


def test_all_hosts_together_have_a_bound_and_the_loudest_pays(make_seen: MakeSeen) -> None:
    watched = Watched(make_seen, per_host=3, in_all=5)
    for number in range(3):
        watched.post(host="loud", events=[{"kind": "n", "code": number}])
    for number in range(3):
        watched.post(host=f"calm{number}", events=[{"kind": "n", "code": number}])
    assert [event.code for event in watched.log.newest(["loud"])] == [2, 1]
    assert len(watched.log.newest()) == 5


def test_events_are_asked_for_by_host_and_time_newest_first(watched: Watched) -> None:
    for host in ("a", "b"):
        watched.post(host=host, events=[{"kind": "n"}])
    assert [event.host for event in watched.log.newest()] == ["b", "a"]
    assert [event.host for event in watched.log.newest(["a", "c"])] == ["a"]
    assert [event.host for event in watched.log.newest(begin=NOW + 6)] == ["b"]
    assert [event.host for event in watched.log.newest(end=NOW + 5)] == ["a"]
    watched.log.forget(["b", "c"])
    assert [event.host for event in watched.log.newest()] == ["a"]


events = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "at": st.none() | st.floats(-1e300, 1e300),
            "kind": st.none() | st.text(max_size=50),
            "gpu": st.none() | st.integers(0, 65535) | st.text(max_size=9),
            "code": st.none() | st.integers(-(2**53), 2**53) | st.text(max_size=9) | st.just("79"),
            "text": st.none() | st.text(max_size=400),
        },
    ),
    max_size=12,
)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), events), max_size=12))
def test_whatever_moles_say_the_log_stays_in_order_and_in_its_bounds(posts: list[tuple[str, int, Any]]) -> None:
    log = EventLog(Thresholds(), per_host=6, in_all=10)
    cluster = Cluster(Thresholds(), witness=log.witness)
    for step, (host, seq, said) in enumerate(posts):
        snapshot = {"hostname": host, "timestamp": 0, "cpu": {}, "gpu": {}, "events": said, "boot_id": "b", "seq": seq}
        cluster.offer(read(snapshot, received_at=NOW + step))
        kept = log.newest()
        assert len(kept) <= 10
        assert all(len(log.newest([name])) <= 6 for name in "abc")
        assert [event.at for event in kept] == sorted([event.at for event in kept], reverse=True)


def test_a_renamed_host_is_said_with_its_former_name_and_a_clone_is_not(watched: Watched) -> None:
    watched.post(host="old", machine_id="m", boot_id="b", seq=1)
    assert watched.post(host="new", machine_id="m", boot_id="b", seq=2) == ["renamed"]
    (event,) = watched.log.newest()
    assert (event.host, "was called old: `cluster-dash-server forget old`" in event.text) == ("new", True)
    assert watched.post(host="new", machine_id="m", boot_id="b", seq=3) == []
    assert watched.post(host="clone", machine_id="m", boot_id="c", seq=1, wait=1) == []
    assert watched.post(host="rebooted", machine_id="m", boot_id="d", seq=1, wait=40) == ["renamed"]
    assert watched.post(host="elsewhere", machine_id="n", boot_id="e", seq=1, wait=40) == []
