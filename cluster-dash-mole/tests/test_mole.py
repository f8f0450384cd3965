import itertools
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from cluster_dash_mole.host import Host
from cluster_dash_mole.lane import Lane
from cluster_dash_mole.mole import Collector, Mole, Reading, Row, SendError, SystemClock, phase_wait
from cluster_dash_mole.snapshot import Event, Snapshot

HOST = Host(hostname="gpu01", boot_id="boot", machine_id="id", boottime=1.0, os="Linux", kernel="6")


class FakeClock:
    """Stands still but for `sleep`; runs `at_sleep` first, and ends the test's loop when told to."""

    def __init__(self) -> None:
        self.wall = 1_790_000_000.0
        self.steady = 100.0
        self.slept: list[float] = []
        self.at_sleep: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.pass_time(seconds)
        self.at_sleep()

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


class Fixed:
    """A collector that gives what it was made with, or raises it."""

    def __init__(self, name: str, answer: Reading | Exception | None) -> None:
        self.name = name
        self.answer = answer

    def collect(self) -> Reading | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Scripted:
    """A sender that answers by a script: an exception is raised, None takes the snapshot; then it takes all."""

    name = "scripted"

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.sent: list[Snapshot] = []

    def send(self, snapshot: Snapshot) -> None:
        self.sent.append(snapshot)
        answer = self.answers.pop(0) if self.answers else None
        if answer:
            raise answer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def mole(clock: FakeClock, *kinds: Collector, lanes: list[Lane] | None = None, interval: float = 5.0) -> Mole:
    numbers: Iterator[int] = iter(range(1, 10**6))
    return Mole(
        host=HOST, collectors=kinds, lanes=lanes or [], interval=interval, clock=clock, count=lambda: next(numbers)
    )


def snapshot(clock: FakeClock) -> Snapshot:
    return mole(clock, Fixed("gpu", Reading(parts={"gpu": {}}))).snapshot()


def lane(sender: Scripted, clock: FakeClock, *, interval: float = 5.0, min_interval: float = 0.0) -> Lane:
    return Lane(sender, interval=interval, min_interval=min_interval, clock=clock, jitter=lambda: 0.5)


def test_a_collector_that_raises_costs_its_own_part_only(clock: FakeClock) -> None:
    document = (
        mole(
            clock, Fixed("cpu", ValueError("no such line")), Fixed("memory", Reading(parts={"memory": {"total_gb": 1}}))
        )
        .snapshot()
        .document()
    )
    assert document["cpu"] == {}
    assert document["memory"] == {"total_gb": 1}
    assert document["collectors"] == {
        "cpu": {"ok": False, "seconds": 0.0, "error": "ValueError: no such line"},
        "memory": {"ok": True, "seconds": 0.0, "error": None},
    }


def test_a_gpu_collector_that_raises_shows_as_an_error_not_as_no_gpu(clock: FakeClock) -> None:
    document = mole(clock, Fixed("gpu", OSError("fork: no memory"))).snapshot().document()
    gpu = document["gpu"]
    assert isinstance(gpu, dict)
    assert gpu["gpu_error"]["error"] == "OSError: fork: no memory"


def test_a_subject_the_machine_has_not_is_absent_and_no_failure(clock: FakeClock) -> None:
    document = mole(clock, Fixed("network", None)).snapshot().document()
    assert "network" not in document
    assert document["collectors"] == {"network": {"ok": True, "seconds": 0.0, "error": None}}


def test_general_facts_of_collectors_join_those_of_the_host(clock: FakeClock) -> None:
    general = mole(clock, Fixed("gpu", Reading(parts={"gpu": {}}, general={"driver_version": "1"}))).snapshot()
    part = general.parts["general"]
    assert isinstance(part, dict)
    assert (part["hostname"], part["driver_version"]) == ("gpu01", "1")


def test_a_collectors_failure_is_logged_when_it_begins_and_when_it_ends(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    memory = Fixed("memory", OSError("gone"))
    subject = mole(clock, memory)
    for _ in range(3):
        subject.snapshot()
    memory.answer = Reading()
    for _ in range(3):
        subject.snapshot()
    assert [record.getMessage() for record in caplog.records] == ["memory: OSError: gone", "memory: works again"]


def test_snapshots_have_an_identity_that_counts_by_one(clock: FakeClock) -> None:
    subject = mole(clock)
    assert [(taken.boot_id, taken.seq) for taken in (subject.snapshot(), subject.snapshot())] == [
        ("boot", 1),
        ("boot", 2),
    ]


def parting(clock: FakeClock, *answers: Exception) -> tuple[Mole, Scripted, Lane]:
    sender = Scripted(*answers)
    way = lane(sender, clock)
    counted = Mole(
        host=HOST,
        collectors=[Fixed("cpu", Reading(parts={"cpu": {"num_cpus": 4}}))],
        lanes=[way],
        interval=5.0,
        clock=clock,
        count=iter(range(1, 100)).__next__,
    )
    counted.round()
    way.step()
    return counted, sender, way


def test_a_mole_that_is_stopped_says_so_with_a_last_snapshot(clock: FakeClock) -> None:
    counted, sender, way = parting(clock)
    clock.pass_time(5)
    clock.at_sleep = way.step
    counted.say_goodbye(lambda: 7, 2.0)
    last = sender.sent[-1]
    assert last.seq == 7
    assert last.parts["general"]["stopping"] is True  # type: ignore[index]
    assert last.parts["cpu"] == {"num_cpus": 4}
    assert "stopping" not in sender.sent[0].parts["general"]  # type: ignore[operator]


def test_a_mole_whose_server_is_away_is_stopped_without_a_word(clock: FakeClock) -> None:
    counted, sender, _ = parting(clock, SendError("refused", row=Row.TROUBLE))
    before = clock.monotonic()
    counted.say_goodbye(lambda: 7, 2.0)
    assert clock.monotonic() == before
    assert len(sender.sent) == 1


def test_a_mole_that_is_stopped_waits_no_longer_than_it_may(clock: FakeClock) -> None:
    counted, _, _ = parting(clock)
    before = clock.monotonic()
    counted.say_goodbye(lambda: 7, 2.0)
    assert 2.0 <= clock.monotonic() - before < 2.1


def test_without_a_counter_a_snapshot_has_no_identity_and_no_interval(clock: FakeClock) -> None:
    taken = Mole(host=HOST, collectors=[], lanes=[], interval=20, clock=clock).snapshot()
    assert (taken.boot_id, taken.seq, taken.interval_seconds) == (None, None, None)


def rounds(clock: FakeClock, *, interval: float, until: int) -> list[float]:
    """Return when the first rounds of a loop were taken, in s of the monotonic clock."""
    moments: list[float] = []

    class Watch:
        name = "watch"

        def collect(self) -> None:
            moments.append(clock.steady)
            if len(moments) == until:
                raise SystemExit

    with pytest.raises(SystemExit):
        mole(clock, Watch(), interval=interval).run()
    return moments


def test_rounds_come_every_interval_on_the_hosts_own_phase(clock: FakeClock) -> None:
    grid = clock.steady + phase_wait("gpu01", 5.0, clock.wall)
    assert rounds(clock, interval=5.0, until=4) == pytest.approx([grid, grid + 5, grid + 10, grid + 15])


def test_the_first_round_of_a_slow_mole_comes_within_five_seconds(clock: FakeClock) -> None:
    started = clock.steady
    first, second, third = rounds(clock, interval=300.0, until=3)
    assert first - started <= 5
    assert second - started <= 300
    assert third - second == pytest.approx(300)


def test_after_a_suspend_there_is_one_fresh_snapshot_and_no_burst(clock: FakeClock) -> None:
    def suspend_once() -> None:
        if len(clock.slept) == 3:
            clock.pass_time(600.7)

    clock.at_sleep = suspend_once
    moments = rounds(clock, interval=5.0, until=6)
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert gaps[0] == pytest.approx(5)
    assert gaps[1] == pytest.approx(605.7)
    assert gaps[2] < 5
    assert gaps[3:] == pytest.approx([5, 5])


def test_a_step_of_the_wall_clock_moves_no_round(clock: FakeClock) -> None:
    def step_back() -> None:
        clock.wall -= 3600

    clock.at_sleep = step_back
    moments = rounds(clock, interval=5.0, until=4)
    assert [b - a for a, b in itertools.pairwise(moments)] == pytest.approx([5, 5, 5])


def test_the_loop_says_that_it_is_alive_in_long_pauses_and_moves_no_round_by_it(clock: FakeClock) -> None:
    said: list[float] = []
    moments: list[float] = []

    class Watch:
        name = "watch"

        def collect(self) -> None:
            moments.append(clock.steady)
            if len(moments) == 3:
                raise SystemExit

    subject = Mole(
        host=HOST,
        collectors=[Watch()],
        lanes=[],
        interval=300,
        clock=clock,
        alive=lambda: said.append(clock.steady),
        alive_seconds=20,
    )
    with pytest.raises(SystemExit):
        subject.run()
    assert moments[2] - moments[1] == pytest.approx(300)
    assert max(later - earlier for earlier, later in itertools.pairwise(said)) <= 20
    assert said[-1] == moments[-1]


def test_hosts_are_spread_over_the_interval() -> None:
    waits = sorted(phase_wait(f"gpu{number:03}", 10.0, 1_790_000_000.0) for number in range(1000))
    for second in range(10):
        assert 60 <= sum(second <= wait < second + 1 for wait in waits) <= 140


def test_a_taken_snapshot_leaves_the_slot(clock: FakeClock) -> None:
    sender = Scripted()
    subject = lane(sender, clock)
    assert subject.due_in() is None
    taken = snapshot(clock)
    subject.offer(taken)
    subject.step()
    subject.step()
    assert sender.sent == [taken]
    assert subject.outcome
    assert subject.outcome.ok


def test_only_the_newest_snapshot_waits(clock: FakeClock) -> None:
    sender = Scripted()
    subject = lane(sender, clock)
    offered = [snapshot(clock) for _ in range(3)]
    for each in offered:
        subject.offer(each)
    subject.step()
    subject.step()
    assert sender.sent == offered[-1:]


def test_trouble_lets_the_next_snapshot_be_tried_at_once(clock: FakeClock) -> None:
    sender = Scripted(SendError("refused", row=Row.TROUBLE))
    subject = lane(sender, clock)
    first, second = snapshot(clock), snapshot(clock)
    subject.offer(first)
    subject.step()
    assert subject.due_in() == 10  # two intervals for the same one
    clock.pass_time(5)
    subject.offer(second)
    assert subject.due_in() == 0
    subject.step()
    assert sender.sent == [first, second]


def test_trouble_is_tried_again_within_a_minute_even_with_a_long_interval(clock: FakeClock) -> None:
    sender = Scripted(OSError("anything"))
    subject = lane(sender, clock, interval=300)
    only = snapshot(clock)
    subject.offer(only)
    subject.step()
    assert subject.due_in() == 60
    clock.pass_time(60)
    subject.step()
    assert sender.sent == [only, only]


def test_a_stranger_waits_from_one_to_fifteen_minutes(clock: FakeClock) -> None:
    sender = Scripted(*[SendError("401", row=Row.WHO_ARE_YOU)] * 6)
    subject = lane(sender, clock)
    waits = []
    for _ in range(6):
        subject.offer(snapshot(clock))
        subject.step()
        wait = subject.due_in()
        assert wait
        waits.append(wait)
        clock.pass_time(wait)
    assert waits == [60, 120, 240, 480, 900, 900]
    subject.step()
    assert len(sender.sent) == 7
    subject.offer(snapshot(clock))
    assert subject.due_in() == 0


def test_not_now_waits_what_was_asked_and_up_to_as_much_again(clock: FakeClock) -> None:
    sender = Scripted(SendError("429", row=Row.NOT_NOW, wait=30))
    subject = lane(sender, clock)
    subject.offer(snapshot(clock))
    subject.step()
    subject.offer(snapshot(clock))
    assert subject.due_in() == 45
    clock.pass_time(44)
    subject.step()
    assert len(sender.sent) == 1
    clock.pass_time(1)
    subject.step()
    assert len(sender.sent) == 2


def test_not_now_without_a_wait_is_no_invitation_to_hurry(clock: FakeClock) -> None:
    subject = lane(Scripted(SendError("429", row=Row.NOT_NOW, wait=0)), clock)
    subject.offer(snapshot(clock))
    subject.step()
    assert subject.due_in() == 1.5


def test_what_will_never_pass_is_set_aside_and_counted(clock: FakeClock) -> None:
    sender = Scripted(*[SendError("400", row=Row.NEVER)] * 25)
    subject = lane(sender, clock)
    for _ in range(25):
        subject.offer(snapshot(clock))
        subject.step()
    assert len(sender.sent) == subject.refused == 25
    assert list(subject.set_aside) == sender.sent[5:]
    assert subject.due_in() is None


def test_a_least_interval_thins_out_but_never_drops_every_second_one(clock: FakeClock) -> None:
    sender, slow = Scripted(), Scripted()
    subjects = [lane(sender, clock, min_interval=5.0), lane(slow, clock, min_interval=60.0)]
    for number in range(25):
        for subject in subjects:
            subject.offer(snapshot(clock))
            subject.step()
        clock.pass_time(5.001 if number % 2 else 4.999)
    assert len(sender.sent) == 25
    assert len(slow.sent) == 3


def test_a_lane_logs_changes_and_reminds_each_hour(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sender = Scripted(*[SendError("CD102 refused", row=Row.TROUBLE)] * 721, SendError("CD101", row=Row.TROUBLE))
    subject = lane(sender, clock)
    for _ in range(724):
        subject.offer(snapshot(clock))
        subject.step()
        clock.pass_time(5)
    assert [record.getMessage() for record in caplog.records] == [
        "scripted: CD102 refused",
        "scripted: CD102 refused",
        "scripted: CD101",
        "scripted: works again after 3610 s",
    ]


def test_a_failing_sender_shows_in_the_snapshot_and_stops_nobody(clock: FakeClock) -> None:
    bad, good = Scripted(RuntimeError("a bug")), Scripted()
    bad.name, good.name = "bad", "good"
    lanes = [lane(bad, clock), lane(good, clock)]
    subject = mole(clock, lanes=lanes)
    for _ in range(2):
        subject.round()
        for each in lanes:
            each.step()
    assert len(good.sent) == 2
    assert good.sent[1].collectors["send_bad"].error == "RuntimeError: a bug"
    assert good.sent[1].collectors["send_good"].ok


def test_a_sender_that_hangs_delays_neither_the_loop_nor_another_sender() -> None:
    release, arrived = threading.Event(), threading.Event()

    class Hanging:
        name = "hanging"

        def send(self, snapshot: Snapshot) -> None:
            release.wait(60)

    class Good:
        name = "good"

        def send(self, snapshot: Snapshot) -> None:
            if snapshot.seq == 3:
                arrived.set()

    clock = SystemClock()
    lanes = [Lane(sender, interval=5, clock=clock) for sender in (Hanging(), Good())]
    numbers = iter(range(1, 9))
    subject = Mole(host=HOST, collectors=[], lanes=lanes, interval=5, clock=clock, count=lambda: next(numbers))
    for each in lanes:
        each.start()
    try:
        for _ in range(3):
            subject.round()
        assert arrived.wait(60)
    finally:
        release.set()


class Eventful:
    """A GPU collector that tells each event once."""

    name = "gpu"

    def __init__(self) -> None:
        self.events: list[Event] = []

    def collect(self) -> Reading:
        events, self.events = self.events, []
        return Reading(parts={"gpu": {}}, events=events)


def codes(told: Snapshot) -> list[int | None]:
    events = told.parts.get("events", [])
    assert isinstance(events, list)
    return [event["code"] for event in events]


def test_an_event_is_told_until_a_snapshot_that_holds_it_was_taken_and_no_longer(clock: FakeClock) -> None:
    gpu, sender = Eventful(), Scripted(SendError("away", row=Row.TROUBLE), SendError("away", row=Row.TROUBLE))
    way = lane(sender, clock)
    subject = mole(clock, gpu, lanes=[way])
    gpu.events = [Event(at=1.0, kind="xid", text="", gpu=2, code=79)]
    for code in (79, 13, 31, 48):
        subject.round()
        way.step()
        clock.pass_time(60)
        gpu.events = [Event(at=float(code), kind="xid", text="", gpu=2, code={79: 13, 13: 31, 31: 48}.get(code, 45))]
    assert [codes(told) for told in sender.sent] == [[79], [79, 13], [79, 13, 31], [48]]


def test_two_equal_events_in_a_row_are_two(clock: FakeClock) -> None:
    gpu = Eventful()
    gpu.events = [Event(at=1.0, kind="xid", text="", code=63), Event(at=1.5, kind="xid", text="", code=63)]
    way = lane(Scripted(), clock)
    subject = mole(clock, gpu, lanes=[way])
    first = subject.snapshot()
    assert codes(first) == [63, 63]
    way.offer(first)
    way.step()
    gpu.events = [Event(at=2.0, kind="xid", text="", code=63)]
    second = subject.snapshot()
    assert codes(second) == [63]
    assert "events" not in mole(clock, Eventful()).snapshot().document()


def test_an_event_that_a_server_refuses_does_not_spoil_every_snapshot_to_come(clock: FakeClock) -> None:
    gpu, sender = Eventful(), Scripted(SendError("422 events/0", row=Row.NEVER))
    gpu.events = [Event(at=1.0, kind="xid", text="", code=79)]
    way = lane(sender, clock)
    subject = mole(clock, gpu, lanes=[way])
    for _ in range(2):
        subject.round()
        way.step()
    assert [codes(told) for told in sender.sent] == [[79], []]


def test_a_server_that_is_away_for_long_finds_the_newest_events(clock: FakeClock) -> None:
    gpu = Eventful()
    gpu.events = [Event(at=float(code), kind="xid", text="", code=code) for code in range(1000)]
    subject = mole(clock, gpu, lanes=[lane(Scripted(), clock)])
    assert codes(subject.snapshot()) == list(range(1000 - Mole.EVENTS_KEPT, 1000))


class Found:
    """A collector that tells each finding once."""

    name = "slurm"

    def __init__(self) -> None:
        self.block: dict[str, object] | None = None

    def collect(self) -> Reading:
        block, self.block = self.block, None
        return Reading(once={"slurm": block} if block else {})


def test_what_is_told_once_stands_in_each_snapshot_until_one_with_it_was_taken(clock: FakeClock) -> None:
    slurm, sender = Found(), Scripted(SendError("away", row=Row.TROUBLE))
    way = lane(sender, clock)
    subject = mole(clock, slurm, lanes=[way])
    slurm.block = {"collected_at": 1.0}
    for number in range(4):
        subject.round()
        way.step()
        clock.pass_time(60)
        if number == 2:
            slurm.block = {"collected_at": 1.0}  # equal, and yet another finding
    assert [told.parts.get("slurm") for told in sender.sent] == [
        *({"collected_at": 1.0}, {"collected_at": 1.0}),
        *(None, {"collected_at": 1.0}),
    ]


def test_a_newer_finding_takes_the_place_of_one_that_was_not_taken(clock: FakeClock) -> None:
    slurm = Found()
    subject = mole(clock, slurm, lanes=[lane(Scripted(), clock)])
    slurm.block = {"collected_at": 1.0}
    subject.snapshot()
    slurm.block = {"collected_at": 61.0}
    assert subject.snapshot().parts["slurm"] == {"collected_at": 61.0}


def test_a_trouble_that_differs_by_a_number_is_said_once(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    errors = [SendError(f"server answered 500: its log names it {number:012x}", row=Row.TROUBLE) for number in range(5)]
    subject = lane(Scripted(*errors), clock)
    for _ in errors:
        subject.offer(snapshot(clock))
        subject.step()
        clock.pass_time(5)
    assert len(caplog.records) == 1
