"""The book of this server: opened when it serves; before that, and where it cannot be, it raises `BookError`."""

import atexit
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cluster_dash_server.alerts.book import Book, BookError
from cluster_dash_server.history import folder as data_folder
from cluster_dash_server.ledger.sqlite import FILE, SqliteBook

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """The section `[ledger]`."""

    kind: str = field(
        default="sqlite",
        metadata={
            "help": "what keeps alerts, events, tokens and who had which GPU: sqlite, files in the data folder; "
            "postgresql, a database (an extra) that several replicas share",
            "choices": ("sqlite", "postgresql"),
        },
    )
    url: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "postgresql: its address, as postgresql://dash@db.lab:5432/dash?sslmode=verify-full",
            "secret": True,
        },
    )
    url_file: str | None = field(
        default=None, metadata={"help": "postgresql: a file that holds the url, instead", "of": "url"}
    )


class KeptBook:
    """Holds the file of alerts; `book` is a `Book` from the beginning on, so that the parts of the server can have it.

    Args:
        folder: the data folder.
        clock: Unix s.
        kept_days: how long alerts are kept after their end: they may name users.
    """

    def __init__(self, folder: Path, clock: Callable[[], float], kept_days: float = 400.0) -> None:
        self.trouble: str | None = None
        """Why no alerts are kept, though the server serves; None: they are, or it does not yet."""
        self.book = cast(Book, _Opened(self))
        self.ends: list[Callable[[], None]] = []
        """What ends before it is closed."""
        self._folder = folder
        self._clock = clock
        self._kept_seconds = kept_days * 86_400.0
        self._file: SqliteBook | None = None
        self._lock: int | None = None

    def start(self, *, has_folder: bool) -> None:
        """Open it, once, in the process that serves.

        Args:
            has_folder: this process has taken the data folder already.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not has_folder:
                self._lock = data_folder.take(self._folder)
            is_network = data_folder.file_system(self._folder) in data_folder.NETWORK_FILE_SYSTEMS
            self._file = SqliteBook(
                self._folder / FILE, self._clock, wal=not is_network, kept_seconds=self._kept_seconds
            )
        except (data_folder.FolderHeld, BookError) as error:
            self.trouble = str(error)
        except OSError as error:
            self.trouble = f"{self._folder}: {error.strerror}: choose another folder, --data"
        if self.trouble is not None:
            log.warning("no alerts are kept, and nobody is told of any: %s", self.trouble)
            return
        atexit.register(self.close)

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            for end in self.ends:
                end()
        file, self._file = self._file, None
        if file is not None:
            file.close()
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
        if self._file is not None:
            self._file.forget_user(user)

    @property
    def is_open(self) -> bool:
        """Whether alerts can be asked for and kept."""
        return self._file is not None

    def opened(self) -> SqliteBook:
        """Return the file.

        Raises:
            BookError: it is not open.
        """
        if self._file is None:
            raise BookError(self.trouble or "no alerts are kept until the server serves")
        return self._file


class _Opened:
    """Asks the file that is open by then."""

    def __init__(self, kept: KeptBook) -> None:
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any, **named: Any) -> Any:
            return getattr(self._kept.opened(), name)(*args, **named)

        return ask
