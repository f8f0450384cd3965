"""Waste: the page `/waste`, and `/api/v1/waste`."""

from collections.abc import Callable
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from cluster_dash_server import waste
from cluster_dash_server.access.viewers import needs
from cluster_dash_server.hostlist import natural
from cluster_dash_server.snapshot import Json
from cluster_dash_server.waste import BYS, By, Hour, Line, Report
from cluster_dash_server.web import export, timelines, words
from cluster_dash_server.web.answers import html, json_response
from cluster_dash_server.web.export import csv_response
from cluster_dash_server.web.parameters import choice
from cluster_dash_server.web.past import Past, say_what_fails
from cluster_dash_server.web.sorting import Orders

DEFAULT_FROM = "now-7d"
PRESETS = (
    ("7 d", "now-7d", None),
    ("30 d", "now-30d", None),
    ("this week", "now/w", "now/w"),
    ("last week", "now-1w/w", "now-1w/w"),
    ("this month", "now/M", "now/M"),
    ("last month", "now-1M/M", "now-1M/M"),
)
BYS_IN_WORDS: dict[By, str] = {"user": "User", "group": "Group", "host": "Host", "model": "Model"}
COLUMNS = (
    *("name", "held_gpu_hours", "busy_gpu_hours", "idle_gpu_hours", "allocated_gpu_hours", "idle_percent"),
    *("longest_idle_seconds", "longest_idle_user", "longest_idle_host", "longest_idle_gpu"),
)
ORDERS: Orders[Line] = Orders(
    {
        "name": (lambda line: natural(line.name), False),
        "idle": (lambda line: line.idle_seconds, True),
        "share": (lambda line: line.idle_share, True),
        "busy": (lambda line: line.busy_seconds, True),
        "held": (lambda line: line.held_seconds, True),
        "longest": (lambda line: None if line.longest is None else line.longest.seconds, True),
    },
    usual="-idle",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MOST_ROWS = 200
RAMP_STEPS = 6
LEAST_HOURS = 0.05
"""Fewer GPU-hours would be rounded to 0."""


def blueprint(past: Past, group_of: Callable[[str], str | None], name: str) -> Blueprint:
    """Build the routes.

    Args:
        past: what is kept.
        group_of: says in which group a user is; None: nobody knows.
        name: of this site.
    """
    routes = Blueprint("waste", __name__, template_folder="../templates")
    say_what_fails(routes)
    routes.add_app_template_filter(gpu_hours)

    def reported() -> Report:
        return waste.report(past.store, past.ledger, past.span(DEFAULT_FROM), past.zone, group_of)

    @routes.get("/api/v1/waste")
    @needs("history:read")
    def rows() -> Response:
        form, by = choice("format", ("json", "csv")), choice("by", BYS)
        found = reported()
        told = [row(line) for line in found.lines[by]]
        if form == "csv":
            return csv_response(COLUMNS, ([each[column] for column in COLUMNS] for each in told))
        return json_response(
            {
                "at": past.clock(),
                "from": found.span.begin,
                "to": found.span.end,
                "by": by,
                "waste": told,
                "total": row(found.total),
                "week": [[_hour(cell) for cell in day] for day in found.week],
                "supply": [
                    {
                        **{name: getattr(each, name) for name in ("model", "gpus", "held_mean", "idle_mean", "peak")},
                        **{name: getattr(each, name) for name in ("peak_at", "free_min", "idle_when_full")},
                        "none_free_percent": 100 * each.none_free_share,
                    }
                    for each in found.supply
                ],
                "advice": waste.advice(found.supply),
            }
        )

    @routes.get("/waste")
    @needs("history:read")
    def page() -> Response:
        form, by = choice("format", export.FORMS), choice("by", BYS)
        sort = choice("sort", ORDERS.choices())
        found = reported()
        lines = ORDERS.of(found.lines[by], sort)
        if form != "html":
            table = export.Table(columns=COLUMNS, rows=[list(row(line).values()) for line in lines])
            return export.of_asked(form, table, past.clock(), name, asked={"by": by}, span=found.span)
        query = {name: request.args[name] for name in ("from", "to") if request.args.get(name)}
        return html(
            "waste.html",
            page="waste",
            now=past.clock(),
            json_path="api/v1/waste",
            has_forms=True,
            span=found.span,
            from_text=request.args.get("from") or DEFAULT_FROM,
            to_text=request.args.get("to") or "now",
            presets=PRESETS,
            utc=request.args.get("tz") == "UTC",
            heading=heading(found),
            total=found.total,
            advice=waste.advice(found.supply),
            supply=found.supply,
            trend=_trend(found),
            week=week_cells(found.week),
            week_finding=week_finding(found.week),
            days=DAYS,
            zone=str(past.zone),
            by=by,
            sort=sort,
            orders=ORDERS,
            bys=BYS_IN_WORDS.items(),
            lines=lines[:MOST_ROWS],
            more=max(0, len(lines) - MOST_ROWS),
            csv=f"api/v1/waste?{urlencode({**query, 'by': by, 'format': 'csv'})}",
            poll_seconds=300,
        )

    return routes


def hours(seconds: float) -> float:
    """Return GPU-hours of GPU-seconds."""
    return seconds / 3600


def gpu_hours(seconds: float) -> str:
    """Say GPU-seconds as GPU-hours: `0.4`, `2,600`; what is less than is shown is not nothing: `<0.1`."""
    value = hours(seconds)
    if 0 < value < LEAST_HOURS:
        return "<0.1"
    return words.short(value) if value < 10 else f"{value:,.0f}"


def row(line: Line) -> Json:
    """Return one line for machines: GPU-hours, unknown null."""
    longest = line.longest
    share = line.idle_share
    told = (
        *(line.name, hours(line.held_seconds), hours(line.busy_seconds), hours(line.idle_seconds)),
        None,  # allocated without a process: not known, see `Usage.allocated_seconds`
        None if share is None else 100 * share,
        *((None,) * 4 if longest is None else (longest.seconds, longest.user, longest.host, longest.gpu)),
    )
    return dict(zip(COLUMNS, told, strict=True))


def _hour(cell: Hour | None) -> Json | None:
    if cell is None:
        return None
    return {"gpus": cell.seen_gpus, "held_gpus": cell.held_gpus, "idle_gpus": cell.idle_gpus}


def heading(found: Report) -> str:
    """Say in a sentence how much of what was held did nothing."""
    share = found.total.idle_share
    if share is None:
        return "Nothing was held in this time."
    idle, held = (gpu_hours(each) for each in (found.total.idle_seconds, found.total.held_seconds))
    return f"{words.percent(100 * share)} of the GPU-hours held did nothing: {idle} of {held}."


def _trend(found: Report) -> timelines.Figure:
    lines = [
        timelines.Line(name, series)
        for name, series in (("held", found.held), ("free", found.free))
        if series is not None
    ]
    return timelines.figure("trend", timelines.MEASURES["total_gpus"], lines, found.span, is_live=False, alike=False)


def week_cells(week: list[list[Hour | None]]) -> list[list[tuple[int | None, str]]]:
    """Return for each hour of the week its colour (a step of the ramp; None: not known) and what it says."""
    most = max((cell.idle_gpus for day in week for cell in day if cell is not None), default=0.0)
    return [[_cell(cell, most) for cell in day] for day in week]


def _cell(cell: Hour | None, most: float) -> tuple[int | None, str]:
    if cell is None:
        return None, "not known"
    step = 0 if most <= 0 else min(RAMP_STEPS - 1, int(RAMP_STEPS * cell.idle_gpus / most))
    return step, f"{words.short(cell.idle_gpus)} idle of {words.short(cell.held_gpus)} held"


def week_finding(week: list[list[Hour | None]]) -> str:
    """Say when most is idle."""
    known = [
        (cell.idle_gpus, -day, -hour)
        for day, cells in enumerate(week)
        for hour, cell in enumerate(cells)
        if cell is not None
    ]
    if not known or max(known)[0] <= 0:
        return "No GPU was held without work."
    idle, day, hour = max(known)
    return f"Most are idle on {DAYS[-day]}s from {-hour} to {1 - hour} h: {words.short(idle)} GPUs, on average."
