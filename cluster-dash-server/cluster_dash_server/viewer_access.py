"""Who may look here, by the settings: the gate, and the identity provider where people sign in at one."""

import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from cluster_dash_server.access import oidc
from cluster_dash_server.access.auth import Limiter, Proxies, names_loopback
from cluster_dash_server.access.tokens import Tokens
from cluster_dash_server.access.users import UsersError, UsersFile
from cluster_dash_server.access.viewers import Gate, KeptSessions, Mode, Rules, Sessions
from cluster_dash_server.privacy import Veil
from cluster_dash_server.settings import ConfigError, Settings, ViewerSettings, secret

_MODES: dict[str, Mode] = {"open": "open", "basic": "basic", "proxy": "proxy", "oidc": "oidc"}


def gate(
    settings: Settings,
    tokens: Tokens,
    clock: Callable[[], float],
    sessions: tuple[KeptSessions, bytes] | None = None,
) -> Gate:
    """Build the gate.

    Args:
        settings: all of them.
        tokens: those of programs that read.
        clock: Unix s.
        sessions: who has signed in by a page, and the key of `Gate`; None: at this process, and of its life.

    Raises:
        ConfigError: the mode lacks a setting, or the users file cannot be read.
    """
    viewers = settings.viewers
    users = None
    if viewers.mode == "basic":
        if viewers.users_file is None:
            raise _lacks("users_file", "make it: cluster-dash-server user add NAME --file FILE")
        try:
            users = UsersFile(Path(viewers.users_file))
        except UsersError as error:
            raise ConfigError(f"viewers.users_file: {error}") from None
    if viewers.mode == "proxy" and not settings.server.trusted_proxies:
        # without one named, anybody could say by a header who they are
        raise ConfigError('viewers.mode: "proxy" needs [server] trusted_proxies: the address of the proxy')
    return Gate(
        Rules(
            mode=_MODES[viewers.mode],
            operators=viewers.operators,
            admins=viewers.admins,
            allows_anonymous=viewers.allow_anonymous,
            hides_names=settings.privacy.user_names == "signed_in",
            allows_plaintext=viewers.allow_plaintext,
        ),
        tokens=tokens,
        users=users,
        sessions=Sessions(viewers.session_hours * 3600, clock) if sessions is None else sessions[0],
        proxies=Proxies(settings.server.trusted_proxies),
        limiter=Limiter(settings.limits.failures_per_minute),
        clock=clock,
        key=None if sessions is None else sessions[1],
    )


def veils(settings: Settings, key_of_names: Callable[[], bytes]) -> tuple[Veil | None, Veil]:
    """Build what hides names: of all that is kept (None: nothing is hidden there), and of who may not know them.

    Args:
        settings: all of them.
        key_of_names: gives the key of the pseudonyms; raises OSError.

    Raises:
        ConfigError: the key of the pseudonyms cannot be kept.
    """
    for_some = Veil(secrets.token_bytes(32), hides_people=True, hides_programs=True)
    hides_people = settings.privacy.user_names == "pseudonym"
    if not hides_people and settings.privacy.programs:
        return None, for_some
    try:
        # the same person has the same pseudonym after a restart: history goes on
        key = key_of_names() if hides_people else b""
    except OSError as error:
        raise ConfigError(f"privacy.user_names: the key of the pseudonyms cannot be kept: {error}") from None
    return Veil(key, hides_people=hides_people, hides_programs=not settings.privacy.programs), for_some


def provider(
    settings: Settings, clock: Callable[[], float], on_the_way: oidc.OnTheWay | None = None
) -> oidc.Provider | None:
    """Build the identity provider; None where nobody signs in at one.

    Args:
        settings: all of them.
        clock: Unix s.
        on_the_way: who signs in now; None: at this process.

    Raises:
        ConfigError: a setting of it is missing, or the extra is.
    """
    viewers = settings.viewers
    if viewers.mode != "oidc":
        return None
    if not oidc.is_installed():
        raise ConfigError("viewers.mode: authlib is not installed: pip install 'cluster-dash-server[oidc]'")
    if viewers.oidc_issuer is None or viewers.oidc_client_id is None:
        raise _lacks("oidc_issuer and oidc_client_id", "the provider's administrator has them")
    if settings.server.public_url is None:
        raise ConfigError('viewers.mode: "oidc" needs [server] public_url: the provider sends people back there')
    issuer = urlsplit(viewers.oidc_issuer)
    if issuer.scheme != "https" and not names_loopback(issuer.netloc):
        raise ConfigError(f"viewers.oidc_issuer: got {viewers.oidc_issuer!r}, expected an https:// address")
    return oidc.Provider(
        oidc.Client(
            issuer=viewers.oidc_issuer,
            client_id=viewers.oidc_client_id,
            client_secret=_secret(viewers),
            claim=viewers.oidc_claim,
            scope=viewers.oidc_scope,
        ),
        clock,
        on_the_way,
    )


def _secret(viewers: ViewerSettings) -> str | None:
    if viewers.oidc_client_secret_file is None:
        return None
    return secret(Path(viewers.oidc_client_secret_file), "viewers.oidc_client_secret_file")


def _lacks(keys: str, mend: str) -> ConfigError:
    return ConfigError(f"viewers.mode: it needs [viewers] {keys}: {mend}")
