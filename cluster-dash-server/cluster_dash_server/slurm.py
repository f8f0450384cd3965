"""Slurm's view of the cluster, as one of its moles found it, and how it joins with hosts and GPUs. Pure.

A node is a host by name; a job is on a GPU by the index that Slurm gave it, which is the number of the device.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from cluster_dash_server.hostlist import HostlistError, expand
from cluster_dash_server.inflate import pack, unpack
from cluster_dash_server.snapshot import Gpu, SnapshotError, dumps, loads
from cluster_dash_server.states import Allotment, JobOnGpu
from cluster_dash_server.tables import TEXTS, fault

log = logging.getLogger(__name__)

Json = dict[str, Any]

DEFAULT_INTERVAL_SECONDS = 60.0
LATE_INTERVALS = 3
"""After so many intervals without an answer the page says how old the figures are."""
TRUSTED_SECONDS, TRUSTED_INTERVALS = 600.0, 10
"""For so long what Slurm said last decides states of GPUs: the longer of the two."""
MOST_INDEX = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """The section `[slurm]`."""

    hosts: tuple[str, ...] = field(
        default=(), metadata={"help": "nodes whose host has another name: NODE=HOST; others are joined by name"}
    )


class Node(NamedTuple):
    """A node, as on the wire; `state` is Slurm's text with all flags, in lower case."""

    name: str
    host: str | None
    state: str
    partitions: str
    cpus: int | None
    cpus_allocated: int | None
    memory_mib: float | None
    memory_allocated_mib: float | None
    load: float | None
    gpu: str
    gpus: int | None
    gpus_allocated: int | None
    gpu_index: str | None
    features: str
    reason: str
    reason_at: float | None
    boot_at: float | None


class Job(NamedTuple):
    """A job that waits or runs, as on the wire."""

    id: int
    array: str | None
    tasks: int | None
    name: str | None
    user: str
    account: str
    partition: str
    qos: str
    state: str
    reason: str
    nodes: str | None
    node_count: int | None
    cpus: int | None
    memory_mib: float | None
    gpus: int | None
    gpu_type: str
    gpu_index: str | None
    sluid: str | None
    submitted_at: float | None
    started_at: float | None
    time_limit_seconds: float | None
    expected_start_at: float | None
    priority: int | None

    @property
    def label(self) -> str:
        """The id that people use: `4711_5` of an array."""
        return self.array or str(self.id)


class Finished(NamedTuple):
    """A finished job, as on the wire."""

    id: int
    array: str | None
    name: str | None
    user: str
    account: str
    partition: str
    state: str
    exit: str
    nodes: str | None
    cpus: int | None
    gpus: int | None
    submitted_at: float | None
    started_at: float | None
    ended_at: float | None

    @property
    def label(self) -> str:
        """The id that people use: `4711_5` of an array."""
        return self.array or str(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How the mole fared with one table; `at` by this server's clock (Unix s)."""

    ok: bool
    at: float | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One cluster of Slurm, as a mole found it.

    Attributes:
        host: whose mole found it.
        cluster: its name; "" where that is not known yet.
        received_at: by this server's clock.
        collected_at: by the mole's.
        nodes: None where they were never read; so are the other tables.
        by_user: of jobs that the mole left out, for want of room: how many, by user, account, partition and reason.
    """

    host: str
    cluster: str
    version: str | None
    received_at: float
    collected_at: float
    interval_seconds: float
    sources: Mapping[str, Source]
    notes: Sequence[str]
    totals: Json
    scheduler: Mapping[str, int | None]
    partitions: Sequence[Json]
    nodes: Sequence[Node] | None
    jobs: Sequence[Job] | None
    omitted: Json
    finished: Sequence[Finished] | None
    others: tuple[str, ...] = ()

    @property
    def at(self) -> float | None:
        """When the figures that count, nodes and queue, were last read (Unix s); None: never."""
        moments = [self.sources[name].at for name in ("nodes", "jobs") if name in self.sources]
        known = [at for at in moments if at is not None]
        return min(known) if known and len(known) == len(moments) else None

    def is_late(self, now: float) -> bool:
        """Say whether the figures are so old that everybody should know."""
        return self.at is None or now - self.at > LATE_INTERVALS * self.interval_seconds

    @property
    def failures(self) -> list[tuple[str, Source]]:
        """The tables that could not be read the last time."""
        return [(name, source) for name, source in self.sources.items() if not source.ok]

    def node(self, name: str) -> Node | None:
        """Return a node by its name."""
        return next((node for node in self.nodes or () if node.name == name), None)

    def job(self, label: str) -> Job | Finished | None:
        """Return a job by its id, `4711` or `4711_5`; one that lives before one that is finished."""
        for table in (self.jobs or (), self.finished or ()):
            for job in table:
                if label in (job.label, str(job.id)):
                    return job
        return None


def base_and_flags(state: str) -> tuple[str, list[str]]:
    """Return `idle` and `[drain]` of `idle+drain`."""
    base, *flags = state.split("+")
    return base, flags


def is_down(state: str) -> bool:
    """Say whether a node's state is down."""
    return base_and_flags(state)[0] in ("down", "error", "unknown", "future")


def is_drained(state: str) -> bool:
    """Say whether a node takes no jobs by somebody's will: drained, draining, failing, in maintenance."""
    return any(flag.startswith(("drain", "fail", "maint")) for flag in state.split("+"))


def is_reserved(state: str) -> bool:
    """Say whether a node is kept for some."""
    return "reserved" in base_and_flags(state)[1]


def word(state: str) -> str:
    """Return the one word for a node's state, as `sinfo` chooses it: `drained`, `draining`, `down`, `mixed`."""
    base, flags = base_and_flags(state)
    if is_down(state):
        return "down"
    if any(flag.startswith("drain") for flag in flags):
        return "draining" if base in ("mixed", "allocated") or "completing" in flags else "drained"
    for flag, said in (("fail", "fail"), ("maintenance", "maint"), ("maint", "maint"), ("reserved", "reserved")):
        if flag in flags:
            return said
    return base


# ------------------------------------------------------------------------------------------------------- the join


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A host as a node: what Slurm says of it and of its GPUs.

    Attributes:
        gpus: how many GPUs Slurm knows there.
        asks: how a job asks Slurm for one GPU there, the options of `srun` by partition; empty where nobody can.
        allotments: by the number of the device; `other` is that of devices with no word of Slurm.
    """

    node: str
    state: str
    reason: str
    partitions: tuple[str, ...]
    gpus: int
    allotments: Mapping[int, Allotment]
    other: Allotment
    asks: tuple[str, ...] = ()

    @property
    def is_drained(self) -> bool:
        """Whether it takes no jobs."""
        return self.other.drained

    def of(self, gpus: Sequence[Gpu]) -> list[Allotment]:
        """Return what Slurm says of each GPU of the host.

        Indexes are numbers of devices, if Slurm counts cards: where it counts more of them than the host has (MIG),
        nobody can say which is which.
        """
        minors = [gpu.index if gpu.minor_number is None else gpu.minor_number for gpu in gpus]
        if max(minors, default=-1) + 1 < self.gpus:
            unknown = Allotment(drained=self.other.drained, reserved=self.other.reserved, allocated=None, jobs=())
            return [unknown] * len(minors)
        return [self.allotments.get(minor, self.other) for minor in minors]


PlaceOf = Callable[[str], Place | None]


def indexes(text: str) -> list[int]:
    """Return the numbers of `0-3,7`; text that is none gives none."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last.isdecimal() or not last) and len(first) < 6 and len(last) < 6:
            numbers += range(int(first), min(int(last or first), MOST_INDEX) + 1)
    return numbers


def gpus_of(job: Job) -> dict[str, list[int]]:
    """Return on which GPUs of which nodes a job runs; none where nobody told."""
    places: dict[str, list[int]] = {}
    for group in (job.gpu_index or "").split(";"):
        hosts, _, numbers = group.rpartition(":")
        try:
            names = expand(hosts) if hosts else []
        except HostlistError:
            continue
        for name in names:
            places.setdefault(name, []).extend(indexes(numbers))
    return places


def places_of(picture: Picture) -> dict[str, Place]:
    """Return each node as a place."""
    on: dict[str, dict[int, list[JobOnGpu]]] = {}
    for job in picture.jobs or ():
        if job.gpu_index:
            there = JobOnGpu(job.label, job.user, job.name, job.sluid)
            for name, numbers in gpus_of(job).items():
                gpus = on.setdefault(name, {})
                for number in numbers:
                    gpus.setdefault(number, []).append(there)
    return {node.name: _place(node, on.get(node.name, {})) for node in picture.nodes or ()}


def _place(node: Node, jobs: Mapping[int, Sequence[JobOnGpu]]) -> Place:
    drained, reserved = is_down(node.state) or is_drained(node.state), is_reserved(node.state)
    gpus = node.gpus or 0
    by_default: bool | None = False
    taken: set[int] = set(jobs)
    if node.gpu_index is not None:
        taken |= set(indexes(node.gpu_index))
    elif node.gpus_allocated == gpus:
        taken |= set(range(gpus))
    elif node.gpus_allocated:
        by_default = None

    def allotment(number: int) -> Allotment:
        return Allotment(
            drained=drained,
            reserved=reserved,
            allocated=True if number in taken else by_default if number < gpus else None,
            jobs=tuple(jobs.get(number, ())),
        )

    partitions = tuple(each for each in node.partitions.split(",") if each)
    return Place(
        node=node.name,
        state=node.state,
        reason=node.reason,
        partitions=partitions,
        asks=tuple(_asks(partitions, node.gpu)),
        gpus=gpus,
        allotments={number: allotment(number) for number in range(gpus)} | {each: allotment(each) for each in taken},
        other=Allotment(drained=drained, reserved=reserved, allocated=None, jobs=()),
    )


_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""A name that is one word to every shell, and no option."""


def _asks(partitions: Sequence[str], gpus: str) -> Iterator[str]:
    """Return how a job asks for one GPU of `h100:8`; without a type where Slurm names none (`8`) or several."""
    kind, colon, rest = gpus.partition(":")
    wanted = f"gpu:{kind}:1" if colon and "," not in rest else "gpu:1"
    for name in partitions:
        if _PLAIN.fullmatch(name) and _PLAIN.fullmatch(kind or "0"):
            yield f"-p {name} --gres={wanted}"


def short(name: str) -> str:
    """Return a name without its domain."""
    return name.partition(".")[0]


class _Join:
    """Finds the node of a host: by the settings, by its name, by its short name, by what Slurm knows its host as."""

    def __init__(self, places: Mapping[str, Place], nodes: Sequence[Node], hosts: Mapping[str, str]) -> None:
        self._places = places
        self._set = {host: node for node, host in hosts.items()}
        self._by_short: dict[str, str] = {}
        self._by_host: dict[str, str | None] = {}
        for node in nodes:
            self._by_short.setdefault(short(node.name), node.name)
            if node.host is not None:
                name = short(node.host)
                self._by_host[name] = None if name in self._by_host else node.name  # of several nodes: of none

    def place(self, host: str, knows: Callable[[str], bool]) -> Place | None:
        if host in self._set:
            return self._places.get(self._set[host])
        if host in self._places:
            return self._places[host]
        name = short(host)
        node = self._by_short.get(name)
        if node is not None and not (host != name and knows(name)):
            return self._places.get(node)
        node = self._by_host.get(name)
        if node is not None and not knows(node):
            return self._places.get(node)
        return None


class Told(NamedTuple):
    """What the newest picture of a cluster was read from: whose mole told it, when it came, and the block, packed."""

    host: str
    received_at: float
    packed: bytes


class Slurm:
    """The newest picture of each cluster of Slurm. Thread-safe; knows no clock.

    Args:
        settings: hosts whose node has another name.
        place: is told how to find the node of a host, and until when that counts (Unix s), at each new picture.
    """

    def __init__(
        self, settings: SlurmSettings | None = None, place: Callable[[PlaceOf, float], None] = lambda *_: None
    ) -> None:
        self._hosts = dict(each.split("=", 1) for each in (settings or SlurmSettings()).hosts if "=" in each)
        self._place = place
        self._lock = threading.Lock()
        self._pictures: dict[str, Picture] = {}
        self._told: dict[str, Told] = {}
        self._senders: dict[str, tuple[str, float]] = {}  # host: its cluster, and when it last told of it
        self._joins: dict[str, _Join] = {}
        self._knows: Callable[[str], bool] = lambda _: False

    def known_by(self, knows: Callable[[str], bool]) -> None:
        """Learn what says whether a host of a name reports."""
        self._knows = knows

    def offer(self, host: str, block: Json, received_at: float) -> None:
        """Take what the mole of a host found, where it is newer than what is known of that cluster.

        A block without sources is one that was held back for want of a server: it is for history only.
        """
        if "sources" not in block:
            return
        with self._lock:
            before = self._senders.get(host, ("", 0.0))[0]
            picture = read(host, block, received_at, before)
            if before != picture.cluster and not before:
                for of_cluster in (self._pictures, self._told, self._joins):
                    of_cluster.pop("", None)
            self._senders[host] = (picture.cluster, received_at)
            known = self._pictures.get(picture.cluster)
            if known is not None and known.host != host and known.collected_at > picture.collected_at:
                return
            self._pictures[picture.cluster] = picture
            self._told[picture.cluster] = Told(host, received_at, pack(dumps(block)))
            self._joins[picture.cluster] = _Join(places_of(picture), picture.nodes or (), self._hosts)
            moments = [each.at for each in self._pictures.values() if each.at is not None]
            trusted = max(TRUSTED_SECONDS, TRUSTED_INTERVALS * picture.interval_seconds)
            until = max(moments, default=received_at) + trusted
        self._place(self.place_of, until)

    def told(self) -> dict[str, Told]:
        """Return what the newest picture of each cluster was read from, to begin with after a restart."""
        with self._lock:
            return dict(self._told)

    def amend(self, change: Callable[[Json], Json]) -> None:
        """Change what was told last of each cluster, where it differs then."""
        for told in self.told().values():
            block: Any = loads(unpack(told.packed))
            found = change(block)
            if found != block:
                self.offer(told.host, found, told.received_at)

    def place_of(self, host: str) -> Place | None:
        """Return the node of a host, None where it is none."""
        for join in tuple(self._joins.values()):
            place = join.place(host, self._knows)
            if place is not None:
                return place
        return None

    def host_of(self, picture: Picture, hosts: Sequence[str]) -> dict[str, str]:
        """Return the host of each node that has one, of the given hosts."""
        join = self._joins.get(picture.cluster)
        found = {} if join is None else {host: join.place(host, self._knows) for host in hosts}
        return {place.node: host for host, place in found.items() if place is not None}

    def pictures(self, now: float) -> list[Picture]:
        """Return all clusters, the largest first; each says which other moles tell of it, too."""
        with self._lock:
            found = []
            for picture in self._pictures.values():
                span = TRUSTED_INTERVALS * picture.interval_seconds
                others = tuple(
                    host
                    for host, (cluster, at) in sorted(self._senders.items())
                    if cluster == picture.cluster and host != picture.host and now - at < span
                )
                found.append((picture, others))
        found.sort(key=lambda each: (-len(each[0].nodes or ()), each[0].cluster))
        return [_with_others(picture, others) for picture, others in found]

    @property
    def is_known(self) -> bool:
        """Whether any mole has ever told of Slurm: without one no page shows a trace of it."""
        return bool(self._pictures)


def _with_others(picture: Picture, others: tuple[str, ...]) -> Picture:
    return replace(picture, others=others) if others else picture


# ---------------------------------------------------------------------------------------------------- the block


def check(block: Json) -> None:
    """Refuse a block whose columns do not fit together.

    Raises:
        SnapshotError: 422.
    """
    text = fault(block)
    if text is not None:
        raise SnapshotError(text, 422)


def read(host: str, block: Json, received_at: float, cluster: str = "") -> Picture:
    """Read a block that the schema and `check` have passed; `cluster` is its name where it says none."""
    collected_at = block.get("collected_at")
    collected_at = received_at if collected_at is None else collected_at
    ahead = collected_at - received_at  # of the mole's clock, and the time on the way: nobody can tell them apart

    def source(said: Json) -> Source:
        at = said.get("at")
        return Source(ok=said.get("ok") is True, at=None if at is None else at - ahead, error=said.get("error"))

    return Picture(
        host=host,
        cluster=block.get("cluster") or cluster,
        version=block.get("version"),
        received_at=received_at,
        collected_at=collected_at,
        interval_seconds=block.get("interval_seconds") or DEFAULT_INTERVAL_SECONDS,
        sources={name: source(said or {}) for name, said in (block.get("sources") or {}).items()},
        notes=tuple(block.get("notes") or ()),
        totals={name: said for name, said in (block.get("totals") or {}).items() if said is not None},
        scheduler=block.get("scheduler") or {},
        partitions=tuple(block.get("partitions") or ()),
        nodes=_rows(Node, "nodes", block),
        jobs=_rows(Job, "jobs", block),
        omitted=block.get("jobs_omitted") or {},
        finished=_rows(Finished, "finished", block),
    )


def _rows(kind: Any, table: str, block: Json) -> Any:
    """Return a table's rows, with texts in their places; what it lacks is unknown."""
    columns = block.get(table)
    if columns is None:
        return None
    strings = block.get("strings") or [""]
    size = max((len(values) for values in columns.values() if isinstance(values, list)), default=0)
    texts = TEXTS[table]
    values = []
    for name in kind._fields:
        column = columns.get(name)
        if column is None:
            column = [0] * size if name in texts else [None] * size
        values.append([strings[place] if place else "" for place in column] if name in texts else column)
    return tuple(map(kind._make, zip(*values, strict=True)))
