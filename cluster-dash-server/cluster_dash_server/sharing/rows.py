"""What is known of a host as bytes that another replica reads back: the facts, not the snapshot they were read from.

Read back from the snapshot they would take three times as long, and be checked by nobody the better: it was checked
where it came.
"""

import dataclasses
import zlib
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

from cluster_dash_server.cluster import KnownGpu, KnownHost
from cluster_dash_server.inflate import InflateError, is_packed, pack, unpack
from cluster_dash_server.snapshot import Gpu, Seen, dumps, loads

_GPU = tuple(field.name for field in dataclasses.fields(Gpu))
_SEEN = tuple(field.name for field in dataclasses.fields(Seen) if field.name not in ("gpus", "packed"))
_of_gpu, _of_seen = attrgetter(*_GPU), attrgetter(*_SEEN)
_known_gpu: Callable[[tuple[Gpu, float | None, float | None, float | None]], KnownGpu] = partial(
    tuple.__new__, KnownGpu
)
"""Makes one in a third of the time."""
_GONE = bytes(4)
FORM = zlib.crc32(",".join((*_SEEN, "", *_GPU)).encode())
"""The form of a row. One of another form, of an older or newer release, is left out: its host posts again."""


class RowError(Exception):
    """Bytes that are no row of this release."""


def to_bytes(known: KnownHost) -> bytes:
    """Return a row: its length in 4 bytes, the facts, then the snapshot, packed as it came."""
    seen = known.seen
    place_of = {id(gpu): place for place, gpu in enumerate(seen.gpus)}
    gpus = []
    for each in known.gpus:
        place = place_of.get(id(each.gpu))
        whole = None if place is not None else _of_gpu(each.gpu)  # missing, or known by more than the snapshot says
        gpus.append((place, each.idle_since, each.missing_since, each.free_since, whole))
    facts = pack(
        dumps(
            (
                FORM,
                _of_seen(seen),
                [*map(_of_gpu, seen.gpus)],
                gpus,
                known.interval_seconds,
                known.gaps,
                known.renamed_from,
                known.edition,
            )
        ),
        closely=True,
    )
    snapshot = seen.packed if is_packed(seen.packed) else pack(seen.packed, closely=True)
    return len(facts).to_bytes(4) + facts + snapshot


def from_bytes(row: bytes) -> KnownHost:
    """Return what is known of a host.

    Raises:
        RowError: these are no bytes of `to_bytes`, or of another release's.
    """
    try:
        return _known(row)
    except (InflateError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise RowError(f"{type(error).__name__}: {error}") from None


def _known(row: bytes) -> KnownHost:
    end = 4 + int.from_bytes(row[:4])
    facts: Any = loads(unpack(row[4:end]))
    if facts[0] != FORM:
        raise RowError(f"form {facts[0]}, expected {FORM}")
    _, said, own, gpus, interval_seconds, gaps, renamed_from, edition = facts
    of_seen = dict(zip(_SEEN, said, strict=True))
    of_seen["disks"] = tuple(map(tuple, of_seen["disks"]))
    of_seen["failing"] = tuple(map(tuple, of_seen["failing"]))
    of_seen["events"] = tuple(of_seen["events"])
    found = tuple(map(_gpu, own))
    return KnownHost(
        seen=Seen(**of_seen, gpus=found, packed=row[end:]),
        interval_seconds=interval_seconds,
        gaps=tuple(gaps),
        gpus=tuple(
            [
                _known_gpu((found[place] if whole is None else _gpu(whole), idle_since, missing_since, free_since))
                for place, idle_since, missing_since, free_since, whole in gpus
            ]
        ),
        change=0,
        renamed_from=renamed_from,
        edition=edition,
    )


def gone_to_bytes(at: float, is_forgotten: bool) -> bytes:
    """Return the row of a host that is gone."""
    return _GONE + dumps((at, is_forgotten))


def gone_from_bytes(row: bytes) -> tuple[float, bool] | None:
    """Return since when a host is gone, and whether it was forgotten; None: it is there.

    Raises:
        RowError: the row is of another release.
    """
    if not row.startswith(_GONE):
        return None
    at, is_forgotten = _read(row[len(_GONE) :], 2)
    return float(at), is_forgotten is True


def slurm_to_bytes(host: str, received_at: float, edition: int, packed: bytes) -> bytes:
    """Return the row of a block of Slurm's: whose mole told it, when it came, and the block, packed."""
    head = dumps((host, received_at, edition))
    return len(head).to_bytes(4) + head + packed


def slurm_from_bytes(row: bytes) -> tuple[str, float, int, bytes]:
    """Return what `slurm_to_bytes` was given.

    Raises:
        RowError: the row is of another release.
    """
    end = 4 + int.from_bytes(row[:4])
    host, received_at, edition = _read(row[4:end], 3)
    return str(host), float(received_at), int(edition), row[end:]


def errand_to_bytes(at: float, name: str, text: str) -> bytes:
    """Return the row of an errand."""
    return dumps((at, name, text))


def errand_from_bytes(row: bytes) -> tuple[float, str, str]:
    """Return what `errand_to_bytes` was given.

    Raises:
        RowError: the row is of another release.
    """
    at, name, text = _read(row, 3)
    return float(at), str(name), str(text)


def _read(text: bytes, count: int) -> list[Any]:
    try:
        found: Any = loads(text)
    except ValueError as error:
        raise RowError(str(error)) from None
    if not isinstance(found, list) or len(found) != count:
        raise RowError("of another form")
    return found


def _gpu(values: list[Any]) -> Gpu:
    gpu = Gpu(*values)
    gpu.jobs, gpu.throttle_reasons = tuple(gpu.jobs), tuple(gpu.throttle_reasons)
    return gpu
