"""The book of alerts in a real PostgreSQL: the suite that all kinds of book pass, and what only replicas can do."""

import inspect
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_dash_server.alerts.book import Book, BookError, NoLongerLeads, Transition
from cluster_dash_server.ledger import lease
from cluster_dash_server.ledger.lease import EVALUATOR, Lease
from cluster_dash_server.ledger.postgresql import WELL_SECONDS, PostgresqlBook
from cluster_dash_server.postgresql import Database
from tests import databases, suites
from tests.processes import wait_until

suite = suites.load("ledger", "test_book")
FIXTURES = {"book", "again"}
"""What the suite asks for; what asks for more is about files."""
NOW: float = suite.NOW
began, ended, notice, to, waiting = suite.began, suite.ended, suite.notice, suite.to, suite.waiting
globals().update(
    {
        name: found
        for name, found in vars(suite).items()
        if name.startswith("test_") and {"book"} <= set(inspect.signature(found).parameters) <= FIXTURES
    }
)

pytestmark = pytest.mark.needs("postgres")


class Hands:
    """A clock that is moved by hand."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def open_database(database_url: str) -> Iterator[Callable[[], Database]]:
    opened = []

    def open_it() -> Database:
        opened.append(Database(database_url))
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


@pytest.fixture
def replica(open_database: Callable[[], Database]) -> Callable[[str], PostgresqlBook]:
    """Open the book as another replica does, one that has run for a while."""

    def open_it(holder: str) -> PostgresqlBook:
        monotonic = Hands(0.0)
        book = PostgresqlBook(open_database(), lambda: NOW + 1_000, holder=holder, monotonic=monotonic)
        monotonic.at = WELL_SECONDS
        return book

    return open_it


@pytest.fixture
def book(open_database: Callable[[], Database]) -> PostgresqlBook:
    """A book of a replica that leads by fence 0, as the suite supposes."""
    database = open_database()
    book = PostgresqlBook(database, lambda: NOW, holder="suite")
    with database.transaction() as db:
        db.execute("INSERT INTO lease VALUES (?, 'suite', 0, clock_timestamp())", (EVALUATOR,))
    return book


@pytest.fixture
def again(replica: Callable[[str], PostgresqlBook]) -> Callable[[], Book]:
    return lambda: replica("again")


def fence_of(book: PostgresqlBook, holder: str, seconds: float = 60.0) -> int | None:
    with book._database.reading() as db:
        return lease.take(db, EVALUATOR, holder, seconds)


def run_out(book: PostgresqlBook) -> None:
    with book._database.transaction() as db:
        db.execute("UPDATE lease SET expires_at = clock_timestamp() WHERE name = ?", (EVALUATOR,))


def test_what_ended_is_kept_for_as_long_as_it_is_said(open_database: Callable[[], Database]) -> None:
    clock = Hands(NOW)
    book = PostgresqlBook(open_database(), clock, holder="a", kept_seconds=86_400.0)
    fence = fence_of(book, "a")
    assert fence is not None
    book.commit([began(to("ops", notice())), ended(name="a1")], fence)
    clock.at = NOW + 90_000
    book.commit([began(name="a2")], fence)
    assert [each.id for each in book.history(0, NOW + 100_000, 10)] == ["a2"]


def test_one_replica_leads_until_its_time_is_over(replica: Callable[[str], PostgresqlBook]) -> None:
    one, two = replica("one"), replica("two")
    first = fence_of(one, "one")
    assert first is not None
    assert fence_of(two, "two") is None
    assert fence_of(one, "one") == first  # renewed: nothing to begin anew for
    run_out(one)
    second = fence_of(two, "two")
    assert second is not None
    assert second > first
    assert fence_of(one, "one") is None


def test_who_slept_and_wakes_writes_nothing(replica: Callable[[str], PostgresqlBook]) -> None:
    one, two = replica("one"), replica("two")
    first = fence_of(one, "one")
    assert first is not None
    one.commit([began()], first)
    run_out(one)
    second = fence_of(two, "two")
    assert second is not None
    with pytest.raises(NoLongerLeads):
        one.commit([ended()], first)
    assert [each.id for each in one.firing()] == ["a1"]
    two.commit([ended()], second)
    assert two.firing() == []


def test_who_leads_begins_anew_after_a_user_was_forgotten_on_any_replica(
    replica: Callable[[str], PostgresqlBook],
) -> None:
    one, two = replica("one"), replica("two")
    first = fence_of(one, "one")
    assert first is not None
    his = replace(suite.alert(), user="zoe", title="zoe holds it")
    one.commit([Transition(kind="began", alert=his, at=NOW, memory="")], first)
    assert two.forget_user("zoe") > 0
    with pytest.raises(NoLongerLeads):  # what it has in mind still names her
        one.commit([Transition(kind="changed", alert=his, at=NOW, memory="")], first)
    second = fence_of(one, "one")
    assert second is not None
    assert second > first
    assert [each.user for each in two.firing()] == ["unknown"]


def test_while_somebody_writes_nobody_takes_their_place(replica: Callable[[str], PostgresqlBook]) -> None:
    one, two = replica("one"), replica("two")
    fence = fence_of(one, "one")
    assert fence is not None
    run_out(one)
    taken: list[int | None] = []
    thread = threading.Thread(target=lambda: taken.append(fence_of(two, "two")))
    with one._writing() as db:
        one._check(db, fence)
        thread.start()
        thread.join(0.3)
        assert taken == []  # it waits for the end of the transaction
    thread.join()
    assert taken == [fence + 1]


def test_of_two_replicas_one_tells_a_receiver(replica: Callable[[str], PostgresqlBook]) -> None:
    one, two = replica("one"), replica("two")
    one.put([("ops", notice(key="k1")), ("ops", notice(key="k2")), ("chat", notice(key="k1"))], NOW)
    first, second, chat = one.due(NOW + 1, 10)
    assert one.claim(first, 60)
    assert not two.claim(second, 60)  # it would come before the first
    assert two.claim(chat, 60)
    one.sent(first.row, NOW)
    one.release("ops")
    assert not two.claim(first, 60)  # read as due before it was sent
    assert two.claim(second, 60)


def test_what_a_replica_that_died_had_claimed_is_sent_by_another(replica: Callable[[str], PostgresqlBook]) -> None:
    one, two = replica("one"), replica("two")
    one.put([("ops", notice())], NOW)
    (found,) = one.due(NOW + 1, 10)
    assert one.claim(found, -1)
    assert two.claim(found, 60)
    assert not one.claim(found, 60)


def test_nothing_is_taken_over_right_after_the_database_was_away(own: databases.Postgresql) -> None:
    url = own.new_database()
    clock = Hands(0.0)
    one, two = (PostgresqlBook(Database(url), lambda: NOW, holder=name, monotonic=clock) for name in ("one", "two"))
    clock.at = WELL_SECONDS
    one.put([("ops", notice())], NOW)
    (found,) = one.due(NOW + 1, 10)
    assert one.claim(found, -1)
    own.stop()
    for each in (one, two):
        with pytest.raises(BookError, match="alerts cannot be kept"):
            each.firing()
        assert each.trouble is not None
        assert databases.PASSWORD not in each.trouble
    own.start()
    wait_until(lambda: answers(one), what="it is asked again")
    wait_until(lambda: answers(two), what="it is asked again")
    assert (one.trouble, two.trouble) == (None, None)
    assert not two.claim(found, 60)
    one.sent(found.row, NOW)  # it was sent while the database was away, and is noted now
    clock.at += WELL_SECONDS
    assert not two.claim(found, 60)
    for each in (one, two):
        each._database.close()


def answers(book: Book) -> bool:
    try:
        book.firing()
    except BookError:
        return False
    return True


@pytest.fixture
def own() -> Iterator[databases.Postgresql]:
    """A server for one test, which ends it."""
    with databases.running() as server:
        yield server


def test_replicas_that_put_the_same_notice_at_once_put_it_once(replica: Callable[[str], PostgresqlBook]) -> None:
    books = [replica(str(number)) for number in range(4)]
    start = threading.Barrier(4)

    def put(book: PostgresqlBook) -> None:
        start.wait()
        book.put([("ops", notice(key=f"digest:{number}")) for number in range(10)], NOW)

    threads = [threading.Thread(target=put, args=(book,)) for book in books]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.notice.key for each in books[0].due(NOW + 1, 100)) == sorted(
        f"digest:{number}" for number in range(10)
    )


# -------------------------------------------------------------------------------------------------- lease and fence


@pytest.mark.usefixtures("long_leases")
def test_who_ends_in_good_order_is_followed_at_once(open_database: Callable[[], Database]) -> None:
    one, two = (Lease(open_database(), EVALUATOR, name) for name in ("one", "two"))
    taken: list[str] = []
    one.when_taken.append(lambda: taken.append("one"))
    two.when_taken.append(lambda: taken.append("two"))
    one.start()
    wait_until(one.leads, 60)
    two.start()
    one.stop()
    assert not one.leads()
    wait_until(two.leads, 60)
    two.stop()
    assert taken == ["one", "two"]


def test_who_cannot_renew_leads_no_longer_than_the_database_says(own: databases.Postgresql) -> None:
    clock = Hands(0.0)
    database = Database(own.new_database())
    alone = Lease(database, EVALUATOR, "alone", clock=clock)
    alone.renew()
    assert alone.leads()
    own.stop()
    clock.at = lease.SECONDS - 0.1
    alone.renew()
    assert alone.leads()
    clock.at = lease.SECONDS
    assert not alone.leads()
    database.close()


@pytest.mark.usefixtures("long_leases")
def test_who_leads_and_ends_no_round_lets_another_one_lead(open_database: Callable[[], Database]) -> None:
    clock = Hands(0.0)
    one, two = (Lease(open_database(), EVALUATOR, name, clock=clock) for name in ("one", "two"))

    def pass_time(seconds: float) -> list[bool]:
        for _ in range(int(seconds)):
            clock.at += 1
            one.renew()
            two.renew()
        return [one.leads(), two.leads()]

    one.renew()
    assert pass_time(lease.STUCK_SECONDS - 1) == [True, False]
    one.well()
    assert pass_time(lease.STUCK_SECONDS - 1) == [True, False]
    assert pass_time(1) == [False, True]
    two.well()
    assert pass_time(lease.STUCK_SECONDS - 1) == [False, True]
    two.well()
    two._give_up()
    assert pass_time(1) == [True, False]  # it has rested, and tries again


@pytest.mark.usefixtures("long_leases")
def test_where_nobody_gets_a_round_done_they_take_turns(open_database: Callable[[], Database]) -> None:
    clock = Hands(0.0)
    alone = Lease(open_database(), EVALUATOR, "alone", clock=clock)
    led = []
    for _ in range(int(2 * (lease.STUCK_SECONDS + lease.REST_SECONDS))):
        alone.renew()
        led.append(alone.leads())
        clock.at += 1
    turns = [True] * int(lease.STUCK_SECONDS) + [False] * int(lease.REST_SECONDS)
    assert led == turns * 2


class Replica:
    """A replica that sleeps when it is told to, in the middle of whatever it does."""

    def __init__(self, name: str, book: PostgresqlBook, clock: Hands) -> None:
        self.book = book
        self.lease = Lease(book._database, EVALUATOR, name, clock=clock)
        self.mind: int | None = None  # the fence of the round under way: it began before the sleep


@pytest.fixture
def long_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no lease run out by the clock of a machine that is slow."""
    monkeypatch.setattr(lease, "SECONDS", 3_600.0)


@pytest.fixture
def books(replica: Callable[[str], PostgresqlBook]) -> list[PostgresqlBook]:
    return [replica(name) for name in ("one", "two", "three")]


@pytest.mark.usefixtures("long_leases")
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_sleeps_when_nobody_writes_after_another_has_led(
    books: list[PostgresqlBook], data: st.DataObject
) -> None:
    number = random.getrandbits(32)  # each example has replicas and alerts of its own
    clock = Hands(0.0)
    replicas = [Replica(f"{number}-{place}", book, clock) for place, book in enumerate(books)]
    run_out(books[0])
    newest = 0
    written: list[int] = []
    for step in range(data.draw(st.integers(1, 20), "steps")):
        each = replicas[data.draw(st.integers(0, 2), "who")]
        match data.draw(st.sampled_from(["renew", "begin", "write", "time passes"]), "what"):
            case "renew":
                each.lease.renew()
                newest = max(newest, each.lease.fence() or 0)
            case "begin":
                each.mind = each.lease.fence()
            case "write":
                if each.mind is None:
                    continue
                try:
                    each.book.commit([began(name=f"{number}-{step}")], each.mind)
                except NoLongerLeads:
                    assert each.mind < newest
                else:
                    written.append(each.mind)
                    assert each.mind == newest
            case _:
                clock.at += lease.SECONDS
                run_out(each.book)
        assert sum(one.lease.leads() for one in replicas) <= 1
    assert written == sorted(written)
