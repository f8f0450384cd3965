"""The book of this server: opened when it serves; before that, and where it cannot be, it raises `BookError`."""

import atexit
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster_dash_server.alerts.book import Book, BookError
from cluster_dash_server.history import folder as data_folder
from cluster_dash_server.ledger.sqlite import FILE, SqliteBook

if TYPE_CHECKING:
    from cluster_dash_server.ledger.postgresql import PostgresqlBook
    from cluster_dash_server.ledger.shared import Shared

log = logging.getLogger(__name__)


class KeptBook:
    """Holds what keeps alerts; `book` is a `Book` from the beginning on, so that the parts of the server can have it.

    Args:
        folder: the data folder.
        clock: Unix s.
        kept_days: how long alerts are kept after their end: they may name users.
        shared: the database that keeps them; None: a file in the folder does.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float], kept_days: float = 400.0, shared: "Shared | None" = None
    ) -> None:
        self.book = cast(Book, _Opened(self))
        self.ends: list[Callable[[], None]] = []
        """What ends before it is closed."""
        self.shared = shared
        self._folder = folder
        self._clock = clock
        self._kept_seconds = kept_days * 86_400.0
        self._why_not: str | None = None
        self._opened: SqliteBook | PostgresqlBook | None = None
        self._lock: int | None = None

    @property
    def trouble(self) -> str | None:
        """Why no alerts are kept now, though the server serves; None: they are, or it does not yet."""
        return self._why_not if self._opened is None else self._opened.trouble

    def fence(self) -> int | None:
        """Return what alerts are evaluated with; None: another replica evaluates them."""
        return 0 if self.shared is None else self.shared.lease.fence()

    def leads(self) -> bool:
        """Say whether this is the one server that does what is to be done once."""
        return self.fence() is not None

    def well(self) -> None:
        """Note that alerts were evaluated: a replica that leads and does not lets another one lead."""
        if self.shared is not None:
            self.shared.lease.well()

    def start(self, *, has_folder: bool) -> None:
        """Open it, once, in the process that serves.

        Args:
            has_folder: this process has taken the data folder already.
        """
        self._opened = self._file(has_folder) if self.shared is None else self._in_database(self.shared)
        if self._opened is None:
            log.warning("no alerts are kept, and nobody is told of any: %s", self._why_not)
            return
        atexit.register(self.close)

    def _in_database(self, shared: "Shared") -> "PostgresqlBook":
        """Return the book of all replicas, whether or not it can be reached now."""
        shared.lease.start()
        return shared.book(self._clock, self._kept_seconds)

    def _file(self, has_folder: bool) -> SqliteBook | None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not has_folder:
                self._lock = data_folder.take(self._folder)
            is_network = data_folder.file_system(self._folder) in data_folder.NETWORK_FILE_SYSTEMS
            return SqliteBook(self._folder / FILE, self._clock, wal=not is_network, kept_seconds=self._kept_seconds)
        except (data_folder.FolderHeld, BookError) as error:
            self._why_not = str(error)
        except OSError as error:
            self._why_not = f"{self._folder}: {error.strerror}: choose another folder, --data"
        return None

    def close(self) -> None:
        """Close it."""
        if self._opened is not None:
            for end in self.ends:
                end()
            if self.shared is not None:
                self.shared.lease.stop()
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
            atexit.unregister(self.close)
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                os.close(lock)

    def forget_user(self, user: str) -> None:
        """Take a user's name out of all alerts; where none are kept, there is nothing to take it out of.

        Raises:
            BookError: they cannot be written.
        """
        if self._opened is not None:
            self._opened.forget_user(user)

    @property
    def is_open(self) -> bool:
        """Whether alerts can be asked for and kept, or can once their database is back."""
        return self._opened is not None

    def opened(self) -> "SqliteBook | PostgresqlBook":
        """Return what keeps alerts.

        Raises:
            BookError: it is not open.
        """
        if self._opened is None:
            raise BookError(self._why_not or "no alerts are kept until the server serves")
        return self._opened


class _Opened:
    """Asks the file that is open by then."""

    def __init__(self, kept: KeptBook) -> None:
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any, **named: Any) -> Any:
            return getattr(self._kept.opened(), name)(*args, **named)

        return ask
