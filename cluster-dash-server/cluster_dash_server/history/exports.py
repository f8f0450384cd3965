"""History taken out of its file as CSV or Parquet, while a server writes it or without one. Reads only.

The hour that is not over yet is in `figures`, `uses` and `events`, and in `hours` once it is.
"""

import csv
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, cast

from cluster_dash_server.history.sqlite.opened import OpenHours
from cluster_dash_server.history.sqlite.questions import Reader
from cluster_dash_server.history.sqlite.store import FILE
from cluster_dash_server.hostlist import matcher
from cluster_dash_server.snapshot import cell
from cluster_dash_server.store import (
    Event,
    EventQuery,
    SeriesQuery,
    StoreError,
    Usage,
    UsageQuery,
    Use,
    UseQuery,
)
from cluster_dash_server.when import Span

What = Literal["figures", "hours", "uses", "events"]
Type = Literal["number", "whole", "text"]

FIGURES = ("gpu_util", "memory_util", "used_mem", "temperature_c", "power_w")
_DAY = 86_400
_ROWS_AT_ONCE = 50_000
COLUMNS: Mapping[What, Mapping[str, Type]] = {
    "figures": {
        **{"at": "number", "host": "text", "gpu": "whole", "uuid": "text", "model": "text"},
        **cast(
            dict[str, Type], {f"{name}{ending}": "number" for name in FIGURES for ending in ("_min", "_mean", "_max")}
        ),
    },
    "hours": {
        **{"hour": "number", "user": "text", "host": "text", "model": "text", "held_seconds": "number"},
        **{"busy_seconds": "number", "idle_seconds": "number", "allocated_seconds": "number", "util_seconds": "number"},
    },
    "uses": {
        **{"host": "text", "gpu": "whole", "uuid": "text", "model": "text", "user": "text", "job": "text"},
        **{"from_at": "number", "to_at": "number", "busy_seconds": "number", "idle_seconds": "number"},
        **{"longest_idle_seconds": "number", "peak_mem": "number", "mean_util": "number"},
    },
    "events": {
        **{"at": "number", "host": "text", "gpu": "text", "kind": "text", "code": "text", "text": "text"},
    },
}
"""What can be taken out, and its columns: moments in Unix s, memory in 2^20 bytes; unknown is an empty cell."""


class ExportError(Exception):
    """History that cannot be taken out; the text says why and what would mend it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be taken out.

    Attributes:
        hosts: a name, a hostlist or a pattern; None: all.
        step_seconds: of figures: one row of a GPU for so many seconds.
    """

    what: What
    span: Span
    hosts: str | None
    step_seconds: float


class Answering(Protocol):
    """What answers about hours, uses and events: the file's reader, or the database's."""

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger`."""

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger`."""

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger`."""


def rows(folder: Path, wish: Wish) -> Iterator[Sequence[object]]:
    """Give the rows that are wished, a host and a day at a time.

    Raises:
        ExportError: there is no history there, or it cannot be read.
        HostlistError: the hosts cannot be read.
    """
    file = folder / FILE
    if not file.exists():
        raise ExportError(f"{file} is not there: is it the data folder? --data names another")
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as db:
            names = [name for (name,) in db.execute("SELECT name FROM hosts ORDER BY name")]
            meant = None if wish.hosts is None else matcher(wish.hosts, names)
            hosts = tuple(name for name in names if meant is None or meant(name))
            reader = Reader(db, OpenHours())
            yield from _figures(reader, wish, hosts) if wish.what == "figures" else rows_by(reader, wish, hosts)
    except (sqlite3.Error, StoreError) as error:
        raise ExportError(f"{file}: cannot be read: {error}") from error


def _days(span: Span) -> Iterator[tuple[float, float]]:
    """Cut a time at the days of UTC, so that no answer is larger than a day of a host."""
    begin = span.begin
    while begin <= span.end:
        end = min(begin // _DAY * _DAY + _DAY, span.end)
        yield begin, end
        if end >= span.end:
            return
        begin = end


def _figures(reader: Reader, wish: Wish, hosts: Sequence[str]) -> Iterator[Sequence[object]]:
    for host in hosts:
        for begin, end in _days(wish.span):
            of_metric = {}
            for metric in FIGURES:
                last = end if end >= wish.span.end else end - 1e-3  # its step belongs to the next day
                ask = SeriesQuery(metric=metric, begin=begin, end=last, step_seconds=wish.step_seconds, hosts=(host,))
                of_metric[metric] = {each.gpu: each for each in reader.series(ask, wish.span.end)}
            for gpu, first in of_metric[FIGURES[0]].items():
                lines = [of_metric[metric].get(gpu) for metric in FIGURES]
                for place, at in enumerate(first.t):
                    told = [
                        value
                        for line in lines
                        for value in (
                            (None,) * 3 if line is None else (line.min[place], line.mean[place], line.max[place])
                        )
                    ]
                    if any(value is not None for value in told):
                        yield at, host, gpu, first.uuid, first.model, *told


def _hours(reader: Answering, wish: Wish, hosts: Sequence[str]) -> Iterator[Sequence[object]]:
    columns = tuple(COLUMNS["hours"])
    for begin, end in _days(wish.span):
        ask = UsageQuery(
            begin=begin,
            end=end,
            by=("user", "host", "model", "hour"),
            hosts=None if wish.hosts is None else tuple(hosts),
        )
        for each in reader.usage(ask):
            yield [getattr(each, name) for name in columns]


def _uses(reader: Answering, wish: Wish, hosts: Sequence[str]) -> Iterator[Sequence[object]]:
    columns = tuple(COLUMNS["uses"])
    for host in hosts:
        for each in reader.uses(UseQuery(begin=wish.span.begin, end=wish.span.end, hosts=(host,))):
            yield [getattr(each, name) for name in columns]


def _events(reader: Answering, wish: Wish, hosts: Sequence[str]) -> Iterator[Sequence[object]]:
    meant = None if wish.hosts is None else matcher(wish.hosts, hosts)
    columns = tuple(COLUMNS["events"])
    ask = EventQuery(begin=wish.span.begin, end=wish.span.end, most=10_000_000)
    for each in reader.events(ask):
        if meant is None or meant(each.host):
            yield [getattr(each, name) for name in columns]


_TOLD: Mapping[What, Callable[[Answering, Wish, Sequence[str]], Iterator[Sequence[object]]]] = {
    "hours": _hours,
    "uses": _uses,
    "events": _events,
}


def rows_by(reader: Answering, wish: Wish, hosts: Sequence[str]) -> Iterator[Sequence[object]]:
    """Give what is no figure."""
    return _TOLD[wish.what](reader, wish, hosts)


def write_csv(out: TextIO, what: What, found: Iterable[Sequence[object]]) -> int:
    """Write rows as CSV; a text that a spreadsheet would take for a formula gets a ' in front. Returns how many."""
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS[what])
    count = 0
    for row in found:
        writer.writerow([cell(value) for value in row])
        count += 1
    return count


def write_parquet(file: Path, what: What, found: Iterable[Sequence[object]]) -> int:
    """Write rows as Parquet, compressed; returns how many.

    Raises:
        ExportError: pyarrow is not installed.
    """
    try:
        arrow: Any = import_module("pyarrow")  # 170 MB that nothing else needs
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise ExportError(
            "Parquet needs pyarrow: uv sync --extra parquet in cluster-dash-server, or choose --format csv"
        ) from None
    types = {"number": arrow.float64(), "whole": arrow.int32(), "text": arrow.string()}
    schema = arrow.schema([(name, types[kind]) for name, kind in COLUMNS[what].items()])
    count = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        left = iter(found)
        while part := list(islice(left, _ROWS_AT_ONCE)):
            columns = [
                arrow.array([_typed(value, kind) for value in column], types[kind])
                for column, kind in zip(zip(*part, strict=True), COLUMNS[what].values(), strict=True)
            ]
            writer.write_batch(arrow.record_batch(columns, schema=schema))
            count += len(part)
    return count


def _typed(value: object, kind: Type) -> object:
    return str(value) if kind == "text" and value is not None else value


def checked(found: Iterator[Sequence[object]]) -> Iterator[Sequence[object]]:
    """Read the first row now, so that what fails does so before a file is begun.

    Raises:
        ExportError, HostlistError: see `rows`.
    """
    first = next(found, None)
    return iter(()) if first is None else chain((first,), found)
