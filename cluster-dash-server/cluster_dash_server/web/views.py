"""What a request asks to see: its filter, the hosts that it means, and addresses of the same view changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from urllib.parse import quote, urlencode

from flask import request

from cluster_dash_server import facets, filters
from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.facets import Facets
from cluster_dash_server.filters import Filter
from cluster_dash_server.snapshot import Json
from cluster_dash_server.summary import Tally, sentence, tally_of

LONGEST_PARAMETER = 4_000
"""Characters of a parameter that are carried on in links."""


@dataclass(frozen=True, kw_only=True)  # no slots: what is asked for more than once is kept
class View:
    """Some hosts and GPUs: all there are, or those that a filter means.

    Attributes:
        q: the filter as it was written.
        wish: the filter as it was understood.
        now: Unix s.
        every: all hosts there are.
        hosts: those that are meant, in full.
        marks: which GPUs of each of them are meant.
    """

    q: str
    wish: Filter
    now: float
    every: Sequence[HostView]
    hosts: Sequence[HostView]
    marks: Sequence[Sequence[bool]]

    @property
    def gpus(self) -> Iterator[tuple[HostView, GpuView]]:
        """The GPUs that are meant, each with its host."""
        for host, marks in zip(self.hosts, self.marks, strict=True):
            for gpu, is_meant in zip(host.gpus, marks, strict=True):
                if is_meant:
                    yield host, gpu

    @cached_property
    def marks_of(self) -> dict[str, Sequence[bool]]:
        """By host, which of its GPUs are meant."""
        return {host.host: marks for host, marks in zip(self.hosts, self.marks, strict=True)}

    @cached_property
    def narrowed(self) -> list[HostView]:
        """The hosts that are meant, with those of their GPUs that are meant."""
        return [
            host
            if all(marks)
            else replace(host, gpus=tuple([gpu for gpu, is_meant in zip(host.gpus, marks, strict=True) if is_meant]))
            for host, marks in zip(self.hosts, self.marks, strict=True)
        ]

    @cached_property
    def matching(self) -> Tally:
        """What is meant, counted."""
        return tally_of(zip(self.hosts, self.marks, strict=True))

    @cached_property
    def of(self) -> Json:
        """How many hosts and GPUs there are in all."""
        return {"hosts": len(self.every), "gpus": sum(len(host.gpus) for host in self.every)}

    @cached_property
    def sentence(self) -> str:
        """What is free and what is wrong among what is meant."""
        if self.every and not self.hosts:
            return "Nothing matches."
        return sentence(self.matching)

    @cached_property
    def facets(self) -> Facets:
        """What the filter leaves to choose from."""
        return facets.count(self.every, self.wish, self.now)

    @property
    def said(self) -> Json:
        """What a machine is told of the filter, beside the rows."""
        return {"at": self.now, "q": str(self.wish), "problems": list(self.wish.problems)}


def look(hosts: Sequence[HostView], q: str, now: float) -> View:
    """Look at hosts through a filter."""
    wish = filters.parse(q)
    if not wish.terms:
        return View(
            q=q, wish=wish, now=now, every=hosts, hosts=hosts, marks=[[True] * len(host.gpus) for host in hosts]
        )
    meant = [(host, marks) for host in hosts if (marks := wish.means(host, now)) is not None]
    return View(
        q=q, wish=wish, now=now, every=hosts, hosts=[host for host, _ in meant], marks=[marks for _, marks in meant]
    )


def asked(hosts: Sequence[HostView], now: float) -> View:
    """Look at hosts through the filter of the request at hand."""
    return look(hosts, request.args.get("q", "").strip(), now)


def here(**changes: object) -> str:
    """Return the address of the view at hand with some parameters changed; None takes one away.

    Another filter, order or group begins on its first page.
    """
    names = {name: values[0] for name, values in request.args.lists()}
    if changes.keys() - {"page", "format"}:
        names.pop("page", None)
    names.update({name: None if value is None else str(value) for name, value in changes.items()})  # type: ignore[misc]
    kept = {name: value[:LONGEST_PARAMETER] for name, value in names.items() if value}
    return f"{request.script_root}{quote(request.path)}" + (
        f"?{urlencode(kept, quote_via=quote, safe=':,')}" if kept else ""
    )


def problems_text(view: View) -> str:
    """Return what of a filter was not understood, as lines above a table."""
    return "".join(f"! {problem}\n" for problem in view.wish.problems)
