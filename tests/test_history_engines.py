"""History behind real engines: the suite that all kinds of store pass, and what only engines can get wrong."""

import contextlib
import inspect
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.history.remote.store import Pace, RemoteHistory, RemoteStore
from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.history.sqlite.store import SqliteStore
from cluster_dash_server.store import HOST_METRICS, Figures, GpuId, Series, SeriesQuery, StoreError, UsageQuery
from tests import suites
from tests.engines import KINDS, Engine, running
from tests.processes import BIN, snapshot, start_server, wait_until

suite, rows_of = suites.load("history", "test_stores"), suites.load("history", "conftest")
BEGIN: float = suite.BEGIN
PASSCODE = "a passcode of a test"
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
    with history_behind(engine, tmp_path, moving) as store:
        yield store


@contextmanager
def history_behind(engine: Engine, folder: Path, moving: Any) -> Iterator[RemoteHistory]:
    """Give a history behind an engine, empty."""
    ledger = SqliteStore(folder, clock=moving, keep=suite.KEEP)
    pace = Pace(flush_seconds=60, settle_seconds=0, window_seconds=None)
    store = RemoteHistory(RemoteStore(engine.access, uuid.uuid4().hex, pace, moving), ledger)
    plain, asked = store.flush, store.series

    def flush() -> None:
        plain()
        engine.flush()

    def series(ask: SeriesQuery) -> list[Series]:
        """Ask again: before a first minute is recorded it is asked for, and VictoriaMetrics remembers none for 10 s."""
        found, end = asked(ask), time.monotonic() + 12
        while not found and ask.by in ("cluster", "model") and time.monotonic() < end:
            time.sleep(0.2)
            found = asked(ask)
        return found

    store.flush = flush  # type: ignore[method-assign]
    store.series = series  # type: ignore[method-assign]
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


def test_what_comes_again_after_a_restart_is_durable_again_and_not_doubled(
    engine: Engine, tmp_path: Path, moving: Any, make_row: MakeRow
) -> None:
    """Nothing is known to be settled then, so moles send again what they still hold."""
    cluster, pace = uuid.uuid4().hex, Pace(flush_seconds=60, settle_seconds=0, window_seconds=None)
    hour = SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + HOUR - 1, step_seconds=HOUR)
    held, used = [], []
    for sent in (range(1, 41), range(21, 61)):
        ledger = SqliteStore(tmp_path, clock=moving, keep=suite.KEEP)
        store = RemoteHistory(RemoteStore(engine.access, cluster, pace, moving), ledger)
        assert not store.knows("gpu01", "boot", 21)
        for seq in sent:
            store.append(make_row(at=BEGIN + 60 * (seq - 1), seq=seq, util=float(seq)))
        store.flush()
        engine.flush()
        assert store.durable_seq("gpu01", "boot", sent[0]) == sent[-1]
        (line,) = store.series(hour)
        held.append(line.mean[0])
        ledger.seal_all()
        (usage,) = store.usage(UsageQuery(begin=BEGIN, end=BEGIN + HOUR - 1))
        used.append(usage.held_seconds)
        store.close()

    assert held == [pytest.approx(20.5), pytest.approx(30.5)]  # the means of 1 to 40 and 1 to 60
    assert used == pytest.approx([2400, 3600], abs=60)


def test_what_was_not_settled_when_the_engine_was_killed_is_there_in_the_end(
    own_engine: Engine, make_row: MakeRow
) -> None:
    """A yes is no receipt: the engine that gave it may lose its last seconds."""
    engine, now = own_engine, BEGIN + HOUR
    pace = Pace(flush_seconds=0.2, settle_seconds=1, window_seconds=None)
    store = RemoteStore(engine.access, "killed", pace, lambda: now)

    def durable() -> int | None:
        return store.durable_seq("gpu01", "boot", 1)

    try:
        for seq in range(1, 41):
            store.append(make_row(at=BEGIN + seq, seq=seq, util=float(seq)))
        store.flush()
        engine.kill()  # at once: nothing of it is settled
        assert durable() is None
        for seq in range(41, 81):
            store.append(make_row(at=BEGIN + seq, seq=seq, util=float(seq)))
        wait_until(lambda: store.trouble is not None, 20, "the loss is noticed")
        assert "gpu" not in str(store.trouble)
        assert durable() is None
        engine.start()
        wait_until(lambda: durable() == 80, 30, "all is settled")
        assert store.trouble is None
        engine.flush()
        (line,) = store.series(SeriesQuery(metric="gpu_util", begin=BEGIN + 1, end=BEGIN + 80, step_seconds=1))
        assert list(line.mean) == [float(seq) for seq in range(1, 81)]
    finally:
        store.close()


@pytest.mark.soak
def test_what_is_called_durable_outlives_five_kills_under_load(own_engine: Engine, make_row: MakeRow) -> None:
    engine, now = own_engine, BEGIN + 2 * HOUR
    settle = 15 if "victoria" in engine.name else 0
    pace = Pace(flush_seconds=2, settle_seconds=settle, window_seconds=None)
    store = RemoteStore(engine.access, "soaked", pace, lambda: now)
    seq = 0

    def post_for(seconds: float) -> None:
        nonlocal seq
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            seq += 1
            store.append(make_row(at=BEGIN + seq, seq=seq, util=float(seq % 100)))
            time.sleep(0.05)

    def missing(last: int) -> list[int]:
        """Return which of the newest numbers up to one are not in the engine."""
        first = max(1, last - 1400)
        ask = SeriesQuery(metric="gpu_util", begin=BEGIN + first, end=BEGIN + last, step_seconds=1)
        (line,) = store.series(ask)
        wanted = [float(each % 100) for each in range(first, last + 1)]
        return [first + place for place, pair in enumerate(zip(line.mean, wanted, strict=True)) if pair[0] != pair[1]]

    try:
        for number in range(5):
            post_for(20 + number)
            claimed = store.durable_seq("gpu01", "boot", 1)
            engine.kill()
            assert claimed is not None
            post_for(2)
            engine.start()
            assert missing(claimed) == []
        wait_until(lambda: store.durable_seq("gpu01", "boot", 1) == seq, 60, "all is settled")
        engine.flush()
        assert missing(seq) == []
    finally:
        store.close()


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in KINDS])
def own_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine of its own for one test."""
    with running(request.param, tmp_path) as engine:
        yield engine


@pytest.mark.needs("prometheus")
def test_a_sample_that_prometheus_refuses_does_not_take_others_with_it(
    engines: Callable[[str], Engine], make_row: MakeRow
) -> None:
    engine = engines("prometheus")
    pace = Pace(flush_seconds=60, settle_seconds=0, window_seconds=None)
    first, second = (RemoteStore(engine.access, "refused", pace, lambda: BEGIN + HOUR) for _ in range(2))
    try:
        first.append(make_row(seq=1, util=50.0))
        first.flush()
        for number in range(9):  # the first has another figure for a moment that the engine knows
            second.append(make_row(at=BEGIN + 60 * number, seq=1 + number, util=70.0))
        with contextlib.suppress(StoreError):  # a new engine refuses all of it: does it work?
            second.flush()
        second.append(make_row(at=BEGIN + 540, seq=10, util=70.0))
        second.flush()

        (line,) = second.series(SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 560, step_seconds=60))
        assert list(line.mean) == [50.0, *[70.0] * 9]
        assert second.durable_seq("gpu01", "boot", 1) == 10
    finally:
        first.close()
        second.close()


def test_of_a_place_whose_gpu_was_replaced_the_last_one_is_named(store: RemoteHistory, make_row: MakeRow) -> None:
    rows = [make_row(at=BEGIN + 60 * number, seq=number) for number in range(20)]
    for row in rows[:10]:
        row.gpus = (GpuId(0, "GPU-a-newer-name", "A100", 40_000.0),)
    suite.put(store, rows)

    (line,) = store.series(SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + HOUR))

    assert (line.uuid, line.model) == ("GPU-gpu01-0", "H100")
    assert [each.gpus[0].model for each in store.moment(BEGIN + 300)] == ["A100"]


@pytest.mark.parametrize("host", ['a"b\\c', "ü.lab", "x.*|y", "with blank", "a'b"])
def test_names_of_any_letters_are_found_and_no_others(store: RemoteHistory, make_row: MakeRow, host: str) -> None:
    suite.put(store, [make_row(host, seq=1), make_row("x-other", seq=1), make_row("third", seq=1)])

    for hosts in ((host,), (host, "third")):
        ask = SeriesQuery(metric="power_w", begin=BEGIN, end=BEGIN + 60, hosts=hosts)
        assert {each.host for each in store.series(ask)} == set(hosts)


def test_a_server_keeps_its_history_in_an_engine(own_engine: Engine, tmp_path: Path) -> None:
    engine = own_engine  # of today: after it Prometheus takes no figures of the suite's year
    settings = tmp_path / "server.toml"
    cluster = uuid.uuid4().hex
    settings.write_text(
        f'[ingest]\npasscode = "{PASSCODE}"\n[history]\nkind = "remote"\ncluster = "{cluster}"\n'
        f'write_url = "{engine.access.write_url}"\nflush_seconds = 0.2\nsettle_seconds = 0\n'
    )
    with start_server("-c", settings, "--data", tmp_path / "data") as server:

        def ask(path: str, body: bytes | None = None) -> Any:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(server.url + path, body, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        def posted(seq: int) -> Any:
            body = snapshot("gpu01", gpus=2, processes=1)
            body.update(auth_code=PASSCODE, timestamp=time.time(), boot_id="boot", seq=seq, spool={"oldest_seq": 1})
            return ask("/", json.dumps(body).encode())

        posted(1)
        wait_until(lambda: (posted(1) or {}).get("durable_seq") == 1, 20, "it is durable")
        assert posted(1)["duplicate"] is True

        def found() -> Any:
            engine.flush()
            return ask("/api/v1/series?metric=used_mem&from=now-5m&step=5")["series"]

        lines = wait_until(found, 60, "it can be asked for")
        assert [(each["host"], each["gpu"]) for each in lines] == [("gpu01", 0), ("gpu01", 1)]
        assert ask("/readyz")["version"]
        done = subprocess.run(
            [BIN / "cluster-dash-server", "doctor", "-c", settings], capture_output=True, text=True, check=False
        )
        assert f"✔ engine of history: {engine.access.write_url} takes figures" in done.stdout


def users_of(store: RemoteHistory, moving: Any) -> set[str | None]:
    ask = SeriesQuery(metric="held_gpus", begin=BEGIN, end=BEGIN + 2 * HOUR, by="user")
    return {each.user for each in store.series(ask)}


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in KINDS])
def store_of_its_own(request: pytest.FixtureRequest, tmp_path: Path, moving: Any) -> Iterator[RemoteHistory]:
    """A history behind an engine that holds nothing newer: Prometheus deletes no sample that came late to it."""
    with running(request.param, tmp_path) as engine, history_behind(engine, tmp_path, moving) as store:
        yield store


def test_a_user_who_is_forgotten_is_in_no_row_of_the_engine(
    store_of_its_own: RemoteHistory, moving: Any, make_row: MakeRow
) -> None:
    store = store_of_its_own
    users = ("alice", "bob")
    suite.put(store, [make_row(at=BEGIN + 60 * each, seq=each, user=users[each // 30 % 2]) for each in range(90)])
    wait_until(lambda: users_of(store, moving) == {"alice", "bob"}, 20, "all is visible")

    store.forget_user("alice", lambda last: last)

    def is_done() -> bool:
        store.flush()
        told = store.unnamed("alice")
        return told is not None and not told.hosts_left and told.stays is None

    wait_until(is_done, 20, "it is done")
    wait_until(lambda: users_of(store, moving) == {"bob"}, 20, "all of it is gone")


@pytest.mark.needs("prometheus")
def test_an_engine_that_deletes_nothing_is_said_to_keep_it(tmp_path: Path, moving: Any) -> None:
    engine = KINDS["prometheus"](tmp_path)
    engine.command.remove("--web.enable-admin-api")
    engine.start()
    store = RemoteStore(engine.access, "kept", Pace(flush_seconds=60, settle_seconds=0, window_seconds=None), moving)
    try:
        store.forget_user("alice")
        assert store.unnamed("alice") == (False, "")
        store.flush()
        is_done, stays = store.unnamed("alice")
        assert is_done
        assert "the engine keeps how many GPUs the user had, minute by minute" in str(stays)
        assert "--web.enable-admin-api" in str(stays)
    finally:
        store.close()
        engine.stop()


def test_an_engine_that_is_away_stops_nothing_and_is_named(tmp_path: Path) -> None:
    settings = tmp_path / "server.toml"
    settings.write_text(
        f'[ingest]\npasscode = "{PASSCODE}"\n'
        '[history]\nkind = "remote"\nwrite_url = "http://127.0.0.1:1/api/v1/write"\nflush_seconds = 0.1\n'
    )
    with start_server("-c", settings, "--data", tmp_path / "data") as server:
        body = snapshot("gpu01", gpus=1, processes=0)
        body.update(auth_code=PASSCODE, timestamp=time.time(), boot_id="boot", seq=1, spool={"oldest_seq": 1})
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["durable_seq"] is None

        def why() -> str:
            try:
                with urllib.request.urlopen(f"{server.url}/readyz", timeout=60):
                    return ""
            except urllib.error.HTTPError as error:
                return error.read().decode()

        assert "the engine at 127.0.0.1:1: connection refused" in wait_until(why, 20, "it is said")
    done = subprocess.run(
        [BIN / "cluster-dash-server", "doctor", "-c", settings], capture_output=True, text=True, check=False
    )
    assert "✘ engine of history: 127.0.0.1:1: connection refused" in done.stdout


def test_who_has_no_engine_imports_nothing_for_one() -> None:
    code = (
        "import sys, cluster_dash_server.app; print([name for name in sys.modules if 'hist' in name or 'cram' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = ("postgresql", "adding", "answers", "numbered", "segments", "running", "moving")
    for name in ("remote", "engine", "encoding", "promql", "sending", "recording", "cramjam", *ours):
        assert name not in done.stdout
