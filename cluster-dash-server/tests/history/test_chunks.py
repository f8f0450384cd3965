import random
import struct
from array import array
from collections.abc import Callable
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server.history.chunks import (
    Layout,
    Rows,
    Slots,
    columns_of,
    minutes_of,
    pack_rows,
    pack_slots,
    slot_of,
)
from cluster_dash_server.history.columns import (
    NAN,
    Frames,
    bind,
    decode,
    decode_added,
    encode,
    encode_numbers,
    extended,
)
from cluster_dash_server.history.lanes import MOST
from cluster_dash_server.history.rollups import roll
from cluster_dash_server.history.seqs import Seqs
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures, GpuId, StoreError

MakeFleet = Callable[[int, int, float, float], list[Figures]]
BEGIN = 1_699_999_200.0

decimals = st.integers(-(10**6), 10**6).map(lambda number: number / 10)
figures = st.one_of(decimals, st.floats(width=32, allow_infinity=True, allow_nan=True), st.integers(0, 100).map(float))


@settings(max_examples=300, deadline=None)
@given(st.lists(figures, min_size=1, max_size=40), st.integers(1, 3))
def test_columns_come_back_as_they_were(values: list[float], columns: int) -> None:
    whole = [array("f", values[place:] + values[:place]) for place in range(columns)]

    found = decode(encode(whole), columns, len(values))

    for column, wanted in zip(found, whole, strict=True):
        for back, value in zip(array("f", column.floats()), wanted, strict=True):
            assert back == value or (back != back and value != value)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-5, 130) | st.integers(-MOST + 1, MOST - 1), min_size=1, max_size=40),
    st.integers(1, 3),
    st.sampled_from((1, 10, 100)),
)
def test_whole_numbers_come_back_as_the_figures_that_they_are(numbers: list[int], columns: int, scale: int) -> None:
    whole = [array("i", numbers[place:] + numbers[:place]) for place in range(columns)]

    found = decode(encode_numbers(whole, scale), columns, len(numbers))

    for column, wanted in zip(found, whole, strict=True):
        assert array("f", column.floats()) == array("f", [number / scale for number in wanted])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 3), st.data())
def test_figures_are_added_up_as_they_are_read_back(rows: int, parts: int, columns: int, data: st.DataObject) -> None:
    of = data.draw(st.sampled_from((figures, decimals, st.just(0.25), st.integers(0, 120_000).map(float))))
    whole = [array("f", data.draw(st.lists(of, min_size=rows * parts, max_size=rows * parts))) for _ in range(columns)]
    packed = encode(whole)

    added = decode_added(packed, columns, rows * parts, rows)

    if added is None:
        found = decode(packed, columns, rows * parts)
        assert not all(column.is_known() for column in found) or any(
            getattr(column.numbers, "typecode", "") != "i" or max(map(abs, column.numbers)) > 10**6 for column in found
        )
        return
    together = [column[begin : begin + rows] for column in whole for begin in range(0, rows * parts, rows)]
    for sums, of_kind in zip(added[:3], (min, sum, max), strict=True):
        wanted = [of_kind(part) for part in together]  # type: ignore[operator]
        assert [number / added.scale for number in sums] == pytest.approx(wanted, rel=1e-6, abs=0.01)


@pytest.mark.parametrize("cut", [1, 4, 13, 20])
def test_damage_is_seen_where_figures_are_added_up(cut: int) -> None:
    packed = encode([array("f", [7, 9, 230.5, 11])])

    with pytest.raises(StoreError, match="damaged"):
        decode_added(packed[:cut], 1, 4, 2)
    with pytest.raises(StoreError, match="damaged"):
        decode_added(packed, 1, 6, 2)


def test_a_steady_column_takes_a_few_bytes_and_decimals_about_one() -> None:
    rng = random.Random(1)
    watts = array("f", [round(rng.gauss(600, 8), 1) for _ in range(240)])

    assert len(encode([array("f", [1755.0] * 240)] * 8)) < 10
    assert len(encode([watts])) < 1.6 * 240
    assert len(encode([array("f", [NAN] * 240)] * 8)) == 1


@pytest.mark.parametrize(
    ("packed", "wanted"),
    [
        ("0200010080ffffff0000000028b52ffd20073900003200000080817f", [50, 51, 50]),
        ("02010200bdfeffff0000000028b52ffd200a510000ec1700004300f2010005", [612.4, 580.1, 700]),
        ("020004001601ffff0000000028b52ffd201081000000000000eae000fefd00000100000000", [0, 65270, 12]),
        ("02000400000000000000000028b52ffd201081000000000000000000005e0000d00000b200", [0, 3e9, 3e9]),
        ("03000400000000000000000028b52ffd200c610000deec00d67800fcada03d6040", [0.1234567, 1e20, 5]),
    ],
    ids=["1 byte", "2 bytes", "4 bytes", "all of 4 bytes", "no decimals"],
)
def test_columns_of_the_first_release_are_read(packed: str, wanted: list[float]) -> None:
    (column,) = decode(bytes.fromhex(packed), 1, 3)

    assert array("f", column.floats()) == array("f", wanted)


def test_rows_of_an_hour_come_back(make_fleet: MakeFleet) -> None:
    rows = [
        row for row in make_fleet(5, 1, BEGIN, BEGIN + 3600) if row.gpus == make_fleet(5, 1, BEGIN, BEGIN + 1e3)[0].gpus
    ]

    found = Rows(pack_rows(rows, columns_of([row.values for row in rows])), Layout(rows[0].gpus)).figures(rows[0].host)

    for back, row in zip(found, rows, strict=True):
        assert (back.at, back.boot_id, back.seq, back.gpus, back.holders) == (
            *(row.at, row.boot_id, row.seq, row.gpus, row.holders),
        )
        assert _bits(back.values) == _bits(row.values)


def test_roll_ups_of_a_row_that_comes_back_are_the_same(make_fleet: MakeFleet) -> None:
    rows = make_fleet(6, 1, BEGIN, BEGIN + 3600)
    gpus = rows[0].gpus
    rows = [row for row in rows if row.gpus == gpus]

    found = Rows(pack_rows(rows, columns_of([row.values for row in rows])), Layout(gpus)).figures(rows[0].host)

    again, first = roll(found, BEGIN, BEGIN + 3600), roll(rows, BEGIN, BEGIN + 3600)
    assert (again.minutes, again.usage) == (first.minutes, first.usage)


def test_parts_of_a_stretch_add_up_to_the_whole(make_fleet: MakeFleet) -> None:
    rows = make_fleet(7, 1, BEGIN, BEGIN + 3600)
    whole = roll(rows, BEGIN, BEGIN + 3600)
    middle = len(rows) // 2
    first = roll(rows[:middle], BEGIN, rows[middle].at)
    second = roll(rows[middle:], rows[middle].at, BEGIN + 3600)

    for key, share in whole.minutes.items():
        parts = [part.minutes[key] for part in (first, second) if key in part.minutes]
        assert [sum(each) for each in zip(*parts, strict=True)] == pytest.approx(list(share), abs=1e-6)


def test_damage_is_seen() -> None:
    blob = bytearray(bind([b"one", b"", b"three"]))
    assert [Frames(bytes(blob))[place] for place in range(3)] == [b"one", b"", b"three"]
    for place in range(len(blob)):
        blob[place] ^= 1
        with pytest.raises(StoreError, match="damaged"):
            Frames(bytes(blob))
        blob[place] ^= 1
    with pytest.raises(StoreError, match="damaged"):
        Frames(b"")


def test_steps_of_a_day_come_back(make_fleet: MakeFleet) -> None:
    rows = make_fleet(8, 1, BEGIN, BEGIN + 3600)
    gpus = rows[0].gpus
    parts = [[row.values for row in rows if row.gpus == gpus][place : place + 3] for place in (0, 3, 6)]
    slots = {place: slot_of(columns_of(part)) for place, part in zip((3, 700, 1439), parts, strict=True)}

    found = Slots(pack_slots(slots, len(gpus)), Layout(gpus)).slots()

    assert found.keys() == slots.keys()
    for place, slot in slots.items():
        assert found[place].rows == slot.rows
        assert _bits(found[place].mean) == _bits(slot.mean)
        assert _bits(found[place].least) == _bits(slot.least)
        assert _bits(found[place].most) == _bits(slot.most)


@pytest.mark.parametrize("rows_of", [(4, 4, 4), (1, 1), (12, 12), (4, 3, 4), (2, 0, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_minutes_are_the_same_column_by_column_as_row_by_row(rows_of: tuple[int, ...], seed: int) -> None:
    rng = random.Random(seed)
    times = [BEGIN + 60 * minute + number for minute, count in enumerate(rows_of) for number in range(count)]
    columns = [of_gpu for _ in GPU_METRICS for of_gpu in _columns(rng, 2, len(times))]
    columns += [of_host for _ in HOST_METRICS for of_host in _columns(rng, 1, len(times))]
    gpus = tuple(GpuId(place, f"GPU-{place}", "H100", 80_000.0) for place in range(2))
    rows = [
        Figures(
            host="gpu01",
            at=at,
            boot_id=None,
            seq=None,
            oldest_seq=None,
            gpus=gpus,
            values=array("f", values),
            holders=(),
            holder_mem=array("f"),
        )
        for at, values in zip(times, zip(*columns, strict=True), strict=True)
    ]
    day = int(BEGIN) - 22 * 3600
    blob = pack_rows(rows, columns_of([row.values for row in rows]))

    found = minutes_of(blob, Layout(gpus), day).slots()

    wanted = {
        place: slot_of(columns_of([row.values for row in of_minute]))
        for place, of_minute in groupby(rows, key=lambda row: int(row.at - day) // 60)
    }
    assert found.keys() == wanted.keys()
    for place, slot in wanted.items():
        assert found[place].rows == slot.rows
        assert _bits(found[place].least) == _bits(slot.least)
        assert _bits(found[place].most) == _bits(slot.most)
        # half a hundredth may go up in one of them and down in the other
        assert list(found[place].mean) == pytest.approx(list(slot.mean), rel=1e-6, abs=0.0125, nan_ok=True)


def _columns(rng: random.Random, count: int, rows: int) -> list[list[float]]:
    """Make columns of one metric: of whole numbers, tenths, thousandths, anything with gaps, or what stays the same."""
    stays = rng.choice((0.0, 97.0, 0.126, NAN))
    makes: tuple[Callable[[], float], ...] = (
        lambda: float(rng.randrange(101)),
        lambda: rng.randrange(-5_000, 90_000) / 10,
        lambda: rng.randrange(9_000) / 1000,
        lambda: rng.choice((NAN, rng.uniform(-1e9, 1e9), 0.5)),
        lambda: stays,
    )
    make = rng.choice(makes)
    return [[make() for _ in range(rows)] for _ in range(count)]


def test_a_day_of_steps_is_continued_without_packing_it_anew(make_fleet: MakeFleet) -> None:
    rows = make_fleet(8, 1, BEGIN, BEGIN + 3600)
    gpus = rows[0].gpus
    values = [row.values for row in rows if row.gpus == gpus]
    slots = {place: slot_of(columns_of(values[place % 7 :][:4])) for place in range(24)}
    layout, blob = Layout(gpus), pack_slots({0: slots[0]}, len(gpus))

    for place in range(1, 24):
        longer = Slots(blob, layout).with_next(place, slots[place])
        assert longer is not None
        blob = longer

    found = Slots(blob, layout).slots()
    for place, slot in slots.items():
        assert found[place].rows == slot.rows
        for name in ("least", "mean", "most"):
            assert _bits(getattr(found[place], name)) == _bits(getattr(slot, name)), (place, name)
    assert Slots(blob, layout).with_next(23, slots[23]) is None, "that step is there"
    assert Slots(blob, Layout(gpus, GPU_METRICS[1:])).with_next(24, slots[23]) is None, "another release's metrics"


@settings(max_examples=100, deadline=None)
@given(st.lists(figures, min_size=2, max_size=20), st.integers(1, 3))
def test_columns_are_continued_a_figure_at_a_time(values: list[float], columns: int) -> None:
    whole = [array("f", values[place:] + values[:place]) for place in range(columns)]
    packed = encode([column[:1] for column in whole])

    for length in range(1, len(values)):
        packed = extended(packed, length, array("f", [column[length] for column in whole]))

    for column, wanted in zip(decode(packed, columns, len(values)), whole, strict=True):
        for back, value in zip(array("f", column.floats()), wanted, strict=True):
            assert back == value or (back != back and value != value)


def test_a_row_of_a_release_with_fewer_metrics_is_laid_out_anew(make_fleet: MakeFleet) -> None:
    row = make_fleet(9, 1, BEGIN, BEGIN + 600)[0]
    older = Layout(row.gpus, ("gpu_util", "doing"), ("cpu_percent",))
    count = len(row.gpus)

    now = older.as_now(array("f", [*range(count), *[2.0] * count, 55.0]))

    assert len(now) == count * len(GPU_METRICS) + len(HOST_METRICS)
    assert list(now[:count]) == list(range(count))
    doing = GPU_METRICS.index("doing") * count
    assert list(now[doing : doing + count]) == [2.0] * count
    assert now[-len(HOST_METRICS) + HOST_METRICS.index("cpu_percent")] == 55


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=80))
def test_a_set_of_ranges_is_a_set(steps: list[tuple[bool, int]]) -> None:
    ranges, plain = Seqs(), set[int]()
    for adds, number in steps:
        if adds:
            assert ranges.add(number) is (number not in plain)
            plain.add(number)
        else:
            ranges.discard(number)
            plain.discard(number)
    assert [number in ranges for number in range(32)] == [number in plain for number in range(32)]
    assert ranges.last_from(None) == max(plain, default=None)
    for oldest in range(32):
        last = oldest
        while last in plain:
            last += 1
        assert ranges.last_from(oldest) == (last - 1 if oldest in plain else None)
    assert all(first <= last for first, last in ranges.ranges())
    assert all(b[0] > a[1] + 1 for a, b in zip(ranges.ranges(), ranges.ranges()[1:], strict=False))


def _bits(values: "array[float]") -> list[bytes]:
    return [b"nan" if value != value else struct.pack("<f", value) for value in values]
