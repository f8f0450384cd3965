"""What the pages say of Slurm, in words: why jobs wait, what a node's state means, how old the figures are. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.hostlist import natural
from cluster_dash_server.slurm import Job, Node, Picture, base_and_flags, gpus_of, is_down, is_drained, word
from cluster_dash_server.states import Thresholds
from cluster_dash_server.web import words
from cluster_dash_server.web.sorting import Orders

REASONS = {
    "Resources": "waits for what it asked for to become free",
    "Priority": "jobs of higher priority are before it",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "waits for a job that can no longer give what it needs: cancel it",
    "BeginTime": "is not to start before its begin time",
    "JobHeldUser": "is held by its user: scontrol release",
    "JobHeldAdmin": "is held by an admin",
    "JobArrayTaskLimit": "as many tasks of its array run as it allows",
    "PartitionTimeLimit": "asks for more time than its partition allows: it will never start",
    "PartitionNodeLimit": "asks for more nodes than its partition has or allows",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes no jobs now",
    "PartitionConfig": "asks for what its partition does not have",
    "ReqNodeNotAvail": "nodes that it asked for by name are down, drained or reserved",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": "its reservation is gone",
    "Licenses": "waits for a licence",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node has what it asks for",
    "JobLaunchFailure": "could not be launched",
    "NonZeroExitCode": "ended with an error",
    "Prolog": "its prolog runs",
    "Cleaning": "is being cleaned up before it runs again",
    "InvalidAccount": "its account does not exist",
    "InvalidQOS": "its QOS does not exist",
    "QOSNotAllowed": "its QOS is not allowed there",
    "AccountNotAllowed": "its account is not allowed there",
    "SystemFailure": "failed by a fault of Slurm itself",
    "RaisedSignal": "ended by a signal",
    "TimeLimit": "ran into its time limit",
    "InactiveLimit": "did nothing for too long",
    "BurstBufferResources": "waits for room in the burst buffer",
    "BurstBufferStageIn": "its data are being staged in",
    "FedJobLock": "another cluster of the federation decides about it",
    "MaxRequeue": "was requeued too often",
    "JobHoldMaxRequeue": "was requeued too often, and is held",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": (
        "the nodes that it needs are down, drained, or kept for partitions before its own"
    ),
}
"""Why a job waits; Slurm's list of reasons is open."""
_CAUSES = frozenset({"a", "all", "another", "as", "it", "its", "jobs", "no", "nodes", "the"})
"""With such a word begins what is no verb of the job's: it waits for that."""
_LIMITS = (
    ("MaxGRESPerUser", "its user has as many GPUs as {} allows one user"),
    ("MaxGRESPerAccount", "its account has as many GPUs as {} allows one account"),
    ("MaxGRESPerJob", "it asks for more GPUs than {} allows a job"),
    ("MaxGRESPerNode", "it asks for more GPUs of a node than {} allows"),
    ("GrpGRES", "as many GPUs as {} allows all of its jobs are in use"),
    ("MaxJobsPerUser", "its user runs as many jobs as {} allows"),
    ("MaxJobsPerAccount", "its account runs as many jobs as {} allows"),
    ("MaxSubmitJobPerUser", "its user has submitted as many jobs as {} allows"),
    ("MaxCpuPerUser", "its user has as many CPUs as {} allows"),
    ("MaxMemoryPerUser", "its user has as much memory as {} allows"),
    ("MaxNodePerUser", "its user has as many nodes as {} allows"),
    ("MaxWallDurationPerJob", "it asks for more time than {} allows"),
    ("GrpCpu", "as many CPUs as {} allows all of its jobs are in use"),
    ("GrpMem", "as much memory as {} allows all of its jobs is in use"),
    ("GrpNode", "as many nodes as {} allows all of its jobs are in use"),
    ("GrpJobs", "as many jobs as {} allows are running"),
    ("GrpSubmitJobs", "as many jobs as {} allows are submitted"),
    ("Grp", "all that {} allows together is in use"),
    ("Max", "it is at a limit of {}"),
    ("Min", "it asks for less than {} demands"),
)

FLAGS = {
    "drain": "takes no new jobs",
    "fail": "is expected to fail",
    "maintenance": "in maintenance",
    "maint": "in maintenance",
    "reserved": "reserved",
    "planned": "kept for the next large job",
    "not_responding": "does not answer",
    "completing": "a job is ending",
    "powered_down": "switched off",
    "powering_down": "is being switched off",
    "powering_up": "is being switched on",
    "reboot_requested": "is to reboot",
    "reboot_issued": "reboots",
    "invalid_reg": "reported less than it should have",
    "cloud": "in the cloud",
    "blocked": "kept free for an exclusive job",
    "dynamic_norm": "added while running",
}
"""What a flag of a node's state means."""


def reason(text: str) -> str:
    """Say why a job waits, as the rest of a sentence about it; "" for a word of Slurm's that is not known here."""
    name = text.partition(",")[0].strip()
    said = REASONS.get(text) or REASONS.get(name, "")
    for prefix, whose in (("QOS", "its QOS"), ("Assoc", "its account")):
        if not said and name.startswith(prefix):
            rest = name.removeprefix(prefix)
            said = next((each.format(whose) for limit, each in _LIMITS if rest.startswith(limit)), "")
    return f"waits: {said}" if said.partition(" ")[0] in _CAUSES else said


def state_title(state: str) -> str:
    """Say what the flags of a node's state mean."""
    return ", ".join(FLAGS.get(flag, flag.replace("_", " ")) for flag in base_and_flags(state)[1])


def badge(state: str) -> tuple[str, str]:
    """Return a node's state as its base and flags, `IDLE +DRAIN`, and the state of a GPU whose colour it has."""
    base, flags = base_and_flags(state)
    text = " ".join([base.upper(), *(f"+{flag.upper()}" for flag in flags)])
    if is_down(state):
        return text, "down"
    if is_drained(state):
        return text, "drained"
    return text, {"idle": "free", "mixed": "busy", "allocated": "busy"}.get(base, "unknown")


def age(picture: Picture, now: float) -> str:
    """Say how old the figures are."""
    if picture.at is None:
        return "Slurm has not answered yet"
    return f"Slurm's data are {words.age(now - picture.at)} old"


def bars(totals: Mapping[str, Mapping[str, int]]) -> list[dict[str, object]]:
    """Return the parts of CPUs and GPUs: allocated, idle, and what is neither, with their shares in percent."""
    found = []
    for name, kinds in (("GPUs", ("allocated", "idle", "drained", "down")), ("CPUs", ("allocated", "idle", "other"))):
        counts = totals.get(name.lower())
        if not counts:
            continue
        total = counts.get("total") or 0
        parts = [(kind, counts.get(kind) or 0, words.share(counts.get(kind) or 0, total) or 0) for kind in kinds]
        found.append({"name": name, "total": total, "parts": parts})
    return found


@dataclass(slots=True, kw_only=True)
class Share:
    """What one user or account has of the queue and of the GPUs; `at_work` of those whose use is known."""

    name: str
    running: int = 0
    pending: int = 0
    gpus: int = 0
    pending_gpus: int = 0
    seen: int = 0
    at_work: int = 0
    no_process: int = 0


SHARE_ORDERS: Orders[Share] = Orders(
    {
        "name": (lambda share: natural(share.name), False),
        "running": (lambda share: share.running, True),
        "pending": (lambda share: share.pending, True),
        "gpus": (lambda share: share.gpus, True),
        "at_work": (lambda share: share.at_work if share.seen else None, True),
        "no_process": (lambda share: share.no_process if share.seen else None, True),
        "wanted": (lambda share: share.pending_gpus, True),
    },
    usual="-gpus",
)


def shares(jobs: Iterable[Job], on: Mapping[int, Sequence[GpuView]], thresholds: Thresholds, *, by: str) -> list[Share]:
    """Count jobs and GPUs by `user` or `account`: what is allocated beside what is used, the most GPUs first."""
    found: dict[str, Share] = {}
    for job in jobs:
        name = getattr(job, by)
        share = found.setdefault(name, Share(name=name))
        gpus = job.gpus or 0
        if job.state == "pending":
            share.pending += job.tasks or 1
            share.pending_gpus += gpus * (job.tasks or 1)
            continue
        share.running += 1
        share.gpus += gpus
        for view in on.get(job.id, ()):
            if view.gpu.gpu_util is None or view.is_past:
                continue
            share.seen += 1
            share.at_work += view.gpu.gpu_util >= thresholds.busy_percent
            share.no_process += view.gpu.working == 0
    return sorted(found.values(), key=lambda each: (-each.gpus, -each.running, -each.pending, each.name))


def gpus_on(
    jobs: Iterable[Job], hosts: Mapping[str, HostView], host_of: Mapping[str, str]
) -> dict[int, list[tuple[HostView, GpuView]]]:
    """Return the GPUs that each job has, as its hosts report them; a silent host reports none."""
    found: dict[int, list[tuple[HostView, GpuView]]] = {}
    for job in jobs:
        if not job.gpu_index:
            continue
        for node, numbers in gpus_of(job).items():
            host = hosts.get(host_of.get(node, ""))
            if host is None or host.silent is not None:
                continue
            wanted = set(numbers)
            for view in host.gpus:
                minor = view.gpu.index if view.gpu.minor_number is None else view.gpu.minor_number
                if minor in wanted:
                    found.setdefault(job.id, []).append((host, view))
    return found


def waiting(picture: Picture) -> list[tuple[str, int, int, str]]:
    """Return the reasons for which jobs wait: the word, how many jobs and GPUs, and what it means; the most first."""
    jobs: Counter[str] = Counter()
    gpus: Counter[str] = Counter()
    for job in picture.jobs or ():
        if job.state == "pending":
            name = job.reason or "no reason given"
            jobs[name] += job.tasks or 1
            gpus[name] += (job.gpus or 0) * (job.tasks or 1)
    for each in picture.omitted.get("by") or ():
        name = each.get("reason") or "no reason given"
        jobs[name] += each.get("jobs") or 0
        gpus[name] += each.get("gpus") or 0
    return [(name, count, gpus[name], reason(name)) for name, count in jobs.most_common()]


def counts(states: Mapping[str, int | None]) -> list[tuple[str, int]]:
    """Return jobs by state: running and pending always, then the rest, the most first."""
    known = {name: count for name, count in states.items() if count}
    first = [(name, known.pop(name, 0)) for name in ("running", "pending")]
    return first + sorted(known.items(), key=lambda each: (-each[1], each[0]))


def shut(nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes that take no jobs."""
    return [node for node in nodes if is_down(node.state) or is_drained(node.state)]


def node_counts(nodes: Iterable[Node]) -> list[tuple[str, int]]:
    """Return nodes by the one word for their state, the most first."""
    return Counter(word(node.state) for node in nodes).most_common()
