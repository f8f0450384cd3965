"""History: the protocols `Store` (figures over time) and `Ledger` (events, who had which GPU, GPU-hours).

How to ask (all moments Unix s; unknown is None; every call may raise `StoreError`):

- One GPU, or all of some hosts over time: `store.series(SeriesQuery(metric="gpu_util", begin=…, end=…, by="gpu",
  hosts=("gpu01",), gpus=(0, 3)))` gives a `Series` for each GPU, named by `host`, `gpu` (index), `uuid` and `model`.
  `metric` is one of `GPU_METRICS`.
- One host over time: `by="host"`, with one of `HOST_METRICS`, or of `GPU_METRICS`: then min, mean and max over its
  GPUs.
- The cluster and each model: `by="cluster"` or `by="model"`, with one of `CLUSTER_METRICS`: read from roll-ups, so 30
  days cost a millisecond. `models=("…",)` chooses. Its newest two minutes are still being counted and not given.
- A user over time: `by="user"`, `users=("alice",)`, with one of `USER_METRICS`; steps of an hour or more, each
  on average over the time of it that was measured.
- Steps: `step_seconds=None` chooses the finest that gives at most `MOST_POINTS` points, from the finest tier that still
  is kept; `Series.step_seconds` says what it became. `t` are the starts of the steps, multiples of the step since 1970,
  all of them from the first to the last in range; where nothing was measured, min, mean and max are None. A spike
  shorter than a step is in `max`.
- GPU-hours: `ledger.usage(UsageQuery(begin=…, end=…, by=("user",)))` sums GPU-seconds by any of user, host, model, day
  and hour: `by=("user", "host")`, `by=("hour",)` for a heat map of weekdays and hours in any time zone. With `user` in
  `by` (or `users` given) a GPU that two people share counts for both; without, each GPU counts once.
- Who had which GPU when: `ledger.uses(UseQuery(begin=…, end=…, hosts=…, users=…))` gives intervals, joined over gaps
  that the host's silence threshold allows, oldest first.
- Events, for annotations: `ledger.events(EventQuery(begin=…, end=…, hosts=…))`, newest first.
- The whole cluster at a past moment: `store.moment(at)` gives each host's last figures at or before it.

Figures that were accepted can be asked for once they are written, about a second later.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

GPU_METRICS = (
    *("gpu_util", "memory_util", "used_mem", "temperature_c", "memory_temperature_c", "power_w", "fan_percent"),
    *("sm_clock_mhz", "memory_clock_mhz", "encoder_util", "decoder_util", "tx_kib_s", "rx_kib_s", "unattributed_mem"),
    "doing",
)
"""Figures kept of each GPU, by the snapshot's own names; `doing` is a place in DOINGS."""
HOST_METRICS = ("cpu_percent", "load_avg_1", "memory_used_gb", "swap_used_gb", "disk_percent", "interval_seconds")
"""Figures kept of each host; `disk_percent` is that of its fullest disk."""
CLUSTER_METRICS = (
    *("total_gpus", "free_gpus", "busy_gpus", "idle_gpus", "error_gpus", "unknown_gpus", "light_gpus"),
    *("gpu_util", "memory_percent", "used_mem", "power_w"),
)
"""What is known of the cluster or a model: GPUs in each of DOINGS, `light_gpus` (below 30 % in memory and in use: the
kept routes' own "free"), means over the GPUs, sums of `used_mem` (2^20 bytes) and `power_w`."""
USER_METRICS = ("held_gpus", "busy_gpus", "idle_gpus")
"""What is known of a user: GPUs held, doing something, and held without doing anything."""

Doing = Literal["unknown", "free", "busy", "idle", "error"]
DOINGS: tuple[Doing, ...] = ("unknown", "free", "busy", "idle", "error")
"""What a GPU does in one snapshot; idle: somebody has it and it does nothing, for however short a time."""
MOST_POINTS = 1_500
"""Points of one series in an answer, at most."""


class StoreError(Exception):
    """History cannot be read or written; the text says why and what would mend it."""


# ------------------------------------------------------------------------------------------------------- what goes in


class GpuId(NamedTuple):
    """Which GPU a column is of: its index, uuid, model, and memory in 2^20 bytes."""

    gpu: int
    uuid: str | None
    model: str | None
    total_mem: float | None


class Holder(NamedTuple):
    """Somebody who has a GPU: the place of the GPU among `Figures.gpus`, who, and the job if it is known."""

    place: int
    user: str
    job: str | None


@dataclass(slots=True, kw_only=True)  # never changed; frozen, it would take three times as long to make
class Figures:
    """What history keeps of one accepted snapshot.

    Attributes:
        at: when it was taken, by the server's clock as far as that is known, to a millisecond.
        boot_id: with `seq` the identity of the snapshot; None where it has none, and then it is never a duplicate.
        oldest_seq: the oldest snapshot that the mole still holds; None: it does not say.
        values: float32, NaN where unknown: for each of GPU_METRICS all `gpus` in turn, then HOST_METRICS.
        holders: who has which GPU.
        holder_mem: memory of each holder (2^20 bytes), NaN where unknown.
    """

    host: str
    at: float
    boot_id: str | None
    seq: int | None
    oldest_seq: int | None
    gpus: tuple[GpuId, ...]
    values: "array[float]"
    holders: tuple[Holder, ...]
    holder_mem: "array[float]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        at: Unix s, by the server's clock as far as that is known.
        gpu: the index of the GPU, or what the mole calls it; None: the host itself.
        kind: a word such as `xid`, `gpu_lost`, `host_silent`.
        code: what the driver calls it: the number of an Xid, the reasons of a slowdown.
    """

    at: float
    host: str
    gpu: int | str | None
    kind: str
    code: int | str | None
    text: str


class KeptEvent(NamedTuple):
    """An event as it is kept."""

    event: Event
    told: bool
    """Whether a mole told it; else the server saw it."""
    source: tuple[str, int] | None
    """The snapshot that carried it, by boot_id and seq; None where it has no identity."""


class Heard(NamedTuple):
    """What became of an event, by whichever of several replicas."""

    kept: KeptEvent
    is_gone: bool
    """It was taken back, or its host was forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastSeen:
    """The newest snapshot of a host and what the live view knew beyond it, to begin with after a restart.

    Attributes:
        host: its name; `slurm/` and the name of a cluster, which no host can have: the newest of what Slurm said there.
        packed: the snapshot, as in `snapshot.Seen.packed`; Slurm's block.
        known: what else there is to know, as JSON: since when its GPUs are free or idle, which are missing; whose mole
            told the block.
    """

    host: str
    received_at: float
    skew_seconds: float | None
    packed: bytes
    known: bytes


# ------------------------------------------------------------------------------------------------------- what comes out

By = Literal["gpu", "host", "cluster", "model", "user"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesQuery:
    """A metric over time: see the top of this module."""

    metric: str
    begin: float
    end: float
    by: By = "gpu"
    step_seconds: float | None = None
    hosts: tuple[str, ...] | None = None
    gpus: tuple[int, ...] | None = None
    models: tuple[str, ...] | None = None
    users: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of an answer: `t[i]` begins a step of `step_seconds`; None where nothing is known."""

    step_seconds: float
    t: Sequence[float]
    min: Sequence[float | None]
    mean: Sequence[float | None]
    max: Sequence[float | None]
    host: str | None = None
    gpu: int | None = None
    uuid: str | None = None
    model: str | None = None
    user: str | None = None


UsageKey = Literal["user", "host", "model", "hour", "day"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """GPU-seconds of each hour that begins or ends between two moments, whole; `day` is a day of UTC."""

    begin: float
    end: float
    by: tuple[UsageKey, ...] = ("user",)
    users: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """GPU-seconds under one key of a `UsageQuery`; the parts of the key that were not asked for are None.

    Attributes:
        user: None where `by` has no user: then each GPU counts once, whoever shares it.
        hour: the start of the hour (Unix s).
        day: the start of the day of UTC (Unix s).
        held_seconds: somebody had the GPU: by a process, or (without a user) by its memory in use.
        busy_seconds: … and it worked.
        idle_seconds: … and it did nothing.
        allocated_seconds: a job of Slurm had the GPU and no process on it; None: not known, for snapshots of hosts do
            not tell who was given what.
        util_seconds: GPU-seconds by utilisation: 3,600 are one GPU at 100 % for an hour.
        seen_seconds: the GPU was there at all; only where `by` has no user.
    """

    user: str | None = None
    host: str | None = None
    model: str | None = None
    hour: float | None = None
    day: float | None = None
    held_seconds: float
    busy_seconds: float
    idle_seconds: float
    allocated_seconds: float | None
    util_seconds: float
    seen_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UseQuery:
    """Who had which GPU from `begin` to `end`: what reaches beyond is cut at the full hour."""

    begin: float
    end: float
    hosts: tuple[str, ...] | None = None
    gpus: tuple[int, ...] | None = None
    users: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Somebody had a GPU from one moment to another.

    Attributes:
        job: the job, where the snapshots name one.
        peak_mem: the most memory of its processes (2^20 bytes); None: not known.
        mean_util: the GPU's mean utilisation meanwhile; None: not known.
        longest_idle_seconds: the longest stretch in which the GPU did nothing.
    """

    host: str
    gpu: int
    uuid: str | None
    model: str | None
    user: str
    job: str | None
    from_at: float
    to_at: float
    busy_seconds: float
    idle_seconds: float
    longest_idle_seconds: float
    peak_mem: float | None
    mean_util: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Events from `begin` to `end`, newest first."""

    begin: float
    end: float
    hosts: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None
    most: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Unnamed:
    """How far the forgetting of a user has come.

    Attributes:
        hosts_left: hosts whose hours are still to be looked through; 0: it is done, and nothing of it is in the file.
        host_hours: hours of hosts that held the name.
        events: texts that held it.
        snapshots: newest snapshots of hosts that held it.
        stays: what cannot be taken out, where it is and until when, in words; None: nothing that is known of.
    """

    hosts_left: int
    host_hours: int
    events: int
    snapshots: int
    stays: str | None = None


# ------------------------------------------------------------------------------------------------------------ the seams


class Store(Protocol):
    """Figures over time. Any thread may call."""

    def append(self, figures: Figures) -> None:
        """Take the figures of an accepted snapshot; returns at once, and they are written within a second."""

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """Say whether the snapshot was taken before: it is written, or waits to be."""

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """Return up to which seq of a boot all is written, from `oldest_seq` on; may be too low, never too high.

        Where `oldest_seq` is None, the highest that is written. None: nothing is.
        """

    def series(self, ask: SeriesQuery) -> list[Series]:
        """Answer a question; series are sorted by host and GPU, model, or user.

        Raises:
            StoreError: history cannot be read, or the metric is not one of `by`.
        """

    def moment(self, at: float, silent_seconds: float = 600) -> list[Figures]:
        """Return the last figures of each host at or before a moment, none older than so many seconds.

        Raises:
            StoreError: history cannot be read.
        """

    def prune(self, now: float) -> None:
        """Drop what is older than the settings keep, and no more than fits under the cap.

        Raises:
            StoreError: history cannot be written.
        """

    def flush(self) -> None:
        """Return when all that was taken so far is written.

        Raises:
            StoreError: it cannot be written.
        """


class Ledger(Protocol):
    """What is no figure: events, who had which GPU, GPU-hours. Any thread may call."""

    def record(self, kept: KeptEvent) -> None:
        """Keep an event; returns at once, and it is written within a second."""

    def retract(self, kept: KeptEvent) -> None:
        """Drop an event that a better one replaces."""

    def events(self, ask: EventQuery) -> list[Event]:
        """Return events, newest first.

        Raises:
            StoreError: history cannot be read.
        """

    def uses(self, ask: UseQuery) -> list[Use]:
        """Return who had which GPU when, by `from_at`, host and GPU.

        Raises:
            StoreError: history cannot be read.
        """

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """Return sums of GPU-seconds, sorted by their key.

        Raises:
            StoreError: history cannot be read.
        """

    def forget(self, hosts: Iterable[str]) -> None:
        """Forget the last snapshots and events of hosts; what they measured stays."""

    def forget_user(self, user: str, strip: Callable[[LastSeen], LastSeen]) -> None:
        """Begin to take a user's name out of all that is kept; returns at once, `unnamed` tells how far it is.

        Args:
            user: the name. What comes later may hold it again.
            strip: takes the name out of a newest snapshot; the same object where it is not in it.

        Raises:
            StoreError: no history is kept.
        """

    def unnamed(self, user: str) -> Unnamed | None:
        """Tell how far the forgetting of a user has come; None: it was not asked for since the start.

        Raises:
            StoreError: it cannot go on now.
        """
