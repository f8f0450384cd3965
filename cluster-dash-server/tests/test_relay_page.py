"""The application of a relay: what it answers beside posts, and that it keeps nothing."""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.access.viewers import SCOPES, scope_of
from cluster_dash_server.app import create_app
from cluster_dash_server.relaying.relay import RelaySettings
from cluster_dash_server.settings import ServerSettings, Settings


@pytest.fixture
def nobody() -> str:
    """An address at which nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def client(nobody: str, folder: Path, clock: Callable[[], float]) -> FlaskClient:
    settings = Settings(relay=RelaySettings(to=nobody, wait_seconds=0), server=ServerSettings(data=str(folder)))
    return create_app(settings, clock).test_client()


def test_a_post_to_a_relay_whose_centre_is_away_is_answered_503(client: FlaskClient, make_snapshot: Any) -> None:
    for _ in range(2):
        answer = client.post("/", json=make_snapshot("gpu017"))
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert "zstd" in answer.headers["Accept-Encoding"], "a mole may compress what it sends next"
        assert "Connection refused" in answer.json["msg"]  # type: ignore[index]
    assert client.post("/api/v1/snapshots", data=b"{}\n{}").status_code == 503
    assert client.post("/api/v1/enrol", json={"code": "cde_x"}).status_code == 503
    assert client.post("/", data=b"x" * (2 * 2**20 + 1)).status_code == 413
    assert client.post("/", data=b"{}", headers={"Origin": "http://evil"}).status_code == 403


def test_a_relay_says_what_it_passes_on_and_names_no_host(client: FlaskClient, nobody: str, make_snapshot: Any) -> None:
    assert client.post("/", json=make_snapshot("gpu017")).status_code == 503
    for path in ("/", "/status"):
        page = client.get(path)
        assert (page.status_code, page.mimetype) == (200, "text/html")
        assert nobody in page.text
        assert "The centre is away" in page.text
        assert "gpu017" not in page.text
        found = re.findall(r'(?:href|src)="(/[^"]*)"', page.text)
        assert len(found) >= 4
        assert {client.get(each).status_code for each in found} == {200}
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    said = client.get("/api/v1/status").json
    assert said is not None
    assert (said["to"], said["relay"]["lines"], said["posts"]["refused"]) == (nobody, 0, 1)
    assert "Connection refused" in said["relay"]["trouble"]
    metrics = client.get("/metrics").text
    assert "cluster_dash_relay_centre_up 0.0\n" in metrics
    assert "round_trip" not in metrics, "what is not known is absent"
    assert client.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text.endswith("# EOF\n")


def test_a_relay_is_healthy_and_ready_only_with_its_centre(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"success": True}
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json is not None
    assert [part["part"] for part in ready.json["failing"]] == ["centre"]


def test_who_looks_for_the_dashboard_here_is_told_where_it_is(client: FlaskClient, nobody: str) -> None:
    answer = client.get("/history")
    assert answer.status_code == 404
    assert answer.json == {
        "success": False,
        "msg": f"request: not found: this is a relay: pages and figures are at {nobody}",
    }
    assert client.get("/api/v1/cluster").status_code == 404


def test_a_relay_keeps_nothing(client: FlaskClient, folder: Path, make_snapshot: Any) -> None:
    client.application.extensions["start"]()
    client.post("/", json=make_snapshot("gpu017"))
    client.get("/status")
    assert not folder.exists()


def test_every_route_of_a_relay_declares_a_scope(client: FlaskClient) -> None:
    app: Any = client.application
    for rule in app.url_map.iter_rules():
        assert scope_of(app.view_functions[rule.endpoint]) in SCOPES, rule.rule
