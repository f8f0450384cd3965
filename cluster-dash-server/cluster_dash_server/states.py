"""The state of a GPU and of a host: pure functions of what was seen, what is known, and the time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from cluster_dash_server.snapshot import Gpu

State = Literal["down", "stale", "error", "drained", "held", "busy", "unknown", "free"]
SKEW_SECONDS = 60
"""From how far apart a host's clock stands wrong: what it dates is dated by ours, and its page says so."""
STATES: tuple[State, ...] = get_args(State)
"""All states of a GPU, worst first: the order in which they are decided."""

DEFAULT_INTERVAL_SECONDS = 300.0
"""When to expect the next snapshot of a host that never said so and has posted once: the first agents' default."""
SHORTEST_GAP_SECONDS = 1.0
"""What comes sooner after a host's last post was sent again by hand, or the clock was set; unless it goes on so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a GPU counts as stale, down, held or busy: the section `[states]` of the settings."""

    stale_seconds: float = field(
        default=60, metadata={"help": "a host silent for longer is stale, at least", "minimum": 0}
    )
    stale_intervals: float = field(default=3, metadata={"help": "… and for so many of its intervals", "minimum": 0})
    down_seconds: float = field(
        default=600, metadata={"help": "a host silent for longer is down, at least", "minimum": 0}
    )
    down_intervals: float = field(default=10, metadata={"help": "… and for so many of its intervals", "minimum": 0})
    held_memory_mib: float = field(
        default=512, metadata={"help": "memory in use above this, in 2^20 bytes, …", "minimum": 0}
    )
    held_memory_percent: float = field(
        default=2,
        metadata={"help": "… and above this share of the GPU's memory counts as in use", "minimum": 0, "maximum": 100},
    )
    held_seconds: float = field(default=1800, metadata={"help": "in use and not busy for longer is held", "minimum": 0})
    busy_percent: float = field(
        default=5, metadata={"help": "from this utilisation on a GPU is busy", "minimum": 0, "maximum": 100}
    )


class JobOnGpu(NamedTuple):
    """A job of Slurm that has a GPU; `id` as people write it, `name` None where it is not known."""

    id: str
    user: str
    name: str | None
    sluid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """What Slurm says of a GPU.

    Attributes:
        drained: its node takes no jobs: drained, in maintenance or down.
        reserved: its node is kept for some.
        allocated: Slurm has given it to a job; None: nobody knows.
        jobs: the jobs that have it, as far as Slurm tells.
    """

    drained: bool
    reserved: bool
    allocated: bool | None
    jobs: tuple[JobOnGpu, ...]

    def is_passed_by(self, working: int | None) -> bool:
        """Say whether so many processes on the GPU went past Slurm, which gave it to nobody."""
        return self.allocated is False and bool(working)

    def said(self, working: int | None) -> str | None:
        """Say in a few words what Slurm makes of the GPU with so many processes; None: nothing worth a word."""
        said = [f"job {job.id} of {job.user}" for job in self.jobs]
        if self.allocated and not self.jobs:
            said.append("allocated by Slurm")
        if self.allocated and working == 0:
            said.append("no process")
        if self.is_passed_by(working):
            said.append("used outside Slurm")
        if self.drained:
            said.append("node drained, still in use" if working or self.allocated else "node drained")
        elif self.reserved:
            said.append("node reserved")
        return ", ".join(said) or None


def observed_interval(gaps: Sequence[float]) -> float:
    """Return when to expect the next snapshot of a host that does not say: the longer of its last two gaps (s)."""
    longest = max(gaps, default=0.0)
    if longest >= SHORTEST_GAP_SECONDS:
        return longest
    return SHORTEST_GAP_SECONDS if len(gaps) > 1 else DEFAULT_INTERVAL_SECONDS


def silence_after(interval_seconds: float, thresholds: Thresholds) -> tuple[float, float]:
    """Return after how many seconds without a snapshot a host is stale, and after how many it is down."""
    return (
        max(thresholds.stale_seconds, thresholds.stale_intervals * interval_seconds),
        max(thresholds.down_seconds, thresholds.down_intervals * interval_seconds),
    )


def silence(silent_seconds: float, interval_seconds: float, thresholds: Thresholds) -> Literal["down", "stale"] | None:
    """Say whether a host has been silent for too long."""
    stale_after, down_after = silence_after(interval_seconds, thresholds)
    if silent_seconds > down_after:
        return "down"
    return "stale" if silent_seconds > stale_after else None


def counts_as_use(mib: float | None, total_mib: float | None, thresholds: Thresholds) -> bool | None:
    """Say whether so much of a GPU's memory is more than what a driver takes; None where it is not known."""
    if mib is None:
        return None
    return mib > max(thresholds.held_memory_mib, thresholds.held_memory_percent / 100 * (total_mib or 0))


def memory_in_use(gpu: Gpu, thresholds: Thresholds) -> bool | None:
    """Say whether the GPU's memory is in use beyond what a driver takes; None where it is not known."""
    return counts_as_use(gpu.used_mem, gpu.total_mem, thresholds)


def idle_while_in_use(gpu: Gpu, thresholds: Thresholds, slurm: Allotment | None = None) -> bool:
    """Say whether, at this instant, somebody has the GPU or its memory and it does nothing: the beginning of held."""
    idle = gpu.gpu_util is not None and gpu.gpu_util < thresholds.busy_percent
    return idle and (memory_in_use(gpu, thresholds) is True or (slurm is not None and slurm.allocated is True))


def figures_are_old(read_at: float | None, timestamp: float, interval_seconds: float, thresholds: Thresholds) -> bool:
    """Say whether the figures of a GPU are older than its host's snapshot by more than stale allows.

    Args:
        read_at: when they were read; None: with the snapshot.
        timestamp: when the snapshot was taken, by the same clock of the host.
        interval_seconds: between two snapshots.
        thresholds: the settings in force.
    """
    return read_at is not None and timestamp - read_at > thresholds.stale_intervals * interval_seconds


def gpu_state(
    gpu: Gpu,
    *,
    missing: bool,
    old: bool,
    idle_since: float | None,
    silent: Literal["down", "stale"] | None,
    now: float,
    thresholds: Thresholds,
    slurm: Allotment | None = None,
) -> State:
    """Decide the state of one GPU; the first that fits wins.

    Args:
        gpu: what the last snapshot that held it said of it.
        missing: it was seen before and the last snapshot of its host does not hold it.
        old: its figures were read too long before the snapshot to say what is.
        idle_since: since when it has been in use without work (Unix s); None: it is not.
        silent: what its host's silence makes of it.
        now: Unix s.
        thresholds: the settings in force.
        slurm: what Slurm says of it; None: nothing.
    """
    if silent is not None:
        return silent
    if missing or gpu.error is not None:
        return "error"
    if slurm is not None and slurm.drained:
        return "drained"
    if old:
        return "unknown"
    if idle_since is not None and now - idle_since >= thresholds.held_seconds:
        return "held"
    if gpu.working or (gpu.gpu_util is not None and gpu.gpu_util >= thresholds.busy_percent):
        return "busy"
    in_use = memory_in_use(gpu, thresholds)
    if in_use:
        return "busy"
    if slurm is not None and slurm.allocated:
        return "busy"  # given away: nobody else may have it
    if gpu.working is None and (in_use is None or gpu.gpu_util is None):
        return "unknown"
    return "drained" if slurm is not None and slurm.reserved else "free"


@dataclass(frozen=True, slots=True)
class Headline:
    """What to say of a host first: a state, and of how many of its GPUs it holds (None: of the host itself)."""

    state: State | None
    count: int | None


def headline(states: Iterable[State], silent: Literal["down", "stale"] | None, gpu_error: str | None) -> Headline:
    """Choose the headline of a host: silent, else the worst of its GPUs, else how many are free, else busy.

    A host without GPUs has none (`state` None); one that cannot read its GPUs is in error.
    """
    if silent is not None:
        return Headline(silent, None)
    return _headline_of_states(tuple(states), gpu_error is not None)


_HEADLINES: tuple[State, ...] = ("error", "drained", "held", "unknown", "free", "busy")


@lru_cache(1024)  # the GPUs of most hosts stand alike
def _headline_of_states(states: tuple[State, ...], is_unreadable: bool) -> Headline:
    for state in _HEADLINES:
        if state in states:
            return Headline(state, states.count(state))
    return Headline("error" if is_unreadable else None, None)
