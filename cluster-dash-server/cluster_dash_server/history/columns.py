"""Columns of numbers as few bytes: pure, and lossless for float32.

Figures of machines are decimals that change little: a column becomes integers (of units, tenths or hundredths), the
integers become differences, the differences lose what they have in common, their bytes are sorted by weight, and zstd
does the rest. Each step is one call of NumPy for all columns of a metric: a row of a matrix each.
"""

import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster_dash_server.history.late_numpy import np
from cluster_dash_server.store import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAN = float("nan")
_EMPTY, _CONSTANT, _DECIMAL, _PLAIN = range(4)
_SCALES = (1.0, 10.0, 100.0, 1000.0)
_MOST = 2**29
"""Integers are nearer to 0 than this, so that differences have room in 32 bits."""
_HEAD = struct.Struct("<BBBBiI")
"""Kind, place in _SCALES, bytes of a difference, whether some are unknown, the least difference, bytes of the mask."""
_CONSTANT_HEAD = struct.Struct("<Bf")
_LEVEL = 3
DAMAGED = "history: a damaged part of the file was left out"
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
    except (_thread.damage, MemoryError):  # damage may name a size that no machine has
        raise StoreError(DAMAGED) from None


# ---------------------------------------------------------------------------------------------------------- columns


class Columns(NamedTuple):
    """Columns read back: a row of `numbers` each, NaN where unknown, which are figures times the scale of the row.

    Where the scale is more than 1 they are whole numbers: their sums are exact.
    """

    numbers: "NDArray[np.float64]"
    scales: "NDArray[np.float64]"

    def figures(self) -> "NDArray[np.float64]":
        """Return the figures, NaN where unknown."""
        return self.numbers / self.scales


def encode(figures: "NDArray[np.float32]", widths: Sequence[int]) -> list[bytes]:
    """Pack columns: a frame for each metric.

    Args:
        figures: a row for each column, NaN where unknown.
        widths: how many columns each metric has, one metric after the other; one without any has an empty frame.
    """
    frames = [b""] * len(widths)
    places, begins = _begins(widths)
    bits, known = figures.view(np.int32), figures == figures
    firsts = np.repeat(bits[begins, :1], [widths[place] for place in places], axis=0)
    # of each metric: whether all its figures are the same one, all are known, some are
    are_same = np.logical_and.reduceat((bits == firsts).all(axis=1), begins).tolist()
    are_known = np.logical_and.reduceat(known.all(axis=1), begins).tolist()
    are_some = np.logical_or.reduceat(known.any(axis=1), begins).tolist()
    varying, blocks, masks = [], [], []  # what takes more than a head is packed together
    for place, begin, is_same, is_known, is_some in zip(places, begins, are_same, are_known, are_some, strict=True):
        of_metric = slice(begin, begin + widths[place])
        if not is_some:
            frames[place] = bytes((_EMPTY,))
        elif is_same:
            frames[place] = _CONSTANT_HEAD.pack(_CONSTANT, figures[begin, 0])
        else:
            varying.append(place)
            blocks.append(figures[of_metric] if is_known else _filled(figures[of_metric], known[of_metric]))
            masks.append(b"" if is_known else zip_(known[of_metric].tobytes()))
    if varying:
        for place, frame in zip(varying, _encoded(np.vstack(blocks), list(map(len, blocks)), masks), strict=True):
            frames[place] = frame
    return frames


def _begins(widths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return which metrics have columns, and at which row of a matrix those of each begin."""
    places = [place for place, width in enumerate(widths) if width]
    return places, list(accumulate([widths[place] for place in places[:-1]], initial=0))


def _filled(figures: "NDArray[np.float32]", known: "NDArray[np.bool_]") -> "NDArray[np.float32]":
    """Put the figure before, or the first one known, where there is none."""
    places = np.flatnonzero(known)
    before = np.maximum(np.cumsum(known) - 1, 0)
    filled: NDArray[np.float32] = figures.ravel()[places[before]].reshape(figures.shape)
    return filled


def _encoded(figures: "NDArray[np.float32]", widths: Sequence[int], masks: Sequence[bytes]) -> Iterator[bytes]:
    """Give a frame for each metric; of figures that are all known, but for what masks say of each metric."""
    _, begins = _begins(widths)
    numbers, scale_places = _as_integers(figures, widths, begins)
    firsts = numbers[:, 0].astype("<i4")
    steps = np.zeros_like(numbers)
    np.subtract(numbers[:, 1:], numbers[:, :-1], out=steps[:, 1:])
    lowest = np.minimum.reduceat(steps.min(axis=1), begins)
    highest = np.maximum.reduceat(steps.max(axis=1), begins)
    leasts = np.where((lowest >= -128) & (highest < 128), -128, lowest)  # most are the same: zstd finds more alike
    steps -= np.repeat(leasts, widths)[:, None]
    with np.errstate(invalid="ignore"):
        of_a_byte = steps.astype(np.uint8)  # all at once, of use where that is enough
    spans = (highest - leasts).tolist()
    of_metrics = zip(scale_places, begins, widths, masks, leasts, spans, strict=True)
    for scale_place, begin, width, mask, least, span in of_metrics:
        rows, size = slice(begin, begin + width), 4
        if scale_place < 0:
            yield _HEAD.pack(_PLAIN, 0, size, bool(mask), 0, len(mask)) + mask + zip_(_by_weight(figures[rows], "<f4"))
            continue
        if span < 2**8:
            size, planes = 1, of_a_byte[rows].tobytes()
        else:
            size = 2 if span < 2**16 else 4
            planes = _by_weight(steps[rows], f"<u{size}")
        head = _HEAD.pack(_DECIMAL, scale_place, size, bool(mask), int(least), len(mask))
        yield head + mask + zip_(firsts[rows].tobytes() + planes)


def _as_integers(
    figures: "NDArray[np.float32]", widths: Sequence[int], begins: Sequence[int]
) -> "tuple[NDArray[np.float64], list[int]]":
    """Return integers that give exactly these figures, all known, when divided by a scale.

    Args:
        figures: columns of metrics, one metric after the other: all columns of one have the same scale.
        widths: how many columns each metric has.
        begins: where those of each begin.

    Returns:
        the integers, and for each metric the place of the first scale in _SCALES that does; -1, and zeros: none does.
    """
    wide, bits = figures.astype(np.float64), figures.view(np.int32)
    numbers, places = np.zeros(figures.shape), np.full(len(widths), -1)
    for place, scale in enumerate(_SCALES):
        left = np.repeat(places < 0, widths)
        tried = np.rint(wide[left] * scale) + 0.0  # -0.0, which is no integer, becomes 0
        with np.errstate(over="ignore"):
            again = (tried / scale).astype(np.float32)
        fit = np.zeros(len(figures), np.bool_)
        fit[left] = ((again.view(np.int32) == bits[left]) & (tried >= -_MOST) & (tried < _MOST)).all(axis=1)
        found = np.logical_and.reduceat(fit, begins)
        places[found] = place
        rows = np.repeat(found, widths)
        numbers[rows] = tried[rows[left]]
        if (places >= 0).all():
            break
    return numbers, places.tolist()


def decode(frames: Sequence[bytes], widths: Sequence[int], length: int) -> Columns:
    """Read the columns of some metrics back, each of so many figures: what `encode` was given.

    Raises:
        StoreError: these bytes are damaged.
    """
    try:
        with np.errstate(invalid="ignore"):  # damage may look like a NaN that signals
            return _decode(frames, widths, length)
    except (struct.error, LookupError, ValueError, OverflowError):
        raise StoreError(DAMAGED) from None


def _decode(frames: Sequence[bytes], widths: Sequence[int], length: int) -> Columns:
    numbers = np.zeros((sum(widths), length))
    firsts, leasts, scales = np.zeros(len(numbers)), np.zeros((len(numbers), 1)), np.ones((len(numbers), 1))
    rest: list[tuple[slice, float | NDArray[np.float64]]] = []
    unknown: list[tuple[slice, NDArray[np.bool_]]] = []
    for place, begin in zip(*_begins(widths), strict=True):
        frame, shape = frames[place], (widths[place], length)
        rows = slice(begin, begin + widths[place])
        if frame[0] == _EMPTY:
            rest.append((rows, NAN))
            continue
        if frame[0] == _CONSTANT:
            rest.append((rows, _CONSTANT_HEAD.unpack_from(frame)[1]))
            continue
        kind, scale_place, size, has_mask, leasts[rows], of_mask = _HEAD.unpack_from(frame)
        body = unzip(frame[_HEAD.size + of_mask :])
        if kind == _DECIMAL:
            scales[rows] = _SCALES[scale_place]
            firsts[rows] = np.frombuffer(body, "<i4", shape[0])
            planes = np.frombuffer(body, np.uint8, offset=4 * shape[0]).reshape(size, *shape)
            numbers[rows] = planes[0]
            for weight in range(1, size):
                numbers[rows] += 256.0**weight * planes[weight]
        elif kind == _PLAIN:
            by_weight = np.frombuffer(body, np.uint8).reshape(4, -1)
            rest.append((rows, np.ascontiguousarray(by_weight.T).view("<f4").reshape(shape)))
        else:
            raise ValueError(kind)
        if has_mask:
            known = np.frombuffer(unzip(frame[_HEAD.size :][:of_mask]), np.uint8).reshape(shape)
            unknown.append((rows, known == 0))
    numbers += leasts
    numbers[:, 0] += firsts
    np.cumsum(numbers, axis=1, out=numbers)
    for rows, figures in rest:
        numbers[rows] = figures
    for rows, are_unknown in unknown:
        numbers[rows][are_unknown] = NAN
    return Columns(numbers, scales)


def _by_weight(numbers: "NDArray[Any]", dtype: str) -> bytes:
    """Return numbers as this type: the lowest bytes of all, then the next ones of all."""
    found = np.ascontiguousarray(numbers, dtype)
    return found.view(np.uint8).reshape(-1, found.itemsize).T.tobytes()


def pack_integers(numbers: "Sequence[int] | NDArray[np.float64]") -> bytes:
    """Pack whole numbers of up to 64 bits, which go on by about the same."""
    return zip_(_by_weight(np.diff(np.array(numbers, np.int64), prepend=0), "<i8"))


def unpack_integers(packed: bytes) -> "NDArray[np.int64]":
    """Return what `pack_integers` was given.

    Raises:
        StoreError: these bytes are damaged.
    """
    try:
        by_weight = np.frombuffer(unzip(packed), np.uint8).reshape(8, -1)
        return np.cumsum(np.ascontiguousarray(by_weight.T).view("<i8"))
    except ValueError:
        raise StoreError(DAMAGED) from None


class Sums(NamedTuple):
    """What figures add up to, NaN where nothing is known; as many each as were told apart."""

    least: "NDArray[np.float32]"
    total: "NDArray[np.float64]"
    most: "NDArray[np.float32]"
    known: "NDArray[np.int64]"


def added(figures: "NDArray[np.float32]") -> Sums:
    """Add up figures, NaN where unknown, over their first axis: side by side, they take a tenth of the time."""
    known = figures == figures
    with np.errstate(invalid="ignore"):  # infinities of both signs
        total = np.where(known, figures, np.float32(0.0)).sum(axis=0, dtype=np.float64)
    return Sums(np.fmin.reduce(figures), total, np.fmax.reduce(figures), known.sum(axis=0))


def added_parts(figures: "NDArray[np.float32]", starts: "Sequence[int] | NDArray[np.intp]") -> Sums:
    """Add up parts of columns, a row for each column: the parts begin at these places, the first at 0."""
    lengths = np.diff(starts, append=figures.shape[1])
    if (lengths == lengths[0]).all():
        parts = figures.reshape(len(figures), len(starts), lengths[0])
        return added(np.ascontiguousarray(parts.transpose(2, 0, 1)))
    known = figures == figures
    with np.errstate(invalid="ignore"):  # infinities of both signs
        total = np.add.reduceat(np.where(known, figures, 0.0), starts, axis=1, dtype=np.float64)
    least, most = (kind.reduceat(figures, starts, axis=1) for kind in (np.fmin, np.fmax))
    return Sums(least, total, most, np.add.reduceat(known, starts, axis=1, dtype=np.int64))


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
                raise StoreError(DAMAGED)
            (count,) = struct.unpack_from("<H", body)
            sizes = struct.unpack_from(f"<{count}I", body, 2)
        except struct.error:
            raise StoreError(DAMAGED) from None
        self._ends = list(accumulate(sizes, initial=2 + 4 * count))
        self._body = body

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> bytes:
        return self._body[self._ends[place] : self._ends[place + 1]]
