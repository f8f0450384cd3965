"""Every kind of store passes the same tests; the one in memory, the plainest, is what the others are compared with."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.history.rollups import DAY, HOUR
from cluster_dash_server.history.sqlite.store import Keep, SqliteStore
from cluster_dash_server.store import (
    CLUSTER_METRICS,
    By,
    Event,
    EventQuery,
    Figures,
    KeptEvent,
    Series,
    SeriesQuery,
    StoreError,
    Usage,
    UsageKey,
    UsageQuery,
    Use,
    UseQuery,
)
from tests.clocks import StillClock

BEGIN = 1_699_999_200.0
"""The start of an hour, two hours before the end of a day of UTC."""
KEEP = Keep(
    rows_seconds=7 * DAY, minutes_seconds=90 * DAY, hours_seconds=730 * DAY, users_seconds=400 * DAY, file_bytes=2**30
)
MakeRow = Callable[..., Figures]
MakeFleet = Callable[[int, int, float, float], list[Figures]]


@pytest.fixture
def moving() -> StillClock:
    return StillClock(BEGIN + 6 * HOUR)


Kind = MemoryStore | SqliteStore


@pytest.fixture(params=["memory", "sqlite", "sqlite, sealed"])
def store(request: pytest.FixtureRequest, tmp_path: Path, moving: StillClock) -> Iterator[Kind]:
    if request.param == "memory":
        yield MemoryStore(moving)
        return
    store = SqliteStore(tmp_path, clock=moving, keep=KEEP)
    if request.param == "sqlite, sealed":
        store.flush, plain = store.seal_all, store.flush  # type: ignore[method-assign]

        def sealed() -> None:
            store.flush = plain  # type: ignore[method-assign]
            store.seal_all()
            store.flush = sealed  # type: ignore[method-assign]

        store.flush = sealed  # type: ignore[method-assign]
    yield store
    store.close()


def put(store: Kind, rows: list[Figures]) -> None:
    for each in rows:
        store.append(each)
    store.flush()


def test_a_figure_is_found_by_host_and_gpu(store: Kind, make_row: MakeRow) -> None:
    put(store, [make_row(at=BEGIN + 60 * number, seq=number, gpus=2, util=10.0 * number) for number in range(1, 5)])

    first, second = store.series(SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 300, step_seconds=120))

    assert (first.host, first.gpu, first.uuid, first.model) == ("gpu01", 0, "GPU-gpu01-0", "H100")
    assert second.gpu == 1
    assert list(first.t) == [BEGIN, BEGIN + 120, BEGIN + 240]
    assert list(first.min) == [10, 20, 40]
    assert list(first.mean) == [10, 25, 40]
    assert list(first.max) == [10, 30, 40]


def test_a_gap_stays_a_gap(store: Kind, make_row: MakeRow) -> None:
    put(store, [make_row(at=BEGIN, seq=1), make_row(at=BEGIN + 180, seq=2)])

    (line,) = store.series(SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 180, step_seconds=60))

    assert list(line.mean) == [50, None, None, 50]


def test_unknown_stays_unknown(store: Kind, make_row: MakeRow) -> None:
    put(store, [make_row(at=BEGIN, seq=1, util=math.nan), make_row(at=BEGIN + 60, seq=2, util=30.0)])

    (line,) = store.series(SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 119, step_seconds=60))
    (unknown,) = store.series(SeriesQuery(metric="fan_percent", begin=BEGIN, end=BEGIN + 119, step_seconds=60))

    assert list(line.mean) == [None, 30]
    assert list(unknown.mean) == [None, None]


def test_a_spike_of_one_round_is_in_the_most_of_a_month(store: Kind, make_row: MakeRow, moving: StillClock) -> None:
    rows = [make_row(at=BEGIN + 5 * number, seq=number, temperature=60.0, interval=5.0) for number in range(1440)]
    rows[700] = make_row(at=rows[700].at, seq=700, temperature=95.0, interval=5.0)
    put(store, rows)

    (line,) = store.series(SeriesQuery(metric="temperature_c", begin=BEGIN - 29 * DAY, end=BEGIN + DAY))

    assert len(line.t) <= 1500
    assert max(each for each in line.max if each is not None) == 95
    assert max(each for each in line.mean if each is not None) < 61


def test_a_snapshot_that_comes_twice_is_kept_once(store: Kind, make_row: MakeRow) -> None:
    put(store, [make_row(seq=7, util=50.0), make_row(seq=7, util=70.0)])

    assert store.knows("gpu01", "boot", 7)
    assert not store.knows("gpu01", "boot", 8)
    assert not store.knows("gpu01", "another boot", 7)
    (line,) = store.series(SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 60))
    assert [each for each in line.max if each is not None] == [50]


def test_snapshots_without_an_identity_are_all_kept(store: Kind, make_row: MakeRow) -> None:
    put(store, [make_row(at=BEGIN, seq=None), make_row(at=BEGIN + 60, seq=None)])

    (line,) = store.series(SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 119, step_seconds=60))

    assert list(line.mean) == [50, 50]


def test_what_is_durable_counts_without_a_gap_from_the_oldest_on(store: Kind, make_row: MakeRow) -> None:
    put(store, [make_row(at=BEGIN + seq, seq=seq) for seq in (5, 6, 7, 9)])

    assert store.durable_seq("gpu01", "boot", 5) == 7
    assert store.durable_seq("gpu01", "boot", 9) == 9
    assert store.durable_seq("gpu01", "boot", 8) is None
    assert store.durable_seq("gpu01", "boot", 4) is None
    assert store.durable_seq("gpu01", "boot", None) == 9
    assert store.durable_seq("gpu02", "boot", None) is None


def test_nothing_is_known_of_a_metric_that_is_not_kept(store: Kind) -> None:
    with pytest.raises(StoreError, match="gpu_utli is not known by gpu: choose of gpu_util, "):
        store.series(SeriesQuery(metric="gpu_utli", begin=BEGIN, end=BEGIN + 1))


def test_events_come_newest_first_and_one_can_be_replaced(store: Kind) -> None:
    def kept(at: float, kind: str = "xid", host: str = "gpu01") -> KeptEvent:
        return KeptEvent(Event(at=at, host=host, gpu=3, kind=kind, code=79, text="fell off"), True, ("boot", 4))

    for each in (kept(BEGIN), kept(BEGIN + 10, "gpu_lost"), kept(BEGIN + 5, host="gpu02"), kept(BEGIN - 5)):
        store.record(each)
    store.retract(kept(BEGIN))
    store.flush()

    found = store.events(EventQuery(begin=BEGIN - 1, end=BEGIN + 10))
    assert [(each.at, each.host, each.kind) for each in found] == [
        (BEGIN + 10, "gpu01", "gpu_lost"),
        (BEGIN + 5, "gpu02", "xid"),
    ]
    assert (found[0].gpu, found[0].code, found[0].text) == (3, 79, "fell off")
    assert [each.host for each in store.events(EventQuery(begin=0, end=BEGIN * 2, hosts=("gpu02",)))] == ["gpu02"]
    assert [each.at for each in store.events(EventQuery(begin=0, end=BEGIN * 2, kinds=("xid",), most=1))] == [BEGIN + 5]

    store.forget(["gpu01"])
    store.flush()
    assert [each.host for each in store.events(EventQuery(begin=0, end=BEGIN * 2))] == ["gpu02"]


def test_two_hours_of_work_are_one_use_and_an_idle_stretch_is_measured(store: Kind, make_row: MakeRow) -> None:
    rows = []
    for number in range(120):
        idle = 50 <= number < 80  # over the full hour
        util, doing = (0.0, "idle") if idle else (80.0, "busy")
        rows.append(make_row(at=BEGIN + 60 * number, seq=number, job="4711", util=util, doing=doing))
    put(store, [*rows, make_row(at=BEGIN + 7200, seq=120, user=None, doing="free", util=0.0)])

    (use,) = store.uses(UseQuery(begin=BEGIN, end=BEGIN + DAY))

    assert (use.host, use.gpu, use.user, use.job, use.peak_mem) == ("gpu01", 0, "alice", "4711", 1000)
    assert (use.from_at, use.to_at) == (BEGIN, BEGIN + 7200)
    assert use.idle_seconds == pytest.approx(1800)
    assert use.longest_idle_seconds == pytest.approx(1800)
    assert use.busy_seconds == pytest.approx(5400)
    assert use.mean_util == pytest.approx(60)
    assert store.uses(UseQuery(begin=BEGIN, end=BEGIN + DAY, users=("bob",))) == []


def test_a_gpu_that_two_people_share_counts_for_both_and_once_for_all(store: Kind, make_row: MakeRow) -> None:
    from cluster_dash_server.store import Holder

    rows = [make_row(at=BEGIN + 60 * number, seq=number) for number in range(61)]
    shared = [
        replace(each, holders=(*each.holders, Holder(0, "bob", None)), holder_mem=each.holder_mem * 2) for each in rows
    ]
    put(store, shared)

    by_user = store.usage(UsageQuery(begin=BEGIN, end=BEGIN + HOUR))
    (together,) = store.usage(UsageQuery(begin=BEGIN, end=BEGIN + HOUR, by=()))

    assert [(each.user, round(each.held_seconds)) for each in by_user] == [("alice", 3600), ("bob", 3600)]
    assert round(together.held_seconds) == 3600
    assert together.util_seconds == pytest.approx(1800)


def test_the_running_hour_counts_up_to_now(store: Kind, make_row: MakeRow) -> None:
    put(store, [make_row(at=BEGIN + 60 * number, seq=number) for number in range(91)])

    for begin in (BEGIN, BEGIN + HOUR):
        (held,) = store.usage(UsageQuery(begin=begin, end=BEGIN + 5400))
        assert held.held_seconds == pytest.approx(BEGIN + 5400 - begin, abs=120)


def test_the_running_hour_of_a_user_is_divided_by_what_has_passed_of_it(
    store: Kind, make_row: MakeRow, moving: StillClock
) -> None:
    moving.now = BEGIN + 5400
    put(store, [make_row(at=BEGIN + 60 * number, seq=number, gpus=2) for number in range(91)])

    for begin, step in ((BEGIN, HOUR), (BEGIN, 2 * HOUR), (BEGIN + HOUR, HOUR)):
        ask = SeriesQuery(metric="held_gpus", begin=begin, end=BEGIN + 5400, by="user", step_seconds=step)
        (alice,) = store.series(ask)
        assert list(alice.mean) == pytest.approx([2.0] * len(alice.t), abs=0.12), (begin, step)


def test_an_hour_of_which_nothing_is_known_is_a_gap_for_users_too(
    store: Kind, make_row: MakeRow, moving: StillClock
) -> None:
    moving.now = BEGIN + 6 * HOUR
    for begin, user in ((BEGIN + HOUR, "alice"), (BEGIN + 3 * HOUR, "bob")):
        put(store, [make_row(at=begin + 60 * each, seq=round(begin) + each, gpus=2, user=user) for each in range(60)])

    alice, bob = store.series(SeriesQuery(metric="held_gpus", begin=BEGIN, end=BEGIN + 4 * HOUR, by="user"))

    assert list(alice.mean) == [None, pytest.approx(2, abs=0.1), None, 0.0, None]
    assert list(bob.mean) == [None, 0.0, None, pytest.approx(2, abs=0.1), None]
    two = SeriesQuery(
        metric="held_gpus", begin=BEGIN, end=BEGIN + 4 * HOUR, by="user", users=("bob",), step_seconds=2 * HOUR
    )
    assert list(store.series(two)[0].mean) == [0.0, pytest.approx(2, abs=0.1), None]


@pytest.mark.parametrize("step", [60, HOUR])
@pytest.mark.parametrize("metric", ["total_gpus", "power_w"])
def test_a_minute_in_which_measuring_began_or_ended_makes_no_count_low(
    metric: str, step: float, store: Kind, make_row: MakeRow, moving: StillClock
) -> None:
    rows = [
        make_row(at=begin + 5 * number, seq=round(begin - BEGIN) + number, gpus=8, interval=5.0)
        for begin in (BEGIN + 645, BEGIN + 1840)
        for number in range(150)
    ]
    put(store, rows)

    (line,) = store.series(SeriesQuery(metric=metric, begin=BEGIN, end=BEGIN + HOUR, by="cluster", step_seconds=step))

    known = [each for each in line.min if each is not None]
    assert known == pytest.approx([8 if metric == "total_gpus" else 8 * 300.5] * len(known))
    assert len(known) in ((1,) if step == HOUR else (22, 23, 24))  # the newest two of a host are still being counted


def put_in_time(store: Kind, rows: list[Figures], clock: StillClock) -> None:
    """Put rows before their time is over, as hosts do: no minute is told before all of them have come."""
    end, clock.now = clock.now, rows[0].at
    for each in rows:
        store.append(each)
    clock.now = end
    store.flush()


def times(begin: float, end: float, every: float) -> list[float]:
    return [begin + every * number for number in range(math.ceil((end - begin) / every))]


@pytest.mark.parametrize("step", [60, 300, 600, HOUR])
@pytest.mark.parametrize("by", ["cluster", "model"])
@pytest.mark.parametrize(
    ("ends", "begins"),
    [(1500, 2000), (HOUR - 195, HOUR - 10), (HOUR - 40, HOUR + 200), (HOUR - 300, HOUR + 25), (2788, 3 * HOUR + 50)],
)
def test_no_count_falls_beside_a_gap_wherever_it_begins_and_ends(
    ends: float, begins: float, by: By, step: float, store: Kind, make_row: MakeRow, moving: StillClock
) -> None:
    last = begins + 1900
    moving.now = BEGIN + last + 1
    put_in_time(
        store,
        [
            make_row(f"gpu{host}", BEGIN + at + 4 * host, seq=round(at), gpus=8, interval=15.0)
            for at in (*times(620, ends, 15), *times(begins, last, 15))
            for host in range(4)
        ],
        moving,
    )

    for metric, there in (("total_gpus", 32), ("busy_gpus", 32), ("power_w", 32 * 300.5)):
        ask = SeriesQuery(metric=metric, begin=BEGIN, end=moving.now, by=by, step_seconds=step)
        (line,) = store.series(ask)
        for told in (line.min, line.mean, line.max):
            known = [each for each in told if each is not None]
            assert known == pytest.approx([there] * len(known), rel=2e-3)
            assert known


@pytest.mark.parametrize("step", [60, HOUR])
def test_a_host_that_is_set_to_another_interval_is_there_all_the_time(
    step: float, store: Kind, make_row: MakeRow, moving: StillClock
) -> None:
    moving.now = BEGIN + 3 * HOUR
    slow, quick = times(0, 1200, 120), times(1200, 2000, 5)
    put(
        store,
        [
            make_row(at=BEGIN + at, seq=number, gpus=8, interval=120.0 if at in slow else 5.0)
            for number, at in enumerate((*slow, *quick, *times(2000, 2 * HOUR, 120)))
        ],
    )

    (line,) = store.series(
        SeriesQuery(metric="total_gpus", begin=BEGIN, end=BEGIN + 1900, by="cluster", step_seconds=step)
    )
    (use,) = store.uses(UseQuery(begin=BEGIN, end=BEGIN + 1900, gpus=(0,)))

    assert list(line.min[:30]) == pytest.approx([8.0] * len(line.min[:30]))
    assert use.from_at == BEGIN
    assert use.to_at >= BEGIN + 2000


@pytest.mark.parametrize("interval", [60.0, 300.0, math.nan])
def test_hosts_that_post_seldom_are_all_there_up_to_now(
    interval: float, tmp_path: Path, make_row: MakeRow, moving: StillClock
) -> None:
    """As the first agents do: what one says holds until the next, which is not there yet."""
    every = 300.0 if interval != interval else interval
    rows = [
        make_row(f"gpu{host}", BEGIN + at + host * every / 5, seq=round(at), gpus=8, interval=interval)
        for host in range(5)
        for at in times(0, HOUR - every, every)
    ]
    rows.sort(key=lambda row: row.at)
    for store in (MemoryStore(moving), SqliteStore(tmp_path, clock=moving, keep=KEEP)):
        left = list(rows)
        for now in times(BEGIN + 1500, BEGIN + 3000, 35):
            moving.now = now
            while left and left[0].at <= now:
                store.append(left.pop(0))
            store.flush()
            ask = SeriesQuery(metric="total_gpus", begin=BEGIN + 600, end=now, by="cluster", step_seconds=60)
            (line,) = store.series(ask)
            known = [each for each in line.mean if each is not None]
            assert known == pytest.approx([40] * len(known)), now - BEGIN
            assert len(known) >= (now - BEGIN - 600) // 60 - 4
        if isinstance(store, SqliteStore):
            store.close()


def test_what_users_have_is_told_for_the_time_that_was_measured(
    store: Kind, make_row: MakeRow, moving: StillClock
) -> None:
    told = (*times(2405, 4 * HOUR - 2000, 15), *times(4 * HOUR - 700, 5 * HOUR + 1300, 15))
    rows = [
        make_row(f"gpu{host}", BEGIN + at + host, seq=round(at), gpus=4, interval=15.0, user=("alice", None)[host])
        for at in told
        for host in range(2)
    ]
    moving.now = rows[-1].at + 5
    put_in_time(store, rows, moving)

    for step in (HOUR, 2 * HOUR):
        ask = SeriesQuery(metric="held_gpus", begin=BEGIN, end=moving.now, by="user", step_seconds=step)
        (alice,) = store.series(ask)
        assert list(alice.mean) == pytest.approx([4.0] * len(alice.t), abs=0.03), step


def test_the_cluster_at_a_moment(store: Kind, make_row: MakeRow) -> None:
    put(
        store,
        [make_row("b", BEGIN + 100, seq=1, util=9.0), make_row("b", BEGIN + 160, seq=2), make_row("a", BEGIN, seq=1)],
    )

    (b,) = store.moment(BEGIN + 150, silent_seconds=60)

    assert (b.host, b.at, b.values[0]) == ("b", BEGIN + 100, 9)
    assert [each.host for each in store.moment(BEGIN + 150)] == ["a", "b"]


# ------------------------------------------------------------------------------------------- as the plainest one says


def nearly(found: Any, wanted: Any) -> bool:
    """Compare answers: means of hours are kept to a hundredth."""
    if isinstance(found, float | int) and isinstance(wanted, float | int):
        return math.isclose(found, wanted, rel_tol=1e-6, abs_tol=6e-3)
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(nearly, found, wanted))
    if isinstance(found, Series | Usage | Use):
        names = type(found).__slots__
        return all(nearly(getattr(found, name), getattr(wanted, name)) for name in names)
    return bool(found == wanted)


def agree(found: list[Any], wanted: list[Any]) -> None:
    assert len(found) == len(wanted), ([_short(each) for each in found], [_short(each) for each in wanted])
    for first, second in zip(found, wanted, strict=True):
        for name in type(first).__slots__:
            assert nearly(getattr(first, name), getattr(second, name)), (name, first, second)


def _short(each: Any) -> tuple[Any, ...]:
    return tuple(getattr(each, name) for name in type(each).__slots__ if name not in ("t", "min", "mean", "max"))


CLUSTER_STEPS: list[tuple[By, float]] = [("cluster", 60), ("cluster", HOUR), ("model", 600), ("model", 2 * HOUR)]
ASKED: list[SeriesQuery] = [
    SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 6 * HOUR),
    SeriesQuery(metric="gpu_util", begin=BEGIN + 1234, end=BEGIN + 3 * HOUR, step_seconds=60, gpus=(0, 2)),
    SeriesQuery(metric="power_w", begin=BEGIN, end=BEGIN + 6 * HOUR, step_seconds=HOUR),
    SeriesQuery(metric="temperature_c", begin=BEGIN, end=BEGIN + 6 * HOUR, by="host", hosts=("gpu01", "gpu03")),
    SeriesQuery(metric="cpu_percent", begin=BEGIN, end=BEGIN + 6 * HOUR, by="host", step_seconds=900),
    SeriesQuery(metric="used_mem", begin=BEGIN, end=BEGIN + 6 * HOUR, models=("H100",)),
    *[
        SeriesQuery(metric=metric, begin=BEGIN, end=BEGIN + 6 * HOUR, by=by, step_seconds=step)
        for metric in CLUSTER_METRICS
        for by, step in CLUSTER_STEPS
    ],
    SeriesQuery(metric="held_gpus", begin=BEGIN, end=BEGIN + 6 * HOUR, by="user"),
]
BYS: list[tuple[UsageKey, ...]] = [
    *((), ("user",), ("host",), ("model",), ("hour",), ("day",), ("user", "host", "model"), ("user", "hour"))
]
USED = [
    *[UsageQuery(begin=BEGIN, end=BEGIN + 6 * HOUR, by=by) for by in BYS],
    UsageQuery(begin=BEGIN + HOUR, end=BEGIN + 3 * HOUR, by=("host",), users=("alice",)),
    UsageQuery(begin=BEGIN, end=BEGIN + 6 * HOUR, by=("user",), hosts=("gpu01",), models=("H100", "A100")),
]


@pytest.mark.parametrize(
    ("without", "behind"),
    [
        (range(0), 0.0),
        (range(4), 0.0),
        (range(300, 301), 0.0),
        (range(240, 480), 0.0),
        (range(0), 14.0),  # into the next minute: as many rows, but three and five in a minute
    ],
)
def test_hours_whose_minutes_have_as_many_rows_are_told_as_others_are(
    without: range, behind: float, tmp_path: Path, moving: StillClock, make_row: MakeRow
) -> None:
    rng, rows = random.Random(1), []
    for number in (*range(4 * 240), 750.5, 880.5):
        at = BEGIN + 15 * number + 1.5 + (behind if number == 491 else 0)
        row = make_row(at=at, seq=int(2 * number), gpus=3, interval=15.0)
        for column in range(len(row.values)):
            if not math.isnan(row.values[column]):
                row.values[column] = rng.choice((0, rng.randrange(7_000) / 10 if number > 300 else rng.randrange(900)))
        if number not in without:
            rows.append(row)
    plain, store = MemoryStore(moving), SqliteStore(tmp_path, clock=moving, keep=KEEP)
    try:
        for row in rows:
            if row.at == BEGIN + 15 * 750.5 + 1.5:
                store.seal_all()  # what is late stays beside its sealed hour
            plain.append(row)
            store.append(row)
        store.flush()
        for metric in ("gpu_util", "power_w"):
            for begin, step in ((0, 60), (0, 30), (1_000, 60), (0, 600), (7_200, 15)):
                ask = SeriesQuery(metric=metric, begin=BEGIN + begin, end=BEGIN + 4 * HOUR, step_seconds=step)
                for wish in (ask, replace(ask, gpus=(0, 2)), replace(ask, by="host")):
                    agree(store.series(wish), plain.series(wish))
    finally:
        store.close()


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("cut", [range(0, 30), range(45, 60)])
def test_what_was_there_only_outside_the_time_asked_for_is_not_told(
    cut: range, is_sealed: bool, tmp_path: Path, moving: StillClock, make_row: MakeRow
) -> None:
    plain, store = MemoryStore(moving), SqliteStore(tmp_path, clock=moving, keep=KEEP)
    try:
        for minute in range(60):
            early, late = make_row("early" if minute < 40 else "late", BEGIN + 60 * minute, seq=minute), minute >= 40
            of_one = make_row("one", BEGIN + 60 * minute, seq=minute)
            known = of_one.gpus[0]._replace(uuid=f"GPU-{late}", model=f"{late}")  # it was replaced
            for row in (early, replace(of_one, gpus=(known,))):
                plain.append(row)
                store.append(row)
        store.flush()
        if is_sealed:
            store.seal_all()
        ask = SeriesQuery(
            metric="gpu_util", by="gpu", begin=BEGIN + 60 * cut[0], end=BEGIN + 60 * cut[-1], step_seconds=60
        )
        found = store.series(ask)
        agree(found, plain.series(ask))
        assert [(each.host, each.model) for each in found if each.host == "one"] == [("one", f"{cut[0] >= 40}")]
        assert len(found) == 2
    finally:
        store.close()


@pytest.mark.parametrize("seed", range(2))
def test_sealed_late_and_reopened_answers_are_those_of_the_plainest_store(
    seed: int, tmp_path: Path, moving: StillClock, make_fleet: MakeFleet
) -> None:
    rng = random.Random(seed)
    rows = make_fleet(seed + 6, 7, BEGIN, BEGIN + 4 * HOUR)  # of these the last to begin have no GPUs
    plain, store = MemoryStore(moving), SqliteStore(tmp_path, clock=moving, keep=KEEP)
    in_time: list[Figures] = []
    late: list[Figures] = []
    for each in rows:
        (late if rng.random() < 0.2 else in_time).append(each)
    for each in in_time:
        plain.append(each)
        store.append(each)
    store.seal_all()
    for each in late:
        plain.append(each)
        store.append(each)
    store.seal_all()
    store.close()
    store = SqliteStore(tmp_path, clock=moving, keep=KEEP)
    moving.now += 600
    try:
        for ask in ASKED:
            agree(store.series(ask), plain.series(ask))
        for used in USED:
            agree(store.usage(used), plain.usage(used))
        for use in (
            UseQuery(begin=BEGIN, end=BEGIN + 6 * HOUR),
            UseQuery(begin=BEGIN, end=BEGIN + HOUR, users=("bob",)),
        ):
            agree(store.uses(use), plain.uses(use))
        assert all(store.knows(each.host, str(each.boot_id), each.seq or 0) for each in rows)
    finally:
        store.close()
