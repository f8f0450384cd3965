"""Telling systemd how the mole is, in its own protocol (sd_notify): one datagram a word, to a socket that it names."""

import contextlib
import os
import socket
from collections.abc import Mapping

PINGS_IN_A_PERIOD = 3
"""One ping that comes late or is lost must not end a healthy mole."""


class ServiceManager:
    """What started the mole, if that wants to hear of it: `alive_seconds` is how often to say `alive`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        where = environ.get("NOTIFY_SOCKET", "")
        self._where = "\0" + where[1:] if where.startswith("@") else where  # @: an abstract one
        period = int(environ.get("WATCHDOG_USEC") or 0) / 1e6
        mine = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        self._watched = bool(where) and mine and period > 0
        self.alive_seconds = period / PINGS_IN_A_PERIOD if self._watched else float("inf")

    def ready(self) -> None:
        """Say that the mole has started."""
        self._tell("READY=1")

    def alive(self) -> None:
        """Say that the main loop turns."""
        if self._watched:
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the mole ends."""
        self._tell("STOPPING=1")

    def _tell(self, word: str) -> None:
        if not self._where:
            return
        # it may be gone, or have no room: the main loop must neither end nor wait
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.setblocking(False)
            datagrams.sendto(word.encode(), self._where)
