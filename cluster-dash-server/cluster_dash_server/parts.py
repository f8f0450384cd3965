"""The parts of one server, without HTTP: built of the settings, handed to each other, started in their order."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster_dash_server import privacy, restart, viewer_access, when
from cluster_dash_server.access.auth import Auth, Limiter, Passcode, Proxies
from cluster_dash_server.access.tokens import TokenError, TokenFile, Tokens, TokenStore
from cluster_dash_server.access.viewers import Viewer
from cluster_dash_server.alerts import disks
from cluster_dash_server.alerts.commands import obey_maintenance, obey_reload
from cluster_dash_server.alerts.standing import open_titles
from cluster_dash_server.alerts.watch import Watch
from cluster_dash_server.cluster import Cluster, KnownHost
from cluster_dash_server.control import Control, find_data_folder
from cluster_dash_server.errands import Errands, Morning
from cluster_dash_server.events import EventLog
from cluster_dash_server.history.history import History
from cluster_dash_server.history.history import Shared as SharedHistory
from cluster_dash_server.history.settled import OwnSettled
from cluster_dash_server.ingest import Ingest
from cluster_dash_server.ledger.kept import KeptBook
from cluster_dash_server.ledger.settings import shared_of
from cluster_dash_server.ledger.waiting_line import LineFile
from cluster_dash_server.nights import Nights, obey_digest
from cluster_dash_server.notices.receivers import PERSON, minute_of_day
from cluster_dash_server.notices.telling import Telling, without_addresses
from cluster_dash_server.owners import KEY_FILE as LINKS_KEY
from cluster_dash_server.owners import Owners
from cluster_dash_server.prometheus.metrics import PostCounts, XidCounts
from cluster_dash_server.received import Reception
from cluster_dash_server.settings import ConfigError, Settings
from cluster_dash_server.sharing import kinds
from cluster_dash_server.site import read_rules
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen, checker
from cluster_dash_server.store import StoreError
from cluster_dash_server.summary import sentence_of
from cluster_dash_server.waiting import Waiting

if TYPE_CHECKING:
    from cluster_dash_server.ledger.commons import Commons
    from cluster_dash_server.sharing.away import Graceful
    from cluster_dash_server.sharing.clock import EngineClock
    from cluster_dash_server.sharing.replica import Replica
    from cluster_dash_server.sharing.settled import SharedSettled

WELL_SECONDS = 300.0
"""Alerts are evaluated for as long as their last round is no longer ago; then nobody is told that all is well."""
REFUSED_SECONDS = 360.0
"""A post that was refused counts as trouble of this server for so long: moles come again within it."""


class Parts:
    """All parts, each with what it uses, as attributes; what each is for, its own class says.

    Args:
        settings: all of them.
        clock: Unix s.

    Raises:
        ConfigError: a setting that cannot be used.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.zone = when.zone(settings.site.timezone)
        folder = find_data_folder(settings.server.data, os.environ)
        engine_clock, settled = None, None
        if settings.live.is_shared:
            from cluster_dash_server.sharing.clock import EngineClock  # only replicas need it
            from cluster_dash_server.sharing.settled import SharedSettled

            clock = engine_clock = EngineClock(clock)
            settled = SharedSettled(clock)
        self.clock = clock
        # what is for viewers is of the moment for which the live view speaks
        self.view_clock = clock if engine_clock is None else engine_clock.of_view
        self.commons = _commons(settings, folder, clock)
        self._key_of = partial(privacy.kept_key, folder) if self.commons is None else self.commons.keys.key

        # what is kept
        self.book = KeptBook(folder, clock, settings.privacy.user_days, shared_of(settings.ledger))
        self.history = History(
            folder,
            settings=settings.history,
            privacy=settings.privacy,
            clock=clock,
            last_seen=lambda hosts: restart.newest(self.cluster.known(hosts), self.slurm),
            shared=None
            if self.commons is None
            else SharedHistory(
                database=self.commons.database,
                leads=self.book.leads,
                settled=settled or OwnSettled(),
                heard=lambda found: self.events.hear(found),
            ),
        )

        # the live view
        self.events = EventLog(settings.states, ledger=self.history)
        self.xids, self.counts, self.reception = XidCounts(), PostCounts(), Reception(clock)
        self.cluster = Cluster(settings.states, settings.limits.max_hosts, self._witness, settings.limits.kept_bytes)
        self.slurm = Slurm(settings.slurm, self.cluster.place)
        self.slurm.known_by(self.cluster.knows)

        # who may post, and where that goes
        store = TokenFile(folder)
        self.tokens = _tokens(store, clock) if self.commons is None else _shared_tokens(self.commons, clock)
        self.auth = Auth(
            Passcode(settings.ingest.passcode),
            self.tokens,
            proxies=Proxies(settings.server.trusted_proxies),
            limiter=Limiter(settings.limits.failures_per_minute),
            requires_tokens=settings.ingest.require_tokens,
            allows_plaintext=settings.ingest.allow_plaintext_tokens,
        )
        veil, self.veil_for_some = viewer_access.veils(settings, partial(self._key_of, privacy.KEY_FILE))
        self._ingest = Ingest(
            cluster=self.cluster,
            auth=self.auth,
            check=checker(),
            limits=settings.limits,
            clock=clock,
            slurm=self.slurm,
            history=self.history,
            veil=None if veil is None else veil.snapshot,
        )

        # who commands, and other replicas
        self.control = Control(folder, self.cluster, self.events, clock, self.tokens, self.history, self.slurm)
        self.replica = None if engine_clock is None else self._replica(engine_clock, settled)
        if self.replica is not None:
            self.replica.forgets.append(self.events.forget)
            self.replica.errands["forget_user"] = lambda user: self.control.forget_user(user, begin=True)
            self.control.forgets["the live view of other replicas"] = partial(self.replica.tell, "forget_user")

        self._add_who_is_told(folder)
        self.start = Start(self)

    def _add_who_is_told(self, folder: Path) -> None:
        """Build what tells people: of alerts, of free GPUs, of the night; and what commands do to it."""
        settings, clock = self.settings, self.clock
        self.telling = Telling(
            settings.alerts,
            self.book.book,
            site=settings.site.name,
            zone=self.zone,
            clock=clock,
            public_url=settings.server.public_url,
            is_well=self._is_well,
        )
        self.owners = Owners(
            settings.alerts,
            partial(self._key_of, LINKS_KEY),
            self.book.book,
            clock,
            self.zone,
            settings.server.public_url,
        )
        self.watch = Watch(
            self.cluster,
            self.events,
            self.slurm,
            self.book.book,
            lambda: read_rules(settings),
            clock=self.view_clock,
            receivers=settings.alerts.receivers,
            owners=self.owners.route,
            said=self._said,
            fence=self.book.fence,
            done=self.book.well,
            disks_before=lambda now: disks.remembered(self.history.series, now),
            public_url=settings.server.public_url,
        )
        if self.book.shared is not None:
            self.book.shared.lease.when_taken.append(self.watch.wake)
        self.book.ends += [self.telling.stop, self.watch.stop]
        self.waiting = Waiting(
            LineFile(folder) if self.commons is None else self.commons.line,
            allowed=settings.alerts.waiting_to,
            put=self.book.book.put,
            link=self._link,
            trouble=lambda: self.book.trouble,
            most_of_client=settings.alerts.waiting_per_client,
        )
        nights = self.nights(self.cluster, self.history, self.slurm)
        morning = Morning(
            nights,
            put=self.book.book.put,
            receivers=settings.alerts.digest_to,
            minute_of_day=minute_of_day(settings.alerts.digest_at),
            link=self._link,
        )
        self.errands = Errands(
            {
                "tell me when free": lambda now: self.waiting.round(lambda: self.cluster.hosts(now), now),
                "the digest": morning.round,
            },
            clock,
            self.book.leads,
        )
        self.control.forgets["alerts"] = lambda user: self.watch.between_rounds(lambda: self.book.forget_user(user))
        self.control.forgets["who waits"] = self.waiting.forget_user
        self.control.commands |= {
            "summary": lambda _: {"success": True, "text": sentence_of(self.cluster.hosts(self.view_clock()))},
            "digest": lambda wish: obey_digest(nights, wish, clock()),
            "notify-test": self.telling.test,
            "maintenance": lambda wish: obey_maintenance(
                self.book.book, wish, clock(), self.zone, self.cluster.names()
            ),
            "reload": lambda wish: obey_reload(self.watch),
        }

    def _replica(self, clock: "EngineClock", settled: "SharedSettled | None") -> "Replica":
        from cluster_dash_server.sharing.replica import Replica

        live = self.settings.live
        return Replica(
            kinds.engine_of(live),
            self.cluster,
            self.slurm,
            clock,
            tick_seconds=live.tick_seconds,
            grace_seconds=live.grace_seconds,
            settled=settled,
        )

    @property
    def ingest(self) -> "Ingest | Graceful":
        """What takes posts."""
        if self.replica is None and self.commons is None:
            return self._ingest
        from cluster_dash_server.sharing.away import Graceful

        return Graceful(
            self._ingest, lambda: (None if self.replica is None else self.replica.refusal) or self.history.refusal
        )

    def nights(
        self, cluster: Cluster, past: History, slurm: Slurm, viewer: Callable[[], Viewer | None] = lambda: None
    ) -> Nights:
        """Return what tells nights.

        Args:
            cluster: the live view, or what a viewer may know of it; the same goes for the next two.
            past: what is kept.
            slurm: what Slurm says.
            viewer: who is told; None: somebody who may know all names.
        """
        return Nights(
            store=past,
            ledger=past,
            newest=lambda begin, end: self.events.newest(begin=begin, end=end),
            cluster=cluster,
            pictures=slurm.pictures,
            zone=self.zone,
            firing=lambda: open_titles(self.book.book, self.clock(), viewer()),
        )

    def notices(self, *, from_afar: bool) -> tuple[str, ...]:
        """Say what every page is to say on top: what the site wants told, what fails, what is open to whom.

        Args:
            from_afar: whether anybody but this machine has come here yet.
        """
        return tuple(self._notices(from_afar))

    def _notices(self, from_afar: bool) -> Iterator[str]:
        book, history, replica = self.book, self.history, self.replica
        if self.settings.site.notice is not None:
            yield self.settings.site.notice
        if history.loss is not None:
            yield f"A part of history is lost: {history.loss}."
        if self.start.is_done and history.trouble is not None:
            yield f"History is not written: {history.trouble}. The live view goes on."
        if replica is not None and replica.notice is not None:
            yield f"{replica.notice}: {replica.trouble}."
        if book.is_open and book.trouble is not None:
            yield f"Alerts are neither kept nor evaluated now, and nobody is told of any: {book.trouble}."
        else:
            if book.trouble is not None and self.settings.alerts.receivers:
                yield f"No alerts are kept, and nobody is told of any: {book.trouble}."
            if self.watch.trouble is not None:
                yield f"Alerts are not evaluated: {self.watch.trouble}."
            yield from self.telling.notices()
        is_open = self.settings.viewers.mode == "open"
        yield from self.auth.notices(self.clock(), from_afar=from_afar, is_open=is_open)

    def failing(self) -> Iterator[tuple[str, str, bool]]:
        """Tell which parts fail: the name of each, why, and whether another replica would do better."""
        book, history, replica = self.book, self.history, self.replica
        if history.trouble is not None:
            is_one_of_several = replica is not None or book.shared is not None
            is_file = self.settings.history.kind != "remote"
            yield "history", history.trouble, is_file or not (is_one_of_several and history.keeps)
        if replica is not None and replica.trouble is not None:
            yield "live view", replica.trouble, False
        if book.is_open and book.trouble is not None:  # their database is away, from all replicas
            yield "alerts", book.trouble, False
            return
        if self.watch.trouble is not None:
            yield "alerts", self.watch.trouble, True
        if self.telling.trouble is not None:
            yield "notices", self.telling.trouble, False

    def _said(self, now: float) -> Iterator[tuple[str, str | None, str]]:
        """Tell what is wrong with this server itself, for its rules."""
        if self.history.trouble is not None:
            yield "history_not_written", None, self.history.trouble
        refused = self.reception.refused_since(now - REFUSED_SECONDS)
        if refused is not None:
            yield "posts_refused", None, refused
        for name, (_, why) in self.telling.failing().items():
            if not name.startswith(PERSON):
                yield "notices_failing", f"receiver {name}", without_addresses(why)

    def _is_well(self) -> bool:
        """Say whether alerts are evaluated; of replicas the one that does can say so, others cannot."""
        watch = self.watch
        return self.book.leads() and watch.trouble is None and self.clock() - (watch.evaluated_at or 0) < WELL_SECONDS

    def _witness(self, seen: Seen, before: KnownHost | None, after: KnownHost | None) -> None:
        self.events.witness(seen, before, after)
        self.xids.witness(seen, before, after)

    def _link(self, path: str) -> str | None:
        url = self.settings.server.public_url
        return None if url is None else f"{url.rstrip('/')}/{path}"


class Start:
    """What happens once, in the process that serves and before its first answer.

    Neither flask's reloader nor `flask routes` does it.
    """

    def __init__(self, parts: Parts) -> None:
        self.is_done = False
        self._parts = parts
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Do it, if it is not done.

        Raises:
            ConfigError: the file of history is of a newer release.
        """
        if not self.is_done:
            with self._lock:
                if not self.is_done:
                    self._begin(self._parts)

    def _begin(self, parts: Parts) -> None:
        try:
            last_seen, events = parts.history.start()
        except StoreError as error:
            raise ConfigError(str(error)) from error
        # the live view is what it was before a restart, …
        parts.cluster.begin_with(restart.recall(last_seen))
        restart.recall_slurm(last_seen, parts.slurm)
        parts.events.begin_with(events, parts.clock())
        # … then replicas hear of each other, …
        if parts.replica is not None:
            parts.replica.start()
        if parts.commons is not None:
            parts.commons.access.start()
        # … and who is to be told is told, where alerts are kept
        parts.book.start(has_folder=parts.history.keeps)
        if parts.book.is_open:
            parts.errands.start()
            parts.telling.start()
            parts.watch.start()
        parts.control.start()
        self.is_done = True


def _commons(settings: Settings, folder: Path, clock: Callable[[], float]) -> "Commons | None":
    """Return what replicas have in common; None: there is one server."""
    if settings.ledger.kind != "postgresql" or settings.ledger.url is None:
        return None
    from cluster_dash_server.ledger.commons import Commons  # what it needs is an extra

    return Commons(settings.ledger.url, folder, clock)


def _tokens(store: TokenStore, clock: Callable[[], float]) -> Tokens:
    """Read the tokens of a site.

    Raises:
        ConfigError: they cannot be read.
    """
    tokens = Tokens(store, clock)
    try:
        tokens.load()
    except TokenError as error:
        raise ConfigError(str(error)) from None
    return tokens


def _shared_tokens(commons: "Commons", clock: Callable[[], float]) -> Tokens:
    """Return the tokens of replicas; while their database is away nobody is let in by one, until it is back.

    Raises:
        ConfigError: the database is of a newer release.
    """
    if commons.access.fault is not None:
        commons.close()
        raise ConfigError(commons.access.fault)
    return Tokens(commons.access, clock)
