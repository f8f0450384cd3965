"""What this site has set: its `config.py`, `server.toml`, the environment, and its rules of alerts."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from cluster_dash_server import settings as settings_of_site
from cluster_dash_server.alerts import rules
from cluster_dash_server.settings import ConfigError, Reading, Settings


def load_settings(file: Path | None = None) -> Settings:
    """Read all settings of this site.

    Raises:
        ConfigError: see `read_settings`.
    """
    return read_settings(file).settings


def read_settings(file: Path | None = None) -> Reading:
    """Read all settings of this site, and where each comes from; its rules of alerts are looked at, too.

    Raises:
        ConfigError: see `settings.read`; a rule that cannot be used.
    """
    site_file, site = _config_py()
    reading = settings_of_site.read(file, site=site, site_file=site_file)
    try:
        read_rules(reading.settings)
    except rules.RulesError as error:
        raise ConfigError(str(error)) from None
    return reading


def read_rules(settings: Settings) -> Sequence[rules.Rule]:
    """Read the rules of alerts that are on.

    Raises:
        RulesError: one that cannot be used.
    """
    file = None if settings.alerts.rules_file is None else Path(settings.alerts.rules_file)
    receivers = settings.alerts.receivers
    known = [rule.name for rule in rules.read(file)]
    for receiver in receivers:
        for name in receiver.rules:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
                raise rules.RulesError(f"alerts.receivers.{receiver.name}.rules: no rule is called {name}, {mend}")
    return rules.load(file, receivers=[receiver.name for receiver in receivers])


def _config_py() -> tuple[str, dict[str, object]]:
    """Run the site's `config.py` (Flask's own way): the working directory's, else the package folder's.

    Returns:
        where it is, and its names in capitals; none where there is no such file.

    Raises:
        ConfigError: it is there and cannot be run.
    """
    for file in (Path.cwd() / "config.py", Path(__file__).with_name("config.py")):
        try:
            # a working directory may hold anybody's config.py: ours names the passcode
            if "PASSCODE" not in file.read_text(encoding="utf-8", errors="replace"):
                continue
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        from flask import Config  # few sites have such a file, and commands start without Flask

        config = Config(str(file.parent))
        try:
            config.from_pyfile(file.name)
        except Exception as error:  # it is the site's own code: whatever it raises, the site must read where
            raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
        return str(file), dict(config)
    return "", {}
