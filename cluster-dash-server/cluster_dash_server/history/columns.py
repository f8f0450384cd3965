"""Columns of numbers as few bytes: pure, and lossless for float32.

Figures of machines are decimals that change little: a column becomes integers (of units, tenths or hundredths), the
integers become differences, the differences lose what they have in common, their bytes are sorted by weight, and zstd
does the rest. Each step is one call into C for the whole column; without NumPy, which the server does not need.
"""

import struct
import threading
import zlib
from array import array
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from itertools import accumulate, repeat
from operator import truediv
from typing import Any, NamedTuple

from cluster_dash_server.history.lanes import LANE_BYTES, MOST, biased, little, native, ones, running, running_in_parts
from cluster_dash_server.store import StoreError

NAN = float("nan")
_EMPTY, _CONSTANT, _DECIMAL, _PLAIN = range(4)
_SCALES = (1.0, 10.0, 100.0, 1000.0)
_CODES = {1: "B", 2: "H", 4: "I"}
_HEAD = struct.Struct("<BBBBiI")
"""Kind, place in _SCALES, bytes of a difference, whether some are unknown, the least difference, bytes of the mask."""
_PLACE_AT, _MASK_AT = 1, 3
_TABLED = (4096, 8192)
"""So many integers of the first of _SCALES are looked up."""
_LEVEL = 3
_thread = threading.local()


def zip_(plain: bytes) -> bytes:
    """Compress bytes."""
    context: Any = getattr(_thread, "packer", None)
    if context is None:
        # the size stands in the container already; each frame saves some bytes
        context = _thread.packer = import_module("zstandard").ZstdCompressor(_LEVEL)
    return bytes(context.compress(plain))


def unzip(packed: bytes) -> bytes:
    """Return what `zip_` was given.

    Raises:
        StoreError: these bytes did not come from it.
    """
    context: Any = getattr(_thread, "unpacker", None)
    if context is None:
        zstandard = import_module("zstandard")
        context = _thread.unpacker = zstandard.ZstdDecompressor()
        _thread.damage = zstandard.ZstdError
    try:
        return bytes(context.decompress(packed))
    except _thread.damage:
        raise StoreError("history: a damaged part of the file was left out") from None


# ---------------------------------------------------------------------------------------------------------- columns


class Column(NamedTuple):
    """A column read back: `numbers[i] / scale` is the figure; `known` tells which there are (None: all).

    Numbers are an array of integers below `lanes.MOST` ("i") or of floats, or floats.
    """

    numbers: Sequence[float]
    scale: float
    known: bytes | None

    def is_known(self) -> bool:
        """Say whether all of it is known."""
        if self.known is not None:
            return False
        is_integers = isinstance(self.numbers, array) and self.numbers.typecode == "i"
        return is_integers or (total := sum(self.numbers)) == total

    def stays(self) -> bool:
        """Say whether it is one figure all along, or all unknown."""
        if self.known is not None:
            return not any(self.known)
        return isinstance(self.numbers, array) and stays(self.numbers)

    def floats(self) -> list[float]:
        """Return the figures, NaN where unknown."""
        values = list(self.numbers) if self.scale == 1 else list(map(truediv, self.numbers, repeat(self.scale)))
        if self.known is None:
            return values
        return [value if known else NAN for value, known in zip(values, self.known, strict=True)]


def encode(columns: "Sequence[array[float]]") -> bytes:
    """Pack columns of equal length, of one metric: float32, NaN where unknown."""
    whole = columns[0] if len(columns) == 1 else array("f", b"".join([column.tobytes() for column in columns]))
    if stays(whole):
        return bytes((_CONSTANT,)) + struct.pack("<f", whole[0]) if whole[0] == whole[0] else bytes((_EMPTY,))
    length, known = len(whole) // len(columns), None
    small = _as_bytes(little(whole))
    if small is None and (total := sum(whole)) != total:  # a NaN is in it, or infinities
        known = bytes([value == value for value in whole])
        if not any(known):
            return bytes((_EMPTY,))
        whole = _filled(whole, known)
        small = _as_bytes(little(whole))
    mask = b"" if known is None else zip_(known)
    if small is not None:
        body = _differences_of_bytes(small, length)
        return _HEAD.pack(_DECIMAL, 0, 1, known is not None, -128, len(mask)) + mask + zip_(body)
    try:
        place, numbers = _as_integers(whole, length)
    except OverflowError:  # no decimals, or too large
        return _HEAD.pack(_PLAIN, 0, 4, known is not None, 0, len(mask)) + mask + zip_(_shuffled(little(whole), 4))
    size, least, body = _differences(numbers, length)
    return _HEAD.pack(_DECIMAL, place, size, known is not None, least, len(mask)) + mask + zip_(body)


def encode_numbers(columns: "Sequence[array[int]]", scale: float) -> bytes:
    """Pack columns of whole numbers below MOST, which are figures times a scale, in half the time of `encode`."""
    whole = columns[0] if len(columns) == 1 else array("i", b"".join([column.tobytes() for column in columns]))
    if stays(whole):
        return bytes((_CONSTANT,)) + struct.pack("<f", whole[0] / scale)
    length, place, plain = len(columns[0]), _SCALES.index(scale), little(whole)
    small, nothing = plain[::4], bytes(len(whole))
    if plain[1::4] == plain[2::4] == plain[3::4] == nothing and small.isascii():
        body = _differences_of_bytes(small, length)
        return _HEAD.pack(_DECIMAL, place, 1, False, -128, 0) + zip_(body)
    size, least, body = _differences(biased(whole), length)
    return _HEAD.pack(_DECIMAL, place, size, False, least, 0) + zip_(body)


def extended(packed: bytes, length: int, new: "array[float]") -> bytes:
    """Return packed columns with a new figure at the end of each, in a fraction of the time of `encode`.

    Args:
        packed: columns, as `encode` returned them.
        length: of a column.
        new: a figure for each of them.

    Raises:
        StoreError: these bytes are damaged.
    """
    kind, columns = packed[0], len(new)
    if stays(new) and (
        new[0] != new[0] if kind == _EMPTY else kind == _CONSTANT and packed[1:] == struct.pack("<f", new[0])
    ):
        return packed
    if kind == _DECIMAL and not packed[_MASK_AT]:
        with suppress(struct.error, IndexError, ValueError, OverflowError):  # damaged, or no integer of this scale
            if (found := _continued(packed, length, new)) is not None:
                return found
    read = decode(packed, columns, length)
    return encode([array("f", [*column.floats(), figure]) for column, figure in zip(read, new, strict=True)])


def _continued(packed: bytes, length: int, new: "array[float]") -> bytes | None:
    """Return what `extended` does, by a difference more in each column; None: one does not fit beside the others."""
    kind, place, size, _, least, _ = _HEAD.unpack_from(packed)
    scale, columns, body = _SCALES[place], len(new), unzip(packed[_HEAD.size :])
    numbers = [round(figure * scale) for figure in new]
    if array("f", [number / scale for number in numbers]).tobytes() != new.tobytes():
        return None
    _check_room(numbers)
    firsts, steps = _steps(body, columns, columns * length * size)
    planes: list[list[bytes]] = [[] for _ in range(size)]
    for column, (first, number) in enumerate(zip(firsts, numbers, strict=True)):
        parts = [steps[at : at + length] for at in range(column * length, len(steps), columns * length)]
        last = first + least * length + sum([sum(part) << 8 * byte for byte, part in enumerate(parts)])
        above = (number - last - least).to_bytes(size, "little")  # or OverflowError
        for byte, part in enumerate(parts):
            planes[byte] += part, above[byte : byte + 1]
    continued = b"".join([body[: 4 * columns], *[b"".join(plane) for plane in planes]])
    return _HEAD.pack(kind, place, size, False, least, 0) + zip_(continued)


def _as_bytes(plain: bytes) -> bytes | None:
    """Return float32 as a byte each, where all are whole numbers below 128: percents, degrees, most of what there is.

    Then two of their bytes are zero, and of the other two, the one says where in a table the other one is looked up.
    """
    count = len(plain) // 4
    if plain[0::4] != bytes(count) or plain[1::4] != bytes(count):
        return None
    low, high = plain[2::4], plain[3::4]
    found = known = 0
    for byte, (is_this, numbers) in _small_numbers().items():
        if of_this := high.count(byte):
            known += of_this
            found |= int.from_bytes(low.translate(numbers), "little") & int.from_bytes(
                high.translate(is_this), "little"
            )
    small = found.to_bytes(count, "little")
    return small if known == count and small.isascii() else None


@lru_cache(maxsize=1)
def _small_numbers() -> dict[int, tuple[bytes, bytes]]:
    """Return by the highest byte of a float32: which bytes are this one, and which number goes with the next byte."""
    tables: dict[int, bytearray] = {}
    for number in range(128):
        _, _, low, high = struct.pack("<f", number)
        tables.setdefault(high, bytearray(b"\xff" * 256))[low] = number
    return {
        high: (bytes(255 if byte == high else 0 for byte in range(256)), bytes(numbers))
        for high, numbers in tables.items()
    }


def _differences_of_bytes(small: bytes, length: int) -> bytes:
    """Return what `_differences` returns for numbers below 128: one subtraction of 8 bits each."""
    columns = [small[start : start + length] for start in range(0, len(small), length)]
    before = b"".join([column[:1] + column[:-1] for column in columns])
    zero = int.from_bytes(b"\x80" * len(small), "little")
    differences = int.from_bytes(small, "little") - int.from_bytes(before, "little") + zero
    firsts = little(array("i", [column[0] for column in columns]))
    return firsts + differences.to_bytes(len(small), "little")


def _differences(numbers: bytes, length: int) -> tuple[int, int, bytes]:
    """Return bytes of a difference, the least one, and all of them, behind the first number of each column.

    One subtraction of two whole numbers of Python, in which each of the numbers has 32 bits of its own.

    Args:
        numbers: int32, the least byte first, each MOST too much, so that none is negative.
        length: of a column.
    """
    count, step = len(numbers) // 4, 4 * length
    columns = [numbers[start : start + step] for start in range(0, len(numbers), step)]
    before = b"".join([column[:4] + column[:-4] for column in columns])
    zero = 2**31 + 128  # what a difference of none becomes
    one_each = ones(count)
    differences = int.from_bytes(numbers, "little") - int.from_bytes(before, "little") + zero * one_each
    plain = differences.to_bytes(4 * count, "little")
    firsts = little(array("i", [int.from_bytes(column[:4], "little") - MOST for column in columns]))
    if plain[3::4] == b"\x80" * count and plain[1::4] == plain[2::4] == bytes(count):
        return 1, -128, firsts + plain[::4]
    above = array("I", native(plain, "I"))
    least = min(above)
    span = max(above) - least
    size = 1 if span < 2**8 else 2 if span < 2**16 else 4
    plain = (differences - least * one_each).to_bytes(4 * count, "little")
    return size, least - zero, firsts + b"".join([plain[place::4] for place in range(size)])


def decode(packed: bytes, columns: int, length: int) -> list[Column]:
    """Read columns back, each of so many figures.

    Raises:
        StoreError: these bytes are damaged.
    """
    try:
        return _decode(packed, columns, length)
    except (struct.error, IndexError, ValueError, OverflowError):
        raise StoreError("history: a damaged part of the file was left out") from None


def _decode(packed: bytes, columns: int, length: int) -> list[Column]:
    kind = packed[0]
    if kind == _EMPTY:
        return [Column(array("f", bytes(4 * length)), 1.0, bytes(length))] * columns
    if kind == _CONSTANT:
        return [Column(array("f", struct.unpack_from("<f", packed, 1) * length), 1.0, None)] * columns
    kind, place, size, has_mask, least, mask = _HEAD.unpack_from(packed)
    at = _HEAD.size + mask
    known = unzip(packed[_HEAD.size : at]) if has_mask else None
    body = unzip(packed[at:])
    masks = [None if known is None else known[place * length : (place + 1) * length] for place in range(columns)]
    if kind == _PLAIN:
        floats = array("f", native(_unshuffled(body, 4), "f"))
        if len(floats) != columns * length:
            raise ValueError(len(floats))
        return [Column(floats[at * length : (at + 1) * length], 1.0, masks[at]) for at in range(columns)]
    firsts, planes = _steps(body, columns, columns * length * size)
    numbers: Sequence[Sequence[float]]
    if max(map(abs, firsts)) + _farthest(planes, size, length) + abs(least) * length < MOST:
        steps = bytearray(LANE_BYTES * columns * length)
        for at in range(columns):
            for byte in range(size):
                begin = (byte * columns + at) * length
                steps[LANE_BYTES * at + byte :: LANE_BYTES * columns] = planes[begin : begin + length]
        numbers = running(firsts, steps, least)
    else:
        above = array(_CODES[size], native(_unshuffled(planes, size), _CODES[size]))
        numbers = [
            list(accumulate([step + least for step in above[at * length : (at + 1) * length]], initial=first))[1:]
            for at, first in enumerate(firsts)
        ]
    return [Column(each, _SCALES[place], mask) for each, mask in zip(numbers, masks, strict=True)]


class Added(NamedTuple):
    """What each so many figures of columns add up to, one column after the other: figures times a scale."""

    least: "array[Any]"
    total: "array[Any]"
    most: "array[Any]"
    scale: float


def decode_added(packed: bytes, columns: int, length: int, rows: int) -> Added | None:
    """Read columns back, each so many figures added up, in half of the time of reading and adding them.

    Args:
        packed: columns, as `encode` returned them.
        columns: how many.
        length: of a column: a multiple of `rows`.
        rows: how many figures add up to one.

    Returns:
        None: some are unknown, no decimals, or too large; `decode` reads those.

    Raises:
        StoreError: these bytes are damaged.
    """
    try:
        return _decode_added(packed, columns, length, rows)
    except (struct.error, IndexError, ValueError, OverflowError):
        raise StoreError("history: a damaged part of the file was left out") from None


def _decode_added(packed: bytes, columns: int, length: int, rows: int) -> Added | None:
    kind = packed[0]
    if kind == _CONSTANT:
        (figure,) = struct.unpack_from("<f", packed, 1)
        same = array("d", [figure]) * (columns * length // rows)
        return Added(same, array("d", [figure * rows]) * len(same), same, 1.0)
    if kind != _DECIMAL:
        return None
    _, place, size, has_mask, least, _ = _HEAD.unpack_from(packed)
    if has_mask:
        return None
    firsts, steps = _steps(unzip(packed[_HEAD.size :]), columns, columns * length * size)
    each = columns * length
    planes = [steps[at : at + each] for at in range(0, len(steps), each)]
    found = running_in_parts(firsts, planes, least, rows)
    return None if found is None else Added(*found, _SCALES[place])


def _steps(body: bytes, columns: int, size: int) -> "tuple[array[int], bytes]":
    """Part what `_differences` returned into the first number of each column and so many bytes of differences."""
    firsts, steps = array("i", native(body[: 4 * columns], "i")), body[4 * columns :]
    if len(steps) != size:
        raise ValueError(len(steps))
    return firsts, steps


def _farthest(planes: bytes, size: int, length: int) -> int:
    """Return how far steps can lead from the first number of a column, at most."""
    if size < 4:
        return (1 << 8 * size) * length
    count = len(planes) // size
    sums = [sum(planes[byte * count : (byte + 1) * count]) for byte in range(size)]
    return sum([each << 8 * byte for byte, each in enumerate(sums)])


def _filled(whole: "array[float]", known: bytes) -> "array[float]":
    """Put the figure before, or the first one known, where there is none."""
    filled = array("f", whole)
    last = next(value for value, is_known in zip(whole, known, strict=True) if is_known)
    for place, is_known in enumerate(known):
        if is_known:
            last = whole[place]
        else:
            filled[place] = last
    return filled


def _as_integers(whole: "array[float]", length: int) -> tuple[int, bytes]:
    """Return a place in _SCALES and integers that give exactly these float32 when divided by it.

    Args:
        whole: columns of figures.
        length: of a column. One that stays the same, as half of those of many GPUs do, is looked at once.

    Returns:
        the place, and the integers as `_differences` takes them.

    Raises:
        OverflowError: there are none.
    """
    columns = [whole[start : start + length] for start in range(0, len(whole), length)]
    kept = [column[:1] if stays(column) else column for column in columns]
    place, plain = _scaled(array("f", b"".join([column.tobytes() for column in kept])))
    found, at = [], 0
    for column in kept:
        part = plain[at : at + 4 * len(column)]
        found.append(part if len(column) == length else part * length)
        at += len(part)
    return place, b"".join(found)


def stays(column: "array[Any]") -> bool:
    """Say whether all of a column is the same, unknown ones too."""
    return column.tobytes() == column[:1].tobytes() * len(column)


def _scaled(figures: "array[float]") -> tuple[int, bytes]:
    bits = array("I", figures.tobytes())
    for place, table in enumerate(_tables()):
        with suppress(KeyError):
            return place, b"".join([table[each] for each in bits])
    different = array("I", set(bits))
    if 2 * len(different) > len(bits):
        return _exact(figures)
    place, plain = _exact(array("f", different.tobytes()))
    of = dict(zip(different, _parts(plain), strict=True))
    return place, b"".join([of[each] for each in bits])


def _exact(figures: "array[float]") -> tuple[int, bytes]:
    plain, sample = figures.tobytes(), figures[:: len(figures) // 8 or 1]
    for place, scale in enumerate(_SCALES):
        if any(array("f", [round(figure * scale) / scale])[0] != figure for figure in sample):
            continue
        numbers = [round(figure * scale) for figure in figures]
        if array("f", [number / scale for number in numbers]).tobytes() == plain:
            return place, _biased(numbers)
    raise OverflowError


@lru_cache(maxsize=1)
def _tables() -> list[dict[int, bytes]]:
    """Return what the bits of figures become that most columns have: percents, degrees, clocks; tenths of watts.

    To look one up takes half the time that it takes to make an integer of it and to see whether it is the same.
    """
    tables = []
    for count, scale in zip(_TABLED, _SCALES, strict=False):
        bits = array("I", array("f", [number / scale for number in range(count)]).tobytes())
        plain = _biased(range(count))
        tables.append(dict(zip(bits, _parts(plain), strict=True)))
    return tables


def _parts(plain: bytes) -> list[bytes]:
    return [plain[at : at + 4] for at in range(0, len(plain), 4)]


def _biased(numbers: Sequence[int]) -> bytes:
    _check_room(numbers)
    return little(array("i", [number + MOST for number in numbers]))


def _check_room(numbers: Sequence[int]) -> None:
    if not -MOST <= min(numbers) <= max(numbers) < MOST:
        raise OverflowError


def _shuffled(plain: bytes, size: int) -> bytes:
    return plain if size == 1 else b"".join(plain[place::size] for place in range(size))


def _unshuffled(shuffled: bytes, size: int) -> bytes:
    if size == 1:
        return shuffled
    plain, count = bytearray(len(shuffled)), len(shuffled) // size
    for place in range(size):
        plain[place::size] = shuffled[place * count : (place + 1) * count]
    return bytes(plain)


# -------------------------------------------------------------------------------------------------------- containers


def bind(frames: Sequence[bytes]) -> bytes:
    """Put frames into one blob, with a sum by which damage is seen."""
    body = struct.pack(f"<H{len(frames)}I", len(frames), *map(len, frames)) + b"".join(frames)
    return body + struct.pack("<I", zlib.crc32(body))


class Frames:
    """The frames of a blob.

    Raises:
        StoreError: the blob is damaged.
    """

    def __init__(self, blob: bytes) -> None:
        try:
            body, (sum_,) = blob[:-4], struct.unpack_from("<I", blob, len(blob) - 4)
            if zlib.crc32(body) != sum_:
                raise StoreError("history: a damaged part of the file was left out")
            (count,) = struct.unpack_from("<H", body)
            sizes = struct.unpack_from(f"<{count}I", body, 2)
        except struct.error:
            raise StoreError("history: a damaged part of the file was left out") from None
        self._ends = list(accumulate(sizes, initial=2 + 4 * count))
        self._body = body

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> bytes:
        return self._body[self._ends[place] : self._ends[place + 1]]
