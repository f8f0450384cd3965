"""What a reader at 2,000 hosts × 8 GPUs waits for: first useful paint, a live tick, bytes; in headless Chromium.

The page says itself when it painted and how long a tick kept it busy; server and fleet run in processes of their own.
"""

import json
import random
import re
import statistics
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from bench.harness import Figure, get, post
from bench.ingest import MANY
from tests.processes import Listening, start_server, wait_until
from tests.seats import CHROMIUM, FLAGS

HOSTS, GPUS = 2000, 8
CHANGED = 0.05
MOST_ROWS = 200
TICKS = 6
MODELS = (("NVIDIA H100 80GB HBM3", 81559.0), ("NVIDIA A100-SXM4-80GB", 81920.0), ("NVIDIA L40S", 46068.0))


def snapshot(number: int, turn: int) -> bytes:
    """A host that differs from its neighbours in model, users, use and labels, as a fleet does."""
    name, total = MODELS[number % len(MODELS)]
    gpus = {}
    for index in range(GPUS):
        mark = (number * 31 + index * 7 + turn * 13) % 100
        is_busy = mark < 70
        user = f"user{(number // 4 + index // 4) % 90:02}"
        process = {str(4000 + index): {"mem": 30_000.0 + mark, "time": 80.0 * mark, "name": "python", "type": "C"}}
        gpus[f"{index}_GPU_{number:06x}"[:40]] = {
            "index": index,
            "name": name,
            "uuid": f"GPU-{random.Random(number * 8 + index).randbytes(16).hex()}",
            "total_mem": total,
            "used_mem": 31_000.0 + mark if is_busy else 3.0,
            "gpu_util": mark + 25 if is_busy else 0,
            "memory_util": mark // 2,
            "temperature_c": 30 + mark // 2,
            "power_w": 70.0 + 5 * mark,
            "users": {user: process} if is_busy else {},
        }
    return json.dumps(
        {
            "hostname": f"gpu{number:04}",
            "timestamp": time.time(),
            "interval_seconds": 15,
            "auth_code": "lab_cluster_2025",
            "general": {"labels": {"partition": f"part{number % 6}", "rack": f"r{number // 40:02}"}},
            "cpu": {"cpu_percent": number % 97, "load_avgs": [number % 61, 20.0, 18.5], "num_cpus": 64},
            "memory": {"total_gb": 503.6, "available_gb": 380.0, "used_gb": 123.6},
            "gpu": gpus,
        }
    ).encode()


def fill(server: Listening, numbers: range, turn: int) -> None:
    """Post a snapshot of some hosts."""
    lines = [snapshot(number, turn) for number in numbers]
    for first in range(0, len(lines), 100):
        batch = b"\n".join(lines[first : first + 100])
        # a server that is behind may say so
        wait_until(lambda batch=batch: post(server.url + MANY, [batch]), 60)  # type: ignore[misc]


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


def ticks_ms(page: Page, server: Listening, turns: range) -> list[float]:
    """Change some hosts, ask at once, and return what each tick kept the page busy."""
    page.evaluate(TICK)
    changed = int(HOSTS * CHANGED)
    for turn in turns:
        first = turn * changed % HOSTS
        fill(server, range(first, first + changed), turn)
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
    fill(server, range(int(HOSTS * CHANGED)), 99)
    time.sleep(1.2)
    delta = get(server.url, f"{path}&since={version}", "gzip") or b""
    if json.loads(zlib.decompress(delta, wbits=31))["full"]:
        raise RuntimeError("a change of few hosts came as the whole")
    return len(full), len(delta)


def run(runs: int) -> list[Figure]:
    """Measure."""
    with start_server() as server, chromium() as browser:
        fill(server, range(HOSTS), 0)
        full, delta = sizes(server)
        first_paint_ms(browser, server.url)  # templates and bodies are warm in a server that runs
        painted = min(first_paint_ms(browser, server.url) for _ in range(4))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(server.url)
        page.locator("#freshness[data-freshness=live]").wait_for()
        tick = statistics.median(ticks_ms(page, server, range(1, 1 + TICKS * max(1, runs // 2))))
        page.goto(f"{server.url}/?view=map")
        page.locator("#freshness[data-freshness=live]").wait_for()
        tick_map = statistics.median(ticks_ms(page, server, range(30, 30 + TICKS)))
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
