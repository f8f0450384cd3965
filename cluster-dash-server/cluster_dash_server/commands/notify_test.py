"""`notify-test`: a message to receivers, by the very way that a real one takes."""

import argparse
import sys

from cluster_dash_server.snapshot import Json, printable


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Say what can be asked for."""
    command.add_argument(
        "receiver", nargs="?", metavar="RECEIVER", help="its name in the settings, or mailto:ADDRESS; else all"
    )


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
