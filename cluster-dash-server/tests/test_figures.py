"""What history keeps of a snapshot."""

from collections.abc import Callable
from typing import Any

import pytest

from cluster_dash_server.figures import figures
from cluster_dash_server.snapshot import checker, read
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import HOST_METRICS

MakeSnapshot = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("disks", "fullest"),
    [
        ({"a": None, "b": {"percent_used": 7.0}, "c": {"percent_used": None}, "d": {}}, 7.0),
        ({"a": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_disk_that_could_not_be_read_costs_no_snapshot(
    make_snapshot: MakeSnapshot, disks: Any, fullest: float | None
) -> None:
    snapshot = make_snapshot("gpu01", [], disk=disks)
    checker()(snapshot)
    kept = figures(snapshot, read(snapshot, received_at=1.7e9), Thresholds())
    value = kept.values[HOST_METRICS.index("disk_percent")]
    assert value == fullest or (fullest is None and value != value)  # NaN: unknown
