"""The settings: `server.toml`, the environment and the site's own `config.py`, read once, to one frozen object."""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import tomllib

from cluster_dash_server import filters, when
from cluster_dash_server.access.auth import Proxies, names_loopback
from cluster_dash_server.history.settings import HistorySettings, PrivacySettings
from cluster_dash_server.ingest import Limits
from cluster_dash_server.ledger.settings import LedgerSettings
from cluster_dash_server.notices import notifiers
from cluster_dash_server.notices.receivers import AlertSettings, Receiver, minute_of_day, secret_path
from cluster_dash_server.relaying.relay import RelaySettings
from cluster_dash_server.sharing import kinds
from cluster_dash_server.sharing.kinds import LiveSettings
from cluster_dash_server.slurm import SlurmSettings
from cluster_dash_server.states import Thresholds

ENVIRONMENT_PREFIX = "CLUSTER_DASH_"
SERVERS = ("waitress", "granian")
"""What can serve; `serving` knows how."""
OF_MOLES = {"slurm": ("use", "interval_in_secs", "bin_folder")}
"""Keys that moles read in a section of the same name: as variables, both may stand in one environment."""


class ConfigError(Exception):
    """A setting that cannot be used: the text names the file, the key, what it holds and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The section `[server]`."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0: all of this machine's"})
    port: int = field(default=8080, metadata={"help": "port to listen on", "minimum": 0, "maximum": 65535})
    server: str = field(
        default="waitress",
        metadata={
            "help": "what serves: waitress, or granian (an extra) for more than about 1,000 hosts at 5 s",
            "choices": SERVERS,
        },
    )
    tls_certificate: str | None = field(
        default=None,
        metadata={"help": "granian: a certificate with its chain, to be reached by https without a proxy (PEM)"},
    )
    tls_key: str | None = field(default=None, metadata={"help": "granian: the key of the certificate (PEM)"})
    public_url: str | None = field(
        default=None, metadata={"help": "where people reach the dashboard, with its path where it lives under one"}
    )

    trusted_proxies: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "addresses or networks of proxies whose word counts: whom they pass a request on for, and how"
        },
    )
    data: str | None = field(
        default=None,
        metadata={"help": "folder for what the server keeps; else $STATE_DIRECTORY, $XDG_STATE_HOME/cluster-dash"},
    )

    @property
    def speaks_tls(self) -> bool:
        """Whether the server itself is reached by https."""
        return self.tls_certificate is not None or self.tls_key is not None

    @property
    def base_path(self) -> str:
        """The path of `public_url`, without its last slash: '' or '/dash'."""
        return "" if self.public_url is None else unquote(urlsplit(self.public_url).path).rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """The section `[ingest]`."""

    passcode: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "the shared passcode of all moles; also PASSCODE in config.py", "secret": True},
    )
    passcode_file: str | None = field(default=None, metadata={"help": "a file that holds the passcode, instead"})
    require_tokens: bool = field(
        default=False, metadata={"help": "take tokens only, and no passcode, not even from this machine"}
    )
    allow_plaintext_tokens: bool = field(
        default=False,
        metadata={"help": "take tokens that come unencrypted from other machines, where others can read them"},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewerSettings:
    """The section `[viewers]`."""

    mode: str = field(
        default="open",
        metadata={
            "help": "who may look: open: everybody; basic: people of users_file; proxy: whom a trusted proxy names; "
            "oidc: who signs in at an identity provider",
            "choices": ("open", "basic", "proxy", "oidc"),
        },
    )
    allow_anonymous: bool = field(
        default=False, metadata={"help": "who has not signed in may look, too (see [privacy] user_names)"}
    )
    allow_plaintext: bool = field(
        default=False, metadata={"help": "take passwords and read tokens that come unencrypted from other machines"}
    )
    operators: tuple[str, ...] = field(default=(), metadata={"help": "proxy, oidc: who may acknowledge and silence"})
    admins: tuple[str, ...] = field(default=(), metadata={"help": "proxy, oidc: who may administer"})
    session_hours: float = field(
        default=12, metadata={"help": "how long somebody stays signed in", "minimum": 0.01, "maximum": 8760}
    )
    users_file: str | None = field(
        default=None, metadata={"help": "basic: people and hashes, by `cluster-dash-server user add NAME --file FILE`"}
    )
    proxy_header: str = field(
        default="X-Remote-User",
        metadata={"help": "proxy: the header in which a trusted proxy names the viewer"},
    )
    oidc_issuer: str | None = field(default=None, metadata={"help": "oidc: the address of the identity provider"})
    oidc_client_id: str | None = field(default=None, metadata={"help": "oidc: what it calls this server"})
    oidc_client_secret_file: str | None = field(
        default=None, metadata={"help": "oidc: a file that holds the secret it gave this server"}
    )
    oidc_claim: str = field(default="preferred_username", metadata={"help": "oidc: what in its word names the person"})
    oidc_scope: str = field(default="openid profile", metadata={"help": "oidc: what it is asked for"})
    trusted_hosts: tuple[str, ...] = field(
        default=(), metadata={"help": "names in the Host header that pages answer to; empty: any"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """The section `[metrics]`."""

    hostname_label: str = field(
        default="hostname",
        metadata={
            "help": "the label that names the host under dcgm-exporter's names: hostname, Hostname or both",
            "choices": ("hostname", "Hostname", "both"),
        },
    )
    users: bool = field(default=False, metadata={"help": "whether /metrics names users, and how many GPUs each has"})
    slurm_family: str = field(
        default="none",
        metadata={
            "help": "whose names /metrics?family=… has for Slurm: those of vpenso's exporter, or none",
            "choices": ("none", "vpenso"),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """The section `[site]`."""

    name: str = field(default="cluster", metadata={"help": "what the pages call this cluster"})
    notice: str | None = field(default=None, metadata={"help": "a line on top of every page"})
    embed_from: tuple[str, ...] = field(
        default=(),
        metadata={"help": "sites whose pages may show /tv and /embed in a frame, as https://intranet.lab; empty: none"},
    )
    timezone: str | None = field(
        default=None,
        metadata={"help": "in which zone days and hours of reports are meant: Europe/Berlin; else this machine's"},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a server; each field is a section of `server.toml`."""

    server: ServerSettings = field(default_factory=ServerSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    limits: Limits = field(default_factory=Limits)
    states: Thresholds = field(default_factory=Thresholds)
    live: LiveSettings = field(default_factory=LiveSettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    ledger: LedgerSettings = field(default_factory=LedgerSettings)
    viewers: ViewerSettings = field(default_factory=ViewerSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    site: SiteSettings = field(default_factory=SiteSettings)
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    relay: RelaySettings = field(default_factory=RelaySettings)


def find_file(environment: Mapping[str, str]) -> Path | None:
    """Return the settings file in force, None where there is none.

    Raises:
        ConfigError: CLUSTER_DASH_CONFIG names a file that is not there.
    """
    named = environment.get("CLUSTER_DASH_CONFIG")
    if named:
        return Path(named)
    return next((path for path in (Path("server.toml"), Path("/etc/cluster-dash/server.toml")) if path.is_file()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The settings, and where they come from.

    Attributes:
        file: the settings file in force; None: there is none.
        origins: for each key that was set, as `section.key`: the file or the variable that sets it.
    """

    settings: Settings
    file: Path | None
    origins: Mapping[str, str]


def load(
    file: Path | None = None, *, environment: Mapping[str, str] | None = None, site: Mapping[str, object] | None = None
) -> Settings:
    """Return the settings alone: see `read`."""
    return read(file, environment=environment, site=site).settings


def read(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    site: Mapping[str, object] | None = None,
    site_file: str = "config.py",
) -> Reading:
    """Read the settings; the environment wins over the file, and both over the site's `config.py`.

    Args:
        file: the settings file; None: the one `find_file` finds.
        environment: `CLUSTER_DASH_<SECTION>__<KEY>`; None: the process's own.
        site: the names of the site's `config.py`: `PASSCODE`.
        site_file: where that `config.py` is.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a value of the wrong type or out of its range.
    """
    environment = os.environ if environment is None else environment
    file = find_file(environment) if file is None else file
    source, raw = str(file), _raw(file)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for section in dataclasses.fields(Settings):
        kind = _section_type(section.name)
        values[section.name] = _section(kind, section.name, raw.get(section.name, {}), source, environment, origins)
    values["alerts"] = _with_receivers(values["alerts"], environment, origins.get("alerts.receivers", source))
    values["live"] = _with_files(values["live"], f"{origins.get('live.url_file', source)}: live", environment)
    values["ledger"] = _with_files(values["ledger"], f"{origins.get('ledger.url_file', source)}: ledger", environment)
    settings = Settings(**values)
    _check_alerts(settings.alerts, origins, source)
    if settings.alerts.owner_notices and settings.privacy.user_names == "pseudonym":
        where = origins.get("alerts.owner_notices", source)
        raise ConfigError(f'{where}: alerts.owner_notices: with privacy.user_names = "pseudonym" no owner is known')
    _check_nodes(settings.slurm, origins.get("slurm.hosts", source))
    _check_embed_from(settings.site.embed_from, origins.get("site.embed_from", source))
    _check_history(settings.history, origins, source)
    _check_live(settings.live, origins, source)
    _check_ledger(settings.ledger, origins, source)
    _check_public_url(settings.server.public_url, origins.get("server.public_url", source))
    _check_proxies(settings.server.trusted_proxies, origins.get("server.trusted_proxies", source))
    _check_relay(settings.relay, origins.get("relay.to", source))
    _check_timezone(settings.site.timezone, origins.get("site.timezone", source))
    ingest = _with_passcode(settings.ingest, site or {}, origins.get("ingest.passcode_file", source))
    if ingest.passcode != settings.ingest.passcode:
        origins["ingest.passcode"] = site_file if ingest.passcode_file is None else str(ingest.passcode_file)
    return Reading(settings=dataclasses.replace(settings, ingest=ingest), file=file, origins=origins)


def read_server(file: Path | None = None, *, environment: Mapping[str, str] | None = None) -> ServerSettings:
    """Read the section `[server]` alone, by the same rules: for who asks a running server, and needs no secret for it.

    systemd before 254 gives `ExecReload=` no credentials: it cannot read the secrets of its own unit.
    """
    environment = os.environ if environment is None else environment
    file = find_file(environment) if file is None else file
    section = _section(ServerSettings, "server", _raw(file).get("server", {}), str(file), environment, {})
    return typing.cast(ServerSettings, section)


def _raw(file: Path | None) -> dict[str, dict[str, object]]:
    """Return the sections of a settings file as they stand in it."""
    return {} if file is None else _sections(_read_toml(file), str(file))


_T = typing.TypeVar("_T", AlertSettings, Receiver, LiveSettings, LedgerSettings)


def _with_receivers(alerts: AlertSettings, environment: Mapping[str, str], source: str) -> AlertSettings:
    """Read the files that hold secrets of `[alerts]`."""
    read = tuple(
        _with_files(receiver, f"{source}: alerts.receivers.{receiver.name}", environment)
        for receiver in alerts.receivers
    )
    return dataclasses.replace(_with_files(alerts, f"{source}: alerts", environment), receivers=read)


def _with_files(section: _T, where: str, environment: Mapping[str, str]) -> _T:
    """Fill in what stands in a file of its own: secrets."""
    found: dict[str, Any] = {}
    for each in dataclasses.fields(section):
        key, name = each.metadata.get("of"), getattr(section, each.name)
        if key is None or name is None or getattr(section, key) is not None:
            continue
        found[key] = secret(secret_path(name, environment), f"{where}.{each.name}")
    return dataclasses.replace(section, **found)


def secret(path: Path, setting: str) -> str:
    """Return the secret that stands in a file of its own.

    Args:
        path: the file.
        setting: what names it, for the error.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{setting}: {path}: cannot be read: it is no text in UTF-8") from None
    if not text:
        raise ConfigError(f"{setting}: {path}: is empty")
    return text


def _check_alerts(alerts: AlertSettings, origins: Mapping[str, str], source: str) -> None:
    """Refuse receivers that could not be told."""
    for receiver in alerts.receivers:
        where = f"{origins.get('alerts.receivers', source)}: alerts.receivers.{receiver.name}"
        problem = notifiers.problem(receiver, alerts) or _filter_problem(receiver.filter)
        if problem is not None:
            raise ConfigError(f"{where}.{problem}")
    _check_people(alerts, origins, source)
    if alerts.owner_address is not None and "{user}" not in alerts.owner_address:
        raise ConfigError(
            f"{origins.get('alerts.owner_address', source)}: alerts.owner_address: got {alerts.owner_address!r}, "
            "expected {user} in it, such as {user}@example.org"
        )
    if alerts.owner_notices:
        lacks = [
            *([] if alerts.mail_server and alerts.mail_from else ["mail_server and mail_from"]),
            *([] if alerts.owner_address or alerts.owner_addresses_file else ["owner_address or owner_addresses_file"]),
        ]
        if lacks:
            raise ConfigError(
                f"{origins.get('alerts.owner_notices', source)}: alerts.owner_notices: needs {' and '.join(lacks)}"
            )


def _check_people(alerts: AlertSettings, origins: Mapping[str, str], source: str) -> None:
    """Refuse a digest to nobody, and somebody to wait who cannot be told."""
    told = {each.name for each in alerts.receivers if each.kind != "alertmanager"}  # that one takes alerts only
    for key, named in (("digest_to", alerts.digest_to), ("waiting_to", alerts.waiting_to)):
        where = f"{origins.get(f'alerts.{key}', source)}: alerts.{key}"
        for each in named:
            if key == "waiting_to" and each.startswith("@"):
                if re.fullmatch(r"@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", each) is None:
                    raise ConfigError(f"{where}: got {each!r}, expected a mail domain such as @example.org")
                if not (alerts.mail_server and alerts.mail_from):
                    raise ConfigError(f"{where}: {each} needs mail_server and mail_from")
            elif each not in told:
                also = " or a mail domain such as @example.org" if key == "waiting_to" else ""
                raise ConfigError(
                    f"{where}: got {each!r}, expected a receiver{also}; receivers: {', '.join(sorted(told)) or 'none'}"
                )
    try:
        minute_of_day(alerts.digest_at)
    except ValueError as error:
        raise ConfigError(f"{origins.get('alerts.digest_at', source)}: alerts.digest_at: {error}") from None


def _filter_problem(text: str) -> str | None:
    problems = filters.parse(text).problems
    return f"filter: {problems[0]}" if problems else None


def _check_embed_from(origins: tuple[str, ...], source: str) -> None:
    """Refuse what is no origin: it goes into a header that says who may frame our pages."""
    for origin in origins:
        if re.fullmatch(r"https?://[A-Za-z0-9.*-]+(:[0-9]{1,5})?", origin) is None:
            raise ConfigError(f"{source}: site.embed_from: got {origin!r}, expected such as https://intranet.lab")


def _check_history(history: HistorySettings, origins: Mapping[str, str], source: str) -> None:
    """Refuse an engine that could not be spoken to."""
    if history.kind != "remote":
        return
    from cluster_dash_server.history.remote import engine  # only who has one needs it

    if find_spec("cramjam") is None:
        where = origins.get("history.kind", source)
        raise ConfigError(f"{where}: history.kind: cramjam is not installed: pip install 'cluster-dash-server[remote]'")
    try:
        engine.access_of(history)
    except engine.AccessError as error:
        key = str(error).partition(":")[0]
        raise ConfigError(f"{origins.get(f'history.{key}', source)}: history.{error}") from None


def _check_live(live: LiveSettings, origins: Mapping[str, str], source: str) -> None:
    """Refuse an engine that could not be spoken to."""
    problem = kinds.problem(live)
    if problem is not None:
        key = problem.partition(":")[0]
        known = origins.get(f"live.{key}") or origins.get(f"live.{key}_file") or origins.get("live.kind", source)
        raise ConfigError(f"{known}: live.{problem}")


def _check_ledger(ledger: LedgerSettings, origins: Mapping[str, str], source: str) -> None:
    """Refuse a database that could not be spoken to."""
    if ledger.kind != "postgresql":
        return
    where = origins.get("ledger.kind", source)
    if find_spec("psycopg") is None:
        raise ConfigError(
            f"{where}: ledger.kind: psycopg is not installed: pip install 'cluster-dash-server[postgresql]'"
        )
    if ledger.url is None:
        raise ConfigError(f"{where}: ledger.kind: postgresql needs ledger.url or ledger.url_file")
    from cluster_dash_server import postgresql  # only who has one needs it

    problem = postgresql.problem_of(ledger.url)
    if problem is not None:
        key = "url" if ledger.url_file is None else "url_file"
        raise ConfigError(f"{origins.get(f'ledger.{key}', source)}: ledger.{key}: {problem}")


def _check_public_url(url: str | None, source: str) -> None:
    """Refuse an address that links cannot be built from."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{source}: server.public_url: got {url!r}, expected http:// or https://, a host and a path")


def _check_relay(relay: RelaySettings, source: str) -> None:
    """Refuse a centre that cannot be reached so, or to which secrets would travel in the clear."""
    if relay.to is None:
        return
    try:
        parts = urlsplit(relay.to)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        plain = not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        usable = plain = False
    if not (usable and plain):
        raise ConfigError(f"{source}: relay.to: got an address of another form, expected https://HOST[:PORT][/PATH]")
    if parts.scheme == "http" and not (names_loopback(parts.hostname or "") or relay.allow_plaintext):
        raise ConfigError(
            f"{source}: relay.to: got {relay.to!r}, and the secrets of all hosts would travel unencrypted: expected "
            "https://, or relay.allow_plaintext = true"
        )


def _check_timezone(name: str | None, source: str) -> None:
    try:
        when.zone(name)
    except when.WhenError as error:
        raise ConfigError(f"{source}: site.timezone: {error}") from None


def _check_proxies(named: tuple[str, ...], source: str) -> None:
    try:
        Proxies(named)
    except ValueError as error:
        raise ConfigError(
            f"{source}: server.trusted_proxies: {error}; expected such as 10.0.0.7 or 10.0.0.0/24"
        ) from None


def _check_nodes(slurm: SlurmSettings, source: str) -> None:
    """Refuse what names no node and its host."""
    for each in slurm.hosts:
        node, equals, host = each.partition("=")
        if not (node and equals and host):
            raise ConfigError(f"{source}: slurm.hosts: got {each!r}, expected NODE=HOST")


def _section_type(name: str) -> type:
    return typing.cast(type, typing.get_type_hints(Settings)[name])


def _read_toml(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None


def _sections(raw: dict[str, object], source: str) -> dict[str, dict[str, object]]:
    known = [section.name for section in dataclasses.fields(Settings)]
    for name, value in raw.items():
        if name not in known:
            raise ConfigError(f"{source}: unknown section [{name}]{_nearest(name, [f'[{each}]' for each in known])}")
        if not isinstance(value, dict):
            once = ", once and in single brackets" if isinstance(value, list) else ""
            raise ConfigError(f"{source}: {name}: expected a section [{name}]{once}")
    return typing.cast(dict[str, dict[str, object]], raw)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _section(
    kind: type,
    name: str,
    raw: dict[str, object],
    source: str,
    environment: Mapping[str, str],
    origins: dict[str, str],
    make: Callable[..., object] | None = None,
) -> object:
    fields = {each.name: each for each in dataclasses.fields(kind) if "help" in each.metadata}
    hints = typing.get_type_hints(kind)
    values: dict[str, object] = {}
    for key, value in raw.items():
        if key not in fields:
            raise ConfigError(f"{source}: {name}: unknown key {key}{_nearest(key, list(fields))}")
        if hints[key] == tuple[Receiver, ...]:
            continue
        values[key] = _value(value, hints[key], fields[key].metadata, f"{source}: {name}.{key}")
        origins[f"{name}.{key}"] = source
    prefix = _variable_prefix(name)
    for variable in environment:
        key = variable.removeprefix(prefix).lower()
        if variable.startswith(prefix) and key.partition("__")[0] not in (*fields, *OF_MOLES.get(name, ())):
            raise ConfigError(f"{variable}: unknown key {key}{_nearest(key, list(fields))}")
    for key, each in fields.items():
        variable = f"{prefix}{key.upper()}"
        if hints[key] == tuple[Receiver, ...]:
            values[key] = _receivers(raw.get(key, {}), f"{name}.{key}", source, environment, origins)
        elif variable in environment:
            values[key] = _value(_from_text(environment[variable], hints[key]), hints[key], each.metadata, variable)
            origins[f"{name}.{key}"] = variable
    return (make or kind)(**values)


def _receivers(
    raw: object, name: str, source: str, environment: Mapping[str, str], origins: dict[str, str]
) -> tuple[Receiver, ...]:
    """Read a section of sections, one each receiver."""
    if not isinstance(raw, dict) or not all(isinstance(each, dict) for each in raw.values()):
        raise ConfigError(f"{source}: {name}: expected sections such as [{name}.admins]")
    found = []
    for receiver, section in raw.items():
        where = f"{name}.{receiver}"
        if re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", receiver) is None:
            raise ConfigError(f"{source}: {where}: expected a name of a-z, 0-9, - and _, at most 32 long")
        if "kind" not in section:
            raise ConfigError(f"{source}: {where}.kind: is missing, expected {' or '.join(notifiers.KINDS)}")
        make = partial(Receiver, name=receiver)
        found.append(typing.cast(Receiver, _section(Receiver, where, section, source, environment, origins, make)))
    known = tuple([_variable_prefix(f"{name}.{each.name}") for each in found])
    for variable in environment:
        if variable.startswith(_variable_prefix(name)) and not variable.startswith(known):
            raise ConfigError(f"{variable}: no receiver of this name has a section in {source}")
    return tuple(found)


def _variable_prefix(section: str) -> str:
    """Return how the variables of a section begin, of a receiver's `alerts.receivers.on-call`, too."""
    return f"{ENVIRONMENT_PREFIX}{section}__".upper().replace(".", "__").replace("-", "_")


def _from_text(text: str, hint: object) -> object:
    """Read a setting from the environment as TOML would hold it."""
    if _plain(hint) is str:
        return text
    if _plain(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if len(read) == 1 else text


def _plain(hint: object) -> object:
    """Return the type of a hint such as `str | None` or `tuple[str, ...]` without its decoration."""
    if isinstance(hint, types.UnionType):
        return next(each for each in typing.get_args(hint) if each is not type(None))
    if typing.get_origin(hint) is Literal:
        return str
    return typing.get_origin(hint) or hint


def _value(value: object, hint: object, metadata: Mapping[str, Any], where: str) -> object:
    kind = _plain(hint)
    low, high = metadata.get("minimum"), metadata.get("maximum")
    shown = "***" if metadata.get("secret") else repr(value)
    if kind is str:
        choices = metadata.get("choices", (value,))
        if isinstance(value, str) and value and value in choices:
            return value
        if "choices" in metadata:
            raise ConfigError(f"{where}: got {shown}, expected {' or '.join(choices)}")
        raise ConfigError(f"{where}: got {shown}, expected a text")
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where}: got {shown}, expected true or false")
    if kind is tuple:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        raise ConfigError(f"{where}: got {shown}, expected a list of texts")
    numbers = (int,) if kind is int else (int, float)
    if (
        isinstance(value, numbers)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (low is None or value >= low)
        and (high is None or value <= high)
    ):
        return value
    word = "a whole number" if kind is int else "a number"
    bounds = " and ".join(f"{sign} {bound}" for sign, bound in ((">=", low), ("<=", high)) if bound is not None)
    raise ConfigError(f"{where}: got {shown}, expected {word} {bounds}".rstrip())


def _with_passcode(ingest: IngestSettings, site: Mapping[str, object], source: str) -> IngestSettings:
    """Find the site's passcode: the setting, else its file, else PASSCODE of `config.py`."""
    if ingest.passcode is not None:
        return ingest
    if ingest.passcode_file is not None:
        return dataclasses.replace(
            ingest, passcode=secret(Path(ingest.passcode_file), f"{source}: ingest.passcode_file")
        )
    passcode = site.get("PASSCODE")
    if passcode is None:
        return ingest
    if not isinstance(passcode, str) or not passcode:
        raise ConfigError("config.py: PASSCODE: expected a text")
    return dataclasses.replace(ingest, passcode=passcode)
