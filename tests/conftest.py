"""What tests of both halves share: parts that a machine may lack, servers and moles as real processes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import databases, machines, templates, workers
from tests.processes import Listening, start_server

hypothesis.settings.register_profile("ours", deadline=None)  # time says nothing on a loaded machine
hypothesis.settings.load_profile("ours")
templates.compile_once()

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

    from tests.seats import Seat, Site

PARTS = {
    "chromium": "Debian's package chromium",
    "curl": "Debian's package curl",
    "gcc": "Debian's packages gcc and libc6-dev",
    "make": "Debian's package make",
    "git": "Debian's package git",
    "faketime": "Debian's package faketime",
    "ip": "Debian's package iproute2",
    "systemd-analyze": "Debian's package systemd",
    "prometheus": "Debian's package prometheus",
    "promtool": "Debian's package prometheus",
    "victoria-metrics": "Debian's package victoria-metrics",
    "prometheus-alertmanager": "Debian's package prometheus-alertmanager",
    "nginx": "Debian's package nginx-light",
    "postgres": "Debian's package postgresql",
    "redis-server": "Debian's package redis-server",
    "redis-sentinel": "Debian's package redis-sentinel",
    "caddy": "Debian's package caddy",
    "ansible-playbook": "Debian's package ansible-core",
    "openssl": "Debian's package openssl",
    "slurmctld": "tests/slurm-lab/install.sh",
}
"""Programs that a package brings: with CI=true a missing one is a failure."""

FORBIDDEN: dict[str, Callable[[], bool]] = {
    "a GPU": lambda: Path("/dev/nvidiactl").exists(),
    "root": lambda: os.geteuid() == 0,
    "machines of its own": machines.can_be_made,
    "a Python of its system for the server": lambda: machines.python() is not None,
}
"""What a machine has or has not, whatever is installed: tests of it are skipped and named."""

_missing: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(part): uses a program or a piece of hardware that a machine may lack")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadFileScheduling | None":
    """With `--dist loadfile`, give workers units of `workers` for files, in the order of the collection."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = workers.unit_of
    return scheduler


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of a module that is marked `in_order` back into the order in which they are written.

    In a worker, all are then arranged as they are to be taken: the process that hands them out has no other order.
    """
    by_module: dict[Path, list[int]] = {}
    for place, item in enumerate(items):
        if item.get_closest_marker("in_order"):
            by_module.setdefault(item.path, []).append(place)
    for places in by_module.values():
        written = sorted((items[place] for place in places), key=lambda item: item.reportinfo()[1] or 0)
        for place, item in zip(places, written, strict=True):
            items[place] = item
    if hasattr(config, "workerinput"):
        by_name = {item.nodeid: item for item in items}
        items[:] = [by_name[name] for name in workers.arranged(list(by_name))]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        (part,) = marker.args
        if part in PARTS:
            if databases.program(part) is None:
                _missing[part] = PARTS[part]
                if os.environ.get("CI") == "true":
                    pytest.fail(f"{part} is missing: {PARTS[part]}")
                pytest.skip(f"{part} is missing: {PARTS[part]}")
        elif not FORBIDDEN[part]():
            _missing[part] = "this machine has none"
            pytest.skip(f"needs {part}: this machine has none")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _missing:
        terminalreporter.section("tests skipped for want of a part")
        for part, why in sorted(_missing.items()):
            terminalreporter.line(f"{part}: {why}")


@pytest.fixture
def server() -> Iterator[Listening]:
    """A server in a process of its own, with its defaults."""
    with start_server() as process:
        yield process


@pytest.fixture(scope="session")
def postgresql() -> "Iterator[databases.Postgresql]":
    """A PostgreSQL for all tests of this process; a test of it is marked `needs("postgres")`."""
    with databases.running() as server:
        yield server


@pytest.fixture
def database_url(postgresql: "databases.Postgresql") -> str:
    """The address of a database for one test."""
    return postgresql.new_database()


# ------------------------------------------------------------------------- what browser tests share: see seats.py


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One Chromium for all tests of a module."""
    from playwright.sync_api import expect, sync_playwright

    from tests.seats import CHROMIUM, FLAGS, TICK_MS

    expect.set_options(timeout=TICK_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def empty_site() -> "Iterator[Site]":
    """A server that no host has posted to."""
    from tests.seats import serving

    with serving(filled=False) as site:
        yield site


@pytest.fixture
def site() -> "Iterator[Site]":
    """A server with a fleet, for a test that changes it."""
    from tests.seats import serving

    with serving(filled=True) as site:
        yield site


@pytest.fixture(scope="module")
def calm_site() -> "Iterator[Site]":
    """A server with a fleet, for all tests of a module that only look."""
    from tests.seats import serving

    with serving(filled=True) as site:
        yield site


@pytest.fixture
def seat(browser: "Browser", site: "Site") -> "Iterator[Seat]":
    """A reader at a desk, who finds nothing wrong in the console."""
    from tests.seats import sit

    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seat = sit(context, site)
    yield seat
    context.close()
    assert seat.wrong == []


@pytest.fixture
def calm_seat(browser: "Browser", calm_site: "Site") -> "Iterator[Seat]":
    """The same, at a server that nobody changes."""
    from tests.seats import sit

    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seat = sit(context, calm_site)
    yield seat
    context.close()
    assert seat.wrong == []
