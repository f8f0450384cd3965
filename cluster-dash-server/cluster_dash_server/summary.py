"""The one sentence on top of the page, the title and the text answers: pure."""

from collections import Counter
from collections.abc import Sequence

from cluster_dash_server.cluster import HostView, gpus_of
from cluster_dash_server.snapshot import Gpu


def model(gpu: Gpu) -> str:
    """Name a GPU's model as people say it: `H100 80G`; `GPU` where its name is not known.

    The maker's and the board's words go; the memory, in 2^30 bytes, is rounded to what is printed on the box.
    """
    if gpu.name is None:
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
    words = [word for word in gpu.name.replace("-", " ").split() if word.lower() not in dropped]
    short = " ".join(
        word for word in words if not (word.upper().endswith("GB") and word[:-2].isdigit()) and word.upper() != "PCIE"
    )
    if gpu.total_mem is None:
        return short or gpu.name
    return f"{short or gpu.name} {_box_gib(gpu.total_mem)}G"


def _box_gib(mib: float) -> int:
    """Round to the size the maker prints: drivers report up to 7 % less (81,559 MiB of an 80 GB card is 79.6)."""
    gib = mib / 1024
    sizes = (2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 128, 141, 180, 192, 256, 288)
    return next((size for size in sizes if 0.93 * size <= gib <= 1.03 * size), round(gib))


def sentence(hosts: Sequence[HostView]) -> str:
    """Say what is free and what is wrong, as in `31 of 64 GPUs free: 15 × H100 80G. 5 held. 1 of 8 hosts stale.`."""
    if not hosts:
        return "No host has reported yet."
    gpus = gpus_of(hosts)
    states = Counter(gpu.state for gpu in gpus)
    free = Counter(model(gpu.gpu) for gpu in gpus if gpu.state == "free")
    parts = []
    if gpus:
        parts.append(f"{states['free']} of {len(gpus)} {_plural('GPU', len(gpus))} free")
        if free:
            parts[0] += ": " + ", ".join(f"{count} × {name}" for name, count in free.most_common())
    else:
        parts.append(f"{len(hosts)} {_plural('host', len(hosts))}, no GPU")
    words = {"held": "held", "error": "in error", "drained": "drained", "unknown": "unknown"}
    parts += [f"{states[state]} {word}" for state, word in words.items() if states[state]]  # type: ignore[index]
    unreadable = sum(host.seen.gpu_error is not None and host.silent is None for host in hosts)
    if unreadable:
        parts.append(f"{unreadable} of {len(hosts)} {_plural('host', len(hosts))} cannot read its GPUs")
    for state in ("stale", "down"):
        count = sum(host.silent == state for host in hosts)
        if count:
            parts.append(f"{count} of {len(hosts)} {_plural('host', len(hosts))} {state}")
    return ". ".join(parts) + "."


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"
