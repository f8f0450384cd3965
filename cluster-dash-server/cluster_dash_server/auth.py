"""Who may post: the secret of a request against what the site has set."""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

SHIPPED_PASSCODE = "lab_cluster_2025"
"""What the first agents' files hold. Taken from this machine only, and only while the site has set nothing."""


class AuthError(Exception):
    """A caller who may not post.

    Attributes:
        status: 401 or 403, by contract.
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
    """

    peer: str
    host: str | None
    forwarded: bool
    origin: str | None
    fetch_site: str | None

    @property
    def here(self) -> bool:
        """Whether it comes from this machine: loopback, asked for by a loopback name, passed on by nobody."""
        return _is_loopback(self.peer) and self.host is not None and names_loopback(self.host) and not self.forwarded

    @property
    def local(self) -> bool:
        """Whether it surely comes from this machine: from here, and not at the wish of a page that a browser shows."""
        return self.here and self.origin is None

    @property
    def from_a_page(self) -> bool:
        """Whether a page of some site sent it: such a post could come from any page a person here has open."""
        return self.origin is not None or self.fetch_site not in (None, "none", "same-origin")


def _is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped.is_loopback
    return ip.is_loopback


def name_of(host: str) -> str:
    """Return the name in a Host header: without its port, brackets, last dot and case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, _, port = host.rpartition(":")
    return (name if name and ":" not in name and port.isdigit() else host).rstrip(".").lower()


def names_loopback(host: str) -> bool:
    """Say whether a Host header names this machine (DNS rebinding reaches loopback under another name)."""
    name = name_of(host)
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


class Passcode:
    """The site's shared passcode.

    Args:
        site: the one the site wrote itself; None: it has set none, and the shipped one is taken from this machine.
    """

    def __init__(self, site: str | None) -> None:
        self.is_shipped = site is None
        self._digest = _digest(SHIPPED_PASSCODE if site is None else site)

    def check(self, presented: object, caller: Caller) -> None:
        """Let a request pass.

        Args:
            presented: `auth_code` of the body, else the Bearer token, as it came; None where there is neither.
            caller: where the request comes from.

        Raises:
            AuthError: 401.
        """
        known = isinstance(presented, str) and hmac.compare_digest(_digest(presented), self._digest)
        if not known:
            missing = "no passcode (auth_code in the body, or Authorization: Bearer)"
            raise AuthError(401, f"auth_code: {missing if presented is None else 'not known here'}")
        if self.is_shipped and not caller.local:
            raise AuthError(
                401,
                "auth_code: this server has no passcode of its own yet, and takes the shipped one from its own machine "
                'only: set PASSCODE = "…" in its config.py, or [ingest] passcode in server.toml',
            )


def _digest(secret: str) -> bytes:
    # lone surrogates do not encode; what cannot be a secret must still compare, not raise
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
