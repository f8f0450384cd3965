"""A user is forgotten: the name is nowhere in the file afterwards, and what hosts and models did stays."""

import contextlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cluster_dash_server.history.chunks import Rows, unpack_stretches
from cluster_dash_server.history.rollups import DAY, HOUR
from cluster_dash_server.history.sqlite import schema, unnaming
from cluster_dash_server.history.sqlite import store as sqlite
from cluster_dash_server.history.sqlite.sealing import Names
from cluster_dash_server.history.sqlite.store import FILE, Keep, SqliteStore
from cluster_dash_server.store import (
    Event,
    EventQuery,
    Figures,
    KeptEvent,
    LastSeen,
    StoreError,
    Unnamed,
    UsageQuery,
    UseQuery,
)

BEGIN = 1_699_999_200.0
END = BEGIN + 4 * HOUR
KEEP = Keep(
    rows_seconds=7 * DAY, minutes_seconds=90 * DAY, hours_seconds=730 * DAY, users_seconds=400 * DAY, file_bytes=2**30
)
WHO = "zebulon7"
MakeRow = Callable[..., Figures]


def strip(last: LastSeen) -> LastSeen:
    gone = last.packed.replace(WHO.encode(), b"unknown")
    return last if gone == last.packed else replace(last, packed=gone)


def last_of(hosts: object) -> list[LastSeen]:
    return [
        LastSeen(host=host, received_at=BEGIN, skew_seconds=None, packed=WHO.encode() * 2_000, known=b"[]")
        for host in ("gpu01", "gpu02")
    ]


@pytest.fixture
def folder(tmp_path: Path, make_row: MakeRow) -> Path:
    """Three sealed hours and one of rows of two hosts: the name is in all that can hold one."""
    with closing(SqliteStore(tmp_path, clock=lambda: END, keep=KEEP, last_seen=last_of)) as store:
        for hour in range(4):
            for minute in range(60):
                for host in ("gpu01", "gpu02"):
                    user = WHO if host == "gpu01" and minute < 40 else "alice"
                    row = make_row(host, BEGIN + hour * HOUR + minute * 60, seq=60 * hour + minute, gpus=2, user=user)
                    store.append(row)
            store.flush()
            if hour == 2:
                store.seal_all()
        for text in (f"left by {WHO}: nvidia-smi", f"{WHO}2 is somebody else"):
            event = Event(at=BEGIN, host="gpu01", gpu=0, kind="note", code=WHO, text=text)
            store.record(KeptEvent(event, told=True, source=None))
        store.flush()
    return tmp_path


def forgotten(store: SqliteStore) -> Unnamed:
    store.forget_user(WHO, strip)
    return finished(store)


def finished(store: SqliteStore) -> Unnamed:
    for _ in range(1_000):
        store.flush()
        told = store.unnamed(WHO)
        if told is not None and not told.hosts_left:
            return told
    pytest.fail("it does not come to an end")


def names_in(folder: Path) -> set[str]:
    """Return everybody named in what is compressed."""
    with closing(sqlite3.connect(folder / FILE)) as db:
        names = Names(db)
        found = {
            holder.user
            for layout, blob in db.execute("SELECT layout, rows FROM sealed")
            for row in Rows(blob, names.layout_of(layout)).figures("")
            for holder in row.holders
        }
        return found | {
            each.user for (held,) in db.execute("SELECT stretches FROM uses") for each in unpack_stretches(held)
        }


def test_the_name_is_nowhere_in_the_file_nor_its_journal_and_sums_of_hosts_and_models_stay(folder: Path) -> None:
    assert any(WHO.encode() in file.read_bytes() for file in folder.glob(f"{FILE}*"))
    assert names_in(folder) == {WHO, "alice"}
    of_hosts = UsageQuery(begin=BEGIN, end=END, by=("host", "model", "hour"))
    of_users = UsageQuery(begin=BEGIN, end=END, by=("user",))
    with closing(SqliteStore(folder, clock=lambda: END, keep=KEEP)) as store:
        store.seal_all()  # what was open when the file was left, too
        before, alice = store.usage(of_hosts), [each for each in store.usage(of_users) if each.user == "alice"]
        told = forgotten(store)
        assert (told.host_hours, told.events, told.snapshots) == (4, 2, 2)
        for file in folder.glob(f"{FILE}*"):
            assert WHO.encode() not in file.read_bytes().replace(f"{WHO}2".encode(), b""), file.name
        assert store.usage(of_hosts) == before
        assert store.usage(of_users) == alice
        assert {use.user for use in store.uses(UseQuery(begin=BEGIN, end=END))} == {"alice"}
        assert {holder.user for row in store.moment(END - 60) for holder in row.holders} == {"alice"}
        events = store.events(EventQuery(begin=0, end=END))
        assert sorted((each.code, each.text) for each in events) == [
            ("unknown", "left by unknown: nvidia-smi"),
            ("unknown", f"{WHO}2 is somebody else"),
        ]
    assert names_in(folder) == {"alice"}


def test_what_is_sealed_afterwards_gives_the_same_sums_without_the_name(folder: Path) -> None:
    with closing(SqliteStore(folder, clock=lambda: END, keep=KEEP)) as store:
        forgotten(store)
        store.seal_all()
        total = sum(each.held_seconds for each in store.usage(UsageQuery(begin=BEGIN, end=END, by=("host",))))
        assert total == pytest.approx(4 * 2 * 2 * HOUR, rel=0.02)
        assert [each.user for each in store.usage(UsageQuery(begin=BEGIN, end=END))] == ["alice"]
    assert names_in(folder) == {"alice"}


def test_rows_that_came_within_the_hour_are_counted_on_without_the_name(tmp_path: Path, make_row: MakeRow) -> None:
    with closing(SqliteStore(tmp_path, clock=lambda: BEGIN + 600, keep=KEEP)) as store:
        for minute in range(10):
            store.append(make_row(at=BEGIN + 60 * minute, seq=minute, user=WHO))
        forgotten(store)
        for minute in range(10, 13):  # those of two minutes are added up when the next ones begin
            store.append(make_row(at=BEGIN + 60 * minute, seq=minute, user="alice"))
        store.flush()
        ask = UsageQuery(begin=BEGIN, end=BEGIN + HOUR)
        assert [each.user for each in store.usage(ask)] == ["alice"]
        assert store.usage(replace(ask, by=("host",)))[0].held_seconds == pytest.approx(720)
        store.seal_all()
        assert [each.user for each in store.usage(ask)] == ["alice"]


def test_a_restart_goes_on_where_forgetting_was_not_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise StoreError("no more of it now")

    with monkeypatch.context() as patch:
        patch.setattr(unnaming, "_sealed", broken)
        with closing(SqliteStore(folder, clock=lambda: END, keep=KEEP)) as store:
            store.forget_user(WHO, strip)
            with pytest.raises(StoreError, match="no more of it now"):
                finished(store)
    assert names_in(folder) == {WHO, "alice"}
    with closing(SqliteStore(folder, clock=lambda: END, keep=KEEP)) as store:
        monkeypatch.setattr(sqlite, "CHORE_SECONDS", 0.0)  # an hour of a host at a time
        store._chores_from = 0.0
        finished(store)
    assert names_in(folder) == {"alice"}
    assert all(
        WHO.encode() not in file.read_bytes().replace(f"{WHO}2".encode(), b"") for file in folder.glob(f"{FILE}*")
    )


@pytest.mark.parametrize("is_damaged", [True, False])
def test_who_waits_for_it_is_told_where_the_wish_went_with_what_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    monkeypatch.setattr(sqlite, "RETRY_SECONDS", 0.01)
    real = SqliteStore._unname

    def fails_once(self: SqliteStore, until: float) -> bool:
        monkeypatch.setattr(SqliteStore, "_unname", real)
        if is_damaged:
            raise schema.Damaged("a page is never used")
        monkeypatch.setattr(Names, "forget_holdings", out_of_pages)  # the wish is out of the file by then
        return real(self, until)

    def out_of_pages(_: Names) -> None:
        monkeypatch.undo()
        raise sqlite3.OperationalError("disk I/O error")

    with closing(SqliteStore(folder, clock=lambda: END, keep=KEEP)) as store:
        monkeypatch.setattr(SqliteStore, "_unname", fails_once)
        store.forget_user(WHO, strip)
        with contextlib.suppress(StoreError):  # why it failed, as long as it was not tried again
            store.flush()
            store.flush()
        why = r"damaged \(a page .* is now history.db.bad-\S+; .*" if is_damaged else "writing to it failed"
        with pytest.raises(StoreError, match=f"{why}, before the name was out of all that the file held"):
            finished(store)
        forgotten(store)
    (file,) = folder.glob(FILE)
    assert WHO.encode() not in file.read_bytes().replace(f"{WHO}2".encode(), b"")
