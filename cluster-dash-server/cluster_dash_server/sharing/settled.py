"""Which snapshots are settled in history, as all replicas know it: each tells what it settled, and all of it is joined.

What is told stays true whoever ends, for it names what the engines of history hold. So nothing is ever taken back; what
is lost with the engine of the live view is told again by who is left, or settled again when moles send it again.
"""

import threading
from collections.abc import Iterable

from cluster_dash_server.history.boots import MOST_BOOTS
from cluster_dash_server.history.seqs import Seqs
from cluster_dash_server.history.settled import Identity

OF_SETTLED = "settled/"
"""How keys begin whose rows an engine joins, whoever puts them: `settled/<host>/<boot_id>`."""
MOST_RANGES = 128
"""Ranges of a row, the last ones: to claim less is never wrong.

After an outage of history two replicas settle every other snapshot each: so many ranges, until both have told.
"""
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
    """A `Settled` of all replicas; thread-safe. Of each host the boots last heard of are known, as `Boots` has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, dict[str, Seqs]] = {}
        self._changed: dict[str, None] = {}
        self._dropped: dict[str, None] = {}

    # ------------------------------------------------------------------------------------------------- history

    def add(self, settled: Iterable[Identity]) -> None:
        """See `Settled`."""
        with self._lock:
            for host, boot_id, seq in settled:
                seqs = self._heard_of(host, boot_id)
                if seqs.add(seq):
                    _trim(seqs)
                    self._changed[_key(host, boot_id)] = None

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Settled`."""
        with self._lock:
            seqs = self._hosts.get(host, {}).get(boot_id)
            return seqs is not None and seq in seqs

    def last_from(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Settled`."""
        with self._lock:
            seqs = self._hosts.get(host, {}).get(boot_id)
            return None if seqs is None else seqs.last_from(oldest_seq)

    def _heard_of(self, host: str, boot_id: str) -> Seqs:
        boots = self._hosts.get(host)
        if boots is None:
            boots = self._hosts[host] = {}
        seqs = boots.get(boot_id)
        if seqs is None:
            seqs = boots[boot_id] = Seqs()
            self._dropped.pop(_key(host, boot_id), None)
            if len(boots) > MOST_BOOTS:
                oldest = next(iter(boots))
                del boots[oldest]
                self._dropped[_key(host, oldest)] = None
        elif len(boots) > 1:  # the last one heard of stands last
            boots[boot_id] = boots.pop(boot_id)
        return seqs

    # ------------------------------------------------------------------------------------------------- sharing

    def changed(self) -> dict[str, None]:
        """Return the keys of which more was settled here since the last call."""
        with self._lock:
            changed, self._changed = self._changed, {}
            return changed

    def dropped(self) -> dict[str, None]:
        """Return the keys of boots that were dropped since the last call, for their host has newer ones."""
        with self._lock:
            dropped, self._dropped = self._dropped, {}
            return dropped

    def keys(self) -> list[str]:
        """Return the keys of all that is known."""
        with self._lock:
            return [_key(host, boot_id) for host, boots in self._hosts.items() for boot_id in boots]

    def row(self, key: str, at: float) -> bytes | None:
        """Return what to tell of a key; None: nothing."""
        host, boot_id = _of(key)
        with self._lock:
            seqs = self._hosts.get(host, {}).get(boot_id)
            ranges = [] if seqs is None else [each for each in seqs.ranges() if each[1] < MOST_SEQ]
        return to_row(at, ranges[-MOST_RANGES:]) if ranges else None

    def join(self, key: str, row: bytes) -> float:
        """Take what all others told of a key; return when that was (Unix s).

        Raises:
            ValueError: it cannot be read.
        """
        at, ranges = from_row(row)
        with self._lock:
            seqs = self._heard_of(*_of(key))
            seqs.join(ranges)
            _trim(seqs)
        return at

    def forget(self, key: str) -> None:
        """Forget a boot that ended long ago."""
        host, boot_id = _of(key)
        with self._lock:
            boots = self._hosts.get(host, {})
            boots.pop(boot_id, None)
            if not boots:
                self._hosts.pop(host, None)


def _trim(seqs: Seqs) -> None:
    if seqs.count > 2 * MOST_RANGES:
        seqs.drop_before(seqs.begin_of_last(MOST_RANGES))


def _key(host: str, boot_id: str) -> str:
    return f"{OF_SETTLED}{host}/{boot_id}"


def _of(key: str) -> tuple[str, str]:
    host, _, boot_id = key.removeprefix(OF_SETTLED).partition("/")
    return host, boot_id
