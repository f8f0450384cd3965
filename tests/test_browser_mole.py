"""From the driver's library to the pixel: a real mole, a server in another process, a real Chromium."""

import os
import pwd
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.processes import fake_nvml, sleepers, start_mole, start_server

ME = pwd.getpwuid(os.getuid()).pw_name
HOST = socket.gethostname()

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium"), pytest.mark.needs("gcc")]


def test_the_page_shows_a_mole_s_gpus_users_and_temperatures_then_stale_then_down(
    browser: Browser, tmp_path: Path
) -> None:
    fake_nvml()
    environment = {
        **{"CLUSTER_DASH_STATES__STALE_SECONDS": "4", "CLUSTER_DASH_STATES__STALE_INTERVALS": "0"},
        **{"CLUSTER_DASH_STATES__DOWN_SECONDS": "14", "CLUSTER_DASH_STATES__DOWN_INTERVALS": "0"},
    }
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    with ExitStack() as stack:
        server = stack.enter_context(start_server(environment=environment))
        pids = [stack.enter_context(process).popen.pid for process in sleepers(4)]
        lines = ["gpus = 8", "gpu.0-3.util_gpu = 90", "gpu.4-7.util_gpu = 0", "gpu.2.temp = 77"]
        nvml = tmp_path / "nvml.conf"
        nvml.write_text("\n".join([*lines, *(f"proc {place} {pid} 3000 C" for place, pid in enumerate(pids))]) + "\n")
        with start_mole(server.url, state=tmp_path, nvml=nvml):
            page.goto(server.url)
            expect(page.get_by_text("4 of 8 GPUs free: 4 × H100 80G.").first).to_be_visible()
            expect(page.locator("#main").get_by_text(f"{ME} ×4").first).to_be_visible()
            page.goto(f"{server.url}/host/{HOST}")
            expect(page.get_by_text("77 °C").first).to_be_visible()
            expect(page.get_by_text("sleep").first).to_be_visible()
            page.goto(server.url)
        row = page.locator("#main").get_by_text(HOST).first
        for word in ("stale", "down"):
            expect(page.locator("#main tbody").get_by_text(word).first).to_be_visible()
            expect(row).to_be_visible()
        expect(page.get_by_text("1 of 1 host down").first).to_be_visible()
