"""Many hosts on one page: their order, the fifty that are shown, and groups of them. Pure."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster_dash_server import facets
from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.filters import Filter, partitions, users_of
from cluster_dash_server.hostlist import natural
from cluster_dash_server.states import STATES
from cluster_dash_server.summary import model
from cluster_dash_server.web import rows, words
from cluster_dash_server.web.sorting import Orders

ALL_AT_ONCE = 100
"""Up to so many hosts stand on one page …"""
PAGE = 50
"""… and beyond it, so many."""
GROUPED_FROM = 200
"""More hosts than this are shown in groups, until somebody asks for a group or by a filter."""
TOP_USERS = 3
MOST_GROUPS = 100

Row = TypeVar("Row")


def _free(host: HostView) -> int | None:
    return sum([gpu.state == "free" for gpu in host.gpus]) if host.gpus else None


def _busy(host: HostView) -> float | None:
    values = [gpu.gpu.gpu_util for gpu in host.gpus if gpu.gpu.gpu_util is not None and not gpu.is_past]
    return sum(values) / len(values) if values else None


def _memory(host: HostView) -> float | None:
    current = [gpu.gpu for gpu in host.gpus if not gpu.is_past]
    known = [gpu for gpu in current if gpu.used_mem is not None and gpu.total_mem is not None]
    total = sum([gpu.total_mem or 0 for gpu in known])
    return sum([gpu.used_mem or 0 for gpu in known]) / total if total else None


def _users(host: HostView) -> int:
    return len({user for gpu in host.gpus for user in users_of(gpu)})


ORDERS: Orders[HostView] = Orders(
    {
        "host": (lambda host: natural(host.host), False),
        "state": (rows.order, False),
        "model": (lambda host: model(host.gpus[0].gpu).lower() if host.gpus else None, False),
        "free": (_free, True),
        "users": (_users, True),
        "busy": (_busy, True),
        "mem": (_memory, True),
        "cpu": (lambda host: host.seen.cpu_percent, True),
        "load": (lambda host: host.seen.load_avg_1, True),
        "seen": (lambda host: -host.seen.received_at, True),
    },
    usual="worst",
)
"""What hosts can be put in order by, as the columns are called; by itself, what is wrong first, then the most free."""


def order(hosts: Sequence[HostView], sort: str) -> list[HostView]:
    """Put hosts in an order of ORDERS; equal ones by their names."""
    if sort == ORDERS.usual:
        return sorted(hosts, key=rows.order)
    return ORDERS.of(sorted(hosts, key=lambda each: natural(each.host)), sort)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a long list is shown.

    Attributes:
        number: of the page, from 1.
        pages: how many there are.
        first: number of the first row on it, from 1; 0 where there is none.
        last: of the last one.
        total: rows in all.
    """

    number: int
    pages: int
    first: int
    last: int
    total: int

    def of(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows of the list that are on it."""
        return rows[max(0, self.first - 1) : self.last]


def page(total: int, number: str, size: int = PAGE, at_once: int = ALL_AT_ONCE) -> Page:
    """Choose the part of a list that a text asks for; a number that is none, or beyond the end, gives the nearest."""
    if total <= at_once:
        return Page(number=1, pages=1, first=min(1, total), last=total, total=total)
    pages = math.ceil(total / size)
    wished = int(number) if number.isascii() and number.isdigit() and len(number) < 7 else 1
    chosen = min(max(1, wished), pages)
    return Page(number=chosen, pages=pages, first=(chosen - 1) * size + 1, last=min(total, chosen * size), total=total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Hosts and GPUs that have something in common.

    Attributes:
        name: what it is; empty: they have nothing that the others are grouped by.
        q: the filter that shows it alone; None where no filter says it.
        hosts: how many hosts have a GPU of it.
        gpus: how many GPUs it has.
        bar: states with their count and share in percent, as the legend orders them.
        users: who is on the most GPUs of it: `alice ×4`.
    """

    name: str
    q: str | None
    hosts: int
    gpus: int
    free: int
    bar: tuple[tuple[str, int, str], ...]
    users: str


def _parts(host: HostView, gpu: GpuView) -> Sequence[str]:
    return partitions(host) or ("",)


GROUPINGS: Mapping[str, Callable[[HostView, GpuView], Sequence[str]]] = {
    "model": lambda host, gpu: (model(gpu.gpu),),
    "part": _parts,
    "state": lambda host, gpu: (gpu.state,),
}
"""What GPUs can be grouped by, as the filter calls it."""


def grouping(asked: str | None, hosts: int, wish: Filter) -> str | None:
    """Return what a page groups by: what is asked for; of many hosts the models; None: nothing."""
    if asked is not None:
        return asked if asked in GROUPINGS else None
    return "model" if hosts > GROUPED_FROM and not wish.terms else None


def groups(hosts: Sequence[HostView], by: str, wish: Filter) -> list[Group]:
    """Group the GPUs of hosts, the largest group first; states in their own order.

    Args:
        hosts: with those of their GPUs that are meant.
        by: a name of GROUPINGS.
        wish: the filter in force, to which that of a group is added.
    """
    names = GROUPINGS[by]
    states: dict[str, Counter[str]] = {}
    users: dict[str, Counter[str]] = {}
    on: dict[str, set[str]] = {}
    for host in hosts:
        for gpu in host.gpus:
            for name in names(host, gpu):
                if name not in states:
                    states[name], users[name], on[name] = Counter(), Counter(), set()
                states[name][gpu.state] += 1
                on[name].add(host.host)
                counts = users[name]
                for user in users_of(gpu):  # quicker than Counter.update for one or two
                    counts[user] += 1
    found = [_group(name, by, wish, states[name], users[name], len(on[name])) for name in states]
    if by == "state":
        found.sort(key=lambda group: -STATES.index(group.name))
    else:
        found.sort(key=lambda group: (not group.name, -group.gpus, natural(group.name)))
    return found[:MOST_GROUPS]


def _group(name: str, by: str, wish: Filter, states: Counter[str], users: Counter[str], hosts: int) -> Group:
    gpus = states.total()
    top = sorted(users.items(), key=lambda each: (-each[1], each[0]))
    said = ", ".join(f"{words.cut(user, 32)} ×{count}" for user, count in top[:TOP_USERS])
    more = len(top) - TOP_USERS
    return Group(
        name=name,
        q=str(wish.of((*wish.terms, facets.only(by, name)))) if name else None,
        hosts=hosts,
        gpus=gpus,
        free=states["free"],
        bar=tuple(
            (state, states[state], f"{100 * states[state] / gpus:.4g}") for state in STATES[::-1] if states[state]
        ),
        users=said + (f" and {more} more" if more > 0 else ""),
    )
