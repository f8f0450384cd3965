"""The whole cluster as text for Prometheus, under our own names.

At each scrape nearly every host has posted since the last one, so there is nothing to keep of a host: each metric is
written in one sweep over all GPUs. A stale host's figures are absent; its age stays.
"""

import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path

from cluster_dash_server.cluster import Cluster, GpuView, HostView, KnownHost
from cluster_dash_server.ingest import Answer
from cluster_dash_server.live import REFRESH_SECONDS, Encoding, pack
from cluster_dash_server.prometheus import slurm as slurm_metrics
from cluster_dash_server.prometheus.exposition import OPEN_METRICS_END, Family, escape, labels, section
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen, printable
from cluster_dash_server.states import STATES, Thresholds, silence_after
from cluster_dash_server.summary import model_of

GIB, MIB = 2**30, 2**20
NO_STATE = "no_gpu"
"""The state of a host that has no GPU."""
REASONS = {
    400: "malformed",
    401: "secret",
    403: "forbidden",
    409: "another_machine",
    413: "too_large",
    415: "encoding",
    422: "out_of_bounds",
    429: "too_many",
    503: "busy",
}
"""Why a post was refused, in a word, by the status of its answer."""

MOST_XIDS = 20_000
"""Kinds of Xids that are counted, by host, GPU and number: what a host says must not grow without bound."""
REMEMBERED_XIDS = 1_000
"""Xids of a host that are known again: a mole tells each in every snapshot until one was taken."""

Sample = tuple[str, float | None]
Sections = Iterator[tuple[Family, Iterable[Sample]]]


class PostCounts:
    """How many snapshots were posted, by what became of them. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter({("taken", 200): 0})
        self._lock = threading.Lock()

    def count(self, answer: Answer) -> None:
        """Count an answer to a post, or to each line of a batch."""
        body = answer.body
        if answer.status != 200:
            found = [(("refused", answer.status), 1)]
        elif "accepted" in body:
            found = [(("refused", each["status"]), 1) for each in body["rejected"]]
            found += [(("taken", 200), body["accepted"]), (("duplicate", 200), body["duplicates"])]
        else:
            found = [(("duplicate" if body.get("duplicate") else "taken", 200), 1)]
        with self._lock:
            for key, number in found:
                self._counts[key] += number

    def __call__(self) -> dict[tuple[str, int], int]:
        """Return the counts by result (`taken`, `duplicate`, `refused`) and the status of the answer."""
        with self._lock:
            return dict(self._counts)


class XidCounts:
    """How many Xids hosts have told of, by host, GPU and number. A witness of `Cluster`."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._known: dict[str, dict[tuple[object, str, str], None]] = {}  # the newest of each host, the oldest first
        self._lock = threading.Lock()

    def witness(self, seen: Seen, before: KnownHost | None, after: KnownHost | None) -> None:
        """Count the Xids in a snapshot that no earlier one has told of."""
        for event in seen.events:
            if str(event.get("kind")).lower() == "xid" and event.get("code") is not None:
                gpu = event.get("gpu")
                gpu = "" if gpu is None else str(gpu)
                self._count(seen.host, event.get("at"), gpu, printable(str(event["code"]), 16))

    def _count(self, host: str, at: object, gpu: str, code: str) -> None:
        with self._lock:
            known = self._known.setdefault(host, {})
            if (at, gpu, code) in known:
                return
            known[at, gpu, code] = None
            if len(known) > REMEMBERED_XIDS:
                del known[next(iter(known))]
            if (host, gpu, code) in self._counts or len(self._counts) < MOST_XIDS:
                self._counts[host, gpu, code] += 1

    def __call__(self) -> dict[tuple[str, str, str], int]:
        """Return the counts by host, GPU (as the host calls it) and number."""
        with self._lock:
            return dict(self._counts)


class Metrics:
    """The text for Prometheus, made at most once a second however many ask. Thread-safe.

    Args:
        cluster: the live view.
        posts: what became of the posts.
        xids: what hosts have told of.
        slurm: what Slurm says.
        trouble: why history is not written; None: it is, or is not wished.
        version: of the server.
        users: whether users are named.
        receivers_failing: how many receivers do not take notices.
    """

    def __init__(
        self,
        cluster: Cluster,
        posts: PostCounts,
        xids: XidCounts,
        slurm: Slurm,
        trouble: Callable[[], str | None],
        *,
        version: str,
        users: bool,
        receivers_failing: Callable[[], int] = lambda: 0,
    ) -> None:
        self._receivers_failing = receivers_failing
        self._cluster = cluster
        self._posts = posts
        self._xids = xids
        self._slurm = slurm
        self._trouble = trouble
        self._version = version
        self._users = users
        self._lock = threading.Lock()
        self._made_at: float | None = None
        self._bodies: dict[tuple[bool, Encoding], bytes] = {}

    def body(self, now: float, encoding: Encoding, *, open_metrics: bool) -> bytes:
        """Return the text, at most a second old.

        Args:
            now: Unix s.
            encoding: how the bytes are to be packed.
            open_metrics: whether it is to be OpenMetrics.
        """
        with self._lock:
            if self._made_at is None or not 0 <= now - self._made_at < REFRESH_SECONDS:
                self._made_at = now
                self._bodies.clear()
            body = self._bodies.get((open_metrics, encoding))
            if body is None:
                body = pack(self._text(now, open_metrics=open_metrics).encode(), encoding)
                self._bodies[open_metrics, encoding] = body
            return body

    def _text(self, now: float, *, open_metrics: bool) -> str:
        hosts = self._cluster.hosts(now)  # in half the time that the rows take, which hold JSON, too
        sections = chain(
            of_hosts(hosts, self._cluster.thresholds),
            of_gpus(hosts),
            of_users(hosts) if self._users else (),
            slurm_metrics.own(self._slurm.pictures(now), now),
            of_server(self._posts(), self._xids(), self._trouble(), self._receivers_failing(), self._version),
        )
        parts = [section(family, samples, open_metrics=open_metrics) for family, samples in sections]
        return "".join([*parts, OPEN_METRICS_END if open_metrics else ""])


def _gauge(name: str, text: str) -> Family:
    return Family(name=f"cluster_dash_{name}", kind="gauge", help=text)


def _counter(name: str, text: str) -> Family:
    return Family(name=f"cluster_dash_{name}_total", kind="counter", help=text)


# ------------------------------------------------------------------------------------------------------------- hosts


def of_hosts(hosts: Iterable[HostView], thresholds: Thresholds) -> Sections:
    """Give what is known of the hosts."""
    hosts = list(hosts)
    named = [(f'{{host="{escape(host.host)}"}}', host) for host in hosts]
    live = [(where, host) for where, host in named if host.silent is None]
    states = Counter(host.headline.state or NO_STATE for host in hosts)
    yield (
        _gauge("hosts", "Hosts, by what is to be said of each first."),
        [(f'{{state="{state}"}}', states[state]) for state in (*STATES, NO_STATE)],
    )
    yield (
        _gauge("host_last_snapshot_timestamp_seconds", "When the newest snapshot came, by the server's clock."),
        [(where, host.seen.received_at) for where, host in named],
    )
    yield (
        _gauge("host_stale_after_seconds", "Silent for so long, a host is stale."),
        [(where, silence_after(host.interval_seconds, thresholds)[0]) for where, host in named],
    )
    yield (
        _gauge("host_info", "What a host says of itself; its labels begin with label_."),
        [(_info(host), 1) for _, host in live],
    )
    yield (
        _gauge("host_gpus_expected", "GPUs that were seen on the host and not replaced since."),
        [(where, len(host.gpus)) for where, host in live],
    )
    yield (
        _gauge("host_gpus_seen", "GPUs that the newest snapshot holds."),
        [(where, sum(gpu.missing_since is None for gpu in host.gpus)) for where, host in live],
    )
    yield (
        _gauge("host_gpu_read_failed", "1 where the host can read none of its GPUs."),
        [(where, int(host.seen.gpu_error is not None)) for where, host in live],
    )
    yield (
        _gauge("host_cpu_busy_ratio", "Share of the CPU that is busy."),
        [(where, _ratio(host.seen.cpu_percent)) for where, host in live],
    )
    yield _gauge("host_cpus", "CPUs."), [(where, host.seen.num_cpus) for where, host in live]
    yield (
        _gauge("host_load1", "Load average of a minute."),
        [(where, host.seen.load_avg_1) for where, host in live],
    )
    yield (
        _gauge("host_memory_used_bytes", "Main memory in use."),
        [(where, _bytes(host.seen.memory_used_gb)) for where, host in live],
    )
    yield (
        _gauge("host_memory_total_bytes", "Main memory."),
        [(where, _bytes(host.seen.memory_total_gb)) for where, host in live],
    )
    yield (
        _gauge("host_disk_used_ratio", "Share of a file system that is used."),
        {
            f'{where[:-1]},mount="{escape(mount)}"}}': percent / 100
            for where, host in live
            for mount, percent in host.seen.disks
        }.items(),
    )


_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")


def _info(host: HostView) -> str:
    seen = host.seen
    own = {f"label_{_NO_LABEL.sub('_', name)}": value for name, value in sorted(seen.labels.items())}
    return labels({"host": seen.host, "mole_version": seen.mole_version, "driver_version": seen.driver_version, **own})


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _truth(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)


# -------------------------------------------------------------------------------------------------------------- GPUs


def of_gpus(hosts: Iterable[HostView]) -> Sections:
    """Give what is known of the GPUs; figures that are too old to say what is are not known."""
    hosts = list(hosts)
    counts = Counter((_model(gpu.gpu.name, gpu.gpu.total_mem), gpu.state) for host in hosts for gpu in host.gpus)
    yield (
        _gauge("gpus", "GPUs, by state and model."),
        [
            (f'{{state="{state}",model="{name}"}}', counts[name, state])
            for name in sorted({name for name, _ in counts})
            for state in STATES
        ],
    )
    known = _known(hosts)
    cards = [gpu.gpu for gpu, _ in known.values()]
    figures: tuple[tuple[str, str, list[float | None]], ...] = (
        (
            "busy_ratio",
            "Share of time in which a kernel ran.",
            [None if card.gpu_util is None else card.gpu_util / 100 for card in cards],
        ),
        (
            "memory_used_bytes",
            "Memory in use.",
            [None if card.used_mem is None else int(card.used_mem * MIB) for card in cards],
        ),
        (
            "memory_total_bytes",
            "Memory.",
            [None if card.total_mem is None else int(card.total_mem * MIB) for card in cards],
        ),
        ("power_watts", "Power drawn.", [card.power_w for card in cards]),
        ("temperature_celsius", "Temperature.", [card.temperature_c for card in cards]),
        (
            "temperature_slowdown_celsius",
            "Temperature from which on it slows down.",
            [card.temperature_slowdown_c for card in cards],
        ),
        (
            "remap_pending",
            "1 where rows of memory are remapped at the next reset.",
            [_truth(card.remap_pending) for card in cards],
        ),
        (
            "remap_failed",
            "1 where a row of memory could not be remapped.",
            [_truth(card.remap_failed) for card in cards],
        ),
        (
            "held_seconds",
            "For how long it has been held without work; absent where it is not held.",
            [
                received_at - gpu.idle_since if gpu.state == "held" and gpu.idle_since is not None else None
                for gpu, received_at in known.values()
            ],
        ),
    )
    for name, text, values in figures:
        yield _gauge(f"gpu_{name}", text), zip(known, values, strict=True)


def _known(hosts: Iterable[HostView]) -> dict[str, tuple[GpuView, float]]:
    """Return the GPUs that can be read, and when their snapshot came, by their labels."""
    known = {}
    for host in hosts:
        if host.silent is not None:
            continue
        head, received_at = f'{{host="{escape(host.host)}",gpu="', host.seen.received_at
        for gpu in host.gpus:
            if not gpu.is_past:
                card = gpu.gpu
                uuid = "" if card.uuid is None else f',uuid="{escape(card.uuid)}"'
                # two cards of one index and no uuid are one to Prometheus, and to us
                known[f'{head}{card.index}"{uuid},model="{_model(card.name, card.total_mem)}"}}'] = gpu, received_at
    return known


@lru_cache(maxsize=1024)
def _model(name: str | None, total_mem: float | None) -> str:
    return escape(model_of(name, total_mem))


def of_users(hosts: Iterable[HostView]) -> Sections:
    """Give how many GPUs each user has processes on, by state; on a shared one each of them counts."""
    counts = Counter(
        (user, gpu.state)
        for host in hosts
        if host.silent is None
        for gpu in host.gpus
        if gpu.missing_since is None
        for user in gpu.gpu.users or ()
    )
    yield (
        _gauge("user_gpus", "GPUs on which a user has processes, by state."),
        [(labels({"user": user, "state": state}), count) for (user, state), count in sorted(counts.items())],
    )


# -------------------------------------------------------------------------------------------------------- the server


def of_server(
    posts: Mapping[tuple[str, int], int],
    xids: Mapping[tuple[str, str, str], int],
    trouble: str | None,
    receivers_failing: int,
    version: str,
) -> Sections:
    """Give what the server says of itself."""
    yield (
        _counter("gpu_xid_events", "Xids that hosts have told of, since the server started."),
        [(labels({"host": host, "gpu": gpu, "xid": code}), count) for (host, gpu, code), count in sorted(xids.items())],
    )
    yield (
        _counter("snapshots", "Snapshots that were posted, by what became of them."),
        [
            (labels({"result": result, "reason": REASONS.get(status, str(status)) if status >= 400 else None}), count)
            for (result, status), count in sorted(posts.items())
        ],
    )
    yield _gauge("history_failing", "1 where history is not written, though it is wished."), [("", int(bool(trouble)))]
    yield _gauge("receivers_failing", "Receivers that do not take notices of alerts."), [("", receivers_failing)]
    yield _gauge("build_info", "The version of the server."), [(labels({"version": version}), 1)]
    for name, text, value in _process():
        kind = _counter if name.endswith("_total") else _gauge
        yield Family(name=f"process_{name}", kind=kind("", "").kind, help=text), [("", value)]


def _process() -> Iterator[tuple[str, str, float | None]]:
    """Give what Prometheus' own clients say of a process, under the names that they use."""
    yield "cpu_seconds_total", "CPU time of the server, user and system.", time.process_time()
    yield "resident_memory_bytes", "Memory of the server.", _resident_bytes()
    yield "open_fds", "Open files and connections of the server.", sum(1 for _ in Path("/proc/self/fd").iterdir())
    yield "max_fds", "How many it may have open.", resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
