"""The hours before a simulated night: told as backlog, as a mole tells what it kept while its server was away."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

from cluster_dash_mole.mole import Clock, Row, SendError
from cluster_dash_mole.simulate.fleet import Fleet
from cluster_dash_mole.snapshot import Snapshot, encode

STEP_SECONDS = 120.0
"""Between two snapshots of a host: charts of a day have no finer steps."""
LINES = 100
PAUSE_SECONDS = 1.0
"""Between two batches, as a mole does; longer where the server asks for it."""
TRIES = 10
"""How often a batch is sent that the server has no room for."""


class Batches(Protocol):
    """Posts many snapshots at once: `senders.http.HttpSender`."""

    def post_many(self, bodies: Sequence[tuple[bytes, Mapping[str, object]]]) -> object: ...  # noqa: D102


def snapshots(fleet: Fleet, seconds: float) -> Iterator[Snapshot]:
    """Give what the moles of a fleet saw in the `seconds` before it began, the oldest first."""
    hosts = replace(fleet, interval_seconds=STEP_SECONDS).build()
    for step in range(int(seconds // STEP_SECONDS), 0, -1):
        at = fleet.began_at - step * STEP_SECONDS
        for host in hosts:
            snapshot = host.snapshot(at, int(at * 1000))
            if snapshot is not None:
                yield snapshot


def tell(sender: Batches, found: Iterator[Snapshot], clock: Clock) -> int:
    """Post snapshots of the past; return how many.

    Raises:
        SendError: the server takes them not, or has had no room for long.
    """
    told, failed, wait = 0, 0, 0.0
    batch: list[tuple[bytes, Mapping[str, object]]] = []
    while batch or (batch := [(encode(each.document()), {}) for each in islice(found, LINES)]):
        try:
            sender.post_many(batch)
        except SendError as error:
            failed, wait = failed + 1, error.wait
            if error.row is not Row.NOT_NOW or failed == TRIES:
                raise
        else:
            told, failed, wait, batch = told + len(batch), 0, 0.0, []
        clock.sleep(max(wait, PAUSE_SECONDS * 2**failed))
    return told
