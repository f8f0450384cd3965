"""The command `cluster-dash-server`."""

import argparse
import dataclasses
import errno
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from waitress.server import create_server

from cluster_dash_server import app, logs
from cluster_dash_server.settings import ConfigError

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_USAGE, EXIT_CONFIG = 0, 2, 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    logs.setup(options.log_format, verbose=options.verbose)
    try:
        return serve(options)
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
    command.add_argument("--data", metavar="DIR", help="folder for what the server keeps (this release keeps nothing)")
    return parser


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: a setting that cannot be used, or an address that cannot be listened on.
    """
    settings = app.load_settings(options.config)
    given = {key: getattr(options, key) for key in ("host", "port", "data") if getattr(options, key) is not None}
    settings = dataclasses.replace(settings, server=dataclasses.replace(settings.server, **given))
    host, port = settings.server.host, settings.server.port
    application = app.create_app(settings)
    try:
        server = create_server(application, host=host, port=port)
    except OSError as error:
        mend = "in use: choose another one with --port" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(f"cannot listen on {host}:{port}: {mend}") from None
    except OverflowError:
        raise ConfigError(f"server.port: got {port}, expected a whole number >= 0 <= 65535") from None
    signal.signal(signal.SIGTERM, _end)
    effective = getattr(server, "effective_port", port)
    log.info(
        "cluster-dash-server %s listens on http://%s:%s%s", app.VERSION, host, effective, settings.server.base_path
    )
    server.run()  # returns when a signal raises SystemExit; requests under way are answered first
    log.info("ended")
    return EXIT_DONE


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(EXIT_DONE)
