"""A command takes the data folder for itself, where no server runs; the lock is that of `history.folder`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster_dash_server import control
from cluster_dash_server.commands import CommandError
from cluster_dash_server.history import folder as data_folder


def refuse_what_is_not_there(folder: Path) -> None:
    """Refuse a folder that no server has made: what is asked of it is not in it.

    Raises:
        CommandError: it is not there.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder} is not there: is it the data folder? --data names another")


@contextmanager
def taken(folder: Path) -> Iterator[os.stat_result]:
    """Keep servers out of a folder for the length of a block; it is made where it is not there.

    Gives whose it is: root may type the command, and the server must still be able to write what it left there.

    Raises:
        ControlError: a server has it that does not answer, or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = data_folder.take(folder)
    except data_folder.FolderHeld as error:
        raise control.ControlError(f"{error}, and it does not answer on its socket") from None
    except OSError as error:
        raise control.ControlError(f"{folder}: {error.strerror}") from None
    try:
        owner = folder.stat()
        if os.geteuid() == 0:
            os.fchown(lock, owner.st_uid, owner.st_gid)
        yield owner
    finally:
        os.close(lock)
