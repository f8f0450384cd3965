"""The one sentence on top of the page, the title and the text answers: pure."""

import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from cluster_dash_server.cluster import HostView
from cluster_dash_server.snapshot import Gpu
from cluster_dash_server.states import State


def model(gpu: Gpu) -> str:
    """Name a GPU's model as people say it: `H100 80G`; `GPU` where its name is not known.

    The maker's and the board's words go; the memory, in 2^30 bytes, is rounded to what is printed on the box.
    """
    return model_of(gpu.name, gpu.total_mem)


@lru_cache(maxsize=1024)
def model_of(full_name: str | None, total_mem: float | None) -> str:
    """Name a model by a GPU's full name and its memory, in 2^20 bytes: see `model`."""
    if full_name is None:
        return "GPU"
    dropped = {
        "nvidia",
        "geforce",
        "tesla",
        "quadro",
        "hbm2",
        "hbm2e",
        "hbm3",
        "hbm3e",
        "sxm",
        "sxm2",
        "sxm3",
        "sxm4",
        "sxm5",
        "generation",
    }
    words = [word for word in full_name.replace("-", " ").split() if word.lower() not in dropped]
    short = " ".join(
        word for word in words if not (word.upper().endswith("GB") and word[:-2].isdigit()) and word.upper() != "PCIE"
    )
    if total_mem is None:
        return short or full_name
    return f"{short or full_name} {_box_gib(total_mem)}G"


def model_by_name(full_name: str) -> str:
    """Name a model where nothing but the full name is kept, as in history: the memory is what that name says of it."""
    size = re.search(r"([0-9]{1,4})\s?GB\b", full_name)
    return model_of(full_name, None if size is None else 1024 * float(size[1]))


def _box_gib(mib: float) -> int:
    """Round to the size the maker prints: drivers report up to 7 % less (81,559 MiB of an 80 GB card is 79.6)."""
    gib = mib / 1024
    sizes = (2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 128, 141, 180, 192, 256, 288)
    return next((size for size in sizes if 0.93 * size <= gib <= 1.03 * size), round(gib))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the sentence counts, over some hosts. Tallies of parts add up to the tally of the whole."""

    hosts: int = 0
    gpus: int = 0
    unreadable: int = 0
    silent: Counter[State] = field(default_factory=Counter)
    states: Counter[State] = field(default_factory=Counter)
    free: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Tally") -> "Tally":
        return self._with(other, 1)

    def __sub__(self, other: "Tally") -> "Tally":
        return self._with(other, -1)

    def _with(self, other: "Tally", sign: int) -> "Tally":
        take = operator.add if sign > 0 else operator.sub  # of counters, both leave out what has come to 0
        return Tally(
            hosts=self.hosts + sign * other.hosts,
            gpus=self.gpus + sign * other.gpus,
            unreadable=self.unreadable + sign * other.unreadable,
            silent=take(self.silent, other.silent),
            states=take(self.states, other.states),
            free=take(self.free, other.free),
        )


def tally(host: HostView) -> Tally:
    """Count one host."""
    return Tally(
        hosts=1,
        gpus=len(host.gpus),
        unreadable=int(host.seen.gpu_error is not None and host.silent is None),
        silent=Counter() if host.silent is None else Counter((host.silent,)),
        states=Counter(gpu.state for gpu in host.gpus),
        free=Counter(model(gpu.gpu) for gpu in host.gpus if gpu.state == "free"),
    )


def tally_of(hosts: Iterable[tuple[HostView, Sequence[bool]]]) -> Tally:
    """Count some GPUs of some hosts: those that are marked; in a tenth of the time that adding tallies takes."""
    count = gpus = unreadable = 0
    silent: Counter[State] = Counter()
    states: Counter[State] = Counter()
    free: Counter[str] = Counter()
    for host, marks in hosts:
        count += 1
        if host.silent is not None:
            silent[host.silent] += 1
        elif host.seen.gpu_error is not None:
            unreadable += 1
        for gpu, is_marked in zip(host.gpus, marks, strict=True):
            if is_marked:
                gpus += 1
                states[gpu.state] += 1
                if gpu.state == "free":
                    free[model(gpu.gpu)] += 1
    return Tally(hosts=count, gpus=gpus, unreadable=unreadable, silent=silent, states=states, free=free)


def sentence_of(hosts: Iterable[HostView]) -> str:
    """Say the sentence of some hosts."""
    return sentence(sum(map(tally, hosts), Tally()))


def sentence(total: Tally) -> str:
    """Say what is free and what is wrong, as in `31 of 64 GPUs free: 15 × H100 80G. 5 held. 1 of 8 hosts stale.`."""
    if not total.hosts:
        return "No host has reported yet."
    of_hosts = f"of {total.hosts} {_plural('host', total.hosts)}"
    parts = [f"{total.hosts} {_plural('host', total.hosts)}, no GPU"]
    if total.gpus:
        parts = [f"{total.states['free']} of {total.gpus} {_plural('GPU', total.gpus)} free"]
        if total.free:
            by_count = sorted(total.free.items(), key=lambda item: (-item[1], item[0]))
            parts[0] += ": " + ", ".join(f"{count} × {name}" for name, count in by_count)
    parts += [f"{total.states[state]} {word}" for state, word in _WORDS.items() if total.states[state]]
    if total.unreadable:
        parts.append(f"{total.unreadable} {of_hosts} cannot read {'its' if total.unreadable == 1 else 'their'} GPUs")
    parts += [f"{total.silent[state]} {of_hosts} {state}" for state in _SILENT if total.silent[state]]
    return ". ".join(parts) + "."


_WORDS: dict[State, str] = {"held": "held", "error": "in error", "drained": "drained", "unknown": "unknown"}
_SILENT: tuple[State, ...] = ("stale", "down")


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"


NAMED_GPUS = 8
"""GPUs that the sentence on one host names one by one."""


class Standing(NamedTuple):
    """How a host stands, in a sentence that may end with a moment (Unix s): `Free since` 09:14."""

    text: str
    at: float | None


def standing(host: HostView) -> Standing:
    """Say of one host what somebody who looks for a GPU asks first."""
    free = [gpu.free_since for gpu in host.gpus if gpu.state == "free"]
    indices = [gpu.gpu.index for gpu in host.gpus if gpu.state == "free"]
    idle = [gpu.idle_since for gpu in host.gpus if gpu.state == "held"]
    count = len(host.gpus)
    if host.silent is not None:
        return Standing("Silent since", host.seen.received_at)
    if not count:
        return Standing("No GPU" if host.seen.gpu_error is None else "Its GPUs cannot be read", None)
    if len(free) == count:
        return Standing("Free since", max((at for at in free if at is not None), default=None))
    if free:
        earliest = min((at for at in free if at is not None), default=None)
        if len(free) == 1:
            return Standing(f"GPU {indices[0]} is free since", earliest)
        which = f"GPUs {', '.join(map(str, indices))}" if len(free) <= NAMED_GPUS else f"{len(free)} GPUs"
        return Standing(f"{which} are free, the longest since", earliest)
    if idle:
        earliest = min((at for at in idle if at is not None), default=None)
        return Standing(f"No GPU free; {len(idle)} held, without work since", earliest)
    busy = sum(gpu.state == "busy" for gpu in host.gpus)
    if busy == count:
        return Standing("Busy" if count == 1 else f"All {count} GPUs busy", None)
    return Standing(f"No GPU free; {busy} of {count} busy", None)
