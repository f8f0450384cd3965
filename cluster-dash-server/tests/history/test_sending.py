"""What happens to figures on their way to an engine that refuses, fails, hangs up, or is away."""

import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cramjam
import pytest

from cluster_dash_server.history.remote import sending
from cluster_dash_server.history.remote.encoding import Encoder
from cluster_dash_server.history.remote.engine import Access, Answer
from cluster_dash_server.history.remote.recording import Recorder
from cluster_dash_server.history.remote.sending import Item, Sender, Snapshot
from cluster_dash_server.store import Figures

BEGIN = 1_699_999_200.0
MakeRow = Callable[..., Figures]
MakeFleet = Callable[[int, int, float, float], list[Figures]]


class Engine:
    """Takes requests, and answers each as `judge` says: a status, and whether the connection is kept."""

    def __init__(self) -> None:
        self.judge: Callable[[bytes], int] = lambda body: 204
        self.keeps = True
        self.taken: list[bytes] = []
        self.asked = 0
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                packed = self.rfile.read(int(self.headers["Content-Length"]))
                body = bytes(cramjam.snappy.decompress_raw(packed))
                engine.asked += 1
                status = engine.judge(body)
                if status == 0:  # it dies before it answers
                    self.close_connection = True
                    return
                if status < 300 and body:
                    engine.taken.append(body)
                self.send_response(status)
                words = b"" if status == 204 else b"its words"
                self.send_header("Content-Length", str(len(words)))
                if not engine.keeps:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(words)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.access = Access(
            write_url=f"http://127.0.0.1:{self._server.server_port}/api/v1/write",
            read_url=f"http://127.0.0.1:{self._server.server_port}",
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def has(self, text: str) -> int:
        """Return in how many requests that were taken something stands."""
        return sum(text.encode() in body for body in self.taken)


class Sending:
    """A sender, its clock, and what it said is settled."""

    def __init__(self, engine: Engine, **more: float | None) -> None:
        self.now = 0.0
        self.settled: list[str] = []
        options: dict[str, float | None] = {"settle_seconds": 0, "window_seconds": None, **more}
        self.sender = Sender(
            engine.access,
            Encoder("lab"),
            self._settled,
            clock=lambda: BEGIN + 60,
            monotonic=lambda: self.now,
            **options,  # type: ignore[arg-type]
        )

    def _settled(self, items: Iterable[Item]) -> None:
        self.settled += [item.row.host for item in items if isinstance(item, Snapshot)]

    def put(self, *rows: Figures) -> None:
        items = [Snapshot.of(row) for row in rows]
        assert all(self.sender.reserve(item.size) for item in items)
        self.sender.put(items)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., Sending]]:
    made: list[Sending] = []

    def start(**more: float | None) -> Sending:
        made.append(Sending(engine, **more))
        return made[-1]

    yield start
    for each in made:
        each.sender.close()


Start = Callable[..., Sending]


def test_what_the_engine_took_is_settled(engine: Engine, start: Start, make_row: MakeRow) -> None:
    sending = start()
    sending.put(make_row("a"), make_row("b"))

    sending.sender.send()

    assert sending.settled == ["a", "b"]
    assert len(engine.taken) == 1


def test_a_bad_sample_is_found_and_all_others_are_taken(engine: Engine, start: Start, make_row: MakeRow) -> None:
    def judge(body: bytes) -> int:
        return 400 if b"host_load1" in body and b"bad" in body else 204

    engine.judge = judge
    sending = start()
    bad = make_row("bad")
    bad.values[-5] = 3.0
    sending.put(make_row("a"), make_row("b"), bad, make_row("c"), make_row("d"))

    sending.sender.send()

    assert sorted(sending.settled) == ["a", "b", "bad", "c", "d"]
    assert sending.sender.refused == 1
    assert engine.has("bad")
    assert sending.sender.trouble is None
    assert engine.asked < 30


@pytest.mark.parametrize("status", [400, 413, 422, 429, 500, 503, 401, 404, 302, 0])
def test_what_fails_is_said_in_words_kept_and_tried_again(
    status: int, engine: Engine, start: Start, make_row: MakeRow
) -> None:
    engine.judge = lambda body: status
    sending = start()
    sending.put(make_row("a"))

    wait = sending.sender.send()

    assert 0.5 < wait < 2
    assert sending.settled == []
    assert "127.0.0.1" in str(sending.sender.trouble)
    asked = engine.asked
    sending.sender.send()
    assert engine.asked == asked  # not before its time
    engine.judge = lambda body: 204
    sending.now += 2
    sending.sender.send()
    assert (sending.settled, sending.sender.trouble) == (["a"], None)


@pytest.mark.parametrize("has_taken", [True, False])
@pytest.mark.parametrize("hosts", [1, 40])
def test_an_engine_that_refuses_everything_costs_nothing_but_time(
    hosts: int, has_taken: bool, engine: Engine, start: Start, make_row: MakeRow
) -> None:
    """A wrong path, a proxy, a limit: nothing of what it refuses is bad, and it is not asked for each sample."""
    sending = start()
    before = [make_row("before", BEGIN - 5)] if has_taken else []
    sending.put(*before)
    sending.sender.send()
    engine.judge = lambda body: 400
    names = [f"host{number:02}" for number in range(hosts)]
    for round_ in range(6):
        sending.put(*(make_row(name, BEGIN + round_, seq=round_) for name in names))
        before_asked = engine.asked
        sending.sender.send()
        assert engine.asked - before_asked <= 5
        assert "400: its words, whatever it is sent" in str(sending.sender.trouble)
        sending.now += 60
    assert (sending.settled, sending.sender.refused) == (["before"] * has_taken, 0)

    engine.judge = lambda body: 204
    sending.sender.send()

    assert sorted(sending.settled) == sorted(["before"] * has_taken + names * 6)
    assert (sending.sender.refused, sending.sender.trouble, sending.sender.is_idle) == (0, None, True)
    assert all(engine.has(name) for name in names)


def test_samples_that_all_are_bad_are_let_go_of_once_others_are_taken(
    engine: Engine, start: Start, make_row: MakeRow
) -> None:
    """As those of which the engine has newer ones already: the first that it takes stand behind them."""
    sending = start()
    engine.judge = lambda body: 400 if b"stale" in body else 204
    sending.put(*(make_row(f"stale{number}", BEGIN, gpus=1) for number in range(3)))
    sending.sender.send()
    assert (sending.settled, "whatever it is sent" in str(sending.sender.trouble)) == ([], True)

    sending.now += 60
    sending.put(make_row("good", BEGIN + 30))
    sending.sender.send()

    assert sorted(sending.settled) == ["good", "stale0", "stale1", "stale2"]
    assert engine.has("stale") == 0
    assert sending.sender.refused == 3 * series_of(make_row("stale"))
    assert sending.sender.trouble is None


def series_of(row: Figures) -> int:
    return len(Snapshot.of(row).parts(Encoder("lab")))


def test_an_engine_that_begins_to_refuse_everything_while_a_bad_sample_is_looked_for_costs_that_one_at_most(
    engine: Engine, start: Start, make_row: MakeRow
) -> None:
    for turn in range(2, 26):
        engine.asked = 0
        engine.judge = lambda body, turn=turn: 400 if b"bad" in body or engine.asked > turn else 204  # type: ignore[misc]
        sending = start()
        sending.put(*(make_row(name, BEGIN) for name in ("a", "b", "bad", "c", "d")))
        sending.sender.send()
        assert sending.sender.refused <= series_of(make_row("bad"))
        engine.judge = lambda body: 400 if b"bad" in body else 204
        sending.now += 60
        sending.sender.send()
        assert sorted(sending.settled) == ["a", "b", "bad", "c", "d"]
        assert sending.sender.refused == series_of(make_row("bad"))


def test_a_bad_sample_of_a_site_of_one_host_is_found(engine: Engine, start: Start, make_row: MakeRow) -> None:
    engine.judge = lambda body: 400 if b"host_load1" in body else 204
    sending = start()
    for number in range(3):
        bad = make_row("only", BEGIN + number, seq=number)
        bad.values[-5] = 3.0
        sending.put(bad)
        sending.sender.send()
        sending.now += 10
        sending.sender.send()
    assert (sending.settled, sending.sender.refused, sending.sender.trouble) == (["only"] * 3, 3, None)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_a_proxy_took_whose_engine_went_is_sent_again(
    status: int, engine: Engine, start: Start, make_row: MakeRow
) -> None:
    """The connection to the proxy never broke, and the engine behind it may have lost its last seconds."""
    sending = start(settle_seconds=15)
    sending.put(make_row("host-a"))
    sending.sender.send()
    engine.judge = lambda body: status
    sending.put(make_row("host-b"))
    for _ in range(3):
        sending.now += 5
        sending.sender.send()
    engine.judge = lambda body: 204
    sending.now += 12
    sending.sender.send()
    assert (sending.settled, engine.has("host-a")) == ([], 2)
    sending.now += 15
    sending.sender.send()
    assert sorted(sending.settled) == ["host-a", "host-b"]


class BusyNowAndThen:
    """A connection to an engine that says 503 once in ten seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.count = 1
        self.asked = 0
        self._clock = clock
        self._next = 10.0

    def post(self, path: str, body: bytes, headers: object) -> Answer:
        self.asked += 1
        if self._clock() < self._next:
            return Answer(204, b"", True, None)
        self._next += 10
        return Answer(503, b"busy", True, None)

    def close(self) -> None: ...


def test_a_single_503_now_and_then_keeps_nothing_from_being_settled(start: Start, make_row: MakeRow) -> None:
    sending = start(settle_seconds=15)
    connection = BusyNowAndThen(lambda: sending.now)
    sending.sender._connection = connection  # type: ignore[assignment]
    for number in range(180):
        sending.now += 1
        sending.put(make_row(f"host-{number}"))
        sending.sender.send()

    assert len(sending.settled) > 150
    assert connection.asked < 220


def test_an_engine_that_is_away_is_asked_ever_more_rarely(start: Start, make_row: MakeRow, engine: Engine) -> None:
    engine.judge = lambda body: 503
    sending = start()
    sending.put(make_row("a"))
    waits = []
    for _ in range(10):
        waits.append(sending.sender.send())
        sending.now += 40

    assert waits[3] > 2 * waits[0]
    assert max(waits) < 40


def test_old_and_new_never_share_a_request_and_the_old_do_not_hold_up_the_new(
    engine: Engine, start: Start, make_row: MakeRow
) -> None:
    engine.judge = lambda body: 500 if b"old" in body else 204
    sending = start()
    sending.put(make_row("old", BEGIN - 7200), make_row("new", BEGIN))

    sending.sender.send()

    assert sending.settled == ["new"]


def test_what_makes_an_engine_fail_while_others_pass_is_looked_for(
    engine: Engine, start: Start, make_row: MakeRow
) -> None:
    engine.judge = lambda body: 500 if b"old-2" in body and b"power" in body else 204
    sending = start()
    sending.put(*(make_row(f"old-{number}", BEGIN - 7200) for number in range(4)))
    for number in range(60):
        sending.put(make_row(f"new-{number}", BEGIN))
        sending.sender.send()
        sending.now += 40

    assert {f"old-{number}" for number in range(4)} < set(sending.settled)
    assert sending.sender.refused == 1


def test_what_is_older_than_the_window_is_counted_and_not_sent(engine: Engine, start: Start, make_row: MakeRow) -> None:
    sending = start(window_seconds=3600)
    sending.put(make_row("old", BEGIN - 7200), make_row("far", 5.0), make_row("new", BEGIN))

    sending.sender.send()

    assert sorted(sending.settled) == ["far", "new", "old"]  # nobody will keep it: its mole may let it go
    assert sending.sender.too_old == 2
    assert not engine.has("old")


def test_a_yes_counts_once_the_connection_has_lived_on(engine: Engine, start: Start, make_row: MakeRow) -> None:
    sending = start(settle_seconds=15)
    sending.put(make_row("a"))
    assert sending.sender.send() == 15
    sending.now += 14
    sending.put(make_row("b"))
    sending.sender.send()
    assert sending.settled == []
    sending.now += 1
    sending.sender.send()
    assert sending.settled == ["a"]
    sending.now += 14
    sending.sender.send()
    assert sending.settled == ["a", "b"]
    assert len(engine.taken) == 2


def test_what_was_not_settled_when_the_connection_broke_is_sent_again(
    engine: Engine, start: Start, make_row: MakeRow
) -> None:
    sending = start(settle_seconds=15)
    sending.put(make_row("host-a"))
    sending.sender.send()
    engine.judge = lambda body: 0
    sending.now += 15
    sending.sender.send()
    assert sending.settled == []
    engine.judge = lambda body: 204
    sending.now += 5
    sending.sender.send()
    assert engine.has("host-a") == 2
    assert sending.settled == []
    sending.now += 15
    sending.sender.send()
    assert sending.settled == ["host-a"]


def test_an_engine_that_ends_each_connection_is_told_of(engine: Engine, start: Start, make_row: MakeRow) -> None:
    engine.keeps = False
    sending = start(settle_seconds=15)
    sending.put(make_row("a"))
    for _ in range(4):
        sending.sender.send()
        sending.now += 60

    assert "ends each connection" in str(sending.sender.trouble)
    assert sending.settled == []
    assert engine.asked < 12


def test_no_more_waits_than_there_is_room_for(
    start: Start, make_row: MakeRow, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    item = Snapshot.of(make_row("a"))
    monkeypatch.setattr(sending, "MOST_BYTES", 2 * item.size)
    assert [first.sender.reserve(item.size) for _ in range(3)] == [True, True, False]

    first.sender.put([item, replace(item)])
    first.sender.send()

    assert first.sender.reserve(2 * item.size)


def test_a_snapshot_that_cannot_be_said_holds_up_no_other(engine: Engine, start: Start, make_row: MakeRow) -> None:
    sending = start()
    odd = replace(make_row("odd"), values=array("f", [1.0]))
    sending.put(make_row("a"), odd, make_row("b"))

    sending.sender.send()

    assert sorted(sending.settled) == ["a", "b", "odd"]
    assert (engine.has("odd"), sending.sender.refused) == (0, 1)


def test_where_nothing_can_be_said_nothing_is_asked(engine: Engine, start: Start, make_row: MakeRow) -> None:
    engine.judge = lambda body: 204 if body else 400
    sending = start()
    odd = replace(make_row("odd"), values=array("f", [1.0]))
    sending.put(odd)

    sending.sender.send()

    assert (sending.settled, engine.asked, sending.sender.refused) == (["odd"], 0, 1)


# ---------------------------------------------------------------------------------------------- what is recorded


def test_a_minute_is_recorded_once_and_late_rows_do_not_change_it(make_row: MakeRow) -> None:
    recorder = Recorder("lab")
    for number in range(10):
        recorder.take(make_row(at=BEGIN + 60 * number, seq=number))
    assert recorder.due(BEGIN + 600) == [BEGIN + 60 * number for number in range(8)]
    given = list(recorder.give(recorder.due(BEGIN + 600), but=set()))
    assert [minute for minute, parts in given if parts] == [BEGIN + 60 * number for number in range(8)]

    recorder.take(make_row("late", BEGIN + 30, seq=1))
    recorder.take(make_row("late", BEGIN + 90, seq=2))

    assert recorder.due(BEGIN + 600) == []  # something may still be added
    late = recorder.due(BEGIN + 600, also_late=True)
    assert BEGIN in late
    assert list(recorder.give(late, but=set(late))) == []


def test_a_host_that_posts_rarely_counts_in_each_minute_between(make_row: MakeRow) -> None:
    recorder = Recorder("lab")
    for number in range(4):
        recorder.take(make_row(at=BEGIN + 300 * number, seq=number, interval=300.0))
        recorder.due(BEGIN + 300 * number + 10)

    minutes = recorder.due(BEGIN + 1000)

    assert minutes == [BEGIN + 60 * number for number in range(14)]
