"""History as people and programs ask for it: `/api/v1/series`, `/api/history-data`, and what the page says."""

import csv
import io
import json
import re
import subprocess
import sys
from datetime import UTC
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server import privacy
from cluster_dash_server.app import create_app
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.history import bygone
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.settings import ServerSettings, Settings, SiteSettings
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import Event, EventQuery, KeptEvent, SeriesQuery, StoreError
from cluster_dash_server.web import first_history, history, timelines, words
from cluster_dash_server.web.answers import failure
from cluster_dash_server.web.parameters import QueryError
from cluster_dash_server.web.past import Past
from cluster_dash_server.web.waste import gpu_hours
from cluster_dash_server.when import span
from tests.past import Card, busy, figures, idle

NOW = 1_700_000_000.0
MINUTE, HOUR, DAY = 60, 3600, 86_400


class Lab:
    """A cluster with a past in memory, and the routes that tell of it."""

    def __init__(self, make_seen: Any, make_gpu: Any) -> None:
        self.cluster = Cluster(Thresholds())
        self.store = MemoryStore(lambda: NOW)
        for host in ("gpu01", "gpu02"):
            gpus = [make_gpu(index) for index in range(2)]
            self.cluster.offer(make_seen(host, gpus, interval_seconds=60, received_at=NOW))
        app = Flask(__name__)
        past = Past(self.cluster, self.store, self.store, lambda: NOW, UTC)
        app.register_blueprint(history.blueprint(past, "lab"))
        app.register_blueprint(first_history.blueprint(self.cluster, self.store, lambda: NOW))
        app.register_error_handler(QueryError, lambda error: failure(400, str(error)))
        self.client = app.test_client()

    def fill(self, minutes: int, hosts: tuple[str, ...] = ("gpu01", "gpu02")) -> None:
        for host in hosts:
            for minute in range(minutes):
                cards = [busy("alice", 40 + minute % 50), idle("bob") if minute % 2 else Card()]
                self.store.append(figures(host, NOW - (minutes - minute) * MINUTE, cards))

    def get(self, query: str, status: int = 200) -> Any:
        answer = self.client.get(f"/api/v1/series?{query}")
        assert answer.status_code == status, answer.text
        return answer.json


@pytest.fixture
def lab(make_seen: Any, make_gpu: Any) -> Lab:
    return Lab(make_seen, make_gpu)


def test_a_series_has_the_shape_of_the_contract(lab: Lab) -> None:
    lab.fill(10)
    answer = lab.get("metric=gpu_util&host=gpu01&gpu=0&from=now-10m&step=120")
    (series,) = answer.pop("series")
    assert answer == {"metric": "gpu_util", "step": 120}
    assert (series["host"], series["gpu"], series["uuid"]) == ("gpu01", 0, "GPU-gpu01-0")
    assert len(series["t"]) == len(series["min"]) == len(series["mean"]) == len(series["max"])
    assert all(at % 120 == 0 and NOW - 600 <= at <= NOW for at in series["t"])
    assert min(filter(None, series["min"])) in (40, 41)  # the first step begins within the time asked for
    assert max(filter(None, series["max"])) == 49


def test_where_nobody_chooses_steps_each_has_a_snapshot(lab: Lab) -> None:
    lab.fill(30)
    for by in ("gpu", "host"):
        answer = lab.get(f"metric=gpu_util&host=gpu01&by={by}&from=now-20m")
        assert answer["step"] == 120  # twice their interval
        assert None not in answer["series"][0]["mean"][1:-1]
    assert lab.get("metric=gpu_util&host=gpu01&from=now-20m&step=1")["step"] == 1


def test_gaps_stay_null_and_a_spike_is_seen_as_the_most(lab: Lab) -> None:
    hot = Card()._replace(temperature_c=95.0)
    for hour, cards in ((29 * 24, [hot]), (29 * 24 - 1, [Card()]), (5, [Card()])):
        lab.store.append(figures("gpu01", NOW - hour * HOUR + 1, cards))
    (series,) = lab.get("metric=temperature_c&host=gpu01&from=now-30d")["series"]
    assert len(series["t"]) <= 1500
    assert max(value for value in series["max"] if value is not None) == 95
    known = [mean is not None for mean in series["mean"]]
    assert sum(known) <= 3
    assert [value is not None for value in series["min"]] == known


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("metric=gpu_util", ["gpu01 0", "gpu01 1", "gpu02 0", "gpu02 1"]),
        ("metric=gpu_util&host=gpu[01-01]", ["gpu01 0", "gpu01 1"]),
        ("metric=gpu_util&host=*02&gpu=1", ["gpu02 1"]),
        ("metric=gpu_util&by=host", ["gpu01 None", "gpu02 None"]),
        ("metric=cpu_percent", ["gpu01 None", "gpu02 None"]),
        ("metric=free_gpus", ["None None"]),
        ("metric=held_gpus&user=alice", ["None None"]),
        ("metric=gpu_util&user=bob", ["gpu01 1", "gpu02 1"]),
        ("metric=gpu_util&host=gone01", []),
    ],
)
def test_what_is_asked_for_says_by_what_it_is_told(lab: Lab, query: str, names: list[str]) -> None:
    lab.fill(10)
    assert [f"{each['host']} {each['gpu']}" for each in lab.get(f"{query}&from=now-1h")["series"]] == names


def test_a_host_whose_name_reads_as_no_hostlist_is_asked_for_by_it(lab: Lab, make_seen: Any, make_gpu: Any) -> None:
    lab.cluster.offer(make_seen("gpu[1", [make_gpu(0)], interval_seconds=60, received_at=NOW))
    lab.fill(10, ("gpu01", "gpu[1"))
    series = lab.get("metric=gpu_util&host=gpu[1&from=now-1h")["series"]
    assert [f"{each['host']} {each['gpu']}" for each in series] == ["gpu[1 0", "gpu[1 1"]
    lab.get("metric=gpu_util&host=gpu[2&from=now-1h", 400)


def test_of_a_user_only_the_time_is_told_in_which_they_had_the_gpu(lab: Lab) -> None:
    for minute in range(60):
        lab.store.append(
            figures("gpu01", NOW - HOUR + minute * MINUTE, [busy("alice") if minute < 20 else busy("bob")])
        )
    (series,) = lab.get("metric=gpu_util&user=alice&from=now-1h&step=60")["series"]
    known = [at - (NOW - HOUR) for at, mean in zip(series["t"], series["mean"], strict=True) if mean is not None]
    assert 18 * MINUTE <= max(known) <= 22 * MINUTE


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "metric: got '', expected one of busy_gpus, cpu_percent"),
        ("metric=gpu_utli", "metric: got 'gpu_utli', expected one of"),
        ("metric=free_gpus&by=gpu", "metric: got 'free_gpus', expected one of gpu_util"),
        ("metric=gpu_util&from=x", "from: got 'x', expected now, now-6h"),
        ("metric=gpu_util&to=now-2d", "from: is later than to"),
        ("metric=gpu_util&gpu=-1", "gpu: got '-1', expected a number such as 0, or some: 0,3"),
        ("metric=gpu_util&step=0", "step: got '0', expected seconds, from 1 on"),
        ("metric=gpu_util&step=nan", "step: got 'nan'"),
        ("metric=gpu_util&by=rack", "by: got 'rack', expected one of gpu, host"),
        ("metric=gpu_util&host=gpu[3-1]", "host: [3-1] runs backwards"),
        ("metric=gpu_util&host=gpu[01-", "host: gpu[01-: its bracket is not closed, as in gpu[01-03,07]"),
        ("metric=gpu_util&format=xml", "format: got 'xml', expected one of json, csv"),
    ],
)
def test_what_cannot_be_answered_names_the_parameter_and_its_mend(lab: Lab, query: str, says: str) -> None:
    answer = lab.get(query, 400)
    assert answer["success"] is False
    assert answer["msg"].startswith(says)


def test_an_answer_that_would_be_too_large_gets_longer_steps_or_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.fill(10)
    monkeypatch.setattr(history, "MOST_VALUES", 400)
    answer = lab.get("metric=gpu_util&from=now-1h")
    assert sum(len(each["t"]) for each in answer["series"]) <= 400
    assert "take longer steps, or name hosts" in lab.get("metric=gpu_util&from=now-1h&step=1", 400)["msg"]


def test_a_series_as_csv_is_a_row_a_step_and_no_name_runs_in_a_spreadsheet(lab: Lab) -> None:
    lab.store.append(figures("=cmd()", NOW - 100, [busy("alice", 50)]))
    text = lab.client.get("/api/v1/series?metric=gpu_util&host=%3Dcmd()&from=now-10m&step=60&format=csv").text
    head, *rows = list(csv.reader(io.StringIO(text)))
    assert head == ["host", "gpu", "model", "user", "t", "min", "mean", "max"]
    assert {row[0] for row in rows} == {"'=cmd()"}
    assert [row[5:] for row in rows if row[5]] == [["50.0", "50.0", "50.0"]]
    assert [row[5:] for row in rows if not row[5]]


class Broken(MemoryStore):
    def series(self, ask: SeriesQuery) -> Any:
        raise StoreError("the disk is gone")


def test_history_that_cannot_be_read_is_503_in_words(lab: Lab) -> None:
    app = Flask(__name__)
    broken = Broken(lambda: NOW)
    app.register_blueprint(history.blueprint(Past(lab.cluster, broken, broken, lambda: NOW, UTC), "lab"))
    answer = app.test_client().get("/api/v1/series?metric=gpu_util")
    assert (answer.status_code, answer.json) == (503, {"success": False, "msg": "history: the disk is gone"})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 23 * 60), st.integers(0, 100)), min_size=1, max_size=60), st.data())
def test_any_two_parts_of_a_time_say_what_the_whole_says(found: list[tuple[int, int]], data: Any) -> None:
    begin = NOW // DAY * DAY
    lab_store = MemoryStore(lambda: NOW + DAY)
    for minute, util in dict(found).items():
        lab_store.append(figures("gpu01", begin + minute * MINUTE, [busy("alice", util)]))
    app = Flask(__name__)
    app.register_blueprint(
        history.blueprint(Past(Cluster(Thresholds()), lab_store, lab_store, lambda: NOW + DAY, UTC), "lab")
    )
    client = app.test_client()

    def told(first: float, last: float) -> list[tuple[float, Any, Any, Any]]:
        query = f"metric=gpu_util&host=gpu01&from={first}&to={last}&step=600"
        series = client.get(f"/api/v1/series?{query}").json["series"]  # type: ignore[index]
        return [each for line in series for each in zip(line["t"], line["min"], line["mean"], line["max"], strict=True)]

    cut = begin + 600 * data.draw(st.integers(1, 143))
    parts = told(begin, cut - 1) + told(cut, begin + DAY - 1)
    assert [each for each in parts if each[1] is not None] == [
        each for each in told(begin, begin + DAY - 1) if each[1] is not None
    ]


# ------------------------------------------------------------------------------------------- the first version's shape


def test_the_first_versions_history_keeps_its_shape(lab: Lab) -> None:
    lab.fill(120)
    answer = lab.client.get("/api/history-data?hours=2").json
    assert answer is not None
    assert list(answer) == ["hours", "generated_at", "series", "stats"]
    assert (answer["hours"], answer["generated_at"]) == (2, NOW)
    names = ["timestamp", "total_gpus", "free_gpus", "avg_gpu_util", "avg_gpu_memory_percent", "servers"]
    assert all(list(each) == names for each in answer["series"])
    middle = answer["series"][len(answer["series"]) // 2]
    assert middle["timestamp"] % 300 == 0
    assert middle["total_gpus"] == pytest.approx(4)
    assert list(middle["servers"]) == ["gpu01", "gpu02"]
    assert middle["servers"]["gpu01"].keys() == {"free_gpus", "total_gpus", "avg_gpu_util"}
    assert middle["servers"]["gpu01"]["total_gpus"] == 2
    stats = answer["stats"]
    assert list(stats) == [
        *("avg_total_gpus", "avg_free_gpus", "peak_free_gpus", "min_free_gpus"),
        *("avg_cluster_util", "avg_cluster_mem", "waste_percent", "total_snapshots"),
    ]
    assert stats["waste_percent"] == pytest.approx(100 * stats["avg_free_gpus"] / stats["avg_total_gpus"])
    assert stats["min_free_gpus"] <= stats["avg_free_gpus"] <= stats["peak_free_gpus"]


@pytest.mark.parametrize(
    ("hours", "bucket"), [(24, 300), (25, 900), (168, 900), (169, 3600), (720, 3600), (721, 14_400)]
)
def test_the_buckets_of_the_first_shape_grow_with_the_time(lab: Lab, hours: int, bucket: int) -> None:
    lab.fill(30)
    answer = lab.client.get(f"/api/history-data?hours={hours}").json
    assert answer is not None
    assert answer["series"]
    assert all(each["timestamp"] % bucket == 0 for each in answer["series"])


def test_without_history_the_first_shape_is_empty_and_the_wrong_hours_are_named(lab: Lab) -> None:
    answer = lab.client.get("/api/history-data").json
    assert answer is not None
    assert (answer["series"], answer["stats"]["total_snapshots"], answer["stats"]["avg_free_gpus"]) == ([], 0, None)
    for hours in ("0", "x", "-1", "99999999999"):
        wrong = lab.client.get(f"/api/history-data?hours={hours}")
        assert wrong.status_code == 400
        assert wrong.json is not None
        assert wrong.json["msg"].startswith("hours: got")


# --------------------------------------------------------------------------------------------------------- the page


class Pages:
    """A server with history in a folder."""

    def __init__(self, folder: Any, clock: Any, make_snapshot: Any) -> None:
        self.clock = clock
        self._make = make_snapshot
        site = SiteSettings(name="lab", timezone="Europe/Berlin")
        self.app = create_app(Settings(server=ServerSettings(data=str(folder)), site=site), clock)
        self.app.extensions["start"]()
        self.client: FlaskClient = self.app.test_client()

    def post(self, host: str, gpus: list[Any], **fields: Any) -> None:
        sent = self._make(host, gpus, timestamp=self.clock.now, interval_seconds=60, **fields)
        answer = self.client.post("/", json={**sent, "auth_code": "lab_cluster_2025"})
        assert answer.status_code == 200, answer.text

    def open(self, path: str, status: int = 200) -> str:
        self.app.extensions["history"].flush()
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text


@pytest.fixture
def pages(tmp_path: Any, clock: Any, make_snapshot: Any) -> Any:
    made = Pages(tmp_path, clock, make_snapshot)
    yield made
    made.app.extensions["history"].close()


def working(make_gpu: Any, index: int, user: str, util: float) -> Any:
    return make_gpu(index, gpu_util=util, used_mem=60_000, users={user: {"1": {"mem": 60_000, "name": "python"}}})


def fill(pages: Pages, make_gpu: Any, minutes: int = 40, host: str = "gpu01", user: str = "alice") -> None:
    for _ in range(minutes):
        pages.post(host, [working(make_gpu, 0, user, 80.0), make_gpu(1)])
        pages.clock.now += MINUTE


def test_before_the_second_snapshot_the_page_says_when_the_first_chart_comes(pages: Pages, make_gpu: Any) -> None:
    assert "the first chart stands here after 2 snapshots (about 10 s)" in pages.open("/history?by=gpu")
    pages.post("gpu01", [make_gpu(0)])
    assert "The first chart stands here about 2 min after them" in pages.open("/history?by=gpu")
    fresh = pages.open("/history")
    assert "The first chart stands here about 5 min after them" in fresh
    assert 'by=host">by host</a> it does sooner' in fresh
    assert "was measured" not in fresh
    assert "Nothing of this was measured in this time" in pages.open("/history?from=now-3d&to=now-2d")
    assert "Nobody held a GPU in this time" in pages.open("/waste")


@pytest.mark.parametrize("by", ["cluster", "host", "gpu", "user"])
def test_history_can_be_taken_away_as_csv_and_json(pages: Pages, make_gpu: Any, by: str) -> None:
    fill(pages, make_gpu, 130)
    told = json.loads(pages.open(f"/history?by={by}&from=now-3h&format=json"))
    assert (told["by"], told["at"], told["to"] - told["from"]) == (by, pages.clock.now, 3 * HOUR)
    assert {row["metric"] for row in told["rows"]} >= {"cluster": {"busy_gpus", "gpu_util"}, "user": {"held_gpus"}}.get(
        by, {"gpu_util", "used_mem"}
    )
    assert any(row["mean"] is not None for row in told["rows"])
    head, columns, *rows = csv.reader(io.StringIO(pages.open(f"/history?by={by}&from=now-3h&format=csv")))
    assert head[0] == "# lab"
    assert head[2].startswith("from 20")
    assert columns == list(told["rows"][0])
    assert len(rows) == len(told["rows"])
    assert "format=csv" in pages.open(f"/history?by={by}")


def test_waste_can_be_taken_away_as_csv_and_json(pages: Pages, make_gpu: Any) -> None:
    fill(pages, make_gpu, 70)
    told = json.loads(pages.open("/waste?by=host&format=json"))
    assert (told["by"], [row["name"] for row in told["rows"]]) == ("host", ["gpu01"])
    head, columns, row = csv.reader(io.StringIO(pages.open("/waste?by=user&format=csv")))
    assert (head[0], head[-1]) == ("# lab", "by: user")
    assert dict(zip(columns, row, strict=True))["name"] == "alice"


def test_gpu_hours_too_few_to_be_shown_are_not_nothing() -> None:
    assert [gpu_hours(seconds) for seconds in (0, 1, 170, 180, 36_000)] == ["0", "<0.1", "<0.1", "0.1", "10"]


@pytest.mark.parametrize("by", ["cluster", "model", "host", "gpu", "user"])
def test_the_page_says_in_words_and_tables_what_it_draws(pages: Pages, make_gpu: Any, by: str) -> None:
    fill(pages, make_gpu, 130)
    text = pages.open(f"/history?by={by}&from=now-3h")
    drawings = [json.loads(each) for each in re.findall(r'class="drawing">(.*?)</script>', text, re.DOTALL)]
    assert drawings
    assert all(each["lines"] for each in drawings)
    assert "on average" in text.lower()
    assert "<tbody>" in text


def test_a_map_has_a_row_for_each_gpu_and_a_filter_chooses_them(pages: Pages, make_gpu: Any) -> None:
    fill(pages, make_gpu)
    drawing = re.search(r'class="drawing">(.*?)</script>', pages.open("/history?by=gpu&view=map&from=now-1h"))
    assert drawing
    assert json.loads(drawing[1])["rows"] == ["GPU 0", "GPU 1"]
    busy_only = re.search(r'class="drawing">(.*?)</script>', pages.open("/history?by=gpu&q=user:alice&from=now-1h"))
    assert busy_only
    assert [line["name"] for line in json.loads(busy_only[1])["lines"]] == ["GPU 0"]
    assert "usr: no such key, did you mean user?" in pages.open("/history?by=gpu&q=usr:alice")


def test_hostile_names_are_words_on_pages_over_time(pages: Pages, make_gpu: Any) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    fill(pages, make_gpu, 130, host=evil.replace("/", "|"), user=evil)
    for path in (
        "/history?by=host&from=now-3h",
        "/history?by=user&from=now-3h",
        "/waste?from=now-1d",
        "/history?by=gpu",
    ):
        text = pages.open(path)
        assert "<script>alert" not in text
        assert "<img" not in text
    text = pages.open("/history", 200)
    assert pages.open(f"/history?from={evil}", 400).count("<script>alert") == 0


def test_a_server_that_keeps_no_history_says_so(clock: Any) -> None:
    client = create_app(Settings(), clock).test_client()
    for path in ("/history", "/waste"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "There is nothing to show over time: no history is kept here" in answer.text
    assert client.get("/api/v1/waste").status_code == 503


def test_waste_is_told_by_user_as_page_json_and_csv(pages: Pages, make_gpu: Any) -> None:
    for _ in range(130):
        pages.post("gpu01", [working(make_gpu, 0, "alice", 80.0), working(make_gpu, 1, "=bob", 0.0)])
        pages.clock.now += MINUTE
    text = pages.open("/waste?from=now-1d")
    assert "50 % of the GPU-hours held did nothing" in text
    assert "H100 80G: none of 2 was free" in text
    answer = pages.client.get("/api/v1/waste?from=now-1d").json
    assert answer is not None
    bob, alice = answer["waste"]
    assert (bob["name"], bob["busy_gpu_hours"], bob["longest_idle_gpu"]) == ("=bob", 0, 1)
    assert bob["idle_gpu_hours"] == pytest.approx(bob["held_gpu_hours"])
    assert bob["allocated_gpu_hours"] is None
    assert alice["idle_percent"] == pytest.approx(0)
    assert [len(day) for day in answer["week"]] == [24] * 7
    head, first, *_ = csv.reader(io.StringIO(pages.client.get("/api/v1/waste?from=now-1d&format=csv").text))
    assert (head[0], first[0]) == ("name", "'=bob")
    assert pages.client.get("/api/v1/waste?by=rack").status_code == 400


def test_the_table_of_waste_is_put_in_order_by_any_column_as_a_page_and_as_csv(pages: Pages, make_gpu: Any) -> None:
    for minute in range(130):
        late = [working(make_gpu, 2, "carol", 50.0)] if minute >= 60 else []
        pages.post("gpu01", [working(make_gpu, 0, "alice", 80.0), working(make_gpu, 1, "bob", 0.0), *late])
        pages.clock.now += MINUTE

    def order(sort: str) -> list[str]:
        text = pages.open(f"/waste?from=now-1d&sort={sort}")
        names = re.findall(r'<tr data-key="(\w+)">\s*<th scope="row" class="name"><a href="/user', text)
        rows = csv.reader(io.StringIO(pages.open(f"/waste?from=now-1d&format=csv&sort={sort}")))
        assert [row[0] for row in list(rows)[2:]] == names
        (head,) = re.findall(r'data-sort="(\w+)" aria-sort="(\w+)"', text)
        assert head == (sort.removeprefix("-"), "descending" if sort.startswith("-") else "ascending")
        return names

    assert order("-idle")[0] == order("-share")[0] == order("-longest")[0] == "bob"
    assert (order("name"), order("-name")) == (["alice", "bob", "carol"], ["carol", "bob", "alice"])
    assert (order("held")[0], order("-busy")[0]) == ("carol", "alice")
    assert 'data-sort="held"><a href="/waste?from=now-1d&amp;sort=-held#who-title">' in pages.open("/waste?from=now-1d")
    assert pages.client.get("/waste?sort=colour").status_code == 400


# ----------------------------------------------------------------------------------------------- figures, as such


def test_a_silent_hour_is_a_gap_and_one_that_is_not_over_yet_is_none() -> None:
    store = MemoryStore(lambda: NOW)
    for minute in (*range(60), *range(120, 180)):
        store.append(figures("gpu01", NOW - 3 * HOUR + minute * MINUTE, [Card()]))
    found = store.series(
        SeriesQuery(metric="gpu_util", begin=NOW - 3 * HOUR, end=NOW, hosts=("gpu01",), step_seconds=300)
    )
    asked = span("now-3h", "now", NOW)
    drawn = timelines.figure("k", timelines.MEASURES["gpu_util"], timelines.named(found, "gpu", one_host=True), asked)
    ((begin, end),) = drawn.drawing["gaps"]
    assert abs(begin - (NOW - 2 * HOUR)) <= 300
    assert abs(end - (NOW - HOUR)) <= 300


def test_of_many_lines_the_highest_are_drawn_and_the_band_tells_of_all() -> None:
    store = MemoryStore(lambda: NOW)
    for host in range(20):
        for minute in range(5):
            spike = 100.0 if (host, minute) == (0, 2) else float(host)
            store.append(figures(f"gpu{host:02}", NOW - 300 + minute * MINUTE, [busy("alice", spike)]))
    found = store.series(SeriesQuery(metric="gpu_util", begin=NOW - 300, end=NOW, step_seconds=300))
    lines = timelines.named(found, "gpu", one_host=False)
    drawn = timelines.figure("k", timelines.MEASURES["gpu_util"], lines, span("now-5m", "now", NOW))
    assert len(drawn.drawing["lines"]) == timelines.MOST_LINES
    assert "16 highest of 20" in drawn.left_out
    assert max(value for value in drawn.drawing["band"]["max"] if value is not None) == 100
    assert "100 % at most (gpu00 GPU 0)" in drawn.finding


def test_events_near_each_other_share_a_mark() -> None:
    store = MemoryStore(lambda: NOW)
    for at, text in ((NOW - HOUR, "Xid 79"), (NOW - HOUR + 5, "Xid 48"), (NOW - 100, "")):
        event = Event(at=at, host="gpu01", gpu=3, kind="gpu_lost", code=None, text=text)
        store.record(KeptEvent(event, told=True, source=None))
    events = store.events(EventQuery(begin=NOW - DAY, end=NOW))
    marks = timelines.marks(events, span("now-24h", "now", NOW))
    assert [(mark["count"], mark["texts"]) for mark in marks] == [
        (2, ["gpu01 GPU 3: Xid 79", "gpu01 GPU 3: Xid 48"]),
        (1, ["gpu01 GPU 3: gpu lost"]),
    ]


# ----------------------------------------------------------------------------------------- parts of other pages


def test_a_host_page_tells_who_had_which_gpu_and_when_it_was_heard_of(pages: Pages, make_gpu: Any) -> None:
    fill(pages, make_gpu, 30, user="alice")
    pages.clock.now += 2 * HOUR
    fill(pages, make_gpu, 30, user="<b>bob</b>")
    text = pages.open("/host/gpu01")
    assert "Its last 24 hours" in text
    assert re.search(r"Snapshots came in \d of 1\d quarter hours", text)
    assert text.count('data-beat="none"') >= 6
    assert "alice: 30 min, 80 % busy" in text
    assert "&lt;b&gt;bob&lt;/b&gt;: " in text
    assert "<b>bob" not in text


def test_a_host_page_says_when_the_day_was_below_the_beats_and_below_who_had_which_gpu(
    pages: Pages, make_gpu: Any
) -> None:
    fill(pages, make_gpu, 30, user="alice")
    pages.clock.now += 2 * HOUR
    text = pages.open("/host/gpu01")
    axes = re.findall(r'<div class="axis".*?</div>', text, re.DOTALL)
    assert len(axes) == 2
    assert axes[0] == axes[1]
    ticks = re.findall(r'--share:([\d.]+)%"><time data-at="(\d+)\.0"', axes[0])
    assert len(ticks) == 4
    assert all(int(at) % (6 * HOUR) == 0 for _, at in ticks)
    # where a beat of that very moment stands
    beats = re.findall(r'<span(?: data-beat="\w+")? title="([^":]+:[^":]+:\d\d UTC)', text)
    for left, at in ticks:
        assert float(left) == pytest.approx(100 * beats.index(words.stamp(int(at))) / len(beats), abs=0.01)


def test_a_host_whose_agent_is_of_the_first_version_was_heard_of_too(
    pages: Pages, make_gpu: Any, make_snapshot: Any
) -> None:
    for _ in range(3):
        sent = make_snapshot("gpu01", [make_gpu(0)], timestamp=pages.clock.now)
        assert "interval_seconds" not in sent
        pages.client.post("/", json={**sent, "auth_code": "lab_cluster_2025"})
        pages.clock.now += 5 * MINUTE
    assert re.search(r"Snapshots came in [12] of [12] quarter hour", pages.open("/host/gpu01"))


def test_a_user_page_tells_gpu_hours_and_the_newest_uses(pages: Pages, make_gpu: Any) -> None:
    fill(pages, make_gpu, 130)
    text = pages.open("/user/alice")
    assert "What they had in the last 7 days" in text
    assert "H100 80G" in text
    assert "gpu01 GPU 0" in text
    assert "History says nothing of them." in pages.open("/user/nobody")


def test_the_overview_shows_a_past_moment_and_what_was_held_then(pages: Pages, make_gpu: Any) -> None:
    began = pages.clock.now
    for _ in range(50):
        pages.post("gpu01", [working(make_gpu, 0, "alice", 80.0), working(make_gpu, 1, "bob", 0.0)])
        pages.clock.now += MINUTE
    then = pages.clock.now - 30
    for _ in range(10):
        pages.post("gpu01", [make_gpu(0), make_gpu(1)])
        pages.clock.now += MINUTE
    assert "2 of 2 GPUs free" in pages.open("/")
    text = pages.open(f"/?at={then}")
    assert "0 of 2 GPUs free" in text
    assert "1 held" in text
    assert "alice" in text
    assert "As it stood at" in text
    assert "overview.js" not in text
    early = pages.open(f"/?at={began + 600}")
    assert "1 held" not in early
    assert "bob" in early
    assert "at: got" in pages.open("/?at=x", 400)
    assert "No host" in pages.open("/?at=1000000000") or "0 of 0" in pages.open("/?at=1000000000")


def test_events_that_memory_has_lost_come_from_history_each_once(pages: Pages, make_gpu: Any) -> None:
    old = Event(at=pages.clock.now - 40 * DAY, host="gpu07", gpu=2, kind="xid", code=79, text="long ago")
    pages.app.extensions["history"].record(KeptEvent(old, told=True, source=None))
    pages.post("gpu01", [make_gpu(0), make_gpu(1)])
    pages.clock.now += MINUTE
    pages.post("gpu01", [make_gpu(0)])
    pages.app.extensions["history"].flush()
    answer = pages.client.get("/api/v1/events?from=now-60d").json
    assert answer is not None
    assert [(each["host"], each["kind"]) for each in answer["events"]] == [("gpu01", "gpu_lost"), ("gpu07", "xid")]
    assert "long ago" not in pages.client.get("/api/v1/events?from=now-7d").text


def test_who_may_not_know_names_sees_none_in_a_past_moment() -> None:
    store = MemoryStore(lambda: NOW)
    store.append(figures("gpu01", NOW - MINUTE, [busy("alice")]))
    veiled = privacy.veiled_past(store, privacy.Veil(b"key", hides_people=True, hides_programs=True))
    (row,) = veiled.moment(NOW)
    assert row.holders[0].user.startswith("user-")
    assert "alice" not in str(bygone.hosts_at(veiled, NOW, Thresholds()))


def test_pages_over_time_import_no_library_of_figures() -> None:
    """They cost 85 ms to a second and 15 to 170 MB, and are for those who ask for what needs them."""
    program = (
        "import sys; from cluster_dash_server.app import create_app\n"
        "from cluster_dash_server.settings import Settings\n"
        "client = create_app(Settings()).test_client()\n"
        "assert client.get('/history').status_code == client.get('/waste').status_code == 200\n"
        "print({'plotly', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
