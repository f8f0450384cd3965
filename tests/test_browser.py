"""The pages in a real Chromium: they draw, stay live, keep what a reader holds, and run nothing from outside."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright
from waitress.server import create_server

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = ("/", "/gpu-data", "/cpu-data", "/memory", "/root_drive", "/load-data-1", "/history", "/host/gpu02")
TICK_MS = 20_000
"""Longest wait for a tick of 5 s on a busy machine."""

Snapshot = dict[str, Any]


# ------------------------------------------------------------------------------------------ a fleet and its server


def gpu(index: int, **fields: Any) -> Snapshot:
    return {
        "index": index,
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": f"GPU-{index:08x}-1111-2222-3333-444444444444",
        "total_mem": 81559.0,
        "used_mem": 3.0,
        "gpu_util": 0,
        "memory_util": 0,
        "temperature_c": 31,
        "temperature_slowdown_c": 90,
        "power_w": 71.3,
        "power_limit_w": 700,
        "sm_clock_mhz": 345,
        "sm_clock_max_mhz": 1980,
        "fan_percent": None,
        "users": {},
        **fields,
    }


def working(index: int, user: str, util: float = 97, mem: float = 62_000, **fields: Any) -> Snapshot:
    process = {"mem": mem - 500, "time": 84_211.4, "name": "python", "command": "python", "type": "C"}
    warm = {"temperature_c": 64, "power_w": 611.8, "sm_clock_mhz": 1755}
    return gpu(index, used_mem=mem, gpu_util=util, users={user: {str(4000 + index): process}}, **{**warm, **fields})


def snapshot(host: str, gpus: list[Snapshot], **fields: Any) -> Snapshot:
    return {
        "hostname": host,
        "timestamp": 0,
        "interval_seconds": 5,
        "general": {
            "hostname": host,
            "boottime": 1_699_000_000,
            "os": "Debian GNU/Linux 12",
            "kernel": "6.1.0-30-amd64",
            "driver_version": "550.54.15",
            "cuda_version": "12.4",
            "mole_version": "0.1.0",
        },
        "cpu": {"cpu_percent": 35.4, "load_avgs": [22.1, 20.0, 18.5], "num_cpus": 64},
        "memory": {"total_gb": 503.6, "available_gb": 380.0, "used_gb": 123.6, "swap": {"total_gb": 8, "used_gb": 0}},
        "disk": {
            "/dev/nvme0n1p2": {"mount_point": "/", "device": "/dev/nvme0n1p2", "total_gb": 915.8, "used_gb": 402.3},
            "/dev/md0": {"mount_point": "/data", "device": "/dev/md0", "total_gb": 7451.9, "used_gb": 6612.7},
        },
        "network": {"rx_bytes": 5e12, "tx_bytes": 8e11, "interfaces": {"eno1": {"rx_bytes": 5e12, "tx_bytes": 8e11}}},
        "collectors": {"cpu": {"ok": True, "seconds": 0.0004}, "gpu": {"ok": True, "seconds": 0.031}},
        "gpu": {f"{each['index']}_H100_{str(each['uuid'])[4:10]}": each for each in gpus},
        **fields,
    }


HOSTILE = '<img src=x onerror="hacked=1">&<b>x$\\alpha$'


@dataclass
class Site:
    """A server on a free port, with a clock that a test moves and posts that go through the real ingest."""

    now: float = 1_763_000_000.0
    step_seconds: float = 1.0
    app: Flask = field(init=False)
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.app = create_app(Settings(), clock=lambda: self.now)

    def post(self, sent: Snapshot) -> None:
        body = {**sent, "timestamp": self.now, "auth_code": "lab_cluster_2025"}
        answer = self.app.test_client().post("/", json=body)
        assert answer.status_code == 200, answer.text
        self.now += self.step_seconds  # the live view may lag posts by a second

    def fill(self) -> None:
        """Post what hosts of every kind posted over the last three hours."""
        held = [
            gpu(index, used_mem=14_900.0 + index, users={"carol": {"77": {"mem": None, "name": "python"}}})
            for index in (4, 5)
        ]
        alive = [
            snapshot("gpu01", [working(index, "erin", util=60 + 5 * index) for index in range(8)]),
            snapshot(
                "gpu02",
                [
                    *(working(index, "bob", util=82 + index) for index in range(3)),
                    working(3, "bob", temperature_c=87, throttle_reasons=["sw_thermal_slowdown"]),
                    *held,
                    gpu(
                        6,
                        error="Xid 79: GPU has fallen off the bus",
                        used_mem=None,
                        gpu_util=None,
                        users=None,
                        power_w=None,
                    ),
                    gpu(7),
                ],
            ),
            snapshot(
                "gpu03",
                [gpu(index) for index in range(8)],
                cpu={"cpu_percent": 97.2, "load_avgs": [140, 99, 80], "num_cpus": 64},
            ),
            snapshot("gpu04", [gpu(index, name="NVIDIA A100-SXM4-40GB", total_mem=40960.0) for index in range(4)]),
            snapshot("gpu10", [gpu(0), working(1, "bob"), working(2, "bob", read_at=self.now - 360)]),
            snapshot("dense-64", [working(i, f"user{i % 5}", util=i) if i % 3 else gpu(i) for i in range(64)]),
            snapshot("head", [], collectors={"gpu": {"ok": False, "seconds": 0.01, "error": "driver not loaded"}}),
            {
                **snapshot("gpu09", []),
                "gpu": {
                    "gpu_error": {
                        "name": "error",
                        "uuid": "none",
                        "index": 0,
                        "total_mem": 0,
                        "used_mem": 0,
                        "users": {},
                        "gpu_util": 0,
                        "memory_util": 0,
                        "error": "NVML: driver and library versions differ",
                    }
                },
            },
            snapshot(
                HOSTILE,
                [working(0, HOSTILE, name=HOSTILE), gpu(1, error=HOSTILE)],
                disk={HOSTILE: {"mount_point": HOSTILE, "device": HOSTILE, "total_gb": 10.0, "used_gb": 9.9}},
                general={"os": HOSTILE, "labels": {HOSTILE: HOSTILE}, "mole_version": HOSTILE},
                collectors={HOSTILE: {"ok": False, "error": HOSTILE}},
            ),
        ]
        end = self.now
        self.step_seconds = 0
        self.now = end - 3 * 3600
        for each in (*alive, snapshot("gpu07", [gpu(index) for index in range(8)])):
            self.post(each)
        self.now = end - 380
        self.post(snapshot("gpu05", [working(index, "alice") if index < 5 else gpu(index) for index in range(8)]))
        self.now = end - 200
        self.post(
            snapshot("gpu04", [gpu(index, name="NVIDIA A100-SXM4-40GB", total_mem=40960.0) for index in range(3)])
        )
        self.now = end - 4
        for each in alive:
            if each["hostname"] != "gpu04":
                self.post(each)
        self.post(
            snapshot("gpu04", [gpu(index, name="NVIDIA A100-SXM4-40GB", total_mem=40960.0) for index in range(3)])
        )
        self.now = end
        self.step_seconds = 1


@dataclass
class Seat:
    """A reader's browser at a site, and all that went wrong in it."""

    page: Page
    site: Site
    wrong: list[str]

    def open(self, path: str) -> Page:
        self.page.goto(self.site.url + path)
        return self.page

    def tick(self, change: Callable[[], None] = lambda: None) -> None:
        """Change something at the server and wait until a live answer after it was drawn."""
        with self.page.expect_response(lambda answer: self.site.url in answer.url, timeout=TICK_MS):
            change()
        self.page.wait_for_timeout(200)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if shutil.which(CHROMIUM) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{CHROMIUM} is missing")
        pytest.skip(f"{CHROMIUM} is missing")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def empty_site() -> Iterator[Site]:
    site = Site()
    server = create_server(site.app, host="127.0.0.1", port=0, threads=4)
    site.url = f"http://127.0.0.1:{server.effective_port}"
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield site
    server.close()
    thread.join(timeout=5)


@pytest.fixture
def site(empty_site: Site) -> Site:
    empty_site.fill()
    return empty_site


def sit(context: BrowserContext, site: Site) -> Seat:
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (it) => console.error('CSP', it.violatedDirective, it.blockedURI))"
    )
    return Seat(page=page, site=site, wrong=wrong)


@pytest.fixture
def seat(browser: Browser, site: Site) -> Iterator[Seat]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seat = sit(context, site)
    yield seat
    context.close()
    assert seat.wrong == []


SKELETON = """(selector) => {
  const walk = (node) => node.nodeType === Node.TEXT_NODE
    ? node.data.trim().replace(/\\s+/g, ' ')
    : [node.tagName, Object.fromEntries([...node.attributes].filter(({name}) => name !== 'tabindex').map(
        ({name, value}) => [name, value])), [...node.childNodes].map(walk).filter((child) => child !== '')];
  return [...document.querySelectorAll(selector)].map(walk);
}"""


def until(page: Page, expression: str) -> None:
    """Wait until an expression holds. The driver's own wait needs eval, which the policy of the pages forbids."""
    end = time.monotonic() + TICK_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never came true: {expression}"
        page.wait_for_timeout(100)


def skeleton(page: Page, selector: str) -> Any:
    """What a reader and a screen reader get of some elements: tags, attributes, texts; blanks between tags aside."""
    return page.evaluate(SKELETON, selector)


def without_scripts(browser: Browser, site: Site, path: str, *selectors: str) -> list[Any]:
    """The same of the page as the server sent it. Scripts of the page do not run; those of this test do."""
    context = browser.new_context()
    page = context.new_page()
    page.route("**/*.js", lambda route: route.abort())
    page.goto(site.url + path)
    found = [skeleton(page, selector) for selector in selectors]
    context.close()
    return found


@pytest.mark.parametrize(
    ("path", "selectors"),
    [
        ("/", ("#hosts > tr", "#notes > li", "#cards > li", "#legend > li", "#sentence", "title", "#count")),
        ("/gpu-data", ("#gpus > tr",)),
    ],
)
def test_the_live_update_draws_the_cells_that_the_server_drew(
    browser: Browser, seat: Seat, path: str, selectors: tuple[str, ...]
) -> None:
    page = seat.open(path)
    until(page, "document.getElementById('freshness').dataset.freshness === 'live'")
    # tear out what the server drew: what stands there then is all the scripts' work
    with page.expect_response("**/api/v1/cluster*", timeout=TICK_MS):
        page.evaluate(
            "() => document.querySelectorAll('tbody, #notes, #cards').forEach((each) => each.replaceChildren())"
        )
    until(page, "document.querySelectorAll('tbody tr').length > 3")
    for selector, drawn in zip(selectors, without_scripts(browser, seat.site, path, *selectors), strict=True):
        assert drawn, selector
        assert skeleton(page, selector) == drawn, selector


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_page_draws_without_error_and_without_sideways_scroll(
    browser: Browser, site: Site, scheme: Any, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    seat = sit(context, site)
    for path in PAGES:
        page = seat.open(path)
        if page.locator(".plot").count():
            page.wait_for_selector(".plot .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == scheme
    context.close()
    assert seat.wrong == []


def test_a_tick_shows_what_changed_and_keeps_focus_scroll_and_layout(seat: Seat) -> None:
    page = seat.open("/")
    page.set_viewport_size({"width": 1280, "height": 400})
    page.evaluate(
        "window.shift = 0;"
        "new PerformanceObserver((list) => list.getEntries().forEach((each) => window.shift += each.value))"
        ".observe({type: 'layout-shift', buffered: false})"
    )
    page.locator("[data-key=gpu03] .gpu").first.focus()
    page.evaluate("scrollTo(0, 120)")
    row = page.locator("[data-key=gpu03]")
    assert row.locator(".users").inner_text() == "none"
    seat.tick(lambda: seat.site.post(snapshot("gpu03", [working(0, "zoe"), *(gpu(index) for index in range(1, 8))])))
    until(page, "document.querySelector('[data-key=gpu03] .users').textContent === 'zoe ×1'")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("gpu03 GPU 0, busy, zoe")
    assert page.evaluate("scrollY") == 120
    assert page.evaluate("window.shift") == 0


def test_rows_stay_in_place_under_the_pointer_until_the_reader_lets_them_move(seat: Seat) -> None:
    page = seat.open("/")
    keys = "[...document.querySelectorAll('#hosts tr')].map((row) => row.dataset.key)"
    before = page.evaluate(keys)
    page.locator("[data-key=gpu01] .users").hover()
    seat.site.post(snapshot("gpu01", [gpu(index, error="Xid 48") for index in range(8)]))
    button = page.locator("#apply-order")
    button.wait_for(state="visible", timeout=TICK_MS)
    assert page.evaluate(keys) == before
    button.click()
    assert page.evaluate(keys) != before
    assert button.is_hidden()


def test_a_silent_host_turns_stale_then_down_and_never_goes(seat: Seat) -> None:
    page = seat.open("/")
    for seconds, state in ((100, "stale"), (700, "down")):
        seat.site.now += seconds
        page.wait_for_selector(f"[data-key=gpu03][data-state={state}] .gpu[data-state={state}]", timeout=TICK_MS)
        assert page.locator("[data-key=gpu03] .busy").inner_text().startswith("(0 %)")


def test_the_first_snapshot_fills_an_empty_page(browser: Browser, empty_site: Site) -> None:
    context = browser.new_context()
    seat = sit(context, empty_site)
    page = seat.open("/")
    assert page.locator("#empty").is_visible()
    empty_site.post(snapshot("gpu01", [gpu(0)]))
    page.wait_for_selector("[data-key=gpu01]", timeout=TICK_MS)
    assert page.locator("#empty").is_hidden()
    assert page.title() == "1 free – cluster"
    context.close()
    assert seat.wrong == []


def test_the_page_admits_that_it_lost_the_server_and_that_it_found_it_again(browser: Browser, site: Site) -> None:
    context = browser.new_context()
    page = sit(context, site).open("/")
    chip = page.locator("#freshness")
    refuse: Callable[[Route], None] = lambda route: route.abort()  # noqa: E731 - the same one is taken off again
    page.route("**/api/v1/cluster*", refuse)
    page.wait_for_selector("#freshness[data-freshness=lost]", timeout=TICK_MS)
    assert "server lost, showing" in chip.inner_text()
    page.unroute("**/api/v1/cluster*", refuse)
    page.wait_for_selector("#freshness[data-freshness=live]", timeout=TICK_MS)
    context.close()


def test_a_paused_page_asks_nothing_and_says_what_it_shows(seat: Seat) -> None:
    page = seat.open("/")
    page.locator("#pause").click()
    assert "paused, showing" in page.locator("#freshness").inner_text()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(6500)
    assert asked == []
    with page.expect_request("**/api/v1/cluster*"):
        page.locator("#pause").click()
    page.wait_for_selector("#freshness[data-freshness=live]")


def test_a_theme_chosen_by_hand_stays_and_recolours_the_charts(seat: Seat) -> None:
    page = seat.open("/cpu-data")
    page.wait_for_selector(".main-svg")
    ground = "getComputedStyle(document.body).backgroundColor"
    bars = "document.querySelector('.plot .bars path').style.fill"
    before = page.evaluate(ground), page.evaluate(bars)
    for _ in range(2):
        page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Theme: dark"
    until(page, f"{bars} !== {json.dumps(before[1])}")
    assert page.evaluate(ground) != before[0]
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_server_drawn_figure_follows_the_fleet_and_its_table_stays_open(seat: Seat) -> None:
    page = seat.open("/cpu-data")
    page.wait_for_selector(".main-svg")
    assert page.locator("#finding").inner_text() == "Busiest CPU: gpu03, 97 % full."
    page.get_by_role("button", name="Table").click()
    assert page.locator("#table").is_visible()
    seat.site.post(snapshot("gpu01", [], cpu={"cpu_percent": 99.4, "load_avgs": None, "num_cpus": 8}))
    until(page, "document.getElementById('finding').textContent.includes('gpu01, 99 %')")
    assert page.locator("#table").is_visible()
    until(page, "document.querySelector('.ytick text').textContent === 'gpu01'")


def test_hostile_names_run_nothing_in_pages_and_charts(seat: Seat) -> None:
    names = [
        HOSTILE,
        "<svg onload=hacked=1>",
        "<a href='javascript:hacked=1'>x<a>",
        "$$\\href{javascript:hacked=1}{x}$$",
        "%{customdata}<br>%{x}",
        "\u202egpu01\u202c",
        "'\"><script>hacked=1<script>",
        "{{ 7*7 }}",
        "\\u003cimg src=x onerror=hacked=1>",
    ]
    for number in range(200):
        name = f"{names[number % len(names)]}{number}"
        label = {"error": name} if number % 2 else {"users": {name: {"1": {"name": name}}}, "name": name}
        seat.site.post(snapshot(name, [gpu(0, **label)]))
    for path in ("/", "/gpu-data", "/cpu-data", "/root_drive", f"/host/{quote(HOSTILE, safe='')}"):
        page = seat.open(path)
        if page.locator(".plot").count():
            page.wait_for_selector(".plot .main-svg")
            page.locator(".plot").first.hover()
        page.wait_for_timeout(500)
        assert page.evaluate("typeof hacked") == "undefined", path
        assert (
            page.evaluate("document.querySelectorAll('main img, main svg a, main [onload], main [onerror]').length")
            == 0
        )
        text = page.locator("main").inner_text()
        assert "onerror=" in text or "<script>" in text, f"{path}: the names are not shown as the texts they are"


def test_a_host_page_stays_live_and_keeps_the_focus(seat: Seat) -> None:
    page = seat.open("/host/gpu02#gpu-4")
    assert page.locator("#gpu-6").inner_text().endswith("Xid 79: GPU has fallen off the bus")
    page.get_by_role("link", name="3", exact=True).focus()
    seat.site.post(snapshot("gpu02", [working(index, "mallory") for index in range(8)]))
    until(page, "document.querySelector('#gpu-6 .users').textContent === 'mallory ×1'")
    assert page.evaluate("document.activeElement.getAttribute('href')") in ("#gpu-3", None)
    assert page.title() == "gpu02: busy – cluster"


def test_the_keyboard_reaches_everything_and_a_strip_is_one_stop(seat: Seat) -> None:
    page = seat.open("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["y"] >= 0  # type: ignore[index]
    page.locator("[data-key=gpu02] th a").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("gpu02 GPU 0,")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("gpu02 GPU 1,")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") != "gpu02"
    small = """[...document.querySelectorAll('a, button, summary')].filter((each) => {
      const box = each.getBoundingClientRect();
      return box.width > 0 && !each.closest('#notes, footer') && Math.min(box.width, box.height) < 24;
    }).map((each) => each.outerHTML)"""
    assert page.evaluate(small) == []


@pytest.mark.parametrize("path", PAGES)
def test_each_page_is_useful_without_scripts(browser: Browser, site: Site, path: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.url + path)
    text = page.locator("main").inner_text()
    if path != "/history":
        assert "gpu02" in text
        assert page.locator("table").first.is_visible()
        assert page.locator("table tbody tr").count() >= 8
    assert page.locator("button:visible").count() == 0
    context.close()


def test_a_site_below_a_path_asks_below_it(browser: Browser, site: Site) -> None:
    plain = site.app.wsgi_app

    def below(environ: Any, start_response: Any) -> Any:
        return plain(
            {**environ, "SCRIPT_NAME": "/dash", "PATH_INFO": environ["PATH_INFO"].removeprefix("/dash")}, start_response
        )

    site.app.wsgi_app = below  # type: ignore[method-assign]
    context = browser.new_context()
    seat = sit(context, site)
    asked: list[str] = []
    seat.page.on("request", lambda request: asked.append(request.url))
    for path in ("/dash/", "/dash/gpu-data", "/dash/cpu-data", "/dash/host/gpu02"):
        page = seat.open(path)
        page.wait_for_selector("#freshness[data-freshness=live]")
        page.wait_for_timeout(500)
    assert not [url for url in asked if not url.startswith((f"{site.url}/dash/", "data:", "blob:"))]
    context.close()
    assert seat.wrong == []


def test_a_figure_is_saved_as_png_without_leaving_the_browser(seat: Seat) -> None:
    page = seat.open("/cpu-data")
    page.wait_for_selector(".main-svg")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG").click()
    assert download.value.suggested_filename == "cpu.png"
    assert not [url for url in asked if not url.startswith((seat.site.url, "data:", "blob:"))]


def test_more_gpus_than_bars_can_show_become_a_map(seat: Seat) -> None:
    for number in range(20):
        seat.site.post(snapshot(f"node{number:02}", [working(index, "zoe", util=5 * index) for index in range(8)]))
    page = seat.open("/gpu-data")
    page.wait_for_selector(".plot .heatmaplayer image")
    assert page.locator(".plot .main-svg").count() >= 4


def test_the_theme_can_be_chosen_on_a_page_that_is_not_live(seat: Seat) -> None:
    page = seat.open("/history")
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.locator("#pause").count() == 0
