"""Which snapshots are settled in history, as all replicas know it: each tells what it settled, and all of it is joined.

What is told stays true whoever ends, for it names what the engines of history hold. So nothing is ever taken back; what
is lost with the engine of the live view is told again by who is left, or settled again when moles send it again.
"""

import threading
from collections.abc import Iterable

from cluster_dash_server.history.seqs import Seqs
from cluster_dash_server.history.settled import Identity

OF_SETTLED = "settled/"
"""How keys begin whose rows an engine joins, whoever puts them: `settled/<host>/<boot_id>`."""
MOST_RANGES = 32
"""Ranges of a row, the last ones: to claim less is never wrong."""
MOST_SEQ = 2**53
"""From here on a script cannot count by one; such numbers are not shared."""

Ranges = list[tuple[int, int]]


def to_row(at: float, ranges: Iterable[tuple[int, int]]) -> bytes:
    """Return a row: when it was told (Unix s, in microseconds), then the ranges: `1700000000000000 1-5,7-9`."""
    return f"{round(at * 1e6)} {','.join(f'{first}-{last}' for first, last in ranges)}".encode()


def from_row(row: bytes) -> tuple[float, Ranges]:
    """Return what `to_row` was given.

    Raises:
        ValueError: these are no such bytes.
    """
    at, _, ranges = row.decode().partition(" ")
    parts = (each.partition("-") for each in ranges.split(","))
    return int(at) / 1e6, [(int(first), int(last)) for first, _, last in parts]


def joined(known: bytes | None, told: bytes) -> bytes | None:
    """Return a row of all that two rows tell, as engines do; None: the second tells nothing new."""
    at, new = from_row(told)
    if known is None:
        return told
    _, old = from_row(known)
    seqs = Seqs(old)
    seqs.join(new)
    ranges = seqs.ranges()[-MOST_RANGES:]
    return None if ranges == old else to_row(at, ranges)


class SharedSettled:
    """A `Settled` of all replicas; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seqs: dict[str, Seqs] = {}
        self._changed: dict[str, None] = {}

    # ------------------------------------------------------------------------------------------------- history

    def add(self, settled: Iterable[Identity]) -> None:
        """See `Settled`."""
        with self._lock:
            for host, boot_id, seq in settled:
                key = _key(host, boot_id)
                seqs = self._seqs.get(key)
                if seqs is None:
                    seqs = self._seqs[key] = Seqs()
                if seqs.add(seq):
                    self._changed[key] = None

    def last_from(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Settled`."""
        with self._lock:
            seqs = self._seqs.get(_key(host, boot_id))
            return None if seqs is None else seqs.last_from(oldest_seq)

    # ------------------------------------------------------------------------------------------------- sharing

    def changed(self) -> dict[str, None]:
        """Return the keys of which more was settled here since the last call."""
        with self._lock:
            changed, self._changed = self._changed, {}
            return changed

    def keys(self) -> list[str]:
        """Return the keys of all that is known."""
        with self._lock:
            return list(self._seqs)

    def row(self, key: str, at: float) -> bytes | None:
        """Return what to tell of a key; None: nothing."""
        with self._lock:
            seqs = self._seqs.get(key)
            ranges = [] if seqs is None else [each for each in seqs.ranges() if each[1] < MOST_SEQ]
        return to_row(at, ranges[-MOST_RANGES:]) if ranges else None

    def join(self, key: str, row: bytes) -> float:
        """Take what all others told of a key; return when that was (Unix s).

        Raises:
            ValueError: it cannot be read.
        """
        at, ranges = from_row(row)
        with self._lock:
            self._seqs.setdefault(key, Seqs()).join(ranges)
        return at

    def forget(self, key: str) -> None:
        """Forget a boot that ended long ago."""
        with self._lock:
            self._seqs.pop(key, None)


def _key(host: str, boot_id: str) -> str:
    return f"{OF_SETTLED}{host}/{boot_id}"
