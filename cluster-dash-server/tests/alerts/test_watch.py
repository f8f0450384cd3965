from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cluster_dash_server.alerts.book import BookError, Maintenance, Silence
from cluster_dash_server.alerts.disks import Before, remembered
from cluster_dash_server.alerts.rules import Rule
from cluster_dash_server.hostlist import expand
from cluster_dash_server.store import Series, SeriesQuery, StoreError

START = 1_700_000_000.0
Gpu = Callable[..., dict[str, Any]]
HOUR = 3600.0


def test_a_well_cluster_says_nothing(site: Any, make_gpu: Gpu) -> None:
    for name in expand("gpu[01-04]"):
        site.host(name, [make_gpu(0), make_gpu(1)])
    site.run(HOUR)
    assert site.told == []


def test_a_host_that_falls_silent_is_told_of_when_it_is_down_and_when_it_is_back(site: Any) -> None:
    for name in expand("gpu[01-04]"):
        site.host(name)
    site.run(300)
    site.silent.add("gpu02")
    site.run(1_200)
    assert site.titles == ["firing gpu02: silent"]
    assert 300 + 600 <= site.told[0].at <= 300 + 600 + 10
    site.silent.clear()
    site.run(1_200)
    assert site.titles == ["firing gpu02: silent", "resolved gpu02: silent"]
    assert 1_500 + 600 <= site.told[1].at <= 1_500 + 600 + 60


def test_an_alert_says_what_where_who_and_what_to_do(site: Any, make_gpu: Gpu) -> None:
    site.host("gpu01", [make_gpu(0), make_gpu(1, temperature_c=91.0, temperature_slowdown_c=90.0)])
    site.run(300)
    (alert,) = site.book.firing()
    facts = dict(alert.facts)
    assert alert.title == "gpu01 GPU 1: too hot"
    assert (alert.host, alert.gpu, alert.severity) == ("gpu01", 1, "warning")
    assert facts["what"] == "91 °C; it slows down at 90 °C"
    assert facts["where"] == "gpu01 GPU 1"
    assert facts["model"] == "H100 80G"
    assert "fan" in facts["likely cause"]
    assert facts["next step"]
    assert alert.labels["rule"] == "gpu-too-hot"


def test_a_figure_that_swings_about_its_threshold_is_one_alert(site: Any, make_gpu: Gpu) -> None:
    for step in range(40):
        warmth = 90.0 if step % 4 < 3 else 87.0
        site.host("gpu01", [make_gpu(0, temperature_c=warmth, temperature_slowdown_c=90.0)])
        site.run(60)
    assert site.titles == ["firing gpu01 GPU 0: too hot"]


def test_a_host_that_flaps_every_interval_for_an_hour_is_told_of_twice_at_most(site: Any, make_gpu: Gpu) -> None:
    for step in range(120):
        site.host("gpu01", [make_gpu(0, error="lost") if step % 2 else make_gpu(0)])
        site.run(30)
    site.host("gpu01", [make_gpu(0)])
    site.run(2 * HOUR)
    assert len(site.told) <= 2


def test_what_comes_back_again_and_again_is_told_ever_more_seldom(site: Any, make_gpu: Gpu) -> None:
    for _ in range(48):  # 10 minutes ill, 20 minutes well, for a day
        site.host("gpu01", [make_gpu(0, error="lost")])
        site.run(600, every=30.0)
        site.host("gpu01", [make_gpu(0)])
        site.run(1_200, every=30.0)
    assert 3 <= len(site.told) <= 6
    assert "in a row" in dict(site.book.firing()[0].facts)["again"]


@pytest.mark.parametrize("interval_seconds", [30.0, 60.0])
def test_500_of_1000_hosts_lost_at_once_are_two_messages(
    make_site: Callable[..., Any], interval_seconds: float
) -> None:
    site = make_site(interval_seconds=interval_seconds)
    names = expand("gpu[0001-1000]")
    for place, name in enumerate(names):
        site.host(name, [], general={"labels": {"rack": f"r{place // 4}"}})
    site.run(2 * interval_seconds, every=30.0)
    for name in names[:500]:  # they post last at their own moments of an interval
        site.now += interval_seconds / 500
        site.post(name)
    site.silent.update(names[:500])
    site.run(15 * 60, every=5.0)
    assert site.titles == ["firing 500 of 1000 hosts: silent"]
    assert len(site.book.firing()) == 1
    site.silent.clear()
    site.run(15 * 60, every=30.0)
    assert site.titles[1:] == ["resolved 500 of 1000 hosts: silent"]


def test_the_hosts_of_a_rack_are_one_message_that_names_it(site: Any) -> None:
    for place, name in enumerate(expand("gpu[01-40]")):
        site.host(name, [], general={"labels": {"rack": f"r{place // 4}"}})
    site.run(300)
    site.silent.update(expand("gpu[05-08]"))
    site.run(900)
    assert site.titles == ["firing 4 hosts of rack r1: silent"]
    (alert,) = site.book.firing()
    assert dict(alert.facts)["where"] == "gpu[05-08]"
    assert alert.labels["rack"] == "r1"


def test_the_gpus_of_a_host_are_one_message(site: Any, make_gpu: Gpu) -> None:
    site.host("gpu01", [make_gpu(index, error="lost") for index in range(3)])
    site.run(300)
    assert site.titles == ["firing gpu01 GPUs 0, 1, 2: in error"]


def test_each_user_has_an_alert_of_their_own(site: Any, make_gpu: Gpu) -> None:
    def held(index: int, *users: str) -> dict[str, Any]:
        return make_gpu(
            index,
            used_mem=40_000.0,
            users={user: {"1": {"mem": 1.0, "time": 1.0, "name": "python"}} for user in users},
        )

    site.host("gpu01", [held(0, "alice"), held(1, "alice"), held(2, "bob")])
    site.host("gpu02", [held(0, "alice"), held(1, "alice", "bob")])
    site.run(2 * HOUR + 60)
    alerts = {alert.user: alert for alert in site.book.firing()}
    assert sorted(alerts) == ["alice", "bob"]
    assert len(site.told) == 2
    assert alerts["alice"].title == "alice, 4 GPUs on 2 hosts: held without work"
    assert alerts["bob"].labels["user"] == "bob"


def test_a_restart_says_nothing(site: Any, make_gpu: Gpu) -> None:
    for name in expand("gpu[01-04]"):
        site.host(name, [make_gpu(0)])
    site.host("gpu05", [make_gpu(0, error="lost")])
    site.run(600)
    told = list(site.told)
    assert len(told) == 1
    site.now += 3 * HOUR  # the server is off: nobody posts
    site.restart()
    site.run(HOUR)
    assert site.told == told
    assert len(site.book.firing()) == 1


def test_a_host_that_does_not_come_back_after_a_restart_is_told_of_later(site: Any) -> None:
    for name in expand("gpu[01-04]"):
        site.host(name)
    site.run(600)
    site.now += 3 * HOUR
    site.restart()
    site.silent.add("gpu03")
    began = site.now
    site.run(90)
    assert site.told == []
    site.run(HOUR)
    assert site.titles == ["firing gpu03: silent"]
    assert site.told[0].at >= began + 90 - 1_700_000_000.0


def test_a_server_that_was_held_up_does_not_take_all_hosts_for_down(site: Any) -> None:
    for name in expand("gpu[01-04]"):
        site.host(name)
    site.run(600)
    site.now += 2 * HOUR  # suspended
    site.round()
    site.run(600)
    assert site.told == []


def test_a_host_in_maintenance_raises_nothing_and_is_told_of_after_it(site: Any) -> None:
    for name in expand("gpu[01-04]"):
        site.host(name)
    site.run(600)
    site.book.maintain(
        Maintenance(hosts="gpu[01-02]", by="nora", reason="", begins_at=site.now, ends_at=site.now + HOUR)
    )
    site.silent.update(("gpu01", "gpu03"))
    site.run(HOUR - 60)
    assert site.titles == ["firing gpu03: silent"]
    site.run(300)
    assert site.titles == ["firing gpu03: silent", "firing gpu01: silent"]


@pytest.mark.parametrize("name", ["gpu01", "gpu[1"])
def test_maintenance_ends_what_is_told_of_a_host_and_says_why(site: Any, make_gpu: Gpu, name: str) -> None:
    site.host(name, [make_gpu(0, error="lost")])
    site.run(300)
    site.book.maintain(
        Maintenance(hosts=name, by="nora", reason="new card", begins_at=site.now, ends_at=site.now + HOUR)
    )
    site.run(60)
    assert site.titles == [f"firing {name} GPU 0: in error", f"resolved {name} GPU 0: in error"]
    (ended,) = site.book.history(0, site.now, 10)
    assert dict(ended.facts)["why it ended"] == "maintenance, by nora: new card"


def test_a_mole_that_was_stopped_on_purpose_raises_nothing_until_it_posts_again(site: Any) -> None:
    for name in expand("gpu[01-04]"):
        site.host(name)
    site.run(300)
    site.post("gpu01", stopping=True)
    site.silent.add("gpu01")
    site.run(2 * HOUR)
    assert site.told == []
    site.silent.clear()
    site.run(300)
    site.silent.add("gpu01")
    site.run(HOUR)
    assert site.titles == ["firing gpu01: silent"]


def test_what_nobody_knows_neither_begins_nor_ends(site: Any, make_gpu: Gpu) -> None:
    for name in expand("gpu[02-06]"):
        site.host(name)
    site.host("gpu01", [make_gpu(0, temperature_c=91.0, temperature_slowdown_c=90.0)])
    site.run(300)
    site.host("gpu01", [make_gpu(0, temperature_c=None, temperature_slowdown_c=90.0)])
    site.run(HOUR)
    site.silent.add("gpu01")
    site.run(HOUR)
    assert site.titles == ["firing gpu01 GPU 0: too hot", "firing gpu01: silent"]


def test_an_xid_is_told_at_once_by_its_class_and_ends_after_an_hour(site: Any, make_gpu: Gpu) -> None:
    site.host("gpu01", [make_gpu(0), make_gpu(1)])
    site.run(300)
    site.event("gpu01", kind="xid", gpu=1, code=79, text="Xid 79: the GPU has fallen off the bus: reboot")
    site.event("gpu01", kind="xid", gpu=0, code=31, text="Xid 31: the program used memory that is not its own")
    site.run(60)
    assert sorted(site.titles) == ["firing gpu01 GPU 0: Xid of a program", "firing gpu01 GPU 1: fatal Xid"]
    assert {dict(alert.facts)["what"][:6] for alert in site.book.firing()} == {"Xid 79", "Xid 31"}
    site.run(HOUR)
    assert len(site.told) == 4
    assert site.book.firing() == []


def test_an_xid_is_not_told_again_after_a_restart(site: Any, make_gpu: Gpu) -> None:
    site.host("gpu01", [make_gpu(0)])
    site.run(60)
    site.event("gpu01", kind="xid", gpu=0, code=79, text="Xid 79")
    site.run(60)
    events = site.events.newest()
    site.restart()
    site.events.begin_with([], site.now)
    site.event("gpu01", kind="xid", gpu=0, code=79, text="Xid 79", at=events[0].at)
    site.run(600)
    assert site.titles == ["firing gpu01 GPU 0: fatal Xid"]


def test_a_silence_tells_nobody_and_its_end_tells_of_what_goes_on(site: Any, make_gpu: Gpu) -> None:
    site.host("gpu01", [make_gpu(0, error="lost")])
    site.host("gpu02", [make_gpu(0, error="lost")])
    site.book.silence(
        Silence(
            id=None,
            filter="host:gpu01 rule:gpu-error",
            by="nora",
            reason="card is ordered",
            begins_at=site.now,
            ends_at=site.now + HOUR,
        )
    )
    site.run(HOUR - 30)
    assert site.titles == ["firing gpu02 GPU 0: in error"]
    silenced = {alert.host: alert.silenced_until for alert in site.book.firing()}
    assert silenced == {"gpu01": 1_700_000_000.0 + HOUR, "gpu02": None}
    site.run(60)
    assert site.titles == ["firing gpu02 GPU 0: in error", "firing gpu01 GPU 0: in error"]


@pytest.mark.parametrize("text", ["", "rule:", "host:gpu01 colour:red", "rule:gpu-error mem>"])
def test_a_silence_that_cannot_be_understood_silences_nothing(site: Any, make_gpu: Gpu, text: str) -> None:
    site.host("gpu01", [make_gpu(0, error="lost")])
    site.book.silence(Silence(id=None, filter=text, by="nora", reason="", begins_at=site.now, ends_at=site.now + HOUR))
    site.run(300)
    assert site.titles == ["firing gpu01 GPU 0: in error"]


def test_an_alert_and_its_end_that_both_wait_are_told_as_one(site: Any, make_gpu: Gpu) -> None:
    site.receiver_is_off = True
    site.host("gpu01", [make_gpu(0, error="lost")])
    site.run(300)
    site.host("gpu01", [make_gpu(0)])
    site.run(HOUR)
    site.receiver_is_off = False
    site.run(60)
    assert site.titles == ["resolved gpu01 GPU 0: in error"]


def test_what_holds_of_the_server_itself_is_told(site: Any) -> None:
    site.said = [("history_not_written", None, "no space left on device")]
    site.run(300)
    assert site.titles == ["firing this server: history is not written"]
    assert dict(site.book.firing()[0].facts)["what"] == "no space left on device"
    site.said = []
    site.run(900)
    assert site.titles[1:] == ["resolved this server: history is not written"]


def test_a_disk_that_fills_is_told_of_before_it_is_full(site: Any) -> None:
    for step in range(24):
        used = 60.0 + step  # 2 % an hour: full in 20 hours less
        site.host("gpu01", disk={"/data": {"mount_point": "/data", "percent_used": used}})
        site.run(1_800, every=30.0)
    assert site.titles == ["firing gpu01: disk full within a day"]


def filling(site: Any, percent: float) -> None:
    disks = {
        "/": {"mount_point": "/", "percent_used": 20.0},
        "/data": {"mount_point": "/data", "percent_used": percent},
    }
    site.host("gpu01", disk=disks)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (
            {"gpu01": Before(START - 4 * HOUR, 70.0)},
            ["firing gpu01: disk full within a day"],
        ),  # 20 % in 4 h: 2 h are left
        ({"gpu01": Before(START - 4 * HOUR, 90.0)}, []),
        ({"gpu01": Before(START + 4 * HOUR, 70.0)}, []),  # a clock that was set back
        ({"gpu02": Before(START - 4 * HOUR, 70.0)}, []),
        ({}, []),
    ],
)
def test_a_disk_that_fills_is_told_of_soon_after_a_start_where_history_knows_how_it_was(
    site: Any, before: dict[str, Before], told: list[str]
) -> None:
    site.disks_before = before
    filling(site, 90.0)
    site.run(20 * 60, every=30.0)
    assert site.titles == told


def test_history_is_asked_for_disks_once_and_only_where_a_rule_wants_to_know(
    make_site: Callable[..., Any], shipped: Sequence[Rule]
) -> None:
    for rules, expected in ((shipped, 1), ([rule for rule in shipped if rule.name != "disk-full-soon"], 0)):
        asked: list[float] = []
        site = make_site(rules=rules)
        site.watch._disks_before = lambda now, asked=asked: asked.append(now) or {}
        filling(site, 90.0)
        site.run(60)
        assert len(asked) == expected


def test_history_says_the_oldest_it_knows_of_the_hours_that_disks_are_judged_by() -> None:
    asked: list[SeriesQuery] = []

    def series(ask: SeriesQuery) -> list[Series]:
        asked.append(ask)
        return [
            Series(host=host, step_seconds=HOUR, t=[START - 6 * HOUR, START - 5 * HOUR], min=mean, mean=mean, max=mean)
            for host, mean in (("gpu01", [None, 71.0]), ("gpu02", [60.0, 61.0]), ("gpu03", [None, None]))
        ]

    assert remembered(series, START) == {
        "gpu01": Before(START - 4.5 * HOUR, 71.0),
        "gpu02": Before(START - 5.5 * HOUR, 60.0),
    }
    assert (asked[0].metric, asked[0].by, asked[0].end) == ("disk_percent", "host", START - HOUR)

    def broken(ask: SeriesQuery) -> list[Series]:
        raise StoreError("no history is kept here")

    assert remembered(broken, START) == {}


def test_what_has_to_last_yet_is_said_to_come_and_no_longer_once_it_is_told(site: Any, make_gpu: Gpu) -> None:
    site.host("gpu01", [make_gpu(0, error="lost"), make_gpu(1, error="lost")])
    site.run(30)
    (coming,) = site.watch.coming()
    assert (coming.title, coming.host, coming.figure) == ("gpu01 GPUs 0, 1: in error", "gpu01", "lost")
    assert coming.due_at - coming.since == 60.0
    assert START < coming.since <= site.now
    site.run(60)
    assert site.titles == ["firing gpu01 GPUs 0, 1: in error"]
    assert site.watch.coming() == []
    site.host("gpu01", [make_gpu(0), make_gpu(1)])
    site.run(60)
    assert site.watch.coming() == []  # it goes; that is not to come


def test_a_forgotten_host_ends_its_alerts(site: Any, make_gpu: Gpu) -> None:
    site.host("gpu01", [make_gpu(0, error="lost")])
    site.host("gpu02")
    site.run(1_200)
    site.cluster.forget(["gpu01"])
    del site.hosts["gpu01"]
    site.run(60)
    assert site.titles == ["firing gpu01 GPU 0: in error", "resolved gpu01 GPU 0: in error"]


def test_a_pod_that_ends_is_no_alert(site: Any) -> None:
    site.host("gpu02")
    site.host("pod-1", general={"ephemeral": True})
    site.run(300)
    site.silent.add("pod-1")
    site.run(2 * HOUR)
    assert site.told == []


def test_other_rules_are_taken_up_in_the_next_round(site: Any, make_gpu: Gpu) -> None:
    site.host("gpu01", [make_gpu(0, error="lost")])
    site.run(300)
    site.rules = [rule for rule in site.rules if rule.name != "gpu-error"]
    site.run(10)
    assert len(site.told) == 1
    site.watch.reload()
    site.run(10)
    assert site.titles == ["firing gpu01 GPU 0: in error", "resolved gpu01 GPU 0: in error"]


def test_what_could_not_be_kept_comes_again_in_the_next_round(
    site: Any, make_gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.host("gpu01", [make_gpu(0, error="lost")])
    site.run(30)

    def full(transitions: object, fence: int) -> None:
        raise BookError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(site.book, "commit", full)
        with pytest.raises(BookError):
            site.run(300)
    site.run(10)
    assert site.titles == ["firing gpu01 GPU 0: in error"]


def test_a_name_that_is_taken_out_of_the_book_does_not_come_back_from_memory(site: Any, make_gpu: Gpu) -> None:
    users = {"alice": {"1": {"mem": 1.0, "time": 1.0, "name": "python"}}}
    site.host("gpu01", [make_gpu(0, used_mem=40_000.0, users=users)])
    site.run(2 * HOUR + 60)
    assert site.book.firing()[0].user == "alice"
    site.host("gpu01", [make_gpu(0)])
    site.post("gpu01")
    site.watch.between_rounds(lambda: site.book.forget_user("alice"))
    site.run(HOUR)
    assert site.book.firing() == []
    assert "alice" not in str(site.book.history(0, site.now, 10))


def test_a_silence_of_one_user_leaves_the_other_of_a_shared_gpu(site: Any, make_gpu: Gpu) -> None:
    users = {user: {"1": {"mem": 1.0, "time": 1.0, "name": "python"}} for user in ("alice", "bob")}
    site.host("gpu01", [make_gpu(0, used_mem=40_000.0, users=users)])
    site.book.silence(
        Silence(
            id=None,
            filter="rule:gpu-held user:alice",
            by="alice",
            reason="needed",
            begins_at=site.now,
            ends_at=site.now + 24 * HOUR,
        )
    )
    site.run(2 * HOUR + 60)
    assert site.titles == ["firing bob, gpu01 GPU 0: held without work"]
