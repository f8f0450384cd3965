"""Alerts, the digest and "tell me when some are free" in a real browser: for everybody, by keyboard, and live."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from playwright.sync_api import Browser, expect
from waitress.server import create_server

from cluster_dash_server.alerts.book import Alert, Book, Maintenance, Silence, Transition
from cluster_dash_server.app import create_app
from cluster_dash_server.notices.receivers import AlertSettings
from cluster_dash_server.settings import ServerSettings, Settings
from tests.seats import HOSTILE, POLL_SECONDS, Seat, Site, gpu, sit, snapshot, until
from tests.test_browser_everybody import SCHEMES, violations

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]

HOUR = 3600.0


def alert(now: float, name: str, **fields: Any) -> Alert:
    usual: dict[str, Any] = {
        "rule": "gpu-too-hot",
        "severity": "warning",
        "title": f"{name}: gpu01 GPU 3 too hot",
        "host": "gpu01",
        "gpu": 3,
        "user": None,
        "began_at": now - HOUR,
        "ended_at": None,
        "facts": (("what", "91 °C"), ("next step", HOSTILE)),
        "acknowledged": None,
        "silenced_until": None,
        "labels": {},
    }
    return Alert(id=name, **{**usual, **fields})


@pytest.fixture(scope="module")
def alarmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with alerts of every standing; nothing evaluates here, so they stay as they are."""
    site = Site()
    folder: Path = tmp_path_factory.mktemp("data")
    told = AlertSettings(
        waiting_to=("@example.org",), mail_server="mail.example.org", mail_from="dash@example.org", digest_to=()
    )
    site.app = create_app(Settings(server=ServerSettings(data=str(folder)), alerts=told), clock=lambda: site.now)
    kept = site.app.extensions["book"]
    kept.start(has_folder=False)
    book: Book = kept.book
    now = site.now
    raised = [
        alert(now, "a1", severity="critical", host=HOSTILE, title=HOSTILE),
        alert(now, "a2"),
        alert(now, "a3", severity="info"),
        alert(now, "a4", silenced_until=now + HOUR),
        alert(now, "a5", ended_at=now - 60),
    ]
    for each in raised:
        book.commit([Transition(kind="ended" if each.ended_at else "began", alert=each, at=now, memory="")])
    book.acknowledge("a3", HOSTILE, now, HOSTILE)
    for filter_ in ("rule:gpu-too-hot host:gpu01", HOSTILE):
        book.silence(
            Silence(id=None, filter=filter_, by=HOSTILE, reason=HOSTILE, begins_at=now, ends_at=now + 99 * HOUR)
        )
    book.maintain(Maintenance(hosts="gpu[06-07]", by="root", reason="fans", begins_at=now, ends_at=now + 99 * HOUR))
    site.post(snapshot("gpu01", [gpu(index) for index in range(4)]))
    server = create_server(site.app, host="127.0.0.1", port=0, threads=4)
    site.url = f"http://127.0.0.1:{server.effective_port}"
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with patch("cluster_dash_server.web.frame.poll_seconds", lambda hosts: POLL_SECONDS):
        yield site
    server.close()
    thread.join(timeout=5)
    kept.close()


@pytest.fixture
def operator(browser: Browser, alarmed: Site) -> Iterator[Seat]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seat = sit(context, alarmed)
    yield seat
    context.close()
    assert seat.wrong == []


@pytest.mark.parametrize("path", ["/alerts", "/digest", "/waiting", "/#tell-me"])
def test_a_page_for_people_is_for_everybody(operator: Seat, path: str) -> None:
    page = operator.open(path)
    page.evaluate("for (const each of document.querySelectorAll('main details:not([name])')) each.open = true")
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        assert violations(page, only_colours=scheme == "dark") == [], scheme
    page.set_viewport_size({"width": 360, "height": 800})
    until(page, "document.documentElement.scrollWidth <= 360")
    assert violations(page) == [], "on a phone"
    assert not page.evaluate("'hacked' in window")
    assert page.locator("img").count() == 0


def test_an_operator_takes_an_alert_on_by_keyboard_and_takes_that_back(operator: Seat) -> None:
    with patch("cluster_dash_server.web.alerts.POLL_SECONDS", POLL_SECONDS):
        page = operator.open("/alerts")
        expect(page).to_have_title("2 alerts · Alerts – cluster")
        note = page.locator("#a2 input[name=note]")
        note.focus()
        page.keyboard.type("a fan is on its way")
        operator.tick()  # the page is drawn anew meanwhile
        expect(note).to_have_value("a fan is on its way")
        page.keyboard.press("Enter")
        expect(page.locator("#acknowledged #a2")).to_contain_text("a fan is on its way")
        expect(page.locator("#open-alerts")).to_have_text("1")
        page.locator(".done button").press("Enter")
        expect(page.locator("#firing #a2")).to_be_visible()
        expect(page.locator("#open-alerts")).to_have_text("2")


def test_an_alert_that_ends_leaves_the_page_and_the_count(operator: Seat, alarmed: Site) -> None:
    book: Book = alarmed.app.extensions["book"].book
    late = alert(alarmed.now, "a9")
    book.commit([Transition(kind="began", alert=late, at=alarmed.now, memory="")])
    with patch("cluster_dash_server.web.alerts.POLL_SECONDS", POLL_SECONDS):
        page = operator.open("/alerts")
        expect(page.locator("#open-alerts")).to_have_text("3")
        over = alert(alarmed.now, "a9", ended_at=alarmed.now)
        book.commit([Transition(kind="ended", alert=over, at=alarmed.now, memory="")])
        expect(page.locator("#open-alerts")).to_have_text("2", timeout=60_000)
        assert page.locator("#firing #a9").count() == 0
        until(page, "document.title.startsWith('2 alerts · ')")


def test_somebody_asks_to_be_told_without_a_mouse(operator: Seat) -> None:
    page = operator.open("/")
    page.keyboard.press("/")
    page.keyboard.type("model:h100")
    page.keyboard.press("Enter")
    until(page, "location.search === '?q=model:h100'")
    page.locator("main").focus()
    page.keyboard.press("w")
    form = page.locator("#tell-me form")
    form.locator("[name=count]").focus()
    for text in ("8", "h100", "40G", None, "ann@example.org"):
        if text is not None:
            page.keyboard.press("Control+a")
            page.keyboard.type(text)
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".mine")).to_contain_text("8 on one host, h100, 40 GiB free on each, model:h100")
    expect(page.locator(".mine")).to_contain_text("Nobody waits before you.")
    page.locator(".mine button").press("Enter")
    expect(page.locator("main")).to_contain_text("Nobody.")
