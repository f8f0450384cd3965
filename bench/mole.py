"""CPU and memory of a mole per round: 8 GPUs of the NVML stand-in, 32 real processes, the POST included."""

import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.harness import Figure
from tests.processes import Process, sleepers, start_mole, start_server, wait_until

GPUS, PROCESSES = 8, 32
ROUNDS = 15
CPU_MS_AT_MOST, MEMORY_MIB_AT_MOST = 8, 40


def nvml_config(folder: Path, pids: list[int]) -> Path:
    """Write a configuration of the stand-in: 8 busy GPUs, the processes spread over them."""
    lines = [f"gpus = {GPUS}", "vary = 3", "util_gpu = 80"]
    lines += [f"proc {place % GPUS} {pid} {4000 + 10 * place} C 20 10 0 0" for place, pid in enumerate(pids)]
    path = folder / "nvml.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(runs: int) -> list[Figure]:
    """Measure."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(start_server())
        pids = [stack.enter_context(process).popen.pid for process in sleepers(PROCESSES)]
        mole = stack.enter_context(start_mole(server.url, state=folder, nvml=nvml_config(folder, pids)))

        def rounds() -> int:
            with urllib.request.urlopen(f"{server.url}/data-out/gpu-data-simple") as answer:
                hosts = list(json.load(answer))
            if not hosts:
                return 0
            with urllib.request.urlopen(f"{server.url}/api/v1/hosts/{hosts[0]}") as answer:
                shown = json.load(answer)["snapshot"]
            seen = sum(len(processes) for gpu in shown["gpu"].values() for processes in gpu["users"].values())
            if seen != PROCESSES:
                raise RuntimeError(f"the mole saw {seen} of {PROCESSES} processes")
            return int(shown["seq"])

        wait_until(rounds, 30, "the first snapshot")
        time.sleep(3)
        cpu = statistics.median(_cpu_ms(mole, rounds) for _ in range(runs))
        memory = mole.memory_mib()
    what = f"{GPUS} GPUs, {PROCESSES} processes, POST and child included"
    return [
        Figure(
            name=f"mole CPU per round ({what})",
            value=cpu,
            unit="ms",
            target=f"≤ {CPU_MS_AT_MOST} ms",
            met=cpu <= CPU_MS_AT_MOST,
        ),
        Figure(
            name=f"mole memory, shared pages once ({what})",
            value=memory,
            unit="MiB",
            target=f"≤ {MEMORY_MIB_AT_MOST} MiB",
            met=memory <= MEMORY_MIB_AT_MOST,
        ),
    ]


def _cpu_ms(mole: Process, rounds: Callable[[], int]) -> float:
    first, before = rounds(), mole.cpu_seconds()
    wait_until(lambda: rounds() >= first + ROUNDS, 60, f"{ROUNDS} rounds")
    return (mole.cpu_seconds() - before) / (rounds() - first) * 1000
