"""What replicas share in a real PostgreSQL beside history and alerts: tokens, sessions, keys, those who wait."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster_dash_server import free
from cluster_dash_server.access.auth import Auth, AuthError, Caller, Passcode
from cluster_dash_server.access.oidc import Pending
from cluster_dash_server.access.tokens import TokenError, Tokens
from cluster_dash_server.ledger import access
from cluster_dash_server.ledger.access import SharedAccess, SignedSessions
from cluster_dash_server.ledger.keys import SharedKeys
from cluster_dash_server.ledger.line import SharedLine
from cluster_dash_server.postgresql import Database
from cluster_dash_server.waiting import WaitError, Waiting
from tests import databases

pytestmark = pytest.mark.needs("postgres")
NOW = 1_700_000_000.0
HOME = Caller(peer="127.0.0.1", host="localhost", forwarded=False, origin=None, fetch_site=None)


class Clock:
    """Two clocks that a test moves by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(database_url: str) -> Iterator[Callable[[], Database]]:
    """Gives the database as each of several replicas has it."""
    made: list[Database] = []

    def open_one() -> Database:
        made.append(Database(database_url))
        return made[-1]

    yield open_one
    for each in made:
        each.close()


@pytest.fixture
def replicas(opened: Callable[[], Database], clock: Clock) -> list[SharedAccess]:
    return [SharedAccess(opened(), clock, clock) for _ in range(3)]


def test_a_token_made_or_revoked_at_one_replica_is_so_at_all(replicas: list[SharedAccess], clock: Clock) -> None:
    first, second = (Tokens(each, clock) for each in replicas[:2])
    for each in replicas:
        each.look()
    secret = first.new("host", "gpu01")
    assert first.find(secret, clock.now) is not None
    replicas[1].look()
    clock.now += 2
    found = second.find(secret, clock.now)
    assert found is not None
    assert found.is_valid(clock.now)
    second.revoke("gpu01")
    replicas[0].look()
    clock.now += 2
    found = first.find(secret, clock.now)
    assert found is not None
    assert not found.is_valid(clock.now)


def test_what_was_revoked_stays_so_whatever_another_replica_still_remembers(
    replicas: list[SharedAccess], clock: Clock
) -> None:
    first, second = (Tokens(each, clock) for each in replicas[:2])
    secret = first.new("host", "gpu01")
    replicas[1].look()
    known = second.find(secret, clock.now)
    assert known is not None
    first.revoke("gpu01")
    second.used(known, "machine", clock.now)  # has not heard of it
    clock.now += 2
    found = second.find(secret, clock.now)
    assert found is not None
    assert not found.is_valid(clock.now)


def test_a_code_is_traded_as_often_as_it_may_be_however_many_come_at_once(
    replicas: list[SharedAccess], clock: Clock
) -> None:
    of_replica = [Tokens(each, clock) for each in replicas]
    code_text = of_replica[0].new("enrol", "*", uses=5)
    for each in replicas:
        each.look()
    clock.now += 2

    def enrol(number: int) -> bool:
        tokens = of_replica[number % 3]
        code = tokens.find(code_text, clock.now)
        assert code is not None
        try:
            tokens.enrol(code, f"gpu{number // 2:02}", None)  # each host asks at two replicas
        except TokenError:
            return False
        return True

    with ThreadPoolExecutor(9) as pool:
        done = list(pool.map(enrol, range(24)))

    assert sum(done) == 5
    replicas[0].look()
    hosts = [token.hosts for token in replicas[0].read() if token.kind == "host"]
    assert len(hosts) == len(set(hosts)) == 5


def test_while_the_database_is_away_tokens_count_for_five_minutes(clock: Clock) -> None:
    with databases.running() as server:
        database = Database(server.url(), seconds=1)
        shared = SharedAccess(database, clock, clock)
        tokens = Tokens(shared, clock)
        secret = tokens.new("host", "gpu01")
        shared.look()
        auth = Auth(Passcode("a passcode of a test"), tokens)
        server.signal(signal.SIGSTOP)
        try:
            shared.look()
            clock.now += 290
            assert auth.admit(secret, HOME, clock.now) is not None
            clock.now += 20
            with pytest.raises(AuthError, match="tokens cannot be checked now") as refused:
                auth.admit(secret, HOME, clock.now)
            assert refused.value.status == 503
            assert auth.admit("a passcode of a test", HOME, clock.now) is None
        finally:
            server.signal(signal.SIGCONT)
            database.close()


def test_who_signed_in_at_one_replica_is_signed_in_at_all_and_out_at_all(
    replicas: list[SharedAccess], clock: Clock
) -> None:
    for each in replicas:
        each.look()
    first, second = (SignedSessions(3600, clock, b"a key", each) for each in replicas[:2])
    cookie = first.begin("nora", "operator")
    assert second.find(cookie) == ("nora", "operator")
    assert SignedSessions(3600, clock, b"another key", replicas[0]).find(cookie) is None
    body, _, mark = cookie.partition(".")
    for forged in (None, "", "x", ".", f"{body}.", f"{body}.ü", f"{body[:-2]}7d.{mark}", cookie + "0"):
        assert second.find(forged) is None
    first.end(cookie)
    assert first.find(cookie) is None
    replicas[1].look()
    assert second.find(cookie) is None
    other = second.begin("nora", "operator")
    clock.now += 3600
    assert second.find(other) is None


def test_a_sign_in_begun_at_one_replica_is_ended_at_another_once(replicas: list[SharedAccess], clock: Clock) -> None:
    pending = Pending("verifier", "nonce", "https://gpu.lab/return", "/", clock.now)
    replicas[0].put("state", pending)
    assert replicas[1].pop("state") == pending
    assert replicas[0].pop("state") is None


def test_replicas_have_one_key_which_outlives_the_database(opened: Callable[[], Database], tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "links.key").write_bytes(b"of before")
    keys = [SharedKeys(opened(), folder) for folder in (old, new)]
    assert [each.key("links.key") for each in keys] == [b"of before"] * 2
    made = keys[1].key("pseudonyms.key")
    assert len(made) == 32
    assert keys[0].key("pseudonyms.key") == made
    assert (new / "links.key").stat().st_mode & 0o777 == 0o600
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    assert SharedKeys(away, new).key("links.key") == b"of before"
    with pytest.raises(OSError, match=r"another\.key cannot be asked for"):
        SharedKeys(away, new).key("another.key")


def test_who_waits_waits_at_all_replicas_in_one_order(opened: Callable[[], Database]) -> None:
    def waiting() -> Waiting:
        return Waiting(SharedLine(opened()), allowed=("#gpu",), put=lambda notices, now: None, link=lambda path: None)

    of_replica = [waiting() for _ in range(3)]
    wish = free.Wish(count=1, free_mem=0, model="")

    def ask(number: int) -> int:
        wait, _ = of_replica[number % 3].add(wish, q="", to="#gpu", until=NOW + 60, now=NOW)
        return wait.id

    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(ask, range(12)))

    assert sorted(ids) == list(range(1, 13))
    assert [each.id for each in of_replica[2].waits(NOW)] == list(range(1, 13))
    of_replica[1].end(3, NOW, key=None, may_end_any=True)
    assert 3 not in [each.id for each in of_replica[0].waits(NOW)]
    gone = Waiting(
        SharedLine(Database("postgresql://nobody@127.0.0.1:1/none")),
        allowed=("#gpu",),
        put=lambda notices, now: None,
        link=lambda path: None,
    )
    with pytest.raises(WaitError, match="who waits cannot be kept now") as refused:
        gone.waits(NOW)
    assert refused.value.status == 503


def test_tokens_are_asked_for_within_five_seconds() -> None:
    assert access.LOOK_SECONDS <= 2
