"""JSON to an address of the settings, signed as standardwebhooks.com describes, so that ready libraries check it."""

import base64
import binascii
import hmac
import json
import time
from collections.abc import Callable

from cluster_dash_server.notices import guarded
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.receivers import AlertSettings, Receiver
from cluster_dash_server.notices.wording import Wording

KEY_PREFIX = "whsec_"
"""How a secret begins of which the rest is base64."""


def build(receiver: Receiver, alerts: AlertSettings, wording: Wording) -> "Webhook":
    """Make it of its settings."""
    return Webhook(receiver, wording)


class Webhook:
    """Posts each notice as JSON.

    Args:
        receiver: where to, and by which secret.
        wording: how notices are worded.
        clock: Unix s.
        resolve: finds the addresses of a name.
    """

    def __init__(
        self,
        receiver: Receiver,
        wording: Wording,
        clock: Callable[[], float] = time.time,
        resolve: guarded.Resolve = guarded.resolved,
    ) -> None:
        self._receiver = receiver
        self._wording = wording
        self._clock = clock
        self._resolve = resolve

    def send(self, notice: Notice) -> None:
        """Post a notice.

        Raises:
            NotifyError: it was not answered with 2xx.
        """
        receiver = self._receiver
        body = json.dumps(self._body(notice), ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json", "User-Agent": "cluster-dash-server"}
        headers["webhook-id"] = _ascii(notice.key)
        headers["webhook-timestamp"] = str(int(self._clock()))
        if receiver.secret is not None:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            headers["webhook-signature"] = "v1," + signature(receiver.secret, signed)
        if receiver.token is not None:
            headers["Authorization"] = f"Bearer {receiver.token}"
        guarded.request(
            receiver.url or "",
            body=body,
            headers=headers,
            allow_private=receiver.allow_private,
            ca_file=receiver.ca_file,
            resolve=self._resolve,
        )

    def _body(self, notice: Notice) -> dict[str, object]:
        return {
            "key": notice.key,
            "kind": notice.kind,
            "site": self._wording.site,
            "alert": notice.alert,
            "rule": notice.rule,
            "severity": notice.severity,
            "title": notice.title,
            "facts": [{"name": name, "text": text} for name, text in notice.facts],
            "text": notice.text,
            "message": self._wording.text(notice),
            "link": notice.link,
            "actions": [{"name": name, "link": link} for name, link in notice.actions],
            "labels": dict(notice.labels),
            "begun_at": notice.begun_at,
            "ended_at": notice.ended_at,
        }


def signature(secret: str, signed: bytes) -> str:
    """Sign bytes: HMAC-SHA256, as base64."""
    key = secret.encode()
    if secret.startswith(KEY_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(KEY_PREFIX), validate=True)
        except binascii.Error:
            key = secret.encode()
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def _ascii(text: str) -> str:
    return "".join(character if "!" <= character <= "~" else "_" for character in text)
