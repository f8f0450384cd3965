"""Talking to an engine of history over HTTP: connections that are kept, credentials, and what went wrong in words."""

import contextlib
import http.client
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cluster_dash_server.history.settings import HistorySettings

SECONDS = 10.0
"""How long a connection, or a part of an answer, may take."""
ANSWER_SECONDS, ANSWER_BYTES = 60.0, 256 * 2**20
"""How long the parts of an answer may take together, and how large it may be: else one could go on for ever."""
WRITE_PATH = "/api/v1/write"
_SAID = 200
"""Characters of an engine's own words that are passed on."""


class EngineError(Exception):
    """The engine was not reached, or hung up: the text says what happened."""


class Answer(NamedTuple):
    """What an engine answered; `is_kept` says whether the connection goes on."""

    status: int
    body: bytes
    is_kept: bool
    retry_after: float | None

    @property
    def is_good(self) -> bool:
        """Whether it did what it was asked to."""
        return 200 <= self.status < 300

    def said(self) -> str:
        """Return its own words, shortened, on one line."""
        text = " ".join(self.body.decode(errors="replace").split())
        return text if len(text) <= _SAID else text[:_SAID] + " …"


class AccessError(Exception):
    """A setting of an engine that cannot be used: the text begins with its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where an engine is, and what it wants to see.

    Attributes:
        write_url: where remote-write requests go.
        read_url: where /api/v1/query_range is found, without it.
        headers: sent with each request.
        bearer_file: holds a token; read anew with each connection, for it may be renewed.
    """

    write_url: str
    read_url: str
    headers: tuple[tuple[str, str], ...] = ()
    bearer_file: Path | None = None


class Connection:
    """A connection that is kept as long as the engine keeps it. One thread at a time.

    Attributes:
        count: how many connections there have been: it moves when one broke.
    """

    def __init__(self, url: str, access: Access) -> None:
        parts = urlsplit(url)
        self.url = url
        self.path = parts.path.rstrip("/")
        self.count = 0
        self._where = parts.netloc.rpartition("@")[2]
        self._host, self._port = parts.hostname or "", parts.port
        self._is_secure = parts.scheme == "https"
        self._access = access
        self._http: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post a body.

        Raises:
            EngineError: no answer came; what was sent may have been taken, or not.
        """
        try:
            connection = self._opened()
            connection.request("POST", self.path + path, body, {**self._headers, **headers})
            answer = connection.getresponse()
            found = _read(answer)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise EngineError(f"{self._where}: {_why(error)}") from None
        if answer.will_close:
            self.close()
        return Answer(answer.status, found, not answer.will_close, _seconds(answer.headers.get("Retry-After")))

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that did not break yet, as far as is known."""
        return self._http is not None

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._http = self._http, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _opened(self) -> http.client.HTTPConnection:
        if self._http is None:
            if self._is_secure:
                context = ssl.create_default_context()
                self._http = http.client.HTTPSConnection(self._host, self._port, timeout=SECONDS, context=context)
            else:
                self._http = http.client.HTTPConnection(self._host, self._port, timeout=SECONDS)
            self._headers = dict(self._access.headers)
            if self._access.bearer_file is not None:
                self._headers["Authorization"] = f"Bearer {self._access.bearer_file.read_text().strip()}"
            self._http.connect()
            self.count += 1
        return self._http


def refusal(answer: Answer) -> str:
    """Word an answer that is no success, with what would mend it."""
    said = f": {answer.said()}" if answer.body.strip() else ""
    if answer.status in (401, 403):
        return f"it answers {answer.status}{said}; look at [history] headers and bearer_file"
    if answer.status in (404, 405):
        return (
            f"it answers {answer.status}{said}; look at [history] write_url and read_url, and whether it takes writes"
        )
    if 300 <= answer.status < 400:
        return f"it answers {answer.status}, a redirect, which is not followed: name the address it leads to"
    return f"it answers {answer.status}{said}"


def url_problem(url: str) -> str | None:
    """Say what is wrong with the address of an engine; None: nothing."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return "cannot be read as an address"
    if not usable:
        return "expected http:// or https:// and a host"
    if parts.username is not None or parts.password is not None:
        return "expected no user and password in it: they would be seen in logs; see headers and bearer_file"
    if parts.fragment or parts.query or any(character <= " " or character > "~" for character in url):
        return "expected no blanks, no ? and #, and ASCII only"
    return None


def access_of(settings: HistorySettings) -> Access:
    """Return where the engine of the settings is.

    Raises:
        AccessError: a setting is missing or cannot be used.
    """
    write_url, read_url = settings.write_url, settings.read_url
    if write_url is None:
        raise AccessError('write_url: kind = "remote" needs it: http://vm:8428/api/v1/write')
    if read_url is None:
        if not write_url.endswith(WRITE_PATH):
            raise AccessError(f"read_url: is needed where write_url does not end with {WRITE_PATH}")
        read_url = write_url.removesuffix(WRITE_PATH)
    for key, url in (("write_url", write_url), ("read_url", read_url)):
        problem = url_problem(url)
        if problem is not None:
            raise AccessError(f"{key}: {problem}")
    file = None if settings.bearer_file is None else Path(settings.bearer_file)
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(f"bearer_file: {file}: cannot be read: {error}") from None
        if not token or not token.isascii() or not token.isprintable():
            raise AccessError(f"bearer_file: {file}: expected a token of ASCII on one line")
    return Access(write_url=write_url, read_url=read_url, headers=tuple(_headers(settings.headers)), bearer_file=file)


def _headers(texts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for place, text in enumerate(texts, 1):
        name, colon, value = text.partition(":")
        if not colon or not name.replace("-", "").isalnum() or not name.isascii():
            raise AccessError(f"headers: no. {place}: expected NAME: VALUE")
        if not value.strip().isprintable() or not value.isascii():
            raise AccessError(f"headers: no. {place}, {name}: expected a value of ASCII on one line")
        yield name, value.strip()


def _read(answer: http.client.HTTPResponse) -> bytes:
    until = time.monotonic() + ANSWER_SECONDS
    parts, size = [], 0
    while part := answer.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > ANSWER_BYTES or time.monotonic() > until:
            raise OSError(
                0, f"its answer is still not whole after {ANSWER_SECONDS:.0f} s, or {ANSWER_BYTES // 2**20} MiB"
            )
    if answer.length:
        raise OSError(0, "it hung up in the middle of its answer")
    answer.read()  # it counts as read only now
    return b"".join(parts)


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not hold: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {SECONDS:.0f} s"
    if isinstance(error, http.client.IncompleteRead):
        return "it hung up in the middle of its answer"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it hung up without an answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _seconds(text: str | None) -> float | None:
    """Read a Retry-After of seconds; a date is not waited for."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
