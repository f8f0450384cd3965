"""The history of this server: opened when it serves; until then, or where it can't be, a store that keeps nothing."""

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cluster_dash_server.figures import forget_holders
from cluster_dash_server.history import folder as data_folder
from cluster_dash_server.history.rollups import DAY
from cluster_dash_server.history.settings import HistorySettings, PrivacySettings
from cluster_dash_server.history.sqlite import first_version
from cluster_dash_server.history.sqlite.store import Keep, SqliteStore
from cluster_dash_server.store import (
    Event,
    EventQuery,
    Figures,
    Heard,
    KeptEvent,
    LastSeen,
    Series,
    SeriesQuery,
    StoreError,
    Unnamed,
    Usage,
    UsageQuery,
    Use,
    UseQuery,
)

if TYPE_CHECKING:
    from cluster_dash_server.history.remote.store import RemoteHistory
    from cluster_dash_server.history.settled import Settled
    from cluster_dash_server.postgresql import Database

log = logging.getLogger(__name__)


def keep_of(settings: HistorySettings, privacy: PrivacySettings) -> Keep:
    """Return for how long what is kept."""
    return Keep(
        rows_seconds=settings.rows_days * DAY,
        minutes_seconds=settings.minutes_days * DAY,
        hours_seconds=settings.hours_days * DAY,
        users_seconds=privacy.user_days * DAY,
        file_bytes=int(settings.max_gb * 2**30),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What replicas share, where figures are in an engine.

    Attributes:
        database: for what no engine can tell.
        leads: whether this replica is the one that adds up.
        settled: what all of them know to be settled.
        heard: given what became of events, by whichever replica.
    """

    database: "Database"
    leads: Callable[[], bool]
    settled: "Settled"
    heard: Callable[[Iterable[Heard]], None]


class History:
    """A `Store` and a `Ledger`; the parts of the server hold it from the start.

    Args:
        folder: the data folder.
        settings: the section `[history]`.
        privacy: the section `[privacy]`.
        clock: Unix s.
        last_seen: what the live view knows of hosts.
        shared: what replicas share; None: there is one server, and a file of its own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: HistorySettings,
        privacy: PrivacySettings,
        clock: Callable[[], float],
        last_seen: Callable[[Iterable[str]], Iterable[LastSeen]],
        shared: Shared | None = None,
    ) -> None:
        self._shared = shared if settings.kind == "remote" else None
        self._folder = folder
        self._settings = settings
        self._keep = keep_of(settings, privacy)
        self._clock = clock
        self._last_seen = last_seen
        self._once = threading.Lock()
        self._store: SqliteStore | RemoteHistory | None = None
        self._why_not: str | None = None

    def start(self) -> tuple[list[LastSeen], list[KeptEvent]]:
        """Open it, once, in the process that serves; return what the live view begins with.

        Where it can't be opened, the server goes on without: `trouble` says why.

        Raises:
            StoreError: the file is of a newer release.
        """
        if self._settings.kind == "none" or not self._once.acquire(blocking=False):
            return [], []
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = data_folder.take(self._folder)
        except data_folder.FolderHeld as error:
            self._why_not = str(error)
            log.warning("no history is written: %s; this one shows the live view only", self._why_not)
            return [], []
        except OSError as error:
            self._why_not = f"{self._folder}: {error.strerror}: choose another folder, --data"
            log.warning("no history is written: %s", self._why_not)
            return [], []
        self._store = store = self._of_replicas(self._shared) if self._shared is not None else self._of_one()
        atexit.register(self.close)
        return store.last_seen(), store.kept_events()

    def _of_replicas(self, shared: Shared) -> "RemoteHistory":
        from cluster_dash_server.history.postgresql.ledger import PostgresqlLedger  # what they need are extras
        from cluster_dash_server.history.remote import store as remote_store

        store = remote_store.of(self._settings, self._clock, sees_all=False)
        ledger = PostgresqlLedger(
            shared.database,
            clock=self._clock,
            keep=self._keep,
            leads=shared.leads,
            added=store.add_up,
            heard=shared.heard,
        )
        return remote_store.shared(store, ledger, shared.settled)

    def _of_one(self) -> "SqliteStore | RemoteHistory":
        kind = data_folder.file_system(self._folder)
        is_network = kind in data_folder.NETWORK_FILE_SYSTEMS
        if is_network:
            log.warning(
                "%s is on %s, a file system of a network: history is slower there, and not safe when several machines "
                "write; choose a local folder, --data",
                self._folder,
                kind,
            )
        file = SqliteStore(
            self._folder,
            clock=self._clock,
            keep=self._keep,
            last_seen=self._last_seen,
            wal=not is_network,
            first=first_version.find(),
        )
        if self._settings.kind == "remote":
            from cluster_dash_server.history.remote import store as remote_store  # what it needs is an extra

            return remote_store.RemoteHistory(remote_store.of(self._settings, self._clock), file)
        return file

    def close(self) -> None:
        """Write what waits, and give the folder back."""
        store, self._store = self._store, None
        if store is not None:
            store.close()
            with contextlib.suppress(OSError):
                os.close(self._lock)
            atexit.unregister(self.close)

    @property
    def keeps(self) -> bool:
        """Whether what is taken is written, at once or as soon as it can be."""
        return self._store is not None

    @property
    def trouble(self) -> str | None:
        """Why history is not written now, though it is wished; None: it is, or nothing was started yet."""
        return self._why_not if self._store is None else self._store.trouble

    @property
    def loss(self) -> str | None:
        """What was lost at a start or since, in words; None: nothing."""
        return None if self._store is None else self._store.loss

    @property
    def refusal(self) -> str | None:
        """Why posts have to wait, which only replicas know of; None: they need not."""
        return None if self._store is None or self._shared is None else cast("RemoteHistory", self._store).refusal

    def _open(self) -> "SqliteStore | RemoteHistory":
        if self._store is None:
            raise StoreError(self._why_not or "no history is kept here")
        return self._store

    # --------------------------------------------------------------------------------------------- Store and Ledger

    def append(self, figures: Figures) -> None:
        """See `Store`."""
        if self._store is not None:
            self._store.append(figures)

    def knows(self, host: str, boot_id: str, seq: int) -> bool:
        """See `Store`."""
        return self._store is not None and self._store.knows(host, boot_id, seq)

    def durable_seq(self, host: str, boot_id: str, oldest_seq: int | None) -> int | None:
        """See `Store`."""
        return None if self._store is None else self._store.durable_seq(host, boot_id, oldest_seq)

    def series(self, ask: SeriesQuery) -> list[Series]:
        """See `Store`."""
        return self._open().series(ask)

    def moment(self, at: float, silent_seconds: float = 600) -> list[Figures]:
        """See `Store`."""
        return self._open().moment(at, silent_seconds)

    def prune(self, now: float) -> None:
        """See `Store`."""
        self._open().prune(now)

    def flush(self) -> None:
        """See `Store`."""
        self._open().flush()

    def record(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        if self._store is not None:
            self._store.record(kept)

    def retract(self, kept: KeptEvent) -> None:
        """See `Ledger`."""
        if self._store is not None:
            self._store.retract(kept)

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger`."""
        return self._open().events(ask)

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger`."""
        return self._open().uses(ask)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger`."""
        return self._open().usage(ask)

    def forget(self, hosts: Iterable[str]) -> None:
        """See `Ledger`."""
        if self._store is not None:
            self._store.forget(hosts)

    def forget_user(self, user: str, strip: Callable[[LastSeen], LastSeen]) -> None:
        """See `Ledger`."""
        forget_holders()
        self._open().forget_user(user, strip)

    def unnamed(self, user: str) -> Unnamed | None:
        """See `Ledger`."""
        return self._open().unnamed(user)
