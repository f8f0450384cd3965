"""A page that stays open: minutes of the live demo with its faults, and a fleet of two thousand hosts."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, CDPSession, Page, expect

from tests.processes import TOP, Process, free_port, wait_until
from tests.seats import Seat, Site, gpu, serving, sit, snapshot, until, working

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium"), pytest.mark.slow]

MOST_GROWTH = 0.20
MOST_ROWS = 200
HOSTS = 2000


@pytest.fixture
def demo() -> Iterator[str]:
    """`make demo` on a free port."""
    port = free_port()
    with Process([sys.executable, TOP / "dev" / "demo.py", "--port", str(port)]) as process:

        def says_where() -> bool:
            if process.popen.poll() is not None:
                raise RuntimeError(process.output.decode())
            return b"DEMO" in process.output

        wait_until(says_where, 60, "the demo says where to look")
        yield f"http://127.0.0.1:{port}"


def used_bytes(session: CDPSession) -> float:
    """What a page holds once all that is unreachable was collected: its heap, in bytes."""
    for _ in range(2):
        session.send("HeapProfiler.collectGarbage")
    return metric(session, "JSHeapUsedSize")


def metric(session: CDPSession, name: str) -> float:
    metrics: Any = session.send("Performance.getMetrics")["metrics"]
    return next(float(each["value"]) for each in metrics if each["name"] == name)


def watch(browser: Browser, url: str, seconds: float) -> None:
    """Keep three pages open, use them as a person does, and see that they neither complain nor grow."""
    seats = []
    for path in ("/", "/gpu-data", "/host/gpu02"):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        seat = sit(context, Site())
        seat.page.goto(url + path)
        seat.page.locator("#freshness[data-freshness=live]").wait_for()
        seats.append((seat, context.new_cdp_session(seat.page)))
    for _, session in seats:
        session.send("Performance.enable")
    use(seats[0][0].page)  # what is built once, such as a menu, is no growth
    time.sleep(min(20, seconds / 4))
    before = [(used_bytes(session), metric(session, "Nodes")) for _, session in seats]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        use(seats[0][0].page)
        time.sleep(1)
    for (seat, session), (bytes_before, nodes_before) in zip(seats, before, strict=True):
        assert seat.wrong == []
        expect(seat.page.locator("#freshness")).to_contain_text("live")
        # a page of charts holds little at first: its lines grow to their most points, some hundred kilobytes
        most = bytes_before * (1 + MOST_GROWTH) + 400_000
        wait_until(lambda: used_bytes(session) <= most, 2, f"{seat.page.url} holds no more")  # noqa: B023
        assert metric(session, "Nodes") <= nodes_before * (1 + MOST_GROWTH) + 200, seat.page.url
        seat.page.context.close()


def use(page: Page) -> None:
    """Filter, sort, look at the map, open a box, and come back."""
    for key in ("f", "f", "?", "Escape", "Control+k", "Escape", "j", "k"):
        page.keyboard.press(key)
        page.wait_for_timeout(150)
    page.locator("[data-view=map]").click()
    expect(page.locator("#map canvas")).to_be_visible()
    page.get_by_role("link", name="Table").click()
    page.locator("th[data-sort=busy] a").click()
    page.go_back()
    page.mouse.move(5, 5)
    expect(page.locator("#hosts tr")).to_have_count(8)


@pytest.mark.clocked
def test_half_a_minute_of_the_demo_leaves_no_error_and_no_growth(browser: Browser, demo: str) -> None:
    watch(browser, demo, 25)


@pytest.mark.soak
def test_ten_minutes_of_the_demo_leave_no_error_and_no_growth(browser: Browser, demo: str) -> None:
    watch(browser, demo, 600)


# ------------------------------------------------------------------------------------------- two thousand hosts


@pytest.fixture(scope="module")
def large_site() -> Iterator[Site]:
    with serving(filled=False) as site:
        site.step_seconds = 0
        for number in range(HOSTS):
            gpus = [working(0, f"user{number % 50}"), gpu(1, uuid=f"GPU-{number}-1")]
            site.post(snapshot(f"gpu{number:04}", gpus, general={"labels": {"partition": f"part{number % 3}"}}))
        site.now += 2
        yield site


@pytest.fixture
def large_seat(browser: Browser, large_site: Site) -> Iterator[Seat]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seat = sit(context, large_site)
    yield seat
    context.close()
    assert seat.wrong == []


def test_two_thousand_hosts_are_groups_and_pages_of_fifty(large_seat: Seat) -> None:
    page = large_seat.open("/")
    assert page.locator("#group-rows tr").count() == 1
    assert page.locator("#hosts tr").count() == 50
    until(page, "document.getElementById('freshness').dataset.freshness === 'live'")
    page.locator("[data-group=part]").click()
    expect(page.locator("#group-rows tr")).to_have_count(3)
    page.locator("#group-rows a", has_text="part1").click()
    expect(page.locator("#understood")).to_have_text("part:part1")
    expect(page.locator("#groups")).to_be_hidden()
    expect(page.locator("#count")).to_have_text("hosts 1–50 of 667, worst first")
    page.keyboard.press("]")
    expect(page.locator("#count")).to_have_text("hosts 51–100 of 667, worst first")
    page.go_back()
    expect(page.locator("#count")).to_have_text("hosts 1–50 of 667, worst first")
    assert page.locator("tr").count() <= MOST_ROWS


def test_no_face_of_two_thousand_hosts_holds_more_rows_than_a_tick_can_patch(large_seat: Seat) -> None:
    for query in ("/", "/?group=none", "/?q=state:free", "/?view=map", "/?page=9&sort=-host", "/gpu-data"):
        page = large_seat.open(query)
        until(page, "document.getElementById('freshness').dataset.freshness === 'live'")
        assert page.locator("tr").count() <= MOST_ROWS, query
    assert page.locator(".plot .main-svg").count() <= 12 * 3  # Plotly makes up to three of each figure


def test_the_overview_loads_no_plotly(large_seat: Seat) -> None:
    asked: list[str] = []
    large_seat.page.on("request", lambda request: asked.append(request.url))
    page = large_seat.open("/")
    until(page, "document.getElementById('freshness').dataset.freshness === 'live'")
    assert not [url for url in asked if "plotly" in url]


def test_a_map_of_all_gpus_is_walked_by_keys_and_opens_a_host(large_seat: Seat) -> None:
    page = large_seat.open("/?view=map")
    until(page, "document.querySelector('#map canvas').getAttribute('aria-label').includes('4000')")
    page.locator("#map canvas").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#map-words")).to_contain_text("gpu0000 GPU 1, free")
    page.keyboard.press("Enter")
    page.wait_for_url("**/host/gpu0000#gpu-1")
