"""Replicas in one process, and the engine that they share."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from cluster_dash_server.cluster import Cluster
from cluster_dash_server.live import Live
from cluster_dash_server.sharing.clock import EngineClock
from cluster_dash_server.sharing.engine import Engine
from cluster_dash_server.sharing.memory import MemoryEngine
from cluster_dash_server.sharing.replica import Replica
from cluster_dash_server.sharing.settled import SharedSettled
from cluster_dash_server.sharing.view import SharedLive
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds

Json = dict[str, Any]


class Kind(Protocol):
    """One kind of engine, empty at first."""

    def open(self) -> Engine:
        """Return an engine that shares with all others of this test."""

    def lose_all(self) -> None:
        """Have it lose everything, as one that was started anew."""

    def part(self, *, is_away: bool) -> None:
        """Have nobody reach it, or everybody again."""


class InMemory:
    """All share one."""

    def __init__(self) -> None:
        self._engine = MemoryEngine()

    def open(self) -> MemoryEngine:
        return self._engine

    def lose_all(self) -> None:
        self._engine.lose_all()

    def part(self, *, is_away: bool) -> None:
        self._engine.is_away = is_away


@pytest.fixture
def kind() -> Kind:
    return InMemory()


class Server:
    """One replica, as far as the live view goes."""

    def __init__(self, engine: Engine, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self.told: list[tuple[Seen, bool]] = []
        self.cluster = Cluster(Thresholds(), witness=lambda seen, _, after: self.told.append((seen, after is not None)))
        self.slurm = Slurm(place=self.cluster.place)
        self.slurm.known_by(self.cluster.knows)
        self.clock = EngineClock(clock, monotonic)
        self.settled = SharedSettled(self.clock)
        self.replica = Replica(
            engine,
            self.cluster,
            self.slurm,
            self.clock,
            tick_seconds=0.25,
            grace_seconds=60,
            settled=self.settled,
        )
        self.forgotten: list[str] = []
        self.replica.forgets.append(self.forgotten.extend)
        self.live = SharedLive(Live(self.cluster, "life"), self.cluster, self.replica)

    def ask(self, now: float, since: str | None = None) -> Json:
        body: Json = json.loads(self.live.body(now, since, "identity").content)
        return body


class Moving:
    """A clock that a test moves, near the engine's own: of a real one nobody can choose the time."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


MakeServer = Callable[[], Server]


@pytest.fixture
def make_server(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeServer]:
    """Make one more replica; all of a test share `make_server.now`, and hear nothing of the engine's clock."""
    monkeypatch.setattr(EngineClock, "_go_by", lambda *_: None)
    moving = Moving(1_700_000_000.0)
    engines: list[Engine] = []

    def make() -> Server:
        engines.append(kind.open())
        return Server(engines[-1], moving, moving)

    make.now = moving  # type: ignore[attr-defined]
    make.kind = kind  # type: ignore[attr-defined]
    yield make
    for engine in engines:
        engine.close()
