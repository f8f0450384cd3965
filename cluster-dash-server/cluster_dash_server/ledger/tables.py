"""The tables of alerts, copied between the file of one server and the database of replicas."""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from cluster_dash_server.ledger import lease
from cluster_dash_server.ledger.postgresql import STEPS
from cluster_dash_server.ledger.sqlite import FILE, SqliteBook
from cluster_dash_server.postgresql import Database

TABLES = ("alerts", "transitions", "outbox", "failing", "silences", "maintenance")
NUMBERED = ("transitions", "outbox", "silences", "maintenance")
ROWS_AT_ONCE = 500


def is_empty(database: Database) -> bool:
    """Say whether nothing of a site is in a database.

    Raises:
        PostgresqlError: it cannot be asked.
    """
    database.expects("lease", lease.STEPS)
    database.expects("book", STEPS)
    with database.reading() as db:
        tables = [
            name
            for (name,) in db.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
            if name in (*TABLES, "tokens", "pieces", "usage_hours", "events")
        ]
        return not any(db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in tables)  # noqa: S608 - names of ours


def is_led(database: Database) -> bool:
    """Say whether a replica serves.

    Raises:
        PostgresqlError: it cannot be asked.
    """
    database.expects("lease", lease.STEPS)
    database.expects("book", STEPS)
    with database.reading() as db:
        return db.execute("SELECT 1 FROM lease WHERE expires_at > clock_timestamp()").fetchone() is not None


def keys(database: Database, names: Iterable[str]) -> list[str]:
    """Return which keys there are."""
    with database.reading() as db:
        return [name for (name,) in db.execute("SELECT name FROM keys WHERE name = ANY(?)", (list(names),))]


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [f'"{column[1]}"' for column in db.execute(f"PRAGMA table_info({table})")]


def put(folder: Path, database: Database) -> int:
    """Copy all of a data folder into a database; return how many rows. What is there stays as it is.

    Raises:
        BookError, PostgresqlError, sqlite3.Error: it cannot be read or written.
    """
    if not (folder / FILE).exists():
        return 0
    SqliteBook(folder / FILE, lambda: 0.0).close()  # brings it to the form of this release
    count = 0
    with contextlib.closing(sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True)) as file:
        for table in TABLES:
            columns = ", ".join(_columns(file, table))
            rows = file.execute(f"SELECT {columns} FROM {table}").fetchall()  # noqa: S608 - names of ours
            marks = ", ".join("?" * len(_columns(file, table)))
            for start in range(0, len(rows), ROWS_AT_ONCE):
                with database.transaction() as db:
                    db.executemany(
                        f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING",  # noqa: S608 - names of ours
                        rows[start : start + ROWS_AT_ONCE],
                    )
            count += len(rows)
    with database.transaction() as db:
        for table in NUMBERED:
            newest = f"SELECT GREATEST(MAX(id), 1) FROM {table}"  # noqa: S608 - names of ours
            db.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), ({newest}))")
    return count


def take(database: Database, folder: Path) -> int:
    """Copy all of a database into a data folder; return how many rows.

    Raises:
        BookError, PostgresqlError, sqlite3.Error: it cannot be read or written.
    """
    SqliteBook(folder / FILE, lambda: 0.0).close()
    count = 0
    with contextlib.closing(sqlite3.connect(folder / FILE)) as file, file:
        for table in TABLES:
            columns = ", ".join(_columns(file, table))
            with database.reading() as db:
                rows = db.execute(f"SELECT {columns} FROM {table}").fetchall()  # noqa: S608 - names of ours
            marks = ", ".join("?" * len(_columns(file, table)))
            file.executemany(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608 - names of ours
            count += len(rows)
    return count
