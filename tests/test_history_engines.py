"""History behind real engines: the suite that all kinds of store pass, and what only engines can get wrong."""

import importlib.util
import inspect
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.history.remote import Pace, RemoteHistory, RemoteStore
from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.history.sqlite import SqliteStore
from cluster_dash_server.store import HOST_METRICS, Figures
from tests.engines import KINDS, Engine, running
from tests.processes import TOP

SUITE = TOP / "cluster-dash-server" / "tests" / "history"


def load(name: str) -> ModuleType:
    """Load a module of the suite, which lies in no package."""
    spec = importlib.util.spec_from_file_location(f"suite_of_stores_{name}", SUITE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


suite, rows_of = load("test_stores"), load("conftest")
BEGIN: float = suite.BEGIN
globals().update(
    {
        name: found
        for name, found in vars(suite).items()
        if name.startswith("test_") and "store" in inspect.signature(found).parameters
    }
)
moving, make_row, make_fleet = suite.moving, rows_of.make_row, rows_of.make_fleet
MakeRow = Callable[..., Figures]
MakeFleet = Callable[[int, int, float, float], list[Figures]]
MakeStore = Callable[[], RemoteHistory]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Engine]]:
    """Start each kind of engine when it is first asked for; tests are apart by the label `cluster`."""
    started: dict[str, Any] = {}

    def engine(kind: str) -> Engine:
        if kind not in started:
            started[kind] = running(kind, tmp_path_factory.mktemp(kind))
            started[kind] = started[kind], started[kind].__enter__()
        found: Engine = started[kind][1]
        return found

    yield engine
    for block, _ in started.values():
        block.__exit__(None, None, None)


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in KINDS])
def engine(request: pytest.FixtureRequest, engines: Callable[[str], Engine]) -> Engine:
    return engines(request.param)


@pytest.fixture
def store(engine: Engine, tmp_path: Path, moving: Any) -> Iterator[RemoteHistory]:
    """A history behind an engine, empty."""
    ledger = SqliteStore(tmp_path, clock=moving, keep=suite.KEEP)
    pace = Pace(flush_seconds=60, settle_seconds=0, window_seconds=None)
    store = RemoteHistory(RemoteStore(engine.access, uuid.uuid4().hex, pace, moving), ledger)
    plain = store.flush

    def flush() -> None:
        plain()
        engine.flush()

    store.flush = flush  # type: ignore[method-assign]
    yield store
    store.close()


def with_interval(row: Figures) -> Figures:
    """Return a row whose host says its interval: where it does not, a store guesses it of more rows or fewer."""
    place = HOST_METRICS.index("interval_seconds") - len(HOST_METRICS)
    if row.values[place] != row.values[place]:
        row.values[place] = 60.0
    return row


def test_answers_are_those_of_the_plainest_store(store: RemoteHistory, moving: Any, make_fleet: MakeFleet) -> None:
    rows = [with_interval(row) for row in make_fleet(3, 4, BEGIN, BEGIN + 2 * HOUR)]
    plain = MemoryStore(moving)
    for row in rows:
        plain.append(replace(row))
    suite.put(store, rows)

    for ask in suite.ASKED:
        suite.agree(store.series(ask), plain.series(ask))
    for at in (BEGIN + 1800.5, BEGIN + 2 * HOUR + 900):
        for found, wanted in zip(store.moment(at, 3600), plain.moment(at, 3600), strict=True):
            assert (found.host, found.at, found.gpus) == (wanted.host, wanted.at, wanted.gpus)
            assert [str(each) for each in found.values] == [str(each) for each in wanted.values]
            assert set(found.holders) == set(wanted.holders)
