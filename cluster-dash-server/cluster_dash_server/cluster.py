"""The live view: the newest snapshot of each host and what is known beyond it. Pure: the time is an argument."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from cluster_dash_server.inflate import is_packed
from cluster_dash_server.slurm import TRUSTED_SECONDS, Place, PlaceOf
from cluster_dash_server.snapshot import Gpu, Seen
from cluster_dash_server.states import (
    Allotment,
    Headline,
    State,
    Thresholds,
    figures_are_old,
    gpu_state,
    headline,
    idle_while_in_use,
    observed_interval,
    silence,
    silence_after,
)

EPHEMERAL_SECONDS = 86_400.0
"""A host that says it is ephemeral, a pod, leaves the lists so long after it went down."""


PLAIN_BYTES = 2**24
"""How much of the newest snapshots is kept as it came: those of some 1,200 hosts with eight GPUs."""
TWIN_SECONDS = 30.0
"""How long before the last snapshot of one boot another may seem to have begun: clocks are set after a start."""


class Refused(Exception):
    """A checked snapshot that the live view does not take.

    Attributes:
        status: 409 (another machine uses the name) or 429 (no room for one more host).
        text: why, and the mend.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class KnownGpu(NamedTuple):
    """What is remembered of one GPU of a host: what was last seen of it, and moments (Unix s).

    Attributes:
        idle_since: since when it is in use without work; None: it is not.
        missing_since: since when the snapshots of its host do not hold it any more.
        free_since: since when it is free, without its host having been down in between.
    """

    gpu: Gpu
    idle_since: float | None
    missing_since: float | None
    free_since: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHost:
    """The newest snapshot of a host and what the ones before it left behind.

    Attributes:
        interval_seconds: when to expect the next snapshot: what the host says, else the longer of its last two gaps.
        gaps: seconds between its last posts, the newest last; at most two.
        gpus: what is known of each of its GPUs, the missing ones too, by index.
        change: the number of the change to the live view that brought this.
        renamed_from: the name that this machine had before, where this is its first snapshot under another.
        edition: how often it was changed without a new snapshot.
    """

    seen: Seen
    interval_seconds: float
    gaps: tuple[float, ...]
    gpus: tuple[KnownGpu, ...]
    change: int
    renamed_from: str | None = None
    edition: int = 0


@dataclass(slots=True)  # never changed; frozen, or by names of its fields, it would take three times as long to make
class GpuView:
    """One GPU as it stands now: what is known of it, as in KnownGpu, and its state.

    Attributes:
        old: its figures were read so long before the snapshot that they do not say what is.
        slurm: what Slurm says of it; None: nothing.
    """

    gpu: Gpu
    state: State
    idle_since: float | None
    missing_since: float | None
    free_since: float | None
    old: bool
    slurm: Allotment | None = None

    @property
    def is_past(self) -> bool:
        """Whether its figures do not say what is: they are old, or those from before it was missing."""
        return self.old or self.missing_since is not None

    @property
    def since(self) -> float | None:
        """Since when it is missing, held or free (Unix s); None: it is none of these, or nobody knows."""
        if self.missing_since is not None:
            return self.missing_since
        return self.idle_since if self.state == "held" else self.free_since if self.state == "free" else None


@dataclass(slots=True, kw_only=True)  # never changed, as GpuView
class HostView:
    """One host as it stands now; `silent` is what its silence makes of it, `place` what Slurm says."""

    seen: Seen
    headline: Headline
    silent: State | None
    interval_seconds: float
    gpus: tuple[GpuView, ...]
    place: Place | None = None

    @property
    def host(self) -> str:
        """The name of the host."""
        return self.seen.host

    @property
    def drained(self) -> str | None:
        """Why Slurm gives it no jobs: the reason, else the state of its node; None: it may."""
        if self.place is None or not self.place.is_drained:
            return None
        return self.place.reason or self.place.state


Witness = Callable[[Seen, KnownHost | None, KnownHost | None], None]
"""Is told of each snapshot that was taken: the snapshot, what was known of its host before, and what is known now;
None where nothing changed, as the snapshot is older than the newest. Called in the order of a host's snapshots."""


def slot(gpu: Gpu) -> str | None:
    """Return where a card sits, alike for all ways to write it: `00000000:0A:00.0` and `0000:0a:00.0` are one place."""
    return None if gpu.pci_bus_id is None else gpu.pci_bus_id.lower().lstrip("0")


def _known_as(gpu: Gpu, known: list[KnownGpu]) -> KnownGpu | None:
    """Find what is known of a GPU: by its uuid; by its place where either has none, for it could not be read."""
    for each in known:
        if each.gpu.uuid == gpu.uuid and gpu.uuid is not None:
            return each
    for each in known:
        if each.gpu.uuid is None or gpu.uuid is None:
            here, there = slot(each.gpu), slot(gpu)
            if here == there if here is not None and there is not None else each.gpu.index == gpu.index:
                return each
    return None


def _know_gpus(
    before: tuple[KnownGpu, ...], seen: Seen, interval_seconds: float, thresholds: Thresholds, place: Place | None
) -> tuple[KnownGpu, ...]:
    """Join what was known of a host's GPUs with a new snapshot of it."""
    allotted = (None,) * len(seen.gpus) if place is None else place.of(seen.gpus)
    if _are_the_same(before, seen.gpus):  # so it is after nearly every post
        return tuple(
            [
                _known(gpu, was, slurm, seen, interval_seconds, thresholds)
                for gpu, was, slurm in zip(seen.gpus, before, allotted, strict=True)
            ]
        )
    after = []
    left = list(before)
    # those with a uuid choose first: one without is known by its place, which another may have taken since
    for gpu, slurm in sorted(zip(seen.gpus, allotted, strict=True), key=lambda each: each[0].uuid is None):
        was = _known_as(gpu, left)
        if was is not None:
            left.remove(was)
            if gpu.uuid is None:
                gpu = replace(
                    gpu,
                    uuid=was.gpu.uuid,
                    name=gpu.name or was.gpu.name,
                    pci_bus_id=gpu.pci_bus_id or was.gpu.pci_bus_id,
                )
        after.append(_known(gpu, was, slurm, seen, interval_seconds, thresholds))
    slots = {slot(gpu) for gpu in seen.gpus if gpu.pci_bus_id is not None} if left else ()
    for known in left:
        if _is_expected(known.gpu) and slot(known.gpu) not in slots:
            missing_since = known.missing_since or seen.received_at
            after.append(KnownGpu(gpu=known.gpu, idle_since=None, missing_since=missing_since, free_since=None))
    return tuple(sorted(after, key=lambda known: known.gpu.index))


def _are_the_same(before: tuple[KnownGpu, ...], gpus: tuple[Gpu, ...]) -> bool:
    """Say whether a snapshot holds the GPUs that were known, in the same places, all with uuids of their own."""
    uuids = [gpu.uuid for gpu in gpus]
    return uuids == [known.gpu.uuid for known in before] and None not in uuids and len(set(uuids)) == len(uuids)


def _known(
    gpu: Gpu,
    was: KnownGpu | None,
    slurm: Allotment | None,
    seen: Seen,
    interval_seconds: float,
    thresholds: Thresholds,
) -> KnownGpu:
    """Return what is known of a GPU that a new snapshot of its host holds."""
    idle_since = free_since = None
    if idle_while_in_use(gpu, thresholds, slurm):
        idle_since = seen.received_at if was is None or was.idle_since is None else was.idle_since
    elif not gpu.working and _is_free(gpu, seen, interval_seconds, thresholds, slurm):
        free_since = seen.received_at if was is None or was.free_since is None else was.free_since
    return KnownGpu(gpu, idle_since, None, free_since)


def _is_expected(gpu: Gpu) -> bool:
    """Say whether a GPU that is not in a snapshot is missed.

    Without a uuid nobody can expect it; a MIG instance ends when its card is divided anew.
    """
    return gpu.uuid is not None and not gpu.uuid.startswith("MIG-")


def _is_free(gpu: Gpu, seen: Seen, interval_seconds: float, thresholds: Thresholds, slurm: Allotment | None) -> bool:
    old = figures_are_old(gpu.read_at, seen.timestamp, interval_seconds, thresholds)
    now = seen.received_at
    state = gpu_state(
        gpu, missing=False, old=old, idle_since=None, silent=None, now=now, thresholds=thresholds, slurm=slurm
    )
    return state == "free"


class _Kept:
    """How many bytes the newest snapshots take. The last ones that came are kept as they came, the others packed.

    So in a fleet whose snapshots take less than PLAIN_BYTES none is packed in vain, to be replaced seconds later.

    Args:
        most_bytes: how many they may take.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._most_plain_bytes = min(PLAIN_BYTES, most_bytes // 8)
        self._bytes = self._plain_bytes = 0
        self._plain: dict[str, Seen] = {}  # by host, the newest last

    def refuse_too_much(self, before: Seen | None, after: Seen) -> None:
        """Refuse a snapshot that there is no room for: one host may not fill the memory with fields nobody knows.

        Raises:
            Refused: 429.
        """
        room = self._most_bytes - self._bytes + (0 if before is None else len(before.packed))
        if len(after.packed) > room:
            after.pack()
        if len(after.packed) > room and (before is None or len(after.packed) > len(before.packed)):
            raise Refused(429, f"body: the newest snapshots take {self._most_bytes} bytes already: [limits] kept_bytes")

    def replace(self, before: Seen | None, after: Seen | None) -> None:
        """Count one snapshot no longer, and another from now on."""
        if before is not None:
            self._bytes -= len(before.packed)
            if self._plain.get(before.host) is before:
                del self._plain[before.host]
                self._plain_bytes -= len(before.packed)
        if after is None:
            return
        self._bytes += len(after.packed)
        if not is_packed(after.packed):
            self._plain[after.host] = after
            self._plain_bytes += len(after.packed)
        while self._plain_bytes > self._most_plain_bytes:
            oldest = self._plain.pop(next(iter(self._plain)))
            plain = len(oldest.packed)
            oldest.pack()
            self._plain_bytes -= plain
            self._bytes -= plain - len(oldest.packed)


class Cluster:
    """The newest snapshot of each host. Thread-safe; knows no clock.

    Args:
        thresholds: when a GPU counts as stale, down, held, busy.
        max_hosts: how many hosts it holds; a snapshot of one more is refused (429).
        kept_bytes: how much their packed snapshots may take together; one that would need more is refused (429).
        witness: is told of each snapshot that was taken, under the lock: it must not call back.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        max_hosts: int = 10_000,
        witness: Witness = lambda *_: None,
        kept_bytes: int = 2**28,
    ) -> None:
        self.thresholds = thresholds
        self.forgets = 0
        self._witness = witness
        self._swept_at = float("-inf")
        self._max_hosts = max_hosts
        self._kept = _Kept(kept_bytes)
        self._hosts: dict[str, KnownHost] = {}
        self._machines: dict[str, str] = {}  # the last new name of each machine_id
        self._places: dict[str, Place] = {}  # of hosts that are nodes of Slurm
        self._places_until = float("-inf")
        self._place_of: PlaceOf = lambda _: None
        self._changes = 0
        self._lock = threading.Lock()

    @property
    def changes(self) -> int:
        """How often the view was changed so far: by snapshots, nearly always."""
        return self._changes

    def offer(self, seen: Seen, *, backlog: bool = False) -> bool:
        """Take a snapshot as the newest of its host; one of a backlog is told to the witness only.

        Returns:
            False where the very same one, by (host, boot_id, seq), is there already; the view then stays as it is,
            and so it does for one that is older than the newest of the same boot.

        Raises:
            Refused: 409 or 429.
        """
        with self._lock:
            before = self._hosts.get(seen.host)
            if backlog:  # it was taken long ago, perhaps under an earlier boot or name, and shows nothing that is
                if before is not None:
                    self._refuse_another_machine(before, seen)
                self._witness(seen, before, None)
                return True
            if before is None:
                self._drop_departed(seen.received_at)
                if len(self._hosts) >= self._max_hosts:
                    raise Refused(429, f"hostname: there are {self._max_hosts} hosts already: [limits] max_hosts")
                gaps: tuple[float, ...] = ()
                renamed_from = self._former_name(seen)
                self._set_place(seen.host, self._place_of(seen.host))
            else:
                renamed_from = None
                self._refuse_another_machine(before, seen)
                self._refuse_a_twin(before, seen)
                last = before.seen
                if (
                    seen.boot_id is not None
                    and seen.boot_id == last.boot_id
                    and seen.seq is not None
                    and last.seq is not None
                ):
                    if seen.seq == last.seq:
                        return False
                    if seen.seq < last.seq:
                        self._witness(seen, before, None)
                        return True
                gaps = (*before.gaps[-1:], seen.received_at - last.received_at)
            last_seen = None if before is None else before.seen
            self._kept.refuse_too_much(last_seen, seen)
            self._kept.replace(last_seen, seen)
            self._changes += 1
            interval_seconds = seen.interval_seconds or observed_interval(gaps)
            gpus = () if before is None else self._remembered(before, seen)
            place = self._places.get(seen.host) if seen.received_at < self._places_until else None
            after = self._hosts[seen.host] = KnownHost(
                seen=seen,
                interval_seconds=interval_seconds,
                gaps=gaps,
                gpus=_know_gpus(gpus, seen, interval_seconds, self.thresholds, place),
                change=self._changes,
                renamed_from=renamed_from,
            )
            self._witness(seen, before, after)
            return True

    def _remembered(self, before: KnownHost, seen: Seen) -> tuple[KnownGpu, ...]:
        """Return what of a host's GPUs still holds when it posts again."""
        if another_machine(before.seen, seen):
            return ()
        if silence(seen.received_at - before.seen.received_at, before.interval_seconds, self.thresholds) == "down":
            return tuple([known._replace(free_since=None) for known in before.gpus])
        return before.gpus

    def _refuse_another_machine(self, before: KnownHost, seen: Seen) -> None:
        """Keep two machines with one name apart, while the first one still posts."""
        if not another_machine(before.seen, seen):
            return
        silent_seconds = seen.received_at - before.seen.received_at
        if silence(silent_seconds, before.interval_seconds, self.thresholds) is None:
            raise Refused(
                409,
                f"hostname: {seen.host} still reports from another machine: rename one; "
                "if it was replaced, it is taken over once the other is silent, at once by cluster-dash-server forget",
            )

    def place(self, place_of: PlaceOf, until: float) -> None:
        """Learn which hosts are which nodes of Slurm, and what it says of them; that counts until then (Unix s)."""
        with self._lock:
            may_have_lapsed = until - self._places_until > TRUSTED_SECONDS
            self._place_of, self._places_until = place_of, until
            for name, known in self._hosts.items():
                place = place_of(name)
                if place != self._places.get(name) or (may_have_lapsed and place is not None):
                    self._changes += 1
                    self._hosts[name] = replace(known, change=self._changes)
                    self._set_place(name, place)

    def _set_place(self, name: str, place: Place | None) -> None:
        if place is None:
            self._places.pop(name, None)
        else:
            self._places[name] = place

    def _former_name(self, seen: Seen) -> str | None:
        """Return what the machine of a new host was called before: machines that live share an id are clones."""
        if seen.machine_id is None:
            return None
        former = self._hosts.get(self._machines.get(seen.machine_id, ""))
        self._machines[seen.machine_id] = seen.host
        if former is None or former.seen.machine_id != seen.machine_id:
            return None
        silent_seconds = seen.received_at - former.seen.received_at
        same_boot = seen.boot_id is not None and seen.boot_id == former.seen.boot_id
        return former.seen.host if same_boot or silent_seconds > 2 * former.interval_seconds else None

    def _refuse_a_twin(self, before: KnownHost, seen: Seen) -> None:
        """Keep a machine and its clone apart, which have one name and one machine_id, while the first still posts.

        Another boot of the same machine begins after the last snapshot of the one before.
        """
        last = before.seen
        if seen.booted_at is None or None in (seen.boot_id, last.boot_id) or seen.boot_id == last.boot_id:
            return
        booted_at = seen.booted_at - (seen.skew_seconds or 0.0)
        silent_seconds = seen.received_at - last.received_at
        if booted_at < last.received_at - TWIN_SECONDS and (
            silence(silent_seconds, before.interval_seconds, self.thresholds) is None
        ):
            raise Refused(
                409,
                f"hostname: {seen.host} still reports from another machine, that was up at the same time: rename one "
                "and give it a machine-id of its own (systemd-machine-id-setup)",
            )

    def forget(self, names: Iterable[str]) -> None:
        """Forget hosts and all that is known of them; one that posts again is a new one."""
        with self._lock:
            self._changes += 1
            for name in names:
                known = self._hosts.pop(name, None)
                self._places.pop(name, None)
                if known is not None:
                    self._kept.replace(known.seen, None)
                    self.forgets += 1
                    if known.seen.machine_id is not None and self._machines.get(known.seen.machine_id) == name:
                        del self._machines[known.seen.machine_id]

    def forget_gpu(self, name: str, uuid: str) -> bool:
        """Expect a missing GPU of a host no longer; False where no such GPU of it is missing."""
        with self._lock:
            known = self._hosts.get(name)
            if known is None:
                return False
            gpus = tuple([each for each in known.gpus if each.missing_since is None or each.gpu.uuid != uuid])
            if len(gpus) == len(known.gpus):
                return False
            self._changes += 1
            self._hosts[name] = replace(known, gpus=gpus, change=self._changes, edition=known.edition + 1)
            return True

    def amend(self, name: str, change: Callable[[KnownHost], KnownHost]) -> bool:
        """Change what is known of a host; False where it was not changed, or no such host is known."""
        with self._lock:
            known = self._hosts.get(name)
            found = known if known is None else change(known)
            if known is None or found is None or found is known:
                return False
            self._changes += 1
            self._kept.replace(known.seen, found.seen)
            self._hosts[name] = replace(found, change=self._changes, edition=known.edition + 1)
            return True

    def _departs_at(self, known: KnownHost) -> float | None:
        """Return when a silent host leaves the lists by itself; None: never."""
        if not known.seen.ephemeral:
            return None
        _, down_after = silence_after(known.interval_seconds, self.thresholds)
        return known.seen.received_at + down_after + EPHEMERAL_SECONDS

    def _has_departed(self, known: KnownHost, now: float) -> bool:
        departs_at = self._departs_at(known)
        return departs_at is not None and now >= departs_at

    def _drop_departed(self, now: float) -> None:
        """Free the memory of hosts that left the lists; looks through all of them, so once a minute only."""
        if now - self._swept_at < 60:
            return
        self._swept_at = now
        for name in [name for name, known in self._hosts.items() if self._has_departed(known, now)]:
            self._kept.replace(self._hosts.pop(name).seen, None)

    def host(self, name: str, now: float) -> HostView | None:
        """Return one host as it stands at `now`, None where it is not known."""
        known = self._hosts.get(name)
        return None if known is None or self._has_departed(known, now) else self._view(known, now)

    def hosts(self, now: float) -> list[HostView]:
        """Return all hosts as they stand at `now`, by name."""
        with self._lock:
            known = [each for each in self._hosts.values() if not self._has_departed(each, now)]
        return [self._view(each, now) for each in sorted(known, key=lambda each: each.seen.host)]

    def node(self, name: str, now: float) -> Place | None:
        """Return what Slurm says of a host, None where it says nothing, or not of late."""
        return self._places.get(name) if now < self._places_until else None

    def known(self, names: Iterable[str]) -> list[KnownHost]:
        """Return what is known of hosts; those that are not are left out."""
        found = [self._hosts.get(name) for name in names]
        return [known for known in found if known is not None]

    def begin_with(self, hosts: Iterable[KnownHost]) -> None:
        """Take what was known of hosts before a restart; one that has posted since stays as it is."""
        with self._lock:
            for known in hosts:
                if known.seen.host not in self._hosts and len(self._hosts) < self._max_hosts:
                    self._changes += 1
                    self._hosts[known.seen.host] = replace(known, change=self._changes)
                    self._kept.replace(None, known.seen)
                    if known.seen.machine_id is not None:
                        self._machines[known.seen.machine_id] = known.seen.host

    def adopt(
        self,
        hosts: Iterable[KnownHost],
        gone: Mapping[str, float],
        is_newer: Callable[[KnownHost, KnownHost], bool],
    ) -> None:
        """Take over what another replica knows.

        Args:
            hosts: what is known of hosts there.
            gone: hosts that are gone there, and since when (Unix s); one that has posted here since stays.
            is_newer: says whether what is known here, the first, is newer than what is known there.
        """
        with self._lock:
            for known in hosts:
                name = known.seen.host
                here = self._hosts.get(name)
                if here is None:
                    self._set_place(name, self._place_of(name))
                elif is_newer(here, known):
                    continue
                self._kept.replace(None if here is None else here.seen, known.seen)
                self._changes += 1
                self._hosts[name] = replace(known, change=self._changes)
                if known.seen.machine_id is not None:
                    self._machines[known.seen.machine_id] = name
            left = [name for name, at in gone.items() if (it := self._hosts.get(name)) and it.seen.received_at <= at]
        self.forget(left)

    def names(self) -> set[str]:
        """Return the names of all hosts that are remembered, those that have left the lists too."""
        with self._lock:
            return set(self._hosts)

    @property
    def placed(self) -> frozenset[str]:
        """The hosts that are nodes of Slurm."""
        with self._lock:
            return frozenset(self._places)

    def knows(self, name: str) -> bool:
        """Say whether a host of this name has been seen and not been forgotten."""
        return name in self._hosts

    def changed_since(self, change: int) -> list[str]:
        """Return the hosts whose snapshot came after the change of that number."""
        with self._lock:
            return [name for name, known in self._hosts.items() if known.change > change]

    def next_change_at(self, name: str, now: float) -> float | None:
        """Return when a host changes or leaves by time alone, from `now` on (Unix s); None: never."""
        return min([moment for moment in self._moments(name) if moment >= now], default=None)

    def changed_at(self, name: str, before: float) -> float | None:
        """Return when a host last changed by time alone before a moment (Unix s); None: it did not."""
        return max((moment for moment in self._moments(name) if moment < before), default=None)

    def _moments(self, name: str) -> list[float]:
        """Return the moments at which a host changes by time alone, past ones too."""
        known = self._hosts.get(name)
        if known is None:
            return []
        stale_after, down_after = silence_after(known.interval_seconds, self.thresholds)
        moments = [known.seen.received_at + stale_after, known.seen.received_at + down_after]
        moments += [gpu.idle_since + self.thresholds.held_seconds for gpu in known.gpus if gpu.idle_since is not None]
        departs_at = self._departs_at(known)
        moments += () if departs_at is None else (departs_at,)
        moments += (self._places_until,) if name in self._places else ()
        return moments

    def __len__(self) -> int:
        return len(self._hosts)

    def _view(self, known: KnownHost, now: float) -> HostView:
        silent = silence(now - known.seen.received_at, known.interval_seconds, self.thresholds)
        place = self.node(known.seen.host, now)
        allotted = [None] * len(known.gpus) if place is None else place.of([each.gpu for each in known.gpus])
        gpus = tuple(
            [self._gpu_view(each, known, silent, now, slurm) for each, slurm in zip(known.gpus, allotted, strict=True)]
        )
        return HostView(
            seen=known.seen,
            headline=headline([each.state for each in gpus], silent, known.seen.gpu_error),
            silent=silent,
            interval_seconds=known.interval_seconds,
            gpus=gpus,
            place=place,
        )

    def _gpu_view(
        self,
        each: KnownGpu,
        known: KnownHost,
        silent: Literal["down", "stale"] | None,
        now: float,
        slurm: Allotment | None,
    ) -> GpuView:
        gpu, idle_since, missing_since, free_since = each
        missing = missing_since is not None
        old = (
            gpu.read_at is not None  # mostly it is None: they were read with the snapshot
            and not missing
            and figures_are_old(gpu.read_at, known.seen.timestamp, known.interval_seconds, self.thresholds)
        )
        state = gpu_state(
            gpu,
            missing=missing,
            old=old,
            idle_since=idle_since,
            silent=silent,
            now=now,
            thresholds=self.thresholds,
            slurm=slurm,
        )
        return GpuView(gpu, state, idle_since, missing_since, free_since, old, slurm)


def another_machine(first: Seen, second: Seen) -> bool:
    """Say whether two snapshots of one name come from two machines, as far as both say."""
    return first.machine_id is not None and second.machine_id is not None and first.machine_id != second.machine_id
