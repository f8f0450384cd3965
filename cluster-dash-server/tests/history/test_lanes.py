from array import array
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server.history.lanes import LANE_BYTES, MOST, least_sum_most, running, running_in_parts

numbers = st.integers(-MOST + 1, MOST - 1)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.data())
def test_least_sum_and_most_are_those_of_each_place(columns: int, length: int, data: st.DataObject) -> None:
    of = st.one_of(numbers, st.integers(-9, 9))
    found = [array("i", data.draw(st.lists(of, min_size=length, max_size=length))) for _ in range(columns)]

    least, total, most = least_sum_most(found)

    places = list(zip(*found, strict=True))
    assert list(least) == list(map(min, places))
    assert list(total) == list(map(sum, places))
    assert list(most) == list(map(max, places))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=4), st.integers(1, 40), st.data())
def test_numbers_run_on_by_their_steps(firsts: list[int], rows: int, data: st.DataObject) -> None:
    of_row = st.lists(st.integers(-300, 300), min_size=len(firsts), max_size=len(firsts))
    steps = data.draw(st.lists(of_row, min_size=rows, max_size=rows))
    least = min(map(min, steps))
    lanes = b"".join((step - least).to_bytes(LANE_BYTES, "little") for row in steps for step in row)

    found = running(array("i", firsts), lanes, least)

    for first, column, of_column in zip(firsts, found, zip(*steps, strict=True), strict=True):
        assert list(column) == list(accumulate(of_column, initial=first))[1:]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-3_000_000, 3_000_000), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(1, 13),
    st.sampled_from([1, 2, 4]),
    st.data(),
)
def test_parts_of_running_numbers_have_the_least_the_sum_and_the_most_of_them(
    firsts: list[int], parts: int, rows: int, size: int, data: st.DataObject
) -> None:
    length = parts * rows
    most = min(256**size - 1, 200_000)
    above = [data.draw(st.lists(st.integers(0, most), min_size=length, max_size=length)) for _ in firsts]
    least = data.draw(st.integers(-most, most))
    whole = b"".join(step.to_bytes(size, "little") for column in above for step in column)

    found = running_in_parts(array("i", firsts), [whole[place::size] for place in range(size)], least, rows)

    wanted = []
    for first, column in zip(firsts, above, strict=True):
        of_column = list(accumulate([least + step for step in column], initial=first))[1:]
        wanted += [of_column[begin : begin + rows] for begin in range(0, length, rows)]
    assert found is not None
    assert list(found[0]) == list(map(min, wanted))
    assert list(found[1]) == list(map(sum, wanted))
    assert list(found[2]) == list(map(max, wanted))


@pytest.mark.parametrize(
    ("first", "step", "least"), [(MOST - 1, 0, 0), (0, 255 << 24, 0), (0, 1, MOST // 4), (0, 1, -MOST // 2)]
)
def test_parts_that_would_not_find_room_are_not_told(first: int, step: int, least: int) -> None:
    steps = step.to_bytes(4, "little")

    assert running_in_parts(array("i", [first]), [bytes([byte]) * 4 for byte in steps], least, 2) is None
