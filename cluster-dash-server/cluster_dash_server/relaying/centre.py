"""The server that a relay passes snapshots on to: a connection that is kept, and what went wrong on the way, in words.

Who answers is known by its certificate. A redirect is not followed: it would lead the hosts' secrets elsewhere.
"""

import http.client
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""How long a part of the answer may take: a mole waits for 15 s."""
IDLE_SECONDS = 20.0
"""A connection idle for so long is not used again: servers and firewalls close such ones, some without a word."""
MOST_ANSWER_BYTES = 4 * 2**20


class CentreError(Exception):
    """The centre gave no answer; the text says where it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the centre answered.

    Attributes:
        retry_after_seconds: how long it asks to be left alone; None: it does not say, or not as a number.
    """

    status: int
    body: bytes
    retry_after_seconds: int | None = None


class Centre:
    """One connection to the centre. Thread-safe: who comes second waits for the first.

    Args:
        to: its address, with the path it lives under.
        ca_file: a PEM file of the CA that its certificate is of; None: the system's.
        clock: monotonic, in s.

    Raises:
        OSError: the file cannot be read, or holds no certificate (ssl.SSLError).
    """

    def __init__(self, to: str, *, ca_file: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(to)
        self._base = parts.path.rstrip("/")
        host, is_secure = parts.hostname or "", parts.scheme == "https"
        self._where = parts.netloc
        self._connection: http.client.HTTPConnection
        if is_secure:
            context = ssl.create_default_context(cafile=ca_file)
            self._connection = http.client.HTTPSConnection(host, parts.port, timeout=CONNECT_SECONDS, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, parts.port, timeout=CONNECT_SECONDS)
        self._connection.auto_open = 0  # where a connection begins is for us to know
        self._clock = clock
        self._used_at = float("-inf")
        self._lock = threading.Lock()

    def exchange(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Said:
        """Send a request and return the answer.

        A kept connection may have been closed meanwhile: then it is sent once more over a new one, which is harmless,
        as a snapshot that comes twice is known by its number.

        Raises:
            CentreError: there is no answer.
        """
        if not self._lock.acquire(timeout=ANSWER_SECONDS):
            raise CentreError(f"{self._where}: busy with requests before this one")
        try:
            was_open = self._connection.sock is not None and self._clock() - self._used_at < IDLE_SECONDS
            try:
                return self._once(method, path, body, headers or {}, anew=not was_open)
            except (ConnectionError, http.client.BadStatusLine):
                if not was_open:
                    raise
                return self._once(method, path, body, headers or {}, anew=True)
        except ssl.SSLCertVerificationError as error:
            mend = "if its CA is your own, name it as [relay] ca_file"
            raise CentreError(f"{self._where}: its certificate does not hold: {error.verify_message}: {mend}") from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise CentreError(f"{self._where}: {_why(error)}") from None
        finally:
            self._used_at = self._clock()
            self._lock.release()

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        with self._lock:
            self._connection.close()

    def _once(self, method: str, path: str, body: bytes, headers: Mapping[str, str], *, anew: bool) -> Said:
        connection = self._connection
        try:
            if anew:
                connection.close()
                connection.connect()
                connection.sock.settimeout(ANSWER_SECONDS)
            connection.request(method, self._base + path, body, dict(headers))
            answer = connection.getresponse()
            content = answer.read(MOST_ANSWER_BYTES + 1)
            if len(content) > MOST_ANSWER_BYTES:
                raise http.client.HTTPException("its answer is too long to be that of a cluster-dash server")
        except BaseException:  # raised again: what is left of an answer must not be read as the next one
            connection.close()
            raise
        retry_after = (answer.getheader("Retry-After") or "").strip()
        seconds = min(3600, int(retry_after)) if retry_after.isdecimal() else None
        return Said(status=answer.status, body=content, retry_after_seconds=seconds)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "closed the connection without an answer"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__
