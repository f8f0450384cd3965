"""The hours before a simulated night: told as backlog, as a mole tells what it kept while its server was away."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from cluster_dash_mole.delivery import BatchReceipt
from cluster_dash_mole.mole import Clock, Row, SendError
from cluster_dash_mole.simulate.fleet import Fleet
from cluster_dash_mole.snapshot import Snapshot, encode

STEP_SECONDS = 120.0
"""Between two snapshots of a host: charts of a day have no finer steps."""
LINES = 100
PAUSE_SECONDS = 1.0
"""Between two batches, as a mole does; longer where the server asks for it."""
TRIES = 10
"""How often a batch is sent that the server has no room for, or does not answer in time."""
_BACKLOG: Mapping[str, object] = {"spool": {"backlog": True}}
"""Else a host that has rebooted since would look like two machines with one name."""


class Batches(Protocol):
    """Posts many snapshots at once: `senders.http.HttpSender`."""

    def post_many(self, bodies: Sequence[tuple[bytes, Mapping[str, object]]]) -> BatchReceipt: ...  # noqa: D102


@dataclass(slots=True)
class Told:
    """What became of the past.

    Attributes:
        taken: how many snapshots the server took.
        refused: how many it did not; such_as: why, of the first.
        ended_by: why not all of it was told; None: it was.
    """

    taken: int = 0
    refused: int = 0
    such_as: Exception | None = None
    ended_by: SendError | None = None


def snapshots(fleet: Fleet, seconds: float) -> Iterator[Snapshot]:
    """Give what the moles of a fleet saw in the `seconds` before it began, the oldest first."""
    hosts = replace(fleet, interval_seconds=STEP_SECONDS).build()
    for step in range(int(seconds // STEP_SECONDS), 0, -1):
        at = fleet.began_at - step * STEP_SECONDS
        for host in hosts:
            snapshot = host.snapshot(at, int(at * 1000))
            if snapshot is not None:
                yield snapshot


def tell(sender: Batches, found: Iterator[Snapshot], clock: Clock) -> Told:
    """Post snapshots of the past, until the server takes them not, or has had no room or no answer for long."""
    told, failed, wait = Told(), 0, 0.0
    batch: list[tuple[bytes, Mapping[str, object]]] = []
    while batch or (batch := [(encode(each.document()), _BACKLOG) for each in islice(found, LINES)]):
        try:
            rejected = sender.post_many(batch).rejected
        except SendError as error:
            failed, wait = failed + 1, error.wait
            if error.row not in (Row.NOT_NOW, Row.TROUBLE) or failed == TRIES:
                told.ended_by = error
                return told
        else:
            told.taken += len(batch) - len(rejected)
            told.refused += len(rejected)
            told.such_as = told.such_as or next(iter(rejected.values()), None)
            failed, wait, batch = 0, 0.0, []
        clock.sleep(max(wait, PAUSE_SECONDS * 2**failed))
    return told
