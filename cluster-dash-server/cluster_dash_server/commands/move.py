"""The command `move`: takes a site from the files of one server to the engines of replicas, or back."""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import sys
import time
from pathlib import Path

from cluster_dash_server import control, privacy
from cluster_dash_server.access.tokens import TokenError, TokenFile
from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.history import folder as data_folder
from cluster_dash_server.history.history import keep_of
from cluster_dash_server.history.sqlite.store import FILE, SqliteStore
from cluster_dash_server.ledger.waiting_line import LineFile
from cluster_dash_server.owners import KEY_FILE as LINKS_KEY
from cluster_dash_server.settings import Settings
from cluster_dash_server.store import StoreError
from cluster_dash_server.waiting import Line, WaitError

log = logging.getLogger(__name__)

KEYS = (privacy.KEY_FILE, LINKS_KEY)
MARKS = "moving.json"


class MoveError(Exception):
    """A move that could not be made, or not ended; the text says why and what would mend it."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    command.add_argument(
        "--to", type=Path, required=True, metavar="FILE", help="the settings of where to: a server.toml of its own"
    )
    command.add_argument(
        "--add", action="store_true", help="also where something is already: what is moved comes beside it"
    )


class _Marks:
    """What was moved, in a file of the data folder that is on this side."""

    def __init__(self, path: Path, to: str) -> None:
        self._path = path
        self._to = to
        self._done: dict[str, None] = {}
        with contextlib.suppress(FileNotFoundError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["to"] == to:
                self._done = dict.fromkeys(kept["done"])

    def __bool__(self) -> bool:
        return bool(self._done)

    def __contains__(self, part: str) -> bool:
        return part in self._done

    def add(self, part: str) -> None:
        """See `moving.Marks`."""
        self._done[part] = None
        new = self._path.with_suffix(".tmp")
        new.write_text(json.dumps({"to": self._to, "done": list(self._done)}), encoding="utf-8")
        new.replace(self._path)

    def remove(self) -> None:
        """Forget it: all was moved."""
        self._path.unlink(missing_ok=True)


def run(options: argparse.Namespace, settings: Settings, target: Settings, folder: Path) -> None:
    """Move the site; print how far it is.

    Args:
        options: of the command line.
        settings: of the site as it is.
        target: of the site as it will be.
        folder: the data folder of the site as it is.

    Raises:
        MoveError: it could not be ended; the same command goes on where it stopped.
    """
    if not (_is_of_replicas(settings) and _is_of_one(target)) and not (
        _is_of_one(settings) and _is_of_replicas(target)
    ):
        raise MoveError(
            'from files to engines, or back: one side has [history] kind = "sqlite" and [ledger] kind = "sqlite", '
            'the other [history] kind = "remote" and [ledger] kind = "postgresql"'
        )
    from cluster_dash_server.postgresql import PostgresqlError  # what it needs is an extra

    there = control.find_data_folder(target.server.data, os.environ)
    try:
        with contextlib.ExitStack() as held:
            for each in sorted({folder.absolute(), there.absolute()}):
                held.enter_context(data_folder.held(each))
            if _is_of_replicas(target):
                _to_engines(options, target, folder)
            else:
                _to_files(options, settings, target, folder, there)
    except data_folder.FolderHeld as error:
        raise MoveError(f"{error}: stop it first") from None
    except (StoreError, PostgresqlError, BookError, WaitError, TokenError, OSError, sqlite3.Error) as error:
        raise MoveError(f"{error}; the same command goes on where it stopped") from error


def _is_of_replicas(settings: Settings) -> bool:
    return settings.history.kind == "remote" and settings.ledger.kind == "postgresql"


def _is_of_one(settings: Settings) -> bool:
    return settings.history.kind == "sqlite" and settings.ledger.kind == "sqlite"


def _say(what: str, done: int, parts: int, rows: int) -> None:
    kind, _, moment = what.partition(" of ")
    words = what if not moment else f"{kind} of {time.strftime('%Y-%m-%d %H:%M', time.gmtime(int(moment.split()[0])))}Z"
    sys.stdout.write(f"{done}/{parts} {words}: {rows}\n")
    sys.stdout.flush()


def _to_engines(options: argparse.Namespace, target: Settings, folder: Path) -> None:
    from cluster_dash_server.history import moving  # what they need are extras
    from cluster_dash_server.history.postgresql.ledger import PostgresqlLedger
    from cluster_dash_server.history.remote import store as remote
    from cluster_dash_server.ledger import tables
    from cluster_dash_server.ledger.commons import Commons

    url = str(target.ledger.url)
    marks = _Marks(folder / MARKS, _named(target))
    commons = Commons(url, folder, time.time)
    store = remote.of_move(target.history, time.time)
    ledger = None
    try:
        if not (marks or options.add) and not (store.is_empty() and tables.is_empty(commons.database)):
            raise MoveError("the engine, under this cluster, or PostgreSQL holds something already: --add adds to it")
        marks.add("begun")
        keep = keep_of(target.history, target.privacy)
        ledger = PostgresqlLedger(commons.database, clock=time.time, keep=keep, added=store.add_up)
        if (folder / FILE).exists():
            for moved in moving.to_engines(folder, store, ledger, time.time() - keep.rows_seconds, marks):
                _say(*moved)
        if "the rest" not in marks:
            tokens = TokenFile(folder).read()
            commons.access.write(tokens, time.time())
            with commons.line.alone():
                commons.line.write(LineFile(folder).read())
            for name in KEYS:
                if (folder / name).exists():
                    commons.keys.key(name)
            rows = tables.put(folder, commons.database)
            sys.stdout.write(f"{len(tokens)} tokens, {rows} rows of alerts, those who wait, keys\n")
        if store.left_out:
            sys.stdout.write(f"the engine takes no figures so old, or refused them: {store.left_out} are not there\n")
        marks.remove()
    finally:
        if ledger is not None:
            ledger.close()
        store.close()
        commons.close()


def _to_files(options: argparse.Namespace, settings: Settings, target: Settings, folder: Path, there: Path) -> None:
    from cluster_dash_server.history import moving  # what they need are extras
    from cluster_dash_server.history.remote import store as remote
    from cluster_dash_server.ledger import tables
    from cluster_dash_server.ledger.commons import Commons
    from cluster_dash_server.ledger.keys import SharedKeys

    marks = _Marks(folder / MARKS, _named(target))
    kept = [name for name in (FILE, TokenFile(there).path.name) if (there / name).exists()]
    if kept and not (marks or options.add):
        raise MoveError(f"{there} holds {' and '.join(kept)} already: --add adds to it, or choose another folder")
    commons = Commons(str(settings.ledger.url), folder, time.time)
    store = remote.of_move(settings.history, time.time)
    try:
        if tables.is_led(commons.database):
            raise MoveError("replicas serve still: stop all of them first")
        marks.add("begun")
        keep = keep_of(target.history, target.privacy)
        file = SqliteStore(there, clock=time.time, keep=keep)
        try:
            for moved in moving.to_file(commons.database, store, file, marks):
                _say(*moved)
        finally:
            file.close()
        tokens = commons.access.read()
        TokenFile(there).write(tokens, time.time())
        line = commons.line.read()
        if line != Line():
            LineFile(there).write(line)
        for name in tables.keys(commons.database, KEYS):
            SharedKeys(commons.database, there).key(name)
        rows = tables.take(commons.database, there)
        sys.stdout.write(f"{len(tokens)} tokens, {rows} rows of alerts, those who wait, keys\n")
        marks.remove()
    finally:
        store.close()
        commons.close()


def _named(target: Settings) -> str:
    """Return what tells one target from another, and no secret."""
    history, ledger = target.history, target.ledger
    whole = json.dumps([target.server.data, history.kind, history.write_url, history.cluster, ledger.url])
    return hashlib.sha256(whole.encode()).hexdigest()
