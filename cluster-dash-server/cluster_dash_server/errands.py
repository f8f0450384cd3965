"""What the server does for people every few seconds: it tells who waits for free GPUs, and sends the digest."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.nights import Nights, last_due, night_before
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.waiting import WaitError

log = logging.getLogger(__name__)

ROUND_SECONDS = 10.0
LATE_SECONDS = 6 * 3600.0
"""A digest that is later than this is of no use: the next one comes."""

Put = Callable[[Sequence[tuple[str, Notice]], float], None]
Link = Callable[[str], str | None]
"""Makes the address of a page of its path below the server's own; None: it has none."""


class Morning:
    """Sends the digest, once each morning, whatever is started anew meanwhile: the outbox knows the ones that it has.

    Args:
        nights: tells nights.
        put: puts notices into the outbox; a known receiver and key are left out.
        receivers: who gets it; empty: nobody.
        minute_of_day: when, by the clock of the zone.
        link: see Link.
    """

    def __init__(self, nights: Nights, *, put: Put, receivers: Sequence[str], minute_of_day: int, link: Link) -> None:
        self._nights = nights
        self._put = put
        self._receivers = tuple(receivers)
        self._minute = minute_of_day
        self._link = link
        self._done = float("-inf")

    def round(self, now: float) -> None:
        """Send it, if it is due.

        Raises:
            BookError: the outbox does not take it; the next round tries again.
        """
        due = last_due(self._minute, now, self._nights.zone)
        if not self._receivers or due <= self._done or now - due > LATE_SECONDS:
            return
        notice = self.notice(due, now)
        self._put([(receiver, notice) for receiver in self._receivers], now)
        self._done = due

    def notice(self, due: float, now: float) -> Notice:
        """Word the digest that was due at a moment."""
        told = self._nights.told(night_before(due, self._nights.zone), now)
        span = told.span
        return Notice(
            key=f"digest:{due:.0f}",
            kind="digest",
            alert=None,
            rule="digest",
            severity="info",
            title=told.title,
            facts=(),
            text=told.text.partition("\n")[2].strip("\n"),
            link=self._link(f"digest?{urlencode({'from': round(span.begin), 'to': round(span.end)})}"),
            actions=(),
            labels={"rule": "digest"},
            begun_at=span.begin,
            ended_at=None,
        )


class Errands:
    """Does what is to be done, in a thread of its own; what fails is said in the log once, and tried again.

    Args:
        rounds: what is done, by name; each is called with the time (Unix s).
        clock: Unix s.
        leads: whether it is this one of several replicas that does them.
    """

    def __init__(
        self,
        rounds: dict[str, Callable[[float], object]],
        clock: Callable[[], float],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self.rounds = rounds
        self._clock = clock
        self._leads = leads
        self._failed: dict[str, str] = {}
        self._once = threading.Lock()

    def start(self) -> None:
        """Begin, once."""
        if self._once.acquire(blocking=False):
            threading.Thread(target=self._run, name="errands", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(ROUND_SECONDS)
            self.once()

    def once(self) -> None:
        """Do all of it once, where it is for this replica to do; never raises."""
        for name, do in self.rounds.items():
            if not self._leads():
                return
            try:
                do(self._clock())
            except (BookError, WaitError) as error:
                self._say(name, str(error))
            except Exception as error:  # one errand that fails in a way nobody thought of must not end the others
                log.error("%s failed", name, exc_info=error)
            else:
                if self._failed.pop(name, None) is not None:
                    log.info("%s goes on", name)

    def _say(self, name: str, why: str) -> None:
        if self._failed.get(name) != why:
            self._failed[name] = why
            log.warning("%s: %s", name, why)
