"""What the newest rows add up to before their hour is sealed: so that "today" has no hole. In memory; one writer."""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from cluster_dash_server.history.rollups import HOUR, Minutes, Rolled, Share, UsageKey, covers_of, roll_all, runs_of
from cluster_dash_server.history.steps import SETTLING_SECONDS
from cluster_dash_server.privacy import without_user
from cluster_dash_server.store import Figures

TOGETHER_SECONDS = 120
"""Rows of so long are added up together, and those of all hosts that come to their end at the same time. Nobody is told
of newer ones, see `steps.SETTLING_SECONDS`, and an hour is a multiple of it."""


@dataclass(slots=True)
class _Host:
    """The newest rows of a host, and what its open hours have given so far."""

    waiting: list[Figures] = field(default_factory=list)
    given: dict[int, Rolled] = field(default_factory=dict)

    def waits(self, hour: int) -> bool:
        """Say whether the newest rows are of an hour and not added up yet."""
        return bool(self.waiting) and self.waiting[0].at // HOUR * HOUR == hour


@dataclass(slots=True)
class _Hour:
    """What the hosts have given to an hour, and how many of them are in it."""

    rolled: Rolled
    hosts: int = 0


_Due = tuple[Rolled, list[Figures], float, float]
"""What a host has given to an hour, the rows that are to be added, from when on they hold, and when the next one is."""


class OpenHours:
    """Adds up rows as they are written, two minutes of a host at a time, until `close`.

    The newest of them are not in it: they are added up when the next ones begin.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._hours: dict[int, _Hour] = {}
        self._lock = threading.Lock()

    def take(self, rows: Iterable[Figures]) -> list[tuple[str, int]]:
        """Take rows that were written.

        Returns:
            Hosts and hours of rows that are older than the newest one of their host, of the same hour: they count when
            the hour is added up `anew`. Those of hours before count when these are sealed.
        """
        late: list[tuple[str, int]] = []
        due: list[_Due] = []
        for row in rows:
            host = self._hosts.get(row.host)
            if host is None:
                with self._lock:
                    host = self._hosts[row.host] = _Host()
            waiting = host.waiting
            if waiting and row.at <= waiting[-1].at:
                hour = int(row.at // HOUR) * HOUR
                if host.waits(hour):
                    late.append((row.host, hour))
                continue
            if waiting and row.at // TOGETHER_SECONDS != waiting[0].at // TOGETHER_SECONDS:
                due.append(self._due(host, waiting, row.at))
                host.waiting = waiting = []
            waiting.append(row)
        self._add_up(due)
        return late

    def anew(self, name: str, hour: int, rows: Sequence[Figures]) -> None:
        """Add up an open hour anew: all its rows that are written and not sealed, oldest first."""
        host = self._hosts.get(name)
        if host is None or not host.waits(hour):
            return
        begin = host.waiting[0].at // TOGETHER_SECONDS * TOGETHER_SECONDS
        first = bisect_left(rows, begin, key=lambda row: row.at)
        host.waiting = list(rows[first:])
        with self._lock:
            self._take_back(host, hour)
        if first:
            self._add_up([self._due(host, list(rows[:first]), rows[first].at)])

    def _due(self, host: _Host, rows: list[Figures], next_at: float) -> _Due:
        hour = int(rows[0].at // HOUR) * HOUR
        given, begin = host.given.get(hour), rows[0].at
        if given is None:
            given, begin = Rolled(hour), float(hour)  # another one begins anew
            with self._lock:
                host.given[hour] = given
                self._hours.setdefault(hour, _Hour(Rolled(hour))).hosts += 1
        return given, rows, begin, next_at

    def _add_up(self, due: Sequence[_Due]) -> None:
        parts = []
        for given, rows, begin, next_at in due:
            end = given.hour + HOUR
            parts.append((runs_of(rows), covers_of(rows, begin, end, next_at if next_at < end else inf)))
        for (given, *_), new in zip(due, roll_all(parts), strict=True):
            with self._lock:
                given.put(new)
                self._hours[given.hour].rolled.put(new)

    def _take_back(self, host: _Host, hour: int) -> None:
        """Take out all that an hour of a host has given; under the lock."""
        given = host.given.pop(hour, None)
        if given is not None:
            of_all = self._hours[hour]
            of_all.rolled.take_out(given)
            of_all.hosts -= 1
            if not of_all.hosts:
                del self._hours[hour]

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
            of_hosts = [given for host in self._hosts.values() for given in host.given.values()]
            for rolled in (*of_hosts, *[hour.rolled for hour in self._hours.values()]):
                for key in [key for key in rolled.users if key[0] == user]:
                    del rolled.users[key]

    def minutes(self, now: float) -> Minutes:
        """Return the shares of the cluster, by minute and model, whole up to what is told `now` (Unix s)."""
        still = self._still((now - SETTLING_SECONDS) // 60 * 60)
        with self._lock:
            for hour, of_all in self._hours.items():
                rolled = still.setdefault(hour, Rolled(hour))
                rolled.put(of_all.rolled)
            return {key: share for rolled in still.values() for key, share in rolled.by_minute().items()}

    def _still(self, before: float) -> dict[int, Rolled]:
        """Add up rows that wait although they are of minutes before a moment, by the hour.

        Their hosts post less often than rows are added up, or no more: until the next one comes, the newest row holds.
        """
        parts = []
        for host in list(self._hosts.values()):
            rows = list(host.waiting)
            if rows:
                hour = rows[0].at // HOUR * HOUR
                begin = rows[0].at if hour in host.given else hour
                if begin < before:
                    parts.append((runs_of(rows), covers_of(rows, begin, hour + HOUR)))
        still: dict[int, Rolled] = {}
        for rolled in roll_all(parts):
            still.setdefault(rolled.hour, Rolled(rolled.hour)).put(rolled)
        return still

    def usage(self) -> dict[int, dict[UsageKey, Share]]:
        """Return the usage of all hosts together: by hour, then by user and model."""
        with self._lock:
            return {hour: usage for hour, of_all in self._hours.items() if (usage := of_all.rolled.by_user())}

    def usage_of_hosts(self) -> dict[tuple[int, str], dict[UsageKey, Share]]:
        """Return usage by hour and host, then by user and model."""
        with self._lock:
            hosts = list(self._hosts.items())
        found = {}
        for name, host in hosts:
            with self._lock:  # for one at a time: thousands would keep the writer waiting
                for hour, given in host.given.items():
                    found[hour, name] = given.by_user()
        return found
