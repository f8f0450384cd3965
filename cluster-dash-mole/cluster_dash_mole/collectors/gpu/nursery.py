"""Forks the processes that hold NVML, from one that was forked before the mole had threads.

NVML runs in a child, as a call into a sick driver may never return. A child has to be forked again and again over the
life of a mole (only a fresh one loads a new library), but by then the mole has threads, and a fork copies their locks
in whatever state they are, and their connections. So the first fork is taken before there is any thread: a small
process that does nothing but fork the children, each as clean as the first. It shares nearly all of its memory.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn


class Nursery:
    """Forks a child at each `birth`, that runs `serve(connection)` and ends with it.

    Nobody is killed: children end when the other end of their connection closes, the nursery when the mole ends.
    """

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._nursery = self._fork()

    def birth(self) -> socket.socket:
        """Fork a child; return our end of its connection."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._nursery, [b"+"], [theirs.fileno()])
            except OSError:  # somebody ended the nursery: now fork beside threads, better than no GPU for ever
                self._nursery.close()
                self._nursery = self._fork()
                socket.send_fds(self._nursery, [b"+"], [theirs.fileno()])
        return ours

    def close(self) -> None:
        """Let the nursery end."""
        self._nursery.close()

    def _fork(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            _be_nursery(theirs, self._serve)
        theirs.close()
        return ours


def _be_nursery(connection: socket.socket, serve: Callable[[socket.socket], None]) -> NoReturn:
    try:
        # A signal to the whole group or unit must not kill a child inside the driver: that can freeze the GPU.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
        _close_files(keep=connection.fileno())
        while (message := socket.recv_fds(connection, 1, 1))[0]:
            theirs = socket.socket(fileno=message[1][0])
            if os.fork() == 0:
                connection.close()
                serve(theirs)
                break
            theirs.close()
    finally:
        os._exit(0)


def _close_files(*, keep: int) -> None:
    """Close the mole's files: a connection or a lock held here would outlive it there, a pipe never come to its end."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - no Path for the sake of a list of numbers
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
