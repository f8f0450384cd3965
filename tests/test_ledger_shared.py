"""What replicas share in a real PostgreSQL beside history and alerts: tokens, sessions, keys, those who wait."""

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cluster_dash_server import free
from cluster_dash_server.access.auth import Auth, AuthError, Caller, Passcode
from cluster_dash_server.access.oidc import Pending
from cluster_dash_server.access.tokens import TokenError, Tokens
from cluster_dash_server.app import create_app
from cluster_dash_server.ledger import access
from cluster_dash_server.ledger.access import SharedAccess, SignedSessions
from cluster_dash_server.ledger.keys import SharedKeys
from cluster_dash_server.ledger.settings import LedgerSettings
from cluster_dash_server.ledger.waiting_line import SharedLine
from cluster_dash_server.postgresql import Database
from cluster_dash_server.settings import ConfigError, ServerSettings, Settings
from cluster_dash_server.waiting import WaitError, Waiting
from tests import databases
from tests.clocks import StillClock
from tests.engines import running
from tests.processes import BIN, snapshot, start_server, wait_until

pytestmark = pytest.mark.needs("postgres")
NOW = 1_700_000_000.0
HOME = Caller(peer="127.0.0.1", host="localhost", forwarded=False, origin=None, fetch_site=None)


@pytest.fixture
def clock() -> StillClock:
    return StillClock(NOW)


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
def replicas(opened: Callable[[], Database], clock: StillClock) -> list[SharedAccess]:
    return [SharedAccess(opened(), clock, clock) for _ in range(3)]


def test_a_token_made_or_revoked_at_one_replica_is_so_at_all(replicas: list[SharedAccess], clock: StillClock) -> None:
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
    replicas: list[SharedAccess], clock: StillClock
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


def test_what_is_revoked_is_heard_of_though_an_enrolment_failed_at_the_same_time(
    replicas: list[SharedAccess], clock: StillClock
) -> None:
    first, second = (Tokens(each, clock) for each in replicas[:2])
    secret, code_text = first.new("host", "gpu01"), first.new("enrol", "gpu*", uses=5)
    for each in replicas:
        each.look()
    code = first.find(code_text, clock.now)
    assert code is not None
    with pytest.raises(TokenError, match="gpu01 has a token already"):
        first.enrol(code, "gpu01", None)  # taken back, and the number of writes that it was to get is free again
    second.revoke("gpu01")
    replicas[0].look()
    clock.now += 2
    found = first.find(secret, clock.now)
    assert found is not None
    assert not found.is_valid(clock.now)


def test_a_code_is_traded_as_often_as_it_may_be_however_many_come_at_once(
    replicas: list[SharedAccess], clock: StillClock
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


def test_while_the_database_is_away_tokens_count_for_five_minutes(clock: StillClock) -> None:
    with databases.running() as server:
        database = Database(server.url(), seconds=1)
        shared = SharedAccess(database, clock, clock)
        tokens = Tokens(shared, clock)
        secret, code = tokens.new("host", "gpu01"), tokens.new("enrol", "*")
        shared.look()
        shared.start()  # as of a server: a command would be told why
        auth = Auth(Passcode("a passcode of a test"), tokens)
        server.signal(signal.SIGSTOP)
        try:
            shared.look()
            with pytest.raises(AuthError, match="code: tokens cannot be changed now") as later:
                auth.enrol(code, "gpu02", None, HOME, clock.now)
            assert later.value.status == 503
            clock.now += 290
            assert auth.admit(secret, HOME, clock.now) is not None
            clock.now += 20
            with pytest.raises(AuthError, match="tokens cannot be checked now") as refused:
                auth.admit(secret, HOME, clock.now)
            assert refused.value.status == 503
            assert auth.admit("a passcode of a test", HOME, clock.now) is None
        finally:
            server.signal(signal.SIGCONT)
            shared.close()
            database.close()


def with_database(url: str, data: Path) -> Settings:
    return Settings(server=ServerSettings(data=str(data)), ledger=LedgerSettings(kind="postgresql", url=url))


def test_a_server_starts_while_the_database_is_away(tmp_path: Path) -> None:
    started = create_app(with_database("postgresql://dash:secret@127.0.0.1:1/dash", tmp_path))
    auth = Auth(Passcode("a passcode of a test"), started.extensions["tokens"])
    with pytest.raises(AuthError, match="tokens cannot be checked now"):
        auth.admit("cdh_aaaaaaaa_secret", HOME, NOW)
    assert auth.admit("a passcode of a test", HOME, NOW) is None


def test_a_server_does_not_start_on_a_database_of_a_newer_release(
    opened: Callable[[], Database], database_url: str, tmp_path: Path
) -> None:
    database = opened()
    SharedAccess(database, time.time).look()
    with database.transaction() as db:
        db.execute("UPDATE schema_versions SET version = 99")
    with pytest.raises(ConfigError, match="was written by a newer release"):
        create_app(with_database(database_url, tmp_path))


def test_who_signed_in_at_one_replica_is_signed_in_at_all_and_out_at_all(
    replicas: list[SharedAccess], clock: StillClock
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


def test_who_signs_out_while_the_database_is_away_stays_out_when_it_is_back(clock: StillClock) -> None:
    with databases.running() as server:
        database, other_database = Database(server.url(), seconds=1), Database(server.url())
        first, second = SharedAccess(database, clock), SharedAccess(other_database, clock)
        first.look()
        sessions = [SignedSessions(3600, clock, b"a key", each) for each in (first, second)]
        cookie = sessions[0].begin("nora", "operator")
        server.signal(signal.SIGSTOP)
        try:
            sessions[0].end(cookie)
        finally:
            server.signal(signal.SIGCONT)

        def is_heard_of() -> bool:
            first.look()
            assert sessions[0].find(cookie) is None
            second.look()
            return sessions[1].find(cookie) is None

        wait_until(is_heard_of, 60, "the other replica hears of it")
        database.close()
        other_database.close()


def test_a_sign_in_begun_at_one_replica_is_ended_at_another_once(
    replicas: list[SharedAccess], clock: StillClock
) -> None:
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
    with pytest.raises(WaitError, match="who waits cannot be read now") as refused:
        gone.waits(NOW)
    assert refused.value.status == 503


def test_who_only_looks_at_the_line_waits_for_nobody_who_changes_it(
    opened: Callable[[], Database], database_url: str
) -> None:
    waiting = Waiting(SharedLine(opened()), allowed=("#gpu",), put=lambda notices, now: None, link=lambda path: None)
    wish = free.Wish(count=1, free_mem=0, model="")
    wait, key = waiting.add(wish, q="", to="#gpu", until=NOW + 60, now=NOW)
    with psycopg.connect(database_url) as other:  # another replica, which sleeps
        other.execute("SELECT line FROM line FOR UPDATE")
        assert waiting.waits(NOW) == (wait,)
        assert waiting.find(wait.id, key, NOW) == wait
        assert waiting.round(list, NOW) == []


def test_tokens_are_asked_for_within_five_seconds() -> None:
    assert access.LOOK_SECONDS <= 2


# ------------------------------------------------------------------------------------------------- whole servers


def ask(url: str, path: str, body: Any = None, token: str = "") -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


def typed(*arguments: str | Path) -> str:
    done = subprocess.run(
        [BIN / "cluster-dash-server", *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.needs("victoria-metrics")
def test_two_servers_tell_the_same_whoever_was_told(database_url: str, tmp_path: Path) -> None:
    with running("victoria-metrics", tmp_path) as engine:
        files = []
        for name in ("a", "b"):
            file = tmp_path / f"{name}.toml"
            file.write_text(
                f'[server]\ndata = "{tmp_path / name}"\n[ledger]\nkind = "postgresql"\nurl = "{database_url}"\n'
                f'[history]\nkind = "remote"\nwrite_url = "{engine.access.write_url}"\n'
                "flush_seconds = 0.2\nsettle_seconds = 0\n"
            )
            files.append(file)
        secret = typed("token", "new", "--host", "gpu01", "-c", files[0]).strip()  # no server runs yet
        begin = time.time() - 600  # minutes of before, as after an outage
        with start_server("-c", files[0]) as first, start_server("-c", files[1]) as second:
            for seq in range(1, 61):
                body = snapshot("gpu01", gpus=2, processes=1)
                body.update(timestamp=begin + 10 * seq - 10, boot_id="boot", seq=seq, interval_seconds=10)
                body["events"] = [{"at": begin + 45, "kind": "xid", "gpu": 0, "code": 79}] if seq == 5 else []
                said = ask((first, second)[seq % 2].url, "/", body, secret)
                assert said.get("success"), said

            def lines(url: str) -> Any:
                engine.flush()
                return ask(url, "/api/v1/series?metric=used_mem&from=now-15m&step=10")["series"]

            def knows_all(url: str) -> bool:
                figures = [each for each in (lines(url) or [{"mean": []}])[0]["mean"] if each is not None]
                return len(figures) == 60 and bool(ask(url, "/api/v1/events?from=now-1h")["events"])

            for url in (first.url, second.url):
                wait_until(partial(knows_all, url), 60, "all figures can be asked for, and the event")
                events = ask(url, "/api/v1/events?from=now-1h")["events"]
                assert [each["code"] for each in events if each["kind"] == "xid"] == [79]
            made = typed("token", "list", "-c", files[1])
            assert "gpu01" in made
            typed("token", "revoke", "gpu01", "-c", files[1])
            body["seq"] = 61

            def is_refused() -> bool:
                return "was revoked" in str(ask(first.url, "/", body, secret).get("msg"))

            wait_until(is_refused, 20, "it is revoked at the other replica, too")
            wait_until(lambda: ask(first.url, "/api/v1/waste?from=now-1h")["waste"], 60, "GPU-hours are added up")
            assert {row.split(",")[1] for row in rows_of("hours", files[0])} == {"alice"}
        assert [row.split(",")[5] for row in rows_of("events", files[1]) if "xid" in row] == ["xid 79"]
        assert {row.split(",")[4] for row in rows_of("uses", files[1])} == {"alice"}


def rows_of(what: str, file: Path) -> list[str]:
    return typed("export", what, "-c", file, "--from", "now-3h").splitlines()[1:]
