"""Which snapshots a store took, and which of them it has written, by host and boot; bounded, whatever hosts invent.

What is forgotten is never claimed, and taken anew when it comes again: a mole that asks for it keeps it as long. So it
is forgotten as taken wherever it is forgotten as written; else it would be held for known and never become durable.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cluster_dash_server.history.seqs import Seqs

MOST_BOOTS = 64
"""Boots of a host that are remembered, those last heard of: one token can invent any number of them."""
MOST_RANGES = 256
"""Ranges of a boot, the last ones: an honest mole counts by one."""


Ranges = Sequence[tuple[int, int]]


@dataclass(slots=True)
class _Boot:
    taken: Seqs = field(default_factory=Seqs)
    written: Seqs = field(default_factory=Seqs)
    newest_at: float = float("-inf")

    def trim(self) -> None:
        begin = max(self.taken.begin_of_last(MOST_RANGES), self.written.begin_of_last(MOST_RANGES))
        self.taken.drop_before(begin)
        self.written.drop_before(begin)


class Boots:
    """See the module; whoever has it guards it."""

    def __init__(self) -> None:
        self._hosts: dict[str, dict[str, _Boot]] = {}

    def take(self, host: str, boot_id: str, seq: int, at: float) -> bool:
        """Note a snapshot of a moment (Unix s) as taken; False where it was before."""
        boot = self._heard_of(host, boot_id, at)
        if not boot.taken.add(seq):
            return False
        if boot.taken.count > MOST_RANGES:
            boot.trim()
        return True

    def write(self, host: str, boot_id: str, seq: int, at: float) -> None:
        """Note that one is written."""
        boot = self._heard_of(host, boot_id, at)
        boot.taken.add(seq)  # it may have been forgotten meanwhile
        boot.written.add(seq)
        if boot.written.count > MOST_RANGES or boot.taken.count > MOST_RANGES:
            boot.trim()

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """Say whether one was taken."""
        boot = self._hosts.get(host, {}).get(boot_id)
        return boot is not None and seq in boot.taken

    def has_written(self, host: str, boot_id: str, seq: int) -> bool:
        """Say whether one is written."""
        boot = self._hosts.get(host, {}).get(boot_id)
        return boot is not None and seq in boot.written

    def last_from(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """Return up to which seq all is written; see `Store.durable_seq`."""
        boot = self._hosts.get(host, {}).get(boot_id)
        return None if boot is None else boot.written.last_from(oldest_seq)

    def written(self, host: str, boot_id: str) -> Seqs:
        """Return a copy of what is written of a boot."""
        boot = self._hosts.get(host, {}).get(boot_id)
        return Seqs(() if boot is None else boot.written.ranges())

    def let_go(self, snapshots: Iterable[tuple[str, str, int]]) -> None:
        """Forget snapshots, by host, boot_id and seq: others know them, or they are to come again."""
        for host, boot_id, seq in snapshots:
            boot = self._hosts.get(host, {}).get(boot_id)
            if boot is not None:
                boot.taken.discard(seq)
                boot.written.discard(seq)

    def let_go_unwritten(self) -> None:
        """Forget all that is only taken: it is to come again."""
        for boots in self._hosts.values():
            for boot in boots.values():
                boot.taken = Seqs(boot.written.ranges())

    def begin_anew(self, written: Iterable[tuple[str, str, Ranges, float]]) -> None:
        """Note what is written, and nothing else is: host, boot_id, ranges, and the newest moment (Unix s) of each."""
        for boots in self._hosts.values():
            for boot in boots.values():
                boot.written = Seqs()
        for host, boot_id, ranges, newest_at in written:
            boot = self._heard_of(host, boot_id, newest_at)
            boot.written = Seqs(ranges)
            boot.taken.join(ranges)
            boot.trim()

    def forget_before(self, at: float) -> None:
        """Forget boots of which all snapshots are older than a moment (Unix s)."""
        for host, boots in list(self._hosts.items()):
            for boot_id in [boot_id for boot_id, boot in boots.items() if boot.newest_at < at]:
                del boots[boot_id]
            if not boots:
                del self._hosts[host]

    def _heard_of(self, host: str, boot_id: str, at: float) -> _Boot:
        boots = self._hosts.get(host)
        if boots is None:
            boots = self._hosts[host] = {}
        boot = boots.get(boot_id)
        if boot is None:
            boot = boots[boot_id] = _Boot()
            if len(boots) > MOST_BOOTS:
                del boots[next(iter(boots))]
        elif len(boots) > 1:  # the last one heard of stands last
            boots[boot_id] = boots.pop(boot_id)
        if at > boot.newest_at:
            boot.newest_at = at
        return boot
