import sqlite3
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import pytest

from cluster_dash_server.history.rollups import DAY, HOUR
from cluster_dash_server.history.sqlite.store import Keep, SqliteStore
from cluster_dash_server.store import SeriesQuery

BEGIN = 1_699_999_200.0
KEEP = Keep(
    rows_seconds=7 * DAY, minutes_seconds=90 * DAY, hours_seconds=730 * DAY, users_seconds=400 * DAY, file_bytes=2**30
)


def first_file(folder: Path) -> Path:
    file = folder / "gpu_history.db"
    with closing(sqlite3.connect(file)) as db, db:
        db.execute(
            "CREATE TABLE gpu_snapshots (id INTEGER PRIMARY KEY, timestamp, hostname TEXT, total_gpus INTEGER, "
            "free_gpus INTEGER, avg_gpu_memory_percent REAL, avg_gpu_util REAL, cpu_percent REAL)"
        )
        for number in range(12):
            at = BEGIN + 300 * number
            written = datetime.fromtimestamp(at, tz=timezone.utc).isoformat() if number % 2 else at
            for host, gpus, free, util in (("a", 8, 2, 75.0), ("b", 4, 4, 0.0)):
                db.execute(
                    "INSERT INTO gpu_snapshots (timestamp, hostname, total_gpus, free_gpus, avg_gpu_memory_percent, "
                    "avg_gpu_util, cpu_percent) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (written, host, gpus, free, 30.0, util, 12.5),
                )
        db.execute("INSERT INTO gpu_snapshots (timestamp, hostname) VALUES ('yesterday', 'c')")
    return file


def test_what_the_first_version_kept_is_taken_in_once(tmp_path: Path) -> None:
    file = first_file(tmp_path)
    for _ in range(2):
        with closing(SqliteStore(tmp_path, clock=lambda: BEGIN + DAY, keep=KEEP, first=file)) as store:
            ask = {"begin": BEGIN, "end": BEGIN + HOUR - 1, "step_seconds": 600}
            found = {
                metric: store.series(SeriesQuery(metric=metric, by="cluster", **ask))[0].mean  # type: ignore[arg-type]
                for metric in ("total_gpus", "light_gpus", "gpu_util", "memory_percent", "unknown_gpus")
            }
            assert {metric: round(values[2] or 0, 6) for metric, values in found.items()} == {
                **{"total_gpus": 12, "light_gpus": 6, "gpu_util": 50, "memory_percent": 30, "unknown_gpus": 12}
            }
            (cpu,) = store.series(
                SeriesQuery(
                    metric="cpu_percent", by="host", hosts=("a",), begin=BEGIN, end=BEGIN + 1, step_seconds=HOUR
                )
            )
            assert list(cpu.mean) == [12.5]


def test_a_file_that_is_none_is_said_and_let_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "gpu_history.db"
    file.write_bytes(b"no database" * 100)
    SqliteStore(tmp_path, clock=lambda: BEGIN, keep=KEEP, first=file).close()

    assert "cannot be read" in caplog.text
    assert file.read_bytes() == b"no database" * 100
