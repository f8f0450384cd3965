"""Answers are packed for who takes them so, and only then."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from flask import Flask, Response
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.web.packing import packed


@pytest.fixture
def client(clock: Callable[[], float], make_snapshot: Any, make_gpu: Any) -> FlaskClient:
    client = create_app(Settings(), clock).test_client()
    gpus = [make_gpu(index) for index in range(8)]
    lines = [
        json.dumps({"auth_code": "lab_cluster_2025", **make_snapshot(f"gpu{number:02}", gpus)}) for number in range(100)
    ]
    assert (client.post("/api/v1/snapshots", data="\n".join(lines)).json or {})["accepted"] == 100
    return client


@pytest.mark.parametrize("path", ["/", "/gpu-data", "/?format=csv", "/api/dashboard-data", "/api/gpu-summary"])
def test_a_text_is_packed_for_who_takes_it(client: FlaskClient, path: str) -> None:
    plain = client.get(path)
    assert "Content-Encoding" not in plain.headers
    assert "Accept-Encoding" in plain.headers["Vary"]
    answer = client.get(path, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(answer.data) == plain.data
    assert int(answer.headers["Content-Length"]) == len(answer.data) < len(plain.data) / 3
    answer = client.get(path, headers={"Accept-Encoding": "zstd, gzip"})
    assert zstandard.ZstdDecompressor().decompress(answer.data) == plain.data


def test_a_fleet_of_100_hosts_is_a_small_page(client: FlaskClient) -> None:
    assert len(client.get("/", headers={"Accept-Encoding": "gzip"}).data) < 60_000


def answer_to(response: Response, accepted: str = "gzip") -> Response:
    with Flask(__name__).test_request_context(headers={"Accept-Encoding": accepted}):
        return packed(response)


def test_what_is_small_or_packed_already_or_no_text_goes_as_it_is() -> None:
    for response in (
        Response("short", mimetype="text/html"),
        Response(2000 * "x", mimetype="application/octet-stream"),
        Response(2000 * "x", mimetype="text/html", headers={"Content-Encoding": "br"}),
        Response((each for each in 2000 * "x"), mimetype="text/html"),
    ):
        before = response.headers.get("Content-Encoding")
        assert answer_to(response).headers.get("Content-Encoding") == before


def test_a_page_with_a_secret_of_its_viewer_is_not_packed() -> None:
    page = '<input type="hidden" name="csrf" value="7f3a">' + 2000 * "x"
    assert "Content-Encoding" not in answer_to(Response(page, mimetype="text/html")).headers
    assert "Content-Encoding" in answer_to(Response(page.replace("csrf", "q"), mimetype="text/html")).headers
