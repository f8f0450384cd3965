"""What happened to the GPUs between two readings: lost and back, slowed down and not any more, another driver."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster_dash_mole.snapshot import Event

SLOWED_BY = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
"""The throttle reasons of a GPU that is not well: a power cap or an idle GPU is not news."""

CALM_SECONDS = 60.0
"""A GPU that is slowed down by fits and starts is slowed down until it was not for so long."""


@dataclass(slots=True, kw_only=True)
class _Past:
    index: int
    troubled_at: float | None = None
    slowed_at: float | None = None
    last_slowed: float = 0.0


class Changes:
    """Compares each reading with what came before. The first sight of a GPU is no event."""

    def __init__(self) -> None:
        self._past: dict[str, _Past] = {}
        self._failed_at: float | None = None

    def see(self, entries: Mapping[str, object], *, at: float) -> list[Event]:
        """Return what changed: `entries` are all GPUs of a reading by their keys, `at` its moment (Unix s)."""
        events: list[Event] = []
        if self._failed_at is not None:
            events.append(
                Event(at=at, kind="gpu_back", text=f"the GPUs can be read again{_after(self._failed_at, at)}")
            )
            self._failed_at = None
        seen = set()
        for entry in entries.values():
            if isinstance(entry, dict) and isinstance(uuid := entry.get("uuid"), str):
                seen.add(uuid)
                events += self._see(uuid, entry, at)
        for uuid, past in self._past.items():
            if uuid not in seen and past.troubled_at is None:
                past.troubled_at = at
                events.append(Event(at=at, kind="gpu_lost", gpu=past.index, text="the driver no longer counts it"))
        return events

    def fail(self, why: str, *, at: float) -> list[Event]:
        """Return the event of a driver that worked and cannot be used any more."""
        if not self._past or self._failed_at is not None:
            return []
        self._failed_at = at
        return [Event(at=at, kind="gpu_error", text=why)]

    def _see(self, uuid: str, entry: Mapping[str, object], at: float) -> list[Event]:
        index, error = entry["index"], entry.get("error")
        assert isinstance(index, int)  # noqa: S101 - for mypy: the child numbers them
        past = self._past.get(uuid)
        if past is None:
            self._past[uuid] = past = _Past(index=index, troubled_at=at if error else None)
        past.index = index
        events = []
        if error and past.troubled_at is None:
            past.troubled_at = at
            text = str(error).removeprefix(f"GPU {index}: ")
            events.append(Event(at=at, kind="gpu_lost" if "lost" in text else "gpu_error", gpu=index, text=text))
        elif not error and past.troubled_at is not None:
            text = f"can be read again{_after(past.troubled_at, at)}"
            events.append(Event(at=at, kind="gpu_back", gpu=index, text=text))
            past.troubled_at = None
        if not error:
            events += self._slowed(past, entry, at)
        return events

    def _slowed(self, past: _Past, entry: Mapping[str, object], at: float) -> list[Event]:
        reasons = entry.get("throttle_reasons")
        by = [reason for reason in SLOWED_BY if isinstance(reasons, list) and reason in reasons]
        if by:
            past.last_slowed = at
            if past.slowed_at is None:
                past.slowed_at = at
                heat = entry.get("temperature_c")
                where = "" if heat is None else f" at {heat} °C"
                text = f"slowed down{where}: {', '.join(by)}"
                return [Event(at=at, kind="throttling_began", gpu=past.index, text=text)]
        elif past.slowed_at is not None and at - past.last_slowed >= CALM_SECONDS:
            text = f"no longer slowed down{_after(past.slowed_at, past.last_slowed)}"
            past.slowed_at = None
            return [Event(at=at, kind="throttling_ended", gpu=past.index, text=text)]
        return []


def _after(since: float, at: float) -> str:
    seconds = at - since
    return f", after {seconds:.0f} s" if seconds < 120 else f", after {seconds / 60:.0f} min"
