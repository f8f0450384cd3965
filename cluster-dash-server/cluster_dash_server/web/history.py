"""History: the page `/history`, and `/api/v1/series`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, get_args
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import HostView
from cluster_dash_server.history.steps import FINEST_SECONDS, METRICS, SETTLING_SECONDS
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.store import (
    CLUSTER_METRICS,
    GPU_METRICS,
    HOST_METRICS,
    MOST_POINTS,
    USER_METRICS,
    By,
    EventQuery,
    Series,
    SeriesQuery,
)
from cluster_dash_server.web import export, timelines, views, words
from cluster_dash_server.web.answers import html, json_response
from cluster_dash_server.web.export import csv_response
from cluster_dash_server.web.parameters import QueryError, choice
from cluster_dash_server.web.past import MOST_HOSTS, Past, Question, say_what_fails
from cluster_dash_server.web.timelines import Figure, Line
from cluster_dash_server.web.views import View
from cluster_dash_server.when import Span, step_seconds

BYS: tuple[By, ...] = get_args(By)
MOST_VALUES = 600_000
"""Points of all series of one answer: some 25 MB of JSON."""
MOST_GPUS = 256
MOST_CELLS = 12_000
"""Cells of one map: more take a browser longer than people wait."""
STEPS = 400
"""Steps of one chart: about one for two pixels."""
SLOWEST_SECONDS = 600.0
"""For slower hosts steps have gaps."""
POLL_SECONDS = 30
MOST_EVENTS = 500
LISTED_EVENTS = 50
SERIES_COLUMNS = ("host", "gpu", "model", "user", "t", "min", "mean", "max")

PRESETS = tuple((text, f"now-{text.replace(' ', '')}", None) for text in ("1 h", "6 h", "24 h", "7 d", "30 d", "90 d"))
"""Stretches of time in one click: their name, from and to (None: now)."""
BYS_IN_WORDS: dict[By, str] = {"cluster": "Cluster", "model": "Model", "host": "Host", "gpu": "GPU", "user": "User"}
FIGURES: dict[By, tuple[str, ...]] = {
    "cluster": ("gpus", "gpu_util", "memory_percent", "power_w"),
    "model": ("free_gpus", "idle_gpus", "gpu_util", "memory_percent"),
    "host": ("gpu_util", "used_mem", "cpu_percent", "memory_used_gb"),
    "gpu": ("gpu_util", "used_mem", "temperature_c", "power_w"),
    "user": ("held_gpus", "busy_gpus", "idle_gpus"),
}
"""What the page draws where nobody chose; `gpus` are all of DOING together."""
DOING = (("busy", "busy_gpus"), ("held without work", "idle_gpus"), ("free", "free_gpus"), ("in error", "error_gpus"))
GPUS = tuple(name for _, name in DOING)


def _by(metric: str) -> By:
    """Return by what the request asks: what it says, else what its other parameters and its metric mean."""
    by: By
    if request.args.get("by"):
        by = choice("by", BYS)
    elif metric in USER_METRICS and (request.args.get("user") or metric not in CLUSTER_METRICS):
        by = "user"
    elif metric in GPU_METRICS and not (metric in CLUSTER_METRICS and request.args.get("model")):
        by = "gpu"
    elif metric in HOST_METRICS:
        by = "host"
    else:
        by = "model" if request.args.get("model") else "cluster"
    if metric not in METRICS[by]:
        known = (
            METRICS[by]
            if request.args.get("by")
            else sorted({*GPU_METRICS, *HOST_METRICS, *CLUSTER_METRICS, *USER_METRICS})
        )
        raise QueryError(f"metric: got {printable(metric, 64)!r}, expected one of {', '.join(known)}")
    return by


# ---------------------------------------------------------------------------------------------------------- routes


def blueprint(past: Past, name: str) -> Blueprint:
    """Build the routes.

    Args:
        past: what is kept.
        name: of this site.
    """
    routes = Blueprint("history", __name__, template_folder="../templates")
    say_what_fails(routes)

    @routes.get("/api/v1/series")
    @needs("history:read")
    def series() -> Response:
        form = choice("format", ("json", "csv"))
        metric = request.args.get("metric", "")
        question = past.question(_by(metric), past.span())
        question = _with_snapshots(_bounded(question, past), past)
        found = past.series(question, metric)
        if form == "csv":
            return csv_response(SERIES_COLUMNS, _points(found))
        step = found[0].step_seconds if found else question.step_seconds
        return json_response({"metric": metric, "step": step, "series": [_series(each) for each in found]})

    @routes.get("/history")
    @needs("history:read")
    def page() -> Response:
        form = choice("format", export.FORMS)
        if form == "html":
            return html("history.html", **_page(past))
        by, asked = _page_by(), past.span()
        question = _with_snapshots(_bounded(past.question(by, asked), past), past)
        names = [name for key in _metrics(by, is_map=False) for name in (GPUS if key == "gpus" else (key,))]
        points = ((metric, *point) for metric in names for point in _points(past.series(question, metric)))
        chosen = {key: request.args.get(key, "")[: views.LONGEST_PARAMETER] for key in ("host", "gpu", "model", "user")}
        table = export.Table(columns=("metric", *SERIES_COLUMNS), rows=points)
        return export.of_asked(form, table, past.clock(), name, asked={"by": by, **chosen}, span=asked)

    return routes


def _points(found: Sequence[Series]) -> Iterator[Sequence[object]]:
    """Give each step of each series, by SERIES_COLUMNS."""
    for each in found:
        for at, low, mean, high in zip(each.t, each.min, each.mean, each.max, strict=True):
            yield each.host, each.gpu, each.model, each.user, _whole(at), low, mean, high


def _series(each: Series) -> Json:
    names = {name: value for name in ("uuid", "model", "user") if (value := getattr(each, name)) is not None}
    times = [_whole(at) for at in each.t]
    return {
        "host": each.host,
        "gpu": each.gpu,
        **names,
        "t": times,
        "min": each.min,
        "mean": each.mean,
        "max": each.max,
    }


def _whole(at: float) -> float:
    return int(at) if at == int(at) else at


def _bounded(question: Question, past: Past) -> Question:
    """Widen the steps of an answer that would be too large.

    Raises:
        QueryError: it would be too large even so, or the steps were asked for.
    """
    lines = _count_lines(question, past.cluster.hosts(past.clock()))
    seconds = question.span.seconds
    steps = min(MOST_POINTS, 1 + seconds / (question.step_seconds or max(1.0, seconds / MOST_POINTS)))
    if lines * steps <= MOST_VALUES:
        return question
    if question.step_seconds is not None or lines > MOST_VALUES:
        raise QueryError(
            f"step: {lines} series of {steps:.0f} points are more than {MOST_VALUES}: take longer steps, or name hosts"
        )
    return replace(question, step_seconds=step_seconds(seconds, max(1, MOST_VALUES // lines - 1)))


def _with_snapshots(question: Question, past: Past) -> Question:
    """Give steps each of which has a snapshot in it, where nobody chose and there are snapshots."""
    if question.step_seconds is not None or question.by not in ("gpu", "host"):
        return question
    hosts = past.cluster.hosts(past.clock())
    pause = _slowest([host for host in hosts if question.hosts is None or host.host in question.hosts])
    least = max(question.span.seconds / (MOST_POINTS - 1), FINEST_SECONDS[question.by], 2 * pause)
    return replace(question, step_seconds=step_seconds(least, 1))


def _slowest(hosts: Sequence[HostView]) -> float:
    """Return the longest time between two snapshots of hosts that send some (s)."""
    return min(max((host.interval_seconds for host in hosts if host.silent is None), default=0.0), SLOWEST_SECONDS)


def _count_lines(question: Question, hosts: Sequence[HostView]) -> int:
    if question.by not in ("gpu", "host"):
        return 1
    meant = [host for host in hosts if question.hosts is None or host.host in question.hosts]
    return len(meant) if question.by == "host" else sum(len(host.gpus) for host in meant)


# ------------------------------------------------------------------------------------------------- the page


class _Wanted(NamedTuple):
    """What the page draws.

    Attributes:
        is_filtered: whether the filter of the page narrows it.
        problems: what of the filter does nothing, in words.
    """

    question: Question
    is_map: bool
    is_filtered: bool
    problems: list[str]


def _wanted(past: Past, by: By, asked: Span, view: View) -> _Wanted:
    """Return what the page draws: of at most `MOST_HOSTS` hosts, in steps that its lines allow.

    Raises:
        QueryError: a parameter cannot be understood.
    """
    question = past.question(by, asked)
    problems = list(view.wish.problems)
    is_filtered = bool(view.wish.terms)
    if is_filtered and by in ("cluster", "model", "user"):
        problems.append(f"Sums by {by} are kept whole: the filter works by host and by GPU.")
        is_filtered = False
    candidates = view.hosts if is_filtered else view.every
    shown = [host for host in candidates if question.hosts is None or host.host in question.hosts]
    if by in ("gpu", "host") and (is_filtered or question.hosts is None):
        question = replace(question, hosts=tuple(host.host for host in shown[:MOST_HOSTS]))
    is_map = by in ("gpu", "host") and choice("view", ("lines", "map")) == "map"
    question = replace(question, step_seconds=_page_step(question, shown, is_map=is_map))
    return _Wanted(question, is_map, is_filtered, problems)


def _page(past: Past) -> dict[str, object]:
    now = past.clock()
    asked = past.span()
    by = _page_by()
    view = views.asked(past.cluster.hosts(now), now)
    question, is_map, is_filtered, problems = _wanted(past, by, asked, view)
    metrics = _metrics(by, is_map=is_map)
    events = past.ledger.events(EventQuery(begin=asked.begin, end=asked.end, hosts=question.hosts, most=MOST_EVENTS))
    alerts = [
        each
        for each in past.alerts(asked.begin, asked.end)
        if not each.host or question.hosts is None or each.host in question.hosts
    ]
    marks = timelines.marks([*events, *alerts], asked)
    meant = {(host.host, gpu.gpu.index) for host, gpu in view.gpus} if is_filtered and by == "gpu" else None
    figures = [_figure(past, question, metric, marks, meant, is_map=is_map) for metric in metrics]
    if len(figures) > 1:
        figures = [figure for figure in figures if figure.points] or figures[:1]
    points = max((figure.points for figure in figures), default=0)
    return {
        "page": "history",
        "now": now,
        "span": asked,
        "by": by,
        "bys": BYS_IN_WORDS.items(),
        "q": request.args.get("q", ""),
        "host": request.args.get("host", ""),
        "from_text": request.args.get("from") or "now-24h",
        "to_text": request.args.get("to") or "now",
        "metric": request.args.get("metric", ""),
        "metrics": [(name, timelines.measure(name, by).title) for name in METRICS[by] if name in timelines.MEASURES],
        "presets": PRESETS,
        "problems": problems,
        "figures": figures,
        "is_map": is_map,
        "has_forms": True,
        "wait_seconds": None if points >= 2 else _first_chart_seconds(past.cluster.hosts(now), by),
        "has_hosts": len(past.cluster) > 0,
        "is_new": points < 2 and asked.end > now - SETTLING_SECONDS and _has_just_begun(past, now),
        "events": events[:LISTED_EVENTS],
        "more_events": max(0, len(events) - LISTED_EVENTS),
        "json_path": _series_path(question, asked, metrics[0]),
        "csv_of": {metric: _series_path(question, asked, metric) + "&format=csv" for metric in metrics},
        "heading": _heading(by, asked),
        "user": request.args.get("user", ""),
        "poll_seconds": POLL_SECONDS,
        "utc": request.args.get("tz") == "UTC",
    }


def _heading(by: By, asked: Span) -> str:
    length = words.age(round(asked.seconds))
    what = "The cluster" if by == "cluster" else f"By {BYS_IN_WORDS[by]}"
    return f"{what}, {f'the last {length}' if asked.is_relative else length}"


def _series_path(question: Question, asked: Span, metric: str) -> str:
    """Return the address of the same figures for machines."""
    told = {
        "metric": "busy_gpus" if metric == "gpus" else metric,
        "by": question.by,
        "from": f"{asked.begin:.0f}",
        "to": f"{asked.end:.0f}",
        **{name: request.args[name] for name in ("host", "user", "model") if request.args.get(name)},
    }
    return f"api/v1/series?{urlencode(told)}"


def _page_by() -> By:
    if request.args.get("by"):
        return choice("by", BYS)
    return "user" if request.args.get("user") else "gpu" if request.args.get("host") else "cluster"


def _metrics(by: By, *, is_map: bool) -> Sequence[str]:
    chosen = request.args.get("metric")
    if not chosen:
        return FIGURES[by][:1] if is_map else FIGURES[by]
    known = [name for name in METRICS[by] if name in timelines.MEASURES]
    if chosen in known or (chosen == "gpus" and by == "cluster"):
        return (chosen,)
    if any(chosen in each for each in METRICS.values()):
        return FIGURES[by]  # chosen before somebody went from GPUs to users
    raise QueryError(f"metric: got {printable(chosen, 64)!r}, expected one of {', '.join(known)}")


def _page_step(question: Question, shown: Sequence[HostView], *, is_map: bool) -> float:
    """Return a step that has a snapshot in it, but where there is none, and that gives no more steps than are seen."""
    seconds = max(question.span.seconds, 1.0)
    if question.step_seconds is not None:
        return question.step_seconds
    most = STEPS
    if is_map:
        rows = len(shown) if question.by == "host" else sum(len(host.gpus) for host in shown)
        most = max(24, min(STEPS, MOST_CELLS // max(1, min(rows, MOST_GPUS))))
    least = max(seconds / most, FINEST_SECONDS[question.by], 2 * _slowest(shown))
    return step_seconds(least, 1)


def _figure(
    past: Past,
    question: Question,
    metric: str,
    marks: Sequence[Json],
    meant: set[tuple[str, int]] | None,
    *,
    is_map: bool,
) -> Figure:
    is_live = question.by in ("gpu", "host")
    if metric == "gpus":
        lines = [Line(name, each) for name, key in DOING for each in past.series(question, key)]
        lines = [line for line in lines if line.name != "in error" or any(line.series.max)]
        return timelines.figure(
            "gpus", timelines.MEASURES["total_gpus"], lines, question.span, marks, is_live=False, alike=False
        )
    found = past.series(question, metric)
    if meant is not None:
        found = [each for each in found if (each.host, each.gpu) in meant]
    one_host = len({each.host for each in found}) == 1
    lines = timelines.named(found, question.by, one_host=one_host)
    said = timelines.measure(metric, question.by)
    if is_map:
        return timelines.cells(metric, said, lines[:MOST_GPUS], question.span, len(lines))
    return timelines.figure(metric, said, lines, question.span, marks, is_live=is_live)


def _first_chart_seconds(hosts: Sequence[HostView], by: By) -> float:
    """Return how long it takes from the first snapshot to the first chart."""
    interval = min((host.interval_seconds for host in hosts), default=5.0)
    if by == "user":
        return max(2 * interval, 2 * FINEST_SECONDS[by])
    # two whole minutes, behind the one in which measuring began, and settled
    return max(2 * interval, 4 * 60 + SETTLING_SECONDS - 60 if by in ("cluster", "model") else 0.0)


def _has_just_begun(past: Past, now: float) -> bool:
    """Say whether snapshots come now, and history has less than two points of them in the last day."""
    if all(host.silent is not None for host in past.cluster.hosts(now)):
        return False
    ask = SeriesQuery(metric="total_gpus", begin=now - 86_400, end=now, by="cluster", step_seconds=60)
    return sum(value is not None for each in past.store.series(ask) for value in each.mean) < 2
