"""Lists for people in a terminal and for scripts: free GPUs and events, as JSON, text or CSV."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, tzinfo

from flask import Blueprint, Response, request

from cluster_dash_server import free
from cluster_dash_server.access.viewers import needs
from cluster_dash_server.cluster import Cluster, GpuView
from cluster_dash_server.events import EventLog, silences
from cluster_dash_server.hostlist import HostlistError, matcher
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.store import Event, EventQuery, Ledger, StoreError
from cluster_dash_server.summary import model
from cluster_dash_server.web import views, words
from cluster_dash_server.web.answers import in_columns, json_response
from cluster_dash_server.web.export import csv_response
from cluster_dash_server.web.parameters import QueryError, choice, count, moment, size_mib
from cluster_dash_server.web.views import View

FREE_COLUMNS = ("host", "index", "uuid", "model", "free_mem", "total_mem", "since")
EVENT_COLUMNS = ("at", "host", "gpu", "kind", "code", "text")
MOST_EVENTS = 100_000
"""Of history in one answer; an export has them all."""
SILENT = "host_silent"
"""The kind of event that nobody posts: it follows from the hosts as they stand."""


def blueprint(
    cluster: Cluster, log: EventLog, ledger: Ledger, clock: Callable[[], float], zone: tzinfo = UTC
) -> Blueprint:
    """Build the routes.

    Args:
        cluster: the live view.
        log: the newest events.
        ledger: all that are kept.
        clock: Unix s.
        zone: in which days begin.
    """
    lists = Blueprint("lists", __name__)

    @lists.get("/api/v1/free")
    @needs("state:read")
    def free_gpus() -> Response:
        form = choice("format", ("json", "text", "csv"))
        wish = free.Wish(
            count=count(request.args.get("count", "1")),
            free_mem=size_mib("mem", request.args.get("mem", "0G")),
            model=request.args.get("model", ""),
        )
        now = clock()
        view = views.asked(cluster.hosts(now), now)
        offers = free.find(view.narrowed, wish)
        if form == "text":
            return Response(views.problems_text(view) + free_text(offers, wish, now), mimetype="text/plain")
        gpus = [_free_gpu(offer.host, each) for offer in offers for each in offer.gpus]
        if form == "csv":
            return _csv(FREE_COLUMNS, gpus)
        hosts = [{"host": offer.host, "count": len(offer.gpus)} for offer in offers]
        return json_response({"at": now, "gpus": gpus, "hosts": hosts, **said(view)})

    @lists.get("/api/v1/events")
    @needs("state:read")
    def events() -> Response:
        form = choice("format", ("json", "csv"))
        now = clock()
        hosts, kind = request.args.get("host"), request.args.get("kind")
        begin = moment("from", request.args.get("from") or "0", now, zone)
        end = moment("to", request.args.get("to") or "now", now, zone)
        try:
            meant = None if hosts is None else matcher(hosts, cluster.names())
        except HostlistError as error:
            raise QueryError(f"host: {printable(str(error))}") from None
        # all hosts are looked at only where somebody asks for what they say
        needs_hosts = request.args.get("q", "").strip() or kind in (None, SILENT)
        view = views.asked(cluster.hosts(now) if needs_hosts else [], now)
        names = {host.host for host in view.hosts} if view.wish.terms else None
        found = _kept(ledger, log.newest(begin=begin, end=end), begin, end)
        if kind in (None, SILENT):
            lasting = [event for event in silences(view.every, cluster.thresholds) if begin <= event.at <= end]
            found = sorted(found + lasting, key=lambda event: -event.at)
        found = [
            event
            for event in found
            if (meant is None or meant(event.host))
            and (kind is None or event.kind == kind)
            and (names is None or event.host in names)
        ]
        return (
            _csv(EVENT_COLUMNS, map(_event, found))
            if form == "csv"
            else json_response({"at": now, "events": [_event(event) for event in found], **said(view)})
        )

    return lists


def _kept(ledger: Ledger, newest: list[Event], begin: float, end: float) -> list[Event]:
    """Return the newest events and those of history, newest first; each once."""
    try:
        kept = ledger.events(EventQuery(begin=begin, end=end, most=MOST_EVENTS))
    except StoreError:
        return newest  # the pages and /readyz say what is wrong with history
    return sorted({*newest, *kept}, key=lambda event: -event.at)


def said(view: View) -> Json:
    """Return what a list says of its filter, beside its rows: nothing where it was asked for none."""
    return {"q": str(view.wish), "problems": list(view.wish.problems)} if view.q else {}


def _csv(columns: Sequence[str], rows: Iterable[Json]) -> Response:
    return csv_response(columns, ([row[column] for column in columns] for row in rows))


def _event(event: Event) -> Json:
    return {name: getattr(event, name) for name in EVENT_COLUMNS}


def _free_gpu(host: str, view: GpuView) -> Json:
    gpu = view.gpu
    said = (host, gpu.index, gpu.uuid, model(gpu), free.free_mem(view), gpu.total_mem, view.free_since)
    return dict(zip(FREE_COLUMNS, said, strict=True))


def free_text(offers: Sequence[free.Offer], wish: free.Wish, now: float) -> str:
    """Draw the offers for `curl`: a line for each model of each host, parted by tabs."""
    if not offers:
        return f"no host has {words.plural(wish.count, 'free GPU')} that fit\n"
    lines = [("Host", "Free", "Model", "GPUs", "Memory free", "Free for")]
    for offer in offers:
        for name in dict.fromkeys(model(view.gpu) for view in offer.gpus):
            alike = [view for view in offer.gpus if model(view.gpu) == name]
            least = min((mib for view in alike if (mib := free.free_mem(view)) is not None), default=None)
            since = max((view.free_since or now for view in alike), default=now)
            indices = ",".join(str(view.gpu.index) for view in alike)
            memory = words.DASH if least is None else f"{words.gib(least)} GiB"
            lines.append(
                (printable(offer.host), str(len(alike)), printable(name, 40), indices, memory, words.age(now - since))
            )
    return in_columns(lines)
