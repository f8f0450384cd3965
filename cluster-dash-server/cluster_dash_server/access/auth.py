"""Who may post: the secret of a request against what the site has set: a shared passcode, tokens, or both."""

import hmac
import ipaddress
import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from cluster_dash_server.access.tokens import Token, TokenError, Tokens, TokensAway, digest_of, looks_like
from cluster_dash_server.hostlist import compress
from cluster_dash_server.snapshot import Json, printable

log = logging.getLogger(__name__)

SHIPPED_PASSCODE = "lab_cluster_2025"
"""What the first agents' files hold. Taken from this machine only, and only while the site has set nothing."""


MOST_BY_PASSCODE = 10_000
"""Hosts of which is remembered that they came by the passcode."""


class AuthError(Exception):
    """A caller who may not post.

    Attributes:
        status: 401 or 403, by contract; 429 to an address that has guessed too often.
        text: why, and the mend; never the value of a secret.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Where a request comes from, as its connection and headers say.

    Attributes:
        peer: address of the other end of the connection.
        host: the Host header, None where there is none.
        forwarded: a proxy has passed it on (any of Forwarded, X-Forwarded-*, X-Real-IP, Via).
        origin: the Origin header: a page in a browser sends it, an agent and curl do not.
        fetch_site: the Sec-Fetch-Site header, likewise.
        scheme: http or https: how the connection to this server is.
        forwarded_proto: the X-Forwarded-Proto header: how the connection to a proxy was, as it says.
        forwarded_for: the X-Forwarded-For header: whom it passed the request on for, as it says.
    """

    peer: str
    host: str | None
    forwarded: bool
    origin: str | None
    fetch_site: str | None
    scheme: str = "http"
    forwarded_proto: str | None = None
    forwarded_for: str | None = None

    @property
    def here(self) -> bool:
        """Whether it comes from this machine: loopback, asked for by a loopback name, passed on by nobody."""
        return is_loopback(self.peer) and self.host is not None and names_loopback(self.host) and not self.forwarded

    @property
    def local(self) -> bool:
        """Whether it surely comes from this machine: from here, and not at the wish of a page that a browser shows."""
        return self.here and self.origin is None

    @property
    def from_a_page(self) -> bool:
        """Whether a page of some site sent it: such a post could come from any page a person here has open."""
        return self.origin is not None or self.fetch_site not in (None, "none", "same-origin")


@lru_cache(4096)
def is_loopback(address: str) -> bool:
    """Say whether an IP address is this machine's own."""
    ip = _ip(address)
    return ip is not None and ip.is_loopback


def name_of(host: str) -> str:
    """Return the name in a Host header: without its port, brackets, last dot and case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, _, port = host.rpartition(":")
    return (name if name and ":" not in name and port.isdigit() else host).rstrip(".").lower()


@lru_cache(1024)  # of a batch, each line asks
def names_loopback(host: str) -> bool:
    """Say whether a Host header names this machine (DNS rebinding reaches loopback under another name)."""
    name = name_of(host)
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)


class Proxies:
    """What can be believed of the way that a request came.

    Args:
        trusted: addresses and networks of proxies whose word counts: whom they pass a request on for, and how.

    Raises:
        ValueError: one of them is no address or network.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(each, strict=False) for each in trusted)

    def passed_on(self, caller: Caller) -> bool:
        """Say whether the other end of the connection is a trusted proxy."""
        return self._is_trusted(caller.peer)

    def _is_trusted(self, address: str) -> bool:
        ip = _ip(address) if self._networks else None
        return ip is not None and any(ip in network for network in self._networks)

    def in_clear(self, caller: Caller) -> bool:
        """Say whether others could have read the request on its way.

        A proxy on this machine is believed, trusted or not: who lies here lays only his own secret open.
        """
        if caller.scheme == "https":
            return False
        if not caller.forwarded:
            return not is_loopback(caller.peer)
        proto = (caller.forwarded_proto or "").partition(",")[0].strip().lower()
        return proto != "https" or not (is_loopback(caller.peer) or self.passed_on(caller))

    def address(self, caller: Caller) -> str:
        """Return where a request comes from; of IPv6 the network, for one person has many addresses of it."""
        address = caller.peer
        if self.passed_on(caller):
            hops = [hop.strip() for hop in (caller.forwarded_for or "").split(",") if hop.strip()]
            address = next((hop for hop in reversed(hops) if not self._is_trusted(hop)), address)
        ip = _ip(address)
        if ip is None:
            return printable(address, 64)
        return str(ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False))


@lru_cache(4096)
def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


class Limiter:
    """Counts what failed, by address, in each minute.

    It is asked after a secret was found wrong only, so a right one is never refused, and a fleet behind one address is
    not slowed.

    Args:
        a_minute: failures of one address that are answered as such; 0: all of them.
    """

    MOST_ADDRESSES = 10_000

    def __init__(self, a_minute: int) -> None:
        self._a_minute = a_minute
        self._lock = threading.Lock()
        self._minute = 0
        self._failures: dict[str, int] = {}

    def failed(self, address: str) -> int:
        """Count a failure; return how many there have been in this minute."""
        minute = int(time.monotonic() // 60)
        with self._lock:
            if minute != self._minute or len(self._failures) >= self.MOST_ADDRESSES:
                self._minute = minute
                self._failures.clear()
            count = self._failures[address] = self._failures.get(address, 0) + 1
        return count

    def is_locked(self, address: str) -> bool:
        """Say whether the next failure of an address in this minute is one too many."""
        same_minute = self._minute == int(time.monotonic() // 60)
        return same_minute and self.is_too_many(self._failures.get(address, 0) + 1)

    def is_too_many(self, failures: int) -> bool:
        """Say whether so many failures are too many."""
        return 0 < self._a_minute < failures


class Passcode:
    """The site's shared passcode.

    Args:
        site: the one the site wrote itself; None: it has set none, and the shipped one is taken from this machine.
    """

    def __init__(self, site: str | None) -> None:
        self.is_shipped = site is None
        self._digest = digest_of(SHIPPED_PASSCODE if site is None else site)

    def check(self, presented: object, caller: Caller) -> None:
        """Let a request pass.

        Args:
            presented: `auth_code` of the body, else the Bearer token, as it came; None where there is neither.
            caller: where the request comes from.

        Raises:
            AuthError: 401.
        """
        known = isinstance(presented, str) and hmac.compare_digest(digest_of(presented), self._digest)
        if not known:
            missing = "no passcode or token (auth_code in the body, or Authorization: Bearer)"
            raise AuthError(401, f"auth_code: {missing if presented is None else 'not known here'}")
        if self.is_shipped and not caller.local:
            raise AuthError(
                401,
                "auth_code: this server has no passcode of its own yet, and takes the shipped one from its own machine "
                'only: set PASSCODE = "…" in its config.py, or [ingest] passcode in server.toml',
            )


class Auth:
    """Who may post: who knows the passcode, for any host; who has a token, for its own.

    Args:
        passcode: the shared one.
        tokens: of hosts; None: there are none.
        proxies: what can be believed of the way a request came.
        limiter: counts wrong secrets.
        requires_tokens: no passcode is taken, not even from this machine.
        allows_plaintext: tokens are taken in clear from other machines.
    """

    def __init__(
        self,
        passcode: Passcode,
        tokens: Tokens | None = None,
        *,
        proxies: Proxies | None = None,
        limiter: Limiter | None = None,
        requires_tokens: bool = False,
        allows_plaintext: bool = False,
    ) -> None:
        self._passcode = passcode
        self._tokens = tokens
        self._proxies = proxies or Proxies()
        self._limiter = limiter or Limiter(0)
        self._requires_tokens = requires_tokens
        self._allows_plaintext = allows_plaintext
        self._by_passcode: dict[str, float] = {}

    def waits(self, now: float) -> bool:
        """Say whether `admit` might wait now; see `Tokens.waits`."""
        return self._tokens is not None and self._tokens.waits(now)

    def admit(self, presented: object, caller: Caller, now: float) -> Token | None:
        """Let a request pass; return its token, None where it came by the passcode.

        Args:
            presented: `auth_code` of the body, else the Bearer token, as it came; None where there is neither.
            caller: where the request comes from.
            now: Unix s.

        Raises:
            AuthError: 401, 403 or 429.
        """
        if self._tokens is not None:
            self._tokens.look(now)
        try:
            if looks_like(presented, "host") and self._tokens is not None:
                return self._admit_token(str(presented), caller, now)
            if self._requires_tokens:
                raise AuthError(401, "auth_code: not known here: this server takes tokens only")
            self._passcode.check(presented, caller)
        except AuthError as error:
            self._count(error, caller)
            raise
        return None

    def _admit_token(self, presented: str, caller: Caller, now: float) -> Token:
        if self._tokens is None:
            raise AuthError(401, "auth_code: not known here")
        token = self._tokens.find(presented, now)
        if token is None:
            if self._tokens.trouble is not None:
                raise AuthError(503, f"auth_code: tokens cannot be checked now: {self._tokens.trouble}")
            raise AuthError(401, "auth_code: not known here")
        refuse_ended(token, now, "auth_code: this token")
        self.refuse_in_clear(caller, "auth_code: this token")
        return token

    def refuse_in_clear(self, caller: Caller, what: str) -> None:
        """Refuse a secret that others could have read on its way.

        Raises:
            AuthError: 403.
        """
        if not self._allows_plaintext and self._proxies.in_clear(caller):
            raise AuthError(
                403,
                f"{what} came unencrypted, and others may have read it: post to https:// and take a new one (a proxy "
                "must say X-Forwarded-Proto: https), or set [ingest] allow_plaintext_tokens = true on the server",
            )

    def refuse_another(self, token: Token, snapshot: Json) -> None:
        """Refuse a snapshot of a host that a token is not for; what is no snapshot is left to the schema.

        Raises:
            AuthError: 403.
        """
        host = snapshot.get("hostname")
        if isinstance(host, str) and not token.speaks_for(host):
            raise AuthError(403, f"hostname: this token is not for {printable(host, 64)}")
        if token.machine_id is not None and snapshot.get("machine_id") is None:
            raise AuthError(403, "machine_id: missing, and this token belongs to one machine")

    def used(self, token: Token | None, host: str, machine_id: str | None, now: float) -> None:
        """Note that a snapshot of a host was taken by its token, or by the passcode (None)."""
        if token is None:
            self._by_passcode[host] = now
            while len(self._by_passcode) > MOST_BY_PASSCODE:
                self._by_passcode.pop(next(iter(self._by_passcode)), None)
        elif self._tokens is not None:
            self._by_passcode.pop(host, None)
            self._tokens.used(token, machine_id, now)

    def still_on_passcode(self, now: float) -> list[str]:
        """Return the hosts that came by the passcode within an hour, where others have tokens: who is still to move."""
        if self._tokens is None or not self._tokens.has_valid("host", now):
            return []
        return [host for host, at in list(self._by_passcode.items()) if now - at < 3600]

    def notices(self, now: float, *, from_afar: bool, is_open: bool) -> list[str]:
        """Return what people who look must know of who may post here, and who may look.

        Args:
            now: Unix s.
            from_afar: others than this machine reach the server.
            is_open: nobody needs to sign in.
        """
        said = []
        speaks = "any host that knows the passcode can speak for any other."
        shares_passcode = not self._requires_tokens and not self._passcode.is_shipped
        if self._passcode.is_shipped and not self._requires_tokens:
            if self._tokens is None or not self._tokens.has_valid("host", now):
                said.append("No passcode is set: snapshots are taken from this machine only, with the shipped one.")
            elif from_afar and is_open:
                said.append("Anyone who reaches this server may look.")
        elif from_afar and is_open:
            said.append("Anyone who reaches this server may look" + (f"; {speaks}" if shares_passcode else "."))
        elif from_afar and shares_passcode:
            said.append(speaks.capitalize())
        moving = self.still_on_passcode(now)
        if moving:
            said.append(f"Still on the shared passcode: {compress(moving)}.")
        return said

    def enrol(self, code: object, host: object, machine_id: object, caller: Caller, now: float) -> str:
        """Trade an enrolment code for the token of a host.

        Raises:
            AuthError: 400, 401, 403 or 429.
        """
        if not isinstance(host, str) or not 0 < len(host) <= 253 or printable(host, 253) != host or "/" in host:
            raise AuthError(400, "hostname: expected the name of a host")
        if machine_id is not None and not (isinstance(machine_id, str) and len(machine_id) <= 256):
            raise AuthError(400, "machine_id: expected a text")
        try:
            if not looks_like(code, "enrol") or self._tokens is None:
                raise AuthError(401, "code: not known here")
            found = self._tokens.find(str(code), now)
            if found is None and self._tokens.trouble is not None:
                raise AuthError(503, f"code: codes cannot be checked now: {self._tokens.trouble}")
            if found is None:
                raise AuthError(401, "code: not known here")
            refuse_ended(found, now, "code: this code")
            self.refuse_in_clear(caller, "code: this code")
            return self._tokens.enrol(found, host, machine_id)
        except TokensAway as error:
            raise AuthError(503, f"code: {error}") from None
        except TokenError as error:
            raise AuthError(403, f"code: {error}") from None
        except AuthError as error:
            self._count(error, caller)
            raise

    def _count(self, error: AuthError, caller: Caller) -> None:
        """Count a wrong secret; answer 429 to an address that has tried too many.

        Raises:
            AuthError: 429.
        """
        if error.status != 401 or caller.here:
            return
        failures = self._limiter.failed(self._proxies.address(caller))
        if self._limiter.is_too_many(failures):
            raise AuthError(429, "auth_code: too many wrong ones from this address; a right one is taken at once")


def refuse_ended(token: Token, now: float, what: str) -> None:
    """Refuse a token that has been revoked or has expired: who holds its secret may know.

    Raises:
        AuthError: 403.
    """
    if token.is_valid(now):
        return
    ended_at = token.expires_at if token.revoked_at is None else token.revoked_at
    how = "expired" if token.revoked_at is None else "was revoked"
    day = time.strftime("%Y-%m-%d", time.gmtime(ended_at))
    raise AuthError(403, f"{what} {how} on {day}")
