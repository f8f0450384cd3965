"""Telling people, by the settings: the test message, what the pages say, the word to who watches this server."""

import threading
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.notices import guarded, telling
from cluster_dash_server.notices.notice import NotifyError
from cluster_dash_server.notices.receivers import AlertSettings, Receiver
from cluster_dash_server.notices.telling import Heart, Telling, without_addresses
from tests.clocks import StillClock

NOW = 1_795_000_000.0
SETTINGS = AlertSettings(
    receivers=(
        Receiver(name="hook", kind="webhook", url="https://hooks.lab/good"),
        Receiver(name="broken", kind="webhook", url="https://hooks.lab/broken"),
    )
)


@pytest.fixture
def clock() -> StillClock:
    return StillClock(NOW)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "TEST_SECONDS", 60.0)  # it ends as soon as all have an outcome


@pytest.fixture
def tells(tmp_path: Path, clock: StillClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Telling]:
    def answer(url: str, **more: object) -> None:
        if url.endswith("broken"):
            raise NotifyError("hooks.lab:443: answers 500")

    monkeypatch.setattr(guarded, "request", answer)
    book = SqliteBook(tmp_path / "alerts.db", clock)
    tells = Telling(SETTINGS, book, site="lab", zone=ZoneInfo("UTC"), clock=clock)
    tells.start()
    tells.start()
    yield tells
    tells.stop()
    book.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ops@lab.org: 550 5.1.1 <ops@lab.org>: no such user", "… 550 5.1.1 <…>: no such user"),
        ("mail.lab.org:587: Connection refused", "mail.lab.org:587: Connection refused"),
    ],
)
def test_what_pages_say_of_a_mail_server_names_no_address(text: str, shown: str) -> None:
    assert without_addresses(text) == shown


def test_a_test_takes_the_way_of_a_real_notice_and_says_what_became_of_it(tells: Telling) -> None:
    answer = tells.test({"receiver": None})
    assert answer == {
        "success": True,
        "outcomes": [
            {"receiver": "hook", "taken": True, "why": None},
            {"receiver": "broken", "taken": False, "why": "hooks.lab:443: answers 500"},
        ],
    }
    assert tells.notices() == ["Notices do not reach broken: hooks.lab:443: answers 500."]
    assert tells.trouble == "1 receiver does not take them"


def test_a_test_tries_a_receiver_that_rests(tells: Telling) -> None:
    for _ in range(2):
        assert [each["taken"] for each in tells.test({"receiver": "broken"})["outcomes"]] == [False]


def test_people_who_cannot_be_reached_are_counted_and_not_named(tells: Telling) -> None:
    (outcome,) = tells.test({"receiver": "mailto:alice@lab.example"})["outcomes"]
    assert outcome["why"] == "there is no such receiver in the settings"  # this site sends no mail
    assert tells.notices() == ["Notices do not reach 1 person: see the log."]


def test_a_test_of_nobody_is_refused_in_words(tells: Telling) -> None:
    answer = tells.test({"receiver": "chat"})
    assert answer == {"success": False, "msg": "there is no receiver chat; known here: hook, broken"}


def test_a_receiver_that_takes_its_time_is_not_waited_for_for_ever(
    tells: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(telling, "TEST_SECONDS", 0.2)
    monkeypatch.setattr(guarded, "request", lambda *given, **more: goes_on.wait(60))
    (outcome,) = tells.test({"receiver": "hook"})["outcomes"]
    goes_on.set()
    assert outcome["taken"] is None


def test_the_heart_beats_in_its_time_while_all_is_well(clock: StillClock) -> None:
    asked: list[float] = []
    well = [True]

    def ask(url: str) -> None:
        asked.append(clock.now)
        raise NotifyError("away")

    heart = Heart("https://watch.lab/x", 60, clock, lambda: well[0], ask)

    def beat() -> None:
        heart.beat()
        for thread in threading.enumerate():
            if thread.name == "heart":
                thread.join(60)

    for _ in range(10):
        beat()
        clock.now += 20
    assert asked == [NOW, NOW + 60, NOW + 120, NOW + 180]
    well[0] = False
    clock.now += 600
    beat()
    assert len(asked) == 4
    clock.now = NOW  # a clock that steps back does not stop it
    well[0] = True
    beat()
    assert len(asked) == 5


def test_without_an_address_nobody_is_asked(clock: StillClock) -> None:
    Heart(None, 60, clock, lambda: True, lambda url: pytest.fail("asked")).beat()
