"""One POST over one connection, within a time that holds for the whole of it.

http.client would bound each read only, so that an answer of one byte every few seconds never ends; and it costs 7 MiB
(it loads ssl and the email package) and 0.1 ms a post. What is needed of HTTP here is little: one request, one answer,
`Connection: close`. Redirects are never followed and ~/.netrc is never read: both would lead the secret elsewhere.
"""

import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cluster_dash_mole.mole import Row, SendError

if TYPE_CHECKING:
    from ssl import SSLContext

CONNECT_SECONDS = 5.0
READ_SECONDS = 15.0
TOTAL_SECONDS = 30.0
_MAX_ANSWER = 256 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r?\n|$)")
_NOT_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
"""What OpenSSL calls an answer that is none of TLS, by its version."""
_TLS_ALERT = b"\x15\x03"
_NAMES_TLS = re.compile(rb"\bto (?:an )?(?:HTTPS|SSL)\b")
"""How a 400 reads of a web server that was asked in plain HTTP on a port for TLS: of nginx, Apache, and those in Go."""
_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-fA-F:.%]+\]|[^/:@?#\s]+)(?::(?P<port>\d{1,5}))?(?P<path>/[^\s?#]*)?"
)


class Address(NamedTuple):
    """A server's address: `host` is a name or an IP address without brackets."""

    tls: bool
    host: str
    port: int
    path: str

    @property
    def loopback(self) -> bool:
        """Whether the address names this machine by its loopback interface."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def authority(self) -> str:
        """The host as in a URL, with the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server said: the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse_address(text: str) -> Address:
    """Return the parts of an http:// or https:// address.

    Raises:
        ValueError: it is none, or carries a name, a password or a query.
    """
    found = _ADDRESS.fullmatch(text)
    if not found or int(found["port"] or 1) not in range(1, 65536):
        raise ValueError(f"got {text!r}, expected http://HOST[:PORT][/PATH] or https://...")
    tls = found["scheme"] == "https"
    port = int(found["port"]) if found["port"] else 443 if tls else 80
    return Address(tls=tls, host=found["host"].strip("[]"), port=port, path=found["path"] or "/")


def proxy_of(address: Address, environ: Mapping[str, str]) -> Address | None:
    """Return the proxy that the environment names for an address: none for loopback, or what NO_PROXY lists."""
    kind = "https_proxy" if address.tls else "http_proxy"
    named = environ.get(kind) or environ.get(kind.upper())
    if not named or address.loopback:
        return None
    for entry in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(","):
        domain = entry.strip().lstrip("*").lstrip(".").lower()
        host = address.host.lower()
        if entry.strip() == "*" or (domain and (host == domain or host.endswith(f".{domain}"))):
            return None
    return parse_address(named if "://" in named else f"http://{named}")


class Exchange:
    """One POST. All its steps share the time, from the look-up of the name to the last byte of the answer."""

    def __init__(self, address: Address, *, proxy: Address | None, tls: "SSLContext | None") -> None:
        self._address = address
        self._proxy = proxy
        self._tls = tls
        self._until = time.monotonic() + TOTAL_SECONDS
        self._peer = ""

    def post(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send the request and return the answer.

        Raises:
            SendError: there is none; the text names the step that failed.
        """
        connection = self._connect()
        try:
            if self._tls:
                connection = self._secure(connection, self._tls)
            via_proxy = self._proxy is not None and not self._tls
            target = f"http://{self._address.authority}{self._address.path}" if via_proxy else self._address.path
            lines = [f"POST {target} HTTP/1.1", f"Host: {self._address.authority}", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            lines.append(f"Content-Length: {len(body)}")
            self._send(connection, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            answer = self._receive(connection)
        finally:
            connection.close()
        is_ours = answer.body.lstrip().startswith(b"{")  # may repeat a field of the snapshot, whatever that says
        if not self._tls and answer.status == 400 and not is_ours and _NAMES_TLS.search(answer.body):
            raise self._speaks_tls()
        return answer

    def _connect(self) -> socket.socket:
        """Connect to the first of the name's addresses that answers, in the order of the system."""
        host, port = self._proxy[1:3] if self._proxy else self._address[1:3]
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise _trouble(f"CD101 cannot resolve {host}: {reason}") from error
        failure: SendError = _trouble(f"CD101 cannot resolve {host}: no address")
        for family, kind, protocol, _, where in found:
            self._peer = f"[{where[0]}]:{port}" if ":" in str(where[0]) else f"{where[0]}:{port}"
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self._at_most(CONNECT_SECONDS))
                connection.connect(where)
            except OSError as error:
                connection.close()
                failure = self._connect_failed(error)
            else:
                return connection
        raise failure

    def _connect_failed(self, error: OSError) -> SendError:
        if isinstance(error, TimeoutError):
            return _trouble(f"CD102 no connection to {self._peer} within {CONNECT_SECONDS:.0f} s")
        if isinstance(error, ConnectionRefusedError):
            return _trouble(f"CD102 connection refused by {self._peer}")
        return _trouble(f"CD102 no connection to {self._peer}: {error.strerror or error}")

    def _secure(self, connection: socket.socket, tls: "SSLContext") -> socket.socket:
        """Return the connection with TLS in it, through the proxy's tunnel where there is one."""
        import ssl  # 4 MiB, for those who post by https only

        name = self._address.host
        try:
            if self._proxy:
                goal = f"[{name}]:{self._address.port}" if ":" in name else f"{name}:{self._address.port}"
                self._send(connection, f"CONNECT {goal} HTTP/1.1\r\nHost: {goal}\r\n\r\n".encode())
                status = self._receive(connection, head_only=True).status
                if status != 200:
                    raise _trouble(f"CD102 the proxy {self._peer} refused the way to {goal} ({status})")
            connection.settimeout(self._at_most(READ_SECONDS))
            return tls.wrap_socket(connection, server_hostname=name)
        except ssl.SSLCertVerificationError as error:
            mend = "if its CA is your own, name it in ca_file"
            raise _trouble(f"CD103 certificate of {name} not trusted: {error.verify_message}: {mend}") from error
        except ssl.SSLError as error:
            if error.reason in _NOT_TLS:
                mend = "name an http:// address, or have TLS spoken there"
                raise _trouble(f"CD105 {self._peer} does not speak TLS: {mend}") from error
            raise _trouble(f"CD103 no TLS with {self._peer}: {error.reason or error}") from error
        except OSError as error:
            raise _trouble(f"{self._lost(error)} (if it speaks plain HTTP, name an http:// address)") from error

    def _send(self, connection: socket.socket, data: bytes) -> None:
        try:
            connection.settimeout(self._at_most(READ_SECONDS))
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # it may have answered before it read all, as with 413: the answer tells
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, connection: socket.socket, *, head_only: bool = False) -> Answer:
        data = b""
        while True:
            head, end, body = data.partition(b"\r\n\r\n")
            if end and (answer := self._answer(head, body, head_only=head_only)):
                return answer
            if len(data) > _MAX_ANSWER:
                raise _trouble(f"CD104 answer of {self._peer} is too long to be that of a cluster-dash server")
            try:
                connection.settimeout(self._at_most(READ_SECONDS))
                more = connection.recv(65536)
            except OSError as error:
                raise self._lost(error) from error
            if not more:
                break
            data += more
        if not end:
            if not data:
                raise self._lost(ConnectionResetError())
            raise self._cut_off() if _STATUS_LINE.match(data) else self._not_http(data)
        answer = self._answer(head, body, head_only=head_only, ended=True)
        if answer is None:
            raise self._cut_off()
        return answer

    def _answer(self, head: bytes, body: bytes, *, head_only: bool, ended: bool = False) -> Answer | None:
        """Return the answer, None where there is more to come."""
        found = _STATUS_LINE.match(head)
        if not found:
            raise self._not_http(head)
        headers = parse_headers(head)
        whole: bytes | None = body if ended else None
        if head_only:
            whole = b""
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            whole = parse_chunked(body)
        elif headers.get("content-length", "").isdecimal():
            length = int(headers["content-length"])
            whole = body[:length] if len(body) >= length else None
        return None if whole is None else Answer(status=int(found[1]), headers=headers, body=whole)

    def _at_most(self, seconds: float) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(seconds, left)

    def _lost(self, error: OSError) -> SendError:
        if isinstance(error, TimeoutError):
            return _trouble(f"CD102 no answer from {self._peer} in time")
        words = f"{self._peer} closed the connection without an answer: {error.strerror or 'end of data'}"
        mend = "" if self._tls else " (if it speaks TLS, name an https:// address)"
        return _trouble(f"CD102 {words}{mend}")

    def _cut_off(self) -> SendError:
        return _trouble(f"CD102 {self._peer} closed the connection in mid-answer")

    def _not_http(self, data: bytes) -> SendError:
        if data.startswith(_TLS_ALERT):
            return self._speaks_tls()
        return _trouble(f"CD104 {self._peer} does not speak HTTP")

    def _speaks_tls(self) -> SendError:
        return _trouble(f"CD105 {self._peer} speaks TLS: name an https:// address")


def parse_headers(head: bytes) -> dict[str, str]:
    """Return {name in lower case: value} of the lines after the status line; repeated ones are joined."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            known = headers.get(name.strip().lower())
            headers[name.strip().lower()] = f"{known}, {value.strip()}" if known else value.strip()
    return headers


def parse_chunked(data: bytes) -> bytes | None:
    """Return the body that came in chunks, None where the last one has not come."""
    body = b""
    while True:
        size, end, data = data.partition(b"\r\n")
        if not end or not re.fullmatch(rb"[0-9a-fA-F]{1,8}(?:;.*)?", size):
            return None
        length = int(size.partition(b";")[0], 16)
        if length == 0:
            return body
        if len(data) < length + 2:
            return None
        body, data = body + data[:length], data[length + 2 :]


def _trouble(text: str) -> SendError:
    return SendError(text, row=Row.TROUBLE)
