"""Adds and compares hundreds of numbers at once, side by side in one whole number of Python. Pure.

A whole number of Python holds as many bits as one likes, and C adds and compares them in one call. So numbers lie side
by side in lanes of 32 bits, and sums, least and most of all of them cost next to nothing: without NumPy, which the
server does not need.
"""

import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

LANE_BYTES = 4
_LANE = 8 * LANE_BYTES
MOST = 2**29
"""Numbers are nearer to 0 than this."""
_ZERO = 2 * MOST
"""What stands in a lane for 0, so that no lane falls below nothing, and two together leave its highest bit free."""


@lru_cache(maxsize=64)
def ones(count: int) -> int:
    """Return lanes with 1 in each."""
    return int.from_bytes((1).to_bytes(LANE_BYTES, "little") * count, "little")


@lru_cache(maxsize=64)
def _zeros(count: int) -> int:
    """Return lanes with what stands for 0 in each."""
    return _ZERO * ones(count)


@lru_cache(maxsize=64)
def _highest_bits(count: int) -> int:
    """Return lanes with the highest bit in each."""
    return ones(count) << (_LANE - 1)


@lru_cache(maxsize=64)
def _steps(rows: int, columns: int) -> int:
    """Return lanes of rows with 1, 2, 3, … in all columns of one."""
    return _added_up(ones(rows * columns), rows, columns)


def _added_up(lanes: int, rows: int, columns: int) -> int:
    """Return rows of lanes of which each has the sum of those up to it."""
    reach, inside = 1, (1 << (_LANE * rows * columns)) - 1
    while reach < rows:
        lanes += (lanes << (_LANE * columns * reach)) & inside
        reach *= 2
    return lanes


def running(firsts: "array[int]", steps: bytes | bytearray, least: int) -> "list[array[int]]":
    """Return columns of numbers that begin with the first ones and go on by steps, the first of a step to itself.

    Args:
        firsts: with what each column begins; all its numbers are below MOST.
        steps: how much more than `least` each step is, none of them below 0: lanes, row by row.
        least: the least step.
    """
    columns = len(firsts)
    rows = len(steps) // LANE_BYTES // columns
    begin = int.from_bytes(little(array("I", [first + _ZERO for first in firsts])), "little")
    lanes = _added_up(int.from_bytes(steps, "little") + begin, rows, columns) + least * _steps(rows, columns)
    numbers = _numbers(lanes, rows * columns)
    return [numbers[column::columns] for column in range(columns)]


def least_sum_most(columns: "Sequence[array[int]]") -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Return the least, the sum and the most of columns of numbers below MOST, place by place."""
    count, biased = len(columns[0]), [_lanes(column) for column in columns]
    low, top, high = biased[0], biased[0], _highest_bits(count)
    for lanes in biased[1:]:
        low, _ = _sorted(low, lanes, high)
        _, top = _sorted(top, lanes, high)
    least, most = _numbers(low, count), _numbers(top, count)
    if max(max(most), -min(least)) * len(columns) >= 2 * _ZERO:  # the sums would not find room
        return least, list(map(sum, zip(*columns, strict=True))), most
    return least, _numbers(sum(biased) - (len(biased) - 1) * _zeros(count), count), most


def _sorted(first: int, second: int, high: int) -> tuple[int, int]:
    """Return the lesser and the greater, lane by lane; `high` has the highest bit of each lane."""
    are_not_less = ((first | high) - second) & high
    differ = (first ^ second) & (are_not_less - (are_not_less >> (_LANE - 1)))  # where the first is not less
    return first ^ differ, second ^ differ


def _lanes(numbers: "array[int]") -> int:
    """Return numbers in lanes, each with _ZERO added; C writes those below 0 as if they had the highest bit."""
    count = len(numbers)
    return (int.from_bytes(little(numbers), "little") ^ _highest_bits(count)) - _zeros(count)


def biased(numbers: "array[int]") -> bytes:
    """Return numbers below MOST as unsigned ones, each MOST more, the least byte first."""
    count = len(numbers)
    return (_lanes(numbers) - (_ZERO - MOST) * ones(count)).to_bytes(LANE_BYTES * count, "little")


def _numbers(lanes: int, count: int) -> "array[int]":
    plain = ((lanes + _zeros(count)) ^ _highest_bits(count)).to_bytes(LANE_BYTES * count, "little")
    return array("i", native(plain, "i"))


def little(numbers: "array[Any]") -> bytes:
    """Return the bytes of an array, the least one of each number first, as the file has them on every machine."""
    if sys.byteorder == "little":
        return numbers.tobytes()
    turned = array(numbers.typecode, numbers)
    turned.byteswap()
    return turned.tobytes()


def native(plain: bytes, code: str) -> bytes:
    """Return such bytes as this machine has them in an array."""
    if sys.byteorder == "little":
        return plain
    turned = array(code, plain)
    turned.byteswap()
    return turned.tobytes()
