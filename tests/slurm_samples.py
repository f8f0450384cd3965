"""What Slurm prints of a large cluster: generated text, answered to the mole's collector in place of commands."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from tests.processes import TOP

FINISHED_AT = 1795294000
"""About when its finished jobs ended, Unix s."""
SDIAG = TOP / "tests/slurm-lab/samples/24.11/sdiag.txt"


class Generated:
    """Answers commands from texts, by their first words."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers = dict(answers)

    def ask(self, command: Sequence[str], limit_seconds: float) -> IO[str]:
        assert limit_seconds > 0
        line = " ".join(command)
        return io.StringIO(next(text for name, text in self.answers.items() if line.startswith(name)))


def large(nodes: int, gpu_nodes: int, jobs: int, running: int) -> Generated:
    """A generated cluster: 8 GPUs on each of its GPU nodes, jobs of 50 users, those that run on 4 GPUs of one node."""
    return Generated(
        {
            "scontrol -V": "slurm 24.11.5\n",
            "scontrol -o -d show node": "".join(_nodes(nodes, gpu_nodes)),
            "squeue": "".join(_queue(gpu_nodes, jobs, running)),
            "scontrol -o -d show job": "".join(_details(gpu_nodes, jobs, running)),
            "scontrol -o show partition": "PartitionName=gpu Default=YES MaxTime=2-00:00:00 State=UP TotalNodes=500\n",
            "scontrol show config": "ClusterName = large\nPrivateData = none\n",
            "sdiag": SDIAG.read_text(),
            "sacct": "".join(_finished(2000)),
        }
    )


def _nodes(nodes: int, gpu_nodes: int) -> Iterator[str]:
    gpus = "Gres=gpu:h100:8(S:0-1) GresDrain=N/A GresUsed=gpu:h100:6(IDX:0-5)"
    for place in range(nodes):
        has_gpus = place < gpu_nodes
        name = f"gpu{place + 1:04}" if has_gpus else f"cpu{place + 1:04}"
        state = ("IDLE", "MIXED", "ALLOCATED", "IDLE+DRAIN", "DOWN*", "MIXED+PLANNED")[place % 6]
        yield (
            f"NodeName={name} Arch=x86_64 CoresPerSocket=32  CPUAlloc={place % 65} CPUEfctv=64 CPUTot=64 "
            f"CPULoad={place % 7}.25 AvailableFeatures=h100,ib ActiveFeatures=h100,ib "
            f"{gpus if has_gpus else 'Gres=(null) GresDrain=N/A'} NodeAddr={name} "
            f"NodeHostName={name} Version=24.11.5 OS=Linux 6.1.0 #1 SMP PREEMPT_DYNAMIC Debian  RealMemory=1024000 "
            f"AllocMem={place * 100} FreeMem=23086 Sockets=2 Boards=1 State={state} ThreadsPerCore=1 TmpDisk=0 "
            f"Weight=1 Owner=N/A MCS_label=N/A Partitions={'gpu,all' if has_gpus else 'cpu,all'}  "
            f"BootTime=1795200000 SlurmdStartTime=1795200100 CfgTRES=cpu=64,mem=1000G,billing=64,gres/gpu=8 "
            f"AllocTRES=cpu=24,mem=232G Reason=ticket {place} [root@1795294285]\n"
        )


def _place(number: int, gpu_nodes: int) -> tuple[str, str]:
    return f"gpu{number // 2 % gpu_nodes + 1:04}", "0-3" if number % 2 else "4-7"


def _queue(gpu_nodes: int, jobs: int, running: int) -> Iterator[str]:
    tres = "cpu=16,mem=200G,node=1,billing=16,gres/gpu=4,gres/gpu:h100=4"
    reasons = ("Priority", "Resources", "QOSMaxGRESPerUser")
    for number in range(1, jobs + 1):
        runs = number <= running
        submitted = 1795200000 + 3 * number
        row: list[object] = [1_000_000 + number, 1_000_000 + number, "RUNNING" if runs else "PENDING"]
        row += [f"user{number % 50:02}", f"account{number % 12}", "gpu", "normal", 1, 16, tres, 5_000_000 - 13 * number]
        row += [submitted, submitted + 7 * (number % 997) if runs else "N/A", "N/A", "2-00:00:00", 0]
        row += [_place(number, gpu_nodes)[0], "None"] if runs else ["", reasons[number % 3]]
        yield "|".join(map(str, row)) + "|\n"


def _details(gpu_nodes: int, jobs: int, running: int) -> Iterator[str]:
    for number in range(1, jobs + 1):
        runs = number <= running
        node, index = _place(number, gpu_nodes)
        group = f"JOB_GRES=gpu:h100:4 Nodes={node} CPU_IDs=0-15 Mem=204800 GRES=gpu:h100:4(IDX:{index}) "
        yield (
            f"JobId={1_000_000 + number} JobName=train-{number * 7919 % 100_003:x}-lr{number % 17} "
            f"UserId=user{number % 50:02}(1000) GroupId=users(100) MCS_label=N/A Priority={5_000_000 - 13 * number} "
            f"Nice=0 Account=account{number % 12} QOS=normal JobState={'RUNNING' if runs else 'PENDING'} Reason=None "
            "Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 DerivedExitCode=0:0 "
            "RunTime=00:01:27 TimeLimit=2-00:00:00 TimeMin=N/A SubmitTime=1795200000 EligibleTime=1795200000 "
            "AccrueTime=1795200000 StartTime=1795200000 EndTime=1795200000 Deadline=N/A SuspendTime=None "
            "SecsPreSuspend=0 LastSchedEval=1795200000 Scheduler=Main Partition=gpu AllocNode:Sid=localhost:2762 "
            f"ReqNodeList=(null) ExcNodeList=(null) NodeList={node} BatchHost={node} NumNodes=1 NumCPUs=16 NumTasks=1 "
            "CPUs/Task=16 ReqB:S:C:T=0:0:*:* ReqTRES=cpu=16,mem=200G,node=1,billing=16,gres/gpu=4 "
            "AllocTRES=cpu=16,mem=200G,node=1,billing=16 Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=* "
            f"{group if runs else ''}MinCPUsNode=16 MinMemoryNode=200G MinTmpDiskNode=0 Features=(null) "
            "DelayBoot=00:00:00 OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null) "
            f"Command=/home/user{number % 50:02}/project/run.sh WorkDir=/home/user{number % 50:02}/project "
            f"StdErr=/home/user/out/{number}.err StdIn=/dev/null StdOut=/home/user/out/{number}.out "
            "TresPerNode=gres/gpu:h100:4\n"
        )


def _finished(jobs: int) -> Iterator[str]:
    tres = "cpu=16,gres/gpu=4,mem=200G,node=1"
    for number in range(jobs):
        state = ("COMPLETED", "FAILED", "CANCELLED by 1000", "TIMEOUT", "COMPLETED")[number % 5]
        ended = FINISHED_AT + number % 300
        yield (
            f"{900_000 + number}|{900_000 + number}|user{number % 50:02}|account{number % 12}|gpu|{state}|0:0|"
            f"{ended - 9000 - number}|{ended - 4000 - number}|{ended}|16|{tres}|{tres}|gpu{number % 500 + 1:04}\n"
        )
