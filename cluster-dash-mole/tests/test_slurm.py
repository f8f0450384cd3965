"""The collector of Slurm, on what three versions of it really printed, and on what people may make it print."""

import contextlib
import io
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_mole.collectors.slurm import SlurmCollector, block, text
from cluster_dash_mole.collectors.slurm.ask import AskError, Commands
from cluster_dash_mole.mole import Reading

SAMPLES = Path(__file__).parents[2] / "tests/slurm-lab/samples"
VERSIONS = ("22.05", "24.11", "26.05")


def read(version: str, name: str) -> str:
    return (SAMPLES / version / name).read_text()


def queue(version: str) -> str:
    """The recorded queue in the columns that the mole asks for: recorded were others, by `-o`, and TRES by `-O`.

    A pending array stands as one line, as without `-r`.
    """
    wide = [line.split(";") for line in read(version, "squeue-O.txt").splitlines()]
    amounts = {parts[1]: parts[9] for parts in wide}
    lines: list[list[str]] = []
    arrays: dict[str, list[str]] = {}
    for line in read(version, "squeue-parse.txt").splitlines():
        parts = line.split("|", 20)
        (array, number, _, _, state, user, account, partition, nodes, cpus) = parts[:10]
        (_, _, submitted, started, ended, _, _, limit, reason, hosts, _) = parts[10:]
        if state == "PENDING" and "_" in array:
            arrays.setdefault(number, []).append(array.partition("_")[2])
            array = f"{number}_[{','.join(arrays[number])}]"
            lines = [each for each in lines if each[1] != number]
        code = {"FAILED": str(3 << 8), "CANCELLED": "15"}.get(state, "0")
        row = [array, number, state, user, account, partition, "normal", nodes, cpus, amounts.get(number, "")]
        lines.append([*row, "1", submitted, started, ended, limit, code, hosts, reason])
    return "".join("|".join(row) + "|\n" for row in lines)


def finished(version: str) -> str:
    """The recorded answer of the accounting in the mole's columns."""
    lines = []
    for line in read(version, "sacct-finished-P.txt").splitlines():
        parts = line.split("|")
        (array, number, _, user, account, partition, state, code, _, submitted, started, ended) = parts[:12]
        (_, _, _, cpus, _, wanted, allocated, nodes, _) = parts[12:]
        row = [number, array, user, account, partition, state, code, submitted, started, ended]
        lines.append("|".join([*row, cpus, allocated, wanted, nodes]))
    return "\n".join(lines) + "\n"


class Recorded:
    """Answers commands from texts, by their first words; an exception is raised. Counts what was asked."""

    def __init__(self, answers: Mapping[str, str | AskError]) -> None:
        self.answers = dict(answers)
        self.asked: list[str] = []

    def ask(self, command: Sequence[str], limit_seconds: float) -> IO[str]:
        assert limit_seconds > 0
        line = " ".join(command)
        name = next((name for name in self.answers if line.startswith(name)), None)
        assert name is not None, line
        self.asked.append(name)
        answer = self.answers[name]
        if isinstance(answer, AskError):
            raise answer
        return io.StringIO(answer)


def recorded(version: str) -> Recorded:
    return Recorded(
        {
            "scontrol -V": f"slurm-wlm {read(version, 'version.txt').split()[-1]}\n",
            "scontrol -o -d show node": read(version, "scontrol-nodes-d-o.txt"),
            "squeue": queue(version),
            "scontrol -o -d show job": read(version, "scontrol-jobs-d-o.txt"),
            "scontrol -o show partition": read(version, "scontrol-partitions-o.txt"),
            "scontrol show config": read(version, "scontrol-config.txt"),
            "sdiag": read(version, "sdiag.txt"),
            "sacct": finished(version),
        }
    )


class ManualClock:
    """A clock that goes when it is told to; asleep, the world ends."""

    def __init__(self) -> None:
        self.seconds = 1_795_294_400.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def collector(clock: ManualClock, commands: Recorded, interval: float = 60) -> SlurmCollector:
    return SlurmCollector(clock=clock, interval=interval, commands=commands, at_once=True)


def block_of(reading: Reading) -> dict[str, Any]:
    found = reading.once["slurm"]
    assert isinstance(found, dict)
    return found


def rows(found: Mapping[str, Any], table: str, *names: str) -> list[tuple[Any, ...]]:
    """Columns of a table as rows; texts in place of their places."""
    texts = {
        "state",
        "partitions",
        "gpu",
        "features",
        "reason",
        "user",
        "account",
        "partition",
        "qos",
        "gpu_type",
        "exit",
    }
    columns = [
        [found["strings"][each] for each in found[table][name]] if name in texts else found[table][name]
        for name in names
    ]
    return list(zip(*columns, strict=True))


# --------------------------------------------------------------------------------------------- recorded answers


@pytest.mark.parametrize("version", VERSIONS)
def test_the_nodes_of_each_version_read_as_sinfo_prints_them(version: str) -> None:
    nodes = text.parse_nodes(io.StringIO(read(version, "scontrol-nodes-d-o.txt")))
    said = {}
    for line in read(version, "sinfo-parse-nodes.txt").splitlines():
        name, partition, state, cpus, memory, _, _, gres, features, reason = line.split("|")
        allocated, _, _, total = map(int, cpus.split("/"))
        reason, gres = reason.replace("none", ""), gres.replace("(null)", "")
        said[name] = (partition, state.rstrip("*-"), allocated, total, int(memory), gres, features, reason)
    assert said == {
        node.name: (
            node.partitions,
            block.node_word(node.state),
            node.cpus_allocated,
            node.cpus,
            node.memory_mib,
            "".join(f"gpu:{kind}:{count}" for kind, count in node.gpus.items()),
            node.features,
            node.reason,
        )
        for node in nodes
    }
    assert {node.name: node.gpu_index for node in nodes if node.gpus} == {"gpu1": "0-5", "gpu2": "0-5"}
    assert [node.state for node in nodes[1:3]] == ["idle+drain", "down+not_responding"]
    assert all(node.boot_at for node in nodes)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_totals_of_each_version_are_those_that_slurm_prints(version: str, clock: ManualClock) -> None:
    found = block_of(collector(clock, recorded(version)).collect())
    allocated, idle, other, total = map(int, read(version, "sinfo-parse-CPUs.txt").split("/"))
    totals = found["totals"]
    assert totals["cpus"] == {"total": total, "allocated": allocated, "idle": idle, "other": other}
    assert totals["gpus"] == {"total": 16, "allocated": 12, "idle": 4, "drained": 0, "down": 0}
    assert totals["gpu_types"] == {"h100": totals["gpus"]}
    states = Counter(line.split("|")[4].lower() for line in read(version, "squeue-parse.txt").splitlines())
    assert totals["jobs"] == states
    assert states["pending"] == 8
    assert totals["pending_gpus"] == 25
    assert found["version"].startswith(version)
    assert found["scheduler"]["main_mean_us"] == int(re.findall(r"Mean cycle:\s+(\d+)", read(version, "sdiag.txt"))[0])


def test_what_describes_the_same_cluster_reads_the_same_in_each_version(clock: ManualClock) -> None:
    blocks = [block_of(collector(clock, recorded(version)).collect()) for version in VERSIONS]
    job = ("name", "user", "account", "partition", "nodes", "cpus", "gpus", "gpu_type", "gpu_index", "memory_mib")
    on_nodes = [sorted(row[1:] for row in rows(each, "jobs", "state", *job) if row[0] == "running") for each in blocks]
    for each in on_nodes:
        assert {row[0]: row[8] for row in each if row[6]} == {
            "train-llm": "gpu1:0-3",
            "fold-batch": "gpu2:0-3",
            "ddp-2node": "gpu1:4-5;gpu2:4-5",
        }
        # one version was recorded before the job that was to time out had done so
        assert [row for row in each if row[0] != "timed-out"] == [row for row in on_nodes[0] if row[0] != "timed-out"]
    waiting = [
        sorted(row[1:] for row in rows(each, "jobs", "state", "name", "reason", "tasks", "gpus") if row[0] == "pending")
        for each in blocks
    ]
    assert waiting[0] == waiting[1] == waiting[2]
    assert {row[1] for row in waiting[0]} == {
        *("Resources", "Priority", "Dependency", "BeginTime", "JobHeldUser", "PartitionTimeLimit", "JobArrayTaskLimit"),
    }
    ended = [sorted(rows(each, "finished", "name", "state", "user", "gpus")) for each in blocks]
    assert all({row[0]: row[1] for row in each}["node-crash"] == "node_fail" for each in ended)
    partitions = [
        [(each["name"], each["gpus"], each["max_time_seconds"]) for each in one["partitions"]] for one in blocks
    ]
    assert partitions == [[("cpu", 0, 86_400), ("gpu", 16, 172_800)]] * 3


def test_a_pending_array_is_one_line_and_counts_its_tasks(clock: ManualClock) -> None:
    found = block_of(collector(clock, recorded("22.05")).collect())
    assert ("5_[5,6]", 2) in rows(found, "jobs", "array", "tasks")
    assert [text.tasks(each) for each in ("5", "5_3", "5_[1,7-9%2]", "5_[0-10:5]", "5_[…]")] == [1, 1, 4, 3, 1]


def test_a_newer_slurm_names_its_cgroups_by_sluid(clock: ManualClock) -> None:
    found = block_of(collector(clock, recorded("26.05")).collect())
    assert ("train-llm", "s6KXM7ZXA15900") in rows(found, "jobs", "name", "sluid")


@pytest.mark.parametrize(
    ("gres", "counts", "indexes"),
    [
        ("gpu:h100:2(IDX:4-5)", {"h100": 2}, "4-5"),
        ("gpu:h100:4(IDX:0-3,7)", {"h100": 4}, "0-3,7"),
        ("gpu:2", {"": 2}, None),
        ("gpu:a100:1(IDX:0),gpu:h100:2(IDX:1-2)", {"a100": 1, "h100": 2}, "0,1-2"),
        ("gpu:h100:0(IDX:N/A)", {}, ""),
        ("gpu:h100:2(CNT:2)", {"h100": 2}, None),
        ("gpu:a100:4(S:0-1),shard:a100:16(S:0-1),mps:400", {"a100": 4}, None),
        ("shard:h100:3(2/8,1/8)", {}, ""),
        ("gpu:0", {}, ""),
        ("(null)", {}, ""),
    ],
)
def test_all_ways_to_write_gpus_are_read(gres: str, counts: dict[str, int], indexes: str | None) -> None:
    assert (text.gpus_of(gres), text.indexes_of(gres)) == (counts, indexes)


def test_gpus_that_are_not_tracked_as_tres_are_counted_by_the_details() -> None:
    lines = queue("22.05").replace(",gres/gpu=8,gres/gpu:h100=8", "").replace(",gres/gpu=4,gres/gpu:h100=4", "")
    jobs = {job.id: job for job in text.parse_queue(io.StringIO(lines))[0]}
    details = text.parse_details(io.StringIO(read("22.05", "scontrol-jobs-d-o.txt")), jobs)
    by_name = {detail.name: block.gpus(jobs[number], detail) for number, detail in details.items()}
    assert (by_name["train-llm"], by_name["wants-8gpu"], by_name["cpu-sim"]) == (4, 8, 0)


@pytest.mark.parametrize(
    ("written", "meant"), [("2-00:00:00", 172_800), ("30:00", 1800), ("5", 5), ("1:00:00", 3600), ("UNLIMITED", None)]
)
def test_time_limits(written: str, meant: float | None) -> None:
    assert text.seconds(written) == meant


def test_hostlists_expand_to_names() -> None:
    assert text.expand("gpu[01-03,07],login") == ["gpu01", "gpu02", "gpu03", "gpu07", "login"]
    assert text.expand("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]
    assert text.expand("") == []
    assert text.expand("x[1-999999999]") == []


# ---------------------------------------------------------------------------------------------- what users write

FORGED = (
    "x UserId=root(0) GroupId=root(0) MCS_label=N/A JobState=FAILED NodeList=gpu2 "
    "JOB_GRES=gpu:h100:4   Nodes=gpu1 CPU_IDs=0-15 Mem=1 GRES=gpu:h100:4(IDX:4-7) y"
)


def renamed(name: str) -> str:
    """The recorded details, with another name of job 1, which has GPUs 0-3 of gpu1."""
    return read("22.05", "scontrol-jobs-d-o.txt").replace("JobName=train-llm ", f"JobName={name} ", 1)


def details_with(name: str) -> dict[int, text.Detail]:
    jobs = {job.id: job for job in text.parse_queue(io.StringIO(queue("22.05")))[0]}
    return text.parse_details(io.StringIO(renamed(name)), jobs)


def test_a_name_that_forges_keys_costs_the_indexes_of_its_own_job_only() -> None:
    honest, forged = details_with("train-llm"), details_with(FORGED)
    assert forged[1].gpu_index is None
    assert {**forged, 1: honest[1]} == honest


def test_a_name_that_forges_a_record_costs_the_indexes_of_both_jobs() -> None:
    record = "JobId=2 JobName=z UserId=root(0) Command="
    honest, forged = details_with("train-llm"), details_with(f"a\n{record}")
    assert 1 not in forged
    assert (forged[2].name, forged[2].gpu_index) == (None, None)
    assert {**forged, 1: honest[1], 2: honest[2]} == honest


def test_a_record_of_a_job_that_the_queue_does_not_know_is_dropped() -> None:
    assert 99 not in details_with("a\nJobId=99 JobName=z UserId=root(0) JobState=RUNNING")


WORDS = st.sampled_from(
    [
        *(
            "\n",
            "\r\n",
            " ",
            "  ",
            "=",
            '"',
            "'",
            "|",
            "\t",
            "\x1b[2J",
            "%",
            "\u202e",
            "UserId=root(0)",
            "JobName=",
            "SLUID=s1",
        ),
        *("JobId=2", "JobId=99", "Command=", "NodeList=gpu2", "GRES=gpu:h100:8(IDX:0-7)", "Nodes=gpu1 CPU_IDs=0 Mem=1"),
        *(
            "JobState=FAILED",
            "Reason=",
            "TRES=gres/gpu=4",
            "\nJobId=3 JobName=b UserId=x(1)",
            "srun --wrap x",
            "<img onerror=1>",
        ),
    ]
)


@given(name=st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=12).map("".join))
def test_no_name_changes_what_is_known_of_a_job_it_does_not_pretend_to_be(name: str) -> None:
    honest, after = details_with("train-llm"), details_with(name.replace("\x00", ""))
    named = {
        int(number) for number in re.findall(r"^JobId=(\d{1,18})", renamed(name), re.MULTILINE) if name.count(number)
    }
    for number, detail in honest.items():
        if number == 1:
            assert number not in after or after[1].gpu_index in (None, "gpu1:0-3")
        elif number not in named:
            assert after[number] == detail
        else:
            assert after[number].gpu_index in (None, detail.gpu_index)
    assert all(detail.name is None or detail.name.isprintable() for detail in after.values())


@given(reason=st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=8).map("".join))
def test_no_reason_of_a_node_or_a_job_changes_the_rest(reason: str) -> None:
    reason = reason.replace("NodeName=", "")
    nodes = read("22.05", "scontrol-nodes-d-o.txt")
    before = text.parse_nodes(io.StringIO(nodes))
    after = text.parse_nodes(io.StringIO(nodes.replace("bad DIMM, ticket 4711", reason)))
    assert [node._replace(reason="", reason_at=None) for node in after] == [
        node._replace(reason="", reason_at=None) for node in before
    ]
    lines = queue("22.05")
    known = text.parse_queue(io.StringIO(lines))[0]
    one_line = reason.replace("\n", " ").replace("\r", " ")
    said = text.parse_queue(io.StringIO(lines.replace("|BeginTime|", f"|{one_line}|", 1), newline="\n"))[0]
    assert [job._replace(reason="") for job in said] == [job._replace(reason="") for job in known]


@given(noise=st.text(max_size=400))
def test_no_text_makes_a_reader_fail(noise: str) -> None:
    jobs = {job.id: job for job in text.parse_queue(io.StringIO(queue("22.05")))[0]}
    for cut in range(0, 400, 90):
        broken = read("22.05", "scontrol-jobs-d-o.txt")[:cut] + noise
        text.parse_details(io.StringIO(broken), jobs)
        text.parse_nodes(io.StringIO("NodeName=" + broken))
        text.parse_partitions(io.StringIO("PartitionName=x" + broken))
        text.parse_queue(io.StringIO(broken))
        text.parse_finished(io.StringIO(broken))
        text.parse_scheduler(broken)
        text.parse_config(io.StringIO(broken))


# ------------------------------------------------------------------------------------------------ rounds in time

RPCS = {
    "scontrol -o -d show node": 2,
    "squeue": 2,
    "scontrol -o -d show job": 2,
    "scontrol -o show partition": 1,
    "scontrol show config": 2,
    "sdiag": 1,
}


def test_no_round_of_six_hours_asks_more_than_eight_rpcs(clock: ManualClock) -> None:
    commands = recorded("22.05")
    slurm = collector(clock, commands)
    asked: Counter[str] = Counter()
    for _ in range(6 * 60):
        commands.asked.clear()
        slurm.collect()
        assert sum(RPCS.get(name, 0) for name in commands.asked) <= 8
        asked.update(commands.asked)
        clock.seconds += 60.2
    assert asked["scontrol -V"] == 1
    assert 70 <= asked["sacct"] <= 73
    assert 70 <= asked["scontrol -o show partition"] <= 75
    assert 6 <= asked["scontrol show config"] <= 7


def test_the_cluster_has_its_name_from_the_second_round_on(clock: ManualClock) -> None:
    slurm = collector(clock, recorded("24.11"))
    assert block_of(slurm.collect())["cluster"] is None
    clock.seconds += 60
    assert block_of(slurm.collect())["cluster"] == "lab"


DOWN = AskError("squeue: Unable to contact slurm controller (connect failure)")


def test_a_slurm_that_stops_answering_keeps_its_tables_and_says_since_when(clock: ManualClock) -> None:
    commands = recorded("22.05")
    slurm = collector(clock, commands)
    assert slurm.collect().ok
    was = clock.seconds
    working = dict(commands.answers)
    commands.answers |= dict.fromkeys(("scontrol -o -d show node", "squeue", "sdiag"), DOWN)
    clock.seconds += 60
    commands.asked.clear()
    reading = slurm.collect()
    found = block_of(reading)
    assert commands.asked == ["scontrol -o -d show node"]  # then slurmctld is left alone
    assert found["sources"]["jobs"] == {"ok": False, "at": was, "seconds": None, "error": str(DOWN)}
    assert found["totals"]["gpus"]["allocated"] == 12
    assert not reading.ok
    last = time.strftime("%H:%M:%S", time.localtime(was))
    assert reading.error == f"Slurm not read (last at {last}): {DOWN}"
    commands.answers |= working
    clock.seconds += 60
    reading = slurm.collect()
    assert (reading.ok, reading.error) == (True, None)
    assert block_of(reading)["sources"]["jobs"]["at"] == clock.seconds


def test_a_slurm_that_never_answered_is_said_in_words_without_tables(clock: ManualClock) -> None:
    commands = recorded("22.05")
    commands.answers["scontrol -V"] = AskError("scontrol: not found in PATH: see [Slurm] bin_folder")
    commands.answers["sacct"] = AskError("sacct: not found in PATH: see [Slurm] bin_folder")
    reading = collector(clock, commands).collect()
    assert reading.error == "Slurm not read (never yet): scontrol: not found in PATH: see [Slurm] bin_folder"
    assert set(block_of(reading)) & {"nodes", "jobs", "finished", "partitions"} == set()
    assert block_of(reading)["totals"] == {}


def test_half_an_answer_is_half_a_block(clock: ManualClock) -> None:
    commands = recorded("22.05")
    commands.answers["scontrol -o -d show job"] = AskError("scontrol: no answer within 20 s")
    reading = collector(clock, commands).collect()
    found = block_of(reading)
    assert reading.error == "details and partitions and sdiag not read (never yet): scontrol: no answer within 20 s"
    assert found["totals"]["jobs"]["pending"] == 8
    assert ("labalice", None, None) in rows(found, "jobs", "user", "name", "gpu_index")
    assert found["finished"]["id"]


def test_without_accounting_the_queue_tells_what_finished(clock: ManualClock) -> None:
    commands = recorded("22.05")
    commands.answers["sacct"] = AskError("sacct: Slurm accounting storage is disabled")
    reading = collector(clock, commands).collect()
    found = block_of(reading)
    assert reading.ok
    assert found["notes"] == ["No accounting answers: of finished jobs only those are known that the queue still shows"]
    assert ("done-fail", "failed", "3:0") in rows(found, "finished", "name", "state", "exit")


def test_it_says_which_right_is_missing_to_see_the_gpus_of_others(clock: ManualClock) -> None:
    commands = recorded("22.05")
    told = commands.answers["scontrol -o -d show job"]
    assert isinstance(told, str)
    commands.answers["scontrol -o -d show job"] = re.sub(r"(GRES=gpu:h100:\d)\(IDX:[^)]*\)", r"\1", told)
    found = block_of(collector(clock, commands).collect())
    assert [index for count, index in rows(found, "jobs", "gpus", "gpu_index") if count][:3] == [None] * 3
    assert "is not told the GPUs of 3 running jobs: sacctmgr add user" in found["notes"][0]
    assert "AdminLevel=Operator" in found["notes"][0]
    commands.answers["scontrol show config"] = "PrivateData = jobs,usage\n"
    slurm = collector(clock, commands)
    slurm.collect()
    assert "PrivateData hides jobs of others" in block_of(slurm.collect())["notes"][1]


def test_the_pause_grows_with_failures_and_with_slowness(clock: ManualClock) -> None:
    commands = recorded("22.05")
    slurm = SlurmCollector(clock=clock, interval=60, commands=commands, at_once=True)
    assert slurm.round() == 60
    commands.answers["scontrol -o -d show node"] = DOWN
    assert [slurm.round() for _ in range(5)] == [120, 240, 480, 600, 600]
    commands.answers |= recorded("22.05").answers

    class Slow(Recorded):
        def ask(self, command: Sequence[str], limit_seconds: float) -> IO[str]:
            clock.seconds += 3
            return super().ask(command, limit_seconds)

    slow = SlurmCollector(clock=clock, interval=60, commands=Slow(recorded("22.05").answers), at_once=True)
    assert slow.round() == 10 * 7 * 3  # each of seven commands takes 3 s
    slow.round()
    found = block_of(slow.collect())
    assert found["interval_seconds"] == 120
    assert found["notes"] == ["CD502 Slurm took 12 s to answer: it is asked every 120 s"]
    slow._ask.answers["scontrol -o -d show node"] = DOWN  # type: ignore[attr-defined]
    assert slow.round() == 120  # one that does not answer is slow for no work of its own


def test_a_finding_is_told_once(clock: ManualClock) -> None:
    slurm = SlurmCollector(clock=clock, interval=60, commands=recorded("22.05"), at_once=False)
    slurm.round()
    slurm._thread = object()  # type: ignore[assignment]  # it runs
    assert set(slurm.collect().once) == {"slurm"}
    assert slurm.collect().once == {}


def test_a_fault_of_ours_is_said_and_the_next_round_goes_on(clock: ManualClock) -> None:
    commands = recorded("22.05")
    slurm = collector(clock, commands)
    commands.answers["scontrol -V"] = ""
    assert slurm.collect().error == "IndexError: list index out of range"
    commands.answers["scontrol -V"] = "slurm 22.05.8\n"
    assert slurm.collect().ok


def test_more_than_20000_jobs_are_asked_for_their_details_seldom(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster_dash_mole.collectors.slurm.MANY_JOBS", 10)
    commands = recorded("22.05")
    slurm = collector(clock, commands)
    for _ in range(10):
        slurm.collect()
        clock.seconds += 60
    assert commands.asked.count("squeue") == 10
    assert commands.asked.count("scontrol -o -d show job") == 3  # the first round does not know how many there are


# ------------------------------------------------------------------------------------------------------ the block


def found_of(jobs: int, finished: int = 0) -> block.Found:
    lines = [
        f"{number}|{number}|{'RUNNING' if number % 2 else 'PENDING'}|user{number % 7}|a|gpu|normal|1|1|"
        f"cpu=1,gres/gpu=1|{number}|1|1|1|1:00|0||Priority|\n"
        for number in range(1, jobs + 1)
    ]
    parsed, _ = text.parse_queue(lines)
    names = {job.id: text.Detail(name=f"{job.id * 7919:x}", sluid=None, gpu_index="") for job in parsed}
    ended = [
        text.parse_finished([f"{number}|{number}|u|a|p|FAILED|1:0|1|1|{1_000_000 - 40 * number}|1|||\n"])[0]
        for number in range(finished)
    ]
    return block.Found(collected_at=1e6, interval_seconds=60, sources={}, jobs=parsed, details=names, finished=ended)


def test_what_is_left_out_is_counted_by_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "MOST_JOBS", 60)
    found = block.build(found_of(100))
    jobs: Any = found["jobs"]
    omitted: Any = found["jobs_omitted"]
    assert len(jobs["id"]) == 60
    assert sorted(jobs["id"][:50]) == list(range(1, 100, 2))  # all that run
    assert jobs["id"][50] == 100  # then by priority
    assert omitted["count"] == 40
    assert sum(each["jobs"] for each in omitted["by"]) == 40
    assert {each["user"] for each in omitted["by"]} <= {f"user{number}" for number in range(7)}


def test_a_block_that_is_too_large_leaves_pending_jobs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = block.build(found_of(4000))
    monkeypatch.setattr(block, "MOST_PACKED_BYTES", 25_000)
    cut: Any = block.build(found_of(4000))
    assert len(whole["jobs"]["id"]) == 4000
    assert 2000 <= len(cut["jobs"]["id"]) < 4000
    assert cut["jobs_omitted"]["count"] == 4000 - len(cut["jobs"]["id"])
    assert cut["totals"] == whole["totals"]


def test_of_finished_jobs_the_last_hour_is_listed_and_the_day_counted() -> None:
    found: Any = block.build(found_of(0, finished=200))
    assert found["totals"]["finished_day"] == {"failed": 200}
    assert all(at >= 1e6 - 3600 for at in found["finished"]["ended_at"])
    assert found["finished"]["ended_at"] == sorted(found["finished"]["ended_at"], reverse=True)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("idle+drain", "drained"),
        ("mixed+drain", "draining"),
        ("allocated+drain+completing", "draining"),
        ("down+not_responding", "down"),
        ("down+drain", "down"),
        ("mixed+planned", "mixed"),
        ("idle+maintenance", "maint"),
        ("idle+reserved", "reserved"),
        ("allocated", "allocated"),
        ("idle+something_new", "idle"),
    ],
)
def test_one_word_for_each_state_of_a_node(state: str, word: str) -> None:
    assert block.node_word(state) == word


# ----------------------------------------------------------------------------------------------- running commands


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_command_runs_in_its_own_words_and_without_what_changes_its_answer(tmp_path: Path) -> None:
    program(tmp_path, "squeue", 'echo "$SQUEUE_FORMAT|$LC_ALL|$SLURM_TIME_FORMAT|$SLURM_CONF|$*"')
    environ = {"PATH": os.environ["PATH"], "SQUEUE_FORMAT": "x", "LC_ALL": "de_DE", "SLURM_CONF": "/c"}
    with Commands(str(tmp_path), environ).ask(["squeue", "-h"], 10) as said:
        assert said.read() == "|C|%s|/c|-h\n"


def test_a_command_that_fails_is_said_in_its_last_words(tmp_path: Path) -> None:
    program(tmp_path, "squeue", "echo noise; echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(AskError, match=r"^squeue: Unable to contact slurm controller$"):
        Commands(str(tmp_path), os.environ).ask(["squeue"], 10)


def test_a_command_that_is_not_there_is_said_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(AskError, match=r"^squeue: not found in .*: see \[Slurm\] bin_folder$"):
        Commands(str(tmp_path), os.environ).ask(["squeue"], 10)


def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    program(tmp_path, "squeue", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    for limit in (0.5, 5.0, 50.0):
        with pytest.raises(AskError, match=rf"^squeue: no answer within {limit:g} s$"):
            Commands(str(tmp_path), os.environ).ask(["squeue"], limit)
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break  # else the machine was too busy to start it in that time
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 100
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < until
