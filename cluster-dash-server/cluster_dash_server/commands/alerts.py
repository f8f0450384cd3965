"""The commands `maintenance` and `reload`: what alerts are told about hosts that somebody works on, and their rules."""

import argparse
import getpass
import os
import sys
import time
from contextlib import closing
from pathlib import Path

from cluster_dash_server import control
from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.alerts.commands import obey_maintenance
from cluster_dash_server.commands import UsageError, granted
from cluster_dash_server.commands.folder import refuse_what_is_not_there, taken
from cluster_dash_server.ledger.settings import shared_of
from cluster_dash_server.ledger.sqlite import FILE, SqliteBook
from cluster_dash_server.settings import ConfigError, Settings
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.when import GRAMMAR, zone


def add_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", parents: list[argparse.ArgumentParser]
) -> None:
    """Describe the commands."""
    command = commands.add_parser(
        "maintenance",
        parents=parents,
        help="say that somebody works on hosts: they raise no alerts until then",
        description="Say that somebody works on hosts: they raise no alerts until then. Without HOST: say which do.",
    )
    command.add_argument(
        "hosts", nargs="?", metavar="HOST", help="a name, a hostlist such as gpu[01-03], or a pattern with * and ?"
    )
    end = command.add_mutually_exclusive_group()
    end.add_argument("--until", metavar="WHEN", help=f"2h, 18:00, {GRAMMAR}")
    end.add_argument("--end", action="store_true", help="it is over")
    command.add_argument("--reason", type=str, default="", metavar="TEXT", help="what for: people read it")
    commands.add_parser(
        "reload",
        parents=parents,
        help="take up the rules of alerts anew",
        description="Have the running server take up its rules of alerts anew; where they are wrong, it goes on by the "
        "old ones, and this says why.",
    )


def wish_of(options: argparse.Namespace) -> Json:
    """Return what is wished of `maintenance`, as the server understands it.

    Raises:
        UsageError: the command line does not fit.
    """
    if options.hosts is None:
        if options.until is not None or options.end:
            raise UsageError("name a HOST")
        return {}
    if options.until is None and not options.end:
        raise UsageError("say until when: --until 2h, or --end")
    return {"hosts": options.hosts, "until": options.until, "reason": options.reason, "by": _who()}


def _who() -> str:
    """Return who types: root has become so, in most cases, by sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def maintain(wish: Json, settings: Settings, folder: Path) -> None:
    """Have the running server note it, or where there is none, note it in its folder; print what holds.

    Raises:
        UsageError: it cannot be understood.
        CommandError: it cannot be kept, or there is no folder to look it up in.
        ControlError: a server is there and does not let this user in, or it has the folder and does not answer.
    """
    try:
        answer = control.ask(folder, {"maintenance": wish})
    except control.ControlError as error:
        if error.refused:
            raise
        answer = _without_server(wish, settings, folder)
    for each in granted(answer)["maintenance"]:
        reason = f": {each['reason']}" if each["reason"] else ""
        sys.stdout.write(f"{printable(each['hosts'])} until {each['until']}, by {printable(each['by'] + reason)}\n")
    if not answer["maintenance"]:
        sys.stdout.write("no host is in maintenance\n")


def _without_server(wish: Json, settings: Settings, folder: Path) -> Json:
    shared = shared_of(settings.ledger)
    if shared is not None:
        with closing(shared.book(time.time, settings.privacy.user_days * 86_400.0)) as of_all:
            return obey_maintenance(of_all, wish, time.time(), zone(settings.site.timezone))
    if wish.get("until") is None:  # asked for, or ended: what no server has made is not made for that
        refuse_what_is_not_there(folder)
    try:
        with taken(folder):
            book = SqliteBook(folder / FILE, time.time)
            try:
                return obey_maintenance(book, wish, time.time(), zone(settings.site.timezone))
            finally:
                book.close()
    except BookError as error:
        return {"success": False, "msg": str(error)}


def reload(folder: Path) -> None:
    """Have the running server take up its rules anew, and print how many are on.

    Raises:
        ConfigError: they are wrong.
        ControlError: no server answers.
    """
    answer = control.ask(folder, {"reload": {}})
    if not answer["success"]:
        raise ConfigError(str(answer["msg"]))
    sys.stdout.write(f"{answer['rules']} rules are on\n")
