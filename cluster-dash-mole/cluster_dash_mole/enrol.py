"""`enrol`: trades a code for a token of this host, and keeps it where only its owner can read it."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cluster_dash_mole.host import Host
from cluster_dash_mole.mole import Row, SendError
from cluster_dash_mole.senders.http.exchange import Answer, parse_address
from cluster_dash_mole.snapshot import clean

TOKEN_FILE = "token"  # noqa: S105 - a name, no secret
"""Name of the file in the mole's state folder, where the configuration names no other."""
_PATH = "api/v1/enrol"


def address_of(url: str) -> str:
    """Return where a server takes wishes to enrol.

    Raises:
        ValueError: it is no address.
    """
    parse_address(url)
    return f"{url.rstrip('/')}/{_PATH}"


class Poster(Protocol):
    """What posts a document and returns the answer, whatever it says."""

    def post(self, document: Mapping[str, object]) -> Answer:
        """Post it; raises SendError where there is no answer."""


class TokenPlace:
    """A file for a token, made before there is one: a code is not to be used up for a file that cannot be written.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def __enter__(self) -> "TokenPlace":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._new.unlink(missing_ok=True)

    def keep(self, token: str) -> None:
        """Write the token, in the place of what stood there."""
        os.write(self._file, f"{token}\n".encode())
        os.fsync(self._file)
        self._new.replace(self.path)


def trade(sender: Poster, code: str, host: Host) -> str:
    """Return the token that a server gives this host for a code.

    Args:
        sender: posts to `address_of` the server.
        code: the enrolment code.
        host: who asks.

    Raises:
        SendError: it gives none; the text says why and never holds the code.
    """
    wish: dict[str, object] = {"code": code, "hostname": host.hostname}
    answer = sender.post(wish if host.machine_id is None else {**wish, "machine_id": host.machine_id})
    try:
        said = json.loads(answer.body)
    except ValueError:
        said = None
    if not isinstance(said, dict) or "success" not in said:
        raise SendError("CD104 got no answer of cluster-dash (a proxy's login page?)", row=Row.TROUBLE)
    token, words = said.get("token"), clean(str(said.get("msg", "")).replace(code, "***"), 300)
    if answer.status == 200 and isinstance(token, str) and token.isascii() and token.isprintable():
        return token
    if answer.status in (401, 403):
        codes = {401: "CD201 the code is not known there", 403: "CD203 this host may not enrol"}
        raise SendError(f"{codes[answer.status]} ({answer.status}): {words}", row=Row.WHO_ARE_YOU)
    if answer.status in (404, 405):
        raise SendError(f"the server knows no enrolment ({answer.status}): it is older than this mole", row=Row.NEVER)
    row = Row.NOT_NOW if answer.status in (429, 503) else Row.TROUBLE
    raise SendError(f"server answered {answer.status}: {words}", row=row)
