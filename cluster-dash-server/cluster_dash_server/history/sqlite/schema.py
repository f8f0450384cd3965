"""The file of history: its tables, its version, and how it is opened."""

import logging
import os
import sqlite3
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path

from cluster_dash_server.store import StoreError

log = logging.getLogger(__name__)

VERSION = 1
"""The form of the file. Another one needs a step in `MIGRATIONS`; a newer one is refused."""
APPLICATION_ID = 0x636C6461  # "clda": says to `file` and to us whose file this is

TABLES = """
-- what was done once, and the mark of the newest group of rows and events
CREATE TABLE done (what TEXT PRIMARY KEY, at REAL NOT NULL);
-- names, and what blobs refer to
CREATE TABLE hosts (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE layouts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE holdings (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
-- which snapshots are here: seqs is JSON, [[first, last], …]
CREATE TABLE boots (id INTEGER PRIMARY KEY, host INTEGER NOT NULL, boot_id TEXT NOT NULL, seqs TEXT NOT NULL,
  newest_at REAL NOT NULL, UNIQUE (host, boot_id));
-- rows as they come: figures is float32, the values and then the holders' memory
CREATE TABLE hot (id INTEGER PRIMARY KEY, host INTEGER NOT NULL, hour INTEGER NOT NULL, at REAL NOT NULL, boot INTEGER,
  seq INTEGER, layout INTEGER NOT NULL, holding INTEGER NOT NULL, figures BLOB NOT NULL);
CREATE INDEX hot_hours ON hot (host, hour);
-- an hour of rows of a host, sealed; a day of its minutes; a day of its hours, or an hour that stands alone under its
-- own start until the next day begins
CREATE TABLE sealed (host INTEGER NOT NULL, hour INTEGER NOT NULL, layout INTEGER NOT NULL, rows BLOB NOT NULL,
  PRIMARY KEY (host, hour, layout));
CREATE INDEX sealed_hours ON sealed (hour);
CREATE TABLE minutes (host INTEGER NOT NULL, day INTEGER NOT NULL, layout INTEGER NOT NULL, slots BLOB NOT NULL,
  PRIMARY KEY (host, day, layout));
CREATE TABLE hours (host INTEGER NOT NULL, day INTEGER NOT NULL, layout INTEGER NOT NULL, slots BLOB NOT NULL,
  PRIMARY KEY (host, day, layout));
-- the cluster (model '') and each model: a minute's share; an hour's (minutes, least, mean, most) of
-- each metric, float64
CREATE TABLE cluster_minutes (minute INTEGER NOT NULL, model TEXT NOT NULL, share BLOB NOT NULL,
  PRIMARY KEY (minute, model)) WITHOUT ROWID;
CREATE TABLE cluster_hours (hour INTEGER NOT NULL, model TEXT NOT NULL, figures BLOB NOT NULL,
  PRIMARY KEY (model, hour)) WITHOUT ROWID;
-- GPU-seconds; user '' is all together
CREATE TABLE usage_hours (hour INTEGER NOT NULL, host INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  held REAL NOT NULL, busy REAL NOT NULL, idle REAL NOT NULL, allocated REAL NOT NULL, util REAL NOT NULL,
  seen REAL NOT NULL, PRIMARY KEY (hour, host, user, model)) WITHOUT ROWID;
CREATE TABLE usage_days (day INTEGER NOT NULL, host INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  held REAL NOT NULL, busy REAL NOT NULL, idle REAL NOT NULL, allocated REAL NOT NULL, util REAL NOT NULL,
  seen REAL NOT NULL, PRIMARY KEY (day, host, user, model)) WITHOUT ROWID;
CREATE TABLE user_hours (hour INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  held REAL NOT NULL, busy REAL NOT NULL, idle REAL NOT NULL, allocated REAL NOT NULL, util REAL NOT NULL,
  seen REAL NOT NULL, PRIMARY KEY (hour, user, model)) WITHOUT ROWID;
CREATE TABLE user_days (day INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  held REAL NOT NULL, busy REAL NOT NULL, idle REAL NOT NULL, allocated REAL NOT NULL, util REAL NOT NULL,
  seen REAL NOT NULL, PRIMARY KEY (day, user, model)) WITHOUT ROWID;
-- who had which GPU of a host in an hour
CREATE TABLE uses (host INTEGER NOT NULL, hour INTEGER NOT NULL, stretches BLOB NOT NULL, PRIMARY KEY (host, hour));
CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, host TEXT NOT NULL, gpu TEXT, kind TEXT NOT NULL,
  code TEXT, text TEXT NOT NULL, told INTEGER NOT NULL, boot_id TEXT, seq INTEGER);
CREATE INDEX events_at ON events (at);
-- the newest snapshot of each host, to begin with after a restart
CREATE TABLE last (host TEXT PRIMARY KEY, received_at REAL NOT NULL, skew_seconds REAL, packed BLOB NOT NULL,
  known BLOB NOT NULL);
"""

MIGRATIONS: dict[int, str] = {}
"""The SQL that makes version n + 1 of version n."""


class Damaged(Exception):
    """The file is no database any more, or its pages contradict each other."""


CHECKED_BYTES = 16 * 2**20
"""A file up to this size is looked through when it is opened; a larger one would hold up the start."""


def opened(path: Path, *, wal: bool, file_bytes: int, suspect: bool = False) -> sqlite3.Connection:
    """Open the file for writing: made where there is none, migrated where it is older.

    Args:
        path: the file.
        wal: whether its file system can hold a write-ahead log.
        file_bytes: how large it should become at most; a tenth more is refused by SQLite itself.
        suspect: look through it, however large it is.

    Raises:
        StoreError: it is of a newer release, or no history of ours.
        Damaged: it cannot be read any more.
        sqlite3.Error: it cannot be written now.
        OSError: the same.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        _prepare(db, path, wal=wal, file_bytes=file_bytes, suspect=suspect)
    except sqlite3.DatabaseError as error:
        db.close()
        if is_damage(error):
            raise Damaged(str(error)) from error
        raise
    except BaseException:  # raised again: the connection is nobody's yet
        db.close()
        raise
    return db


def is_damage(error: BaseException) -> bool:
    """Say whether an error means that the file is damaged, not that it can't be written now."""
    return isinstance(error, Damaged) or getattr(error, "sqlite_errorcode", None) in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        *(sqlite3.SQLITE_CORRUPT_VTAB, sqlite3.SQLITE_CORRUPT_SEQUENCE, sqlite3.SQLITE_CORRUPT_INDEX),
    )


def _prepare(db: sqlite3.Connection, path: Path, *, wal: bool, file_bytes: int, suspect: bool) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    is_empty = db.execute("SELECT 1 FROM sqlite_master").fetchone() is None
    if is_empty:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    elif application != APPLICATION_ID:
        raise StoreError(f"{path} is no history of cluster-dash: move it away, or choose another folder, --data")
    elif version > VERSION:
        raise StoreError(
            f"{path} was written by a newer release (form {version}, this one knows {VERSION}): "
            "install that release, or choose another folder, --data"
        )
    (mode,) = db.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'TRUNCATE'}").fetchone()
    if mode not in ("wal", "truncate"):
        raise sqlite3.OperationalError(f"the journal cannot be kept as wished: {mode}")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = FAST")  # so that a name that is forgotten is not left in the gaps of pages
    db.execute(f"PRAGMA journal_size_limit = {16 * 2**20}")
    if is_empty:
        db.executescript(
            f"BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {VERSION}; COMMIT;"
        )
    else:
        _migrate(db, path, version)
    if suspect or path.stat().st_size <= CHECKED_BYTES:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Damaged(verdict)
    (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    db.execute(f"PRAGMA max_page_count = {int(file_bytes * 1.1) // page_bytes}")


def _migrate(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Bring an older file to this version, after a copy of it was made."""
    if version == VERSION:
        return
    copy = path.with_name(f"{path.name}.form-{version}")
    log.warning("%s is of form %d: a copy is kept as %s, then it becomes form %d", path, version, copy, VERSION)
    with closing(sqlite3.connect(copy)) as there:
        db.backup(there)
    for step in range(version, VERSION):
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")


def set_aside(path: Path, at: float) -> Path:
    """Move a damaged file and its journals away; never deleted, for somebody may still read it."""
    ending = datetime.fromtimestamp(at, tz=timezone.utc).strftime(".bad-%Y%m%dT%H%M%SZ")
    for each in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), Path(f"{path}-journal")):
        with suppress(FileNotFoundError):
            each.rename(f"{each}{ending}")
    return Path(f"{path}{ending}")
