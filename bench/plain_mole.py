"""The reference of the mole's benchmark: the plainest loop that posts what it posts, with nvidia-ml-py and psutil.

python bench/plain_mole.py URL INTERVAL: no child, no deadline, no care for what a GPU has not.
"""

import http.client
import json
import socket
import sys
import time
from urllib.parse import urlsplit

import psutil
import pynvml as nvml


def gpu(index: int) -> tuple[str, dict[str, object]]:
    """Read one GPU."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory, rates = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetUtilizationRates(handle)
    name, uuid = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)
    users: dict[str, dict[str, object]] = {}
    for running in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
        process = psutil.Process(running.pid)
        with process.oneshot():
            users.setdefault(process.username(), {})[str(running.pid)] = {
                "mem": running.usedGpuMemory // 2**20,
                "time": sum(process.cpu_times()[:2]),
                "name": process.name(),
            }
    return f"{index}_{name.replace(' ', '-')}_{uuid[4:10]}", {
        **{"index": index, "name": name, "uuid": uuid, "users": users},
        **{"total_mem": memory.total // 2**20, "used_mem": memory.used // 2**20},
        **{"gpu_util": rates.gpu, "memory_util": rates.memory},
        "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "pstate": nvml.nvmlDeviceGetPerformanceState(handle),
    }


def snapshot() -> dict[str, object]:
    """Read everything."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    network = psutil.net_io_counters()
    return {
        "hostname": socket.gethostname(),
        "timestamp": time.time(),
        "auth_code": "lab_cluster_2025",
        "cpu": {
            "cpu_percent": psutil.cpu_percent(),
            "load_avgs": list(psutil.getloadavg()),
            "num_cpus": psutil.cpu_count(),
        },
        "memory": {
            "total_gb": memory.total / 2**30,
            "available_gb": memory.available / 2**30,
            "used_gb": (memory.total - memory.available) / 2**30,
        },
        "disk": {
            "/": {
                "mount_point": "/",
                "total_gb": disk.total / 2**30,
                "used_gb": disk.used / 2**30,
                "percent_used": disk.percent,
            }
        },
        "network": {"rx_bytes": network.bytes_recv, "tx_bytes": network.bytes_sent},
        "gpu": dict(gpu(index) for index in range(nvml.nvmlDeviceGetCount())),
    }


def main() -> None:
    """Post for ever."""
    place, interval = urlsplit(sys.argv[1]), float(sys.argv[2])
    nvml.nvmlInit()
    while True:
        started = time.monotonic()
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        connection.request("POST", "/", json.dumps(snapshot()), {"Content-Type": "application/json"})
        connection.getresponse().read()
        connection.close()
        time.sleep(max(0.0, started + interval - time.monotonic()))


if __name__ == "__main__":
    main()
