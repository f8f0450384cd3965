import math
import random
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster_dash_server.history.chunks import (
    Layout,
    Rows,
    Slots,
    columns_of,
    minutes_of,
    pack_rows,
    pack_slot,
    pack_slots,
    slot_of,
)
from cluster_dash_server.history.columns import (
    NAN,
    Frames,
    added_parts,
    bind,
    decode,
    encode,
    pack_integers,
    unpack_integers,
    zip_,
)
from cluster_dash_server.history.rollups import HourRows, roll
from cluster_dash_server.history.seqs import Seqs
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder, StoreError

MakeFleet = Callable[[int, int, float, float], list[Figures]]
BEGIN = 1_699_999_200.0

decimals = st.integers(-(10**6), 10**6).map(lambda number: number / 10)
figures = st.one_of(decimals, st.floats(width=32, allow_infinity=True, allow_nan=True), st.integers(0, 100).map(float))


@settings(max_examples=300, deadline=None)
@given(st.lists(figures, min_size=1, max_size=40), st.integers(0, 3), st.integers(1, 3))
def test_columns_come_back_as_they_were(values: list[float], columns: int, others: int) -> None:
    whole = _matrix([values[place:] + values[:place] for place in range(columns)] + [values] * others)
    widths = [columns, 0, others]

    found = decode(encode(whole, widths), widths, len(values)).figures()

    are_same = found.astype(np.float32).view(np.int32) == whole.view(np.int32)
    assert (are_same | (np.isnan(found) & np.isnan(whole))).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(figures, min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_metric_is_packed_among_others_as_it_is_alone(columns: list[list[float]]) -> None:
    whole = _matrix(columns)

    assert encode(whole, [1] * len(columns)) == [encode(_matrix([column]), [1])[0] for column in columns]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(figures, min_size=1, max_size=9), min_size=1, max_size=9), st.integers(1, 3))
def test_parts_of_columns_have_the_least_the_sum_and_the_most_of_what_is_known(
    parts: list[list[float]], columns: int
) -> None:
    whole = _matrix([[value for part in parts for value in part]] * columns)
    starts = [sum(map(len, parts[:place])) for place in range(len(parts))]

    found = added_parts(whole, starts)

    for place, part in enumerate(parts):
        known = [float(value) for value in _matrix([part])[0] if value == value]
        for column in range(columns):
            sums = [float(each[column, place]) for each in found]
            wanted = [min(known), sum(known), max(known), len(known)] if known else [NAN, 0, NAN, 0]
            assert sums == pytest.approx(wanted, nan_ok=True, rel=1e-6, abs=1e-6)


def test_sums_of_decimals_are_exact() -> None:
    columns = decode(encode(_matrix([[612.4] * 12, [0.1] * 11 + [0.2]]), [2]), [2], 12)

    assert columns.scales.tolist() == [[10], [10]]
    assert columns.numbers.sum(axis=1).tolist() == [12 * 6124, 13]


@pytest.mark.parametrize("cut", [0, 1, 4, 13, 20])
def test_damage_of_a_frame_is_seen(cut: int) -> None:
    (packed,) = encode(_matrix([[7, 9, 230.5, 11]]), [1])

    with pytest.raises(StoreError, match="damaged"):
        decode([packed[:cut]], [1], 4)
    with pytest.raises(StoreError, match="damaged"):
        decode([packed], [1], 6)


@settings(max_examples=300, deadline=None)
@given(st.lists(figures, min_size=2, max_size=30), st.data())
def test_no_damage_is_more_than_a_wrong_figure_or_a_word_of_it(values: list[float], data: st.DataObject) -> None:
    (packed,) = encode(_matrix([values, values[::-1]]), [2])
    place = data.draw(st.integers(0, len(packed) - 1))
    damaged = packed[:place] + bytes([packed[place] ^ 1 << data.draw(st.integers(0, 7))]) + packed[place + 1 :]

    with suppress(StoreError):  # a blob has a sum by which it is seen before
        assert decode([damaged], [2], len(values)).numbers.shape == (2, len(values))
    with suppress(StoreError):
        unpack_integers(damaged)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), max_size=40))
def test_whole_numbers_come_back(numbers: list[int]) -> None:
    assert unpack_integers(pack_integers(numbers)).tolist() == numbers


def test_a_steady_column_takes_a_few_bytes_and_decimals_about_one() -> None:
    rng = random.Random(1)
    watts = [round(rng.gauss(600, 8), 1) for _ in range(240)]

    steady, decimals, unknown = encode(_matrix([[1755.0] * 240, watts, [NAN] * 240]), [1, 1, 1])

    assert len(steady) < 10
    assert len(decimals) < 1.6 * 240
    assert len(unknown) == 1


@pytest.mark.parametrize(
    ("packed", "wanted"),
    [
        ("0200010080ffffff0000000028b52ffd20073900003200000080817f", [50, 51, 50]),
        ("02010200bdfeffff0000000028b52ffd200a510000ec1700004300f2010005", [612.4, 580.1, 700]),
        ("020004001601ffff0000000028b52ffd201081000000000000eae000fefd00000100000000", [0, 65270, 12]),
        ("03000400000000000000000028b52ffd200c610000deec00d67800fcada03d6040", [0.1234567, 1e20, 5]),
        ("0200010180ffffff0c00000028b52ffd200319000001000128b52ffd20073900002a00000080808a", [42, NAN, 52]),
        ("01000060bf", [-0.875] * 3),
        ("00", [NAN] * 3),
    ],
    ids=["1 byte", "2 bytes", "4 bytes", "no decimals", "one unknown", "all the same", "none known"],
)
def test_columns_are_packed_as_they_ever_were(packed: str, wanted: list[float]) -> None:
    """Files of the first releases are read, and these read what is written today."""
    found = decode([bytes.fromhex(packed)], [1], 3).figures()

    assert np.array_equal(found.astype(np.float32), _matrix([wanted]), equal_nan=True)
    assert encode(_matrix([wanted]), [1])[0].hex() == packed


def test_columns_of_the_first_release_that_are_larger_than_we_pack_are_read() -> None:
    packed = bytes.fromhex("02000400000000000000000028b52ffd201081000000000000000000005e0000d00000b200")

    assert decode([packed], [1], 3).figures().tolist() == [[0, 3e9, 3e9]]


HOUR_OF_BEFORE = bytes.fromhex(
    "18001900000012000000320000001b000000010000000100000001000000010000001d00000001000000010000000100000001000000"
    "010000000100000001000000010000000500000026000000010000000100000001000000010000000100000028b52ffd2010810000fa"
    "98333ad900cf008b0001000000000028b52ffd20104d000018050100010007180228b52ffd20294901005b5b5b2262222c325d5d2c5b"
    "5b322c5b5b302c22616c696365222c2237222c3230302e305d5d5d5d5d0200010080ffffff0000000028b52ffd200631000061000000"
    "80220000000002010200bdfeffff0000000028b52ffd2008410000ec17000043000100000000000000000001000000400201010180ff"
    "ffff0b00000028b52ffd2002110000010028b52ffd200631000023000000808000000000009b3bad0d"
)
DAY_OF_BEFORE = bytes.fromhex(
    "410012000000110000000500000001000000010000000100000001000000050000000100000001000000010000000100000001000000"
    "010000000100000001000000050000000500000001000000010000000100000001000000010000000500000001000000010000000100"
    "000001000000050000000100000001000000010000000100000001000000010000000100000001000000050000000500000001000000"
    "010000000100000001000000010000000500000001000000010000000100000001000000050000000100000001000000010000000100"
    "0000010000000100000001000000010000000500000005000000010000000100000001000000010000000100000028b52ffd20104d00"
    "0018030100010007180228b52ffd2010450000100200010032c002010000484200000000010010154400000000000000000100000040"
    "0100006040000000000001000040400000000001660611440000000000000000010000004001000060400000000000010000c2420000"
    "0000019a1919440000000000000000010000004001000060400000000000eb02352b"
)


def test_an_hour_that_was_sealed_before_is_read() -> None:
    gpus = (GpuId(0, "GPU-0", "H100", 80_000.0),)

    first, second = Rows(HOUR_OF_BEFORE, Layout(gpus)).figures("gpu01")

    assert (first.at, first.boot_id, first.seq, first.holders) == (BEGIN + 0.25, "b", 5, (Holder(0, "alice", "7"),))
    assert (second.at, second.boot_id, second.seq, second.holders) == (BEGIN + 15.25, "b", 6, first.holders)
    assert first.holder_mem == second.holder_mem == array("f", [200])
    assert _known(first.values) == {"gpu_util": 97, "power_w": 612.4, "doing": 2, "cpu_percent": 3.5}
    assert _known(second.values) == {"gpu_util": 3, "power_w": 580.1, "doing": 2}


def test_a_day_that_was_packed_before_is_read_and_packed_alike() -> None:
    gpus = (GpuId(0, "GPU-0", "H100", 80_000.0),)

    slots = Slots(DAY_OF_BEFORE, Layout(gpus)).slots()

    assert pack_slots(slots, 1) == DAY_OF_BEFORE
    assert list(slots) == [3, 4]
    for slot in slots.values():
        assert slot.rows == 2
        assert _known(slot.least) == {"gpu_util": 3, "power_w": 580.1, "doing": 2, "cpu_percent": 3.5}
        assert _known(slot.mean) == {"gpu_util": 50, "power_w": 596.25, "doing": 2, "cpu_percent": 3.5}
        assert _known(slot.most) == {"gpu_util": 97, "power_w": 612.4, "doing": 2, "cpu_percent": 3.5}


def _known(values: Iterable[float]) -> dict[str, float]:
    """Return what is known of a host with one GPU."""
    named = zip((*GPU_METRICS, *HOST_METRICS), values, strict=True)
    return {metric: round(float(value), 4) for metric, value in named if value == value}


def test_rows_of_an_hour_come_back(make_fleet: MakeFleet) -> None:
    rows = [
        row for row in make_fleet(5, 1, BEGIN, BEGIN + 3600) if row.gpus == make_fleet(5, 1, BEGIN, BEGIN + 1e3)[0].gpus
    ]

    found = Rows(pack_rows(HourRows.of(rows), columns_of([row.values for row in rows])), Layout(rows[0].gpus)).figures(
        rows[0].host
    )

    for back, row in zip(found, rows, strict=True):
        assert (back.at, back.boot_id, back.seq, back.gpus, back.holders) == (
            *(row.at, row.boot_id, row.seq, row.gpus, row.holders),
        )
        assert _bits(back.values) == _bits(row.values)


def test_roll_ups_of_a_row_that_comes_back_are_the_same(make_fleet: MakeFleet) -> None:
    rows = make_fleet(6, 1, BEGIN, BEGIN + 3600)
    gpus = rows[0].gpus
    rows = [row for row in rows if row.gpus == gpus]

    found = Rows(pack_rows(HourRows.of(rows), columns_of([row.values for row in rows])), Layout(gpus)).figures(
        rows[0].host
    )

    again, first = roll(found, BEGIN, BEGIN + 3600), roll(rows, BEGIN, BEGIN + 3600)
    assert (again.by_minute(), again.by_user()) == (first.by_minute(), first.by_user())


def test_parts_of_a_stretch_add_up_to_the_whole(make_fleet: MakeFleet) -> None:
    rows = make_fleet(7, 1, BEGIN, BEGIN + 3600)
    whole = roll(rows, BEGIN, BEGIN + 3600)
    middle = len(rows) // 2
    first = roll(rows[:middle], BEGIN, rows[middle].at)
    second = roll(rows[middle:], rows[middle].at, BEGIN + 3600)

    for key, share in whole.by_minute().items():
        parts = [part.by_minute()[key] for part in (first, second) if key in part.by_minute()]
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
    slots = {place: slot_of(np.array(part, np.float32)) for place, part in zip((3, 700, 1439), parts, strict=True)}

    found = Slots(pack_slots(slots, len(gpus)), Layout(gpus)).slots()

    assert found.keys() == slots.keys()
    for place, slot in slots.items():
        assert found[place].rows == slot.rows
        assert _bits(found[place].mean) == _bits(slot.mean)
        assert _bits(found[place].least) == _bits(slot.least)
        assert _bits(found[place].most) == _bits(slot.most)


def test_a_step_that_stands_alone_comes_back(make_fleet: MakeFleet) -> None:
    rows = [row for row in make_fleet(8, 1, BEGIN, BEGIN + 3600) if row.gpus]
    gpus = rows[0].gpus
    slot = slot_of(np.array([row.values for row in rows if row.gpus == gpus], np.float32))

    alone = Slots(pack_slot(slot), Layout(gpus))

    assert alone.is_alone
    assert not Slots(pack_slots({0: slot}, len(gpus)), Layout(gpus)).is_alone
    (found,) = alone.slots().values()
    assert (found.rows, alone.rows_alone) == (slot.rows, slot.rows)
    kinds = [(found.least, slot.least), (found.mean, slot.mean), (found.most, slot.most)]
    assert [_bits(each) for each, _ in kinds] == [_bits(each) for _, each in kinds]
    power, load = alone.alone("power_w"), alone.alone("load_avg_1")
    assert power is not None
    assert load is not None
    first = GPU_METRICS.index("power_w") * len(gpus)
    for place, (each, _) in enumerate(kinds):
        assert power[place, :, 0].tolist() == pytest.approx(each[first : first + len(gpus)].tolist(), nan_ok=True)
        last = HOST_METRICS.index("load_avg_1") - len(HOST_METRICS)
        assert load[place].tolist() == [[pytest.approx(each[last], nan_ok=True)]]
    assert alone.alone("of a later release") is None


def test_a_mean_has_hundredths_but_that_of_equal_figures_is_each_of_them() -> None:
    slot = slot_of(_matrix([[0.126] * 3, [0.1, 0.1, 0.2], [NAN, 7.123, NAN], [NAN] * 3, [-math.inf, 1, math.inf]]).T)

    assert _bits(slot.mean) == _bits(array("f", [0.126, 0.13, 7.123, NAN, NAN]))
    assert _bits(slot.least) == _bits(array("f", [0.126, 0.1, 7.123, NAN, -math.inf]))


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
    blob = pack_rows(HourRows.of(rows), columns_of([row.values for row in rows]))

    found = minutes_of(blob, Layout(gpus), day).slots()

    wanted = {
        place: slot_of(np.array([row.values for row in of_minute], np.float32))
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


def test_an_hour_of_a_release_with_fewer_metrics_is_laid_out_anew() -> None:
    gpus = tuple(GpuId(place, f"GPU-{place}", "H100", 80_000.0) for place in range(2))
    frames = encode(_matrix([[1, 2], [3, 4], [2, 2], [0, 1], [55, 56]]), [2, 2, 1])
    who = zip_(b"[[[null,2]],[[2,[]]]]")
    blob = bind([pack_integers([1000, 2000]), pack_integers([-1, -1]), who, *frames])
    older = Layout(gpus, ("gpu_util", "doing"), ("cpu_percent",))

    first, second = Rows(blob, older).figures("gpu01")

    for row, wanted in ((first, [1, 3, 2, 0, 55]), (second, [2, 4, 2, 1, 56])):
        known = {place: value for place, value in enumerate(row.values) if value == value}
        doing, cpu = GPU_METRICS.index("doing") * 2, HOST_METRICS.index("cpu_percent") - len(HOST_METRICS)
        assert known == dict(zip((0, 1, doing, doing + 1, len(row.values) + cpu), wanted, strict=True))


def test_figures_are_read_and_packed_by_many_threads_at_once() -> None:
    rng = random.Random(2)
    wholes = [_matrix([[rng.randrange(9000) / 10 for _ in range(240)] for _ in range(8)]) for _ in range(8)]
    wanted = [encode(whole, [8]) for whole in wholes]

    def is_same(place: int) -> bool:
        whole = wholes[place % 8]
        packed = encode(whole, [8])
        return packed == wanted[place % 8] and bool(
            (decode(packed, [8], 240).figures().astype(np.float32) == whole).all()
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(is_same, range(200)))


def _matrix(columns: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    return np.array([array("f", column) for column in columns], np.float32)


def _bits(values: Iterable[float]) -> list[bytes]:
    return [b"nan" if value != value else struct.pack("<f", value) for value in values]
