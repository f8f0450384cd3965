"""Who may look: the gate in front of every route, by each way of saying who one is."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from cluster_dash_server.access import users
from cluster_dash_server.access.viewers import SCOPES, current, needs, scope_of
from cluster_dash_server.app import create_app
from cluster_dash_server.settings import ConfigError, ServerSettings, Settings, ViewerSettings
from cluster_dash_server.web.edge import Edge

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "N", 2**4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, role in (("ann", "viewer"), ("otto", "operator"), ("ada", "admin")):
        users.write(tmp_path / "users", name, (role, users.hash_password(PASSWORD)))  # type: ignore[arg-type]
    return tmp_path


MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(folder: Path, clock: Any) -> MakeApp:
    """Make a server: `make_app("basic", server={…}, allow_anonymous=True)`."""

    def make(mode: str = "open", server: dict[str, Any] | None = None, **viewers: Any) -> Flask:
        if mode == "basic":
            viewers["users_file"] = str(folder / "users")
        settings = Settings(
            server=ServerSettings(data=str(folder / "data"), **(server or {})),
            viewers=ViewerSettings(mode=mode, **viewers),
        )
        app = create_app(settings, clock=clock)
        add_routes(app)
        return app

    return make


def add_routes(app: Flask) -> None:
    """Add a route of each scope that this release has no route of."""

    @app.route("/test/operate", methods=["GET", "POST"])
    @needs("operate")
    def operate() -> str:
        return str(current.get().name)

    @app.route("/test/admin", methods=["POST"])
    @needs("admin")
    def administer() -> str:
        return str(current.get().name)


def basic(name: str, password: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def every_route(app: Flask) -> Iterator[tuple[str, str, str]]:
    """Give method, path and scope of each route, the ones that are answered in front of Flask as well."""
    names = {"host": "gpu01", "metric": "cpu", "digest": "x", "name": "style.css", "user": "ann"}
    for rule in app.url_map.iter_rules():
        scope = scope_of(app.view_functions[rule.endpoint])
        path = rule.rule
        for converter in rule._trace:
            if converter[0]:
                for name in rule.arguments:
                    path = path.replace(f"<{name}>", names.get(name, "x")).replace(
                        f"<path:{name}>", names.get(name, "x")
                    )
        for method in (rule.methods or set()) - {"OPTIONS"}:
            yield method, path, str(scope)


def test_no_route_lets_anybody_in_who_has_not_signed_in(make_app: MakeApp) -> None:
    app = make_app("basic")
    client, tried = app.test_client(), set()
    for method, path, scope in every_route(app):
        assert scope in SCOPES, path
        status = client.open(path, method=method).status_code
        if scope not in ("public", "ingest"):
            assert status == 401, (method, path, status)
            tried.add(path)
    assert len(tried) > 15
    assert {"/", "/api/v1/cluster", "/data-out/gpu-data-simple", "/api/gpu-summary", "/metrics"} <= tried
    assert isinstance(app.wsgi_app, Edge)
    assert {way.scope for way in app.wsgi_app.ways} == {"ingest", "public", "state:read"}


def test_every_route_that_changes_something_refuses_the_pages_of_other_sites(make_app: MakeApp) -> None:
    app = make_app("basic")
    client, tried = app.test_client(), set()
    for method, path, scope in every_route(app):
        if method in ("GET", "HEAD") or scope == "ingest":
            continue
        for forged in (
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
            {"Origin": "null"},
            {},
        ):
            answer = client.open(path, method=method, headers={**basic("ada"), **forged})
            assert answer.status_code == 403, (method, path, forged)
        own = client.open(path, method=method, headers={**basic("ada"), "Origin": "http://localhost"})
        assert own.status_code == 403
        assert b"csrf" in own.data  # a page of ours hands back what only it was told
        tried.add(path)
    assert {"/sign-in", "/sign-out", "/test/operate", "/test/admin"} <= tried


def test_a_page_is_sent_to_sign_in_and_a_program_is_told(make_app: MakeApp) -> None:
    client = make_app("basic").test_client()
    page = client.get("/host/gpu01?tab=2", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["Location"]) == (303, "/sign-in?next=/host/gpu01?tab%3D2")
    for path in ("/api/v1/cluster", "/api/gpu-summary"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert answer.json == {"success": False, "msg": "request: sign in to look"}
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        # a browser would cover the page with a question of its own
        assert "WWW-Authenticate" not in client.get(path, headers={"Sec-Fetch-Site": "same-origin"}).headers


def sign_in(client: FlaskClient, name: str = "ann", password: str = PASSWORD, goes_to: str = "/gpu-data") -> Any:
    form = {"name": name, "password": password, "next": goes_to}
    return client.post("/sign-in", data=form, headers={"Origin": "http://localhost"})


def test_who_signs_in_looks_until_signing_out(make_app: MakeApp) -> None:
    client = make_app("basic").test_client()
    answer = sign_in(client)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/gpu-data")
    cookie = answer.headers["Set-Cookie"]
    assert all(flag in cookie for flag in ("HttpOnly", "SameSite=Lax", "Path=/"))
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert b"ann" in page.data
    csrf = page.text.partition('name="csrf" value="')[2].partition('"')[0]
    assert client.post("/sign-out", headers={"Origin": "http://localhost"}).status_code == 403
    assert client.get("/api/v1/cluster").status_code == 200
    left = client.post("/sign-out", data={"csrf": csrf}, headers={"Origin": "http://localhost"})
    assert left.status_code == 303
    assert client.get("/api/v1/cluster").status_code == 401


def test_a_session_ends_by_time_and_with_its_user(make_app: MakeApp, folder: Path, clock: Any) -> None:
    app = make_app("basic", session_hours=1)
    client, other = app.test_client(), app.test_client()
    sign_in(client)
    sign_in(other, "otto")
    users.write(folder / "users", "ann", None)
    assert client.get("/api/v1/cluster").status_code == 401
    assert other.get("/api/v1/cluster").status_code == 200
    clock.now += 3600
    assert other.get("/api/v1/cluster").status_code == 401


@pytest.mark.parametrize(
    "goes_to", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", ""]
)
def test_signing_in_leads_nowhere_else(make_app: MakeApp, goes_to: str) -> None:
    assert sign_in(make_app("basic").test_client(), goes_to=goes_to).headers["Location"] == "/"


def test_behind_https_the_cookie_is_for_this_host_alone(make_app: MakeApp) -> None:
    client = make_app("basic").test_client()
    headers = {"Host": "dash.lab", "Origin": "https://dash.lab", "X-Forwarded-Proto": "https"}
    form = {"name": "ann", "password": PASSWORD}
    cookie = client.post("/sign-in", data=form, headers=headers).headers["Set-Cookie"]
    assert cookie.startswith("__Host-cluster_dash=")
    assert "Secure" in cookie


def test_passwords_do_not_travel_in_clear(make_app: MakeApp) -> None:
    far: dict[str, Any] = {"environ_base": {"REMOTE_ADDR": "192.0.2.7"}}
    client = make_app("basic").test_client()
    assert client.get("/api/v1/cluster", headers=basic("ann"), **far).status_code == 403
    assert (
        make_app("basic", allow_plaintext=True).test_client().get("/", headers=basic("ann"), **far).status_code == 200
    )


def test_a_wrong_password_and_an_unknown_name_are_answered_alike_and_guessing_is_slowed(make_app: MakeApp) -> None:
    client = make_app("basic").test_client()
    assert client.get("/", headers=basic("ann")).status_code == 200
    said = [client.get("/", headers=basic(name, "guess")) for name in ("ann", "nobody", "ann\n", ":", "") * 2]
    assert {(answer.status_code, answer.data) for answer in said} == {(401, said[0].data)}
    assert client.get("/", headers=basic("ann", "guess")).status_code == 429
    assert client.get("/", headers=basic("otto")).status_code == 429  # not looked at: each costs 32 MiB
    assert client.get("/", headers=basic("ann")).status_code == 200  # known to be right


@pytest.mark.parametrize(("name", "operate", "admin"), [("ann", 403, 403), ("otto", 200, 403), ("ada", 200, 200)])
def test_a_role_is_what_somebody_may(make_app: MakeApp, name: str, operate: int, admin: int) -> None:
    client = make_app("basic").test_client()
    sign_in(client, name)
    page = client.get("/", headers={"Accept": "text/html"}).text
    csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
    own = {"Sec-Fetch-Site": "same-origin", "X-CSRF-Token": csrf}
    assert client.post("/test/operate", headers=own).status_code == operate
    assert client.post("/test/admin", headers=own).status_code == admin


def test_a_proxys_header_counts_from_that_proxy_alone(make_app: MakeApp) -> None:
    app = make_app("proxy", server={"trusted_proxies": ("192.0.2.9",)}, operators=("otto",))
    client = app.test_client()
    header = {"X-Remote-User": "otto"}
    by_proxy: dict[str, Any] = {"environ_base": {"REMOTE_ADDR": "192.0.2.9"}}
    assert client.get("/api/v1/cluster", headers=header).status_code == 401
    assert client.get("/", headers={**header, "Accept": "text/html"}).status_code == 401  # nothing to sign in to here
    assert client.get("/api/v1/cluster", **by_proxy).status_code == 401
    assert client.get("/api/v1/cluster", headers=header, **by_proxy).status_code == 200
    assert client.get("/test/operate", headers=header, **by_proxy).text == "otto"
    assert client.get("/test/operate", headers={"X-Remote-User": "ann"}, **by_proxy).status_code == 403


@pytest.mark.parametrize(
    ("mode", "settings", "says"),
    [
        ("proxy", {}, "trusted_proxies"),
        ("oidc", {}, "oidc_issuer"),
        ("oidc", {"oidc_issuer": "https://id.lab", "oidc_client_id": "x"}, "public_url"),
    ],
)
def test_a_mode_that_lacks_a_setting_keeps_the_server_from_starting(
    make_app: MakeApp, mode: str, settings: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make_app(mode, **settings)
    with pytest.raises(ConfigError, match="users_file"):
        create_app(Settings(viewers=ViewerSettings(mode="basic")))


def read_token(app: Flask, *scopes: str) -> dict[str, str]:
    tokens = app.extensions["tokens"]
    return {"Authorization": f"Bearer {tokens.new('read', 'grafana', scopes=scopes)}"}


@pytest.mark.parametrize("mode", ["open", "basic"])
def test_a_read_token_opens_its_scopes_and_changes_nothing(make_app: MakeApp, mode: str) -> None:
    app = make_app(mode)
    client = app.test_client()
    state = read_token(app, "state:read")
    assert client.get("/api/v1/cluster", headers=state).status_code == 200
    assert client.get("/api/history-data", headers=state).status_code == 403
    assert client.get("/metrics", headers=state).status_code == 403
    assert client.get("/metrics", headers=read_token(app, "metrics:read")).status_code == 200
    assert client.post("/test/operate", headers={**state, "Origin": "http://localhost"}).status_code == 403
    far: dict[str, Any] = {"environ_base": {"REMOTE_ADDR": "192.0.2.7"}}
    assert client.get("/api/v1/cluster", headers=state, **far).status_code == 403  # in clear
    wrong = {"Authorization": "Bearer cdr_abcdefgh_x"}
    assert client.get("/api/v1/cluster", headers=wrong).status_code == 401
    app.extensions["tokens"].revoke(state["Authorization"][11:19])
    assert client.get("/api/v1/cluster", headers=state).status_code == 403


def test_a_hosts_token_reads_nothing_and_a_read_token_posts_nothing(make_app: MakeApp, example: Any) -> None:
    app = make_app("basic")
    host = app.extensions["tokens"].new("host", example["hostname"])
    client = app.test_client()
    assert client.get("/api/v1/cluster", headers={"Authorization": f"Bearer {host}"}).status_code == 401
    reading = read_token(app, "state:read")["Authorization"].removeprefix("Bearer ")
    assert client.post("/", json={**example, "auth_code": reading}).status_code == 401
    assert client.post("/", json={**example, "auth_code": host}).status_code == 200
