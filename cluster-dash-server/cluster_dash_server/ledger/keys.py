"""Keys that replicas share: the first replica that needs one makes it, or brings that of its data folder.

The data folder keeps a copy, with which a replica can start while the database is away.
"""

import contextlib
import logging
import os
import secrets
from pathlib import Path

from cluster_dash_server.postgresql import Database, PostgresqlError

log = logging.getLogger(__name__)

STEPS = ("CREATE TABLE keys (name TEXT PRIMARY KEY, key BYTEA NOT NULL)",)


class SharedKeys:
    """Keys in a database.

    Args:
        database: where they are.
        folder: the data folder.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._db = database
        self._folder = folder
        database.expects("keys", STEPS)

    def key(self, name: str) -> bytes:
        """Return a key.

        Args:
            name: the name of its file in a data folder.

        Raises:
            OSError: it cannot be asked for, and there is no copy of it; or no copy can be made.
        """
        path = self._folder / name
        own = b""
        with contextlib.suppress(FileNotFoundError):
            own = path.read_bytes()
        try:
            with self._db.transaction() as db:
                db.execute(
                    "INSERT INTO keys (name, key) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    (name, own or secrets.token_bytes(32)),
                )
                (found,) = db.execute("SELECT key FROM keys WHERE name = ?", (name,)).fetchone()
        except PostgresqlError as error:
            if not own:
                raise OSError(f"{name} cannot be asked for: {error}") from error
            log.warning("%s: the copy in the data folder is used: %s", name, error)
            return own
        key = bytes(found)
        if key != own:
            _write(path, key)
        return key


def _write(path: Path, key: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.tmp")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
