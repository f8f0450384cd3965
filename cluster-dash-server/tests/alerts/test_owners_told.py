"""Owners of idle GPUs, from their posts to what they and the administrators are told."""

from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.receivers import AlertSettings
from cluster_dash_server.owners import Owners

Gpu = Callable[..., dict[str, Any]]
HOUR = 3600.0
ALICE, BOB = "mailto:alice@lab.example", "mailto:bob@lab.example"


def held(make_gpu: Gpu, index: int, user: str) -> dict[str, Any]:
    return make_gpu(index, used_mem=40_000.0, users={user: {"42": {"mem": 40_000.0, "name": "python3"}}})


def switched_on(site: Any) -> Owners:
    settings = AlertSettings(
        owner_notices=True, owner_address="{user}@lab.example", owner_grace_minutes=60, owner_extension_hours=4
    )
    owners = Owners(settings, lambda: b"k" * 32, site.book, lambda: site.now, ZoneInfo("UTC"), "https://dash.lab")
    site.owners = owners.route
    return owners


def told(site: Any, receiver: str) -> list[Notice]:
    return [notice for name, notice in site.notices if name == receiver]


def test_each_owner_is_told_of_their_own_alone_and_the_receivers_an_hour_later(site: Any, make_gpu: Gpu) -> None:
    switched_on(site)
    site.host("gpu01", [held(make_gpu, 0, "alice"), make_gpu(1)])
    site.host("gpu02", [held(make_gpu, 0, "bob"), held(make_gpu, 1, "bob")])
    site.run(2 * HOUR + 600, every=30)
    assert {name for name, _ in site.notices} == {ALICE, BOB}
    (alice,), (bob,) = told(site, ALICE), told(site, BOB)
    assert ("gpu01" in str(alice.facts), "gpu02" in str(alice), "bob" in str(alice)) == (True, False, False)
    assert ("gpu02" in str(bob.facts), "gpu01" in str(bob), "alice" in str(bob)) == (True, False, False)
    assert dict(alice.facts)["next step"].startswith("end the program")
    site.run(HOUR, every=30)
    assert sorted(notice.labels["user"] for notice in told(site, "ops")) == ["alice", "bob"]
    assert dict(told(site, "ops")[0].facts)["next step"].startswith("ask its user")
    assert (len(told(site, ALICE)), len(told(site, BOB))) == (1, 1)


def test_who_else_is_on_a_gpu_is_no_word_in_a_mail(site: Any, make_gpu: Gpu) -> None:
    switched_on(site)
    shared = held(make_gpu, 0, "alice")
    site.host("gpu01", [{**shared, "users": {**shared["users"], "mallory": shared["users"]["alice"]}}])
    site.run(2 * HOUR + 600, every=30)
    (alice,) = told(site, ALICE)
    assert "mallory" not in str(alice)
    assert "alice" in str(alice)


def test_who_frees_their_gpus_in_the_grace_is_told_so_and_nobody_else(site: Any, make_gpu: Gpu) -> None:
    switched_on(site)
    site.host("gpu01", [held(make_gpu, 0, "alice")])
    site.run(2 * HOUR + 600, every=30)
    site.host("gpu01", [make_gpu(0)])
    site.run(2 * HOUR, every=30)
    assert [(name, notice.kind) for name, notice in site.notices] == [(ALICE, "firing"), (ALICE, "resolved")]


def test_the_link_keeps_the_receivers_out_of_it_until_its_time_is_over_and_no_longer(site: Any, make_gpu: Gpu) -> None:
    owners = switched_on(site)
    site.host("gpu01", [held(make_gpu, 0, "alice")])
    site.host("gpu02", [held(make_gpu, 0, "bob")])
    site.run(2 * HOUR + 600, every=30)
    ((_, link),) = told(site, ALICE)[0].actions
    token = link.rpartition("/")[2]
    found = owners.find(token)
    assert found is not None
    owners.extend(found[0])
    site.run(3 * HOUR, every=30)
    assert [notice.labels["user"] for notice in told(site, "ops")] == ["bob"], "one link is of no use to another"
    assert len(told(site, ALICE)) == 1
    site.run(HOUR, every=30)
    assert sorted(notice.labels["user"] for notice in told(site, "ops")) == ["alice", "bob"]
    assert owners.find(token) is None
    assert told(site, ALICE)[-1].actions == (), "it extends once"
