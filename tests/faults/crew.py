"""Many moles in one process, as they are but for what they read: real spools, deliveries and posts, simulated hosts."""

import heapq
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from cluster_dash_mole.batches import Held, Source
from cluster_dash_mole.delivery import BatchReceipt, Delivery, Receipt
from cluster_dash_mole.mole import SendError, SystemClock, phase_wait
from cluster_dash_mole.senders import HttpSender
from cluster_dash_mole.simulate.fleet import Fleet, SimulatedHost
from cluster_dash_mole.snapshot import Snapshot, encode
from cluster_dash_mole.spool import Spool
from tests.faults.oracle import Identity

SNAPSHOTS_A_TURN = 7


@dataclass
class Log:
    """What was posted: when each post began, how long live ones took, and what was answered."""

    began: list[tuple[float, bool]] = field(default_factory=list)  # and whether it was live
    live_seconds: list[float] = field(default_factory=list)
    failures: list[tuple[float, bool, str]] = field(default_factory=list)
    first_live: dict[str, float] = field(default_factory=dict)
    batches: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class _Post:
    """An HttpSender that keeps the log."""

    name = "http"

    def __init__(self, hostname: str, sender: HttpSender, log: Log) -> None:
        self._hostname = hostname
        self._sender = sender
        self._log = log

    @property
    def takes_batches(self) -> bool:
        return self._sender.takes_batches

    def post_one(self, body: bytes, more: Mapping[str, object]) -> Receipt:
        began = time.monotonic()
        self._log.began.append((began, True))
        try:
            receipt = self._sender.post_one(body, more)
        except SendError as error:
            self._log.failures.append((began, True, str(error)))
            raise
        ended = time.monotonic()
        self._log.live_seconds.append(ended - began)
        self._log.first_live.setdefault(self._hostname, ended)
        return receipt

    def post_many(self, bodies: Sequence[tuple[bytes, Mapping[str, object]]]) -> BatchReceipt:
        began = time.monotonic()
        self._log.began.append((began, False))
        self._log.batches[self._hostname].append(began)
        try:
            return self._sender.post_many(bodies)
        except SendError as error:
            self._log.failures.append((began, False, str(error)))
            raise


@dataclass(eq=False)
class _Mole:
    host: SimulatedHost
    spool: Spool
    delivery: Delivery
    seq: int
    due: float = 0.0
    busy: bool = False

    def take(self, at: float) -> Snapshot:
        self.seq += 1
        snapshot = self.host.snapshot(at, self.seq)
        assert snapshot is not None
        return snapshot


class Crew:
    """Moles that post to a URL from `start` to the end of its block.

    Args:
        url: of the server, or of a proxy before it.
        moles: how many.
        gpus: of each host.
        interval_seconds: between two snapshots.
        folder: for the spools; None: they are in memory.
        ca_file: who signed the certificate of the server.
        turns: GPUs pass from one user to the next every few snapshots.
        part: which of how many parts of the fleet: one process has not the time for thousands.
    """

    def __init__(
        self,
        url: str,
        *,
        moles: int,
        gpus: int,
        interval_seconds: float,
        folder: Path | None,
        workers: int = 32,
        ca_file: str | None = None,
        turns: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.log = Log()
        self.sent: dict[Identity, float | None] = {}
        self._interval = interval_seconds
        self._turns = turns
        fleet = Fleet(
            seed=1,
            hosts=moles,
            gpus=gpus,
            interval_seconds=interval_seconds,
            began_at=time.time() - 2 * 86_400,
            faults=False,
        )
        self._moles = []
        for host in fleet.build()[part[0] :: part[1]]:
            sender = HttpSender(
                address=url, auth_code="lab_cluster_2025", clock=SystemClock(), environ={}, ca_file=ca_file
            )
            source = Source(host.hostname, "boot")
            spool = Spool(folder and folder / host.hostname, most_bytes=64 * 2**20, source=source)
            post = _Post(host.hostname, sender, self.log)
            delivery = Delivery(post, spool, interval=interval_seconds, clock=SystemClock())
            self._moles.append(_Mole(host, spool, delivery, seq=int(time.time() * 1000) - 10**7))
        self._pool = ThreadPoolExecutor(workers)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._lock = threading.Lock()

    def be_without_server(self, snapshots: int, seconds: float) -> None:
        """Fill each spool as an outage of so many seconds does, that ends now."""
        now = time.time()
        for mole in self._moles:
            mole.spool.failed(time.monotonic())
            for number in range(snapshots):
                snapshot = self._noted(mole.take(now - seconds + seconds * number / snapshots))
                source = Source(snapshot.hostname, str(snapshot.boot_id))
                held = Held(source, mole.seq, snapshot.timestamp, encode(snapshot.document()))
                mole.spool.add(held)
            mole.spool._close_file()  # the tables of thousands of packers would fill this process's memory

    def start(self) -> None:
        """Let them post."""
        now = time.monotonic()
        for mole in self._moles:
            mole.due = now + phase_wait(mole.host.hostname, self._interval, time.time())
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()
        for mole in self._moles:
            mole.spool.close()

    @property
    def waiting(self) -> int:
        """How many snapshots all of them hold that are older than the last two intervals."""
        return sum(max(0, mole.spool.holding().waiting - 2) for mole in self._moles)

    def behind(self, at: float) -> int:
        """How many of them hold a snapshot that is older than a moment (Unix s)."""
        oldest = [mole.spool.holding().oldest_at for mole in self._moles]
        return sum(each is not None and each < at for each in oldest)

    def oldest(self) -> dict[str, int]:
        """Return from which number on each mole still holds its snapshots: what is below is in history."""
        found = {}
        for mole in self._moles:
            next_seq = mole.seq + 1  # asked first: what is taken meanwhile is not yet held
            oldest_seq = mole.spool.oldest_seq(Source(mole.host.hostname, "boot"))
            found[mole.host.hostname] = next_seq if oldest_seq is None else oldest_seq
        return found

    def _noted(self, snapshot: Snapshot) -> Snapshot:
        snapshot = replace(snapshot, boot_id="boot")
        cpu = snapshot.parts["cpu"]
        assert isinstance(cpu, dict)
        seq = snapshot.seq
        assert seq is not None
        if self._turns:
            user = f"user{seq // SNAPSHOTS_A_TURN % 4}"
            users = {} if user == "user0" else {user: {"4711": {"mem": 100, "time": 1.0, "name": "job", "type": "C"}}}
            gpus = snapshot.parts["gpu"]
            assert isinstance(gpus, dict)
            parts = {**snapshot.parts, "gpu": {key: {**gpu, "users": users} for key, gpu in gpus.items()}}
            snapshot = replace(snapshot, parts=parts)
        self.sent[Identity(snapshot.hostname, "boot", seq)] = cpu["cpu_percent"]
        return snapshot

    def _run(self) -> None:
        rounds = [(mole.due, number) for number, mole in enumerate(self._moles)]
        heapq.heapify(rounds)
        steps: list[tuple[float, int]] = []
        while not self._ends.is_set():
            now = time.monotonic()
            while rounds[0][0] <= now:
                due, number = rounds[0]
                mole = self._moles[number]
                mole.delivery.offer(self._noted(mole.take(time.time())))
                pace = max(self._interval, mole.delivery.pace_seconds)
                heapq.heapreplace(rounds, (due + pace, number))
                with self._lock:
                    heapq.heappush(steps, (now, number))
            with self._lock:
                while steps and steps[0][0] <= now:
                    _, number = heapq.heappop(steps)
                    mole = self._moles[number]
                    if not mole.busy:
                        mole.busy = True
                        self._pool.submit(self._step, number, steps)
            time.sleep(0.005)

    def _step(self, number: int, steps: list[tuple[float, int]]) -> None:
        mole = self._moles[number]
        mole.delivery.step()
        due = mole.delivery.due_in()
        with self._lock:
            mole.busy = False
            if due is not None:
                heapq.heappush(steps, (time.monotonic() + due, number))
