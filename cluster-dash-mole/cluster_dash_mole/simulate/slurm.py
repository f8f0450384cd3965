"""The Slurm of a simulated fleet: what one of its hosts says of it. The same seed gives the same queue."""

from collections.abc import Sequence
from random import Random

from cluster_dash_mole.collectors.slurm.block import Block, Found, Source, build
from cluster_dash_mole.collectors.slurm.text import Detail, Finished, Job, Node, Partition
from cluster_dash_mole.simulate import work
from cluster_dash_mole.simulate.fleet import SimulatedHost
from cluster_dash_mole.simulate.night import Fault

INTERVAL_SECONDS = 60.0
CPUS_A_GPU, MIB_A_GPU = 16, 120 * 1024
DAY_SECONDS = 86_400.0
ACCOUNTS = ("physics", "biology", "vision", "language")
REASONS = (
    *("Resources", "Priority", "Priority", "Priority", "QOSMaxGRESPerUser", "Dependency", "BeginTime", "JobHeldUser"),
    *("AssocGrpGRES", "PartitionTimeLimit"),
)
NAMES = ("train-llm", "fold", "md-run", "sweep", "eval", "finetune", "render", "vit-l16")
DRAINED = {
    Fault.LOST_GPU: "Xid 79, GPU off the bus: ticket 4711",
    Fault.HOT: "fan 3 broken: ticket 4712",
}
"""What an admin drained a node for."""
CALM = (None, Fault.FULL_DISK, Fault.COLLECTOR)
"""Faults that Slurm does not see."""
DOWN = {Fault.NO_DRIVER: "gres/gpu count reported lower than configured (0 < 8)", Fault.SILENT: "Not responding"}


class SimulatedSlurm:
    """Slurm as it stands at a moment: every job that runs has its GPUs from it, but for what the faults are.

    Args:
        hosts: its nodes.
        seed: decides what waits.
        began_at: when the night began (Unix s).
    """

    def __init__(self, hosts: Sequence[SimulatedHost], *, seed: int, began_at: float) -> None:
        self._hosts = hosts
        self._seed = seed
        self._began_at = began_at
        self._running: dict[int, Job] = {}
        self._finished: list[Finished] = []
        calm = [host for host in hosts if host.fault in CALM] or list(hosts)
        self.speaker = calm[0]
        # somebody works past Slurm, where things go wrong
        self._passed_by = calm[-1] if any(host.fault for host in hosts) else None

    def block(self, at: float) -> Block:
        """Return what a mole would find at a moment (Unix s) that does not go back."""
        nodes, running, details = [], {}, {}
        for host in self._hosts:
            taken: list[int] = []
            asks = host is not self._passed_by
            for job, gpus in host.jobs_at(at):
                if job is None:
                    continue
                if not asks:  # but all jobs after this one do
                    asks = True
                    continue
                queued = self._job(host, job, len(gpus))
                taken += gpus
                running[queued.id] = queued
                index = f"{gpus[0]}-{gpus[-1]}" if len(gpus) > 1 else str(gpus[0])
                name = "jupyter" if job.work is work.NOTEBOOK else NAMES[job.pid % len(NAMES)]
                details[queued.id] = Detail(name=name, sluid=None, gpu_index=f"{host.hostname}:{index}")
            nodes.append(self._node(host, sorted(taken), at))
        self._end({number: job for number, job in self._running.items() if number not in running}, at)
        self._running = running
        waiting = self._waiting(at)
        details |= {job.id: Detail(name=NAMES[job.id % len(NAMES)], sluid=None, gpu_index="") for job in waiting}
        well = Source(ok=True, at=at, seconds=0.08, error=None)
        return build(
            Found(
                collected_at=at,
                interval_seconds=INTERVAL_SECONDS,
                sources=dict.fromkeys(("nodes", "jobs", "details", "partitions", "sdiag", "finished"), well),
                version="24.11.5",
                cluster="demo",
                nodes=nodes,
                jobs=[*running.values(), *waiting],
                details=details,
                partitions=[
                    Partition(
                        name="gpu",
                        state="up",
                        default=True,
                        node_count=len(nodes),
                        cpus=sum(node.cpus or 0 for node in nodes),
                        max_time_seconds=2 * DAY_SECONDS,
                    )
                ],
                finished=self._finished,
                names={job.id: NAMES[job.id % len(NAMES)] for job in self._finished},
                scheduler={
                    **{"server_threads": 3, "agent_queue": 0, "dbd_agent_queue": 0},
                    **{"main_mean_us": 2400, "backfill_mean_us": 38_000},
                },
            )
        )

    def _node(self, host: SimulatedHost, taken: list[int], at: float) -> Node:
        count = host.gpu_count
        state = "idle" if not taken else "allocated" if len(taken) == count else "mixed"
        reason = ""
        if host.fault in DOWN and host.is_in_trouble(at):
            state, reason = "down+not_responding", DOWN[host.fault]
        elif host.fault in DRAINED and host.is_in_trouble(at):
            state, reason = f"{state}+drain", DRAINED[host.fault]
        cpus = max(count, 1) * CPUS_A_GPU
        return Node(
            name=host.hostname,
            host=host.hostname,
            state=state,
            partitions="gpu",
            cpus=cpus,
            cpus_allocated=len(taken) * CPUS_A_GPU,
            memory_mib=max(count, 1) * MIB_A_GPU,
            memory_allocated_mib=len(taken) * MIB_A_GPU,
            load=None,
            gpus={host.gpu_type: count} if count else {},
            gpus_allocated={host.gpu_type: len(taken)} if taken else {},
            gpu_index=",".join(map(str, taken)),
            features=f"{host.gpu_type},ib",
            reason=reason,
            reason_at=self._began_at if reason else None,
            boot_at=None,
        )

    def _job(self, host: SimulatedHost, job: work.Job, gpus: int) -> Job:
        return Job(
            id=job.pid,
            array=str(job.pid),
            tasks=1,
            state="running",
            user=job.user,
            account=_account(job.user),
            partition="gpu",
            qos="normal",
            node_count=1,
            cpus=gpus * CPUS_A_GPU,
            memory_mib=gpus * MIB_A_GPU,
            gpus=gpus,
            gpu_type=host.gpu_type,
            priority=10_000 + job.pid % 977,
            submitted_at=self._began_at + job.started - 60 - job.pid % 3600,
            started_at=self._began_at + job.started,
            ended_at=None,
            time_limit_seconds=DAY_SECONDS,
            exit="0:0",
            nodes=host.hostname,
            reason="",
        )

    def _end(self, gone: dict[int, Job], at: float) -> None:
        """Keep what ended for a day."""
        for job in gone.values():
            state = ("completed", "completed", "completed", "failed", "timeout", "cancelled")[job.id % 6]
            self._finished.append(
                Finished(
                    id=job.id,
                    array=job.array,
                    user=job.user,
                    account=job.account,
                    partition=job.partition,
                    state=state,
                    exit="1:0" if state == "failed" else "0:0",
                    submitted_at=job.submitted_at,
                    started_at=job.started_at,
                    ended_at=at,
                    cpus=job.cpus,
                    gpus=job.gpus,
                    nodes=job.nodes,
                )
            )
        self._finished = [job for job in self._finished if (job.ended_at or 0) >= at - DAY_SECONDS]

    def _waiting(self, at: float) -> list[Job]:
        """Return what waits: a queue that moves by one job every two minutes."""
        first = int(at // 120)
        return [self._pending(number, at) for number in range(first, first + 6 + len(self._hosts))]

    def _pending(self, number: int, at: float) -> Job:
        random = Random(f"{self._seed}/queue/{number}")
        user, gpus, reason = random.choice(work.USERS), random.choice((1, 2, 4, 8, 8, 16)), random.choice(REASONS)
        identity = 5_000_000 + number % 1_000_000
        is_array = random.random() < 0.2
        tasks = random.randint(2, 40) if is_array else 1
        return Job(
            id=identity,
            array=f"{identity}_[1-{tasks}]" if is_array else str(identity),
            tasks=tasks,
            state="pending",
            user=user,
            account=_account(user),
            partition="gpu",
            qos="normal",
            node_count=max(1, gpus // 8),
            cpus=gpus * CPUS_A_GPU,
            memory_mib=gpus * MIB_A_GPU,
            gpus=gpus,
            gpu_type="",
            priority=9_000 - number % 4_000,
            submitted_at=at - random.uniform(60, 20_000),
            started_at=at + random.uniform(600, 40_000) if reason == "Resources" else None,
            ended_at=None,
            time_limit_seconds=random.choice((3600.0, 14_400.0, DAY_SECONDS)),
            exit="0:0",
            nodes="",
            reason=reason,
        )


def _account(user: str) -> str:
    return ACCOUNTS[sum(map(ord, user)) % len(ACCOUNTS)]
