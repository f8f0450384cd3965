"""The parent's side, with a real child, the real nvidia-ml-py and the stand-in for NVIDIA's library.

Times are those of a mole on a machine that keeps up. On one that stands still for a while these tests are run again
with all times longer, to where what a machine loses is little beside them: see `at_the_pace_of_this_machine`.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_mole.collectors.gpu import has_nvidia_device, key_of

pytestmark = pytest.mark.clocked  # deadlines and children in processes of their own

HERE = Path(__file__).parent
GPUS = "driver_version = 550.90.07\ngpus = 4\nname = NVIDIA A100-SXM4-40GB\nmemory_total_mib = 40960\n"
HANG = GPUS + "fault nvmlDeviceGetMemoryInfo*@2 hang\n"
PACES = (1, 4, 12)
"""How many times as long each time is in the tries of a test."""


class Machine:
    """A machine whose driver can be made to fail: `take` takes the next snapshot of its mole.

    Every time that goes in or comes out is in seconds at pace 1: real ones are `pace` times as long.
    """

    def __init__(self, conf: Path, nvml_folder: Path, text: str, pace: int, **options: float) -> None:
        self._conf = conf
        self._pace = pace
        self.set(text)
        machine = HERE / "machines/8-gpus-busy"
        times = {name: pace * seconds for name, seconds in {"interval": 20.0, "retry": 0.1, **options}.items()}
        self._process = subprocess.Popen(
            [sys.executable, HERE / "take.py", json.dumps({"machine": str(machine), **times})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(HERE.parent),
                "LD_LIBRARY_PATH": str(nvml_folder),
                "FAKE_NVML_CONFIG": str(self._conf),
                "FAKE_NVML_RELOAD_MS": "0",
            },
        )

    def set(self, text: str) -> None:
        fresh = self._conf.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self._conf)

    @property
    def now(self) -> float:
        return time.monotonic() / self._pace

    def wait(self, seconds: float) -> None:
        time.sleep(self._pace * max(0.0, seconds))

    def take(self) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        taken = json.loads(self._process.stdout.readline())
        document = taken["document"]
        return {
            "gpu": document["gpu"],
            "ok": document["collectors"]["gpu"]["ok"],
            "error": document["collectors"]["gpu"]["error"],
            "events": document.get("events", []),
            "took": taken["took"] / self._pace,
            "children": taken["children"],
            "births": taken["births"],
        }

    def take_for(self, seconds: float, every: float = 0.1) -> list[dict[str, Any]]:
        """Take a snapshot `every` s, as a mole does."""
        begun, taken = self.now, []
        while self.now < begun + seconds:
            taken.append(self.take())
            self.wait(begun + len(taken) * every - self.now)
        return taken

    def take_until(self, right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        until = self.now + 12
        while not right(taken := self.take()):
            assert self.now < until, taken
            self.wait(0.05)
        return taken

    def end(self) -> None:
        self.set(GPUS)  # a call that hangs returns, so that the child ends too
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


class Machines:
    """Makes machines, each with a driver of its own, and ends them."""

    def __init__(self, folder: Path, nvml_folder: Path) -> None:
        self.pace = 1
        self._folder = folder
        self._nvml_folder = nvml_folder
        self._made: list[Machine] = []

    def __call__(self, text: str, **options: float) -> Machine:
        conf = self._folder / f"nvml{len(self._made)}.conf"
        self._made.append(Machine(conf, self._nvml_folder, text, self.pace, **options))
        return self._made[-1]

    def end(self) -> None:
        for each in self._made:
            each.end()


@pytest.fixture
def machine(tmp_path: Path, nvml_folder: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path, nvml_folder)
    yield machines
    machines.end()


def at_the_pace_of_this_machine(test: Callable[[Machines], None]) -> Callable[[Machines], None]:
    """Run a test again, with longer times, that fails: only what fails at every pace is the mole's own fault."""

    @functools.wraps(test)
    def run(machine: Machines) -> None:
        for machine.pace in PACES[:-1]:
            try:
                return test(machine)
            except (AssertionError, ValueError):
                continue
        machine.pace = PACES[-1]
        return test(machine)

    return run


def errors(taken: dict[str, Any]) -> list[bool]:
    return ["error" in entry for entry in taken["gpu"].values()]


@at_the_pace_of_this_machine
def test_a_healthy_machine_tells_all_its_gpus(machine: Machines) -> None:
    taken = machine(GPUS).take()
    assert (taken["ok"], taken["error"]) == (True, None)
    assert [entry["index"] for entry in taken["gpu"].values()] == [0, 1, 2, 3]
    assert len(taken["children"]) == 2  # the nursery and its child


@at_the_pace_of_this_machine
def test_a_hanging_call_delays_one_snapshot_to_the_deadline_and_the_next_not_at_all(
    machine: Machines,
) -> None:
    subject = machine(GPUS, interval=0.8, deadline=0.4, patience=60)
    subject.take_until(lambda taken: bool(taken["ok"]))
    subject.set(HANG)
    first = subject.take()
    assert (first["ok"], first["error"].split()[0]) == (False, "timeout:")
    assert first["took"] < 0.7
    assert errors(first) == [False, False, False, False]  # the others are an interval old at most, and say so
    assert [("read_at" in entry) for entry in first["gpu"].values()] == [False, False, True, True]
    subject.wait(1.4)
    later = [subject.take() for _ in range(5)]
    assert all(taken["took"] < 0.3 and taken["children"] == first["children"] for taken in later)
    assert errors(later[-1]) == [True] * 4
    entry = list(later[-1]["gpu"].values())[2]
    assert entry == {
        "index": 2,
        "name": "NVIDIA A100-SXM4-40GB",
        "uuid": entry["uuid"],
        "pci_bus_id": entry["pci_bus_id"],
        "error": "GPU 2: no answer since 14:13 UTC",
    }


@at_the_pace_of_this_machine
def test_a_hanging_call_costs_its_own_gpu_only_and_at_most_one_process_more(machine: Machines) -> None:
    subject = machine(GPUS, interval=0.4, deadline=0.2, patience=0.1)
    before = subject.take_until(lambda taken: bool(taken["ok"]))
    subject.set(HANG)
    taken = subject.take_for(2.4, every=0.4)
    assert len(taken) >= 5
    for each in taken[2:]:
        assert errors(each) == [False, False, True, False]
        assert [entry for entry in each["gpu"].values() if "read_at" in entry] == []
        assert each["took"] < 0.5
        assert (each["ok"], each["error"]) == (False, "timeout: GPU 2: no answer since 14:13 UTC")
    assert errors(taken[0]) == errors(taken[1]) == [False] * 4  # an interval old at most
    assert max(len(each["children"]) for each in taken) == len(before["children"]) + 1 == 3
    subject.set(GPUS)
    healed = subject.take_for(0.8, every=0.4)
    assert (healed[-1]["ok"], errors(healed[-1])) == (True, [False] * 4)
    assert len(subject.take_until(lambda taken: len(taken["children"]) == 2)["children"]) == 2


@at_the_pace_of_this_machine
def test_when_both_children_hang_there_is_no_third_and_all_gpus_say_so(machine: Machines) -> None:
    subject = machine(GPUS, interval=0.3, deadline=0.1, patience=0.05)
    subject.take_until(lambda taken: bool(taken["ok"]))
    subject.set(GPUS + "fault nvmlDeviceGetMemoryInfo* hang\n")
    taken = subject.take_for(1.8, every=0.3)
    assert errors(taken[-1]) == [True] * 4
    assert max(len(each["children"]) for each in taken) == 3
    assert all(each["took"] < 0.5 for each in taken)
    subject.set(GPUS)
    healed = subject.take_for(0.6, every=0.3)[-1]
    assert (healed["ok"], errors(healed)) == (True, [False] * 4)


@at_the_pace_of_this_machine
def test_two_gpus_that_hang_leave_the_one_that_is_asked_first_after_the_second_returns(
    machine: Machines,
) -> None:
    subject = machine(GPUS, interval=0.3, deadline=0.1, patience=0.05)
    subject.take_until(lambda taken: bool(taken["ok"]))
    subject.set(HANG + "fault nvmlDeviceGetMemoryInfo*@3 hang\n")
    taken = subject.take_for(1.2, every=0.3)[-1]
    assert errors(taken) == [True] * 4
    subject.set(HANG)  # only GPU 2 hangs on
    later = subject.take_for(0.9, every=0.3)
    assert errors(later[-1]) == [False, False, True, False]
    assert max(len(each["children"]) for each in later) == 3


@at_the_pace_of_this_machine
def test_a_child_grown_old_is_renewed_without_a_gap(machine: Machines) -> None:
    subject = machine(GPUS, interval=0.3, renew=0.5)
    first = subject.take_until(lambda taken: bool(taken["ok"]))
    taken = subject.take_for(1.5, every=0.3)
    assert all(each["ok"] and errors(each) == [False] * 4 for each in taken)
    assert max(len(each["children"]) for each in taken) == 3
    assert set(taken[-1]["children"][1:]).isdisjoint(first["children"][1:])


@at_the_pace_of_this_machine
def test_a_child_that_cannot_be_renewed_goes_on(machine: Machines) -> None:
    subject = machine(GPUS, interval=0.3, renew=0.3)
    child = subject.take_until(lambda taken: bool(taken["ok"]))["children"][1]
    subject.set(GPUS + "fault nvmlInit* LIB_RM_VERSION_MISMATCH\n")  # an upgrade that the next boot completes
    taken = subject.take_for(1.2, every=0.3)
    assert all(each["ok"] and child in each["children"] for each in taken)


def begin_with_an_heir_that_cannot(machine: Machines, retry: float) -> tuple[Machine, float, int]:
    """Return the machine after the first try, when that was begun, and how many births there were until then."""
    subject = machine(GPUS, interval=0.1, renew=3.0, mismatch_retry=retry)
    births = subject.take_until(lambda taken: bool(taken["ok"]))["births"]
    subject.set(GPUS + "fault nvmlInit* LIB_RM_VERSION_MISMATCH\n")
    begun = subject.now
    return subject, begun, subject.take_until(lambda taken: bool(taken["births"] > births))["births"]


@at_the_pace_of_this_machine
def test_an_heir_that_cannot_begin_is_not_tried_again_each_round(machine: Machines) -> None:
    subject, _, births = begin_with_an_heir_that_cannot(machine, retry=100.0)
    assert {taken["births"] for taken in subject.take_for(2.0)} == {births}


@at_the_pace_of_this_machine
def test_an_heir_that_cannot_begin_is_tried_again_after_a_while_not_a_day_later(
    machine: Machines,
) -> None:
    retry = 0.2
    subject, begun, births = begin_with_an_heir_that_cannot(machine, retry)
    later = subject.take_until(lambda taken: bool(taken["births"] >= births + 3))
    assert later["births"] - births <= (subject.now - begun) / retry


@at_the_pace_of_this_machine
def test_an_xid_is_told_once_with_its_meaning_also_while_a_call_hangs(machine: Machines) -> None:
    subject = machine(GPUS + "events = 1\nxid 1 0 13\n", interval=0.3, deadline=0.1, patience=0.05)
    subject.take_until(lambda taken: bool(taken["ok"]))
    subject.wait(0.2)  # its thread registers the GPUs
    subject.set(HANG + "events = 1\nxid 1 0 13\nxid 2 2 119\nxid 3 2 119\nxid 4 1 4711\n")
    told = [event for taken in subject.take_for(1.2, every=0.3) for event in taken["events"] if event["kind"] == "xid"]
    assert [(event["gpu"], event["code"]) for event in told] == [(2, 119), (2, 119), (1, 4711)]
    assert told[0]["at"] != told[1]["at"]
    assert "own processor does not answer" in told[0]["text"]
    assert abs(told[0]["at"] - time.time()) < 60


@at_the_pace_of_this_machine
def test_a_gpu_that_is_lost_and_comes_back_is_two_events(machine: Machines) -> None:
    subject = machine(GPUS)
    assert subject.take()["events"] == []
    subject.set(GPUS + "gpu.2.lost = 1\n")
    (lost,) = subject.take()["events"]
    assert (lost["kind"], lost["gpu"], lost["text"][:13]) == ("gpu_lost", 2, "NVML 15: lost")
    assert subject.take()["events"] == []
    subject.set(GPUS)
    assert [(event["kind"], event["gpu"]) for event in subject.take()["events"]] == [("gpu_back", 2)]


@at_the_pace_of_this_machine
def test_a_process_of_a_mig_instance_that_is_taken_down_costs_no_other(machine: Machines) -> None:
    mig = GPUS + "gpu.1.mig = 1\ngpu.1.util_gpu = N/A\nproc 1 4101 100 C 0 0 0 0 0\n"
    subject = machine(mig + "gpu.1.mig_instances = 2\n")
    assert len(list(subject.take()["gpu"].values())[1]["mig"]["instances"]) == 2
    subject.set(mig + "gpu.1.mig_instances = 1\nfault nvmlDeviceGetMemoryInfo*@1 NOT_FOUND\n")
    entry = list(subject.take()["gpu"].values())[1]
    assert "error" not in entry
    assert entry["mig"] == {"instances": []}
    assert list(entry["users"]["ada"]) == ["4101"]
    subject.set(mig + "gpu.1.mig_instances = 1\n")
    assert len(list(subject.take()["gpu"].values())[1]["mig"]["instances"]) == 1


def test_slow_calls_wait_for_a_later_round(machine: Machines) -> None:
    # two of a GPU take 0.2 s, and of a round 0.25 s are for such: as the product's own time, it has no pace
    subject = machine(GPUS + "fault nvmlDeviceGetPcieThroughput sleep 100\n", interval=20)
    read = [0]
    while read[-1] < 4:
        assert len(read) <= 10
        read.append(sum("pcie" in entry for entry in subject.take()["gpu"].values()))
    assert {later - earlier for earlier, later in itertools.pairwise(read)} <= {0, 1, 2}
    assert min(subject.take()["took"] for _ in range(5)) < 0.2  # asked again, one GPU alone would take that


@at_the_pace_of_this_machine
def test_a_hang_that_ends_is_healed_in_the_next_round(machine: Machines) -> None:
    subject = machine(HANG, interval=0.4, deadline=0.2)
    assert not subject.take()["ok"]
    subject.set(GPUS)
    subject.wait(0.3)
    healed = subject.take()
    assert (healed["ok"], errors(healed), len(healed["children"])) == (True, [False] * 4, 2)


@at_the_pace_of_this_machine
def test_a_hang_in_the_first_call_is_said_for_the_whole_host(machine: Machines) -> None:
    subject = machine(GPUS + "fault nvmlInit* hang\n", interval=0.4, deadline=0.2)
    taken = subject.take()
    assert taken["gpu"]["gpu_error"]["error"] == "timeout: NVML gives no answer since 14:13 UTC"
    subject.set(GPUS)
    assert subject.take_until(lambda taken: bool(taken["ok"]))["gpu"]


@at_the_pace_of_this_machine
def test_slow_calls_give_every_gpu_an_interval_late_rather_than_none(machine: Machines) -> None:
    subject = machine(GPUS, interval=0.4, deadline=0.1)
    subject.take_until(lambda taken: bool(taken["ok"]))
    subject.set(GPUS + f"fault nvmlDeviceGetMemoryInfo* sleep {50 * machine.pace}\n")
    for _ in range(6):
        taken = subject.take()
        assert errors(taken) == [False] * 4
        subject.wait(0.3)


@at_the_pace_of_this_machine
def test_a_driver_that_comes_late_is_found_without_a_restart(machine: Machines) -> None:
    subject = machine("fault nvmlInit* DRIVER_NOT_LOADED\n")
    assert subject.take()["error"] == "CD401 NVML 9: driver not loaded: try nvidia-smi, modprobe nvidia"
    subject.set(GPUS)
    assert len(subject.take_until(lambda taken: bool(taken["ok"]))["gpu"]) == 4


@at_the_pace_of_this_machine
def test_a_driver_that_goes_away_is_said_and_found_again(machine: Machines) -> None:
    subject = machine(GPUS)
    assert subject.take()["ok"]
    subject.set("fault nvml* DRIVER_NOT_LOADED\n")
    assert subject.take()["error"].startswith("CD401 NVML 9")
    subject.set(GPUS)
    subject.take_until(lambda taken: bool(taken["ok"]))


@at_the_pace_of_this_machine
def test_a_mismatch_is_tried_again_in_a_fresh_child(machine: Machines) -> None:
    subject = machine("fault nvmlInit* LIB_RM_VERSION_MISMATCH\n", mismatch_retry=0.1)
    first = subject.take()
    assert first["error"].startswith("CD402 NVML 18: driver mismatch: kernel ")
    for _ in range(3):
        subject.wait(0.1)
        assert len(subject.take()["children"]) <= 2
    subject.set(GPUS)
    nursery, child = subject.take_until(lambda taken: bool(taken["ok"]))["children"]
    assert nursery == first["children"][0]
    assert child not in first["children"][1:]


@at_the_pace_of_this_machine
def test_without_a_use_in_asking_nothing_is_asked(machine: Machines) -> None:
    subject = machine("fault nvmlInit* DRIVER_NOT_LOADED\n", retry=60)
    subject.take()
    subject.set(GPUS)
    assert not subject.take()["ok"]


@at_the_pace_of_this_machine
def test_a_lost_gpu_keeps_its_name_and_costs_no_other(machine: Machines) -> None:
    subject = machine(GPUS)
    before = subject.take()["gpu"]
    subject.set(GPUS + "gpu.2.lost = 1\n")
    taken = subject.take()
    assert list(taken["gpu"]) == list(before)
    assert errors(taken) == [False, False, True, False]
    subject.set(GPUS)
    assert errors(subject.take()) == [False] * 4


@at_the_pace_of_this_machine
def test_a_gpu_that_is_no_longer_counted_leaves(machine: Machines) -> None:
    subject = machine(GPUS)
    subject.take()
    subject.set(GPUS + "gpus = 2\n")
    assert [entry["index"] for entry in subject.take()["gpu"].values()] == [0, 1]


def test_the_key_is_index_name_and_six_of_the_uuid() -> None:
    entry: dict[str, object] = {"index": 3, "name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-1a2b3c4d-0000"}
    assert key_of(entry) == "3_NVIDIA-H100-80GB-HBM3_1a2b3c"
    assert key_of({"index": 3}) == "3_unknown"


def test_a_device_of_nvidia_is_found_by_its_vendor(tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:17:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x8086\n")
    assert not has_nvidia_device(str(tmp_path))
    (device / "vendor").write_text("0x10de\n")
    assert has_nvidia_device(str(tmp_path))


@at_the_pace_of_this_machine
def test_an_xid_that_both_children_hear_of_is_one(machine: Machines) -> None:
    subject = machine(GPUS + "events = 1\n", interval=0.3, deadline=0.1, patience=0.05)
    subject.take_until(lambda taken: bool(taken["ok"]))
    subject.set(HANG + "events = 1\n")
    subject.take_until(lambda taken: errors(taken) == [False, False, True, False] and len(taken["children"]) == 3)
    subject.wait(0.3)  # the thread of the second registers the GPUs
    subject.set(HANG + "events = 1\nxid 1 1 63\n")
    told = [event for taken in subject.take_for(1, every=0.2) for event in taken["events"]]
    assert [event["code"] for event in told if event["kind"] == "xid"] == [63]
