"""How waitress holds the connections of a fleet: for `serve`, and for the bare `waitress-serve --call` line.

waitress' own defaults stop answering at 98 clients, since they count idle keep-alive connections, take bodies of
1 GiB, and hide from the application that a proxy passed a request on.
"""

import contextlib
import re
import select
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, MultiSocketServer
from waitress.task import WSGITask
from waitress.utilities import BadRequest, Error

from cluster_dash_server.ingest import AT_ONCE_BYTES
from cluster_dash_server.snapshot import dumps
from cluster_dash_server.web import waitress_turns
from cluster_dash_server.web.edge import KEPT, Reply

LIMITS: dict[str, Any] = {
    "connection_limit": 10_000,
    "asyncore_use_poll": True,  # select() stops at file descriptor 1,024
    "backlog": 4096,
    "recv_bytes": 65_536,
    "channel_timeout": 30,
    "cleanup_interval": 5,
    "max_request_header_size": 16 * 1024,
    "inbuf_overflow": 512 * 1024,
    "expose_tracebacks": False,
    "ident": None,
    "channel_request_lookahead": 0,
    "clear_untrusted_proxy_headers": False,  # the application must see that a proxy passed a request on
}


WHOLE_SINCE = "whole since"
"""Since when a request is complete (s of the monotonic clock), among its headers: no client can send this name."""


_OF_MANY = (b"\nrelayed-dates:", b"\nx-forwarded-for:", b"\nforwarded:")
"""Headers of requests whose connection others will use."""
READY_BYTES = 1_000_000
"""What is longer is no answer for the loop: from 2^20 on waitress puts it into a file."""
LARGE_BYTES = 65_536
"""A part of a body that is longer goes by itself: to copy it costs more than a call into the system."""
BEHIND_SECONDS = 0.1
"""When the loop has been at it for so long, it leaves posts to threads: it then knows how long each has waited."""
_PLAIN_QUERY = re.compile(rb"[\w.,:%+=&~-]*")
_PLAIN_GET = re.compile(rb"(GET /[^\s?#]*\?)(%b) HTTP/1\.[01]\r\n" % _PLAIN_QUERY.pattern)
"""A request line whose query ends where it seems to."""
_KEPT_BYTES, _KEPT_NAMES = 4096, 64
"""A request with more, or more than so many headers and facts, is read anew: thousands of connections may keep one."""
_TLS_HELLO = b"\x16\x03"
"""How a client that speaks TLS begins. It would wait for our part of the handshake, and we for the end of its line."""
_NO_TLS = "this port speaks plain HTTP, and TLS came: ask for http://, or have a proxy before it speak TLS"


class _JsonError:
    """An error of waitress' parser, answered in the one shape of all errors."""

    def __init__(self, error: Error) -> None:
        self._error = error

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return status, headers and body, as `waitress.utilities.Error` does."""
        code, reason = self._error.code, self._error.reason
        if code == 501:  # it is the caller who asks for what nobody has
            code, reason = 400, "Bad Request"
        body = dumps({"success": False, "msg": f"request: {self._error.reason.lower()}: {self._error.body}"}) + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return f"{code} {reason}", headers, body


class RequestParser(HTTPRequestParser):  # type: ignore[misc]
    """waitress' parser; refuses a request with two lengths and closes a mole's connection after its answer."""

    error: object
    path = ""  # waitress' log names it where a client goes, even of a request that was refused before it was read

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the request line and headers.

        Raises:
            ParsingError: the request cannot be read, or has both Content-Length and Transfer-Encoding. waitress takes
                the latter away before an application sees it, so only here is it known.
        """
        lower = header_plus.lower()
        if b"\ncontent-length" in lower and b"\ntransfer-encoding" in lower:
            raise ParsingError("both Content-Length and Transfer-Encoding")
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # an open bracket in the address, a length of thousands of digits
            raise ParsingError(f"Request cannot be read ({str(error)[:64]})") from error
        # a relay has one connection for many hosts, and a proxy some
        if self.command == "POST" and not any(name in lower for name in _OF_MANY):
            # of 3,000 moles few need theirs at a time, and waitress' own loop asks each that is open at every turn
            self.connection_close = True
            self.headers["CONNECTION"] = "close"

    def received(self, data: bytes) -> int:
        """Take what came; return how much of it was used."""
        if not self.header_plus and self.body_rcv is None and data.startswith(_TLS_HELLO):
            self.error, self.completed, used = BadRequest(_NO_TLS), True, len(data)
        else:
            used = int(super().received(data))
        if self.completed:  # it may have lain there for as long as the loop was at others
            self.headers[WHOLE_SINCE] = str(time.monotonic() - waitress_turns.behind_seconds(0.0))
        if isinstance(self.error, Error):
            self.error = _JsonError(self.error)
        return used


class Task(WSGITask):  # type: ignore[misc]
    """waitress' answer; its head leaves with the first part of its body, where that is no longer than LARGE_BYTES.

    Who is killed between the two leaves half an answer, which no proxy may ask another server for; and each costs a
    call into the system.
    """

    channel: "Channel"

    def write(self, data: bytes) -> None:
        """Send a part of the body, before the first one the head."""
        if self.wrote_header or len(data) > LARGE_BYTES:
            super().write(data)
        else:
            with self.channel.at_once():
                super().write(data)

    def set_close_on_finish(self) -> None:
        """Close the connection after this answer; not for want of a length where there is no body, as after a 304."""
        is_asked = self.version == "1.0" or self.request.headers.get("CONNECTION", "").lower() == "close"
        if self.has_body or is_asked:
            super().set_close_on_finish()


class Head(NamedTuple):
    """The bytes before the body of an answer, and whether its connection ends with it."""

    content: bytes
    is_last: bool


@lru_cache(64)  # those who look get the same one within a second
def _head(
    version: str, connection: str, ident: str | None, status: str, headers: tuple[tuple[str, str], ...], second: int
) -> Head:
    """Return the head of an answer as waitress writes it.

    Args:
        version: of HTTP, as the request says.
        connection: what the request says of its connection.
        ident: what the server calls itself.
        status: the status line.
        headers: those of the application.
        second: when it is given (Unix s).
    """
    task = Task(
        SimpleNamespace(server=SimpleNamespace(adj=SimpleNamespace(ident=ident))),
        SimpleNamespace(version=version, headers={"CONNECTION": connection}),
    )
    task.status, task.response_headers, task.start_time = status, list(headers), second
    return Head(task.build_response_header(), task.close_on_finish)


class Get:
    """A whole GET as an application is told of it; one that differs in its query alone need not be read anew.

    So the next one is of each page that polls: to read it would cost more than to answer.

    Args:
        data: the request as it came.
        request: the same, read.
        environ: what it says to an application.
    """

    __slots__ = ("_after", "_before", "_most_bytes", "connection", "environ", "serves_again", "version")

    def __init__(self, data: bytes, request: RequestParser, environ: dict[str, Any]) -> None:
        line = None if request.body_rcv is not None else _PLAIN_GET.match(data)
        self._before = b"" if line is None else line[1]
        self._after = b"" if line is None else data[line.end(2) :]
        self._most_bytes = request.adj.max_request_header_size
        self.serves_again = line is not None and len(data) <= _KEPT_BYTES and len(environ) <= _KEPT_NAMES
        self.connection: str = request.headers.get("CONNECTION", "")
        self.version: str = request.version
        self.environ = {**environ, KEPT: {}}
        del self.environ["waitress.client_disconnected"]  # it holds the connection, which holds this

    def becomes(self, data: bytes) -> bool:
        """Become the request that came, where it differs from this one in its query alone; else return False."""
        before, after = self._before, self._after
        if not (before and data.startswith(before) and data.endswith(after) and len(data) < self._most_bytes):
            return False
        query = data[len(before) : -len(after)]
        if not _PLAIN_QUERY.fullmatch(query):
            return False
        self.environ["QUERY_STRING"] = query.decode()
        self.environ["REQUEST_URI"] = (before + query).decode("latin-1").partition(" ")[2]
        return True


class Channel(HTTPChannel):  # type: ignore[misc]
    """waitress' connection; a request has `channel_timeout` to arrive in full.

    waitress counts from the last byte, so that one byte every few seconds would keep a connection for ever.

    An answer that lies ready, or is made at once, is sent from waitress' own loop: handing the request to a thread, as
    is done for all others, costs more than the answer. An application says by its method `ready` what does; it must not
    wait. While more comes than the loop can do, threads take posts in the order in which they came.
    """

    task_class = Task
    last_activity: float
    close_when_flushed: bool
    requests: list[RequestParser]
    _held: list[bytes] | None = None
    _answered: Get | None = None
    """The last request that was answered from the loop."""
    _is_reading = False
    _has_whole = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Send in one piece what is written meanwhile."""
        held = self._held = []
        try:
            yield
        finally:
            self._held = None
        super().write_soon(b"".join(held))

    def write_soon(self, data: Any) -> int:
        """Send some bytes, or a file."""
        if self._held is None:
            return int(super().write_soon(data))
        self._held.append(data)
        return len(data)

    def handle_read(self) -> None:
        """Read what came."""
        unfinished, since = self.request, self.last_activity
        super().handle_read()
        if unfinished is not None and unfinished is self.request:
            self.last_activity = since

    def received(self, data: bytes) -> bool:
        """Take what came; send the answer from here where it lies ready."""
        ready = getattr(self.server.application, "ready", None)
        if ready is None or not data.startswith(b"GET ") or not self._is_at_rest():
            return self._received(data, ready)
        get, request = self._answered, None
        if get is None or not get.becomes(data):
            request = self._lone_request(data)
            if request is None:
                return self._received(data, ready)
            get = Get(data, request, Task(self, request).get_environment())
        reply = ready({**get.environ})
        if reply is not None and len(reply.content) <= READY_BYTES:
            self._answered = get if get.serves_again else None
            self._send(get.version, get.connection, reply)
        elif request is None:
            return self._received(data, ready)
        else:
            self.requests.append(request)
            self.server.add_task(self)
        return True

    def _received(self, data: bytes, ready: Callable[[Any], Reply | None] | None) -> bool:
        """Take what came as waitress does; a post that is whole now is answered from here where that may be."""
        self._is_reading = True
        try:
            taken = bool(super().received(data))
        finally:
            self._is_reading = False
        if self._has_whole:
            self._has_whole = False
            if ready is None or not self._takes_at_once(ready):
                self.server.add_task(self)
        return taken

    def begins(self) -> bool:
        """Say whether a request may go to a thread; False while it is still being read, for it is looked at before."""
        self._has_whole = self._is_reading
        return not self._is_reading

    def _takes_at_once(self, ready: Callable[[Any], Reply | None]) -> bool:
        """Answer a post, where that is a small thing and nobody waits; else return False."""
        request = self.requests[0]
        if len(self.requests) > 1 or self.request is not None:
            return False  # whoever takes what follows does so behind it
        if request.error or request.command != "POST" or request.chunked:
            return False
        if request.content_length > AT_ONCE_BYTES:
            return False
        if self.server.task_dispatcher.queue or waitress_turns.behind_seconds() > BEHIND_SECONDS:
            return False
        reply = ready(Task(self, request).get_environment())
        if reply is None:
            return False
        self.requests = []
        self._send(request.version, request.headers.get("CONNECTION", ""), reply)
        request.close()
        return True

    def _is_at_rest(self) -> bool:
        """Say whether nothing is under way: no request has come in part or is worked on, no answer waits to leave."""
        is_ending = self.close_when_flushed or self.will_close
        return not (self.request or self.requests or self.total_outbufs_len or is_ending)

    def _lone_request(self, data: bytes) -> RequestParser | None:
        """Return the request where the data are a whole one, and nothing else."""
        request = RequestParser(self.adj)
        is_whole = request.received(data) == len(data) and request.completed
        return None if not is_whole or request.error or request.expect_continue else request

    def _send(self, version: str, connection: str, reply: Reply) -> None:
        """Send an answer that is ready to who speaks this version of HTTP, and says that of the connection."""
        now = time.time()
        head = _head(version, connection, self.adj.ident, reply.status, tuple(reply.headers), int(now))
        is_large = len(reply.content) > LARGE_BYTES
        self.close_when_flushed = head.is_last
        try:
            for part in (head.content, reply.content) if is_large else (head.content + reply.content,):
                sent = 0 if self.total_outbufs_len else self.send(part)
                if sent < len(part):
                    self.write_soon(part[sent:])
            if self.total_outbufs_len:
                self.current_outbuf_count = self.adj.outbuf_high_watermark  # the next answer gets a buffer of its own
        except (ClientDisconnected, OSError):
            self.close_when_flushed = True
        self.last_activity = now


def _add_task(server: BaseWSGIServer, channel: Channel) -> None:
    """Hand a request to a thread."""
    if channel.begins():
        server.task_dispatcher.add_task(channel)


def apply(body_bytes: int, *, threads: int = 8) -> None:
    """Make the limits waitress' own defaults; what its caller sets explicitly still wins.

    Args:
        body_bytes: the largest body that is taken.
        threads: requests that are worked on, or wait, at a time.
    """
    for name, value in {**LIMITS, "threads": threads}.items():
        setattr(Adjustments, name, value)
    # Past its limit waitress answers and closes while the client still sends, and a reset may eat the answer. What is
    # a little too large is read to its end, so that the application's 413 arrives.
    Adjustments.max_request_body_size = 8 * body_bytes
    HTTPChannel.parser_class = RequestParser
    BaseWSGIServer.channel_class = Channel
    BaseWSGIServer.add_task = _add_task
    if hasattr(select, "epoll"):
        BaseWSGIServer.asyncore = MultiSocketServer.asyncore = waitress_turns
