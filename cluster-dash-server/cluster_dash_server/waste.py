"""Who had GPUs and what came of it: GPU-hours held, busy and idle, by whom and when, and whether more are needed. Pure.

A GPU is *held* while somebody has a process or memory on it, *busy* while it works, *idle* while it is held and does
nothing, for however short a time. By user and group a GPU that two people share counts for both; by host, by model and
in the total each GPU counts once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from typing import Literal, get_args

from cluster_dash_server.store import MOST_POINTS, Ledger, Series, SeriesQuery, Store, Usage, UsageQuery, Use, UseQuery
from cluster_dash_server.summary import model_by_name
from cluster_dash_server.when import Span, step_seconds

By = Literal["user", "group", "host", "model"]
BYS: tuple[By, ...] = get_args(By)
UNKNOWN_GROUP = "unknown"
SHORT_SHARE = 0.05
"""From which share of the time without a free GPU on a model is short."""
ROOMY_SHARE = 0.7
"""Up to which share of its GPUs at the peak a model is more than enough."""
LOOKED_THROUGH = 100
"""Days of hosts whose idle stretches are looked through, some 2 ms each; of more, the longest is not told."""
_STEPS = 750
_HOURS_FROM_SECONDS = 12 * 3600
"""Longer times are told by the hour: sums by the hour are kept, those of minutes would have to be added up."""
_NONE_FREE = 0.5
"""Fewer free GPUs than this, as a mean over a step, are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The longest stretch in which somebody held a GPU that did nothing."""

    seconds: float
    user: str
    host: str
    gpu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """GPU-seconds of one user, group, host or model, or of all.

    Attributes:
        name: of whom; empty for all.
        util_seconds: 3,600 are one GPU at 100 % for an hour.
        longest: the longest idle stretch; None: there was none, or there is too much to look through.
    """

    name: str
    held_seconds: float = 0.0
    busy_seconds: float = 0.0
    idle_seconds: float = 0.0
    util_seconds: float = 0.0
    longest: Idle | None = None

    @property
    def idle_share(self) -> float | None:
        """How much of what was held did nothing, 0 to 1; None: nothing was held."""
        return self.idle_seconds / self.held_seconds if self.held_seconds > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """An hour of the week, on average: how many GPUs were there, held, and held without work."""

    seen_gpus: float
    held_gpus: float
    idle_gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What there was of a model and what was asked of it.

    Attributes:
        gpus: how many there were, on average.
        held_mean: how many were held; idle_mean: … and did nothing.
        peak: the most that were held at once, as a mean over a step; peak_at: when that step began.
        free_min: the fewest that were free.
        none_free_share: for how much of the time none was free, 0 to 1.
        idle_when_full: how many did nothing, on average, while none was free; None: some was always free.
    """

    model: str
    gpus: float
    held_mean: float
    idle_mean: float
    peak: float
    peak_at: float
    free_min: float
    none_free_share: float
    idle_when_full: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the GPUs in a stretch of time.

    Attributes:
        lines: by BYS; the most idle first.
        week: 7 days from Monday on, 24 hours each, in the zone of the site; None where nothing is known.
        supply: by model, the shortest first.
        free: how many GPUs were free over time, in all; held: how many were held.
    """

    span: Span
    total: Line
    lines: dict[By, list[Line]]
    week: list[list[Hour | None]]
    supply: list[Supply]
    free: Series | None
    held: Series | None


def report(store: Store, ledger: Ledger, span: Span, zone: tzinfo, group_of: Callable[[str], str | None]) -> Report:
    """Look at a stretch of time.

    Args:
        store: the figures.
        ledger: GPU-hours, and who had which GPU.
        span: which time; the ledger takes each hour of it whole, the running one up to now.
        zone: in which the hours of the week are counted.
        group_of: says in which group a user is; None: nobody knows.

    Raises:
        StoreError: history cannot be read.
    """

    def usage(*by: Literal["user", "host", "model", "hour"]) -> list[Usage]:
        return ledger.usage(UsageQuery(begin=span.begin, end=span.end, by=by))

    of_host = [_line(each.host or "", each) for each in usage("host")]
    few = len(of_host) * span.seconds <= LOOKED_THROUGH * 86_400
    longest = _longest(ledger.uses(UseQuery(begin=span.begin, end=span.end)) if few else (), group_of)
    of_user = [_line(each.user or "", each) for each in usage("user")]
    lines: dict[By, list[Line]] = {
        "user": of_user,
        "group": _grouped(of_user, group_of),
        "host": of_host,
        "model": _summed(_line(model_by_name(each.model or "unknown"), each) for each in usage("model")),
    }
    total = next((_line("", each) for each in usage()), Line(name=""))
    free = _series(store, span, "free_gpus", "cluster")
    return Report(
        span=span,
        total=replace(total, longest=_most(longest["user"].values())),
        lines={
            by: sorted(
                (replace(line, longest=longest[by].get(line.name)) for line in found if line.held_seconds > 0),
                key=lambda line: (-line.idle_seconds, -line.held_seconds, line.name),
            )
            for by, found in lines.items()
        },
        week=week(usage("hour"), _gpus_of_hours(store, span), zone),
        supply=supply(store, span),
        free=next(iter(free.values()), None),
        held=next(iter(_held(store, span, "cluster").values()), None),
    )


def _line(name: str, each: Usage) -> Line:
    return Line(
        name=name,
        held_seconds=each.held_seconds,
        busy_seconds=each.busy_seconds,
        idle_seconds=each.idle_seconds,
        util_seconds=each.util_seconds,
    )


def _summed(lines: Iterable[Line]) -> list[Line]:
    """Join lines of one name."""
    sums: dict[str, Line] = {}
    for each in lines:
        was = sums.get(each.name, Line(name=each.name))
        sums[each.name] = Line(
            name=each.name,
            held_seconds=was.held_seconds + each.held_seconds,
            busy_seconds=was.busy_seconds + each.busy_seconds,
            idle_seconds=was.idle_seconds + each.idle_seconds,
            util_seconds=was.util_seconds + each.util_seconds,
        )
    return list(sums.values())


def _grouped(of_user: Iterable[Line], group_of: Callable[[str], str | None]) -> list[Line]:
    return _summed(replace(line, name=group_of(line.name) or UNKNOWN_GROUP) for line in of_user)


def _longest(uses: Iterable[Use], group_of: Callable[[str], str | None]) -> dict[By, dict[str, Idle]]:
    found: dict[By, dict[str, Idle]] = {by: {} for by in BYS}
    for use in uses:
        if use.longest_idle_seconds <= 0:
            continue
        idle = Idle(seconds=use.longest_idle_seconds, user=use.user, host=use.host, gpu=use.gpu)
        names = (use.user, group_of(use.user) or UNKNOWN_GROUP, use.host, model_by_name(use.model or "unknown"))
        for by, name in zip(BYS, names, strict=True):
            was = found[by].get(name)
            if was is None or idle.seconds > was.seconds:
                found[by][name] = idle
    return found


def _most(idles: Iterable[Idle]) -> Idle | None:
    return max(idles, key=lambda idle: idle.seconds, default=None)


def week(hours: Iterable[Usage], gpus: Mapping[float, float], zone: tzinfo) -> list[list[Hour | None]]:
    """Return the mean of each hour of the week: 7 days from Monday on, 24 hours each; None where nothing was seen.

    Args:
        hours: GPU-seconds by hour.
        gpus: how many GPUs there were in each hour, while it was measured; no hour counts for longer than that.
        zone: in which days and hours are counted.
    """
    of_cell: dict[tuple[int, int], list[Usage]] = defaultdict(list)
    for each in hours:
        if each.hour is not None and each.seen_seconds > 0:
            then = datetime.fromtimestamp(each.hour, zone)
            of_cell[then.weekday(), then.hour].append(each)
    return [[_hour(of_cell.get((day, hour), ()), gpus) for hour in range(24)] for day in range(7)]


def _hour(found: Sequence[Usage], gpus: Mapping[float, float]) -> Hour | None:
    if not found:
        return None
    seconds = sum(min(3600.0, each.seen_seconds / gpus.get(each.hour or 0.0, 1e-9)) for each in found)
    return Hour(
        seen_gpus=sum(each.seen_seconds for each in found) / seconds,
        held_gpus=sum(each.held_seconds for each in found) / seconds,
        idle_gpus=sum(each.idle_seconds for each in found) / seconds,
    )


def _gpus_of_hours(store: Store, span: Span) -> dict[float, float]:
    """Return how many GPUs there were in each hour, as a mean over the time for which that is known."""
    found: dict[float, float] = {}
    begin, last = span.begin // 3600 * 3600, span.end
    while begin <= last:
        end = min(last, begin + (MOST_POINTS - 1) * 3600)
        ask = SeriesQuery(metric="total_gpus", begin=begin, end=end, by="cluster", step_seconds=3600)
        for each in store.series(ask):
            found |= {at: mean for at, mean in zip(each.t, each.mean, strict=True) if mean}
        begin += MOST_POINTS * 3600
    return found


# ------------------------------------------------------------------------------------------------- is there enough


def supply(store: Store, span: Span) -> list[Supply]:
    """Compare what there was of each model with what was asked of it, the shortest first.

    Raises:
        StoreError: history cannot be read.
    """
    totals, free = (_series(store, span, metric, "model") for metric in ("total_gpus", "free_gpus"))
    held, idle = _held(store, span, "model"), _series(store, span, "idle_gpus", "model")
    found = []
    for model, total in totals.items():
        each = _supply(model, total, free[model], held[model], idle[model])
        if each is not None:
            found.append(each)
    return sorted(found, key=lambda each: (-each.none_free_share, -each.peak / max(each.gpus, 1), each.model))


def _supply(model: str, total: Series, free: Series, held: Series, idle: Series) -> Supply | None:
    known = [
        (at, gpus, left, least, have, still)
        for at, gpus, left, least, have, still in zip(
            total.t, total.mean, free.mean, free.min, held.mean, idle.mean, strict=True
        )
        if gpus and left is not None and least is not None and have is not None and still is not None
    ]
    if not known:
        return None
    full = [still for _, _, left, _, _, still in known if left < _NONE_FREE]
    peak, peak_at = max((have, -at) for at, _, _, _, have, _ in known)
    return Supply(
        model=model_by_name(model),
        gpus=sum(gpus for _, gpus, *_ in known) / len(known),
        held_mean=sum(have for *_, have, _ in known) / len(known),
        idle_mean=sum(still for *_, still in known) / len(known),
        peak=peak,
        peak_at=-peak_at,
        free_min=min(least for _, _, _, least, _, _ in known),
        none_free_share=len(full) / len(known),
        idle_when_full=sum(full) / len(full) if full else None,
    )


def _series(store: Store, span: Span, metric: str, by: Literal["cluster", "model"]) -> dict[str, Series]:
    ask = SeriesQuery(metric=metric, begin=span.begin, end=span.end, by=by, step_seconds=_step(span))
    return {each.model or "": each for each in store.series(ask)}


def _held(store: Store, span: Span, by: Literal["cluster", "model"]) -> dict[str, Series]:
    """Return how many GPUs somebody held: those that worked and those that did not."""
    busy, idle = (_series(store, span, metric, by) for metric in ("busy_gpus", "idle_gpus"))
    return {
        name: replace(
            each,
            min=_added(each.min, idle[name].min),
            mean=_added(each.mean, idle[name].mean),
            max=_added(each.max, idle[name].max),
        )
        for name, each in busy.items()
    }


def _added(one: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a + b for a, b in zip(one, other, strict=True)]


def _step(span: Span) -> float:
    finest = 3600.0 if span.seconds > _HOURS_FROM_SECONDS else 60.0
    return max(finest, step_seconds(span.seconds, _STEPS))


def advice(supplies: Sequence[Supply]) -> list[str]:
    """Say of each model in a sentence whether more of it are needed, the shortest first."""
    return [f"{each.model}: {_advice(each)}" for each in supplies]


def _advice(each: Supply) -> str:
    gpus, peak = round(each.gpus), round(each.peak)
    if each.none_free_share >= SHORT_SHARE:
        said = f"none of {gpus} was free for {100 * each.none_free_share:.0f} % of the time"
        idle = round(each.idle_when_full or 0)
        if idle:
            return f"{said}, while {idle} were held without work. Free those before you buy more."
        return f"{said}, and those held worked. More of them would be used."
    at_most = f"at most {peak} of {gpus} were held at once"
    if peak <= ROOMY_SHARE * gpus:
        return f"{at_most}. There are enough."
    return f"{at_most}, and some were free nearly always. Enough for now."
