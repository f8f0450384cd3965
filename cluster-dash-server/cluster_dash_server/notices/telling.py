"""Who tells people, by the settings: the receivers, the delivery to them, the word to who watches this server."""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import tzinfo

from cluster_dash_server.notices import guarded, notifiers
from cluster_dash_server.notices.delivering import Delivery
from cluster_dash_server.notices.notice import Notice, NotifyError, Outbox, Outcome
from cluster_dash_server.notices.receivers import PERSON, AlertSettings
from cluster_dash_server.notices.wording import Wording
from cluster_dash_server.snapshot import Json

log = logging.getLogger(__name__)

TEST_SECONDS = 8.0
"""How long who tests waits for what becomes of it; the delivery goes on after that."""
_POLL_SECONDS = 0.05


def without_addresses(text: str) -> str:
    """Return a mail server's words for those who may not know whom a site writes to."""
    return re.sub(r"[^\s<>\"']+@[^\s<>\"']+", "…", text)


class Telling:
    """Tells people what stands in an outbox.

    Args:
        alerts: the section `[alerts]`.
        outbox: what waits.
        site: what the pages call the cluster.
        zone: of the site.
        clock: Unix s.
        public_url: where people reach the dashboard.
        is_well: whether alerts are evaluated; else who watches this server from outside is to find out.
    """

    def __init__(
        self,
        alerts: AlertSettings,
        outbox: Outbox,
        *,
        site: str,
        zone: tzinfo,
        clock: Callable[[], float],
        public_url: str | None = None,
        is_well: Callable[[], bool] = lambda: True,
    ) -> None:
        wording = Wording(site=site, zone=zone)
        self._alerts = alerts
        self._outbox = outbox
        self._site = site
        self._clock = clock
        self._public_url = public_url
        self._heart = Heart(alerts.dead_man_url, alerts.dead_man_seconds, clock, is_well)
        self.delivery = Delivery(
            outbox,
            notifiers.build(alerts, wording),
            alerts.receivers,
            person=lambda name: notifiers.person(name, alerts, wording),
            zone=zone,
            clock=clock,
            heartbeat=self._heart.beat,
        )
        self._once = threading.Lock()  # taken by the first start, and never given back

    def start(self) -> None:
        """Deliver in a thread of its own from now on; once."""
        if self._once.acquire(blocking=False):
            threading.Thread(target=self.delivery.run, name="delivery", daemon=True).start()

    def stop(self) -> None:
        """End, when what is under way is done."""
        self.delivery.stop()

    def failing(self) -> Mapping[str, tuple[float, str]]:
        """Return receivers that do not take notices, since when and why; empty where that cannot be known."""
        try:
            return self._outbox.failing()
        except Exception:  # the book says itself why it cannot be read
            return {}

    def notices(self) -> list[str]:
        """Return what the pages say of receivers that fail; people are counted, not named."""
        failing = self.failing()
        found = [
            f"Notices do not reach {name}: {without_addresses(why)}."
            for name, (_, why) in failing.items()
            if not _is_person(name)
        ]
        people = sum(map(_is_person, failing))
        if people:
            found.append(f"Notices do not reach {people} {'person' if people == 1 else 'people'}: see the log.")
        if self.delivery.trouble is not None:
            found.append(f"Notices are not sent: {self.delivery.trouble}.")
        return found

    @property
    def trouble(self) -> str | None:
        """Why not everybody is told, for who may not know whom; None: everybody is."""
        if self.delivery.trouble is not None:
            return "they are not sent: any page says why"
        count = len(self.failing())
        return f"{count} {'receiver does' if count == 1 else 'receivers do'} not take them" if count else None

    def test(self, wish: Json) -> Json:
        """Put a message for one receiver or all of them into the outbox, and say what became of it.

        Args:
            wish: `receiver`: its name, or `mailto:…`; None: all of the settings.
        """
        known = [receiver.name for receiver in self._alerts.receivers]
        asked = wish.get("receiver")
        if asked is None and not known:
            return {"success": False, "msg": "no receiver is set: see [alerts.receivers.NAME] in docs/alerts.md"}
        if asked is not None and asked not in known and not str(asked).startswith(PERSON):
            return {"success": False, "msg": f"there is no receiver {asked}; known here: {', '.join(known) or 'none'}"}
        receivers = known if asked is None else [str(asked)]
        notice = _test_notice(self._clock(), self._public_url)
        try:
            self.delivery.put(receivers, notice)
            outcomes = self._outcomes(receivers, notice.key)
        except Exception as error:  # whatever keeps alerts: its text says why it cannot
            return {"success": False, "msg": str(error)}
        return {
            "success": True,
            "outcomes": [
                {
                    "receiver": name,
                    "taken": None if outcome is None else outcome.why is None,
                    "why": None if outcome is None else outcome.why,
                }
                for name, outcome in outcomes.items()
            ],
        }

    def _outcomes(self, receivers: Sequence[str], key: str) -> dict[str, Outcome | None]:
        """Wait for what becomes of a notice, at most `TEST_SECONDS`; None: nothing yet."""
        until = time.monotonic() + TEST_SECONDS
        while True:
            outcomes = {name: self.delivery.outcome(name, key) for name in receivers}
            if None not in outcomes.values() or time.monotonic() >= until:
                return outcomes
            time.sleep(_POLL_SECONDS)


def _test_notice(now: float, link: str | None) -> Notice:
    return Notice(
        key=f"test:{secrets.token_hex(8)}",
        kind="test",
        alert=None,
        rule="test",
        severity="info",
        title="This is a test of alerts",
        facts=(
            ("what", "somebody ran cluster-dash-server notify-test"),
            ("next step", "none: notices reach you"),
        ),
        text="",
        link=link,
        actions=(),
        labels={"rule": "test"},
        begun_at=now,
        ended_at=None,
    )


def _is_person(receiver: str) -> bool:
    return receiver.startswith(PERSON)


class Heart:
    """Tells who watches from outside that this server lives; where it is silent, they call.

    Args:
        url: what is asked; None: nobody watches.
        seconds: between two.
        clock: Unix s.
        is_well: whether there is something to say.
        ask: asks it.
    """

    def __init__(
        self,
        url: str | None,
        seconds: float,
        clock: Callable[[], float],
        is_well: Callable[[], bool],
        ask: Callable[[str], None] = lambda url: guarded.request(url, method="GET"),
    ) -> None:
        self._url = url
        self._seconds = seconds
        self._clock = clock
        self._is_well = is_well
        self._ask = ask
        self._beat_at = float("-inf")
        self._failing = False
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Say that this server lives, where it is time for it; never waits."""
        now = self._clock()
        is_time = not 0 <= now - self._beat_at < self._seconds
        if self._url is None or not is_time or (self._thread is not None and self._thread.is_alive()):
            return
        if not self._is_well():
            return
        self._beat_at = now
        self._thread = threading.Thread(target=self._say, args=(self._url,), name="heart", daemon=True)
        self._thread.start()

    def _say(self, url: str) -> None:
        try:
            self._ask(url)
        except NotifyError as error:
            if not self._failing:
                log.warning("dead_man_url does not answer: %s", error)
            self._failing = True
        else:
            if self._failing:
                log.info("dead_man_url answers again")
            self._failing = False
