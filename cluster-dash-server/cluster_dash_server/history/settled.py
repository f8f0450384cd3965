"""Which snapshots are settled in all that keeps history: what a mole may let go of."""

import threading
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from cluster_dash_server.history.seqs import Seqs


class Identity(NamedTuple):
    """Which snapshot one is."""

    host: str
    boot_id: str
    seq: int


class Settled(Protocol):
    """Where that is known. Any thread may call."""

    def add(self, settled: Iterable[Identity]) -> None:
        """Note snapshots that are settled; called in a thread of its own, after each write."""

    def last_from(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """Return up to which seq of a boot all are settled; see `Store.durable_seq`. At once: posts wait for it."""


class OwnSettled:
    """What this process alone has settled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seqs: dict[tuple[str, str], Seqs] = {}

    def add(self, settled: Iterable[Identity]) -> None:
        """See `Settled`."""
        with self._lock:
            for host, boot_id, seq in settled:
                self._seqs.setdefault((host, boot_id), Seqs()).add(seq)

    def last_from(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Settled`."""
        with self._lock:
            seqs = self._seqs.get((host, boot_id))
            return None if seqs is None else seqs.last_from(oldest_seq)
