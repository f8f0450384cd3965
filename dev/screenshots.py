"""`make screenshots`: docs/screenshots/*.png, from the demo, in Chromium. Seeded: the same night each time."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

TOP = Path(__file__).resolve().parent.parent
FOLDER = TOP / "docs" / "screenshots"
PATIENCE_SECONDS = 300
WIDTH_PX, PHONE_WIDTH_PX = 1280, 360
MOST_BYTES = 300_000
MOST_ALERTS = 2
"""So many are told within the first minutes."""
SETTLED_MS = 1500
"""Charts are drawn by then."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--font-render-hinting=none"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A page to be taken: its file's name without the theme, and the size of the window; `whole`: all of it."""

    name: str
    path: str
    theme: str
    width: int = WIDTH_PX
    height: int = 740
    whole: bool = False


def main() -> int:
    """Take them; 1 where one is too large to be looked at on a slow line."""
    port = _free_port()
    url = f"http://localhost:{port}"
    demo = subprocess.Popen([sys.executable, TOP / "dev" / "demo.py", "--port", str(port)], cwd=TOP)
    try:
        # a lost GPU, held ones and a stale host: after 50 s of the night
        live = _wait_for("faults", demo, lambda: _faulty(_asked(f"{url}/api/v1/cluster")))
        held = live["gpus"]["state"].index("held")
        host = live["hosts"]["host"][live["gpus"]["host"][held]]
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            both = ("light", "dark")
            sizes = _take(
                browser,
                url,
                *(Picture("overview", "/", theme, whole=True) for theme in both),
                Picture("overview-phone", "/", "light", width=PHONE_WIDTH_PX),
                *(Picture("gpus", "/gpu-data", theme, height=868) for theme in both),
                *(Picture("host", f"/host/{host}", theme, height=1340) for theme in both),
            )
            told = f"{url}/api/v1/series?metric=total_gpus&from=now-23h&to=now&step=900"
            _wait_for("day before", demo, lambda: _is_whole(_asked(told), len(live["gpus"]["state"])))
            _wait_for("alerts", demo, lambda: len(_asked(f"{url}/api/v1/alerts")["alerts"]) >= MOST_ALERTS)
            sizes |= _take(
                browser,
                url,
                *(Picture("alerts", "/alerts", theme) for theme in both),
                *(Picture("history", "/history?from=now-24h", theme, height=868) for theme in both),
            )
            browser.close()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait()
    for name, size in sizes.items():
        print(f"{size:>8,} bytes  {os.path.relpath(FOLDER / name, TOP)}")
    return int(max(sizes.values()) > MOST_BYTES)


def _free_port() -> int:
    """Return the usual port, as the pages show it, else any."""
    for port in (8080, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as free:
                return int(free.getsockname()[1])
        except OSError:
            continue
    raise OSError("no port of the loopback address is free")


def _asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def _faulty(live: Any) -> Any:
    return live if {"error", "held", "stale"} <= set(live["gpus"]["state"]) else None


def _is_whole(told: Any, gpus: int) -> bool:
    """Say whether the past of nearly all GPUs has come in, the running hour's last."""
    means = told["series"][0]["mean"] if told["series"] else [None]
    return all(mean is not None and mean > gpus * 0.7 for mean in means[:-1])


def _wait_for(what: str, demo: subprocess.Popen[bytes], found: Callable[[], Any]) -> Any:
    """Return what a call finds, once it finds something."""
    until = time.monotonic() + PATIENCE_SECONDS
    while demo.poll() is None and time.monotonic() < until:
        time.sleep(0.5)
        try:
            value = found()
        except OSError:
            continue
        if value:
            return value
    raise TimeoutError(f"the demo ended, or did not show its {what} within {PATIENCE_SECONDS} s")


def _take(browser: Browser, url: str, *pictures: Picture) -> dict[str, int]:
    """Write screenshots; return the size of each in bytes."""
    FOLDER.mkdir(exist_ok=True)
    sizes = {}
    for each in pictures:
        context = browser.new_context(
            viewport={"width": each.width, "height": each.height},
            color_scheme="light" if each.theme == "light" else "dark",
            locale="en-GB",
            timezone_id="UTC",
        )
        page = context.new_page()
        page.goto(url + each.path)
        page.wait_for_timeout(SETTLED_MS)
        file = FOLDER / f"{each.name}-{each.theme}.png"
        page.screenshot(path=file, full_page=each.whole, animations="disabled")
        sizes[file.name] = file.stat().st_size
        context.close()
    return sizes


if __name__ == "__main__":
    sys.exit(main())
