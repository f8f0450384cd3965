"""Who holds GPUs without using them is told first, and may say by a link that they are needed for a while.

The link names alert, user and until when, and is signed: it cannot be made or changed by others, it means one moment
whenever it is used, and after that moment nothing. Whoever has it may use it; looking at it changes nothing.
"""

import base64
import binascii
import hmac
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path

from cluster_dash_server.alerts.book import Addressed, Alert, Book, Silence
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.receivers import PERSON, AlertSettings
from cluster_dash_server.privacy import NO_PERSON

log = logging.getLogger(__name__)

KEY_FILE = "links.key"
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MOST_TOKEN = 1000


class Addresses:
    """The mail addresses of users: of a file, read again when it changes, else by a pattern.

    Args:
        pattern: `{user}` in it is the user; None: there is none.
        file: lines USER ADDRESS; None: there is none.
    """

    def __init__(self, pattern: str | None, file: Path | None) -> None:
        self._pattern = pattern
        self._file = file
        self._stamp: object = None
        self._known: dict[str, str] = {}

    def of(self, user: str) -> str | None:
        """Return the address of a user, None where none is known."""
        if user in NO_PERSON or user.startswith("unknown") or _USER.fullmatch(user) is None:
            return None
        return self._read().get(user) or (None if self._pattern is None else self._pattern.replace("{user}", user))

    def _read(self) -> dict[str, str]:
        if self._file is None:
            return {}
        try:
            found = self._file.stat()
            stamp = found.st_ino, found.st_mtime_ns, found.st_size
            if stamp != self._stamp:
                lines = self._file.read_text(encoding="utf-8").splitlines()
                pairs = [line.split() for line in lines if not line.startswith("#")]
                self._known = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            log.warning("%s: addresses of users cannot be read: %s", self._file, type(error).__name__)
        return self._known


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a link says: whose alert is to keep quiet until when (Unix s)."""

    alert: str
    user: str
    until: int


def signed(need: Need, key: bytes) -> str:
    """Return the word that stands in the link."""
    body = json.dumps([need.alert, need.user, need.until]).encode()
    return f"{_text(body)}.{_text(hmac.digest(key, body, 'sha256'))}"


def read(token: str, key: bytes) -> Need | None:
    """Return what a link says, None where it is not ours."""
    body_text, _, mark = token.partition(".")
    if len(token) > _MOST_TOKEN:
        return None
    try:
        body, given = _bytes(body_text), _bytes(mark)
    except (binascii.Error, ValueError):
        return None
    # one word for each need: other spellings of the same bytes are not taken
    if not hmac.compare_digest(hmac.digest(key, body, "sha256"), given) or token != f"{_text(body)}.{_text(given)}":
        return None
    alert, user, until = json.loads(body)
    return Need(alert=alert, user=user, until=until)


class Owners:
    """Decides who is told of an alert when, and takes what owners say by their links.

    Args:
        alerts: the section `[alerts]`.
        key: gives what links are signed with.
        book: where silences are kept.
        clock: Unix s.
        zone: in which moments are told.
        public_url: where people reach the dashboard; None: there are no links then.
    """

    def __init__(
        self,
        alerts: AlertSettings,
        key: Callable[[], bytes],
        book: Book,
        clock: Callable[[], float],
        zone: tzinfo,
        public_url: str | None,
    ) -> None:
        file = alerts.owner_addresses_file
        self._addresses = Addresses(alerts.owner_address, None if file is None else Path(file))
        self._alerts = alerts
        self._key = key
        self._book = book
        self._clock = clock
        self._zone = zone
        self._public_url = public_url

    def route(self, alert: Alert, notice: Notice, receivers: Sequence[str], now: float) -> list[Addressed]:
        """Say who gets a notice when: the owner first, where it is about one whose address is known."""
        address = self._addresses.of(alert.user) if alert.user is not None and self._alerts.owner_notices else None
        if address is None:
            return [Addressed(receiver, notice, now) for receiver in receivers]
        owner = PERSON + address
        is_first = notice.key == f"{alert.id}:firing:1"
        told_at = now + (self._alerts.owner_grace_minutes * 60 if is_first else 0)
        action = self._action(alert, now) if is_first else []
        own = replace(notice, facts=_own_facts(notice, bool(action)), actions=(*notice.actions, *action))
        return [Addressed(owner, own, now), *(Addressed(receiver, notice, told_at) for receiver in receivers)]

    def _action(self, alert: Alert, now: float) -> list[tuple[str, str]]:
        if self._public_url is None or self._alerts.owner_extension_hours <= 0 or alert.user is None:
            return []
        until = int(now + self._alerts.owner_extension_hours * 3600)
        token = signed(Need(alert=alert.id, user=alert.user, until=until), self._key())
        return [(f"I need it until {self.moment(until)}", f"{self._public_url.rstrip('/')}/needed/{token}")]

    def moment(self, at: float) -> str:
        """Word a moment (Unix s) in the zone of the site."""
        return datetime.fromtimestamp(at, self._zone).strftime("%Y-%m-%d %H:%M %Z")

    def find(self, token: str) -> tuple[Need, Alert] | None:
        """Return what a link is about; None: it is not ours, too late, or its alert or what it asked for was ended.

        Raises:
            BookError: alerts cannot be read now.
        """
        need = read(token, self._key())
        if need is None or need.until <= self._clock():
            return None
        alert = next((each for each in self._book.firing() if each.id == need.alert), None)
        if alert is None or alert.user != need.user or any(said.ends_at < need.until for said in self._said(need)):
            return None
        return need, alert

    def is_extended(self, need: Need) -> bool:
        """Say whether the link was used already.

        Raises:
            BookError: alerts cannot be read now.
        """
        return any(said.ends_at >= need.until for said in self._said(need))

    def _said(self, need: Need) -> list[Silence]:
        """Return what was kept of the link, also where an operator has ended it since."""
        silence = self._silence(need)
        mark = silence.filter, silence.by, silence.reason
        kept = self._book.silences(float("-inf"))
        return [each for each in kept if (each.filter, each.by, each.reason) == mark]

    def extend(self, need: Need) -> None:
        """Keep quiet about it until then; a second time changes nothing.

        Raises:
            BookError: it cannot be kept now.
        """
        if not self.is_extended(need):
            self._book.silence(self._silence(need))
            log.info("a user needs what they hold until %s", self.moment(need.until))

    def _silence(self, need: Need) -> Silence:
        rule = next((each.rule for each in self._book.firing() if each.id == need.alert), "")
        return Silence(
            id=None,
            filter=f"rule:{rule} user:{need.user}",
            by=f"{need.user}, by the link in their mail",
            reason=f"needed (alert {need.alert})",
            begins_at=self._clock(),
            ends_at=need.until,
        )


def _own_facts(notice: Notice, has_link: bool) -> tuple[tuple[str, str], ...]:
    """Return what an owner is told: nothing of who else is there, and what they can do themselves."""
    facts = [fact for fact in notice.facts if fact[0] not in ("who", "next step")]
    if notice.kind == "firing":
        last = ", or say by the link below until when you need it" if has_link else ""
        facts.append(("next step", f"end the program or the job if you do not need it any more{last}"))
    return tuple(facts)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
