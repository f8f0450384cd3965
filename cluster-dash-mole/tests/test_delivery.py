"""The delivery against a stand-in for the server that follows the contract, on a clock of its own."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cluster_dash_mole.batches import Source
from cluster_dash_mole.delivery import BatchReceipt, Delivery, Receipt
from cluster_dash_mole.mole import Row, SendError
from cluster_dash_mole.snapshot import Snapshot
from cluster_dash_mole.spool import Spool

SOURCE = Source("gpu01", "boot")
INTERVAL = 5.0
TROUBLE = SendError("CD102 connection refused", row=Row.TROUBLE)


class HistoryServer:
    """What a server that keeps history does by the contract: a stand-in, and the oracle of what it holds.

    Takes snapshots, makes them durable at `commit`, and forgets the others at `crash`.

    `script` holds what the next posts meet: None is well, an exception is raised before anything is taken, "lost" takes
    what came and loses the answer.
    """

    name = "http"

    def __init__(self) -> None:
        self.takes_batches = True
        self.keeps_history = True
        self.next_seconds: float | None = None
        self.script: list[Exception | str | None] = []
        self.down = False
        self.refuse: dict[int, Exception] = {}  # by seq
        self.most_lines = 100
        self.posts: list[list[int]] = []  # the numbers in each post, the live ones too
        self.durable: dict[Source, dict[int, str]] = {}
        self.rows: dict[Source, dict[int, int]] = {}  # how often each was made durable
        self.claimed: dict[Source, int] = {}  # the highest durable_seq that was told
        self._volatile: dict[tuple[Source, int], str] = {}

    def commit(self) -> None:
        for (source, seq), text in self._volatile.items():
            if seq not in self.durable.setdefault(source, {}):
                counts = self.rows.setdefault(source, {})
                counts[seq] = counts.get(seq, 0) + 1
            self.durable[source][seq] = text
        self._volatile.clear()

    def crash(self) -> None:
        self._volatile.clear()

    def post_one(self, body: bytes, more: Mapping[str, object]) -> Receipt:
        answer_is_lost = self._meet()
        source, seq, oldest = self._identity(body, more)
        self.posts.append([seq])
        if seq in self.refuse:
            raise self.refuse[seq]
        self._volatile[source, seq] = body.decode()
        if answer_is_lost:
            raise TROUBLE
        if not self.keeps_history:
            return Receipt()
        return Receipt(
            keeps_history=True, durable_seq=self._durable_seq(source, oldest), next_seconds=self.next_seconds
        )

    def post_many(self, bodies: Sequence[tuple[bytes, Mapping[str, object]]]) -> BatchReceipt:
        answer_is_lost = self._meet()
        rows = [self._identity(*each) for each in bodies]
        self.posts.append([seq for _, seq, _ in rows])
        if len(rows) > self.most_lines:
            raise SendError("CD303 too large (413)", row=Row.NEVER)
        rejected = {}
        for place, ((source, seq, _), (body, _)) in enumerate(zip(rows, bodies, strict=True)):
            if seq in self.refuse:
                rejected[place] = self.refuse[seq]
            else:
                self._volatile[source, seq] = body.decode()
        if answer_is_lost:
            raise TROUBLE
        durable = {}
        for source, _, oldest in rows:
            if (seq_or_none := self._durable_seq(source, oldest)) is not None:
                durable[source] = seq_or_none
        return BatchReceipt(rejected=rejected, durable=durable, next_seconds=self.next_seconds)

    def _meet(self) -> bool:
        if self.down:
            raise TROUBLE
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        return step == "lost"

    def _identity(self, body: bytes, more: Mapping[str, object]) -> tuple[Source, int, int]:
        document, spool = json.loads(body), more["spool"]
        assert isinstance(spool, dict)
        return Source(document["hostname"], document["boot_id"]), document["seq"], spool["oldest_seq"]

    def _durable_seq(self, source: Source, oldest: int) -> int | None:
        held = self.durable.get(source, {})
        seq = oldest
        while seq in held:
            seq += 1
        if seq == oldest:
            return None
        self.claimed[source] = max(self.claimed.get(source, 0), seq - 1)
        return seq - 1


class Clock:
    def __init__(self) -> None:
        self.steady = 1000.0
        self.wall = 1_790_000_000.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def sleep(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds


def snapshot(seq: int, at: float = 1.0, boot_id: str = "boot") -> Snapshot:
    return Snapshot(
        hostname="gpu01",
        timestamp=at,
        interval_seconds=INTERVAL,
        machine_id=None,
        boot_id=boot_id,
        seq=seq,
        parts={"cpu": {"cpu_percent": seq % 100}, "gpu": {}},
        collectors={},
    )


def test_the_tables_of_slurm_go_out_live_and_are_not_held(tmp_path: Path) -> None:
    night = Night(tmp_path)
    kept = {"collected_at": 1.0, "totals": {"jobs": {"running": 2}}}
    tables = {**kept, "sources": {}, "jobs": {"id": [1, 2]}, "strings": [""]}
    bodies: list[bytes] = []
    take = night.server.post_one

    def post_one(body: bytes, more: Mapping[str, object]) -> Receipt:
        bodies.append(body)
        return take(body, more)

    night.server.post_one = post_one  # type: ignore[method-assign]
    seen = replace(snapshot(1), parts={**snapshot(1).parts, "slurm": tables})
    night.delivery.offer(seen)
    night.delivery.step()
    assert json.loads(bodies[0])["slurm"] == tables
    (held,) = night.spool.take(1, float("inf"))
    assert json.loads(held.body)["slurm"] == kept


class Night:
    """A mole's delivery and a server, driven by rounds of `INTERVAL`: what is due within a round is sent."""

    def __init__(self, folder: Path | None) -> None:
        self.clock = Clock()
        self.server = HistoryServer()
        self.seq = 0
        self.boot_id = "boot"
        self.commits = True
        self._folder = folder
        self.random = random.Random(1)
        self.start()

    def start(self) -> None:
        """Start the mole, or start it again as after kill -9."""
        self.spool = Spool(
            self._folder, most_bytes=64 * 2**20, source=Source("gpu01", self.boot_id), last_seq=self.seq or None
        )
        self.delivery = Delivery(
            self.server, self.spool, interval=INTERVAL, clock=self.clock, jitter=self.random.random
        )

    def round(self, count: int = 1) -> None:
        for _ in range(count):
            self.seq += 1
            self.delivery.offer(snapshot(self.seq, self.clock.wall, self.boot_id))
            until = self.clock.steady + INTERVAL
            while (due := self.delivery.due_in()) is not None and self.clock.steady + due < until:
                self.clock.sleep(due)
                self.delivery.step()
                if self.commits:
                    self.server.commit()
            self.clock.sleep(until - self.clock.steady)

    @property
    def history(self) -> list[int]:
        return sorted(self.server.durable.get(Source("gpu01", self.boot_id), {}))

    def part(self) -> dict[str, object]:
        """What the newest snapshot says of the spool."""
        texts = self.server.durable[Source("gpu01", self.boot_id)]
        document: dict[str, object] = json.loads(texts[max(texts)])
        return document


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path / "spool")


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("spool/*"))


def test_while_all_goes_well_each_is_posted_once_and_no_file_is_written(night: Night, tmp_path: Path) -> None:
    night.round(50)
    assert night.server.posts == [[seq] for seq in range(1, 51)]
    assert night.spool.holding().waiting <= 2
    assert not (tmp_path / "spool").exists()


def test_an_outage_loses_nothing_and_the_live_snapshot_comes_first(night: Night) -> None:
    night.round(3)
    night.server.down = True
    night.round(500)
    assert night.spool.holding().unsent == 500
    night.server.down = False
    night.server.posts.clear()
    night.round(30)
    assert night.server.posts[0] == [504]
    assert night.history == list(range(1, 534))
    assert set(night.server.rows[SOURCE].values()) == {1}
    posted = [seq for post in night.server.posts for seq in post]
    assert len(posted) == len(set(posted)), "nothing that was taken is sent again"


def test_after_an_outage_the_spool_empties_and_its_files_go(night: Night, tmp_path: Path) -> None:
    night.server.down = True
    night.round(100)
    assert len(files(tmp_path)) == 4
    night.server.down = False
    night.round(20)
    assert files(tmp_path) == []
    assert night.spool.holding().waiting <= 2


def test_a_batch_is_sent_at_most_each_second_and_holds_at_most_a_hundred(night: Night) -> None:
    night.server.down = True
    night.round(1000)
    night.server.down = False
    sent: list[tuple[float, int]] = []
    many = night.server.post_many

    def post_many(bodies):  # type: ignore[no-untyped-def]
        sent.append((night.clock.steady, len(bodies)))
        return many(bodies)

    night.server.post_many = post_many  # type: ignore[method-assign]
    night.round(20)
    assert {size for _, size in sent[:-1]} == {100}
    assert sum(size for _, size in sent) >= 1000
    assert min(later[0] - earlier[0] for earlier, later in itertools.pairwise(sent)) >= 1


def test_the_server_names_the_pace_of_the_backlog_and_of_the_live_posts(night: Night) -> None:
    night.server.down = True
    night.round(300)
    night.server.down = False
    night.server.next_seconds = 20.0
    night.round(3)
    assert night.delivery.pace_seconds == 20
    night.server.posts.clear()
    night.round(8)  # 40 s
    assert len([post for post in night.server.posts if len(post) > 1]) == 2
    night.server.next_seconds = 1e9
    night.round(1)
    assert night.delivery.pace_seconds == 60, "a slip of the server's silences no host"


def test_a_server_that_is_lost_has_no_more_say_in_the_pace(night: Night) -> None:
    night.server.next_seconds = 30.0
    night.round()
    night.server.down = True
    night.round()
    assert night.delivery.pace_seconds == 0


def test_what_the_server_lost_before_its_commit_is_sent_again_at_once(night: Night) -> None:
    night.round(3)
    night.commits = False
    night.round(4)
    night.server.crash()
    night.server.script = [TROUBLE]
    night.commits = True
    night.round(6)
    assert night.history == list(range(1, 14))


def test_what_does_not_become_durable_is_sent_again_after_a_minute(night: Night) -> None:
    night.round(2)
    night.commits = False
    night.round(1)
    night.server.crash()  # without a post that fails in between: only durable_seq can tell
    night.commits = True
    night.round(11)
    assert 3 not in night.history
    night.round(6)
    assert night.history == list(range(1, 21))


def test_a_history_that_cannot_be_written_fills_the_disk_not_the_memory(night: Night, tmp_path: Path) -> None:
    night.commits = False
    night.round(100)
    assert night.spool.holding().waiting == 100
    assert len(files(tmp_path)) >= 2


def test_a_server_without_history_receipts_by_200_and_nothing_is_kept(night: Night) -> None:
    night.server.keeps_history = False
    night.server.script = [None, TROUBLE, TROUBLE]
    night.round(10)
    assert night.spool.holding().waiting == 0
    assert night.history == list(range(1, 11))


def test_a_server_of_the_first_version_gets_live_snapshots_only_and_a_later_one_the_backlog(night: Night) -> None:
    night.server.takes_batches = night.server.keeps_history = False
    night.server.down = True
    night.round(5)
    night.server.down = False
    night.round(40)
    assert night.server.posts == [[seq] for seq in range(6, 46)]
    assert night.spool.holding().waiting == 5
    night.server.takes_batches = night.server.keeps_history = True
    night.round(5)
    assert night.history == list(range(1, 51))


def test_a_snapshot_that_never_passes_is_set_aside_and_blocks_nothing(night: Night) -> None:
    night.server.refuse[3] = SendError("CD301 refused (422)", row=Row.NEVER)
    night.round(10)
    assert night.history == [1, 2, *range(4, 11)]
    assert (night.delivery.refused, night.spool.holding().waiting <= 2) == (1, True)
    assert json.loads(night.delivery.set_aside[0])["seq"] == 3


def test_a_refused_batch_is_halved_until_only_the_bad_one_is_set_aside(night: Night) -> None:
    night.server.down = True
    night.round(64)
    night.server.down = False
    night.server.most_lines = 9
    night.server.refuse[40] = SendError("CD301 refused (422)", row=Row.NEVER)
    night.round(40)
    assert night.history == [seq for seq in range(1, 105) if seq != 40]
    assert night.delivery.refused == 1


def test_a_host_unknown_in_a_batch_holds_up_nobody_and_is_tried_again_later(night: Night) -> None:
    night.server.down = True
    night.round(5)
    night.server.down = False
    night.server.refuse[2] = SendError("CD203 (403)", row=Row.WHO_ARE_YOU)
    night.round(20)
    assert night.history == [1, *range(3, 26)]
    del night.server.refuse[2]
    night.round(100)
    assert 2 not in night.history
    night.round(100)
    assert 2 in night.history


def test_a_busy_server_is_asked_again_after_what_it_named(night: Night) -> None:
    night.server.down = True
    night.round(5)
    night.server.down = False
    busy = SendError("server is busy (503)", row=Row.NOT_NOW, wait=30)
    many = night.server.post_many
    moments: list[float] = []

    def post_many(bodies):  # type: ignore[no-untyped-def]
        moments.append(night.clock.steady)
        if len(moments) == 1:
            raise busy
        return many(bodies)

    night.server.post_many = post_many  # type: ignore[method-assign]
    night.round(20)
    assert 30 <= moments[1] - moments[0] <= 60
    assert night.history == list(range(1, 26))


def test_the_snapshot_says_what_the_mole_holds(night: Night) -> None:
    night.server.down = True
    night.round(8)
    night.server.down = False
    night.round()
    spool: dict[str, object] = {}
    one = night.server.post_one

    def post_one(body, more):  # type: ignore[no-untyped-def]
        spool.update(more["spool"])
        return one(body, more)

    night.server.post_one = post_one  # type: ignore[method-assign]
    night.server.down = True
    night.round(3)
    night.server.down = False
    night.round()
    waiting = night.seq - int(str(spool["oldest_seq"]))
    assert (spool["waiting"], spool["dropped"]) == (waiting, 0)
    assert waiting >= 3
    assert isinstance(spool["oldest_at"], float)


def test_a_mole_that_is_killed_in_an_outage_sends_what_it_had_when_it_starts_again(night: Night) -> None:
    night.round(3)
    night.server.down = True
    night.round(50)
    night.start()  # nothing was closed
    night.round(50)
    night.server.down = False
    night.round(20)
    assert night.history == list(range(1, 124))
    assert night.spool.dropped == 0


def test_after_a_reboot_the_snapshots_of_the_boot_before_arrive_too(night: Night) -> None:
    night.server.down = True
    night.round(40)
    night.boot_id = "second"
    night.start()
    night.server.down = False
    night.round(40)
    assert sorted(night.server.durable[SOURCE]) == list(range(1, 41))
    assert night.history == list(range(41, 81))
    assert night.spool.holding().waiting <= 2


def test_stopped_and_started_exactly_what_is_not_durable_is_sent(night: Night) -> None:
    night.round(5)
    night.spool.close()
    night.server.posts.clear()
    night.start()
    night.round(10)
    live = [post for post in night.server.posts if post[0] > 5]
    rest = [seq for post in night.server.posts if post[0] <= 5 for seq in post]
    assert len(live) == 10
    assert rest == [], "the answer to the first post says that the last one before is durable"
    night.round(3)
    night.commits = False
    night.round()
    night.server.crash()
    night.spool.close()
    night.commits = True
    lost = night.seq
    night.server.posts.clear()
    night.start()
    night.round(15)
    assert [post for post in night.server.posts if post[0] <= lost] == [[lost]]


def test_only_snapshots_that_are_sent_are_counted(night: Night) -> None:
    delivery = Delivery(night.server, night.spool, interval=1, min_interval=5, clock=night.clock)
    wanted = []
    for _ in range(20):
        wanted.append(delivery.wants())
        night.clock.sleep(1)
    assert wanted == ([True] + [False] * 4) * 4


@pytest.mark.parametrize("seed", range(20))
def test_whatever_fails_everything_is_in_history_once(seed: int, tmp_path: Path) -> None:
    """A walk of outages, lost answers, crashes of the server, kills of the mole, reboots, bad snapshots."""
    night = Night(tmp_path / "spool")
    walk = random.Random(seed)
    taken: dict[Source, int] = {}
    night.random = random.Random(seed)
    refused: set[int] = set()
    for _ in range(60):
        match walk.randrange(9):
            case 0:
                night.server.down = not night.server.down
            case 1:
                night.server.crash()
                night.server.script = [TROUBLE]
            case 2:
                night.server.script = [walk.choice([None, "lost", TROUBLE]) for _ in range(10)]
            case 3 if night.spool.holding().waiting == 0 or night.server.down:
                night.start()
            case 4:
                night.spool.close()
                night.start()
            case 5:
                night.commits = not night.commits
            case 6 if walk.random() < 0.3:
                night.spool.close()
                night.boot_id += "x"
                night.start()
            case 7:
                night.server.refuse[night.seq + 1] = SendError("422", row=Row.NEVER)
                refused.add(night.seq + 1)
            case _:
                pass
        night.round(walk.randrange(1, 12))
        taken.setdefault(Source("gpu01", night.boot_id), night.seq)
    night.server.down, night.commits, night.server.script = False, True, []
    night.round(60)
    have = [seq for held in night.server.durable.values() for seq in held]
    assert sorted(set(range(1, night.seq + 1)) - set(have) - refused) == []
    assert {count for counts in night.server.rows.values() for count in counts.values()} == {1}
    assert night.spool.dropped == 0
