"""Events, who had which GPU and GPU-hours in a real PostgreSQL, written by several replicas at once.

The suite that all kinds of ledger pass, and against the plainest one: rows that come twice, late, to any replica, and
replicas that end in the middle.
"""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cluster_dash_server.events import EventLog
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.history.postgresql import adding
from cluster_dash_server.history.postgresql import ledger as postgresql
from cluster_dash_server.history.postgresql.ledger import PostgresqlLedger
from cluster_dash_server.history.remote import store as remote
from cluster_dash_server.history.rollups import HOUR
from cluster_dash_server.history.settled import OwnSettled
from cluster_dash_server.postgresql import Database, PostgresqlError
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import (
    HOST_METRICS,
    Event,
    EventQuery,
    Figures,
    KeptEvent,
    SeriesQuery,
    StoreError,
    UsageQuery,
    UseQuery,
)
from tests import databases, engines, suites
from tests.processes import wait_until

suite, rows_of = suites.load("history", "test_stores"), suites.load("history", "conftest")
moving, make_row, make_fleet = suite.moving, rows_of.make_row, rows_of.make_fleet
BEGIN: float = suite.BEGIN
MakeRow = Callable[..., Figures]
MakeFleet = Callable[[int, int, float, float], list[Figures]]
MakeReplica = Callable[..., PostgresqlLedger]
pytestmark = pytest.mark.needs("postgres")
OF_LEDGERS = (
    "test_what_is_durable_counts_without_a_gap_from_the_oldest_on",
    "test_events_come_newest_first_and_one_can_be_replaced",
    "test_two_hours_of_work_are_one_use_and_an_idle_stretch_is_measured",
    "test_a_gpu_that_two_people_share_counts_for_both_and_once_for_all",
    "test_the_running_hour_counts_up_to_now",
    "test_the_running_hour_of_a_user_is_divided_by_what_has_passed_of_it",
    "test_an_hour_of_which_nothing_is_known_is_a_gap_for_users_too",
)
globals().update({name: getattr(suite, name) for name in OF_LEDGERS})


@pytest.fixture
def replica(database_url: str, moving: Any) -> Iterator[MakeReplica]:
    """Makes replicas that share a ledger; the first of them leads unless it is said."""
    made: list[tuple[PostgresqlLedger, Database]] = []

    def make(leads: bool | None = None) -> PostgresqlLedger:
        does_lead = not made if leads is None else leads
        database = Database(database_url)
        made.append((PostgresqlLedger(database, clock=moving, keep=suite.KEEP, leads=lambda: does_lead), database))
        return made[-1][0]

    yield make
    for ledger, database in made:
        ledger.close()
        database.close()


@pytest.fixture
def store(replica: MakeReplica) -> PostgresqlLedger:
    return replica()


def agrees(ledger: PostgresqlLedger, plain: MemoryStore) -> None:
    for used in suite.USED:
        suite.agree(ledger.usage(used), plain.usage(used))
    for use in (
        UseQuery(begin=BEGIN, end=BEGIN + 6 * HOUR),
        UseQuery(begin=BEGIN, end=BEGIN + HOUR, users=("bob",)),
        UseQuery(begin=BEGIN + HOUR, end=BEGIN + 2 * HOUR, hosts=("gpu01",)),
    ):
        suite.agree(ledger.uses(use), plain.uses(use))


@pytest.mark.parametrize("seed", range(2))
def test_whoever_takes_a_row_and_however_often_the_answers_are_those_of_the_plainest_store(
    seed: int, replica: MakeReplica, moving: Any, make_fleet: MakeFleet
) -> None:
    rng = random.Random(seed)
    rows = make_fleet(seed + 2, 4, BEGIN, BEGIN + 4 * HOUR)
    plain, replicas = MemoryStore(moving), [replica() for _ in range(3)]
    late = {id(row) for row in rows if rng.random() < 0.2}
    for is_late in (False, True):
        for row in rows:
            if (id(row) in late) == is_late:
                plain.append(row)
                for each in rng.sample(replicas, rng.choice((1, 1, 1, 2, 3))):
                    each.append(replace(row))
        for each in reversed(replicas):
            each.flush()

    agrees(replicas[0], plain)
    agrees(replicas[2], plain)


def test_the_running_hour_is_told_by_every_replica_and_by_who_leads_next(
    replica: MakeReplica, moving: Any, make_fleet: MakeFleet
) -> None:
    moving.now = BEGIN + HOUR + 1800
    rows = [row for row in make_fleet(5, 3, BEGIN, BEGIN + HOUR + 1800) if row.at < moving.now]
    plain, replicas = MemoryStore(moving), [replica(), replica(), replica(leads=True)]
    for number, row in enumerate(rows):
        plain.append(row)
        replicas[number % 2].append(replace(row))
    replicas[1].flush()
    ask = UsageQuery(begin=BEGIN, end=moving.now, by=("user", "host", "hour"))
    for leader in (replicas[0], replicas[2]):
        leader.flush()
        wanted = {(each.user, each.host, each.hour): each.held_seconds for each in plain.usage(ask)}
        found = {(each.user, each.host, each.hour): each.held_seconds for each in replicas[1].usage(ask)}
        assert wanted.keys() == found.keys()
        for key, seconds in wanted.items():
            newest = 0 if key[2] == BEGIN else 4 * 600  # the newest minute of each of up to 4 GPUs is being counted
            assert found[key] == pytest.approx(seconds, abs=1 + newest), key
    held = UseQuery(begin=BEGIN, end=moving.now)
    assert {(use.host, use.gpu, use.user, use.job, round(use.from_at)) for use in replicas[1].uses(held)} >= {
        (use.host, use.gpu, use.user, use.job, round(use.from_at))
        for use in plain.uses(held)
        if use.to_at < moving.now - 600
    }


def test_two_who_both_think_that_they_lead_count_nothing_twice(
    replica: MakeReplica, moving: Any, make_fleet: MakeFleet
) -> None:
    rows = make_fleet(3, 3, BEGIN, BEGIN + 2 * HOUR)
    plain, leaders = MemoryStore(moving), [replica(leads=True), replica(leads=True)]
    for number, row in enumerate(rows):
        plain.append(row)
        leaders[number % 2].append(replace(row))
    threads = [threading.Thread(target=flush_until_done, args=(each,)) for each in leaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    agrees(leaders[0], plain)


def test_who_led_before_and_slept_overwrites_nothing(
    database_url: str, moving: Any, replica: MakeReplica, make_fleet: MakeFleet
) -> None:
    rows, plain, awake = make_fleet(3, 3, BEGIN, BEGIN + 2 * HOUR), MemoryStore(moving), replica(leads=True)
    for row in rows:
        plain.append(row)

    def sleep(found: Sequence[Figures]) -> None:  # it has read an hour, and wakes when that has been written
        if found and awake.usage(UsageQuery(begin=BEGIN, end=BEGIN + 2 * HOUR, by=())) == []:
            for row in rows[1::2]:
                awake.append(replace(row))
            awake.flush()

    database = Database(database_url)
    sleeper = PostgresqlLedger(database, clock=moving, keep=suite.KEEP, added=sleep)
    try:
        for row in rows[::2]:
            sleeper.append(replace(row))
        with pytest.raises(StoreError, match="somebody else has added up the same hour"):
            sleeper.flush()
        agrees(awake, plain)
    finally:
        sleeper.close()
        database.close()


def flush_until_done(ledger: PostgresqlLedger) -> None:
    for _ in range(50):
        with contextlib.suppress(StoreError):  # the other one was quicker
            ledger.flush()
            return


def event(at: float, kind: str = "xid", gpu: int = 3) -> Event:
    return Event(at=at, host="gpu01", gpu=gpu, kind=kind, code=79, text="fell off")


def test_an_event_that_replicas_hear_each_is_kept_once_and_two_equal_ones_are_two(replica: MakeReplica) -> None:
    first, second = replica(), replica()
    for ledger in (first, second):
        for _ in range(2):
            ledger.record(KeptEvent(event(BEGIN), True, ("boot", 4)))
        ledger.record(KeptEvent(event(BEGIN, "gpu_lost"), False, ("boot", 4)))
        ledger.record(KeptEvent(event(BEGIN + 1), True, ("boot", 4)))
    second.record(KeptEvent(event(BEGIN + 1), True, ("boot", 5)))  # its mole was not sure that it was heard
    second.record(KeptEvent(event(BEGIN + 60, "gpu_lost"), False, ("boot", 9)))
    for ledger in (first, second):
        ledger.flush()

    found = first.events(EventQuery(begin=0, end=2 * BEGIN))
    assert sorted((each.at - BEGIN, each.kind) for each in found) == [
        (0, "gpu_lost"),
        (0, "xid"),
        (0, "xid"),
        (1, "xid"),
        (60, "gpu_lost"),
    ]


def test_what_one_replica_hears_or_takes_back_the_others_are_told(database_url: str, moving: Any) -> None:
    databases_of, logs = [Database(database_url) for _ in range(2)], [EventLog(Thresholds()) for _ in range(2)]
    first, second = (
        PostgresqlLedger(database, clock=moving, keep=suite.KEEP, heard=events.hear)
        for database, events in zip(databases_of, logs, strict=True)
    )
    try:
        assert second.kept_events() == []
        for each in (event(BEGIN), event(BEGIN + 1)):
            first.record(KeptEvent(each, True, ("boot", 4)))
        first.flush()
        second.hear()
        second.hear()
        assert logs[1].newest() == [event(BEGIN + 1), event(BEGIN)]
        first.retract(KeptEvent(event(BEGIN), True, ("boot", 4)))
        first.flush()
        second.hear()
        assert logs[1].newest() == [event(BEGIN + 1)]
        first.forget(["gpu01"])
        first.flush()
        second.hear()
        assert logs[1].newest() == []
    finally:
        for ledger, database in zip((first, second), databases_of, strict=True):
            ledger.close()
            database.close()


def test_a_user_who_is_forgotten_is_in_no_hour_use_or_event_and_may_come_again(
    replica: MakeReplica, moving: Any, make_row: MakeRow
) -> None:
    moving.now = BEGIN + HOUR + 1800
    first, second = replica(), replica()
    for number in range(85):  # an hour that is over, and the running one
        user = "alice" if number % 2 else "bob"
        (first, second)[number % 2].append(make_row(at=BEGIN + 60 * number, seq=number, gpus=2, user=user))
    second.record(KeptEvent(replace(event(BEGIN), text="alice's program"), True, ("boot", 4)))
    second.flush()
    first.flush()
    everybody = UsageQuery(begin=BEGIN, end=BEGIN + 2 * HOUR)
    before = {each.user: each.held_seconds for each in first.usage(everybody)}
    (all_of,) = first.usage(replace(everybody, by=()))
    assert before.keys() == {"alice", "bob"}

    for each in (second, first):  # each is told of the wish
        each.forget_user("alice", lambda last: last)
        each.flush()

    told = second.unnamed("alice")
    assert told is not None
    assert (told.hosts_left, told.host_hours, told.events) == (0, 1, 1)
    assert {each.user: each.held_seconds for each in second.usage(everybody)} == {"bob": pytest.approx(before["bob"])}
    (still,) = first.usage(replace(everybody, by=()))
    assert still.held_seconds == pytest.approx(all_of.held_seconds)
    assert {use.user for use in first.uses(UseQuery(begin=BEGIN, end=BEGIN + 2 * HOUR))} == {"bob"}
    assert [each.text for each in first.events(EventQuery(begin=0, end=2 * BEGIN))] == ["unknown's program"]
    for number in range(85, 90):
        second.append(make_row(at=BEGIN + 60 * number, seq=number, gpus=2, user="alice"))
    second.flush()
    first.flush()
    held = {each.user: each.held_seconds for each in first.usage(everybody)}
    assert 0 < held["alice"] <= 2 * 60 * 6


def test_a_user_whom_a_busy_database_has_yet_to_forget_is_told_as_such(replica: MakeReplica, database_url: str) -> None:
    ledger = replica()
    ledger.flush()
    assert ledger.unnamed("alice") is None
    for _ in range(2):  # the second time it is known from the first
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE forgotten IN ACCESS EXCLUSIVE MODE")
            ledger.forget_user("alice", lambda last: last)
            told = ledger.unnamed("alice")
            assert told is not None
            assert told.hosts_left == 1
        ledger.flush()
        told = ledger.unnamed("alice")
        assert told is not None
        assert told.hosts_left == 0


def test_what_is_too_old_is_let_go_of(replica: MakeReplica, moving: Any, make_row: MakeRow) -> None:
    ledger = replica()
    for number in range(60):
        ledger.append(make_row(at=BEGIN + 60 * number, seq=number))
    ledger.record(KeptEvent(event(BEGIN), True, ("boot", 4)))
    ledger.flush()
    assert ledger.usage(UsageQuery(begin=BEGIN, end=BEGIN + HOUR))

    ledger.prune(BEGIN + 800 * 86_400)

    assert ledger.usage(UsageQuery(begin=BEGIN, end=BEGIN + HOUR)) == []
    assert ledger.uses(UseQuery(begin=BEGIN, end=BEGIN + HOUR)) == []
    assert ledger.events(EventQuery(begin=0, end=2 * BEGIN)) == []


def test_what_is_too_old_goes_though_all_of_it_at_once_takes_longer_than_a_statement_may(
    database_url: str, moving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "PRUNED_AT_ONCE", 4)
    with contextlib.closing(Database(database_url, seconds=2)) as database:
        ledger = PostgresqlLedger(database, clock=moving, keep=suite.KEEP, leads=lambda: False)
        with database.transaction() as db:
            db.execute("INSERT INTO user_days SELECT day, 0, '', '', 1, 1, 1, 1, 1 FROM generate_series(1, 26) AS day")
            db.execute(
                "CREATE FUNCTION slow() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(0.1); RETURN OLD; END' "
                "LANGUAGE plpgsql"
            )
            db.execute("CREATE TRIGGER slow BEFORE DELETE ON user_days FOR EACH ROW EXECUTE FUNCTION slow()")
        try:
            ledger.prune(BEGIN)
            with database.reading() as db:
                assert db.execute("SELECT COUNT(*) FROM user_days").fetchone() == (0,)
        finally:
            ledger.close()


def test_pieces_which_may_be_megabytes_each_go_a_few_at_a_time(database_url: str, moving: Any) -> None:
    with contextlib.closing(Database(database_url)) as database:
        ledger = PostgresqlLedger(database, clock=moving, keep=suite.KEEP, leads=lambda: False)
        with database.transaction() as db:
            db.execute("CREATE TABLE dropped (pieces INTEGER)")
            db.execute(
                "CREATE FUNCTION note() RETURNS trigger AS 'BEGIN INSERT INTO dropped SELECT COUNT(*) FROM gone; "
                "RETURN NULL; END' LANGUAGE plpgsql"
            )
            db.execute(
                "CREATE TRIGGER noted AFTER DELETE ON pieces REFERENCING OLD TABLE AS gone FOR EACH STATEMENT "
                "EXECUTE FUNCTION note()"
            )
            db.execute(
                "INSERT INTO pieces (id, hour, part, is_sealed, body) "
                "SELECT gen_random_uuid(), 0, 0, true, '' FROM generate_series(1, 150)"
            )
        try:
            ledger.prune(BEGIN)
            with database.reading() as db:
                dropped = db.execute("SELECT MAX(pieces), SUM(pieces) FROM dropped").fetchone()
        finally:
            ledger.close()
    assert dropped == (adding.PIECES_AT_ONCE, 150)


def test_what_rows_referred_to_goes_with_them_and_stays_while_it_is_used(
    replica: MakeReplica, database_url: str, make_row: MakeRow
) -> None:
    """Else a host that invents boots or GPUs would fill the tables for ever."""
    ledger, tables = replica(), ("boots", "layouts", "holdings")
    old, new = make_row("old", seq=1, user="bob"), make_row("new", BEGIN + 60, seq=1)
    old.boot_id, new.boot_id = "old", "new"
    ledger.append(old)
    ledger.append(new)
    ledger.flush()
    with contextlib.closing(Database(database_url)) as database, database.transaction() as db:
        for table in tables:
            db.execute(f"UPDATE {table} SET used_at = now() - interval '11 days'")  # noqa: S608 - names of ours
    other = replica()
    again = make_row("new", BEGIN + 120, seq=2)
    again.boot_id = "new"
    other.append(again)
    other.flush()
    ledger.prune(BEGIN + 120)
    with contextlib.closing(Database(database_url)) as database, database.reading() as db:
        counts = [db.execute(f"SELECT COUNT(*) FROM {table}").fetchone() for table in tables]  # noqa: S608 - names of ours
    assert counts == [(1,), (1,), (1,)]


def test_a_boot_that_holds_what_no_text_of_the_database_can_is_kept_like_any_other(
    replica: MakeReplica, make_row: MakeRow, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = replica()
    odd = make_row(seq=5)
    odd.boot_id = "a\0b"
    ledger.append(odd)
    ledger.flush()
    assert ledger.durable_seq("gpu01", "a\0b", 5) == 5
    assert caplog.text == ""
    assert ledger.uses(UseQuery(begin=BEGIN, end=BEGIN + HOUR))


def test_while_the_database_is_away_nothing_is_called_durable_and_nothing_is_lost(
    moving: Any, make_fleet: MakeFleet
) -> None:
    plain, rows = MemoryStore(moving), make_fleet(4, 2, BEGIN, BEGIN + 2 * HOUR)
    with databases.running(is_safe=True) as server:
        database = Database(server.url(), seconds=2)
        ledger = PostgresqlLedger(database, clock=moving, keep=suite.KEEP)
        try:
            claimed: dict[str, int] = {}
            for part in range(6):
                for row in rows[part::6]:
                    plain.append(row)
                    ledger.append(replace(row))
                ledger.record(KeptEvent(event(BEGIN + part), True, ("boot", part)))
                if part % 2:
                    wait_until(lambda: ledger.trouble is not None, 60, "the loss is noticed")
                    with pytest.raises(StoreError):
                        ledger.flush()
                    server.start()
                    wait_until(lambda: ledger.trouble is None, 60, "it is written again")
                else:
                    ledger.flush()
                    for row in rows[part::6]:
                        assert ledger.durable_seq(row.host, str(row.boot_id), row.seq) is not None
                    claimed |= {row.host: row.seq or 0 for row in rows[part::6]}
                    server.kill()
                    for row in rows[part + 1 :: 6]:
                        assert ledger.durable_seq(row.host, str(row.boot_id), row.seq) is None
            ledger.flush()
            agrees(ledger, plain)
            assert len(ledger.events(EventQuery(begin=0, end=2 * BEGIN))) == 6
            assert claimed
        finally:
            ledger.close()
            database.close()


def test_what_was_kept_though_nobody_heard_so_is_kept_once(
    replica: MakeReplica, moving: Any, make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks in the COMMIT, each other time: nobody knows what became of it, and it is done again."""
    monkeypatch.setattr(postgresql, "RETRY_SECONDS", 0.05)
    plain, ledger, rows = MemoryStore(moving), replica(), make_fleet(5, 3, BEGIN, BEGIN + HOUR)
    whole, times = ledger._db.transaction, [0]

    @contextlib.contextmanager
    def cut() -> Iterator[Any]:
        with whole() as db:
            yield db
        times[0] += 1
        if times[0] % 2:
            raise PostgresqlError("cut", is_away=True)

    for number, row in enumerate(rows):
        plain.append(row)
        ledger.append(replace(row))
        if number % 40 == 0:
            ledger.record(KeptEvent(event(BEGIN + number), False, ("boot", number)))
            with monkeypatch.context() as during:
                during.setattr(ledger._db, "transaction", cut)
                wait_until(lambda: written(ledger), 60, "it is written")
    ledger.flush()

    agrees(ledger, plain)
    assert times[0] > 4
    assert len(ledger.events(EventQuery(begin=0, end=2 * BEGIN))) == len(range(0, len(rows), 40))
    newest = rows[-1]
    assert ledger.durable_seq(newest.host, str(newest.boot_id), newest.seq) == newest.seq


def written(ledger: PostgresqlLedger) -> bool:
    with contextlib.suppress(StoreError):
        ledger.write()
        return True
    return False


def test_what_cannot_be_written_does_not_hold_up_the_rest(
    replica: MakeReplica, make_row: MakeRow, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = replica()
    for number in range(20):
        ledger.append(make_row(at=BEGIN + 60 * number, seq=number if number != 13 else 2**70))
        ledger.record(KeptEvent(event(BEGIN + number), True, ("boot", number if number != 3 else 2**70)))
    ledger.flush()

    assert ledger.durable_seq("gpu01", "boot", 14) == 19
    assert ledger.durable_seq("gpu01", "boot", 0) == 12
    assert len(ledger.events(EventQuery(begin=0, end=2 * BEGIN))) == 19
    assert ledger.usage(UsageQuery(begin=BEGIN, end=BEGIN + HOUR))[0].held_seconds > 18 * 60
    assert "cannot be written to the ledger, and is let go of" in caplog.text


def test_what_the_database_will_take_later_is_neither_let_go_of_nor_called_durable(
    replica: MakeReplica, make_row: MakeRow, database_url: str
) -> None:
    ledger, owner = replica(), Database(database_url)
    ledger.append(make_row(at=BEGIN, seq=0))
    ledger.flush()
    with owner.transaction() as db:  # as where a role has lost its right, or a database was made read-only
        db.execute("ALTER TABLE pieces RENAME TO pieces_elsewhere")
    for number in range(1, 4):
        ledger.append(make_row(at=BEGIN + 60 * number, seq=number))
    ledger.record(KeptEvent(event(BEGIN), True, ("boot", 1)))
    with pytest.raises(StoreError, match="pieces"):
        ledger.flush()
    assert ledger.durable_seq("gpu01", "boot", 0) == 0

    with owner.transaction() as db:
        db.execute("ALTER TABLE pieces_elsewhere RENAME TO pieces")
    owner.close()
    wait_until(lambda: ledger.durable_seq("gpu01", "boot", 0) == 3, 60, "it is written after all")
    assert len(ledger.events(EventQuery(begin=0, end=2 * BEGIN))) == 1


def test_a_name_that_is_too_long_for_an_index_holds_up_nobody(replica: MakeReplica, make_row: MakeRow) -> None:
    ledger = replica()
    too_long = f"{random.Random(1).getrandbits(16_000):x}"  # which no index can hold, packed neither
    ledger.append(replace(make_row(at=BEGIN, seq=0), boot_id=too_long))
    ledger.append(make_row(at=BEGIN + 60, seq=1))
    ledger.flush()
    assert ledger.durable_seq("gpu01", "boot", 1) == 1


def test_when_too_much_waits_posts_are_to_wait_too(moving: Any) -> None:
    ledger = PostgresqlLedger(Database("postgresql://nobody@127.0.0.1:1/none"), clock=moving, keep=suite.KEEP)
    try:
        for number in range(10_000):
            assert ledger.refusal is None
            ledger.record(KeptEvent(event(BEGIN + number), True, ("boot", number)))
        assert "10000 events wait to be written" in str(ledger.refusal)
    finally:
        ledger.close()


def with_interval(row: Figures) -> Figures:
    """Return a row whose host says its interval: where it does not, a store guesses it of more rows or fewer."""
    place = HOST_METRICS.index("interval_seconds") - len(HOST_METRICS)
    if row.values[place] != row.values[place]:
        row.values[place] = 60.0
    return row


@pytest.mark.needs("victoria-metrics")
def test_figures_that_replicas_took_in_turn_are_those_of_the_plainest_store(
    database_url: str, tmp_path: Path, moving: Any, make_fleet: MakeFleet
) -> None:
    """Rows of the cluster are made of all rows, though each replica took a part of them."""
    rows = [with_interval(row) for row in make_fleet(3, 4, BEGIN, BEGIN + 2 * HOUR)]
    plain, pace = MemoryStore(moving), remote.Pace(flush_seconds=60, settle_seconds=0, window_seconds=None)
    with engines.running("victoria-metrics", tmp_path) as engine:
        databases_of, replicas = [Database(database_url) for _ in range(2)], []
        for number, database in enumerate(databases_of):
            store = remote.RemoteStore(engine.access, "of replicas", pace, moving, sees_all=False)
            ledger = PostgresqlLedger(
                database, clock=moving, keep=suite.KEEP, leads=partial(bool, number == 0), added=store.add_up
            )
            replicas.append(remote.shared(store, ledger, OwnSettled()))
        try:
            for number, row in enumerate(rows):
                plain.append(replace(row))
                replicas[number % 2].append(row)
            assert replicas[0].durable_seq(rows[0].host, str(rows[0].boot_id), rows[0].seq) is None
            for each in reversed(replicas):
                each.flush()
            assert replicas[0].durable_seq(rows[0].host, str(rows[0].boot_id), rows[0].seq) == rows[0].seq
            whole = SeriesQuery(metric="total_gpus", begin=BEGIN, end=BEGIN + 2 * HOUR, by="cluster", step_seconds=60)
            (wanted,) = plain.series(whole)

            def is_visible() -> bool:
                engine.flush()
                return [list(line.mean) for line in replicas[1].series(whole)] == [pytest.approx(list(wanted.mean))]

            wait_until(is_visible, 20, "all is visible")
            for ask in suite.ASKED:
                suite.agree(replicas[1].series(ask), plain.series(ask))
        finally:
            for each, database in zip(replicas, databases_of, strict=True):
                each.close()
                database.close()
