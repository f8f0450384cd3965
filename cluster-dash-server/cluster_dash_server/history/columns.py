"""Columns of numbers as few bytes: pure, and lossless for float32.

Figures of machines are decimals that change little: a column becomes integers (of units, tenths or hundredths), the
integers become differences, the differences lose what they have in common, their bytes are sorted by weight, and zstd
does the rest. Each step is one call into C for the whole column; without NumPy, which the server does not need.
"""

import struct
import sys
import threading
import zlib
from array import array
from collections.abc import Sequence
from importlib import import_module
from itertools import accumulate, chain, repeat
from operator import mul, sub, truediv
from typing import Any, NamedTuple

from cluster_dash_server.store import StoreError

NAN = float("nan")
_EMPTY, _CONSTANT, _DECIMAL, _PLAIN = range(4)
_SCALES = (1.0, 10.0, 100.0, 1000.0)
_CODES = {1: "B", 2: "H", 4: "I"}
_ABOVE = bytes((*range(128, 256), *range(128)))
"""Turns bytes from -128 on into bytes from 0 on, and back."""
_HEAD = struct.Struct("<BBBBiI")
"""Kind, place in _SCALES, bytes of a difference, whether some are unknown, the least difference, bytes of the mask."""
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
    zstandard = import_module("zstandard")
    context: Any = getattr(_thread, "unpacker", None)
    if context is None:
        context = _thread.unpacker = zstandard.ZstdDecompressor()
    try:
        return bytes(context.decompress(packed))
    except zstandard.ZstdError:
        raise StoreError("history: a damaged part of the file was left out") from None


# ---------------------------------------------------------------------------------------------------------- columns


class Column(NamedTuple):
    """A column read back: `numbers[i] / scale` is the figure; `known` tells which there are (None: all)."""

    numbers: Sequence[float]
    scale: float
    known: bytes | None

    def floats(self) -> list[float]:
        """Return the figures, NaN where unknown."""
        values = list(self.numbers) if self.scale == 1 else list(map(truediv, self.numbers, repeat(self.scale)))
        if self.known is None:
            return values
        return [value if known else NAN for value, known in zip(values, self.known, strict=True)]


def encode(columns: "Sequence[array[float]]") -> bytes:
    """Pack columns of equal length, of one metric: float32, NaN where unknown."""
    whole = columns[0] if len(columns) == 1 else array("f", b"".join(column.tobytes() for column in columns))
    total = sum(whole)
    known = None
    if total != total:  # a NaN is in it, or infinities
        if whole[0] != whole[0] and whole.tobytes() == whole[:1].tobytes() * len(whole):
            return bytes((_EMPTY,))
        known = bytes([value == value for value in whole])
        if not any(known):
            return bytes((_EMPTY,))
        whole = _filled(whole, known)
    if known is None and whole[0] == whole[-1] and whole.count(whole[0]) == len(whole):
        return bytes((_CONSTANT,)) + struct.pack("<f", whole[0])
    mask = b"" if known is None else zip_(known)
    try:
        place, numbers = _as_integers(whole)
        size, least, body = _differences(numbers, len(whole) // len(columns))
        kind = _DECIMAL
    except OverflowError:  # no decimals, or too far apart
        kind, place, size, least, body = _PLAIN, 0, 4, 0, _shuffled(_little(whole), 4)
    return _HEAD.pack(kind, place, size, known is not None, least, len(mask)) + mask + zip_(body)


def _differences(numbers: list[int], length: int) -> tuple[int, int, bytes]:
    """Return bytes of a difference, the least one, and all of them, behind the first number of each column.

    Raises:
        OverflowError: they need more than 32 bits.
    """
    differences: list[int] = []
    for start in range(0, len(numbers), length):
        column = numbers[start : start + length]
        differences += map(sub, column, chain(column[:1], column))
    firsts = _little(array("i", numbers[::length]))
    try:
        return 1, -128, firsts + array("b", differences).tobytes().translate(_ABOVE)
    except OverflowError:
        least = min(differences)
    span = max(differences) - least
    size = 1 if span < 2**8 else 2 if span < 2**16 else 4
    above = array(_CODES[size], map(sub, differences, repeat(least)))
    return size, array("i", [least])[0], firsts + _shuffled(_little(above), size)


def decode(packed: bytes, columns: int, length: int) -> list[Column]:
    """Read columns back, each of so many figures.

    Raises:
        StoreError: these bytes are damaged.
    """
    try:
        return _decode(packed, columns, length)
    except (struct.error, IndexError, ValueError):
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
        floats = array("f", _native(_unshuffled(body, 4), "f"))
        if len(floats) != columns * length:
            raise ValueError(len(floats))
        return [Column(floats[at * length : (at + 1) * length], 1.0, masks[at]) for at in range(columns)]
    firsts = array("i", _native(body[: 4 * columns], "i"))
    if (size, least) == (1, -128):
        above, least = array("b", body[4 * columns :].translate(_ABOVE)), 0
    else:
        above = array(_CODES[size], _native(_unshuffled(body[4 * columns :], size), _CODES[size]))
    if len(above) != columns * length:
        raise ValueError(len(above))
    found = []
    for at in range(columns):
        steps = above[at * length : (at + 1) * length].tolist()
        if least:
            steps = list(map(least.__add__, steps))
        steps[0] += firsts[at]
        found.append(Column(list(accumulate(steps)), _SCALES[place], masks[at]))
    return found


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


def _as_integers(whole: "array[float]") -> tuple[int, list[int]]:
    """Return a place in _SCALES and integers that give exactly these float32 when divided by it.

    Raises:
        OverflowError: there are none.
    """
    plain, sample = whole.tobytes(), whole[:: len(whole) // 8 or 1]
    for place, scale in enumerate(_SCALES):
        if any(array("f", [round(value * scale) / scale])[0] != value for value in sample):
            continue
        numbers = list(map(int, whole)) if place == 0 else list(map(round, map(mul, whole, repeat(scale))))
        if array("f", numbers if place == 0 else map(truediv, numbers, repeat(scale))).tobytes() == plain:
            return place, numbers
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


def _little(numbers: "array[Any]") -> bytes:
    """Return the bytes of an array, the least one of each number first, as the file has them on every machine."""
    if sys.byteorder == "little":
        return numbers.tobytes()
    turned = array(numbers.typecode, numbers)
    turned.byteswap()
    return turned.tobytes()


def _native(little: bytes, code: str) -> bytes:
    if sys.byteorder == "little":
        return little
    turned = array(code, little)
    turned.byteswap()
    return turned.tobytes()


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
