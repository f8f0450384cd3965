"""What is settled, as all replicas know it: joined alike everywhere, and never claimed falsely, whoever ends when."""

import random
from array import array
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_dash_server.history.boots import MOST_BOOTS
from cluster_dash_server.history.remote import sending
from cluster_dash_server.history.remote.engine import Access, Answer, EngineError
from cluster_dash_server.history.remote.sending import Item, Sender, Snapshot
from cluster_dash_server.history.seqs import Seqs
from cluster_dash_server.history.settled import Identity
from cluster_dash_server.sharing.replica import SETTLED_A_TICK, TAKEN_OVER_SECONDS
from cluster_dash_server.sharing.settled import GROUPS, MOST_RANGES, Row, Told, from_bytes, to_bytes
from cluster_dash_server.store import Figures

LONG_SEQ = 2**60
"""More than JSON has in other languages."""
NUMBERS = st.lists(st.integers(0, 90) | st.integers(LONG_SEQ - 9, LONG_SEQ), min_size=1, max_size=60)


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    seqs = Seqs()
    for number in numbers:
        seqs.add(number)
    return seqs.ranges()


@given(NUMBERS, NUMBERS)
def test_ranges_joined_hold_the_numbers_of_both(one: list[int], other: list[int]) -> None:
    seqs = Seqs(ranges_of(one))
    seqs.join(ranges_of(other))
    assert seqs.ranges() == ranges_of([*one, *other])


@given(
    st.lists(
        st.builds(Told, st.text(), st.text(), st.integers(0, 2**33), NUMBERS.map(lambda numbers: ranges_of(numbers)))
    )
)
def test_a_row_is_read_as_it_was_told(told: list[Told]) -> None:
    row = Row(7, 1_700_000_000.000001, told)
    assert from_bytes(to_bytes(row)) == row


@pytest.mark.parametrize(
    "row",
    [
        *(b"", b"1700000000000000 1-5,7-9", b"null", b"[1,2]", b"[1,2,[[]]]", b'[1,2,[["a","b",3,[4]]]]', b"\xff"),
        *(b"[Infinity,2,[]]", b'[1,2,[["a","b",NaN,[]]]]', b'{"a":1}', b'[1,2,[["a","b",3,[[4,null]]]]]'),
    ],
)
def test_bytes_that_are_no_row_are_a_value_error(row: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_bytes(row)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["gpu01", "gpu02", "\ud800"]), NUMBERS), max_size=6))
def test_replicas_know_all_that_any_of_them_settled(
    make_server: Any, kind: Any, told: list[tuple[int, str, list[int]]]
) -> None:
    kind.lose_all()
    servers = [make_server() for _ in range(3)]
    for who, host, numbers in told:
        servers[who].settled.add([Identity(host, "b", number) for number in numbers])
        servers[who].replica.tick()
        make_server.now.now += 3
    for _ in range(2):
        for server in servers:
            server.replica.tick()
        make_server.now.now += 3
    for server in servers:
        for _, host, numbers in told:
            known = ranges_of(number for _, name, those in told if name == host for number in those)
            assert all(server.settled.knows(host, "b", number) for number in numbers), known


def test_what_one_replica_settled_all_claim_and_one_that_comes_later(make_server: Any) -> None:
    one, other = make_server(), make_server()
    one.settled.add([Identity("gpu01", "b", seq) for seq in (5, 7)])
    other.settled.add([Identity("gpu01", "b", seq) for seq in (6, LONG_SEQ)])
    for server in (one, other, one):
        server.replica.tick()
    late = make_server()
    late.replica.tick()
    assert [each.settled.last_from("gpu01", "b", 5) for each in (one, other, late)] == [7, 7, 7]
    assert late.settled.last_from("gpu01", "b", 4) is None
    assert late.settled.last_from("gpu01", "another", 5) is None
    assert [each.settled.last_from("gpu01", "b", LONG_SEQ) for each in (one, other, late)] == 3 * [LONG_SEQ]
    for server in (one, other, late):
        server.replica.tick()
        assert server.replica.status()["waiting"] == 0


def test_of_a_long_outage_all_is_claimed_once_both_replicas_have_settled_their_half(make_server: Any) -> None:
    """Of half an hour and more: else moles would send nearly all of it again."""
    one, other = make_server(), make_server()
    one.settled.add([Identity("gpu01", "b", seq) for seq in range(0, 240, 2)])
    other.settled.add([Identity("gpu01", "b", seq) for seq in range(1, 240, 2)])
    for server in (one, other, one):
        server.replica.tick()
    assert [each.settled.last_from("gpu01", "b", 0) for each in (one, other)] == [239, 239]


def test_a_boot_that_ended_long_ago_is_forgotten(make_server: Any) -> None:
    one, other = make_server(), make_server()
    one.settled.add([Identity("gpu01", "b", 5)])
    for server in (one, other):
        server.replica.tick()
    make_server.now.now += 8 * 86_400
    for server in (one, other):
        server.replica.tick()
    late = make_server()
    late.replica.tick()
    assert [each.settled.last_from("gpu01", "b", 5) for each in (one, other, late)] == [None, None, None]


def test_boots_that_a_host_invents_leave_all_replicas_and_the_engine_but_for_the_last(make_server: Any) -> None:
    one, other = make_server(), make_server()
    for number in range(3 * MOST_BOOTS):
        one.settled.add([Identity("gpu01", f"boot{number}", number)])
        make_server.now.now += 1
        if number % MOST_BOOTS == 0:
            one.replica.tick()
            other.replica.tick()
    for server in (one, other):
        server.replica.tick()
    make_server.now.now += 60
    for server in (one, other):
        server.replica.tick()
    late = make_server()
    late.replica.tick()
    for server in (one, other, late):
        known = [seq for seq in range(3 * MOST_BOOTS) if server.settled.knows("gpu01", f"boot{seq}", seq)]
        assert known == list(range(2 * MOST_BOOTS, 3 * MOST_BOOTS))
        assert server.settled.last_from("gpu01", "boot0", None) is None
        assert server.replica.status()["waiting"] == 0
    assert one.replica.versions(2**40).whole_from == 0  # viewers know of hosts what they knew
    engine = make_server.kind.open()
    answer = engine.exchange(engine.exchange("", 0, ()).epoch, 0, ())
    assert [len(from_bytes(each.row).told) for each in answer.changes] == [MOST_BOOTS]
    engine.close()


def rows_of(engine: Any) -> dict[str, Row]:
    """Return all rows that an engine has."""
    answer = engine.exchange(engine.exchange("", 0, ()).epoch, 0, ())
    return {each.key: from_bytes(each.row) for each in answer.changes}


def test_of_any_number_of_hosts_a_replica_tells_in_some_rows_a_few_at_a_time(make_server: Any) -> None:
    """An engine does as much for a row as for a post, and a tick that takes long holds up the live view."""
    one, other = make_server(), make_server()
    for seq in range(12):
        one.settled.add([Identity(f"gpu{number:04}", "b", seq) for number in range(400)])
        one.replica.tick()
        assert one.replica.status()["version"] == SETTLED_A_TICK * (seq + 1)
    for _ in range(GROUPS // SETTLED_A_TICK + 1):  # those told longest ago come first
        one.replica.tick()
    other.replica.tick()
    assert {other.settled.last_from(f"gpu{number:04}", "b", 0) for number in range(400)} == {11}
    engine = make_server.kind.open()
    assert len(rows_of(engine)) == GROUPS
    engine.close()


def test_what_was_settled_last_is_told_by_a_replica_that_ends(make_server: Any) -> None:
    one, other = make_server(), make_server()
    one.settled.add([Identity(f"gpu{number:04}", "b", 1) for number in range(400)])
    one.replica.tick()
    one.replica.stop()
    other.replica.tick()
    assert all(other.settled.knows(f"gpu{number:04}", "b", 1) for number in range(400))


def test_what_a_replica_told_that_ended_another_one_tells_and_its_rows_go(make_server: Any) -> None:
    """A server that is started anew all day must not fill the engine; nor may what it settled be lost with it."""
    ended = make_server()
    ended.settled.add([Identity(f"gpu{number:02}", "b", number) for number in range(9)])
    for _ in range(9 // SETTLED_A_TICK):
        ended.replica.tick()
    left = make_server()
    engine = make_server.kind.open()
    before = rows_of(engine)
    for _ in range(8):
        make_server.now.now += TAKEN_OVER_SECONDS / 3
        left.replica.tick()
        after = rows_of(engine)  # all of it is there at any moment
        assert {told.host for row in after.values() for told in row.told} == {f"gpu{number:02}" for number in range(9)}
    engine.close()
    assert len(after) == len(before)
    assert not after.keys() & before.keys()
    late = make_server()
    late.replica.tick()
    assert all(late.settled.knows(f"gpu{number:02}", "b", number) for number in range(9))


def test_an_engine_that_lost_what_was_told_is_told_it_again_by_who_knows_it(make_server: Any, kind: Any) -> None:
    one, other = make_server(), make_server()
    one.settled.add([Identity("gpu01", "b", 5)])
    for server in (one, other):
        server.replica.tick()
    kind.lose_all()
    other.replica.tick()
    late = make_server()
    late.replica.tick()
    assert late.settled.knows("gpu01", "b", 5)


def test_a_boot_that_was_dropped_and_is_heard_of_again_claims_what_came_since(make_server: Any) -> None:
    one, other = make_server(), make_server()
    for name in ("first", *(f"boot{number}" for number in range(MOST_BOOTS))):
        one.settled.add([Identity("gpu01", name, 1)])
    one.settled.add([Identity("gpu01", "first", 7)])
    for server in (one, other, one):
        make_server.now.now += 60
        server.replica.tick()
    assert [each.settled.last_from("gpu01", "first", oldest) for each in (one, other) for oldest in (1, 7)] == [
        *(None, 7),
        *(None, 7),
    ]


def test_numbers_that_are_no_row_take_no_more_room_than_some(make_server: Any) -> None:
    one = make_server()
    one.settled.add([Identity("gpu01", "b", seq) for seq in range(0, 40 * MOST_RANGES, 2)])
    assert not one.settled.knows("gpu01", "b", 0)
    assert one.settled.last_from("gpu01", "b", None) == 40 * MOST_RANGES - 2


# ------------------------------------------------------------------------- a history that is killed, and all others

STEP_SECONDS, FLUSH_STEPS, LOSES_SECONDS, SETTLE_SECONDS, AGAIN_SECONDS = 5.0, 2, 10.0, 15.0, 60.0


class Disk:
    """What keeps figures: it says yes at once, and loses its last seconds when it is killed."""

    def __init__(self, clock: Callable[[], float], chance: random.Random) -> None:
        self.life = 0
        self.is_up = True
        self.kept: dict[str, float] = {}
        self._clock = clock
        self._chance = chance

    def take(self, body: str) -> None:
        for name in body.split():
            self.kept.setdefault(name, self._clock())

    def kill(self) -> None:
        lost_from = self._clock() - self._chance.uniform(0, LOSES_SECONDS)
        self.kept = {name: at for name, at in self.kept.items() if at <= lost_from}
        self.life += 1


class Connection:
    """A connection to it, as `history.engine.Connection` is one."""

    def __init__(self, disk: Disk, chance: random.Random) -> None:
        self.count = 0
        self._disk = disk
        self._chance = chance
        self._life: int | None = None

    def post(self, path: str, body: bytes, headers: object) -> Answer:
        if self._life is None and self._disk.is_up:
            self._life = self._disk.life
            self.count += 1
        if not self._disk.is_up or self._life != self._disk.life:
            self._life = None
            raise EngineError("gone")
        self._disk.take(body.decode())
        if self._chance.random() < 0.05:  # it was taken, and nobody hears of it
            self._life = None
            raise EngineError("no answer")
        return Answer(204, b"", True, None)

    def close(self) -> None: ...


class Encoder:
    """Writes of a snapshot which one it is."""

    def encoded(self, row: Figures) -> bytes:
        return f"{row.host}/{row.boot_id}/{row.seq} ".encode()

    def together(self, rows: Iterable[Figures]) -> bytearray:
        return bytearray().join(map(self.encoded, rows))

    def parts(self, row: Figures) -> list[bytes]:
        return [self.encoded(row)]


class Process:
    """One life of a replica: takes posts, writes history, and says what is durable."""

    def __init__(self, server: Any, disk: Disk, chance: random.Random, now: Callable[[], float]) -> None:
        self.server = server
        self.taken: set[str] = set()
        self.sender = Sender(
            Access(write_url="http://x/api/v1/write", read_url="http://x"),
            Encoder(),  # type: ignore[arg-type]
            self._are_settled,
            clock=now,
            settle_seconds=SETTLE_SECONDS,
            window_seconds=None,
            monotonic=now,
        )
        self.sender._connection = Connection(disk, chance)  # type: ignore[assignment]

    def _are_settled(self, items: Iterable[Item]) -> None:
        rows = [item.row for item in items if isinstance(item, Snapshot)]
        self.server.settled.add([Identity(row.host, row.boot_id or "", row.seq or 0) for row in rows])

    def post(self, row: Figures) -> int | None:
        name = f"{row.host}/{row.boot_id}/{row.seq}"
        if name not in self.taken:
            self.taken.add(name)
            self.sender.reserve(1)
            self.sender.put([Snapshot.of(row)])
        claimed: int | None = self.server.settled.last_from(row.host, row.boot_id, row.oldest_seq)
        return claimed


class Mole:
    """Sends a snapshot each step, and again what is not durable after a while; lets go of what is."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.seq = 1000
        self.held: dict[int, float] = {}
        self.let_go: list[str] = []

    def row(self, seq: int, at: float) -> Figures:
        return Figures(
            host=self.host,
            at=at,
            boot_id="b",
            seq=seq,
            oldest_seq=min(self.held),
            gpus=(),
            values=array("f"),
            holders=(),
            holder_mem=array("f"),
        )

    def hear(self, durable_seq: int | None) -> None:
        for seq in [seq for seq in self.held if durable_seq is not None and seq <= durable_seq]:
            self.let_go.append(f"{self.host}/b/{seq}")
            del self.held[seq]


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(5, 205))])
def test_nothing_is_let_go_of_that_history_loses(
    make_server: Any, kind: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(sending, "packed", lambda body: body)
    monkeypatch.setattr(sending.log, "disabled", True)
    chance = random.Random(seed)
    now = make_server.now
    disk = Disk(now, chance)
    moles = [Mole(f"gpu{number:02}") for number in range(4)]
    crashes = {"replica": 0, "disk": 0, "engine": 0}

    def begin() -> Process:
        process = Process(make_server(), disk, chance, now)
        process.server.replica.tick()
        return process

    processes = [begin() for _ in range(2)]
    for step in range(260):
        now.now += STEP_SECONDS
        is_calm = step > 200
        for mole in moles:
            mole.seq += 1
            mole.held[mole.seq] = now.now
            again = [seq for seq, at in mole.held.items() if now.now - at >= AGAIN_SECONDS]
            if chance.random() < 0.05 and not is_calm:
                continue  # the network
            for seq in (*again, mole.seq):
                if seq in mole.held:
                    mole.held[seq] = now.now
                    mole.hear(chance.choice(processes).post(mole.row(seq, now.now)))
        for process in processes:
            if step % FLUSH_STEPS == 0:
                process.sender.send()
            process.server.replica.tick()
        if not is_calm:
            if chance.random() < 0.06:
                crashes["replica"] += 1
                processes[chance.randrange(2)] = begin()
            if chance.random() < 0.04:
                crashes["disk"] += 1
                disk.kill()
            disk.is_up = chance.random() > 0.08
            if chance.random() < 0.02:
                crashes["engine"] += 1
                kind.lose_all()
        disk.is_up = disk.is_up or is_calm
        lost = [name for mole in moles for name in mole.let_go if name not in disk.kept]
        assert lost == [], (seed, step, crashes)
    assert crashes["replica"] + crashes["disk"] > 5
    wanted = {f"{mole.host}/b/{seq}" for mole in moles for seq in range(1001, mole.seq - 30)}
    assert wanted <= disk.kept.keys()
    assert wanted <= {name for mole in moles for name in mole.let_go}
