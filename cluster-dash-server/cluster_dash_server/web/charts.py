"""CPU, memory, disk and load of all hosts as figures drawn by Plotly on the server; and plotly.js for the browser.

Plotly is imported on the first figure only: start-up and the hot paths stay free of its 85 ms and 15 MB.
"""

import gzip
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal

from flask import Blueprint, Response, request

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.history import late_numpy
from cluster_dash_server.hostlist import natural
from cluster_dash_server.web import views, words
from cluster_dash_server.web.answers import failure, json_response
from cluster_dash_server.web.export import Table

BARS_UP_TO = 40
"""So many hosts have a bar each; beyond it a dot, and the highest a name; …"""
DOTS_UP_TO = 400
"""… and beyond this they are counted in a histogram."""
NAMED = 20
"""How many of the highest are named where not all are."""
MOST_ROWS = 200
"""Rows of the table beside a figure; as CSV there are all."""
ROW_PX, FRAME_PX, HISTOGRAM_PX = 24, 64, 320
DOT_PX = (1.5, 6.0)
"""Least and most room for a dot without a name: so that four hundred take no more than about one screen."""
BINS = 20
PERCENTILES = ((50, "median"), (95, "95th percentile"), (99, "99th percentile"))
"""Below which value so many percent of the hosts are, and what that is called in a figure."""
IMMUTABLE = "public, max-age=31536000, immutable"

Json = dict[str, Any]
Form = Literal["bars", "dots", "histogram"]
Texts = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar or dot: what it is of, how long it is (None: not known), and its label; both once more for a phone."""

    host: str
    name: str
    value: float | None
    text: str
    short_name: str
    short_text: str
    level: str
    silent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of the table beside a figure; `more`: how many other hosts it speaks of, too."""

    host: str
    more: int
    texts: Texts
    silent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One metric of some hosts: the finding in a sentence, the bars (longest first), and the same as a table."""

    metric: str
    form: Form
    title: str
    finding: str
    axis: str
    percent: bool
    bars: tuple[Bar, ...]
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    left_out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """One host or disk measured: its bar, what its table row says (asked for few), its figures as they are."""

    bar: Bar
    texts: Callable[[], Texts]
    figures: tuple[object, ...]
    more: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metric:
    title: str
    axis: str
    percent: bool
    columns: Texts
    figures: Texts
    measure: Callable[[Sequence[HostView]], list[_Measure]]
    noun: str


def _bar(host: HostView, name: str, value: float | None, text: str, level: str = "") -> Bar:
    silent = host.silent is not None
    return Bar(
        host=host.host,
        name=f"{words.cut(name, 32)} · {host.silent}" if silent else words.cut(name, 32),
        value=value,
        text=f"({text})" if silent else text,
        short_name=words.cut(name, 12),
        short_text=f"({text.split(',')[0]})" if silent else text.split(",")[0],
        level=level,
        silent=silent,
    )


def _full(value: float | None) -> str:
    """Say a percentage that is bad when full: `97 % full`."""
    return f"{words.percent(value)} {words.level(value)}".rstrip()


def _cpu(hosts: Sequence[HostView]) -> list[_Measure]:
    return [_cpu_of(host) for host in hosts]


def _cpu_of(host: HostView) -> _Measure:
    value, cores = host.seen.cpu_percent, host.seen.num_cpus
    return _Measure(
        bar=_bar(host, host.host, value, _full(value), words.level(value)),
        texts=lambda: (_full(value), words.whole(cores)),
        figures=(host.host, host.headline.state, value, cores),
    )


def _memory(hosts: Sequence[HostView]) -> list[_Measure]:
    return [_memory_of(host) for host in hosts]


def _memory_of(host: HostView) -> _Measure:
    used, total = host.seen.memory_used_gb, host.seen.memory_total_gb
    value = words.share(used, total)
    said = words.gib_of(used, total)

    def texts() -> Texts:
        swap = (host.seen.snapshot.get("memory") or {}).get("swap") or {}
        return _full(value), said, words.gib_of(swap.get("used_gb"), swap.get("total_gb"))

    return _Measure(
        bar=_bar(host, host.host, value, f"{_full(value)}, {said}", words.level(value)),
        texts=texts,
        figures=(host.host, host.headline.state, value, used, total),
    )


def _disks(hosts: Sequence[HostView]) -> list[_Measure]:
    """Measure each disk: a full data disk stops a job as surely as a full root; one that is shared is told once."""
    measures: list[_Measure] = []
    shared: dict[tuple[str, object], list[tuple[HostView, str, Json]]] = {}
    for host in hosts:
        disks = [(disk.get("mount_point") or key, disk) for key, disk in _entries(host)]
        for place, disk in disks:
            device = disk.get("device") or ""
            if is_shared(device):
                shared.setdefault((device, disk.get("total_gb")), []).append((host, place, disk))
            else:
                measures.append(_disk(host, place, disk, f"{words.cut(host.host, 20)} {place}"))
        if not disks:
            bar = _bar(host, host.host, None, words.DASH)
            figures = (host.host, host.headline.state, None, None, None, None, None)
            measures.append(_Measure(bar=bar, texts=lambda: (words.DASH,) * 4, figures=figures))
    for mounts in shared.values():
        host, place, disk = max(mounts, key=lambda mount: (mount[0].silent is None, mount[0].seen.received_at))
        on = len({each.host for each, _, _ in mounts})
        name = f"{words.cut(host.host, 20)} {place}" if on == 1 else f"{place} on {on} hosts"
        measures.append(_disk(host, place, disk, name, on - 1))
    return measures


def _entries(host: HostView) -> list[tuple[str, Json]]:
    return [(key, disk or {}) for key, disk in (host.seen.snapshot.get("disk") or {}).items()]


def is_shared(device: str) -> bool:
    """Say whether a device is one file system that many hosts mount, as `nas:/home` or `//nas/home`."""
    return ":" in device or device.startswith("//") or device == "beegfs_nodev"


def _disk(host: HostView, place: str, disk: Json, name: str, more: int = 0) -> _Measure:
    used, total, device = disk.get("used_gb"), disk.get("total_gb"), disk.get("device")
    value = disk.get("percent_used")
    if value is None:
        value = words.share(used, total)
    said = words.gib_of(used, total)
    return _Measure(
        bar=_bar(host, name, value, f"{_full(value)}, {said}", words.level(value)),
        texts=lambda: (words.cut(place, 60), _full(value), said, words.cut(device or words.DASH, 60)),
        figures=(host.host, host.headline.state, place, value, used, total, device),
        more=more,
    )


def _load(hosts: Sequence[HostView]) -> list[_Measure]:
    return [_load_of(host) for host in hosts]


def _load_of(host: HostView) -> _Measure:
    load, cores = host.seen.load_avg_1, host.seen.num_cpus
    value = load / cores if load is not None and cores else None
    per_core = words.DASH if value is None else f"{value:.2f}"

    def texts() -> Texts:
        loads = host.seen.snapshot["cpu"].get("load_avgs") or (None, None, None)
        return per_core, *(words.short(each) for each in loads), words.whole(cores)

    return _Measure(
        bar=_bar(host, host.host, value, f"{per_core}, {words.short(load)} on {words.whole(cores)}"),
        texts=texts,
        figures=(host.host, host.headline.state, value, load, cores),
    )


METRICS: Mapping[str, _Metric] = {
    "cpu": _Metric(
        title="CPU",
        axis="CPU busy, %",
        percent=True,
        columns=("Host", "Busy", "Cores"),
        figures=("host", "state", "cpu_percent", "num_cpus"),
        measure=_cpu,
        noun="Busiest CPU",
    ),
    "memory": _Metric(
        title="Memory",
        axis="memory in use, % of the host's",
        percent=True,
        columns=("Host", "Share", "Used", "Swap"),
        figures=("host", "state", "percent", "memory_used_gb", "memory_total_gb"),
        measure=_memory,
        noun="Fullest memory",
    ),
    "disk": _Metric(
        title="Disk",
        axis="disk in use, %",
        percent=True,
        columns=("Host", "Mounted at", "Share", "Used", "Device"),
        figures=("host", "state", "mount_point", "percent_used", "used_gb", "total_gb", "device"),
        measure=_disks,
        noun="Fullest disk",
    ),
    "load": _Metric(
        title="Load",
        axis="load of 1 minute per core",
        percent=False,
        columns=("Host", "Per core", "1 min", "5 min", "15 min", "Cores"),
        figures=("host", "state", "load_per_core", "load_avg_1", "num_cpus"),
        measure=_load,
        noun="Highest load per core",
    ),
}
"""What the server draws, by the name of its figure."""


def _measured(kind: _Metric, hosts: Sequence[HostView]) -> list[_Measure]:
    """Measure hosts: the longest bar first, what does not report last."""
    return sorted(
        kind.measure(hosts), key=lambda each: (each.bar.value is None, -(each.bar.value or 0), natural(each.bar.host))
    )


def table(metric: str, hosts: Sequence[HostView]) -> Table:
    """Return all figures of a metric as they are, to take away."""
    kind = METRICS[metric]
    return Table(columns=kind.figures, rows=[each.figures for each in _measured(kind, hosts)])


def chart(metric: str, hosts: Sequence[HostView]) -> Chart:
    """Measure hosts, and choose how to draw so many."""
    kind = METRICS[metric]
    measures = _measured(kind, hosts)
    known = [each for each in measures if each.bar.value is not None]
    form: Form = "bars" if len(known) <= BARS_UP_TO else "dots" if len(known) <= DOTS_UP_TO else "histogram"
    return Chart(
        metric=metric,
        form=form,
        title=kind.title,
        finding=_finding(kind, measures, known, form),
        axis=kind.axis,
        percent=kind.percent,
        bars=tuple([each.bar for each in known]),
        columns=kind.columns,
        rows=tuple(
            [
                TableRow(host=each.bar.host, more=each.more, texts=each.texts(), silent=each.bar.silent)
                for each in measures[:MOST_ROWS]
            ]
        ),
        left_out=f"The first {MOST_ROWS} of {len(measures)}." if len(measures) > MOST_ROWS else "",
    )


def _finding(kind: _Metric, measures: Sequence[_Measure], known: Sequence[_Measure], form: Form) -> str:
    if not measures:
        return "No host has reported yet."
    live = [each.bar for each in known if not each.bar.silent]
    said = []
    if live:
        said.append(f"{kind.noun}: {live[0].name}, {live[0].text}")
    if form == "histogram":
        values = [value for bar in live if (value := bar.value) is not None]
        said += (
            [", ".join(f"{name} {_shown(kind.percent, value)}" for name, value in percentiles(values))]
            if values
            else []
        )
    unknown = len(measures) - len(known)
    if unknown:
        said.append(f"{unknown} of {len(measures)} do not report it")
    if form == "dots":
        said.append(f"Of {len(known)} the {NAMED} highest are named")
    text = ". ".join(each[0].upper() + each[1:] for each in said)
    return f"{text or 'Only silent hosts: these are their last figures'}."


def percentiles(values: Sequence[float]) -> list[tuple[str, float]]:
    """Return the percentiles of some values, by name; `values` holds at least one."""
    ordered = sorted(values)
    return [(name, ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]) for percent, name in PERCENTILES]


def _shown(percent: bool, value: float) -> str:
    return words.percent(value) if percent else f"{value:.2f}"


def figure(drawn: Chart) -> Json:
    """Draw a chart as one Plotly figure with one trace; `static/js/charts.js` gives it the colours of its role.

    `meta.form` of the trace says which of the three it is. In `customdata` of each bar and dot stands what it says
    (`calm`, `high`, `full`, `silent`) and its short label.
    """
    from plotly import graph_objects as go  # 85 ms and 15 MB that only these pages need

    late_numpy.load()  # Plotly takes what is imported of it, in the middle of another thread's import, too
    trace, layout = {"bars": _bars, "dots": _dots, "histogram": _histogram}[drawn.form](drawn)
    drawing: Json = go.Figure(
        data=[{**trace, "meta": {"role": drawn.metric, "form": drawn.form}}], layout=go.Layout(template=None, **layout)
    ).to_dict()
    drawing["layout"].pop("template", None)
    return drawing


def _says(bar: Bar) -> list[str]:
    return ["silent" if bar.silent else bar.level or "calm", escape(bar.short_text)]


def _value_axis(drawn: Chart) -> Json:
    return {
        "title": {"text": drawn.axis},
        "range": [0, 100] if drawn.percent else None,
        "rangemode": "tozero",
        "fixedrange": True,
    }


def _name_axis(bars: Sequence[Bar]) -> Json:
    return {
        "autorange": "reversed",
        "tickmode": "array",
        "tickvals": list(range(len(bars))),
        "ticktext": [escape(bar.name) for bar in bars],
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,  # the first bar stands at 0: the line would strike its words through
    }


def _bars(drawn: Chart) -> tuple[Json, Json]:
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [bar.value for bar in drawn.bars],
        "y": list(range(len(drawn.bars))),
        "text": [escape(bar.text) for bar in drawn.bars],
        "hovertext": [escape(f"{bar.name}: {bar.text}") for bar in drawn.bars],
        "hoverinfo": "text",
        "customdata": [_says(bar) for bar in drawn.bars],
    }
    layout = {
        "meta": {"short_names": [escape(bar.short_name) for bar in drawn.bars]},
        "height": FRAME_PX + ROW_PX * max(1, len(drawn.bars)),
        "xaxis": _value_axis(drawn),
        "yaxis": _name_axis(drawn.bars),
    }
    return trace, layout


def _dots(drawn: Chart) -> tuple[Json, Json]:
    """Draw a dot each, in order; the highest stand in rows of their own, with names, the others close together."""
    named, rest = drawn.bars[:NAMED], drawn.bars[NAMED:]
    least, most = DOT_PX
    px = min(most, max(least, 600 / max(1, len(rest))))
    texts = [escape(bar.text) for bar in named]
    trace = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [bar.value for bar in drawn.bars],
        "y": [*range(len(named)), *(len(named) + place * px / ROW_PX for place in range(len(rest)))],
        "text": [*texts, *[""] * len(rest)],
        "textposition": "middle right",
        "hovertext": [escape(f"{bar.name}: {bar.text}") for bar in drawn.bars],
        "hoverinfo": "text",
        "customdata": [_says(bar) for bar in drawn.bars],
    }
    layout = {
        "meta": {"short_names": [escape(bar.short_name) for bar in named]},
        "height": FRAME_PX + ROW_PX * len(named) + round(px * len(rest)),
        "xaxis": _value_axis(drawn),
        # its own range would leave room for dots as high as the rows
        "yaxis": {**_name_axis(named), "autorange": False, "range": [len(named) + px * len(rest) / ROW_PX, -1]},
        "hovermode": "closest",
    }
    return trace, layout


def _histogram(drawn: Chart) -> tuple[Json, Json]:
    """Count hosts by their value, with lines at the percentiles; silent hosts are left out."""
    values = [bar.value for bar in drawn.bars if bar.value is not None and not bar.silent]
    top = 100.0 if drawn.percent else max(1.0, *values) if values else 1.0
    width = top / BINS
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, max(0, int(value / width)))] += 1
    lefts = [place * width for place in range(BINS)]
    marks = percentiles(values) if values else []
    trace = {
        "type": "bar",
        "x": [left + width / 2 for left in lefts],
        "y": counts,
        "width": width * 0.9,
        "hovertext": [
            f"{words.plural(count, 'host')}: {_shown(drawn.percent, left)} to {_shown(drawn.percent, left + width)}"
            for left, count in zip(lefts, counts, strict=True)
        ],
        "hoverinfo": "text",
        "customdata": [[(words.level(left) if drawn.percent else "") or "calm", ""] for left in lefts],
    }
    layout = {
        "height": HISTOGRAM_PX,
        "xaxis": {**_value_axis(drawn), "range": [0, top]},
        "yaxis": {"title": {"text": "hosts"}, "rangemode": "tozero", "fixedrange": True},
        "shapes": [
            {"type": "line", "x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper", "name": "percentile"}
            for _, value in marks
        ],
        "annotations": [
            {
                "x": value,
                "y": 1 - 0.09 * place,  # close together they would stand on each other
                "yref": "paper",
                "xanchor": "right" if value > top / 2 else "left",
                "yanchor": "top",
                "showarrow": False,
                "name": "percentile",
                "text": f"{name}: {_shown(drawn.percent, value)}",
            }
            for place, (name, value) in enumerate(marks)
        ],
    }
    return trace, layout


_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"})


def escape(text: str) -> str:
    """Make a name from outside inert in a Plotly label: no pseudo-HTML, no link, no formula."""
    return text.translate(_MARKUP)


class PlotlyJs:
    """The plotly.js of the installed wheel, so that server and browser speak the same Plotly; packed on first use."""

    def __init__(self) -> None:
        wheel = distribution("plotly")
        self._file = Path(str(wheel.locate_file("plotly/package_data/plotly.min.js")))
        stat = self._file.stat()
        # the name must change with the bytes; of a file of a wheel, version, size and time tell as much as a digest
        mark = hashlib.sha256(f"{stat.st_size}-{stat.st_mtime_ns}".encode()).hexdigest()[:8]
        self.tag = f"{wheel.version}-{mark}"
        self._packed: bytes | None = None
        self._lock = threading.Lock()

    def packed(self) -> bytes:
        """Return it compressed with gzip; the first call takes 0.2 s."""
        with self._lock:
            if self._packed is None:
                self._packed = gzip.compress(self._file.read_bytes(), 9, mtime=0)
            return self._packed

    def plain(self) -> bytes:
        """Return it as it is, for the rare caller that takes no gzip."""
        return self._file.read_bytes()


PLOTLY_JS = PlotlyJs()


def blueprint(cluster: Cluster, clock: Callable[[], float]) -> Blueprint:
    """Build the routes: a figure as JSON, and plotly.js."""
    charts = Blueprint("charts", __name__)

    @charts.get("/api/v1/figures/<metric>")
    @needs("state:read")
    def one_figure(metric: str) -> Response:
        if metric not in METRICS:
            known = ", ".join(METRICS)
            return failure(404, f"metric: not known here, one of: {known}")
        now = clock()
        answer = json_response(figure(chart(metric, views.asked(cluster.hosts(now), now).hosts)))
        answer.headers["Cache-Control"] = "no-cache"
        return answer

    @charts.get("/plotly-<tag>.min.js")
    @needs("public")
    def plotly_js(tag: str) -> Response:
        takes_gzip = request.accept_encodings["gzip"] > 0
        response = Response(PLOTLY_JS.packed() if takes_gzip else PLOTLY_JS.plain(), mimetype="text/javascript")
        if takes_gzip:
            response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"
        # a page of an older server may ask for its own version: it gets this one, and must ask again
        response.headers["Cache-Control"] = IMMUTABLE if tag == PLOTLY_JS.tag else "no-cache"
        return response

    return charts
