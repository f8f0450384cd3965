"""What a reader at 2,000 hosts × 8 GPUs waits for: first useful paint, a live tick, bytes; in headless Chromium.

The page says itself when it painted and how long a tick kept it busy; server and fleet run in processes of their own.
"""

import json
import re
import statistics
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from bench.harness import Figure, get
from tests.processes import BIN, Listening, start_server, wait_until
from tests.seats import CHROMIUM, FLAGS

HOSTS, GPUS = 2000, 8
CHANGED = 0.05
MOST_ROWS = 200
TICKS = 6
FILL_SECONDS = 15


def simulate(server: Listening, hosts: int, interval_seconds: int) -> None:
    """Let the first hosts of the simulated fleet post once or twice, by the real ingest."""
    command = [str(BIN / "cluster-dash-mole"), "simulate", "--server", server.url, "--hosts", str(hosts), "--quiet"]
    command += ["--gpus", str(GPUS), "--interval", str(interval_seconds), "--seconds", str(interval_seconds + 1)]
    subprocess.run(command, check=True, capture_output=True)


def fill(server: Listening) -> None:
    """Let the whole fleet post, again where a server that was behind did not take all."""

    def is_full() -> bool:
        simulate(server, HOSTS, FILL_SECONDS)
        return bool(json.loads(get(server.url, "/readyz") or b"{}")["hosts"] == HOSTS)

    wait_until(is_full, 300, "all hosts have posted")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


PAINTED = """() => new Promise((told) => new PerformanceObserver((list) => told(
  list.getEntries().find(({name}) => name === 'first-contentful-paint').startTime))
  .observe({type: 'paint', buffered: true}))"""


def first_paint_ms(browser: Browser, url: str) -> float:
    """Open the overview with an empty cache; return when the sentence and rows stood there."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    try:
        page = context.new_page()
        page.goto(url, wait_until="commit")
        painted: float = page.evaluate(PAINTED)
        # what is useful must be in the HTML itself: then the first paint of content holds it
        if page.locator("#hosts tr").count() < 10:
            raise RuntimeError("the page came without its rows")
        return painted
    finally:
        context.close()


TICK = """() => {
  window.ticks = [];
  Response.prototype.json = async function () {
    const text = await this.text();
    const begin = performance.now();
    const body = JSON.parse(text);
    if (this.url.includes('/api/v1/cluster')) setTimeout(() => {
      document.body.offsetHeight;
      window.ticks.push(performance.now() - begin);
    });
    return body;
  };
}"""
"""A tick lasts from the bytes of an answer to the page laid out anew: parsed, merged, sorted, patched, laid out."""


def ticks_ms(page: Page, server: Listening, times: int) -> list[float]:
    """Change some hosts, ask at once, and return what each tick kept the page busy."""
    page.evaluate(TICK)
    for _ in range(times):
        simulate(server, int(HOSTS * CHANGED), 1)
        time.sleep(1.1)  # the live view may lag posts by a second
        before = page.evaluate("window.ticks.length")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # a tab that is seen again asks at once
        wait_until(lambda before=before: page.evaluate("window.ticks.length") > before, 30)  # type: ignore[misc]
        page.wait_for_timeout(100)
    found: list[float] = page.evaluate("window.ticks")
    return found


def most_rows(page: Page, url: str) -> int:
    """Return the most rows, heads included, that any face of the overview holds."""
    most = 0
    for query in ("", "?group=none", "?group=part", "?q=state:free", "?view=map", "?page=7&sort=-busy"):
        page.goto(url + "/" + query)
        page.locator("#facets summary").first.wait_for()
        most = max(most, page.locator("tr").count())
    return most


def sizes(server: Listening) -> tuple[int, int]:
    """Return the bytes of what the overview asks for: the full state, and 5 % of the hosts changed.

    In gzip, which every browser takes; over TLS and to localhost they take zstd, which is smaller.
    """
    script = get(server.url, "/assets/x/js/api.js") or b""
    columns = re.findall(rb'"(\w+)"', script.partition(b"OVERVIEW = [")[2].partition(b"];")[0])
    path = "/api/v1/cluster?columns=" + b",".join(columns).decode()
    time.sleep(1.1)
    full = get(server.url, path, "gzip") or b""
    version = json.loads(zlib.decompress(full, wbits=31))["version"]
    simulate(server, int(HOSTS * CHANGED), 1)
    time.sleep(1.2)
    delta = get(server.url, f"{path}&since={version}", "gzip") or b""
    if json.loads(zlib.decompress(delta, wbits=31))["full"]:
        raise RuntimeError("a change of few hosts came as the whole")
    return len(full), len(delta)


def run(runs: int) -> list[Figure]:
    """Measure."""
    with start_server() as server, chromium() as browser:
        fill(server)
        full, delta = sizes(server)
        first_paint_ms(browser, server.url)  # templates and bodies are warm in a server that runs
        painted = min(first_paint_ms(browser, server.url) for _ in range(4))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(server.url)
        page.locator("#freshness[data-freshness=live]").wait_for()
        tick = statistics.median(ticks_ms(page, server, TICKS * max(1, runs // 2)))
        page.goto(f"{server.url}/?view=map")
        page.locator("#freshness[data-freshness=live]").wait_for()
        tick_map = statistics.median(ticks_ms(page, server, TICKS))
        rows = most_rows(page, server.url)
    what = f"{HOSTS:,} hosts × {GPUS} GPUs"
    return [
        _figure(f"{what}: first useful paint of /, best of four", painted, "ms", 1000),
        _figure(f"{what}: a live tick of the overview, {CHANGED:.0%} of the hosts changed", tick, "ms", 100),
        Figure(name=f"{what}: the same with the map", value=tick_map, unit="ms"),
        _figure(f"{what}: rows in the page at most, heads included", rows, "rows", MOST_ROWS),
        _figure(f"{what}: full state, gzip", full / 1000, "kB", 150),
        _figure(f"{what}: delta of {CHANGED:.0%} changed hosts, gzip", delta / 1000, "kB", 15),
    ]


def _figure(name: str, value: float, unit: str, most: float) -> Figure:
    return Figure(name=name, value=value, unit=unit, target=f"≤ {most:,} {unit}", met=value <= most)
