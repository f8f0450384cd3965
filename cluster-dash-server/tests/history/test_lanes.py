from array import array
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server.history.lanes import LANE_BYTES, MOST, least_sum_most, running

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
