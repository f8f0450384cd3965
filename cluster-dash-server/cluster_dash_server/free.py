"""Finding free GPUs: which hosts have enough of them, best fit first. Pure; the pages and the API ask here."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.hostlist import compress, natural
from cluster_dash_server.summary import model


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody looks for.

    Attributes:
        count: GPUs on one host.
        free_mem: memory that must be free on each, in 2^20 bytes.
        model: words that the name of each must hold, in any case; empty: any model.
    """

    count: int = 1
    free_mem: float = 0
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A host that has what is wished: all its GPUs that fit, the smallest first."""

    host: str
    gpus: tuple[GpuView, ...]


def free_mem(view: GpuView) -> float | None:
    """Return how much memory of a GPU is free, in 2^20 bytes; None where that is not known."""
    used, total = view.gpu.used_mem, view.gpu.total_mem
    return None if used is None or total is None else max(0.0, total - used)


def find(hosts: Iterable[HostView], wish: Wish) -> list[Offer]:
    """Return the hosts that have enough free GPUs that fit.

    The best fit comes first: cards of one model before a mixture, then the smallest, then the host on which the fewest
    stay behind, so that large cards and whole hosts are left to those who need them; then by name.
    """
    words = wish.model.lower().split()
    offers = []
    for host in hosts:
        gpus = [view for view in host.gpus if view.state == "free" and _fits(view, wish.free_mem, words)]
        if len(gpus) >= wish.count:
            offers.append(Offer(host=host.host, gpus=tuple(sorted(gpus, key=_size))))

    def order(offer: Offer) -> tuple[bool, float, int, str]:
        taken = offer.gpus[: wish.count]
        is_mixed = any(view.gpu.name != taken[0].gpu.name for view in taken)
        return is_mixed, _size(taken[-1])[0], len(offer.gpus), natural(offer.host)

    return sorted(offers, key=order)


def _fits(view: GpuView, least_mem: float, words: Sequence[str]) -> bool:
    if least_mem > 0 and (free_mem(view) or 0) < least_mem:
        return False
    name = f"{view.gpu.name or ''} {model(view.gpu)}".lower()
    return all(word in name for word in words)


def _size(view: GpuView) -> tuple[float, int]:
    """Order GPUs by size; one whose size is not known counts as the largest."""
    return (float("inf") if view.gpu.total_mem is None else view.gpu.total_mem, view.gpu.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The free GPUs of one model: how many, and on which hosts.

    Attributes:
        asks: how a job asks Slurm for one of them, as most of them are asked for; None where one is not Slurm's.
    """

    model: str
    count: int
    hosts: str
    asks: str | None = None


def cards(hosts: Iterable[HostView]) -> list[Card]:
    """Return a card for each model of which a GPU is free, the most first; hosts as a hostlist."""
    free: dict[str, list[HostView]] = {}
    for host in hosts:
        for view in host.gpus:
            if view.state == "free":
                free.setdefault(model(view.gpu), []).append(host)
    by_count = sorted(free.items(), key=lambda each: (-len(each[1]), each[0]))
    return [
        Card(model=name, count=len(on), hosts=compress([host.host for host in on]), asks=_asks(on))
        for name, on in by_count
    ]


def _asks(hosts: Iterable[HostView]) -> str | None:
    said = [() if host.place is None else host.place.asks for host in hosts]
    return Counter(chain.from_iterable(said)).most_common(1)[0][0] if all(said) else None
