"""What Slurm's commands print, read: pure text to values, alike for 20.11 to 26.05.

Whoever may submit a job writes parts of this text: its name, comment and command line are printed as they are, newlines
too, and may look like keys, like whole records. So what counts comes from `squeue`, asked for columns that no user can
write; `scontrol show job` adds names and GPU indexes, and is believed only where it agrees with them.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from cluster_dash_mole.snapshot import clean

NAME_LENGTH, REASON_LENGTH, TEXT_LENGTH = 64, 128, 256
MOST_HOSTS = 100_000

ON_NODES = frozenset({"running", "completing", "suspended", "stopped", "signaling", "stage_out", "configuring"})
"""States of a job in which it has its nodes and GPUs."""
OVER = frozenset(
    {
        *("completed", "failed", "timeout", "cancelled", "node_fail", "out_of_memory", "deadline", "preempted"),
        *("boot_fail", "revoked", "launch_failed", "reconfig_fail", "special_exit"),
    }
)
"""States of a job that is finished."""

_UNSET = frozenset({"", "(null)", "N/A", "None", "Unknown", "NONE", "n/a", "UNLIMITED", "INFINITE", "NOT_SET"})
_SUFFIXES = "*~#!%$@^-"
_GPU = re.compile(
    r"(?<![\w/])gpu(?::(?P<type>[^\s:(),]*[^\d\s:(),][^\s:(),]*))?:(?P<count>\d+)(?:\((?P<where>[^)]*)\))?"
)
_NODE_REASON = re.compile(r" Reason=(.*?) \[[^\]@]*@([^\]]*)\]", re.DOTALL)
_HEAD = re.compile(r"JobId=(\d+)(?: [A-Za-z]\w*=\S*)*? JobName=(.*?)(?: SLUID=(\S+))? UserId=", re.DOTALL)
_GROUP = re.compile(r" Nodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*)")
_RANGES = re.compile(r"\[([^\]]*)\]")
_WHOLE = re.compile(r"\d{1,15}")
_TRES = re.compile(r"(?:^|,)([^=,]+)=([^,]*)")
_TASKS = re.compile(r"_\[([^\]%]*)")


class Node(NamedTuple):
    """A node. Memory in 2^20 bytes; `gpus` by type ("" where Slurm names none); `gpu_index` what is allocated.

    `gpu_index` is "" where no GPU is allocated, None where the indexes are not told.
    """

    name: str
    host: str
    state: str
    partitions: str
    cpus: int | None
    cpus_allocated: int | None
    memory_mib: int | None
    memory_allocated_mib: int | None
    load: float | None
    gpus: Mapping[str, int]
    gpus_allocated: Mapping[str, int]
    gpu_index: str | None
    features: str
    reason: str
    reason_at: float | None
    boot_at: float | None


class Job(NamedTuple):
    """A job as `squeue` tells it: nothing here is of its user's writing. `tasks` are those of a pending array."""

    id: int
    array: str
    tasks: int
    state: str
    user: str
    account: str
    partition: str
    qos: str
    node_count: int | None
    cpus: int | None
    memory_mib: int | None
    gpus: int
    gpu_type: str
    priority: int | None
    submitted_at: float | None
    started_at: float | None
    ended_at: float | None
    time_limit_seconds: float | None
    exit: str
    nodes: str
    reason: str


class Detail(NamedTuple):
    """What only `scontrol show job` tells of a job.

    `gpu_index` is `HOSTLIST:INDEXES`, several joined by `;`; "" without GPUs, None where it cannot be seen or believed.
    `gpus` counts those it has or wants, for a Slurm that does not track them as TRES.
    """

    name: str | None
    sluid: str | None
    gpu_index: str | None
    gpus: int = 0


class Partition(NamedTuple):
    """A partition."""

    name: str
    state: str
    default: bool
    node_count: int | None
    cpus: int | None
    max_time_seconds: float | None


class Finished(NamedTuple):
    """A finished job as `sacct` tells it."""

    id: int
    array: str
    user: str
    account: str
    partition: str
    state: str
    exit: str
    submitted_at: float | None
    started_at: float | None
    ended_at: float | None
    cpus: int | None
    gpus: int
    nodes: str


# ------------------------------------------------------------------------------------------------------- values


def value(record: str, key: str) -> str:
    """Return the first word behind ` key=` in a record, "" where there is none."""
    begin = record.find(f" {key}=")
    if begin < 0:
        return ""
    begin += len(key) + 2
    end = record.find(" ", begin)
    return record[begin:] if end < 0 else record[begin:end]


def moment(text: str) -> float | None:
    """Return a moment in Unix s: as SLURM_TIME_FORMAT=%s gives it, or Slurm's own local time."""
    if text.isdecimal():
        return int(text)
    if len(text) != 19:  # N/A, Unknown
        return None
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


@lru_cache(maxsize=4096)
def seconds(text: str) -> float | None:
    """Return a time limit, as in `2-00:00:00`, `30:00`; None where there is none."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, last = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + last


def whole(text: str) -> int | None:
    """Return the number that a text begins with: `2-2` nodes are 2."""
    if text.isdecimal() and len(text) < 16:
        return int(text)
    found = _WHOLE.match(text)
    return int(found[0]) if found else None


def decimal(text: str) -> float | None:
    """Return a number, None where the text is none."""
    try:
        return float(text)
    except ValueError:
        return None


def mib(text: str) -> int | None:
    """Return an amount of memory in 2^20 bytes: `200G`; a bare number is 2^20 bytes already."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)[nc]?", text)
    if found is None:
        return None
    return round(float(found[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2, "P": 1024**3}[found[2]])


def plain(text: str, limit: int = TEXT_LENGTH) -> str:
    """Return a word of Slurm's, "" for its ways to say that there is none."""
    return "" if text in _UNSET else clean(text, limit)


def node_state(text: str) -> str:
    """Return a state with all its flags, in lower case: `idle+drain`."""
    return clean("+".join(part.rstrip(_SUFFIXES) for part in text.lower().split("+")), TEXT_LENGTH)


def expand(hostlist: str) -> list[str]:
    """Return the names that a hostlist stands for; at most MOST_HOSTS."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", hostlist):
        pieces = _RANGES.split(part)
        choices = [list(_numbers(piece)) if place % 2 else [piece] for place, piece in enumerate(pieces)]
        size = 1
        for choice in choices:
            size *= len(choice)
        if len(names) + size > MOST_HOSTS:
            break
        names += ["".join(chosen) for chosen in product(*choices)]
    return names


def _numbers(ranges: str) -> Iterator[str]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not last)):
            yield part
            continue
        for number in range(int(first), min(int(last or first), int(first) + MOST_HOSTS) + 1):
            yield str(number).zfill(len(first))


def gpus_of(gres: str) -> dict[str, int]:
    """Return the GPUs of a GRES by type: `gpu:a100:1,gpu:h100:2(S:0-1)`; shards and MPS are none."""
    counts: dict[str, int] = {}
    for found in _GPU.finditer(gres):
        if int(found["count"]):
            kind = found["type"] or ""
            counts[kind] = counts.get(kind, 0) + int(found["count"])
    return counts


def indexes_of(gres: str) -> str | None:
    """Return the indexes that a GRES names, "" for no GPU, None where it does not name those of all."""
    parts = []
    for found in _GPU.finditer(gres):
        where = found["where"] or ""
        if not int(found["count"]):
            continue
        if not re.fullmatch(r"IDX:[\d,-]+", where):
            return None
        parts.append(where[4:])
    return ",".join(parts)


def tres(text: str) -> dict[str, str]:
    """Return the parts of `cpu=16,mem=200G,gres/gpu:h100=4`."""
    return dict(_TRES.findall(text))


@lru_cache(maxsize=4096)  # jobs are alike
def _amounts(text: str) -> tuple[int, str, int | None]:
    """Return of a TRES the GPUs, their type ("" where none is named), and the memory in 2^20 bytes."""
    parts = tres(text)
    kinds = {key[9:]: whole(count) or 0 for key, count in parts.items() if key.startswith("gres/gpu:")}
    total = whole(parts.get("gres/gpu", ""))
    gpu_type = clean(max(kinds, key=lambda kind: kinds[kind], default=""), TEXT_LENGTH)
    return sum(kinds.values()) if total is None else total, gpu_type, mib(parts.get("mem", ""))


def _records(lines: Iterable[str], begin: str) -> Iterator[str]:
    """Put lines together to records, each of which begins with the given text at the start of a line."""
    record: list[str] = []
    for line in lines:
        if line.startswith(begin):
            if record:
                yield "".join(record)
            record = [line]
        elif record:
            record.append(line)
    if record:
        yield "".join(record)


# ------------------------------------------------------------------------------------------------------- tables


def parse_nodes(lines: Iterable[str]) -> list[Node]:
    """Read `scontrol -o -d show node`."""
    return [_node(record.rstrip("\n")) for record in _records(lines, "NodeName=")]


def _node(record: str) -> Node:
    reason = _NODE_REASON.search(record)
    gres, used = value(record, "Gres"), value(record, "GresUsed")
    gpus = gpus_of(gres)
    allocated, index = gpus_of(used), indexes_of(used)
    if not used:  # without GPUs; or an older Slurm that was asked without -d
        count, kind, _ = _amounts(value(record, "AllocTRES"))
        allocated = {kind: count} if count else {}
        index = None if count else ""
    return Node(
        name=clean(record.partition(" ")[0].removeprefix("NodeName="), TEXT_LENGTH),
        host=plain(value(record, "NodeHostName")),
        state=node_state(value(record, "State")),
        partitions=plain(value(record, "Partitions"), 1024),
        cpus=whole(value(record, "CPUTot")),
        cpus_allocated=whole(value(record, "CPUAlloc")),
        memory_mib=mib(value(record, "RealMemory")),
        memory_allocated_mib=mib(value(record, "AllocMem")),
        load=decimal(value(record, "CPULoad")),
        gpus=gpus,
        gpus_allocated=allocated,
        gpu_index=index,
        features=plain(value(record, "ActiveFeatures") or value(record, "AvailableFeatures")),
        reason=clean(reason[1], REASON_LENGTH) if reason else "",
        reason_at=moment(reason[2]) if reason else None,
        boot_at=moment(value(record, "BootTime")),
    )


QUEUE_COLUMNS = (
    *("JobArrayID", "JobID", "State", "UserName", "Account", "Partition", "QOS", "NumNodes", "NumCPUs", "tres-alloc"),
    *("PriorityLong", "SubmitTime", "StartTime", "EndTime", "TimeLimit", "exit_code", "NodeList", "Reason"),
)
"""The columns that `squeue` is asked for: none that a user can write; the one with free text last."""


def parse_queue(lines: Iterable[str]) -> tuple[list[Job], int]:
    """Read `squeue`, asked for QUEUE_COLUMNS with a `|` behind each.

    Returns:
        the jobs, and how many lines could not be read.
    """
    jobs, unread = [], 0
    for line in lines:
        parts = line.rstrip("\n").removesuffix("|").split("|", len(QUEUE_COLUMNS) - 1)
        if len(parts) != len(QUEUE_COLUMNS) or not parts[1].isdigit():
            unread += bool(line.strip())
            continue
        jobs.append(_job(parts))
    return jobs, unread


def _job(parts: list[str]) -> Job:
    (array, number, state, user, account, partition, qos, nodes, cpus) = parts[:9]
    (allocated, priority, submitted, started, ended, limit, code, hosts, reason) = parts[9:]
    gpus, gpu_type, memory_mib = _amounts(allocated)
    status = whole(code) or 0
    return Job(
        id=int(number),
        array=clean(array, TEXT_LENGTH),
        tasks=tasks(array),
        state=clean(state.lower(), TEXT_LENGTH),
        user=plain(user),
        account=plain(account),
        partition=plain(partition),
        qos=plain(qos),
        node_count=whole(nodes),
        cpus=whole(cpus),
        memory_mib=memory_mib,
        gpus=gpus,
        gpu_type=gpu_type,
        priority=whole(priority),
        submitted_at=moment(submitted),
        started_at=moment(started),
        ended_at=moment(ended),
        time_limit_seconds=seconds(limit),
        exit=f"{status >> 8}:{status & 127}",  # as wait() gives it
        nodes=plain(hosts, 4096),
        reason=plain(reason, REASON_LENGTH),
    )


def tasks(array: str) -> int:
    """Return how many jobs a line stands for: `5_[1,7-9%2]` are four."""
    found = _TASKS.search(array) if "[" in array else None
    if found is None:
        return 1
    count = 0
    for part in found[1].split(","):
        bounds = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", part)
        if bounds is None:
            continue
        first, last, step = int(bounds[1]), int(bounds[2] or bounds[1]), int(bounds[3] or 1)
        count += max(0, (last - first) // max(1, step) + 1)
    return max(1, count)


def parse_details(lines: Iterable[str], jobs: Mapping[int, Job]) -> dict[int, Detail]:
    """Read `scontrol -o -d show job`, of jobs that the queue knows.

    A job's name may forge keys, or a record of another job. So GPU indexes count only where they fit nodes and number
    of GPUs in the queue, and neither keys nor the id come twice.
    """
    details: dict[int, Detail] = {}
    seen_twice = set()
    for record in _records(lines, "JobId="):
        head = _HEAD.match(record)
        number = int(head[1]) if head and len(head[1]) < 19 else -1
        if head is None or number not in jobs:
            continue
        if number in details:
            seen_twice.add(number)
        forged = record.find(" UserId=", head.end()) >= 0
        job = jobs[number]
        index, gpus = (None, 0) if forged else _gpus_of_record(record[head.end() :], job)
        details[number] = Detail(
            name=clean(head[2], NAME_LENGTH), sluid=plain(head[3] or "") or None, gpu_index=index, gpus=gpus
        )
    for number in seen_twice:
        details[number] = Detail(name=None, sluid=None, gpu_index=None)
    return details


def _gpus_of_record(record: str, job: Job) -> tuple[str | None, int]:
    """Return on which GPUs a job runs and how many it has or wants, as in Detail, from its record behind its name."""
    if job.state not in ON_NODES:
        return "", 0 if job.gpus or job.state in OVER else _wanted(record, job)
    record = record.partition(" Command=")[0]
    groups, count, hosts = [], 0, None
    for found in _GROUP.finditer(record):
        here = sum(gpus_of(found[2]).values())
        if not here:
            continue
        index = indexes_of(found[2])
        if index is None:
            return None, 0
        if hosts is None:
            hosts = set(expand(job.nodes))
        names = expand(found[1])
        if not hosts.issuperset(names):
            return None, 0
        groups.append(f"{found[1]}:{index}")
        count += here * len(names)
    if job.gpus and count != job.gpus:
        return None, 0
    return clean(";".join(groups), 4096), count


def _wanted(record: str, job: Job) -> int:
    """Return how many GPUs a pending job asks for, where they are not tracked as TRES."""
    for key, times in (("TresPerJob", 1), ("TresPerNode", job.node_count or 1), ("TresPerTask", None)):
        each = value(record, key).replace("gres/gpu=", "gpu:").replace("gres/gpu", "gpu")
        if count := sum(gpus_of(each).values()):
            return count * ((whole(value(record, "NumTasks")) or 1) if times is None else times)
    return 0


def parse_partitions(lines: Iterable[str]) -> list[Partition]:
    """Read `scontrol -o show partition`."""
    return [
        Partition(
            name=clean(record.split(None, 1)[0].removeprefix("PartitionName="), TEXT_LENGTH),
            state=clean(value(record, "State").lower(), TEXT_LENGTH),
            default=value(record, "Default") == "YES",
            node_count=whole(value(record, "TotalNodes")),
            cpus=whole(value(record, "TotalCPUs")),
            max_time_seconds=seconds(value(record, "MaxTime")),
        )
        for record in _records((line.rstrip("\n") + " " for line in lines), "PartitionName=")
    ]


FINISHED_COLUMNS = (
    *("JobIDRaw", "JobID", "User", "Account", "Partition", "State", "ExitCode", "Submit", "Start", "End"),
    *("NCPUS", "AllocTRES", "ReqTRES", "NodeList"),
)
"""The columns that `sacct` is asked for: no name, comment or command line."""


def parse_finished(lines: Iterable[str]) -> list[Finished]:
    """Read `sacct -P -n`, asked for FINISHED_COLUMNS."""
    jobs = []
    for line in lines:
        parts = line.rstrip("\n").split("|")
        if len(parts) != len(FINISHED_COLUMNS) or not parts[0].isdigit():
            continue
        (number, array, user, account, partition, state, code, submitted, started, ended) = parts[:10]
        (cpus, allocated, wanted, nodes) = parts[10:]
        jobs.append(
            Finished(
                id=int(number),
                array=clean(array, TEXT_LENGTH),
                user=plain(user),
                account=plain(account),
                partition=plain(partition),
                state=clean(state.lower().partition(" ")[0], TEXT_LENGTH),  # CANCELLED by 1000
                exit=clean(code, 16),
                submitted_at=moment(submitted),
                started_at=moment(started),
                ended_at=moment(ended),
                cpus=whole(cpus),
                gpus=_amounts(allocated or wanted)[0],
                nodes="" if nodes == "None assigned" else plain(nodes, 4096),
            )
        )
    return jobs


_SCHEDULER = {
    "server_threads": r"^Server thread count:\s+(\d+)",
    "agent_queue": r"^Agent queue size:\s+(\d+)",
    "dbd_agent_queue": r"^DBD Agent queue size:\s+(\d+)",
    "main_mean_us": r"^Main schedule.*?^\s+Mean cycle:\s+(\d+)",
    "backfill_mean_us": r"^Backfilling stats.*?^\s+Mean cycle:\s+(\d+)",
}
_PATTERNS = {name: re.compile(pattern, re.MULTILINE | re.DOTALL) for name, pattern in _SCHEDULER.items()}


def parse_scheduler(text: str) -> dict[str, int | None]:
    """Read `sdiag`: threads and queues of slurmctld, and the mean time of its cycles in µs."""
    return {name: int(found[1]) if (found := pattern.search(text)) else None for name, pattern in _PATTERNS.items()}


def parse_config(lines: Iterable[str]) -> dict[str, str]:
    """Read `scontrol show config`."""
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): clean(text.strip(), TEXT_LENGTH) for key, equals, text in pairs if equals}
