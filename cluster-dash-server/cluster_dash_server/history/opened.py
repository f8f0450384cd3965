"""What the newest rows add up to before their hour is sealed: so that "today" has no hole. In memory; one writer."""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import add, sub
from typing import Any

from cluster_dash_server.history.rollups import HOUR, Minutes, Rolled, Share, UsageKey, has_one_interval, roll
from cluster_dash_server.history.unnaming import without_user
from cluster_dash_server.store import Figures

TOGETHER_SECONDS = 120
"""Rows of so long are added up together: one at a time costs twice as much. Nobody is told of newer ones, see
`steps.SETTLING_SECONDS`, and an hour is a multiple of it."""


@dataclass(slots=True)
class _Host:
    """The newest rows of a host, and what its open hours have given so far, from how many rows."""

    waiting: list[Figures] = field(default_factory=list)
    given: dict[int, Rolled] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)

    def waits(self, hour: int) -> bool:
        """Say whether the newest rows are of an hour and not added up yet."""
        return bool(self.waiting) and self.waiting[0].at // HOUR * HOUR == hour

    def rolled(self, hour: int, next_at: float = inf) -> Rolled:
        """Return what the newest rows, which are of this hour, add up to; the next row comes at `next_at`."""
        begin, end = self.waiting[0].at if hour in self.given else hour, hour + HOUR  # another one begins anew
        return roll(self.waiting, begin, end, next_at if next_at < end else inf)


class OpenHours:
    """Adds up rows as they are written, two minutes of a host at a time, until `close`.

    The newest of them are not in it: they are added up when the next ones begin.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._minutes: Minutes = {}
        self._usage: dict[int, dict[UsageKey, Share]] = {}
        self._counted_to = 0.0
        self._lock = threading.Lock()

    def take(self, rows: Iterable[Figures]) -> list[tuple[str, int]]:
        """Take rows that were written.

        Returns:
            Hosts and hours of rows that are older than the newest one of their host, of the same hour: they count when
            the hour is added up `anew`. Those of hours before count when these are sealed.
        """
        late = []
        for row in rows:
            host = self._hosts.get(row.host)
            if host is None:
                host = self._hosts[row.host] = _Host()
            waiting = host.waiting
            if waiting and row.at <= waiting[-1].at:
                hour = int(row.at // HOUR) * HOUR
                if host.waits(hour):
                    late.append((row.host, hour))
                continue
            if waiting and row.at // TOGETHER_SECONDS != waiting[0].at // TOGETHER_SECONDS:
                self._roll(host, row.at)
            host.waiting.append(row)
        return late

    def anew(self, name: str, hour: int, rows: Sequence[Figures]) -> None:
        """Add up an open hour anew: all its rows that are written and not sealed, oldest first."""
        host = self._hosts.get(name)
        if host is None or not host.waits(hour):
            return
        begin = host.waiting[0].at // TOGETHER_SECONDS * TOGETHER_SECONDS
        first = bisect_left(rows, begin, key=lambda row: row.at)
        new = roll(rows[:first], hour, hour + HOUR, rows[first].at) if first else None
        host.waiting = list(rows[first:])
        with self._lock:
            self._take_back(host, hour)
            if new is not None:
                self._give(host, hour, new, first)

    def _roll(self, host: _Host, next_at: float) -> None:
        hour = int(host.waiting[0].at // HOUR) * HOUR
        new = host.rolled(hour, next_at)
        with self._lock:
            self._give(host, hour, new, len(host.waiting))
            self._counted_to = max(self._counted_to, min(next_at, hour + HOUR))
        host.waiting = []

    def _give(self, host: _Host, hour: int, new: Rolled, rows: int) -> None:
        """Count what so many rows more add up to; under the lock."""
        host.rows[hour] = host.rows.get(hour, 0) + rows
        given = host.given.setdefault(hour, Rolled())
        for sums in (given.minutes, self._minutes):
            _put(sums, new.minutes)
        for usage in (given.usage, self._usage.setdefault(hour, {})):
            _put(usage, new.usage)

    def _take_back(self, host: _Host, hour: int) -> None:
        """Take out all that an hour of a host has given; under the lock."""
        host.rows.pop(hour, None)
        given = host.given.pop(hour, None)
        if given is not None:
            _take_out(self._minutes, given.minutes)
            usage = self._usage.get(hour)
            if usage is None:  # hosts without GPUs give none, and those that did are out
                return
            _take_out(usage, given.usage)
            if not usage:
                del self._usage[hour]

    def given(self, name: str, hour: int, rows: Sequence[Figures]) -> Rolled | None:
        """Return what an hour of a host has given, where these rows of it are all that has; else None.

        That is what `roll` makes of them, but for what rounding leaves, and they need not be added up again.
        """
        host = self._hosts.get(name)
        if host is None:
            return None
        waiting = host.waiting if host.waits(hour) else []
        if host.rows.get(hour, 0) + len(waiting) != len(rows) or not has_one_interval(rows):
            return None
        if not waiting:
            return host.given[hour]
        last, given = host.rolled(hour), host.given.get(hour)  # not kept: more may come, if sealing fails
        if given is None:
            return last
        whole = Rolled(dict(given.minutes), dict(given.usage))
        _put(whole.minutes, last.minutes)
        _put(whole.usage, last.usage)
        return whole

    def close(self, name: str, hour: int) -> None:
        """Take out what an hour of a host has given: it is sealed, and counted there."""
        host = self._hosts.get(name)
        if host is None:
            return
        if host.waits(hour):
            host.waiting = []
        with self._lock:
            self._take_back(host, hour)

    def unname(self, user: str) -> None:
        """Forget what a user had; hosts and models keep it."""
        for host in self._hosts.values():
            host.waiting = [without_user(row, user) for row in host.waiting]
        with self._lock:
            for usages in (self._usage.values(), *(self._given(host) for host in self._hosts.values())):
                for usage in usages:
                    for key in [key for key in usage if key[0] == user]:
                        del usage[key]

    @staticmethod
    def _given(host: _Host) -> list[dict[UsageKey, Share]]:
        return [given.usage for given in host.given.values()]

    def counted_to(self) -> float:
        """Return up to which moment rows were added up (Unix s); 0: none was yet."""
        with self._lock:
            return self._counted_to

    def minutes(self) -> Minutes:
        """Return the shares of the cluster, by minute and model."""
        with self._lock:
            return dict(self._minutes)

    def usage(self) -> dict[int, dict[UsageKey, Share]]:
        """Return the usage of all hosts together: by hour, then by user and model."""
        with self._lock:
            return {hour: dict(usage) for hour, usage in self._usage.items()}

    def usage_of_hosts(self) -> dict[tuple[int, str], dict[UsageKey, Share]]:
        """Return usage by hour and host, then by user and model."""
        with self._lock:
            return {
                (hour, name): dict(given.usage)
                for name, host in self._hosts.items()
                for hour, given in host.given.items()
            }


def _put(sums: dict[Any, Share], new: dict[Any, Share]) -> None:
    for key, share in new.items():
        was = sums.get(key)
        sums[key] = share if was is None else tuple(map(add, was, share))


def _take_out(sums: dict[Any, Share], gone: dict[Any, Share]) -> None:
    for key, share in gone.items():
        was = sums.get(key)
        if was is None:  # what is left of it was too little to be kept
            continue
        left = tuple(map(sub, was, share))
        if any(each > 1e-6 for each in left):  # less is what rounding leaves
            sums[key] = left
        else:
            del sums[key]
