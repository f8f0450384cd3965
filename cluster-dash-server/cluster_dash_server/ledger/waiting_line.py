"""Those who wait for free GPUs, in a file of the data folder or in PostgreSQL: small, written whole."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster_dash_server.free import Wish
from cluster_dash_server.waiting import Called, Line, Told, Wait, WaitError

if TYPE_CHECKING:
    from cluster_dash_server.postgresql import Database, Statements

FILE = "waiting.json"
FORMAT = 2
"""The form of the file; a newer one is refused."""
STEPS = (
    """
CREATE TABLE line (one BOOLEAN PRIMARY KEY CHECK (one), line TEXT);
INSERT INTO line VALUES (true, NULL)
""",
)


class LineFile:
    """A `KeptLine` in a file that only the server's user can read: it holds addresses of people.

    A crash in the middle of a write leaves what was there before.

    Args:
        folder: the data folder; made by the first write.
    """

    is_shared = False

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Return nothing to wait for: one server has the folder."""
        return contextlib.nullcontext()

    def read(self) -> Line:
        """See `KeptLine`."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            return _line(kept)
        except _Newer as error:
            raise self._unusable(str(error)) from None
        except FileNotFoundError:
            return Line()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"cannot be read: {error}") from error

    def write(self, line: Line) -> None:
        """See `KeptLine`."""
        kept = _written(line)
        new = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(kept, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as error:
            raise self._unusable(f"cannot be written: {error.strerror}") from error

    def _unusable(self, why: str) -> WaitError:
        return WaitError(503, f"{self.path}: {why}")


class SharedLine:
    """A `KeptLine` that replicas share.

    Args:
        database: where it is.
    """

    is_shared = True

    def __init__(self, database: "Database") -> None:
        self._db = database
        self._alone = threading.local()
        database.expects("line", STEPS)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """See `KeptLine`."""
        from cluster_dash_server.postgresql import PostgresqlError  # what it needs is an extra

        try:
            with self._db.transaction() as db:
                self._alone.db = db
                yield
        except PostgresqlError as error:
            raise WaitError(503, f"who waits cannot be kept now: {error}") from error
        finally:
            self._alone.db = None

    def read(self) -> Line:
        """See `KeptLine`; who is not `alone` waits for nobody."""
        from cluster_dash_server.postgresql import PostgresqlError  # what it needs is an extra

        held: Statements | None = getattr(self._alone, "db", None)
        try:
            if held is not None:
                (kept,) = held.execute("SELECT line FROM line FOR UPDATE").fetchone()
            else:
                with self._db.reading() as db:
                    (kept,) = db.execute("SELECT line FROM line").fetchone()
        except PostgresqlError as error:
            raise WaitError(503, f"who waits cannot be read now: {error}") from error
        try:
            return Line() if kept is None else _line(json.loads(kept))
        except (_Newer, ValueError, KeyError, TypeError) as error:
            raise WaitError(503, f"who waits cannot be read: {error}") from error

    def write(self, line: Line) -> None:
        """See `KeptLine`; within `alone`."""
        self._alone.db.execute("UPDATE line SET line = ?", (json.dumps(_written(line)),))


class _Newer(Exception):
    """What is kept was written by a newer release."""


def _line(kept: dict[str, Any]) -> Line:
    if kept["format"] > FORMAT:
        raise _Newer(f"was written by a newer release (form {kept['format']}, this one knows {FORMAT})")
    return Line(
        waits=tuple([_wait(each) for each in kept["waits"]]),
        called=tuple([Called(*each) for each in kept["called"]]),
        told=tuple([_told(*each) for each in kept["told"]]),
        last_id=kept["last_id"],
    )


def _written(line: Line) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "waits": [_kept(each) for each in line.waits],
        "called": line.called,
        "told": [(each.receiver, each.at, each.id, each.key.hex(), each.host, each.gpus) for each in line.told],
        "last_id": line.last_id,
    }


def _kept(wait: Wait) -> dict[str, Any]:
    return {
        "id": wait.id,
        "count": wait.wish.count,
        "free_mem": wait.wish.free_mem,
        "model": wait.wish.model,
        "q": wait.q,
        "receiver": wait.receiver,
        "key": wait.key.hex(),
        "asked_at": wait.asked_at,
        "until": wait.until,
        "client": wait.client,
    }


def _wait(kept: dict[str, Any]) -> Wait:
    return Wait(
        id=kept["id"],
        wish=Wish(count=kept["count"], free_mem=kept["free_mem"], model=kept["model"]),
        q=kept["q"],
        receiver=kept["receiver"],
        key=bytes.fromhex(kept["key"]),
        asked_at=kept["asked_at"],
        until=kept["until"],
        client=kept.get("client", ""),
    )


def _told(receiver: str, at: float, id_: int = 0, key: str = "", host: str = "", gpus: Sequence[int] = ()) -> Told:
    return Told(receiver, at, id_, bytes.fromhex(key), host, tuple(gpus))
