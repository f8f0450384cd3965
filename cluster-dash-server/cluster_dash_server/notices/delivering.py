"""Delivery: empties the outbox, each receiver in a thread of its own, so that none waits for another.

At least once: a notice is marked when its receiver has said yes, so it comes twice where the server dies in between.
Of several replicas one tells a receiver at a time: who sends has claimed it before each notice.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo

from cluster_dash_server.notices.notice import Forgetful, Kind, Notice, Notifier, NotifyError, Outbox, Outcome, Waiting
from cluster_dash_server.notices.receivers import PERSON, SEVERITIES, Receiver

log = logging.getLogger(__name__)

KEPT_SECONDS = 86_400.0
"""For so long a notice is tried."""
PERISHED_SECONDS: Mapping[Kind, float] = {"free": 600.0, "digest": 21_600.0}
"""After so long some are not even tried: what was free is had by others, a digest is of another morning."""
FIRST_SECONDS, MOST_SECONDS = 10.0, 900.0
"""How long a receiver rests after its first failure, doubled with each, and at most; each time × (1 … 1.5)."""
ROUND_SECONDS = 1.0
REPEAT_SECONDS = 60.0
"""Forgetful receivers hear so often which alerts go on."""
AT_ONCE = 20
"""Notices that one receiver gets in one go."""
MOST_DUE = 1000
STOP_SECONDS = 15.0
"""How long the end of the server waits for what is under way."""
TROUBLE_SECONDS = 60.0
"""An outbox that could not be written counts as well again after so long: that it can be read proves little."""
BUSY_SECONDS = 15.0
"""When a receiver is busy for longer than a round, what else waits for it is looked at again after so long."""
HOUR_SECONDS = 3600.0
SET_BACK_SECONDS = 1.0
"""A clock that goes back by less is only kept in time."""
CLAIM_SECONDS = 90.0
"""For so long a receiver is left to the replica that began to tell it something: longer than any try takes."""


@dataclass(slots=True)
class _Way:
    """What is known of the way to one receiver; only its own thread changes it, and only one runs at a time."""

    per_hour: int
    quiet: Callable[[Notice, float], float | None]
    failures: int = 0
    rests_until: float = 0.0
    why: str = ""
    tokens: float = field(init=False)
    counted_at: float | None = None
    busy: bool = False

    def __post_init__(self) -> None:
        self.tokens = float(self.per_hour)

    def turn(self, now: float) -> float | None:
        """Take a turn; returns when the next one is to be had (Unix s) where there is none now."""
        if self.counted_at is not None:
            passed = max(now - self.counted_at, 0.0)
            self.tokens = min(self.per_hour, self.tokens + passed * self.per_hour / HOUR_SECONDS)
        self.counted_at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return None
        return now + (1 - self.tokens) * HOUR_SECONDS / self.per_hour


def quiet_until(receiver: Receiver, zone: tzinfo, notice: Notice, now: float) -> float | None:
    """Return when the quiet hours end in which a notice has to wait (Unix s), None where it has not."""
    quiet = receiver.quiet
    grave = SEVERITIES.index(notice.severity) >= SEVERITIES.index(receiver.quiet_severity)
    if quiet is None or grave or notice.kind == "test":
        return None
    begin, end = quiet
    here = datetime.fromtimestamp(now, zone)
    clock = here.time()
    within = begin <= clock < end if begin <= end else clock >= begin or clock < end
    if not within:
        return None
    day = here.date() + timedelta(days=0 if clock < end else 1)
    return datetime.combine(day, end, zone).timestamp()


def in_a_thread(work: Callable[[], None]) -> None:
    """Begin some work and return."""
    threading.Thread(target=work, name="notices", daemon=True).start()


class Delivery:
    """Empties an outbox.

    Args:
        outbox: what waits.
        notifiers: the receivers of the settings, by name.
        receivers: what the settings say of each.
        person: makes the receiver of one person of their name, `mailto:…`; None where none can be made.
        zone: in which quiet hours are meant.
        clock: Unix s.
        begin: begins the work for one receiver.
        jitter: gives a number from 0 to 1.
        heartbeat: what tells somebody outside that this goes on; called by each round.
    """

    def __init__(
        self,
        outbox: Outbox,
        notifiers: Mapping[str, Notifier],
        receivers: tuple[Receiver, ...] = (),
        *,
        person: Callable[[str], Notifier | None] = lambda _: None,
        zone: tzinfo,
        clock: Callable[[], float] = time.time,
        begin: Callable[[Callable[[], None]], None] = in_a_thread,
        jitter: Callable[[], float] = random.random,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self._outbox = outbox
        self._notifiers = dict(notifiers)
        self._receivers = {receiver.name: receiver for receiver in receivers}
        self._person = person
        self._zone = zone
        self._clock = clock
        self._begin = begin
        self._jitter = jitter
        self._heartbeat = heartbeat
        self._forgetful = {name: each for name, each in self._notifiers.items() if isinstance(each, Forgetful)}
        self._repeated_at = self._troubled_at = self._round_at = float("-inf")
        self._ways: dict[str, _Way] = {}
        self._taken: set[int] = set()  # rows that a receiver has, and the outbox does not know of yet
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._wake = threading.Event()
        self._stops = threading.Event()
        self.trouble: str | None = None
        """Why the outbox cannot be read or written now; None: it can."""

    def run(self) -> None:
        """Deliver until told to stop."""
        while not self._stops.is_set():
            self.round()
            self._wake.wait(ROUND_SECONDS)
            self._wake.clear()

    def stop(self) -> None:
        """Begin nothing more, and wait for what is under way: what is taken now is to be noted."""
        self._stops.set()
        self._wake.set()
        with self._idle:
            self._idle.wait_for(lambda: not any(way.busy for way in self._ways.values()), STOP_SECONDS)

    def round(self) -> None:
        """Begin to deliver what is due; never raises."""
        now = self._clock()
        try:
            self._heed_the_clock(now)
            self._mark_taken()  # where it cannot be noted, nothing is begun: it would be told twice
            waiting: dict[str, list[Waiting]] = {}
            for each in self._outbox.due(now, MOST_DUE):
                waiting.setdefault(each.receiver, []).append(each)
            for name, rows in waiting.items():
                with self._lock:
                    way = self._way(name)
                    if way.busy or self._stops.is_set():
                        continue
                    way.busy = True
                if len(rows) > AT_ONCE and len(waiting) > 1:
                    # where one receiver has much to take, the others' still come to the front
                    self._outbox.postponed([each.row for each in rows[AT_ONCE:]], now + BUSY_SECONDS)
                self._begin(lambda way=way, rows=rows[:AT_ONCE]: self._work(way, rows))  # type: ignore[misc]
            if not 0 <= now - self._repeated_at < REPEAT_SECONDS:
                self._repeated_at = now
                for name, forgetful in self._forgetful.items():
                    self._repeat(name, forgetful)
            if not 0 <= now - self._troubled_at < TROUBLE_SECONDS:
                self._say(None)
        except Exception as error:  # whatever keeps notices: it is said, and tried again
            self._say(str(error) or type(error).__name__)
            return
        self._heartbeat()

    def _heed_the_clock(self, now: float) -> None:
        """Where the clock was set back, let nothing wait for that much longer."""
        seconds = self._round_at - now
        if SET_BACK_SECONDS < seconds < math.inf:
            log.warning("notices: the clock was set back by %.0f s", seconds)
            self._outbox.set_back(seconds)
            with self._lock:
                for way in self._ways.values():
                    way.rests_until -= seconds
        self._round_at = now

    def _repeat(self, name: str, forgetful: Forgetful) -> None:
        with self._lock:
            way = self._way(name)
            if way.busy or self._stops.is_set() or self._clock() < way.rests_until:
                return  # a minute later is early enough
            way.busy = True

        def work() -> None:
            try:
                forgetful.repeat(self._outbox.told(name))
            except Exception as error:  # what it is told next will say so, too
                log.info("notices: %s was not told what goes on: %s", name, error)
            finally:
                self._free(way)

        self._begin(work)

    def _free(self, way: _Way) -> None:
        with self._idle:
            way.busy = False
            self._idle.notify_all()

    def _say(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            if trouble is None:
                log.info("notices: they can be read again")
            else:
                log.error("notices cannot be read or written: %s", trouble)
        self.trouble = trouble

    def _way(self, name: str) -> _Way:
        way = self._ways.get(name)
        if way is None:
            receiver = self._receivers.get(name)
            if receiver is None:
                way = _Way(per_hour=600, quiet=lambda notice, now: None)
            else:
                way = _Way(
                    per_hour=receiver.per_hour,
                    quiet=lambda notice, now: quiet_until(receiver, self._zone, notice, now),
                )
            self._ways[name] = way
        return way

    def _work(self, way: _Way, rows: list[Waiting]) -> None:
        try:
            for each in rows:
                if self._stops.is_set() or not self._outbox.claim(each, CLAIM_SECONDS):
                    break
                self._deliver(way, each)
            if not self._taken:  # else it is left to this replica until it has noted them
                self._outbox.release(rows[0].receiver)
        except Exception as error:  # whatever keeps notices; what was taken is in mind, and noted by a later round
            self._troubled_at = self._clock()
            self._say(str(error) or type(error).__name__)
        finally:
            self._free(way)
            if len(rows) == AT_ONCE:
                self._wake.set()

    def _deliver(self, way: _Way, each: Waiting) -> None:
        now = self._clock()
        if now - each.made_at > PERISHED_SECONDS.get(each.notice.kind, math.inf):
            self._fail(each, now, way.why or "it could not be sent in time", None)
            return
        if now < way.rests_until and each.notice.kind != "test":  # who tests may just have mended it
            if now - each.made_at > KEPT_SECONDS:
                self._fail(each, now, way.why, None)
            else:
                self._outbox.postponed([each.row], way.rests_until)
            return
        later = way.quiet(each.notice, now) or way.turn(now)
        if later is not None:
            self._outbox.postponed([each.row], later)
            return
        try:
            self._notifier(each.receiver).send(each.notice)
        except NotifyError as error:
            self._not_taken(way, each, self._clock(), error)
            return
        except Exception as error:  # a notifier's slip: said like any other trouble of this receiver
            log.exception("notices: a slip in telling %s", each.receiver)
            self._not_taken(way, each, self._clock(), NotifyError(f"a slip of this server: {type(error).__name__}"))
            return
        if way.failures:
            log.info("notices: %s takes them again", each.receiver)
        way.failures, way.rests_until = 0, 0.0
        with self._lock:
            self._taken.add(each.row)
        self._mark_taken()

    def _notifier(self, name: str) -> Notifier:
        found = self._notifiers.get(name)
        if found is None and name.startswith(PERSON):
            found = self._person(name)
        if found is None:
            raise NotifyError("there is no such receiver in the settings")
        return found

    def _not_taken(self, way: _Way, each: Waiting, now: float, error: NotifyError) -> None:
        if error.is_final:
            self._fail(each, now, str(error), None)
            return
        way.failures += 1
        rests = min(FIRST_SECONDS * 2 ** min(way.failures - 1, 10), MOST_SECONDS)
        rests = max(rests, error.retry_after_seconds or 0.0) * (1 + self._jitter() / 2)
        way.why = str(error)
        way.rests_until = now + rests
        is_over = now - each.made_at > KEPT_SECONDS
        if way.failures == 1:
            log.warning("notices: %s does not take them: %s", each.receiver, error)
        self._fail(each, now, str(error), None if is_over else way.rests_until)

    def put(self, receivers: Sequence[str], notice: Notice) -> None:
        """Put a notice into the outbox and begin to deliver it now."""
        self._outbox.put([(receiver, notice) for receiver in receivers], self._clock())
        self._wake.set()

    def outcome(self, receiver: str, key: str) -> Outcome | None:
        """Return what became of the last try of a notice, by any replica; None: it was not tried yet."""
        return self._outbox.outcome(receiver, key)

    def _fail(self, each: Waiting, now: float, why: str, next_try_at: float | None) -> None:
        if next_try_at is None:
            log.error("notices: given up for %s: %s: %s", each.receiver, each.notice.title, why)
        self._outbox.failed(each.row, now, why, next_try_at)

    def _mark_taken(self) -> None:
        """Note what receivers have; what cannot be noted now is kept in mind, and not sent again."""
        with self._lock:
            for row in tuple(self._taken):
                self._outbox.sent(row, self._clock())
                self._taken.discard(row)
