"""CPU and memory of a mole per round: 8 GPUs of the NVML stand-in, 32 real processes, the POST included.

The reference is the plainest loop with nvidia-ml-py, psutil and http.client, on the same machine at the same time.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.harness import Figure
from tests.processes import TOP, Process, fake_nvml, sleepers, start_mole, start_server, wait_until

GPUS, PROCESSES = 8, 32
ROUNDS = 60
"""A minute: what a mole reads once in a minute is in it, once."""
CPU_MS_AT_MOST, MEMORY_MIB_AT_MOST = 5, 45


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
        nvml = nvml_config(folder, pids)
        driver = {"LD_LIBRARY_PATH": str(fake_nvml()), "FAKE_NVML_CONFIG": str(nvml)}
        mole = stack.enter_context(start_mole(server.url, state=folder, nvml=nvml))
        other = stack.enter_context(start_server())  # under one name they would take each other's place
        command = [sys.executable, str(TOP / "bench/plain_mole.py"), other.url, "1"]
        plain = stack.enter_context(Process(command, environment=driver))

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
        measured = [_cpu_ms(mole, plain, rounds) for _ in range(runs)]
        cpu, plain_cpu = (statistics.median(column) for column in zip(*measured, strict=True))
        memory, plain_memory = mole.memory_mib(), plain.memory_mib()
        if plain.popen.poll() is not None:
            raise RuntimeError(f"the plain loop ended: {plain.output.decode()}")
        first_calls, calls = _nvml_calls(driver)
    what = f"{GPUS} GPUs, {PROCESSES} processes, POST and child included"
    return [
        Figure(
            name=f"mole CPU per round ({what})",
            value=cpu,
            reference=plain_cpu,
            unit="ms",
            target=f"≤ {CPU_MS_AT_MOST} ms",
            met=cpu <= CPU_MS_AT_MOST,
        ),
        Figure(
            name=f"mole memory, shared pages once ({what})",
            value=memory,
            reference=plain_memory,
            unit="MiB",
            target=f"≤ {MEMORY_MIB_AT_MOST} MiB",
            met=memory <= MEMORY_MIB_AT_MOST,
        ),
        Figure(name=f"NVML calls per round ({GPUS} GPUs)", value=calls, unit="calls"),
        Figure(name=f"NVML calls of a child's first round ({GPUS} GPUs)", value=first_calls, unit="calls"),
    ]


def _cpu_ms(mole: Process, plain: Process, rounds: Callable[[], int]) -> tuple[float, float]:
    """Return the CPU of a round of each, in ms: both have one a second."""
    first, before, plain_before = rounds(), mole.cpu_seconds(), plain.cpu_seconds()
    wait_until(lambda: rounds() >= first + ROUNDS, 2 * ROUNDS, f"{ROUNDS} rounds")
    done = (rounds() - first) / 1000
    return (mole.cpu_seconds() - before) / done, (plain.cpu_seconds() - plain_before) / done


def _nvml_calls(driver: dict[str, str]) -> tuple[float, float]:
    command = [sys.executable, str(TOP / "bench/nvml_calls.py")]
    done = subprocess.run(command, env={**os.environ, **driver}, capture_output=True, text=True, check=True)
    first, later = done.stdout.split()
    return float(first), float(later)
