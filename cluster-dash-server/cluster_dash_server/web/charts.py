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
from typing import Any

from flask import Blueprint, Response, request

from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.hostlist import natural
from cluster_dash_server.snapshot import dumps
from cluster_dash_server.viewers import needs
from cluster_dash_server.web import words

MOST_BARS = 60
"""Bars in one figure; the table beside it holds more, the API all."""
MOST_ROWS = 200
"""Rows of the table beside a figure."""
ROW_PX, FRAME_PX = 24, 64
IMMUTABLE = "public, max-age=31536000, immutable"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: what it is of, how long it is (None: not known), and its label; both once more for a phone."""

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
    """One row of the table beside a figure."""

    host: str
    texts: tuple[str, ...]
    silent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One metric of all hosts: the finding in a sentence, the bars (longest first), and the same as a table."""

    metric: str
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
    """One host or disk measured: its bar, what its table row says."""

    bar: Bar
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metric:
    title: str
    axis: str
    percent: bool
    columns: tuple[str, ...]
    measure: Callable[[HostView, Json], list[_Measure]]
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


def _cpu(host: HostView, snapshot: Json) -> list[_Measure]:
    value = host.seen.cpu_percent
    texts = (_full(value), words.whole(host.seen.num_cpus))
    return [_Measure(bar=_bar(host, host.host, value, _full(value), words.level(value)), texts=texts)]


def _memory(host: HostView, snapshot: Json) -> list[_Measure]:
    used, total = host.seen.memory_used_gb, host.seen.memory_total_gb
    value = words.share(used, total)
    said = words.gib_of(used, total)
    swap = (snapshot.get("memory") or {}).get("swap") or {}
    texts = (_full(value), said, words.gib_of(swap.get("used_gb"), swap.get("total_gb")))
    bar = _bar(host, host.host, value, f"{_full(value)}, {said}", words.level(value))
    return [_Measure(bar=bar, texts=texts)]


def _disks(host: HostView, snapshot: Json) -> list[_Measure]:
    """Measure each disk: a full data disk stops a job as surely as a full root."""
    measures = []
    for key, each in (snapshot.get("disk") or {}).items():
        disk = each or {}
        place = disk.get("mount_point") or key
        value = disk.get("percent_used")
        if value is None:
            value = words.share(disk.get("used_gb"), disk.get("total_gb"))
        said = words.gib_of(disk.get("used_gb"), disk.get("total_gb"))
        texts = (words.cut(place, 60), _full(value), said, words.cut(disk.get("device") or words.DASH, 60))
        bar = _bar(host, f"{words.cut(host.host, 20)} {place}", value, f"{_full(value)}, {said}", words.level(value))
        measures.append(_Measure(bar=bar, texts=texts))
    if measures:
        return measures
    return [_Measure(bar=_bar(host, host.host, None, words.DASH), texts=(words.DASH,) * 4)]


def _load(host: HostView, snapshot: Json) -> list[_Measure]:
    loads_ = snapshot["cpu"].get("load_avgs") or (None, None, None)
    cores = host.seen.num_cpus
    value = loads_[0] / cores if loads_[0] is not None and cores else None
    per_core = words.DASH if value is None else f"{value:.2f}"
    said = f"{per_core}, {words.short(loads_[0])} on {words.whole(cores)}"
    texts = (per_core, *(words.short(each) for each in loads_), words.whole(cores))
    return [_Measure(bar=_bar(host, host.host, value, said), texts=texts)]


METRICS: Mapping[str, _Metric] = {
    "cpu": _Metric(
        title="CPU",
        axis="CPU busy, %",
        percent=True,
        columns=("Host", "Busy", "Cores"),
        measure=_cpu,
        noun="Busiest CPU",
    ),
    "memory": _Metric(
        title="Memory",
        axis="memory in use, % of the host's",
        percent=True,
        columns=("Host", "Share", "Used", "Swap"),
        measure=_memory,
        noun="Fullest memory",
    ),
    "disk": _Metric(
        title="Disk",
        axis="disk in use, %",
        percent=True,
        columns=("Host", "Mounted at", "Share", "Used", "Device"),
        measure=_disks,
        noun="Fullest disk",
    ),
    "load": _Metric(
        title="Load",
        axis="load of 1 minute, per core (1: all cores have work)",
        percent=False,
        columns=("Host", "Per core", "1 min", "5 min", "15 min", "Cores"),
        measure=_load,
        noun="Highest load per core",
    ),
}
"""What the server draws, by the name of its figure."""


def chart(metric: str, hosts: Sequence[HostView]) -> Chart:
    """Measure all hosts: the longest bar first, hosts that do not report last."""
    kind = METRICS[metric]
    measures = [each for host in hosts for each in kind.measure(host, host.seen.snapshot)]
    measures.sort(key=lambda each: (each.bar.value is None, -(each.bar.value or 0), natural(each.bar.host)))
    known = [each for each in measures if each.bar.value is not None]
    shown = measures[:MOST_ROWS]
    return Chart(
        metric=metric,
        title=kind.title,
        finding=_finding(kind, measures, known),
        axis=kind.axis,
        percent=kind.percent,
        bars=tuple(each.bar for each in known[:MOST_BARS]),
        columns=kind.columns,
        rows=tuple(TableRow(host=each.bar.host, texts=each.texts, silent=each.bar.silent) for each in shown),
        left_out=f"The first {MOST_ROWS} of {len(measures)}." if len(measures) > MOST_ROWS else "",
    )


def _finding(kind: _Metric, measures: Sequence[_Measure], known: Sequence[_Measure]) -> str:
    if not measures:
        return "No host has reported yet."
    live = [each.bar for each in known if not each.bar.silent]
    said = []
    if live:
        said.append(f"{kind.noun}: {live[0].name}, {live[0].text}")
    unknown = len(measures) - len(known)
    if unknown:
        said.append(f"{unknown} of {len(measures)} do not report it")
    if len(known) > MOST_BARS:
        said.append(f"The {MOST_BARS} highest of {len(known)} are drawn, the table holds more")
    return ". ".join(said or ["Only silent hosts: these are their last figures"]) + "."


def figure(drawn: Chart) -> Json:
    """Draw a chart as one Plotly figure with one trace; `static/js/charts.js` gives it the colours of its role."""
    from plotly import graph_objects as go  # 85 ms and 15 MB that only these pages need

    places = list(range(len(drawn.bars)))
    bars = go.Bar(
        orientation="h",
        x=[bar.value for bar in drawn.bars],
        y=places,
        text=[escape(bar.text) for bar in drawn.bars],
        hovertext=[escape(f"{bar.name}: {bar.text}") for bar in drawn.bars],
        hoverinfo="text",
        customdata=[["silent" if bar.silent else bar.level or "calm", escape(bar.short_text)] for bar in drawn.bars],
        meta={"role": drawn.metric},
    )
    layout = go.Layout(
        template=None,
        meta={"short_names": [escape(bar.short_name) for bar in drawn.bars]},
        height=FRAME_PX + ROW_PX * max(1, len(places)),
        xaxis={
            "title": {"text": drawn.axis},
            "range": [0, 100] if drawn.percent else None,
            "rangemode": "tozero",
            "fixedrange": True,
        },
        yaxis={
            "autorange": "reversed",
            "tickmode": "array",
            "tickvals": places,
            "ticktext": [escape(bar.name) for bar in drawn.bars],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,  # the first bar stands at 0: the line would strike its words through
        },
    )
    drawing: Json = go.Figure(data=[bars], layout=layout).to_dict()
    drawing["layout"].pop("template", None)
    return drawing


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
            body: Json = {"success": False, "msg": f"metric: not known here, one of: {known}"}
            return Response(dumps(body) + b"\n", 404, mimetype="application/json")
        body = figure(chart(metric, cluster.hosts(clock())))
        return Response(dumps(body) + b"\n", mimetype="application/json", headers={"Cache-Control": "no-cache"})

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
