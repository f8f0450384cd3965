"""The way to one sender: a slot, a thread, and what each answer means for the next try."""

import logging
import random
import re
import threading
from collections import deque
from collections.abc import Callable

from cluster_dash_mole.mole import Clock, Row, Sender, SendError, describe
from cluster_dash_mole.snapshot import Outcome, Snapshot, clean

log = logging.getLogger(__name__)

_NUMBERS = re.compile(r"\b[0-9a-f]{12}\b")  # of an error in a server's log: another one is the same trouble


class Manners:
    """What a row of the contract's table of answers means for the next try, and what the log says of it.

    Args:
        name: of the sender.
        jitter: gives numbers from 0 to 1, so that moles that failed together do not come back together.
    """

    REMIND_SECONDS = 3600.0

    def __init__(self, name: str, *, clock: Clock, jitter: Callable[[], float] = random.random) -> None:
        self.outcome: Outcome | None = None  # of the last try
        self.closed_until = float("-inf")  # not before: asked by the server, or as we are not known there
        self._name = name
        self._clock = clock
        self._jitter = jitter
        self._stranger_seconds = 60.0
        self._said: tuple[str, float] | None = None
        self._failing_since = 0.0

    def success(self, seconds: float) -> None:
        """Learn of a try that took so long and was well."""
        self.outcome = Outcome(ok=True, seconds=round(seconds, 6), error=None)
        self._stranger_seconds = 60.0
        if self._said:
            log.info("%s: works again after %.0f s", self._name, self._clock.monotonic() - self._failing_since)
            self._said = None

    def failure(self, error: Exception, seconds: float, more: str = "") -> "Row":
        """Learn of a try that failed; return the row that applies. `more` is for the log and the snapshot."""
        now = self._clock.monotonic()
        text = clean(describe(error))
        self.outcome = Outcome(ok=False, seconds=round(seconds, 6), error=text)
        row = row_of(error)
        if row is Row.WHO_ARE_YOU:
            self.closed_until = now + self._stranger_seconds
            self._stranger_seconds = min(900.0, 2 * self._stranger_seconds)
        elif row is Row.NOT_NOW:
            self.closed_until = now + self.wait(error)
        self._say(row, _NUMBERS.sub("…", str(error)), text + more, now)
        return row

    def wait(self, error: Exception) -> float:
        """Return the seconds to wait where somebody asked for it: once to twice as long."""
        asked = error.wait if isinstance(error, SendError) else 0.0
        return max(1.0, asked) * (1 + self._jitter())

    def _say(self, row: "Row", kind: str, text: str, now: float) -> None:
        if self._said is None:
            self._failing_since = now
        elif self._said[0] == kind and now - self._said[1] < self.REMIND_SECONDS:
            return
        self._said = (kind, now)
        level = logging.WARNING if row in (Row.TROUBLE, Row.NOT_NOW) else logging.ERROR
        log.log(level, "%s: %s", self._name, text)


def row_of(error: Exception) -> Row:
    """Return the row of the contract that an error of a sender means: a fault of the sender itself is trouble."""
    return error.row if isinstance(error, SendError) else Row.TROUBLE


class Lane:
    """The way to one sender: a slot for the newest snapshot, and a thread that sends what lies in it.

    So a slow or hanging sender delays neither the loop nor the others, and never works off a queue of old snapshots.
    """

    SET_ASIDE = 20

    def __init__(
        self,
        sender: Sender,
        *,
        interval: float,
        clock: Clock,
        min_interval: float = 0.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = sender.name
        self.set_aside: deque[Snapshot] = deque(maxlen=self.SET_ASIDE)
        self.refused = 0
        self.finished: Snapshot | None = None  # the last one that was taken or set aside, read by the loop
        self._sender = sender
        self._clock = clock
        self._manners = Manners(sender.name, clock=clock, jitter=jitter)
        # half an interval of grace: a min_interval that equals the interval must not drop every second snapshot
        self._min_interval = min_interval - interval / 2
        self._retry_seconds = min(60.0, 2 * interval)
        self._changed = threading.Condition()
        self._slot: Snapshot | None = None
        self._taken_at = float("-inf")  # when a snapshot was last put into the slot
        self._failed: Snapshot | None = None  # tried already; a newer one need not wait for its retry
        self._retry_at = float("-inf")

    @property
    def outcome(self) -> Outcome | None:
        """How the last try went, read by the loop."""
        return self._manners.outcome

    def offer(self, snapshot: Snapshot) -> None:
        """Put the snapshot into the slot, in place of one that still lies there."""
        now = self._clock.monotonic()
        with self._changed:
            if now - self._taken_at < self._min_interval:
                return
            self._slot, self._taken_at = snapshot, now
            self._changed.notify()

    def start(self) -> None:
        """Send from now on, in a thread that ends with the process."""
        threading.Thread(target=self._run, name=f"send-{self.name}", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while (wait := self.due_in()) != 0:
                    self._changed.wait(wait)
            self.step()

    def due_in(self) -> float | None:
        """Return the seconds until there is something to send, None while the slot is empty."""
        if self._slot is None:
            return None
        closed_until = self._manners.closed_until
        due = max(closed_until, self._retry_at) if self._slot is self._failed else closed_until
        return max(0.0, due - self._clock.monotonic())

    def step(self) -> None:
        """Send the snapshot in the slot, if it is due."""
        with self._changed:
            snapshot = self._slot
            if snapshot is None or self.due_in() != 0:
                return
        started = self._clock.monotonic()
        try:
            self._sender.send(snapshot)
        except Exception as error:  # a fault of one sender must stop neither its lane nor the others
            self._failure(snapshot, error, self._clock.monotonic() - started)
        else:
            self._manners.success(self._clock.monotonic() - started)
            self._done(snapshot)

    def _done(self, snapshot: Snapshot) -> None:
        self.finished = snapshot
        with self._changed:
            if self._slot is snapshot:
                self._slot = None

    def _failure(self, snapshot: Snapshot, error: Exception, seconds: float) -> None:
        never = row_of(error) is Row.NEVER
        self.refused += never
        row = self._manners.failure(error, seconds, f"; snapshots set aside so far: {self.refused}" if never else "")
        if never:
            self.set_aside.append(snapshot)
            self._done(snapshot)
        elif row is Row.TROUBLE:
            self._failed, self._retry_at = snapshot, self._clock.monotonic() + self._retry_seconds
