"""Who may look: each route names the scope it needs, and one check, `Gate.admit`, stands in front of all of them."""

import base64
import hmac
import logging
import secrets
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args
from urllib.parse import urlsplit

from cluster_dash_server.access.auth import AuthError, Caller, Limiter, Proxies, refuse_ended
from cluster_dash_server.access.tokens import Tokens, digest_of, looks_like

log = logging.getLogger(__name__)

Scope = Literal["public", "ingest", "state:read", "history:read", "metrics:read", "operate", "admin"]
"""What a route asks of its caller.

public: nothing (health, style, scripts, sign-in). ingest: a host's secret, checked by `ingest`. state:read,
history:read, metrics:read (text for Prometheus): a viewer; the site is open to all of them unless its settings say
otherwise. operate: an operator (acknowledge, silence); admin: an administrator.
"""
SCOPES: tuple[Scope, ...] = get_args(Scope)
READING: tuple[Scope, ...] = ("state:read", "history:read", "metrics:read")

Mode = Literal["open", "basic", "proxy", "oidc"]
Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_SCOPES_OF: dict[Role, tuple[Scope, ...]] = {
    "viewer": READING,
    "operator": (*READING, "operate"),
    "admin": (*READING, "operate", "admin"),
}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

View = TypeVar("View", bound=Callable[..., Any])
_SCOPE_OF_VIEW = "cluster_dash_scope"


def needs(scope: Scope) -> Callable[[View], View]:
    """Declare the scope of a view function; one without it is never served (a test walks the routes)."""

    def declare(view: View) -> View:
        setattr(view, _SCOPE_OF_VIEW, scope)
        return view

    return declare


def scope_of(view: Callable[..., Any]) -> Scope | None:
    """Return the scope a view function declares, None where it declares none."""
    scope: Scope | None = getattr(view, _SCOPE_OF_VIEW, None)
    return scope


# ----------------------------------------------------------------------------------------------------- who it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who asks.

    Attributes:
        name: how they signed in; None: they did not.
        scopes: what they may.
        sees_names: whether they are told the names of users and of their programs.
        csrf: what a page must hand back with what it changes, so that no other site's page can.
    """

    name: str | None
    scopes: tuple[Scope, ...]
    sees_names: bool
    csrf: str = ""


NOBODY = Viewer(name=None, scopes=(), sees_names=False)
current: ContextVar[Viewer] = ContextVar("viewer", default=NOBODY)
"""Who asks in this thread; set by the gate at each request."""


class Denied(Exception):
    """A request that is not let in.

    Attributes:
        status: 401 (who are you), 403 (not you), 429 or 503.
        text: why, and the mend.
        sign_in_helps: whether signing in would change that.
    """

    def __init__(self, status: int, text: str, *, sign_in_helps: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.sign_in_helps = sign_in_helps


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of a request says who asks.

    Attributes:
        authorization: the header.
        session: the cookie.
        proxy_says: what the header holds in which a trusted proxy names the viewer.
        csrf: gives what the page handed back, None where it did not; asked only where something is to change.
        sends_json: its body says that it is JSON: a page of another site cannot say so without asking us first.
    """

    caller: Caller
    method: str
    authorization: str | None = None
    session: str | None = None
    proxy_says: str | None = None
    csrf: Callable[[], str | None] = lambda: None
    sends_json: bool = False

    @property
    def is_by_a_program(self) -> bool:
        """Whether surely no browser sent it: curl says nothing of a page, and a form of a page cannot send JSON."""
        return self.sends_json and self.caller.origin is None and self.caller.fetch_site is None


class Users(Protocol):
    """People who sign in by a password."""

    def role(self, name: str) -> Role | None:
        """Return the role of somebody; None: there is nobody of that name any more."""

    def is_right(self, name: str, password: str) -> bool:
        """Say whether it is their password; in the same time whether or not there is somebody of that name."""

    def knows_right(self, name: str, password: str) -> bool:
        """Say whether it has been found right not long ago; quick."""


class KeptSessions(Protocol):
    """Who has signed in by a page. Any thread may call."""

    seconds: float
    """How long a session lasts."""

    def begin(self, name: str, role: Role) -> str:
        """Begin a session; return what its cookie holds."""

    def find(self, secret: str | None) -> tuple[str, Role] | None:
        """Return who has the session of a cookie, None where it is none, or over."""

    def end(self, secret: str | None) -> None:
        """End a session."""


@dataclass(slots=True)
class _Session:
    name: str
    role: Role
    made_at: float


class Sessions:
    """Who has signed in by a page. In memory, by the hash of what the cookie holds: a restart signs everybody out.

    Args:
        seconds: how long one lasts.
        clock: Unix s.
    """

    MOST = 10_000

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._by_digest: dict[bytes, _Session] = {}

    def begin(self, name: str, role: Role) -> str:
        """Begin a session; return what its cookie holds."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._by_digest) >= self.MOST:
                self._by_digest.pop(next(iter(self._by_digest)))  # the oldest
            self._by_digest[digest_of(secret)] = _Session(name, role, self._clock())
        return secret

    def find(self, secret: str | None) -> tuple[str, Role] | None:
        """Return who has the session of a cookie, None where it is none, or over."""
        session = None if secret is None else self._by_digest.get(digest_of(secret))
        if secret is None or session is None:
            return None
        if not 0 <= self._clock() - session.made_at < self.seconds:
            self.end(secret)
            return None
        return session.name, session.role

    def end(self, secret: str | None) -> None:
        """End a session."""
        with self._lock:
            self._by_digest.pop(digest_of(secret or ""), None)


# ------------------------------------------------------------------------------------------------------- the gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a site has set about those who look.

    Attributes:
        mode: how people say who they are; open: they need not.
        operators: who has this role, by name, where the way of signing in knows no roles; admins likewise.
        allows_anonymous: who has not signed in may look, too.
        hides_names: who has not signed in is not told the names of users.
        allows_plaintext: passwords and read tokens are taken in clear from other machines.
    """

    mode: Mode = "open"
    operators: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    allows_anonymous: bool = False
    hides_names: bool = False
    allows_plaintext: bool = False


class Gate:
    """Lets a request pass, or says why not.

    Args:
        rules: what the site has set.
        tokens: those of programs that read.
        users: people with passwords, with the mode basic.
        sessions: who has signed in by a page.
        proxies: whose word counts.
        limiter: counts wrong passwords and tokens.
        clock: Unix s.
        key: ties what changes something to who was shown the page; None: one of this life of the server.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        tokens: Tokens,
        users: Users | None,
        sessions: KeptSessions,
        proxies: Proxies,
        limiter: Limiter,
        clock: Callable[[], float],
        key: bytes | None = None,
    ) -> None:
        self.rules = rules
        self.sessions = sessions
        self.proxies = proxies
        self._tokens = tokens
        self._users = users
        self._limiter = limiter
        self._clock = clock
        self._key = key or secrets.token_bytes(32)
        self._anonymous = Viewer(name=None, scopes=READING, sees_names=not rules.hides_names)
        self._at_home = Viewer(name=None, scopes=_SCOPES_OF["operator"], sees_names=not rules.hides_names)

    def admit(self, asked: Asked, scope: Scope) -> Viewer:
        """Let a request pass, and remember as `current` who asks.

        Raises:
            Denied: 401, 403 or 429.
        """
        viewer = self._who(asked, scope)
        current.set(viewer)
        if scope not in ("public", "ingest") and scope not in viewer.scopes:
            raise Denied(403, f"request: {viewer.name or 'who has not signed in'} may not: this needs {scope}")
        if scope != "ingest" and asked.method not in SAFE_METHODS and not looks_like(_bearer(asked), "read"):
            self._refuse_other_sites(asked, viewer)
        return viewer

    def admit_at_once(self, asked: Asked, scope: Scope) -> Viewer | None:
        """Let a request pass as `admit` does, where neither a file nor a database has to be asked; else return None."""
        if self._users is not None or looks_like(_bearer(asked), "read"):
            return None
        return self.admit(asked, scope)

    def _who(self, asked: Asked, scope: Scope) -> Viewer:
        bearer = _bearer(asked)
        if scope == "ingest":
            return NOBODY
        if looks_like(bearer, "read"):
            return self._program(str(bearer), asked)
        if self.rules.mode == "open":  # nobody says who they are: only who sits at this machine may change anything
            return self._at_home if asked.caller.here else self._anonymous
        person = self._person(asked)
        if person is not None:
            return person
        if scope == "public":
            return NOBODY
        if self.rules.allows_anonymous and scope in READING:
            return self._anonymous
        where = "at the proxy in front of this server" if self.rules.mode == "proxy" else "to look"
        raise Denied(401, f"request: sign in {where}", sign_in_helps=self.rules.mode != "proxy")

    def _program(self, bearer: str, asked: Asked) -> Viewer:
        """Return the viewer that a read token stands for; it reads only, and no cookie adds to it."""
        token = self._tokens.find(bearer, self._clock())
        if token is None and self._tokens.trouble is not None:
            raise Denied(503, f"Authorization: tokens cannot be checked now: {self._tokens.trouble}")
        if token is None or token.kind != "read":
            raise self._wrong(asked.caller, "Authorization: this token is not known here")
        try:
            refuse_ended(token, self._clock(), "Authorization: this token")
        except AuthError as error:
            raise Denied(error.status, error.text) from None
        self.refuse_in_clear(asked.caller, "Authorization: this token")
        if asked.method not in SAFE_METHODS:
            raise Denied(403, "Authorization: this token is for reading only")
        self._tokens.used(token, None, self._clock())
        scopes = tuple([scope for scope in READING if scope in token.scopes])
        return Viewer(name=token.hosts, scopes=scopes, sees_names="pii:read" in token.scopes)

    def _person(self, asked: Asked) -> Viewer | None:
        if self.rules.mode == "proxy":
            name = asked.proxy_says if self.proxies.passed_on(asked.caller) else None
            return None if not name else self._viewer(name, self.role_of(name), name)
        found = self.sessions.find(asked.session)
        if found is not None:
            name, role = found
            if self._users is not None:
                role_now = self._users.role(name)
                if role_now is None:  # taken out of the file since
                    self.sessions.end(asked.session)
                    return None
                role = role_now
            return self._viewer(name, role, str(asked.session))
        if self._users is not None and (asked.authorization or "").lower().startswith("basic "):
            name, password = basic_credentials(str(asked.authorization))
            return self._viewer(name, self.sign_in(name, password, asked.caller), name)
        return None

    def _viewer(self, name: str, role: Role, csrf_of: str) -> Viewer:
        csrf = hmac.new(self._key, csrf_of.encode("utf-8", "surrogatepass"), "sha256").hexdigest()
        return Viewer(name=name, scopes=_SCOPES_OF[role], sees_names=True, csrf=csrf)

    def role_of(self, name: str) -> Role:
        """Return the role that the settings give somebody."""
        return "admin" if name in self.rules.admins else "operator" if name in self.rules.operators else "viewer"

    def sign_in(self, name: str, password: str, caller: Caller) -> Role:
        """Return the role of somebody who signs in by a password.

        Raises:
            Denied: 401, 403 or 429.
        """
        self.refuse_in_clear(caller, "password: it")
        users = self._users
        if users is None:
            raise Denied(403, "request: nobody signs in here by a password")
        if not users.knows_right(name, password):
            if self._limiter.is_locked(self.proxies.address(caller)):
                raise Denied(429, "request: too many wrong passwords from this address; try again in a minute")
            if not users.is_right(name, password):
                raise self._wrong(caller, "request: name or password is wrong")
        role = users.role(name)
        if role is None:
            raise self._wrong(caller, "request: name or password is wrong")
        return role

    def _wrong(self, caller: Caller, text: str) -> Denied:
        failures = self._limiter.failed(self.proxies.address(caller))
        if self._limiter.is_too_many(failures):
            return Denied(429, "request: too many wrong passwords or tokens from this address; try again in a minute")
        log.info("audit: refused from %s: %s", self.proxies.address(caller), text)
        return Denied(401, text, sign_in_helps=True)

    def refuse_in_clear(self, caller: Caller, what: str) -> None:
        """Refuse a secret that others could have read on its way.

        Raises:
            Denied: 403.
        """
        if not self.rules.allows_plaintext and self.proxies.in_clear(caller):
            raise Denied(
                403,
                f"{what} came unencrypted, and others may have read it: use https:// (a proxy must say "
                "X-Forwarded-Proto: https), or set [viewers] allow_plaintext = true",
            )

    def _refuse_other_sites(self, asked: Asked, viewer: Viewer) -> None:
        """Refuse what a page of another site wants to change in the name of who looks at it."""
        if asked.is_by_a_program:
            return
        if not from_own_page(asked.caller):
            raise Denied(403, "Origin: only a page of this server may ask for that")
        if viewer.csrf and not hmac.compare_digest(viewer.csrf, asked.csrf() or ""):
            raise Denied(403, "csrf: missing or out of date: load the page again")


def _bearer(asked: Asked) -> str | None:
    scheme, _, token = (asked.authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def from_own_page(caller: Caller) -> bool:
    """Say whether a browser says that a page of this server asks; what says nothing of it is not believed."""
    if caller.fetch_site is not None:
        return caller.fetch_site == "same-origin"
    if caller.origin is None or caller.host is None:
        return False
    try:
        return urlsplit(caller.origin).netloc.lower() == caller.host.lower()
    except ValueError:
        return False


def basic_credentials(authorization: str) -> tuple[str, str]:
    """Return name and password of an `Authorization: Basic` header; empty ones where it holds none."""
    try:
        name, _, password = base64.b64decode(authorization[6:].strip(), validate=True).decode("utf-8").partition(":")
    except ValueError:
        return "", ""
    return name, password
