import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.settings import Settings
from cluster_dash_server.snapshot import read
from cluster_dash_server.states import Thresholds
from cluster_dash_server.web.charts import (
    BARS_UP_TO,
    DOTS_UP_TO,
    METRICS,
    MOST_ROWS,
    NAMED,
    PLOTLY_JS,
    chart,
    escape,
    figure,
    is_shared,
    percentiles,
    table,
)

Hosts = Callable[..., list[HostView]]
NOW = 1_700_000_000.0


@pytest.fixture
def hosts(make_snapshot: Callable[..., dict[str, Any]]) -> Hosts:
    """Make hosts as they stand at NOW: `hosts(gpu01={"cpu": {...}})`; `silent_seconds` makes one silent."""

    def make(**fields: dict[str, Any]) -> list[HostView]:
        cluster = Cluster(Thresholds())
        for name, each in fields.items():
            silent_seconds = each.pop("silent_seconds", 0)
            snapshot = make_snapshot(name, interval_seconds=5, **each)
            cluster.offer(read(snapshot, received_at=NOW - silent_seconds))
        return cluster.hosts(NOW)

    return make


@pytest.fixture
def client() -> FlaskClient:
    return create_app(Settings()).test_client()


def cpu(percent: float | None, cores: int | None = 64) -> dict[str, Any]:
    return {"cpu": {"cpu_percent": percent, "load_avgs": [32.0, 8.0, 4.0], "num_cpus": cores}}


def test_the_longest_bar_comes_first_and_the_finding_names_it(hosts: Hosts) -> None:
    drawn = chart("cpu", hosts(gpu01=cpu(12.4), gpu02=cpu(97.2), gpu03=cpu(50)))
    assert [bar.host for bar in drawn.bars] == ["gpu02", "gpu03", "gpu01"]
    assert drawn.finding == "Busiest CPU: gpu02, 97 % full."
    assert [row.texts for row in drawn.rows] == [("97 % full", "64"), ("50 %", "64"), ("12 %", "64")]


def test_what_is_not_reported_has_no_bar_and_is_never_0(hosts: Hosts) -> None:
    drawn = chart("cpu", hosts(gpu01=cpu(None), gpu02=cpu(5)))
    assert [bar.host for bar in drawn.bars] == ["gpu02"]
    assert drawn.finding == "Busiest CPU: gpu02, 5 %. 1 of 2 do not report it."
    assert drawn.rows[-1].texts[0] == "–"


def test_a_silent_host_is_marked_by_word_and_is_not_the_finding(hosts: Hosts) -> None:
    drawn = chart("cpu", hosts(gpu01=cpu(99) | {"silent_seconds": 400}, gpu02=cpu(5)))
    assert (drawn.bars[0].name, drawn.bars[0].text) == ("gpu01 · stale", "(99 % full)")
    assert drawn.finding == "Busiest CPU: gpu02, 5 %."


def test_load_is_per_core_and_unknown_without_cores(hosts: Hosts) -> None:
    drawn = chart("load", hosts(gpu01=cpu(1), gpu02=cpu(1, cores=None)))
    assert [(bar.host, bar.value) for bar in drawn.bars] == [("gpu01", 0.5)]
    assert drawn.rows[0].texts == ("0.50", "32", "8.0", "4.0", "64")


def test_each_disk_has_a_bar_and_a_host_without_disks_a_row(hosts: Hosts) -> None:
    disks = {
        "/dev/sda1": {"mount_point": "/", "total_gb": 100, "used_gb": 40, "percent_used": 42.0},
        "/data": {"total_gb": 1000, "used_gb": 960},
        "broken": None,
    }
    drawn = chart("disk", hosts(gpu01={"disk": disks}, gpu02={}))
    assert [(bar.name, bar.value, bar.level) for bar in drawn.bars] == [
        ("gpu01 /data", 96.0, "full"),
        ("gpu01 /", 42.0, ""),
    ]
    assert [row.texts[0] for row in drawn.rows] == ["/data", "/", "broken", "–"]


def test_a_figure_is_one_trace_without_colours_or_template(hosts: Hosts) -> None:
    drawn = figure(chart("memory", hosts(**{f"gpu{number:02}": {} for number in range(20)})))
    assert [trace["meta"]["role"] for trace in drawn["data"]] == ["memory"]
    text = json.dumps(drawn)
    assert "template" not in text
    assert "color" not in text
    assert len(text) < 8_000


def test_no_line_strikes_the_first_bar_through(hosts: Hosts) -> None:
    assert figure(chart("memory", hosts(gpu01={})))["layout"]["yaxis"]["zeroline"] is False


def test_a_hundred_hosts_are_dots_in_order_of_which_the_highest_have_names(hosts: Hosts) -> None:
    drawn = chart("cpu", hosts(**{f"gpu{number:03}": cpu(number) for number in range(100)}))
    assert (drawn.form, drawn.finding) == ("dots", "Busiest CPU: gpu099, 99 % full. Of 100 the 20 highest are named.")
    fig = figure(drawn)
    (dots,) = fig["data"]
    assert (len(dots["x"]), dots["x"][:2], dots["mode"]) == (100, [99, 98], "markers+text")
    assert fig["layout"]["yaxis"]["ticktext"] == [f"gpu{99 - number:03}" for number in range(NAMED)]
    assert dots["text"][NAMED:] == [""] * (100 - NAMED)
    assert list(dots["y"]) == sorted(dots["y"])
    assert fig["layout"]["height"] < 1100
    assert [says for says, _ in dots["customdata"]].count("full") == 5


def test_two_thousand_hosts_are_counted_with_percentiles_and_the_worst_named(hosts: Hosts) -> None:
    many = {f"gpu{number:04}": cpu(number / 4 % 100) for number in range(DOTS_UP_TO + 40)}
    drawn = chart("cpu", hosts(**many, old=cpu(100) | {"silent_seconds": 400}, mute=cpu(None)))
    assert drawn.form == "histogram"
    assert drawn.finding == (
        "Busiest CPU: gpu0399, 100 % full. Median 45 %, 95th percentile 95 %, 99th percentile 99 %. "
        f"1 of {DOTS_UP_TO + 42} do not report it."
    )
    fig = figure(drawn)
    (bars,) = fig["data"]
    assert sum(bars["y"]) == DOTS_UP_TO + 40
    assert [each["text"] for each in fig["layout"]["annotations"]] == [
        "median: 45 %",
        "95th percentile: 95 %",
        "99th percentile: 99 %",
    ]
    assert [says for says, _ in bars["customdata"]] == ["calm"] * 17 + ["high"] * 2 + ["full"]
    assert len(drawn.rows) == MOST_ROWS
    assert drawn.left_out == f"The first {MOST_ROWS} of {DOTS_UP_TO + 42}."
    assert len(json.dumps(fig)) < 8_000


def test_a_load_above_all_others_fits_into_the_histogram(hosts: Hosts) -> None:
    many = {f"gpu{number:04}": cpu(1, cores=number + 1) for number in range(DOTS_UP_TO + 1)}
    (bars,) = figure(chart("load", hosts(**many)))["data"]
    assert (sum(bars["y"]), bars["y"][-1]) == (DOTS_UP_TO + 1, 1)


@pytest.mark.parametrize(("count", "form"), [(1, "bars"), (BARS_UP_TO, "bars"), (BARS_UP_TO + 1, "dots")])
def test_the_form_follows_from_how_many_there_are(hosts: Hosts, count: int, form: str) -> None:
    assert chart("cpu", hosts(**{f"gpu{number:03}": cpu(number) for number in range(count)})).form == form


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles([3.0]) == [("median", 3.0), ("95th percentile", 3.0), ("99th percentile", 3.0)]
    assert percentiles([float(each) for each in range(100)]) == [
        ("median", 50.0),
        ("95th percentile", 95.0),
        ("99th percentile", 99.0),
    ]


def test_a_file_system_that_many_hosts_mount_is_told_once_by_the_newest_of_them(hosts: Hosts) -> None:
    home = {"mount_point": "/home", "device": "nas:/export/home", "total_gb": 1000, "used_gb": 500}
    root = {"mount_point": "/", "device": "/dev/sda1", "total_gb": 100, "used_gb": 40}
    drawn = chart(
        "disk",
        hosts(
            gpu01={"disk": {"a": root, "b": home | {"used_gb": 400}}, "silent_seconds": 400},
            gpu02={"disk": {"a": root, "b": home}},
            gpu03={"disk": {"a": root, "b": home}},
        ),
    )
    assert [(bar.name, bar.value) for bar in drawn.bars if "home" in bar.name] == [("/home on 3 hosts", 50.0)]
    assert [(row.host, row.more) for row in drawn.rows if row.texts[0] == "/home"] == [("gpu02", 2)]
    assert len([bar for bar in drawn.bars if bar.name.endswith("/") or "· stale" in bar.name]) == 3


def test_what_is_shared_is_told_by_its_device() -> None:
    assert [is_shared(each) for each in ("nas:/home", "//nas/x", "10.0.0.1@tcp:/lustre", "beegfs_nodev")] == [True] * 4
    assert [is_shared(each) for each in ("/dev/sda1", "tmpfs", "rpool/ROOT", "")] == [False] * 4


@pytest.mark.parametrize("metric", METRICS)
def test_all_figures_can_be_taken_away_as_they_are(metric: str, hosts: Hosts) -> None:
    taken = table(metric, hosts(gpu01=cpu(12.345) | {"disk": {"/": {"percent_used": 1.5}}}, gpu02=cpu(None)))
    rows = [dict(zip(taken.columns, row, strict=True)) for row in taken.rows]
    assert [row["host"] for row in rows] == ["gpu01", "gpu02"]
    assert {"cpu": 12.345, "memory": 21.875, "disk": 1.5, "load": 0.5}[metric] in rows[0].values()


@pytest.mark.parametrize("metric", METRICS)
def test_names_with_markup_are_inert_in_each_figure(metric: str, hosts: Hosts) -> None:
    hostile = "<a href='javascript:x'>$\\alpha$&"
    disk = {hostile: {"mount_point": hostile, "used_gb": 1, "total_gb": 2}}
    text = json.dumps(figure(chart(metric, hosts(**{hostile: {"disk": disk}}))))
    assert "<" not in text
    assert "$" not in text
    assert "&lt;a href" in text


def test_escaping_keeps_what_a_reader_sees() -> None:
    assert escape("gpu01 <b>&$") == "gpu01 &lt;b&gt;&amp;&#36;"


def test_an_empty_cluster_is_said_and_drawn_empty() -> None:
    drawn = chart("cpu", [])
    assert drawn.finding == "No host has reported yet."
    assert figure(drawn)["data"][0].get("x", []) in ([], ())


def test_the_figures_are_json(client: FlaskClient) -> None:
    for metric in METRICS:
        answer = client.get(f"/api/v1/figures/{metric}")
        assert answer.status_code == 200
        assert set(answer.json or ()) == {"data", "layout"}
    answer = client.get("/api/v1/figures/fps")
    assert (answer.status_code, (answer.json or {})["success"]) == (404, False)


def test_plotly_js_is_the_wheels_packed_and_kept_for_ever(client: FlaskClient) -> None:
    path = f"/plotly-{PLOTLY_JS.tag}.min.js"
    packed = client.get(path, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "immutable" in packed.headers["Cache-Control"]
    assert packed.mimetype == "text/javascript"
    assert gzip.decompress(packed.data) == PLOTLY_JS.plain()
    old = client.get("/plotly-1.0.min.js")
    assert old.data == PLOTLY_JS.plain()
    assert old.headers["Cache-Control"] == "no-cache"


def test_starting_the_server_does_not_import_plotly() -> None:
    code = "import sys; from cluster_dash_server.app import create_app; create_app(); sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


IMPORTED_MEANWHILE = """
import sys, threading, time
from importlib.abc import MetaPathFinder
from plotly.graph_objects import Figure
from cluster_dash_server.history import late_numpy
from cluster_dash_server.web.charts import Bar, Chart, figure

Figure(data=[{"type": "bar", "x": [1]}])
assert "numpy" not in sys.modules
begun = threading.Event()

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "numpy._core" and not begun.is_set():
            begun.set()
            time.sleep(0.5)

sys.meta_path.insert(0, Slow())
threading.Thread(target=late_numpy.load).start()
begun.wait()
bars = [Bar(host="a", name="a", value=1.0, text="1", short_name="a", short_text="1", level="", silent=False)]
empty = {"title": "", "finding": "", "axis": "", "left_out": "", "columns": (), "rows": ()}
figure(Chart(metric="cpu", form="bars", percent=True, bars=tuple(bars), **empty))
"""


def test_a_chart_that_is_drawn_while_history_imports_numpy_waits_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED_MEANWHILE], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
