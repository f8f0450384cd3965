"""How the application is served: by waitress, or by granian where a site has more than about 1,000 hosts at 5 s."""

import contextlib
import errno
import functools
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import FrameType
from typing import Any

from waitress.server import create_server

from cluster_dash_server import logs, notify
from cluster_dash_server.app import VERSION, create_app
from cluster_dash_server.logs import LogOptions
from cluster_dash_server.port_holder import holder_of
from cluster_dash_server.settings import ConfigError, Settings
from cluster_dash_server.web import relay

log = logging.getLogger(__name__)

SPARE_FILES = 64
"""File descriptors that a server needs beside its connections."""


def by_waitress(settings: Settings, log_options: LogOptions) -> None:
    """Serve by waitress until SIGTERM or SIGINT: one process, a pool of threads.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    host, port = settings.server.host, settings.server.port
    app = create_app(settings)
    try:
        server: Any = create_server(app, host=host, port=port)
    except (OSError, ValueError) as error:  # waitress makes a ValueError of a name that does not resolve
        raise _cannot_listen(settings, error) from None
    app.extensions["start"]()
    signal.signal(signal.SIGTERM, _end)
    _say(settings, server.effective_port)
    notify.watch(settings.server.host, server.effective_port)
    server.run()  # returns when a signal raises SystemExit; requests under way are answered first


def by_granian(settings: Settings, log_options: LogOptions) -> None:
    """Serve by granian until SIGTERM or SIGINT: its main process, and one worker that holds the live view.

    Raises:
        ConfigError: granian is not installed, or the address cannot be listened on.
    """
    try:
        granian = import_module("granian")
    except ImportError:
        raise ConfigError(
            "server.server: granian is not installed: pip install 'cluster-dash-server[granian]'"
        ) from None
    settings = replace(settings, server=replace(settings.server, port=_free_port(settings)))
    server = granian.Granian(
        "cluster_dash_server:create_app",
        address=settings.server.host,
        port=settings.server.port,
        interface="wsgi",
        workers=1,  # the live view is in the memory of one process
        blocking_threads=4 if settings.relay.to is None else relay.THREADS,
        # both count idle connections; with the defaults of 1,024, 3,000 moles hang
        backlog=8192,
        backpressure=20_000,
        http="1",
        websockets=False,
        log_enabled=False,
    )
    _say(settings, settings.server.port)
    # asking from a thread while granian forks would leave the worker with locks that nobody opens
    loaded, tell_loaded = os.pipe()
    notify.watch(settings.server.host, settings.server.port, after=functools.partial(os.read, loaded, 1))
    server.serve(target_loader=functools.partial(_load, settings, log_options, tell_loaded), wrap_loader=False)


SERVERS: dict[str, Callable[[Settings, LogOptions], None]] = {"waitress": by_waitress, "granian": by_granian}
"""The kinds of server, by the name that `--server` and `[server] server` give them."""


def allow_open_files(hosts: int) -> None:
    """Raise this process's limit of open files, as far as it may, so that so many hosts can be connected at once."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it; the doctor says what the limit is
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = hosts + SPARE_FILES if hard == resource.RLIM_INFINITY else min(hosts + SPARE_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _load(settings: Settings, log_options: LogOptions, tell_loaded: int) -> Callable[..., Any]:
    """Build the application in granian's worker, and tell its main process that it is there."""
    logs.setup(log_options)
    app = create_app(settings)
    app.extensions["start"]()
    os.write(tell_loaded, b"1")
    return app


def _free_port(settings: Settings) -> int:
    """Return the port to listen on; granian would end without a word where it is taken, and knows no port 0."""
    host, port = settings.server.host, settings.server.port
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
            bound: int = free.getsockname()[1]
            return bound
    except OSError as error:
        raise _cannot_listen(settings, error) from None


def _cannot_listen(settings: Settings, error: Exception) -> ConfigError:
    host, port = settings.server.host, settings.server.port
    why = error.strerror if isinstance(error, OSError) else "no address of this machine"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        why = (
            f"CD601 port {port} in use by {holder_of(port) or 'a process that cannot be seen'}: choose another, --port"
        )
    return ConfigError(f"cannot listen on {host}:{port}: {why}")


def _say(settings: Settings, port: int) -> None:
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    where = f"http://{host}:{port}{settings.server.base_path}"
    log.info("cluster-dash-server %s listens on %s", VERSION, where)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
