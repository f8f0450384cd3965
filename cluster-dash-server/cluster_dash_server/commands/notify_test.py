"""`notify-test`: a message to receivers, by the very way that a real one takes."""

import argparse
import sys
from pathlib import Path

from cluster_dash_server import control
from cluster_dash_server.commands import CommandError
from cluster_dash_server.snapshot import Json, printable


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Say what can be asked for."""
    command.add_argument(
        "receiver", nargs="?", metavar="RECEIVER", help="its name in the settings, or mailto:ADDRESS; else all"
    )


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Have the running server send it, and print what became of it; returns whether all receivers have it.

    Raises:
        CommandError: it was not sent.
        ControlError: no server answers.
    """
    answer = control.ask(folder, {"notify-test": {"receiver": options.receiver}})
    if not answer["success"]:
        raise CommandError(str(answer["msg"]))
    return show(answer)


def show(answer: Json) -> bool:
    """Print what became of it, a line each receiver; returns whether all have it."""
    for each in answer["outcomes"]:
        name = printable(str(each["receiver"]))
        if each["taken"]:
            sys.stdout.write(f"{name}: has it\n")
        elif each["taken"] is None:
            sys.stdout.write(f"{name}: not yet; it stays in the outbox, and the log says more\n")
        else:
            sys.stdout.write(f"{name}: did not take it: {printable(str(each['why']))}\n")
    return all(each["taken"] for each in answer["outcomes"])
