"""What several test modules use: snapshots as agents send them, and a clock that stands still."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from cluster_dash_server.snapshot import Seen, read
from tests import templates
from tests.clocks import StillClock

hypothesis.settings.register_profile("ours", deadline=None)  # time says nothing on a loaded machine
hypothesis.settings.load_profile("ours")
templates.compile_once()

ETC = Path(__file__).parents[2] / "etc"

Snapshot = dict[str, Any]
MakeSnapshot = Callable[..., Snapshot]
MakeSeen = Callable[..., Seen]


@pytest.fixture(autouse=True)
def log_goes_nowhere_after_a_test() -> Iterator[None]:
    """Take away what a command has set up: it would write to a closed file, and say so, at each line of later tests."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # those of pytest are kinds of their own
            root.removeHandler(handler)


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def example() -> Snapshot:
    """The first agents' snapshot, secret included."""
    loaded: Snapshot = json.loads((ETC / "example_data1.json").read_text())
    return loaded


@pytest.fixture
def make_gpu() -> Callable[..., Snapshot]:
    """Make a GPU entry, idle unless said otherwise: `make_gpu(3, gpu_util=97)`."""
    return _gpu


def _gpu(index: int, **fields: Any) -> Snapshot:
    return {
        "index": index,
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": f"GPU-{index:08d}-0000-0000-0000-000000000000",
        "pci_bus_id": f"00000000:{index:02x}:00.0",
        "total_mem": 81559.0,
        "used_mem": 3.0,
        "gpu_util": 0.0,
        "memory_util": 0.0,
        "users": {},
        **fields,
    }


@pytest.fixture
def make_snapshot() -> MakeSnapshot:
    """Make a snapshot without a secret: `make_snapshot("gpu01", [make_gpu(0)], seq=3)`."""

    def make(host: str = "gpu01", gpus: list[Snapshot] | None = None, **fields: Any) -> Snapshot:
        gpus = [_gpu(0)] if gpus is None else gpus
        return {
            "hostname": host,
            "timestamp": 1_700_000_000.0,
            "cpu": {"cpu_percent": 12.5, "load_avgs": [1.0, 2.0, 3.0], "num_cpus": 64},
            "memory": {"total_gb": 512.0, "available_gb": 400.0, "used_gb": 112.0},
            "gpu": {f"{each['index']}_H100_{str(each['uuid'])[4:10]}": copy.deepcopy(each) for each in gpus},
            **fields,
        }

    return make


@pytest.fixture
def make_seen(make_snapshot: MakeSnapshot, clock: StillClock) -> MakeSeen:
    """Make a snapshot that was accepted: arguments as `make_snapshot`, `received_at` and `skew_seconds`."""

    def make(*args: Any, received_at: float | None = None, skew_seconds: float | None = None, **fields: Any) -> Seen:
        received_at = clock.now if received_at is None else received_at
        return read(make_snapshot(*args, **fields), received_at=received_at, skew_seconds=skew_seconds)

    return make
