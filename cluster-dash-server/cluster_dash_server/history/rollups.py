"""What rows of one host add up to: pure, and additive, so that any split of the time gives the same sums.

A row holds from the moment it was taken until the next one, or where the next one is late, for one and a half of its
intervals; so each second of a GPU is counted once.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from math import inf
from operator import add, neg
from typing import TYPE_CHECKING, NamedTuple

from cluster_dash_server.history.late_numpy import np
from cluster_dash_server.store import DOINGS, GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder, Use

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

HOUR, DAY = 3600, 86_400
MOST_INTERVAL_SECONDS = 300.0
"""For how long a row holds at most where its host does not say its interval: the first agents' default."""
LIGHT_PERCENT = 30.0
"""The kept routes' own rule: below it in memory and in use, a GPU is free."""
_DOING, _UTIL, _MEM, _POWER = (GPU_METRICS.index(name) for name in ("doing", "gpu_util", "used_mem", "power_w"))
_BUSY, _IDLE = float(DOINGS.index("busy")), float(DOINGS.index("idle"))
_INTERVAL = HOST_METRICS.index("interval_seconds") - len(HOST_METRICS)
_MINUTES = HOUR // 60
_AT_ONCE = 256
"""So many parts are added up together: those of thousands of hosts would take tens of megabytes."""

SHARE = (
    *("seen", "unknown", "free", "busy", "idle", "error", "light"),
    *("util", "util_known", "memory_percent", "memory_known", "used_mem", "power_w"),
)
"""The columns of a share: GPU-seconds in each state, and figures times the seconds for which they held."""
_SHARE_BUSY, _SHARE_IDLE, _SHARE_UTIL = map(SHARE.index, ("busy", "idle", "util"))
_SEEN = 1e-6
"""GPU-seconds; fewer are what rounding leaves where all was taken out again."""
_NEARLY = 0.999
"""GPUs of which so much was seen were there for all of a minute, but for rounding."""
USAGE = ("held", "busy", "idle", "allocated", "util", "seen")
"""The columns of a usage, in GPU-seconds."""

Share = tuple[float, ...]
Minutes = dict[tuple[int, str], Share]
"""Shares by (the start of a minute, model); model '' is all of them."""
UsageKey = tuple[str, str]
"""(user, model); user '' is all of them together, each GPU once."""


@dataclass(slots=True)
class Rolled:
    """What rows add up to within an hour; of one host, or of many.

    Attributes:
        hour: its start (Unix s).
        shares: by model, float64: for each minute of the hour its SHARE; zeros where nothing was seen. Model '' are
            GPUs of which nobody knows more than that they were there.
        users: USAGE by user and model.
    """

    hour: int
    shares: "dict[str, NDArray[np.float64]]" = field(default_factory=dict)
    users: dict[UsageKey, Share] = field(default_factory=dict)

    def put(self, other: "Rolled") -> None:
        """Add what further rows of the hour give."""
        for model, shares in other.shares.items():
            self.put_shares(model, shares)
        for key, usage in other.users.items():
            self.put_usage(key, usage)

    def put_shares(self, model: str, shares: "NDArray[np.float64]") -> None:
        """Add to the shares of a model."""
        was = self.shares.get(model)
        if was is None:
            self.shares[model] = shares.copy()
        else:
            was += shares

    def put_usage(self, key: UsageKey, usage: Share) -> None:
        """Add to the usage of a user."""
        was = self.users.get(key)
        self.users[key] = usage if was is None else tuple(map(add, was, usage))

    def take_out(self, other: "Rolled") -> None:
        """Take out what was put in, or what is to be taken out of something else."""
        for model, shares in other.shares.items():
            self.put_shares(model, -shares)
        for key, usage in other.users.items():
            self.put_usage(key, tuple(map(neg, usage)))

    def of_all(self) -> "dict[str, NDArray[np.float64]]":
        """Return the shares by model, with '' for all of them."""
        return {**self.shares, "": np.sum(list(self.shares.values()), axis=0)} if self.shares else {}

    def by_minute(self) -> Minutes:
        """Return the shares of the minutes in which something was seen."""
        return {
            (self.hour + 60 * minute, model): tuple(share)
            for model, shares in self.of_all().items()
            for minute, share in enumerate(shares.tolist())
            if share[0] > _SEEN
        }

    def by_user(self) -> dict[UsageKey, Share]:
        """Return USAGE by user and model, with user '' for all of them together."""
        found = dict(self.users)
        for model in filter(None, self.shares):
            of = dict(zip(SHARE, self.shares[model].sum(axis=0).tolist(), strict=True))
            found["", model] = (of["busy"] + of["idle"], of["busy"], of["idle"], 0.0, of["util"] / 100, of["seen"])
        return {key: usage for key, usage in found.items() if max(map(abs, usage)) > _SEEN}


def width(gpus: int) -> int:
    """Return how many values a row of so many GPUs has."""
    return len(GPU_METRICS) * gpus + len(HOST_METRICS)


class Run(NamedTuple):
    """Rows of a host, one after the other, with the same GPUs and holders.

    Attributes:
        figures: float32, a line a row: its `values`, and then the memory of its holders.
    """

    gpus: tuple[GpuId, ...]
    holders: tuple[Holder, ...]
    figures: "NDArray[np.float32]"

    @property
    def values(self) -> "NDArray[np.float32]":
        """As in `Figures`, a line a row."""
        return self.figures[:, : width(len(self.gpus))]

    @property
    def of_gpus(self) -> "NDArray[np.float32]":
        """GPU_METRICS of each GPU: by row, metric and GPU."""
        count = len(self.gpus)
        return self.figures[:, : len(GPU_METRICS) * count].reshape(-1, len(GPU_METRICS), count)

    @property
    def holder_mem(self) -> "NDArray[np.float32]":
        """As in `Figures`, a line a row."""
        return self.figures[:, width(len(self.gpus)) :]


def runs_of(rows: Sequence[Figures]) -> list[Run]:
    """Return rows of one host, oldest first, as runs."""
    found, first = [], 0
    for after in range(1, len(rows) + 1):
        was = rows[first]
        if after < len(rows):
            row = rows[after]
            is_same = row.holders is was.holders or row.holders == was.holders
            if is_same and (row.gpus is was.gpus or row.gpus == was.gpus):
                continue
        plain = b"".join([part for row in rows[first:after] for part in (row.values, row.holder_mem)])
        found.append(Run(was.gpus, was.holders, np.frombuffer(plain, np.float32).reshape(after - first, -1)))
        first = after
    return found


class HourRows(NamedTuple):
    """Rows of one host, oldest first, column by column."""

    times: Sequence[float]
    boot_ids: Sequence[str | None]
    seqs: Sequence[int | None]
    runs: Sequence[Run]

    @classmethod
    def of(cls, rows: Sequence[Figures]) -> "HourRows":
        """Take them row by row."""
        return cls([row.at for row in rows], [row.boot_id for row in rows], [row.seq for row in rows], runs_of(rows))

    def by_gpus(self) -> "dict[tuple[GpuId, ...], HourRows]":
        """Part them by the GPUs that they are of."""
        parts: dict[tuple[GpuId, ...], tuple[list[float], list[str | None], list[int | None], list[Run]]] = {}
        first = 0
        for run in self.runs:
            after = first + len(run.figures)
            times, boot_ids, seqs, runs = parts.setdefault(run.gpus, ([], [], [], []))
            times += self.times[first:after]
            boot_ids += self.boot_ids[first:after]
            seqs += self.seqs[first:after]
            runs.append(run)
            first = after
        return {gpus: HourRows(*part) for gpus, part in parts.items()}

    def covers(self, begin: float, end: float) -> "NDArray[np.float64]":
        """Return the `covers` of the rows."""
        intervals = [each for run in self.runs for each in run.values[:, _INTERVAL].tolist()]
        return covers(self.times, intervals, begin, end)


def covers(
    times: Sequence[float], intervals: Sequence[float], begin: float, end: float, next_at: float = inf
) -> "NDArray[np.float64]":
    """Return for how long each row holds within a stretch of time: a line a row, from and to.

    Args:
        times: when rows of one host were taken, oldest first, all within the stretch.
        intervals: the seconds between rows, as each of them says, for its host may be set to another one meanwhile;
            NaN: it does not.
        begin: the start of the stretch; the row before it holds up to here.
        end: its end.
        next_at: when the row behind these was taken, where that is known.
    """
    if any(each != each for each in intervals):
        usual = _usual_interval(times)
        intervals = [usual if each != each else each for each in intervals]
    starts = [begin if times[0] - 1.5 * intervals[0] < begin else times[0], *times[1:]]
    ends = [
        after if after - at <= 60.0 or after - at <= 3 * interval else at + 1.5 * interval
        for at, after, interval in zip(times, times[1:], intervals, strict=False)
    ]
    last, interval = times[-1], intervals[-1]
    ends.append(next_at if next_at - last <= max(60.0, 3 * interval) else min(end, last + 1.5 * interval))
    return np.array([starts, ends]).T


def _usual_interval(times: Sequence[float]) -> float:
    gaps = sorted([second - first for first, second in pairwise(times)])
    if not gaps:
        return MOST_INTERVAL_SECONDS
    return min((gaps[len(gaps) // 2] + gaps[(len(gaps) - 1) // 2]) / 2, MOST_INTERVAL_SECONDS)


def covers_of(rows: Sequence[Figures], begin: float, end: float, next_at: float = inf) -> "NDArray[np.float64]":
    """Return `covers` of rows of one host, oldest first."""
    return covers([row.at for row in rows], [row.values[_INTERVAL] for row in rows], begin, end, next_at)


def roll(rows: Sequence[Figures], begin: float, end: float, next_at: float = inf) -> Rolled:
    """Add up rows of one host, oldest first, within an hour or a part of it; the arguments are those of `covers`."""
    return roll_runs(runs_of(rows), covers_of(rows, begin, end, next_at))


def roll_runs(runs: Sequence[Run], covers: "NDArray[np.float64]") -> Rolled:
    """Add up the runs of one host, oldest first, within an hour; `covers` are those of their rows."""
    (rolled,) = roll_together([(runs, covers)])
    return rolled


def roll_all(parts: "Sequence[tuple[Sequence[Run], NDArray[np.float64]]]") -> Iterator[Rolled]:
    """Do what `roll_runs` does, for many hosts: together they cost little more than one.

    A part in which there is a fault adds nothing, and the log tells of it: no other host lacks anything.
    """
    for first in range(0, len(parts), _AT_ONCE):
        some = parts[first : first + _AT_ONCE]
        try:
            found = roll_together(some)
        except Exception as error:  # of any of them: which one is found below
            log.debug("%r", error)
            found = list(map(_rolled_or_nothing, some))
        yield from found


def _rolled_or_nothing(part: "tuple[Sequence[Run], NDArray[np.float64]]") -> Rolled:
    try:
        return roll_runs(*part)
    except Exception:  # whatever is odd in it: the other hosts must not lack theirs
        log.exception("a fault in adding up rows of a host: they are left out of its sums")
        return Rolled(0)


def roll_together(parts: "Sequence[tuple[Sequence[Run], NDArray[np.float64]]]") -> list[Rolled]:
    """Do what `roll_runs` does, for some parts at once."""
    found: list[Rolled] = []
    alike: dict[tuple[int, tuple[int, ...] | None], list[tuple[_Part, _Group]]] = {}
    held: dict[int, list[_Part]] = {}
    for runs, covers in parts:
        rolled = Rolled(int(covers[0, 0] // HOUR) * HOUR)
        found.append(rolled)
        first = 0
        for run in runs:
            after = first + len(run.figures)
            part = _Part(rolled, run, covers[first:after])
            for group in _groups(run.gpus):
                alike.setdefault((len(run.gpus), group.places), []).append((part, group))
            if run.holders:
                held.setdefault(len(run.gpus), []).append(part)
            first = after
    for (_, places), of_parts in alike.items():
        _add_shares(of_parts, places)
    for of_users in held.values():
        _add_users(of_users)
    return found


class _Group(NamedTuple):
    """The GPUs of one model among those of a row.

    Attributes:
        places: of these GPUs among all; None: they are all.
        memory: of each GPU: below how much memory it counts as light, what makes percents of its memory, and whether
            it is known how much it has.
    """

    model: str
    places: tuple[int, ...] | None
    memory: "NDArray[np.float64]"


@lru_cache(maxsize=16_384)
def _groups(gpus: tuple[GpuId, ...]) -> list[_Group]:
    places: dict[str, list[int]] = {}
    for place, gpu in enumerate(gpus):
        places.setdefault(gpu.model or "unknown", []).append(place)
    found = []
    for model, of_model in places.items():
        totals = [gpus[place].total_mem or 0.0 for place in of_model]
        memory = [
            [LIGHT_PERCENT * total / 100 for total in totals],
            [100 / total if total > 0 else 0.0 for total in totals],
            [float(total > 0) for total in totals],
        ]
        found.append(_Group(model, tuple(of_model) if len(places) > 1 else None, np.array(memory)))
    return found


class _Part(NamedTuple):
    """A run, for how long its rows hold, and where to put what they add up to."""

    rolled: Rolled
    run: Run
    covers: "NDArray[np.float64]"


def _add_shares(parts: Sequence[tuple[_Part, _Group]], places: tuple[int, ...] | None) -> None:
    """Add the shares of runs with equally many GPUs, of which those at some places are of one model."""
    lengths = [len(part.covers) for part, _ in parts]
    figures = _figures([part.run for part, _ in parts])
    if places is not None:
        figures = figures[:, places]
    memory = np.repeat(np.stack([group.memory for _, group in parts], axis=2), lengths, axis=2)
    row, minute, seconds = _minutes(np.concatenate([part.covers for part, _ in parts]))
    if not len(row):
        return
    part_of = np.repeat(np.arange(len(parts)), lengths)[row]
    is_new = np.ones(len(row), np.bool_)
    is_new[1:] = (part_of[1:] != part_of[:-1]) | (minute[1:] != minute[:-1])
    (starts,) = is_new.nonzero()
    shares = np.add.reduceat(_rates(figures, memory)[:, row] * seconds, starts, axis=1).T
    found = np.zeros((len(parts), _MINUTES, len(SHARE)))
    found[part_of[starts], minute[starts] % _MINUTES] = shares
    for (part, group), of_part in zip(parts, found, strict=True):
        part.rolled.put_shares(group.model, of_part)


def _minutes(
    covers: "NDArray[np.float64]",
) -> "tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]":
    """Return (place of a row, minute since 1970, for how many seconds of it the row holds), in the order of rows."""
    begin, end = covers.T
    first = (begin // 60).astype(np.int64)
    counts = np.maximum(-(-end // 60).astype(np.int64) - first, 0)
    row = np.repeat(np.arange(len(covers)), counts)
    minute = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    return row, minute, np.minimum(end[row], 60.0 * minute + 60) - np.maximum(begin[row], 60.0 * minute)


def _figures(runs: Sequence[Run]) -> "NDArray[np.float64]":
    """Return what all GPUs of runs do, their utilisation, memory and power: by metric, GPU and row.

    To add up rows that lie side by side takes a fraction of the time of adding up GPUs that do.
    """
    of_gpus = np.concatenate([run.of_gpus for run in runs])
    return np.array([of_gpus[:, metric].T for metric in (_DOING, _UTIL, _MEM, _POWER)], np.float64)


def _rates(figures: "NDArray[np.float64]", memory: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Return the SHARE of one second of each row: by column of it, and row.

    Args:
        figures: as `_figures` returns them.
        memory: what `_Group.memory` has, by GPU and row.
    """
    doing, util, mem, _ = figures
    light, percent, has_total = memory
    is_known = figures[1:] == figures[1:]
    known = np.where(is_known, figures[1:], 0.0)
    (known_util, known_mem, known_power), (is_util_known, is_mem_known, _) = known, is_known
    rates = np.empty((len(SHARE), figures.shape[2]))
    of = dict(zip(SHARE, rates, strict=True))  # each is a line of it
    of["seen"][:] = len(doing)
    for code, name in enumerate(DOINGS):
        (doing == code).sum(axis=0, out=of[name])
    # a NaN is less than nothing
    ((util < LIGHT_PERCENT) & (mem < light)).sum(axis=0, out=of["light"])
    known_util.sum(axis=0, out=of["util"])
    is_util_known.sum(axis=0, out=of["util_known"])
    (known_mem * percent).sum(axis=0, out=of["memory_percent"])
    (is_mem_known * has_total).sum(axis=0, out=of["memory_known"])
    known_mem.sum(axis=0, out=of["used_mem"])
    known_power.sum(axis=0, out=of["power_w"])
    return rates


def _add_users(held: Sequence[_Part]) -> None:
    """Add the GPU-seconds of users in runs with equally many GPUs."""
    doing, util, *_ = _figures([each.run for each in held])
    covers = np.concatenate([each.covers for each in held])
    seconds = covers[:, 1] - covers[:, 0]
    starts = np.cumsum([0, *[len(each.covers) for each in held[:-1]]])
    figures = np.array([doing == _BUSY, doing == _IDLE, np.where(util == util, util, 0.0) / 100, np.ones(util.shape)])
    of_gpus = np.add.reduceat(figures * seconds, starts, axis=2)
    whose = [_whose(each.run.gpus, each.run.holders) for each in held]
    run = np.repeat(np.arange(len(held)), [len(places) for _, places, _ in whose])
    of_gpus = of_gpus[:, np.concatenate([places for _, places, _ in whose]), run]
    firsts = np.cumsum([0, *[count for _, _, counts in whose for count in counts][:-1]])
    of_users = [(each.rolled, key) for each, (keys, _, _) in zip(held, whose, strict=True) for key in keys]
    sums = np.add.reduceat(of_gpus, firsts, axis=1).T.tolist()
    for (rolled, key), (busy, idle, used, seen) in zip(of_users, sums, strict=True):
        rolled.put_usage(key, (seen, busy, idle, 0.0, used, seen))


@lru_cache(maxsize=16_384)
def _whose(
    gpus: tuple[GpuId, ...], holders: tuple[Holder, ...]
) -> "tuple[list[UsageKey], NDArray[np.intp], list[int]]":
    """Return who has GPUs of which model, the places of these GPUs one user after the other, and how many each has."""
    places_of: dict[UsageKey, list[int]] = {}
    for place, user in dict.fromkeys([(holder.place, holder.user) for holder in holders]):
        places_of.setdefault((user, gpus[place].model or "unknown"), []).append(place)
    return list(places_of), np.concatenate(list(places_of.values())), list(map(len, places_of.values()))


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
    return stretches_of(runs_of(rows), covers_of(rows, begin, end))


def stretches_of(runs: Sequence[Run], covers: "NDArray[np.float64]") -> list[Stretch]:
    """Return who had which GPU of a host, oldest first, of its runs and the `covers` of their rows."""
    found: list[Stretch] = []
    open_: dict[tuple[GpuId, Holder], Stretch] = {}
    first = 0
    for run in runs:
        after = first + len(run.figures)
        still: dict[tuple[GpuId, Holder], Stretch] = {}
        for holder, new in zip(run.holders, _stretches(run, covers[first:after]), strict=True):
            key = (run.gpus[holder.place], holder)
            was = open_.pop(key, None)
            still[key] = new if was is None else join(was, new)
        found += open_.values()
        open_ = still
        first = after
    found += open_.values()
    return found


def _stretches(run: Run, covers: "NDArray[np.float64]") -> list[Stretch]:
    """Return a stretch for each holder of a run."""
    if not run.holders:
        return []
    places = [holder.place for holder in run.holders]
    doing, util = _figures([run])[:2, places]
    seconds = covers[:, 1] - covers[:, 0]
    is_idle, is_known = doing == _IDLE, util == util
    sums = np.array([doing == _BUSY, is_idle, np.where(is_known, util, 0.0) / 100, is_known])
    begin, end = float(covers[0, 0]), float(covers[-1, 1])
    return [
        Stretch(
            *(gpu.gpu, gpu.uuid, gpu.model, holder.user, holder.job, begin, end, busy, idle, head, tail, longest),
            *(None if peak != peak else peak, util_seconds, util_known),
        )
        for holder, gpu, busy, idle, util_seconds, util_known, head, tail, longest, peak in zip(
            run.holders,
            [run.gpus[place] for place in places],
            *(sums * seconds).sum(axis=2).tolist(),
            *_idle_spans(is_idle, seconds),
            np.fmax.reduce(run.holder_mem).tolist(),
            strict=True,
        )
    ]


def _idle_spans(is_idle: "NDArray[np.bool_]", seconds: "NDArray[np.float64]") -> tuple[list[float], ...]:
    """Return for how long each holder did nothing from the start on, up to the end, and at most.

    Args:
        is_idle: by holder and row.
        seconds: for how long each row holds.
    """
    begins = np.ones(is_idle.shape, np.bool_)
    begins[:, 1:] = is_idle[:, 1:] != is_idle[:, :-1]
    starts = np.flatnonzero(begins)
    spans = np.add.reduceat(np.tile(seconds, len(is_idle)), starts) * is_idle.ravel()[starts]
    firsts = np.searchsorted(starts, np.arange(0, is_idle.size, len(seconds)))
    lasts = np.append(firsts[1:], len(starts)) - 1
    return spans[firsts].tolist(), spans[lasts].tolist(), np.maximum.reduceat(spans, firsts).tolist()


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


def whole_minutes(minutes: Minutes, known_to: float = inf) -> list[tuple[int, str, Share]]:
    """Return the minutes that rows cover to their ends, in order.

    Where a minute has none before or after it, rows began or ended somewhere in it: told over 60 s, its GPUs would be
    too few. So it is in the minute beside that one if not all hosts began or ended in the same: it is told where as
    much was seen as in the next one. Of the hour before or after nothing may be known yet: the minute at its edge is
    told, too, where as much was seen as in the whole one beside it.

    Args:
        minutes: of whole hours, or with two minutes more on either side.
        known_to: from there on (Unix s) it is not known yet which minutes there are.
    """

    def reaches(minute: int, model: str, step: int) -> bool:
        """Say whether rows reach the end of a minute that lies towards `step`."""
        next_, after = ((minute + far, model) in minutes or minute + far >= known_to for far in (step, 2 * step))
        if next_ and after:
            return True
        is_edge_of_hour = (minute + step) // HOUR != minute // HOUR and (minute - 2 * step, model) in minutes
        beside = minutes.get((minute - step, model))
        is_full = beside is not None and minutes[minute, model][0] >= _NEARLY * beside[0]
        return is_full and (next_ or is_edge_of_hour)

    return [
        (minute, model, share)
        for (minute, model), share in sorted(minutes.items())
        if reaches(minute, model, -60) and reaches(minute, model, 60)
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
