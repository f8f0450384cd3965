"""A command takes the data folder for itself, where no server runs; the lock is that of `history.folder`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
def taken(folder: Path) -> Iterator[None]:
    """Have a folder as `history.folder.held` does.

    Raises:
        ControlError: a server has it that does not answer, or it cannot be made.
    """
    with ExitStack() as block:
        try:
            block.enter_context(data_folder.held(folder))
        except data_folder.FolderHeld as error:
            raise control.ControlError(f"{error}, and it does not answer on its socket") from None
        except OSError as error:
            raise control.ControlError(f"{folder}: {error.strerror}") from None
        yield
