"""How the application is served: by waitress, or by granian where a site has more than about 1,000 hosts at 5 s."""

import contextlib
import errno
import functools
import logging
import os
import resource
import select
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from waitress.server import create_server

from cluster_dash_server import __version__, logs, notify
from cluster_dash_server.front import Front
from cluster_dash_server.lasting import made_to_last
from cluster_dash_server.logs import LogOptions
from cluster_dash_server.port_holder import holder_of
from cluster_dash_server.relaying import relay
from cluster_dash_server.settings import ConfigError, Settings
from cluster_dash_server.web import waitress_turns

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)

SPARE_FILES = 64
"""File descriptors that a server needs beside its connections."""


def by_waitress(settings: Settings, log_options: LogOptions) -> None:
    """Serve by waitress until SIGTERM or SIGINT: one process, a pool of threads.

    Raises:
        ConfigError: the address cannot be listened on, or TLS is wanted.
    """
    if settings.server.speaks_tls:
        raise ConfigError(
            'server.tls_certificate: waitress speaks no TLS: `[server] server = "granian"` does, or put nginx or Caddy '
            "in front (etc/nginx, etc/caddy)"
        )
    host, port = settings.server.host, settings.server.port
    with made_to_last():
        site = _site(settings)
        try:
            server: Any = create_server(site.answer, host=host, port=port)
        except (OSError, ValueError) as error:  # waitress makes a ValueError of a name that does not resolve
            raise _cannot_listen(settings, error) from None
        site.start()
    signal.signal(signal.SIGTERM, waitress_turns.end)
    signal.signal(signal.SIGINT, waitress_turns.end)
    _say(settings, server.effective_port)
    site.load_pages()
    notify.watch(settings.server.host, server.effective_port)
    server.run()  # returns when a signal raises SystemExit; requests under way are answered first


def by_granian(settings: Settings, log_options: LogOptions) -> None:
    """Serve by granian until SIGTERM or SIGINT: its main process, and one worker that holds the live view.

    Raises:
        ConfigError: granian is not installed, the certificate cannot be used, the address not be listened on, or a
            setting that the worker needs not be used.
    """
    try:
        granian = import_module("granian")
    except ImportError:
        raise ConfigError(
            "server.server: granian is not installed: pip install 'cluster-dash-server[granian]'"
        ) from None
    certificate, key = _certificate(settings)
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
        ssl_cert=certificate,
        ssl_key=key,
        ssl_protocol_min=import_module("granian.constants").SSLProtocols.tls12,
    )
    _say(settings, settings.server.port)
    # asking from a thread while granian forks would leave the worker with locks that nobody opens
    loaded, tell_loaded = os.pipe()
    notify.watch(
        settings.server.host,
        settings.server.port,
        after=functools.partial(os.read, loaded, 1),
        is_secure=settings.server.speaks_tls,
    )
    fault, tell_fault = os.pipe2(os.O_NONBLOCK)
    load = functools.partial(_load, settings, log_options, tell_loaded, tell_fault)
    try:
        server.serve(target_loader=load, wrap_loader=False)
    except SystemExit:
        with contextlib.suppress(BlockingIOError):
            if why := os.read(fault, select.PIPE_BUF):
                raise ConfigError(why.decode(errors="replace")) from None
        raise


SERVERS: dict[str, Callable[[Settings, LogOptions], None]] = {"waitress": by_waitress, "granian": by_granian}
"""The kinds of server, by the name that `--server` and `[server] server` give them."""


class _Site(NamedTuple):
    """What is served: what answers, what is done once before, and what is done while it answers already."""

    answer: "WSGIApplication"
    start: Callable[[], object]
    load_pages: Callable[[], object]


def _site(settings: Settings) -> _Site:
    """Build what is served; Flask and the pages, a third of a start, come when posts are taken already.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    if settings.relay.to is not None:
        app = import_module("cluster_dash_server.app").create_app(settings)
        return _Site(app, app.extensions["start"], lambda: None)
    front = Front(settings)
    return _Site(
        front, front.parts.start, lambda: front.load(lambda: import_module("cluster_dash_server.app").pages_of(front))
    )


def allow_open_files(hosts: int) -> None:
    """Raise this process's limit of open files, as far as it may, so that so many hosts can be connected at once."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it; the doctor says what the limit is
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = hosts + SPARE_FILES if hard == resource.RLIM_INFINITY else min(hosts + SPARE_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _load(settings: Settings, log_options: LogOptions, tell_loaded: int, tell_fault: int) -> "WSGIApplication":
    """Build the application in granian's worker, and tell its main process that it is there, or why it cannot be."""
    logs.setup(log_options)
    try:
        with made_to_last():
            site = _site(settings)
            site.start()
        site.load_pages()
    except ConfigError as error:
        os.write(tell_fault, str(error).encode()[: select.PIPE_BUF])
        raise SystemExit(1) from None
    os.write(tell_loaded, b"1")
    return site.answer


def _certificate(settings: Settings) -> tuple[Path | None, Path | None]:
    """Return the files of certificate and key, found to be a pair; None where TLS is not wanted."""
    server = settings.server
    if not server.speaks_tls:
        return None, None
    if server.tls_certificate is None or server.tls_key is None:
        lacking = "tls_certificate" if server.tls_certificate is None else "tls_key"
        raise ConfigError(f"server.{lacking}: is missing: a certificate and its key belong together")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(server.tls_certificate, server.tls_key)
    except (OSError, ValueError) as error:  # of ssl's own errors, too
        why = error.strerror or error if isinstance(error, OSError) else error
        raise ConfigError(
            f"server.tls_certificate: {server.tls_certificate} with server.tls_key {server.tls_key}: {why}"
        ) from None
    return Path(server.tls_certificate), Path(server.tls_key)


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
    scheme = "https" if settings.server.speaks_tls else "http"
    where = f"{scheme}://{host}:{port}{settings.server.base_path}"
    log.info("cluster-dash-server %s listens on %s", __version__, where)
