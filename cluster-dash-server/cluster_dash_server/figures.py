"""What history keeps of a snapshot: pure, from the checked JSON to one row of numbers."""

from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from operator import attrgetter, itemgetter
from struct import Struct

from cluster_dash_server.entries import Entries, GpuEntry, GpuProcess
from cluster_dash_server.snapshot import AHEAD_SECONDS, Gpu, Json, Seen
from cluster_dash_server.states import (
    DEFAULT_INTERVAL_SECONDS,
    SKEW_SECONDS,
    Thresholds,
    figures_are_old,
    memory_in_use,
)
from cluster_dash_server.store import DOINGS, GPU_METRICS, Figures, GpuId, Holder

BEHIND_SECONDS = 86_400
"""How old a snapshot without an identity may be; who sends those keeps hardly any back, so a clock stands wrong."""
NAN = float("nan")

_UNKNOWN, _FREE, _BUSY, _IDLE, _ERROR = map(float, range(len(DOINGS)))
_OWN = [name for name in GPU_METRICS if name not in ("tx_kib_s", "rx_kib_s", "doing")]
"""The metrics that stand in a GPU's entry itself."""
_READ = [*_OWN, "tx_kib_s", "rx_kib_s", "doing"]
"""The metrics of a GPU in the order in which they are read."""
_UNREAD: tuple[float | None, ...] = (*([None] * (len(_READ) - 1)), _UNKNOWN)
"""What is read of a GPU whose figures were read too long before the snapshot to say what is."""
_own_of: Callable[[GpuEntry], tuple[float | None, ...]] = attrgetter(*_OWN)
_id_of: Callable[[Gpu], tuple[int, str | None, str | None, float | None]] = attrgetter(
    "index", "uuid", "name", "total_mem"
)
_REMEMBERED = 16_384
"""So many hosts' GPUs, and as many ways of holding them, are one object however often they are told."""
_FEW_HOLDERS = 64
"""More are not remembered: thousands of them take half a megabyte."""


def figures(snapshot: Json, entries: Entries, seen: Seen, thresholds: Thresholds) -> Figures:
    """Take the figures out of a snapshot that the schema has passed.

    Args:
        snapshot: as it came, less the secret.
        entries: its GPUs.
        seen: the facts that were read out of it.
        thresholds: what counts as busy and as memory in use.
    """
    interval = seen.interval_seconds or DEFAULT_INTERVAL_SECONDS
    by_gpu: list[float | None] = []
    of_gpus = [entries[gpu.key] for gpu in seen.gpus]
    for gpu, entry in zip(seen.gpus, of_gpus, strict=True):
        if gpu.read_at is not None and figures_are_old(gpu.read_at, seen.timestamp, interval, thresholds):
            by_gpu += _UNREAD
            continue
        by_gpu += _own_of(entry)
        by_gpu += (None, None) if entry.pcie is None else (entry.pcie.tx_kib_s, entry.pcie.rx_kib_s)
        by_gpu.append(_doing(gpu, thresholds))
    values = [*_by_metric(len(seen.gpus))(by_gpu), *_host_row(snapshot, seen)] if by_gpu else _host_row(snapshot, seen)
    holders, holder_mem = _holders(of_gpus)
    return Figures(
        host=seen.host,
        at=taken_at(snapshot, seen),
        boot_id=seen.boot_id if seen.seq is not None else None,
        seq=seen.seq if seen.boot_id is not None else None,
        oldest_seq=(snapshot.get("spool") or {}).get("oldest_seq"),
        gpus=_gpu_ids(tuple(map(_id_of, seen.gpus))),
        values=_float32([NAN if value is None else value for value in values]),
        holders=holders,
        holder_mem=holder_mem,
    )


def taken_at(snapshot: Json, seen: Seen) -> float:
    """Return when a snapshot was taken, by our clock where its host's own is known to be wrong."""
    at = seen.timestamp
    if seen.boot_id is None and at < seen.received_at - BEHIND_SECONDS:
        at = seen.received_at
    if seen.boot_id is not None and seen.skew_seconds is not None and abs(seen.skew_seconds) > SKEW_SECONDS:
        ours = snapshot["timestamp"] - seen.skew_seconds
        at = ours if 0 < ours <= seen.received_at + AHEAD_SECONDS else seen.received_at
    return round(at, 3)


@lru_cache(maxsize=64)
def _by_metric(gpus: int) -> Callable[[list[float | None]], tuple[float | None, ...]]:
    """Return what lays out the metrics of so many GPUs, read one GPU after the other, as `Figures` has them."""
    return itemgetter(*[gpu * len(_READ) + _READ.index(name) for name in GPU_METRICS for gpu in range(gpus)])


def _float32(values: list[float]) -> "array[float]":
    """Return values as float32, those beyond it as infinite."""
    try:
        return array("f", _packer(len(values))(*values))
    except OverflowError:
        return array("f", values)  # takes them all, in twice the time


@lru_cache(maxsize=64)
def _packer(count: int) -> Callable[..., bytes]:
    return Struct(f"{count}f").pack


def _doing(gpu: Gpu, thresholds: Thresholds) -> float:
    """Return what a GPU does, as a place in DOINGS."""
    if gpu.error is not None:
        return _ERROR
    if gpu.gpu_util is not None and gpu.gpu_util >= thresholds.busy_percent:
        return _BUSY
    if gpu.working or (in_use := memory_in_use(gpu, thresholds)):
        return _BUSY if gpu.gpu_util is None else _IDLE
    if gpu.working is None and (in_use is None or gpu.gpu_util is None):
        return _UNKNOWN
    return _FREE


def _host_row(snapshot: Json, seen: Seen) -> list[float | None]:
    swap = (snapshot.get("memory") or {}).get("swap") or {}
    fullest = max([percent for _, percent in seen.disks], default=None)
    return [
        *(seen.cpu_percent, seen.load_avg_1, seen.memory_used_gb, swap.get("used_gb"), fullest),
        seen.interval_seconds,
    ]  # HOST_METRICS


def _holders(entries: Iterable[GpuEntry]) -> tuple[tuple[Holder, ...], "array[float]"]:
    """Return who has which GPU, and their memory (NaN where unknown): processes of one job of a user together."""
    found: list[tuple[int, str, str | None]] = []
    mems: list[float] = []
    for place, entry in enumerate(entries):
        for user, processes in (entry.users or {}).items():
            for job, mem in _mem_of_jobs(processes.values()):
                found.append((place, user, job))
                mems.append(mem)
    holders = tuple(found)
    of_few = len(holders) <= _FEW_HOLDERS
    return (_known_holders if of_few else _known_holders.__wrapped__)(holders), array("f", mems)


def _mem_of_jobs(processes: Iterable[GpuProcess]) -> Iterable[tuple[str | None, float]]:
    """Return the memory of each job, and of what belongs to none; a desktop that is drawn has nobody's work in it."""
    others: dict[str | None, float] = {}
    job: str | int | None = None
    mem: float | None = None
    for process in processes:
        if process.type == "G":
            continue
        if process.job_id != job:  # seldom: nearly all that a user has on a GPU is of one job, or of none
            if mem is not None:
                others[_name(job)] = mem
            job = process.job_id
            mem = others.get(_name(job))
        of_process = NAN if process.mem is None else process.mem
        mem = of_process if mem is None else mem + of_process
    if mem is None:
        return ()
    if not others:
        return ((_name(job), mem),)
    others[_name(job)] = mem
    return others.items()


def _name(job: str | int | None) -> str | None:
    return job if job is None or type(job) is str else str(job)


@lru_cache(_REMEMBERED)
def _gpu_ids(gpus: tuple[tuple[int, str | None, str | None, float | None], ...]) -> tuple[GpuId, ...]:
    return tuple(map(GpuId._make, gpus))


def forget_holders() -> None:
    """Remember nobody who had a GPU."""
    _known_holders.cache_clear()


@lru_cache(_REMEMBERED)
def _known_holders(holders: tuple[tuple[int, str, str | None], ...]) -> tuple[Holder, ...]:
    return tuple(map(Holder._make, holders))
