"""What goes to an engine, read by protobuf's own reader."""

import math
import random
from array import array
from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster_dash_server.history.remote.encoding import (
    INFO,
    NAMES,
    PREFIX,
    SNAPSHOT_AT,
    TOTAL_MEM,
    Encoder,
    can_be_told,
    series,
)
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures, GpuId
from tests.remote_write import REQUEST

MakeRow = Callable[..., Figures]
MakeFleet = Callable[[int, int, float, float], list[Figures]]
BEGIN = 1_699_999_200.0


def read(body: bytes) -> list[tuple[dict[str, str], float, int]]:
    """Return the labels, the value and the moment of each sample, in order; each series has one."""
    found = []
    for each in REQUEST.FromString(body).timeseries:
        (sample,) = each.samples
        names = [label.name for label in each.labels]
        assert names == sorted(set(names))  # engines want them so
        found.append(({label.name: label.value for label in each.labels}, sample.value, sample.timestamp))
    return found


def wanted(row: Figures) -> dict[tuple[str, str | None], float]:
    """Return what a row is to be in an engine, by name and GPU."""
    found: dict[tuple[str, str | None], float] = {}
    values = iter(row.values)
    places = [(metric, str(gpu.gpu)) for metric in GPU_METRICS for gpu in row.gpus]
    for metric, gpu in [*places, *((metric, None) for metric in HOST_METRICS)]:
        value = next(values)
        if math.isfinite(value):
            found[PREFIX + NAMES[metric].name, gpu] = value * NAMES[metric].scale
    for each in row.gpus:
        found[INFO, str(each.gpu)] = 1.0
        if each.total_mem is not None:
            found[TOTAL_MEM, str(each.gpu)] = each.total_mem * 2**20
    found[SNAPSHOT_AT, None] = row.at
    return found


@pytest.mark.parametrize("seed", range(3))
def test_protobuf_reads_what_was_measured_and_nothing_of_what_is_unknown(seed: int, make_fleet: MakeFleet) -> None:
    encoder = Encoder("lab")
    for row in make_fleet(seed, 3, BEGIN, BEGIN + 1800):
        found = read(encoder.encoded(row))
        assert {labels["host"] for labels, _, _ in found} == {row.host}
        assert {labels["cluster"] for labels, _, _ in found} == {"lab"}
        assert {at for _, _, at in found} == {round(row.at * 1000)}
        assert {(labels["__name__"], labels.get("gpu")): value for labels, value, _ in found} == wanted(row)
        assert len(found) == len(wanted(row))


@pytest.mark.parametrize("seed", range(3))
def test_snapshots_together_are_each_alone_one_after_the_other(
    seed: int, make_fleet: MakeFleet, make_row: MakeRow
) -> None:
    rng, encoder = random.Random(seed), Encoder("lab")
    fleet = make_fleet(seed, 5, BEGIN, BEGIN + 300)
    for _ in range(20):
        rows = rng.choices(fleet, k=rng.randrange(8))
        for number in range(rng.randrange(3)):  # a host that is there twice, and lacks something the second time
            row = make_row("x" * rng.randrange(1, 300), gpus=rng.randrange(12), at=BEGIN + number)
            row.values[rng.randrange(len(row.values))] = math.nan
            rows += (row, make_row(row.host, gpus=rng.randrange(12), at=BEGIN + 9))
        rng.shuffle(rows)
        assert bytes(encoder.together(rows)) == b"".join([Encoder("lab").encoded(row) for row in rows])


def test_a_row_that_does_not_fit_its_gpus_is_refused(make_row: MakeRow) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Encoder("lab").together([make_row("a"), replace(make_row("b"), values=array("f", [1.0]))])


def test_a_snapshot_in_parts_is_the_snapshot(make_row: MakeRow) -> None:
    row = make_row(gpus=3)
    encoder = Encoder("lab")

    assert b"".join(encoder.parts(row)) == encoder.encoded(row)
    assert all(len(read(part)) == 1 for part in encoder.parts(row))


def test_what_a_gpu_is_stands_in_its_info_alone(make_row: MakeRow) -> None:
    row = replace(make_row(gpus=2), gpus=(GpuId(0, "GPU-a", "H100", 80_000.0), GpuId(1, None, None, None)))

    found = read(Encoder("lab").encoded(row))

    infos = [labels for labels, _, _ in found if labels["__name__"] == INFO]
    assert [(labels.get("uuid"), labels.get("model")) for labels in infos] == [("GPU-a", "H100"), (None, None)]
    assert all("uuid" not in labels for labels, _, _ in found if labels["__name__"] != INFO)
    assert [labels["gpu"] for labels, _, _ in found if labels["__name__"] == TOTAL_MEM] == ["0"]


def test_a_figure_that_comes_and_goes_and_a_gpu_that_is_lost_make_a_new_template(make_row: MakeRow) -> None:
    rng, encoder = random.Random(4), Encoder("lab")
    for number in range(200):
        row = make_row(at=BEGIN + number / 7, gpus=rng.choice((1, 2)))
        row.values[rng.randrange(len(row.values))] = rng.choice((math.nan, -math.nan, math.inf, -math.inf, 12.5))
        found = {(labels["__name__"], labels.get("gpu")): value for labels, value, _ in read(encoder.encoded(row))}
        assert found == wanted(replace(row, at=round(row.at, 3)))


def test_names_of_any_letters_are_passed_on() -> None:
    ((labels, value, at),) = read(series([("__name__", "a"), ("host", 'ü"\\ ' + "x" * 300)], 0.5, 1_700_000_000_123))

    assert (labels["host"], value, at) == ('ü"\\ ' + "x" * 300, 0.5, 1_700_000_000_123)


def test_a_moment_of_a_year_far_off_cannot_be_told(make_row: MakeRow) -> None:
    assert not can_be_told(0.0)
    assert can_be_told(BEGIN)
    assert not can_be_told(1e10)
    with pytest.raises(ValueError, match="before 1971"):
        Encoder("lab").encoded(make_row(at=5.0))


def test_a_row_without_gpus_is_a_host(make_row: MakeRow) -> None:
    row = replace(make_row(gpus=0, user=None), values=array("f", [1.0] * len(HOST_METRICS)))

    assert len(read(Encoder("lab").encoded(row))) == len(HOST_METRICS) + 1
