"""The kinds of receivers: a module each, in one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from cluster_dash_server.notices import guarded
from cluster_dash_server.notices.notice import Notifier
from cluster_dash_server.notices.notifiers import alertmanager, apprise, email, webhook
from cluster_dash_server.notices.receivers import PERSON, AlertSettings, Receiver
from cluster_dash_server.notices.wording import Wording


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of receiver.

    Attributes:
        build: makes one of a receiver.
        needs: keys of a receiver without which it cannot be told.
        takes: keys that only some kinds have, and this one may.
    """

    build: Callable[[Receiver, AlertSettings, Wording], Notifier]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()


_HTTP = ("url_file", "token", "token_file", "ca_file", "allow_private")
KINDS: dict[str, Kind] = {
    "email": Kind(build=email.build, needs=("to",)),
    "webhook": Kind(build=webhook.build, needs=("url",), takes=(*_HTTP, "secret", "secret_file")),
    "alertmanager": Kind(build=alertmanager.build, needs=("url",), takes=_HTTP),
    "apprise": Kind(build=apprise.build, needs=("url",), takes=("url_file", "allow_private")),
}
_OF_SOME = {key for kind in KINDS.values() for key in (*kind.needs, *kind.takes)}


def problem(receiver: Receiver, alerts: AlertSettings) -> str | None:
    """Say what keeps a receiver from being told: `key: what is wrong`; None where nothing does."""
    kind = KINDS.get(receiver.kind)
    if kind is None:
        return f"kind: got {receiver.kind!r}, expected {' or '.join(KINDS)}"
    for key in kind.needs:
        if not getattr(receiver, key):
            return f"{key}: is missing, the kind {receiver.kind} needs it"
    for each in fields(receiver):
        is_foreign = each.name in _OF_SOME and each.name not in (*kind.needs, *kind.takes)
        if is_foreign and getattr(receiver, each.name) != each.default:
            return f"{each.name}: the kind {receiver.kind} has no such key"
    if receiver.kind == "email":
        if not alerts.mail_server or not alerts.mail_from:
            return "kind: mail needs [alerts] mail_server and mail_from"
        wrong = next((address for address in receiver.to if not email.is_address(address)), None)
        if wrong is not None:
            return f"to: got {wrong!r}, expected such as admin@example.org"
    if "ca_file" in kind.takes and receiver.url is not None:
        wrong = guarded.url_problem(receiver.url)
        if wrong is not None:
            return f"url: {wrong}"
    if receiver.kind == "apprise" and not apprise.is_installed():
        return "kind: apprise is not installed: pip install 'cluster-dash-server[apprise]'"
    try:
        receiver.quiet  # noqa: B018 - it is read to see whether it can be
    except ValueError as error:
        return f"quiet_hours: {error}"
    return None


def build(alerts: AlertSettings, wording: Wording) -> Mapping[str, Notifier]:
    """Make all receivers of the settings, by name."""
    return {receiver.name: KINDS[receiver.kind].build(receiver, alerts, wording) for receiver in alerts.receivers}


def person(name: str, alerts: AlertSettings, wording: Wording) -> Notifier | None:
    """Make the receiver of one person, `mailto:…`; None where this site sends no mail, or it is no address."""
    address = name.removeprefix(PERSON)
    if not alerts.mail_server or not alerts.mail_from or not name.startswith(PERSON) or not email.is_address(address):
        return None
    return email.Email((address,), alerts, wording)
