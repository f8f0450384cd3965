"""Telling systemd how the server is, in its own protocol (sd_notify): it answers, it still answers, it ends.

The server is asked over HTTP, as its users ask it. So a loop that hangs, worker threads that all hang or a worker
process that is gone end the pings, and systemd starts the server anew; a ping from the loop alone would prove less.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

from cluster_dash_server.probe import ask

log = logging.getLogger(__name__)

PINGS_IN_A_PERIOD = 4
"""A single slow answer must not end the server: it has so many chances before systemd acts."""
START_SECONDS = 0.1
FIRST_ANSWER_SECONDS = 5.0


def tell(text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send one message to the service manager; nothing where there is none."""
    address = environment.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract one
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.settimeout(1)
            notify.connect(address)
            notify.send(text.encode())
    except OSError as error:
        log.warning("the service manager cannot be told %s: %s", text, error)


def watch(
    host: str,
    port: int,
    environment: Mapping[str, str] = os.environ,
    after: Callable[[], object] = lambda: None,
    *,
    is_secure: bool = False,
) -> None:
    """Begin to tell the service manager whether the server answers, from a thread of its own.

    Args:
        host: what the server listens on.
        port: the port it listens on.
        environment: NOTIFY_SOCKET, and WATCHDOG_USEC where systemd wants pings of this process.
        after: returns when the server may be asked.
        is_secure: it is asked by https.
    """
    if not environment.get("NOTIFY_SOCKET"):
        return
    period_seconds = watchdog_seconds(environment)

    def tell_systemd(text: str) -> None:
        tell(text, environment)

    def answers(seconds: float) -> bool:
        return ask(host, port, "/healthz", seconds=seconds, is_secure=is_secure) is not None

    def run() -> None:
        after()
        follow(answers, tell_systemd, period_seconds)

    threading.Thread(target=run, name="notify", daemon=True).start()


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Return within which time systemd wants a ping of this process; None: it wants none."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6 if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()) else None


def follow(
    answers: Callable[[float], bool],
    tell: Callable[[str], None],
    period_seconds: float | None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Tell READY=1 at the first answer, and WATCHDOG=1 at each later one; ends only where no pings are wanted.

    Args:
        answers: asks the server; takes the seconds it may take.
        tell: takes a message for the service manager.
        period_seconds: see `watchdog_seconds`.
        sleep: waits so many seconds.
    """
    while not answers(FIRST_ANSWER_SECONDS):
        sleep(START_SECONDS)
    tell("READY=1")
    if period_seconds is None:
        return
    pause_seconds = period_seconds / PINGS_IN_A_PERIOD
    while True:
        if answers(pause_seconds):
            tell("WATCHDOG=1")
        else:
            log.error("this server does not answer itself within %g s: no ping to the watchdog", pause_seconds)
        sleep(pause_seconds)
