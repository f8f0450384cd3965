"""The live view as bytes that are ready to send: made once a change, however many people look.

A host's row is laid out in JSON when it changes and kept so; a body joins the rows, which takes a small part of the
time that building it from objects takes. Bodies are columns: 16,000 GPUs take a tenth of the bytes of rows.
"""

import threading
import time
import zlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import repeat
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from cluster_dash_server.cluster import Cluster, GpuView, HostView
from cluster_dash_server.filters import partitions
from cluster_dash_server.snapshot import Json, dumps
from cluster_dash_server.summary import Tally, model_of, sentence, tally

Encoding = Literal["zstd", "gzip", "identity"]

REFRESH_SECONDS = 1.0
"""How old a body may be where it arrives, by contract: it is made anew so often, less what making and sending take."""
SENDING_SECONDS = 0.05
"""Kept free for a body's way to who asked for it: 90 kB to a browser on the same network."""
MOSTLY = 0.75
"""Where more of the hosts than this have changed, a viewer gets everything: one body serves all, whatever they had."""
FRESH_SECONDS = 5.0
"""How old `at` may be, the moment by which a page tells ages, where nothing else changes."""
KEPT_GONE = 10_000
"""Names of hosts that are gone; a viewer who has not asked since the oldest of more went gets everything."""
KEPT_BODIES = 24
"""Bodies kept ready: viewers who poll at one pace ask for the same few versions, in three encodings."""

HOST_COLUMNS = (
    *("host", "state", "state_count", "last_at", "interval_seconds", "cpu_percent", "num_cpus", "load_avg_1"),
    *("memory_total_gb", "memory_used_gb", "gpu_error", "gpu_note", "mole_version", "skew_seconds", "labels"),
    *("drained", "partitions", "asks"),
)
"""The columns of `hosts`; `_of_host` says what stands in them."""

GPU_COLUMNS = (
    *("index", "uuid", "key", "model", "state", "since", "gpu_util", "used_mem", "total_mem", "temperature_c"),
    *("power_w", "users", "error", "read_at", "slurm"),
)
"""The columns of `gpus`, but for `host`: the place in `hosts`, known only when a body is joined; see `_of_gpu`."""


def _of_host(view: HostView) -> tuple[object, ...]:
    """Return the values of a host in the order of HOST_COLUMNS: one call takes half the time of one a column."""
    seen, headline = view.seen, view.headline
    return (
        seen.host,
        headline.state,
        headline.count,
        seen.received_at,
        view.interval_seconds,
        seen.cpu_percent,
        seen.num_cpus,
        seen.load_avg_1,
        seen.memory_total_gb,
        seen.memory_used_gb,
        seen.gpu_error,
        seen.gpu_note,
        seen.mole_version,
        seen.skew_seconds,
        seen.labels,
        view.drained,
        partitions(view),
        () if view.place is None else view.place.asks,
    )


def _of_gpu(view: GpuView) -> tuple[object, ...]:
    """Return the values of a GPU in the order of GPU_COLUMNS."""
    gpu = view.gpu
    return (
        gpu.index,
        gpu.uuid,
        gpu.key,
        model_of(gpu.name, gpu.total_mem),
        view.state,
        view.since,
        gpu.gpu_util,
        gpu.used_mem,
        gpu.total_mem,
        gpu.temperature_c,
        gpu.power_w,
        gpu.users,
        gpu.error,
        gpu.read_at if view.old else None,
        view.slurm and view.slurm.said(gpu.working),
    )


Columns = frozenset[str]
"""Which columns of `hosts` and `gpus` somebody wants; `host` is always there."""
ALL_COLUMNS: Columns = frozenset((*HOST_COLUMNS, *GPU_COLUMNS))
"""All there are. Most bytes of them are uuids and what moves all the time, of which no page shows all."""


def chosen_columns(text: str) -> Columns:
    """Read a list of columns, parted by commas; nothing means all, and a name that there is not gives no column."""
    return ALL_COLUMNS.intersection(text.split(",")) if text else ALL_COLUMNS


@dataclass(slots=True)  # never changed; frozen it would take three times as long to make
class Row:
    """One host, laid out.

    Attributes:
        version: the version of the view that this row came with.
        next_change_at: when a state of it changes by time alone (Unix s); None: never.
        host: one fragment of JSON a column of `hosts`.
        gpus: one fragment a column of `gpus`: the values of all its GPUs, joined by commas.
        gpu_count: how many GPUs it has.
        view: the host as it stood then, for those who ask for some hosts only.
    """

    version: int
    next_change_at: float | None
    host: tuple[bytes, ...]
    gpus: tuple[bytes, ...]
    gpu_count: int
    tally: Tally
    view: HostView


class Rows(NamedTuple):
    """All rows at one moment, by name of the host, and what goes for all of them.

    Attributes:
        changes: how often the cluster had been changed by then.
    """

    version: int
    at: float
    rows: list[Row]
    total: Tally
    changes: int = 0


@dataclass(frozen=True, slots=True)
class Body:
    """An answer: its version, and its bytes in one encoding."""

    version: str
    encoding: Encoding
    content: bytes


def lay_out(view: HostView, version: int, next_change_at: float | None, before: Row | None = None) -> Row:
    """Lay one host out in JSON; where it counts as it did before, the tally is the very same object."""
    of_gpus = zip(*map(_of_gpu, view.gpus), strict=True) if view.gpus else repeat((), len(GPU_COLUMNS))
    fragments = _fragments([*zip(_of_host(view), strict=True), *of_gpus])
    gpus = tuple(fragments[len(HOST_COLUMNS) :])
    return Row(
        version=version,
        next_change_at=next_change_at,
        host=tuple(fragments[: len(HOST_COLUMNS)]),
        gpus=gpus,
        gpu_count=len(view.gpus),
        tally=before.tally if before is not None and _counts_alike(before, view, gpus) else tally(view),
        view=view,
    )


def _counts_alike(before: Row, view: HostView, gpus: Sequence[bytes]) -> bool:
    """Say whether a host has the tally that it had: by its GPUs as they were laid out, which is cheap."""
    was = before.view
    return (
        was.silent == view.silent
        and (was.seen.gpu_error is None) == (view.seen.gpu_error is None)
        and _COUNTED(before.gpus) == _COUNTED(gpus)
    )


_COUNTED = itemgetter(GPU_COLUMNS.index("state"), GPU_COLUMNS.index("model"))


def _fragments(columns: Sequence[tuple[object, ...]]) -> list[bytes]:
    """Write each column as JSON, without its brackets: all at once, then cut, in half the time.

    A cut has its own size, too, where an encoder's buffer is a kilobyte or more.
    """
    fragments = dumps(columns)[2:-2].split(b"],[")
    if len(fragments) != len(columns):  # some text holds what stands between two columns
        fragments = [dumps(column)[1:-1] for column in columns]
    return fragments


class Live:
    """The rows of all hosts, and the bodies joined from them. Thread-safe.

    Args:
        cluster: what is shown.
        life: a text that no other life of the server has: versions of an earlier one are unknown to this one.
    """

    def __init__(self, cluster: Cluster, life: str) -> None:
        self._cluster = cluster
        self._life = life
        self._lock = threading.Lock()
        self._names: list[str] = []  # sorted
        self._rows: dict[str, Row] = {}
        self._gone: dict[str, int] = {}  # hosts that left, the oldest first, and the version that came with it
        self._gone_is_whole_from = 0
        self._seen_forgets = 0
        self._total = Tally()
        self._version = 0
        self._seen_changes = 0
        self._refreshed_at: float | None = None
        self._at = float("-inf")
        self._cost_seconds = 0.0  # of laying out, and of the bodies made since: as long as the next ones may take
        self._bodies: OrderedDict[tuple[int | None, Encoding, Columns], bytes] = OrderedDict()

    def body(self, now: float, since: str | None, encoding: Encoding, columns: Columns = ALL_COLUMNS) -> Body:
        """Return the view, or what changed since a version.

        Args:
            now: Unix s.
            since: a version that the caller has; None, or one of another life: everything.
            encoding: how the bytes are to be packed.
            columns: those that are wanted.
        """
        with self._lock:
            self._refresh(now)
            known = self._number(since)
            packed = self._bodies.get((known, encoding, columns))
            if packed is None:
                begin = time.perf_counter()
                packed = self._make(known, encoding, columns)
                self._cost_seconds += time.perf_counter() - begin
            return Body(self._text(self._version), encoding, packed)

    def ready(self, now: float, since: str | None, encoding: Encoding, columns: Columns = ALL_COLUMNS) -> Body | None:
        """Return what `body` returns where it is made already; never waits. See `body` for the arguments.

        Returns:
            None where it has to be made, or somebody is at it.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            packed = None if self._is_due(now) else self._bodies.get((self._number(since), encoding, columns))
            return None if packed is None else Body(self._text(self._version), encoding, packed)
        finally:
            self._lock.release()

    def _make(self, known: int | None, encoding: Encoding, columns: Columns) -> bytes:
        """Make a body, or find that everything serves; keep it."""
        asked_for = known
        rows = list(map(self._rows.__getitem__, self._names))
        if known is not None:
            rows = [row for row in rows if row.version > known]
        if len(rows) > MOSTLY * len(self._names):
            known = None
            rows = list(map(self._rows.__getitem__, self._names))
        packed = self._bodies.get((known, encoding, columns))
        if packed is None:
            packed = self._bodies[known, encoding, columns] = pack(self._join(known, rows, columns), encoding)
        self._bodies.move_to_end((known, encoding, columns))  # many may be asked for by another number
        self._bodies[asked_for, encoding, columns] = packed
        while len(self._bodies) > KEPT_BODIES:
            self._bodies.popitem(last=False)
        return packed

    def version(self, now: float) -> str:
        """Return the version of the view as it stands."""
        with self._lock:
            self._refresh(now)
            return self._text(self._version)

    def rows(self, now: float, known: Rows | None = None) -> Rows:
        """Return all rows as they stand; see `body` for how old they may be.

        Args:
            now: Unix s.
            known: what was returned before; where no row has changed since, no list of them is made.
        """
        with self._lock:
            self._refresh(now)
            if known is not None and (known.version, known.at) == (self._version, self._at):
                return known._replace(changes=self._seen_changes)
            rows = list(map(self._rows.__getitem__, self._names))
            return Rows(self._version, self._at, rows, self._total, self._seen_changes)

    @property
    def cost_seconds(self) -> float:
        """How long the last refresh took, with the bodies that were made after it."""
        return self._cost_seconds

    def behind(self, now: float) -> float:
        """Return for how long posts wait to be seen, in seconds; 0: what was posted is seen."""
        with self._lock:
            self._refresh(now)
            return 0.0 if self._cluster.changes == self._seen_changes else now - (self._refreshed_at or now)

    def _text(self, version: int) -> str:
        return f"{self._life}-{version}"

    def _number(self, since: str | None) -> int | None:
        """Return the number of a version of this life, None for any other text."""
        life, _, number = (since or "").rpartition("-")
        if life != self._life or not (number.isascii() and number.isdigit() and len(number) <= 18):
            return None
        return int(number) if self._gone_is_whole_from <= int(number) <= self._version else None

    def _is_due(self, now: float) -> bool:
        """Say whether what has changed is to be laid out anew."""
        pause = max(REFRESH_SECONDS / 2, REFRESH_SECONDS - SENDING_SECONDS - self._cost_seconds)
        return self._refreshed_at is None or not 0 <= now - self._refreshed_at < pause

    def _refresh(self, now: float) -> None:
        """Lay out anew the hosts that have posted, and those whose states the time has changed."""
        if not self._is_due(now):
            return
        begin = time.perf_counter()
        self._refreshed_at = now
        changes = self._cluster.changes
        due = set(self._cluster.changed_since(self._seen_changes))
        self._seen_changes = changes
        due.update(
            name for name, row in self._rows.items() if row.next_change_at is not None and row.next_change_at <= now
        )
        if self._cluster.forgets != self._seen_forgets:
            self._seen_forgets = self._cluster.forgets
            due.update(self._rows.keys() - self._cluster.names())
        if now - self._at >= FRESH_SECONDS:
            self._at = now
            self._bodies.clear()
            self._cost_seconds = 0.0
        if not due and self._version:
            return
        self._version += 1
        self._bodies.clear()
        for name in due:
            view = self._cluster.host(name, now)
            if view is None:
                self._remove(name)
                continue
            self._gone.pop(name, None)
            before = self._rows.get(name)
            row = lay_out(view, self._version, self._cluster.next_change_at(name, now), before)
            if before is None:
                self._names.insert(bisect_left(self._names, name), name)
                self._total += row.tally
            elif before.tally is not row.tally:  # seldom: figures change at each post, what is counted does not
                self._total = self._total - before.tally + row.tally
            self._rows[name] = row
        self._at = now
        self._cost_seconds = time.perf_counter() - begin

    def _remove(self, name: str) -> None:
        row = self._rows.pop(name, None)
        if row is None:
            return
        del self._names[bisect_left(self._names, name)]
        self._total -= row.tally
        self._gone[name] = self._version
        while len(self._gone) > KEPT_GONE:
            self._gone_is_whole_from = self._gone.pop(next(iter(self._gone)))

    def _join(self, since: int | None, rows: Sequence[Row], columns: Columns) -> bytes:
        """Join rows to a body: of all hosts (since None), or of those that changed since a version."""
        gone = [] if since is None else [name for name, version in self._gone.items() if version > since]
        head = {"version": self._text(self._version), "at": self._at, "full": since is None, "gone": gone}
        return join({**head, "summary": sentence(self._total)}, rows, columns)


def join(head: Json, rows: Sequence[Row], columns: Columns, matches: Sequence[bytes] | None = None) -> bytes:
    """Join rows to a body.

    Args:
        head: what stands in it beside the columns.
        rows: of which hosts.
        columns: those that are wanted.
        matches: a fragment a row for one more column of `gpus`; None: no such column.
    """
    with_gpus = [(place, row) for place, row in enumerate(rows) if row.gpu_count]
    gpu_fragments = [row.gpus for _, row in with_gpus]
    parts = [dumps(head)[:-1], b',"hosts":{']
    for name, column in zip(HOST_COLUMNS, _columns([row.host for row in rows], len(HOST_COLUMNS)), strict=True):
        if name == "host" or name in columns:
            parts += [b'"%b":[' % name.encode(), b",".join(column), b"],"]
    parts[-1] = b']},"gpus":{"host":['
    parts.append(b"".join([b"%d," % place * row.gpu_count for place, row in with_gpus])[:-1])
    for name, column in zip(GPU_COLUMNS, _columns(gpu_fragments, len(GPU_COLUMNS)), strict=True):
        if name in columns:
            parts += [b'],"%b":[' % name.encode(), b",".join(column)]
    if matches is not None:
        parts += [b'],"matches":[', b",".join(filter(None, matches))]
    parts.append(b"]}}")
    return b"".join(parts)


def _columns(fragments: Sequence[tuple[bytes, ...]], count: int) -> Iterable[tuple[bytes, ...]]:
    """Turn the fragments of each row into columns."""
    return zip(*fragments, strict=True) if fragments else repeat((), count)


def pack(plain: bytes, encoding: Encoding) -> bytes:
    """Compress at the quickest level: gzip 6 is a quarter smaller and takes five times as long."""
    if encoding == "gzip":
        packer = zlib.compressobj(1, wbits=31)
        return packer.compress(plain) + packer.flush()
    if encoding == "zstd":
        zstandard: Any = import_module("zstandard")
        packed: bytes = zstandard.ZstdCompressor(level=1).compress(plain)
        return packed
    return plain


@lru_cache(256)  # browsers send a handful of them
def choose_encoding(accepted: str | None) -> Encoding:
    """Choose from an Accept-Encoding header: zstd, else gzip, else none; a quality of 0 refuses."""
    offered = {}
    for part in (accepted or "").lower().split(","):
        name, _, quality = part.strip().partition(";")
        offered[name.strip()] = quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    if offered.get("zstd"):
        return "zstd"
    return "gzip" if offered.get("gzip") else "identity"
