"""Those who wait for free GPUs, in a file of the data folder: small, written whole."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster_dash_server.free import Wish
from cluster_dash_server.waiting import Called, Line, Told, Wait, WaitError

FILE = "waiting.json"
FORMAT = 2
"""The form of the file; a newer one is refused."""


class LineFile:
    """A `KeptLine` in a file that only the server's user can read: it holds addresses of people.

    A crash in the middle of a write leaves what was there before.

    Args:
        folder: the data folder; made by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def read(self) -> Line:
        """See `KeptLine`."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["format"] > FORMAT:
                raise self._unusable(f"was written by a newer release (form {kept['format']}, this one knows {FORMAT})")
            return Line(
                waits=tuple([_wait(each) for each in kept["waits"]]),
                called=tuple([Called(*each) for each in kept["called"]]),
                told=tuple([_told(*each) for each in kept["told"]]),
                last_id=kept["last_id"],
            )
        except FileNotFoundError:
            return Line()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"cannot be read: {error}") from error

    def write(self, line: Line) -> None:
        """See `KeptLine`."""
        kept = {
            "format": FORMAT,
            "waits": [_kept(each) for each in line.waits],
            "called": line.called,
            "told": [(each.receiver, each.at, each.id, each.key.hex(), each.host, each.gpus) for each in line.told],
            "last_id": line.last_id,
        }
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
