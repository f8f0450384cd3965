"""What `cluster-dash-server` does besides serving: a file for each command; `cli` describes and calls them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster_dash_server.snapshot import Json


class CommandError(Exception):
    """What was asked for was not done; the text says why."""


class UsageError(CommandError):
    """The command line does not fit together, or names something that cannot be read; the text says how."""


class Parser(argparse.ArgumentParser):
    """Reads a command line; refuses an empty value, which is a variable that is not set in most cases."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.register("type", None, _said)
        self.register("type", Path, lambda text: Path(_said(text)))


def _said(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("got an empty value: a variable that is not set?")
    return text


def granted(answer: Json) -> Json:
    """Return what the server says to a wish that it granted.

    Raises:
        UsageError: it was typed wrong.
        CommandError: it was not granted.
    """
    if answer["success"]:
        return answer
    raise (UsageError if answer.get("is_usage") else CommandError)(str(answer["msg"]))


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return what reads an option that is a whole number; argparse puts the option's name before what it says."""

    def read(text: str) -> int:
        is_short = text.isascii() and text.isdecimal() and len(text) <= 15
        if not is_short or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {least} to {most}")
        return int(text)

    return read
