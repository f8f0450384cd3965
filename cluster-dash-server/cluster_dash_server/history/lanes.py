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


def running_in_parts(
    firsts: "array[int]", steps: Sequence[bytes], least: int, rows: int
) -> "tuple[array[int], array[int], array[int]] | None":
    """Return the least, the sum and the most of each so many rows of what `running` returns, column by column.

    In half of its time and that of `least_sum_most`: only where each part begins is a number made by running on.

    Args:
        firsts: with what each column begins.
        steps: how much more than `least` each step is: the lowest byte of all, one column after the other, then the
            next byte of all.
        least: the least step.
        rows: how many add up to one; a column is some of such parts.

    Returns:
        None: they might not find room.
    """
    columns, count = len(firsts), len(steps[0]) // rows
    parts, end = count // columns, _end(steps)
    reach = parts * rows * max(-least, least + end)  # as far as steps can lead
    if max(2, rows) * (max(map(abs, firsts)) + reach) >= 2 * MOST or parts * rows * end >= 2 * MOST:
        return None
    zeros, one_each, high = _zeros(count), ones(count), _highest_bits(count)
    above = total = 0
    lows, tops = [], []
    for row in range(1, rows + 1):
        spread = bytearray(LANE_BYTES * count)
        for place, plane in enumerate(steps):
            spread[place::LANE_BYTES] = plane[row - 1 :: rows]
        above += int.from_bytes(spread, "little")
        lanes = above + (row * least + _ZERO) * one_each
        total += lanes
        if row % 2 and row < rows:
            before = lanes
            continue
        low, top = (lanes, lanes) if row % 2 else _sorted(before, lanes, high)
        lows.append(low)
        tops.append(top)
    low, top = lows[0], tops[0]
    for lanes in lows[1:]:
        low, _ = _sorted(low, lanes, high)
    for lanes in tops[1:]:
        _, top = _sorted(top, lanes, high)
    begins = _begins(firsts, above, least * rows, parts) - zeros
    if rows == 1:
        numbers = _numbers(low + begins, count)
        return numbers, numbers, numbers
    sums = total + rows * begins - (rows - 1) * zeros
    return _numbers(low + begins, count), _numbers(sums, count), _numbers(top + begins, count)


def _end(steps: Sequence[bytes]) -> int:
    """Return what steps are below."""
    if len(steps) < LANE_BYTES:
        return 1 << 8 * len(steps)
    return next(((highest + 1) << 8 * place for place in (3, 2, 1, 0) if (highest := max(steps[place]))), 1)


def _begins(firsts: "array[int]", above: int, least: int, parts: int) -> int:
    """Return lanes with the number before each part, one column after the other, with _ZERO added.

    Args:
        firsts: the number before the first part of each column.
        above: lanes with how much more than `least` each part adds.
        least: see there.
        parts: how many each column has.
    """
    columns, reach = len(firsts), 1
    begin = b"".join([(first + _ZERO).to_bytes(LANE_BYTES * parts, "little") for first in firsts])
    lanes = ((above << _LANE) & _from_place(1, parts, columns)) + int.from_bytes(begin, "little")
    while reach < parts:
        lanes += (lanes << (_LANE * reach)) & _from_place(reach, parts, columns)
        reach *= 2
    return lanes + least * _places(parts, columns)


@lru_cache(maxsize=64)
def _from_place(place: int, parts: int, columns: int) -> int:
    """Return lanes of columns of parts with all bits set from a place of each on."""
    of_column = bytes(LANE_BYTES * place) + b"\xff" * (LANE_BYTES * (parts - place))
    return int.from_bytes(of_column * columns, "little")


@lru_cache(maxsize=64)
def _places(parts: int, columns: int) -> int:
    """Return lanes with 0, 1, 2, … in each of some columns of parts."""
    return int.from_bytes(little(array("I", range(parts))) * columns, "little")


def least_sum_most(columns: "Sequence[array[int]]") -> "tuple[array[int], array[Any], array[int]]":
    """Return the least, the sum and the most of columns of numbers below MOST, place by place."""
    count, biased = len(columns[0]), [_lanes(column) for column in columns]
    low, top, high = biased[0], biased[0], _highest_bits(count)
    for lanes in biased[1:]:
        low, _ = _sorted(low, lanes, high)
        _, top = _sorted(top, lanes, high)
    least, most = _numbers(low, count), _numbers(top, count)
    if max(max(most), -min(least)) * len(columns) >= 2 * _ZERO:  # the sums would not find room
        return least, array("q", map(sum, zip(*columns, strict=True))), most
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
