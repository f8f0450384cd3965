"""What is shown outside of the pages: the wall screen, embedded parts, the badge, and who may frame them."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings, SiteSettings
from cluster_dash_server.web.wall import MOST_TILES

Post = Callable[..., None]


def start(clock: Any, **site: Any) -> FlaskClient:
    return create_app(replace(Settings(), site=SiteSettings(**site)), clock).test_client()


@pytest.fixture
def client(clock: Any) -> FlaskClient:
    return start(clock)


@pytest.fixture
def post(client: FlaskClient, make_snapshot: Any) -> Post:
    def send(*args: Any, **fields: Any) -> None:
        answer = client.post("/", json={"auth_code": "lab_cluster_2025", **make_snapshot(*args, **fields)})
        assert answer.status_code == 200, answer.text

    return send


def test_the_wall_says_what_is_free_and_what_is_wrong(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0), make_gpu(1, error="Xid 79")])
    text = client.get("/tv").text
    assert "<h1>1 of 2 GPUs free: 1 × H100 80G. 1 in error.</h1>" in text
    assert "gpu01 GPU 1: Xid 79" in text
    assert '<li data-key="gpu01">' in text
    assert "gpu01" not in client.get("/tv?q=host:gpu02").text
    assert "usr: no such key" in client.get("/tv?q=usr:x").text


def test_many_hosts_stand_on_the_wall_in_groups(client: FlaskClient, post: Post) -> None:
    for number in range(MOST_TILES + 1):
        post(f"gpu{number:02}")
    text = client.get("/tv").text
    assert f"{MOST_TILES + 1} hosts by model" in text
    assert '<tr data-key="H100 80G">' in text
    assert text.count("<li data-key") == 0
    assert client.get("/tv?q=host:gpu0*").text.count("<li data-key") == 10


def test_an_embedded_overview_leads_out_of_its_frame(client: FlaskClient, post: Post) -> None:
    post("gpu01")
    text = client.get("/embed/overview?q=model:h100").text
    assert "1 of 1 GPU free: 1 × H100 80G." in text
    assert 'href="/?q=model:h100" target="_top"' in text


def test_an_embedded_host_says_how_it_stands(client: FlaskClient, post: Post) -> None:
    post("gpu01")
    text = client.get("/embed/host/gpu01").text
    assert "Free since" in text
    assert "gpu01 GPU 0, free, 0 of 80 GiB, busy 0 %" in text
    assert 'href="/host/gpu01" target="_top"' in text
    assert client.get("/embed/host/gpu02").status_code == 404


@pytest.mark.parametrize("path", ["/tv", "/embed/overview", "/embed/host/gpu01"])
def test_only_named_sites_may_frame_what_may_be_embedded(clock: Any, make_snapshot: Any, path: str) -> None:
    for origins, ancestors in (
        ((), "'none'"),
        (("https://a.lab", "https://b.lab:8443"), "https://a.lab https://b.lab:8443"),
    ):
        client = start(clock, embed_from=origins)
        client.post("/", json={"auth_code": "lab_cluster_2025", **make_snapshot("gpu01")})
        headers = client.get(path).headers
        assert headers["Content-Security-Policy"].endswith(f"frame-ancestors {ancestors}")
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert "X-Frame-Options" not in headers
        others = client.get("/").headers
        assert others["Content-Security-Policy"].endswith("frame-ancestors 'none'")
        assert others["X-Frame-Options"] == "DENY"


def test_the_badge_is_one_line_of_svg(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    assert "free GPUs: no data" in client.get("/badge/free.svg").text
    post("gpu01", [make_gpu(0), make_gpu(1, gpu_util=90.0), make_gpu(2, name="NVIDIA L4")])
    answer = client.get("/badge/free.svg?q=model:h100")
    assert (answer.mimetype, answer.headers["Cache-Control"]) == ("image/svg+xml", "max-age=30")
    drawn = ElementTree.fromstring(answer.text)  # noqa: S314  our own text
    texts = ["".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["free GPUs", "1 of 2"]
    assert set(re.findall(r"fill:([^}]*)", answer.text)) == set(re.findall(r"fill:(#[0-9A-F]{6})", answer.text))


@pytest.mark.parametrize("path", ["/tv", "/embed/overview", "/embed/host/gpu01"])
def test_no_script_stands_in_the_page(client: FlaskClient, post: Post, path: str) -> None:
    post("gpu01")
    text = client.get(path).text
    assert re.findall(r"<script(?![^>]* src=)", text) == []
    for script in re.findall(r'(?:src|href)="(/assets/[^"]*)"', text):
        assert client.get(script).status_code == 200
