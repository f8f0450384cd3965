"""A small site with a clock that is moved by hand: hosts post, the watch goes round, what is told is noted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.alerts import rules
from cluster_dash_server.alerts.disks import Before
from cluster_dash_server.alerts.routing import Owners, at_once
from cluster_dash_server.alerts.rules import Rule
from cluster_dash_server.alerts.watch import Watch
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.events import EventLog
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.receivers import Receiver
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import read
from cluster_dash_server.states import Thresholds

START = 1_700_000_000.0
ROUND_SECONDS = 5.0
Snapshot = dict[str, Any]
MakeSnapshot = Callable[..., Snapshot]


@dataclass(frozen=True, slots=True)
class Told:
    """A message: how many seconds after the start of the night, of what kind, and its subject."""

    at: float
    kind: str
    title: str


class Site:
    """Hosts, a server, and the one receiver `ops`, which takes everything at once unless it is off."""

    def __init__(self, path: Path, make: MakeSnapshot, *, rules: Sequence[Rule], interval_seconds: float) -> None:
        self.now = START
        self.told: list[Told] = []
        self.notices: list[tuple[str, Notice]] = []
        self.owners: Owners = at_once
        self.receiver_is_off = False
        self.fence: int | None = 0
        self.said: list[tuple[str, str | None, str]] = []
        self.disks_before: dict[str, Before] = {}
        self.rules = rules
        self.interval_seconds = interval_seconds
        self.hosts: dict[str, Snapshot] = {}
        self.silent: set[str] = set()
        self._make = make
        self._path = path
        self._events: dict[str, list[Snapshot]] = {}
        self._seq = 0
        self.store = MemoryStore(lambda: self.now)
        self.begin()

    def begin(self) -> None:
        """Start the server, on the book that an earlier life left."""
        self.events = EventLog(Thresholds(), ledger=self.store)
        self.slurm = Slurm()
        self.cluster = Cluster(Thresholds(), 20_000, self.events.witness)
        self.book = SqliteBook(self._path / "alerts.db", lambda: self.now)
        self.watch = Watch(
            self.cluster,
            self.events,
            self.slurm,
            self.book,
            lambda: self.rules,
            clock=lambda: self.now,
            receivers=(Receiver(name="ops", kind="email", severity="info"),),
            owners=lambda alert, notice, receivers, now: self.owners(alert, notice, receivers, now),
            said=lambda now: self.said,
            disks_before=lambda now: self.disks_before,
            public_url="https://dash.lab",
            fence=lambda: self.fence,
        )

    def restart(self) -> None:
        """End the server as kill -9 does, and start it anew with what history remembers of its hosts."""
        known = self.cluster.known(self.cluster.names())
        self.begin()
        self.cluster.begin_with(known)

    def host(self, name: str, gpus: list[Snapshot] | None = None, **fields: Any) -> None:
        """Let a host post this from now on."""
        self.hosts[name] = self._make(
            name, gpus, interval_seconds=self.interval_seconds, boot_id=f"boot-{name}", **fields
        )

    def event(self, host: str, **fields: Any) -> None:
        """Let a host tell of something that happens now."""
        self._events.setdefault(host, []).append({"at": self.now, **fields})

    def post(self, name: str, **general: Any) -> None:
        """Let a host post once."""
        self._seq += 1
        snapshot = {**self.hosts[name], "timestamp": self.now, "seq": self._seq, "events": self._events.pop(name, [])}
        snapshot["general"] = {**snapshot.get("general", {}), **general}
        self.cluster.offer(read(snapshot, received_at=self.now))

    def round(self) -> None:
        """Evaluate, and deliver what waits."""
        self.watch.round()
        for each in [] if self.receiver_is_off else self.book.due(self.now, 1_000):
            self.told.append(Told(self.now - START, each.notice.kind, each.notice.title))
            self.notices.append((each.receiver, each.notice))
            self.book.sent(each.row, self.now)

    def run(self, seconds: float, *, every: float = ROUND_SECONDS) -> None:
        """Let time pass: hosts post at their interval, all at once, and the server goes round."""
        until = self.now + seconds
        while self.now < until:
            self.now += every
            if (self.now - START) % self.interval_seconds < every:
                for name in self.hosts:
                    if name not in self.silent:
                        self.post(name)
            self.round()

    @property
    def titles(self) -> list[str]:
        """Kinds and subjects of what was told."""
        return [f"{each.kind} {each.title}" for each in self.told]


@pytest.fixture
def shipped() -> Sequence[Rule]:
    return rules.load()


@pytest.fixture
def make_site(tmp_path: Path, make_snapshot: MakeSnapshot, shipped: Sequence[Rule]) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(*, rules: Sequence[Rule] = shipped, interval_seconds: float = 30.0) -> Site:
        sites.append(Site(tmp_path, make_snapshot, rules=rules, interval_seconds=interval_seconds))
        return sites[-1]

    yield make
    for site in sites:
        site.book.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()
