"""A mole under what wears others down: a driver that hangs, processes that come and go, very many rounds.

Each has a short form here and its full length in `make soak`.
"""

import itertools
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from bench.harness import get
from tests.churn import USERS
from tests.processes import TOP, Listening, Process, fake_nvml, sleepers, start_mole, wait_until

pytestmark = [pytest.mark.needs("gcc"), pytest.mark.slow]
INTERVAL = 1.0
GPUS = "driver_version = 550.90.07\ngpus = 8\nname = NVIDIA H100 80GB HBM3\nmemory_total_mib = 81559\n"
HANG = GPUS + "fault nvmlDeviceGetMemoryInfo*@2 hang\n"


def write(config: Path, text: str) -> None:
    fresh = config.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(config)


def seen(server: Listening) -> dict[str, Any] | None:
    """Return the newest snapshot of the one host there is."""
    hosts = list(orjson.loads(get(server.url, "/data-out/gpu-data-simple") or b"{}"))
    if not hosts:
        return None
    return dict(orjson.loads(get(server.url, f"/api/v1/hosts/{hosts[0]}") or b"{}")["snapshot"])


def gpus(snapshot: dict[str, Any]) -> list[dict[str, Any]]:
    return list(snapshot["gpu"].values())


def are_others_fresh(snapshot: dict[str, Any]) -> bool:
    """Say whether all GPUs but the third were read, an interval ago at most."""
    return all(
        "error" not in entry and snapshot["timestamp"] - entry.get("read_at", snapshot["timestamp"]) <= 1.1 * INTERVAL
        for entry in gpus(snapshot)
        if entry["index"] != 2
    )


@pytest.mark.clocked
@pytest.mark.parametrize("seconds", [12, pytest.param(600, marks=pytest.mark.soak)])
def test_a_hanging_call_leaves_the_other_seven_fresh_for_as_long_as_it_hangs(
    seconds: float, server: Listening, tmp_path: Path
) -> None:
    config = tmp_path / "nvml.conf"
    write(config, GPUS)
    with start_mole(server.url, state=tmp_path, interval_seconds=INTERVAL, nvml=config) as mole:
        wait_until(lambda: (snapshot := seen(server)) and len(gpus(snapshot)) == 8, what="8 GPUs")
        write(config, HANG)
        begun = time.monotonic()
        found: dict[int, dict[str, Any]] = {}
        while time.monotonic() < begun + seconds:
            snapshot = seen(server)
            assert snapshot
            found[snapshot["seq"]] = snapshot
            wait_until(lambda: len(mole.family()) <= 4, what="mole, nursery, two children")
            time.sleep(0.3)
        # by most of them, for a machine that stands still for a while makes the one after it late
        snapshots = list(found.values())
        gaps = [later["timestamp"] - earlier["timestamp"] for earlier, later in itertools.pairwise(snapshots)]
        assert statistics.median(gaps) <= 1.1 * INTERVAL  # no beat of the heart missed
        assert len(snapshots) >= 0.7 * seconds / INTERVAL
        assert sum(map(are_others_fresh, snapshots)) >= 0.7 * len(snapshots)
        errors = [gpus(snapshot)[2].get("error", "") for snapshot in snapshots]
        assert sum(error.startswith("GPU 2: no answer since ") for error in errors) >= 0.5 * len(snapshots)
        write(config, GPUS)
        wait_until(lambda: (snapshot := seen(server)) and "error" not in gpus(snapshot)[2], what="GPU 2 is back")
        wait_until(lambda: len(mole.family()) == 3, what="one child")
        assert b"Traceback" not in mole.output


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.soak)])
def test_of_200_processes_a_second_none_is_given_to_the_wrong_user(
    seconds: float, server: Listening, tmp_path: Path
) -> None:
    config = tmp_path / "nvml.conf"
    write(config, GPUS)
    users = {str(user) for user in USERS} if os.getuid() == 0 else set()
    named = 0
    with (
        start_mole(server.url, state=tmp_path, interval_seconds=INTERVAL, nvml=config) as mole,
        Process([sys.executable, TOP / "tests/churn.py", config, "200"]),
    ):
        wait_until(lambda: seen(server), what="a snapshot")
        begun, last = time.monotonic(), -1
        while time.monotonic() < begun + seconds or named <= 3 * seconds:
            assert time.monotonic() < begun + 10 * seconds
            snapshot = seen(server)
            assert snapshot
            # a busy machine may leave the child no time
            assert (snapshot["collectors"]["gpu"]["error"] or "timeout: ").startswith("timeout: ")
            if snapshot["seq"] == last:
                time.sleep(0.05)
                continue
            last = snapshot["seq"]
            for entry in gpus(snapshot):
                for user, processes in entry.get("users", {}).items():  # none are told of a GPU that gave no answer
                    for pid, process in processes.items():
                        if process["name"] not in (None, "python3", "python", Path(sys.executable).name):
                            assert process["name"] == f"c{pid}"
                            assert user == str(USERS[int(pid) % 2]) or not users or user in ("unknown", "root")
                            named += user in users or not users
        assert b"Traceback" not in mole.output
        warnings = [line for line in mole.output.splitlines() if b"warning" in line]
        assert [line for line in warnings if b"gpu: timeout: " not in line] == []


@pytest.mark.parametrize(
    ("rounds", "within_kib"), [(4_000, 1024), pytest.param(100_000, 5 * 1024, marks=pytest.mark.soak)]
)
def test_many_rounds_leave_the_memory_where_it_stood(rounds: int, within_kib: int, tmp_path: Path) -> None:
    config = tmp_path / "nvml.conf"
    with ExitStack() as stack:
        pids = [stack.enter_context(process).popen.pid for process in sleepers(8)]
        write(config, GPUS + "".join(f"proc {pid % 8} {pid} 100 C 10 0 0 0\n" for pid in pids))
        environ = {**os.environ, "LD_LIBRARY_PATH": str(fake_nvml()), "FAKE_NVML_CONFIG": str(config)}
        command = [sys.executable, str(TOP / "tests/gpu_rounds.py"), str(rounds), "1000"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=rounds / 5)
    sizes = [[int(size) for size in line.split()[2:]] for line in done.stdout.splitlines()]
    assert len(sizes[0]) == 3  # the mole, its nursery and its child
    grown = [last - first for first, last in zip(sizes[0], sizes[-1], strict=True)]
    assert max(grown) <= within_kib, sizes
