"""The plainest engine, in the memory of one process: tests hold the others to it."""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from cluster_dash_server.sharing.engine import MOST_CHANGES, Answer, Away, Change, Offer, Order, is_newer


class MemoryEngine:
    """See `engine.Engine`.

    Args:
        clock: Unix s.

    Attributes:
        is_away: nobody reaches it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.is_away = False
        self._clock = clock
        self._lock = threading.Lock()
        self.lose_all()

    def lose_all(self) -> None:
        """Begin a life of its own, and empty."""
        self._epoch = secrets.token_hex(8)
        self._rows: dict[str, tuple[int, Order, bytes]] = {}
        self._version = self._whole_from = 0

    def exchange(self, epoch: str, since: int, offers: Sequence[Offer]) -> Answer:
        """See `Engine`."""
        with self._lock:
            if self.is_away:
                raise Away("memory: away")
            if epoch != self._epoch:
                return self._answer([], True, [])
            rows = sorted((version, key, row) for key, (version, _, row) in self._rows.items() if version > since)
            changes = [Change(key, version, row) for version, key, row in rows[:MOST_CHANGES]]
            if len(rows) >= MOST_CHANGES:
                return self._answer(changes, False, [], changes[-1].version)
            return self._answer(changes, True, [self._put(offer) for offer in offers])

    def _answer(
        self, changes: Sequence[Change], is_all: bool, taken: Sequence[int | None], version: int | None = None
    ) -> Answer:
        return Answer(
            epoch=self._epoch,
            version=self._version if version is None else version,
            whole_from=self._whole_from,
            at=self._clock(),
            changes=changes,
            is_all=is_all,
            taken=taken,
        )

    def _put(self, offer: Offer) -> int | None:
        known = self._rows.get(offer.key)
        if known is not None and not is_newer(offer.order, known[1]):
            return None
        self._version += 1
        self._rows[offer.key] = self._version, offer.order, offer.row
        return self._version

    def drop(self, orders: Mapping[str, Order]) -> None:
        """See `Engine`."""
        with self._lock:
            if self.is_away:
                raise Away("memory: away")
            for key, order in orders.items():
                if key in self._rows and self._rows[key][1] == order:
                    version, *_ = self._rows.pop(key)
                    if "/" not in key:  # of hosts alone views must know which went
                        self._whole_from = max(self._whole_from, version)

    def close(self) -> None:
        """See `Engine`."""
