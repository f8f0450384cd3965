"""What open hours have added up, a minute at a time: taken for the whole hour only where that is the same."""

import random
import threading
from collections.abc import Callable

import pytest

from cluster_dash_server.history.rollups import HOUR, Rolled, Share, roll
from cluster_dash_server.history.sqlite.opened import OpenHours
from cluster_dash_server.store import DOINGS, Figures

MakeRow = Callable[..., Figures]
BEGIN = 1_699_999_200.0
USERS = ("alice", "bob", None)


def some_rows(make_row: MakeRow, rng: random.Random, gap_seconds: tuple[float, ...], interval: float) -> list[Figures]:
    """Rows of an hour and the first of the next one, with gaps of all lengths between them."""
    rows, at = [], BEGIN + rng.choice((0.0, 3.5, 700.0))
    while at < BEGIN + HOUR:
        doing, user = rng.choice(DOINGS), rng.choice(USERS)
        rows.append(make_row("gpu01", at, gpus=2, util=rng.uniform(0, 100), doing=doing, user=user, interval=interval))
        at += rng.choice(gap_seconds)
    return [*rows, make_row("gpu01", BEGIN + HOUR + 2.0, interval=interval)]


def assert_alike(found: dict[tuple[str, str], Share], wanted: dict[tuple[str, str], Share]) -> None:
    assert found.keys() == wanted.keys()
    for key, share in wanted.items():
        assert found[key] == pytest.approx(share, abs=1e-6), key


@pytest.mark.parametrize("gap_seconds", [(15.0,), (14.9, 15.2, 22.0, 25.0, 44.0), (15.0, 50.0, 61.0, 80.0, 300.0)])
@pytest.mark.parametrize("seed", range(5))
def test_what_an_hour_has_given_minute_by_minute_is_what_its_rows_add_up_to(
    make_row: MakeRow, gap_seconds: tuple[float, ...], seed: int
) -> None:
    *rows, after = some_rows(make_row, random.Random(seed), gap_seconds, 15.0)
    opened, wanted = OpenHours(), roll(rows, BEGIN, BEGIN + HOUR)

    opened.take([*rows, after])

    assert_alike(opened.usage()[int(BEGIN)], wanted.by_user())
    assert_alike(opened.usage_of_hosts()[int(BEGIN), "gpu01"], wanted.by_user())
    assert opened.minutes(0.0).keys() == wanted.by_minute().keys()
    for key, share in wanted.by_minute().items():
        assert opened.minutes(0.0)[key] == pytest.approx(share, abs=1e-6), key


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_come_late_count_in_the_running_hour_once_it_is_added_up_anew(make_row: MakeRow, seed: int) -> None:
    rng = random.Random(seed)
    rows = [row for row in some_rows(make_row, rng, (15.0, 14.9, 22.0, 61.0), 15.0) if row.at < BEGIN + 1800]
    late = {id(row) for row in rng.sample(rows[:-1], 20)}  # a live post comes first, and calls the backlog
    in_order, opened, hour = OpenHours(), OpenHours(), int(BEGIN)
    in_order.take(rows)

    assert opened.take([row for row in rows if id(row) not in late]) == []
    assert opened.take([row for row in rows if id(row) in late]) == [("gpu01", hour)] * 20
    assert opened.minutes(0.0) != in_order.minutes(0.0)
    opened.anew("gpu01", hour, rows)

    for mine, wanted in ((opened.minutes(0.0), in_order.minutes(0.0)), (opened.usage(), in_order.usage())):
        assert mine.keys() == wanted.keys()
    assert_alike(opened.usage()[hour], in_order.usage()[hour])
    for key, share in in_order.minutes(0.0).items():
        assert opened.minutes(0.0)[key] == pytest.approx(share, abs=1e-6), key
    after = make_row("gpu01", BEGIN + 1805.0, interval=15.0)
    for each in (in_order, opened):
        each.take([after])
    assert_alike(opened.usage()[hour], in_order.usage()[hour])

    opened.close("gpu01", hour)
    assert (opened.minutes(0.0), opened.usage()) == ({}, {})


def test_rows_of_an_hour_before_wait_for_its_sealing(make_row: MakeRow) -> None:
    opened = OpenHours()
    opened.take([make_row("gpu01", BEGIN + HOUR + 15)])

    assert opened.take([make_row("gpu01", BEGIN + HOUR - 15)]) == []
    opened.anew("gpu01", int(BEGIN), [make_row("gpu01", BEGIN + HOUR - 15)])
    opened.anew("gpu02", int(BEGIN), [make_row("gpu02", BEGIN + HOUR - 15)])
    assert opened.usage() == {}


def test_hosts_without_gpus_give_nothing_and_end_no_hour_of_the_others(make_row: MakeRow) -> None:
    opened, hour = OpenHours(), int(BEGIN)
    names = [f"cpu{number:02}" for number in range(4)]
    bare = {name: [make_row(name, BEGIN + 60 * place, gpus=0, user=None) for place in range(10)] for name in names}
    with_gpus = [make_row("gpu01", BEGIN + 60 * place) for place in range(10)]
    opened.take([*with_gpus, *[row for rows in bare.values() for row in rows]])
    assert opened.usage()[hour] != {}

    opened.close(names[0], hour)
    opened.anew(names[1], hour, bare[names[1]])
    opened.close("gpu01", hour)
    for name in names[1:]:
        opened.close(name, hour)
    assert (opened.minutes(0.0), opened.usage()) == ({}, {})


def test_an_hour_ends_also_for_a_host_that_had_a_gpu_for_less_than_rounding_leaves(make_row: MakeRow) -> None:
    opened, hour = OpenHours(), int(BEGIN)
    for name in ("gpu01", "gpu02"):
        opened.take([make_row(name, BEGIN + HOUR - 2**-21), make_row(name, BEGIN + HOUR)])
    opened.take([make_row("gpu03", BEGIN, user="bob"), make_row("gpu03", BEGIN + HOUR)])

    for name in ("gpu01", "gpu02", "gpu03"):
        opened.close(name, hour)
    assert (opened.minutes(0.0), opened.usage()) == ({}, {})


def test_hosts_may_come_while_somebody_asks_what_each_host_has_given(
    make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, come = OpenHours(), list[threading.Thread]()
    by_user = Rolled.by_user

    def one_more_comes(rolled: Rolled) -> dict[tuple[str, str], Share]:
        come.append(threading.Thread(target=opened.take, args=([make_row(f"new{len(come)}", BEGIN)],)))
        come[-1].start()
        come[-1].join(0.05)  # it may have to wait until this one is told
        return by_user(rolled)

    for host in ("gpu01", "gpu02", "gpu03"):
        opened.take([make_row(host, BEGIN + 60 * minute) for minute in range(10)])
    with monkeypatch.context() as patch:
        patch.setattr(Rolled, "by_user", one_more_comes)

        assert {host for _, host in opened.usage_of_hosts()} == {"gpu01", "gpu02", "gpu03"}

    for each in come:
        each.join()
