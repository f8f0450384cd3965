"""Views by their address: the same filter on every page, any view as CSV and JSON, links to the same view changed."""

import csv
import difflib
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.web import charts, export, host_page, words
from cluster_dash_server.web.views import here

Post = Callable[..., None]
CHARTS = ("/cpu-data", "/memory", "/root_drive", "/load-data-1")
HOSTILE = [
    "=1+1",
    "+1",
    "-1",
    "@x",
    "\t=1",
    "\r=1",
    '"; DROP',
    "<script>alert(1)</script>",
    "\x1b[31mred",
    "\u202eabc",
    "$x$",
]


@pytest.fixture
def client(clock: Callable[[], float]) -> FlaskClient:
    return create_app(Settings(), clock).test_client()


@pytest.fixture
def post(client: FlaskClient, make_snapshot: Any) -> Post:
    def send(*args: Any, **fields: Any) -> None:
        answer = client.post("/", json={"auth_code": "lab_cluster_2025", **make_snapshot(*args, **fields)})
        assert answer.status_code == 200, answer.text

    return send


@pytest.fixture
def post_many(client: FlaskClient, make_snapshot: Any) -> Callable[..., None]:
    """Post many hosts, gpu000 and so on, in as few requests as that takes."""

    def send(count: int, gpus: list[Any], **fields: Any) -> None:
        secret = {"auth_code": "lab_cluster_2025"}
        lines = [json.dumps(secret | make_snapshot(f"gpu{number:03}", gpus, **fields)) for number in range(count)]
        for begin in range(0, count, 100):
            answer = client.post("/api/v1/snapshots", data="\n".join(lines[begin : begin + 100]))
            assert (answer.json or {})["rejected"] == [], answer.text

    return send


def table(client: FlaskClient, path: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the head of a CSV, and its rows."""
    answer = client.get(path)
    assert (answer.status_code, answer.mimetype) == (200, "text/csv"), answer.text
    head, columns, *rows = csv.reader(io.StringIO(answer.text))
    return head, [dict(zip(columns, row, strict=True)) for row in rows]


def test_the_overview_shows_what_its_filter_means(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0), make_gpu(1, gpu_util=90.0)])
    post("gpu02", [make_gpu(0, gpu_util=90.0)])
    text = client.get("/?q=state:free").text
    assert 'data-key="gpu01"' in text
    assert 'data-key="gpu02"' not in text
    assert "1 of 1 GPU free: 1 × H100 80G." in text
    text = client.get("/?q=usr:x").text
    assert "usr: no such key, did you mean user?" in text
    assert 'data-key="gpu02"' in text
    assert "Nothing matches." in client.get("/?q=host:other").text


def test_a_fleet_is_shown_by_the_page_and_grouped(client: FlaskClient, post_many: Post, make_gpu: Any) -> None:
    post_many(202, [make_gpu(0)])
    text = client.get("/").text
    assert text.count('<tr role="row" data-key') == 50
    assert "hosts 1–50 of 202, worst first" in text
    assert 'href="/?page=2"' in text
    assert "by model" in text
    text = client.get("/?page=5&sort=-host").text
    assert text.count('<tr role="row" data-key') == 2
    assert 'data-key="gpu000"' in text
    assert text.count('<tr role="row" data-key') + text.count("<li>") < 200


@pytest.mark.parametrize("path", ["/", "/gpu-data", *CHARTS])
def test_every_view_is_csv_and_json_with_filter_and_time_in_the_head(
    client: FlaskClient, post: Post, post_many: Post, make_gpu: Any, path: str
) -> None:
    post_many(120, [make_gpu(0), make_gpu(1)], disk={"/": {"percent_used": 1.5}})
    post("login", [])
    head, rows = table(client, f"{path}?q=host:gpu*&format=csv")
    assert head == ["# cluster", "at 2023-11-14 22:13:20 UTC", "q: host:gpu*"]
    assert len(rows) == (240 if path == "/gpu-data" else 120)
    body: Any = client.get(f"{path}?q=host:gpu*%20usr:x&format=json").json
    assert (body["q"], body["problems"]) == ("host:gpu*", ["usr: no such key, did you mean user?"])
    assert body["at"] == 1_700_000_000.0
    assert len(body["rows"]) == len(rows)


def test_numbers_are_taken_away_as_they_are_and_unknown_is_empty(
    client: FlaskClient, post: Post, make_gpu: Any
) -> None:
    post("gpu01", [make_gpu(0, used_mem=1.25, gpu_util=None, users={"eve": {"1": {"job_id": 7}}, "bob": {}})])
    _, (row,) = table(client, "/gpu-data?format=csv")
    assert (row["used_mem"], row["gpu_util"], row["users"], row["jobs"]) == ("1.25", "", "bob eve", "7")
    _, (row,) = table(client, "/?format=csv")
    assert (row["host"], row["cpu_percent"], row["gpus"], row["free_gpus"]) == ("gpu01", "12.5", "1", "0")
    assert list(row) == list(export.HOST_COLUMNS)
    body: Any = client.get("/host/gpu01?format=json").json
    assert (body["rows"][0]["gpu_util"], body["rows"][0]["users"]) == (None, ["bob", "eve"])


def test_beside_a_histogram_the_highest_are_named_on_the_page(
    client: FlaskClient, post_many: Post, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "DOTS_UP_TO", 200)
    post_many(201, [])
    post("busiest", [], cpu={"cpu_percent": 99})
    text = client.get("/cpu-data").text
    named = text.partition("The 20 highest")[2].partition("</table>")[0]
    assert (named.count("<tr><th"), "busiest" in named, "gpu000" in named, "gpu019" in named) == (21, True, True, False)
    assert "The first 200 of 202." in text


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_is_a_formula(client: FlaskClient, post: Post, make_gpu: Any, text: str) -> None:
    name = text.translate({9: None, 13: None, 27: None, ord("/"): None}) or "x"
    post(
        name, [make_gpu(0, users={text: {"1": {"job_id": text}}}, name=text, error=text)], disk={text: {"device": text}}
    )
    for path in ("/", "/gpu-data", "/root_drive", f"/user/{words.segment(text)}"):
        _, rows = table(client, f"{path}?format=csv")
        assert rows
        for row in rows:
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values()), row


def test_a_user_page_says_what_they_have_and_how_much_of_it_does_nothing(
    client: FlaskClient, post: Post, make_gpu: Any, clock: Any
) -> None:
    def on(index: int, util: float, *users: str, **process: Any) -> Any:
        return make_gpu(index, gpu_util=util, used_mem=60_000.0, users={user: {"1": process} for user in users})

    gpus = [on(0, 90.0, "alice", job_id=4711), on(1, 0.0, "alice", "bob", job_id=4712), on(2, 50.0, "bob")]
    for _ in range(2):
        post("gpu01", gpus, interval_seconds=1800)
        post("gpu02", [on(0, 97.0, "alice", job_id=4711)], interval_seconds=1800)
        clock.now += 1800
    text = client.get("/user/alice").text
    said = "On 3 GPUs of 2 hosts. 1 of 3 idle now (33 %). 1 held without work, the longest for 60 min."
    assert said.replace("60 min", "1 h") in text
    assert (
        '<th scope="row" class="name">4711</th><td class="number">2</td><td class="name words">gpu[01-02]</td>' in text
    )
    assert text.count('class="gpu-table"') + text.count("plain gpu-table") == 1
    assert 'href="/?q=user%3A%22alice%22"' in text
    assert "On no GPU now." in client.get("/user/carol").text
    _, rows = table(client, "/user/alice?format=csv")
    assert [(row["host"], row["index"]) for row in rows] == [("gpu01", "0"), ("gpu01", "1"), ("gpu02", "0")]


@pytest.mark.parametrize("user", ["*", 'a"b', "a b", "user:x", "-x", "<b>", "\u202e", "a,b", "[1]"])
def test_any_name_has_a_page_of_its_own_gpus(client: FlaskClient, post: Post, make_gpu: Any, user: str) -> None:
    post("gpu01", [make_gpu(0, users={user: {"1": {}}}), make_gpu(1, users={"eve": {"1": {}}})])
    text = client.get(f"/user/{words.segment(user)}").text
    assert "On 1 GPU of 1 host." in text
    assert "<b>" not in text.partition("<main")[2].replace("<b></b>", "")


def test_an_address_of_the_same_view_keeps_what_is_not_changed(clock: Any) -> None:
    app = create_app(Settings(), clock)
    with app.test_request_context(
        "/gpu-data?q=state:free&page=3&sort=-free", environ_overrides={"SCRIPT_NAME": "/dash"}
    ):
        assert here(page=4) == "/dash/gpu-data?q=state:free&page=4&sort=-free"
        assert here(q="a b") == "/dash/gpu-data?q=a%20b&sort=-free"
        assert here(q=None, sort=None) == "/dash/gpu-data"
        assert here(format="csv") == "/dash/gpu-data?q=state:free&page=3&sort=-free&format=csv"


@pytest.mark.parametrize(
    ("path", "msg"),
    [
        ("/?format=xml", "format: got &#39;xml&#39;, expected one of html, csv, json"),
        ("/?sort=fps", "sort: got &#39;fps&#39;"),
        ("/?cols=free,fps", "cols: got &#39;fps&#39;, expected some of state, model, gpus, free,"),
    ],
)
def test_what_cannot_be_asked_for_is_said_on_a_page(client: FlaskClient, path: str, msg: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, msg in answer.text) == (400, True)


def test_the_columns_of_the_overview_can_be_chosen(client: FlaskClient) -> None:
    text = client.get("/").text
    assert "data-hidden" not in text
    assert 'href="/?cols=state,model,gpus,users,busy,mem,cpu,load,seen" aria-current="true">Free</a>' in text
    text = client.get("/?q=state:busy&cols=free,users").text
    assert 'data-hidden="state model gpus busy mem cpu load seen"' in text
    assert 'href="/?q=state:busy&amp;cols=free,users,busy">Busy</a>' in text
    assert 'href="/?q=state:busy&amp;cols=free" aria-current="true">Users</a>' in text
    assert 'href="/?cols=host" aria-current="true">Free</a>' in client.get("/?cols=free").text
    assert 'href="/">Seen</a>' in client.get("/?cols=state,model,gpus,free,users,busy,mem,cpu,load").text


def test_the_nearest_of_ten_thousand_names_are_found_by_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    class Counted(difflib.SequenceMatcher[str]):
        def ratio(self) -> float:
            compared.append(max(len(self.a), len(self.b)))  # type: ignore[attr-defined]
            return super().ratio()

    monkeypatch.setattr(difflib, "SequenceMatcher", Counted)
    names = [f"gpu{number:05}" for number in range(10_000)]
    assert host_page.nearest("gpu0123", names) == [f"gpu0123{number}" for number in range(5)]
    assert host_page.nearest("GPU01234.lab", names)[0] == "gpu01234"
    assert host_page.nearest("gpu1", ["gpu01", "login"]) == ["gpu01"]
    assert len(compared) <= 2 * 200 + 2
    assert host_page.nearest(5000 * "gpu", names) == []
    assert max(compared) <= 64
