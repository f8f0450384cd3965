"""What rules can look at: states, troubles and figures of a host or a GPU, and how each is said. Pure.

A fact is read from the live view as it stands: None where nobody knows, and then no rule begins nor ends by it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cluster_dash_server import filters, when
from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.events import HARMFUL_THROTTLES
from cluster_dash_server.slurm import is_down, is_drained
from cluster_dash_server.snapshot import printable

Value = float | bool | str | None
Read = Callable[[HostView, GpuView | None, float], Value]
Say = Callable[[HostView, GpuView | None, float], str]
Of = Literal["host", "gpu", "cluster"]

TEXT_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that a rule can look at.

    Attributes:
        of: of a host, of one of its GPUs, or of the cluster and this server.
        help: what it says, for the documentation.
        read: tells it; true or false of what needs no comparison, else a number or a word.
        say: says it in words, where it holds.
        number: reads what it is compared with, to its own unit; None: it is not compared with a number.
        words: what it can be compared with by `=`; empty: it is no word.
        since: since when it has been so (Unix s); None: since it was first seen.
        of_users: it concerns those who have the GPU, each for themselves.
        may: says, without knowing states and what Slurm makes of a GPU, whether it may hold; None: `read` can say so.
    """

    of: Of
    help: str
    read: Read = lambda host, gpu, now: None
    say: Say = lambda host, gpu, now: ""
    number: Callable[[str], float | None] | None = None
    words: tuple[str, ...] = ()
    since: Callable[[HostView, GpuView | None, float], float | None] = lambda host, gpu, now: None
    of_users: bool = False
    may: Read | None = None


def _perhaps(host: HostView, gpu: GpuView | None, now: float) -> Value:
    return True


def span(seconds: float) -> str:
    """Say a stretch of time in words."""
    for size, word in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


def _mib(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


# ------------------------------------------------------------------------------------------------------- of a GPU


def _error(host: HostView, gpu: GpuView | None, now: float) -> Value:
    return gpu is not None and (gpu.missing_since is not None or gpu.gpu.error is not None)


def _say_error(host: HostView, gpu: GpuView | None, now: float) -> str:
    if gpu is None or gpu.missing_since is not None:
        return "missing: the snapshots of its host do not hold it any more"
    return printable(gpu.gpu.error or "", TEXT_LENGTH)


def _missing_since(host: HostView, gpu: GpuView | None, now: float) -> float | None:
    return None if gpu is None else gpu.missing_since


def _throttled(host: HostView, gpu: GpuView | None, now: float) -> Value:
    if gpu is None or not gpu.gpu.throttle_reasons:
        return False
    return any(each.lower() in HARMFUL_THROTTLES for each in gpu.gpu.throttle_reasons)


def _say_throttled(host: HostView, gpu: GpuView | None, now: float) -> str:
    reasons = () if gpu is None else gpu.gpu.throttle_reasons
    words = ", ".join(each.lower().replace("_", " ") for each in reasons if each.lower() in HARMFUL_THROTTLES)
    warmth = "" if gpu is None or gpu.gpu.temperature_c is None else f", {gpu.gpu.temperature_c:.0f} °C"
    return f"{printable(words, TEXT_LENGTH)}{warmth}"


def _margin(host: HostView, gpu: GpuView | None, now: float) -> Value:
    if gpu is None or gpu.gpu.temperature_c is None or gpu.gpu.temperature_slowdown_c is None:
        return None
    return gpu.gpu.temperature_slowdown_c - gpu.gpu.temperature_c


def _say_margin(host: HostView, gpu: GpuView | None, now: float) -> str:
    if gpu is None or gpu.gpu.temperature_c is None or gpu.gpu.temperature_slowdown_c is None:
        return ""
    return f"{gpu.gpu.temperature_c:.0f} °C; it slows down at {gpu.gpu.temperature_slowdown_c:.0f} °C"


def _narrow(host: HostView, gpu: GpuView | None, now: float) -> Value:
    if gpu is None or gpu.gpu.pcie_width is None or gpu.gpu.pcie_width_max is None:
        return None
    return gpu.gpu.pcie_width < gpu.gpu.pcie_width_max


def _say_narrow(host: HostView, gpu: GpuView | None, now: float) -> str:
    return "" if gpu is None else f"{gpu.gpu.pcie_width} lanes of {gpu.gpu.pcie_width_max}"


def _unexplained(host: HostView, gpu: GpuView | None, now: float) -> Value:
    """Return memory that is in use while no process is there: what a driver takes beside processes is no trouble."""
    if gpu is None or gpu.gpu.working is None:
        return None
    return gpu.gpu.unattributed_mem if gpu.gpu.working == 0 else 0.0


def _say_unexplained(host: HostView, gpu: GpuView | None, now: float) -> str:
    return "" if gpu is None else f"{_mib(gpu.gpu.unattributed_mem or 0)} in use, and no process"


def _is_unused(gpu: GpuView) -> bool:
    """Say whether Slurm has given a GPU away and nothing runs on it."""
    return gpu.slurm is not None and gpu.slurm.allocated is True and gpu.gpu.working == 0


def _held(host: HostView, gpu: GpuView | None, now: float) -> Value:
    """Return for how long a GPU has been held; one without a process is not held but unused: told once is enough."""
    if gpu is None or gpu.state != "held" or gpu.idle_since is None or _is_unused(gpu):
        return 0.0
    return now - gpu.idle_since


def _say_held(host: HostView, gpu: GpuView | None, now: float) -> str:
    if gpu is None or gpu.idle_since is None:
        return ""
    memory = "" if gpu.gpu.used_mem is None else f", {_mib(gpu.gpu.used_mem)} in use"
    return f"without work for {span(now - gpu.idle_since)}{memory}"


def _idle_since(host: HostView, gpu: GpuView | None, now: float) -> float | None:
    return None if gpu is None else gpu.idle_since


def _unused(host: HostView, gpu: GpuView | None, now: float) -> Value:
    if gpu is None or gpu.slurm is None or gpu.slurm.allocated is None or gpu.gpu.working is None:
        return None
    return gpu.slurm.allocated and gpu.gpu.working == 0


def _say_unused(host: HostView, gpu: GpuView | None, now: float) -> str:
    jobs = () if gpu is None or gpu.slurm is None else gpu.slurm.jobs
    return "allocated by Slurm and no process" + "".join(f", job {job.id}" for job in jobs[:3])


def _state(host: HostView, gpu: GpuView | None, now: float) -> Value:
    return None if gpu is None else gpu.state


def _flag(name: str) -> Read:
    def read(host: HostView, gpu: GpuView | None, now: float) -> Value:
        flag: bool | None = None if gpu is None else getattr(gpu.gpu, name)
        return flag

    return read


# ------------------------------------------------------------------------------------------------------ of a host


def _unreadable(host: HostView, gpu: GpuView | None, now: float) -> Value:
    return host.seen.gpu_error is not None


def _failing(host: HostView) -> list[tuple[str, str]]:
    """Return what of a mole fails and is not told by another rule: GPUs that cannot be read are in error themselves."""
    return [
        each
        for each in host.seen.failing
        if not (each[0] == "gpu" and (host.seen.gpu_error is not None or any(gpu.gpu.error for gpu in host.gpus)))
    ]


def _say_failing(host: HostView, gpu: GpuView | None, now: float) -> str:
    return printable("; ".join(f"{name}: {why}" for name, why in _failing(host)), TEXT_LENGTH)


def _skew(host: HostView, gpu: GpuView | None, now: float) -> Value:
    return None if host.seen.skew_seconds is None else abs(host.seen.skew_seconds)


def _say_skew(host: HostView, gpu: GpuView | None, now: float) -> str:
    skew = host.seen.skew_seconds or 0.0
    return f"its clock is {span(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the server's"


def _fullest(host: HostView) -> tuple[str, float] | None:
    return max(host.seen.disks, key=lambda disk: disk[1], default=None)


def _disk(host: HostView, gpu: GpuView | None, now: float) -> Value:
    fullest = _fullest(host)
    return None if fullest is None else fullest[1]


def _say_disk(host: HostView, gpu: GpuView | None, now: float) -> str:
    return ", ".join(f"{printable(name, 64)} {percent:.1f} %" for name, percent in _by_use(host)[:3])


def _by_use(host: HostView) -> list[tuple[str, float]]:
    return sorted(host.seen.disks, key=lambda disk: -disk[1])


def _node_drained(host: HostView, gpu: GpuView | None, now: float) -> Value:
    return None if host.place is None else is_drained(host.place.state) and not is_down(host.place.state)


def _node_down(host: HostView, gpu: GpuView | None, now: float) -> Value:
    return None if host.place is None else is_down(host.place.state)


def _say_node(host: HostView, gpu: GpuView | None, now: float) -> str:
    if host.place is None:
        return ""
    reason = f": {printable(host.place.reason, TEXT_LENGTH)}" if host.place.reason else ""
    return f"Slurm has it as {host.place.state}{reason}"


# ------------------------------------------------------------------------------------------------------- the table


def _yes(name: str) -> Say:
    return lambda host, gpu, now: name


def _figure(name: str, may: Read | None = None) -> Fact:
    """Make a fact of a figure that filters know, too."""
    number = filters.NUMBERS[name]

    def say(host: HostView, gpu: GpuView | None, now: float) -> str:
        value = number.value(host, gpu, now)
        return "" if value is None else f"{name} {value:g}"

    return Fact(
        of="host" if name in filters.HOST_KEYS else "gpu",
        help=f"as in filters: `{number.example}`",
        read=number.value,
        say=say,
        number=number.read,
        may=may,
    )


def _percent(text: str) -> float | None:
    return filters.NUMBERS["util"].read(text)


XID_CLASSES = ("application", "hardware", "fatal")

FACTS: Mapping[str, Fact] = {
    "silent": Fact(of="host", help="the host is down: silent for as long as `[states]` says"),
    "gpus_unreadable": Fact(
        of="host",
        help="the host can read none of its GPUs",
        read=_unreadable,
        say=lambda host, gpu, now: printable(host.seen.gpu_error or "", TEXT_LENGTH),
    ),
    "collector_failing": Fact(
        of="host",
        help="a collector or a sender of the mole does not work",
        read=lambda host, gpu, now: bool(host.seen.failing) and bool(_failing(host)),
        say=_say_failing,
    ),
    "skew": Fact(
        of="host", help="how far its clock is from the server's", read=_skew, say=_say_skew, number=when.seconds
    ),
    "disk": Fact(of="host", help="use of its fullest disk, in %", read=_disk, say=_say_disk, number=_percent),
    "disk_full_in": Fact(
        of="host",
        help="in how long its fullest disk is full, if it fills as in the last hours",
        number=when.seconds,
    ),
    "node_drained": Fact(of="host", help="Slurm has its node drained", read=_node_drained, say=_say_node),
    "node_down": Fact(of="host", help="Slurm has its node down", read=_node_down, say=_say_node),
    **{name: _figure(name) for name in ("cpu", "load", "gpus")},
    "free": _figure("free", _perhaps),
    "error": Fact(
        of="gpu",
        help="it is in error, lost, or missing",
        read=_error,
        say=_say_error,
        since=_missing_since,
    ),
    "state": Fact(
        of="gpu",
        help="its [state](states.md)",
        read=_state,
        say=lambda host, gpu, now: "" if gpu is None else gpu.state,
        words=("error", "drained", "held", "busy", "unknown", "free"),
        may=_perhaps,
    ),
    "throttled": Fact(of="gpu", help="it runs slower for heat or a power brake", read=_throttled, say=_say_throttled),
    "slowdown_margin": Fact(
        of="gpu",
        help="degrees below the temperature at which it slows down",
        read=_margin,
        say=_say_margin,
        number=filters.NUMBERS["temp"].read,
    ),
    "ecc_uncorrected": Fact(
        of="gpu",
        help="memory errors that could not be corrected, as the driver counts them",
        read=lambda host, gpu, now: None if gpu is None else gpu.gpu.ecc_uncorrected,
        say=lambda host, gpu, now: "" if gpu is None else f"{gpu.gpu.ecc_uncorrected} uncorrected memory errors",
        number=filters.NUMBERS["gpus"].read,
    ),
    "remap_pending": Fact(
        of="gpu",
        help="bad memory is put out of use at the next reset",
        read=_flag("remap_pending"),
        say=_yes("a part of its memory waits for a reset to be put out of use"),
    ),
    "remap_failed": Fact(
        of="gpu",
        help="bad memory could not be put out of use",
        read=_flag("remap_failed"),
        say=_yes("a bad part of its memory could not be put out of use"),
    ),
    "pcie_narrow": Fact(of="gpu", help="its PCIe link has fewer lanes than it could", read=_narrow, say=_say_narrow),
    "unexplained_mem": Fact(
        of="gpu",
        help="memory in use while no process is there",
        read=_unexplained,
        say=_say_unexplained,
        number=filters.size_mib,
    ),
    "held_for": Fact(
        of="gpu",
        help="how long it has been held; each user is told of their own",
        read=_held,
        say=_say_held,
        number=when.seconds,
        since=_idle_since,
        of_users=True,
        may=_idle_since,
    ),
    "allocated_unused": Fact(
        of="gpu",
        help="Slurm has given it to a job and no process is there",
        read=_unused,
        say=_say_unused,
        of_users=True,
        may=lambda host, gpu, now: host.place is not None and gpu is not None and gpu.gpu.working == 0,
    ),
    **{name: _figure(name) for name in ("mem", "free_mem", "util", "temp", "power", "idle")},
    "xid": Fact(of="gpu", help="an Xid of this class was told", words=XID_CLASSES),
    "event": Fact(of="gpu", help="an event of this kind was seen: `event = gpu_replaced`"),
    "jobs_wait": Fact(of="cluster", help="jobs wait for GPUs although enough that fit are free"),
    "history_not_written": Fact(of="cluster", help="this server cannot write history"),
    "posts_refused": Fact(of="cluster", help="this server refuses what moles post"),
    "notices_failing": Fact(of="cluster", help="a receiver does not take notices"),
}
"""All that rules can look at. `silent`, `disk_full_in`, `xid`, `event` and what is of the cluster are found elsewhere:
they need more than the host as it stands."""

_APPLICATION = frozenset((8, 13, 31, 43, 45, 68, 69, 109))
_FATAL = frozenset((79, 95, 110, 119, 120, 136, 140, 143, 154))


def xid_class(code: object) -> str:
    """Return whose fault an Xid is, as far as its number tells: of a number that is not known, the hardware's."""
    number = code if isinstance(code, int) else int(code) if isinstance(code, str) and code.isdecimal() else None
    if number in _APPLICATION:
        return "application"
    return "fatal" if number in _FATAL else "hardware"


def users_of(gpu: GpuView) -> Iterable[str]:
    """Return whom a GPU that does nothing concerns."""
    return filters.users_of(gpu)
