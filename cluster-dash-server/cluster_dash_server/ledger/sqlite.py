"""The book of alerts in a SQLite file of its own: small, written seldom, and each write is whole or not at all."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.ledger.statements import KEPT_SECONDS, STEPS, SqlBook
from cluster_dash_server.notices.notice import Waiting

if TYPE_CHECKING:
    from cluster_dash_server.postgresql import Statements  # what it needs is an extra

FILE = "alerts.db"
VERSION = len(STEPS)
"""The form of the file; a newer one is refused."""
APPLICATION_ID = 0x636C6162  # "clab"


class SqliteBook(SqlBook):
    """A `Book` in a file.

    Args:
        path: the file; made where it is not there.
        clock: Unix s.
        wal: whether its file system can hold a write-ahead log; one of a network cannot.
        kept_seconds: how long what has ended is kept.

    Raises:
        BookError: it cannot be opened, or was written by a newer release.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float], *, wal: bool = True, kept_seconds: float = KEPT_SECONDS
    ) -> None:
        super().__init__(clock, kept_seconds)
        self.path = path
        self._lock = threading.RLock()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error
        try:
            self._prepare(wal)
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, error) from error
        except BookError:
            self._db.close()
            raise

    def _prepare(self, wal: bool) -> None:
        db = self._db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        is_empty = db.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        if not is_empty and application != APPLICATION_ID:
            raise BookError(f"{self.path} is no file of alerts of cluster-dash: move it away")
        if version > VERSION:
            raise BookError(
                f"{self.path} was written by a newer release (form {version}, this one knows {VERSION}): "
                "install that release, or choose another folder, --data"
            )
        db.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'TRUNCATE'}")
        db.execute("PRAGMA synchronous = FULL")  # what is told and what is kept agree after a loss of power, too
        db.execute("PRAGMA secure_delete = FAST")
        if version < VERSION:
            db.executescript(
                f"BEGIN IMMEDIATE; {';'.join(STEPS[version:])}; PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {VERSION}; COMMIT;"
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise _unusable(self.path, error) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection in a transaction: all of it is kept, or nothing."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:  # raised again: whatever ends it, half of it must not stand
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise

    def _inserted(self, db: "Statements", sql: str, parameters: Sequence[Any]) -> int:
        return int(cast(sqlite3.Cursor, db.execute(sql, parameters)).lastrowid or 0)

    def begin_anew(self) -> None:
        """See `Book`: who asks is who evaluates."""

    def _stand_still(self, db: "Statements") -> None:
        """Nobody else writes: `Watch.between_rounds` sees to it."""

    def _check(self, db: "Statements", fence: int) -> None:
        """There is one server, and it evaluates."""

    def set_back(self, seconds: float) -> None:
        """See `Outbox`."""
        with self._writing() as db:
            db.execute(
                "UPDATE outbox SET made_at = made_at - ?, next_try_at = next_try_at - ? WHERE outcome IS NULL",
                (seconds, seconds),
            )

    def claim(self, waiting: Waiting, seconds: float) -> bool:
        """See `Outbox`: there is nobody else who sends."""
        return True

    def release(self, receiver: str) -> None:
        """See `Outbox`."""


def _unusable(path: Path, error: Exception) -> BookError:
    return BookError(f"{path}: alerts cannot be kept: {error}")
