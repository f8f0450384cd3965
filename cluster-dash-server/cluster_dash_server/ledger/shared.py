"""What replicas share in PostgreSQL: the database, and who of them leads. Imported only where it is chosen."""

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from cluster_dash_server.ledger.lease import EVALUATOR, Lease
from cluster_dash_server.ledger.postgresql import PostgresqlBook
from cluster_dash_server.postgresql import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The database of several replicas, seen from one of them; nothing connects before it is asked for something.

    Attributes:
        replica: what this one is called: as no other, and none of its earlier lives.
        database: for whatever is kept there.
        lease: who leads; `lease.leads` for all that one replica does for the others.
    """

    replica: str
    database: Database
    lease: Lease

    @classmethod
    def at(cls, url: str) -> "Shared":
        """Name the database at an address."""
        replica = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        # the lease waits for no other statement, so it has a connection of its own
        return cls(
            replica=replica,
            database=Database(url),
            lease=Lease(Database(url, connections=1, seconds=2.0), EVALUATOR, replica),
        )

    def book(self, clock: Callable[[], float], kept_seconds: float) -> PostgresqlBook:
        """Return the book of alerts there."""
        return PostgresqlBook(self.database, clock, holder=self.replica, kept_seconds=kept_seconds)
