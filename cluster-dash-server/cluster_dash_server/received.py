"""What became of posts, for people who look after the server: how many a second, and why some were refused."""

import re
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cluster_dash_server.ingest import Answer
from cluster_dash_server.snapshot import printable

RATE_SECONDS = 60
"""Over how long the rate of posts is taken."""
MOST_REASONS = 100
"""Reasons that are kept apart; of more, the one that is longest ago is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One reason for which snapshots were refused.

    Attributes:
        status: of the answers.
        subject: the limit that refused, `[limits] max_hosts`, or the field that was wrong.
        count: how many snapshots.
        first_at: Unix s.
        last_at: Unix s.
        text: what the last of them was told.
    """

    status: int
    subject: str
    count: int
    first_at: float
    last_at: float
    text: str


class Received(NamedTuple):
    """What became of all posts of this life of the server.

    Attributes:
        per_second: snapshots taken, over the last minute or since the start.
        taken: snapshots in all, and so for the others.
        refusals: one for each reason, the newest first.
    """

    per_second: float
    taken: int
    duplicate: int
    refused: int
    refusals: tuple[Refusal, ...]


class Reception:
    """Listens to the answers to posts. Thread-safe; a post costs it about a microsecond.

    Args:
        clock: Unix s.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began_at = clock()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: deque[list[int]] = deque(maxlen=RATE_SECONDS + 1)  # a second, and how many were taken in it
        self._refusals: OrderedDict[tuple[int, str], Refusal] = OrderedDict()

    def note(self, answer: Answer) -> None:
        """Note an answer to one snapshot, or to a batch."""
        now = self._clock()
        body = answer.body
        with self._lock:
            if answer.status != 200:
                self._refused(answer.status, str(body.get("msg", "")), now)
            elif "accepted" in body:
                self._taken(body["accepted"], now)
                self._counts["duplicate"] += body["duplicates"]
                for each in body["rejected"]:
                    self._refused(each["status"], str(each["msg"]), now)
            elif body.get("duplicate"):
                self._counts["duplicate"] += 1
            else:
                self._taken(1, now)

    def _taken(self, count: int, now: float) -> None:
        self._counts["taken"] += count
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += count
        else:
            self._seconds.append([second, count])

    def _refused(self, status: int, text: str, now: float) -> None:
        self._counts["refused"] += 1
        key = status, subject_of(text)
        before = self._refusals.pop(key, None)
        self._refusals[key] = Refusal(
            status=status,
            subject=key[1],
            count=1 if before is None else before.count + 1,
            first_at=now if before is None else before.first_at,
            last_at=now,
            text=printable(text),
        )
        if len(self._refusals) > MOST_REASONS:
            self._refusals.popitem(last=False)

    def refused_since(self, at: float) -> str | None:
        """Say what was refused for good since then (Unix s), in words; None: nothing was.

        That a mole is to come again later (503) is no trouble.
        """
        with self._lock:
            found = [each for each in self._refusals.values() if each.last_at >= at and each.status != 503]
        return "; ".join(f"{each.status}: {each.text}" for each in reversed(found[-3:])) or None

    def so_far(self) -> Received:
        """Return what became of posts until now."""
        now = self._clock()
        with self._lock:
            recent = sum(count for second, count in self._seconds if now - RATE_SECONDS <= second < int(now))
            over = min(float(RATE_SECONDS), max(1.0, int(now) - self._began_at))
            counts = self._counts
            refusals = tuple(reversed(self._refusals.values()))
        return Received(recent / over, counts["taken"], counts["duplicate"], counts["refused"], refusals)


def subject_of(text: str) -> str:
    """Return what a refusal is about: the limit that its text names, else its field, less the keys in it."""
    limit = re.search(r"\[[a-z_]{1,32}\] [a-z_]{1,40}", text)
    if limit is not None:
        return limit[0]
    parts = text.partition(": ")[0].split(".")
    return printable(".*.".join((parts[0], parts[-1])) if len(parts) > 2 else ".".join(parts), 80)
