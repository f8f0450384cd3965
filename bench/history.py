"""History: CPU a snapshot, bytes a figure, and what questions cost, beside a table with a row a figure.

The data are believable: the simulated fleet's, through the server's reading of a snapshot and the store's own door,
with 32 processes on those GPUs of a host that are in use. What a snapshot costs counts all that is ever done with it:
reading its figures, writing, sealing its hour, and making minutes of its day when it is old. VictoriaMetrics is given
the same, where it is installed; it answers over HTTP, ours in the process that asks. Rows are committed some thousands
at a time here; what a commit costs, and what is kept for a restart, stand in lines of their own.

The goals name 100 hosts for a day and 1,000 for a month: the month is a case of its own, and of so many hosts with
`--full` only, which takes more than an hour. Otherwise fewer are taken, and each line says how many: what one host's
past costs hardly depends on how many there are; sums over all are kept as such, and GPU-hours of hosts, which the
waste page reads, are copied to 1,000.
"""

import gc
import sqlite3
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC
from itertools import groupby, starmap
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import victoria
from bench.harness import Figure, medians
from cluster_dash_mole.simulate.fleet import Fleet
from cluster_dash_server import waste
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.entries import Entries, entries_of
from cluster_dash_server.figures import figures
from cluster_dash_server.history.remote.encoding import Encoder
from cluster_dash_server.history.remote.sending import MOST_SERIES
from cluster_dash_server.history.rollups import DAY, HOUR
from cluster_dash_server.history.sqlite.store import Keep, SqliteStore
from cluster_dash_server.restart import remember
from cluster_dash_server.snapshot import Json, Seen, decode_by_types, dumps, read
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures, SeriesQuery, UsageQuery
from cluster_dash_server.when import Span
from tests.remote_write import REQUEST

BEGIN = 1_700_006_400.0 // DAY * DAY
HOSTS = 4
"""How many hosts are simulated, each with work of its own."""
DAY_HOSTS = 100
MONTH_HOSTS, ALL_MONTH_HOSTS = 4, 1_000
"""As how many hosts the simulated ones post: what is kept once for the whole cluster weighs less the larger it is."""
MONTH_DAYS = 30
PROCESSES = 32
REQUEST_ROWS = MOST_SERIES // (8 * len(GPU_METRICS) + len(HOST_METRICS))
"""Snapshots of hosts with 8 GPUs in a request to an engine."""
KEEP = Keep(
    rows_seconds=10_000 * DAY,
    minutes_seconds=10_000 * DAY,
    hours_seconds=10_000 * DAY,
    users_seconds=10_000 * DAY,
    file_bytes=2**40,
)


def run(runs: int) -> list[Figure]:
    """Measure a day, and what goes to an engine."""
    with tempfile.TemporaryDirectory(prefix="cluster-dash-bench-") as name:
        return [*_day(Path(name), runs, DAY_HOSTS), *_engine(runs)]


def month(runs: int, *, full: bool = False) -> list[Figure]:
    """Measure a month.

    Args:
        runs: of each question.
        full: of 1,000 hosts: it takes more than an hour to put it in.
    """
    with tempfile.TemporaryDirectory(prefix="cluster-dash-bench-") as name:
        return _month(Path(name), runs, ALL_MONTH_HOSTS if full else MONTH_HOSTS)


def _day(folder: Path, runs: int, hosts: int) -> list[Figure]:
    """A day of a fleet at 15 s: all rows are there as they came."""
    costs: list[_Cost] = []
    for number in range(runs):
        simulated, cost = _put_day(folder / f"day-{number}", hosts)
        costs.append(cost)
    known = hosts // HOSTS * sum(value == value for row in simulated for value in row.values)
    with closing(_store(folder / "day-0")) as store:
        ask = SeriesQuery(metric="gpu_util", begin=BEGIN, end=BEGIN + DAY, hosts=(simulated[0].host,))
        of_host = _cost_ms(lambda: store.series(ask), runs)
        of_power = _cost_ms(lambda: store.series(replace(ask, metric="power_w")), runs)
    size = (folder / "day-0" / "history.db").stat().st_size
    plain = _PlainTable(folder / "plain.db")
    few = [row for row in simulated if row.host == simulated[0].host]
    plain_each = _cpu_seconds(lambda: plain.put(few)) / len(few) * 1e6
    keeping, commit = _keeping_each(folder, runs) * 1e6, _commit_ms(folder, few) * 1000
    ageing = [_age_each(folder / f"day-{number}", hosts // HOSTS * len(simulated)) for number in range(runs)]
    reading, sealing = median(cost.reading for cost in costs), median(cost.sealing for cost in costs)
    whole = [cost.taking + cost.sealing + aged for cost, aged in zip(costs, ageing, strict=True)]
    each = median(whole)
    few_known = sum(value == value for row in few for value in row.values)
    ours = _Ours(each=each + reading, bytes_a_figure=size / known, of_host_ms=of_host)
    return [
        Figure(
            name="history: CPU to take the figures out of a snapshot of 8 GPUs and 32 processes",
            value=reading,
            unit="µs",
        ),
        Figure(
            name="history: CPU of the store for an accepted snapshot, all tiers on",
            value=each,
            unit="µs",
            reference=plain_each,
            target="≤ 100 µs with the line above",
            met=each + reading <= 100,
        ),
        Figure(name="history: of that, sealing hours and roll-ups", value=sealing, unit="µs"),
        Figure(name="history: of that, rows become minutes after a week", value=median(ageing), unit="µs"),
        Figure(name="history: CPU to keep the newest snapshot of a host for a restart", value=keeping, unit="µs"),
        Figure(name="history: CPU of a commit, which the rows of half a second share", value=commit, unit="µs"),
        Figure(
            name=f"history: bytes a figure on disk, {hosts} hosts, 24 h at 15 s, all tiers",
            value=size / known,
            unit="B",
            reference=plain.size() / few_known,
            target="≤ 1.1 B",
            met=size / known <= 1.1,
        ),
        Figure(
            name="history: utilisation of 8 GPUs over 24 h, 1,440 points each",
            value=of_host,
            unit="ms",
            reference=_cost_ms(lambda: plain.series(ask), runs),
            target="≤ 15 ms",
            met=of_host <= 15,
        ),
        Figure(
            name="history: power of 8 GPUs over 24 h, 1,440 points each",
            value=of_power,
            unit="ms",
            target="≤ 15 ms",
            met=of_power <= 15,
        ),
        *(_beside_victoria(ours, simulated, ask) if victoria.is_installed() else ()),
    ]


class _Cost(NamedTuple):
    """CPU for a snapshot (µs): to take its figures out, to write them, and to seal its hour with those of others."""

    reading: float
    taking: float
    sealing: float


def _put_day(folder: Path, hosts: int) -> tuple[list[Figures], _Cost]:
    """Put a day into a store; return the rows of the simulated hosts, too."""
    simulated, reading = _simulated(15, DAY)
    copies = hosts // HOSTS
    taking = sealing = 0.0
    with closing(_store(folder)) as store:
        for _, hour in groupby(simulated, key=lambda row: row.at // HOUR):
            rows = [each for row in hour for each in _copies(row, copies)]
            gc.freeze()
            taking += _cpu_seconds(lambda rows=rows: _put(store, rows))  # type: ignore[misc]
            sealing += _cpu_seconds(store.seal_all)
    each = 1e6 / (copies * len(simulated))
    return simulated, _Cost(reading * copies * each, taking * each, sealing * each)


def _age_each(folder: Path, snapshots: int) -> float:
    """Return the CPU for a snapshot (µs) of a store whose rows all become minutes."""
    with closing(_store(folder, replace(KEEP, rows_seconds=7 * DAY))) as old:
        return _cpu_seconds(lambda: _age(old)) / snapshots * 1e6


class _Ours(NamedTuple):
    """What is held against VictoriaMetrics."""

    each: float
    bytes_a_figure: float
    of_host_ms: float


def _beside_victoria(ours: _Ours, rows: list[Figures], ask: SeriesQuery) -> list[Figure]:
    """Give VictoriaMetrics the day of the simulated hosts, once each: it shares no more between copies than we do."""
    known = sum(value == value for row in rows for value in row.values)
    with victoria.running() as reference:
        each = reference.push(rows) / len(rows) * 1e6
        size = reference.size()
        of_host = reference.series_ms(ask, 10)
    return [
        Figure(
            name="history beside VictoriaMetrics: CPU for a snapshot, with taking the figures out",
            value=ours.each,
            unit="µs",
            reference=each,
        ),
        Figure(
            name="history beside VictoriaMetrics: bytes a figure, roll-ups and users in ours",
            value=ours.bytes_a_figure,
            unit="B",
            reference=size / known,
        ),
        Figure(
            name="history beside VictoriaMetrics: least, mean and most of a metric of 8 GPUs over 24 h, by the minute",
            value=ours.of_host_ms,
            unit="ms",
            reference=of_host,
        ),
    ]


def _month(folder: Path, runs: int, hosts: int) -> list[Figure]:
    """A month at 60 s: questions that roll-ups answer."""
    day, _ = _simulated(60, DAY)
    store = _store(folder / "month")
    for number in range(MONTH_DAYS):
        print(f"  day {number + 1} of {MONTH_DAYS}", file=sys.stderr, flush=True)
        for _, hour in groupby(day, key=lambda row: row.at // HOUR):
            _put(store, [_as(each, days=number) for row in hour for each in _copies(row, hosts // HOSTS)])
        store.seal_all()
    of_cluster = SeriesQuery(
        metric="gpu_util", begin=BEGIN, end=BEGIN + MONTH_DAYS * DAY, by="cluster", step_seconds=HOUR
    )
    cluster = _cost_ms(lambda: store.series(of_cluster), runs)
    users = _cost_ms(lambda: store.usage(UsageQuery(begin=of_cluster.begin, end=of_cluster.end)), runs)
    of_host = SeriesQuery(metric="gpu_util", begin=of_cluster.begin, end=of_cluster.end, hosts=(day[0].host,))
    gpus = _cost_ms(lambda: store.series(of_host), runs)
    whole = Span(begin=BEGIN, end=BEGIN + MONTH_DAYS * DAY, is_relative=False)
    wasted = _cost_ms(lambda: waste.report(store, store, whole, UTC, lambda user: None), runs)
    _copy_days(store.path, ALL_MONTH_HOSTS // hosts)
    wasted_by_all = _cost_ms(lambda: waste.report(store, store, whole, UTC, lambda user: None), runs)
    store.close()
    return [
        Figure(
            name=f"month: utilisation of the cluster over 30 days, by the hour, {hosts:,} hosts",
            value=cluster,
            unit="ms",
            target="≤ 5 ms",
            met=cluster <= 5,
        ),
        Figure(
            name=f"month: GPU-hours of each user over 30 days, {hosts:,} hosts",
            value=users,
            unit="ms",
            target="≤ 10 ms",
            met=users <= 10,
        ),
        Figure(name="month: one metric of 8 GPUs over 30 days, by the hour", value=gpus, unit="ms"),
        Figure(name=f"month: what the waste page tells, over 30 days, {hosts:,} hosts", value=wasted, unit="ms"),
        Figure(
            name=f"month: the same with the GPU-hours of {ALL_MONTH_HOSTS:,} hosts",
            value=wasted_by_all,
            unit="ms",
            target="≤ 300 ms",
            met=wasted_by_all <= 300,
        ),
    ]


def _copy_days(file: Path, copies: int) -> None:
    """Give each host's GPU-hours of days to more hosts: of these there is one row a host, of all else one for all."""
    with closing(sqlite3.connect(file)) as db:
        for copy in range(1, copies):
            first = copy * 1_000_000
            db.execute("INSERT INTO hosts SELECT id + ?, name || ? FROM hosts WHERE id < 1000000", (first, f"-{first}"))
            db.execute(
                "INSERT INTO usage_days SELECT day, host + ?, user, model, held, busy, idle, allocated, util, seen "
                "FROM usage_days WHERE host < 1000000",
                (first,),
            )
        db.commit()


def _engine(runs: int) -> list[Figure]:
    """What goes to an engine: a snapshot as a part of a request, beside protobuf's own encoder."""
    rows, _ = _simulated(15, 1800)
    encoder, plain = Encoder("bench"), _Protobuf(rows)
    requests = [rows[first : first + REQUEST_ROWS] for first in range(0, len(rows), REQUEST_ROWS)]
    # each is let go of at once, as after its request: kept, they would be measured with the memory that they take
    ours = _cost_ms(lambda: deque(map(encoder.together, requests), maxlen=0), 10 * runs) / len(rows) * 1000
    theirs = _cost_ms(lambda: deque(map(plain.encoded, rows[:50]), maxlen=0), runs) / 50 * 1000
    return [
        Figure(
            name=f"history: CPU to encode a snapshot of 8 GPUs for an engine, {REQUEST_ROWS} in a request",
            value=ours,
            unit="µs",
            reference=theirs,
            target="≤ 10 µs",
            met=ours <= 10,
        )
    ]


# ----------------------------------------------------------------------------------------------------------- the data


def _simulated(interval_seconds: float, seconds: float) -> tuple[list[Figures], float]:
    """Return the rows of a simulated fleet in the order of time, and the CPU seconds it took to take them out."""
    fleet = Fleet(seed=1, hosts=HOSTS, gpus=8, interval_seconds=interval_seconds, began_at=BEGIN, faults=False)
    thresholds, reading = Thresholds(), 0.0
    rows: list[Figures] = []
    hosts = fleet.build()
    for number in range(int(seconds / interval_seconds)):
        at = BEGIN + number * interval_seconds
        came: list[tuple[Json, Entries, Seen, Thresholds]] = []
        for host in hosts:
            made = host.snapshot(at + 0.25, number + 1)
            if made is None:
                continue
            snapshot, _, _, read_entries, _ = decode_by_types(dumps(_crowded(made.document())))
            entries = entries_of(snapshot["gpu"]) if read_entries is None else read_entries
            came.append((snapshot, entries, read(snapshot, received_at=at + 0.3, entries=entries), thresholds))
        before = time.process_time()  # of some together: to read this clock takes 1.5 µs itself
        rows += starmap(figures, came)
        reading += time.process_time() - before
        gc.freeze()  # these rows are held by the bench alone: no collection of the server's looks through a day of them
    return rows, reading


def _crowded(document: Json) -> Json:
    """Return a snapshot with PROCESSES processes, on the GPUs that somebody has; where nobody has any, none."""
    held = [of_user for gpu in document["gpu"].values() for of_user in gpu["users"].values()]
    for place, of_user in enumerate(held):
        (pid, process), *_ = of_user.items()
        count = PROCESSES * (place + 1) // len(held) - PROCESSES * place // len(held)
        of_user.clear()
        of_user.update({str(int(pid) + 100_000 * number): process for number in range(count)})
    return document


def _keeping_each(folder: Path, runs: int) -> float:
    """Return the CPU seconds of the store for the newest snapshot of a host: with it and without, on the same rows."""
    hosts = Fleet(seed=1, hosts=100, gpus=8, interval_seconds=15, began_at=BEGIN, faults=False).build()
    thresholds = Thresholds()

    def cost(*, is_kept: bool) -> float:
        cluster = Cluster(thresholds)
        store = SqliteStore(
            Path(tempfile.mkdtemp(dir=folder)),
            clock=lambda: BEGIN + 365 * DAY,
            keep=KEEP,
            last_seen=(lambda names: map(remember, cluster.known(names))) if is_kept else None,
        )
        spent = 0.0
        for number in range(3):
            for host in hosts:
                at = BEGIN + 15 * number
                made = host.snapshot(at, number + 1)
                if made is None:
                    continue
                snapshot, _, _, found, _ = decode_by_types(dumps(_crowded(made.document())))
                entries = entries_of(snapshot["gpu"]) if found is None else found
                seen = read(snapshot, received_at=at, entries=entries)
                cluster.offer(seen)
                store.append(figures(snapshot, entries, seen, thresholds))
            spent += _cpu_seconds(store.flush)
        store.close()
        return spent / (3 * len(hosts))

    without, with_it = medians(max(3, runs), lambda: cost(is_kept=False), lambda: cost(is_kept=True))
    return with_it - without


def _commit_ms(folder: Path, rows: list[Figures]) -> float:
    """Return the CPU of a commit of a single row."""
    store = _store(folder / "commits")
    costs = []
    for row in rows[:200]:
        store.append(row)
        costs.append(_cpu_seconds(store.flush) * 1000)
    store.close()
    return median(costs)


def _copies(row: Figures, copies: int) -> list[Figures]:
    """Return a row as rows of so many hosts."""
    return [row, *(_as(row, host=f"{row.host}-{number}") for number in range(1, copies))]


def _as(row: Figures, *, host: str | None = None, days: int = 0) -> Figures:
    """Return a row under another name, or of another day."""
    return Figures(
        host=host or row.host,
        at=row.at + days * DAY,
        boot_id=row.boot_id,
        seq=None if row.seq is None else row.seq + days * 100_000,
        oldest_seq=None,
        gpus=row.gpus,
        values=row.values,
        holders=row.holders,
        holder_mem=row.holder_mem,
    )


def _store(folder: Path, keep: Keep = KEEP) -> SqliteStore:
    folder.mkdir(exist_ok=True)
    return SqliteStore(folder, clock=lambda: BEGIN + 365 * DAY, keep=keep)


def _age(store: SqliteStore) -> None:
    """Have a store make minutes of all its rows, which it does for a moment at a time."""
    with closing(sqlite3.connect(store.path)) as db:
        while db.execute("SELECT 1 FROM sealed").fetchone():
            store.prune(0)
            time.sleep(0.01)


def _put(store: SqliteStore, rows: Iterable[Figures]) -> None:
    for number, row in enumerate(rows):
        store.append(row)
        if number % 5_000 == 0:
            store.flush()
    store.flush()


def _cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _cost_ms(ask: Callable[[], object], runs: int) -> float:
    """Return the CPU that an answer takes: the least of some times, the first of which warms what is cached."""
    return min(_cpu_seconds(ask) for _ in range(max(3, runs) + 1)) * 1000


# ------------------------------------------------------------------------------------------------------ the reference


class _Protobuf:
    """The same requests by protobuf's own classes, with the labels of each series made before."""

    def __init__(self, rows: Iterable[Figures]) -> None:
        self._labels: dict[str, list[list[tuple[str, str]]]] = {}
        encoder = Encoder("bench")
        for row in rows:
            if row.host not in self._labels:
                parts = REQUEST.FromString(b"".join(encoder.parts(row))).timeseries
                self._labels[row.host] = [[(label.name, label.value) for label in each.labels] for each in parts]

    def encoded(self, row: Figures) -> bytes:
        """Encode a snapshot: its known figures, and ones for what else there is."""
        values = [value for value in row.values if value == value]
        at_ms, request = int(row.at * 1000), REQUEST()
        for place, labels in enumerate(self._labels[row.host]):
            series = request.timeseries.add()
            for name, value in labels:
                series.labels.add(name=name, value=value)
            series.samples.add(value=values[place] if place < len(values) else 1.0, timestamp=at_ms)
        packed: bytes = request.SerializeToString()
        return packed


class _PlainTable:
    """What comes to mind first: a table with a row a figure, and an index."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("CREATE TABLE figures (host TEXT, gpu INTEGER, metric TEXT, at REAL, value REAL)")
        self._db.execute("CREATE INDEX by_series ON figures (host, gpu, metric, at)")

    def put(self, rows: Iterable[Figures]) -> None:
        """Insert rows, in transactions of 100."""
        self._db.execute("BEGIN")
        for number, row in enumerate(rows):
            count = len(row.gpus)
            self._db.executemany(
                "INSERT INTO figures VALUES (?, ?, ?, ?, ?)",
                [
                    *(
                        (row.host, gpu.gpu, name, row.at, row.values[metric * count + place])
                        for metric, name in enumerate(GPU_METRICS)
                        for place, gpu in enumerate(row.gpus)
                        if row.values[metric * count + place] == row.values[metric * count + place]
                    ),
                    *(
                        (row.host, None, name, row.at, row.values[place - len(HOST_METRICS)])
                        for place, name in enumerate(HOST_METRICS)
                        if row.values[place - len(HOST_METRICS)] == row.values[place - len(HOST_METRICS)]
                    ),
                ],
            )
            if number % 100 == 99:
                self._db.execute("COMMIT")
                self._db.execute("BEGIN")
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def series(self, ask: SeriesQuery) -> list[object]:
        """Answer the question about one host's GPUs."""
        return self._db.execute(
            "SELECT gpu, CAST(at / 60 AS INTEGER), MIN(value), AVG(value), MAX(value) FROM figures "
            "WHERE host = ? AND gpu BETWEEN 0 AND 7 AND metric = ? AND at BETWEEN ? AND ? GROUP BY 1, 2",
            (*(ask.hosts or ()), ask.metric, ask.begin, ask.end),
        ).fetchall()

    def size(self) -> int:
        """Return the bytes of its file."""
        return self._path.stat().st_size
