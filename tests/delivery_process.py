"""A delivery in a process of its own, to be killed: `delivery_process.py FOLDER MAIL_PORT HOOK_PORT UNTIL [DIES]`.

Its clock goes by rounds and is kept in the folder, so that hours pass at once and a second life goes on where the first
one ended. Every ten minutes something is to be told. It says each hour; before the seventh it waits for a line. DIES is
the key of a notice: when the mail server has taken that, it is killed before it can note it.
"""

import os
import signal
import sys
from datetime import UTC
from pathlib import Path

from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.notices import notifiers
from cluster_dash_server.notices.delivering import Delivery
from cluster_dash_server.notices.notice import Notice, Notifier
from cluster_dash_server.notices.receivers import AlertSettings, Receiver
from cluster_dash_server.notices.wording import Wording

BEGIN = 1_795_000_000.0
STEP_SECONDS = 60.0
EVERY_SECONDS = 600.0
RECEIVERS_BACK_HOUR = 6


def notice(number: int) -> Notice:
    """Return the how many-th notice."""
    return Notice(
        key=f"n{number}",
        kind="firing",
        alert=f"n{number}",
        rule="gpu-error",
        severity="critical",
        title=f"number {number}",
        facts=(),
        text="",
        link=None,
        actions=(),
        labels={},
        begun_at=BEGIN,
        ended_at=None,
    )


class Dies:
    """Hands a notice on and is killed before anybody can know."""

    def __init__(self, notifier: Notifier, key: str) -> None:
        self._notifier = notifier
        self._key = key

    def send(self, notice: Notice) -> None:
        """Hand it on; see the class."""
        self._notifier.send(notice)
        if notice.key == self._key:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, mail_port: int, hook_port: int, until_hour: float, dies: str | None) -> None:
    """Deliver until an hour of the clock."""
    kept = folder / "clock"
    now = float(kept.read_text()) if kept.exists() else BEGIN

    def clock() -> float:
        return now

    alerts = AlertSettings(
        mail_server="127.0.0.1",
        mail_port=mail_port,
        mail_security="none",
        mail_from="dash@lab.example",
        receivers=(
            Receiver(name="mail", kind="email", to=("admin@lab.example",)),
            Receiver(name="hook", kind="webhook", url=f"http://127.0.0.1:{hook_port}/", allow_private=True),
        ),
    )
    book = SqliteBook(folder / "alerts.db", clock)
    built = dict(notifiers.build(alerts, Wording(site="lab", zone=UTC)))
    if dies is not None:
        built["mail"] = Dies(built["mail"], dies)
    delivery = Delivery(book, built, alerts.receivers, zone=UTC, clock=clock, begin=lambda work: work())
    while now < BEGIN + until_hour * 3600:
        if (now - BEGIN) % 3600 == 0:
            hour = int((now - BEGIN) // 3600)
            sys.stdout.write(f"hour {hour}\n")
            sys.stdout.flush()
            if hour == RECEIVERS_BACK_HOUR:
                sys.stdin.readline()
        if (now - BEGIN) % EVERY_SECONDS == 0 and now < BEGIN + RECEIVERS_BACK_HOUR * 3600:
            number = int((now - BEGIN) // EVERY_SECONDS)
            book.put([("mail", notice(number)), ("hook", notice(number))], now)
        delivery.round()
        now += STEP_SECONDS
        kept.write_text(str(now))
    book.close()


if __name__ == "__main__":
    _, folder, mail_port, hook_port, until, *rest = sys.argv
    run(Path(folder), int(mail_port), int(hook_port), float(until), rest[0] if rest else None)
