"""Any view as CSV or JSON: all rows that its filter means, with the filter and the time in the head."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flask import Response

from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.filters import jobs_of, users_of
from cluster_dash_server.free import free_mem
from cluster_dash_server.snapshot import Json, cell, dumps
from cluster_dash_server.summary import model
from cluster_dash_server.web.views import View
from cluster_dash_server.when import Span

FORMS = ("html", "csv", "json")
"""What a page can be had as, by `?format=`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows to take away: names of columns with their units, and a value each; None where it is not known."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]


def answer(form: str, table: Table, view: View, name: str) -> Response:
    """Answer with a table of the live view as `csv` or `json`.

    Args:
        form: which of them.
        table: what is told.
        view: says which filter and which time.
        name: of the cluster, for the head.
    """
    asked = f"q: {view.wish}" if view.wish.terms else "q: everything"
    return told(form, table, view.said, [f"# {name}", _at(view.now), asked, *view.wish.problems])


def of_asked(
    form: str, table: Table, now: float, name: str, *, asked: Mapping[str, str], span: Span | None = None
) -> Response:
    """Answer with a table as `csv` or `json`, with what of the request chose its rows.

    Args:
        form: which of them.
        table: what is told.
        now: Unix s.
        name: of the cluster, for the head.
        asked: by the names of the parameters; empty: nothing was.
        span: in which time the rows lie; None: they are of now.
    """
    chosen = {key: value for key, value in asked.items() if value}
    moments = {} if span is None else {"from": span.begin, "to": span.end}
    head = [f"# {name}", _at(now), *(_at(at, word) for word, at in moments.items())]
    return told(
        form, table, {"at": now, **moments, **chosen}, [*head, *(f"{key}: {each}" for key, each in chosen.items())]
    )


def told(form: str, table: Table, said: Json, head: Sequence[str]) -> Response:
    """Answer with a table as `csv` with a head, or as `json` with what is said beside the rows."""
    if form == "json":
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        return Response(dumps({**said, "rows": rows}) + b"\n", mimetype="application/json")
    at = datetime.fromtimestamp(said["at"], UTC)
    response = csv_response(table.columns, table.rows, head=head)
    response.headers["Content-Disposition"] = f'attachment; filename="cluster-dash-{at:%Y%m%d-%H%M%S}.csv"'
    return response


def _at(moment: float, word: str = "at") -> str:
    return f"{word} {datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"


def csv_response(
    columns: Sequence[str], rows: Iterable[Sequence[object]], head: Sequence[str] | None = None
) -> Response:
    """Answer with a table; a text that a spreadsheet would take for a formula gets a ' in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    if head is not None:
        writer.writerow([cell(each) for each in head])
    writer.writerow([cell(column) for column in columns])
    writer.writerows([cell(value) for value in row] for row in rows)
    return Response(text.getvalue(), mimetype="text/csv")


HOST_COLUMNS = (
    *("host", "state", "state_count", "last_at", "interval_seconds", "gpus", "free_gpus", "models", "users"),
    *(
        "gpu_util",
        "used_mem",
        "total_mem",
        "cpu_percent",
        "num_cpus",
        "load_avg_1",
        "memory_used_gb",
        "memory_total_gb",
    ),
    *("mole_version", "gpu_error"),
)
GPU_COLUMNS = (
    *("host", "index", "uuid", "model", "name", "state", "since", "users", "jobs", "gpu_util", "used_mem", "free_mem"),
    *("total_mem", "temperature_c", "power_w", "error"),
)


def hosts(view: View) -> Table:
    """Tell of the hosts of a view: memory of GPUs in 2^20 bytes, of the host in 2^30, use in percent."""
    return Table(columns=HOST_COLUMNS, rows=map(_host, view.hosts))


def gpus(view: View) -> Table:
    """Tell of the GPUs of a view: memory in 2^20 bytes, use in percent."""
    return Table(columns=GPU_COLUMNS, rows=(gpu_row(host, gpu) for host, gpu in view.gpus))


def _host(host: HostView) -> Sequence[object]:
    seen, gpus = host.seen, [view.gpu for view in host.gpus]
    utils = [gpu.gpu_util for gpu in gpus if gpu.gpu_util is not None]
    return (
        *(host.host, host.headline.state, host.headline.count, seen.received_at, host.interval_seconds, len(gpus)),
        sum(view.state == "free" for view in host.gpus),
        list(dict.fromkeys(map(model, gpus))),
        list(dict.fromkeys(user for view in host.gpus for user in users_of(view))),
        sum(utils) / len(utils) if utils else None,
        *(_sum([gpu.used_mem for gpu in gpus]), _sum([gpu.total_mem for gpu in gpus])),
        *(seen.cpu_percent, seen.num_cpus, seen.load_avg_1, seen.memory_used_gb, seen.memory_total_gb),
        *(seen.mole_version, seen.gpu_error),
    )


def gpu_row(host: HostView, view: GpuView) -> Sequence[object]:
    """Return one GPU, by `GPU_COLUMNS`."""
    gpu = view.gpu
    return (
        *(host.host, gpu.index, gpu.uuid, model(gpu), gpu.name, view.state, view.since),
        None if gpu.users is None else list(users_of(view)),
        list(jobs_of(view)),
        *(gpu.gpu_util, gpu.used_mem, free_mem(view), gpu.total_mem, gpu.temperature_c, gpu.power_w, gpu.error),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
