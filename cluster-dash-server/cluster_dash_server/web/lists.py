"""Lists for people in a terminal and for scripts: free GPUs and events, as JSON, text or CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from flask import Blueprint, Response, request

from cluster_dash_server import free
from cluster_dash_server.cluster import Cluster, GpuView
from cluster_dash_server.events import EventLog, silences
from cluster_dash_server.hostlist import HostlistError, matcher
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.store import Event
from cluster_dash_server.summary import model
from cluster_dash_server.viewers import needs
from cluster_dash_server.web import words
from cluster_dash_server.web.api import failure, json_response

FREE_COLUMNS = ("host", "index", "uuid", "model", "free_mem", "total_mem", "since")
EVENT_COLUMNS = ("at", "host", "gpu", "kind", "code", "text")
MOST_GPUS = 64

_MIB_BY_UNIT = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024}
_SECONDS_BY_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class QueryError(Exception):
    """A query that cannot be answered; the text names the parameter and its mend."""


def blueprint(cluster: Cluster, log: EventLog, clock: Callable[[], float]) -> Blueprint:
    """Build the routes."""
    lists = Blueprint("lists", __name__)

    @lists.errorhandler(QueryError)
    def wrong_query(error: QueryError) -> Response:
        return failure(400, str(error))

    @lists.get("/api/v1/free")
    @needs("state:read")
    def free_gpus() -> Response:
        form = _format("json", "text", "csv")
        wish = free.Wish(
            count=count(request.args.get("count", "1")),
            free_mem=size_mib("mem", request.args.get("mem", "0G")),
            model=request.args.get("model", ""),
        )
        now = clock()
        offers = free.find(cluster.hosts(now), wish)
        if form == "text":
            return Response(free_text(offers, wish, now), mimetype="text/plain")
        gpus = [_free_gpu(offer.host, view) for offer in offers for view in offer.gpus]
        if form == "csv":
            return csv_response(FREE_COLUMNS, gpus)
        hosts = [{"host": offer.host, "count": len(offer.gpus)} for offer in offers]
        return json_response({"at": now, "gpus": gpus, "hosts": hosts})

    @lists.get("/api/v1/events")
    @needs("state:read")
    def events() -> Response:
        form = _format("json", "csv")
        now = clock()
        hosts = request.args.get("host")
        begin = moment("from", request.args.get("from", "0"), now)
        end = moment("to", request.args.get("to", "now"), now)
        try:
            meant = None if hosts is None else matcher(hosts)
        except HostlistError as error:
            raise QueryError(f"host: {printable(str(error))}") from None
        found = [
            _event(event)
            for event in so_far(cluster, log, now)
            if begin <= event.at <= end and (meant is None or meant(event.host))
        ]
        return csv_response(EVENT_COLUMNS, found) if form == "csv" else json_response({"at": now, "events": found})

    return lists


def so_far(cluster: Cluster, log: EventLog, now: float, host: str | None = None) -> list[Event]:
    """Return the events of a host, or of all, newest first, with the silences that last."""
    if host is None:
        views = cluster.hosts(now)
    else:
        view = cluster.host(host, now)
        views = [] if view is None else [view]
    found = log.newest(None if host is None else [host]) + silences(views, cluster.thresholds)
    return sorted(found, key=lambda event: -event.at)


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
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "\t".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


# ----------------------------------------------------------------------------------------------- what was asked


def _format(*known: str) -> str:
    form = request.args.get("format", known[0])
    return form if form in known else _refuse("format", form, f"one of {', '.join(known)}")


def _refuse(name: str, got: str, expected: str) -> NoReturn:
    raise QueryError(f"{name}: got {printable(got, 64)!r}, expected {expected}")


def count(text: str) -> int:
    """Read how many GPUs are wished.

    Raises:
        QueryError: no whole number, or out of its range.
    """
    if text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MOST_GPUS:
        return int(text)
    return _refuse("count", text, f"a whole number from 1 to {MOST_GPUS}")


def size_mib(name: str, text: str) -> float:
    """Read an amount of memory such as `40G` (40 × 2^30 bytes), to 2^20 bytes.

    Raises:
        QueryError: it is none; a number without its unit is none, for nobody could say what it means.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s?([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        return _refuse(name, text, "a size with its unit, such as 40G or 512M")
    return float(match[1]) * _MIB_BY_UNIT[match[2].upper()]


def moment(name: str, text: str, now: float) -> float:
    """Read a moment: Unix s, `now`, or `now-6h`; to Unix s.

    Raises:
        QueryError: it is none of these.
    """
    # a + in a query means a blank
    match = re.fullmatch(r"now(?:([-+ ])([0-9]{1,9})([smhdw]))?", text)
    if match is not None:
        seconds = int(match[2] or 0) * _SECONDS_BY_UNIT[match[3] or "s"]
        return now - seconds if match[1] == "-" else now + seconds
    if re.fullmatch(r"-?[0-9]{1,12}(?:\.[0-9]{1,9})?", text):
        return float(text)
    return _refuse(name, text, "Unix seconds, now, or now-6h")


# ---------------------------------------------------------------------------------------------------------- CSV


def csv_response(columns: Sequence[str], rows: Sequence[Json]) -> Response:
    """Answer with a table; a text that a spreadsheet would take for a formula gets a ' in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return Response(text.getvalue(), mimetype="text/csv")


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
