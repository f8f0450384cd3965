"""The command `forget`: hosts, missing GPUs of theirs, or the name of a user."""

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cluster_dash_server import control, restart
from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.commands import CommandError, UsageError
from cluster_dash_server.commands.token import seconds
from cluster_dash_server.events import EventLog
from cluster_dash_server.history.history import History
from cluster_dash_server.history.sqlite.store import FILE
from cluster_dash_server.hostlist import HostlistError
from cluster_dash_server.ledger.kept import KeptBook
from cluster_dash_server.ledger.settings import shared_of
from cluster_dash_server.ledger.waiting_line import LineFile
from cluster_dash_server.settings import Settings
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.store import KeptEvent, LastSeen, StoreError
from cluster_dash_server.waiting import WaitError, without

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often the command asks how far the server is."""
UNKNOWN_SECONDS = 60.0
"""A server that knows nothing of what was asked for so long does not know it any more: nobody waits for ever."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    command.add_argument(
        "hosts", nargs="?", metavar="HOST", help="a name, a hostlist such as gpu[01-03], or a pattern with * and ?"
    )
    command.add_argument("--user", metavar="NAME", help="forget this user instead: take the name out of all history")
    command.add_argument(
        "--silent-for", type=seconds, metavar="SPAN", help="only hosts that have been silent for so long: 90s 12h 7d"
    )
    command.add_argument("--gpu", metavar="UUID", help="forget this missing GPU of theirs only")


def _check(options: argparse.Namespace) -> None:
    if options.user is None:
        if options.hosts is None:
            raise UsageError("name a HOST, or --user NAME")
    elif options.hosts is not None or options.gpu is not None or options.silent_for is not None:
        raise UsageError("--user goes alone: the name is taken out of the history of all hosts")
    elif not options.user.strip():
        raise UsageError("--user: got an empty name, expected one as it stands on the page")


def run(options: argparse.Namespace, settings: Settings, folder: Path) -> None:
    """Forget what is asked for: by the running server, else in its folder; print what was done.

    Raises:
        UsageError: the options do not go together, or HOST cannot be read.
        CommandError: there is nothing of the kind, or it cannot be written.
        ControlError: a server does not let this user in, or there is neither a server nor anything that one has kept.
    """
    _check(options)
    if options.user is not None:
        _forget_user(options.user, settings, folder)
    else:
        _forget_hosts(options, settings, folder)


def _forget_hosts(options: argparse.Namespace, settings: Settings, folder: Path) -> None:
    wish = control.Forget(hosts=options.hosts, silent_for_seconds=options.silent_for, gpu=options.gpu)
    try:
        answer = control.ask(folder, {"forget": dataclasses.asdict(wish)})
        if not answer["success"]:
            raise UsageError(str(answer["msg"]))
        forgotten = answer["forgotten"]
    except control.ControlError as error:
        if wish.gpu is not None:  # it is missing only in the eyes of who has seen it
            raise
        with _opened(settings, folder, error) as (history, last_seen, events):
            cluster, log = Cluster(settings.states), EventLog(settings.states, ledger=history)
            cluster.begin_with(restart.recall(last_seen))
            log.begin_with(events, time.time())
            try:
                forgotten = control.forget(wish, cluster, log, time.time())
            except HostlistError as unreadable:
                raise UsageError(str(unreadable)) from None
            _written(history.flush)
    for host in forgotten:
        sys.stdout.write(f"forgot {printable(host)}{'' if options.gpu is None else f' GPU {options.gpu}'}\n")
    if not forgotten:
        what = "no such host is known" if options.gpu is None else "no such GPU is missing on such a host"
        since = "" if options.silent_for is None else " that is silent for so long"
        raise CommandError(f"{options.hosts}: {what}{since}")


def _forget_user(user: str, settings: Settings, folder: Path) -> None:
    try:
        told = _by_the_server(user, folder)
    except control.ControlError as error:
        with _opened(settings, folder, error) as (history, _, _):
            _written(partial(history.forget_user, user, partial(restart.stripped, user=user)))
            _forget_in_alerts(user, settings, folder)
            try:
                while (done := history.unnamed(user)) is None or done.hosts_left:
                    history.flush()
            except StoreError as failed:
                raise CommandError(f"{failed}. The same command again does the rest") from None
            told = dataclasses.asdict(done)
    if told["stays"] is not None:
        log.warning("%s", printable(told["stays"], 1000))
    counts = [told[name] for name in ("host_hours", "events", "snapshots")]
    if told["host_hours"] == told["events"] == told["snapshots"] == 0:
        sys.stdout.write(f"{printable(user)} was in no hour, event or snapshot; GPU-hours under the name are gone\n")
        return
    sys.stdout.write(
        f"forgot {printable(user)}: taken out of {counts[0]} hours of hosts, {counts[1]} events and {counts[2]} newest "
        "snapshots, and out of all GPU-hours by user; those of hosts and models stay. Backups and files set aside "
        "still hold the name, and who still has processes comes back with the next snapshot\n"
    )


def _forget_in_alerts(user: str, settings: Settings, folder: Path) -> None:
    """Take the name out of alerts and of the line of those who wait; the folder is ours, for its history is open."""
    shared = shared_of(settings.ledger)
    kept = KeptBook(folder, time.time)
    try:
        if shared is None:
            kept.start(has_folder=True)
            kept.forget_user(user)
        else:
            with closing(shared.book(time.time, settings.privacy.user_days * 86_400.0)) as book:
                book.forget_user(user)
        line = LineFile(folder)
        if line.path.exists():
            line.write(without(line.read(), user))
    except (BookError, WaitError) as error:
        raise CommandError(str(error)) from None
    finally:
        kept.close()
    if kept.trouble is not None:
        raise CommandError(kept.trouble)


def _by_the_server(user: str, folder: Path) -> Json:
    command = {"user": user, "begin": True}
    known_at = time.monotonic()
    while True:
        answer = control.ask(folder, {"forget_user": command})
        if not answer["success"]:
            raise CommandError(str(answer["msg"]))
        told: Json | None = answer["unnamed"]
        if told is not None and not told["hosts_left"]:
            return told
        if told is not None:
            known_at = time.monotonic()
        elif time.monotonic() - known_at >= UNKNOWN_SECONDS:
            raise CommandError(
                "the server does not know of it any more: it was started anew, or could not write it, as its log says "
                "then: the same command again does the rest"
            )
        command["begin"] = False
        time.sleep(POLL_SECONDS)


@contextmanager
def _opened(
    settings: Settings, folder: Path, no_server: control.ControlError
) -> Iterator[tuple[History, list[LastSeen], list[KeptEvent]]]:
    """Open the history of a folder that no server has.

    Raises:
        CommandError: it cannot be written.
        ControlError: a server is there and refuses, or nothing is kept in the folder.
    """
    if no_server.refused or not (folder / FILE).exists():
        raise no_server
    history = History(
        folder, settings=settings.history, privacy=settings.privacy, clock=time.time, last_seen=lambda hosts: ()
    )
    try:
        last_seen, events = _written(history.start)
        if not history.keeps or history.trouble is not None:
            raise CommandError(history.trouble or "no history is kept: [history] kind is none")
        yield history, last_seen, events
    finally:
        history.close()


def _written(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except StoreError as error:
        raise CommandError(str(error)) from None
