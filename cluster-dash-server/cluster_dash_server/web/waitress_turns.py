"""waitress' loop over its connections, which asks only those with which something may have happened.

waitress' own asks each open connection at every turn whether it wants to read or to write, and a request takes some
turns: of 200 viewers who keep their connections an answer cost more in asking than in answering.
"""

import contextlib
import select
import time
from types import FrameType
from typing import Any

from waitress import wasyncore

SWEEP_SECONDS = 1.0
"""How often all are asked nevertheless: for what waitress does by the clock, as closing those that rest too long."""
RESTING = select.POLLIN | select.POLLPRI
"""What a connection waits for that has nothing to do. No thread touches it before something comes."""

dispatcher = wasyncore.dispatcher

_turn_began_at: float | None = None  # s of the monotonic clock; None: this loop does not run
_is_interruptible = True  # false while the loop is at something
_is_to_end = False  # once it is true every loop of this process ends


def end(number: int, frame: FrameType | None) -> None:
    """End the program, as the handler of a signal: when the loop has done what it is at, such as half an answer.

    Raises:
        SystemExit: always where this loop does not run, and while it waits.
    """
    global _is_to_end
    _is_to_end = True
    if _is_interruptible:
        raise SystemExit(0)


def behind_seconds(unknown: float = float("inf")) -> float:
    """Return for how long what has come may have waited for this loop; `unknown` where it does not run."""
    return unknown if _turn_began_at is None else time.monotonic() - _turn_began_at


def loop(timeout: float, use_poll: bool, map: dict[int, Any]) -> None:
    """Read and write until there is no connection, nor a socket that listens, any more.

    Args:
        timeout: the longest turn, in s.
        use_poll: waitress' own choice; not looked at.
        map: each connection and listening socket of waitress by its descriptor; grows and shrinks on the way.

    Raises:
        SystemExit: `end` was called meanwhile.
    """
    global _is_interruptible
    try:
        with select.epoll() as epoll:
            polled: dict[int, tuple[Any, int]] = {}  # what each descriptor is polled for, and whose it was then
            due: set[int] = set()
            swept_at = float("-inf")
            while map:
                now = time.monotonic()
                if now - swept_at >= SWEEP_SECONDS:
                    swept_at = now
                    due.update(map)
                    polled = {fd: each for fd, each in polled.items() if fd in map}
                due = {fd for fd in due if _ask(fd, map.get(fd), epoll, polled)}
                found = _poll(epoll, min(timeout, SWEEP_SECONDS))
                for fd, flags in found:
                    connection = map.get(fd)
                    if connection is None:  # a thread has closed it, and somebody else has the descriptor
                        with contextlib.suppress(OSError):
                            epoll.unregister(fd)
                        continue
                    due.add(fd)
                    if connection.accepting:
                        _accept(connection, flags, map, due, all_of_them=len(found) > 1)
                    else:
                        wasyncore.readwrite(connection, flags)
    finally:
        _is_interruptible = True
    if _is_to_end:
        raise SystemExit(0)


def _accept(listening: Any, flags: int, map: dict[int, Any], due: set[int], *, all_of_them: bool) -> None:
    """Take in who has come; where there is much to do all of them, for how long one waits out there nobody knows."""
    while True:
        before = len(map)
        wasyncore.readwrite(listening, flags)
        if len(map) <= before:
            break
        due.add(_newest(map))
        if not (all_of_them and listening.readable()):
            break


def _newest(map: dict[int, Any]) -> int:
    """Return the descriptor of the connection that has just come."""
    try:
        newest: int = next(reversed(map))
    except RuntimeError:  # a thread has just closed one
        newest = tuple(map)[-1]
    return newest


def _poll(epoll: "select.epoll", timeout: float) -> list[tuple[int, int]]:
    global _is_interruptible, _turn_began_at
    _is_interruptible = True
    if _is_to_end:
        raise SystemExit(0)
    found = epoll.poll(timeout)
    _is_interruptible = False
    _turn_began_at = time.monotonic()
    return found


def _ask(fd: int, connection: Any, epoll: "select.epoll", polled: dict[int, tuple[Any, int]]) -> bool:
    """Poll for what a connection wants; return whether it is to be asked again at the next turn."""
    whose, before = polled.pop(fd, (None, 0))
    if connection is None:
        return False  # it is closed, and the kernel polls it no longer
    if whose is not connection:
        before = 0  # another had the descriptor
    flags = RESTING if connection.readable() else 0
    if connection.writable() and not connection.accepting:
        flags |= select.POLLOUT
    try:
        if flags and not before:
            epoll.register(fd, flags)
        elif flags and flags != before:
            epoll.modify(fd, flags)
        elif before and not flags:
            epoll.unregister(fd)
    except OSError:  # a thread has just closed it
        return True
    if flags:
        polled[fd] = connection, flags
    return flags != RESTING
