"""Which snapshots of one boot of a host are known: a set of numbers, nearly all of them in one row. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Seqs:
    """A set of numbers, kept as ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self._firsts.append(first)
            self._lasts.append(last)

    def __contains__(self, seq: int) -> bool:
        place = bisect_right(self._firsts, seq) - 1
        return place >= 0 and seq <= self._lasts[place]

    def add(self, seq: int) -> bool:
        """Add a number; False where it was there already."""
        firsts, lasts = self._firsts, self._lasts
        if lasts and lasts[-1] <= seq <= lasts[-1] + 1:  # nearly always
            is_new = seq != lasts[-1]
            lasts[-1] = seq
            return is_new
        place = bisect_right(firsts, seq) - 1
        if place >= 0 and seq <= lasts[place]:
            return False
        touches_before = place >= 0 and lasts[place] == seq - 1
        touches_after = place + 1 < len(firsts) and firsts[place + 1] == seq + 1
        if touches_before and touches_after:
            lasts[place] = lasts.pop(place + 1)
            del firsts[place + 1]
        elif touches_before:
            lasts[place] = seq
        elif touches_after:
            firsts[place + 1] = seq
        else:
            firsts.insert(place + 1, seq)
            lasts.insert(place + 1, seq)
        return True

    def join(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Add ranges of numbers."""
        firsts: list[int] = []
        lasts: list[int] = []
        for first, last in sorted((*self.ranges(), *ranges)):
            if lasts and first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], last)
            else:
                firsts.append(first)
                lasts.append(last)
        self._firsts, self._lasts = firsts, lasts

    @property
    def count(self) -> int:
        """How many ranges there are."""
        return len(self._firsts)

    def begin_of_last(self, most: int) -> int:
        """Return the number with which the last so many ranges begin; 0 where there are no more."""
        return self._firsts[-most] if len(self._firsts) > most else 0

    def drop_before(self, begin: int) -> None:
        """Take out all numbers below one."""
        place = bisect_left(self._lasts, begin)
        del self._firsts[:place], self._lasts[:place]
        if self._firsts and self._firsts[0] < begin:
            self._firsts[0] = begin

    def discard(self, seq: int) -> None:
        """Take a number out."""
        if len(self._firsts) == 1 and self._firsts[0] == seq:  # nearly always: the oldest
            if self._lasts[0] == seq:
                self._firsts, self._lasts = [], []
            else:
                self._firsts[0] = seq + 1
            return
        place = bisect_right(self._firsts, seq) - 1
        if place < 0 or seq > self._lasts[place]:
            return
        first, last = self._firsts[place], self._lasts[place]
        kept = [each for each in ((first, seq - 1), (seq + 1, last)) if each[0] <= each[1]]
        self._firsts[place : place + 1] = [each[0] for each in kept]
        self._lasts[place : place + 1] = [each[1] for each in kept]

    def last_from(self, oldest: int | None) -> int | None:
        """Return up to where all numbers from `oldest` on are there; of None the highest; None: not even that one."""
        if oldest is None:
            return self._lasts[-1] if self._lasts else None
        place = bisect_right(self._firsts, oldest) - 1
        return self._lasts[place] if place >= 0 and oldest <= self._lasts[place] else None

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges, in order."""
        return list(zip(self._firsts, self._lasts, strict=True))
