"""Lists for terminals and scripts: what is free and what happened, as JSON, text and CSV."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.web.parameters import QueryError, moment, size_mib
from cluster_dash_server.when import GRAMMAR

Snapshot = dict[str, Any]
Post = Callable[..., None]
NOW = 1_700_000_000.0
HEAD = "at,host,gpu,kind,code,text"


@pytest.fixture
def client(clock: Callable[[], float]) -> FlaskClient:
    return create_app(Settings(), clock).test_client()


@pytest.fixture
def post(client: FlaskClient, make_snapshot: Any) -> Post:
    def send(*args: Any, **fields: Any) -> None:
        answer = client.post("/", json={**make_snapshot(*args, **fields), "auth_code": "lab_cluster_2025"})
        assert answer.status_code == 200, answer.text

    return send


def get(client: FlaskClient, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json


def test_free_gpus_come_with_all_that_one_needs_to_take_them(
    client: FlaskClient, post: Post, make_gpu: Any, clock: Any
) -> None:
    post("gpu01", [make_gpu(0, gpu_util=50.0), make_gpu(1)])
    clock.now += 7
    post("gpu02", [make_gpu(0), make_gpu(1)])
    gpu = {"model": "H100 80G", "free_mem": 81556.0, "total_mem": 81559.0}
    assert get(client, "/api/v1/free") == {
        "at": NOW + 7,
        "gpus": [
            {"host": "gpu01", "index": 1, "uuid": make_gpu(1)["uuid"], "since": NOW, **gpu},
            *({"host": "gpu02", "index": i, "uuid": make_gpu(i)["uuid"], "since": NOW + 7, **gpu} for i in (0, 1)),
        ],
        "hosts": [{"host": "gpu01", "count": 1}, {"host": "gpu02", "count": 2}],
    }
    assert get(client, "/api/v1/free?count=2&mem=79G&model=H100")["hosts"] == [{"host": "gpu02", "count": 2}]
    assert get(client, "/api/v1/free?mem=80G")["gpus"] == []


def test_free_gpus_as_text_are_a_line_a_host_and_model(
    client: FlaskClient, post: Post, make_gpu: Any, clock: Any
) -> None:
    other = {"name": "NVIDIA GB10", "total_mem": None, "used_mem": None}
    post("gpu01", [make_gpu(0), make_gpu(1, **other), make_gpu(3)])
    clock.now += 120
    answer = client.get("/api/v1/free?format=text")
    assert answer.mimetype == "text/plain"
    assert [[cell.strip() for cell in line.split("\t")] for line in answer.text.splitlines()] == [
        ["Host", "Free", "Model", "GPUs", "Memory free", "Free for"],
        ["gpu01", "2", "H100 80G", "0,3", "80 GiB", "2 min"],
        ["gpu01", "1", "GB10", "1", "–", "2 min"],
    ]
    assert client.get("/api/v1/free?count=4&format=text").text == "no host has 4 free GPUs that fit\n"


@pytest.mark.parametrize(
    ("query", "msg"),
    [
        ("free?count=0", "count: got '0', expected a whole number from 1 to 64"),
        ("free?count=65", "count: got '65', expected a whole number from 1 to 64"),
        ("free?count=²", "count: got '²', expected a whole number from 1 to 64"),
        ("free?mem=40", "mem: got '40', expected a size with its unit, such as 40G or 512M"),
        ("free?mem=lots", "mem: got 'lots', expected a size with its unit, such as 40G or 512M"),
        ("free?format=xml", "format: got 'xml', expected one of json, text, csv"),
        ("events?from=yesterday", f"from: got 'yesterday', expected {GRAMMAR}"),
        ("events?to=now-1x", f"to: got 'now-1x', expected {GRAMMAR}"),
        ("events?format=text", "format: got 'text', expected one of json, csv"),
        ("events?host=gpu[9-1]", "host: [9-1] runs backwards"),
        ("events?host=gpu[01-", "host: gpu[01-: its bracket is not closed, as in gpu[01-03,07]"),
    ],
)
def test_a_query_that_cannot_be_answered_names_the_parameter_and_its_mend(
    client: FlaskClient, query: str, msg: str
) -> None:
    answer = client.get(f"/api/v1/{query}")
    assert (answer.status_code, answer.json) == (400, {"success": False, "msg": msg})


def test_sizes_and_moments_are_read_with_their_units() -> None:
    assert [size_mib("mem", text) for text in ("40G", "512M", "1.5 GiB", "2tb", "1024K")] == [
        *(40960, 512, 1536, 2 * 1024 * 1024, 1)
    ]
    moments = ("now", "now-6h", "now-90s", "now+1m", "now 1m", "17", "1970-01-01")
    assert [moment("from", text, 100_000.0) for text in moments] == [
        *(100_000, 78_400, 99_910, 100_060, 100_060, 17, 0)
    ]
    with pytest.raises(QueryError):
        moment("from", "nan", 0.0)


def test_events_come_newest_first_with_the_silence_that_lasts(
    client: FlaskClient, post: Post, make_gpu: Any, clock: Any
) -> None:
    post("gpu01", [make_gpu(0), make_gpu(1)], interval_seconds=5)
    post("gpu02", [make_gpu(0)], interval_seconds=300, events=[{"at": NOW - 9, "kind": "xid", "gpu": 0, "code": 79}])
    clock.now += 5
    post("gpu01", [make_gpu(0)], interval_seconds=5)
    clock.now += 100
    lost = {"at": NOW + 5, "host": "gpu01", "gpu": 1, "kind": "gpu_lost", "code": None}
    lost["text"] = "missing: the snapshot does not hold it"
    silent = {"at": NOW + 65, "host": "gpu01", "gpu": None, "kind": "host_silent", "code": None}
    silent["text"] = "no snapshot for 60 s"
    xid = {"at": NOW - 9, "host": "gpu02", "gpu": 0, "kind": "xid", "code": 79, "text": "xid 79"}
    assert get(client, "/api/v1/events") == {"at": NOW + 105, "events": [silent, lost, xid]}
    assert get(client, "/api/v1/events?host=gpu[02-03]")["events"] == [xid]
    assert get(client, "/api/v1/events?host=*1&to=now-1m")["events"] == [lost]
    assert get(client, f"/api/v1/events?from={NOW:.0f}&to={NOW + 64:.0f}")["events"] == [lost]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_a_csv_is_a_formula(client: FlaskClient, post: Post, start: str) -> None:
    bad = f'{start}cmd|"/c calc"!A1'
    host = bad.replace("/", "").replace("\t", "").replace("\r", "") if start in "\t\r" else bad.replace("/", "")
    post(host, [], events=[{"at": NOW, "kind": bad, "code": bad, "gpu": bad, "text": bad}])
    answer = client.get("/api/v1/events?format=csv")
    assert answer.mimetype == "text/csv"
    head, row = csv.reader(io.StringIO(answer.text, newline=""))
    assert ",".join(head) == HEAD
    assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert row[1].removeprefix("'") == host


def test_a_csv_leaves_unknown_cells_empty_and_numbers_alone(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0, total_mem=None)])
    head, row = csv.reader(io.StringIO(client.get("/api/v1/free?format=csv").text))
    assert dict(zip(head, row, strict=True)) == {
        **{"host": "gpu01", "index": "0", "uuid": make_gpu(0)["uuid"], "model": "H100"},
        **{"free_mem": "", "total_mem": "", "since": str(NOW)},
    }


def test_one_filter_narrows_every_list(client: FlaskClient, post: Post, make_gpu: Any, clock: Any) -> None:
    busy = {"gpu_util": 90.0, "users": {"alice": {"1": {"type": "C"}}}}
    post("gpu01", [make_gpu(0), make_gpu(1, **busy)], events=[{"at": NOW - 9, "kind": "xid", "gpu": 0, "code": 79}])
    post("gpu02", [make_gpu(0)])
    post("login", [])
    free = get(client, "/api/v1/free?q=-host:gpu02")
    assert [gpu["host"] for gpu in free["gpus"]] == ["gpu01"]
    assert (free["q"], free["problems"]) == ("-host:gpu02", [])
    assert [each["kind"] for each in get(client, "/api/v1/events?q=user:alice")["events"]] == ["xid"]
    assert get(client, "/api/v1/events?q=host:gpu02")["events"] == []
    assert get(client, "/api/v1/events?kind=rebooted")["events"] == []
    simple = get(client, "/data-out/gpu-data-simple?q=user:alice")
    assert [(host, entry["index"]) for host, entries in simple.items() for entry in entries.values()] == [("gpu01", 1)]
    assert list(get(client, "/api/dashboard-data?q=state:free")["servers"]) == ["gpu01", "gpu02"]
    table = client.get("/api/gpu-summary?color=no&q=state:none usr:x").text.splitlines()
    assert (table[0], [line.split("\t")[0].strip() for line in table[1:]]) == (
        "! usr: no such key, did you mean user?",
        ["Server", "login"],
    )
    assert client.get("/api/v1/free?q=usr:x&format=text").text.startswith("! usr: no such key")
    assert get(client, "/api/v1/figures/cpu?q=host:login")["data"][0]["y"] == [0]
