"""Signing in with a real Chromium, and what pages of other sites can do to a server here: nothing."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from cluster_dash_server.access import users
from tests.hostile import say
from tests.processes import Listening, body_of, snapshot, start_server
from tests.seats import CHROMIUM, FLAGS

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """A server at which people sign in."""
    folder = tmp_path_factory.mktemp("guarded")
    users.write(folder / "users", "ann", ("viewer", users.hash_password(PASSWORD)))
    environment = {"CLUSTER_DASH_VIEWERS__MODE": "basic", "CLUSTER_DASH_VIEWERS__USERS_FILE": str(folder / "users")}
    with start_server("--data", folder / "data", environment=environment) as server:
        yield server


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()


def port_of(server: Listening) -> int:
    return int(server.url.rpartition(":")[2])


def enter(page: Page, server: Listening, password: str = PASSWORD) -> None:
    page.goto(f"{server.url}/?q=state:free")
    page.fill("#name", "ann")
    page.fill("#password", password)
    page.click("main button[type=submit]")


def test_somebody_signs_in_looks_and_signs_out(guarded: Listening, context: BrowserContext) -> None:
    page = context.new_page()
    reports: list[str] = []
    page.on("console", lambda message: reports.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    enter(page, guarded, "guess")
    assert "wrong" in page.locator("[role=alert]").inner_text()
    assert page.input_value("#name") == "ann"
    assert page.input_value("#password") == ""
    reports.clear()  # a 401 is told to the console
    enter(page, guarded)
    assert page.url == f"{guarded.url}/?q=state:free"
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert page.evaluate("document.cookie") == ""
    with page.expect_response("**/api/v1/cluster*") as live:
        pass  # what the scripts ask for goes by the same session
    assert live.value.status == 200
    page.click("text=Sign out ann")
    assert "/sign-in" in page.url
    assert page.goto(f"{guarded.url}/api/v1/cluster").status == 401  # type: ignore[union-attr]
    assert [text for text in reports if "401" not in text] == []


class Attacker:
    """A page of another site, which tries what such a page can."""

    def __init__(self, server: Listening) -> None:
        body = json.dumps(body_of({**snapshot("forged", 0, 0)}).decode())
        page = f"""<!doctype html><title>evil</title>
            <form id="out" method="post" action="{server.url}/sign-out" target="hidden">
              <input name="csrf" value="x"></form>
            <form id="in" method="post" action="{server.url}/sign-in" target="hidden"><input name="name" value="ann">
              <input name="password" value="{PASSWORD}"></form>
            <iframe name="hidden"></iframe><iframe id="framed" src="{server.url}/sign-in"></iframe>
            <script>
              document.getElementById("out").submit();
              document.getElementById("in").submit();
              window.done = Promise.allSettled([
                fetch("{server.url}/", {{method: "POST", mode: "no-cors", body: {body}}}),
                fetch("{server.url}/", {{method: "POST", mode: "cors", body: {body}}}),
                fetch("{server.url}/api/v1/cluster", {{credentials: "include"}}).then((answer) => answer.text()),
              ]);
            </script>"""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}/"  # another site than 127.0.0.1
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_page_of_another_site_changes_reads_and_frames_nothing(guarded: Listening, context: BrowserContext) -> None:
    page = context.new_page()
    enter(page, guarded)
    attacker = Attacker(guarded)
    try:
        evil = context.new_page()
        evil.goto(attacker.url)
        told = evil.evaluate("window.done")
        evil.wait_for_timeout(500)
        framed = evil.frames[-1]
    finally:
        attacker.close()
    assert [each["status"] for each in told[1:]] == ["rejected", "rejected"]  # not a word of the answers
    assert framed.locator("#password").count() == 0
    assert page.goto(f"{guarded.url}/gpu-data").url == f"{guarded.url}/gpu-data"  # type: ignore[union-attr]
    assert page.locator("text=Sign out ann").count() == 1  # still signed in
    assert page.goto(f"{guarded.url}/api/v1/hosts/forged").status == 404  # type: ignore[union-attr]


def test_a_name_that_was_bound_anew_reaches_neither_ingest_nor_pages(browser: Browser, tmp_path: Path) -> None:
    """DNS rebinding: a page of another name whose address is suddenly this machine's."""
    environment = {"CLUSTER_DASH_VIEWERS__TRUSTED_HOSTS": "127.0.0.1,localhost"}
    with start_server("--data", tmp_path, environment=environment) as trusting, start_server() as plain:
        rules = "--host-resolver-rules=MAP rebound.test 127.0.0.1"
        bound_anew = browser.browser_type.launch(executable_path=CHROMIUM, args=[*FLAGS, rules])
        page = bound_anew.new_page()
        answer = page.goto(f"http://rebound.test:{port_of(trusting)}/")
        assert answer is not None
        assert answer.status == 421
        page.goto(f"http://rebound.test:{port_of(plain)}/healthz")
        body = body_of(snapshot("forged", 0, 0)).decode()
        status = page.evaluate("(body) => fetch('/', {method: 'POST', body}).then((a) => a.status)", body)
        bound_anew.close()
        assert status == 403
        said = say(port_of(plain), b"GET /api/v1/hosts/forged HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert said.status == 404
