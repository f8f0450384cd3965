"""What rows of one host add up to: pure, and additive, so that any split of the time gives the same sums.

A row holds from the moment it was taken until the next one, or where the next one is late, for one and a half of its
intervals; so each second of a GPU is counted once.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise, repeat
from math import inf
from operator import add, mul
from typing import Any, NamedTuple

from cluster_dash_server.store import DOINGS, GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder, Use

HOUR, DAY = 3600, 86_400
MOST_INTERVAL_SECONDS = 300.0
"""For how long a row holds at most where its host does not say its interval: the first agents' default."""
LIGHT_PERCENT = 30
"""The kept routes' own rule: below it in memory and in use, a GPU is free."""
_DOING, _UTIL, _MEM, _POWER = (GPU_METRICS.index(name) for name in ("doing", "gpu_util", "used_mem", "power_w"))
_BUSY, _IDLE = float(DOINGS.index("busy")), float(DOINGS.index("idle"))
_INTERVAL = HOST_METRICS.index("interval_seconds") - len(HOST_METRICS)

SHARE = (
    *("seen", "unknown", "free", "busy", "idle", "error", "light"),
    *("util", "util_known", "memory_percent", "memory_known", "used_mem", "power_w"),
)
"""The columns of a share: GPU-seconds in each state, and figures times the seconds for which they held."""
_SHARE_SEEN, _SHARE_BUSY, _SHARE_IDLE, _SHARE_UTIL = map(SHARE.index, ("seen", "busy", "idle", "util"))
USAGE = ("held", "busy", "idle", "allocated", "util", "seen")
"""The columns of a usage, in GPU-seconds."""

Share = tuple[float, ...]
Minutes = dict[tuple[int, str], Share]
"""Shares by (the start of a minute, model); model '' is all of them."""
UsageKey = tuple[str, str]
"""(user, model); user '' is all of them together, each GPU once."""


@dataclass(slots=True)
class Rolled:
    """What the rows of one host add up to in a stretch of time.

    Attributes:
        minutes: its share in each minute of the cluster and of its model.
        usage: USAGE by user and model.
    """

    minutes: Minutes = field(default_factory=dict)
    usage: dict[UsageKey, Share] = field(default_factory=dict)


class Cover(NamedTuple):
    """For how long a row holds."""

    begin: float
    end: float


def width(gpus: int) -> int:
    """Return how many values a row of so many GPUs has."""
    return len(GPU_METRICS) * gpus + len(HOST_METRICS)


def interval_of(rows: Sequence[Figures]) -> float:
    """Return the usual seconds between rows: what their host says, else what is seen."""
    said = rows[-1].values[_INTERVAL]
    if said == said:
        return float(said)
    gaps = [second.at - first.at for first, second in pairwise(rows)]
    return min([statistics.median(gaps), MOST_INTERVAL_SECONDS]) if gaps else MOST_INTERVAL_SECONDS


def covers(rows: Sequence[Figures], begin: float, end: float, next_at: float = inf) -> list[Cover]:
    """Return for how long each row holds within a stretch of time.

    Args:
        rows: of one host, oldest first, all within the stretch.
        begin: the start of the stretch; the row before it holds up to here.
        end: its end.
        next_at: when the row behind these was taken, where that is known.
    """
    interval = interval_of(rows)
    reach, late = 1.5 * interval, max(60.0, 3 * interval)
    starts = [row.at for row in rows]
    if starts[0] - reach < begin:
        starts[0] = begin
    ends = [after if after - row.at <= late else row.at + reach for row, after in zip(rows, starts[1:], strict=False)]
    ends.append(next_at if next_at - rows[-1].at <= late else min(end, rows[-1].at + reach))
    return list(map(Cover, starts, ends))


def roll(rows: Sequence[Figures], begin: float, end: float, next_at: float = inf) -> Rolled:
    """Add up rows of one host, oldest first, within a stretch of time; the arguments are those of `covers`."""
    return roll_held(rows, covers(rows, begin, end, next_at))


def has_one_interval(rows: Sequence[Figures]) -> bool:
    """Say whether the host of rows says the same interval in all: then their sums are those of their parts."""
    said = rows[0].values[_INTERVAL]
    return all(row.values[_INTERVAL] == said for row in rows)


def roll_held(rows: Sequence[Figures], held: Sequence[Cover]) -> Rolled:
    """Add up rows of one host, oldest first, of which is known for how long each holds."""
    gpus, groups = rows[0].gpus, _groups(rows[0].gpus)
    of_models: dict[tuple[int, str], list[float]] = {}
    for row, cover in zip(rows, held, strict=True):
        if row.gpus is not gpus:
            gpus, groups = row.gpus, _groups(row.gpus)
        rates = [(group.model, _rate(row, group)) for group in groups]
        minute = int(cover.begin // 60) * 60
        at = cover.begin
        while at < cover.end:
            until = min(cover.end, minute + 60)
            seconds = until - at
            for model, rate in rates:
                was = of_models.get((minute, model))
                new = map(mul, rate, repeat(seconds))
                of_models[minute, model] = list(new if was is None else map(add, was, new))
            at = until
            minute += 60
    rolled = Rolled()
    for (minute, model), sums in of_models.items():
        share = tuple(sums)
        _add(rolled.minutes, (minute, model), share)
        _add(rolled.minutes, (minute, ""), share)
        busy, idle, seen = sums[_SHARE_BUSY], sums[_SHARE_IDLE], sums[_SHARE_SEEN]
        _add(rolled.usage, ("", model), (busy + idle, busy, idle, 0.0, sums[_SHARE_UTIL] / 100, seen))
    for first, after in _runs(rows):
        _add_usage(rolled.usage, rows[first:after], held[first:after])
    return rolled


def _runs(rows: Sequence[Figures]) -> Iterator[tuple[int, int]]:
    """Give stretches of rows with the same GPUs and holders, as places from and up to."""
    first = 0
    for place, row in enumerate(rows):
        was = rows[first]
        is_same = row.holders is was.holders or row.holders == was.holders
        if not is_same or (row.gpus is not was.gpus and row.gpus != was.gpus):
            yield first, place
            first = place
    yield first, len(rows)


class _Group(NamedTuple):
    """The GPUs of one model among those of a row: their places (None: all), and the memory of each.

    `total` is the memory that each of them has; None: they differ, or it is not known.
    """

    model: str
    places: list[int] | None
    totals: list[float]
    total: float | None


def _groups(gpus: tuple[GpuId, ...]) -> list[_Group]:
    places: dict[str, list[int]] = {}
    for place, gpu in enumerate(gpus):
        places.setdefault(gpu.model or "unknown", []).append(place)
    totals = [gpu.total_mem or 0.0 for gpu in gpus]
    if len(places) == 1:
        return [_Group(model, None, totals, _common(totals)) for model in places]
    groups = [(model, of_model, [totals[place] for place in of_model]) for model, of_model in places.items()]
    return [_Group(model, of_model, of_gpus, _common(of_gpus)) for model, of_model, of_gpus in groups]


def _common(totals: list[float]) -> float | None:
    return totals[0] if totals[0] > 0 and totals.count(totals[0]) == len(totals) else None


def _rate(row: Figures, group: _Group) -> Share:
    """Return the SHARE of one second of some GPUs of a row."""
    count, places, totals = len(row.gpus), group.places, group.totals
    columns: list[Sequence[float]] = [
        row.values[metric * count : (metric + 1) * count] for metric in (_DOING, _UTIL, _MEM, _POWER)
    ]
    if places is not None:
        columns = [[column[place] for place in places] for column in columns]
    doing, utils, mems, powers = columns
    util, util_known = sum(utils), float(len(utils))
    if util != util:
        known = [each for each in utils if each == each]
        util, util_known = sum(known), float(len(known))
    mem, total = sum(mems), group.total
    if total is not None and mem == mem:
        percent, percents = 100 * mem / total, float(len(mems))
    else:
        known = [100 * mem / total for mem, total in zip(mems, totals, strict=True) if mem == mem and total > 0]
        percent, percents, mem = sum(known), float(len(known)), _known_sum(mems)
    light = sum(
        [
            each < LIGHT_PERCENT and 100 * mem < LIGHT_PERCENT * total  # a NaN is less than nothing
            for each, mem, total in zip(utils, mems, totals, strict=True)
        ]
    )
    codes = doing.count
    return (
        *(float(len(doing)), float(codes(0.0)), float(codes(1.0)), float(codes(2.0)), float(codes(3.0))),
        *(float(codes(4.0)), float(light), util, util_known, percent, percents, mem, _known_sum(powers)),
    )


def _known_sum(values: Iterable[float]) -> float:
    total = sum(values)
    return total if total == total else sum(value for value in values if value == value)


def _add_usage(usage: dict[UsageKey, Share], rows: Sequence[Figures], held: Sequence[Cover]) -> None:
    """Add the GPU-seconds of each user in rows with the same GPUs and holders."""
    gpus, holders = rows[0].gpus, rows[0].holders
    if not holders:
        return
    count, places_of = len(gpus), dict[UsageKey, list[int]]()
    for place, user in dict.fromkeys([(holder.place, holder.user) for holder in holders]):
        places_of.setdefault((user, gpus[place].model or "unknown"), []).append(place)
    seconds = [cover.end - cover.begin for cover in held]
    whole = sum(seconds)
    doings: list[Sequence[float]] = [row.values[_DOING * count : (_DOING + 1) * count] for row in rows]
    utils: list[Sequence[float]] = [row.values[_UTIL * count : (_UTIL + 1) * count] for row in rows]
    for key, places in places_of.items():
        busy = idle = util = 0.0
        for second, doing, of_gpus in zip(seconds, doings, utils, strict=True):
            if len(places) < count:
                doing, of_gpus = [doing[place] for place in places], [of_gpus[place] for place in places]
            busy += second * doing.count(_BUSY)
            idle += second * doing.count(_IDLE)
            util += second * _known_sum(of_gpus)
        gpu_seconds = len(places) * whole
        _add(usage, key, (gpu_seconds, busy, idle, 0.0, util / 100, gpu_seconds))


def _add(sums: dict[Any, Share], key: object, share: Share) -> None:
    was = sums.get(key)
    sums[key] = share if was is None else tuple(map(add, was, share))


# ------------------------------------------------------------------------------------------------ who had which GPU


class Stretch(NamedTuple):
    """A holder's time on a GPU within one stretch of rows; two that touch can be joined.

    Attributes:
        idle_head: for how long it did nothing from the start on; idle_tail: up to the end.
        util_seconds: utilisation (0 to 1) times seconds, over `util_known` seconds.
    """

    gpu: int
    uuid: str | None
    model: str | None
    user: str
    job: str | None
    from_at: float
    to_at: float
    busy: float
    idle: float
    idle_head: float
    idle_tail: float
    idle_longest: float
    peak_mem: float | None
    util_seconds: float
    util_known: float


def stretches(rows: Sequence[Figures], begin: float, end: float) -> list[Stretch]:
    """Return who had which GPU of a host, oldest first, within a stretch of time."""
    held = covers(rows, begin, end)
    found: list[Stretch] = []
    open_: dict[tuple[GpuId, Holder], Stretch] = {}
    for first, after in _runs(rows):
        whole = Cover(held[first].begin, held[after - 1].end)
        still: dict[tuple[GpuId, Holder], Stretch] = {}
        for number, holder in enumerate(rows[first].holders):
            key = (rows[first].gpus[holder.place], holder)
            new = _stretch(rows[first:after], held[first:after], number, holder, whole)
            was = open_.pop(key, None)
            still[key] = new if was is None else join(was, new)
        found += open_.values()
        open_ = still
    found += open_.values()
    return found


def _stretch(rows: Sequence[Figures], held: Sequence[Cover], number: int, holder: Holder, whole: Cover) -> Stretch:
    gpus = rows[0].gpus
    gpu = gpus[holder.place]
    seconds = [cover.end - cover.begin for cover in held]
    doing = [row.values[_DOING * len(gpus) + holder.place] for row in rows]
    utils = [row.values[_UTIL * len(gpus) + holder.place] for row in rows]
    mems = [mem for row in rows if (mem := row.holder_mem[number]) == mem]
    spans = [
        (code, sum(second for _, second in group))
        for code, group in groupby(zip(doing, seconds, strict=True), key=lambda each: each[0])
    ]
    idles = [span for code, span in spans if code == _IDLE]
    known = [(util, second) for util, second in zip(utils, seconds, strict=True) if util == util]
    return Stretch(
        gpu=gpu.gpu,
        uuid=gpu.uuid,
        model=gpu.model,
        user=holder.user,
        job=holder.job,
        from_at=whole.begin,
        to_at=whole.end,
        busy=sum(span for code, span in spans if code == _BUSY),
        idle=sum(idles),
        idle_head=spans[0][1] if spans[0][0] == _IDLE else 0.0,
        idle_tail=spans[-1][1] if spans[-1][0] == _IDLE else 0.0,
        idle_longest=max(idles, default=0.0),
        peak_mem=max(mems, default=None),
        util_seconds=sum(util * second for util, second in known) / 100,
        util_known=sum(second for _, second in known),
    )


def join(first: Stretch, second: Stretch) -> Stretch:
    """Join two stretches of one holder on one GPU that touch."""
    bridge = first.idle_tail + second.idle_head
    all_idle_first = first.idle_head > 0 and first.idle >= first.to_at - first.from_at - 1e-6
    all_idle_second = second.idle_tail > 0 and second.idle >= second.to_at - second.from_at - 1e-6
    mems = [mem for mem in (first.peak_mem, second.peak_mem) if mem is not None]
    return Stretch(
        *(first.gpu, first.uuid or second.uuid, first.model or second.model, first.user, first.job),
        *(first.from_at, second.to_at, first.busy + second.busy, first.idle + second.idle),
        first.idle_head + second.idle_head if all_idle_first else first.idle_head,
        first.idle_tail + second.idle_tail if all_idle_second else second.idle_tail,
        max(first.idle_longest, second.idle_longest, bridge),
        max(mems, default=None),
        first.util_seconds + second.util_seconds,
        first.util_known + second.util_known,
    )


def uses(host: str, found: Iterable[Stretch]) -> list[Use]:
    """Join the stretches of one host that touch, and word them; a gap of a minute parts two uses.

    Args:
        host: its name.
        found: its stretches, in the order of time.
    """
    done: list[Stretch] = []
    open_: dict[tuple[str | int, str, str | None], Stretch] = {}
    for new in found:
        key = (new.uuid or new.gpu, new.user, new.job)
        was = open_.get(key)
        if was is not None and new.from_at - was.to_at <= 60:
            open_[key] = join(was, new)
        else:
            if was is not None:
                done.append(was)
            open_[key] = new
    done += open_.values()
    return [
        Use(
            host=host,
            gpu=each.gpu,
            uuid=each.uuid,
            model=each.model,
            user=each.user,
            job=each.job,
            from_at=each.from_at,
            to_at=each.to_at,
            busy_seconds=each.busy,
            idle_seconds=each.idle,
            longest_idle_seconds=each.idle_longest,
            peak_mem=each.peak_mem,
            mean_util=100 * each.util_seconds / each.util_known if each.util_known else None,
        )
        for each in done
    ]


# ---------------------------------------------------------------------------------------- from shares to what is asked


def whole_minutes(minutes: Minutes) -> list[tuple[int, str, Share]]:
    """Return the minutes that rows cover to their ends, in order.

    Where a minute has none before or after it within its hour, rows began or ended somewhere in it: told over 60 s, its
    GPUs would be too few.

    Args:
        minutes: of whole hours, or with a minute more on either side.
    """
    return [
        (minute, model, share)
        for (minute, model), share in sorted(minutes.items())
        if (minute % HOUR == 0 or (minute - 60, model) in minutes)
        and ((minute + 60) % HOUR == 0 or (minute + 60, model) in minutes)
    ]


def cluster_figures(share: Share, seconds: float) -> list[float | None]:
    """Return CLUSTER_METRICS of a share that was gathered over so many seconds."""
    of = dict(zip(SHARE, share, strict=True))
    return [
        *(of[name] / seconds for name in ("seen", "free", "busy", "idle", "error", "unknown", "light")),
        of["util"] / of["util_known"] if of["util_known"] > 1e-6 else None,
        of["memory_percent"] / of["memory_known"] if of["memory_known"] > 1e-6 else None,
        of["used_mem"] / seconds if of["used_mem"] > 1e-6 or of["memory_known"] > 1e-6 else None,
        of["power_w"] / seconds if of["power_w"] > 1e-6 else None,  # a card draws some power, or does not tell it
    ]
