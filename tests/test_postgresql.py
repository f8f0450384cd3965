"""Connections to a real PostgreSQL: what is kept, what is not, and what is said when it goes away."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from cluster_dash_server.app import create_app
from cluster_dash_server.cli import EXIT_CONFIG, main
from cluster_dash_server.commands.doctor import database_of_ledger
from cluster_dash_server.ledger.settings import LedgerSettings
from cluster_dash_server.postgresql import ASKING, REST_SECONDS, Database, PostgresqlError
from cluster_dash_server.settings import ConfigError, ServerSettings, Settings
from tests import databases
from tests.processes import wait_until

pytestmark = pytest.mark.needs("postgres")

STEPS = ("CREATE TABLE things (name TEXT PRIMARY KEY, at DOUBLE PRECISION); CREATE INDEX things_at ON things (at)",)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.expects("things", STEPS)
    yield database
    database.close()


@pytest.fixture
def own() -> Iterator[databases.Postgresql]:
    """A server for one test, which does with it what it likes."""
    with databases.running(is_safe=True) as server:
        yield server


def put(database: Database, name: object, at: float = 1) -> None:
    with database.transaction() as db:
        db.execute("INSERT INTO things (name, at) VALUES (?, ?)", (name, at))


def names(database: Database) -> list[str]:
    with database.reading() as db:
        return [name for (name,) in db.execute("SELECT name FROM things ORDER BY name")]


def half_a_transaction(database: Database) -> None:
    with database.transaction() as db:
        db.execute("INSERT INTO things (name) VALUES (?)", ("b",))
        raise ZeroDivisionError


def test_a_transaction_is_kept_whole_or_not_at_all(database: Database) -> None:
    put(database, "a")
    with pytest.raises(ZeroDivisionError):
        half_a_transaction(database)
    with pytest.raises(PostgresqlError, match="duplicate key") as refused:
        put(database, "a")
    assert not refused.value.is_away
    assert names(database) == ["a"]


@pytest.mark.parametrize("text", ["50 % of ?", "it's", "\\", "{}", "%s", "🙂", "a\nb"])
def test_texts_come_back_as_they_were(database: Database, text: str) -> None:
    put(database, text)
    assert names(database) == [text]


def test_a_text_that_it_cannot_hold_is_written_as_near_as_can_be(database: Database) -> None:
    put(database, "a\0b\ud800")
    assert names(database) == ["a\ufffdb?"]


def test_moments_before_and_after_all_are_numbers_like_others(database: Database) -> None:
    put(database, "never", float("inf"))
    with database.reading() as db:
        assert db.execute("SELECT at FROM things WHERE at > ?", (float("-inf"),)).fetchall() == [(float("inf"),)]


def test_a_schema_is_taken_further_by_the_steps_that_it_lacks(database: Database, database_url: str) -> None:
    put(database, "a")
    newer = Database(database_url)
    newer.expects("things", (*STEPS, "ALTER TABLE things ADD COLUMN by TEXT DEFAULT 'nora'"))
    newer.expects("others", ("CREATE TABLE others (n INTEGER)",))
    with newer.reading() as db:
        assert db.execute("SELECT name, by FROM things").fetchall() == [("a", "nora")]
    older = Database(database_url)
    older.expects("things", STEPS)
    with pytest.raises(PostgresqlError, match=r"newer release \(things: form 2, this one knows 1\)"):
        names(older)
    newer.close()
    older.close()


def test_a_part_that_comes_later_gets_its_tables_too(database: Database) -> None:
    put(database, "a")
    database.expects("others", ("CREATE TABLE others (n INTEGER)",))
    with database.reading() as db:
        assert db.execute("SELECT * FROM others").fetchall() == []


def test_replicas_that_start_at_once_make_the_schema_once(database_url: str) -> None:
    replicas = [Database(database_url) for _ in range(4)]
    for each in replicas:
        each.expects("things", STEPS)
    threads = [threading.Thread(target=put, args=(each, str(at))) for at, each in enumerate(replicas)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(replicas[0]) == ["0", "1", "2", "3"]
    for each in replicas:
        each.close()


def sleep_in_a_transaction(database: Database, url: str) -> None:
    with database.transaction() as db:
        db.execute("UPDATE things SET at = 2 WHERE name = 'a'")
        other = Database(url)
        with other.transaction() as theirs:  # waits for the row until the database ends the sleeper
            theirs.execute("UPDATE things SET at = 3 WHERE name = 'a'")
        other.close()
        db.execute("SELECT 1")


def test_a_transaction_that_sleeps_is_ended_and_holds_nobody_up(database: Database, database_url: str) -> None:
    put(database, "a")
    with pytest.raises(PostgresqlError) as ended:
        sleep_in_a_transaction(database, database_url)
    assert ended.value.is_away
    wait_until(lambda: _answers(database), what="it is asked again")
    with database.reading() as db:
        assert db.execute("SELECT at FROM things").fetchall() == [(3.0,)]


def test_a_database_that_is_away_is_said_to_be_at_once_and_mends_itself(own: databases.Postgresql) -> None:
    url = own.new_database()
    own.kill()
    database = Database(url)
    database.expects("things", STEPS)
    for _ in range(2):
        with pytest.raises(PostgresqlError) as away:
            put(database, "a")
        assert str(away.value) == f"the database {url.rpartition('/')[2]} at 127.0.0.1: Connection refused"
        assert away.value.is_away
    own.start()
    wait_until(lambda: _answers(database), what="it is asked again")
    put(database, "a")
    own.stop()
    own.start()
    # a connection that broke while nobody used it is not noticed
    put(database, "b")
    assert names(database) == ["a", "b"]
    database.close()


def test_a_database_that_sleeps_is_waited_for_so_long_and_then_not_at_all(own: databases.Postgresql) -> None:
    database = Database(own.new_database(), seconds=1)
    database.expects("things", STEPS)
    put(database, "a")
    own.signal(signal.SIGSTOP)
    with pytest.raises(PostgresqlError, match="no answer in time") as away:
        names(database)
    assert away.value.is_away
    time.sleep(REST_SECONDS)
    waits = threading.Thread(target=_answers, args=(database,))
    waits.start()  # one tries, and nobody else waits for it
    wait_until(database._trying.locked, what="it tries")
    asked = 0
    while database._trying.locked():
        with pytest.raises(PostgresqlError, match=r"no answer in time|timeout expired"):
            names(database)
        asked += 1
    waits.join()
    assert asked > 2  # who waits asks once in that second
    own.signal(signal.SIGCONT)
    wait_until(lambda: _answers(database), what="it is asked again")
    assert names(database) == ["a"]
    database.close()


def _answers(database: Database) -> bool:
    try:
        with database.reading() as db:
            db.execute("SELECT 1")
    except PostgresqlError:
        return False
    return True


def test_who_asks_for_much_leaves_a_connection_to_who_writes(database_url: str) -> None:
    database = Database(database_url, seconds=60)
    database.expects("things", STEPS)
    put(database, "a")
    with psycopg.connect(database_url) as other:  # as a question that takes the database long
        other.execute("LOCK TABLE things IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(asked, database, "SELECT name FROM things") for _ in range(8)]
            wait_until(lambda: waiting_in(database_url) >= ASKING, 60, "as many ask as may")
            with database.transaction() as db:
                db.execute("CREATE TABLE others (n INTEGER)")
            assert waiting_in(database_url) == ASKING
            other.rollback()
            assert [answer.result() for answer in answers] == [[("a",)]] * 8
    database.close()


def test_a_question_that_takes_too_long_is_ended_and_nobody_else_hears_of_it(database_url: str) -> None:
    database = Database(database_url, seconds=1)
    database.expects("things", STEPS)
    put(database, "a")
    with pytest.raises(PostgresqlError, match="it took too long and was ended"):
        asked(database, "SELECT pg_sleep(60)")
    assert names(database) == ["a"]
    assert asked(database, "SELECT COUNT(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sl%'") == [(0,)]
    database.close()


def test_where_too_many_ask_for_much_the_others_are_told_so(database_url: str) -> None:
    database = Database(database_url, asking=1, seconds=1)
    with database.asking(), pytest.raises(PostgresqlError, match="all connections are busy: try again later") as busy:
        asked(database, "SELECT 1")
    assert busy.value.is_away
    assert asked(database, "SELECT 1") == [(1,)]
    database.close()


def test_who_asks_writes_nothing_and_sees_one_moment(database: Database) -> None:
    put(database, "a")
    with database.asking() as db:
        before = db.execute("SELECT COUNT(*) FROM things").fetchall()
        put(database, "b")
        assert db.execute("SELECT COUNT(*) FROM things").fetchall() == before
    with pytest.raises(PostgresqlError, match="read-only"):
        asked(database, "DELETE FROM things")
    assert names(database) == ["a", "b"]


def waiting_in(url: str) -> int:
    """Return how many statements of a database wait for a lock."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
        assert found is not None
        return int(found[0])


def asked(database: Database, sql: str) -> list[tuple[object, ...]]:
    with database.asking() as db:
        return db.execute(sql).fetchall()


def test_the_doctor_says_what_a_database_is_good_for(postgresql: databases.Postgresql, database_url: str) -> None:
    good = database_of_ledger(LedgerSettings(kind="postgresql", url=database_url))
    name = database_url.rpartition("/")[2]
    assert (good.mark, good.measured) == ("✔", f"the database {name} at 127.0.0.1 can be asked and written")
    nowhere = database_of_ledger(LedgerSettings(kind="postgresql", url=postgresql.url("nowhere")))
    assert nowhere.is_problem
    assert 'database "nowhere" does not exist' in str(nowhere)
    wrong = database_of_ledger(LedgerSettings(kind="postgresql", url=database_url.replace("%25@", "@")))
    assert wrong.is_problem
    assert "password authentication failed" in str(wrong)
    for said in (good, nowhere, wrong):
        assert databases.PASSWORD not in str(said)
        assert "a%20secret" not in str(said)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_all_names_is_refused_with_its_mend(
    postgresql: databases.Postgresql,
    encoding: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = postgresql.new_database(f"ENCODING '{encoding}' TEMPLATE template0")
    name = url.rpartition("/")[2]
    wanted = (
        f"the database {name} at 127.0.0.1 has the encoding {encoding}, expected UTF8: make another one by "
        "CREATE DATABASE … ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0, and name that"
    )
    settings = LedgerSettings(kind="postgresql", url=url)
    found = database_of_ledger(settings)
    assert (found.mark, found.measured) == ("✘", wanted)
    monkeypatch.setenv("CLUSTER_DASH_LEDGER__KIND", "postgresql")
    monkeypatch.setenv("CLUSTER_DASH_LEDGER__URL", url)
    assert main(["check-config"]) == EXIT_CONFIG
    assert f"ledger.url: {wanted}" in capsys.readouterr().err
    with pytest.raises(ConfigError) as refused:
        create_app(Settings(server=ServerSettings(data=str(tmp_path)), ledger=settings))
    assert str(refused.value) == wanted
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (0,)
    mended = postgresql.new_database(wanted.partition("DATABASE … ")[2].partition(",")[0])
    assert not database_of_ledger(LedgerSettings(kind="postgresql", url=mended)).is_problem


@pytest.mark.usefixtures("capsys")
def test_settings_can_be_looked_at_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_DASH_LEDGER__KIND", "postgresql")
    monkeypatch.setenv("CLUSTER_DASH_LEDGER__URL", "postgresql://dash:secret@127.0.0.1:1/dash")
    assert main(["check-config"]) == 0


def test_texts_are_written_as_utf_8_whatever_this_machine_is_set_to(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    database = Database(database_url)
    database.expects("things", STEPS)
    put(database, "Łukasz 🙂")
    assert names(database) == ["Łukasz 🙂"]
    database.close()


def test_who_has_no_database_imports_nothing_for_one() -> None:
    code = "import sys; from cluster_dash_server.app import create_app; create_app(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("psycopg", "cluster_dash_server.postgresql", "ledger.postgresql", "ledger.lease", "ledger.shared"):
        assert f"{name}'" not in done.stdout
