"""The process that holds NVML: reads all GPUs each time it is asked, and tells one after the other.

A question is a line: the indices of the GPUs to leave out, with commas between. Messages are dicts, packed by
`wire.pack`. A question is answered with `{"driver": {...}}` when NVML has begun to work, `{"count": n}`,
`{"index": i, "entry": {...}, "read": s}` for each GPU as soon as it is read (`read` in s of the monotonic clock), and
`{"done": [remark, ...]}`; or, where NVML does not work, with `{"failed": "<why>", "number": n, "over": ...}`: `over` if
only a fresh process can mend it. At any time `{"event": {...}}` may come, from a thread of its own, as an Xid is worth
most while a call hangs. The process ends at the end of input.
"""

import ctypes
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml as nvml

from cluster_dash_mole.collectors.gpu.probes import (
    FACTS,
    FIGURES,
    MEMORY,
    PROCESS_LISTS,
    SELDOM,
    Fields,
    Figure,
    Handle,
    ProcessShares,
    Running,
    mig_instances,
)
from cluster_dash_mole.collectors.gpu.processes import UNKNOWN_USER, ProcessTable, hides_processes
from cluster_dash_mole.collectors.gpu.wire import pack
from cluster_dash_mole.collectors.gpu.xids import xid_text
from cluster_dash_mole.snapshot import clean

SELDOM_SECONDS = 60.0
SELDOM_BUDGET_SECONDS = 0.25
"""No GPU's slow calls are begun in a round that has spent so long on those of others: they wait for the next."""

_EVENT_WAIT_MS = 600_000
_EVENT_PAUSE_SECONDS = 5.0

_UNSUPPORTED = frozenset({nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_NVML_GONE = frozenset({nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED})
_NO_INSTANCE = frozenset({nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT})

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
    nvml.NVML_ERROR_RESET_REQUIRED: "NVML 16: needs a reset: nvidia-smi --gpu-reset, or a reboot",
}

Tell = Callable[[Fields], None]


def serve(connection: socket.socket, processes: ProcessTable, proc: str = "/proc") -> None:
    """Answer until the other end closes."""
    telling = threading.Lock()

    def tell(message: Fields) -> None:
        with telling:
            connection.sendall(pack(message))

    reader = Reader(processes, proc)
    with connection.makefile("r") as questions:
        for question in questions:
            before = reader.ready
            reader.answer(tell, leave_out={int(index) for index in question.split(",") if index.strip()})
            if reader.ready and not before:
                threading.Thread(target=hear_events, args=(tell,), daemon=True).start()


class Library:
    """The functions of NVML that are called in each round, looked up once."""

    def __init__(self, library: object) -> None:
        self._library = library
        bound = [self._bind_figure(variants) for variants in FIGURES]
        self.figures = [figure for figure in bound if figure]
        self.memory = self._bind_figure(MEMORY)
        self.lists = [(each, function) for each in PROCESS_LISTS if (function := self._first(each.functions))]
        self.shares = self._first((ProcessShares.function,))

    def _bind_figure(self, variants: tuple[Figure, ...]) -> "Bound | None":
        for figure in variants:
            if function := self._first((figure.function,)):
                return function, figure
        return None

    def _first(self, names: tuple[str, ...]) -> "Function | None":
        return next((found for name in names if (found := getattr(self._library, name, None))), None)


Function = Callable[..., int]
Bound = tuple[Function, Figure]


class Gpu:
    """What has been learnt of one GPU: its handle and facts, and the calls that it answers."""

    def __init__(self, handle: Handle, library: Library) -> None:
        self.handle = handle
        self.facts: Fields = {}
        self.seldom: Fields = {}
        self.seldom_at = float("-inf")
        self.figures = list(library.figures)
        self.lists = list(library.lists)
        self.shares = library.shares
        self.shares_since = 0
        self.missing: set[Callable[[Handle], Fields]] = set()  # of FACTS and SELDOM: read for good, or not to be had
        self.mig: list[tuple[Handle, Fields]] | None = None


class Reader:
    """NVML, and what has been learnt of its GPUs: what never changes is read once, what a GPU has not is asked once."""

    def __init__(
        self,
        processes: ProcessTable,
        proc: str = "/proc",
        *,
        load: Callable[[str], object] = ctypes.CDLL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ready = False
        self._processes = processes
        self._proc = proc
        self._load = load
        self._clock = clock
        self._shares = ProcessShares()
        self._gpus: dict[int, Gpu] = {}
        self._facts: dict[int, Fields] = {}  # of all GPUs seen, lost ones too
        self._listed = self._unknown = 0  # processes of a round, and those whose owner is not known
        self._seldom_spent = 0.0
        self._remarks: list[str] = []

    def answer(self, tell: Tell, *, leave_out: set[int] | frozenset[int] = frozenset()) -> None:
        """Read all GPUs but those to be left out, and tell about each as soon as it is read."""
        try:
            if not self.ready:
                nvml.nvmlInit()
                self._library = Library(self._load("libnvidia-ml.so.1"))  # the one that is loaded already
                driver = _driver()
                self.ready = True
                tell({"driver": driver})
            count = nvml.nvmlDeviceGetCount()
            tell({"count": count})
            self._listed = self._unknown = 0
            self._seldom_spent = 0.0
            self._remarks = []
            for index in range(count):
                if index not in leave_out:
                    tell({"index": index, "entry": self._entry(index), "read": time.monotonic()})
            self._processes.forget_unread()
            if self._unknown and hides_processes(self._proc):
                self._remarks.append(f"CD405 owners hidden: {self._unknown} of {self._listed} processes (hidepid)")
            tell({"done": self._remarks})
        except nvml.NVMLError as error:
            tell(
                {"failed": self._why(error), "number": error.value, "over": self.ready or error.value in _WRONG_LIBRARY}
            )

    def _entry(self, index: int) -> Fields:
        """Return a GPU's entry: all its fields, or the error that kept it from being read."""
        try:
            gpu = self._gpus.get(index)
            if gpu is None:
                gpu = self._gpus[index] = Gpu(nvml.nvmlDeviceGetHandleByIndex(index), self._library)
            return self._read(index, gpu)
        except nvml.NVMLError as error:
            if error.value in _NVML_GONE:
                raise
            self._gpus.pop(index, None)
            words = _GPU_WORDS.get(error.value) or _plain(error)
            return {"index": index, **self._facts.get(index, {}), "error": words}

    def _read(self, index: int, gpu: Gpu) -> Fields:
        for probe in FACTS:
            if probe not in gpu.missing and (fields := self._ask(index, gpu, probe)):
                gpu.missing.add(probe)
                gpu.facts |= fields
        self._facts[index] = gpu.facts
        self._read_seldom(index, gpu)
        entry: Fields = {"index": index, **gpu.facts, **gpu.seldom}
        for bound in tuple(gpu.figures):
            function, figure = bound
            code = function(gpu.handle, *figure.arguments)
            if code == 0:
                entry |= figure.take()
            elif code in _UNSUPPORTED:
                gpu.figures.remove(bound)
            else:
                self._failed(index, figure.function, code)
        if (mig := self._read_mig(index, gpu)) is not None:
            entry["mig"] = {"instances": mig}
        users, total = self._users(index, gpu)
        if users is not None:
            entry["users"] = users
            used = entry.get("used_mem")
            if total is not None and isinstance(used, int):
                entry["unattributed_mem"] = max(0, used - total)
        self._remarks += [f"GPU {index}: {name}: out of its range" for name, value in entry.items() if value is None]
        return entry

    def _read_seldom(self, index: int, gpu: Gpu) -> None:
        started = self._clock()
        if started - gpu.seldom_at < SELDOM_SECONDS or self._seldom_spent >= SELDOM_BUDGET_SECONDS:
            return
        fields: dict[str, object] = {}
        for probe in SELDOM:
            if probe not in gpu.missing:
                for name, value in self._ask(index, gpu, probe).items():
                    known = fields.get(name)
                    fields[name] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
        try:
            gpu.mig = mig_instances(gpu.handle)
        except nvml.NVMLError as error:
            gpu.mig = None
            if error.value not in _UNSUPPORTED:
                self._failed(index, "nvmlDeviceGetMigMode", error.value)
        gpu.seldom, gpu.seldom_at = fields, started
        self._seldom_spent += self._clock() - started

    def _ask(self, index: int, gpu: Gpu, probe: Callable[[Handle], Fields]) -> Fields:
        """Return the fields of a probe; none where the GPU has them not."""
        try:
            return probe(gpu.handle)
        except nvml.NVMLError as error:
            if error.value in _UNSUPPORTED:
                gpu.missing.add(probe)
            else:
                self._failed(index, probe.__name__.strip("_"), error.value)
        except ValueError as error:  # a name that is no text
            self._remarks.append(f"GPU {index}: {probe.__name__.strip('_')}: {error}")
        return {}

    def _failed(self, index: int, what: str, code: int) -> None:
        """Remark on a call that failed; raises NVMLError where it says that all of this GPU is gone."""
        if code == nvml.NVML_ERROR_GPU_IS_LOST or code in _NVML_GONE:
            raise nvml.NVMLError(code)
        self._remarks.append(f"GPU {index}: {what.removeprefix('nvmlDeviceGet')}: {_plain(nvml.NVMLError(code))}")

    def _read_mig(self, index: int, gpu: Gpu) -> list[Fields] | None:
        """Return the MIG instances with their memory, None where MIG is off."""
        if gpu.mig is None:
            return None
        instances = []
        for handle, fields in gpu.mig:
            entry = dict(fields)
            if self._library.memory:
                function, figure = self._library.memory
                code = function(handle, *figure.arguments)
                if code == 0:
                    entry |= figure.take()
                elif code in _NO_INSTANCE:  # it was taken down: look again in the next round
                    gpu.seldom_at = float("-inf")
                    continue
                elif code not in _UNSUPPORTED:
                    self._failed(index, figure.function, code)
            instances.append(entry)
        return instances

    def _users(self, index: int, gpu: Gpu) -> tuple[dict[str, dict[str, Fields]] | None, int | None]:
        """Return {user: {pid: process}} and the memory of all, in 2^20 bytes.

        The first is None where the GPU does not tell its processes, as `{}` would say that it has none; the second
        where it is not known of each.
        """
        mark = self._processes.mark()
        listed = self._running(index, gpu)
        if listed is None:
            return None, None
        shares = self._share(index, gpu) if listed else {}
        users: dict[str, dict[str, Fields]] = {}
        total: int | None = 0
        for pid, running in listed.items():
            process = self._processes.read(pid, mark)
            self._listed += 1
            self._unknown += process.user == UNKNOWN_USER
            total = None if total is None or running.mem is None else total + running.mem
            more = {"gi": running.gi, "ci": running.ci, "gpu_util": shares.get(pid)}
            users.setdefault(process.user, {})[str(pid)] = {
                "mem": running.mem,
                "time": process.cpu_seconds,
                "name": process.name,
                "type": running.kind,
                **process.details,
                **{name: value for name, value in more.items() if value is not None},
            }
        return users, total

    def _running(self, index: int, gpu: Gpu) -> dict[int, Running] | None:
        """Return the processes by pid. With MIG each instance is asked: only root may see all of them at its GPU."""
        found: dict[int, Running] = {}
        computing = False
        for bound in tuple(gpu.lists):
            each, function = bound
            for place, (handle, instance) in enumerate(_where(gpu)):
                try:
                    listed = each.read(function, handle)
                except nvml.NVMLError as error:
                    if error.value in _UNSUPPORTED:
                        if place == 0:
                            gpu.lists.remove(bound)
                        break
                    if not (gpu.mig and error.value in _NO_INSTANCE):
                        self._failed(index, each.functions[0], error.value)
                    continue
                computing |= each.kind == "C"
                for running in listed:
                    found[running.pid] = running._replace(**instance) if instance else running
        return found if computing else None

    def _share(self, index: int, gpu: Gpu) -> dict[int, int]:
        if gpu.shares is None:
            return {}
        try:
            shares, gpu.shares_since = self._shares.read(gpu.shares, gpu.handle, gpu.shares_since)
        except nvml.NVMLError as error:
            if error.value in _UNSUPPORTED:
                gpu.shares = None
            else:
                self._failed(index, ProcessShares.function, error.value)
            return {}
        return shares

    def _why(self, error: nvml.NVMLError) -> str:
        if error.value != nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return _INIT_WORDS.get(error.value) or _plain(error)
        kernel, library = kernel_driver(self._proc), parse_library_version(Path("/proc/self/maps").read_text())
        return f"CD402 NVML 18: driver mismatch: kernel {kernel or '?'}, library {library or '?'}: reboot or reload it"


_WRONG_LIBRARY = frozenset({nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH})  # and it stays so in this process


def _where(gpu: Gpu) -> list[tuple[Handle, Any]]:
    """Return the handles at which to ask for processes, each with the numbers of its MIG instance."""
    if gpu.mig is None:
        return [(gpu.handle, {})]
    return [(handle, {"gi": fields["gi"], "ci": fields["ci"]}) for handle, fields in gpu.mig]


def hear_events(tell: Tell) -> None:
    """Tell every Xid of the GPUs there are now, for ever."""
    try:
        events = nvml.nvmlEventSetCreate()
        index_of = _register(events)
    except nvml.NVMLError:  # no events on this machine
        return
    while index_of:
        try:
            event = nvml.nvmlEventSetWait_v2(events, _EVENT_WAIT_MS)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_TIMEOUT:  # a GPU was lost, say: the others still have events
                time.sleep(_EVENT_PAUSE_SECONDS)
            continue
        index, code = index_of.get(_address(event.device)), int(event.eventData)
        try:
            tell({"event": {"at": time.time(), "kind": "xid", "gpu": index, "code": code, "text": xid_text(code)}})
        except OSError:  # the other end has closed
            return


def _register(events: object) -> dict[int | None, int]:
    """Register all GPUs; return the index of each by the address behind its handle."""
    index_of = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:  # a lost one, or one without events
            continue
        index_of[_address(handle)] = index
    return index_of


def _address(handle: Handle) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


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
