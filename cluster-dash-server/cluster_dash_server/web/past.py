"""The past as requests ask for it: of which time, of which hosts, GPUs and users."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo

from flask import Blueprint, Response, abort, request

from cluster_dash_server.cluster import Cluster
from cluster_dash_server.history import bygone
from cluster_dash_server.hostlist import HostlistError, expand, matcher
from cluster_dash_server.snapshot import printable
from cluster_dash_server.store import By, Event, Ledger, Series, SeriesQuery, Store, StoreError, UseQuery
from cluster_dash_server.web import views
from cluster_dash_server.web.answers import failure, html
from cluster_dash_server.web.parameters import QueryError, digits, moment, span
from cluster_dash_server.when import Span

MOST_HOSTS = 1_000
"""Hosts of which a page asks at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a request asks of the past.

    Attributes:
        hosts: None: of all; so for the others.
        users: by GPU, only while one of them had it.
    """

    span: Span
    by: By
    hosts: tuple[str, ...] | None
    gpus: tuple[int, ...] | None
    models: tuple[str, ...] | None
    users: tuple[str, ...] | None
    step_seconds: float | None

    def of(self, metric: str) -> SeriesQuery:
        """Ask for a metric."""
        return SeriesQuery(
            metric=metric,
            begin=self.span.begin,
            end=self.span.end,
            by=self.by,
            step_seconds=self.step_seconds,
            hosts=self.hosts,
            gpus=self.gpus,
            models=self.models,
            users=self.users if self.by == "user" else None,
        )


class Past:
    """The past of this cluster, as requests ask for it.

    Args:
        cluster: the live view: which hosts there are.
        store: the figures.
        ledger: events, and who had which GPU.
        clock: Unix s.
        zone: in which days begin.
        alerts: gives the alerts that were there between two moments, as marks.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        ledger: Ledger,
        clock: Callable[[], float],
        zone: tzinfo,
        alerts: Callable[[float, float], Sequence[Event]] = lambda begin, end: (),
    ) -> None:
        self.alerts = alerts
        self.cluster = cluster
        self.store = store
        self.ledger = ledger
        self.clock = clock
        self.zone = zone

    def span(self, default: str = "now-24h") -> Span:
        """Return which time the request asks for.

        Raises:
            QueryError: no such time.
        """
        return span(default, self.clock(), self.zone)

    def question(self, by: By, asked: Span) -> Question:
        """Return what the request asks for, but for the metric.

        Raises:
            QueryError: a parameter that cannot be understood.
        """
        return Question(
            span=asked,
            by=by,
            hosts=self.hosts(),
            gpus=_numbers("gpu"),
            models=_texts("model"),
            users=_texts("user"),
            step_seconds=_step(),
        )

    def hosts(self) -> tuple[str, ...] | None:
        """Return the hosts that the request names: by name, hostlist or pattern; None: it names none.

        Raises:
            QueryError: a hostlist that cannot be read.
        """
        text = request.args.get("host")
        if not text:
            return None
        try:
            known = self.cluster.names()
            meant = matcher(text, known)
            found = [name for name in sorted(known) if meant(name)]
            return tuple(found) or tuple(expand(text)[:MOST_HOSTS])  # one that was forgotten has its past still
        except HostlistError as error:
            raise QueryError(f"host: {printable(str(error))}") from None

    def view_at(self, text: str) -> views.View:
        """Return the cluster as it stood at a moment, through the filter of the request.

        Raises:
            QueryError: no such moment.
        """
        at = moment("at", text, self.clock(), self.zone)
        try:
            hosts = bygone.hosts_at(self.store, at, self.cluster.thresholds)
        except StoreError as error:
            abort(503, str(error))
        return views.look(hosts, request.args.get("q", "").strip(), at)

    def series(self, question: Question, metric: str) -> list[Series]:
        """Answer a question; only while one of its users had the GPU, where it names some and asks by GPU."""
        if question.by == "gpu" and question.users is not None:
            return self._of_users(question, metric, question.users)
        return self.store.series(question.of(metric))

    def _of_users(self, question: Question, metric: str, users: tuple[str, ...]) -> list[Series]:
        had: dict[tuple[str, int], list[tuple[float, float]]] = {}
        uses = self.ledger.uses(
            UseQuery(
                begin=question.span.begin, end=question.span.end, hosts=question.hosts, gpus=question.gpus, users=users
            )
        )
        for use in uses:
            had.setdefault((use.host, use.gpu), []).append((use.from_at, use.to_at))
        if not had:
            return []
        question = replace(question, hosts=tuple(sorted({host for host, _ in had})))
        found = []
        for each in self.store.series(question.of(metric)):
            times = had.get((each.host or "", -1 if each.gpu is None else each.gpu))
            if times:
                found.append(_masked(each, times))
        return found


def _masked(series: Series, times: Sequence[tuple[float, float]]) -> Series:
    step = series.step_seconds
    inside = [any(begin < at + step and at < end for begin, end in times) for at in series.t]

    def only(values: Sequence[float | None]) -> list[float | None]:
        return [value if had else None for value, had in zip(values, inside, strict=True)]

    return replace(series, min=only(series.min), mean=only(series.mean), max=only(series.max))


def say_what_fails(routes: Blueprint) -> None:
    """Say in the shape that the caller reads what cannot be answered: a query, or history itself."""

    @routes.errorhandler(StoreError)
    def no_history(error: StoreError) -> Response:
        if request.path.startswith("/api/"):
            return failure(503, f"history: {error}")
        return html("no_history.html", page=request.path.strip("/"), why=str(error))


def _texts(name: str) -> tuple[str, ...] | None:
    found = tuple(text for text in request.args.getlist(name) if text)
    return found or None


def _numbers(name: str) -> tuple[int, ...] | None:
    text = request.args.get(name)
    if not text:
        return None
    read = [digits(part.strip(), 4) for part in text.split(",")]
    found = tuple(each for each in read if each is not None)
    if len(found) < len(read) or len(read) > 64:
        raise QueryError(f"{name}: got {printable(text, 64)!r}, expected a number such as 0, or some: 0,3")
    return found


def _step() -> float | None:
    text = request.args.get("step")
    if not text:
        return None
    try:
        seconds = float(text) if len(text) <= 12 else 0.0
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 400 * 86_400:
        raise QueryError(f"step: got {printable(text, 64)!r}, expected seconds, from 1 on")
    return seconds
