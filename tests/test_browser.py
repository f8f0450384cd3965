"""The pages in a real Chromium: they draw, stay live, keep what a reader holds, and run nothing from outside."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from playwright.sync_api import Browser, Route

from cluster_dash_server.web import words
from tests.seats import (
    PAGES,
    TICK_MS,
    Seat,
    Site,
    gpu,
    sit,
    skeleton,
    snapshot,
    until,
    without_scripts,
    working,
)

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]


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


def test_amounts_read_alike_from_server_and_scripts(seat: Seat) -> None:
    gib = 1024.0
    cases = [
        (61 * gib, 80 * gib),
        (28 * gib**2, 40 * gib**2),
        (278 * gib, 2 * gib**2),
        (0.0, None),
        (None, 1.0),
        (None, None),
    ]
    said = seat.open("/").evaluate(
        "async (cases) => {"
        "const { src } = document.querySelector('script[src*=overview]');"
        "const { usedOf } = await import(src.replace('overview', 'format'));"
        "return cases.map(([used, total]) => usedOf(used, total));}",
        cases,
    )
    assert said == [words.used_of(*each) for each in cases]


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


def test_many_users_take_one_line_and_all_of_them_are_said_to_who_cannot_see_it(seat: Seat) -> None:
    users = ("zoe", "dan", "amy", "ben", "cid", "a-rather-long-name-of-somebody")
    gpus = [working(index, users[min(index, 5)]) for index in range(8)]
    seat.site.post(snapshot("gpu03", gpus))
    page = seat.open("/")
    page.set_viewport_size({"width": 1280, "height": 800})
    cell = page.locator("[data-key=gpu03] td.users")
    every = "a-rather-long-name-of-somebody ×3, amy ×1, ben ×1, cid ×1, dan ×1, zoe ×1"
    assert cell.get_attribute("title") == every
    assert every in cell.aria_snapshot().replace(" ,", ",")
    more = cell.locator(".more")
    assert more.inner_text().strip() == "+5"
    edges = "(element) => [element.getBoundingClientRect().right, element.closest('td').getBoundingClientRect().right]"
    of_more, of_cell = more.evaluate(edges)
    assert of_more <= of_cell
    line = "(document.querySelector('[data-key=gpu03]').getBoundingClientRect().height)"
    assert page.evaluate(line) <= 37
    page.set_viewport_size({"width": 360, "height": 800})
    label = "getComputedStyle(document.querySelector('[data-key=gpu04] td.users'), '::before').content"
    assert page.evaluate(label) == '"users "', "who has no head of a column reads what there is none of"
    assert more.is_hidden()
    assert cell.inner_text() == every
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_no_figure_and_no_name_is_cut_off_however_wide_the_window(seat: Seat) -> None:
    for number, percent in enumerate((88, 97, 100)):
        card = {"name": "NVIDIA RTX A6000", "total_mem": 49140.0}
        gpus = [working(index, ("quinn", "quinn", "zoe", "dan", "amy")[index % 5]) | card for index in range(8)]
        cpu = {"cpu_percent": percent, "load_avgs": [100.5, 20.0, 18.5], "num_cpus": 64}
        for host in (f"hot{number}", f"was-hot{number}"):
            seat.site.post(snapshot(host, gpus, cpu=cpu))
    seat.site.now += 100
    for number, percent in enumerate((88, 97, 100)):
        cpu = {"cpu_percent": percent, "load_avgs": [100.5, 20.0, 18.5], "num_cpus": 64}
        seat.site.post(snapshot(f"hot{number}", gpus, cpu=cpu))
    page = seat.open("/")
    assert page.locator("[data-key=hot2] td.cpu").inner_text() == "100 % full"
    assert page.locator("[data-key=was-hot2] td.cpu").inner_text() == "(100 %)"
    cut = (
        "[...document.querySelectorAll('[data-key^=hot], [data-key^=was]')].flatMap((row) => [...row.querySelectorAll("
        "'td, td.users .first')]).filter((each) => each.offsetWidth && each.scrollWidth > each.clientWidth)"
        ".map((each) => each.textContent)"
    )
    model = "document.querySelector('[data-key=hot0] td.model .figure').getBoundingClientRect().height"
    assert page.locator("[data-key=hot0] td.model").inner_text() == "RTX A6000 48G"
    for width in (761, 830, 831, 900, 901, 990, 991, 1256, 1257, 1279, 1280, 1360, 1361, 1450, 1451, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        for is_wide in (True, False):  # as where some hosts have sixteen GPUs, and where none has
            page.evaluate("(is) => document.querySelector('.hosts').toggleAttribute('data-wide', is)", is_wide)
            assert page.evaluate(cut) == [], (width, is_wide)
        assert page.evaluate(model) < 25, width  # one line, or none


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
    page.wait_for_timeout(2500)
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


def test_a_host_page_stays_live_and_keeps_the_focus(seat: Seat) -> None:
    page = seat.open("/host/gpu02#gpu-4")
    assert page.locator("#gpu-6").inner_text().endswith("Xid 79: GPU has fallen off the bus")
    page.get_by_role("link", name="3", exact=True).focus()
    seat.site.post(snapshot("gpu02", [working(index, "mallory") for index in range(8)]))
    until(page, "document.querySelector('#gpu-6 .users').textContent === 'mallory ×1'")
    assert page.evaluate("document.activeElement.getAttribute('href')") in ("#gpu-3", None)
    assert page.title() == "gpu02: busy – cluster"


def test_the_notes_of_a_gpu_have_room_where_the_table_is_wider_than_the_window(seat: Seat) -> None:
    page = seat.open("/host/gpu02")
    page.set_viewport_size({"width": 768, "height": 800})
    assert page.evaluate("document.querySelector('#gpu-6 .words').offsetWidth") >= 300
    page.set_viewport_size({"width": 360, "height": 800})
    assert 240 <= page.evaluate("document.querySelector('#gpu-6 .words').offsetWidth") <= 260
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_on_a_phone_what_is_free_stands_before_what_is_wrong(seat: Seat) -> None:
    page = seat.open("/")
    top = "(id) => document.getElementById(id).getBoundingClientRect().top"
    for width, is_first in ((1280, False), (400, True)):
        page.set_viewport_size({"width": width, "height": 900})
        tops = [page.evaluate(top, each) for each in ("free-now", "attention")]
        assert page.locator("#attention").is_visible()
        assert (tops[0] < tops[1]) is is_first
        assert min(tops) < 400


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
def test_each_page_is_useful_without_scripts(browser: Browser, calm_site: Site, path: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(calm_site.url + path)
    text = page.locator("main").inner_text()
    if path != "/history":
        assert "gpu02" in text
        assert page.locator("table:visible").count() >= 1
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


def test_bars_of_figures_that_are_no_longer_true_are_grey_and_say_so(seat: Seat) -> None:
    both = [working(index, "zoe", util=90) for index in range(2)]
    for gpus in (both, both[:1]):
        seat.site.post(snapshot("torn", gpus))
    page = seat.open("/gpu-data")
    page.wait_for_selector("[data-metric=gpu_util] .bars path")
    bars = (
        "(() => { const [trace] = document.querySelector('[data-metric=gpu_util]').data;"
        " const { color, opacity } = trace.marker;"
        " return trace.hovertext.map((text, place) => [text, color[place], opacity[place]]); })()"
    )
    drawn = {text.split(",")[0]: (text, colour, opacity) for text, colour, opacity in page.evaluate(bars)}
    shapes = "document.querySelector('[data-metric=gpu_util]').data[0].marker.pattern.shape"
    hatches = dict(zip(drawn, page.evaluate(shapes), strict=True))  # nor are those of a state told by their hue alone
    wanted = {"gpu07 GPU 0": ".", "gpu05 GPU 0": ".", "torn GPU 1": "x", "gpu02 GPU 4": "/", "gpu01 GPU 7": ""}
    assert {name: hatches[name] for name in wanted} == wanted
    grey = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--stale-ink')")
    assert drawn["gpu07 GPU 0"] == ("gpu07 GPU 0, down, last known: busy 0 %", grey, 0.6)
    assert drawn["gpu05 GPU 0"] == ("gpu05 GPU 0, stale, last known: busy 97 %", grey, 0.6)
    assert drawn["gpu10 GPU 2"] == ("gpu10 GPU 2, unknown, last known: busy 97 %", grey, 0.6)  # read too long ago
    assert drawn["torn GPU 1"][0] == "torn GPU 1, error, last known: busy 90 %"
    assert drawn["torn GPU 1"][1] != grey  # an error is one, whatever it did before
    assert drawn["gpu01 GPU 7"][0] == "gpu01 GPU 7, busy, busy 95 %"
    assert drawn["gpu01 GPU 7"][1:] != (grey, 0.6)


def test_more_gpus_than_bars_can_show_become_a_map_with_a_dash_where_no_figure_is_known(seat: Seat) -> None:
    for number in range(20):
        seat.site.post(snapshot(f"node{number:02}", [working(index, "zoe", util=5 * index) for index in range(8)]))
    seat.site.post(snapshot("quiet", [gpu(0, gpu_util=None), gpu(1)]))
    page = seat.open("/gpu-data?q=quiet,gpu05,gpu07,node")
    page.wait_for_selector("[data-metric=gpu_util] .heatmaplayer image")
    assert page.locator(".plot .main-svg").count() >= 4
    map_ = "document.querySelector('[data-metric=gpu_util]')"
    hosts = page.evaluate(f"{map_}.data[0].hovertext.map((texts) => texts[0].split(' ')[0])")
    cells, dashes = page.evaluate(f"{map_}.data.map(({{z}}) => z)")
    for host, wanted in (("gpu05", [None, None]), ("gpu07", [None, None]), ("quiet", [None, 0]), ("node00", [0, 5])):
        place = hosts.index(host)
        assert cells[place][:2] == wanted, host
        assert dashes[place][:2] == [1 if value is None else None for value in wanted], host
    for host, said in (("gpu05", "stale, last known: busy 97 %"), ("quiet", "free, not reported")):
        left, top = page.evaluate(
            f"(() => {{ const {{ _size, xaxis, yaxis }} = {map_}._fullLayout;"
            f" const box = {map_}.getBoundingClientRect();"
            f" return [box.left + _size.l + xaxis.c2p(0), box.top + _size.t + yaxis.c2p({hosts.index(host)})]; }})()"
        )
        page.mouse.move(left, top)
        page.locator(".hovertext", has_text=f"{host} GPU 0, {said}").wait_for()


def test_the_charts_of_gpus_keep_the_place_that_the_page_began_with(browser: Browser, seat: Seat) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    page.add_init_script(
        "window.shift = 0;"
        "new PerformanceObserver((list) => list.getEntries().forEach((each) => window.shift += each.value))"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    page.goto(f"{seat.site.url}/gpu-data")
    page.wait_for_selector("#panel-list .main-svg .points path")
    assert page.evaluate("window.shift") < 0.1
    page.close()


def test_a_bar_that_is_not_reported_says_so_when_pointed_at(seat: Seat) -> None:
    seat.site.post(snapshot("gpu03", [gpu(0) | {"gpu_util": None}, *(gpu(index) for index in range(1, 8))]))
    page = seat.open("/gpu-data")
    dash = page.locator("#charts [data-metric=gpu_util] .textpoint").first
    dash.wait_for()
    box = dash.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"])
    page.locator("#charts .hoverlayer .hovertext", has_text="not reported").wait_for()


def test_a_panel_says_times_in_utc_where_the_address_asks_for_it(browser: Browser, seat: Seat) -> None:
    ticks = []
    for zone in ("", "?tz=UTC"):
        context = browser.new_context(timezone_id="Asia/Kolkata")
        page = context.new_page()
        page.goto(f"{seat.site.url}/gpu-data{zone}")
        page.locator("#panels").scroll_into_view_if_needed()
        page.wait_for_selector("#panel-list .main-svg .points path")
        first = page.locator("#panel-list .js-plotly-plot").first
        ticks.append(first.evaluate("(place) => place._fullLayout.xaxis.range[0].slice(0, 16)"))
        context.close()
    mine, utc = (datetime.fromisoformat(text) for text in ticks)
    assert 325 <= (mine - utc).total_seconds() / 60 <= 335, ticks  # India is 5 h 30 min ahead


def test_a_panel_of_one_moment_says_times_as_everywhere(seat: Seat) -> None:
    seat.site.now += 0.25
    page = seat.open("/gpu-data?q=gpu01")
    page.locator("#panels").scroll_into_view_if_needed()
    page.wait_for_selector("#panel-list .main-svg .points path")
    ticks = page.locator("#panel-list .xtick").all_text_contents()
    assert len(ticks) > 1, ticks
    assert all(re.fullmatch(r"\d\d:\d\d(\d+ [A-Z][a-z]+)?", text) for text in ticks), ticks


def test_the_theme_can_be_chosen_on_a_page_that_is_not_live(seat: Seat) -> None:
    page = seat.open("/history")
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.locator("#pause").count() == 0
