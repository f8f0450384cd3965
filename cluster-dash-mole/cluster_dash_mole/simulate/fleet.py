"""Simulated hosts: pure functions of a seed, a place in the fleet and a time. The same seed gives the same night."""

import math
from dataclasses import dataclass
from random import Random
from typing import cast
from uuid import UUID

from cluster_dash_mole import __version__
from cluster_dash_mole.host import machine_id_of
from cluster_dash_mole.simulate import night
from cluster_dash_mole.simulate.hardware import model_at
from cluster_dash_mole.simulate.night import Fault
from cluster_dash_mole.simulate.work import BEFORE_SECONDS, Job, Turns
from cluster_dash_mole.snapshot import Outcome, Snapshot, gpu_error

ROOT_GB, DATA_GB, HOME_GB = 878.6, 7_154.0, 40_960.0
HOSTS_IN_A_RACK = 4
COLLECTOR_SECONDS = {"cpu": 0.0004, "memory": 0.0002, "disk": 0.0011, "network": 0.0003, "gpu": 0.031}
BOOT_SECONDS = 25.0
"""How long a host is up before its mole posts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What all hosts of a simulation share.

    Attributes:
        seed: decides all that is left to chance.
        hosts: how many there are.
        gpus: how many GPUs each has.
        interval_seconds: between two snapshots of a host.
        began_at: when the night began (Unix s); its faults count from there.
        faults: whether the night has any.
        before_seconds: how long before the night it can be asked for.
    """

    seed: int
    hosts: int
    gpus: int
    interval_seconds: float
    began_at: float
    faults: bool
    before_seconds: float = BEFORE_SECONDS

    def build(self) -> "list[SimulatedHost]":
        """Return its hosts."""
        fault_of = night.deal(self.seed, self.hosts) if self.faults else {}
        return [SimulatedHost(self, place, fault_of.get(place)) for place in range(self.hosts)]


@dataclass(frozen=True, slots=True)
class _Gpu:
    """One GPU: what never changes of its entry, the turns it takes part in, and where it sits in the air stream."""

    key: str
    fixed: dict[str, object]
    turns: Turns
    phase: float
    ambient_c: float


class SimulatedHost:
    """One host. Ask it for times that do not go back."""

    def __init__(self, fleet: Fleet, place: int, fault: Fault | None = None) -> None:
        random = Random(f"{fleet.seed}/host/{place}")
        self.hostname = f"gpu{place + 1:0{max(2, len(str(fleet.hosts)))}}"
        self.fault = fault
        self._fleet = fleet
        self._model = model_at(place / fleet.hosts)
        self._boots = tuple(str(UUID(int=random.getrandbits(128), version=4)) for _ in range(2))
        self._uptime_seconds = random.uniform(5, 120) * 86_400
        self._machine_id = machine_id_of(f"{fleet.seed}/{self.hostname}")
        self._rack = f"r{place // HOSTS_IN_A_RACK + 1}"
        self._num_cpus = 128 if fleet.gpus > 4 else 64
        self._memory_gb = 1007.5 if fleet.gpus > 4 else 503.6
        self._root_share = random.uniform(0.2, 0.6)
        self._data_share = random.uniform(0.3, 0.8)
        self._phase = random.uniform(0, 2 * math.pi)
        self._mib_s = random.uniform(2, 40)  # mean rate at which it receives
        down_at = night.reboots_at(fleet.interval_seconds)
        down = (down_at, down_at + night.REBOOT_SECONDS) if fault is Fault.REBOOT else None
        self._turns: list[tuple[Turns, int]] = []  # with how many GPUs they are for
        self._gpus: list[_Gpu] = []
        held = 2 if fault is Fault.HELD else 0
        for count in _partition(random, fleet.gpus, alone=held):
            forgotten = len(self._turns) < held
            turns = Turns(
                Random(random.getrandbits(64)), down=down, forgotten=forgotten, before_seconds=fleet.before_seconds
            )
            self._turns.append((turns, count))
            self._gpus += [self._gpu(random, len(self._gpus) + each, turns) for each in range(count)]
        self._broken = random.randrange(fleet.gpus) if fleet.gpus else None

    def _gpu(self, random: Random, index: int, turns: Turns) -> _Gpu:
        model = self._model
        uuid = f"GPU-{UUID(int=random.getrandbits(128), version=4)}"
        fixed: dict[str, object] = {
            "index": index,
            "name": model.name,
            "uuid": uuid,
            "minor_number": index,
            "pci_bus_id": f"00000000:{0x0A + 0x11 * index % 0xF0:02X}:00.0",
            "temperature_slowdown_c": model.temperature_slowdown_c,
            "sm_clock_max_mhz": model.sm_clock_max_mhz,
            "memory_clock_max_mhz": model.memory_clock_max_mhz,
            "total_mem": model.total_mem,
            "power_limit_w": model.power_limit_w,
        }
        return _Gpu(
            f"{index}_{model.name.replace(' ', '-')}_{uuid[4:10]}",
            fixed,
            turns,
            random.uniform(0, 2 * math.pi),
            random.uniform(26, 31) + 2.5 * (index % 4),
        )

    def snapshot(self, at: float, seq: int) -> Snapshot | None:
        """Return what the host's mole sees at a moment (Unix s), None while the host is silent."""
        fleet, fault = self._fleet, self.fault
        elapsed = at - fleet.began_at
        if night.silent(fault, elapsed, fleet.interval_seconds):
            return None
        back = night.reboots_at(fleet.interval_seconds) + night.REBOOT_SECONDS
        rebooted = fault is Fault.REBOOT and elapsed >= back
        booted = back - BOOT_SECONDS if rebooted else -self._uptime_seconds
        general: dict[str, object] = {
            "hostname": self.hostname,
            "system_time": at,
            "mole_version": __version__,
            "boottime": round(fleet.began_at + booted),
            "os": "Debian GNU/Linux 12 (bookworm)",
            "kernel": "6.1.0-28-amd64",
            "labels": {"rack": self._rack, "simulated": "yes"},
        }
        said = {name: Outcome(ok=True, seconds=seconds, error=None) for name, seconds in COLLECTOR_SECONDS.items()}
        gpu: dict[str, object]
        if fault is Fault.NO_DRIVER:
            why = "CD401 NVML 9: driver not loaded: try nvidia-smi, modprobe nvidia"
            gpu, jobs = gpu_error(why), []
            said["gpu"] = Outcome(ok=False, seconds=0.003, error=why)
        else:
            general |= {"driver_version": "550.90.07", "cuda_version": "12.4"}
            jobs = [(turns.advance(elapsed), count) for turns, count in self._turns]
            gpu = {each.key: self._gpu_entry(each, elapsed) for each in self._gpus}
        if fault is Fault.COLLECTOR:
            said["disk"] = Outcome(ok=False, seconds=1.0, error="/data: no answer")
        parts: dict[str, object] = {
            "general": general,
            "cpu": self._cpu(elapsed, jobs),
            "memory": self._memory(elapsed, jobs),
            "disk": self._disk(elapsed),
            "network": self._network(elapsed - booted),
            "gpu": gpu,
        }
        if events := self._events(elapsed):
            parts["events"] = events
        return Snapshot(
            hostname=self.hostname,
            timestamp=at,
            interval_seconds=fleet.interval_seconds,
            machine_id=self._machine_id,
            boot_id=self._boots[rebooted],
            seq=seq,
            parts=parts,
            collectors=said,
        )

    @property
    def gpu_count(self) -> int:
        """How many GPUs it has."""
        return len(self._gpus)

    @property
    def gpu_type(self) -> str:
        """What Slurm would call its GPUs: `h100`."""
        return self._model.name.split("-")[0].replace("NVIDIA ", "").split(" ")[0].lower()

    def jobs_at(self, at: float) -> "list[tuple[Job | None, list[int]]]":
        """Return the jobs on its GPUs at a moment (Unix s), each with the indexes of those; None: nobody's."""
        jobs, first = [], 0
        for turns, count in self._turns:
            jobs.append((turns.advance(at - self._fleet.began_at), list(range(first, first + count))))
            first += count
        return jobs

    def is_in_trouble(self, at: float) -> bool:
        """Say whether its fault shows at a moment (Unix s)."""
        elapsed, interval = at - self._fleet.began_at, self._fleet.interval_seconds
        if self.fault is Fault.LOST_GPU:
            return elapsed >= night.lost_at(interval)
        if self.fault in (Fault.SILENT, Fault.REBOOT):
            return night.silent(self.fault, elapsed, interval)
        return self.fault is not None

    def _gpu_entry(self, gpu: _Gpu, elapsed: float) -> dict[str, object]:
        model, fault, job = self._model, self.fault, gpu.turns.job
        broken = gpu.fixed["index"] == self._broken
        if broken and fault is Fault.LOST_GPU and elapsed >= night.lost_at(self._fleet.interval_seconds):
            return {**gpu.fixed, "error": "NVML 15: lost, fallen off the bus: look for Xid 79 in the kernel's log"}
        util = job.util_at(elapsed, gpu.phase) if job else 0.0
        used = (job.memory_at(elapsed) if job else 0.0) * model.total_mem
        heat = gpu.turns.heat
        hot = broken and fault is Fault.HOT
        if hot:
            util, heat = max(util, 97.0), 1.0
        draw = util / 100 * (job.work.draw if job else 0.94)
        power_w = model.idle_power_w + (model.power_limit_w - model.idle_power_w) * (0.75 * draw + 0.25 * heat)
        room_c = model.temperature_slowdown_c - 14 - gpu.ambient_c
        temperature_c = model.temperature_slowdown_c + 1 if hot else round(gpu.ambient_c + room_c * heat)
        entry: dict[str, object] = {
            **gpu.fixed,
            "used_mem": round(used) + 4,
            "gpu_util": round(util),
            "memory_util": round(util * 0.55),
            "temperature_c": temperature_c,
            "power_w": round(power_w, 1),
            "sm_clock_mhz": model.idle_clock_mhz if job is None else model.sm_clock_max_mhz - 15 * round(8 * heat),
            "memory_clock_mhz": model.idle_clock_mhz if job is None else model.memory_clock_max_mhz,
            "pstate": 8 if job is None else 0,
            "users": _users(job, gpu, elapsed, used, self._fleet.began_at) if job else {},
        }
        if model.has_fan:
            entry["fan_percent"] = round(30 + 55 * heat)
        if hot:
            entry["throttle_reasons"] = ["sw_thermal_slowdown", "hw_thermal_slowdown"]
            entry["sm_clock_mhz"] = round(0.55 * model.sm_clock_max_mhz)
        return entry

    def _cpu(self, elapsed: float, jobs: list[tuple[Job | None, int]]) -> dict[str, object]:
        loads = [0.6, 0.6, 0.6]
        for turns, count in self._turns:
            loads = [load + count * cores for load, cores in zip(loads, turns.loads, strict=True)]
        cores = 0.5 + sum(count * job.effort * job.work.cores for job, count in jobs if job)
        busy = cores * (1 + 0.06 * math.sin(elapsed / 13 + self._phase))
        return {
            "cpu_percent": round(min(100.0, 100 * busy / self._num_cpus), 2),
            "load_avgs": [round(load, 2) for load in loads],
            "num_cpus": self._num_cpus,
        }

    def _memory(self, elapsed: float, jobs: list[tuple[Job | None, int]]) -> dict[str, object]:
        taken = sum(
            count * job.effort * job.work.ram_gb * job.memory_at(elapsed) / job.memory for job, count in jobs if job
        )
        used = min(0.97 * self._memory_gb, 9.0 + taken)
        return {
            "total_gb": self._memory_gb,
            "available_gb": round(self._memory_gb - used, 3),
            "used_gb": round(used, 3),
            "swap": {"total_gb": 8.0, "used_gb": 0.0},
        }

    def _disk(self, elapsed: float) -> dict[str, object]:
        grown_gb = (elapsed + BEFORE_SECONDS) * 0.002
        data_share = 0.991 if self.fault is Fault.FULL_DISK else self._data_share
        disks: dict[str, object] = {"/dev/nvme0n1p2": _disk("/dev/nvme0n1p2", "/", ROOT_GB, self._root_share * ROOT_GB)}
        if self.fault is not Fault.COLLECTOR:
            disks["/dev/md0"] = _disk(
                "/dev/md0", "/data", DATA_GB, min(0.994 * DATA_GB, data_share * DATA_GB + grown_gb)
            )
        disks["/home"] = _disk("storage:/home", "/home", HOME_GB, 0.71 * HOME_GB + grown_gb)
        return disks

    def _network(self, up_seconds: float) -> dict[str, object]:
        """Return counters since boot: they grow by a rate that swings about its mean."""
        mib = self._mib_s * (up_seconds + 40 * math.sin(up_seconds / 60))
        received, sent = max(0, int(mib * 2**20)), max(0, int(0.3 * mib * 2**20))
        inner = {"rx_bytes": received * 7, "tx_bytes": sent * 22}
        counts = {"rx_bytes": received, "tx_bytes": sent}
        total = {name: counts[name] + inner[name] for name in counts}
        return {**total, "interfaces": {"eno1": counts, "ib0": inner}}

    def _events(self, elapsed: float) -> list[dict[str, object]]:
        """Return what happened since the last snapshot."""
        interval = self._fleet.interval_seconds
        lost = night.lost_at(interval)
        if self.fault is Fault.LOST_GPU and self._broken is not None and lost <= elapsed < lost + interval:
            text = "NVRM: Xid 79: GPU has fallen off the bus."
            return [{"at": self._fleet.began_at + lost, "kind": "xid", "gpu": self._broken, "code": 79, "text": text}]
        return []


def _partition(random: Random, gpus: int, *, alone: int) -> list[int]:
    """Split the GPUs of a host into those that one job gets together; the first `alone` are on their own."""
    parts = [1] * min(alone, gpus)
    while (left := gpus - sum(parts)) > 0:
        parts.append(min(left, random.choice((1, 1, 1, 2, 2, 4, 8))))
    return parts


def _users(job: Job, gpu: _Gpu, elapsed: float, used_mib: float, began_at: float) -> dict[str, object]:
    """Return the part `users` of a GPU: the processes of the job on it."""
    work, age = job.work, elapsed - job.started
    first = job.pid + 7 * work.processes * cast(int, gpu.fixed["index"])
    process = {
        "mem": round(used_mib / work.processes),
        "time": round(age * job.effort * work.cores / work.processes, 1),
        "name": work.program,
        "type": "C",
        "started_at": round(began_at + job.started),
        "command": work.program,
    }
    return {job.user: {str(first + 7 * number): process for number in range(work.processes)}}


def _disk(device: str, mount_point: str, total_gb: float, used_gb: float) -> dict[str, object]:
    return {
        "mount_point": mount_point,
        "device": device,
        "total_gb": total_gb,
        "used_gb": round(used_gb, 3),
        "percent_used": round(100 * used_gb / total_gb, 2),
    }
