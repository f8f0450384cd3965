"""What a chart over time says and draws: lines with their band, gaps, marks for events, a table. Pure.

The browser gets numbers, names and roles (`static/js/timeline.js`); colours, zones and Plotly are its own business.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster_dash_server.hostlist import natural
from cluster_dash_server.store import By, Event, Series
from cluster_dash_server.summary import model_by_name
from cluster_dash_server.web import words
from cluster_dash_server.when import Span

MOST_LINES = 16
"""Lines in one figure; of more, those with the highest mean are drawn, and the band tells of all."""
BANDED_LINES = 4
"""Up to so many lines each have a band of their own, from their least to their most."""
MOST_ROWS = 200
MOST_MARKS = 80
MOST_MARKED = 4
"""Events that one mark names."""
NAME_CHARACTERS = 40

Json = dict[str, Any]


class Measure(NamedTuple):
    """How a metric is said.

    Attributes:
        scale: what its figures are multiplied by, to be of `unit`.
        top: where its axis ends; None: where its figures do.
        ramp: the colours of its map.
    """

    title: str
    unit: str
    scale: float = 1
    top: float | None = None
    ramp: str = "busy"

    def say(self, value: float | None) -> str:
        """Say a figure, with its unit."""
        return words.DASH if value is None else f"{words.short(value * self.scale)} {self.unit}".rstrip()


_GIB = 1 / 1024
MEASURES = {
    "gpu_util": Measure("GPU busy", "%", top=100),
    "memory_util": Measure("GPU memory traffic", "%", top=100),
    "used_mem": Measure("GPU memory in use", "GiB", _GIB, ramp="memory"),
    "temperature_c": Measure("GPU temperature", "°C", ramp="heat"),
    "memory_temperature_c": Measure("GPU memory temperature", "°C", ramp="heat"),
    "power_w": Measure("Power", "W", ramp="heat"),
    "fan_percent": Measure("Fan", "%", top=100),
    "sm_clock_mhz": Measure("SM clock", "MHz"),
    "memory_clock_mhz": Measure("Memory clock", "MHz"),
    "encoder_util": Measure("Encoder busy", "%", top=100),
    "decoder_util": Measure("Decoder busy", "%", top=100),
    "tx_kib_s": Measure("Sent over PCIe", "MiB/s", _GIB),
    "rx_kib_s": Measure("Received over PCIe", "MiB/s", _GIB),
    "unattributed_mem": Measure("GPU memory of no process", "GiB", _GIB, ramp="memory"),
    "cpu_percent": Measure("CPU busy", "%", top=100),
    "load_avg_1": Measure("Load, 1 min", ""),
    "memory_used_gb": Measure("Memory of the host in use", "GiB", ramp="memory"),
    "swap_used_gb": Measure("Swap in use", "GiB", ramp="memory"),
    "disk_percent": Measure("Fullest disk", "%", top=100),
    "interval_seconds": Measure("Seconds between snapshots", "s"),
    "total_gpus": Measure("GPUs", ""),
    "free_gpus": Measure("Free GPUs", ""),
    "busy_gpus": Measure("Busy GPUs", ""),
    "idle_gpus": Measure("GPUs held without work", ""),
    "error_gpus": Measure("GPUs in error", ""),
    "unknown_gpus": Measure("GPUs of which nothing is known", ""),
    "light_gpus": Measure("GPUs below 30 % in memory and use", ""),
    "held_gpus": Measure("Held GPUs", ""),
    "memory_percent": Measure("GPU memory in use", "%", top=100, ramp="memory"),
}
"""Every metric that people are shown; the others are for machines."""
_OF_MANY = {
    "power_w": Measure("Power of all GPUs", "kW", 1 / 1000),
    "used_mem": Measure("GPU memory in use", "TiB", _GIB**2),
}
"""… and how sums over many GPUs are said."""


def measure(metric: str, by: By) -> Measure:
    """Return how a metric is said."""
    return _OF_MANY.get(metric, MEASURES[metric]) if by in ("cluster", "model") else MEASURES[metric]


class Line(NamedTuple):
    """One line of a figure, by the name that people see."""

    name: str
    series: Series


class Row(NamedTuple):
    """What the table beside a figure says of one line."""

    name: str
    least: str
    mean: str
    most: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure: the finding in a sentence, the table, and what is drawn.

    Attributes:
        key: names it on the page; the metric where there is one.
        peak_at: when the highest figure was measured (the start of its step); None: there is none.
        left_out: how many lines are not drawn, in words; empty: none.
        points: how many steps hold a figure.
    """

    key: str
    title: str
    finding: str
    peak_at: float | None
    left_out: str
    points: int
    rows: Sequence[Row]
    drawing: Json


def named(series: Iterable[Series], by: By, *, one_host: bool) -> list[Line]:
    """Name the lines of an answer, in the order in which people count."""
    lines = [Line(_name(each, by, one_host=one_host), each) for each in series]
    return sorted(lines, key=lambda line: natural(line.name))


def _name(each: Series, by: By, *, one_host: bool) -> str:
    if by == "cluster":
        return "all GPUs"
    if by == "model":
        return model_by_name(each.model or "unknown")
    if by == "user":
        return each.user or words.DASH
    if by == "host":
        return each.host or words.DASH
    return f"GPU {each.gpu}" if one_host else f"{each.host} GPU {each.gpu}"


# ------------------------------------------------------------------------------------------------------- what is said


class _Told(NamedTuple):
    mean: float
    most: float
    most_at: float
    least: float
    last: float


def _told(series: Series) -> _Told | None:
    means = [value for value in series.mean if value is not None]
    if not means:
        return None
    most, most_at = max((value, -at) for value, at in zip(series.max, series.t, strict=True) if value is not None)
    least = min(value for value in series.min if value is not None)
    return _Told(sum(means) / len(means), most, -most_at, least, means[-1])


def figure(
    key: str,
    said: Measure,
    lines: Sequence[Line],
    span: Span,
    marks: Sequence[Json] = (),
    *,
    is_live: bool = True,
    alike: bool = True,
) -> Figure:
    """Make a figure.

    Args:
        key: see `Figure`.
        said: how its figures are said.
        lines: all that was asked for; all with the same steps.
        span: what its axis shows.
        marks: see `marks`.
        is_live: its figures come at once: where they end before the span does, there is a gap.
        alike: its lines are of one kind: a mean over all of them says something.
    """
    told = [(line, each) for line in lines if (each := _told(line.series)) is not None]
    drawn = told
    if len(told) > MOST_LINES:
        highest = sorted(told, key=lambda each: -each[1].mean)[:MOST_LINES]
        drawn = [each for each in told if each in highest]
    series = [line.series for line, _ in told]
    known = [any(each.mean[place] is not None for each in series) for place in range(len(series[0].t) if series else 0)]
    peak = max(told, key=lambda each: each[1].most, default=None)
    return Figure(
        key=key,
        title=said.title + (f", {said.unit}" if said.unit else ""),
        finding=_finding(said, told) if alike else _each(said, told),
        peak_at=None if peak is None or not alike else peak[1].most_at,
        left_out=f"The {MOST_LINES} highest of {len(told)} are drawn; the band tells of all."
        if len(told) > MOST_LINES
        else "",
        points=sum(known),
        rows=[_row(said, line, each) for line, each in told[:MOST_ROWS]],
        drawing={
            "kind": "lines",
            **_steps(series),
            "begin": span.begin,
            "end": span.end,
            "unit": said.unit,
            "top": said.top,
            "lines": [_line(line, said, banded=len(drawn) <= BANDED_LINES) for line, _ in drawn],
            "band": _envelope(series, said) if len(drawn) > BANDED_LINES else None,
            "gaps": _gaps(series[0], known, span if is_live else None) if series else [],
            "marks": list(marks),
        },
    )


def _finding(said: Measure, told: Sequence[tuple[Line, _Told]]) -> str:
    if not told:
        return "Not measured in this time"
    mean = sum(each.mean for _, each in told) / len(told)
    line, peak = max(told, key=lambda each: each[1].most)
    of = "" if len(told) == 1 else f" ({words.cut(line.name, NAME_CHARACTERS)})"
    return f"{said.say(mean)} on average, {said.say(peak.most)} at most{of}"


def _each(said: Measure, told: Sequence[tuple[Line, _Told]]) -> str:
    means = [f"{words.cut(line.name, NAME_CHARACTERS)} {said.say(each.mean)}" for line, each in told]
    return f"On average {', '.join(means)}" if means else "Not measured in this time"


def _row(said: Measure, line: Line, each: _Told) -> Row:
    name = words.cut(line.name, 2 * NAME_CHARACTERS)
    return Row(name, said.say(each.least), said.say(each.mean), said.say(each.most), said.say(each.last))


def _steps(series: Sequence[Series]) -> Json:
    if not series:
        return {"t0": 0, "step": 1, "count": 0}
    return {"t0": series[0].t[0], "step": series[0].step_seconds, "count": len(series[0].t)}


def _scaled(values: Iterable[float | None], said: Measure) -> list[float | None]:
    return [None if value is None else round(value * said.scale, 2) for value in values]


def _line(line: Line, said: Measure, *, banded: bool) -> Json:
    drawn: Json = {"name": words.cut(line.name, NAME_CHARACTERS), "mean": _scaled(line.series.mean, said)}
    if banded:
        drawn |= {"min": _scaled(line.series.min, said), "max": _scaled(line.series.max, said)}
    return drawn


def _envelope(series: Sequence[Series], said: Measure) -> Json:
    """Return the least and the most of all lines: what is spiky stays to be seen."""
    columns = (
        list(zip(*(each.min for each in series), strict=True)),
        list(zip(*(each.max for each in series), strict=True)),
    )
    lows = [min((value for value in column if value is not None), default=None) for column in columns[0]]
    highs = [max((value for value in column if value is not None), default=None) for column in columns[1]]
    return {"min": _scaled(lows, said), "max": _scaled(highs, said)}


def _gaps(series: Series, known: Sequence[bool], span: Span | None) -> list[list[float]]:
    """Return stretches without a figure, between those with some and (with `span`) behind the last."""
    gaps: list[list[float]] = []
    if not any(known):
        return gaps
    first = known.index(True)
    for place in range(first, len(known)):
        if known[place]:
            continue
        begin = series.t[place]
        if gaps and gaps[-1][1] >= begin:
            gaps[-1][1] = begin + series.step_seconds
        else:
            gaps.append([begin, begin + series.step_seconds])
    end = series.t[-1] + series.step_seconds
    if gaps and gaps[-1][1] >= end and (span is None or gaps[-1][1] - gaps[-1][0] <= 2 * series.step_seconds):
        gaps.pop()  # what is newest is still on its way
    return gaps


# -------------------------------------------------------------------------------------------------------- marks, maps


def marks(events: Iterable[Event], span: Span) -> list[Json]:
    """Return marks for events, those near each other in one: `{at, count, texts: […]}`, oldest first."""
    width = max(1.0, span.seconds / MOST_MARKS)
    near: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        near[math.floor((event.at - span.begin) / width)].append(event)
    return [
        {
            "at": min(event.at for event in found),
            "count": len(found),
            "texts": [_event(event) for event in sorted(found, key=lambda event: event.at)[:MOST_MARKED]],
        }
        for _, found in sorted(near.items())
    ]


def _event(event: Event) -> str:
    if event.kind == "alert":  # its title says where
        return f"alert: {words.cut(event.text, 100)}"
    gpu = "" if event.gpu is None else f" GPU {words.cut(str(event.gpu), 20)}"
    text = event.text or event.kind.replace("_", " ")
    return f"{words.cut(event.host, 32)}{gpu}: {words.cut(text, 80)}"


def cells(key: str, said: Measure, lines: Sequence[Line], span: Span, of: int) -> Figure:
    """Make a map: a row for each line, a cell for each step.

    Args:
        key: see `Figure`.
        said: how its figures are said.
        lines: its rows.
        span: what its axis shows.
        of: how many rows there would be.
    """
    told = [(line, each) for line in lines if (each := _told(line.series)) is not None]
    peak = max(told, key=lambda each: each[1].most, default=None)
    return Figure(
        key=key,
        title=said.title + (f", {said.unit}" if said.unit else ""),
        finding=_finding(said, told),
        peak_at=None if peak is None else peak[1].most_at,
        left_out=f"The first {len(lines)} of {of} are drawn: a filter chooses others." if of > len(lines) else "",
        points=sum(value is not None for line, _ in told for value in line.series.mean),
        rows=[_row(said, line, each) for line, each in told[:MOST_ROWS]],
        drawing={
            "kind": "cells",
            **_steps([line.series for line in lines]),
            "begin": span.begin,
            "end": span.end,
            "unit": said.unit,
            "top": said.top,
            "ramp": said.ramp,
            "rows": [words.cut(line.name, NAME_CHARACTERS) for line in lines],
            "values": [_scaled(line.series.mean, said) for line in lines],
        },
    )
