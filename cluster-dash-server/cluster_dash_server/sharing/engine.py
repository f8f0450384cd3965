"""The seam to what keeps the shared live view: rows by key, each with an order and a version.

A key is a host's name, or holds a slash: `slurm/<cluster>`, `errand/<id>`, and `settled/<life>/<group>`. Of each the
newest row is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

MOST_OFFERS = 200
"""Rows that one exchange puts at most: an engine does nothing else meanwhile."""
MOST_CHANGES = 500
"""Rows that one exchange gives at most."""


class Away(Exception):
    """The engine did not answer; the text says where it is and why, without a secret."""


class Order(NamedTuple):
    """By which the newest row of a key is known.

    Attributes:
        boot_id: "" where there is none.
        seq: counts under one boot_id.
        at: when it was received (Unix s), by the one clock of all replicas.
        edition: counts changes without a new snapshot.
    """

    boot_id: str
    seq: int | None
    at: float
    edition: int


def is_newer(one: Order, other: Order) -> bool:
    """Say whether one row is newer than another of the same key.

    Under one boot_id seq tells; between boots, and where there is no seq, the moment of receipt does.
    """
    if one.boot_id == other.boot_id and one.boot_id and one.seq is not None and other.seq is not None:
        return (one.seq, one.edition) > (other.seq, other.edition)
    return (_microseconds(one.at), one.edition) > (_microseconds(other.at), other.edition)


def text_of(order: Order) -> str:
    """Return an order as engines keep it: whole numbers, parted by blanks, and the boot_id last."""
    seq = "" if order.seq is None else int(order.seq)
    return f"{_microseconds(order.at)} {order.edition} {seq} {order.boot_id}"


def _microseconds(at: float) -> int:
    return round(at * 1e6)


class Offer(NamedTuple):
    """A row to put."""

    key: str
    order: Order
    row: bytes


class Change(NamedTuple):
    """A row that was put, by this replica long ago or by another."""

    key: str
    version: int
    row: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an exchange gave.

    Attributes:
        epoch: of the engine's life. Another one than the replica's: nothing was put or given.
        version: up to which the replica knows all rows now.
        whole_from: rows that were dropped for good had versions up to this.
        at: the engine's clock (Unix s).
        changes: rows with versions after `since`, in that order, those that this exchange put left out.
        is_all: there are no more of them; else nothing was put.
        taken: the version of each offer; None: the engine has that row, or a newer one.
    """

    epoch: str
    version: int
    whole_from: int
    at: float
    changes: Sequence[Change]
    is_all: bool
    taken: Sequence[int | None]


class Engine(Protocol):
    """Keeps the newest row of each key, and numbers them in the order in which they came."""

    def exchange(self, epoch: str, since: int, offers: Sequence[Offer]) -> Answer:
        """Put rows, and give what has changed: rows are put all at once or not at all.

        A row that changes while it is given may come as it is then, under the version of before: the next exchange
        gives it again.

        Args:
            epoch: the one that the replica knows; "": none yet.
            since: the version up to which it knows all rows.
            offers: at most MOST_OFFERS.

        Raises:
            Away: no answer came; the rows may have been put all the same.
        """

    def drop(self, orders: Mapping[str, Order]) -> None:
        """Forget rows for good, each only while it still has that order.

        Raises:
            Away: no answer came.
        """

    def close(self) -> None:
        """End."""
