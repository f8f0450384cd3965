"""What browser tests share: a fleet of every kind of host, a server with a clock that a test moves, a reader's seat."""

import atexit
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from flask import Flask
from playwright.sync_api import Browser, BrowserContext, Page
from waitress.server import create_server

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import ServerSettings, Settings

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
TICK_MS = 100_000
"""Longest wait for a tick on a busy machine."""
POLL_SECONDS = 1
"""How often a page asks here: at the real pace, tests would wait most of their time."""

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
        folder = tempfile.mkdtemp(prefix="cluster-dash-site-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.app = create_app(Settings(server=ServerSettings(data=folder)), clock=lambda: self.now)
        self.app.extensions["book"].start(has_folder=False)  # pages ask for alerts; nothing evaluates here

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


@contextmanager
def serving(*, filled: bool) -> Iterator[Site]:
    """Serve a site on a free port, with a fleet or without any host."""
    site = Site()
    if filled:
        site.fill()
    server = create_server(site.app, host="127.0.0.1", port=0, threads=4)
    site.url = f"http://127.0.0.1:{server.effective_port}"
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with patch("cluster_dash_server.web.frame.poll_seconds", lambda hosts: POLL_SECONDS):
        yield site
    server.close()
    thread.join(timeout=5)


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


def sit(context: BrowserContext, site: Site) -> Seat:
    page = context.new_page()
    wrong: list[str] = []
    page.on(
        "console",
        lambda said: wrong.append(f"{said.text} {said.location['url']}") if said.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (it) => console.error('CSP', it.violatedDirective, it.blockedURI))"
    )
    return Seat(page=page, site=site, wrong=wrong)


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
