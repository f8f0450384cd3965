"""A site taken from the files of one server to real engines and back: what can be asked for is the same."""

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server import free, site
from cluster_dash_server.access.tokens import TokenFile, Tokens
from cluster_dash_server.alerts.book import Silence
from cluster_dash_server.cli import main
from cluster_dash_server.history import moving
from cluster_dash_server.history.history import keep_of
from cluster_dash_server.history.postgresql import ledger as postgresql
from cluster_dash_server.history.postgresql.ledger import PostgresqlLedger
from cluster_dash_server.history.remote import store as remote
from cluster_dash_server.history.remote.store import RemoteHistory, RemoteStore
from cluster_dash_server.history.rollups import DAY, HOUR
from cluster_dash_server.history.settled import OwnSettled
from cluster_dash_server.history.sqlite.store import FILE, SqliteStore
from cluster_dash_server.ledger.sqlite import FILE as ALERTS
from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.ledger.waiting_line import LineFile
from cluster_dash_server.postgresql import Database
from cluster_dash_server.store import Event, EventQuery, Figures, KeptEvent, SeriesQuery, UsageQuery, UseQuery
from cluster_dash_server.waiting import Waiting
from tests.engines import Engine, running
from tests.processes import wait_until
from tests.test_history_postgresql import rows_of, suite

make_fleet, make_row = rows_of.make_fleet, rows_of.make_row
pytestmark = [pytest.mark.needs("postgres"), pytest.mark.needs("victoria-metrics")]
MakeFleet = Callable[[int, int, float, float], list[Figures]]
TODAY = time.time() // DAY * DAY
BEGIN = TODAY - DAY + 7200
"""Yesterday, for engines and files let go of what is old by the clock."""
OLD = TODAY - 20 * DAY
"""The hours of this day are known by what they added up to only."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with running("victoria-metrics", tmp_path) as engine:
        yield engine


def settings_file(path: Path, data: Path, more: str = "") -> Path:
    path.write_text(f'[server]\ndata = "{data}"\n{more}')
    return path


def fill(folder: Path, make_fleet: MakeFleet) -> list[Figures]:
    """Make the data folder of a small site."""
    folder.mkdir()
    settings = site.load_settings()
    clock = [OLD + 6 * HOUR]
    store = SqliteStore(folder, clock=lambda: clock[0], keep=keep_of(settings.history, settings.privacy))
    for row in make_fleet(7, 2, OLD, OLD + 2 * HOUR):
        store.append(row)
    store.seal_all()
    clock[0] = time.time()
    store.prune(clock[0])  # they become minutes
    rows = make_fleet(3, 3, BEGIN, BEGIN + 3 * HOUR)
    for row in rows:
        if row.at < BEGIN + 2 * HOUR:
            store.append(replace(row))
    store.seal_all()
    for row in rows:
        store.append(replace(row))  # the last hour is not sealed
    for number, kind in enumerate(("xid", "gpu_lost", "xid")):
        event = Event(at=BEGIN + number, host="gpu01", gpu=3, kind=kind, code=79, text="it's lost")
        store.record(KeptEvent(event, kind == "xid", ("boot", 4)))
    store.flush()
    store.close()
    tokens = Tokens(TokenFile(folder), time.time)
    tokens.new("host", "gpu01")
    tokens.revoke("gpu01")
    tokens.new("read", "grafana", scopes=("state:read",))
    book = SqliteBook(folder / ALERTS, time.time)
    now = time.time()
    book.silence(Silence(id=None, filter="host:gpu01", by="nora", reason="50 %", begins_at=now, ends_at=now + 3600))
    book.close()
    waiting = Waiting(LineFile(folder), allowed=("#gpu",), put=lambda notices, now: None, link=lambda path: None)
    waiting.add(free.Wish(count=1, free_mem=0, model=""), q="", to="#gpu", until=now + 3600, now=now)
    (folder / "links.key").write_bytes(b"a key")
    return rows


ASKED = [
    SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 4 * HOUR, step_seconds=60),
    SeriesQuery(metric="temperature_c", begin=BEGIN, end=BEGIN + 4 * HOUR, by="host"),
    SeriesQuery(metric="cpu_percent", begin=BEGIN, end=BEGIN + 4 * HOUR, by="host", step_seconds=900),
    SeriesQuery(metric="used_mem", begin=BEGIN, end=BEGIN + 4 * HOUR, by="model", step_seconds=600),
    SeriesQuery(metric="total_gpus", begin=BEGIN, end=BEGIN + 4 * HOUR, by="cluster", step_seconds=60),
    SeriesQuery(metric="held_gpus", begin=BEGIN, end=BEGIN + 4 * HOUR, by="user"),
]


def is_told_alike(found: Any, wanted: Any) -> None:
    for ask in ASKED:
        suite.agree(found.series(ask), wanted.series(ask))
    for begin, end in ((OLD, OLD + DAY), (BEGIN, BEGIN + DAY), (OLD - DAY, time.time())):
        for by in suite.BYS:
            used = UsageQuery(begin=begin, end=end, by=by)
            suite.agree(found.usage(used), wanted.usage(used))
        suite.agree(found.uses(UseQuery(begin=begin, end=end)), wanted.uses(UseQuery(begin=begin, end=end)))
    everything = EventQuery(begin=0, end=time.time())
    assert found.events(everything) == wanted.events(everything)


def knows_the_cluster(store: RemoteStore, engine: Engine) -> bool:
    """Say whether all is visible: VictoriaMetrics shows a series on a new day a moment after it was written."""
    engine.flush()
    ask = SeriesQuery(metric="total_gpus", begin=BEGIN, end=BEGIN + 4 * HOUR, by="cluster", step_seconds=60)
    return len([each for line in store.series(ask) for each in line.mean if each is not None]) == 180


def never(path: Path, mode: int) -> None:
    raise AssertionError(f"others could read {path} until then")


def test_a_site_goes_to_engines_and_back_and_tells_the_same(
    engine: Engine,
    database_url: str,
    tmp_path: Path,
    make_fleet: MakeFleet,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    rows = fill(first, make_fleet)
    of_one = settings_file(tmp_path / "one.toml", first)
    of_replicas = settings_file(
        tmp_path / "replicas.toml",
        tmp_path / "replica",
        f'[history]\nkind = "remote"\nwrite_url = "{engine.access.write_url}"\n'
        f'[ledger]\nkind = "postgresql"\nurl = "{database_url}"\n',
    )
    of_another = settings_file(tmp_path / "another.toml", last)
    assert main(["move", "-c", str(of_one), "--to", str(of_another)]) == 1  # neither of them is of replicas
    assert main(["move", "-c", str(of_one), "--to", str(of_replicas)]) == 0
    said = capsys.readouterr().out
    assert "2 tokens, 1 rows of alerts" in said
    assert f"rows of {time.strftime('%Y-%m-%d %H:%M', time.gmtime(BEGIN))}Z: " in said
    assert main(["move", "-c", str(of_one), "--to", str(of_replicas)]) == 1  # it is not empty

    settings = site.load_settings(of_replicas)
    keep = keep_of(settings.history, settings.privacy)
    before = SqliteStore(first, clock=time.time, keep=keep)
    before.seal_all()
    engine.flush()
    database, store = Database(database_url), remote.of_move(settings.history, time.time)
    ledger = PostgresqlLedger(database, clock=time.time, keep=keep)
    wait_until(lambda: knows_the_cluster(store, engine), 20, "all is visible")
    is_told_alike(RemoteHistory(store, ledger, OwnSettled()), before)
    old = SeriesQuery(metric="gpu_util", begin=OLD, end=OLD + 2 * HOUR, step_seconds=HOUR)
    for found, wanted in zip(store.series(old), before.series(old), strict=True):
        assert list(found.mean) == pytest.approx(list(wanted.mean), abs=5)  # means of minutes, all of one weight
    for part in (ledger, store, database):
        part.close()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", never)  # what is secret is so from the start
        assert main(["move", "-c", str(of_replicas), "--to", str(of_another)]) == 0
    after = SqliteStore(last, clock=time.time, keep=keep)
    try:
        is_told_alike(after, before)
        assert all(after.knows(row.host, str(row.boot_id), row.seq or 0) for row in rows)
    finally:
        after.close()
        before.close()
    assert sorted(TokenFile(last).read(), key=lambda token: token.id) == sorted(
        TokenFile(first).read(), key=lambda token: token.id
    )
    assert LineFile(last).read() == LineFile(first).read()
    assert (last / "links.key").read_bytes() == b"a key"
    assert (last / "links.key").stat().st_mode & 0o777 == 0o600
    books = [SqliteBook(folder / ALERTS, time.time) for folder in (first, last)]
    assert books[0].silences(0) == books[1].silences(0) != []
    for book in books:
        book.close()


def test_a_move_that_was_stopped_goes_on_and_doubles_nothing(
    engine: Engine,
    database_url: str,
    tmp_path: Path,
    make_fleet: MakeFleet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "first"
    fill(folder, make_fleet)
    shutil.copytree(folder, tmp_path / "copy")
    of_one = settings_file(tmp_path / "one.toml", folder)
    of_replicas = settings_file(
        tmp_path / "replicas.toml",
        tmp_path / "replica",
        f'[history]\nkind = "remote"\nwrite_url = "{engine.access.write_url}"\n'
        f'[ledger]\nkind = "postgresql"\nurl = "{database_url}"\n',
    )
    # an hour of a large site has far more rows than may wait
    monkeypatch.setattr(moving, "ROWS_AT_ONCE", 50)
    monkeypatch.setattr(postgresql, "MOST_ROW_BYTES", 40_000)
    engine.kill()
    assert main(["move", "-c", str(of_one), "--to", str(of_replicas)]) == 1
    engine.start()
    plain, parts = RemoteStore.append, []

    def stopped(self: Any, row: Figures) -> None:
        parts.append(row)
        if len(parts) == 400:
            raise OSError("the plug was pulled")
        plain(self, row)

    monkeypatch.setattr(RemoteStore, "append", stopped)
    assert main(["move", "-c", str(of_one), "--to", str(of_replicas)]) == 1
    done = json.loads((folder / "moving.json").read_text())["done"]
    assert len(done) > 1
    assert main(["move", "-c", str(of_one), "--to", str(of_replicas)]) == 0
    assert not (folder / "moving.json").exists()

    settings = site.load_settings(of_replicas)
    keep = keep_of(settings.history, settings.privacy)
    before = SqliteStore(tmp_path / "copy", clock=time.time, keep=keep)
    before.seal_all()
    engine.flush()
    database, store = Database(database_url), remote.of_move(settings.history, time.time)
    ledger = PostgresqlLedger(database, clock=time.time, keep=keep)
    try:
        wait_until(lambda: knows_the_cluster(store, engine), 20, "all is visible")
        is_told_alike(RemoteHistory(store, ledger, OwnSettled()), before)
    finally:
        for part in (ledger, store, before):
            part.close()
        database.close()
    with closing(sqlite3.connect(folder / FILE)) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
