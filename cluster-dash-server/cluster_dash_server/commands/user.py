"""The command `user`: adds, removes and lists people of the users file."""

import argparse
import getpass
import sys
from pathlib import Path

from cluster_dash_server.access.users import SHORTEST_PASSWORD, UsersError, hash_password, parse, write
from cluster_dash_server.access.viewers import ROLES


def add_arguments(parser: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    """Describe the command's own commands."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, text in (
        ("add", "add somebody, or set a new password; it is asked for, or read from standard input"),
        ("remove", "take somebody out: they are signed out at once"),
        ("list", "say who is in the file"),
    ):
        command = commands.add_parser(name, parents=parents, help=text)
        command.add_argument("--file", type=Path, metavar="FILE", help="the users file (default: [viewers] users_file)")
        if name != "list":
            command.add_argument("name", metavar="NAME", help="how they sign in")
        if name == "add":
            command.add_argument("--role", choices=ROLES, default="viewer", help="what they may (default: viewer)")


def run(file: Path, options: argparse.Namespace) -> None:
    """Do it.

    Raises:
        UsersError: it cannot be done.
    """
    if options.what == "list":
        try:
            users = parse(file.read_text(encoding="utf-8"), str(file))
        except OSError as error:
            raise UsersError(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsersError(f"{file}: cannot be read: it is no text in UTF-8") from None
        sys.stdout.write("".join(f"{name}\t{role}\n" for name, (role, _) in sorted(users.items())))
        return
    entry = None
    if options.what == "add":
        password = _password()
        if len(password) < SHORTEST_PASSWORD:
            raise UsersError(f"the password has {len(password)} characters, expected at least {SHORTEST_PASSWORD}")
        entry = (options.role, hash_password(password))
    write(file, options.name, entry)


def _password() -> str:
    """Ask for a password, twice; from a pipe read one line."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != first:
        raise UsersError("the two differ")
    return first
