"""What each minute adds up to over all hosts: rows of the cluster, of models and of users, for engines that only take.

Asking an engine for the mean of all GPUs over a month would have it read all their samples: so the sums are recorded, a
sample a minute, as soon as the minute is settled. A minute is recorded once.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cluster_dash_server.history.late_numpy import np
from cluster_dash_server.history.remote.encoding import MIB, PERCENT, PREFIX, Labels, Named, millis, series
from cluster_dash_server.history.rollups import (
    HOUR,
    MOST_INTERVAL_SECONDS,
    Minutes,
    Rolled,
    Run,
    cluster_figures,
    roll_all,
    runs_of,
    whole_minutes,
)
from cluster_dash_server.history.steps import SETTLING_SECONDS
from cluster_dash_server.privacy import without_user
from cluster_dash_server.store import CLUSTER_METRICS, HOST_METRICS, USER_METRICS, Figures

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUIET_SECONDS = 120.0
"""A minute of the past, told by backlogs, is settled when nothing was added to it for so long."""
OF_ALL = {
    "total_gpus": Named("gpus"),
    "free_gpus": Named("gpus_free"),
    "busy_gpus": Named("gpus_busy"),
    "idle_gpus": Named("gpus_idle"),
    "error_gpus": Named("gpus_error"),
    "unknown_gpus": Named("gpus_unknown"),
    "light_gpus": Named("gpus_light"),
    "gpu_util": Named("gpu_busy_ratio", PERCENT),
    "memory_percent": Named("gpu_memory_used_ratio", PERCENT),
    "used_mem": Named("gpu_memory_used_bytes", MIB),
    "power_w": Named("gpu_power_watts"),
}
"""What an engine calls CLUSTER_METRICS, behind `cluster_dash_cluster_` or `cluster_dash_model_`."""
OF_USER = {"held_gpus": "gpus_held", "busy_gpus": "gpus_busy", "idle_gpus": "gpus_idle"}
"""The same for USER_METRICS, behind `cluster_dash_user_`."""
_INTERVAL = HOST_METRICS.index("interval_seconds") - len(HOST_METRICS)


def cluster_name(metric: str, *, by_model: bool) -> str:
    """Return what an engine calls one of CLUSTER_METRICS."""
    return f"{PREFIX}{'model' if by_model else 'cluster'}_{OF_ALL[metric].name}"


def user_name(metric: str) -> str:
    """Return what an engine calls one of USER_METRICS."""
    return f"{PREFIX}user_{OF_USER[metric]}"


class Recorded(NamedTuple):
    """The samples of one minute, encoded one by one."""

    minute: int
    parts: list[bytes]


@dataclass(slots=True)
class _Stream:
    """Rows of a host in the order of time: its newest ones, or those of a backlog.

    Attributes:
        last: the newest row; it is counted up to `begin`.
        rows, held: rows that were not added up yet, and for how long each held.
    """

    last: Figures | None = None
    begin: float = 0.0
    interval: float = MOST_INTERVAL_SECONDS
    rows: list[Figures] = field(default_factory=list)
    held: list[tuple[float, float]] = field(default_factory=list)

    @property
    def reach(self) -> float:
        return 1.5 * self.interval

    @property
    def late(self) -> float:
        return max(60.0, 3 * self.interval)


class Recorder:
    """Adds rows up by the minute, and gives each minute once when it is settled. One thread.

    Args:
        cluster: the label `cluster`.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._streams: dict[str, tuple[_Stream, _Stream]] = {}
        self._waiting: list[tuple[list[Run], NDArray[np.float64]]] = []
        self._minutes: Minutes = {}
        self._users: dict[int, dict[str, list[float]]] = {}
        self._touched: dict[int, float] = {}
        self.newest: int | None = None

    def take(self, row: Figures) -> None:
        """Take a row that came in, in the order in which its host's come; of others, late ones, a second order is kept.

        What is older than both is in no minute.
        """
        streams = self._streams.get(row.host)
        if streams is None:
            streams = self._streams[row.host] = (_Stream(), _Stream())
        for stream in streams:
            if stream.last is None or row.at > stream.last.at:
                self._put(stream, row)
                return

    def _put(self, stream: _Stream, row: Figures) -> None:
        last = stream.last
        said = row.values[_INTERVAL]
        if last is not None:
            gap = row.at - last.at
            if said != said:
                stream.interval = min(gap, MOST_INTERVAL_SECONDS)
            hour_end = last.at // HOUR * HOUR + HOUR
            within = gap <= stream.late and row.at < hour_end
            self._hold(stream, row.at if within else min(last.at + stream.reach, hour_end))
            if stream.rows and row.at // 60 != stream.rows[0].at // 60:
                self._end_minute(stream)
        if said == said:
            stream.interval = float(said)
        hour = row.at // HOUR * HOUR
        is_first = last is None or last.at < hour
        stream.begin = max(stream.begin, hour if is_first and row.at - stream.reach < hour else row.at)
        stream.last = row

    @staticmethod
    def _hold(stream: _Stream, end: float) -> None:
        """Let the newest row hold up to a moment."""
        if stream.last is not None and end > stream.begin:
            stream.rows.append(stream.last)
            stream.held.append((stream.begin, end))
            stream.begin = end

    def _end_minute(self, stream: _Stream) -> None:
        rows, held = stream.rows, stream.held
        stream.rows, stream.held = [], []
        self._waiting.append((runs_of(rows), np.array(held)))

    def _add_up(self) -> None:
        """Add up the minutes of hosts that wait: many together, which costs far less than one by one."""
        waiting, self._waiting = self._waiting, []
        for rolled in roll_all(waiting):
            self._put_in(rolled)

    def _put_in(self, rolled: Rolled) -> None:
        now, minutes = time.monotonic(), rolled.by_minute()
        seen: dict[str, float] = {}
        for (minute, model), share in minutes.items():
            was = self._minutes.get((minute, model))
            self._minutes[minute, model] = share if was is None else tuple(map(sum, zip(was, share, strict=True)))
            self._touched[minute] = now
            seen[model] = seen.get(model, 0.0) + share[0]
        for (user, model), usage in rolled.by_user().items():
            if user == "":
                continue
            for (minute, of), share in minutes.items():
                if of == model and share[0]:
                    part = share[0] / seen[model] / 60
                    sums = self._users.setdefault(minute, {}).setdefault(user, [0.0] * len(USER_METRICS))
                    for place in range(len(USER_METRICS)):  # held, busy and idle come first in both
                        sums[place] += usage[place] * part

    def forget_user(self, user: str) -> None:
        """Forget what a user had in minutes that are not given yet."""
        self._add_up()
        for of_minute in self._users.values():
            of_minute.pop(user, None)
        for streams in self._streams.values():
            for stream in streams:
                stream.rows = [without_user(row, user) for row in stream.rows]
                stream.last = None if stream.last is None else without_user(stream.last, user)

    def due(self, now: float, *, also_late: bool = False) -> list[int]:
        """Return the minutes that are settled and not given yet, oldest first.

        Args:
            now: Unix s.
            also_late: minutes of the past, too, that something may still be added to.
        """
        settled = int((now - SETTLING_SECONDS) // 60) * 60
        for streams in self._streams.values():
            for stream in streams:
                last = stream.last
                if last is not None and stream.begin < settled + 60:
                    hour_end = last.at // HOUR * HOUR + HOUR
                    self._hold(stream, min(settled + 60, hour_end, last.at + stream.reach))
                if stream.rows and stream.rows[0].at < settled:
                    self._end_minute(stream)
        self._add_up()
        quiet = time.monotonic() - QUIET_SECONDS
        return sorted(
            minute
            for minute, touched_at in self._touched.items()
            if minute + 60 <= settled
            and (also_late or touched_at <= quiet or self.newest is None or minute > self.newest)
        )

    def give(self, minutes: list[int], but: set[int]) -> Iterator[Recorded]:
        """Give the samples of minutes that `due` told, and forget them.

        Args:
            minutes: which.
            but: those of them that the engine has already.
        """
        if not minutes:
            return
        known = {key for key in self._minutes if minutes[0] - 120 <= key[0] <= minutes[-1] + 120}
        whole: dict[int, list[bytes]] = {}
        for minute, model, share in whole_minutes({key: self._minutes[key] for key in known}, minutes[-1] + 120):
            whole.setdefault(minute, []).extend(self._of_all(minute, model, share))
        for minute in minutes:
            if minute not in but:
                # what users had is divided by how many minutes are told
                parts = [*whole[minute], *self._of_users(minute)] if minute in whole else []
                yield Recorded(minute, parts)
            self._touched.pop(minute, None)
            self._users.pop(minute, None)
        self.newest = max(minutes[-1], minutes[-1] if self.newest is None else self.newest)
        forgotten = min(self._touched, default=self.newest + 60) - 120  # each minute is judged by the two before it
        for key in [key for key in self._minutes if key[0] < forgotten and key[0] not in self._touched]:
            del self._minutes[key]

    def _of_all(self, minute: int, model: str, share: tuple[float, ...]) -> Iterator[bytes]:
        return self.encoded(minute, model, cluster_figures(share, 60))

    def encoded(self, minute: int, model: str, figures: Iterable[float | None]) -> Iterator[bytes]:
        """Encode CLUSTER_METRICS of a minute; model '' is all of them."""
        labels = [] if model == "" else [("model", model)]
        for metric, value in zip(CLUSTER_METRICS, figures, strict=True):
            if value is not None:
                name = cluster_name(metric, by_model=model != "")
                yield self._sample(name, labels, value * OF_ALL[metric].scale, minute)

    def _of_users(self, minute: int) -> Iterator[bytes]:
        for user, sums in self._users.get(minute, {}).items():
            for metric, value in zip(USER_METRICS, sums, strict=True):
                yield self._sample(user_name(metric), [("user", user)], value, minute)

    def _sample(self, name: str, more: Labels, value: float, minute: int) -> bytes:
        return series([("__name__", name), ("cluster", self._cluster), *more], value, millis(minute))
