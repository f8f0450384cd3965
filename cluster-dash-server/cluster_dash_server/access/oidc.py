"""Sign-in at the site's identity provider: OpenID Connect, by authorization code with PKCE. Needs the extra `oidc`."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

SECONDS = 10.0
"""How long the provider may take for an answer."""
KEPT_SECONDS = 600.0
"""How long somebody may take at the provider."""
MOST_PENDING = 10_000
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""How a provider may sign: never by none, and never by a secret that both know."""


class OidcError(Exception):
    """A sign-in that came to nothing; the text is for the person who tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What the provider knows of this server.

    Attributes:
        issuer: the provider's address: its description is below it, at /.well-known/openid-configuration.
        claim: what in its word names the person.
    """

    issuer: str
    client_id: str
    client_secret: str | None
    claim: str
    scope: str


class Pending(NamedTuple):
    """A sign-in under way; `verifier` and `nonce` show at its end that it is the same one."""

    verifier: str
    nonce: str
    redirect_uri: str
    goes_to: str
    begun_at: float


class OnTheWay(Protocol):
    """The sign-ins that are under way, by the word by which each is known. Any thread may call."""

    def put(self, state: str, pending: Pending) -> None:
        """Keep one."""

    def pop(self, state: str) -> Pending | None:
        """Take one away; None: there is none."""


class OwnOnTheWay:
    """Those of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[str, Pending] = {}

    def put(self, state: str, pending: Pending) -> None:
        """See `OnTheWay`."""
        with self._lock:
            while len(self._pending) >= MOST_PENDING:
                self._pending.pop(next(iter(self._pending)))
            self._pending[state] = pending

    def pop(self, state: str) -> Pending | None:
        """See `OnTheWay`."""
        with self._lock:
            return self._pending.pop(state, None)


def is_installed() -> bool:
    """Say whether the extra is there."""
    return find_spec("authlib") is not None and find_spec("requests") is not None


class Provider:
    """The identity provider. Thread-safe.

    Args:
        client: what it knows of this server.
        clock: Unix s.
        on_the_way: who is there now; None: of this process.
    """

    def __init__(
        self, client: Client, clock: Callable[[], float] = time.time, on_the_way: OnTheWay | None = None
    ) -> None:
        self._client = client
        self._clock = clock
        self._on_the_way = on_the_way or OwnOnTheWay()
        self._description: dict[str, Any] | None = None

    def _session(self, redirect_uri: str) -> Any:
        kind = import_module("authlib.integrations.requests_client").OAuth2Session
        session = kind(
            self._client.client_id,
            self._client.client_secret,
            scope=self._client.scope,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
        )
        session.trust_env = False  # ~/.netrc would put another secret in the place of ours
        return session

    def _described(self) -> dict[str, Any]:
        if self._description is None:
            found = self._get(f"{self._client.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer", "").rstrip("/") != self._client.issuer.rstrip("/"):
                raise OidcError("the identity provider describes another issuer than [viewers] oidc_issuer names")
            self._description = found
        return self._description

    def _get(self, url: str) -> dict[str, Any]:
        requests = import_module("requests")
        try:
            answer = requests.get(url, timeout=SECONDS, allow_redirects=False)
            answer.raise_for_status()
            found = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise OidcError(f"the identity provider cannot be asked: {type(error).__name__}") from error
        if not isinstance(found, dict):
            raise OidcError("the identity provider answers something else than expected")
        return found

    def begin(self, redirect_uri: str, goes_to: str) -> tuple[str, str]:
        """Begin a sign-in; return where the browser is to go, and the word by which it is known on its way back.

        Raises:
            OidcError: the provider cannot be asked.
        """
        pending = Pending(secrets.token_urlsafe(48), secrets.token_urlsafe(16), redirect_uri, goes_to, self._clock())
        with self._session(redirect_uri) as session:
            url, state = session.create_authorization_url(
                self._described()["authorization_endpoint"], code_verifier=pending.verifier, nonce=pending.nonce
            )
        self._on_the_way.put(state, pending)
        return url, state

    def finish(self, state: str, code: str) -> tuple[str, str]:
        """End a sign-in; return who it is, and where they wanted to go. Each can be ended once.

        Raises:
            OidcError: it is not under way, or the provider's word does not hold.
        """
        pending = self._on_the_way.pop(state)
        if pending is None or not 0 <= self._clock() - pending.begun_at < KEPT_SECONDS:
            raise OidcError("this sign-in is not under way any more: begin again")
        described = self._described()
        try:
            with self._session(pending.redirect_uri) as session:
                told = session.fetch_token(
                    described["token_endpoint"], code=code, code_verifier=pending.verifier, timeout=SECONDS
                )
        except Exception as error:  # authlib, requests and the provider each have errors of their own
            raise OidcError(f"the identity provider did not confirm it: {type(error).__name__}") from error
        return self._name(told.get("id_token"), pending.nonce, described), pending.goes_to

    def _name(self, id_token: object, nonce: str, described: dict[str, Any]) -> str:
        jwt, jwk, errors = (import_module(f"joserfc.{name}") for name in ("jwt", "jwk", "errors"))
        if not isinstance(id_token, str):
            raise OidcError("the identity provider sent no ID token")
        try:
            keys = jwk.KeySet.import_key_set(self._get(described["jwks_uri"]))
            claims: dict[str, Any] = jwt.decode(id_token, keys, algorithms=list(ALGORITHMS)).claims
            jwt.JWTClaimsRegistry(
                now=int(self._clock()),
                leeway=60,
                iss={"essential": True, "value": described["issuer"]},
                aud={"essential": True, "value": self._client.client_id},
                exp={"essential": True},
                nonce={"essential": True, "value": nonce},
            ).validate(claims)
        except (errors.JoseError, ValueError, KeyError) as error:
            raise OidcError(f"the identity provider's word does not hold: {type(error).__name__}") from error
        name = claims.get(self._client.claim)
        if not isinstance(name, str) or not 0 < len(name) <= 128:
            raise OidcError(f"the identity provider does not say {self._client.claim}: see [viewers] oidc_claim")
        return name
