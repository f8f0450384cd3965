"""What happened on the hosts: what snapshots say, and what differs between two of a host. Pure but for the log.

An event is kept once however often its snapshot is posted, and two equal ones in a row are two.
"""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from cluster_dash_server.cluster import HostView, KnownGpu, KnownHost, another_machine, slot
from cluster_dash_server.privacy import unnamed
from cluster_dash_server.snapshot import Json, Seen, printable
from cluster_dash_server.states import SKEW_SECONDS, Thresholds, silence, silence_after
from cluster_dash_server.store import Event, Heard, KeptEvent, Ledger

PER_HOST = 1_000
IN_ALL = 50_000
"""Events kept of one host, and of all together: about 25 MB at most."""
TEXT_LENGTH = 320
REBOOT_SECONDS = 60
"""How far apart two moments of start are at least, of a host without a boot_id: clocks are set right after a start."""
SAME_SECONDS = 120
"""What the server sees and a mole tells so close together is one event: the mole's, which saw it from nearer."""
JITTER_SECONDS = 2
"""How far apart the moments of one event may be that is told twice: with a skewed clock they depend on the post."""
SPELL_SECONDS = 300
"""Throttling that begins anew within so long has not ended: a card at its limit comes and goes every few seconds."""
HARMFUL_THROTTLES = frozenset(("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown"))
"""Reasons to run slower that somebody must see to; at its power limit a busy card is all day."""


# -------------------------------------------------------------------------------------- what a snapshot itself says


def told(seen: Seen) -> list[Event]:
    """Return the events that a snapshot carries."""
    return [_told(seen, each, ahead_seconds(seen)) for each in seen.events]


def ahead_seconds(seen: Seen) -> float:
    """Return how far ahead of ours a host's moments are taken to be: 0 where its clock is about right."""
    skew = seen.skew_seconds or 0.0
    return skew if abs(skew) > SKEW_SECONDS else 0.0


def _told(seen: Seen, event: Json, ahead_seconds: float) -> Event:
    at, code = event.get("at"), event.get("code")
    kind = (event.get("kind") or "event").lower()
    text = event.get("text") or (kind if code is None else f"{kind} {code}")  # a mole of ours says what it means
    return Event(
        at=seen.received_at if at is None else min(at - ahead_seconds, seen.received_at),
        host=seen.host,
        gpu=_index(seen, event.get("gpu")),
        kind=printable(kind, 40),
        code=printable(code, 64) if isinstance(code, str) else code,
        text=printable(text, TEXT_LENGTH),
    )


def _index(seen: Seen, gpu: int | str | None) -> int | str | None:
    """Return the index of a GPU that an event names by index, key, uuid or slot."""
    if not isinstance(gpu, str):
        return gpu
    named = next((each.index for each in seen.gpus if gpu in (each.key, each.uuid, each.pci_bus_id)), None)
    return printable(gpu, 64) if named is None else named


# ------------------------------------------------------------------------------------- what differs between two


def changes(
    before: KnownHost, after: KnownHost, thresholds: Thresholds, listening_since: float = float("-inf")
) -> list[Event]:
    """Return what happened between two snapshots of a host, by what is known before and after the second one.

    Args:
        before: what was known before the second one.
        after: what is known since.
        thresholds: when a host counts as silent.
        listening_since: from when on a host could be heard (Unix s): before, it was the server that was away.
    """
    first, second = before.seen, after.seen

    def event(kind: str, text: str, gpu: int | None = None, code: str | None = None) -> Event:
        return Event(at=second.received_at, host=second.host, gpu=gpu, kind=kind, code=code, text=text)

    found = []
    silent_seconds = second.received_at - max(first.received_at, listening_since)
    if silence(silent_seconds, before.interval_seconds, thresholds) is not None:
        found.append(_silent(first, before.interval_seconds, thresholds))
        found.append(event("host_back", f"posts again, after {_span(second.received_at - first.received_at)}"))
    if another_machine(first, second):
        found.append(event("machine_changed", "another machine has taken over this name"))
        return found
    if _rebooted(first, second):
        found.append(event("rebooted", "the host was started anew"))
    drivers = first.driver_version, second.driver_version
    if None not in drivers and drivers[0] != drivers[1]:
        found.append(event("driver_changed", f"the driver changed from {drivers[0]} to {drivers[1]}"))
    if not _gpus_are_as_before(before, after):
        found += [event(*each) for each in _gpu_changes(before, after)]
    return found


def _rebooted(first: Seen, second: Seen) -> bool:
    if first.boot_id is not None and second.boot_id is not None:
        return first.boot_id != second.boot_id
    started = first.booted_at, second.booted_at
    return started[0] is not None and started[1] is not None and started[1] - started[0] > REBOOT_SECONDS


class _GpuChange(NamedTuple):
    kind: str
    text: str
    gpu: int | None = None
    code: str | None = None


def _gpus_are_as_before(before: KnownHost, after: KnownHost) -> bool:
    """Say, quickly, that no GPU has changed in what events are made of: so it is after nearly every post."""
    if len(before.gpus) != len(after.gpus):
        return False
    for was, known in zip(before.gpus, after.gpus, strict=True):
        old, new = was.gpu, known.gpu
        if old.uuid != new.uuid or old.error != new.error or old.throttle_reasons != new.throttle_reasons:
            return False
        if (was.missing_since is None) != (known.missing_since is None):
            return False
    return True


def _gpu_changes(before: KnownHost, after: KnownHost) -> Iterator[_GpuChange]:
    was_known = {known.gpu.uuid or known.gpu.index: known for known in before.gpus}
    lost, back = [], []
    for known in after.gpus:
        was = was_known.pop(known.gpu.uuid or known.gpu.index, None) or was_known.pop(known.gpu.index, None)
        if was is None:
            continue
        trouble, had_trouble = _trouble(known), _trouble(was)
        if trouble is not None and (
            had_trouble is None or (was.missing_since is None) != (known.missing_since is None)
        ):
            lost.append(known)
        elif trouble is None and had_trouble is not None:
            back.append(known)
        if trouble is None:
            yield from _throttling(was, known)
    if len(lost) > 1 and all(known.missing_since is not None for known in after.gpus) and len(lost) == len(after.gpus):
        why = after.seen.gpu_error or after.seen.gpu_note
        why = "the snapshot holds none" if why is None else printable(why, 200)
        yield _GpuChange("gpu_error", f"all {len(lost)} GPUs are missing: {why}")
    else:
        for known in lost:
            text = str(_trouble(known))
            is_lost = known.missing_since is not None or "lost" in text
            yield _GpuChange("gpu_lost" if is_lost else "gpu_error", text, known.gpu.index)
    if len(back) > 1 and len(back) == len(after.gpus):
        yield _GpuChange("gpu_back", f"all {len(back)} GPUs are back")
    else:
        yield from (_GpuChange("gpu_back", "can be read again", known.gpu.index) for known in back)
    for gone in was_known.values():
        new = next((known for known in after.gpus if slot(known.gpu) == slot(gone.gpu) is not None), None)
        if new is not None and gone.gpu.uuid != new.gpu.uuid:
            text = f"{gone.gpu.uuid} was replaced by {new.gpu.uuid} in slot {new.gpu.pci_bus_id}"
            yield _GpuChange("gpu_replaced", text, new.gpu.index)


def _trouble(known: KnownGpu) -> str | None:
    if known.missing_since is not None:
        return "missing: the snapshot does not hold it"
    return None if known.gpu.error is None else printable(known.gpu.error, TEXT_LENGTH)


def _throttling(was: KnownGpu, known: KnownGpu) -> Iterator[_GpuChange]:
    if was.gpu.throttle_reasons == known.gpu.throttle_reasons:
        return
    reasons, had = _harmful(known), _harmful(was)
    if reasons and not had:
        text = "slowed down: " + ", ".join(each.replace("_", " ") for each in reasons)
        yield _GpuChange("throttling_began", text, known.gpu.index, ", ".join(reasons))
    elif had and not reasons:
        yield _GpuChange("throttling_ended", "no longer slowed down", known.gpu.index, ", ".join(had))


def _harmful(known: KnownGpu) -> list[str]:
    return [each for each in known.gpu.throttle_reasons if each.lower() in HARMFUL_THROTTLES]


def _renamed(seen: Seen, former: str) -> Event:
    text = f"this machine was called {former}: `cluster-dash-server forget {former}` takes the old name off the lists"
    return Event(at=seen.received_at, host=seen.host, gpu=None, kind="renamed", code=None, text=text)


def silences(hosts: Iterable[HostView], thresholds: Thresholds) -> list[Event]:
    """Return when each host fell silent that still is: nothing is posted then, so nothing else would say it."""
    return [_silent(host.seen, host.interval_seconds, thresholds) for host in hosts if host.silent is not None]


def _silent(seen: Seen, interval_seconds: float, thresholds: Thresholds) -> Event:
    stale_after, _ = silence_after(interval_seconds, thresholds)
    return Event(
        at=seen.received_at + stale_after,
        host=seen.host,
        gpu=None,
        kind="host_silent",
        code=None,
        text=f"no snapshot for {_span(stale_after)}",
    )


def _span(seconds: float) -> str:
    for size, word in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


# -------------------------------------------------------------------------------------------------------- the log


class EventLog:
    """The newest events of each host. Thread-safe; a witness of `Cluster`.

    Args:
        thresholds: when a host counts as silent.
        per_host: events kept of one host.
        in_all: events kept of all hosts; beyond, the host with the most loses its oldest.
        ledger: where events are kept for good.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        per_host: int = PER_HOST,
        in_all: int = IN_ALL,
        ledger: Ledger | None = None,
    ) -> None:
        self._ledger = ledger
        self._listening_since = float("-inf")
        self._thresholds = thresholds
        self._per_host = per_host
        self._in_all = in_all
        self._kept: dict[str, list[KeptEvent]] = {}  # by `at`, the oldest first
        self._count = 0
        self._lock = threading.Lock()

    def witness(self, seen: Seen, before: KnownHost | None, after: KnownHost | None) -> None:
        """Take what a snapshot says and what it changed; see `cluster.Witness`."""
        changed = (
            [] if before is None or after is None else changes(before, after, self._thresholds, self._listening_since)
        )
        if before is None and after is not None and after.renamed_from is not None:
            changed = [_renamed(seen, after.renamed_from)]
        if not changed and not seen.events:
            return
        with self._lock:
            kept = self._kept.setdefault(seen.host, [])
            source = None if seen.boot_id is None or seen.seq is None else (seen.boot_id, seen.seq)
            if source is None or all(each.source != source for each in kept):
                earlier = list(kept)  # of equal ones within one snapshot each counts
                for event in told(seen):
                    if not _is_told(earlier, event, 0 if ahead_seconds(seen) == 0 else JITTER_SECONDS):
                        self._keep(kept, KeptEvent(event, True, source))
            for event in changed:
                self._keep(kept, KeptEvent(event, False, source))
            if not kept:
                del self._kept[seen.host]
            while self._count > self._in_all:
                self._make_room()

    def _keep(self, kept: list[KeptEvent], new: KeptEvent) -> None:
        event = new.event
        same = next(_near(kept, event, SAME_SECONDS, event.kind, told=not new.told), None)
        if same is not None:
            if not new.told:
                return
            self._replace(kept, same)
        if event.kind == "throttling_began":
            ended = next(_near(kept, event, SPELL_SECONDS, "throttling_ended", told=False), None)
            if ended is not None:  # it was no end: it begins anew soon after
                self._replace(kept, ended)
                return
        if len(kept) >= self._per_host and event.at < kept[0].event.at:
            return  # older than what was dropped already: it may have been here before
        kept.insert(bisect_right(kept, event.at, key=lambda each: each.event.at), new)
        self._count += 1
        if self._ledger is not None:
            self._ledger.record(new)
        if len(kept) > self._per_host:
            self._remove(kept, 0)

    def _replace(self, kept: list[KeptEvent], place: int) -> None:
        """Drop an event for good: a better one takes its place, or it was none."""
        if self._ledger is not None:
            self._ledger.retract(kept[place])
        self._remove(kept, place)

    def begin_with(self, events: Iterable[KeptEvent], now: float) -> None:
        """Take the events that were kept before a restart, the oldest first."""
        with self._lock:
            self._listening_since = now
            for each in events:
                self._kept.setdefault(each.event.host, []).append(each)
                self._count += 1

    def hear(self, found: Iterable[Heard]) -> None:
        """Take what became of events, by whichever replica: it is kept for good elsewhere."""
        with self._lock:
            for kept, is_gone in found:
                of_host = self._kept.setdefault(kept.event.host, [])
                same = next(_near(of_host, kept.event, 0, kept.event.kind, told=kept.told), None)
                if same is not None:
                    self._remove(of_host, same)
                if not is_gone:
                    of_host.insert(bisect_right(of_host, kept.event.at, key=lambda each: each.event.at), kept)
                    self._count += 1
                    if len(of_host) > self._per_host:
                        self._remove(of_host, 0)
                if not of_host:
                    del self._kept[kept.event.host]
            while self._count > self._in_all:
                self._make_room()

    def _make_room(self) -> None:
        """Drop the oldest events of the host that has the most."""
        host, kept = max(self._kept.items(), key=lambda each: len(each[1]))
        surplus = min(self._count - self._in_all, max(1, len(kept) // 2))
        del kept[:surplus]
        self._count -= surplus
        if not kept:
            del self._kept[host]

    def _remove(self, kept: list[KeptEvent], place: int) -> None:
        del kept[place]
        self._count -= 1

    def forget(self, hosts: Iterable[str]) -> None:
        """Forget the events of hosts."""
        with self._lock:
            for host in hosts:
                self._count -= len(self._kept.pop(host, ()))
                if self._ledger is not None:
                    self._ledger.forget([host])

    def forget_user(self, user: str) -> None:
        """Take the name of a user out of the texts of events."""
        with self._lock:
            for kept in self._kept.values():
                kept[:] = [each._replace(event=_without(each.event, user)) for each in kept]

    def newest(
        self, hosts: Iterable[str] | None = None, *, begin: float = float("-inf"), end: float = float("inf")
    ) -> list[Event]:
        """Return events, newest first.

        Args:
            hosts: of which hosts; None: of all.
            begin: the first moment (Unix s).
            end: the last moment.
        """
        with self._lock:
            kept = self._kept.values() if hosts is None else [self._kept.get(host, []) for host in hosts]
            found = [each.event for events in kept for each in events if begin <= each.event.at <= end]
        found.reverse()  # of two at one moment, the one that came later is the newer one
        found.sort(key=lambda event: -event.at)
        return found


def _is_told(kept: list[KeptEvent], event: Event, jitter_seconds: float) -> bool:
    """Say whether a mole told this before: it repeats an event until it knows that a snapshot with it was taken."""
    same = (event.kind, event.gpu, event.code, True)
    first = bisect_left(kept, event.at - jitter_seconds, key=lambda each: each.event.at)
    for each in kept[first:]:
        if each.event.at > event.at + jitter_seconds:
            return False
        if (each.event.kind, each.event.gpu, each.event.code, each.told) == same:
            return True
    return False


def _near(kept: list[KeptEvent], event: Event, seconds: float, kind: str, *, told: bool) -> Iterator[int]:
    """Give the places of events of a kind of the same GPU, within so long of an event, the newest first."""
    for place in range(len(kept) - 1, -1, -1):
        other = kept[place]
        if other.event.at < event.at - seconds:
            return
        if (other.event.kind, other.event.gpu, other.told) == (kind, event.gpu, told) and (
            other.event.at <= event.at + seconds
        ):
            yield place


def _without(event: Event, user: str) -> Event:
    code = unnamed(event.code, user) if isinstance(event.code, str) else event.code
    return replace(event, text=unnamed(event.text, user), code=code)
