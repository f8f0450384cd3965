"""The snapshot: all a mole saw of its host at one instant, and the rules its values obey.

The one law of its shape is the server's JSON Schema. Unknown is None or absent, never 0, -1 or "N/A".
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

SCHEMA_VERSION = 1
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a collector or sender fared: `error` may also be a remark on something that worked."""

    ok: bool
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at a moment (Unix s): `gpu` is an index, `code` the driver's number.

    It stands in each snapshot until one that holds it was taken, so a server may see it twice: `at`, `kind`, `gpu` and
    `code` together tell it from all others of its host.
    """

    at: float
    kind: str
    text: str
    gpu: int | None = None
    code: int | None = None


_KEPT_OF_SLURM = ("version", "cluster", "collected_at", "interval_seconds", "totals")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All a mole saw at one instant.

    `parts` are the top-level members of the document (`cpu`, `gpu`, ...); `boot_id` and `seq` are the identity and
    None together; `timestamp` is in Unix s.
    """

    hostname: str
    timestamp: float
    interval_seconds: float | None
    machine_id: str | None
    boot_id: str | None
    seq: int | None
    parts: Mapping[str, object]
    collectors: Mapping[str, Outcome]

    def document(self) -> dict[str, object]:
        """Return the JSON object of a POST, less the secret."""
        identity = {
            "boot_id": self.boot_id,
            "seq": self.seq,
            "interval_seconds": self.interval_seconds,
            "machine_id": self.machine_id,
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "hostname": self.hostname,
            "timestamp": self.timestamp,
            **{name: value for name, value in identity.items() if value is not None},
            **self.parts,
            "collectors": {
                name: {"ok": said.ok, "seconds": said.seconds, "error": said.error}
                for name, said in self.collectors.items()
            },
        }

    def document_to_keep(self) -> dict[str, object]:
        """Return what is held of it until the server has it in history: Slurm's tables are news for a minute only.

        They take 3 MB where there are 20,000 jobs.
        """
        document = self.document()
        slurm = document.get("slurm")
        if isinstance(slurm, Mapping):
            document["slurm"] = {name: part for name, part in slurm.items() if name in _KEPT_OF_SLURM}
        return document


def encode(document: Mapping[str, object]) -> bytes:
    """Return a document as JSON, without a blank."""
    return _ENCODER.encode(document).encode()


def gpu_error(text: str) -> dict[str, object]:
    """Return the `gpu` part of a host whose GPUs cannot be read at all: its shape is that of the first version."""
    return {
        "gpu_error": {
            "name": "error",
            "uuid": "none",
            "index": 0,
            "total_mem": 0,
            "used_mem": 0,
            "users": {},
            "gpu_util": 0,
            "memory_util": 0,
            "error": clean(text),
        }
    }


def within(value: float | None, low: float, high: float) -> float | None:
    """Return the value if it can be true, else None: a figure out of its range is unknown, not clipped."""
    if value is None or not math.isfinite(value) or not low <= value <= high:
        return None
    return value


def clean(text: str, limit: int = 4096) -> str:
    """Return text that every reader can show: no control characters, no lone surrogates, at most `limit` long."""
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text[:limit]
