"""Which snapshots are settled in history, as all replicas know it: each tells what it knows, and joins the rest.

What is told stays true whoever ends, for it names what the engines of history hold. So nothing is ever taken back; what
is lost with the engine of the live view is told again by who is left, or settled again when moles send it again.

A replica tells of many hosts in one row, for a row of each would cost as much as the posts. No two of them write the
same row, so that no engine must join any: keys are `settled/<life>/<group>`, of a life of a replica and a group of
hosts. What a life told that has ended, another one takes over.
"""

import json
import secrets
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster_dash_server.history.boots import MOST_BOOTS
from cluster_dash_server.history.seqs import Seqs
from cluster_dash_server.history.settled import Identity

OF_SETTLED = "settled/"
"""How keys begin of what is settled."""
GROUPS = 64
"""Rows of a replica: with 10,000 hosts each has some 15 kB."""
MOST_RANGES = 128
"""Ranges of a boot that are told, the last ones: to claim less is never wrong.

After an outage of history two replicas settle every other snapshot each: so many ranges, until both have told.
"""


class Told(NamedTuple):
    """What is known of one boot of a host: its ranges, and the second (Unix s) in which the last of it was settled."""

    host: str
    boot_id: str
    at: int
    ranges: list[tuple[int, int]]


class Row(NamedTuple):
    """What a life of a replica tells of a group of hosts; `edition` counts what it told of it, `at` is Unix s."""

    edition: int
    at: float
    told: list[Told]


def to_bytes(row: Row) -> bytes:
    """Return a row as it is shared."""
    return json.dumps(row, separators=(",", ":")).encode()


def from_bytes(row: bytes) -> Row:
    """Return what `to_bytes` was given.

    Raises:
        ValueError: these are no such bytes.
    """
    try:
        edition, at, told = json.loads(row)
        return Row(
            int(edition),
            float(at),
            [
                Told(str(host), str(boot_id), int(last), [(int(first), int(end)) for first, end in ranges])
                for host, boot_id, last, ranges in told
            ],
        )
    except (TypeError, OverflowError) as error:
        raise ValueError(f"no row of what is settled: {error}") from None


@dataclass(slots=True)
class _Boot:
    seqs: Seqs = field(default_factory=Seqs)
    at: int = 0


class SharedSettled:
    """A `Settled` of all replicas; thread-safe. Of each host the boots of which something was settled last are known.

    Args:
        clock: Unix s, the one of all replicas.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._life = secrets.token_hex(4)
        self._groups: list[dict[str, dict[str, _Boot]]] = [{} for _ in range(GROUPS)]
        self._editions = [0] * GROUPS
        self._changed: dict[int, None] = {}  # those told longest ago stand first

    # ------------------------------------------------------------------------------------------------- history

    def add(self, settled: Iterable[Identity]) -> None:
        """See `Settled`."""
        now = int(self._clock())
        with self._lock:
            for host, boot_id, seq in settled:
                group = _group_of(host)
                boot = self._heard_of(group, host, boot_id, now)
                if boot is not None and boot.seqs.add(seq):
                    _trim(boot.seqs)
                    self._changed[group] = None

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Settled`."""
        with self._lock:
            boot = self._groups[_group_of(host)].get(host, {}).get(boot_id)
            return boot is not None and seq in boot.seqs

    def last_from(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Settled`."""
        with self._lock:
            boot = self._groups[_group_of(host)].get(host, {}).get(boot_id)
            return None if boot is None else boot.seqs.last_from(oldest_seq)

    def _heard_of(self, group: int, host: str, boot_id: str, at: int) -> _Boot | None:
        """Return what is known of a boot; None: of its host too many are known of which more was settled later."""
        boots = self._groups[group].setdefault(host, {})
        boot = boots.get(boot_id)
        if boot is None:
            boot = boots[boot_id] = _Boot(at=at)
            if len(boots) > MOST_BOOTS:  # one token can invent any number of them
                del boots[min(boots, key=lambda each: boots[each].at)]
        boot.at = max(boot.at, at)
        return boots.get(boot_id)

    # ------------------------------------------------------------------------------------------------- sharing

    def changed(self, most: int = GROUPS) -> list[str]:
        """Return the keys of which there is more to tell, at most so many; each once."""
        with self._lock:
            changed = list(self._changed)[:most]
            for group in changed:
                del self._changed[group]
                self._editions[group] += 1
            return [self._key(group) for group in changed]

    def tell_all(self) -> None:
        """Have all that is known told again: an engine may have lost it."""
        with self._lock:
            self._changed.update(dict.fromkeys(group for group, hosts in enumerate(self._groups) if hosts))

    def take_over(self, key: str) -> str | None:
        """Have that told by this life which another one has told; return under which key, None: nothing is left."""
        group = _group_in(key)
        with self._lock:
            if not self._groups[group]:
                return None
            self._changed[group] = None
            return self._key(group)

    def row(self, key: str, at: float) -> Row | None:
        """Return what to tell under a key of this life, at a moment (Unix s); None: nothing."""
        group = _group_in(key)
        with self._lock:
            told = [
                Told(host, boot_id, boot.at, boot.seqs.ranges()[-MOST_RANGES:])
                for host, boots in self._groups[group].items()
                for boot_id, boot in boots.items()
            ]
            return Row(self._editions[group], at, told) if told else None

    def join(self, row: Row) -> None:
        """Take what another life told."""
        with self._lock:
            for host, boot_id, at, ranges in row.told:
                boot = self._heard_of(_group_of(host), host, boot_id, at)
                if boot is not None and boot.seqs.ranges() != ranges:
                    boot.seqs.join(ranges)
                    _trim(boot.seqs)

    def forget_before(self, at: float) -> None:
        """Forget the boots of which nothing was settled since a moment (Unix s)."""
        with self._lock:
            for hosts in self._groups:
                for host, boots in list(hosts.items()):
                    for boot_id in [boot_id for boot_id, boot in boots.items() if boot.at < at]:
                        del boots[boot_id]
                    if not boots:
                        del hosts[host]

    def is_own(self, key: str) -> bool:
        """Say whether a key is of this life."""
        return life_of(key) == self._life

    def _key(self, group: int) -> str:
        return f"{OF_SETTLED}{self._life}/{group}"


def life_of(key: str) -> str:
    """Return which life of a replica tells under a key."""
    return key.removeprefix(OF_SETTLED).partition("/")[0]


def _group_in(key: str) -> int:
    return int(key.rpartition("/")[2]) % GROUPS


def _group_of(host: str) -> int:
    return zlib.crc32(host.encode(errors="surrogatepass")) % GROUPS


def _trim(seqs: Seqs) -> None:
    if seqs.count > 2 * MOST_RANGES:
        seqs.drop_before(seqs.begin_of_last(MOST_RANGES))
