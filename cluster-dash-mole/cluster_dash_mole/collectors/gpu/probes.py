"""What is asked of a GPU: the calls into NVML, and what their answers are called in the snapshot.

`FACTS` never change and are read once. `SELDOM` change slowly or take long on real drivers (20 ms for one direction of
PCIe throughput). `FIGURES` are read in each round, so they go past nvidia-ml-py, which makes its buffers anew in each
call and costs more than the driver: one buffer each, for all GPUs.
"""

from collections.abc import Callable
from ctypes import byref, c_uint, c_ulonglong
from typing import Any, NamedTuple, TypeAlias

import pynvml as nvml

from cluster_dash_mole.snapshot import clean, within

Handle: TypeAlias = Any  # pynvml has no types
Fields: TypeAlias = dict[str, object]

MIB = 2**20
_NO_FIGURE = 2**64 - 1  # NVML's "not available" for the memory of a process
_NO_INSTANCE = 2**32 - 1
_ALL_LINKS = 2**32 - 1
_MOST_LINKS = 18  # of a Blackwell or Hopper GPU
_COUNT_MOST = 2**53 - 1

THROTTLE_WORDS = {
    nvml.nvmlClocksThrottleReasonGpuIdle: "gpu_idle",
    nvml.nvmlClocksThrottleReasonApplicationsClocksSetting: "applications_clocks_setting",
    nvml.nvmlClocksThrottleReasonSwPowerCap: "sw_power_cap",
    nvml.nvmlClocksThrottleReasonHwSlowdown: "hw_slowdown",
    nvml.nvmlClocksThrottleReasonSyncBoost: "sync_boost",
    nvml.nvmlClocksThrottleReasonSwThermalSlowdown: "sw_thermal_slowdown",
    nvml.nvmlClocksThrottleReasonHwThermalSlowdown: "hw_thermal_slowdown",
    nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "hw_power_brake_slowdown",
    nvml.nvmlClocksThrottleReasonDisplayClockSetting: "display_clock_setting",
}
"""NVML's bits, in the words of nvidia-smi."""

_COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}


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


FACTS = (_name, _uuid, _minor_number, _pci_bus_id, _temperature_slowdown, _sm_clock_max, _memory_clock_max)
"""What never changes of a GPU."""


def _power_limit(handle: Handle) -> Fields:
    return {"power_limit_w": within(nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000, 0, 100_000)}


def _persistence(handle: Handle) -> Fields:
    return {"persistence": nvml.nvmlDeviceGetPersistenceMode(handle) == 1}


def _compute_mode(handle: Handle) -> Fields:
    mode = nvml.nvmlDeviceGetComputeMode(handle)
    return {"compute_mode": _COMPUTE_MODES.get(mode, f"mode {mode}")}


def _pcie_gen(handle: Handle) -> Fields:
    return {"pcie": {"gen": within(nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle), 1, 16)}}


def _pcie_gen_max(handle: Handle) -> Fields:
    return {"pcie": {"gen_max": within(nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), 1, 16)}}


def _pcie_width(handle: Handle) -> Fields:
    return {"pcie": {"width": within(nvml.nvmlDeviceGetCurrPcieLinkWidth(handle), 1, 64)}}


def _pcie_width_max(handle: Handle) -> Fields:
    return {"pcie": {"width_max": within(nvml.nvmlDeviceGetMaxPcieLinkWidth(handle), 1, 64)}}


def _pcie_sent(handle: Handle) -> Fields:
    rate = nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_TX_BYTES)
    return {"pcie": {"tx_kib_s": within(rate, 0, 2**32)}}


def _pcie_received(handle: Handle) -> Fields:
    rate = nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_RX_BYTES)
    return {"pcie": {"rx_kib_s": within(rate, 0, 2**32)}}


_SELDOM_IDS = {
    "corrected": nvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    "uncorrected": nvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
    "remapped_corrected": nvml.NVML_FI_DEV_REMAPPED_COR,
    "remapped_uncorrected": nvml.NVML_FI_DEV_REMAPPED_UNC,
    "remap_pending": nvml.NVML_FI_DEV_REMAPPED_PENDING,
    "remap_failed": nvml.NVML_FI_DEV_REMAPPED_FAILURE,
    "retired_corrected": nvml.NVML_FI_DEV_RETIRED_SBE,
    "retired_uncorrected": nvml.NVML_FI_DEV_RETIRED_DBE,
    "pcie_replays": nvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER,
    "links": nvml.NVML_FI_DEV_NVLINK_LINK_COUNT,
    "flit_errors": nvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    "data_errors": nvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
    "replay_errors": nvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    "recovery_errors": nvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
    "sent": (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, _ALL_LINKS),
    "received": (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, _ALL_LINKS),
}
_LINK_STATES = [(nvml.NVML_FI_DEV_NVLINK_GET_STATE, link) for link in range(_MOST_LINKS)]


def _counters(handle: Handle) -> Fields:
    """Return sections ecc, nvlink and pcie: all in one call, errors since the driver was loaded."""
    values = nvml.nvmlDeviceGetFieldValues(handle, [*_SELDOM_IDS.values(), *_LINK_STATES])
    read = dict(zip(_SELDOM_IDS, map(field_value, values), strict=False))
    pending, failed = read["remap_pending"], read["remap_failed"]
    ecc = {
        "corrected": _counted(read["corrected"]),
        "uncorrected": _counted(read["uncorrected"]),
        "remapped_rows": _sum(read["remapped_corrected"], read["remapped_uncorrected"]),
        "remap_pending": None if pending is None else pending != 0,
        "remap_failed": None if failed is None else failed != 0,
        "retired_pages": _sum(read["retired_corrected"], read["retired_uncorrected"]),
    }
    nvlink = {}
    if read["links"]:
        states = [field_value(value) for value in values[len(_SELDOM_IDS) :]]
        known = [state for state in states if state is not None]
        errors = [read[name] for name in ("flit_errors", "data_errors", "replay_errors", "recovery_errors")]
        told = [count for count in errors if count is not None]
        nvlink = {
            "active": sum(state == 1 for state in known) if known else None,
            "errors": _sum(*told) if told else None,
            "tx": _counted(read["sent"]),
            "rx": _counted(read["received"]),
        }
    sections = {"ecc": ecc, "nvlink": nvlink, "pcie": {"replays": _counted(read["pcie_replays"])}}
    known_of = {
        name: {key: value for key, value in part.items() if value is not None} for name, part in sections.items()
    }
    return {name: part for name, part in known_of.items() if part}


def field_value(value: Any) -> float | None:
    """Return a value of nvmlDeviceGetFieldValues, None where the GPU does not have it."""
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        return None
    kind, union = value.valueType, value.value
    if kind == nvml.NVML_VALUE_TYPE_UNSIGNED_INT:
        return int(union.uiVal)
    if kind == nvml.NVML_VALUE_TYPE_DOUBLE:
        return float(union.dVal)
    return int(union.sllVal if kind == nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG else union.ullVal)


def _counted(value: float | None) -> float | None:
    return within(value, 0, _COUNT_MOST)


def _sum(*counts: float | None) -> float | None:
    known = [count for count in counts if count is not None]
    return _counted(sum(known)) if len(known) == len(counts) else None


SELDOM = (
    *(_power_limit, _persistence, _compute_mode, _pcie_gen, _pcie_gen_max, _pcie_width, _pcie_width_max),
    *(_pcie_sent, _pcie_received, _counters),
)
"""What is read every `SELDOM_SECONDS`, one GPU after the other: slow calls, and what hardly changes."""


class Figure(NamedTuple):
    """A call of each round: NVML's `function` with a handle and `arguments`; `take` makes fields of the answer."""

    function: str
    arguments: tuple[object, ...]
    take: Callable[[], Fields]


def _number(function: str, field: str, low: float, high: float, *arguments: object, per: int = 1) -> Figure:
    """Return a figure that is one number, in units of which `per` make one of the field's."""
    number = c_uint()

    def take() -> Fields:
        return {field: within(number.value if per == 1 else number.value / per, low, high)}

    return Figure(function, (*arguments, byref(number)), take)


def _memory() -> tuple[Figure, ...]:
    def figure(function: str, info: Any) -> Figure:
        def take() -> Fields:
            total = within(info.total // MIB, 1, 2**40)
            return {"total_mem": total, "used_mem": within(info.used // MIB, 0, total or 2**40)}

        return Figure(function, (byref(info),), take)

    second = nvml.c_nvmlMemory_v2_t()
    second.version = nvml.nvmlMemory_v2
    return (
        figure("nvmlDeviceGetMemoryInfo_v2", second),
        # drivers before 510: the first version counts the reserved part as used
        figure("nvmlDeviceGetMemoryInfo", nvml.c_nvmlMemory_t()),
    )


def _utilisation() -> Figure:
    rates = nvml.c_nvmlUtilization_t()

    def take() -> Fields:
        return {"gpu_util": within(rates.gpu, 0, 100), "memory_util": within(rates.memory, 0, 100)}

    return Figure("nvmlDeviceGetUtilizationRates", (byref(rates),), take)


def _pstate() -> Figure:
    state = c_uint()

    def take() -> Fields:
        return {} if state.value == nvml.NVML_PSTATE_UNKNOWN else {"pstate": within(state.value, 0, 15)}

    return Figure("nvmlDeviceGetPerformanceState", (byref(state),), take)


def _throttle(function: str) -> Figure:
    reasons = c_ulonglong()

    def take() -> Fields:
        bits = reasons.value
        unknown = bits & ~_KNOWN_REASONS
        words = [word for bit, word in THROTTLE_WORDS.items() if bits & bit] if bits else []
        return {"throttle_reasons": [*words, f"bits_{unknown:#x}"] if unknown else words}

    return Figure(function, (byref(reasons),), take)


def _engine(function: str, field: str) -> Figure:
    percent, period_us = c_uint(), c_uint()
    return Figure(function, (byref(percent), byref(period_us)), lambda: {field: within(percent.value, 0, 100)})


def _batch() -> Figure:
    """Return the figure of what has no call of its own, or a slower one: all in one."""
    values = (nvml.c_nvmlFieldValue_t * 2)()
    temperature, energy_mj = values
    temperature.fieldId, energy_mj.fieldId = nvml.NVML_FI_DEV_MEMORY_TEMP, nvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION

    def take() -> Fields:
        fields: Fields = {}
        if degrees := field_value(temperature):  # a memory without a sensor has 0
            fields["memory_temperature_c"] = within(degrees, -50, 200)
        if (energy := field_value(energy_mj)) is not None:
            fields["energy_j"] = within(energy / 1000, 0, 1e15)
        return fields

    return Figure("nvmlDeviceGetFieldValues", (len(values), values), take)


_KNOWN_REASONS = sum(THROTTLE_WORDS)
MEMORY = _memory()
"""The memory of a GPU or of a MIG instance: the first variant that the library has."""

FIGURES: tuple[tuple[Figure, ...], ...] = (
    MEMORY,
    (_utilisation(),),
    (_number("nvmlDeviceGetTemperature", "temperature_c", -50, 200, nvml.NVML_TEMPERATURE_GPU),),
    (_number("nvmlDeviceGetFanSpeed", "fan_percent", 0, 200),),
    (_number("nvmlDeviceGetPowerUsage", "power_w", 0, 100_000, per=1000),),
    (_number("nvmlDeviceGetClockInfo", "sm_clock_mhz", 0, 100_000, nvml.NVML_CLOCK_SM),),
    (_number("nvmlDeviceGetClockInfo", "memory_clock_mhz", 0, 100_000, nvml.NVML_CLOCK_MEM),),
    (_pstate(),),
    (_throttle("nvmlDeviceGetCurrentClocksEventReasons"), _throttle("nvmlDeviceGetCurrentClocksThrottleReasons")),
    (_engine("nvmlDeviceGetEncoderUtilization", "encoder_util"),),
    (_engine("nvmlDeviceGetDecoderUtilization", "decoder_util"),),
    (_batch(),),
)
"""What is read in each round: one call each, the first variant that the library has."""


class Running(NamedTuple):
    """A process as NVML lists it: `mem` in 2^20 bytes; `gi`, `ci` are its MIG instance."""

    pid: int
    kind: str
    mem: int | None
    gi: int | None
    ci: int | None


class ProcessList:
    """A call that lists processes of one kind (G, C, M). Its buffer grows to the longest list seen."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.functions = (f"nvmlDeviceGet{name}RunningProcesses_v3", f"nvmlDeviceGet{name}RunningProcesses_v2")
        self._count = c_uint()
        self._buffer = (nvml.c_nvmlProcessInfo_v2_t * 32)()

    def read(self, function: Callable[..., int], handle: Handle) -> list[Running]:
        """Return the processes; raises NVMLError."""
        self._count.value = len(self._buffer)
        code = function(handle, byref(self._count), self._buffer)
        if code == nvml.NVML_ERROR_INSUFFICIENT_SIZE:
            self._buffer = (nvml.c_nvmlProcessInfo_v2_t * (self._count.value + 32))()
            self._count.value = len(self._buffer)
            code = function(handle, byref(self._count), self._buffer)
        if code:
            raise nvml.NVMLError(code)
        return [self._running(self._buffer[place]) for place in range(self._count.value)]

    def _running(self, info: Any) -> Running:
        mem, gi, ci = info.usedGpuMemory, info.gpuInstanceId, info.computeInstanceId
        return Running(
            info.pid,
            self.kind,
            None if mem == _NO_FIGURE else mem // MIB,
            None if gi == _NO_INSTANCE else gi,
            None if ci == _NO_INSTANCE else ci,
        )


PROCESS_LISTS = (ProcessList("G", "Graphics"), ProcessList("M", "MPSCompute"), ProcessList("C", "Compute"))
"""A process on more than one list is of the last one's kind."""


class ProcessShares:
    """The share of the GPU that each process had, from samples that the driver keeps for some seconds."""

    function = "nvmlDeviceGetProcessUtilization"

    def __init__(self) -> None:
        self._count = c_uint()
        self._buffer = (nvml.c_nvmlProcessUtilizationSample_t * 128)()

    def read(self, function: Callable[..., int], handle: Handle, since: int) -> tuple[dict[int, int], int]:
        """Return the mean percent of each pid since `since` (µs of the driver), and the newest sample's moment."""
        self._count.value = len(self._buffer)
        code = function(handle, self._buffer, byref(self._count), c_ulonglong(since))
        if code == nvml.NVML_ERROR_INSUFFICIENT_SIZE:
            self._buffer = (nvml.c_nvmlProcessUtilizationSample_t * (self._count.value + 128))()
            self._count.value = len(self._buffer)
            code = function(handle, self._buffer, byref(self._count), c_ulonglong(since))
        if code == nvml.NVML_ERROR_NOT_FOUND:  # no sample since
            return {}, since
        if code:
            raise nvml.NVMLError(code)
        shares: dict[int, list[int]] = {}
        newest = since
        for place in range(self._count.value):
            sample = self._buffer[place]
            stamp, share = sample.timeStamp, sample.smUtil
            if stamp > since and share <= 100:  # unused places of the driver's ring are all 0
                shares.setdefault(sample.pid, []).append(share)
                newest = max(newest, stamp)
        return {pid: round(sum(each) / len(each)) for pid, each in shares.items()}, newest


def mig_instances(handle: Handle) -> list[tuple[Handle, Fields]] | None:
    """Return the MIG instances of a GPU, each with its own handle; None where MIG is off."""
    if nvml.nvmlDeviceGetMigMode(handle)[0] != 1:
        return None
    found = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError_NotFound:  # this place is empty
            continue
        name = clean(str(nvml.nvmlDeviceGetName(instance)), 200)
        fields: Fields = {
            "gi": nvml.nvmlDeviceGetGpuInstanceId(instance),
            "ci": nvml.nvmlDeviceGetComputeInstanceId(instance),
            "profile": name.rpartition("MIG ")[2] or None,
            "uuid": clean(str(nvml.nvmlDeviceGetUUID(instance)), 128),
        }
        found.append((instance, fields))
    return found
