"""The commands about what a server keeps: `export`, `backup`, `restore`, `prune`."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

from cluster_dash_server import control
from cluster_dash_server.commands import CommandError, UsageError, whole
from cluster_dash_server.commands.folder import refuse_what_is_not_there
from cluster_dash_server.history import backups, exports
from cluster_dash_server.history.exports import COLUMNS, ExportError, Wish
from cluster_dash_server.history.history import History
from cluster_dash_server.hostlist import HostlistError
from cluster_dash_server.settings import ConfigError, ServerSettings, Settings
from cluster_dash_server.store import StoreError
from cluster_dash_server.when import GRAMMAR, WhenError, span, zone

log = logging.getLogger(__name__)


def add_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", parents: list[argparse.ArgumentParser]
) -> None:
    """Describe the commands."""
    export = commands.add_parser(
        "export",
        parents=parents,
        help="write history as CSV or Parquet",
        description="Write history as CSV or Parquet, while a server runs or without one.",
    )
    export.add_argument(
        "what",
        choices=tuple(COLUMNS),
        help="figures of GPUs over time, GPU-hours of users by the hour, who had which GPU when, or events",
    )
    export.add_argument("--from", dest="begin", default="now-24h", metavar="WHEN", help=f"{GRAMMAR} (now-24h)")
    export.add_argument("--to", dest="end", default="now", metavar="WHEN", help="the same (now)")
    export.add_argument("--host", metavar="HOST", help="only these: a name, gpu[01-03], or a pattern")
    export.add_argument(
        "--step", type=whole(1, 31_536_000), default=300, metavar="SECONDS", help="of figures: a row for each (300)"
    )
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="parquet needs the extra parquet")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to (standard output)")
    for name, text, what in (
        (
            "backup",
            "copy all that a server keeps into a file, while it runs",
            "the copy; one that is there is replaced",
        ),
        ("restore", "make a data folder of a backup; the server must not run", "what `backup` made"),
    ):
        command = commands.add_parser(name, parents=parents, help=text, description=f"{text.capitalize()}.")
        command.add_argument("file", type=Path, metavar="FILE", help=what)
    text = "drop what is older than the settings keep, now instead of within the hour"
    commands.add_parser("prune", parents=parents, help=text, description=f"{text.capitalize()}.")


def export(options: argparse.Namespace, settings: Settings, folder: Path) -> None:
    """Write what was asked for.

    Raises:
        UsageError: the stretch of time or the hosts cannot be understood.
        CommandError: it cannot be read or written.
    """
    if options.what == "figures" and settings.history.kind == "remote":
        raise CommandError("figures are in the engine, [history] kind is remote: ask it for them, see docs/history.md")
    try:
        asked = span(options.begin, options.end, time.time(), zone(settings.site.timezone))
        wish = Wish(what=options.what, span=asked, hosts=options.host, step_seconds=float(options.step))
        found = exports.checked(_rows(folder, wish, settings))
        if options.format == "parquet":
            if options.output is None:
                raise UsageError("parquet: name a file: -o FILE")
            count = exports.write_parquet(options.output, options.what, found)
        else:
            with _out(options.output) as out:
                count = exports.write_csv(out, options.what, found)
    except WhenError as error:
        raise UsageError(f"--{error}") from None
    except HostlistError as error:
        raise UsageError(f"--host: {error}") from None
    except ExportError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{options.output or 'standard output'}: {error.strerror}") from None
    log.info("%d rows", count)


def _rows(folder: Path, wish: Wish, settings: Settings) -> Iterator[Sequence[object]]:
    """Give the rows, of the file or of the database of replicas."""
    if settings.history.kind != "remote" or settings.ledger.url is None or settings.ledger.kind != "postgresql":
        return exports.rows(folder, wish)
    from cluster_dash_server.history.postgresql.answers import export_rows  # what it needs is an extra

    return export_rows(settings.ledger.url, wish)


def _out(file: Path | None) -> "TextIO | nullcontext[TextIO]":
    return nullcontext(sys.stdout) if file is None else file.open("w", encoding="utf-8", newline="")


def backup(options: argparse.Namespace, settings: Settings, folder: Path) -> None:
    """Make a backup.

    Raises:
        CommandError: it cannot be made.
    """
    refuse_what_is_not_there(folder)
    try:
        names = backups.backup(folder, options.file)
    except backups.BackupError as error:
        raise CommandError(str(error)) from None
    size = options.file.stat().st_size / 2**20
    sys.stdout.write(f"{options.file}: {size:.1f} MiB, with {', '.join(names)}; it holds secrets\n")
    elsewhere = [
        what
        for what, is_there in (
            ("figures, in the engine", settings.history.kind == "remote"),
            ("alerts, events, tokens and GPU-hours, in PostgreSQL: pg_dump", settings.ledger.kind == "postgresql"),
        )
        if is_there
    ]
    if elsewhere:
        log.warning("not in it: %s", "; ".join(elsewhere))


def restore(options: argparse.Namespace, folder: Path) -> None:
    """Make a data folder of a backup.

    Raises:
        CommandError: it cannot be restored.
    """
    try:
        names = backups.restore(options.file, folder)
    except backups.BackupError as error:
        raise CommandError(str(error)) from None
    sys.stdout.write(f"{folder}: {', '.join(names)} of {options.file}\n")


def prune(settings: Settings, folder: Path) -> None:
    """Drop what is too old: by the running server, else in its folder.

    Raises:
        CommandError: it cannot be done.
        ConfigError: the file is of a newer release.
    """
    try:
        answer = control.ask(folder, {"prune": {}})
        if not answer["success"]:
            raise CommandError(str(answer["msg"]))
        return
    except control.ControlError as error:
        if error.refused:
            raise CommandError(str(error)) from None
    if settings.history.kind == "remote" and settings.ledger.kind == "postgresql":
        raise CommandError("no replica answers here; the one that leads drops what is too old each hour")
    refuse_what_is_not_there(folder)
    history = History(
        folder, settings=settings.history, privacy=settings.privacy, clock=time.time, last_seen=lambda hosts: ()
    )
    try:
        history.start()
        if not history.keeps:
            raise CommandError(history.trouble or "no history is kept: [history] kind is none")
        history.prune(time.time())
    except StoreError as error:
        raise ConfigError(str(error)) from None
    finally:
        history.close()


def folder_of(options: argparse.Namespace, server: ServerSettings) -> Path:
    """Return the data folder that a command is about."""
    return control.find_data_folder(options.data or server.data, os.environ)
