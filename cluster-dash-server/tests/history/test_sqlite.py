"""What only a file can go through: restarts, damage, other releases, a full disk, age, a cap."""

import contextlib
import errno
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.history import late_numpy
from cluster_dash_server.history.boots import MOST_BOOTS
from cluster_dash_server.history.rollups import DAY, HOUR
from cluster_dash_server.history.sqlite import schema
from cluster_dash_server.history.sqlite import store as sqlite
from cluster_dash_server.history.sqlite.opened import OpenHours
from cluster_dash_server.history.sqlite.sealing import Names, make_room
from cluster_dash_server.history.sqlite.store import Keep, SqliteStore
from cluster_dash_server.store import (
    GPU_METRICS,
    Event,
    EventQuery,
    Figures,
    KeptEvent,
    LastSeen,
    SeriesQuery,
    StoreError,
    UsageQuery,
    UseQuery,
)
from tests.clocks import StillClock

BEGIN = 1_699_999_200.0
KEEP = Keep(
    rows_seconds=7 * DAY, minutes_seconds=90 * DAY, hours_seconds=730 * DAY, users_seconds=400 * DAY, file_bytes=2**30
)
MakeRow = Callable[..., Figures]
MakeFleet = Callable[[int, int, float, float], list[Figures]]
UTIL = SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + HOUR, step_seconds=60)


@pytest.fixture
def moving() -> StillClock:
    return StillClock(BEGIN + HOUR)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sqlite, "COMMIT_SECONDS", 0.01)
    monkeypatch.setattr(sqlite, "CHORE_SECONDS", 60.0)  # a slow machine is to be done with them in one go, too


def test_what_was_written_is_there_again(tmp_path: Path, moving: StillClock, make_row: MakeRow) -> None:
    last = LastSeen(host="gpu01", received_at=BEGIN, skew_seconds=None, packed=b"packed", known=b"known")
    with closing(
        SqliteStore(tmp_path, clock=moving, keep=KEEP, last_seen=lambda hosts: [last] * len([*hosts]))
    ) as store:
        store.append(make_row(at=BEGIN, seq=41))
        store.append(make_row(at=BEGIN + 1, seq=42))
        store.flush()

    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        assert store.last_seen() == [last]
        assert store.knows("gpu01", "boot", 42)
        assert store.durable_seq("gpu01", "boot", 41) == 42
        store.append(make_row(at=BEGIN + 1, seq=42, util=99.0))
        store.append(make_row(at=BEGIN + 2, seq=43))
        store.flush()
        assert store.durable_seq("gpu01", "boot", 41) == 43
        (line,) = store.series(UTIL)
        assert line.max[0] == 50


def test_of_each_host_the_newest_snapshot_takes_the_place_of_the_one_before(
    tmp_path: Path, moving: StillClock, make_row: MakeRow
) -> None:
    def newest(hosts: Iterable[str]) -> list[LastSeen]:
        at, packed, known = moving.now, f"packed {moving.now}".encode(), f"known {moving.now}".encode()
        return [
            LastSeen(host=host, received_at=at, skew_seconds=at - BEGIN, packed=packed, known=known) for host in hosts
        ]

    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP, last_seen=newest)) as store:
        for seq, hosts in enumerate((("gpu01", "gpu02"), ("gpu02",))):
            moving.now = BEGIN + 10 * seq
            for host in hosts:
                store.append(make_row(host, at=moving.now, seq=seq))
            store.flush()

        assert [last for last in store.last_seen() if last.host == "gpu02"] == newest(("gpu02",))
        assert {last.host: last.received_at for last in store.last_seen()} == {"gpu01": BEGIN, "gpu02": BEGIN + 10}


def test_the_file_is_for_its_owner_alone(tmp_path: Path, moving: StillClock) -> None:
    SqliteStore(tmp_path, clock=moving, keep=KEEP).close()

    assert [file.name for file in tmp_path.iterdir()] == ["history.db"]
    assert (tmp_path / "history.db").stat().st_mode & 0o077 == 0


def test_nothing_is_durable_before_it_is_committed(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    goes_on = threading.Event()
    real = SqliteStore._write

    def held(self: SqliteStore, items: object) -> None:
        assert goes_on.wait(60)
        real(self, items)  # type: ignore[arg-type]

    monkeypatch.setattr(SqliteStore, "_write", held)
    store = SqliteStore(tmp_path, clock=moving, keep=KEEP)
    try:
        store.append(make_row(seq=7))
        assert store.knows("gpu01", "boot", 7)
        assert store.durable_seq("gpu01", "boot", None) is None
    finally:
        goes_on.set()
        store.flush()
        assert store.durable_seq("gpu01", "boot", None) == 7
        store.close()


def test_a_full_disk_is_named_and_what_came_meanwhile_is_written_later(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    full = threading.Event()
    real = SqliteStore._write

    def write(self: SqliteStore, items: object) -> None:
        if full.is_set():
            raise sqlite3.OperationalError("database or disk is full")
        real(self, items)  # type: ignore[arg-type]

    monkeypatch.setattr(SqliteStore, "_write", write)
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        store.append(make_row(at=BEGIN, seq=1))
        store.flush()
        full.set()
        store.append(make_row(at=BEGIN + 60, seq=2))
        with pytest.raises(StoreError, match="full"):
            store.flush()
        assert "full" in (store.trouble or "")
        assert store.durable_seq("gpu01", "boot", 1) == 1
        assert len(store.series(UTIL)) == 1  # reading goes on

        full.clear()
        store.flush()
        assert store.trouble is None
        assert store.durable_seq("gpu01", "boot", 1) == 2


def test_while_nothing_can_be_written_the_oldest_is_let_go_and_may_come_again(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(sqlite, "WAITING_ROWS", 3)
    monkeypatch.setattr(SqliteStore, "_write", lambda self, items: 1 / 0 if items else None)
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for seq in range(1, 6):
            store.append(make_row(at=BEGIN + seq, seq=seq))
            with pytest.raises(StoreError):
                store.flush()
        assert [store.knows("gpu01", "boot", seq) for seq in range(1, 6)] == [False, False, True, True, True]
        monkeypatch.undo()
        for seq in range(1, 6):
            store.append(make_row(at=BEGIN + seq, seq=seq))
        store.flush()
        assert store.durable_seq("gpu01", "boot", 1) == 5


def test_a_folder_that_cannot_be_written_is_named_and_tried_again(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(schema, "opened", read_only)
        store = SqliteStore(tmp_path, clock=moving, keep=KEEP)
        assert "Read-only file system" in str(store.trouble)
        store.append(make_row(seq=1))
        with pytest.raises(StoreError, match="Read-only"):
            store.flush()
    with closing(store):
        store.flush()
        assert store.durable_seq("gpu01", "boot", 1) == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    seed: int, tmp_path: Path, moving: StillClock, make_fleet: MakeFleet, make_row: MakeRow
) -> None:
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for each in make_fleet(seed, 2, BEGIN, BEGIN + HOUR):
            store.append(each)
        store.seal_all()
    file = tmp_path / "history.db"
    damaged = bytearray(file.read_bytes())
    rng = random.Random(seed)
    for place in range(0, len(damaged), 4096):  # the heads of all pages
        damaged[place : place + 16] = rng.randbytes(16)
    file.write_bytes(damaged)

    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        store.append(make_row(seq=1))
        store.flush()
        assert store.trouble is None
        assert "damaged" in str(store.loss)
        assert store.durable_seq("gpu01", "boot", 1) == 1
    (aside,) = tmp_path.glob("history.db.bad-*")
    assert aside.read_bytes() == damaged
    assert aside.name in str(store.loss)


def break_once(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[SqliteStore], None]) -> None:
    """Have the next group of rows find that the file is damaged; `meanwhile` is called just before."""
    real = SqliteStore._write
    left = [meanwhile]

    def write(self: SqliteStore, items: Sequence[Any]) -> None:
        if items and left:
            left.pop()(self)
            raise schema.Damaged("a page is never used")
        real(self, items)

    monkeypatch.setattr(SqliteStore, "_write", write)


def test_of_a_file_damaged_while_serving_moles_are_asked_again_and_what_waits_is_written_once(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    rows = [make_row(at=BEGIN + seq, seq=seq) for seq in range(1, 8)]
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for row in rows[:5]:
            store.append(row)
        store.flush()
        break_once(monkeypatch, lambda store: store.append(rows[6]))
        store.append(rows[5])
        store.flush()
        store.flush()
        assert "damaged" in str(store.loss)
        assert [store.knows("gpu01", "boot", seq) for seq in range(1, 8)] == [False] * 5 + [True] * 2
        assert store.durable_seq("gpu01", "boot", 6) == 7
        assert store.durable_seq("gpu01", "boot", 1) is None

        for row in rows:
            store.append(row)
        store.flush()
        assert store.durable_seq("gpu01", "boot", 1) == 7
        with closing(sqlite3.connect(tmp_path / "history.db")) as db:
            assert db.execute("SELECT seq FROM hot ORDER BY seq").fetchall() == [(seq,) for seq in range(1, 8)]


def test_what_a_failed_fsync_lost_is_taken_again(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    rows = [make_row(at=BEGIN + seq, seq=seq) for seq in range(1, 7)]
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for row in rows[:5]:
            store.append(row)
        store.flush()
        with closing(sqlite3.connect(tmp_path / "history.db")) as db, db:
            db.execute("UPDATE boots SET seqs = '[[1, 3]]'")
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "_write", lambda self, items: 1 / 0 if items else None)
            store.append(rows[5])
            with pytest.raises(StoreError):
                store.flush()
        store.flush()
        assert [store.knows("gpu01", "boot", seq) for seq in range(1, 7)] == [True] * 3 + [False] * 2 + [True]
        for row in rows:
            store.append(row)
        store.flush()
        assert store.durable_seq("gpu01", "boot", 1) == 6


class Lying(sqlite3.Connection):
    """Says of the commits that are counted here that they failed; and cannot be read so many times after one."""

    lies = 0
    is_done = True
    blind = 0

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("SELECT 1 FROM done WHERE what = 'group'") and Lying.blind > 0:
            Lying.blind -= 1
            raise sqlite3.OperationalError("disk I/O error")
        lies = sql == "COMMIT" and Lying.lies > 0
        if lies:
            Lying.lies -= 1
        if not lies or Lying.is_done:
            done = super().execute(sql, *parameters)
        if lies:
            raise sqlite3.OperationalError("disk I/O error")
        return done


@pytest.mark.parametrize("blind", [0, 2])
@pytest.mark.parametrize("is_done", [True, False])
def test_what_a_commit_wrote_that_was_said_to_have_failed_is_there_once(
    is_done: bool,
    blind: int,
    tmp_path: Path,
    moving: StillClock,
    make_row: MakeRow,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    quick: None,
) -> None:
    monkeypatch.setattr(Lying, "is_done", is_done)
    ask = UsageQuery(begin=BEGIN, end=BEGIN + HOUR)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Lying))
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for first in range(0, 50, 10):
            with store._wake:  # so that nothing of it is written alone
                for minute in range(first, first + 10):
                    store.append(make_row("known", BEGIN + 60 * minute, seq=minute))
                    store.append(make_row("old", BEGIN + 60 * minute, seq=None))  # nobody can tell it from another
                event = Event(at=BEGIN + first, host="known", gpu=0, kind="note", code=None, text="a note")
                store.record(KeptEvent(event, told=True, source=None))
                if first == 20:
                    Lying.lies, Lying.blind = 1, blind
                with contextlib.suppress(StoreError):  # it may be tried again before anybody looks
                    store.flush()
            if first == 20:
                store.append(make_row("late", BEGIN, seq=1))
        store.flush()
        assert store.trouble is None
        assert caplog.text.count("history cannot be written: disk I/O error") == 1
        assert (store.durable_seq("known", "boot", 0), store.durable_seq("late", "boot", 1)) == (49, 1)
        assert len(store.events(EventQuery(begin=0, end=BEGIN + HOUR))) == 5
        with closing(sqlite3.connect(tmp_path / "history.db")) as db:
            assert db.execute("SELECT COUNT(*), COUNT(DISTINCT at) FROM hot").fetchone() == (101, 50)
        assert store.usage(ask)[0].held_seconds == pytest.approx(2 * 48 * 60)  # the newest are not added up yet
        store.seal_all()
        assert store.usage(ask)[0].held_seconds == pytest.approx(2 * (49 * 60 + 90) + 90)


def test_rows_of_which_adding_up_fails_are_there_once_and_count_when_their_hour_is_over(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(OpenHours, "take", lambda self, rows: 1 / 0)
            for minute in range(10):
                store.append(make_row("gpu01", BEGIN + 60 * minute, seq=minute))
            store.flush()
        assert store.trouble is None
        with closing(sqlite3.connect(tmp_path / "history.db")) as db:
            assert db.execute("SELECT COUNT(*) FROM hot").fetchone() == (10,)
        store.seal_all()
        assert store.usage(UsageQuery(begin=BEGIN, end=BEGIN + HOUR))[0].held_seconds == pytest.approx(9 * 60 + 90)


def test_an_event_that_got_the_number_of_one_taken_away_is_there_once(
    tmp_path: Path, moving: StillClock, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(Lying, "is_done", True)
    old, new = (
        KeptEvent(Event(at=BEGIN, host=host, gpu=0, kind="xid", code=79, text="an Xid"), told=False, source=None)
        for host in ("gpu01", "gpu02")
    )
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Lying))
        store = SqliteStore(tmp_path, clock=moving, keep=KEEP)
    with closing(store):
        store.record(old)
        store.flush()
        with store._wake:
            store.retract(old)
            store.record(new)
            Lying.lies = 1
            with contextlib.suppress(StoreError):
                store.flush()
        store.flush()
        assert [event.host for event in store.events(EventQuery(begin=0, end=BEGIN + HOUR))] == ["gpu02"]


@pytest.mark.parametrize("is_done", [True, False])
def test_of_two_equal_events_one_is_taken_away_once(
    is_done: bool, tmp_path: Path, moving: StillClock, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(Lying, "is_done", is_done)
    note = KeptEvent(
        Event(at=BEGIN, host="gpu01", gpu=0, kind="note", code=None, text="a note"), told=True, source=None
    )
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Lying))
        store = SqliteStore(tmp_path, clock=moving, keep=KEEP)
    with closing(store):
        for _ in range(3):
            store.record(note)
        store.flush()
        with store._wake:
            store.retract(note)
            Lying.lies = 1
            with contextlib.suppress(StoreError):
                store.flush()
        store.flush()
        assert len(store.events(EventQuery(begin=0, end=BEGIN + HOUR))) == 2


def test_hours_of_a_damaged_file_are_not_looked_for_in_the_new_one(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for host in ("gpu01", "gpu02"):
            store.append(make_row(host, at=BEGIN, seq=1))
        store.flush()
        break_once(monkeypatch, lambda store: None)
        store.append(make_row("gpu02", at=BEGIN + 60, seq=2))
        store.flush()
        store.seal_all()
        assert store.trouble is None
        assert [use.host for use in store.uses(UseQuery(begin=BEGIN, end=BEGIN + HOUR))] == ["gpu02"]


def test_an_hour_of_hosts_without_gpus_is_sealed_and_that_of_the_others_counted_once(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, quick: None
) -> None:
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for place in range(10):
            for host in ("cpu01", "cpu02", "gpu01", "cpu03", "cpu04"):
                has_gpus = host == "gpu01"
                store.append(
                    make_row(host, at=BEGIN + 60 * place, seq=place, gpus=has_gpus, user="alice" if has_gpus else None)
                )
        store.flush()
        store.seal_all()
        (usage,) = store.usage(UsageQuery(begin=BEGIN, end=BEGIN + HOUR))
        assert usage.held_seconds == pytest.approx(9 * 60 + 90)
        with closing(sqlite3.connect(tmp_path / "history.db")) as db:
            assert db.execute("SELECT COUNT(*) FROM sealed").fetchone() == (5,)
            assert db.execute("SELECT COUNT(*) FROM hot").fetchone() == (0,)


def test_a_damaged_hour_is_a_gap(tmp_path: Path, moving: StillClock, make_row: MakeRow) -> None:
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for number in range(120):
            store.append(make_row(at=BEGIN - HOUR + 60 * number, seq=number))
        store.seal_all()
    with closing(sqlite3.connect(tmp_path / "history.db")) as db, db:
        (blob,) = db.execute("SELECT rows FROM sealed WHERE hour = ?", (BEGIN,)).fetchone()
        flipped = bytearray(blob)
        flipped[len(blob) // 2] ^= 16
        db.execute("UPDATE sealed SET rows = ? WHERE hour = ?", (flipped, BEGIN))

    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        (line,) = store.series(replace(UTIL, begin=BEGIN - HOUR))
        assert list(line.mean[:60]) == [50] * 60
        assert list(line.mean[60:120]) == [None] * 60


def test_a_file_of_a_newer_release_is_refused_in_words(tmp_path: Path, moving: StillClock) -> None:
    SqliteStore(tmp_path, clock=moving, keep=KEEP).close()
    with closing(sqlite3.connect(tmp_path / "history.db")) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")

    with pytest.raises(StoreError, match="newer release"):
        SqliteStore(tmp_path, clock=moving, keep=KEEP)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, moving: StillClock) -> None:
    with closing(sqlite3.connect(tmp_path / "history.db")) as db, db:
        db.execute("CREATE TABLE theirs (a)")

    with pytest.raises(StoreError, match="is no history of cluster-dash"):
        SqliteStore(tmp_path, clock=moving, keep=KEEP)


def test_an_older_file_is_migrated_after_a_copy(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        store.append(make_row(seq=1))
        store.flush()
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    monkeypatch.setattr(schema, "MIGRATIONS", {schema.VERSION - 1: "CREATE TABLE newer (a);"})

    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        assert store.knows("gpu01", "boot", 1)
    for name, tables in (("history.db", 1), (f"history.db.form-{schema.VERSION - 1}", 0)):
        with closing(sqlite3.connect(tmp_path / name)) as db:
            assert db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'newer'").fetchone() == (tables,)
            assert db.execute("SELECT seqs FROM boots").fetchone() == ("[[1, 1]]",)


def test_rows_become_minutes_and_minutes_end_with_age(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, quick: None
) -> None:
    rows = [make_row(at=BEGIN + 15 * number, seq=number, temperature=60.0) for number in range(960)]
    rows[333] = make_row(at=rows[333].at, seq=333, temperature=95.0)
    ask = SeriesQuery(metric="temperature_c", begin=BEGIN, end=BEGIN + 4 * HOUR, step_seconds=60)
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for each in rows:
            store.append(each)
        store.seal_all()
        before = store.series(ask)

        moving.now = BEGIN + 9 * DAY
        store.prune(moving.now)
        assert store.series(ask) == before
        with closing(sqlite3.connect(tmp_path / "history.db")) as db:
            assert db.execute("SELECT COUNT(*) FROM sealed").fetchone() == (0,)
            assert db.execute("SELECT COUNT(*) FROM minutes").fetchone() == (2,)

        moving.now = BEGIN + 100 * DAY
        store.prune(moving.now)
        (line,) = store.series(replace(ask, step_seconds=3600))
        assert list(line.max) == [60, 95, 60, 60, None]
        (cluster,) = store.series(replace(ask, metric="busy_gpus", by="cluster", step_seconds=3600))
        assert cluster.mean[0] == pytest.approx(1)

        moving.now = BEGIN + 500 * DAY
        store.prune(moving.now)
        assert store.usage(UsageQuery(begin=BEGIN, end=BEGIN + DAY)) == []
        assert store.uses(UseQuery(begin=BEGIN, end=BEGIN + DAY)) == []
        moving.now = BEGIN + 1000 * DAY
        store.prune(moving.now)
        assert store.series(replace(ask, step_seconds=3600)) == []
        (cluster,) = store.series(replace(ask, metric="busy_gpus", by="cluster", step_seconds=3600))
        assert cluster.mean[0] == pytest.approx(1)


HOURS_ALONE = "SELECT COUNT(*) FROM hours WHERE day % 86400"


def test_hours_of_a_day_are_packed_together_when_the_next_begins_and_late_rows_find_theirs(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, quick: None
) -> None:
    midnight = BEGIN // DAY * DAY
    rows = [make_row(at=midnight + 600 * number, seq=number, temperature=60 + number % 17) for number in range(190)]
    late = [
        make_row(at=midnight + begin + 5, seq=1000 + place, temperature=95 - place)
        for place, begin in enumerate((0, 3 * HOUR, 23 * HOUR, DAY, DAY + 3 * HOUR))
    ]
    hourly = SeriesQuery(metric="temperature_c", begin=midnight, end=midnight + 2 * DAY, step_seconds=HOUR)
    moving.now = midnight + 3 * DAY
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store, _reading(tmp_path) as db:
        for first, last, alone in ((0, 100, 16), (100, 144, 23), (144, 150, 0), (150, 190, 7)):
            for each in rows[first:last]:
                store.append(each)
            store.seal_all()
            assert db.execute(HOURS_ALONE).fetchone() == (alone,), last
        for each in late:
            store.append(each)
        store.seal_all()
        (line,) = store.series(hourly)

        moving.now = midnight + 40 * DAY
        store.prune(moving.now)
        (after,) = store.series(hourly)
        assert db.execute("SELECT day FROM hours").fetchall() == [(midnight,), (midnight + DAY,)]
    of_hours = [[each for each in (*rows, *late) if each.at // HOUR == at // HOUR] for at in line.t]
    temperatures = [[each.values[GPU_METRICS.index("temperature_c")] for each in of_hour] for of_hour in of_hours]
    assert list(line.max) == [max(of_hour, default=None) for of_hour in temperatures]
    assert list(line.min) == [min(of_hour, default=None) for of_hour in temperatures]
    assert (after.min, after.max) == (line.min, line.max)
    assert after.mean[:32] == pytest.approx(line.mean[:32])


def test_a_damaged_hour_that_stands_alone_is_a_gap_and_the_others_of_its_day_stay(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, quick: None
) -> None:
    midnight = BEGIN // DAY * DAY
    hourly = SeriesQuery(metric="gpu_util", begin=midnight, end=midnight + 3 * HOUR - 1, step_seconds=HOUR)
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store, _reading(tmp_path) as db:
        for number in range(12):
            store.append(make_row(at=midnight + 900 * number, seq=number))
        store.seal_all()
        (blob,) = db.execute("SELECT slots FROM hours WHERE day = ?", (midnight,)).fetchone()
        damaged = blob[:20] + bytes([blob[20] ^ 1]) + blob[21:]
        db.execute("UPDATE hours SET slots = ? WHERE day = ?", (damaged, midnight))
        assert [value is None for value in store.series(hourly)[0].mean] == [True, False, False]
        store.append(make_row(at=midnight + 2 * HOUR + 5, seq=50, util=98.0))  # late
        store.seal_all()
        assert store.series(hourly)[0].max == [None, 50.0, 98.0]
        for number in range(96, 98):  # the next day
            store.append(make_row(at=midnight + 900 * number, seq=number))
        store.seal_all()
        assert store.series(hourly)[0].max == [None, 50.0, 98.0]
        assert db.execute(HOURS_ALONE).fetchone() == (0,)


def test_room_is_made_of_the_oldest_day_of_hours_and_of_no_other(tmp_path: Path) -> None:
    midnight = int(BEGIN // DAY * DAY)
    with closing(schema.opened(tmp_path / "history.db", wal=False, file_bytes=10**9)) as db:
        kept = [(2, midnight + DAY, 1, b""), (2, midnight + 2 * DAY, 1, b"")]
        alone = (1, midnight + 5 * HOUR, 1, b"")  # of a host that came once
        db.executemany("INSERT INTO hours VALUES (?, ?, ?, ?)", [alone, *kept])
        assert make_room(db, Names(db), midnight + 40 * DAY)
        assert db.execute("SELECT * FROM hours ORDER BY day").fetchall() == kept


def _reading(folder: Path) -> "closing[sqlite3.Connection]":
    return closing(sqlite3.connect(folder / "history.db", isolation_level=None))


def test_a_row_older_than_rows_are_kept_is_settled_and_not_stored(
    tmp_path: Path, moving: StillClock, make_row: MakeRow
) -> None:
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        store.append(make_row(at=BEGIN - 8 * DAY, seq=1))
        store.flush()
        assert store.durable_seq("gpu01", "boot", 1) == 1
        assert store.series(replace(UTIL, begin=BEGIN - 9 * DAY)) == []


@pytest.mark.slow
def test_the_file_stays_near_its_cap_over_three_times_its_retention(
    tmp_path: Path, moving: StillClock, make_fleet: MakeFleet, quick: None
) -> None:
    cap = 5 * 2**19
    keep = replace(KEEP, rows_seconds=2 * DAY, minutes_seconds=3 * DAY, hours_seconds=3 * DAY, file_bytes=cap)
    day = make_fleet(3, 2, BEGIN, BEGIN + DAY)
    largest = 0
    with closing(SqliteStore(tmp_path, clock=moving, keep=keep)) as store:
        for number in range(9):
            for part in range(0, len(day), 1_000):
                for each in day[part : part + 1_000]:
                    moving.now = each.at + number * DAY
                    store.append(replace(each, at=moving.now, seq=(each.seq or 0) + number * 100_000))
                store.seal_all()
                largest = max(largest, (tmp_path / "history.db").stat().st_size)
            store.prune(moving.now)
        assert store.series(SeriesQuery(metric="gpu_util", begin=moving.now - DAY / 4, end=moving.now))
    assert cap / 2 < largest < 1.1 * cap


def test_answers_do_not_change_while_hours_are_sealed_and_sums_stay(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, quick: None
) -> None:
    usage = UsageQuery(begin=BEGIN, end=BEGIN + 3 * HOUR, by=("user", "host"))
    cluster = SeriesQuery(metric="busy_gpus", begin=BEGIN, end=BEGIN + 3 * HOUR, by="cluster", step_seconds=60)
    moving.now = BEGIN + 4 * HOUR
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for number in range(181):
            store.append(make_row(at=BEGIN + 60 * number, seq=number))
        store.flush()
        (opened,), (line,) = store.usage(usage), store.series(cluster)
        store.seal_all()
        (sealed,), (after,) = store.usage(usage), store.series(cluster)
    assert opened.held_seconds == pytest.approx(sealed.held_seconds) == pytest.approx(3 * HOUR)
    assert list(line.mean[:180]) == pytest.approx(list(after.mean[:180])) == [1] * 180


def test_boots_that_a_host_invents_leave_the_file_but_for_the_last(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, quick: None
) -> None:
    store = SqliteStore(tmp_path, clock=moving, keep=KEEP)
    for number in range(3 * MOST_BOOTS):
        row = make_row(at=BEGIN + number, seq=number)
        row.boot_id = f"boot{number}"
        store.append(row)
    store.seal_all()
    store.prune(moving())
    with closing(sqlite3.connect(tmp_path / "history.db")) as db:
        assert db.execute("SELECT COUNT(*) FROM boots").fetchone() == (MOST_BOOTS,)
    assert not store.knows("gpu01", "boot0", 0)
    assert store.durable_seq("gpu01", "boot0", None) is None
    last = 3 * MOST_BOOTS - 1
    assert store.durable_seq("gpu01", f"boot{last}", last) == last
    store.close()

    store = SqliteStore(tmp_path, clock=moving, keep=KEEP)
    assert [store.knows("gpu01", f"boot{number}", number) for number in (0, last)] == [False, True]
    moving.now += KEEP.rows_seconds + HOUR
    store.prune(moving())
    assert not store.knows("gpu01", f"boot{last}", last)
    store.close()


def test_a_backlog_of_the_running_hour_fills_its_gap_before_the_hour_is_over(
    tmp_path: Path, moving: StillClock, make_row: MakeRow, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "START_SECONDS", 0.0)
    monkeypatch.setattr(sqlite, "LATE_SECONDS", 0.0)
    moving.now = BEGIN + 41 * 60 + 30
    ask = SeriesQuery(metric="busy_gpus", begin=BEGIN, end=BEGIN + 37 * 60, by="cluster", step_seconds=60)
    usage = UsageQuery(begin=BEGIN, end=BEGIN + HOUR)
    rows = [make_row(at=BEGIN + 60 * number, seq=number) for number in range(42)]
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for each in (*rows[:10], *rows[-3:], *rows[10:-3]):  # an outage, the first post after it, and its backlog
            store.append(each)
        store.flush()
        (line,), (held,) = store.series(ask), store.usage(usage)
        assert line.mean == [1.0] * 38
        assert held.held_seconds == pytest.approx(40 * 60)

        store.seal_all()
        (line,), (held,) = store.series(ask), store.usage(usage)
        assert line.mean == pytest.approx([1.0] * 38)
        assert held.held_seconds == pytest.approx(42 * 60 + 30)


def test_who_asks_first_need_not_wait_for_numpy(
    tmp_path: Path, moving: StillClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()
    monkeypatch.setattr(sqlite, "START_SECONDS", 0.0)
    monkeypatch.setattr(late_numpy, "load", loaded.set)
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)):
        assert loaded.wait(60)


def test_the_mean_of_a_step_is_never_beside_what_was_least_and_most(
    tmp_path: Path, moving: StillClock, make_row: MakeRow
) -> None:
    rng = random.Random(3)
    with closing(SqliteStore(tmp_path, clock=moving, keep=KEEP)) as store:
        for seq in range(1, 1200):
            store.append(make_row("gpu01", BEGIN + 15.007 * seq, seq=seq, util=rng.uniform(0, 100), interval=15.0))
        store.seal_all()
        moving.now = BEGIN + 12 * HOUR
        ask = SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + 5 * HOUR, by="cluster", step_seconds=60)
        (line,) = store.series(ask)
    told = [each for each in zip(line.min, line.mean, line.max, strict=True) if each[0] is not None]
    assert len(told) > 290
    for least, mean, most in told:
        assert least == mean == most
