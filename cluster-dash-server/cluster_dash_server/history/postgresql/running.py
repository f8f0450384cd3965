"""What the running hour adds up to, so that nobody looks at all of its rows each time. In memory; one thread."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import add

from cluster_dash_server.history.rollups import (
    HOUR,
    Share,
    Stretch,
    UsageKey,
    covers_of,
    join,
    roll_all,
    runs_of,
    stretches_of,
)
from cluster_dash_server.store import Figures

_TOUCH_SECONDS = 1e-3


@dataclass(slots=True)
class Sums:
    """What an hour of a host has given so far.

    Attributes:
        usage: GPU-seconds by user and model.
        held: who had which GPU.
    """

    usage: dict[UsageKey, Share] = field(default_factory=dict)
    held: list[Stretch] = field(default_factory=list)

    def put(self, usage: dict[UsageKey, Share], held: Iterable[Stretch]) -> None:
        """Add what a further stretch of time gives."""
        for key, share in usage.items():
            was = self.usage.get(key)
            self.usage[key] = share if was is None else tuple(map(add, was, share))
        newest = {(each.uuid, each.gpu, each.user, each.job): place for place, each in enumerate(self.held)}
        for each in held:
            place = newest.get((each.uuid, each.gpu, each.user, each.job))
            if place is not None and each.from_at - self.held[place].to_at <= _TOUCH_SECONDS:
                self.held[place] = join(self.held[place], each)
            else:
                self.held.append(each)


@dataclass(slots=True)
class _Host:
    waiting: list[Figures] = field(default_factory=list)
    hours: dict[int, Sums] = field(default_factory=dict)


class Running:
    """Adds up rows a minute of a host at a time; the newest minute of a host is counted when the next one begins."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self.changed: set[tuple[int, str]] = set()
        """Hours of hosts that have given more since it was emptied."""
        self.counted_to = 0.0

    def take(self, rows: Iterable[Figures]) -> list[Figures]:
        """Take rows in the order of time; return those that are newer than what their host has told."""
        taken: list[Figures] = []
        due: list[tuple[_Host, list[Figures], float]] = []
        for row in rows:
            host = self._hosts.get(row.host)
            if host is None:
                host = self._hosts[row.host] = _Host()
            waiting = host.waiting
            if waiting and row.at <= waiting[-1].at:
                continue  # a repeat; or late, and then it waits until its hour is added up anew
            if waiting and row.at // 60 != waiting[0].at // 60:
                due.append((host, waiting, row.at))
                host.waiting = waiting = []
            waiting.append(row)
            taken.append(row)
        self._add_up(due)
        return taken

    def _add_up(self, due: Sequence[tuple[_Host, list[Figures], float]]) -> None:
        """Add up rows of hosts, of each of which it is known when the next one was taken."""
        sums, parts = [], []
        for host, rows, next_at in due:
            hour = int(rows[0].at // HOUR) * HOUR
            end = hour + HOUR  # another one begins anew
            begin = rows[0].at if hour in host.hours else hour
            sums.append(host.hours.setdefault(hour, Sums()))
            parts.append((runs_of(rows), covers_of(rows, begin, end, next_at if next_at < end else inf)))
            self.changed.add((hour, rows[0].host))
            self.counted_to = max(self.counted_to, min(next_at, end))
        for each, rolled, part in zip(sums, roll_all(parts), parts, strict=True):
            each.put(rolled.by_user(), stretches_of(*part))

    def all(self) -> Iterator[tuple[int, str, Sums]]:
        """Give each hour of each host, and what it has given."""
        for name, host in self._hosts.items():
            for hour, sums in host.hours.items():
                yield hour, name, sums

    def close(self, hour: int, hosts: Iterable[str]) -> None:
        """Forget an hour of some hosts: it is kept elsewhere now."""
        for name in hosts:
            host = self._hosts.get(name)
            if host is None:
                continue
            host.hours.pop(hour, None)
            if host.waiting and host.waiting[0].at // HOUR * HOUR == hour:
                host.waiting = []
            if not host.hours and not host.waiting:
                del self._hosts[name]
