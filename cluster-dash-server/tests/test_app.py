"""What `create_app` wires: scopes, headers, one shape of errors."""

import html
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from flask import Flask
from flask.cli import FlaskGroup
from flask.testing import FlaskClient

from cluster_dash_server.access.viewers import SCOPES, needs, scope_of
from cluster_dash_server.app import VERSION, create_app
from cluster_dash_server.ledger.kept import KeptBook
from cluster_dash_server.notices.telling import Telling
from cluster_dash_server.settings import IngestSettings, ServerSettings, Settings, SiteSettings, ViewerSettings


@pytest.fixture
def app(clock: Callable[[], float]) -> Flask:
    return create_app(Settings(), clock=clock)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_every_route_says_who_may_use_it(app: Flask) -> None:
    rules = list(app.url_map.iter_rules())
    assert len(rules) > 15
    for rule in rules:
        assert scope_of(app.view_functions[rule.endpoint]) in SCOPES, rule.rule


def test_a_route_without_a_scope_keeps_the_server_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster_dash_server.app.scope_of", lambda view: None)
    with pytest.raises(RuntimeError, match="declares no scope"):
        create_app(Settings())


def test_a_scope_is_declared_on_the_view() -> None:
    @needs("public")
    def view() -> None: ...

    assert scope_of(view) == "public"
    assert scope_of(lambda: None) is None


@pytest.mark.parametrize("path", ["/", "/api/v1/cluster", "/healthz", "/nowhere", "/api/nowhere", "/cpu-data"])
def test_every_answer_has_the_security_headers(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/nowhere", 404), ("DELETE", "/", 405), ("POST", "/nowhere", 404), ("PUT", "/api/v1/cluster", 405)],
)
def test_errors_for_machines_have_one_shape(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert answer.json is not None
    assert set(answer.json) == {"success", "msg"}
    assert answer.json["success"] is False


@pytest.mark.parametrize(
    ("part", "path"), [("live.Live.body", "/api/v1/cluster"), ("web.first_live.server", "/api/dashboard-data")]
)
def test_an_error_of_our_own_gives_a_number_and_the_log_the_traceback(
    part: str,
    path: str,
    example: Any,
    clock: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the inside of the server")

    monkeypatch.setattr(f"cluster_dash_server.{part}", broken)
    client = create_app(Settings(), clock=clock).test_client()
    client.post("/", json=example)
    answer = client.get(path)
    assert answer.status_code == 500
    assert answer.json is not None
    assert "the inside" not in answer.text
    assert answer.json["msg"].rpartition(" ")[2] in caplog.text
    assert "the inside of the server" in caplog.text


def test_posts_are_taken_by_any_content_type_and_say_what_encodings_they_may_use(
    client: FlaskClient, example: Any
) -> None:
    import json

    for content_type in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        answer = client.post("/", data=json.dumps(example), content_type=content_type)
        assert (answer.status_code, answer.headers["Accept-Encoding"]) == (200, "gzip, zstd")


def test_a_body_over_the_limit_is_413_in_the_one_shape(client: FlaskClient) -> None:
    answer = client.post("/", data=b" " * (2 * 2**20 + 1))
    assert answer.status_code == 413
    assert answer.json is not None
    assert answer.json["msg"].startswith("body: ")


def test_the_shipped_passcode_needs_a_loopback_name_and_nobody_in_between(client: FlaskClient, example: Any) -> None:
    assert client.post("/", json=example).status_code == 200
    assert client.post("/", json=example, headers={"Host": "dash.lab"}).status_code == 401
    assert client.post("/", json=example, headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 401
    assert client.post("/", json=example, headers={"Via": "1.1 proxy"}).status_code == 401
    assert client.post("/", json=example, headers={"Origin": "http://localhost"}).status_code == 403


def test_it_lives_under_a_path_whether_the_proxy_cuts_it_off_or_not(clock: Callable[[], float], example: Any) -> None:
    settings = Settings(server=ServerSettings(public_url="https://lab.example/dash/"))
    client = create_app(settings, clock=clock).test_client()
    for prefix in ("/dash", ""):
        assert client.post(f"{prefix}/", json=example).status_code == 200
        assert client.get(f"{prefix}/api/v1/hosts/gpu01").status_code == 200
        page = client.get(f"{prefix}/")
        assert 'href="/dash/' in page.text
        assert 'href="/static' not in page.text
        # what is copied or printed from a page behind a proxy that ends TLS
        assert "curl -s 'https://lab.example/dash/api/v1/free?" in html.unescape(page.text)
        assert '<p class="printed">https://lab.example/dash/?q=gpu01, ' in client.get(f"{prefix}/?q=gpu01").text
    assert client.get("/dash").status_code == 200


def test_only_trusted_names_are_answered_where_the_site_names_them(clock: Callable[[], float]) -> None:
    client = create_app(Settings(viewers=ViewerSettings(trusted_hosts=("dash.lab:8080",))), clock=clock).test_client()
    assert client.get("/", headers={"Host": "DASH.lab:8080"}).status_code == 200
    assert client.get("/", headers={"Host": "rebound.example"}).status_code == 421


def test_a_request_with_two_lengths_is_refused(client: FlaskClient) -> None:
    answer = client.post("/", data=b"{}", headers={"Transfer-Encoding": "chunked"})
    assert answer.status_code == 400


def test_pages_say_what_is_open(clock: Callable[[], float]) -> None:
    fresh = create_app(Settings(), clock=clock).test_client()
    assert "No passcode is set" in fresh.get("/").text
    site = create_app(Settings(ingest=IngestSettings(passcode="a passcode of the site")), clock=clock).test_client()
    assert "Anyone who reaches" not in site.get("/").text
    site.get("/theme.css", headers={"Origin": "http://localhost"})  # a module script of our own page sends it
    assert "Anyone who reaches" not in site.get("/").text
    site.get("/", headers={"Host": "dash.lab"})
    assert "Anyone who reaches" in site.get("/").text


def test_pages_show_the_notice_of_the_site_beside_their_own(clock: Callable[[], float]) -> None:
    site = SiteSettings(notice="New drivers <on Monday>")
    page = create_app(Settings(site=site), clock=clock).test_client().get("/memory").text
    assert "New drivers &lt;on Monday&gt;" in page
    assert "No passcode is set" in page


def test_the_entry_in_front_of_flask_and_the_routes_behind_it_answer_alike(app: Flask, example: Any) -> None:
    front = app.test_client()
    behind = FlaskClient(_without_entry(app), response_wrapper=app.response_class)
    for path, body in [("/", example), ("/", {}), ("/api/v1/snapshots", example), ("/api/v1/snapshots", {})]:
        one, other = front.post(path, json=body), behind.post(path, json=body)
        assert (one.status, one.data) == (other.status, other.data)
        assert dict(one.headers) == dict(other.headers)
    assert set(front.get("/api/v1/cluster").headers.keys()) == set(behind.get("/api/v1/cluster").headers.keys())


def test_what_is_answered_in_front_of_flask_is_a_route_of_the_same_scope(app: Flask) -> None:
    for way in app.wsgi_app.ways:  # type: ignore[attr-defined]
        endpoint, _ = app.url_map.bind("").match(way.path, method=way.method)
        assert scope_of(app.view_functions[endpoint]) == way.scope


def _without_entry(app: Flask) -> Any:
    plain = create_app(Settings())
    plain.wsgi_app = Flask.wsgi_app.__get__(plain)  # type: ignore[method-assign]
    return plain


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        (["--debug", "--host=0.0.0.0"], False),
        (["--debug", "--host=192.0.2.7"], False),
        (["--debug", "--host=127.0.0.1"], True),
        (["--debug"], True),
        (["--debug", "--no-debugger", "--host=0.0.0.0"], True),
        (["--host=0.0.0.0"], True),
    ],
)
def test_flask_s_debugger_is_offered_on_loopback_only(
    arguments: list[str], starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    monkeypatch.setattr("flask.cli.run_simple", lambda host, *args, **more: served.append(host))
    monkeypatch.setenv("FLASK_APP", "cluster_dash_server")
    monkeypatch.setenv("FLASK_DEBUG", "0")  # --debug sets it: it is put back at the end of the test
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "false")
    with pytest.raises(SystemExit) as ended:
        FlaskGroup().main(["run", *arguments], prog_name="flask")
    assert (ended.value.code == 0, len(served)) == (starts, starts)


def test_the_version_is_that_of_the_package() -> None:
    assert version("cluster-dash-server") == VERSION


def test_of_replicas_the_one_that_evaluates_says_that_somebody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Callable[[], bool]] = []

    class Noted(Telling):
        def __init__(self, *args: Any, is_well: Callable[[], bool], **named: Any) -> None:
            asked.append(is_well)
            super().__init__(*args, is_well=is_well, **named)

    leads = [True]
    monkeypatch.setattr("cluster_dash_server.parts.Telling", Noted)
    monkeypatch.setattr(KeptBook, "leads", lambda self: leads[0])
    create_app(Settings(), clock=lambda: 10.0)
    (is_well,) = asked
    assert is_well()
    leads[0] = False  # what it sees of alerts says nothing of whether they are evaluated
    assert not is_well()
