"""The history of the first version, `instance/gpu_history.db`: taken in once.

A row of its table `gpu_snapshots` is a host at a moment: how many GPUs, how many of them free by the kept routes' rule,
and means over them. So it becomes figures of the cluster, of which no GPU's state is known, and the CPU of hosts.
"""

import logging
import sqlite3
import time
from array import array
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cluster_dash_server.figures import NAN
from cluster_dash_server.history.chunks import Slot, slot_of
from cluster_dash_server.history.late_numpy import np
from cluster_dash_server.history.rollups import DAY, HOUR, SHARE, Rolled
from cluster_dash_server.history.sqlite.sealing import Names, Sums, put_slots
from cluster_dash_server.store import HOST_METRICS

log = logging.getLogger(__name__)

FILE = Path("instance") / "gpu_history.db"
DONE = "first version"
LONGEST_SECONDS = 900.0
"""For how long a row stands at most: the first version kept one every few minutes."""


class Row(NamedTuple):
    """A row of `gpu_snapshots`; unknown is None."""

    at: float
    host: str
    gpus: int
    free: int
    memory_percent: float | None
    util: float | None
    cpu_percent: float | None


def find() -> Path | None:
    """Return the file of the first version: in the working directory, or where Flask put it; None: there is none."""
    places = (Path.cwd() / FILE, Path(__file__).parents[2] / FILE)
    return next((place for place in places if place.is_file()), None)


def read(file: Path) -> list[Row]:
    """Return its rows, by host and time; those without a moment or a name are left out.

    Raises:
        sqlite3.Error: it is no such file.
    """
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as db:
        found = db.execute(
            "SELECT timestamp, hostname, total_gpus, free_gpus, avg_gpu_memory_percent, avg_gpu_util, cpu_percent "
            "FROM gpu_snapshots"
        ).fetchall()
    rows = []
    for moment, host, gpus, free, *figures in found:
        at = _moment(moment)
        if at is not None and host and isinstance(gpus, int) and gpus >= 0:
            memory, util, cpu = (float(each) if isinstance(each, int | float) else None for each in figures)
            rows.append(Row(at, str(host)[:253], gpus, free if isinstance(free, int) else 0, memory, util, cpu))
    return sorted(rows, key=lambda row: (row.host, row.at))


def _moment(value: object) -> float | None:
    """Read a moment: Unix s, or a text as SQLAlchemy writes it, in this machine's time where it names no zone."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def take_in(db: sqlite3.Connection, names: Names, rows: Sequence[Row]) -> None:
    """Put rows into the figures of the cluster and of hosts; inside the caller's transaction."""
    sums = Sums(db)
    for host, group in groupby(rows, key=lambda row: row.host):
        of_host = list(group)
        host_id = names.host(host)
        rolled: dict[int, Rolled] = {}
        for row, after in zip(of_host, [*(row.at for row in of_host[1:]), float("inf")], strict=True):
            _spread(rolled, row, min(after, row.at + LONGEST_SECONDS))
        for of_hour in rolled.values():
            sums.add(of_hour, host_id)
        for day, hours in groupby(of_host, key=lambda row: int(row.at // DAY) * DAY):
            put_slots(db, names, "hours", host_id, day, (), _cpu_slots(hours, day))
    sums.write()
    db.execute("INSERT OR REPLACE INTO done VALUES (?, ?)", (DONE, time.time()))


def _cpu_slots(rows: Iterable[Row], day: int) -> dict[int, Slot]:
    place = HOST_METRICS.index("cpu_percent")
    slots = {}
    for hour, group in groupby(rows, key=lambda row: int(row.at - day) // HOUR):
        values = []
        for row in group:
            values.append(array("f", [NAN] * len(HOST_METRICS)))
            values[-1][place] = NAN if row.cpu_percent is None else row.cpu_percent
        slots[hour] = slot_of(np.array(values, np.float32))
    return slots


def _spread(rolled: dict[int, Rolled], row: Row, end: float) -> None:
    """Add a row to the minutes for which it stands; of which models it was, nobody knows any more."""
    known = 0.0 if row.util is None else float(row.gpus)
    remembered = 0.0 if row.memory_percent is None else float(row.gpus)
    of = {
        **{"seen": float(row.gpus), "unknown": float(row.gpus), "light": float(row.free)},
        **{"util": (row.util or 0.0) * known, "util_known": known},
        **{"memory_percent": (row.memory_percent or 0.0) * remembered, "memory_known": remembered},
    }
    rate = np.array([of.get(name, 0.0) for name in SHARE])
    at = row.at
    while at < end:
        minute = int(at // 60) * 60
        until = min(end, minute + 60)
        hour = minute // HOUR * HOUR
        shares = rolled.setdefault(hour, Rolled(hour)).shares
        shares.setdefault("", np.zeros((HOUR // 60, len(SHARE))))[(minute - hour) // 60] += rate * (until - at)
        at = until
