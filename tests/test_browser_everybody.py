"""Pages for everybody: axe finds nothing in either theme, nothing scrolls sideways at 360 px, no text runs anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from tests.seats import HOSTILE, Seat, Site, gpu, serving, sit, snapshot, until, working

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]

EVERY_PAGE = {
    "overview": "/",
    "filtered": "/?q=state:held foo:bar",
    "nothing": "/?q=user:nobody",
    "groups": "/?group=model&sort=-busy",
    "map": "/?view=map",
    "gpus": "/gpu-data",
    "cpu": "/cpu-data",
    "memory": "/memory",
    "disk": "/root_drive",
    "load": "/load-data-1",
    "history": "/history",
    "host": "/host/gpu02",
    "silent host": "/host/gpu05",
    "unknown host": "/host/gpu99",
    "user": "/user/carol",
    "status": "/status",
    "slurm": "/slurm",
    "waste": "/waste",
    "digest": "/digest",
    "waiting": "/waiting",
    "wall": "/tv",
}
"""Every page there is, and each face of the overview."""
ROUTES = {str(rule) for rule in create_app(Settings()).url_map.iter_rules()}
PAGES = {name: path for name, path in EVERY_PAGE.items() if path.count("/") > 1 or path.partition("?")[0] in ROUTES}
"""Those that this server has."""
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
COLOURS = ["color-contrast", "link-in-text-block"]
"""Axe's rules on colours, which are all that the dark theme changes."""
UNKNOWN = ("unknown host", "slurm")
"""Pages that say, by 404, that there is no such thing here; the browser's console tells of it."""
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@contextmanager
def opened(browser: Browser, site: Site, width: int) -> Iterator[Seat]:
    context = browser.new_context(viewport={"width": width, "height": 800})
    yield sit(context, site)
    context.close()


def settle(page: Page) -> None:
    """Wait until the scripts have drawn what they draw."""
    for plot in page.locator(".plot:visible").all()[:1]:
        plot.locator(".main-svg").first.wait_for()
    if page.locator("#freshness[data-freshness=once]").count() and page.locator("#pause").count():
        page.locator("#freshness[data-freshness=live]").wait_for()


def violations(page: Page, *, only_colours: bool = False) -> list[str]:
    """Return what axe finds wrong, by all its rules or by those on colours."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    options = {
        "runOnly": {"type": "rule", "values": COLOURS} if only_colours else {"type": "tag", "values": TAGS},
        # else axe finds a selector for each element that is as it should be, which takes it longer than all else
        "resultTypes": ["violations"],
    }
    # what Plotly draws is one image to a screen reader, and thousands of elements to look at
    found = page.evaluate(
        "(options) => axe.run({exclude: [['.plot']]}, options).then((found) => found.violations)", options
    )
    return [
        f"{each['id']}: {node['html'][:160]} {node['failureSummary'][:200]}" for each in found for node in each["nodes"]
    ]


def test_the_rules_on_colours_are_all_that_axe_has(calm_seat: Seat) -> None:
    page = calm_seat.open("/status")
    page.evaluate(Axe().axe_script)
    rules = page.evaluate("(tags) => axe.getRules(tags).filter(({tags}) => tags.includes('cat.color'))", TAGS)
    assert sorted(each["ruleId"] for each in rules) == COLOURS


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_for_everybody(browser: Browser, calm_site: Site, name: str) -> None:
    with opened(browser, calm_site, 1280) as seat:
        page = seat.open(PAGES[name])
        settle(page)
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert violations(page, only_colours=scheme == "dark") == [], scheme
        page.set_viewport_size({"width": 360, "height": 800})
        until(page, "document.documentElement.scrollWidth <= 360")
        assert violations(page) == [], "on a phone"
        if name not in UNKNOWN:
            assert seat.wrong == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_opens_on_a_page_is_for_everybody(browser: Browser, calm_site: Site, scheme: Any) -> None:
    with opened(browser, calm_site, 1280) as seat:
        page = seat.open("/")
        page.emulate_media(color_scheme=scheme)
        page.locator("#facets summary").first.click()
        page.locator(".meanings summary").click()
        page.locator("[data-key=gpu02] .gpu").first.focus()
        assert violations(page, only_colours=scheme == "dark") == []
        for key in ("?", "Control+k"):
            page.keyboard.press("Escape")
            page.keyboard.press(key)
            page.locator("dialog").wait_for()
            assert violations(page, only_colours=scheme == "dark") == []


# --------------------------------------------------------------------------------------------------- hostile texts

SEEDS = (
    "<img src=x onerror=hacked=1>",
    "<svg onload=hacked=1>",
    "'\"><script>hacked=1</script>",
    "</script><script>hacked=1</script>",
    "--><img src=x onerror=hacked=1>",
    "</title></style><iframe src=javascript:hacked=1>",
    "<a href='javascript:hacked=1'>x</a>",
    "<b>bold</b><sup>1</sup><br>%{customdata}<extra>%{x}</extra>",
    "<span style='font-size:99px'>x</span>",
    "$\\href{javascript:hacked=1}{x}$",
    "$$\\unicode{<img src=x onerror=hacked=1>}$$",
    "\\(\\style{color:red}{x}\\)",
    "\u202egpu01\u202c \u2066a\u2069 \u200f",
    "\u0301\u0301\u0301\u0301Z\u0489\u0489",
    "\x1b[31mred\x1b[0m\x1b]8;;http://x\x07link",
    "{{ 7*7 }}{% raw %}${7*7}",
    "javascript:hacked=1//",
    "\\u003cimg src=x onerror=hacked=1>",
    "&lt;img src=x&gt;&#60;b>",
    "a" * 40 + "<b>",
)
HOSTILE_TEXTS = [f"{SEEDS[number % len(SEEDS)]}{number}" for number in range(200)]


def hostile(number: int) -> dict[str, Any]:
    """A snapshot with one hostile text in every field that takes a text; those of names less what no name may hold."""
    text = HOSTILE_TEXTS[number]
    host = "".join(letter for letter in text if letter.isprintable() and letter != "/")[:200] or f"host{number}"
    process = {
        "mem": 4000.0,
        "name": text,
        "command": text,
        "type": "C",
        "container": text,
        "job_id": text[:60],
        "user_from": text,
    }
    return snapshot(
        host,
        [
            gpu(0, name=text, uuid=f"GPU-{number}-{text}", users={text: {str(number + 10): process}}),
            gpu(1, name=text, error=text, uuid=None, throttle_reasons=[text]),
            working(2, text, mig={"instances": [{"gi": 1, "ci": 0, "profile": text, "uuid": text}]}),
        ],
        general={
            **dict.fromkeys(("os", "kernel", "driver_version", "cuda_version", "mole_version"), text),
            "labels": {text[:40]: text[:100], "partition": text[:100]},
        },
        disk={text: {"mount_point": text, "device": text, "total_gb": 10.0, "used_gb": 9.9}},
        network={"interfaces": {text: {"rx_bytes": 1, "tx_bytes": 2}}},
        collectors={text: {"ok": False, "error": text}},
        events=[{"at": 1_762_999_990, "kind": text, "gpu": 0, "code": 79, "text": text}],
    )


@pytest.fixture(scope="module")
def hostile_site() -> Iterator[tuple[Site, list[str]]]:
    """A server whose whole fleet says nothing but hostile texts; and the names of its hosts."""
    with serving(filled=False) as site:
        site.step_seconds = 0.01
        sent = [hostile(number) for number in range(len(HOSTILE_TEXTS))]
        for each in sent:
            site.post(each)
        site.now += 2
        yield site, [each["hostname"] for each in sent]


INERT = """() => [typeof hacked,
  document.querySelectorAll(
    'main img, main iframe, main script:not([type]), main [onload], main [onerror], main svg a[href]').length,
  [...document.querySelectorAll('a[href]')].filter((link) => !/^https?:$/.test(link.protocol)).length]"""


def test_hostile_texts_run_nothing_break_nothing_and_raise_no_report(
    browser: Browser, hostile_site: tuple[Site, list[str]]
) -> None:
    site, _ = hostile_site
    with opened(browser, site, 1280) as seat:
        paths = ["/", "/?page=2&sort=host", "/?group=part&view=map", "/gpu-data", "/cpu-data", "/memory", "/root_drive"]
        paths += ["/load-data-1", f"/?q={quote(HOSTILE_TEXTS[0])}", "/history", "/status", "/waste", "/digest", "/tv"]
        for path in filter(lambda each: each.partition("?")[0] in ROUTES, paths):
            page = seat.open(path)
            settle(page)
            for plot in page.locator(".plot:visible").all()[:2]:
                plot.hover()
            if page.locator("#facets summary").count():
                page.locator("#facets summary").first.click()
            assert page.evaluate(INERT) == ["undefined", 0, 0], path
        page = seat.open("/")
        until(page, "document.querySelectorAll('#hosts tr').length === 50")
        page.keyboard.press("Control+k")
        page.keyboard.type("hacked")
        until(page, "document.querySelectorAll('#found .name').length === 12")
        assert page.evaluate(INERT) == ["undefined", 0, 0]
        # a text that nothing may turn into anything else stands there as it was sent
        assert "onerror=hacked=1>" in page.locator("dialog").inner_text()
        assert seat.wrong == []


@pytest.mark.parametrize("kind", ["host", "user"])
def test_the_page_of_each_hostile_name_is_found_and_runs_nothing(
    browser: Browser, hostile_site: tuple[Site, list[str]], kind: str
) -> None:
    site, hosts = hostile_site
    names = hosts if kind == "host" else [text for text in HOSTILE_TEXTS if "/" not in text]
    with opened(browser, site, 360) as seat:
        for name in names[: len(SEEDS)]:
            page = seat.open(f"/{kind}/{quote(name, safe='')}")
            assert page.evaluate(INERT) == ["undefined", 0, 0], name
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        assert seat.wrong == []


# a host of one word of as many letters as the schema takes, as have all that is on it
LONG_HOST, LONG, LONG_PATH = "host" * 63, "w" * 256, "/" + "w" * 4095


def test_names_as_long_as_can_be_widen_no_page(browser: Browser) -> None:
    process = {"mem": 61500, "time": 84_211.4, "name": LONG_PATH, "command": LONG_PATH, "type": "C"}
    busy = gpu(0, name=LONG, used_mem=62000.0, gpu_util=97, users={LONG: {"4000": process}})
    sent = snapshot(
        LONG_HOST,
        [busy, gpu(1, name=LONG, error=LONG_PATH), gpu(2, name=LONG)],
        general=dict.fromkeys(("os", "kernel", "driver_version", "cuda_version", "mole_version"), LONG),
        disk={LONG_PATH: {"mount_point": LONG_PATH, "device": LONG_PATH, "total_gb": 10.0, "used_gb": 9.9}},
        network={"interfaces": {LONG: {"rx_bytes": 1, "tx_bytes": 2}}},
        collectors={"gpu": {"ok": False, "error": LONG_PATH}},
    )
    own = [f"/host/{LONG_HOST}", f"/embed/host/{LONG_HOST}", f"/user/{LONG}", "/embed/overview", "/?view=map"]
    with serving(filled=False) as site, opened(browser, site, 1280) as seat:
        site.post(sent)
        for path in [*PAGES.values(), *own]:
            page = seat.open(path)
            for width in (1280, 400):
                page.set_viewport_size({"width": width, "height": 800})
                until(page, f"document.documentElement.scrollWidth <= {width}")
        page = seat.open("/tv")
        page.set_viewport_size({"width": 1280, "height": 800})
        assert page.evaluate(
            "[...document.querySelectorAll('.sides > *')].every((each) => each.scrollWidth <= each.clientWidth)"
        )


def test_mig_instances_whose_numbers_are_not_known_stay_all_on_a_live_page(browser: Browser) -> None:
    instances = [{"gi": None, "ci": None, "uuid": f"MIG-{number}"} for number in range(3)]
    instances += [{"profile": "1g.10gb"}, {"profile": "2g.20gb"}]
    with serving(filled=False) as site, opened(browser, site, 1280) as seat:
        site.post(snapshot("gpu01", [gpu(0, mig={"instances": instances})]))
        page = seat.open("/host/gpu01")
        page.locator("#freshness[data-freshness=live]").wait_for()
        for _ in range(2):
            seat.tick(lambda: site.post(snapshot("gpu01", [gpu(0, mig={"instances": instances})])))
        assert page.locator("[aria-labelledby=mig-title] tbody tr").count() == 5


def test_a_name_that_turns_the_line_turns_no_other(calm_seat: Seat) -> None:
    page = calm_seat.open(f"/host/{quote(HOSTILE, safe='')}")
    assert page.locator("h1").evaluate("(each) => getComputedStyle(each).unicodeBidi") == "isolate"


def test_paper_is_light_and_says_where_and_when(calm_seat: Seat) -> None:
    page = calm_seat.open("/?q=state:held")
    settle(page)
    page.emulate_media(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(ground) != dark
    assert page.locator(".printed").inner_text().startswith(f"{calm_seat.site.url}/?q=state:held, ")
    assert page.locator(".meanings dl").is_visible()
    assert not page.locator("header").first.is_visible()
