"""Waste: who held GPUs and what came of it, when, and whether more are needed."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.store import SeriesQuery, UsageQuery
from cluster_dash_server.waste import Report, Supply, advice, report
from cluster_dash_server.when import Span, zone
from tests.past import A100, Card, busy, figures, idle

MONDAY = datetime(2026, 3, 2, tzinfo=UTC).timestamp()
HOUR, DAY = 3600, 86_400
GROUPS = {"alice": "vision", "bob": "vision", "carol": "speech"}


def kept(rows: list[tuple[str, float, float, list[Card]]]) -> MemoryStore:
    """Keep what hosts did: (host, from which hour on, for how many hours, its GPUs), a snapshot every ten minutes."""
    store = MemoryStore(lambda: MONDAY + 100 * DAY)
    for host, begin, hours, cards in rows:
        for step in range(int(hours * 6)):
            store.append(figures(host, MONDAY + begin * HOUR + step * 600, cards, interval_seconds=600))
    return store


def reported(store: MemoryStore, hours: float = 24, in_zone: str = "UTC") -> Report:
    span = Span(begin=MONDAY, end=MONDAY + hours * HOUR, is_relative=False)
    return report(store, store, span, zone(in_zone), GROUPS.get)


def test_gpu_hours_are_told_by_user_group_host_and_model() -> None:
    found = reported(
        kept(
            [
                ("gpu01", 0, 4, [busy("alice"), idle("bob"), Card()]),
                ("gpu02", 0, 2, [idle("carol", model=A100), busy("dave", model=A100)]),
            ]
        )
    )
    told = {
        by: [(line.name, round(line.held_seconds / HOUR), round(line.busy_seconds / HOUR)) for line in lines]
        for by, lines in found.lines.items()
    }
    assert told == {
        "user": [("bob", 4, 0), ("carol", 2, 0), ("alice", 4, 4), ("dave", 2, 2)],
        "group": [("vision", 8, 4), ("speech", 2, 0), ("unknown", 2, 2)],
        "host": [("gpu01", 8, 4), ("gpu02", 4, 2)],
        "model": [("H100 80G", 8, 4), ("A100 40G", 4, 2)],
    }
    assert [round(found.total.held_seconds / HOUR), round(found.total.idle_seconds / HOUR)] == [12, 6]
    assert found.total.idle_share == pytest.approx(0.5, abs=0.02)


def test_what_slurm_gave_away_and_power_that_no_card_tells_are_unknown_not_0() -> None:
    store = kept([("gpu01", 0, 2, [busy("alice"), Card()])])
    (whole,) = store.usage(UsageQuery(begin=MONDAY, end=MONDAY + DAY, by=()))
    assert whole.allocated_seconds is None
    asked = SeriesQuery(metric="power_w", begin=MONDAY, end=MONDAY + 2 * HOUR, by="cluster", step_seconds=HOUR)
    assert [value for line in store.series(asked) for value in line.mean] == [None] * 3
    (held,) = store.series(replace(asked, metric="busy_gpus"))
    assert held.mean[0] is not None


def test_the_longest_idle_stretch_is_told_with_who_and_where_not_the_mean() -> None:
    store = kept(
        [
            ("gpu01", 0, 1, [busy("alice"), idle("bob")]),
            ("gpu01", 1, 3, [idle("alice"), busy("bob")]),
            ("gpu01", 4, 1, [busy("alice"), idle("bob")]),
        ]
    )
    found = reported(store)
    of_user = {line.name: line.longest for line in found.lines["user"]}
    assert {name: (round(each.seconds / HOUR), each.gpu) for name, each in of_user.items() if each} == {
        "alice": (3, 0),
        "bob": (1, 1),
    }
    assert (found.total.longest, found.lines["group"][0].longest) == (of_user["alice"], of_user["alice"])
    assert found.lines["host"][0].longest == of_user["alice"]


def test_a_gpu_that_two_share_counts_for_both_and_once_in_all() -> None:
    store = MemoryStore(lambda: MONDAY + DAY)
    for step in range(12):
        row = figures("gpu01", MONDAY + step * 300, [busy("alice")], interval_seconds=300)
        shared = figures("gpu01", MONDAY + step * 300, [busy("bob")], interval_seconds=300)
        row.holders += shared.holders
        row.holder_mem += shared.holder_mem
        store.append(row)
    found = reported(store)
    assert [round(line.held_seconds / HOUR, 1) for line in found.lines["user"]] == [1.0, 1.0]
    assert round(found.lines["group"][0].held_seconds / HOUR, 1) == 2.0
    assert round(found.total.held_seconds / HOUR, 1) == 1.0


def test_the_hours_of_the_week_are_those_of_the_sites_zone() -> None:
    store = kept([("gpu01", 0, 2, [idle("bob"), busy("alice")]), ("gpu01", 7 * 24, 1, [Card(), busy("alice")])])
    in_utc, in_kolkata = (reported(store, 8 * 24, name).week for name in ("UTC", "Asia/Kolkata"))
    monday = [
        cell and (round(cell.seen_gpus), round(cell.held_gpus, 1), round(cell.idle_gpus, 1)) for cell in in_utc[0]
    ]
    assert monday[:3] == [(2, 1.5, 0.5), (2, 2.0, 1.0), None]
    assert [cell is not None for cell in in_kolkata[0][4:8]] == [False, True, True, False]  # 5 h 30 min ahead
    assert all(cell is None for day in in_utc[1:] for cell in day)


def test_supply_tells_the_peak_and_how_often_none_was_free() -> None:
    store = kept(
        [
            ("gpu01", 0, 12, [busy("alice"), busy("bob")]),
            ("gpu01", 12, 12, [busy("alice"), Card()]),
            ("gpu02", 0, 24, [busy("alice", model=A100), *[Card(model=A100)] * 3]),
        ]
    )
    first, second = reported(store).supply
    assert (first.model, round(first.gpus), round(first.peak), first.peak_at) == ("H100 80G", 2, 2, MONDAY)
    assert first.none_free_share == pytest.approx(0.5, abs=0.02)
    assert (second.model, round(second.gpus), second.none_free_share) == ("A100 40G", 4, 0)
    assert second.free_min == pytest.approx(3)


def supply(**fields: float | None) -> Supply:
    fully = {"gpus": 64, "held_mean": 40, "idle_mean": 9, "peak": 64, "peak_at": 0, "free_min": 0}
    return Supply(model="H100 80G", **{**fully, "none_free_share": 0.31, "idle_when_full": 12.2, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "none of 64 was free for 31 % of the time, while 12 were held without work. Free those before you buy"),
        (
            {"idle_when_full": 0.2},
            "none of 64 was free for 31 % of the time, and those held worked. More of them would be used.",
        ),
        (
            {"none_free_share": 0.01, "peak": 63},
            "at most 63 of 64 were held at once, and some were free nearly always. Enough for now.",
        ),
        ({"none_free_share": 0.0, "peak": 20}, "at most 20 of 64 were held at once. There are enough."),
    ],
)
def test_what_to_buy_is_said_in_a_sentence(fields: dict[str, float | None], says: str) -> None:
    assert advice([supply(**fields)])[0].startswith(f"H100 80G: {says}")


def test_a_past_without_a_snapshot_tells_nothing() -> None:
    found = reported(kept([]))
    assert (found.total.held_seconds, found.total.idle_share, found.supply, found.free) == (0, None, [], None)
    assert all(not lines for lines in found.lines.values())


def test_an_hour_of_the_week_is_told_for_the_time_that_was_measured() -> None:
    store = kept([("gpu01", 7 * 24 * week + 10.5, 2, [busy("alice"), idle("bob"), Card()]) for week in range(12)])
    found = reported(store, 12 * 7 * 24)
    told = [found.week[0][hour] for hour in range(9, 14)]
    assert told[0] is None
    for each in told[1:4]:
        assert each is not None
        assert [each.seen_gpus, each.held_gpus, each.idle_gpus] == pytest.approx([3, 2, 1], abs=0.01)


def test_any_split_of_the_time_adds_up_to_the_same_hours() -> None:
    store = kept([("gpu01", 0, 20, [busy("alice"), idle("bob")]), ("gpu02", 5, 13, [idle("alice")])])

    def held(begin: int, end: int) -> dict[str, float]:
        span = Span(begin=MONDAY + begin * HOUR, end=MONDAY + end * HOUR, is_relative=False)
        found = report(store, store, span, UTC, GROUPS.get)
        return {line.name: line.held_seconds for line in found.lines["user"]}

    whole, parts = held(0, 20), [held(0, 7), held(7, 8), held(8, 20)]
    assert {name: sum(part.get(name, 0) for part in parts) for name in whole} == pytest.approx(whole)
