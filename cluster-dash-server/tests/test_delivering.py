"""Delivery: what waits arrives, once, in its time, and no receiver waits for another."""

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from cluster_dash_server.alerts.book import Addressed, Alert, BookError, Transition
from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.notices.delivering import KEPT_SECONDS, MOST_SECONDS, Delivery, quiet_until
from cluster_dash_server.notices.notice import Kind, Notice, Notifier, NotifyError, Severity
from cluster_dash_server.notices.receivers import Receiver
from tests.clocks import StillClock

BERLIN = ZoneInfo("Europe/Berlin")


class Told:
    """A receiver that keeps what it is told, and raises what it is given to raise."""

    def __init__(self, clock: StillClock) -> None:
        self._clock = clock
        self.keys: list[str] = []
        self.at: list[float] = []
        self.tries = 0
        self.trouble: Exception | None = None

    def send(self, notice: Notice) -> None:
        self.tries += 1
        if self.trouble is not None:
            raise self.trouble
        self.keys.append(notice.key)
        self.at.append(self._clock())


def notice(key: str, kind: Kind = "firing", alert: str | None = None, severity: Severity = "warning") -> Notice:
    return Notice(
        key=key,
        kind=kind,
        alert=alert,
        rule="gpu_lost",
        severity=severity,
        title=f"gpu01: {key}",
        facts=(),
        text="",
        link=None,
        actions=(),
        labels={},
        begun_at=1_700_000_000.0,
        ended_at=None,
    )


def alert(ended_at: float | None = None) -> Alert:
    return Alert(
        id="a",
        rule="gpu_lost",
        severity="warning",
        title="gpu01: lost",
        host="gpu01",
        gpu=1,
        user=None,
        began_at=1_700_000_000.0,
        ended_at=ended_at,
        facts=(),
        acknowledged=None,
        silenced_until=None,
        labels={},
    )


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def book(tmp_path: Path, clock: StillClock) -> Iterator[SqliteBook]:
    book = SqliteBook(tmp_path / "alerts.db", clock)
    yield book
    book.close()


Make = Callable[..., Delivery]


@pytest.fixture
def make(book: SqliteBook, clock: StillClock) -> Make:
    def delivery(**notifiers: Notifier) -> Delivery:
        return Delivery(book, notifiers, zone=BERLIN, clock=clock, begin=lambda work: work(), jitter=lambda: 0.5)

    return delivery


def let_pass(delivery: Delivery, clock: StillClock, seconds: float, step: float = 5.0) -> None:
    until = clock.now + seconds
    while clock.now < until:
        clock.now += step
        delivery.round()


def test_each_notice_goes_to_its_receiver_once(book: SqliteBook, clock: StillClock, make: Make) -> None:
    mail, chat = Told(clock), Told(clock)
    book.put([("mail", notice("1")), ("chat", notice("1")), ("mail", notice("2"))], clock.now)
    book.put([("mail", notice("1"))], clock.now)
    let_pass(make(mail=mail, chat=chat), clock, 60)
    assert (mail.keys, chat.keys) == (["1", "2"], ["1"])


def test_a_clock_that_is_set_back_lets_nothing_wait_for_longer(book: SqliteBook, clock: StillClock, make: Make) -> None:
    mail = Told(clock)
    mail.trouble = NotifyError("connection refused")
    delivery = make(mail=mail)
    book.put([("mail", notice("1"))], clock.now)
    let_pass(delivery, clock, 60)
    late = Addressed("mail", notice("2"), clock.now + 600)
    book.commit([Transition(kind="began", alert=alert(), at=clock.now, memory="", notices=(late,))])
    mail.trouble = None
    clock.now -= 2 * 86_400
    delivery.round()
    began = clock.now
    let_pass(delivery, clock, 120)  # no rest was longer than that yet
    assert mail.keys == ["1"]
    let_pass(delivery, clock, 480 + 30)
    assert mail.keys == ["1", "2"]
    assert mail.at[1] - began == pytest.approx(600, abs=15)


def test_a_receiver_that_is_off_for_six_hours_gets_all_once_and_the_others_at_once(
    book: SqliteBook, clock: StillClock, make: Make
) -> None:
    mail, chat = Told(clock), Told(clock)
    mail.trouble = NotifyError("mail:587: Connection refused")
    delivery = make(mail=mail, chat=chat)
    for number in range(36):
        book.put([("mail", notice(str(number))), ("chat", notice(str(number)))], clock.now)
        let_pass(delivery, clock, 600)
        assert len(chat.keys) == number + 1
    assert book.failing()["mail"][1] == "mail:587: Connection refused"
    assert "chat" not in book.failing()
    assert mail.tries < 6 * 3600 / MOST_SECONDS + 10, "it rests between two tries"
    mail.trouble = None
    let_pass(delivery, clock, 1.5 * MOST_SECONDS + 60)
    assert sorted(mail.keys, key=int) == chat.keys == [str(number) for number in range(36)]
    assert book.failing() == {}


def test_an_alert_that_begins_and_ends_while_its_receiver_is_off_is_told_as_its_end(
    book: SqliteBook, clock: StillClock, make: Make
) -> None:
    mail = Told(clock)
    mail.trouble = NotifyError("off")
    delivery = make(mail=mail)
    book.put([("mail", notice("earlier"))], clock.now)
    let_pass(delivery, clock, 10)  # the receiver rests from here on: what follows is never tried
    began = Addressed("mail", notice("a firing", alert="a"), clock.now)
    book.commit([Transition(kind="began", alert=alert(), at=clock.now, memory="", notices=(began,))])
    let_pass(delivery, clock, 3600)
    ended = Addressed("mail", notice("a resolved", "resolved", "a"), clock.now)
    book.commit([Transition(kind="ended", alert=alert(clock.now), at=clock.now, memory="", notices=(ended,))])
    mail.trouble = None
    let_pass(delivery, clock, 1800)
    assert sorted(mail.keys) == ["a resolved", "earlier"]


def test_what_was_tried_for_a_day_is_given_up(book: SqliteBook, clock: StillClock, make: Make) -> None:
    mail = Told(clock)
    mail.trouble = NotifyError("off")
    delivery = make(mail=mail)
    book.put([("mail", notice("1")), ("mail", notice("2"))], clock.now)
    let_pass(delivery, clock, KEPT_SECONDS + 2 * MOST_SECONDS, step=60)
    mail.trouble = None
    book.put([("mail", notice("3"))], clock.now)
    let_pass(delivery, clock, KEPT_SECONDS, step=60)
    assert mail.keys == ["3"]


def test_what_was_free_is_not_told_hours_later(book: SqliteBook, clock: StillClock, make: Make) -> None:
    mail = Told(clock)
    mail.trouble = NotifyError("off")
    delivery = make(mail=mail)
    for kind in ("free", "digest", "firing"):
        book.put([("mail", notice(kind, kind))], clock.now)
    let_pass(delivery, clock, 2 * 3600)
    mail.trouble = None
    let_pass(delivery, clock, 2 * MOST_SECONDS)
    assert sorted(mail.keys) == ["digest", "firing"]
    book.put([("mail", notice("this morning's", "digest"))], clock.now)
    clock.now += 7 * 3600  # the server was stopped meanwhile
    let_pass(make(mail=mail), clock, 60)
    assert sorted(mail.keys) == ["digest", "firing"]


def test_a_notice_that_its_receiver_will_never_take_is_given_up_and_the_next_goes_on(
    book: SqliteBook, clock: StillClock, make: Make
) -> None:
    class Picky(Told):
        def send(self, notice: Notice) -> None:
            if notice.key == "1":
                raise NotifyError("answers 422", is_final=True)
            super().send(notice)

    picky = Picky(clock)
    book.put([("chat", notice("1")), ("chat", notice("2"))], clock.now)
    make(chat=picky).round()
    assert picky.keys == ["2"]
    assert book.due(clock.now + KEPT_SECONDS, 10) == []


def test_a_receiver_is_left_alone_for_as_long_as_it_asks(book: SqliteBook, clock: StillClock, make: Make) -> None:
    chat = Told(clock)
    chat.trouble = NotifyError("answers 429", retry_after_seconds=3600)
    delivery = make(chat=chat)
    book.put([("chat", notice("1")), ("chat", notice("2"))], clock.now)
    let_pass(delivery, clock, 3590)
    assert chat.tries == 1
    chat.trouble = None
    let_pass(delivery, clock, 1900)
    assert sorted(chat.keys) == ["1", "2"]


def test_more_messages_than_a_receiver_gets_in_an_hour_wait_their_turn(book: SqliteBook, clock: StillClock) -> None:
    told = Told(clock)
    receiver = Receiver(name="sms", kind="webhook", per_hour=6)
    delivery = Delivery(book, {"sms": told}, (receiver,), zone=BERLIN, clock=clock, begin=lambda work: work())
    began_at = clock.now
    book.put([("sms", notice(str(number))) for number in range(18)], clock.now)
    let_pass(delivery, clock, 600)
    assert 6 <= len(told.keys) <= 7
    let_pass(delivery, clock, 2 * 3600)
    assert len(told.keys) == len(set(told.keys)) == 18
    for hour in (0, 1, 2):
        within = [at for at in told.at if hour * 3600 <= at - began_at < (hour + 1) * 3600]
        assert len(within) <= 12, "a burst, and then one every ten minutes"


@pytest.mark.parametrize(
    ("hours", "now", "until"),
    [
        ("22:00-07:00", "2026-11-22 21:59", None),
        ("22:00-07:00", "2026-11-22 22:00", "2026-11-23 07:00"),
        ("22:00-07:00", "2026-11-23 06:59", "2026-11-23 07:00"),
        ("22:00-07:00", "2026-11-23 07:00", None),
        ("12:30-13:30", "2026-11-23 13:00", "2026-11-23 13:30"),
        ("12:30-13:30", "2026-11-23 14:00", None),
        ("22:00-07:00", "2026-10-24 23:00", "2026-10-25 07:00"),  # an hour longer, by the zone
    ],
)
def test_quiet_hours_end_when_the_site_s_clock_says_so(hours: str, now: str, until: str | None) -> None:
    def at(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()

    receiver = Receiver(name="mail", kind="email", quiet_hours=hours)
    found = quiet_until(receiver, BERLIN, notice("1"), at(now))
    assert found == (None if until is None else at(until))
    assert quiet_until(receiver, BERLIN, notice("1", severity="critical"), at(now)) is None


def test_a_notice_of_the_night_is_told_when_the_quiet_hours_end(book: SqliteBook, clock: StillClock) -> None:
    told = Told(clock)
    receiver = Receiver(name="mail", kind="email", quiet_hours="22:00-07:00")
    delivery = Delivery(book, {"mail": told}, (receiver,), zone=BERLIN, clock=clock, begin=lambda work: work())
    clock.now = datetime(2026, 11, 22, 23, 0, tzinfo=BERLIN).timestamp()
    book.put([("mail", notice("mild")), ("mail", notice("grave", severity="critical"))], clock.now)
    let_pass(delivery, clock, 60)
    assert told.keys == ["grave"]
    let_pass(delivery, clock, 8 * 3600 + 60, step=30)
    assert told.keys == ["grave", "mild"]


def test_what_was_taken_and_cannot_be_marked_is_not_sent_again(
    book: SqliteBook, clock: StillClock, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = Told(clock)
    delivery = make(mail=mail)
    book.put([("mail", notice("1"))], clock.now)
    with monkeypatch.context() as broken:

        def full(row: int, at: float) -> None:
            raise BookError("the disk is full")

        broken.setattr(book, "sent", full)
        let_pass(delivery, clock, 60)
        assert delivery.trouble == "the disk is full"
    let_pass(delivery, clock, 60)
    assert mail.keys == ["1"]
    assert book.due(clock.now, 10) == []


def test_the_heart_beats_for_as_long_as_the_outbox_can_be_read(book: SqliteBook, clock: StillClock) -> None:
    beats: list[float] = []
    delivery = Delivery(book, {}, zone=BERLIN, clock=clock, heartbeat=lambda: beats.append(clock.now))
    delivery.round()
    assert len(beats) == 1
    book.close()
    delivery.round()
    assert len(beats) == 1
    assert delivery.trouble is not None
    assert "alerts cannot be kept" in delivery.trouble


def test_a_receiver_that_the_settings_do_not_know_is_said_to_fail(
    book: SqliteBook, clock: StillClock, make: Make
) -> None:
    book.put([("gone", notice("1")), ("mailto:nobody", notice("2"))], clock.now)
    make().round()
    assert {name: why for name, (_, why) in book.failing().items()} == {
        "gone": "there is no such receiver in the settings",
        "mailto:nobody": "there is no such receiver in the settings",
    }


def test_a_person_is_told_by_a_receiver_made_for_them(book: SqliteBook, clock: StillClock) -> None:
    told = {"mailto:alice@lab": Told(clock), "mailto:bob@lab": Told(clock)}
    delivery = Delivery(book, {}, person=told.get, zone=BERLIN, clock=clock, begin=lambda work: work())
    told["mailto:bob@lab"].trouble = NotifyError("550 no such user here", is_final=True)
    book.put([(name, notice(name)) for name in told], clock.now)
    let_pass(delivery, clock, 60)
    assert told["mailto:alice@lab"].keys == ["mailto:alice@lab"]
    assert list(book.failing()) == ["mailto:bob@lab"]


def test_a_receiver_that_hangs_holds_up_nobody_and_is_not_told_twice_at_a_time(
    book: SqliteBook, clock: StillClock
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    told = Told(clock)

    class Hanging(Told):
        def send(self, notice: Notice) -> None:
            hangs.set()
            assert goes_on.wait(60)
            super().send(notice)

    slow, threads = Hanging(clock), []

    def begin(work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        threads.append(thread)
        thread.start()

    delivery = Delivery(book, {"slow": slow, "quick": told}, zone=BERLIN, clock=clock, begin=begin)
    book.put([("slow", notice(str(number))) for number in range(30)], clock.now)
    book.put([("quick", notice("1"))], clock.now)
    delivery.round()
    assert hangs.wait(60)
    for _ in range(10):
        clock.now += 1
        delivery.round()
    threads[1].join(60)
    assert told.keys == ["1"]
    assert len(threads) == 2
    goes_on.set()
    threads[0].join(60)
    for _ in range(5):
        clock.now += 20
        delivery.round()
        threads[-1].join(60)
    assert slow.keys == [str(number) for number in range(30)]
    assert slow.tries == 30


def test_a_slip_in_one_kind_of_receiver_is_its_own(
    book: SqliteBook, clock: StillClock, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    broken, told = Told(clock), Told(clock)
    broken.trouble = KeyError("slip")
    book.put([("broken", notice("1")), ("told", notice("1"))], clock.now)
    delivery = make(broken=broken, told=told)
    let_pass(delivery, clock, 60)
    assert told.keys == ["1"]
    assert broken.tries < 5
    assert book.failing()["broken"][1] == "a slip of this server: KeyError"
    assert "a slip in telling broken" in caplog.text


def test_what_is_under_way_when_the_server_ends_is_noted_and_nothing_more_is_begun(
    book: SqliteBook, clock: StillClock
) -> None:
    under_way, goes_on = threading.Event(), threading.Event()

    class Slow(Told):
        def send(self, notice: Notice) -> None:
            under_way.set()
            assert goes_on.wait(60)
            super().send(notice)

    slow = Slow(clock)
    delivery = Delivery(book, {"slow": slow}, zone=BERLIN, clock=clock)
    book.put([("slow", notice("1")), ("slow", notice("2"))], clock.now)
    runs = threading.Thread(target=delivery.run)
    runs.start()
    assert under_way.wait(60)
    ends = threading.Thread(target=delivery.stop)
    ends.start()
    runs.join(60)
    goes_on.set()
    ends.join(60)
    assert slow.keys == ["1"]
    assert [each.notice.key for each in book.due(clock.now, 10)] == ["2"]


def test_a_forgetful_receiver_hears_each_minute_what_goes_on_and_never_of_what_has_ended(
    book: SqliteBook, clock: StillClock, make: Make
) -> None:
    class Forgets(Told):
        def __init__(self, clock: StillClock) -> None:
            super().__init__(clock)
            self.repeated: list[tuple[float, list[str]]] = []

        def repeat(self, notices: Sequence[Notice]) -> None:
            self.repeated.append((self._clock(), [each.key for each in notices]))
            raise NotifyError("it is of no consequence")

    forgets, mail = Forgets(clock), Told(clock)
    delivery = make(am=forgets, mail=mail)
    notices = (
        Addressed("am", notice("a:1", alert="a"), clock.now),
        Addressed("am", notice("a:2", alert="a"), clock.now),
        Addressed("mail", notice("a:1", alert="a"), clock.now),
    )
    book.commit([Transition(kind="began", alert=alert(), at=clock.now, memory="", notices=notices)])
    began_at = clock.now
    let_pass(delivery, clock, 180)
    assert [keys for _, keys in forgets.repeated] == [["a:2"]] * 3
    assert [at - began_at for at, _ in forgets.repeated] == [5, 65, 125]
    ended = Addressed("am", notice("a:3", "resolved", "a"), clock.now)
    book.commit([Transition(kind="ended", alert=alert(clock.now), at=clock.now, memory="", notices=(ended,))])
    let_pass(delivery, clock, 60)
    assert forgets.keys == ["a:1", "a:2", "a:3"]
    assert forgets.repeated[-1][1] == []
    assert "am" not in book.failing()


def test_an_outbox_that_can_be_read_and_not_written_is_said_once(
    book: SqliteBook, clock: StillClock, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: object) -> None:
        raise BookError("the disk is full")

    mail = Told(clock)
    mail.trouble = NotifyError("off")
    delivery = make(mail=mail)
    book.put([("mail", notice("1"))], clock.now)
    with monkeypatch.context() as broken:
        for name in ("failed", "postponed"):
            broken.setattr(book, name, full)
        let_pass(delivery, clock, 600)
        assert delivery.trouble == "the disk is full"
    said = [record.getMessage() for record in caplog.records if "the disk is full" in record.getMessage()]
    assert len(said) == 1
    mail.trouble = None
    let_pass(delivery, clock, MOST_SECONDS * 2)
    now: list[object] = [delivery.trouble, mail.keys]
    assert now == [None, ["1"]]
