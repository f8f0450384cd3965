"""What stands before the pages: it answers before they are there, and hands on to them when they are."""

import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import Client

from cluster_dash_server import looking
from cluster_dash_server.front import Front
from cluster_dash_server.settings import Settings
from cluster_dash_server.sharing.clock import EngineClock
from cluster_dash_server.sharing.kinds import LiveSettings

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
from cluster_dash_server import looking
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


def test_whoever_signs_in_at_a_provider_is_timed_by_the_clock_of_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = list[object]()
    monkeypatch.setattr(looking, "provider", lambda settings, clock, kept: clocks.append(clock))
    front = Front(Settings(live=LiveSettings(kind="redis", url="redis://127.0.0.1:1/0")), clock=lambda: 1.0)
    assert isinstance(front.parts.clock, EngineClock)
    assert clocks == [front.parts.clock]
