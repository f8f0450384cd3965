"""Rows added up all at once, beside the same counted by hand: row by row, GPU by GPU, minute by minute."""

import random
from array import array
from collections import defaultdict
from math import isnan, nan

import pytest

from cluster_dash_server.history import rollups
from cluster_dash_server.history.rollups import HOUR, SHARE, Rolled, covers_of, roll_all, runs_of, stretches_of
from cluster_dash_server.store import DOINGS, GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder

BEGIN = 1_699_999_200


def some_gpus(rng: random.Random) -> tuple[GpuId, ...]:
    return tuple(
        GpuId(place, f"GPU-{place}", rng.choice(("A100", "A100", "H100", None)), rng.choice((None, 0.0, 40e3, 80e3)))
        for place in range(rng.choice((0, 1, 2, 2, 8)))
    )


def some_rows(rng: random.Random, host: str) -> list[Figures]:
    """Rows of an hour: with gaps and repeats of a moment, unknown figures, other GPUs and holders from row to row."""
    layouts = [some_gpus(rng) for _ in range(rng.choice((1, 2)))]
    gpus, holders = rng.choice(layouts), tuple[Holder, ...]()
    interval, is_restless = rng.choice((nan, 5.0, 15.0, 60.0)), rng.random()
    rows, at = [], BEGIN + rng.choice((0.0, 59.999, 60.0, 700.0))
    for _ in range(rng.choice((1, 3, 60))):
        if rng.random() < 0.1:
            gpus, holders = rng.choice(layouts), ()
        if gpus and rng.random() < is_restless:
            found = [Holder(rng.randrange(len(gpus)), rng.choice("abc"), rng.choice((None, "7"))) for _ in range(4)]
            holders = tuple(dict.fromkeys(found))
        values = [some_figure(rng, metric) for metric in GPU_METRICS for _ in gpus]
        values += [interval if metric == "interval_seconds" else 1.0 for metric in HOST_METRICS]
        rows.append(
            Figures(
                host=host,
                at=round(at, 3),
                boot_id=None,
                seq=None,
                oldest_seq=None,
                gpus=gpus,
                values=array("f", values),
                holders=holders,
                holder_mem=array("f", [rng.choice((nan, 500.0, 1000.0)) for _ in holders]),
            )
        )
        at += rng.choice((0.0, 14.9, 15.0, 22.5, 60.0, 80.0))
        if at >= BEGIN + HOUR:
            break
    return rows


def some_figure(rng: random.Random, metric: str) -> float:
    if metric == "doing":
        return float(rng.randrange(len(DOINGS)))
    return rng.choice((nan, 0.0, 29.0, 30.0, rng.uniform(0, 100), rng.uniform(0, 80e3)))


def count(sums: dict[tuple[int, str], dict[str, float]], row: Figures, minute: int, seconds: float) -> None:
    """Count what a row says for so many seconds of a minute."""
    for place, gpu in enumerate(row.gpus):
        of = {name: row.values[at * len(row.gpus) + place] for at, name in enumerate(GPU_METRICS)}
        util, mem, power, total = of["gpu_util"], of["used_mem"], of["power_w"], gpu.total_mem or 0.0
        rates = {
            "seen": 1.0,
            DOINGS[int(of["doing"])]: 1.0,
            "light": float(util < 30 and mem < 0.3 * total),
            "util": 0.0 if isnan(util) else util,
            "util_known": float(not isnan(util)),
            "memory_percent": 0.0 if isnan(mem) or not total else 100 * mem / total,
            "memory_known": float(not isnan(mem) and total > 0),
            "used_mem": 0.0 if isnan(mem) else mem,
            "power_w": 0.0 if isnan(power) else power,
        }
        for model in (gpu.model or "unknown", ""):
            for name, rate in rates.items():
                sums[minute, model][name] += rate * seconds


def held_by_hand(row: Figures, seconds: float, sums: dict[tuple[str, str], list[float]]) -> None:
    for place, user in {(holder.place, holder.user) for holder in row.holders}:
        of = {name: row.values[at * len(row.gpus) + place] for at, name in enumerate(GPU_METRICS)}
        doing, util = DOINGS[int(of["doing"])], 0.0 if isnan(of["gpu_util"]) else of["gpu_util"] / 100
        rates = (1.0, float(doing == "busy"), float(doing == "idle"), 0.0, util, 1.0)
        key = (user, row.gpus[place].model or "unknown")
        sums[key] = [was + rate * seconds for was, rate in zip(sums.get(key, [0.0] * 6), rates, strict=True)]


@pytest.mark.parametrize("seed", range(12))
def test_rows_of_many_hosts_add_up_to_what_is_counted_by_hand(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "_AT_ONCE", 3)
    rng = random.Random(seed)
    hosts = [some_rows(rng, f"gpu{number:02}") for number in range(8)]
    covers = [covers_of(rows, BEGIN, BEGIN + HOUR) for rows in hosts]

    found = roll_all([(runs_of(rows), held) for rows, held in zip(hosts, covers, strict=True)])

    for rows, of_rows, rolled in zip(hosts, covers, found, strict=True):
        minutes: dict[tuple[int, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        users: dict[tuple[str, str], list[float]] = {}
        for row, (begin, end) in zip(rows, of_rows.tolist(), strict=True):
            held_by_hand(row, end - begin, users)
            for minute in range(BEGIN, BEGIN + HOUR, 60):
                seconds = min(end, minute + 60) - max(begin, minute)
                if seconds > 0:
                    count(minutes, row, minute, seconds)
        assert rolled.by_minute().keys() == minutes.keys()
        for key, share in rolled.by_minute().items():
            assert dict(zip(SHARE, share, strict=True)) == pytest.approx({name: minutes[key][name] for name in SHARE})
        held = {key: usage for key, usage in users.items() if usage[0] > 1e-6}
        assert {key for key in rolled.by_user() if key[0]} == held.keys()
        for user, wanted in held.items():
            assert rolled.by_user()[user] == pytest.approx(wanted), user


@pytest.mark.parametrize("seed", range(12))
def test_what_holders_did_is_what_is_counted_by_hand(seed: int) -> None:
    rows = list({row.at: row for row in some_rows(random.Random(seed), "gpu01")}.values())  # each holds for a while
    held = covers_of(rows, BEGIN, BEGIN + HOUR)

    found = stretches_of(runs_of(rows), held)

    for each in found:
        mine = [
            (row, row.holders.index(holder), end - begin)
            for row, (begin, end) in zip(rows, held.tolist(), strict=True)
            for holder in row.holders
            if (holder.user, holder.job) == (each.user, each.job)
            and row.gpus[holder.place] == (each.gpu, each.uuid, each.model, row.gpus[holder.place].total_mem)
            and each.from_at <= begin
            and end <= each.to_at
        ]
        doings = [DOINGS[int(row.values[len(row.gpus) * GPU_METRICS.index("doing") + each.gpu])] for row, _, _ in mine]
        idles, longest = [0.0], 0.0
        for doing, (_, _, seconds) in zip(doings, mine, strict=True):
            idles.append(idles[-1] + seconds if doing == "idle" else 0.0)
            longest = max(longest, idles[-1])
        mems = [row.holder_mem[place] for row, place, _ in mine if not isnan(row.holder_mem[place])]
        assert each.idle_longest == pytest.approx(longest)
        assert each.idle_tail == pytest.approx(idles[-1])
        assert each.peak_mem == max(mems, default=None)
        assert each.busy == pytest.approx(sum(s for d, (_, _, s) in zip(doings, mine, strict=True) if d == "busy"))


def test_what_is_taken_out_again_leaves_nothing() -> None:
    rng = random.Random(3)
    hosts = [some_rows(rng, f"gpu{number:02}") for number in range(6)]
    parts = [(runs_of(rows), covers_of(rows, BEGIN, BEGIN + HOUR)) for rows in hosts]
    whole = Rolled(BEGIN)

    for rolled in roll_all(parts):
        whole.put(rolled)
    assert whole.by_minute()
    assert whole.by_user()
    for rolled in reversed(list(roll_all(parts))):
        whole.take_out(rolled)
    assert (whole.by_minute(), whole.by_user()) == ({}, {})


def test_a_fault_in_the_rows_of_one_host_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(7)
    hosts = [[row for row in some_rows(rng, f"gpu{number}") if row.gpus] for number in range(20)]
    parts = [(runs_of(rows), covers_of(rows, BEGIN, BEGIN + HOUR)) for rows in hosts if rows]
    alone = [next(iter(roll_all([part]))) for part in parts]
    (run, *others), covers = parts[3]
    odd = run._replace(holders=(Holder(99, "mallory", None),), figures=run.figures[:, :-1])
    parts[3] = [odd, *others], covers

    found = list(roll_all(parts))

    assert not found[3].shares
    assert not found[3].users
    for place, wanted in enumerate(alone):
        if place != 3:
            for given, wished in (
                (found[place].by_minute(), wanted.by_minute()),
                (found[place].by_user(), wanted.by_user()),
            ):
                assert list(given) == list(wished)
                assert list(given.values()) == [pytest.approx(share) for share in wished.values()]
    assert caplog.text.count("a fault in adding up rows of a host") == 1
