"""The command `token`: makes, lists, rotates and revokes tokens, by the running server or in its data folder."""

import argparse
import json
import logging
import re
import sys
import time
from pathlib import Path

from cluster_dash_server import control
from cluster_dash_server.access.tokens import READ_SCOPES, TokenFile, Tokens, obey
from cluster_dash_server.commands import UsageError, granted, whole
from cluster_dash_server.commands.folder import refuse_what_is_not_there, taken
from cluster_dash_server.ledger.settings import LedgerSettings
from cluster_dash_server.settings import Settings
from cluster_dash_server.snapshot import Json, printable

log = logging.getLogger(__name__)

_COLUMNS = ("ID", "Kind", "For", "Made", "Ends", "Used", "Left", "Scopes")


def seconds(text: str) -> float:
    """Read a span such as `7d`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number and a unit, such as 90s, 12h or 7d")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]


def add_arguments(parser: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    """Describe the command's own commands."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    new = commands.add_parser("new", parents=parents, help="make a token and print it: nobody can see it again")
    whose = new.add_mutually_exclusive_group(required=True)
    whose.add_argument("--host", metavar="HOST", help="a token of this host; of a relay: its hosts, gpu[01-08]")
    whose.add_argument(
        "--enrol", action="store_true", help="a code that hosts trade for tokens: cluster-dash-mole enrol URL CODE"
    )
    whose.add_argument("--read", metavar="NAME", help="a token for a program that reads, under a name of your choice")
    new.add_argument("--ttl", type=seconds, metavar="SPAN", help="how long it is valid: 90d (--enrol: 1h)")
    new.add_argument("--max", type=whole(1, 100_000), metavar="N", help="--enrol: how many hosts may use it (200)")
    new.add_argument("--names", metavar="HOSTS", help="--enrol: which names may, such as 'gpu[001-200]' (any)")
    new.add_argument(
        "--scopes", metavar="SCOPE,…", help=f"--read: some of {', '.join(READ_SCOPES)} (state:read,history:read)"
    )
    listing = commands.add_parser(
        "list", parents=parents, help="say which tokens there are; never the tokens themselves"
    )
    listing.add_argument("--all", action="store_true", help="those that were revoked or have expired, too")
    listing.add_argument("--json", action="store_true", help="as JSON")
    for name, text in (
        ("revoke", "end a token, or all of a host's, at once"),
        ("rotate", "make a second token and print it; the first one ends in a day"),
    ):
        command = commands.add_parser(name, parents=parents, help=text)
        command.add_argument("which", metavar="ID", help="the token's id, or the name of its host")


def wish_of(options: argparse.Namespace) -> Json:
    """Return what is wished, as the server understands it.

    Raises:
        UsageError: the options do not go together.
    """
    if options.what != "new":
        return {options.what: getattr(options, "which", {})}
    only = {"--max": options.max, "--names": options.names} if not options.enrol else {}
    only |= {"--scopes": options.scopes} if options.read is None else {}
    misplaced = [name for name, value in only.items() if value is not None]
    if misplaced:
        raise UsageError(f"{misplaced[0]} goes with {'--read' if misplaced[0] == '--scopes' else '--enrol'} only")
    if options.enrol:
        new = {"kind": "enrol", "hosts": options.names or "*", "uses": 200 if options.max is None else options.max}
        return {"new": {**new, "ttl_seconds": 3600.0 if options.ttl is None else options.ttl}}
    if options.read is not None:
        scopes = (options.scopes or "state:read,history:read").split(",")
        return {"new": {"kind": "read", "hosts": options.read, "scopes": scopes, "ttl_seconds": options.ttl}}
    return {"new": {"kind": "host", "hosts": options.host, "ttl_seconds": options.ttl}}


def run(options: argparse.Namespace, settings: Settings, folder: Path) -> None:
    """Make, list, rotate or revoke tokens, and print what came of it.

    Raises:
        UsageError: the options do not go together, or cannot be meant.
        CommandError: it was not done.
        ControlError: see `grant`.
    """
    wish = wish_of(options)
    show(granted(grant(folder, wish, settings.ledger)), wish, options)


def grant(folder: Path, wish: Json, ledger: LedgerSettings) -> Json:
    """Have the running server do it; where there is none, do it in its data folder, or in the database of replicas.

    Raises:
        ControlError: a server is there and does not let this user in, or it has the folder and does not answer.
        CommandError: there is no folder to look the token up in.
    """
    try:
        return control.ask(folder, {"token": wish})
    except control.ControlError as error:
        if error.refused:
            raise
    if ledger.kind == "postgresql" and ledger.url is not None:
        from cluster_dash_server.ledger.access import tokens_at  # what it needs is an extra

        with tokens_at(ledger.url) as shared:
            return obey(shared, wish)
    if "new" not in wish:
        refuse_what_is_not_there(folder)
    tokens = Tokens(TokenFile(folder), time.time)
    if "list" in wish:
        return obey(tokens, wish)
    with taken(folder):
        return obey(tokens, wish)


def show(answer: Json, wish: Json, options: argparse.Namespace) -> None:
    """Print what came of it: of a new token only the token, for scripts; what to do with it goes to the log."""
    if "token" in answer:
        sys.stdout.write(f"{answer['token']}\n")
        log.info("%s", _next_step(answer["token"], wish))
    elif "revoked" in answer:
        sys.stdout.write("".join(f"revoked {each}\n" for each in answer["revoked"]))
    elif options.json:
        sys.stdout.write(json.dumps(answer["tokens"]) + "\n")
    else:
        now = time.time()
        shown = [each for each in answer["tokens"] if options.all or _ended_at(each, now) is None]
        lines = [_COLUMNS, *(_line(each, now) for each in shown)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
        for line in lines:
            sys.stdout.write(
                "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() + "\n"
            )


def _next_step(token: str, wish: Json) -> str:
    if token.startswith("cde_"):
        return "on each host: cluster-dash-mole enrol https://THIS-SERVER CODE"
    if token.startswith("cdr_"):
        return "a program sends it as: Authorization: Bearer TOKEN"
    old = " in place of the old one, which ends in a day" if "rotate" in wish else ""
    return f"write it to the host's auth_code_file (mode 0600){old}; it cannot be shown again"


def _ended_at(token: Json, now: float) -> float | None:
    if token["revoked_at"] is not None:
        return float(token["revoked_at"])
    return float(token["expires_at"]) if token["expires_at"] is not None and token["expires_at"] <= now else None


def _line(token: Json, now: float) -> tuple[str, ...]:
    ended_at = _ended_at(token, now)
    if token["revoked_at"] is not None:
        ends = f"revoked {_day(token['revoked_at'])}"
    else:
        ends = f"expired {_day(ended_at)}" if ended_at is not None else _day(token["expires_at"])
    left = "–" if token["uses_left"] is None else str(token["uses_left"])
    return (
        *(token["id"], token["kind"], printable(token["hosts"], 40), _day(token["made_at"]), ends),
        *(_day(token["used_at"]), left, ",".join(token["scopes"]) or "–"),
    )


def _day(at: float | None) -> str:
    return "–" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
