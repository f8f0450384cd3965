"""What one of several replicas does that evaluates only while it leads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster_dash_server.alerts.book import BookError, NoLongerLeads, Transition
from cluster_dash_server.alerts.rules import RulesError

Gpu = Callable[..., dict[str, Any]]


def hot(make_gpu: Gpu) -> dict[str, Any]:
    return make_gpu(0, temperature_c=91.0, temperature_slowdown_c=90.0)


def test_a_replica_that_follows_raises_nothing(site: Any, make_gpu: Gpu) -> None:
    site.fence = None
    site.host("gpu01", [hot(make_gpu)])
    site.run(1_800)
    assert site.told == []
    assert site.watch.evaluated_at == site.now  # it follows, and is well


def test_what_a_replica_saw_while_it_followed_counts_when_it_leads(site: Any, make_gpu: Gpu) -> None:
    site.fence = None
    site.host("gpu01", [hot(make_gpu)])
    site.run(600)
    site.fence = 7
    site.round()
    assert site.titles == ["firing gpu01 GPU 0: too hot"]
    (alert,) = site.book.firing()
    assert alert.began_at < site.now - 500


def test_who_leads_after_another_goes_on_with_its_alerts(make_site: Callable[..., Any], make_gpu: Gpu) -> None:
    one, two = make_site(), make_site()  # one book
    one.fence, two.fence = 1, None
    for site in (one, two):
        site.host("gpu01", [hot(make_gpu)])
        site.run(600)
    assert (one.titles, two.titles) == (["firing gpu01 GPU 0: too hot"], [])
    one.fence, two.fence = None, 2
    for site in (one, two):
        site.host("gpu01", [make_gpu(0, temperature_c=40.0, temperature_slowdown_c=90.0)])
        site.run(1_800)
    assert (one.titles, two.titles) == (
        ["firing gpu01 GPU 0: too hot"],
        ["resolved gpu01 GPU 0: too hot"],
    )
    one.fence, two.fence = 3, None  # it has in mind that the alert goes on, and reads that it ended
    one.run(60)
    assert one.book.firing() == []
    assert len(one.told) == 1


def test_where_it_is_not_known_what_was_kept_the_book_is_asked(site: Any, make_gpu: Gpu) -> None:
    site.fence = 1
    site.host("gpu01", [hot(make_gpu)])
    commit = site.book.commit
    breaks = [True]

    def breaks_off(transitions: list[Transition], fence: int) -> None:
        commit(transitions, fence)
        if breaks.pop() if breaks else False:
            raise BookError("the connection broke at the very end")

    site.book.commit = breaks_off
    with pytest.raises(BookError):
        site.run(600)
    site.run(600)
    assert site.titles == ["firing gpu01 GPU 0: too hot"]
    assert len(site.book.firing()) == 1


def test_what_is_refused_is_judged_anew_from_what_is_kept(site: Any, make_gpu: Gpu) -> None:
    site.fence = 1
    site.host("gpu01", [hot(make_gpu)])
    site.run(600)
    (alert,) = site.book.firing()
    site.book.commit(
        [Transition(kind="changed", alert=replace(alert, title="as another wrote it"), at=site.now, memory="{}")]
    )
    commit = site.book.commit
    refused = []

    def refuse(transitions: list[Transition], fence: int) -> None:
        if fence == 1:
            refused.append(fence)
            raise NoLongerLeads("another replica evaluates alerts")
        commit(transitions, fence)

    site.book.commit = refuse
    site.host("gpu01", [make_gpu(0, temperature_c=40.0, temperature_slowdown_c=90.0)])
    with pytest.raises(NoLongerLeads):
        site.run(1_800)
    site.fence = 2
    site.run(1_800)
    assert refused
    assert site.titles[1:] == ["resolved as another wrote it"]


def test_only_a_round_that_was_kept_is_noted_as_done(site: Any, make_gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[float] = []
    monkeypatch.setattr(site.watch, "_done", lambda: done.append(site.now))
    site.fence = 1
    site.round()
    assert done == [site.now]
    site.host("gpu01", [hot(make_gpu)])

    def refuse(transitions: list[Transition], fence: int) -> None:
        raise BookError("this replica may not write")

    monkeypatch.setattr(site.book, "commit", refuse)
    with pytest.raises(BookError):
        site.run(600)
    rounds = len(done)
    with pytest.raises(BookError):
        site.round()
    assert len(done) == rounds


def test_rules_are_read_anew_with_each_new_fence(site: Any, make_gpu: Gpu) -> None:
    site.fence = 1
    site.host("gpu01", [hot(make_gpu)])
    site.run(60)
    site.rules, site.fence = (), 2
    site.run(600)
    assert site.told == []


def test_rules_that_are_wrong_by_then_leave_those_from_before(
    site: Any, make_gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fence = 1
    site.host("gpu01", [hot(make_gpu)])
    site.run(60)

    def wrong() -> None:
        raise RulesError("no such rule")

    monkeypatch.setattr(site.watch, "_read_rules", wrong)
    site.fence = 2
    site.run(600)
    assert site.titles == ["firing gpu01 GPU 0: too hot"]
