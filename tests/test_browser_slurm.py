"""Slurm's pages in a real browser, and what scripts say of it beside what the server says."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.seats import HOSTILE, Seat, Site, gpu, serving, sit, skeleton, snapshot, until, without_scripts, working
from tests.test_browser_everybody import SCHEMES, settle, violations

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]

PAGES = ("/slurm", "/slurm/jobs", "/slurm/nodes", "/slurm/job/7", "/slurm/job/8", "/host/n1")


def block(at: float) -> dict[str, Any]:
    """Two GPU nodes, one of them drained; a job that runs, others that wait; hostile where somebody writes a text."""
    source = {"ok": True, "at": at, "seconds": 0.1, "error": None}
    count = 60
    return {
        "version": "24.11.5",
        "cluster": HOSTILE,
        "collected_at": at,
        "interval_seconds": 60,
        "sources": dict.fromkeys(("nodes", "jobs", "details"), source),
        "notes": [HOSTILE],
        "totals": {
            "cpus": {"total": 96, "allocated": 16, "idle": 48, "other": 32},
            "gpus": {"total": 16, "allocated": 2, "idle": 6, "drained": 8, "down": 0},
            "gpu_types": {"h100": {"total": 8, "allocated": 2}, HOSTILE: {"total": 8}},
            "jobs": {"running": 1, "pending": count - 1},
            "pending_gpus": 4 * count,
            "finished_day": {"completed": 9, "failed": 2},
        },
        "scheduler": {"server_threads": 3, "main_mean_us": 2400, "backfill_mean_us": 38_000},
        "partitions": [{"name": HOSTILE, "state": "up", "default": True, "nodes": 2, "max_time_seconds": 86400}],
        "strings": ["", "mixed", "idle+drain", HOSTILE, "running", "pending", "Resources", "erin", "gpu", "h100:8"],
        "nodes": {
            "name": ["n1", "n2"],
            "state": [1, 2],
            "reason": [0, 3],
            "gpus": [8, 8],
            "gpus_allocated": [3, 0],
            "gpu": [9, 3],
            "gpu_index": ["0-2", ""],
            "features": [3, 3],
            "partitions": [8, 3],
        },
        "jobs": {
            "id": list(range(7, 7 + count)),
            "name": [HOSTILE] * count,
            "user": [7, *[3] * (count - 1)],
            "account": [3] * count,
            "partition": [3] * count,
            "state": [4, *[5] * (count - 1)],
            "reason": [0, *[6] * (count - 1)],
            "gpus": [3, *[4] * (count - 1)],
            "gpu_index": ["n1:0-2", *[""] * (count - 1)],
            "nodes": ["n1", *[""] * (count - 1)],
            "submitted_at": [at - 60 * place for place in range(count)],
            "started_at": [at - 300, *[None] * (count - 1)],
        },
    }


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving(filled=False) as found:
        found.post(
            {
                **snapshot(
                    "n1", [*(working(index, "erin") for index in (0, 1)), *map(gpu, range(2, 7)), working(7, "eve")]
                )
            }
        )
        found.post(snapshot("n2", [working(0, "bob"), *map(gpu, range(1, 8))]))
        found.post({**snapshot("head", []), "slurm": block(found.now)})
        yield found


@pytest.fixture
def seat(browser: Browser, site: Site) -> Iterator[Seat]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield sit(context, site)
    context.close()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_on_slurm_is_for_everybody_and_no_text_runs(seat: Seat, path: str) -> None:
    page = seat.open(path)
    settle(page)
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        assert violations(page, only_colours=scheme == "dark") == [], scheme
    page.set_viewport_size({"width": 360, "height": 800})
    until(page, "document.documentElement.scrollWidth <= 360")
    assert page.evaluate("window.hacked") is None
    assert seat.wrong == []


def test_scripts_say_of_slurm_what_the_server_says(seat: Seat, browser: Browser, site: Site) -> None:
    drawn = ("#hosts .gpu", "#notes li", "#cards li", "#group-rows th")
    page = seat.open("/?group=part")
    until(page, "document.querySelector('#freshness').dataset.freshness === 'live'")
    page.evaluate("document.querySelector('#cards').replaceChildren()")
    seat.tick()
    ours = [skeleton(page, selector) for selector in drawn]
    assert ours == without_scripts(browser, site, "/?group=part", *drawn)
    assert page.locator("#cards code").last.inner_text() == "srun -p gpu --gres=gpu:h100:1 --pty bash"
    labels = page.locator("[data-key=n1] .gpu").evaluate_all("cells => cells.map(cell => cell.ariaLabel)")
    assert labels[0].endswith("job 7 of erin")
    assert labels[2].endswith("job 7 of erin, no process")
    assert labels[7].endswith("used outside Slurm")
    assert page.locator("[data-key=n2] .gpu").first.get_attribute("aria-label") is not None
    assert "node drained, still in use" in str(page.locator("[data-key=n2] .gpu").first.get_attribute("aria-label"))
    assert page.locator("#notes").inner_text().count("n2 drained: ") == 1


def test_the_queue_is_narrowed_turned_and_stays_as_it_is_when_it_is_drawn_anew(seat: Seat) -> None:
    page = seat.open("/slurm/jobs")
    page.locator("select[name=state]").select_option("pending")
    page.locator(".choose button").click()
    page.locator("text=59 jobs of 60").wait_for()
    page.locator("a[rel=next]").click()
    page.locator("text=page 2 of 2").wait_for()
    page.locator("input[name=text]").fill("half a wo")
    seat.tick()
    assert page.locator("input[name=text]").input_value() == "half a wo"
    assert page.locator("#jobs tbody tr").count() == 9
    assert seat.wrong == []


def test_the_age_of_slurms_data_is_told_when_they_grow_old(browser: Browser) -> None:
    with serving(filled=False) as site:
        site.post({**snapshot("head", []), "slurm": block(site.now)})
        context = browser.new_context()
        seat = sit(context, site)
        page = seat.open("/slurm")
        assert page.locator(".notice", has_text="Slurm's data are").count() == 0
        seat.site.now += 240
        page.locator(".notice", has_text="Slurm's data are 4 min old").wait_for()
        context.close()
