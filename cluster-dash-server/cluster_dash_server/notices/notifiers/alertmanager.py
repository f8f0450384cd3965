"""A Prometheus Alertmanager (API v2), for sites that route, group and silence there."""

import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from cluster_dash_server.notices import guarded
from cluster_dash_server.notices.notice import Notice, NotifyError
from cluster_dash_server.notices.receivers import AlertSettings, Receiver
from cluster_dash_server.notices.wording import Wording

TEST_SECONDS = 300.0
"""After so long a test ends by itself."""
HELD_SECONDS = 900.0
"""An alert of which nothing more is heard ends there after so long, as those of a Prometheus do."""


def build(receiver: Receiver, alerts: AlertSettings, wording: Wording) -> "Alertmanager":
    """Make it of its settings."""
    return Alertmanager(receiver, wording)


class Alertmanager:
    """Posts alerts as they begin and end, and meanwhile again and again: it forgets them, above all when started anew.

    Args:
        receiver: where it is: its address without /api/v2.
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
        """Post an alert.

        Raises:
            NotifyError: it was not taken, or it is no alert.
        """
        if notice.kind not in ("firing", "resolved", "test"):
            raise NotifyError(f"an Alertmanager takes alerts, and no {notice.kind}", is_final=True)
        self._post([notice])

    def repeat(self, notices: Sequence[Notice]) -> None:
        """Say again which alerts go on.

        Raises:
            NotifyError: it did not take them.
        """
        if notices:
            self._post(notices)

    def _post(self, notices: Sequence[Notice]) -> None:
        receiver = self._receiver
        headers = {"Content-Type": "application/json", "User-Agent": "cluster-dash-server"}
        if receiver.token is not None:
            headers["Authorization"] = f"Bearer {receiver.token}"
        guarded.request(
            f"{(receiver.url or '').rstrip('/')}/api/v2/alerts",
            body=json.dumps([self._alert(notice) for notice in notices], ensure_ascii=False).encode("utf-8", "replace"),
            headers=headers,
            allow_private=receiver.allow_private,
            ca_file=receiver.ca_file,
            resolve=self._resolve,
        )

    def _alert(self, notice: Notice) -> dict[str, object]:
        ends_at = notice.ended_at
        if ends_at is None:
            ends_at = self._clock() + (TEST_SECONDS if notice.kind == "test" else HELD_SECONDS)
        labels = {_name(name): text for name, text in notice.labels.items() if text}
        labels |= {"alertname": notice.rule, "severity": notice.severity, "site": self._wording.site}
        if notice.alert is not None:
            labels["alert"] = notice.alert
        annotations = {_name(name): text for name, text in self._wording.facts(notice) if text}
        annotations |= {"summary": notice.title, "description": self._wording.text(notice)}
        return {
            "labels": labels,
            "annotations": annotations,
            "startsAt": _moment(min(notice.begun_at, ends_at)),
            "endsAt": _moment(ends_at),
            **({} if notice.link is None else {"generatorURL": notice.link}),
        }


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _name(text: str) -> str:
    """Make a label's name of a word: a letter, then letters, digits and _."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", text) or "_"
    return f"_{name}" if name[0].isdigit() else name
