"""What replicas have in common in PostgreSQL beside alerts: tokens, sessions, keys, the line of those who wait."""

from collections.abc import Callable
from pathlib import Path

from cluster_dash_server.ledger.access import SharedAccess, SignedSessions
from cluster_dash_server.ledger.keys import SharedKeys
from cluster_dash_server.ledger.waiting_line import SharedLine
from cluster_dash_server.postgresql import Database

SESSIONS_KEY = "sessions.key"


class Commons:
    """The parts that keep it, on connections of their own: what they write does not hold up alerts.

    Args:
        url: of the database.
        folder: the data folder.
        clock: Unix s.
    """

    def __init__(self, url: str, folder: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.database = Database(url)
        self.access = SharedAccess(self.database, clock)
        self.keys = SharedKeys(self.database, folder)
        self.line = SharedLine(self.database)
        self.access.look()

    def sessions(self, seconds: float) -> tuple[SignedSessions, bytes]:
        """Return who has signed in at any replica, and the key that pages are tied to.

        Args:
            seconds: how long a session lasts.

        Raises:
            OSError: there is no key, and none can be made now.
        """
        key = self.keys.key(SESSIONS_KEY)
        return SignedSessions(seconds, self._clock, key, self.access), key

    def close(self) -> None:
        """End."""
        self.access.close()
        self.database.close()
