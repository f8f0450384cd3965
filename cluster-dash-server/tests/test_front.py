"""What stands before the pages: it answers before they are there, and hands on to them when they are."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from cluster_dash_server import viewer_access
from cluster_dash_server.access import users
from cluster_dash_server.access.viewers import Rules
from cluster_dash_server.front import Front
from cluster_dash_server.ingest import AT_ONCE_BYTES
from cluster_dash_server.settings import ServerSettings, Settings, ViewerSettings
from cluster_dash_server.sharing.clock import EngineClock
from cluster_dash_server.sharing.kinds import LiveSettings
from cluster_dash_server.web.edge import KEPT, Reply

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

EXAMPLE = Path(__file__).parents[1] / "etc/example_data1.json"


def hello(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"a page"]


def test_posts_and_the_live_view_are_answered_without_flask() -> None:
    code = f"""
import sys
from werkzeug.test import Client
from cluster_dash_server import viewer_access
from cluster_dash_server.front import Front
from cluster_dash_server.settings import Settings
from cluster_dash_server.sharing.clock import EngineClock
from cluster_dash_server.sharing.kinds import LiveSettings
client = Client(Front(Settings()))
posted = client.post("/", data=open({str(EXAMPLE)!r}, "rb").read(), environ_base={{"REMOTE_ADDR": "127.0.0.1"}})
asked = client.get("/api/v1/cluster")
assert (posted.status_code, len(asked.json["hosts"]["host"])) == (200, 1), (posted.text, asked.text)
assert client.get("/healthz").json == {{"success": True}}
assert "flask" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_who_asks_for_a_page_before_it_is_there_waits_for_it() -> None:
    front, may_load, answers = Front(Settings()), threading.Event(), list[str]()

    def build() -> None:
        may_load.wait(60)
        front.put_before(hello)

    front.load(build)
    asking = threading.Thread(target=lambda: answers.append(Client(front).get("/hosts").text))
    asking.start()
    assert Client(front).get("/healthz").status_code == 200
    assert answers == []
    may_load.set()
    asking.join(60)
    assert answers == ["a page"]


def test_where_the_pages_cannot_be_built_who_asks_is_told_and_posts_go_on(caplog: pytest.LogCaptureFixture) -> None:
    front = Front(Settings())

    def build() -> Any:
        raise RuntimeError("a route without a scope")

    front.load(build)
    page = Client(front).get("/hosts")
    assert page.status_code == 500
    assert "error" in page.json["msg"]  # type: ignore[index]
    posted = Client(front).post("/", data=EXAMPLE.read_bytes(), environ_base={"REMOTE_ADDR": "127.0.0.1"})
    assert posted.status_code == 200
    assert "a route without a scope" in caplog.text


LIVE = "/api/v1/cluster"


def asked_both_ways(front: Front, path: str = LIVE, **request: Any) -> tuple[Reply | None, Reply]:
    """Return what lies ready, and what the same request is answered."""
    environ = EnvironBuilder(path=path, **request).get_environ()
    ready = front.ready({**environ})
    content, status, headers = run_wsgi_app(front, {**environ}, buffered=True)
    return ready, Reply(b"".join(content), status, list(headers))


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"query_string": {"columns": "state,users"}},
        {"query_string": {"since": "nonsense"}},
        {"environ_overrides": {"HTTP_ACCEPT_ENCODING": "gzip", "HTTP_COOKIE": "cluster_dash=x"}},
        {"path": "/dash/api/v1/cluster"},
    ],
)
def test_what_lies_ready_is_what_would_be_answered(request_: dict[str, Any]) -> None:
    front = Front(Settings(server=ServerSettings(public_url="http://localhost/dash")), clock=lambda: 1.7e9)
    front.put_before(hello)
    first, answer = asked_both_ways(front, **request_)
    assert first is None
    known = {"headers": {"If-None-Match": dict(answer.headers)["ETag"]}}
    for request, status in ((request_, "200 OK"), ({**request_, **known}, "304 Not Modified")):
        ready, answer = asked_both_ways(front, **request)
        assert ready == answer
        assert answer.status == status


@pytest.mark.parametrize(
    "request_",
    [
        {"path": "/healthz"},  # it says whether threads answer
        {"path": "/hosts"},
        {"method": "HEAD"},
        {"method": "POST"},
        {"query_string": {"q": "gpu01"}},
        {"base_url": "http://another.name"},
    ],
)
def test_all_else_is_left_to_a_thread(request_: dict[str, Any]) -> None:
    settings = Settings(viewers=ViewerSettings(trusted_hosts=("localhost",)))
    front = Front(settings, clock=lambda: 1.7e9)
    front.put_before(hello)
    assert asked_both_ways(front)[0] is None
    assert asked_both_ways(front)[0] is not None
    assert asked_both_ways(front, **request_)[0] is None
    assert asked_both_ways(front, **request_)[0] is None


@pytest.mark.parametrize(
    ("body", "status"),
    [(EXAMPLE.read_bytes(), "200"), (b"{", "400"), (b'{"auth_code": "wrong"}', "401"), (b"[" * 100, "400")],
    ids=["taken", "no JSON", "no secret of ours", "nested too deep"],
)
def test_a_post_is_answered_at_once_as_by_a_thread(body: bytes, status: str) -> None:
    front = Front(Settings(), clock=lambda: 1.7e9)
    request: dict[str, Any] = {"path": "/", "method": "POST", "environ_base": {"REMOTE_ADDR": "127.0.0.1"}}
    _, by_a_thread = asked_both_ways(front, **request, data=body)
    front.parts.tokens.look(1.7e9)
    at_once, _ = asked_both_ways(front, **request, data=body)
    assert at_once is not None
    assert at_once.status.startswith(status)
    assert at_once == by_a_thread


def test_a_fault_in_taking_a_post_at_once_is_told_under_a_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    front = Front(Settings(), clock=lambda: 1.7e9)
    monkeypatch.setattr(front.parts.cluster, "offer", None)
    front.parts.tokens.look(1.7e9)
    environ = EnvironBuilder(path="/", method="POST", data=EXAMPLE.read_bytes()).get_environ()
    ready = front.ready({**environ, "REMOTE_ADDR": "127.0.0.1"})
    assert ready is not None
    assert ready.status == "500 Internal Server Error"
    assert b"its log names it" in ready.content
    assert "NoneType" in caplog.text


def test_a_post_is_left_to_a_thread_once_a_second_for_tokens_are_to_be_looked_at() -> None:
    now = [1.7e9]
    front = Front(Settings(), clock=lambda: now[0])
    request: dict[str, Any] = {"path": "/", "method": "POST", "data": EXAMPLE.read_bytes()}
    request["environ_base"] = {"REMOTE_ADDR": "127.0.0.1"}
    assert [asked_both_ways(front, **request)[0] is None for _ in range(3)] == [True, False, False]
    now[0] += 1
    assert [asked_both_ways(front, **request)[0] is None for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_small_post_that_grows_large_is_left_to_a_thread_with_its_body(encoding: str) -> None:
    front = Front(Settings(), clock=lambda: 1.7e9)
    front.parts.tokens.look(1.7e9)
    large = json.loads(EXAMPLE.read_bytes()) | {"comment": "x" * AT_ONCE_BYTES}
    pack = gzip.compress if encoding == "gzip" else zstandard.ZstdCompressor().compress
    for snapshot, is_taken_at_once in ((json.loads(EXAMPLE.read_bytes()), True), (large, False)):
        body = pack(json.dumps(snapshot).encode())
        assert len(body) < 2000
        environ = EnvironBuilder(path="/", method="POST", data=body, headers=[("Content-Encoding", encoding)])
        request = {**environ.get_environ(), "REMOTE_ADDR": "127.0.0.1"}
        assert (front.ready(request) is not None) == is_taken_at_once
        if not is_taken_at_once:
            _, status, _ = run_wsgi_app(front, request, buffered=True)
            assert status == "200 OK"


def test_the_first_post_of_a_machine_is_left_to_a_thread_for_its_token_is_bound_to_it(tmp_path: Path) -> None:
    front = Front(Settings(server=ServerSettings(data=str(tmp_path))), clock=lambda: 1.7e9)
    snapshot = json.loads(EXAMPLE.read_bytes())
    secret = front.parts.tokens.new("host", snapshot["hostname"])
    body = json.dumps(snapshot | {"auth_code": secret, "machine_id": "m1"}).encode()
    front.parts.tokens.look(1.7e9)

    def asked() -> tuple[bool, str]:
        environ = EnvironBuilder(path="/", method="POST", data=body).get_environ()
        environ["REMOTE_ADDR"] = "127.0.0.1"
        at_once = front.ready(environ)
        if at_once is not None:
            return True, at_once.status
        return False, run_wsgi_app(front, environ, buffered=True)[1]

    assert [asked() for _ in range(2)] == [(False, "200 OK"), (True, "200 OK")]


def test_a_token_is_left_to_a_thread_for_its_file_may_have_to_be_read(tmp_path: Path) -> None:
    front = Front(Settings(server=ServerSettings(data=str(tmp_path))), clock=lambda: 1.7e9)
    secret = front.parts.tokens.new("read", "grafana", scopes=("state:read",))
    request: dict[str, Any] = {
        "headers": {"Authorization": f"Bearer {secret}"},
        "environ_base": {"REMOTE_ADDR": "127.0.0.1"},
    }
    assert [asked_both_ways(front)[0] is None for _ in range(2)] == [True, False]
    for _ in range(2):
        ready, answer = asked_both_ways(front, **request)
        assert (ready, answer.status) == (None, "200 OK")


def test_who_has_to_be_looked_up_in_a_file_or_signed_in_is_left_to_a_thread(tmp_path: Path) -> None:
    users.write(tmp_path / "users", "ann", ("viewer", users.hash_password("correct horse")))
    open_to_all = ViewerSettings(mode="basic", users_file=str(tmp_path / "users"), allow_anonymous=True)
    by_proxy = ViewerSettings(mode="proxy", proxy_header="Remote-User")
    server = ServerSettings(data=str(tmp_path), trusted_proxies=("192.0.2.1",))
    from_proxy: dict[str, Any] = {"headers": {"Remote-User": "ann"}, "environ_base": {"REMOTE_ADDR": "192.0.2.1"}}
    found = []
    for viewers, request in ((open_to_all, {}), (by_proxy, {}), (by_proxy, from_proxy)):
        front = Front(Settings(server=server, viewers=viewers), clock=lambda: 1.7e9)
        asked_both_ways(front, **request)
        ready, answer = asked_both_ways(front, **request)
        found.append((ready is not None, answer.status[:3]))
    assert found == [(False, "200"), (False, "401"), (True, "200")]


def test_what_is_kept_of_headers_that_come_again_lets_nobody_in_whose_session_has_ended() -> None:
    front = Front(Settings(), clock=lambda: 1.7e9)
    gate, sessions = front.gate, front.gate.sessions
    gate.rules = Rules(mode="oidc")
    secret = sessions.begin("ann", "viewer")
    environ = EnvironBuilder(path=LIVE, environ_overrides={"HTTP_COOKIE": f"cluster_dash={secret}"}).get_environ()
    run_wsgi_app(front, {**environ}, buffered=True)
    kept: dict[object, object] = {}
    replies = [front.ready({**environ, KEPT: kept}) for _ in range(2)]
    assert replies == [front.ready(environ)] * 2
    assert replies[0] is not None
    assert kept
    sessions.end(secret)
    assert front.ready({**environ, KEPT: kept}) is None


def test_whoever_signs_in_at_a_provider_is_timed_by_the_clock_of_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = list[object]()
    monkeypatch.setattr(viewer_access, "provider", lambda settings, clock, kept: clocks.append(clock))
    front = Front(Settings(live=LiveSettings(kind="redis", url="redis://127.0.0.1:1/0")), clock=lambda: 1.0)
    assert isinstance(front.parts.clock, EngineClock)
    assert clocks == [front.parts.clock]
