"""The command `summary`: what is free and what is wrong, in the sentence that stands on top of the overview."""

import sys
from pathlib import Path

from cluster_dash_server import control
from cluster_dash_server.snapshot import printable


def run(folder: Path) -> None:
    """Print the sentence, as the running server says it.

    Raises:
        ControlError: no server answers.
    """
    sys.stdout.write(f"{printable(control.ask(folder, {'summary': {}})['text'], 1000)}\n")
