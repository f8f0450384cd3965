"""`pick`: choose free GPUs of this host, by what the server calls free, and print the variable that gives them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

HELD_MEMORY_MIB = 512
HELD_MEMORY_PERCENT = 2
BUSY_PERCENT = 5
"""The server's thresholds as it ships them: see its settings, [states]."""

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A GPU and why it is not free, None if it is; `free_mib` None: not known."""

    index: int
    uuid: str | None
    free_mib: float | None
    taken: str | None


def candidates(gpus: Mapping[str, object]) -> list[Candidate]:
    """Return the GPUs of a snapshot's part `gpu`."""
    return [_candidate(entry) for entry in gpus.values() if isinstance(entry, dict) and entry.get("uuid") != "none"]


def choose(gpus: list[Candidate], *, count: int, min_free_mib: float) -> list[Candidate] | str:
    """Return `count` free GPUs, those with the least memory to spare first, or in words why there are not so many."""
    free = [gpu for gpu in gpus if gpu.taken is None]
    fit = [gpu for gpu in free if min_free_mib <= 0 or (gpu.free_mib is not None and gpu.free_mib >= min_free_mib)]
    fit.sort(key=lambda gpu: (gpu.free_mib is None, gpu.free_mib, gpu.index))
    if len(fit) >= count:
        return sorted(fit[:count], key=lambda gpu: gpu.index)
    words = [f"GPU {gpu.index}: {gpu.taken or f'{gpu.free_mib or 0:.0f} MiB free'}" for gpu in gpus if gpu not in fit]
    what = "GPU is" if count == 1 else "GPUs are"
    return f"{count} {what} wanted, {len(fit)} of {len(gpus)} fit" + "".join(f"\n  {line}" for line in words)


def why_none(gpus: object) -> str:
    """Return in words why there is no GPU to choose from."""
    error = gpus.get("gpu_error") if isinstance(gpus, Mapping) else None
    return str(error.get("error")) if isinstance(error, Mapping) else "there is no NVIDIA GPU on this host"


def differ(gpus: Mapping[str, object]) -> bool:
    """Say whether the GPUs are of several models: then CUDA counts them in another order than the driver."""
    return len({entry.get("name") for entry in gpus.values() if isinstance(entry, Mapping)}) > 1


def variable(chosen: list[Candidate], *, by_uuid: bool) -> str:
    """Return the variable that gives a program these GPUs and no others."""
    names = [gpu.uuid if by_uuid and gpu.uuid else str(gpu.index) for gpu in chosen]
    return f"CUDA_VISIBLE_DEVICES={','.join(names)}"


def parse_size(text: str) -> float:
    """Return the MiB of a size such as 20G (20 × 2^30 bytes); a bare number is bytes.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"{text!r} is no size: expected one such as 20G")
    return float(found[1]) * _SIZES[found[2].upper()] / 2**20


def _candidate(entry: Mapping[str, object]) -> Candidate:
    total, used = _number(entry, "total_mem"), _number(entry, "used_mem")
    index, uuid = entry["index"], entry.get("uuid")
    return Candidate(
        index=index if isinstance(index, int) else -1,
        uuid=uuid if isinstance(uuid, str) else None,
        free_mib=None if total is None or used is None else total - used,
        taken=_taken(entry, total, used),
    )


def _taken(entry: Mapping[str, object], total: float | None, used: float | None) -> str | None:
    """Say why a GPU is not free: by the states of the server's page, less those that need its memory of the past."""
    if error := entry.get("error"):
        return str(error)
    if "mig" in entry:
        return "is divided by MIG: give the uuid of an instance"
    users, busy = entry.get("users"), _number(entry, "gpu_util")
    working = [
        name
        for name, processes in (users.items() if isinstance(users, dict) else ())
        if any(process.get("type") != "G" for process in processes.values())
    ]
    if working:
        return f"used by {', '.join(sorted(working))}"
    if used is not None and used > max(HELD_MEMORY_MIB, HELD_MEMORY_PERCENT / 100 * (total or 0)):
        return f"{used:.0f} MiB in use"
    if busy is not None and busy >= BUSY_PERCENT:
        return f"{busy:.0f} % busy"
    if users is None and (used is None or busy is None):
        return "nothing is known of its use"
    return None


def _number(entry: Mapping[str, object], name: str) -> float | None:
    value = entry.get(name)
    return value if isinstance(value, int | float) else None
