"""Rows of history as small fleets make them: seeded, with gaps, unknown figures, changes of hands and of GPUs."""

import random
from array import array
from collections.abc import Callable, Iterator

import pytest

from cluster_dash_server.figures import NAN
from cluster_dash_server.store import DOINGS, GPU_METRICS, HOST_METRICS, Doing, Figures, GpuId, Holder

BEGIN = 1_699_999_200.0
"""The start of an hour, and of a day less two hours."""


MakeRow = Callable[..., Figures]
WITH_GPUS = 4
"""Hosts of a fleet that have GPUs; those behind them have none."""
MakeFleet = Callable[[int, int, float, float], list[Figures]]


@pytest.fixture
def make_row() -> MakeRow:
    """Make one row: `make_row("gpu01", at, seq=3, util=97.0, user="alice")`."""
    return _make_row


@pytest.fixture
def make_fleet() -> MakeFleet:
    """Make the rows of some hosts, in the order of time: `make_fleet(seed, hosts, begin, end)`; see WITH_GPUS."""
    return lambda seed, hosts, begin, end: list(_fleet(seed, hosts, begin, end))


def _make_row(
    host: str = "gpu01",
    at: float = BEGIN,
    *,
    seq: int | None = 1,
    gpus: int = 1,
    util: float = 50.0,
    doing: Doing = "busy",
    temperature: float = 60.0,
    interval: float = 60.0,
    user: str | None = "alice",
    job: str | None = None,
) -> Figures:
    of = {
        "gpu_util": util,
        "used_mem": 40_000.0,
        "temperature_c": temperature,
        "power_w": 300.5,
        "doing": float(DOINGS.index(doing)),
    }
    values = [of.get(name, NAN) for name in GPU_METRICS for _ in range(gpus)]
    values += [{"cpu_percent": 12.5, "interval_seconds": interval}.get(name, NAN) for name in HOST_METRICS]
    holders = () if user is None else tuple(Holder(place, user, job) for place in range(gpus))
    return Figures(
        host=host,
        at=at,
        boot_id="boot" if seq is not None else None,
        seq=seq,
        oldest_seq=None,
        gpus=tuple(GpuId(place, f"GPU-{host}-{place}", "H100", 80_000.0) for place in range(gpus)),
        values=array("f", values),
        holders=holders,
        holder_mem=array("f", [1_000.0] * len(holders)),
    )


def _fleet(seed: int, hosts: int, begin: float, end: float) -> Iterator[Figures]:
    """Give the rows of some hosts in the order of time."""
    rng = random.Random(seed)
    rows = [each for number in range(hosts) for each in _host(rng, number, begin, end)]
    yield from sorted(rows, key=lambda each: each.at)


def _host(rng: random.Random, number: int, begin: float, end: float) -> Iterator[Figures]:
    host = f"gpu{number:02}" if number < WITH_GPUS else f"cpu{number:02}"
    interval = rng.choice((15.0, 60.0, 60.0, 300.0))
    model, count = rng.choice((("H100", 4), ("A100", 2), ("RTX 4090", 1)))
    if number >= WITH_GPUS:
        count = 0
    ids = [GpuId(place, f"GPU-{host}-{place}", model, 80_000.0) for place in range(count)]
    at, seq = begin + rng.uniform(0, interval), rng.randrange(1, 10_000)
    holders: tuple[Holder, ...] = ()
    busy = [0.0] * count
    says_interval = rng.random() < 0.7
    while at < end:
        if rng.random() < 0.02:  # other hands
            holders = tuple(
                Holder(place, rng.choice(("alice", "bob", "carol")), rng.choice((None, "4711", "4712")))
                for place in range(count)
                if rng.random() < 0.7
            )
            busy = [rng.choice((0.0, 3.0, 97.0)) for _ in range(count)]
        if rng.random() < 0.004 and count > 1:  # a card is taken out
            count -= 1
            ids, busy = ids[:count], busy[:count]
            holders = tuple(holder for holder in holders if holder.place < count)
        if rng.random() < 0.01:  # silence
            at += rng.uniform(2, 40) * interval
            seq += 1
        if at >= end:
            return
        yield _row(rng, host, at, seq, ids, busy, holders, interval if says_interval else NAN)
        at = round(at + interval + rng.uniform(-0.2, 0.2), 3)
        seq += 1


def _row(
    rng: random.Random,
    host: str,
    at: float,
    seq: int,
    ids: list[GpuId],
    busy: list[float],
    holders: tuple[Holder, ...],
    interval: float,
) -> Figures:
    held = {holder.place for holder in holders}
    columns = []
    for place, level in enumerate(busy):
        util = NAN if rng.random() < 0.03 else float(round(min(100, max(0, level + rng.gauss(0, 2)))))
        doing = "free" if place not in held else "idle" if util < 5 else "busy"
        of = {
            "gpu_util": util,
            "used_mem": 40_000.0 + rng.randrange(50) if place in held else 4.0,
            "temperature_c": float(rng.randrange(40, 80)),
            "power_w": round(100 + 5 * level + rng.gauss(0, 4), 1),
            "sm_clock_mhz": 1755.0,
            "doing": float(DOINGS.index(doing)),
        }
        columns.append([of.get(name, NAN) for name in GPU_METRICS])
    host_row = {"cpu_percent": round(rng.uniform(0, 100), 2), "load_avg_1": rng.random(), "interval_seconds": interval}
    values = [value for column in zip(*columns, strict=True) for value in column]
    values += [host_row.get(name, NAN) for name in HOST_METRICS]
    return Figures(
        host=host,
        at=round(at, 3),
        boot_id=f"boot-{host}",
        seq=seq,
        oldest_seq=None,
        gpus=tuple(ids),
        values=array("f", values),
        holders=holders,
        holder_mem=array("f", [NAN if rng.random() < 0.1 else float(rng.randrange(40_000)) for _ in holders]),
    )
