"""Pages over time in a real Chromium: they draw, a drag looks closer in all charts, and they are for everybody."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from waitress.server import create_server

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import ServerSettings, Settings, SiteSettings
from cluster_dash_server.store import Event, KeptEvent
from tests.past import Card, busy, figures, idle
from tests.seats import HOSTILE, Seat, Site, gpu, sit, snapshot, until
from tests.test_browser_everybody import SCHEMES, violations

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]

HOUR = 3600
PAGES = {
    "cluster": "/history",
    "a host": "/history?host=gpu01",
    "map": "/history?by=gpu&view=map&from=now-6h",
    "users": "/history?by=user",
    "waste": "/waste",
    "then": "/?at=now-6h",
    "host": "/host/gpu01",
    "user": "/user/alice",
}


@pytest.fixture(scope="module")
def past_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of three hosts with a day of history, an outage in it, and names that nobody should run."""
    site = Site()
    folder: Path = tmp_path_factory.mktemp("data")
    settings = Settings(server=ServerSettings(data=str(folder)), site=SiteSettings(timezone="UTC"))
    site.app = create_app(settings, clock=lambda: site.now)
    site.app.extensions["start"]()
    history = site.app.extensions["history"]
    chance = random.Random(1)
    for step in range(288):
        at = site.now - 86_400 + step * 300
        for host in ("gpu01", "gpu02", HOSTILE):
            if host == "gpu01" and 100 < step < 130:
                continue
            cards = [busy("alice", 50 + chance.random() * 40), idle(HOSTILE), Card(), busy("bob", 20)]
            history.append(figures(host, at, cards, interval_seconds=300))
    event = Event(at=site.now - 5 * HOUR, host="gpu02", gpu=3, kind="xid", code=79, text=HOSTILE)
    history.record(KeptEvent(event, told=True, source=None))
    for host in ("gpu01", "gpu02", HOSTILE):
        site.post(snapshot(host, [gpu(index) for index in range(4)], interval_seconds=300))
    history.flush()
    server = create_server(site.app, host="127.0.0.1", port=0, threads=4)
    site.url = f"http://127.0.0.1:{server.effective_port}"
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield site
    server.close()
    thread.join(timeout=5)
    history.close()


@pytest.fixture
def reader(browser: Browser, past_site: Site) -> Iterator[Seat]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, timezone_id="Asia/Kolkata")
    seat = sit(context, past_site)
    yield seat
    context.close()
    assert seat.wrong == []


def drawn(page: Page) -> None:
    """Wait until every figure stands."""
    until(page, "[...document.querySelectorAll('.timeline .plot')].every((plot) => plot.querySelector('.main-svg'))")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_over_time_is_for_everybody(reader: Seat, name: str) -> None:
    page = reader.open(PAGES[name])
    drawn(page)
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        assert violations(page, only_colours=scheme == "dark") == [], scheme
    page.set_viewport_size({"width": 360, "height": 800})
    until(page, "document.documentElement.scrollWidth <= 360")
    assert violations(page) == [], "on a phone"
    assert not page.evaluate("'hacked' in window")
    assert page.locator("img").count() == 0


def test_a_drag_looks_closer_in_all_charts_and_a_double_click_goes_back(reader: Seat) -> None:
    page = reader.open("/history?host=gpu01&from=now-24h")
    drawn(page)
    place = page.locator("#plot-gpu_util .nsewdrag").first
    box = place.bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, middle, steps=8)
    page.mouse.up()
    until(page, "/from=\\d+&to=\\d+/.test(location.search)")
    until(
        page,
        "[...document.querySelectorAll('.timeline')].every((figure) => {"
        " const seen = JSON.parse(figure.querySelector('.drawing').textContent);"
        " return seen.end - seen.begin < 25000; })",
    )
    ranges = page.evaluate(
        "[...document.querySelectorAll('.timeline .plot')].map((plot) => plot.layout.xaxis.range[0])"
    )
    assert len(set(ranges)) == 1
    page.mouse.dblclick(box["x"] + box["width"] * 0.5, middle)
    until(page, "location.search === '?host=gpu01&from=now-24h'")
    until(page, "JSON.parse(document.querySelector('.drawing').textContent).end - 86000 > 0")


def test_the_table_opens_and_gaps_and_events_are_drawn(reader: Seat) -> None:
    page = reader.open("/history?host=gpu01")
    drawn(page)
    assert page.locator("#plot-gpu_util .shapelayer path").count() >= 1
    bands = page.evaluate(
        "document.querySelector('#plot-gpu_util').data.filter((trace) => 'band' in (trace.meta ?? {}))"
        ".map((trace) => [trace.fill, trace.y.filter((value) => value === null).length])"
    )
    assert bands
    assert all(band == ["toself", 2] for band in bands), bands  # one before the outage and one behind it
    table = page.locator("#table-gpu_util")
    assert not table.is_visible()
    page.locator("[data-opens=table-gpu_util]").click()
    assert table.is_visible()
    assert table.locator("tbody tr").count() == 4
    page = reader.open("/history")
    drawn(page)
    assert page.locator(".annotation-text", has_text="▾").count() >= 1


def test_times_are_those_of_the_reader_or_of_utc(reader: Seat) -> None:
    first = "document.querySelector('#plot-gpu_util').layout.xaxis.range[0].slice(11, 16)"
    page = reader.open("/history?host=gpu01&from=2023-11-14T12:00Z&to=2023-11-14T13:00Z")
    page = reader.open("/history?host=gpu01&from=now-6h&tz=UTC")
    drawn(page)
    in_utc = page.evaluate(first)
    page.locator(".zone").click()
    until(page, f"{first} !== '{in_utc}'")
    minutes = [int(text[:2]) * 60 + int(text[3:]) for text in (in_utc, page.evaluate(first))]
    assert (minutes[1] - minutes[0]) % 1440 in (329, 330, 331)  # India is 5 h 30 min ahead


def test_a_map_says_where_nothing_was_measured(reader: Seat) -> None:
    page = reader.open("/history?by=gpu&view=map&from=now-24h")
    drawn(page)
    left, top = page.evaluate(
        """() => {
        const plot = document.querySelector(".timeline .js-plotly-plot");
        const { _size, xaxis, yaxis } = plot._fullLayout;
        const [{ x, z }] = plot.data;
        const row = z.findIndex((values) => values.includes(null));
        const box = plot.getBoundingClientRect();
        const across = xaxis.d2p(x[z[row].indexOf(null)]);
        return [box.left + _size.l + across, box.top + _size.t + yaxis.c2p(row)]; }"""
    )
    page.mouse.move(left, top)
    page.locator(".hoverlayer .hovertext", has_text="not measured").wait_for()


def test_the_hours_of_the_week_stand_apart_on_a_phone(reader: Seat) -> None:
    page = reader.open(PAGES["waste"])
    page.set_viewport_size({"width": 400, "height": 800})
    wide = """heads => { const range = document.createRange(); return heads.filter((head) => {
        range.selectNodeContents(head); return range.getBoundingClientRect().width > head.clientWidth }).length }"""
    assert page.locator(".week thead th").evaluate_all(wide) == 0


def test_a_link_at_this_moment_shows_the_same_for_ever(reader: Seat) -> None:
    page = reader.open("/history?from=now-6h")
    drawn(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#copy-moment").click()
    until(page, "navigator.clipboard.readText().then((text) => text.includes('to='))")
    link = page.evaluate("navigator.clipboard.readText()")
    assert f"to={int(reader.site.now)}" in link
    assert "now" not in link
