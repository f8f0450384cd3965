"""One suite for every kind of collector, on this very machine."""

from collections.abc import Iterator

import pytest

from cluster_dash_mole import collectors
from cluster_dash_mole.mole import Collector, Reading, SystemClock

NAMES = ["gpu", "cpu", "memory", "disk", "network"]


@pytest.fixture(scope="module")
def kinds() -> Iterator[dict[str, Collector]]:
    built = collectors.build(interval=20.0, clock=SystemClock())
    yield {kind.name: kind for kind in built}
    built[0].close()  # type: ignore[attr-defined]  # the GPU collector's processes


def test_the_table_has_every_kind(kinds: dict[str, Collector]) -> None:
    assert list(kinds) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_collector_reads_its_own_part_again_and_again(kinds: dict[str, Collector], name: str) -> None:
    for _ in range(3):
        reading = kinds[name].collect()
        assert isinstance(reading, Reading)
        assert set(reading.parts) <= {name}
        assert set(reading.general) <= {"driver_version", "cuda_version"}
        assert reading.ok or reading.error
