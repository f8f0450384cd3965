"""What operators do with alerts and silences; each leaves a line in the log that says who did it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import tzinfo

from cluster_dash_server.access.viewers import current
from cluster_dash_server.alerts.book import Book, Silence
from cluster_dash_server.alerts.routing import silence_of
from cluster_dash_server.snapshot import printable
from cluster_dash_server.web.parameters import QueryError, digits, text_of, until

log = logging.getLogger(__name__)

MOST_TEXT, MOST_FILTER = 500, 2_000
MOST_SILENT_DAYS = 366


class NoSuch(Exception):
    """What is to be changed is not there (any more); the text says what."""


class Operators:
    """What those do who may operate, for the viewer of the request at hand.

    Args:
        book: where alerts are kept.
        clock: Unix s.
        zone: in which days begin.
    """

    def __init__(self, book: Book, clock: Callable[[], float], zone: tzinfo) -> None:
        self._book = book
        self._clock = clock
        self._zone = zone

    def acknowledge(self, alert: str, note: str) -> None:
        """Note that somebody sees to an alert.

        Raises:
            NoSuch: it does not go on.
            BookError: it cannot be written.
        """
        if not self._book.acknowledge(alert, _who(), self._clock(), note):
            raise NoSuch(f"alert: {printable(alert, 64)} does not go on (any more)")
        log.info("audit: alert %s acknowledged by %s", printable(alert, 64), _who())

    def withdraw(self, alert: str) -> None:
        """Take back that somebody sees to it.

        Raises:
            NoSuch: it does not go on, or nobody sees to it.
            BookError: it cannot be written.
        """
        if not self._book.withdraw(alert, _who(), self._clock()):
            raise NoSuch(f"alert: {printable(alert, 64)} does not go on, or nobody sees to it")
        log.info("audit: acknowledgement of alert %s taken back by %s", printable(alert, 64), _who())

    def silence(self, said: Mapping[str, object]) -> Silence:
        """Begin a silence.

        Args:
            said: what was asked for: `filter`, `reason`, and `until` (see `when.until`; four hours from now).

        Raises:
            QueryError: something in it cannot be understood.
            BookError: it cannot be written.
        """
        now = self._clock()
        text, reason = text_of(said, "filter", MOST_FILTER), text_of(said, "reason", MOST_TEXT)
        if not text:
            raise QueryError("filter: says nothing; expected such as rule:host-silent host:gpu[01-03]")
        if not reason:
            raise QueryError("reason: says nothing; the next one on duty will want to know")
        problems = silence_of(text).problems
        if problems:
            raise QueryError(f"filter: {problems[0]}")
        ends_at = until(text_of(said, "until", 64) or "4h", now, self._zone)
        if not now < ends_at <= now + MOST_SILENT_DAYS * 86_400:
            raise QueryError(f"until: expected a moment from now on, within {MOST_SILENT_DAYS} days")
        made = Silence(id=None, filter=text, by=_who(), reason=reason, begins_at=now, ends_at=ends_at)
        made = replace(made, id=self._book.silence(made))
        log.info("audit: silence %s of %s by %s", made.id, printable(text, 200), _who())
        return made

    def end_silence(self, text: str) -> None:
        """End a silence before its time.

        Raises:
            NoSuch: none that holds has this number.
            BookError: it cannot be written.
        """
        silence = digits(text, 15)
        if silence is None or not self._book.end_silence(silence, _who(), self._clock()):
            raise NoSuch(f"silence: none that holds is {printable(text, 16)}")
        log.info("audit: silence %d ended by %s", silence, _who())


def _who() -> str:
    """Name who acts: where the site is open, only who sits at the server's machine may."""
    return printable(current.get().name or "who sits at the server", 64)
