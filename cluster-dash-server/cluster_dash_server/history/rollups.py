"""What rows of one host add up to: pure, and additive, so that any split of the time gives the same sums.

A row holds from the moment it was taken until the next one, or where the next one is late, for one and a half of its
intervals; so each second of a GPU is counted once.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, pairwise
from math import inf
from operator import itemgetter
from typing import Any, NamedTuple

from cluster_dash_server.store import DOINGS, GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder, Use

HOUR, DAY = 3600, 86_400
MOST_INTERVAL_SECONDS = 300.0
"""For how long a row holds at most where its host does not say its interval: the first agents' default."""
LIGHT_PERCENT = 30.0
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

Cover = tuple[float, float]
"""For how long a row holds: from, to."""
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


def width(gpus: int) -> int:
    """Return how many values a row of so many GPUs has."""
    return len(GPU_METRICS) * gpus + len(HOST_METRICS)


def interval_of(rows: Sequence[Figures]) -> float:
    """Return the usual seconds between rows: what their host says, else what is seen."""
    said = rows[-1].values[_INTERVAL]
    if said == said:
        return float(said)
    gaps = sorted([second.at - first.at for first, second in pairwise(rows)])
    return (
        min([(gaps[len(gaps) // 2] + gaps[(len(gaps) - 1) // 2]) / 2, MOST_INTERVAL_SECONDS])
        if gaps
        else MOST_INTERVAL_SECONDS
    )


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
    return list(zip(starts, ends, strict=True))


def roll(rows: Sequence[Figures], begin: float, end: float, next_at: float = inf) -> Rolled:
    """Add up rows of one host, oldest first, within a stretch of time; the arguments are those of `covers`."""
    return roll_held(rows, covers(rows, begin, end, next_at))


def has_one_interval(rows: Sequence[Figures]) -> bool:
    """Say whether the host of rows says the same interval in all: then their sums are those of their parts."""
    said = rows[0].values[_INTERVAL]
    return all(row.values[_INTERVAL] == said for row in rows)


def roll_held(rows: Sequence[Figures], held: Sequence[Cover]) -> Rolled:
    """Add up rows of one host, oldest first, of which is known for how long each holds."""
    rolled = Rolled()
    for first, after in _runs(rows):
        run, covers_of = rows[first:after], held[first:after]
        for group in _groups(run[0].gpus):
            rates = _rates(run, group)
            for minute, place, seconds in _minutes(covers_of):
                sums = [each * seconds[0] for each in rates[place]]
                for rate, second in zip(rates[place + 1 : place + len(seconds)], seconds[1:], strict=True):
                    sums = [total + each * second for total, each in zip(sums, rate, strict=True)]
                _add(rolled.minutes, (minute, group.model), tuple(sums))
        if run[0].holders:
            _add_usage(rolled.usage, run, [end - begin for begin, end in covers_of])
    for (minute, model), share in list(rolled.minutes.items()):
        _add(rolled.minutes, (minute, ""), share)
        busy, idle, seen = share[_SHARE_BUSY], share[_SHARE_IDLE], share[_SHARE_SEEN]
        _add(rolled.usage, ("", model), (busy + idle, busy, idle, 0.0, share[_SHARE_UTIL] / 100, seen))
    return rolled


def _minutes(held: Sequence[Cover]) -> list[tuple[int, int, list[float]]]:
    """Return (minute, place of a row, for how many seconds of it this row and the next ones hold)."""
    parts: list[tuple[int, int, list[float]]] = []
    newest = -60
    for place, (at, end) in enumerate(held):
        if newest <= at and end <= newest + 60:
            parts[-1][2].append(end - at)
            continue
        minute = int(at // 60) * 60
        while at < end:
            until = min(end, minute + 60)
            if minute == newest:
                parts[-1][2].append(until - at)
            else:
                parts.append((minute, place, [until - at]))
                newest = minute
            at = until
            minute += 60
    return parts


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
    """The GPUs of one model among those of a row.

    Attributes:
        columns: where a row has what all its GPUs do, their utilisation, memory and power.
        places: of these GPUs among all; None: they are all.
        totals: the memory of each.
        total: the memory that each of them has; None: they differ, or it is not known.
        light: up to how much memory in use each counts as light.
    """

    model: str
    columns: tuple[slice, ...]
    places: tuple[int, ...] | None
    totals: list[float]
    total: float | None
    light: list[float]


@lru_cache(maxsize=16_384)
def _groups(gpus: tuple[GpuId, ...]) -> list[_Group]:
    places: dict[str, list[int]] = {}
    for place, gpu in enumerate(gpus):
        places.setdefault(gpu.model or "unknown", []).append(place)
    columns = tuple(_column(metric, len(gpus)) for metric in (_DOING, _UTIL, _MEM, _POWER))
    found = []
    for model, of_model in places.items():
        totals = [gpus[place].total_mem or 0.0 for place in of_model]
        light = [LIGHT_PERCENT * total / 100 for total in totals]
        found.append(
            _Group(model, columns, tuple(of_model) if len(places) > 1 else None, totals, _common(totals), light)
        )
    return found


def _column(metric: int, gpus: int) -> slice:
    """Return where a row of so many GPUs has one of GPU_METRICS."""
    return slice(metric * gpus, metric * gpus + gpus)


def _common(totals: list[float]) -> float | None:
    return totals[0] if totals[0] > 0 and totals.count(totals[0]) == len(totals) else None


def _rates(rows: Sequence[Figures], group: _Group) -> list[Share]:
    """Return the SHARE of one second of each row, of some of its GPUs; the rows are of the same ones."""
    _, (doing_at, util_at, mem_at, power_at), places, totals, total, limits = group
    count, rates = float(len(totals)), []
    for row in rows:
        values = row.values
        utils: Sequence[float] = values[util_at]
        mems: Sequence[float] = values[mem_at]
        powers: Sequence[float] = values[power_at]
        if places is not None:
            utils, mems, powers = ([column[place] for place in places] for column in (utils, mems, powers))
        util, mem, power = sum(utils), sum(mems), sum(powers)
        util_known = mem_known = count
        # a NaN is less than nothing
        light = len(
            [0 for util, mem, limit in zip(utils, mems, limits, strict=True) if util < LIGHT_PERCENT and mem < limit]
        )
        if util + mem + power != util + mem + power:  # something is not known
            util, util_known = _known_sum(utils)
            mem, mem_known = _known_sum(mems)
            power, _ = _known_sum(powers)
        if total is not None:
            percent = 100 * mem / total
        else:
            known = [100 * mem / total for mem, total in zip(mems, totals, strict=True) if mem == mem and total > 0]
            percent, mem_known = sum(known), float(len(known))
        doings = _doings(values[doing_at].tobytes(), places)
        rates.append((*doings, float(light), util, util_known, percent, mem_known, mem, power))
    return rates


@lru_cache(maxsize=8192)
def _doings(doing: bytes, places: tuple[int, ...] | None) -> Share:
    """Return how many GPUs there are, and how many in each of DOINGS; from one row to the next they are the same.

    Args:
        doing: of each GPU a place in DOINGS, float32.
        places: the GPUs that count; None: all.
    """
    codes: Sequence[float] = array("f", doing)
    if places is not None:
        codes = [codes[place] for place in places]
    return (float(len(codes)), *(float(codes.count(code)) for code in range(len(DOINGS))))


def _add_usage(usage: dict[UsageKey, Share], rows: Sequence[Figures], seconds: Sequence[float]) -> None:
    """Add the GPU-seconds of each user in rows with the same GPUs and holders, which hold for so many seconds each."""
    gpus, count = rows[0].gpus, len(rows[0].gpus)
    doing_at, util_at = _column(_DOING, count), _column(_UTIL, count)
    whole, seconds_of = sum(seconds), dict[bytes, float]()
    for row, second in zip(rows, seconds, strict=True):
        doing = row.values[doing_at].tobytes()
        seconds_of[doing] = seconds_of.get(doing, 0.0) + second
    utils = list(zip(*[row.values[util_at] for row in rows], strict=True))
    for key, places in _whose(gpus, rows[0].holders):
        busy = idle = util = 0.0
        for doing, second in seconds_of.items():
            doings = _doings(doing, places)
            busy += second * doings[_SHARE_BUSY]
            idle += second * doings[_SHARE_IDLE]
        for place in places:
            of_gpu = [each * second for each, second in zip(utils[place], seconds, strict=True)]
            total = sum(of_gpu)
            util += total if total == total else _known_sum(of_gpu)[0]
        held = len(places) * whole
        _add(usage, key, (held, busy, idle, 0.0, util / 100, held))


@lru_cache(maxsize=16_384)
def _whose(gpus: tuple[GpuId, ...], holders: tuple[Holder, ...]) -> list[tuple[UsageKey, tuple[int, ...]]]:
    """Return the places of the GPUs that each user has of each model."""
    places_of: dict[UsageKey, list[int]] = {}
    for place, user in dict.fromkeys([(holder.place, holder.user) for holder in holders]):
        places_of.setdefault((user, gpus[place].model or "unknown"), []).append(place)
    return [(key, tuple(places)) for key, places in places_of.items()]


def _known_sum(values: Iterable[float]) -> tuple[float, float]:
    """Return the sum of what is known, and how many of it are."""
    known = [value for value in values if value == value]
    return sum(known), float(len(known))


def _add(sums: dict[Any, Share], key: object, share: Share) -> None:
    was = sums.get(key)
    sums[key] = share if was is None else tuple([old + new for old, new in zip(was, share, strict=True)])


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
        still: dict[tuple[GpuId, Holder], Stretch] = {}
        found_now = _stretches(rows[first:after], held[first:after])
        for holder, new in zip(rows[first].holders, found_now, strict=True):
            key = (rows[first].gpus[holder.place], holder)
            was = open_.pop(key, None)
            still[key] = new if was is None else join(was, new)
        found += open_.values()
        open_ = still
    found += open_.values()
    return found


def _stretches(rows: Sequence[Figures], held: Sequence[Cover]) -> list[Stretch]:
    """Return a stretch for each holder of rows with the same GPUs and holders."""
    if not rows[0].holders:
        return []
    gpus, count, seconds = rows[0].gpus, len(rows[0].gpus), [end - begin for begin, end in held]
    doing_at, util_at = _column(_DOING, count), _column(_UTIL, count)
    doings = list(zip(*[row.values[doing_at] for row in rows], strict=True))
    utils = list(zip(*[row.values[util_at] for row in rows], strict=True))
    mems = zip(*[row.holder_mem for row in rows], strict=True)
    return [
        _stretch(gpus[holder.place], holder, held, seconds, doings[holder.place], utils[holder.place], mem)
        for holder, mem in zip(rows[0].holders, mems, strict=True)
    ]


def _stretch(
    gpu: GpuId,
    holder: Holder,
    held: Sequence[Cover],
    seconds: Sequence[float],
    doing: Sequence[float],
    utils: Sequence[float],
    mems: Sequence[float],
) -> Stretch:
    if doing.count(doing[0]) == len(doing):
        spans = [(doing[0], sum(seconds))]
    else:
        spans = [
            (code, sum([second for _, second in group]))
            for code, group in groupby(zip(doing, seconds, strict=True), key=itemgetter(0))
        ]
    idles = [span for code, span in spans if code == _IDLE]
    known, used = seconds, [util * second for util, second in zip(utils, seconds, strict=True)]
    if (total := sum(used)) != total:  # it is not always known
        known = [second for each, second in zip(used, seconds, strict=True) if each == each]
        total = sum([each for each in used if each == each])
    if (of_mems := sum(mems)) != of_mems:
        mems = [mem for mem in mems if mem == mem]
    return Stretch(
        gpu=gpu.gpu,
        uuid=gpu.uuid,
        model=gpu.model,
        user=holder.user,
        job=holder.job,
        from_at=held[0][0],
        to_at=held[-1][1],
        busy=sum([span for code, span in spans if code == _BUSY]),
        idle=sum(idles),
        idle_head=spans[0][1] if spans[0][0] == _IDLE else 0.0,
        idle_tail=spans[-1][1] if spans[-1][0] == _IDLE else 0.0,
        idle_longest=max(idles, default=0.0),
        peak_mem=max(mems, default=None),
        util_seconds=total / 100,
        util_known=sum(known),
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
