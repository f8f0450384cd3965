"""What any book of alerts does; each kind passes the same tests."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster_dash_server.alerts.book import (
    Addressed,
    Alert,
    Book,
    BookError,
    Maintenance,
    NoLongerLeads,
    Silence,
    Transition,
)
from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.notices.notice import Kind, Notice, Outcome

NOW = 1_700_000_000.0


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], SqliteBook]:
    return lambda: SqliteBook(tmp_path / "alerts.db", lambda: NOW)


@pytest.fixture
def book(opened: Callable[[], SqliteBook]) -> Iterator[Book]:
    book = opened()
    yield book
    book.close()


@pytest.fixture
def again(opened: Callable[[], SqliteBook]) -> Iterator[Callable[[], Book]]:
    """Open the same book once more."""
    books: list[SqliteBook] = []

    def open_it() -> Book:
        books.append(opened())
        return books[-1]

    yield open_it
    for each in books:
        each.close()


def alert(name: str = "a1", began_at: float = NOW - 60, ended_at: float | None = None) -> Alert:
    return Alert(
        id=name,
        rule="gpu-too-hot",
        severity="warning",
        title="gpu07 GPU 3 is too hot",
        host="gpu07",
        gpu=3,
        user=None,
        began_at=began_at,
        ended_at=ended_at,
        facts=(("what", "91 °C"), ("next step", "look at its fans")),
        acknowledged=None,
        silenced_until=None,
        labels={"rack": "r1"},
    )


def notice(kind: Kind = "firing", name: str | None = "a1", key: str | None = None) -> Notice:
    return Notice(
        key=key or f"{name}:{kind}",
        kind=kind,
        alert=name,
        rule="gpu-too-hot",
        severity="warning",
        title="gpu07 GPU 3 is too hot",
        facts=(("what", "91 °C"),),
        text="",
        link="https://dash.lab/alerts#a1",
        actions=(("I need it until …", "https://dash.lab/need?x=1"),),
        labels={"host": "gpu07"},
        begun_at=NOW - 60,
        ended_at=None,
    )


def began(*addressed: Addressed, name: str = "a1") -> Transition:
    return Transition(kind="began", alert=alert(name), at=NOW, memory='{"times": 1}', notices=addressed)


def ended(*addressed: Addressed, at: float = NOW + 60, name: str = "a1") -> Transition:
    return Transition(kind="ended", alert=alert(name, ended_at=at), at=at, memory="", notices=addressed)


def to(receiver: str, what: Notice, not_before: float = NOW) -> Addressed:
    return Addressed(receiver, what, not_before)


def waiting(book: Book, now: float = NOW + 1_000) -> list[tuple[str, str]]:
    return [(each.receiver, each.notice.key) for each in book.due(now, 100)]


def test_an_alert_comes_back_as_it_was_kept(book: Book) -> None:
    book.commit([began()])
    assert book.firing() == [alert()]
    assert book.remembered(NOW) == [(alert(), '{"times": 1}')]


def test_an_alert_that_ended_is_history_and_no_longer_fires(book: Book) -> None:
    book.commit([began()])
    book.commit([ended()])
    assert book.firing() == []
    assert [each.ended_at for each in book.history(NOW, NOW + 600, 10)] == [NOW + 60]
    assert book.history(NOW + 61, NOW + 600, 10) == []
    assert book.history(NOW - 600, NOW - 61, 10) == []


def test_history_is_newest_first_and_no_longer_than_asked_for(book: Book) -> None:
    for number in range(4):
        book.commit([Transition(kind="began", alert=alert(f"a{number}", NOW + number), at=NOW, memory="", notices=())])
    assert [each.id for each in book.history(NOW, NOW + 60, 2)] == ["a3", "a2"]


def test_an_alert_that_ended_never_goes_on(book: Book) -> None:
    book.commit([began()])
    book.commit([ended()])
    for late in (ended(to("ops", notice("resolved"))), began(to("ops", notice()))):
        with pytest.raises(NoLongerLeads):
            book.commit([late])
    assert book.firing() == []
    assert waiting(book) == []


def test_an_acknowledgement_outlives_what_evaluation_writes(book: Book) -> None:
    book.commit([began()])
    assert book.acknowledge("a1", "nora", NOW + 5, "a fan is on its way")
    book.commit([Transition(kind="changed", alert=replace(alert(), title="still too hot"), at=NOW + 10, memory="")])
    (found,) = book.firing()
    assert found.title == "still too hot"
    assert found.acknowledged is not None
    assert (found.acknowledged.by, found.acknowledged.note) == ("nora", "a fan is on its way")


def test_the_count_is_of_what_goes_on_and_nobody_has_taken_on_or_silenced(book: Book) -> None:
    for name in ("a1", "a2", "a3", "a4"):
        book.commit([began(name=name)])
    assert book.open_count(NOW) == 4
    book.acknowledge("a1", "nora", NOW, "")
    book.commit([ended(name="a2")])
    silenced = replace(alert("a3"), silenced_until=NOW + 60)
    book.commit([Transition(kind="changed", alert=silenced, at=NOW, memory="")])
    assert (book.open_count(NOW), book.open_count(NOW + 60)) == (1, 2)


def test_only_what_goes_on_can_be_acknowledged(book: Book) -> None:
    assert not book.acknowledge("a1", "nora", NOW, "")
    book.commit([began(), ended()])
    assert not book.acknowledge("a1", "nora", NOW, "")


def test_an_acknowledgement_can_be_taken_back_once(book: Book) -> None:
    book.commit([began()])
    assert not book.withdraw("a1", "nora", NOW)
    book.acknowledge("a1", "nora", NOW, "")
    assert book.withdraw("a1", "nora", NOW + 1)
    assert book.firing()[0].acknowledged is None
    assert not book.withdraw("a1", "nora", NOW + 2)


def test_a_user_is_forgotten_wherever_the_name_stands_and_nobody_else(book: Book) -> None:
    who = (("who", "zoe (job 7), zoey"), ("what", "held by zoe"))
    his = replace(alert(), user="zoe", title="gpu07: zoe holds it", facts=who, labels={"user": "zoe", "rack": "r1"})
    told = replace(notice(), title="zoe holds it", facts=who, labels={"user": "zoe"})
    book.commit(
        [
            Transition(
                kind="began",
                alert=his,
                at=NOW,
                memory='{"user": "zoe", "n": 1}',
                notices=(to("admins", told), to("mailto:zoe@example.org", told)),
            )
        ]
    )
    book.acknowledge("a1", "zoe", NOW, "zoe and I")
    book.silence(Silence(id=None, filter="user:zoe", by="zoe", reason="zoe asked", begins_at=NOW, ends_at=NOW + 60))
    assert book.forget_user("zoe") > 0
    (found,) = book.firing()
    assert (found.title, found.user) == ("gpu07: unknown holds it", "unknown")
    assert dict(found.facts)["who"] == "unknown (job 7), zoey"
    assert book.remembered(0)[0].memory == '{"user": "unknown", "n": 1}'
    (row,) = book.due(NOW, 10)  # what waited for them is not sent to somebody else
    assert (row.receiver, row.notice.title) == ("admins", "unknown holds it")
    assert book.silences(NOW)[0].filter == "user:unknown"
    assert book.forget_user("zoe") == 0


def test_a_user_who_was_forgotten_is_in_no_byte_of_the_file(opened: Callable[[], SqliteBook]) -> None:
    book = opened()
    book.commit([Transition(kind="began", alert=replace(alert(), title="zoe holds it"), at=NOW, memory="zoe")])
    book.acknowledge("a1", "zoe", NOW, "zoe and I")
    assert book.forget_user("zoe") > 0
    path = book.path
    book.close()
    for file in path.parent.glob(f"{path.name}*"):
        assert b"zoe" not in file.read_bytes(), file


def test_a_notice_waits_until_it_was_sent(book: Book) -> None:
    book.commit([began(to("ops", notice()))])
    (found,) = book.due(NOW, 10)
    assert (found.receiver, found.notice, found.made_at, found.tries) == ("ops", notice(), NOW, 0)
    book.sent(found.row, NOW + 1)
    assert book.due(NOW + 1_000, 10) == []


def test_what_waits_survives_the_end_of_the_process(book: Book, again: Callable[[], Book]) -> None:
    book.commit([began(to("ops", notice()))])
    other = again()  # the first one was never closed, as after kill -9
    assert waiting(other) == [("ops", "a1:firing")]
    assert other.firing() == [alert()]


def test_a_transition_that_cannot_be_kept_leaves_nothing(book: Book) -> None:
    wrong = replace(notice(key="a2:firing", name="a2"), labels={"host": {1, 2}})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        book.commit([began(to("ops", notice())), began(to("ops", wrong), name="a2")])
    assert book.firing() == []
    assert waiting(book) == []


def test_the_same_notice_is_put_once(book: Book) -> None:
    book.commit([began(to("ops", notice())), began(to("ops", notice()))])
    book.put([("ops", notice()), ("nora", notice())], NOW)
    assert waiting(book) == [("ops", "a1:firing"), ("nora", "a1:firing")]


def test_a_beginning_that_still_waits_gives_way_to_its_end(book: Book) -> None:
    book.commit([began(to("ops", notice()), to("chat", notice()))])
    (ops,) = [each for each in book.due(NOW, 10) if each.receiver == "ops"]
    book.sent(ops.row, NOW + 1)
    book.commit([ended(to("ops", notice("resolved")), to("chat", notice("resolved")))])
    assert waiting(book) == [("ops", "a1:resolved"), ("chat", "a1:resolved")]


def test_a_beginning_that_was_sent_meanwhile_is_not_sent_again(book: Book) -> None:
    book.commit([began(to("ops", notice()))])
    (in_flight,) = book.due(NOW, 10)
    book.commit([ended(to("ops", notice("resolved")))])
    book.sent(in_flight.row, NOW + 61)
    assert waiting(book) == [("ops", "a1:resolved")]


def test_what_was_not_to_be_told_yet_is_not_told_to_have_ended(book: Book) -> None:
    book.commit([began(to("owner", notice()), to("ops", notice(), NOW + 3_600))])
    assert waiting(book, NOW + 3_599) == [("owner", "a1:firing")]
    book.commit([ended(to("owner", notice("resolved")), to("ops", notice("resolved")))])
    assert waiting(book, NOW + 7_200) == [("owner", "a1:resolved")]


def test_an_end_is_told_only_to_who_was_told_of_the_beginning(book: Book) -> None:
    book.commit([began(to("ops", notice()))])
    book.commit([ended(to("ops", notice("resolved")), to("new", notice("resolved")))])
    assert waiting(book) == [("ops", "a1:resolved")]


def test_what_was_not_tried_yet_can_be_taken_back(book: Book) -> None:
    book.commit([began(to("ops", notice()), to("chat", notice()))])
    (ops, _) = book.due(NOW, 10)
    book.failed(ops.row, NOW, "refused", NOW + 60)
    book.commit([Transition(kind="changed", alert=alert(), at=NOW + 5, memory="", takes_back=True)])
    assert waiting(book) == [("ops", "a1:firing")]


def test_a_try_that_failed_waits_for_the_next(book: Book) -> None:
    book.commit([began(to("ops", notice()))])
    (found,) = book.due(NOW, 10)
    book.failed(found.row, NOW, "connection refused", NOW + 60)
    assert book.due(NOW + 59, 10) == []
    assert [each.tries for each in book.due(NOW + 60, 10)] == [1]


def test_a_receiver_fails_from_its_first_failure_until_it_takes_something(book: Book) -> None:
    book.commit([began(to("ops", notice()))])
    (found,) = book.due(NOW, 10)
    book.failed(found.row, NOW, "connection refused", NOW + 60)
    book.failed(found.row, NOW + 60, "time-out", NOW + 120)
    assert book.failing() == {"ops": (NOW, "time-out")}
    book.sent(found.row, NOW + 120)
    assert book.failing() == {}


def test_what_became_of_a_try_is_known(book: Book) -> None:
    book.put([("ops", notice(key="k1"))], NOW)
    (found,) = book.due(NOW, 10)
    assert book.outcome("ops", "k1") is None
    assert book.outcome("ops", "of nobody") is None
    book.postponed([found.row], NOW + 1)
    assert book.outcome("ops", "k1") is None
    book.failed(found.row, NOW, "connection refused", NOW + 60)
    assert book.outcome("ops", "k1") == Outcome("connection refused")
    book.sent(found.row, NOW + 60)
    assert book.outcome("ops", "k1") == Outcome(None)


def test_what_waits_is_claimed_by_who_sends_it(book: Book) -> None:
    book.commit([began(to("ops", notice()))])
    (found,) = book.due(NOW, 10)
    assert book.claim(found, 60)
    assert book.claim(found, 60)  # again before each try
    book.release("ops")


def test_what_is_given_up_waits_no_more(book: Book) -> None:
    book.commit([began(to("ops", notice()))])
    (found,) = book.due(NOW, 10)
    book.failed(found.row, NOW, "unknown address", None)
    assert book.due(NOW + 1_000, 10) == []
    assert book.failing() == {"ops": (NOW, "unknown address")}


def test_who_gave_a_wrong_address_for_what_is_free_is_no_receiver_that_fails(book: Book) -> None:
    free = notice("free", None, "free:1")
    receivers = ("mailto:ann@example.org", "ops")
    book.put([(receiver, free) for receiver in receivers], NOW)
    for each in book.due(NOW, 10):
        book.failed(each.row, NOW, "no such mailbox", None)
    assert book.failing() == {"ops": (NOW, "no such mailbox")}
    book.put([("mailto:bob@example.org", free)], NOW)
    (bob,) = book.due(NOW, 10)
    book.failed(bob.row, NOW, "the mail server does not answer", NOW + 60)
    assert "mailto:bob@example.org" in book.failing()  # that is no matter of his address


def test_the_oldest_wait_first_and_no_more_than_asked_for(book: Book) -> None:
    book.put([("ops", notice(key=f"k{number}")) for number in range(5)], NOW)
    assert [each.notice.key for each in book.due(NOW, 3)] == ["k0", "k1", "k2"]


def test_a_silence_holds_until_its_end(book: Book) -> None:
    silence = Silence(
        id=None, filter="host:gpu07 rule:gpu-too-hot", by="nora", reason="fan", begins_at=NOW, ends_at=NOW + 60
    )
    number = book.silence(silence)
    assert book.silences(NOW) == [replace(silence, id=number)]
    assert book.silences(NOW + 60) == []
    assert book.end_silence(number, "nora", NOW + 10)
    assert book.silences(NOW + 10) == []
    assert not book.end_silence(number, "nora", NOW + 11)


def test_maintenance_of_the_same_hosts_takes_the_place_of_what_was_said_before(book: Book) -> None:
    first = Maintenance(hosts="gpu[01-04]", by="nora", reason="", begins_at=NOW, ends_at=NOW + 600)
    second = replace(first, begins_at=NOW + 10, ends_at=NOW + 60, reason="disks")
    book.maintain(first)
    book.maintain(second)
    assert book.maintenance(NOW + 20) == [second]
    assert book.maintenance(NOW + 60) == []
    assert book.end_maintenance("gpu[01-04]", "nora", NOW + 20)
    assert book.maintenance(NOW + 20) == []
    assert not book.end_maintenance("gpu[01-04]", "nora", NOW + 30)


def test_a_file_of_a_newer_release_is_refused_in_words(book: Book, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "alerts.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(BookError, match="newer release"):
        SqliteBook(tmp_path / "alerts.db", lambda: NOW)


def test_a_file_of_somebody_else_is_refused_in_words(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "alerts.db") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(BookError, match="no file of alerts"):
        SqliteBook(tmp_path / "alerts.db", lambda: NOW)


def test_what_ended_is_kept_for_as_long_as_it_is_said(tmp_path: Path) -> None:
    now = [NOW]
    book = SqliteBook(tmp_path / "alerts.db", lambda: now[0], kept_seconds=86_400.0)
    book.commit([began(to("ops", notice())), began(name="a2")])
    (row,) = book.due(NOW, 10)
    book.sent(row.row, NOW)
    book.commit([ended(at=NOW + 60)])
    now[0] = NOW + 86_000
    book.commit([])
    assert [each.id for each in book.history(0, now[0], 10)] == ["a1", "a2"]
    now[0] = NOW + 90_000
    book.commit([])
    assert [each.id for each in book.history(0, now[0], 10)] == ["a2"]
    book.put([("ops", notice())], now[0])  # its key is forgotten, too
    assert waiting(book, now[0]) == [("ops", "a1:firing")]
    book.close()
