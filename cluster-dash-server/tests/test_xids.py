"""The Xids of the last day on the overview."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.store import Event
from cluster_dash_server.web.xids import MOST_LINES, lines

NOW = 1_700_000_000.0


def xid(host: str = "gpu02", gpu: int | str | None = 6, code: int = 79, age: float = 60, **fields: Any) -> Event:
    said = {"kind": "xid", "text": "the GPU has fallen off the bus.", **fields}
    return Event(at=NOW - age, host=host, gpu=gpu, code=code, **said)


def test_each_kind_of_a_gpu_is_one_line_with_its_last_moment_and_how_often() -> None:
    events = [xid(age=60), xid(age=7200), xid(gpu=None, code=43, age=9000, text="stopped"), xid(age=90_000)]
    found, more, _ = lines(events, ["gpu02"], NOW)
    assert [each.text for each in found] == [
        "gpu02 GPU 6 Xid 79: the GPU has fallen off the bus, 1 min ago, 2 times",
        "gpu02 Xid 43: stopped, 2 h ago",
    ]
    assert more == 0


def test_other_kinds_and_other_hosts_are_left_out() -> None:
    assert lines([xid(kind="gpu_lost"), xid(host="gpu03")], ["gpu02"], NOW)[0] == []


def test_of_many_the_newest_are_shown_and_the_others_counted() -> None:
    found, more, most = lines([xid(gpu=index, age=index) for index in range(20)], ["gpu02"], NOW)
    assert [each.gpu for each in found] == list(range(MOST_LINES))
    assert (more, most) == (20 - MOST_LINES, MOST_LINES)


@pytest.fixture
def client(clock: Callable[[], float]) -> FlaskClient:
    return create_app(Settings(), clock).test_client()


def test_the_overview_links_each_xid_to_its_gpu(client: FlaskClient, make_snapshot: Any, make_gpu: Any) -> None:
    assert '<section id="xids" aria-labelledby="xids-title" data-most="8" hidden>' in client.get("/").text
    event = {"at": NOW - 60, "kind": "xid", "gpu": 0, "code": 79, "text": "<b>off the bus</b>"}
    body = {"auth_code": "lab_cluster_2025", **make_snapshot("gpu02", [make_gpu(0)], events=[event], timestamp=NOW)}
    assert client.post("/", json=body).status_code == 200
    text = client.get("/").text
    assert '<a href="/host/gpu02#gpu-0">gpu02 GPU 0 Xid 79: &lt;b&gt;off the bus&lt;/b&gt;, 1 min ago</a>' in text
    assert "Xid 79" not in client.get("/?q=host:gpu01").text
    listed: Any = client.get("/api/v1/events?kind=xid&from=now-1d&q=gpu02").json
    assert [each["code"] for each in listed["events"]] == [79]
