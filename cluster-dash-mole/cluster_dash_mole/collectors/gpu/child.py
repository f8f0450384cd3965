"""The process that holds NVML: reads all GPUs each time it is asked, and tells one after the other.

Messages are lines of JSON. To any line it answers with `{"driver": {...}}` when NVML has begun to work, `{"count": n}`,
`{"index": i, "entry": {...}, "read": s}` for each GPU as soon as it is read (`read` in s of the monotonic clock), and
`{"done": [remark, ...]}`; or, where NVML does not work, with `{"failed": "<why>", "number": n}`. It ends at the end of
input, which is what its parent makes of it after a failure that only a fresh process can mend.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pynvml as nvml

from cluster_dash_mole.collectors.gpu.processes import UNKNOWN_USER, ProcessTable, hides_processes
from cluster_dash_mole.snapshot import clean, within

Handle: TypeAlias = Any  # pynvml has no types
Fields: TypeAlias = dict[str, object]

_MIB = 2**20
_UNSUPPORTED = frozenset({nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_NVML_GONE = frozenset({nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED})

# In words, by interface and number; the rest says what NVML says.
_INIT_WORDS = {
    nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "CD401 library libnvidia-ml.so.1 not found: is the driver installed?",
    nvml.NVML_ERROR_DRIVER_NOT_LOADED: "CD401 NVML 9: driver not loaded: try nvidia-smi, modprobe nvidia",
    nvml.NVML_ERROR_NO_PERMISSION: "CD404 NVML 4: no permission to use the devices /dev/nvidia*",
    nvml.NVML_ERROR_UNKNOWN: "CD404 NVML 999: unknown error: may the mole still use the devices /dev/nvidia*?",
}
_GPU_WORDS = {
    nvml.NVML_ERROR_GPU_IS_LOST: "NVML 15: lost, fallen off the bus: look for Xid 79 in the kernel's log",
    nvml.NVML_ERROR_NO_PERMISSION: "NVML 4: no permission to use this GPU",
}


def serve(connection: socket.socket, processes: ProcessTable, proc: str = "/proc") -> None:
    """Answer until the other end closes."""
    reader = Reader(processes, proc)
    with connection.makefile("r") as questions:
        for _ in questions:
            reader.answer(lambda message: connection.sendall(json.dumps(message).encode() + b"\n"))
    reader.close()


class Reader:
    """NVML, and what has been learnt of its GPUs: what never changes is read once, what a GPU has not is asked once."""

    def __init__(self, processes: ProcessTable, proc: str = "/proc") -> None:
        self._processes = processes
        self._proc = proc
        self._ready = False
        self._listed = self._unknown = 0  # processes of a round, and those whose owner is not known
        self._handles: dict[int, Handle] = {}
        self._facts: dict[int, Fields] = {}
        self._settled: set[tuple[int, Callable[[Handle], Fields]]] = set()  # not to be asked again

    def answer(self, tell: Callable[[Fields], None]) -> None:
        """Read all GPUs, and tell about each as soon as it is read."""
        try:
            if not self._ready:
                nvml.nvmlInit()
                self._ready = True
                tell({"driver": _driver()})
            count = nvml.nvmlDeviceGetCount()
            tell({"count": count})
            remarks: list[str] = []
            self._listed = self._unknown = 0
            for index in range(count):
                tell({"index": index, "entry": self._gpu(index, remarks), "read": time.monotonic()})
            if self._unknown and hides_processes(self._proc):
                remarks.append(f"CD405 owners hidden: {self._unknown} of {self._listed} processes (hidepid)")
            tell({"done": remarks})
        except nvml.NVMLError as error:
            tell({"failed": self._why(error), "number": error.value})
            self.close()

    def close(self) -> None:
        """Let go of the driver; the next answer begins anew."""
        if self._ready:
            self._ready = False
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()
        self._handles.clear()
        self._facts.clear()
        self._settled.clear()

    def _gpu(self, index: int, remarks: list[str]) -> Fields:
        entry: Fields = {"index": index, **self._facts.get(index, {})}
        try:
            if index not in self._handles:
                self._handles[index] = nvml.nvmlDeviceGetHandleByIndex(index)
            handle = self._handles[index]
            for probe in FACTS:
                fields = self._ask(index, probe, handle, remarks, once=True)
                self._facts.setdefault(index, {}).update(fields)
            entry |= self._facts[index]
            for probe in FIGURES:
                entry |= self._ask(index, probe, handle, remarks)
            users = self._users(index, handle, remarks)
            if users is not None:
                entry["users"] = users
        except nvml.NVMLError as error:
            if error.value in _NVML_GONE:
                raise
            self._handles.pop(index, None)
            entry = {
                "index": index,
                **self._facts.get(index, {}),
                "error": _GPU_WORDS.get(error.value) or _plain(error),
            }
        return entry

    def _ask(
        self, index: int, probe: Callable[[Handle], Fields], handle: Handle, remarks: list[str], *, once: bool = False
    ) -> Fields:
        """Return the fields of a probe; none where the GPU has them not, or they were read once and stay."""
        if (index, probe) in self._settled:
            return {}
        try:
            fields = probe(handle)
        except nvml.NVMLError as error:
            if error.value in _UNSUPPORTED:
                self._settled.add((index, probe))
            elif error.value == nvml.NVML_ERROR_GPU_IS_LOST or error.value in _NVML_GONE:
                raise
            else:
                remarks.append(f"GPU {index}: {probe.__name__.strip('_')}: {_plain(error)}")
            return {}
        except ValueError as error:  # a name that is no text
            remarks.append(f"GPU {index}: {probe.__name__.strip('_')}: {error}")
            return {}
        remarks += [f"GPU {index}: {name}: out of its range" for name, value in fields.items() if value is None]
        if once:
            self._settled.add((index, probe))
        return fields

    def _users(self, index: int, handle: Handle, remarks: list[str]) -> dict[str, dict[str, Fields]] | None:
        """Return {user: {pid: process}}, None where the GPU does not tell its processes: `{}` would say it has none."""
        mark = self._processes.mark()
        graphics = self._ask(index, _graphics, handle, remarks)
        compute = self._ask(index, _compute, handle, remarks)
        if not compute:
            return None
        users: dict[str, dict[str, Fields]] = {}
        # a process may be in both lists, with the same memory: it computes
        listed = {pid: ("G", mem) for pid, mem in _pairs(graphics)} | {pid: ("C", mem) for pid, mem in _pairs(compute)}
        for pid, (kind, mem) in listed.items():
            process = self._processes.read(pid, mark)
            self._listed += 1
            self._unknown += process.user == UNKNOWN_USER
            users.setdefault(process.user, {})[str(pid)] = {
                "mem": mem,
                "time": process.cpu_seconds,
                "name": process.name,
                "type": kind,
            }
        return users

    def _why(self, error: nvml.NVMLError) -> str:
        if error.value != nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return _INIT_WORDS.get(error.value) or _plain(error)
        kernel, library = kernel_driver(self._proc), parse_library_version(Path("/proc/self/maps").read_text())
        return f"CD402 NVML 18: driver mismatch: kernel {kernel or '?'}, library {library or '?'}: reboot or reload it"


def _pairs(fields: Fields) -> list[tuple[int, int | None]]:
    pairs: list[tuple[int, int | None]] = fields.get("pids", [])  # type: ignore[assignment]  # made just below
    return pairs


def kernel_driver(proc: str) -> str | None:
    """Return the version of the driver in the kernel from /proc/driver/nvidia/version."""
    try:
        return parse_kernel_driver(Path(proc, "driver/nvidia/version").read_text())
    except OSError:
        return None


def parse_kernel_driver(text: str) -> str | None:
    """Return the version: the first word of digits and dots after "Kernel Module"."""
    words = text.partition("Kernel Module")[2].split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def parse_library_version(maps: str) -> str | None:
    """Return the version of NVML's library from /proc/self/maps: its file is named by it, and needs no driver."""
    found = re.search(r"/libnvidia-ml\.so\.(\d+(?:\.\d+)+)$", maps, re.MULTILINE)
    return found[1] if found else None


def _driver() -> Fields:
    driver: Fields = {"driver_version": clean(str(nvml.nvmlSystemGetDriverVersion()), 256)}
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion()
    except nvml.NVMLError:  # a site without CUDA's own library
        return driver
    return {**driver, "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}"}


def _plain(error: nvml.NVMLError) -> str:
    return f"NVML {error.value}: {error}"


def _name(handle: Handle) -> Fields:
    return {"name": clean(str(nvml.nvmlDeviceGetName(handle)), 200)}


def _uuid(handle: Handle) -> Fields:
    return {"uuid": clean(str(nvml.nvmlDeviceGetUUID(handle)), 128)}


def _minor_number(handle: Handle) -> Fields:
    return {"minor_number": within(nvml.nvmlDeviceGetMinorNumber(handle), 0, 65535)}


def _pci_bus_id(handle: Handle) -> Fields:
    return {"pci_bus_id": clean(str(nvml.nvmlDeviceGetPciInfo(handle).busId), 64)}


def _temperature_slowdown(handle: Handle) -> Fields:
    limit = nvml.nvmlDeviceGetTemperatureThreshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    return {"temperature_slowdown_c": within(limit, 0, 200)}


def _sm_clock_max(handle: Handle) -> Fields:
    return {"sm_clock_max_mhz": within(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM), 0, 100_000)}


def _memory_clock_max(handle: Handle) -> Fields:
    return {"memory_clock_max_mhz": within(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM), 0, 100_000)}


def _memory(handle: Handle) -> Fields:
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError_FunctionNotFound:  # drivers before 510: the first version counts the reserved part as used
        info = nvml.nvmlDeviceGetMemoryInfo(handle)
    total = within(info.total // _MIB, 1, 2**40)
    return {"total_mem": total, "used_mem": within(info.used // _MIB, 0, total or 2**40)}


def _utilisation(handle: Handle) -> Fields:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"gpu_util": within(rates.gpu, 0, 100), "memory_util": within(rates.memory, 0, 100)}


def _temperature(handle: Handle) -> Fields:
    return {"temperature_c": within(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU), -50, 200)}


def _fan(handle: Handle) -> Fields:
    return {"fan_percent": within(nvml.nvmlDeviceGetFanSpeed(handle), 0, 200)}


def _power(handle: Handle) -> Fields:
    return {"power_w": within(nvml.nvmlDeviceGetPowerUsage(handle) / 1000, 0, 100_000)}


def _power_limit(handle: Handle) -> Fields:
    return {"power_limit_w": within(nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000, 0, 100_000)}


def _sm_clock(handle: Handle) -> Fields:
    return {"sm_clock_mhz": within(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM), 0, 100_000)}


def _memory_clock(handle: Handle) -> Fields:
    return {"memory_clock_mhz": within(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM), 0, 100_000)}


def _pstate(handle: Handle) -> Fields:
    state = nvml.nvmlDeviceGetPerformanceState(handle)
    return {} if state == nvml.NVML_PSTATE_UNKNOWN else {"pstate": within(state, 0, 15)}


def _compute(handle: Handle) -> Fields:
    return {"pids": [_pid_mem(process) for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]}


def _graphics(handle: Handle) -> Fields:
    return {"pids": [_pid_mem(process) for process in nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)]}


def _pid_mem(process: Any) -> tuple[int, int | None]:
    mem = process.usedGpuMemory
    return process.pid, None if mem is None else mem // _MIB


FACTS = (_name, _uuid, _minor_number, _pci_bus_id, _temperature_slowdown, _sm_clock_max, _memory_clock_max)
"""What never changes of a GPU."""

FIGURES = (
    _memory,
    _utilisation,
    _temperature,
    _fan,
    _power,
    _power_limit,
    _sm_clock,
    _memory_clock,
    _pstate,
)
"""What is read in each round: one call into the driver each."""
