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
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

TOP = Path(__file__).resolve().parent.parent
FOLDER = TOP / "docs" / "screenshots"
PATIENCE_SECONDS = 120
WIDTH_PX, PHONE_WIDTH_PX = 1280, 360
MOST_BYTES = 300_000
SETTLED_MS = 1500
"""Charts are drawn by then."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--font-render-hinting=none"]


def main() -> int:
    """Take them; 1 where one is too large to be looked at on a slow line."""
    port = _free_port()
    url = f"http://localhost:{port}"
    demo = subprocess.Popen([sys.executable, TOP / "dev" / "demo.py", "--port", str(port)], cwd=TOP)
    try:
        live = _wait_for_the_faults(url, demo)
        held = live["gpus"]["state"].index("held")
        host = live["hosts"]["host"][live["gpus"]["host"][held]]
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            sizes = _take(browser, url, host)
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


def _wait_for_the_faults(url: str, demo: subprocess.Popen[bytes]) -> Any:
    """Return the live view once it shows a lost GPU, held ones and a stale host: after 50 s of the night."""
    until = time.monotonic() + PATIENCE_SECONDS
    while demo.poll() is None and time.monotonic() < until:
        time.sleep(0.5)
        try:
            with urllib.request.urlopen(f"{url}/api/v1/cluster", timeout=5) as answer:
                live = json.load(answer)
        except OSError:
            continue
        if {"error", "held", "stale"} <= set(live["gpus"]["state"]):
            return live
    raise TimeoutError(f"the demo ended, or did not show its faults within {PATIENCE_SECONDS} s")


def _take(browser: Browser, url: str, host: str) -> dict[str, int]:
    """Write all screenshots; return the size of each in bytes."""
    FOLDER.mkdir(exist_ok=True)
    sizes = {}
    for name, path, theme, width, height, whole in (
        *(("overview", "/", theme, WIDTH_PX, 740, True) for theme in ("light", "dark")),
        ("overview-phone", "/", "light", PHONE_WIDTH_PX, 740, False),
        *(("gpus", "/gpu-data", theme, WIDTH_PX, 868, False) for theme in ("light", "dark")),
        *(("host", f"/host/{host}", theme, WIDTH_PX, 740, True) for theme in ("light", "dark")),
    ):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="light" if theme == "light" else "dark",
            locale="en-GB",
            timezone_id="UTC",
        )
        page = context.new_page()
        page.goto(url + path)
        page.wait_for_timeout(SETTLED_MS)
        file = FOLDER / f"{name}-{theme}.png"
        page.screenshot(path=file, full_page=whole, animations="disabled")
        sizes[file.name] = file.stat().st_size
        context.close()
    return sizes


if __name__ == "__main__":
    sys.exit(main())
