"""The command `digest`: a night in some fifteen lines, as the running server tells it."""

import argparse
import sys
from pathlib import Path

from cluster_dash_server import control
from cluster_dash_server.commands import UsageError
from cluster_dash_server.snapshot import printable
from cluster_dash_server.when import GRAMMAR


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", parents: list[argparse.ArgumentParser]
) -> argparse.ArgumentParser:
    """Describe the command."""
    text = "say in some fifteen lines what happened last night, and what needs a hand"
    command = commands.add_parser(
        "digest", parents=parents, help=text, description=f"{text.capitalize()}, by the running server."
    )
    command.add_argument("--from", dest="begin", default="now-24h", metavar="WHEN", help=f"{GRAMMAR} (now-24h)")
    command.add_argument("--to", dest="end", default="now", metavar="WHEN", help="the same (now)")
    return command


def run(options: argparse.Namespace, folder: Path) -> None:
    """Print the digest.

    Raises:
        UsageError: the stretch of time cannot be understood.
        ControlError: no server answers.
    """
    answer = control.ask(folder, {"digest": {"begin": options.begin, "end": options.end}})
    if not answer["success"]:
        raise UsageError(f"--{answer['msg']}")
    sys.stdout.write("".join(f"{printable(line, 1000)}\n" for line in answer["text"].splitlines()))
