"""One of several replicas leads: a row in PostgreSQL that is renewed each second, and a fence that only ever rises.

Who holds the row evaluates alerts and does what is to be done once. The fence is checked in the transaction that
writes: a replica that slept and wakes believes to lead for a moment, and its writes are refused all the same.
"""

import logging
import threading
import time
from collections.abc import Callable

from cluster_dash_server.postgresql import Database, PostgresqlError, Statements

log = logging.getLogger(__name__)

STEPS = (
    """
    CREATE TABLE lease (name TEXT PRIMARY KEY, holder TEXT NOT NULL, token BIGINT NOT NULL,
      expires_at TIMESTAMPTZ NOT NULL);
    """,
)
EVALUATOR = "evaluator"
SECONDS = 5.0
"""How long a replica that says nothing more still leads."""
RENEW_SECONDS = 1.0
TRY_SECONDS = 0.5
"""How often another one tries to take its place."""
STUCK_SECONDS = 30.0
"""Who leads and ends no round for so long, whether its rounds fail or hang, lets another one try."""
REST_SECONDS = 30.0
"""For so long it does not lead again, even if nobody else does."""

_TAKE = (
    "INSERT INTO lease AS held (name, holder, token, expires_at) "
    "VALUES (?, ?, 1, clock_timestamp() + make_interval(secs => ?)) "
    "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at, "
    "token = held.token + CASE WHEN held.holder = excluded.holder AND held.expires_at > clock_timestamp() "
    "THEN 0 ELSE 1 END "
    "WHERE held.holder = excluded.holder OR held.expires_at <= clock_timestamp() RETURNING token"
)


def take(db: Statements, name: str, holder: str, seconds: float) -> int | None:
    """Take a lease, or renew it; return its fence, None where another holds it."""
    row = db.execute(_TAKE, (name, holder, seconds)).fetchone()
    return None if row is None else int(row[0])


def give_up(db: Statements, name: str, holder: str) -> None:
    """Let others take a lease now."""
    db.execute("UPDATE lease SET expires_at = clock_timestamp() WHERE name = ? AND holder = ?", (name, holder))


def is_fence(db: Statements, name: str, fence: int) -> bool:
    """Say whether a fence counts; until the transaction ends nobody raises it."""
    row = db.execute("SELECT token FROM lease WHERE name = ? FOR SHARE", (name,)).fetchone()
    return row is not None and int(row[0]) == fence


def raise_fence(db: Statements, name: str) -> None:
    """Have who holds a lease begin anew: what they write is refused until they have heard of the new fence."""
    db.execute("UPDATE lease SET token = token + 1 WHERE name = ?", (name,))


class Lease:
    """Takes a lease and renews it, in a thread of its own.

    Args:
        database: where it is; of its own, so that it waits for no statement of others.
        name: what is led.
        holder: what this replica is called: as no other.
        clock: s from any beginning; goes on while the machine sleeps.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        holder: str,
        *,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._database = database
        self._name = name
        self._holder = holder
        self._clock = clock
        self._held: tuple[int, float] | None = None  # the fence, and until when it surely is ours
        self._well_at = float("-inf")  # when a round was ended, or this replica began to lead
        self._rests_until = float("-inf")
        self._stops = threading.Event()
        self._thread: threading.Thread | None = None
        self.when_taken: list[Callable[[], None]] = []
        """What is called when this replica begins to lead, or has to begin anew."""
        database.expects("lease", STEPS)

    def fence(self) -> int | None:
        """Return the fence to evaluate with; None: another replica leads, or nobody knows who does."""
        held = self._held
        return held[0] if held is not None and self._clock() < held[1] else None

    def leads(self) -> bool:
        """Say whether this replica leads."""
        return self.fence() is not None

    def well(self) -> None:
        """Note that a round of what is led was done and kept."""
        self._well_at = self._clock()

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; another replica may lead at once."""
        self._stops.set()
        if self._thread is not None:
            self._thread.join()
        self._give_up()
        self._database.close()

    def _give_up(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            try:
                with self._database.reading() as db:
                    give_up(db, self._name, self._holder)
            except PostgresqlError as error:
                log.info("%s: the lease runs out by itself: %s", self._name, error)

    def _run(self) -> None:
        while not self._stops.is_set():
            try:
                self.renew()
            except Exception:  # whatever it is: somebody must lead as long as servers live
                log.exception("a fault in renewing the lease")
            self._stops.wait(RENEW_SECONDS if self.leads() else TRY_SECONDS)

    def renew(self) -> None:
        """Take the lease or renew it, once, or give it up where nothing comes of leading; never raises."""
        asked_at = self._clock()
        if asked_at < self._rests_until:
            return
        if not self.leads():
            self._well_at = asked_at
        elif asked_at - self._well_at >= STUCK_SECONDS:
            log.error("%s: no round ended for %.0f s: another replica may lead", self._name, asked_at - self._well_at)
            self._rests_until = asked_at + REST_SECONDS
            self._give_up()
            return
        try:
            with self._database.reading() as db:
                fence = take(db, self._name, self._holder, SECONDS)
        except PostgresqlError:  # it may have been renewed all the same: it ends by the clock
            return
        before, self._held = self._held, None if fence is None else (fence, asked_at + SECONDS)
        if fence is not None and (before is None or before[0] != fence):
            log.info("%s: this replica leads (fence %d)", self._name, fence)
            for call in self.when_taken:
                call()
        elif fence is None and before is not None:
            log.warning("%s: another replica leads", self._name)
