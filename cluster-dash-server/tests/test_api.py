"""The kept routes in their first shapes, and the first routes of `/api/v1`."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import VERSION, create_app
from cluster_dash_server.settings import Settings

Snapshot = dict[str, Any]


@pytest.fixture
def client(clock: Callable[[], float]) -> FlaskClient:
    return create_app(Settings(), clock=clock).test_client()


def post(client: FlaskClient, body: Snapshot) -> None:
    answer = client.post("/", json={"auth_code": "lab_cluster_2025", **body})
    assert answer.status_code == 200, answer.text


def test_gpu_data_simple_gives_the_entries_as_they_came_with_their_age(
    client: FlaskClient, clock: Any, example: Snapshot
) -> None:
    post(client, example)
    clock.now += 90
    wanted = {
        key: {**entry, "received_timestamp": 90.0, "time_received_mins": 1.5} for key, entry in example["gpu"].items()
    }
    assert client.get("/data-out/gpu-data-simple").json == {"gpu01": wanted}


def test_dashboard_data_keeps_its_shape_and_its_own_rule_of_free(
    client: FlaskClient, clock: Any, example: Snapshot
) -> None:
    post(client, example)
    clock.now += 60
    answer = client.get("/api/dashboard-data").json
    assert answer is not None
    host = answer["servers"]["gpu01"]
    first = next(iter(example["gpu"].values()))
    assert answer["timestamp"] == clock.now
    assert (host["status"], host["last_seen_mins"]) == ("online", 1.0)
    assert host["cpu"] == {"cpu_percent": 23.4, "num_cpus": 64}
    assert host["gpus"][0] == {
        **{"index": 0, "name": "NVIDIA GeForce RTX 3090", "total_mem_mb": 24576.0, "used_mem_mb": 21874.0},
        **{"memory_percent": 21874 / 24576 * 100, "gpu_util": 97, "users": first["users"]},
    }
    memory = [21874 / 245.76, 9021 / 245.76, 14 / 245.76, 14 / 245.76]
    assert host["summary"] == {
        **{"total_gpus": 4, "free_gpus": 2, "state_free_gpus": 2},
        **{"avg_gpu_memory_percent": pytest.approx(sum(memory) / 4), "avg_gpu_util": 97 / 4},
    }
    assert "gpu_error" not in host
    clock.now += 600
    assert client.get("/api/dashboard-data").json["servers"]["gpu01"]["status"] == "offline"  # type: ignore[index]


def test_a_host_that_cannot_read_its_gpus_says_so_and_counts_none(client: FlaskClient, make_snapshot: Any) -> None:
    post(client, make_snapshot(gpu={"gpu_error": {"name": "error", "uuid": "none", "index": 0, "error": "no driver"}}))
    host = client.get("/api/dashboard-data").json["servers"]["gpu01"]  # type: ignore[index]
    assert host["gpu_error"] == "no driver"
    assert host["gpus"] == []
    assert host["summary"] == {
        **{"total_gpus": 0, "free_gpus": 0, "state_free_gpus": 0, "avg_gpu_memory_percent": None, "avg_gpu_util": None}
    }


def test_unknown_figures_stay_unknown(client: FlaskClient, make_snapshot: Any, make_gpu: Any) -> None:
    post(
        client, make_snapshot(gpus=[make_gpu(0, used_mem=None, gpu_util=None, users=None), make_gpu(1, gpu_util=50.0)])
    )
    host = client.get("/api/dashboard-data").json["servers"]["gpu01"]  # type: ignore[index]
    assert (host["gpus"][0]["memory_percent"], host["gpus"][0]["gpu_util"], host["gpus"][0]["users"]) == (
        None,
        None,
        None,
    )
    assert host["summary"]["avg_gpu_util"] == 50.0
    assert host["summary"]["free_gpus"] == 0


def test_the_summary_for_curl_is_a_table_in_colour_or_without(
    client: FlaskClient, clock: Any, example: Snapshot
) -> None:
    post(client, example)
    plain = client.get("/api/gpu-summary?color=no").text.splitlines()
    heads = ["Server", "GPUs", "Free", "GPU%", "CPU%", "Status", "By state"]
    assert [cell.strip() for cell in plain[0].split("\t")] == heads
    cells = ["gpu01", "4", "2", "31%", "23%", "online", "2 free, 2 busy"]
    assert [cell.strip() for cell in plain[1].split("\t")] == cells
    assert "\x1b" not in "".join(plain)
    clock.now += 601
    colour = client.get("/api/gpu-summary")
    assert colour.mimetype == "text/plain"
    assert "\x1b[91moffline\x1b[0m" in colour.text


def test_a_host_name_cannot_paint_the_terminal(client: FlaskClient, make_snapshot: Any) -> None:
    post(client, make_snapshot("a\u2028b"))
    assert "a�b" in client.get("/api/gpu-summary?color=no").text


def test_history_data_keeps_its_shape_while_nothing_is_kept(client: FlaskClient) -> None:
    answer = client.get("/api/history-data?hours=48").json
    assert answer is not None
    assert (answer["hours"], answer["series"]) == (48, [])
    assert set(answer["stats"]) == {
        *("avg_total_gpus", "avg_free_gpus", "peak_free_gpus", "min_free_gpus"),
        *("avg_cluster_util", "avg_cluster_mem", "waste_percent", "total_snapshots"),
    }


def test_the_cluster_comes_in_columns(client: FlaskClient, clock: Any, make_snapshot: Any, make_gpu: Any) -> None:
    post(client, make_snapshot("gpu01", [make_gpu(0), make_gpu(1, gpu_util=88.0, users={"alice": {"7": {"mem": 5}}})]))
    post(client, make_snapshot("cpu01", []))
    answer = client.get("/api/v1/cluster")
    body = answer.json
    assert body is not None
    assert (body["at"], body["full"], body["gone"]) == (clock.now, True, [])
    assert answer.headers["ETag"] == f'"{body["version"]}"'
    assert body["hosts"]["host"] == ["cpu01", "gpu01"]
    assert body["hosts"]["state"] == [None, "free"]
    assert body["gpus"]["host"] == [1, 1]
    assert body["gpus"]["state"] == ["free", "busy"]
    assert body["gpus"]["users"] == [{}, {"alice": 1}]
    for part in (body["hosts"], body["gpus"]):
        assert len({len(column) for column in part.values()}) == 1
    assert body["summary"] == "1 of 2 GPUs free: 1 × H100 80G."


def test_the_version_moves_with_each_snapshot_and_with_states_that_time_changes(
    client: FlaskClient, clock: Any, make_snapshot: Any
) -> None:
    post(client, make_snapshot(interval_seconds=5))
    first = client.get("/api/v1/cluster").json["version"]  # type: ignore[index]
    clock.now += 5
    again = client.get(f"/api/v1/cluster?since={first}").json
    assert again is not None
    assert (again["version"], again["full"], again["hosts"]["host"]) == (first, False, [])
    assert client.get("/api/v1/cluster", headers={"If-None-Match": f'"{first}"'}).status_code == 304
    clock.now += 60
    stale = client.get(f"/api/v1/cluster?since={first}").json
    assert stale is not None
    assert stale["hosts"]["state"] == ["stale"]
    assert stale["version"] != first
    post(client, make_snapshot(interval_seconds=5))
    clock.now += 1
    assert client.get("/api/v1/cluster").json["version"] not in (first, stale["version"])  # type: ignore[index]


def test_one_host_comes_as_it_was_sent_less_the_secret(client: FlaskClient, clock: Any, example: Snapshot) -> None:
    post(client, example)
    secret = example.pop("auth_code")
    answer = client.get("/api/v1/hosts/gpu01")
    assert secret not in answer.text
    assert answer.json == {
        **{"host": "gpu01", "received_at": clock.now, "state": "free", "skew_seconds": None, "snapshot": example}
    }
    missing = client.get("/api/v1/hosts/nowhere")
    assert (missing.status_code, missing.json) == (404, {"success": False, "msg": "host: nowhere is not known here"})


def test_the_schema_and_the_health_are_served(client: FlaskClient) -> None:
    assert json.loads(client.get("/api/v1/schema").text)["title"] == "Snapshot"
    assert client.get("/healthz").json == {"success": True}
    assert client.get("/readyz").json == {"success": True, "failing": [], "hosts": 0, "version": VERSION}


@pytest.mark.parametrize("hours", ["9" * 30, "-1", "abc", "nan", "1e5", "", "²"])
def test_hours_that_make_no_sense_are_named(client: FlaskClient, hours: str) -> None:
    answer = client.get("/api/history-data", query_string={"hours": hours})
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["msg"].startswith("hours: got ")


def test_a_version_of_thousands_of_digits_is_just_unknown(client: FlaskClient) -> None:
    life = client.get("/api/v1/cluster").json["version"].partition("-")[0]  # type: ignore[index]
    assert client.get(f"/api/v1/cluster?since={life}-{'9' * 5000}").json["full"]  # type: ignore[index]
