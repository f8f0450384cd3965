"""Slack, Teams, Discord, ntfy, Telegram and some hundred others, by apprise. Needs the extra `apprise`.

Apprise makes its own connections and follows redirects; so each is looked at when it is made, see `guarded`.
"""

import logging
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from cluster_dash_server.notices.guarded import confined
from cluster_dash_server.notices.notice import Notice, NotifyError
from cluster_dash_server.notices.receivers import AlertSettings, Receiver
from cluster_dash_server.notices.wording import Wording

NOT_THESE = ("dbus", "glib", "qt", "kde", "gnome", "macosx", "windows", "syslog", "file")
"""Schemas of apprise that reach this machine's own desktop and files: of no use to a server."""
_KINDS = {"critical": "failure", "warning": "warning", "info": "info"}


def build(receiver: Receiver, alerts: AlertSettings, wording: Wording) -> "Apprise":
    """Make it of its settings."""
    return Apprise(receiver.url or "", wording, allow_private=receiver.allow_private)


def is_installed() -> bool:
    """Say whether the extra is there."""
    return find_spec("apprise") is not None


class Apprise:
    """Hands each notice to apprise.

    Args:
        url: where to, in apprise's notation; it holds secrets.
        wording: how notices are worded.
        allow_private: it may reach this machine and its link.
    """

    def __init__(self, url: str, wording: Wording, *, allow_private: bool = False) -> None:
        self._url = url
        self._allow_private = allow_private
        self._wording = wording
        self._service: Any = None

    def send(self, notice: Notice) -> None:
        """Hand a notice over.

        Raises:
            NotifyError: apprise did not get it through; it does not say why.
        """
        service = self._made()
        kind = "success" if notice.kind == "resolved" else _KINDS[notice.severity]
        with nullcontext() if self._allow_private else confined() as confines:
            try:
                taken = service.notify(
                    title=self._wording.subject(notice),
                    body=self._wording.text(notice),
                    notify_type=kind,
                    body_format="text",
                )
            except Exception as error:  # a hundred services, each with errors of its own, whose words may name secrets
                taken, why = False, type(error).__name__
            else:
                why = "did not take it"
        if confines is not None and confines.refused is not None:
            raise NotifyError(f"{service.service_name}: {confines.refused}")
        if not taken:
            raise NotifyError(f"{service.service_name}: {why}")

    def _made(self) -> Any:
        if self._service is None:
            for name in ("apprise", "urllib3"):  # they log addresses with the secrets in them
                logging.getLogger(name).setLevel(logging.CRITICAL)
            apprise = import_module("apprise")
            schema = self._url.partition(":")[0].lower()
            made = None if schema in NOT_THESE else apprise.Apprise.instantiate(self._url)
            if made is None:
                raise NotifyError(f"apprise does not know the address that begins with {schema[:20]}:")
            self._service = made
        return self._service
