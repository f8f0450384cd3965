"""When disks will be full: what they held some hours ago, beside what they hold now. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cluster_dash_server.store import Series, SeriesQuery, StoreError

HALF_FULL_PERCENT = 50.0
"""A disk less used than this fills when it is first written to; nobody is warned of that."""
FILL_SECONDS = 3600.0
"""How long a disk is watched at least before it is said when it will be full."""
ANCHOR_SECONDS = 3 * 3600.0
"""How far apart the moments are that a disk is compared with: it is judged by its last three to six hours."""
STEP_SECONDS = 3600.0
"""History is asked by the hour: of thousands of hosts that is a handful of rows each."""

Disks = tuple[tuple[str, float], ...]
"""Of a host: mount points, and how full they are in %."""


class Filling(NamedTuple):
    """When a disk will be full, if it fills on as it does."""

    mount: str
    percent: float
    seconds: float


class Before(NamedTuple):
    """What history knows of a host: how full its fullest disk was at a moment (Unix s)."""

    at: float
    percent: float


class Disklog:
    """How full the disks of hosts were some hours ago: of each host, two moments."""

    def __init__(self) -> None:
        self._anchors: dict[str, tuple[tuple[float, Disks], tuple[float, Disks]]] = {}
        self._before: Mapping[str, Before] = {}

    def begin_with(self, before: Mapping[str, Before]) -> None:
        """Take up what history knows of hosts that were not looked at yet."""
        self._before = before

    def note(self, host: str, disks: Disks, now: float) -> None:
        """Note what is used now, where it is time."""
        known = self._anchors.get(host)
        if known is None:
            before = self._before.get(host)
            if before is None or not disks or not before.at < now:
                first = now, disks
            else:
                # which disk that was is not kept: if another one, this one was less full, and fills faster than is said
                fullest = max(disks, key=lambda each: each[1])
                first = before.at, ((fullest[0], before.percent),)
            self._anchors[host] = first, (now, disks)
        elif now - known[1][0] >= ANCHOR_SECONDS:
            self._anchors[host] = known[1], (now, disks)

    def keep(self, hosts: Iterable[str]) -> None:
        """Forget all other hosts."""
        self._anchors = {host: self._anchors[host] for host in hosts if host in self._anchors}

    def filling(self, host: str, disks: Disks, now: float) -> Filling | None:
        """Return the disk that will be full first; None: none will, or it was not watched for long enough."""
        known = self._anchors.get(host)
        if known is None or now - known[0][0] < FILL_SECONDS:
            return None
        at, before = known[0]
        then = dict(before)
        found = [
            Filling(mount, percent, (100 - percent) * (now - at) / (percent - then[mount]))
            for mount, percent in disks
            if mount in then and HALF_FULL_PERCENT <= percent < 100 and percent > then[mount]
        ]
        return min(found, key=lambda each: each.seconds, default=None)


def remembered(series_of: Callable[[SeriesQuery], Sequence[Series]], now: float) -> dict[str, Before]:
    """Return the oldest that history knows of each host, of the hours that disks are judged by; empty without any."""
    begin, end = now - 2 * ANCHOR_SECONDS, now - FILL_SECONDS
    ask = SeriesQuery(metric="disk_percent", by="host", begin=begin, end=end, step_seconds=STEP_SECONDS)
    try:
        found = series_of(ask)
    except StoreError:  # it says itself why; disks are watched from now on
        return {}
    known: dict[str, Before] = {}
    for series in found:
        moments = zip(series.t, series.mean, strict=True)
        first = next(((at, percent) for at, percent in moments if percent is not None), None)
        if series.host is not None and first is not None:
            known[series.host] = Before(first[0] + series.step_seconds / 2, first[1])
    return known
