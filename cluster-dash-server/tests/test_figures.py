from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cluster_dash_server
from cluster_dash_server.entries import entries_of
from cluster_dash_server.figures import figures
from cluster_dash_server.snapshot import read
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import DOINGS, GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder

Make = Callable[..., dict[str, Any]]
NOW = 1_700_000_000.0


def taken(snapshot: dict[str, Any], received_at: float = NOW, skew_seconds: float | None = None) -> Figures:
    seen = read(snapshot, received_at=received_at, skew_seconds=skew_seconds)
    return figures(snapshot, entries_of(snapshot["gpu"]), seen, Thresholds())


def of(row: Figures, metric: str) -> list[float]:
    if metric in HOST_METRICS:
        return [row.values[HOST_METRICS.index(metric) - len(HOST_METRICS)]]
    first = GPU_METRICS.index(metric) * len(row.gpus)
    return list(row.values[first : first + len(row.gpus)])


def test_from_when_on_a_clock_stands_wrong_is_said_once() -> None:
    package = Path(cluster_dash_server.__file__).parent
    said = [path.name for path in package.rglob("*.py") if "\nSKEW_SECONDS =" in path.read_text()]
    assert said == ["states.py"]


def test_each_figure_stands_in_its_place_and_unknown_ones_are_nan(make_snapshot: Make, make_gpu: Make) -> None:
    gpus = [
        make_gpu(0, gpu_util=97, power_w=412.5, pcie={"tx_kib_s": 7.0, "rx_kib_s": 8.0}, unattributed_mem=9.0),
        make_gpu(1, gpu_util=None, fan_percent=30),
    ]
    row = taken(make_snapshot("gpu01", gpus, interval_seconds=5, disk={"/": {"percent_used": 12.5}, "b": {}}))

    assert [each.gpu for each in row.gpus] == [0, 1]
    assert of(row, "gpu_util") == [97, pytest.approx(float("nan"), nan_ok=True)]
    assert of(row, "power_w")[0] == 412.5
    assert (of(row, "tx_kib_s")[0], of(row, "rx_kib_s")[0], of(row, "unattributed_mem")[0]) == (7, 8, 9)
    assert of(row, "fan_percent")[1] == 30
    assert (of(row, "cpu_percent"), of(row, "interval_seconds"), of(row, "disk_percent")) == ([12.5], [5], [12.5])


def test_a_figure_beyond_what_is_kept_is_infinite_and_the_others_stay(make_snapshot: Make, make_gpu: Make) -> None:
    row = taken(make_snapshot("gpu01", [make_gpu(0, power_w=1e300, gpu_util=97)]))
    assert (of(row, "power_w"), of(row, "gpu_util")) == ([float("inf")], [97])


def test_what_snapshots_tell_again_is_kept_once(make_snapshot: Make, make_gpu: Make) -> None:
    snapshot = make_snapshot("gpu01", [make_gpu(0, users={"alice": {"1": {"type": "C", "job_id": 7}}})])
    first, second = taken(snapshot), taken(snapshot)
    assert first.gpus is second.gpus
    assert first.holders is second.holders
    assert [*map(type, first.gpus), *map(type, first.holders)] == [GpuId, Holder]
    assert first.holders == (Holder(0, "alice", "7"),)


@pytest.mark.parametrize(
    ("fields", "doing"),
    [
        ({}, "free"),
        ({"gpu_util": 50}, "busy"),
        ({"gpu_util": 0, "used_mem": 40_000}, "idle"),
        ({"gpu_util": 0, "users": {"alice": {"1": {"type": "C"}}}}, "idle"),
        ({"gpu_util": None, "users": {"alice": {"1": {"type": "C"}}}}, "busy"),
        ({"gpu_util": 0, "users": {"alice": {"1": {"type": "G"}}}}, "free"),
        ({"gpu_util": None, "users": None, "used_mem": None}, "unknown"),
        ({"error": "lost"}, "error"),
        ({"gpu_util": 50, "read_at": NOW - 1000}, "unknown"),
    ],
)
def test_what_a_gpu_does(fields: dict[str, Any], doing: str, make_snapshot: Make, make_gpu: Make) -> None:
    row = taken(make_snapshot("gpu01", [make_gpu(0, **fields)], interval_seconds=5))

    assert DOINGS[int(of(row, "doing")[0])] == doing


def test_processes_of_one_job_are_one_holder_with_their_memory(make_snapshot: Make, make_gpu: Make) -> None:
    users = {
        "alice": {
            "1": {"mem": 100.0, "job_id": 4711},
            "2": {"mem": 50.0, "job_id": "4711"},
            "3": {"mem": None},
            "5": {"mem": 1.0, "job_id": 4711},
            "6": {"mem": 8.0, "type": "G", "job_id": 4712},
        },
        "bob": {"4": {"mem": 7.0, "type": "G"}},
    }
    row = taken(make_snapshot("gpu01", [make_gpu(0, users=users)]))

    assert row.holders == (Holder(0, "alice", "4711"), Holder(0, "alice", None))
    assert row.holder_mem[0] == 151
    assert row.holder_mem[1] != row.holder_mem[1]


@pytest.mark.parametrize(
    ("timestamp", "skew_seconds", "at"),
    [
        (NOW - 3, None, NOW - 3),
        (NOW - 3, 5.0, NOW - 3),  # near enough: its own word
        (NOW + 86_400 - 3, 86_400.0, NOW - 3),  # a day ahead
        (NOW - 7200, -3600.0, NOW - 3600),  # an hour behind, and from the backlog
        (NOW + 1e6, 3600.0, NOW),  # cannot be
    ],
)
def test_a_host_with_a_wrong_clock_is_dated_by_ours(
    timestamp: float, skew_seconds: float | None, at: float, make_snapshot: Make
) -> None:
    row = taken(make_snapshot("gpu01", timestamp=timestamp, boot_id="b", seq=1), skew_seconds=skew_seconds)

    assert row.at == at


def test_a_snapshot_without_identity_that_is_days_old_is_dated_by_its_receipt(make_snapshot: Make) -> None:
    assert taken(make_snapshot("gpu01", timestamp=NOW - 2 * 86_400)).at == NOW
    assert taken(make_snapshot("gpu01", timestamp=NOW - 7200)).at == NOW - 7200
    assert taken(make_snapshot("gpu01", timestamp=NOW - 2 * 86_400, boot_id="b", seq=1)).at == NOW - 2 * 86_400
