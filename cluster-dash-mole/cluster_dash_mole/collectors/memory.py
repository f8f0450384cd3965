"""Main memory and swap."""

import re
from pathlib import Path

from cluster_dash_mole.mole import Reading

_LINE = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)
_KIB_PER_GB = 2**20


class MemoryCollector:
    """Reads the part `memory`, in units of 2^30 bytes."""

    name = "memory"

    def __init__(self, proc: str = "/proc") -> None:
        self._meminfo = Path(proc, "meminfo")

    def collect(self) -> Reading:
        """Read /proc/meminfo."""
        return Reading(parts={"memory": memory(parse_meminfo(self._meminfo.read_text()))})


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the lines of /proc/meminfo that are amounts: name to KiB."""
    return {name: int(kib) for name, kib in _LINE.findall(text)}


def memory(kib: dict[str, int]) -> dict[str, object]:
    """Return the part of a snapshot. Used is what is not available: caches that can be dropped are not used."""
    total, available = _gb(kib.get("MemTotal")), _gb(kib.get("MemAvailable"))
    swap_total, swap_free = _gb(kib.get("SwapTotal")), _gb(kib.get("SwapFree"))
    return {
        "total_gb": total,
        "available_gb": available,
        "used_gb": _less(total, available),
        "swap": {"total_gb": swap_total, "used_gb": _less(swap_total, swap_free)},
    }


def _gb(kib: int | None) -> float | None:
    return None if kib is None else round(kib / _KIB_PER_GB, 6)


def _less(whole: float | None, rest: float | None) -> float | None:
    return None if whole is None or rest is None or rest > whole else round(whole - rest, 6)
