"""What the live view begins with after a restart: the newest snapshot of each host, moments, and what Slurm said."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cluster_dash_server.cluster import KnownGpu, KnownHost
from cluster_dash_server.inflate import InflateError, pack, packed, unpack
from cluster_dash_server.privacy import Unnaming
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Gpu, Json, SnapshotError, decode_by_types, dumps, loads, read
from cluster_dash_server.states import observed_interval
from cluster_dash_server.store import LastSeen

log = logging.getLogger(__name__)

OF_SLURM = "slurm/"
"""What stands before a cluster's name in the place of a host's, which holds no slash."""
SLURM_SECONDS = 10.0
"""For how long after it came a block of Slurm's is written with the snapshots of its host: one comes a minute."""
_NAMES = [field.name for field in dataclasses.fields(Gpu)]


def remember(known: KnownHost) -> LastSeen:
    """Return what to write of a host."""
    place_of = {id(gpu): place for place, gpu in enumerate(known.seen.gpus)}
    gpus = []
    for each in known.gpus:
        place = place_of.get(id(each.gpu))
        # a GPU that the snapshot does not hold, or that is known by more than the snapshot says
        whole = None if place is not None else [getattr(each.gpu, name) for name in _NAMES]
        gpus.append([place, each.idle_since, each.missing_since, each.free_since, whole])
    return LastSeen(
        host=known.seen.host,
        received_at=known.seen.received_at,
        skew_seconds=known.seen.skew_seconds,
        packed=packed(known.seen.packed),
        known=dumps([known.gaps, gpus]),
    )


def newest(known: Sequence[KnownHost], slurm: Slurm) -> list[LastSeen]:
    """Return what to write of hosts, and of Slurm where a block has just come from one of them."""
    came_at = {each.seen.host: each.seen.received_at for each in known}
    blocks = [
        LastSeen(
            host=OF_SLURM + cluster,
            received_at=told.received_at,
            skew_seconds=None,
            packed=told.packed,
            known=dumps(told.host),
        )
        for cluster, told in slurm.told().items()
        if told.host in came_at and came_at[told.host] - told.received_at < SLURM_SECONDS
    ]
    return [*map(remember, known), *blocks]


def recall_slurm(kept: Iterable[LastSeen], slurm: Slurm) -> None:
    """Tell Slurm's part what it was told before, at the time when that came: it has its age."""
    # the newest last: a cluster may have told its name only then
    for last in sorted(kept, key=lambda each: each.received_at):
        if last.host.startswith(OF_SLURM):
            try:
                block: Any = loads(unpack(last.packed))
                host: Any = loads(last.known)
                slurm.offer(host, block, last.received_at)
            except (InflateError, ValueError, TypeError, KeyError, IndexError, AttributeError):
                log.warning("what Slurm said last could not be read back: it is shown when a mole tells it again")


def recall(kept: Iterable[LastSeen]) -> Iterator[KnownHost]:
    """Give what was known of each host; one that cannot be read is left out, and comes back with its next post."""
    for last in kept:
        if last.host.startswith(OF_SLURM):
            continue
        try:
            yield _recalled(last)
        except (InflateError, SnapshotError, ValueError, TypeError, KeyError, IndexError):
            log.warning("the last snapshot of a host could not be read back: it is shown when it posts again")


def _recalled(last: LastSeen) -> KnownHost:
    decoded = decode_by_types(unpack(last.packed))
    known: Any = loads(last.known)
    seen = read(
        decoded.snapshot,
        received_at=last.received_at,
        skew_seconds=last.skew_seconds,
        entries=decoded.entries,
        packed=last.packed,
    )
    gaps, kept = known
    gpus = []
    for place, idle_since, missing_since, free_since, whole in kept:
        if place is None:
            values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in whole]
            gpu = Gpu(**dict(zip(_NAMES, values, strict=True)))
        else:
            gpu = seen.gpus[place]
        gpus.append(KnownGpu(gpu=gpu, idle_since=idle_since, missing_since=missing_since, free_since=free_since))
    return KnownHost(
        seen=seen,
        interval_seconds=seen.interval_seconds or observed_interval(gaps),
        gaps=tuple(gaps),
        gpus=tuple(gpus),
        change=0,
    )


def unnamed(known: KnownHost, user: str) -> KnownHost:
    """Return what is known of a host without the name of a user; the same object where it is not in it."""
    if all(user not in (each.gpu.users or ()) for each in known.gpus) and not _may_hold(
        unpack(known.seen.packed), user
    ):
        return known
    veil = Unnaming(user)
    before = known.seen.snapshot
    after = veil.snapshot(before)
    if after == before and all(user not in (each.gpu.users or ()) for each in known.gpus):
        return known
    seen = read(after, received_at=known.seen.received_at, skew_seconds=known.seen.skew_seconds)
    now_of = {id(old): new for old, new in zip(known.seen.gpus, seen.gpus, strict=True)}
    gpus = tuple([each._replace(gpu=now_of.get(id(each.gpu)) or veil.gpu(each.gpu)) for each in known.gpus])
    return dataclasses.replace(known, seen=seen, gpus=gpus)


def unnamed_block(block: Json, user: str) -> Json:
    """Return what Slurm said without the name of a user."""
    found: Json = Unnaming(user).snapshot({"gpu": {}, "slurm": block})["slurm"]
    return found


def stripped(last: LastSeen, user: str) -> LastSeen:
    """Return a newest snapshot without the name of a user; the same object where it is not in it."""
    try:
        if not _may_hold(last.known, user) and not _may_hold(unpack(last.packed), user):
            return last
        if last.host.startswith(OF_SLURM):
            block: Any = loads(unpack(last.packed))
            left = unnamed_block(block, user)
            return last if left == block else dataclasses.replace(last, packed=pack(dumps(left)))
        known = _recalled(last)
        found = unnamed(known, user)
    except (InflateError, SnapshotError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return dataclasses.replace(last, packed=b"", known=b"")  # it could not be read back at a start, either
    return last if found is known else remember(found)


def _may_hold(text: bytes, user: str) -> bool:
    """Say whether JSON may hold a name; cheap, for of thousands of hosts few do."""
    return not user.isascii() or dumps(user)[1:-1] in text
