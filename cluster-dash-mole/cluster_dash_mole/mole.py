"""The loop on a host: every interval one snapshot, handed to each sender.

What reads (`Collector`), what hands on (`Sender`) and what tells the time (`Clock`) are known here by shape only.
"""

import enum
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

from cluster_dash_mole.host import Host, HostPast
from cluster_dash_mole.snapshot import Event, Outcome, Snapshot, clean, gpu_error

log = logging.getLogger(__name__)

FIRST_WITHIN_SECONDS = 5.0
"""A mole that starts waits at most so long for its first snapshot, however long its interval."""


class Clock(Protocol):
    """The time: `now` in Unix s may jump, `monotonic` in s does not."""

    def now(self) -> float: ...  # noqa: D102 - the class says it
    def monotonic(self) -> float: ...  # noqa: D102
    def sleep(self, seconds: float) -> None: ...  # noqa: D102


class SystemClock:
    """The time of this machine."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a collector read: `parts` are top-level members of the snapshot, `general` members of its part `general`.

    A part of `once` stands in each snapshot until the first lane has done with one that holds it, as events do.

    `ok` is False where the subject could not be read as it should; `error` says why, or remarks on what worked.
    """

    parts: Mapping[str, object] = field(default_factory=dict)
    general: Mapping[str, object] = field(default_factory=dict)
    ok: bool = True
    error: str | None = None
    events: Sequence[Event] = ()  # what happened since the last reading
    once: Mapping[str, object] = field(default_factory=dict)  # parts that are told once, not in each snapshot


class Collector(Protocol):
    """Reads one subject. `collect` returns its part, None where the machine has no such thing; raises anything."""

    @property
    def name(self) -> str: ...  # noqa: D102
    def collect(self) -> Reading | None: ...  # noqa: D102


class Row(enum.Enum):
    """The rows of the contract's table of answers: what a sender that failed is to do."""

    NEVER = "this snapshot will never pass"
    WHO_ARE_YOU = "who are you"
    NOT_NOW = "not now"
    TROUBLE = "trouble"


class SendError(Exception):
    """A snapshot was not taken. `wait` (s) is what the other side asked for, with Row.NOT_NOW only."""

    def __init__(self, text: str, *, row: Row, wait: float = 0.0) -> None:
        super().__init__(text)
        self.row = row
        self.wait = wait


class Sender(Protocol):
    """Hands a snapshot on. `send` is called from one thread, may take long, and raises SendError."""

    @property
    def name(self) -> str: ...  # noqa: D102
    def send(self, snapshot: Snapshot) -> None: ...  # noqa: D102


class Way(Protocol):
    """The way to one sender, as the loop sees it: `offer` returns at once.

    `outcome` is that of the last try; `finished` the last snapshot that was taken or set aside.
    """

    name: str

    @property
    def outcome(self) -> Outcome | None: ...  # noqa: D102 - the class says it
    @property
    def finished(self) -> Snapshot | None: ...  # noqa: D102
    def offer(self, snapshot: Snapshot) -> None: ...  # noqa: D102


class Mole:
    """Takes a snapshot every `interval` (s) on the host's own phase, and offers it to each lane.

    `count` gives the number of the next snapshot, None where this one shall have no identity. `pace` (s) is how far
    apart snapshots are at least for now. `alive` is called in the loop itself, before each round and at least every
    `alive_seconds` of a pause, so that its silence means that the loop hangs. An event stands in each snapshot until
    the first lane has done with one that holds it: taken, or refused for good, which another with the same event might
    be, too.
    """

    EVENTS_KEPT = 200

    def __init__(
        self,
        *,
        host: Host,
        collectors: Sequence[Collector],
        lanes: Sequence[Way],
        interval: float,
        clock: Clock,
        count: Callable[[], int | None] | None = None,
        labels: Mapping[str, str] | None = None,
        past: HostPast | None = None,
        alive: Callable[[], None] = lambda: None,
        alive_seconds: float = math.inf,
        pace: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._host = host
        self._collectors = collectors
        self._lanes = lanes
        self._interval = interval
        self._pace = pace
        self._clock = clock
        self._count = count
        self._labels = labels or {}
        self._past = past
        self._events: list[dict[str, object]] = []
        self._once: dict[str, object] = {}
        self._last: Snapshot | None = None
        self._alive = alive
        self._alive_seconds = alive_seconds
        self._failing: dict[str, str | None] = {}

    def run(self) -> None:
        """Take snapshots for ever: a round that comes late (suspend, SIGSTOP) is one round, with no burst after it."""
        hostname, interval, clock = self._host.hostname, self._interval, self._clock
        grid = clock.monotonic() + phase_wait(hostname, interval, clock.now())
        self._pause(phase_wait(hostname, min(interval, FIRST_WITHIN_SECONDS), clock.now()))
        while True:
            self.round()
            now = clock.monotonic()
            if interval != (interval := self.interval):  # a server that has too much to do asked for it
                grid = now + phase_wait(hostname, interval, clock.now())
            ticks = math.floor((now - grid) / interval + 1e-3) + 1  # a thousandth: a sleep may end a hair early
            self._pause(max(0.0, grid + ticks * interval - now))

    def _pause(self, seconds: float) -> None:
        self._alive()
        while seconds > self._alive_seconds:
            self._clock.sleep(self._alive_seconds)
            seconds -= self._alive_seconds
            self._alive()
        self._clock.sleep(seconds)
        self._alive()

    @property
    def interval(self) -> float:
        """Seconds between two snapshots now: longer than set while a server asks for it."""
        return max(self._interval, self._pace())

    def round(self) -> None:
        """Take one snapshot and offer it to each lane."""
        snapshot = self._last = self.snapshot()
        for lane in self._lanes:
            lane.offer(snapshot)

    def say_goodbye(self, count: Callable[[], int], within_seconds: float) -> None:
        """Tell the server that this mole is stopped on purpose, if that server took what was sent last.

        Nothing is read again: what reads may have been stopped, too.

        Args:
            count: gives the number of the last snapshot.
            within_seconds: how long the server may take.
        """
        lane = self._lanes[0] if self._lanes else None
        if lane is None or self._last is None or self._last.seq is None or not (lane.outcome and lane.outcome.ok):
            return
        general = self._last.parts.get("general")
        said = {**(general if isinstance(general, Mapping) else {}), "stopping": True}
        parts = {name: part for name, part in self._last.parts.items() if name != "slurm"}
        goodbye = replace(self._last, timestamp=self._clock.now(), seq=count(), parts={**parts, "general": said})
        lane.offer(goodbye)
        until = self._clock.monotonic() + within_seconds
        while lane.finished is not goodbye and lane.outcome.ok and self._clock.monotonic() < until:
            self._clock.sleep(0.02)

    def snapshot(self) -> Snapshot:
        """Read everything once. A collector that fails costs its part of the snapshot only."""
        now = self._clock.now()
        general = self._host.general(now, self._labels)
        parts: dict[str, object] = {"general": general, "cpu": {}}
        events: list[Event] = []
        outcomes: dict[str, Outcome] = {}
        for collector in self._collectors:
            started = self._clock.monotonic()
            try:
                reading = collector.collect() or Reading()
            except Exception as error:  # a fault of one collector must not cost the snapshot
                reading = Reading(ok=False, error=describe(error))
                log.debug("%s: failed", collector.name, exc_info=True)
            seconds = round(self._clock.monotonic() - started, 6)
            general |= reading.general
            parts |= reading.parts
            events += reading.events
            self._once |= reading.once
            outcome = Outcome(ok=reading.ok, seconds=seconds, error=clean(reading.error) if reading.error else None)
            self._say(collector.name, outcome)
            outcomes[collector.name] = outcome
        if "gpu" not in parts:
            failed = outcomes.get("gpu")
            parts["gpu"] = gpu_error(failed.error if failed and failed.error else "not read")
        if self._past:
            events += self._past.changes(general, now)
        if pending := self._pending(events):
            parts["events"] = pending
        parts |= self._untold()
        for lane in self._lanes:
            if lane.outcome:
                outcomes[f"send_{lane.name}"] = lane.outcome
        seq = self._count() if self._count and self._host.boot_id is not None else None
        return Snapshot(
            hostname=self._host.hostname,
            timestamp=now,
            interval_seconds=None if self._count is None else self.interval,
            machine_id=self._host.machine_id,
            boot_id=None if seq is None else self._host.boot_id,
            seq=seq,
            parts=parts,
            collectors=outcomes,
        )

    def _pending(self, events: Sequence[Event]) -> list[dict[str, object]]:
        """Return the events to be told: these, and earlier ones that the first lane has not done with."""
        finished = self._lanes[0].finished if self._lanes else None
        told = finished.parts.get("events") if finished else None
        if isinstance(told, list):
            self._events = [event for event in self._events if event not in told]
        if not self._lanes:
            self._events = []
        self._events = [*self._events, *map(asdict, events)][-self.EVENTS_KEPT :]
        return list(self._events)

    def _untold(self) -> dict[str, object]:
        """Return the parts to be told once that the first lane has not done with yet."""
        finished = self._lanes[0].finished if self._lanes else None
        if finished:
            self._once = {name: part for name, part in self._once.items() if finished.parts.get(name) is not part}
        return self._once

    def _say(self, name: str, outcome: Outcome) -> None:
        """Log what changed: a collector that begins to fail, fails otherwise, or works again."""
        trouble = None if outcome.ok else outcome.error or "failed"
        before = self._failing.get(name)
        if trouble and trouble != before:
            log.warning("%s: %s", name, trouble)
        elif before and not trouble:
            log.info("%s: works again", name)
        self._failing[name] = trouble


def phase_wait(hostname: str, interval: float, now: float) -> float:
    """Return the seconds until the host's own moment in each interval (s): hosts started together post apart."""
    phase = zlib.crc32(hostname.encode()) / 2**32 * interval
    return (phase - now) % interval


def describe(error: Exception) -> str:
    """Return an error in words; one of our own needs no class name."""
    return str(error) if isinstance(error, SendError) else f"{type(error).__name__}: {error}"
