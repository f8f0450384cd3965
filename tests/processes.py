"""Real processes for tests and benchmarks: servers, moles, and what they cost. Loopback and free ports only."""

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import orjson

TOP = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FAKE_NVML = TOP / "tests" / "fake-nvml"
PATIENCE = 5
"""Machines that test are shared, and so many times slower at times: what ends early costs nothing."""
LISTENS = re.compile(rb"listens on (https?://\S+)|Serving on (http://\S+)|Running on (http://\S+)")


def wait_until(true: Callable[[], Any], seconds: float = 20, what: str = "", *, patience: float = PATIENCE) -> Any:
    """Poll until a call gives something true; return it. A slow machine is given `patience` times as long.

    Raises:
        TimeoutError: it stayed false for so long.
    """
    until = time.monotonic() + patience * seconds
    while True:
        value = true()
        if value:
            return value
        if time.monotonic() > until:
            raise TimeoutError(f"not within {patience * seconds} s: {what or true}")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port of loopback for a program that cannot take port 0.

    It is below those that the system gives to who asks for any, so that no connection and no other test's server gets
    it before that program listens, or while that program is away; and above those of the Slurm of tests.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(
            20_000, max(lowest, 32_768)
        )  # the seed of a test is that of all its neighbours
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _cpu_clock(pid: int) -> int:
    """Return the clock of a process' CPU time, as clock_getcpuclockid(3) does, which Python has for threads only."""
    return ~pid << 3 | 2


class Process:
    """A process whose output is kept, ended with its block.

    Args:
        command: its argument list.
        environment: what is added to this process's environment.
        folder: its working directory.
    """

    def __init__(
        self, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, folder: Path = TOP
    ) -> None:
        self._state = tempfile.TemporaryDirectory(prefix="cluster-dash-test-")  # not in the home of who tests
        self.state_home = Path(self._state.name)
        self._output = tempfile.NamedTemporaryFile(prefix="cluster-dash-test-")  # noqa: SIM115 - closed in __exit__
        self.popen = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, "XDG_STATE_HOME": str(self.state_home), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._output.close()
        self._state.cleanup()

    def stop(self, seconds: float = 20 * PATIENCE) -> int:
        """End it by SIGTERM and return its exit code; SIGKILL where it does not end in time."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise

    @property
    def output(self) -> bytes:
        """All it has written so far."""
        return Path(self._output.name).read_bytes()

    def family(self) -> list[int]:
        """Return its pid and those of all its descendants."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except (FileNotFoundError, ProcessLookupError):
                    continue
                children.setdefault(parent, []).append(int(entry.name))
        found = [self.popen.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """Return the CPU time it and its living descendants have used, children that ended included.

        The living are counted to the ns: a tick of /proc/<pid>/stat is 10 ms, as much as a scrape or a few rounds take.
        """
        seconds = 0.0
        for pid in self.family():
            with contextlib.suppress(OSError):  # it has just ended
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ended_ticks = sum(int(field) for field in fields[13:15])
                seconds += time.clock_gettime(_cpu_clock(pid)) + ended_ticks / os.sysconf("SC_CLK_TCK")
        return seconds

    def memory_mib(self) -> float:
        """Return the proportional set size of it and its descendants, 2^20 bytes: shared pages count once."""
        kib = 0
        for pid in self.family():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kib += int(re.search(r"^Pss: +(\d+)", rollup, re.MULTILINE)[1])  # type: ignore[index]
        return kib / 1024


class Listening(Process):
    """A process that says where it listens; `url` has no slash at its end."""

    def __init__(self, command: Sequence[str | Path], **more: Any) -> None:
        super().__init__(command, **more)
        try:
            self.url: str = wait_until(self._said, what=f"{command} says where it listens")
        except (RuntimeError, TimeoutError):
            self.__exit__()
            raise

    def _said(self) -> str | None:
        found = LISTENS.search(self.output)
        if found is not None:
            said: bytes = found[1] or found[2] or found[3]
            return said.decode().rstrip("/")
        if self.popen.poll() is not None:
            raise RuntimeError(f"it ended with {self.popen.returncode}: {self.output.decode()}")
        return None


def start_server(
    *options: str | Path, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Listening:
    """Start `cluster-dash-server serve` on a free loopback port."""
    return Listening(
        [BIN / "cluster-dash-server", "serve", "--port", "0", *options], environment=environment, folder=folder or TOP
    )


def start_mole(
    server_url: str,
    *,
    state: Path,
    interval_seconds: float = 1,
    nvml: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start `cluster-dash-mole run` against a server.

    Args:
        server_url: where it posts.
        state: a folder of its own: configuration and state.
        interval_seconds: between two snapshots.
        nvml: the configuration of the stand-in for the driver's library; None: this machine's own, if any.
        environment: what else is added to its environment.
    """
    config = state / "config.toml"
    config.write_text(
        f"[Poll_Settings]\npoll_interval_in_secs = {interval_seconds}\n"
        f'[Json_Sender_Logger]\nuse = true\nmin_interval_in_secs = 0\naddress_in = "{server_url}"\n'
        'auth_code = "lab_cluster_2025"\n'
    )
    driver = {} if nvml is None else {"LD_LIBRARY_PATH": str(fake_nvml()), "FAKE_NVML_CONFIG": str(nvml)}
    return Process(
        [BIN / "cluster-dash-mole", "run", "-c", config],
        environment={"STATE_DIRECTORY": str(state), **driver, **(environment or {})},
        folder=state,
    )


def fake_nvml() -> Path:
    """Build the stand-in for libnvidia-ml.so.1 where it is not built yet; return its folder."""
    subprocess.run(["make", "-s", "-C", str(FAKE_NVML)], check=True)
    return FAKE_NVML


def sleepers(count: int) -> list[Process]:
    """Start processes that do nothing: the ones that the stand-in says are on its GPUs."""
    sleep = shutil.which("sleep") or "sleep"
    return [Process([sleep, "3600"]) for _ in range(count)]


def snapshot(host: str = "gpu01", gpus: int = 8, processes: int = 32) -> dict[str, Any]:
    """Return a snapshot as a mole of ours sends it: by default 8 GPUs and 32 processes, some 14 KB of JSON."""
    entries = {}
    for index in range(gpus):
        uuid = f"GPU-{index:02x}a1c0f3-0f6b-4f0e-9a53-2d1f6c1b7e{index:02x}"
        users: dict[str, dict[str, Any]] = {}
        for number in range(index, processes, gpus):
            users.setdefault(("alice", "bob", "carol")[number % 3], {})[str(40_000 + 37 * number)] = {
                **{"mem": 4000.0 + 300 * number, "time": 1203.9 + 111.7 * number, "name": "python3", "type": "C"},
                **{"started_at": 1.789e9 + number, "command": "python3.11", "job_id": str(4711 + number)},
                **{"user_from": "process", "gpu_util": 11 + number},
            }
        entries[f"{index}_NVIDIA-H100-80GB-HBM3_{uuid[4:10]}"] = {
            **{"name": "NVIDIA H100 80GB HBM3", "uuid": uuid, "index": index, "minor_number": index},
            **{"pci_bus_id": f"00000000:{index:02X}:00.0", "total_mem": 81559.0, "used_mem": 17321.0 + index},
            **{
                "gpu_util": (17 * index + 60) % 101,
                "memory_util": (11 * index + 30) % 101,
                "temperature_c": 50 + index,
            },
            **{"temperature_slowdown_c": 90, "power_w": 420.5 + 20 * index, "power_limit_w": 700.0},
            **{"sm_clock_mhz": 1755, "sm_clock_max_mhz": 1980, "memory_clock_mhz": 2619, "memory_clock_max_mhz": 2619},
            **{"memory_temperature_c": 60 + index, "energy_j": 81234.5 + index, "encoder_util": 0, "decoder_util": 0},
            **{"pstate": 0, "throttle_reasons": [], "persistence": True, "compute_mode": "default"},
            "pcie": {
                **{"gen": 5, "gen_max": 5, "width": 16, "width_max": 16},
                **{"tx_kib_s": 120_000 + index, "rx_kib_s": 340_000 + index, "replays": 0},
            },
            "nvlink": {"active": 18, "errors": 0, "tx": 18432 + index, "rx": 36864 + index},
            "ecc": {
                **{"corrected": 0, "uncorrected": 0, "remapped_rows": 0, "retired_pages": 0},
                **{"remap_pending": False, "remap_failed": False},
            },
            **{"unattributed_mem": 512, "users": users},
        }
    return {
        **{"hostname": host, "timestamp": time.time(), "schema_version": 1, "interval_seconds": 5},
        "general": {
            "hostname": host,
            "boottime": 1.7e9,
            "os": "Linux",
            "kernel": "6.1.0",
            "driver_version": "550.90.07",
        },
        "cpu": {"cpu_percent": 23.4, "load_avgs": [7.9, 8.0, 7.5], "num_cpus": 64},
        "memory": {
            "total_gb": 1007.6,
            "available_gb": 812.1,
            "used_gb": 188.3,
            "swap": {"total_gb": 8.0, "used_gb": 0.0},
        },
        "disk": {
            "/dev/md0": {
                "mount_point": "/",
                "device": "/dev/md0",
                "total_gb": 1755.1,
                "used_gb": 402.3,
                "percent_used": 24.1,
            }
        },
        "network": {"rx_bytes": 1872634981723, "tx_bytes": 981273645123},
        "gpu": entries,
        "collectors": {
            name: {"ok": True, "seconds": 0.001, "error": None} for name in ("cpu", "memory", "disk", "network", "gpu")
        },
    }


def body_of(snapshot: Mapping[str, Any]) -> bytes:
    """Return the bytes of a POST of a snapshot, with the shipped passcode."""
    return orjson.dumps({**snapshot, "auth_code": "lab_cluster_2025"})
