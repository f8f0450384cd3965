"""History behind an engine that needs no engine to be wrong: what is remembered, and what a fault of ours leaves."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from cluster_dash_server.history.boots import MOST_BOOTS, Boots
from cluster_dash_server.history.remote import sending
from cluster_dash_server.history.remote import store as remote
from cluster_dash_server.history.remote.engine import Access, Answer
from cluster_dash_server.history.settled import Identity, OwnSettled
from cluster_dash_server.store import Figures, StoreError

BEGIN = 1_699_999_200.0
MakeRow = Callable[..., Figures]
ACCESS = Access(write_url="http://127.0.0.1:9/api/v1/write", read_url="http://127.0.0.1:9")


class Engine:
    """A connection to an engine that takes everything."""

    def __init__(self, url: str, access: Access) -> None:
        self.count = 1
        self.taken = 0

    def post(self, path: str, body: bytes, headers: object) -> Answer:
        self.taken += 1
        return Answer(204, b"", True, None)

    def close(self) -> None: ...


class Ledger:
    """What replicas share beside it: it writes at once."""

    def __init__(self) -> None:
        self.trouble = self.refusal = None
        self.snapshots = Boots()
        self.settled: Callable[[list[Identity]], None] = lambda settled: None

    def append(self, figures: Figures) -> None:
        identity = Identity(figures.host, figures.boot_id or "", figures.seq or 0)
        if self.snapshots.take(*identity, figures.at):
            self.snapshots.write(*identity, figures.at)
            self.settled([identity])

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        return self.snapshots.knows(host, boot_id, seq)

    def settled_of(self, snapshots: Iterable[Identity]) -> list[Identity]:
        return [each for each in snapshots if self.snapshots.has_written(*each)]

    def let_go(self, snapshots: Iterable[Identity]) -> None:
        self.snapshots.let_go(snapshots)

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[remote.RemoteStore]:
    monkeypatch.setattr(sending, "Connection", Engine)
    pace = remote.Pace(flush_seconds=3600, settle_seconds=0, window_seconds=None)
    store = remote.RemoteStore(ACCESS, "lab", pace, lambda: BEGIN + 60, sees_all=False)
    yield store
    store.close()


def put(store: Any, *rows: Figures) -> None:
    for row in rows:
        store.append(row)
    store.flush()


def test_of_a_host_that_invents_boots_the_last_are_remembered(store: remote.RemoteStore, make_row: MakeRow) -> None:
    rows = [make_row(seq=number) for number in range(3 * MOST_BOOTS)]
    for number, row in enumerate(rows):
        row.boot_id = f"boot{number}"
    put(store, *rows)
    known = [number for number in range(len(rows)) if store.knows("gpu01", f"boot{number}", number)]
    assert known == list(range(2 * MOST_BOOTS, 3 * MOST_BOOTS))
    assert store.durable_seq("gpu01", "boot0", None) is None
    assert store.durable_seq("gpu01", f"boot{known[-1]}", known[-1]) == known[-1]


def test_a_replica_that_takes_each_other_post_of_a_host_remembers_no_gap_between_them(
    store: remote.RemoteStore, make_row: MakeRow
) -> None:
    """Each gap would be a range more, for ever: at ten thousand hosts some gigabytes a day."""
    ledger, settled = Ledger(), OwnSettled()
    history = remote.shared(store, ledger, settled)  # type: ignore[arg-type]
    for seq in range(0, 100, 2):
        put(history, make_row(at=BEGIN + seq, seq=seq))
        settled.add([Identity("gpu01", "boot", seq + 1)])  # as another replica tells
    assert [each.written("gpu01", "boot").ranges() for each in (ledger.snapshots, store._snapshots)] == [[], []]
    assert history.durable_seq("gpu01", "boot", 0) == 99
    assert [history.knows("gpu01", "boot", seq) for seq in (0, 1, 98, 99, 100)] == [True, True, True, True, False]


def test_what_one_of_both_lacks_is_not_known(store: remote.RemoteStore, make_row: MakeRow) -> None:
    ledger = Ledger()
    history = remote.shared(store, ledger, OwnSettled())  # type: ignore[arg-type]
    ledger.append(make_row(seq=5))
    assert not history.knows("gpu01", "boot", 5)
    put(history, make_row(seq=5))
    assert (history.knows("gpu01", "boot", 5), history.durable_seq("gpu01", "boot", 5)) == (True, 5)


def test_what_a_fault_cut_short_is_taken_when_it_comes_again(
    store: remote.RemoteStore, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as during:
        during.setattr(sending, "packed", lambda body: 1 / 0)
        with pytest.raises(StoreError, match="a fault of this server"):
            put(store, make_row(seq=1))
        assert "a fault" in str(store.trouble)
        assert "ZeroDivisionError" in caplog.text
    assert not store.knows("gpu01", "boot", 1)
    put(store, make_row(seq=1), make_row(seq=2))
    assert (store.trouble, store.durable_seq("gpu01", "boot", 1)) == (None, 2)


def test_room_that_what_was_cut_short_took_is_there_again(
    store: remote.RemoteStore, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MOST_BYTES", sending.Snapshot.of(make_row()).size)
    with monkeypatch.context() as during:
        during.setattr(sending, "packed", lambda body: 1 / 0)
        with pytest.raises(StoreError):
            put(store, make_row(seq=1))
    put(store, make_row(seq=2))
    assert store.durable_seq("gpu01", "boot", 2) == 2


def test_a_row_that_cannot_be_added_up_costs_the_minute_that_row(
    store: remote.RemoteStore, make_row: MakeRow, caplog: pytest.LogCaptureFixture
) -> None:
    odd = make_row("odd", seq=1)
    odd.at = "now"  # type: ignore[assignment]
    store.add_up([odd, make_row("good")])
    store._record(store._of_all, also_late=False)
    assert "odd: a fault in adding up" in caplog.text
    assert store._recorder.newest is None
