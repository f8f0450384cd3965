"""One replica's part in the shared live view: what it puts, what it takes over, and how far it has come.

A post makes no round trip: it changes the replica's own `Cluster`, and a thread looks several times a second for what
has changed there, puts it, and takes over what others have put.
"""

import atexit
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster_dash_server.cluster import Cluster, KnownHost
from cluster_dash_server.history.settled import SETTLED_SECONDS
from cluster_dash_server.inflate import InflateError, unpack
from cluster_dash_server.sharing import rows
from cluster_dash_server.sharing.clock import LATE_SECONDS, EngineClock
from cluster_dash_server.sharing.engine import MOST_OFFERS, Away, Change, Engine, Offer, Order, is_newer
from cluster_dash_server.sharing.settled import GROUPS, OF_SETTLED, SharedSettled, from_bytes, life_of, to_bytes
from cluster_dash_server.slurm import Slurm, Told
from cluster_dash_server.snapshot import Json, loads, printable

log = logging.getLogger(__name__)

OF_SLURM, OF_ERRAND = "slurm/", "errand/"
"""How keys begin that are no names of hosts, which hold no slash."""
FORGOTTEN_SECONDS = 90 * 86_400.0
"""For so long a host stays forgotten though a replica comes back that was away and knows it."""
DEPARTED_SECONDS, ERRAND_SECONDS = 86_400.0, 3600.0
SETTLED_A_TICK = 3
"""Rows of what is settled that a tick puts: it comes in many small parts and of each group of hosts all is told again,
so each is told every four seconds at most, and no tick takes long."""
TAKEN_OVER_SECONDS = 300.0
"""A replica that has told nothing new of a group of hosts for so long may have ended: another one tells it."""
SWEEP_SECONDS = 10.0
WARN_SECONDS = 60.0
AT_ONCE = 16
"""Hosts that are taken over at a time: with hundreds of new ones beside the old, Python would look for garbage."""
KEPT_MARKS = 240


class Gone(NamedTuple):
    """A row without a host: since when (Unix s), and whether somebody forgot it or it left by itself."""

    at: float
    is_forgotten: bool


class Errand(NamedTuple):
    """What all replicas are to do: since when (Unix s), and with what."""

    at: float
    name: str
    text: str


class Mark(NamedTuple):
    """Up to which version the live view knew all rows when it had changed so often."""

    changes: int
    epoch: str
    version: int


class Versions(NamedTuple):
    """What viewers' versions are told by.

    Attributes:
        mark: what a view that was looked at holds.
        of: the version of each host's row.
        gone: the version by which each host went.
        whole_from: the oldest version of which all that went since is known.
    """

    mark: Mark
    of: Mapping[str, int]
    gone: Mapping[str, int]
    whole_from: int


def order_of(known: KnownHost) -> Order:
    """Return by what the newest of a host is known."""
    seen = known.seen
    return Order(seen.boot_id or "", seen.seq, seen.received_at, known.edition)


def pause(took_seconds: float, tick_seconds: float) -> float:
    """Return how long to wait after a tick: they begin at an even pace, and leave others half of the time."""
    return max(tick_seconds - took_seconds, min(took_seconds, tick_seconds))


def _is_newer_here(here: KnownHost, there: KnownHost) -> bool:
    return is_newer(order_of(here), order_of(there))


@dataclass(slots=True, kw_only=True)
class _SlurmRow:
    """What was told of a cluster of Slurm, as it is at the engine."""

    told: Told
    edition: int


class Replica:
    """See the module; `tick` is called by one thread, the rest by any.

    Args:
        engine: keeps what is shared.
        cluster: this replica's live view.
        slurm: this replica's view of Slurm.
        clock: the one of all replicas.
        tick_seconds: from one exchange to the next.
        grace_seconds: for how long posts are taken while the engine is away.
        settled: what is settled in history, where that is shared, too.

    Attributes:
        forgets: are told of hosts that another replica has forgotten.
        errands: what another replica may wish to be done here, by name; called in a thread of their own.
        trouble: why the engine does not answer; None: it does.
    """

    def __init__(
        self,
        engine: Engine,
        cluster: Cluster,
        slurm: Slurm,
        clock: EngineClock,
        *,
        tick_seconds: float,
        grace_seconds: float,
        settled: SharedSettled | None = None,
    ) -> None:
        self.trouble: str | None = None
        self.forgets: list[Callable[[Sequence[str]], None]] = []
        self.errands: dict[str, Callable[[str], object]] = {}
        self._engine = engine
        self._settled = settled or SharedSettled(clock)
        self._cluster = cluster
        self._slurm = slurm
        self.clock = clock
        self._tick_seconds = tick_seconds
        self._grace_seconds = grace_seconds
        self._epoch, self._since, self._whole_from = "", 0, 0
        self._orders: dict[str, Order] = {}
        self._versions: dict[str, int] = {}
        self._gone: dict[str, Gone] = {}
        self._gone_versions: dict[str, int] = {}
        self._slurm_rows: dict[str, _SlurmRow] = {}
        self._offered_slurm: dict[str, _SlurmRow] = {}
        self._placed: frozenset[str] = frozenset()
        self._errands: dict[str, Errand] = {}  # this replica's own, and those that it did
        self._ephemeral: set[str] = set()
        self._due: dict[str, None] = {}
        self._looked_at_change = 0
        self._seen_forgets = 0
        self._swept_at = self._warned_at = float("-inf")
        self._marks: deque[Mark] = deque(maxlen=KEPT_MARKS)
        self._obeys = threading.local()
        self._stops = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def refusal(self) -> str | None:
        """Why posts are not taken; None: they are."""
        age_seconds = self.clock.age_seconds
        if age_seconds <= self._grace_seconds:
            return None
        return f"live view: what replicas share has been away for {age_seconds:.0f} s: try again later"

    @property
    def notice(self) -> str | None:
        """What people are told of the live view's age; None: it is not late."""
        age_seconds = self.clock.age_seconds
        return None if age_seconds <= LATE_SECONDS else f"Live view {age_seconds:.0f} s old"

    # ------------------------------------------------------------------------------------------------- the thread

    def start(self) -> None:
        """Take over what there is, then tick in a thread of its own from now on."""
        self._tick_safely()
        atexit.register(self.stop)
        self._thread = threading.Thread(target=self._run, name="sharing", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Put what waits, and end."""
        atexit.unregister(self.stop)
        self._stops.set()
        if self._thread is not None:
            self._thread.join()
        self._tick_safely()
        self._engine.close()

    def _run(self) -> None:
        wait_seconds = self._tick_seconds
        while not self._stops.wait(wait_seconds):
            began = time.monotonic()
            self._tick_safely()
            wait_seconds = pause(time.monotonic() - began, self._tick_seconds)

    def _tick_safely(self) -> None:
        try:
            self.tick()
        except Away as error:
            self._say(str(error))
        except Exception:  # whatever it is: the view must not stand still for good while the server lives
            log.exception("a fault in sharing the live view")
            self._say("a fault of this server: see its log")
        else:
            self._say(None)

    def _say(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:
            log.error("the live view is not shared: %s", trouble)
        elif trouble is None and self.trouble is not None:
            log.info("the live view is shared again")
        self.trouble = trouble

    # --------------------------------------------------------------------------------------------------- a tick

    def tick(self) -> None:
        """Put what has changed here, and take over what has changed elsewhere.

        Raises:
            Away: the engine does not answer; what was to be put waits.
        """
        self._look_around()
        while True:
            offers = list(self._offers())
            asked_at = self.clock()
            answer = self._engine.exchange(self._epoch, self._since, offers)
            self.clock.hear(answer.at, asked_at)
            if answer.epoch != self._epoch:
                self._begin(answer.epoch)
                continue
            self._whole_from = answer.whole_from
            self._adopt(answer.changes)
            for offer, version in zip(offers, answer.taken, strict=False):  # none is taken where there is more
                self._note(offer, version)
            self._since = answer.version
            self._marks.append(Mark(self._cluster.changes, self._epoch, self._since))
            if answer.is_all and not self._due:
                break
        if self.clock() - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = self.clock()
            self._sweep()

    def _begin(self, epoch: str) -> None:
        """Begin anew with an engine that is in another life, and may have lost anything: offer all that is here."""
        if self._epoch:
            log.warning("what replicas share has begun anew: this one offers what it holds")
        self._epoch, self._since = epoch, 0
        self._orders.clear()
        self._versions.clear()
        self._gone_versions.clear()
        self._slurm_rows.clear()
        self._due = dict.fromkeys((*self._cluster.names(), *self._gone, *self._errands))
        self._settled.tell_all()
        self._marks.clear()
        self._look_at_settled()
        self._look_at_slurm()

    def _look_around(self) -> None:
        """Find what has changed here."""
        change = self._cluster.changes
        self._due.update(dict.fromkeys(self._cluster.changed_since(self._looked_at_change)))
        self._looked_at_change = change
        if self._cluster.forgets != self._seen_forgets:
            self._seen_forgets = self._cluster.forgets
            self._miss(is_forgotten=True)
        self._look_at_settled()
        self._look_at_slurm()

    def _look_at_settled(self) -> None:
        most = GROUPS if self._stops.is_set() else SETTLED_A_TICK
        self._due.update(dict.fromkeys(self._settled.changed(most)))

    def _look_at_slurm(self) -> None:
        for cluster, told in self._slurm.told().items():
            row = self._slurm_rows.get(cluster)
            if row is None or row.told is not told:
                self._due[OF_SLURM + cluster] = None

    def _miss(self, *, is_forgotten: bool) -> None:
        """Note which hosts are not here any more."""
        for name in self._orders.keys() - self._cluster.names() - self._gone.keys():
            if "/" not in name:
                self._gone[name] = Gone(self.clock(), is_forgotten)
                self._due[name] = None

    def _offers(self) -> list[Offer]:
        """Return what is to be put, as much as one exchange takes."""
        offers: list[Offer] = []
        for key in list(self._due):
            offer = self._offer(key)
            if offer is None:
                del self._due[key]
            else:
                offers.append(offer)
                if len(offers) == MOST_OFFERS:
                    break
        return offers

    def _offer(self, key: str) -> Offer | None:
        """Return what to put of a key; None: the engine has that already."""
        if key.startswith(OF_SLURM):
            return self._offer_slurm(key)
        if key.startswith(OF_ERRAND):
            errand = self._errands[key]
            return Offer(key, Order("", None, errand.at, 0), rows.errand_to_bytes(*errand))
        if key.startswith(OF_SETTLED):
            row = self._settled.row(key, self.clock())
            return None if row is None else Offer(key, Order(life_of(key), row.edition, row.at, 0), to_bytes(row))
        for known in self._cluster.known((key,)):
            self._gone.pop(key, None)
            order = order_of(known)
            return None if self._orders.get(key) == order else Offer(key, order, rows.to_bytes(known))
        gone = self._gone.get(key)
        if gone is None:
            return None
        order = Order("", None, gone.at, 0)
        return None if self._orders.get(key) == order else Offer(key, order, rows.gone_to_bytes(*gone))

    def _offer_slurm(self, key: str) -> Offer | None:
        cluster = key.removeprefix(OF_SLURM)
        told, row = self._slurm.told().get(cluster), self._slurm_rows.get(cluster)
        if told is None or (row is not None and row.told is told):
            return None
        is_same = row is not None and row.told.received_at == told.received_at
        edition = row.edition + 1 if is_same and row is not None else 0
        self._offered_slurm[cluster] = _SlurmRow(told=told, edition=edition)
        return Offer(
            key,
            Order("", None, told.received_at, edition),
            rows.slurm_to_bytes(told.host, told.received_at, edition, told.packed),
        )

    def _note(self, offer: Offer, version: int | None) -> None:
        """Note that the engine has what this replica offered, or what is newer (version None), which came before."""
        self._due.pop(offer.key, None)
        if offer.key.startswith(OF_SLURM):
            cluster = offer.key.removeprefix(OF_SLURM)
            row = self._offered_slurm.pop(cluster)
            told = row.told if version is not None else self._slurm.told()[cluster]  # what came may have replaced it
            self._slurm_rows[cluster] = _SlurmRow(told=told, edition=row.edition)
        if version is None:
            return
        self._orders[offer.key] = offer.order
        if offer.key.startswith(OF_SLURM):
            self._stamp_places(version)
        elif "/" not in offer.key:
            self._number(offer.key, version, is_gone=offer.key in self._gone)

    def _number(self, host: str, version: int, *, is_gone: bool) -> None:
        if is_gone:
            self._versions.pop(host, None)
            self._gone_versions[host] = version
        else:
            self._versions[host] = version
            self._gone_versions.pop(host, None)

    def _stamp_places(self, version: int) -> None:
        """Number anew all hosts that are nodes of Slurm, or were: what it says of them may have changed."""
        placed = self._cluster.placed
        for name in placed | self._placed:
            if name not in self._gone_versions:
                self._versions[name] = max(version, self._versions.get(name, 0))
        self._placed = placed

    # -------------------------------------------------------------------------------------------- taking over

    def _adopt(self, changes: Sequence[Change]) -> None:
        """Take over what others have put, in its order."""
        hosts: list[KnownHost] = []
        gone: dict[str, Gone] = {}
        for change in changes:
            try:
                if change.key.startswith(OF_SLURM):
                    self._change_hosts(hosts, gone)
                    hosts, gone = [], {}
                    self._adopt_slurm(change)
                elif change.key.startswith(OF_ERRAND):
                    self._adopt_errand(change)
                elif change.key.startswith(OF_SETTLED):
                    settled = from_bytes(change.row)
                    self._settled.join(settled)
                    self._orders[change.key] = Order(life_of(change.key), settled.edition, settled.at, 0)
                elif (left := rows.gone_from_bytes(change.row)) is not None:
                    gone[change.key] = Gone(*left)
                    self._orders[change.key] = Order("", None, gone[change.key].at, 0)
                    self._number(change.key, change.version, is_gone=True)
                else:
                    known = rows.from_bytes(change.row)
                    hosts.append(known)
                    self._orders[change.key] = order_of(known)
                    self._number(change.key, change.version, is_gone=False)
                    self._gone.pop(change.key, None)
                    self._note_ephemeral(known)
                    if len(hosts) >= AT_ONCE:
                        self._change_hosts(hosts, gone)
                        hosts, gone = [], {}
            except (rows.RowError, ValueError) as error:
                if self.clock() - self._warned_at > WARN_SECONDS:  # replicas of two releases differ in every row
                    self._warned_at = self.clock()
                    log.warning("%s: what another replica shares cannot be read: %s", printable(change.key, 64), error)
        self._change_hosts(hosts, gone)

    def _change_hosts(self, hosts: Sequence[KnownHost], gone: Mapping[str, Gone]) -> None:
        if not hosts and not gone:
            return
        self._gone.update(gone)
        self._cluster.adopt(hosts, {name: left.at for name, left in gone.items()}, _is_newer_here)
        forgotten = [name for name, left in gone.items() if left.is_forgotten]
        for tell in self.forgets if forgotten else ():
            tell(forgotten)

    def _adopt_slurm(self, change: Change) -> None:
        host, received_at, edition, packed = rows.slurm_from_bytes(change.row)
        cluster = change.key.removeprefix(OF_SLURM)
        self._orders[change.key] = Order("", None, received_at, edition)
        told = self._slurm.told().get(cluster)
        if told is None or told.received_at <= received_at:
            try:
                block: Any = loads(unpack(packed))
                self._slurm.offer(host, block, received_at)
            except (InflateError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                raise rows.RowError(f"{type(error).__name__}: {error}") from None
            told = self._slurm.told().get(cluster)
        if told is not None:
            self._slurm_rows[cluster] = _SlurmRow(told=told, edition=edition)
        self._stamp_places(change.version)

    def _note_ephemeral(self, known: KnownHost) -> None:
        if known.seen.ephemeral:
            self._ephemeral.add(known.seen.host)
        else:
            self._ephemeral.discard(known.seen.host)

    # ----------------------------------------------------------------------------------- what is not a host's row

    def tell(self, name: str, text: str) -> None:
        """Have an errand done by all other replicas; one that was told here by another is told no further."""
        if not getattr(self._obeys, "now", False):
            key = OF_ERRAND + secrets.token_hex(8)
            self._errands[key] = Errand(self.clock(), name, text)
            self._due[key] = None

    def _adopt_errand(self, change: Change) -> None:
        errand = Errand(*rows.errand_from_bytes(change.row))
        self._orders[change.key] = Order("", None, errand.at, 0)
        if change.key in self._errands:
            return
        self._errands[change.key] = errand
        do = self.errands.get(errand.name)
        if do is not None:
            threading.Thread(target=self._do, args=(do, errand), name="errand", daemon=True).start()

    def _do(self, do: Callable[[str], object], errand: Errand) -> None:
        self._obeys.now = True
        try:
            do(errand.text)
        except Exception:  # it was done elsewhere, and must not end this thread without a word
            log.exception("%s, which another replica asked for, failed", errand.name)

    def _sweep(self) -> None:
        """Let hosts go that have left the lists by themselves, and forget for good what nobody asks for any more."""
        now = self.clock()
        departed = [name for name in self._ephemeral if self._cluster.host(name, now) is None]
        for name in departed:
            self._ephemeral.discard(name)
            if name not in self._gone:
                self._gone[name] = Gone(now, is_forgotten=False)
                self._due[name] = None
        if departed:
            self._cluster.adopt((), dict.fromkeys(departed, now), _is_newer_here)
        old = [
            name
            for name, left in self._gone.items()
            if now - left.at > (FORGOTTEN_SECONDS if left.is_forgotten else DEPARTED_SECONDS)
        ]
        old += [key for key, errand in self._errands.items() if now - errand.at > ERRAND_SECONDS]
        self._settled.forget_before(now - SETTLED_SECONDS)
        old += self._taken_over(now)
        if old:
            self._engine.drop({key: self._orders[key] for key in old if key in self._orders})
        for key in old:
            self._gone.pop(key, None)
            self._gone_versions.pop(key, None)
            self._errands.pop(key, None)
            self._orders.pop(key, None)

    def _taken_over(self, now: float) -> list[str]:
        """Have what others told be told here who may have ended; return the keys of which that is done."""
        done = []
        for key, order in self._orders.items():
            if key.startswith(OF_SETTLED) and now - order.at > TAKEN_OVER_SECONDS and not self._settled.is_own(key):
                own = self._settled.take_over(key)
                if own is None or (own in self._orders and self._orders[own].at - order.at > TAKEN_OVER_SECONDS):
                    done.append(key)
        return done

    # -------------------------------------------------------------------------------------------------- viewers

    def versions(self, changes: int) -> Versions | None:
        """Return what viewers' versions are told by, of a view that was looked at after so many changes.

        Returns:
            None where no engine has answered yet.
        """
        if not self._epoch:
            return None
        mark = next((mark for mark in reversed(tuple(self._marks)) if mark.changes <= changes), Mark(0, self._epoch, 0))
        return Versions(mark, self._versions, self._gone_versions.copy(), self._whole_from)

    def status(self) -> Json:
        """Tell how sharing does, for the page of this server's state."""
        return {
            "age_seconds": self.clock.age_seconds,
            "trouble": self.trouble,
            "epoch": self._epoch or None,
            "version": self._since,
            "waiting": len(self._due),
            "clock_ahead_seconds": self.clock.ahead_seconds,
        }
