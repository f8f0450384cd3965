"""Owners: who is told first, and what their link can do and cannot."""

from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from cluster_dash_server import privacy
from cluster_dash_server.alerts.book import Addressed, Alert, Transition
from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.receivers import AlertSettings
from cluster_dash_server.owners import KEY_FILE, Addresses, Need, Owners, read, signed
from tests.clocks import StillClock

KEY = b"k" * 32
NOW = 1_795_000_000.0
SETTINGS = AlertSettings(
    owner_notices=True, owner_address="{user}@lab.example", owner_grace_minutes=30, owner_extension_hours=24
)


@pytest.fixture
def clock() -> StillClock:
    return StillClock(NOW)


@pytest.fixture
def book(tmp_path: Path, clock: StillClock) -> Iterator[SqliteBook]:
    book = SqliteBook(tmp_path / "alerts.db", clock)
    yield book
    book.close()


@pytest.fixture
def owners(book: SqliteBook, clock: StillClock) -> Owners:
    return Owners(SETTINGS, lambda: KEY, book, clock, ZoneInfo("Europe/Berlin"), "https://dash.lab/")


def alert(user: str | None = "alice", name: str = "a1", ended_at: float | None = None) -> Alert:
    return Alert(
        id=name,
        rule="gpu-held",
        severity="warning",
        title=f"{user}: held without work",
        host="gpu01",
        gpu=1,
        user=user,
        began_at=NOW,
        ended_at=ended_at,
        facts=(("where", "gpu01, GPU 1"),),
        acknowledged=None,
        silenced_until=None,
        labels={},
    )


def notice(of: Alert, told: int = 1) -> Notice:
    return Notice(
        key=f"{of.id}:{'firing' if of.ended_at is None else 'resolved'}:{told}",
        kind="firing" if of.ended_at is None else "resolved",
        alert=of.id,
        rule=of.rule,
        severity=of.severity,
        title=of.title,
        facts=of.facts,
        text="",
        link=None,
        actions=(),
        labels=of.labels,
        begun_at=of.began_at,
        ended_at=of.ended_at,
    )


def token_of(told: list[Addressed]) -> str:
    ((_, link),) = told[0].notice.actions
    return link.removeprefix("https://dash.lab/needed/")


def began(book: SqliteBook, *alerts: Alert) -> None:
    book.commit([Transition(kind="began", alert=each, at=NOW, memory="") for each in alerts])


def test_the_owner_is_told_now_and_the_receivers_after_the_grace(owners: Owners) -> None:
    told = owners.route(alert(), notice(alert()), ["admins", "chat"], NOW)
    assert [(each.receiver, each.not_before) for each in told] == [
        ("mailto:alice@lab.example", NOW),
        ("admins", NOW + 1800),
        ("chat", NOW + 1800),
    ]
    ((words, link),) = told[0].notice.actions
    assert words == "I need it until 2026-11-19 12:06 CET"
    assert link.startswith("https://dash.lab/needed/")
    assert told[1].notice.actions == ()


def test_what_is_told_anew_goes_to_all_at_once_and_has_no_link(owners: Owners) -> None:
    told = owners.route(alert(), notice(alert(), told=2), ["admins"], NOW)
    assert [(each.receiver, each.not_before) for each in told] == [("mailto:alice@lab.example", NOW), ("admins", NOW)]
    assert told[0].notice.actions == ()


@pytest.mark.parametrize("user", [None, "root", "unknown", "unknown (1234)", "x y", "-o", "a@b", ""])
def test_where_no_owner_can_be_written_to_the_receivers_are_told_at_once(owners: Owners, user: str | None) -> None:
    told = owners.route(alert(user), notice(alert(user)), ["admins"], NOW)
    assert [(each.receiver, each.not_before) for each in told] == [("admins", NOW)]


def test_owners_are_told_nothing_until_it_is_switched_on(book: SqliteBook, clock: StillClock) -> None:
    off = Owners(
        AlertSettings(owner_address="{user}@lab.example"), lambda: KEY, book, clock, ZoneInfo("UTC"), "https://dash.lab"
    )
    assert [each.receiver for each in off.route(alert(), notice(alert()), ["admins"], NOW)] == ["admins"]


def test_an_alert_that_ends_in_the_grace_is_never_told_to_the_receivers(owners: Owners, book: SqliteBook) -> None:
    of = alert()
    told = tuple(owners.route(of, notice(of), ["admins"], NOW))
    book.commit([Transition(kind="began", alert=of, at=NOW, memory="", notices=told)])
    (own,) = book.due(NOW, 10)
    book.sent(own.row, NOW)
    over = alert(ended_at=NOW + 600)
    told = tuple(owners.route(over, notice(over), ["admins"], NOW + 600))
    book.commit([Transition(kind="ended", alert=over, at=NOW + 600, memory="", notices=told)])
    assert [each.receiver for each in book.due(NOW + 86_400, 10)] == ["mailto:alice@lab.example"]


def test_the_link_keeps_it_quiet_once_until_the_moment_that_it_names(
    owners: Owners, book: SqliteBook, clock: StillClock
) -> None:
    began(book, alert())
    token = token_of(owners.route(alert(), notice(alert()), [], NOW))
    found = owners.find(token)
    assert found is not None
    need, of = found
    assert (need.user, of.id, owners.is_extended(need)) == ("alice", "a1", False)
    assert book.silences(NOW) == [], "looking changes nothing"
    owners.extend(need)
    clock.now += 3600
    owners.extend(need)
    (silence,) = book.silences(clock.now)
    assert (silence.filter, silence.ends_at) == ("rule:gpu-held user:alice", NOW + 86_400)
    assert owners.is_extended(need)
    clock.now = NOW + 86_400
    assert owners.find(token) is None, "it cannot be used again"
    assert book.silences(clock.now) == []


def test_what_an_operator_has_ended_the_link_does_not_begin_again(
    owners: Owners, book: SqliteBook, clock: StillClock
) -> None:
    began(book, alert())
    token = token_of(owners.route(alert(), notice(alert()), [], NOW))
    found = owners.find(token)
    assert found is not None
    owners.extend(found[0])
    (silence,) = book.silences(NOW)
    clock.now += 60
    assert book.end_silence(silence.id or 0, "nora", clock.now)
    assert owners.find(token) is None
    assert book.silences(clock.now) == []


def test_a_link_means_one_user_and_one_alert(owners: Owners, book: SqliteBook) -> None:
    began(book, alert(), alert("bob", "b1"))
    tokens = [token_of(owners.route(each, notice(each), [], NOW)) for each in (alert(), alert("bob", "b1"))]
    for token in tokens:
        found = owners.find(token)
        assert found is not None
        owners.extend(found[0])
    assert sorted(each.filter for each in book.silences(NOW)) == ["rule:gpu-held user:alice", "rule:gpu-held user:bob"]
    assert owners.find(signed(Need(alert="b1", user="alice", until=int(NOW + 60)), KEY)) is None


def test_a_link_of_an_alert_that_has_ended_says_nothing(owners: Owners, book: SqliteBook) -> None:
    began(book, alert())
    token = token_of(owners.route(alert(), notice(alert()), [], NOW))
    over = alert(ended_at=NOW + 5)
    book.commit([Transition(kind="ended", alert=over, at=NOW + 5, memory="")])
    assert owners.find(token) is None


def test_no_link_can_be_made_or_changed_without_the_key() -> None:
    need = Need(alert="a1", user="alice", until=1_795_086_400)
    token = signed(need, KEY)
    assert read(token, KEY) == need
    assert read(signed(need, b"x" * 32), KEY) is None
    body, _, mark = token.partition(".")
    other = signed(Need(alert="a1", user="bob", until=1_795_086_400), KEY).partition(".")
    forged = [
        f"{other[0]}.{mark}",
        f"{body}.{other[2]}",
        f"{body}.",
        f".{mark}",
        body,
        "",
        ".",
        "é.é",
        token + "=",
        "A" * 5000,
    ]
    forged += [
        f"{token[:place]}{'A' if token[place] != 'A' else 'B'}{token[place + 1 :]}" for place in range(len(token))
    ]
    assert [each for each in forged if read(each, KEY) is not None] == []


def test_the_key_is_its_owner_s_alone(tmp_path: Path) -> None:
    key = privacy.kept_key(tmp_path, KEY_FILE)
    assert len(key) == 32
    assert privacy.kept_key(tmp_path, KEY_FILE) == key
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_file_of_addresses_goes_before_the_pattern_and_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "addresses"
    addresses = Addresses("{user}@lab.example", file)
    assert addresses.of("alice") == "alice@lab.example"
    file.write_text("# who is where\nalice a.liddell@lab.example\nnonsense\n")
    assert addresses.of("alice") == "a.liddell@lab.example"
    file.write_text("bob bob@elsewhere.example\n")
    assert (addresses.of("alice"), addresses.of("bob")) == ("alice@lab.example", "bob@elsewhere.example")
    assert Addresses(None, file).of("alice") is None
