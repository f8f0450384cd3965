"""The page that says how the server itself does."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.web import hot
from cluster_dash_server.web.hot import Viewers
from cluster_dash_server.web.status import memory_bytes, versions


@pytest.fixture
def client(clock: Callable[[], float]) -> FlaskClient:
    return create_app(Settings(), clock).test_client()


@pytest.fixture
def post(client: FlaskClient, make_snapshot: Any) -> Callable[..., int]:
    def send(*args: Any, **fields: Any) -> int:
        return client.post("/", json={"auth_code": "lab_cluster_2025", **make_snapshot(*args, **fields)}).status_code

    return send


def get(client: FlaskClient) -> Any:
    return client.get("/api/v1/status").json


def test_the_status_says_what_comes_in_and_what_was_refused(client: FlaskClient, post: Any, clock: Any) -> None:
    for second in range(10):
        assert post("gpu01", interval_seconds=1, seq=second, boot_id="b") == 200
        clock.now += 1
    assert post("gpu02", general={"mole_version": "1.2.0"}, interval_seconds=2) == 200
    assert post("gpu03", auth_code="wrong") == 401
    assert post("gpu03", cpu={"cpu_percent": 101}) == 400
    said = get(client)
    assert (said["hosts"], said["gpus"], said["uptime_seconds"], said["expected_per_second"]) == (2, 2, 10, 1.5)
    assert (said["ingest"]["taken"], said["ingest"]["per_second"], said["ingest"]["refused"]) == (11, 1.0, 2)
    assert [(each["status"], each["subject"]) for each in said["ingest"]["refusals"]] == [
        (400, "cpu.cpu_percent"),
        (401, "auth_code"),
    ]
    assert said["moles"] == [
        {"version": "unknown", "hosts": 1, "q": "mole:unknown"},
        {"version": "1.2.0", "hosts": 1, "q": "mole:1.2.0"},
    ]
    text = client.get("/status").text
    assert "2 hosts, 2 GPUs.\n1.0 snapshots a second, 1.5 expected. 2 snapshots refused." in text
    assert '<th scope="row" class="name">cpu.cpu_percent</th><td class="number">400</td>' in text
    assert 'href="/?q=mole%3A1.2.0">1 host</a>' in text
    assert (client.get("/status?format=json").json or {})["ingest"]["taken"] == 11


def test_clocks_that_differ_and_silent_hosts_are_named(client: FlaskClient, make_snapshot: Any, clock: Any) -> None:
    late = {"Date": "Tue, 14 Nov 2023 22:10:00 GMT"}  # 200 s before the clock of these tests
    body = {"auth_code": "lab_cluster_2025", **make_snapshot("gpu01", interval_seconds=5)}
    assert client.post("/", json=body, headers=late).status_code == 200
    assert get(client)["skewed"] == [{"host": "gpu01", "skew_seconds": -200.0}]
    assert "<dd>3 min behind</dd>" in client.get("/status").text
    clock.now += 400
    assert (get(client)["stale"], get(client)["down"]) == (1, 0)
    assert '<a href="/?q=state:stale,down">1 host silent</a>' in client.get("/status").text


def test_the_live_view_is_behind_by_what_was_posted_since_it_was_made(
    client: FlaskClient, post: Any, clock: Any
) -> None:
    assert get(client)["live"]["behind_seconds"] == 0
    post("gpu01")
    clock.now += 0.25
    assert get(client)["live"]["behind_seconds"] == pytest.approx(0.25)
    clock.now += 1
    assert get(client)["live"]["behind_seconds"] == 0


def test_who_looked_within_a_minute_is_counted_once(client: FlaskClient, clock: Any) -> None:
    for _ in range(3):
        for browser in ("Firefox", "Chromium"):
            client.get("/api/v1/cluster", headers={"User-Agent": browser})
        clock.now += 5
    assert get(client)["viewers"] == 2
    clock.now += 61
    assert get(client)["viewers"] == 0


def test_viewers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "MOST_VIEWERS", 3)
    viewers = Viewers()
    for number in range(10):
        viewers.note({"REMOTE_ADDR": f"10.0.0.{number}"}, 0.0)
    assert viewers.count(0.0) == 3
    viewers.note({"REMOTE_ADDR": "10.0.0.9"}, 100.0)
    assert viewers.count(100.0) == 1


def test_many_viewers_are_looked_through_once_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "MOST_VIEWERS", 3)
    viewers, counts = Viewers(), 0

    def count(now: float) -> int:
        nonlocal counts
        counts += 1
        return as_before(now)

    as_before = viewers.count
    monkeypatch.setattr(viewers, "count", count)
    for number in range(100):
        viewers.note({"REMOTE_ADDR": f"10.0.0.{number}"}, number / 10)
    assert 9 <= counts <= 11


def test_versions_are_the_most_frequent_first_and_found_by_their_filter() -> None:
    found = versions(Counter({"1.10": 3, "1.9": 3, None: 7, 'a "b"': 1}))
    assert [(each.version, each.q) for each in found] == [
        ("unknown", "mole:unknown"),
        ("1.9", "mole:1.9"),
        ("1.10", "mole:1.10"),
        ('a "b"', 'mole:"a \\"b\\""'),
    ]


def test_the_memory_of_this_process_is_known() -> None:
    assert (memory_bytes() or 0) > 2**20


def test_a_form_that_there_is_not_is_refused_with_its_mend(client: FlaskClient) -> None:
    answer = client.get("/status?format=xml")
    assert answer.status_code == 400
    assert "format: got &#39;xml&#39;, expected one of html, json" in answer.text
