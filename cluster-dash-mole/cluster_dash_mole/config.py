"""The settings: TOML and environment to one frozen Config, once, at start.

A setting is a field of a section's class: its name is the key, `help` says what it does, `minimum` and `maximum` bound
it. The names of sections and keys are those of the first version, and stay.
"""

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "CLUSTER_DASH_"


class ConfigError(Exception):
    """The configuration is wrong: the text has the file, the key, what was got and what is wanted."""


def _setting(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, repr=not more.get("secret"), metadata={"help": help, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class PollSettings:
    """[Poll_Settings]: when to look."""

    poll_interval_in_secs: float = _setting(300.0, "seconds between two snapshots", minimum=1, maximum=86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSenderSettings:
    """[Json_Sender_Logger]: posts each snapshot to a server."""

    use: bool = _setting(False, "whether this sender is on")
    min_interval_in_secs: float = _setting(5.0, "at least so many seconds between two posts", minimum=0)
    address_in: str = _setting("", "where to post: the http:// or https:// address of the server")
    spool_mb: float = _setting(
        64.0, "2^20 bytes of disk for snapshots that the server has not got; 0: they are kept in memory", minimum=0
    )
    auth_code: str | None = _setting(None, "the passcode or token of this host", secret=True)
    auth_code_file: str | None = _setting(None, "a file that holds the passcode or token; goes before auth_code")
    allow_plaintext: bool = _setting(False, "send a token also unencrypted, where others can read it")
    ca_file: str | None = _setting(None, "a PEM file of the CA of the server, where the system's own do not know it")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoogleSheetsSettings:
    """[Google_Sheets_Logger]: appends a row to a sheet for each snapshot. Needs the extra `sheets`."""

    use: bool = _setting(False, "whether this sender is on; it needs the extra `sheets` of the package")
    min_interval_in_secs: float = _setting(5.0, "at least so many seconds between two rows", minimum=0)
    service_account_file_path: str = _setting("", "the key file (JSON) of the service account")
    spreadsheets_id: str = _setting("", "the id of the spreadsheet: the long word in its address")
    worksheet_name: str = _setting("!hostname", 'the worksheet, made if missing; "!hostname" is the name of this host')


@dataclass(frozen=True, slots=True, kw_only=True)
class StdoutSettings:
    """[StdOut_Logger]: writes each snapshot as one line of JSON to standard output."""

    use: bool = _setting(False, "whether this sender is on")
    min_interval_in_secs: float = _setting(5.0, "at least so many seconds between two lines", minimum=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """[Slurm]: asks Slurm for the whole cluster; on for one mole of it."""

    use: bool = _setting(False, "whether this mole asks Slurm: one of the cluster does, on a head or login node")
    interval_in_secs: float = _setting(
        60.0, "seconds between two rounds of questions; longer by itself where Slurm is slow", minimum=5, maximum=3600
    )
    bin_folder: str = _setting("", "the folder of Slurm's commands, where PATH does not have it")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """[Host]: who this host is, where it cannot say so itself."""

    name: str = _setting("", "the name it reports under; empty: the system's own")
    ephemeral: bool = _setting(
        False, "whether it comes and goes, as a pod: it then leaves the lists a day after it went down"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings:
    """[Listen]: answers Prometheus on a port of this host."""

    use: bool = _setting(False, "whether this host can be scraped; `run --listen :9400` turns it on, too")
    address: str = _setting(":9400", "where to listen for it: [HOST]:PORT")
    hostname_label: str = _setting(
        "hostname",
        "the label that names the host: hostname, Hostname or both",
        choices=("hostname", "Hostname", "both"),
    )
    slurm_address: str = _setting(
        "", "where to answer with what Slurm says, under the names of vpenso's exporter, such as :9341; empty: nowhere"
    )
    slurm_users: bool = _setting(False, "whether that names users")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. `labels` ([Labels]) are free words about this host; `source` is the file they came from."""

    source: str
    poll: PollSettings
    json_sender: JsonSenderSettings
    google_sheets: GoogleSheetsSettings
    stdout: StdoutSettings
    slurm: SlurmSettings
    labels: Mapping[str, str]
    listen: ListenSettings = ListenSettings()
    host: HostSettings = HostSettings()


SECTIONS: dict[str, type] = {
    "Poll_Settings": PollSettings,
    "Json_Sender_Logger": JsonSenderSettings,
    "Google_Sheets_Logger": GoogleSheetsSettings,
    "StdOut_Logger": StdoutSettings,
    "Slurm": SlurmSettings,
    "Listen": ListenSettings,
    "Host": HostSettings,
}
LABELS = "Labels"
OF_SERVERS = {("Slurm", "hosts")}
"""Keys that the server reads in a section of the same name: as variables, both may stand in one environment."""
OF_THE_UNIT = Path("/etc/cluster-dash/mole.toml")
"""The file that the unit names: what is typed on its host means it, too."""
ALONE_SECONDS = 5.0
"""Between two looks of a mole that has no file: what every file we ship says."""

S = TypeVar("S")


def load(path: Path | None, environ: Mapping[str, str], *, folder: Path | None = None) -> Config:
    """Read the file, or the one for this host in the folder (default: the working directory), and the environment.

    Raises:
        ConfigError: a file, key or value is wrong, missing or cannot be read.
    """
    found = path or find(folder or Path(), socket.gethostname())
    config = _config(_read_toml(found), environ, found)
    return replace(config, json_sender=_with_secret(config.json_sender, found))


def _config(document: dict[str, Any], environ: Mapping[str, str], found: Path) -> Config:
    for section, settings in document.items():
        if section not in SECTIONS and section != LABELS:
            raise ConfigError(f"{found}: unknown section [{section}]{_nearest(section, [*SECTIONS, LABELS])}")
        if not isinstance(settings, dict):
            once = ", once and in single brackets" if isinstance(settings, list) else ""
            raise ConfigError(f"{found}: {section}: expected a section [{section}]{once}")  # the value may be a secret
    for section, key, text in _from_environ(environ):
        document.setdefault(section, {})[key] = _FromEnvironment(text)
    return Config(
        source=str(found),
        poll=_section(PollSettings, "Poll_Settings", document, found),
        json_sender=_section(JsonSenderSettings, "Json_Sender_Logger", document, found),
        google_sheets=_checked(_section(GoogleSheetsSettings, "Google_Sheets_Logger", document, found), found),
        stdout=_section(StdoutSettings, "StdOut_Logger", document, found),
        slurm=_section(SlurmSettings, "Slurm", document, found),
        listen=_section(ListenSettings, "Listen", document, found),
        host=_section(HostSettings, "Host", document, found),
        labels=_labels(document.get(LABELS, {}), found),
    )


def before_enrolment(path: Path | None, environ: Mapping[str, str], *, folder: Path | None = None) -> Config:
    """Read the same for a host that has no secret yet, and perhaps no file: the secret is not looked for.

    Raises:
        ConfigError: a file, key or value is wrong.
    """
    document: dict[str, Any] = {}
    try:
        found = path or find(folder or Path(), socket.gethostname())
    except ConfigError:
        found = Path("environment")
    else:
        document = _read_toml(found)
    return _config(document, environ, found)


def for_listening(address: str, path: Path | None, environ: Mapping[str, str], *, folder: Path | None = None) -> Config:
    """Read the same for a mole that is to be scraped, which needs no file: it then looks every 5 s and sends nothing.

    Raises:
        ConfigError: see `load`.
    """
    document: dict[str, Any] = {"Poll_Settings": {"poll_interval_in_secs": ALONE_SECONDS}}
    try:
        found = path or find(folder or Path(), socket.gethostname())
    except ConfigError:
        found = Path("environment")
    else:
        document = _read_toml(found)
    config = _config(document, environ, found)
    return replace(
        config,
        json_sender=_with_secret(config.json_sender, found),
        listen=replace(config.listen, use=True, address=address),
    )


def find(folder: Path, hostname: str) -> Path:
    """Return the file of a host: in a folder, of its full name, its short name, or of all; else that of its unit."""
    names = dict.fromkeys([f"config_{hostname}.toml", f"config_{hostname.partition('.')[0]}.toml", "config.toml"])
    for file in (*(folder / name for name in names), OF_THE_UNIT):
        if file.is_file():
            return file
    expected = " or ".join([*names, str(OF_THE_UNIT)])
    raise ConfigError(f"no configuration in {folder.resolve()}: expected {expected}, or -c FILE")


class _FromEnvironment(str):
    """A value that is text for want of types, and may mean a number or a truth."""


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _from_environ(environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (section, key, text) of each variable that is for a section of ours."""
    sections = {name.upper(): name for name in (*SECTIONS, LABELS)}
    settings = []
    for variable, text in environ.items():
        section, double, key = variable.removeprefix(PREFIX).partition("__")
        if variable.startswith(PREFIX) and double and section.upper() in sections:
            ours = sections[section.upper()], key.lower()
            if ours not in OF_SERVERS:
                settings.append((*ours, text))
    return settings


def _section(kind: type[S], section: str, document: Mapping[str, Any], source: Path) -> S:
    known = {setting.name: setting for setting in fields(kind)}  # type: ignore[arg-type]  # all are dataclasses
    values = {}
    for key, value in document.get(section, {}).items():
        if key not in known:
            raise ConfigError(f"{source}: {section}.{key}: unknown key{_nearest(key, list(known))}")
        values[key] = _value(known[key], value, f"{source}: {section}.{key}")
    return kind(**values)


def _value(setting: "Field[Any]", value: object, where: str) -> object:
    given, wanted = value, "text"
    if setting.type is bool:
        wanted = "true or false"
        if isinstance(value, _FromEnvironment):
            value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
        right = isinstance(value, bool)
    elif setting.type is float:
        low, high = setting.metadata["minimum"], setting.metadata.get("maximum", float("inf"))
        wanted = f"a number >= {low}" + (f" and <= {high}" if high < float("inf") else "")
        if isinstance(value, _FromEnvironment):
            value = _number(value)
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    else:
        choices = setting.metadata.get("choices")
        wanted = " or ".join(choices) if choices else wanted
        right = isinstance(value, str) and value in (choices or (value,))
        value = str(value) if right else value
    if not right:
        shown = "something else" if setting.metadata.get("secret") else _shown(given)
        raise ConfigError(f"{where}: got {shown}, expected {wanted}")
    return value


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _labels(labels: Mapping[str, object], source: Path) -> dict[str, str]:
    for key, value in labels.items():
        if not isinstance(value, str) or len(value) > 256 or len(key) > 64:
            raise ConfigError(f"{source}: {LABELS}.{key}: got {_shown(value)}, expected text of at most 256 characters")
    if len(labels) > 64:
        raise ConfigError(f"{source}: {LABELS}: got {len(labels)} labels, expected at most 64")
    return {key: str(value) for key, value in labels.items()}


def _with_secret(settings: JsonSenderSettings, source: Path) -> JsonSenderSettings:
    """Return the settings with the secret read from its file, and checked as far as this side can."""
    address, where = settings.address_in, f"{source}: Json_Sender_Logger"
    if settings.use and not address.startswith(("http://", "https://")):
        raise ConfigError(f"{where}.address_in: got {_shown(address)}, expected an http:// or https:// address")
    if settings.use and settings.ca_file and not Path(settings.ca_file).is_file():
        raise ConfigError(f"{where}.ca_file: got {_shown(settings.ca_file)}, expected a file that can be read")
    if not settings.auth_code_file:
        return settings
    try:
        secret = Path(settings.auth_code_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"{where}.auth_code_file: {settings.auth_code_file}: cannot be read: {reason}") from error
    if not secret:
        raise ConfigError(
            f"{where}.auth_code_file: {settings.auth_code_file}: got nothing, expected a passcode or token"
        )
    return replace(settings, auth_code=secret)


def _checked(settings: GoogleSheetsSettings, source: Path) -> GoogleSheetsSettings:
    """Return the settings, checked as far as this side can."""
    if not settings.use:
        return settings
    where = f"{source}: Google_Sheets_Logger"
    for key in ("service_account_file_path", "spreadsheets_id", "worksheet_name"):
        if not getattr(settings, key):
            raise ConfigError(f"{where}.{key}: got nothing, expected text")
    path = settings.service_account_file_path
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{where}.service_account_file_path: {path}: cannot be read: {error.strerror}; expected a key file"
        ) from error
    return settings


def _shown(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)[:80]
    except TypeError:  # TOML knows dates
        return str(value)[:80]


def _nearest(name: str, known: list[str]) -> str:
    import difflib  # only ever needed on the way out

    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)
    return f", did you mean {by_lower[near[0]]}?" if near else ""
