"""A copy of all that a server keeps, made while it runs, and a data folder made of it again.

A backup is a tar file: databases as SQLite itself copies them, in one transaction, and the other files as they are. It
holds secrets (tokens as digests, the key of pseudonyms), so only its owner can read it.
"""

import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cluster_dash_server.history import folder as data_folder
from cluster_dash_server.history.sqlite import schema
from cluster_dash_server.history.sqlite.store import FILE as HISTORY

LEFT_OUT = ("-wal", "-shm", "-journal", ".sock", ".tmp", data_folder.LOCK)
"""Endings of what belongs to a running process, and is made anew."""
DATABASES = (".db", ".sqlite")
MARK = "cluster-dash-backup"
"""The first member of a backup: says that it is one, and its form."""
FORM = b"1\n"


class BackupError(Exception):
    """A backup that cannot be made or restored; the text says why and what would mend it."""


def backup(folder: Path, file: Path) -> list[str]:
    """Copy what a server keeps into a file, in whose place another one may stand; return the names of what is in it.

    Raises:
        BackupError: there is nothing to copy, or it cannot be read or written.
    """
    try:
        names = sorted(each.name for each in folder.iterdir() if _is_kept(each))
        if not names:
            raise BackupError(f"{folder} holds nothing to back up: is it the data folder? --data names another")
        with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.absolute().parent) as scratch:
            whole = Path(scratch) / "whole"
            with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                with tarfile.open(fileobj=out, mode="w") as tar:
                    _add(tar, MARK, _written(Path(scratch) / MARK, FORM))
                    for name in names:
                        source = folder / name
                        if source.suffix in DATABASES:
                            source = _copied(source, Path(scratch) / name)
                        _add(tar, name, source)
                out.flush()
                os.fsync(out.fileno())
            whole.replace(file)
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise BackupError(f"{file}: the backup cannot be made: {_why(error)}") from error
    return names


def restore(file: Path, folder: Path) -> list[str]:
    """Make a data folder of a backup; what stood in it is moved into a folder beside its files, never deleted.

    Raises:
        BackupError: a server runs there, or the file is no sound backup of this release or an older one.
    """
    try:
        with data_folder.held(folder), tempfile.TemporaryDirectory(prefix=".restore.", dir=folder) as scratch:
            names = _unpacked(file, Path(scratch))
            _check(Path(scratch) / HISTORY)
            _move_away(folder)
            for name in names:
                (Path(scratch) / name).replace(folder / name)
    except data_folder.FolderHeld as error:
        raise BackupError(f"{error}: stop it first") from None
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise BackupError(f"{file}: it cannot be restored: {_why(error)}") from error
    return names


def _is_kept(file: Path) -> bool:
    is_scratch = file.name.startswith(".") or ".bad-" in file.name or file.name.endswith(LEFT_OUT)
    return file.is_file() and not file.is_symlink() and not is_scratch


def _copied(source: Path, to: Path) -> Path:
    """Copy a database in one read transaction: nobody who writes has to wait where it has a write-ahead log."""
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as there,
        closing(sqlite3.connect(to)) as here,
    ):
        there.backup(here)
        here.execute("PRAGMA journal_mode = DELETE")
    return to


def _written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def _add(tar: tarfile.TarFile, name: str, source: Path) -> None:
    member = tar.gettarinfo(str(source), name)
    member.mode, member.uid, member.gid, member.uname, member.gname = 0o600, 0, 0, "", ""
    with source.open("rb") as content:
        tar.addfile(member, content)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Give the files of a backup; nothing but plain files, by plain names."""
    for place, member in enumerate(tar):
        if place == 0 and member.name != MARK:
            break
        if not member.isfile() or Path(member.name).name != member.name or member.name in (".", ".."):
            raise BackupError(f"{member.name[:100]!r} does not belong in a backup: it was not made by this program")
        yield member


def _unpacked(file: Path, to: Path) -> list[str]:
    names = []
    with tarfile.open(file, mode="r:") as tar:
        for member in _members(tar):
            content = tar.extractfile(member)
            if content is None:
                continue
            with os.fdopen(os.open(to / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                while block := content.read(2**20):
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
            names.append(member.name)
    if not names:
        raise BackupError(f"{file} is no backup of cluster-dash")
    if (to / MARK).read_bytes() != FORM:
        raise BackupError(f"{file} was made by a newer release: install that one")
    return names[1:]


def _check(history: Path) -> None:
    """Refuse a history that this release cannot open, or that is damaged."""
    if not history.exists():
        return
    with closing(sqlite3.connect(f"file:{history}?mode=ro", uri=True)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if version > schema.VERSION:
        raise BackupError(f"its history was written by a newer release (form {version}): install that one")
    if verdict != "ok":
        raise BackupError(f"its history is damaged: {verdict}")


def _move_away(folder: Path) -> None:
    """Move what stands in a data folder into one beside it, with the journals that belong to it."""
    old = [each for each in folder.iterdir() if each.is_file() and not each.name.endswith((".sock", data_folder.LOCK))]
    if not old:
        return
    aside = folder / time.strftime("before-restore-%Y%m%dT%H%M%SZ", time.gmtime())
    aside.mkdir(mode=0o700, exist_ok=True)
    for each in old:
        each.replace(aside / each.name)


def _why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error)
