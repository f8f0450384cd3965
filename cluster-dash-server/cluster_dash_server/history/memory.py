"""History in memory, the plainest way: forgets at its end. What the other kinds are compared with."""

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from cluster_dash_server.history.gpu_hours import asked_for, order, usage_of
from cluster_dash_server.history.rollups import (
    DAY,
    HOUR,
    USAGE,
    Minutes,
    Share,
    Stretch,
    cluster_figures,
    roll,
    stretches,
    uses,
    whole_minutes,
)
from cluster_dash_server.history.steps import SETTLING_SECONDS, Steps, covered_seconds, hours_in, steps_of, user_series
from cluster_dash_server.privacy import unnamed, without_user
from cluster_dash_server.store import (
    CLUSTER_METRICS,
    GPU_METRICS,
    HOST_METRICS,
    Event,
    EventQuery,
    Figures,
    KeptEvent,
    LastSeen,
    Series,
    SeriesQuery,
    Unnamed,
    Usage,
    UsageQuery,
    Use,
    UseQuery,
)


class MemoryStore:
    """A `Store` and a `Ledger` that keeps every row as it came.

    Args:
        clock: Unix s.
        keep_seconds: for how long rows are kept; None: as long as it lives.
    """

    def __init__(self, clock: Callable[[], float], keep_seconds: float | None = None) -> None:
        self._clock = clock
        self._keep_seconds = keep_seconds
        self._rows: dict[str, list[Figures]] = {}
        self._events: list[KeptEvent] = []
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------------- Store

    def append(self, figures: Figures) -> None:
        """See `Store`."""
        with self._lock:
            rows = self._rows.setdefault(figures.host, [])
            if figures.boot_id is None or all(
                (row.boot_id, row.seq) != (figures.boot_id, figures.seq) for row in reversed(rows)
            ):
                rows.append(figures)
                rows.sort(key=lambda row: row.at)

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Store`."""
        return seq in self._seqs(host, boot_id)

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Store`."""
        seqs = self._seqs(host, boot_id)
        if oldest_seq is None:
            return max(seqs, default=None)
        last = oldest_seq
        while last in seqs:
            last += 1
        return last - 1 if last > oldest_seq else None

    def series(self, ask: SeriesQuery) -> list[Series]:
        """See `Store`."""
        steps = steps_of(ask)
        if ask.by in ("gpu", "host"):
            return self._figures(ask, steps)
        if ask.by == "user":
            return self._users(ask, steps)
        return self._cluster(ask, steps)

    def moment(self, at: float, silent_seconds: float = 600) -> list[Figures]:
        """See `Store`."""
        with self._lock:
            found = [[row for row in rows if at - silent_seconds <= row.at <= at] for rows in self._rows.values()]
        return sorted((rows[-1] for rows in found if rows), key=lambda row: row.host)

    def prune(self, now: float) -> None:
        """See `Store`."""
        if self._keep_seconds is None:
            return
        with self._lock:
            for host, rows in self._rows.items():
                self._rows[host] = [row for row in rows if row.at >= now - self._keep_seconds]

    def flush(self) -> None:
        """See `Store`."""

    # ------------------------------------------------------------------------------------------------------ Ledger

    def record(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        with self._lock:
            self._events.append(kept)

    def retract(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        with self._lock:
            self._events.remove(kept)

    def forget_user(self, user: str, strip: Callable[[LastSeen], LastSeen]) -> None:
        """See `Ledger`."""
        with self._lock:
            for host, rows in self._rows.items():
                self._rows[host] = [without_user(row, user) for row in rows]
            self._events = [
                kept._replace(event=replace(kept.event, text=unnamed(kept.event.text, user))) for kept in self._events
            ]

    def unnamed(self, user: str) -> Unnamed | None:
        """See `Ledger`."""
        return Unnamed(hosts_left=0, host_hours=0, events=0, snapshots=0)

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger`."""
        with self._lock:
            found = [
                kept.event
                for kept in reversed(self._events)
                if ask.begin <= kept.event.at <= ask.end
                and (ask.hosts is None or kept.event.host in ask.hosts)
                and (ask.kinds is None or kept.event.kind in ask.kinds)
            ]
        return sorted(found, key=lambda event: -event.at)[: ask.most]

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger`."""
        found = []
        for host, rows in self._hosts(ask.hosts):
            pieces: list[Stretch] = []
            for hour, part in _hours(rows):
                if ask.begin // HOUR * HOUR <= hour <= ask.end:
                    pieces += stretches(part, hour, hour + HOUR)
            found += uses(host, pieces)
        return asked_for(found, ask)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger`."""
        sums: dict[tuple[str | float | None, ...], list[float]] = {}
        first, last = ask.begin // HOUR * HOUR, -(-ask.end // HOUR) * HOUR
        for host, rows in self._hosts(ask.hosts):
            for hour, part in _hours(rows):
                if not first <= hour < max(last, first + HOUR):
                    continue
                for (user, model), share in roll(part, hour, hour + HOUR).by_user().items():
                    if (user == "") == ("user" in ask.by or ask.users is not None):
                        continue
                    if (ask.users is not None and user not in ask.users) or (
                        ask.models is not None and model not in ask.models
                    ):
                        continue
                    of: dict[str, str | float] = {
                        "user": user,
                        "host": host,
                        "model": model,
                        "hour": hour,
                        "day": hour // DAY * DAY,
                    }
                    key = tuple(of[name] if name in ask.by else None for name in of)
                    sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * len(USAGE)), share, strict=True)]
        # the fourth place is for what Slurm gave away; nothing fills it yet
        return [
            usage_of(key, held, busy, idle, util, seen)
            for key, (held, busy, idle, _, util, seen) in sorted(sums.items(), key=lambda each: order(each[0]))
        ]

    def forget(self, hosts: Iterable[str]) -> None:
        """See `Ledger`."""
        gone = set(hosts)
        with self._lock:
            self._events = [kept for kept in self._events if kept.event.host not in gone]

    # ------------------------------------------------------------------------------------------------------ within

    def _seqs(self, host: str, boot_id: str) -> set[int]:
        with self._lock:
            return {row.seq for row in self._rows.get(host, ()) if row.boot_id == boot_id and row.seq is not None}

    def _hosts(self, hosts: tuple[str, ...] | None) -> list[tuple[str, list[Figures]]]:
        with self._lock:
            return sorted((host, list(rows)) for host, rows in self._rows.items() if hosts is None or host in hosts)

    def _figures(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        of_line: dict[tuple[str, int | None], list[list[float]]] = {}
        named: dict[tuple[str, int | None], tuple[str | None, str | None]] = {}
        for host, rows in self._hosts(ask.hosts):
            for row in rows:
                if not steps.begin <= row.at < steps.end:
                    continue
                step = int((row.at - steps.begin) // steps.seconds)
                for index, uuid, model, value in _values(row, ask.metric):
                    if ask.gpus is not None and index is not None and index not in ask.gpus:
                        continue
                    if ask.models is not None and index is not None and model not in ask.models:
                        continue
                    line = (host, index if ask.by == "gpu" else None)
                    lists = of_line.get(line) or of_line.setdefault(line, [[] for _ in range(steps.count)])
                    if ask.by == "gpu":
                        named[line] = (uuid, model)
                    if value == value:
                        lists[step].append(value)
        return [
            _series(steps, lists, host=host, gpu=gpu, names=named.get((host, gpu), (None, None)))
            for (host, gpu), lists in sorted(of_line.items(), key=lambda each: order(each[0]))
        ]

    def _cluster(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        minutes: Minutes = {}
        for _, rows in self._hosts(None):
            for hour, part in _hours(rows):
                for key, share in roll(part, hour, hour + HOUR).by_minute().items():
                    minutes[key] = _sum(minutes.get(key), share)
        place = CLUSTER_METRICS.index(ask.metric)
        lines: dict[str, list[list[float]]] = {}
        settled = self._clock() - SETTLING_SECONDS
        for minute, model, share in whole_minutes(minutes):
            wanted = model == "" if ask.by == "cluster" else model != "" and ask.models in (None, (model,))
            if ask.by == "model" and ask.models is not None:
                wanted = model in ask.models
            if not wanted or not steps.begin <= minute < steps.end or minute + 60 > settled:
                continue
            lists = lines.get(model) or lines.setdefault(model, [[] for _ in range(steps.count)])
            value = cluster_figures(share, 60)[place]
            if value is not None:
                lists[int((minute - steps.begin) // steps.seconds)].append(value)
        return [_series(steps, lists, names=(None, model or None)) for model, lists in sorted(lines.items())]

    def _users(self, ask: SeriesQuery, steps: Steps) -> list[Series]:
        found = self.usage(
            UsageQuery(begin=steps.begin, end=steps.end, by=("user", "hour"), users=ask.users, hosts=ask.hosts)
        )
        measured = self.usage(UsageQuery(begin=steps.begin, end=steps.end, by=("hour",)))
        total = self._cluster(replace(ask, metric="total_gpus", by="cluster"), hours_in(steps))
        return user_series(found, covered_seconds(measured, total), ask.metric, steps)


def _hours(rows: list[Figures]) -> list[tuple[int, list[Figures]]]:
    """Part rows by the hour in which they were taken."""
    hours: dict[int, list[Figures]] = {}
    for row in rows:
        hours.setdefault(math.floor(row.at / HOUR) * HOUR, []).append(row)
    return sorted(hours.items())


def _values(row: Figures, metric: str) -> list[tuple[int | None, str | None, str | None, float]]:
    """Return (index, uuid, model, value) of each GPU; of the host for a metric of hosts."""
    if metric in HOST_METRICS:
        return [(None, None, None, row.values[HOST_METRICS.index(metric) - len(HOST_METRICS)])]
    first = GPU_METRICS.index(metric) * len(row.gpus)
    return [(gpu.gpu, gpu.uuid, gpu.model, row.values[first + place]) for place, gpu in enumerate(row.gpus)]


def _series(
    steps: Steps,
    lists: list[list[float]],
    *,
    host: str | None = None,
    gpu: int | None = None,
    names: tuple[str | None, str | None],
) -> Series:
    return Series(
        step_seconds=steps.seconds,
        t=steps.starts(),
        min=[min(values, default=None) for values in lists],
        mean=[sum(values) / len(values) if values else None for values in lists],
        max=[max(values, default=None) for values in lists],
        host=host,
        gpu=gpu,
        uuid=names[0],
        model=names[1],
    )


def _sum(first: Share | None, second: Share) -> Share:
    return second if first is None else tuple(map(sum, zip(first, second, strict=True)))
