"""Looks at hosts, events, Slurm and the server itself through the eyes of the rules: what holds now. Pure."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, cast

from cluster_dash_server.alerts.disks import Disklog
from cluster_dash_server.alerts.facts import FACTS, Fact, span, users_of, xid_class
from cluster_dash_server.alerts.rules import Rule
from cluster_dash_server.alerts.state import Finding, Key, Subject
from cluster_dash_server.cluster import GpuView, HostView, KnownGpu, KnownHost
from cluster_dash_server.filters import jobs_of, partitions
from cluster_dash_server.hostlist import compress
from cluster_dash_server.slurm import Job, Node, Picture, Place, is_down, is_drained, is_reserved
from cluster_dash_server.snapshot import Seen, printable
from cluster_dash_server.store import Event
from cluster_dash_server.summary import model

WAITS_FOR_ROOM = ("resources", "none", "")
"""Reasons of Slurm for which a job waits that could begin where it fits; others are limits, and meant so."""

Test = Callable[[HostView, GpuView | None, float], bool]


class Glimpse(NamedTuple):
    """What of a host can be seen without working out states: it has the names of a `HostView`, and less."""

    seen: Seen
    gpus: tuple[KnownGpu, ...]
    place: Place | None


class Looker:
    """Looks at one host after the other with the same rules.

    Args:
        rules: those that are on.
        disks: how full disks were.
    """

    def __init__(self, rules: Sequence[Rule], disks: Disklog) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._disks = disks
        self._silent = [rule for rule in rules if rule.condition.fact == "silent"]
        self._filling = [rule for rule in rules if rule.condition.fact == "disk_full_in"]
        plain = [rule for rule in rules if rule.fact.read is not _DEFAULT_READ]
        self._of_host = [(rule, _test(rule)) for rule in plain if rule.fact.of == "host"]
        self._of_gpu = [(rule, _test(rule)) for rule in plain if rule.fact.of == "gpu"]
        self._glances_at_host = [_glance(rule) for rule in plain if rule.fact.of == "host"]
        self._glances_at_gpu = [_glance(rule) for rule in plain if rule.fact.of == "gpu"]
        self._moments = [rule for rule in rules if rule.condition.fact in ("xid", "event")]

    # ---------------------------------------------------------------------------------------------------- hosts

    def may_find(self, known: KnownHost, place: Place | None, now: float) -> bool:
        """Say of a host that is not silent whether a look may find something: for most a glance is enough.

        Args:
            known: what is known of it.
            place: what Slurm says of it.
            now: Unix s.
        """
        if self._filling and self._disks.filling(known.seen.host, known.seen.disks, now) is not None:
            return True
        glimpse = cast(HostView, Glimpse(known.seen, known.gpus, place))
        for test in self._glances_at_host:
            if test(glimpse, None, now):
                return True
        tests = self._glances_at_gpu
        for gpu in glimpse.gpus:
            for test in tests:
                if test(glimpse, gpu, now):
                    return True
        return False

    def host(self, host: HostView, now: float) -> dict[Key, Finding]:
        """Return what holds of a host; of a silent one nothing else is known."""
        if host.silent is not None:
            return self._silence(host, now)
        found: dict[Key, Finding] = {}
        for rule, test in self._of_host:
            if test(host, None, now) and (not rule.meant.terms or rule.meant.means(host, now) is not None):
                found[rule.name, Subject(host.host)] = _finding(rule, host, None, now)
        of_gpu = self._of_gpu
        for place, gpu in enumerate(host.gpus):
            for rule, test in of_gpu:
                if test(host, gpu, now):
                    self._add(found, rule, host, place, gpu, now)
        for rule in self._filling:
            filling = self._disks.filling(host.host, host.seen.disks, now)
            if filling is not None and _is_meant(rule, host, now):
                level = rule.condition.holds(filling.seconds, is_on=False)
                if level or rule.condition.holds(filling.seconds, is_on=True):
                    figure = f"{printable(filling.mount, 64)} {filling.percent:.1f} %, full in {span(filling.seconds)}"
                    found[rule.name, Subject(host.host)] = Finding(figure, None, "holds" if level else "lingers")
        return found

    def _silence(self, host: HostView, now: float) -> dict[Key, Finding]:
        if host.seen.stopping or host.seen.ephemeral:
            return {}  # it said so, or it comes and goes
        seconds = now - host.seen.received_at
        finding = Finding(
            f"no snapshot for {span(seconds)}", host.seen.received_at, "holds" if host.silent == "down" else "comes"
        )
        return {(rule.name, Subject(host.host)): finding for rule in self._silent if _is_meant(rule, host, now)}

    def _add(self, found: dict[Key, Finding], rule: Rule, host: HostView, place: int, gpu: GpuView, now: float) -> None:
        """Add what holds of a GPU, for each of its users where it concerns them."""
        if rule.meant.terms:
            meant = rule.meant.means(host, now)
            if meant is None or not meant[place]:
                return
        finding = _finding(rule, host, gpu, now)
        users = tuple(users_of(gpu)) if rule.fact.of_users else ()
        for user in users or (None,):
            found[rule.name, Subject(host.host, gpu.gpu.index, user)] = finding

    def is_unknown(self, name: str, subject: Subject, host: HostView | None, now: float) -> bool:
        """Say whether nobody knows if a rule's condition holds, of what was not found.

        Args:
            name: of the rule.
            subject: what it is about.
            host: the host of it; None: it has none, or it is not known any more.
            now: Unix s.
        """
        rule = self._rules.get(name)
        if rule is None or host is None or rule.condition.fact in ("silent", "xid", "event"):
            return False
        if host.silent is not None:
            return True
        if rule.condition.fact == "disk_full_in":
            return False
        if subject.gpu is None:
            return rule.fact.of == "host" and rule.fact.read(host, None, now) is None
        gpu = next((each for each in host.gpus if each.gpu.index == subject.gpu), None)
        return gpu is not None and rule.fact.read(host, gpu, now) is None

    # ---------------------------------------------------------------------------------------------------- events

    @property
    def event_seconds(self) -> float:
        """How far back events matter; 0: no rule is about any."""
        return max((rule.hold_seconds for rule in self._moments), default=0.0)

    def events(
        self, events: Iterable[Event], host_of: Callable[[str], HostView | None], now: float
    ) -> dict[Key, Finding]:
        """Return what events of late make hold, the newest of each kind."""
        found: dict[Key, Finding] = {}
        for event in events:
            for rule in self._moments:
                if now - event.at > rule.hold_seconds or not _is_of(rule, event):
                    continue
                host = host_of(event.host)
                if host is None:
                    continue
                gpu = next((each for each in host.gpus if each.gpu.index == event.gpu), None)
                if rule.meant.terms:
                    meant = rule.meant.means(host, now)
                    if meant is None or (gpu is not None and not meant[host.gpus.index(gpu)]):
                        continue
                key = (rule.name, Subject(event.host, None if gpu is None else gpu.gpu.index))
                if key not in found:  # newest first
                    card = None if gpu is None else model(gpu.gpu)
                    found[key] = Finding(event.text, event.at, "holds", card, _who(gpu))
        return found

    # ----------------------------------------------------------------------------------- the cluster, this server

    def wants(self, fact: str) -> list[Rule]:
        """Return the rules about a fact."""
        return [rule for rule in self._rules.values() if rule.condition.fact == fact]

    def cluster(self, said: Iterable[tuple[str, str | None, str]]) -> dict[Key, Finding]:
        """Return what holds of the cluster and of this server.

        Args:
            said: facts that hold, each with the thing that it is about (None: this server), and in words.
        """
        return {
            (rule.name, Subject(thing=thing)): Finding(printable(words, 200))
            for fact, thing, words in said
            for rule in self.wants(fact)
        }


_DEFAULT_READ = FACTS["silent"].read


def _test(rule: Rule) -> Test:
    """Return what says quickly whether a rule's condition holds, or lingers."""
    read, condition = rule.fact.read, rule.condition
    if condition.compare is None:
        return cast(Test, read)
    if isinstance(condition.threshold, str):
        word = condition.threshold
        return lambda host, gpu, now: read(host, gpu, now) == word
    limit = condition.threshold if condition.clear is None else condition.clear
    assert limit is not None  # noqa: S101 # a comparison has a threshold
    compare = condition.comparison

    def test(host: HostView, gpu: GpuView | None, now: float) -> bool:
        value = read(host, gpu, now)
        return value is not None and compare(value, limit)  # type: ignore[arg-type]  # a cast would cost a tenth

    return test


def _glance(rule: Rule) -> Test:
    """Return what says, of a glimpse of a host, whether a rule's condition may hold."""
    may = rule.fact.may
    return _test(rule) if may is None else cast(Test, may)


def _finding(rule: Rule, host: HostView, gpu: GpuView | None, now: float) -> Finding:
    fact: Fact = rule.fact
    holds = rule.condition.clear is None or rule.condition.holds(fact.read(host, gpu, now), is_on=False)
    return Finding(
        fact.say(host, gpu, now),
        fact.since(host, gpu, now),
        "holds" if holds else "lingers",
        None if gpu is None else model(gpu.gpu),
        _who(gpu),
    )


def _who(gpu: GpuView | None) -> str:
    """Say who is on a GPU: users and jobs."""
    if gpu is None:
        return ""
    users, jobs = list(users_of(gpu)), list(jobs_of(gpu))
    said = ", ".join(printable(user, 64) for user in users[:3]) + (" …" if len(users) > 3 else "")
    if jobs:
        said += f"{', ' if said else ''}job {', '.join(printable(job, 32) for job in jobs[:3])}"
    return said


def _is_meant(rule: Rule, host: HostView, now: float) -> bool:
    return not rule.meant.terms or rule.meant.means(host, now) is not None


def _is_of(rule: Rule, event: Event) -> bool:
    if rule.condition.fact == "xid":
        return event.kind == "xid" and xid_class(event.code) == rule.condition.threshold
    return event.kind == rule.condition.threshold


def labels_of(host: HostView) -> dict[str, str]:
    """Return what groups hosts by cause: their labels, and the partition of those that are in one only."""
    its = partitions(host)
    return {**host.seen.labels, **({"partition": its[0]} if len(its) == 1 else {})}


# ---------------------------------------------------------------------------------------------------------- Slurm


def waiting_jobs(picture: Picture) -> Iterator[tuple[str, str, str]]:
    """Return the partitions in which jobs wait for GPUs though enough that fit are free, as facts of the cluster."""
    nodes = [node for node in picture.nodes or () if not (is_down(node.state) or is_drained(node.state))]
    nodes = [node for node in nodes if not is_reserved(node.state)]
    waits: dict[str, list[tuple[Job, list[str]]]] = {}
    for job in picture.jobs or ():
        if job.state == "pending" and (job.gpus or 0) > 0 and (job.reason or "").lower() in WAITS_FOR_ROOM:
            for partition in job.partition.split(","):
                there = [node.name for node in nodes if partition in node.partitions.split(",") and _fits(job, node)]
                if len(there) >= (job.node_count or 1):
                    waits.setdefault(partition, []).append((job, there))
                    break
    for partition, jobs in sorted(waits.items()):
        job, there = max(jobs, key=lambda each: each[0].priority or 0)
        count = f"{len(jobs)} jobs wait" if len(jobs) > 1 else "1 job waits"
        yield (
            "jobs_wait",
            f"partition {printable(partition, 64)}",
            f"{count}; job {job.label} of {job.user} asks for {job.gpus} GPUs, free on {compress(there[:64])}",
        )


def _fits(job: Job, node: Node) -> bool:
    """Say whether a node has free what a job asks for of each node, as far as Slurm tells."""
    count = job.node_count or 1
    if job.gpu_type and job.gpu_type not in node.gpu:
        return False
    wishes = (
        (job.gpus, node.gpus, node.gpus_allocated),
        (job.cpus, node.cpus, node.cpus_allocated),
        (job.memory_mib, node.memory_mib, node.memory_allocated_mib),
    )
    return all(
        total is not None and taken is not None and total - taken >= math.ceil(wish / count)
        for wish, total, taken in wishes
        if wish is not None
    )
