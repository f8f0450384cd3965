"""What `cluster-dash-server` does besides serving: a file for each command; `cli` describes and calls them."""

import argparse
from collections.abc import Callable


class CommandError(Exception):
    """What was asked for was not done; the text says why."""


class UsageError(CommandError):
    """The command line does not fit together, or names something that cannot be read; the text says how."""


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return what reads an option that is a whole number; argparse puts the option's name before what it says."""

    def read(text: str) -> int:
        is_short = text.isascii() and text.isdecimal() and len(text) <= 15
        if not is_short or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {least} to {most}")
        return int(text)

    return read
