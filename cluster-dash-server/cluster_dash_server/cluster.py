"""The live view: the newest snapshot of each host and what is known beyond it. Pure: the time is an argument."""

import threading
from dataclasses import dataclass, replace
from typing import NamedTuple

from cluster_dash_server.snapshot import Gpu, Seen
from cluster_dash_server.states import (
    DEFAULT_INTERVAL_SECONDS,
    Headline,
    State,
    Thresholds,
    gpu_state,
    headline,
    idle_while_in_use,
    silence,
    silence_after,
)


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
    """What is remembered of one GPU of a host: what was last seen of it and since when it idles while in use."""

    gpu: Gpu
    idle_since: float | None
    missing_since: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHost:
    """The newest snapshot of a host and what the ones before it left behind.

    Attributes:
        interval_seconds: when to expect the next snapshot: what the host says, else the longer of its last two gaps.
        gaps: seconds between its last posts, the newest last; at most two.
        gpus: what is known of each of its GPUs, the missing ones too, by index.
        change: the number of the change to the live view that brought this.
    """

    seen: Seen
    interval_seconds: float
    gaps: tuple[float, ...]
    gpus: tuple[KnownGpu, ...]
    change: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """One GPU as it stands now."""

    gpu: Gpu
    state: State
    idle_since: float | None
    missing_since: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """One host as it stands now; `silent` is what its silence makes of it."""

    seen: Seen
    headline: Headline
    silent: State | None
    interval_seconds: float
    gpus: tuple[GpuView, ...]

    @property
    def host(self) -> str:
        """The name of the host."""
        return self.seen.host


def _same_gpu(known: Gpu, seen: Gpu) -> bool:
    if known.uuid is not None and seen.uuid is not None:
        return known.uuid == seen.uuid
    return known.index == seen.index  # a GPU that cannot be read has no uuid: it is known by its place


def _know_gpus(before: tuple[KnownGpu, ...], seen: Seen, thresholds: Thresholds) -> tuple[KnownGpu, ...]:
    """Join what was known of a host's GPUs with a new snapshot of it."""
    after = []
    left = list(before)
    for gpu in seen.gpus:
        was = next((known for known in left if _same_gpu(known.gpu, gpu)), None)
        if was is not None:
            left.remove(was)
            if gpu.uuid is None:
                gpu = replace(
                    gpu,
                    uuid=was.gpu.uuid,
                    name=gpu.name or was.gpu.name,
                    pci_bus_id=gpu.pci_bus_id or was.gpu.pci_bus_id,
                )
        idle_since = None
        if idle_while_in_use(gpu, thresholds):
            idle_since = seen.received_at if was is None or was.idle_since is None else was.idle_since
        after.append(KnownGpu(gpu=gpu, idle_since=idle_since, missing_since=None))
    slots = {gpu.pci_bus_id for gpu in seen.gpus if gpu.pci_bus_id is not None}
    for known in left:
        # another card in its slot: replaced, so it is not expected any more. Without a uuid nobody can expect it.
        if known.gpu.uuid is not None and known.gpu.pci_bus_id not in slots:
            after.append(
                KnownGpu(gpu=known.gpu, idle_since=None, missing_since=known.missing_since or seen.received_at)
            )
    return tuple(sorted(after, key=lambda known: known.gpu.index))


class Cluster:
    """The newest snapshot of each host. Thread-safe; knows no clock.

    Args:
        thresholds: when a GPU counts as stale, down, held, busy.
        max_hosts: how many hosts it holds; a snapshot of one more is refused (429).
    """

    def __init__(self, thresholds: Thresholds, max_hosts: int = 10_000) -> None:
        self.thresholds = thresholds
        self._max_hosts = max_hosts
        self._hosts: dict[str, KnownHost] = {}
        self._changes = 0
        self._lock = threading.Lock()

    @property
    def changes(self) -> int:
        """How many snapshots changed the view so far."""
        return self._changes

    def offer(self, seen: Seen) -> bool:
        """Take a snapshot as the newest of its host.

        Returns:
            False where the very same one, by (host, boot_id, seq), is there already; the view then stays as it is,
            and so it does for one that is older than the newest of the same boot.

        Raises:
            Refused: 409 or 429.
        """
        with self._lock:
            before = self._hosts.get(seen.host)
            if before is None:
                if len(self._hosts) >= self._max_hosts:
                    raise Refused(429, f"hostname: there are {self._max_hosts} hosts already: [limits] max_hosts")
                gaps: tuple[float, ...] = ()
            else:
                self._refuse_another_machine(before, seen)
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
                        return True
                gaps = (*before.gaps[-1:], max(0.0, seen.received_at - last.received_at))
            self._changes += 1
            self._hosts[seen.host] = KnownHost(
                seen=seen,
                interval_seconds=seen.interval_seconds or max(gaps, default=DEFAULT_INTERVAL_SECONDS),
                gaps=gaps,
                gpus=_know_gpus(() if before is None else before.gpus, seen, self.thresholds),
                change=self._changes,
            )
            return True

    def _refuse_another_machine(self, before: KnownHost, seen: Seen) -> None:
        """Keep two machines with one name apart, while the first one still posts."""
        first, second = before.seen.machine_id, seen.machine_id
        if first is None or second is None or first == second:
            return
        silent_seconds = seen.received_at - before.seen.received_at
        if silence(silent_seconds, before.interval_seconds, self.thresholds) is None:
            raise Refused(
                409,
                f"hostname: {seen.host} still reports from another machine: rename one; "
                "if it was replaced, it is taken over once the other is silent",
            )

    def host(self, name: str, now: float) -> HostView | None:
        """Return one host as it stands at `now`, None where it is not known."""
        known = self._hosts.get(name)
        return None if known is None else self._view(known, now)

    def hosts(self, now: float) -> list[HostView]:
        """Return all hosts as they stand at `now`, by name."""
        with self._lock:
            known = list(self._hosts.values())
        return [self._view(each, now) for each in sorted(known, key=lambda each: each.seen.host)]

    def changed_since(self, change: int) -> list[str]:
        """Return the hosts whose snapshot came after the change of that number."""
        with self._lock:
            return [name for name, known in self._hosts.items() if known.change > change]

    def next_change_at(self, name: str, now: float) -> float | None:
        """Return when a state of a host changes by time alone, from `now` on (Unix s); None: never."""
        known = self._hosts[name]
        stale_after, down_after = silence_after(known.interval_seconds, self.thresholds)
        moments = [known.seen.received_at + stale_after, known.seen.received_at + down_after]
        moments += [gpu.idle_since + self.thresholds.held_seconds for gpu in known.gpus if gpu.idle_since is not None]
        return min((moment for moment in moments if moment >= now), default=None)

    def __len__(self) -> int:
        return len(self._hosts)

    def _view(self, known: KnownHost, now: float) -> HostView:
        silent = silence(now - known.seen.received_at, known.interval_seconds, self.thresholds)
        gpus = tuple(
            GpuView(
                gpu=each.gpu,
                state=gpu_state(
                    each.gpu,
                    missing=each.missing_since is not None,
                    idle_since=each.idle_since,
                    silent=silent,
                    now=now,
                    thresholds=self.thresholds,
                ),
                idle_since=each.idle_since,
                missing_since=each.missing_since,
            )
            for each in known.gpus
        )
        return HostView(
            seen=known.seen,
            headline=headline((each.state for each in gpus), silent, known.seen.gpu_error),
            silent=silent,
            interval_seconds=known.interval_seconds,
            gpus=gpus,
        )
