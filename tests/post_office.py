"""Those who are told: a mail server and a receiver of webhooks, real ones on this machine."""

import asyncio
import contextlib
import http.server
import json
import threading
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope


class _OnAnyPort(Controller):
    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.base_events.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call] # it declares no types


class MailServer:
    """Keeps the mails it takes; listens within its block.

    Args:
        port: where; 0: any free one.
        then: what happens when a mail was taken, before who sent it is told so.
    """

    def __init__(self, port: int = 0, then: Callable[[], None] = lambda: None) -> None:
        self._then = then
        self.mails: list[tuple[tuple[str, ...], EmailMessage]] = []
        self._server = _OnAnyPort(self, hostname="127.0.0.1", port=port, ready_timeout=60)

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        """Take a mail."""
        assert isinstance(envelope.content, bytes)
        read = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(read, EmailMessage)
        self.mails.append((tuple(envelope.rcpt_tos), read))
        self._then()
        return "250 taken"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.port)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()


class HookServer:
    """Keeps what is posted to it as JSON; listens within its block.

    Args:
        port: where; 0: any free one.
        then: what happens when a post was taken, before who sent it is told so.
    """

    def __init__(self, port: int = 0, then: Callable[[], None] = lambda: None) -> None:
        self.posts: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        posts, headers = self.posts, self.headers

        class Keeps(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                headers.append(dict(self.headers))
                then()
                with contextlib.suppress(OSError):  # who posted is gone
                    self.send_response(204)
                    self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Keeps)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(60)
        self._server.server_close()
