"""Requests to addresses of the settings, and to nowhere else.

Who can set a name in some DNS, or answers at the address that an administrator named, must not reach what only this
machine can: its own services, neighbours on the link, a cloud's metadata. So the addresses that a name has are looked
at, and connected to is what was looked at; a redirect is an error. Where a library makes the connections, each is
looked at as it is made, wherever a name or a redirect has led to.
"""

import http.client
import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

from cluster_dash_server.notices.notice import NotifyError

SECONDS = 10.0
"""How long a connection, or a part of an answer, may take."""
MOST_SECONDS = 30.0
"""How long all of it may take: who sends a byte now and then is sent away."""
MOST_RETRY_AFTER_SECONDS = 86_400.0
NEVER = (400, 405, 410, 413, 414, 415, 422)
"""Answers that say that this very notice will not be taken; others may be mended at the other end."""
METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))
)
_EMBEDS = ipaddress.ip_network("64:ff9b::/96")  # NAT64: an IPv4 address in its last four bytes

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]


def resolved(host: str, port: int) -> list[str]:
    """Return the addresses of a name, in the order in which they are to be tried.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_private(text: str) -> bool:
    """Say whether an address is of this machine, of this link only, of a cloud's metadata, or of nobody."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _EMBEDS:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        address = inner or address
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in METADATA
        or address in ipaddress.ip_network("0.0.0.0/8" if address.version == 4 else "::/128")
    )


def url_problem(url: str) -> str | None:
    """Say what is wrong with an address to send to, None where nothing is; the address is not repeated."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return "cannot be read as an address"
    if not usable:
        return "expected http:// or https:// and a host"
    if parts.username is not None or parts.password is not None:
        return "expected no user and password in it: they would be seen in logs; see token"
    if parts.fragment or any(character <= " " or character > "~" for character in url):
        return "expected no blanks, no # and ASCII only"
    return None


def request(
    url: str,
    *,
    method: str = "POST",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    allow_private: bool = False,
    ca_file: str | None = None,
    resolve: Resolve = resolved,
) -> None:
    """Send a request; returns when it was answered with 2xx.

    Raises:
        NotifyError: it was not.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_secure = parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    where = f"{host}:{port}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with _connected(host, port, allow_private, resolve) as plain, _ended_within(MOST_SECONDS, plain):
            connection.sock = plain
            if is_secure:
                connection.sock = _context(ca_file).wrap_socket(plain, server_hostname=host)
            with connection.sock:
                connection.request(method, path, body, {**(headers or {}), "Host": parts.netloc, "Connection": "close"})
                with connection.getresponse() as answer:
                    status, retry_after = answer.status, _retry_after(answer)
    except ssl.SSLCertVerificationError as error:
        raise NotifyError(f"{where}: its certificate does not hold: {error.verify_message}") from None
    except (OSError, http.client.HTTPException) as error:
        raise NotifyError(f"{where}: {_why(error)}") from None
    if 300 <= status < 400:
        raise NotifyError(f"{where}: answers {status}, a redirect, which is not followed: name the address it leads to")
    if not 200 <= status < 300:
        raise NotifyError(
            f"{where}: answers {_status(status)}", is_final=status in NEVER, retry_after_seconds=retry_after
        )


class Confined:
    """What a thread may not do for a while: reach what only this machine can."""

    def __init__(self) -> None:
        self.refused: str | None = None
        """Why a connection was refused; None: none was."""

    def look_at(self, address: object) -> None:
        """Let a connection pass.

        Raises:
            PermissionError: it leads to this machine, its link or a cloud's metadata.
        """
        host = address[0] if isinstance(address, tuple) and address else None
        try:
            is_refused = is_private(str(host))  # a name was not looked up yet, a path is a socket of this machine
        except ValueError:
            is_refused = True
        if is_refused:
            self.refused = _refusal(str(host) if isinstance(host, str) else "it")
            raise PermissionError(self.refused)


_confined = threading.local()


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    """Look at a connection that is about to be made; called by Python for whatever happens in this process."""
    if event in _CONNECTS:
        now: Confined | None = getattr(_confined, "now", None)
        if now is not None:
            now.look_at(arguments[1])


_CONNECTS = frozenset(("socket.connect", "socket.sendto", "socket.sendmsg"))
_audits = threading.Lock()  # taken once, and never given back: Python lets go of no hook


@contextmanager
def confined() -> Iterator[Confined]:
    """Refuse this thread, for so long, connections to this machine, its link and a cloud's metadata."""
    if _audits.acquire(blocking=False):
        sys.addaudithook(_audit)
    found = _confined.now = Confined()
    try:
        yield found
    finally:
        _confined.now = None


def _refusal(place: str) -> str:
    return f"{place}: this machine, its link or a cloud's metadata, where nothing is sent without allow_private = true"


@contextmanager
def _connected(host: str, port: int, allow_private: bool, resolve: Resolve) -> Iterator[socket.socket]:
    addresses = resolve(host, port)
    for address in addresses:
        if not allow_private and is_private(address):
            raise NotifyError(_refusal(f"{host} is {address}"))
    trouble: OSError = OSError("it has no address")
    for address in addresses:
        try:
            found = socket.create_connection((address, port), timeout=SECONDS)
        except OSError as error:
            trouble = error
            continue
        with found:
            yield found
        return
    raise trouble


@contextmanager
def _ended_within(seconds: float, plain: socket.socket) -> Iterator[None]:
    """Cut a connection off that takes longer."""
    descriptor = plain.dup()  # TLS takes the other one over

    def cut() -> None:
        try:
            descriptor.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        descriptor.close()


def _context(ca_file: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def _retry_after(answer: http.client.HTTPResponse) -> float | None:
    """Return how long the other end asks to be left alone (s), None where it does not say."""
    text = answer.getheader("Retry-After")
    if text is None:
        return None
    try:
        if text.strip().isdecimal():
            seconds = float(text)
        else:
            asked = parsedate_to_datetime(text)
            said = answer.getheader("Date")
            # both by its own clock, which need not be ours
            seconds = (asked - parsedate_to_datetime(said or "")).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MOST_RETRY_AFTER_SECONDS)


def _status(status: int) -> str:
    """Word a status by our own list: the other end's words may be anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
