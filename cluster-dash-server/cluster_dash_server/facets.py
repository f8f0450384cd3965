"""What a filter leaves to choose from: how many GPUs of each state, model, partition, label and user. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.filters import Alternative, Filter, Term, labels, partitions, users_of
from cluster_dash_server.states import STATES
from cluster_dash_server.summary import Tally, model, tally_of

MOST_VALUES = 20
"""Values of one facet: those with the most GPUs, and those that the filter names."""


KEYS = ("state", "model", "part", "label", "user")
"""The keys that there are facets of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One value of a facet.

    Attributes:
        value: the text that is compared: `free`, `H100 80G`, `rack=r1`.
        count: GPUs that have it and that the rest of the filter means.
        is_chosen: the filter names it.
        q: the filter with this value added, or taken away where it is chosen.
    """

    value: str
    count: int
    is_chosen: bool
    q: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facets:
    """The facets of a filter.

    Attributes:
        choices: by key, the values with the most GPUs first; states in their own order.
        more: by key, how many values are left out.
        matching: what the filter means in all.
    """

    choices: Mapping[str, tuple[Choice, ...]]
    more: Mapping[str, int]
    matching: Tally


def count(hosts: Iterable[HostView], wish: Filter, now: float) -> Facets:
    """Count the facets of a filter.

    A facet leaves out the filter's own terms of its key: who has chosen one state sees what the others would give.
    """
    own = {key: tuple(term for term in wish.terms if term.key == key) for key in KEYS}
    rest = wish.of(tuple(term for term in wish.terms if term.key not in KEYS))
    tests = {key: wish.of(terms) for key, terms in own.items() if terms}
    counts: dict[str, Counter[str]] = {key: Counter() for key in KEYS}
    meant: list[tuple[HostView, Sequence[bool]]] = []
    for host in hosts:
        by_rest = rest.means(host, now)
        if by_rest is None:
            continue
        passed = {key: test.means(host, now) or [False] * len(host.gpus) for key, test in tests.items()}
        whole = wish.means(host, now)
        if whole is not None:
            meant.append((host, whole))
        _count_host(host, by_rest, passed, counts)
    choices, more = {}, {}
    for key in KEYS:
        choices[key], more[key] = _choices(key, counts[key], wish)
    return Facets(choices=choices, more=more, matching=tally_of(meant))


def _count_host(
    host: HostView, by_rest: Sequence[bool], passed: Mapping[str, Sequence[bool]], counts: dict[str, Counter[str]]
) -> None:
    of_host: dict[str, int] = {"part": 0, "label": 0}
    for place, gpu in enumerate(host.gpus):
        if not by_rest[place]:
            continue
        failed = [key for key, marks in passed.items() if not marks[place]]
        if len(failed) > 1:
            continue
        for key in failed or KEYS:
            if key in of_host:
                of_host[key] += 1
            else:
                _count_gpu(key, gpu, counts[key])
    if of_host["part"]:
        for part in partitions(host):
            counts["part"][part] += of_host["part"]
    if of_host["label"]:
        for each in labels(host):
            counts["label"][each] += of_host["label"]


def _count_gpu(key: str, gpu: GpuView, counts: Counter[str]) -> None:
    if key == "state":
        counts[gpu.state] += 1
    elif key == "model":
        counts[model(gpu.gpu)] += 1
    else:
        for user in users_of(gpu):
            counts[user] += 1


def _choices(key: str, counts: Counter[str], wish: Filter) -> tuple[tuple[Choice, ...], int]:
    chosen = {
        each.text.lower(): each
        for term in wish.terms
        if term.key == key and not term.is_negated
        for each in term.alternatives
    }
    if key == "state":
        values: Sequence[str] = STATES[::-1]
    else:
        ordered = sorted(counts, key=lambda value: (-counts[value], value))
        values = [value for place, value in enumerate(ordered) if place < MOST_VALUES or value.lower() in chosen]
    return (
        tuple(
            Choice(
                value=value, count=counts[value], is_chosen=value.lower() in chosen, q=str(toggled(wish, key, value))
            )
            for value in values
        ),
        0 if key == "state" else len(counts) - len(values),
    )


def toggled(wish: Filter, key: str, value: str) -> Filter:
    """Return a filter with a value of a facet added, or taken away where the filter names it."""
    own = [term for term in wish.terms if term.key == key and not term.is_negated]
    is_chosen = any(_names(each, value) for term in own for each in term.alternatives)
    terms: list[Term] = []
    for term in wish.terms:
        if term in own and is_chosen:
            left = tuple(each for each in term.alternatives if not _names(each, value))
            terms += [term._replace(alternatives=left)] if left else []
        elif own and term is own[0]:
            terms.append(term._replace(alternatives=(*term.alternatives, chosen(key, value))))
        else:
            terms.append(term)
    if not own:
        terms.append(only(key, value))
    return wish.of(tuple(terms))


def _names(alternative: Alternative, value: str) -> bool:
    return alternative.text.lower() == value.lower()


def only(key: str, value: str) -> Term:
    """Return the term that means one value of a key."""
    return Term((chosen(key, value),), is_negated=False)


def exactly(key: str, value: str) -> Term:
    """Return the term that means one value of a key as it stands, whatever is in it."""
    return Term((Alternative(key, ":", value, is_exact=True),), is_negated=False)


def chosen(key: str, value: str) -> Alternative:
    """Return what means one value of a key and no other; in quotes where it would mean more without them."""
    is_plain = key != "model" and value.replace("_", "").replace("-", "").replace("=", "").replace(".", "").isalnum()
    return Alternative(key, ":", value, is_exact=not is_plain)
