"""Names behind pseudonyms: what nobody may know is never kept, what some may know is shown to them alone."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from cluster_dash_server.access import users
from cluster_dash_server.access.viewers import scope_of
from cluster_dash_server.app import create_app
from cluster_dash_server.history.settings import PrivacySettings
from cluster_dash_server.privacy import KEY_FILE, Veil, kept_key
from cluster_dash_server.settings import MetricsSettings, ServerSettings, Settings, ViewerSettings

MakeGpu = Callable[..., dict[str, Any]]
MakeSnapshot = Callable[..., dict[str, Any]]
SECRETS = ("alice.liddell", "train_secret_model", "secret-container", "white.rabbit", "job-for-the-queen")
KEY = b"k" * 32


@pytest.fixture
def snapshot(make_snapshot: MakeSnapshot, make_gpu: MakeGpu) -> dict[str, Any]:
    process = {"mem": 4000.0, "time": 1.0, "name": "train_secret_model", "command": "train_secret_model"}
    gpu = make_gpu(
        0,
        gpu_util=90,
        used_mem=5000.0,
        users={
            "alice.liddell": {"7": {**process, "container": "secret-container", "job_id": "5"}},
            "root": {"8": process},
        },
    )
    columns = {"id": [5], "user": [1], "name": ["job-for-the-queen"], "account": [2], "state": [3], "partition": [4]}
    strings = ["", "white.rabbit", "court", "RUNNING", "gpu"]
    return make_snapshot("gpu01", [gpu], slurm={"cluster": "lab", "strings": strings, "jobs": columns})


def serve(folder: Path, clock: Any, viewers: dict[str, Any] | None = None, **privacy: Any) -> Flask:
    settings = Settings(
        server=ServerSettings(data=str(folder / "data")),
        viewers=ViewerSettings(**(viewers or {})),
        privacy=PrivacySettings(**privacy),
        metrics=MetricsSettings(users=True),
    )
    app = create_app(settings, clock=clock)
    app.extensions["start"]()
    return app


def all_that_is_shown(app: Flask, client: FlaskClient, headers: dict[str, str]) -> dict[str, str]:
    """Ask every route that reads, in each of its forms; return what each says."""
    names = {"<host>": "gpu01", "<metric>": "cpu", "<user>": "alice.liddell", "<label>": "5"}
    said = {}
    for rule in app.url_map.iter_rules():
        path = rule.rule
        if "GET" not in (rule.methods or ()) or scope_of(app.view_functions[rule.endpoint]) in ("public", "ingest"):
            continue
        for name, value in names.items():
            path = path.replace(name, value)
        for query in ("", "?format=csv", "?by=user"):
            answer = client.get(path + query, headers=headers)
            assert answer.status_code < 500, (path + query, answer.text)
            # a page may repeat the name that it was asked for
            said[path + query] = answer.text.replace("alice.liddell", "") if "alice" in path else answer.text
    assert len(said) > 50
    return said


def revealed(said: dict[str, str]) -> list[tuple[str, str]]:
    return [(path, secret) for path, text in said.items() for secret in SECRETS if secret in text]


def test_pseudonyms_are_the_same_for_the_same_name_and_key(tmp_path: Path) -> None:
    veil = Veil(KEY, hides_people=True, hides_programs=False)
    assert veil.person("alice") == Veil(KEY, hides_people=True, hides_programs=True).person("alice")
    assert veil.person("alice") not in (
        veil.person("bob"),
        Veil(b"x", hides_people=True, hides_programs=True).person("alice"),
    )
    assert [veil.person(name) for name in ("root", "unknown (pid 7)")] == ["root", "unknown (pid 7)"]
    assert kept_key(tmp_path) == kept_key(tmp_path) != kept_key(tmp_path / "other")
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / KEY_FILE).write_bytes(b"")  # a loss of power before it was on the disk
    assert len(kept_key(tmp_path)) == 32
    assert kept_key(tmp_path) == (tmp_path / KEY_FILE).read_bytes()


def test_what_nobody_may_know_is_found_nowhere(tmp_path: Path, clock: Any, snapshot: dict[str, Any]) -> None:
    app = serve(tmp_path, clock, user_names="pseudonym", programs=False)
    client = app.test_client()
    assert client.post("/", json={**snapshot, "auth_code": "lab_cluster_2025"}).status_code == 200
    said = all_that_is_shown(app, client, {})
    assert revealed(said) == []
    assert "user-" in said["/api/v1/cluster"]
    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file())
    assert [secret for secret in SECRETS if secret.encode() in kept] == []


def test_names_are_shown_to_who_has_signed_in_alone(
    tmp_path: Path, clock: Any, snapshot: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "N", 2**4)
    users.write(tmp_path / "users", "ann", ("viewer", users.hash_password("long enough")))
    viewers = {"mode": "basic", "users_file": str(tmp_path / "users"), "allow_anonymous": True}
    app = serve(tmp_path, clock, viewers, user_names="signed_in")
    client = app.test_client()
    assert client.post("/", json={**snapshot, "auth_code": "lab_cluster_2025"}).status_code == 200
    signed_in = {"Authorization": "Basic " + base64.b64encode(b"ann:long enough").decode()}
    for _ in range(2):  # what is kept ready for the one is not given to the other
        assert revealed(all_that_is_shown(app, client, {})) == []
        seen = {secret for _, secret in revealed(all_that_is_shown(app, client, signed_in))}
        assert {"alice.liddell", "white.rabbit"} <= seen


def test_a_read_token_is_told_no_names_unless_it_is_for_them(
    tmp_path: Path, clock: Any, snapshot: dict[str, Any]
) -> None:
    app = serve(tmp_path, clock)
    client, tokens = app.test_client(), app.extensions["tokens"]
    client.post("/", json={**snapshot, "auth_code": "lab_cluster_2025"})
    scopes = ("state:read", "history:read", "metrics:read")
    blind, seeing = (
        {"Authorization": f"Bearer {tokens.new('read', 'program', scopes=each)}"}
        for each in (scopes, (*scopes, "pii:read"))
    )
    assert revealed(all_that_is_shown(app, client, blind)) == []
    assert "alice.liddell" in client.get("/api/v1/cluster", headers=seeing).text
    assert "alice.liddell" in client.get("/api/v1/cluster").text  # an open server shows names, as ever
