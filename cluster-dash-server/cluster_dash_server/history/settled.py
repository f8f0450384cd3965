"""Which snapshots are settled in all that keeps history: what a mole may let go of."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from cluster_dash_server.history.boots import Boots

SETTLED_SECONDS = 7 * 86_400.0
"""A boot of which nothing was settled for so long is forgotten: no mole holds anything of it any more."""
FORGET_SECONDS = 3600.0


class Identity(NamedTuple):
    """Which snapshot one is."""

    host: str
    boot_id: str
    seq: int


class Settled(Protocol):
    """Where that is known. Any thread may call."""

    def add(self, settled: Iterable[Identity]) -> None:
        """Note snapshots that are settled; called in a thread of its own, after each write."""

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """Say whether a snapshot is settled. At once: posts wait for it."""

    def last_from(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """Return up to which seq of a boot all are settled; see `Store.durable_seq`. At once, too."""


class OwnSettled:
    """What this process alone has settled."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._boots = Boots()
        self._forgot_at = monotonic()

    def add(self, settled: Iterable[Identity]) -> None:
        """See `Settled`."""
        now = self._monotonic()
        with self._lock:
            for host, boot_id, seq in settled:
                self._boots.write(host, boot_id, seq, now)
            if now - self._forgot_at > FORGET_SECONDS:
                self._forgot_at = now
                self._boots.forget_before(now - SETTLED_SECONDS)

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Settled`."""
        with self._lock:
            return self._boots.has_written(host, boot_id, seq)

    def last_from(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Settled`."""
        with self._lock:
            return self._boots.last_from(host, boot_id, oldest_seq)
