"""The command `cluster-dash-server`."""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from cluster_dash_server import app, logs, serving
from cluster_dash_server.settings import ConfigError

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_USAGE, EXIT_CONFIG = 0, 2, 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    logs.setup(_log_options(options))
    try:
        code: int = options.run(options)
        return code
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_CONFIG


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-v", "--verbose", action="store_true", help="log more")
    shared.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="one line of text or JSON an event"
    )
    parser = argparse.ArgumentParser(
        prog="cluster-dash-server", description="The server of cluster-dash: takes snapshots, shows the cluster."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {app.VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("serve", parents=[shared], help="run the server", description="Run the server.")
    command.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="settings (else $CLUSTER_DASH_CONFIG, ./server.toml, /etc/cluster-dash/server.toml)",
    )
    command.add_argument("--host", help="address to listen on (default 127.0.0.1; 0.0.0.0: all)")
    command.add_argument("--port", type=int, help="port to listen on (default 8080; 0: any free one)")
    command.add_argument("--server", choices=tuple(serving.SERVERS), help="what serves (default waitress)")
    command.set_defaults(run=serve)
    command.add_argument("--data", metavar="DIR", help="folder for what the server keeps (this release keeps nothing)")
    return parser


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: a setting that cannot be used, or an address that cannot be listened on.
    """
    settings = app.load_settings(options.config)
    names = ("host", "port", "data", "server")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = dataclasses.replace(settings, server=dataclasses.replace(settings.server, **given))
    if not 0 <= settings.server.port <= 65535:
        raise ConfigError(f"--port: got {settings.server.port}, expected a whole number >= 0 <= 65535")
    serving.SERVERS[settings.server.server](settings, _log_options(options))
    log.info("ended")
    return EXIT_DONE


def _log_options(options: argparse.Namespace) -> logs.LogOptions:
    return logs.LogOptions(log_format=options.log_format, verbose=options.verbose)
