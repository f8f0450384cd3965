"""The hours before a simulated night: they lead to its jobs, and are told as backlog."""

from collections.abc import Mapping, Sequence
from random import Random

import pytest

from cluster_dash_mole.delivery import BatchReceipt
from cluster_dash_mole.mole import Row, SendError
from cluster_dash_mole.simulate import past
from cluster_dash_mole.simulate.fleet import Fleet
from cluster_dash_mole.simulate.work import Turns

BEGAN_AT = 1_790_000_000.0
DAY = 86_400.0


def fleet(hosts: int) -> Fleet:
    return Fleet(seed=15, hosts=hosts, gpus=8, interval_seconds=5, began_at=BEGAN_AT, faults=True, before_seconds=DAY)


class Server:
    """Takes batches, or raises what it is told to, in turn."""

    def __init__(self, *answers: SendError | None, rejected: Mapping[int, SendError] | None = None) -> None:
        self.answers, self.rejected = [*answers], rejected or {}
        self.lines: list[Mapping[str, object]] = []

    def post_many(self, bodies: Sequence[tuple[bytes, Mapping[str, object]]]) -> BatchReceipt:
        if self.answers and (error := self.answers.pop(0)):
            raise error
        self.lines += [more for _, more in bodies]
        return BatchReceipt(rejected=self.rejected, durable={})


class Clock:
    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return BEGAN_AT

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_the_past_leads_to_the_jobs_of_the_night() -> None:
    told = list(past.snapshots(fleet(3), DAY))
    assert len(told) == 3 * DAY / past.STEP_SECONDS
    assert [each.timestamp for each in told] == sorted(each.timestamp for each in told)
    assert BEGAN_AT - DAY <= told[0].timestamp < told[-1].timestamp < BEGAN_AT
    assert len({(each.hostname, each.seq) for each in told}) == len(told)
    same = []
    for host, last in zip(fleet(3).build(), told[-3:], strict=True):
        first = host.snapshot(BEGAN_AT, 1)
        assert first is not None
        assert (first.boot_id, first.machine_id) == (last.boot_id, last.machine_id)
        before, after = (each.document()["gpu"] for each in (last, first))
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        same += [set(each.get("users", ())) == set(after[key].get("users", ())) for key, each in before.items()]
    assert sum(same) > 0.7 * len(same)  # two minutes later most jobs still run


def test_a_notebook_is_nobodys_before_it_is_begun() -> None:
    turns = Turns(Random(1), down=None, forgotten=True, before_seconds=DAY)
    assert turns.advance(-20 * 3600.0) is None
    job = turns.advance(0.0)
    assert job is not None
    assert -6 * 3600 <= job.started <= -3600


def test_a_server_without_room_or_that_does_not_answer_in_time_is_told_later() -> None:
    trouble = SendError("CD102 no answer in time", row=Row.TROUBLE)
    server, clock = Server(None, SendError("full", row=Row.NOT_NOW, wait=30.0), trouble, None), Clock()
    told = past.tell(server, past.snapshots(fleet(1), 8 * 3600.0), clock)
    assert (told.taken, told.refused, told.ended_by) == (len(server.lines), 0, None) == (240, 0, None)
    assert clock.slept == [1.0, 30.0, 4.0, 1.0, 1.0]


def test_it_is_marked_as_backlog_so_that_a_host_that_has_rebooted_since_is_no_twin() -> None:
    server = Server()
    past.tell(server, past.snapshots(fleet(1), 3600.0), Clock())
    assert server.lines == [{"spool": {"backlog": True}}] * 30


def test_what_is_refused_is_counted_with_the_first_reason() -> None:
    server = Server(rejected={3: SendError("CD301 refused (400): cpu", row=Row.NEVER)})
    told = past.tell(server, past.snapshots(fleet(1), 8 * 3600.0), Clock())
    assert (told.taken, told.refused, str(told.such_as)) == (237, 3, "CD301 refused (400): cpu")


@pytest.mark.parametrize(
    "answers",
    [
        [SendError("who?", row=Row.WHO_ARE_YOU)],
        [SendError("full", row=Row.NOT_NOW)] * past.TRIES,
        [SendError("away", row=Row.TROUBLE)] * past.TRIES,
    ],
    ids=["refuses", "is full for long", "is away for long"],
)
def test_a_server_that_does_not_take_it_is_left_alone(answers: list[SendError]) -> None:
    told = past.tell(Server(None, *answers), past.snapshots(fleet(1), 8 * 3600.0), Clock())
    assert (told.taken, told.ended_by) == (past.LINES, answers[-1])
