"""Who is told: the section `[alerts]` of the settings, and a receiver of it. Data only; `notifiers` tells them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path

from cluster_dash_server.notices.notice import Severity

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
"""The mildest first."""
PERSON = "mailto:"
"""How the receiver of one person begins, who is no receiver of the settings."""
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)
_HOURS = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A section `[alerts.receivers.NAME]`: what reaches it, how, and when it is left alone."""

    name: str
    kind: str = field(metadata={"help": "email, webhook, alertmanager or apprise"})
    to: tuple[str, ...] = field(default=(), metadata={"help": "email: the addresses"})
    url: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "where to: of apprise in its own notation, such as slack://…", "secret": True},
    )
    url_file: str | None = field(default=None, metadata={"help": "a file that holds the url, instead", "of": "url"})
    secret: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "webhook: what its signature is made with", "secret": True},
    )
    secret_file: str | None = field(
        default=None, metadata={"help": "a file that holds the secret, instead", "of": "secret"}
    )
    token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "webhook, alertmanager: what Authorization: Bearer says", "secret": True},
    )
    token_file: str | None = field(
        default=None, metadata={"help": "a file that holds the token, instead", "of": "token"}
    )
    ca_file: str | None = field(
        default=None,
        metadata={"help": "webhook, alertmanager: a PEM file of its CA, where the system does not know it"},
    )
    allow_private: bool = field(
        default=False,
        metadata={
            "help": "webhook, alertmanager, apprise: it may be on this machine or at an address of this link only"
        },
    )
    severity: Severity = field(
        default="warning",
        metadata={"help": "what is milder is not told: info, warning or critical", "choices": SEVERITIES},
    )
    rules: tuple[str, ...] = field(default=(), metadata={"help": "rules it is told of; empty: all"})
    filter: str = field(default="", metadata={"help": "only what fits this filter, such as part:gpu -host:test*"})
    ends: bool = field(default=True, metadata={"help": "whether it is told when an alert has ended, too"})
    quiet_hours: str | None = field(
        default=None, metadata={"help": "when what is not critical waits, in the site's zone, such as 22:00-07:00"}
    )
    quiet_severity: Severity = field(
        default="critical",
        metadata={"help": "from this severity on it is told in quiet hours, too", "choices": SEVERITIES},
    )
    per_hour: int = field(
        default=60, metadata={"help": "messages an hour; more wait their turn; counted by each replica", "minimum": 1}
    )

    def takes(self, severity: Severity) -> bool:
        """Say whether something is grave enough for it."""
        return SEVERITIES.index(severity) >= SEVERITIES.index(self.severity)

    @property
    def quiet(self) -> tuple[time, time] | None:
        """When its quiet hours begin and end, None where it has none.

        Raises:
            ValueError: the text says no such hours.
        """
        return None if self.quiet_hours is None else hours_of(self.quiet_hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """The section `[alerts]`."""

    receivers: tuple[Receiver, ...] = field(
        default=(), metadata={"help": "who is told: sections [alerts.receivers.NAME], see docs/alerts.md"}
    )
    rules_file: str | None = field(
        default=None, metadata={"help": "a file of rules that change the shipped ones and add to them: etc/rules.toml"}
    )
    mail_server: str | None = field(default=None, metadata={"help": "the mail server: a name or an address"})
    mail_port: int = field(default=587, metadata={"help": "its port", "minimum": 1, "maximum": 65535})
    mail_security: str = field(
        default="starttls",
        metadata={
            "help": "starttls: encrypted after the greeting; tls: from the first byte on (port 465); none",
            "choices": ("starttls", "tls", "none"),
        },
    )
    mail_user: str | None = field(default=None, metadata={"help": "how to sign in there; none: without"})
    mail_password: str | None = field(default=None, repr=False, metadata={"help": "the password of it", "secret": True})
    mail_password_file: str | None = field(
        default=None, metadata={"help": "a file that holds the password, instead", "of": "mail_password"}
    )
    mail_from: str | None = field(default=None, metadata={"help": "whom mails come from"})
    mail_ca_file: str | None = field(
        default=None, metadata={"help": "a PEM file of the mail server's CA, where the system does not know it"}
    )
    dead_man_url: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "asked for as long as this server evaluates and delivers; what watches it from outside calls when "
            "that ends",
            "secret": True,
        },
    )
    dead_man_url_file: str | None = field(
        default=None, metadata={"help": "a file that holds that address, instead", "of": "dead_man_url"}
    )
    dead_man_seconds: float = field(default=60, metadata={"help": "seconds between two", "minimum": 10})
    owner_notices: bool = field(
        default=False,
        metadata={"help": "who holds GPUs without using them is told first, and the receivers only after a while"},
    )
    owner_address: str | None = field(
        default=None, metadata={"help": "the address of a user: {user} is their name, such as {user}@example.org"}
    )
    owner_addresses_file: str | None = field(
        default=None, metadata={"help": "a file of lines USER ADDRESS; goes before owner_address"}
    )
    owner_grace_minutes: float = field(
        default=60, metadata={"help": "how long they have before the receivers are told", "minimum": 0}
    )
    owner_extension_hours: float = field(
        default=24, metadata={"help": "how long the link “I need it” in their mail keeps it quiet", "minimum": 0}
    )
    digest_to: tuple[str, ...] = field(
        default=(), metadata={"help": "names of the receivers that get the digest each morning; empty: none"}
    )
    digest_at: str = field(default="07:30", metadata={"help": "when, by the clock of the site's zone"})
    waiting_to: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "whom “tell me when free” may tell: mail domains such as @example.org, and names of receivers; "
            "empty: it is off"
        },
    )
    waiting_per_client: int = field(
        default=20,
        metadata={
            "help": "wishes of one client that wait at a time: of who has signed in, else of one address; operators "
            "have no limit",
            "minimum": 1,
        },
    )


def minute_of_day(text: str) -> int:
    """Read a time of day such as 07:30, to minutes after midnight.

    Raises:
        ValueError: the text says none.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"got {text!r}, expected such as 07:30")
    return 60 * int(found[1]) + int(found[2])


def hours_of(text: str) -> tuple[time, time]:
    """Read quiet hours.

    Raises:
        ValueError: the text says none.
    """
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ValueError(f"got {text!r}, expected such as 22:00-07:00")
    begin_hour, begin_minute, end_hour, end_minute = map(int, found.groups())
    return time(begin_hour, begin_minute), time(end_hour, end_minute)


def secret_path(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where a file with a secret is: a bare name is first looked for among systemd's credentials."""
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if folder and "/" not in name and (Path(folder) / name).is_file():
        return Path(folder) / name
    return Path(name)
