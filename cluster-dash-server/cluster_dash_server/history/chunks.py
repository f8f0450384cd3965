"""The blobs of history: an hour of rows of a host, and a day of roll-ups of it; pure. One layout of GPUs each."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from operator import sub
from typing import Any, NamedTuple, cast

from cluster_dash_server.history.columns import (
    NAN,
    Added,
    Column,
    Frames,
    bind,
    decode,
    decode_added,
    encode,
    encode_numbers,
    extended,
    stays,
    unzip,
    zip_,
)
from cluster_dash_server.history.lanes import MOST
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder

METRICS = GPU_METRICS + HOST_METRICS
_TIMES, _SEQS, _WHO, _FIRST = range(4)
_NO_SEQ = -1
_HUNDREDTHS = 100
"""To such means are rounded."""


class Layout(NamedTuple):
    """Which columns the blobs of a host have: they say it themselves, for later releases keep more metrics."""

    gpus: tuple[GpuId, ...]
    gpu_metrics: tuple[str, ...] = GPU_METRICS
    host_metrics: tuple[str, ...] = HOST_METRICS

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps([self.gpu_metrics, self.host_metrics, self.gpus], ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def of(cls, text: str) -> "Layout":
        """Read it from JSON."""
        gpu_metrics, host_metrics, gpus = json.loads(text)
        if (tuple(gpu_metrics), tuple(host_metrics)) == (GPU_METRICS, HOST_METRICS):
            gpu_metrics, host_metrics = GPU_METRICS, HOST_METRICS  # the very same are quicker to compare, row by row
        return cls(tuple(GpuId(*gpu) for gpu in gpus), tuple(gpu_metrics), tuple(host_metrics))

    def as_now(self, values: "array[float]") -> "array[float]":
        """Return the values of a row as this release lays them out: an older one may have kept fewer metrics."""
        if self.gpu_metrics == GPU_METRICS and self.host_metrics == HOST_METRICS:
            return values
        found = array("f")
        of_hosts = len(self.gpu_metrics) * len(self.gpus)
        for metric in METRICS:
            count = len(self.gpus) if metric in GPU_METRICS else 1
            if metric in self.gpu_metrics:
                at = self.gpu_metrics.index(metric) * count
                found.extend(values[at : at + count])
            elif metric in self.host_metrics:
                found.append(values[of_hosts + self.host_metrics.index(metric)])
            else:
                found.extend([NAN] * count)
        return found

    def frame_of(self, metric: str) -> tuple[int, int] | None:
        """Return the place of a metric among the frames, and how many columns it has; None: it is not kept here."""
        if metric in self.gpu_metrics:
            return self.gpu_metrics.index(metric), len(self.gpus)
        if metric in self.host_metrics:
            return len(self.gpu_metrics) + self.host_metrics.index(metric), 1
        return None


# --------------------------------------------------------------------------------------------------- an hour of rows


def pack_rows(rows: Sequence[Figures], columns: "Sequence[array[float]]") -> bytes:
    """Pack the rows of an hour, oldest first, all of the same GPUs; `columns_of` made columns of their values."""
    frames = [
        _pack_integers([round(row.at * 1000) for row in rows]),
        _pack_integers([_NO_SEQ if row.seq is None else row.seq for row in rows]),
        zip_(json.dumps([_boots(rows), list(_holdings(rows))], ensure_ascii=False, separators=(",", ":")).encode()),
    ]
    at = 0
    for count in _widths(len(rows[0].gpus)):
        frames.append(encode(columns[at : at + count]) if count else b"")
        at += count
    return bind(frames)


def _widths(gpus: int) -> tuple[int, ...]:
    """Return how many columns each of METRICS has."""
    return (gpus,) * len(GPU_METRICS) + (1,) * len(HOST_METRICS)


def _boots(rows: Sequence[Figures]) -> list[tuple[str | None, int]]:
    """Return under which boot_id how many rows in a row came."""
    found: list[tuple[str | None, int]] = []
    for row in rows:
        if found and found[-1][0] == row.boot_id:
            found[-1] = row.boot_id, found[-1][1] + 1
        else:
            found.append((row.boot_id, 1))
    return found


def _holdings(rows: Sequence[Figures]) -> Iterator[tuple[int, list[Any]]]:
    """Give how many rows in a row have the same holders, and these with the most memory that each had meanwhile."""
    first = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place].holders != rows[first].holders:
            mems: list[list[float]] = [
                list(each) for each in zip(*(r.holder_mem for r in rows[first:place]), strict=True)
            ]
            peaks = [max((mem for mem in each if mem == mem), default=None) for each in mems]
            yield place - first, [[*holder, peak] for holder, peak in zip(rows[first].holders, peaks, strict=True)]
            first = place


class Rows:
    """An hour of rows, read back as far as is asked for.

    Raises:
        StoreError: the blob is damaged; so do all that read in it.
    """

    def __init__(self, blob: bytes, layout: Layout) -> None:
        self._frames = Frames(blob)
        self._layout = layout

    @cached_property
    def times(self) -> list[float]:
        """When each row was taken, the oldest first."""
        return [at / 1000 for at in _unpack_integers(self._frames[_TIMES])]

    def columns(self, metric: str) -> list[Column]:
        """Return the figures of a metric: a column for each GPU, or one for the host; none where it is not kept."""
        frame = self._layout.frame_of(metric)
        if frame is None or not frame[1]:
            return []
        return decode(self._frames[_FIRST + frame[0]], frame[1], len(self.times))

    def added(self, metric: str, rows: int) -> Added | None:
        """Return what each so many figures of a metric add up to, column by column; None: `columns` tells more.

        The times are a multiple of so many.
        """
        frame = self._layout.frame_of(metric)
        if frame is None or not frame[1]:
            return None
        return decode_added(self._frames[_FIRST + frame[0]], frame[1], len(self.times), rows)

    def without_user(self, user: str) -> bytes | None:
        """Return the blob without a holder's name; None: it does not hold it."""
        boots, holdings = json.loads(unzip(self._frames[_WHO]))
        if all(holder[1] != user for _, holders in holdings for holder in holders):
            return None
        left = [[count, [holder for holder in holders if holder[1] != user]] for count, holders in holdings]
        frames = [self._frames[place] for place in range(len(self._frames))]
        frames[_WHO] = zip_(json.dumps([boots, left], ensure_ascii=False, separators=(",", ":")).encode())
        return bind(frames)

    def figures(self, host: str) -> list[Figures]:
        """Return all rows; the memory of a holder is the most it had while the holders stayed the same."""
        seqs = _unpack_integers(self._frames[_SEQS])
        boots, holdings = json.loads(unzip(self._frames[_WHO]))
        boot_ids = [boot for boot, count in boots for _ in range(count)]
        held: list[tuple[tuple[Holder, ...], array[float]]] = []
        for count, holders in holdings:
            who = tuple([Holder(*holder[:3]) for holder in holders])
            mems = array("f", [NAN if holder[3] is None else holder[3] for holder in holders])
            held += [(who, mems)] * count
        columns: list[Sequence[float]] = []
        for metric in METRICS:
            found = [column.floats() for column in self.columns(metric)]
            missing = (len(self._layout.gpus) if metric in GPU_METRICS else 1) - len(found)
            columns += found + [[NAN] * len(self.times)] * missing
        return [
            Figures(
                host=host,
                at=at,
                boot_id=boot_id,
                seq=None if seq == _NO_SEQ else seq,
                oldest_seq=None,
                gpus=self._layout.gpus,
                values=array("f", values),
                holders=who,
                holder_mem=mems,
            )
            for at, seq, boot_id, (who, mems), *values in zip(self.times, seqs, boot_ids, held, *columns, strict=True)
        ]


def _pack_integers(numbers: Sequence[int]) -> bytes:
    steps = array("q", map(sub, numbers, (0, *numbers)))
    return zip_(b"".join(bytes(steps)[place::8] for place in range(8)))


def _unpack_integers(packed: bytes) -> list[int]:
    shuffled = unzip(packed)
    plain, count = bytearray(len(shuffled)), len(shuffled) // 8
    for place in range(8):
        plain[place::8] = shuffled[place * count : (place + 1) * count]
    return list(accumulate(array("q", bytes(plain))))


# ---------------------------------------------------------------------------------------------------- a day of steps


@dataclass(frozen=True, slots=True)
class Slot:
    """The least, mean and most of every value of a row in one step, from how many rows; NaN where unknown."""

    rows: int
    least: "array[float]"
    mean: "array[float]"
    most: "array[float]"


def slot_of(columns: "Sequence[array[float]]") -> Slot:
    """Add up rows of one layout, of which `columns_of` made columns."""
    least, mean, most = array("f"), array("f"), array("f")
    for column in columns:
        low, middle, high = _least_mean_most(column)
        least.append(low)
        mean.append(middle)
        most.append(high)
    return Slot(len(columns[0]), least, mean, most)


def _least_mean_most(figures: "array[float]") -> tuple[float, float, float]:
    """Return the least, mean and most of figures; NaN where none is known."""
    if stays(figures):  # half of the metrics of many GPUs
        return (figures[0],) * 3
    known = figures.tolist()
    total = sum(known)
    if total != total:
        known = [value for value in known if value == value]
        total = sum(known)
    return min(known), round(total / len(known), 2), max(known)


def columns_of(rows: "Sequence[array[float]]") -> "list[array[float]]":
    """Return each value of rows of one layout over time."""
    whole, stride = array("f", b"".join([row.tobytes() for row in rows])), len(rows[0])
    return [whole[place::stride] for place in range(stride)]


class Day(NamedTuple):
    """Steps of a day, column by column: the least, mean and most of every value of a row, NaN where unknown.

    Attributes:
        places: which steps of the day there are, in order.
        rows: from how many rows each was made.
    """

    places: list[int]
    rows: list[int]
    least: list[Column]
    mean: list[Column]
    most: list[Column]

    def put(self, columns: int, least: Column, mean: Column, most: Column) -> None:
        """Put in the next columns, which come one after the other."""
        length = len(least.numbers) // columns
        for found, new in zip(self[2:], (least, mean, most), strict=True):
            for at in range(0, columns * length, length):
                found.append(Column(new.numbers[at : at + length], new.scale, None))

    def extend(self, later: "Day") -> None:
        """Put later steps behind those that are here."""
        self.places.extend(later.places)
        self.rows.extend(later.rows)
        for found, new in zip(self[2:], later[2:], strict=True):
            found[:] = map(_joined, found, new)

    def slots(self) -> dict[int, Slot]:
        """Return the steps by their place."""
        kinds = [
            [array("f", row) for row in zip(*[column.floats() for column in kind], strict=True)] for kind in self[2:]
        ]
        return {
            place: Slot(count, least, mean, most)
            for place, count, least, mean, most in zip(self.places, self.rows, *kinds, strict=True)
        }


def _joined(first: Column, second: Column) -> Column:
    if not (_is_whole(first) and _is_whole(second) and first.scale == second.scale):
        first, second = _as_figures(first), _as_figures(second)
    return Column(cast("array[Any]", first.numbers) + cast("array[Any]", second.numbers), first.scale, None)


def _as_figures(column: Column) -> Column:
    return _figures(column.floats()) if _is_whole(column) else column


def _figures(figures: Iterable[float]) -> Column:
    return Column(array("f", figures), 1.0, None)


def _is_whole(column: Column) -> bool:
    """Say whether a column is whole numbers of its scale, all known."""
    return column.known is None and isinstance(column.numbers, array) and column.numbers.typecode == "i"


def minutes_of(blob: bytes, layout: Layout, day: int) -> Day:
    """Add up an hour of rows to minutes of their day: column by column, in a fifth of the time of `slot_of`.

    Raises:
        StoreError: the blob is damaged.
    """
    rows = Rows(blob, layout)
    minutes = [(place, len(list(group))) for place, group in groupby([int(at - day) // 60 for at in rows.times])]
    counts = [count for _, count in minutes]
    is_even = len(set(counts)) == 1
    found = Day([place for place, _ in minutes], counts[:], [], [], [])
    for metric, width in zip(METRICS, _widths(len(layout.gpus)), strict=True):
        if not width:
            continue
        added = rows.added(metric, counts[0]) if is_even else None
        if added is not None and _are_decimals(added):
            found.put(width, *_means(added, counts[0]))
            continue
        columns = rows.columns(metric)
        if all(column is columns[0] for column in columns) and (not columns or columns[0].stays()):
            figure = columns[0].floats()[0] if columns else NAN
            found.put(width, *[_constant(figure, scale, width * len(counts)) for scale in (1, _HUNDREDTHS, 1)])
        else:
            for column in columns:
                found.put(1, *_added_unevenly(column, counts))
    return found


def _constant(figure: float, scale: int, count: int) -> Column:
    """Return a figure so many times, as whole numbers of a scale where it is one."""
    if abs(figure) * scale < MOST and (figure * scale).is_integer():
        return Column(array("i", [int(figure * scale)]) * count, scale, None)
    return Column(array("f", [figure]) * count, 1.0, None)


def _are_decimals(added: Added) -> bool:
    """Say whether figures have so few decimals that rounding leaves the mean of equal ones as it is."""
    return added.total.typecode == "i" and added.scale <= _HUNDREDTHS


def _means(added: Added, rows: int) -> Iterator[Column]:
    """Give the least, mean and most of each so many figures that `_are_decimals`."""
    of_one = int(added.scale) * rows
    means = [(2 * _HUNDREDTHS * total + of_one) // (2 * of_one) for total in added.total]  # round() takes ten times
    yield Column(added.least, added.scale, None)
    if max(max(means), -min(means)) < MOST:
        yield Column(array("i", means), _HUNDREDTHS, None)
    else:
        yield _figures([mean / _HUNDREDTHS for mean in means])
    yield Column(added.most, added.scale, None)


def _added_unevenly(column: Column, counts: Iterable[int]) -> Iterator[Column]:
    """Give the least, mean and most of each so many figures of a column."""
    figures, ends = array("f", column.floats()), accumulate(counts, initial=0)
    for of_kind in zip(*[_least_mean_most(figures[at:end]) for at, end in pairwise(ends)], strict=True):
        yield _figures(of_kind)


def pack_slots(slots: dict[int, Slot], gpus: int) -> bytes:
    """Pack the steps of a day, by their place in it."""
    places = sorted(slots)
    of = [slots[place] for place in places]
    least, mean, most = (
        [Column(column, 1.0, None) for column in columns_of([getattr(slot, kind) for slot in of])]
        for kind in ("least", "mean", "most")
    )
    return pack_day(Day(places, [slot.rows for slot in of], least, mean, most), gpus)


def pack_day(day: Day, gpus: int) -> bytes:
    """Pack the steps of a day."""
    frames = [_pack_integers(day.places), _pack_integers(day.rows)]
    alone = all(count == 1 for count in day.rows)
    for columns in (day.mean,) if alone else (day.mean, day.least, day.most):
        at = 0
        for count in _widths(gpus):
            frames.append(_encoded(columns[at : at + count]) if count else b"")
            at += count
    return bind(frames)


def _encoded(columns: Sequence[Column]) -> bytes:
    if all(_is_whole(column) for column in columns) and len({column.scale for column in columns}) == 1:
        return encode_numbers([cast("array[int]", column.numbers) for column in columns], columns[0].scale)
    return encode([cast("array[float]", _as_figures(column).numbers) for column in columns])


class Slots:
    """A day of steps, read back as far as is asked for.

    Raises:
        StoreError: the blob is damaged; so do all that read in it.
    """

    def __init__(self, blob: bytes, layout: Layout) -> None:
        self._frames = Frames(blob)
        self._layout = layout
        self._metrics = len(layout.gpu_metrics) + len(layout.host_metrics)

    @cached_property
    def places(self) -> list[int]:
        """Which steps of the day there are."""
        return _unpack_integers(self._frames[0])

    @cached_property
    def rows(self) -> list[int]:
        """From how many rows each step was made."""
        return _unpack_integers(self._frames[1])

    def columns(self, metric: str) -> list[tuple[list[float], list[float], list[float]]]:
        """Return (least, mean, most) of a metric for each GPU, or for the host; none where it is not kept."""
        frame = self._layout.frame_of(metric)
        if frame is None or not frame[1]:
            return []
        place, columns = frame
        means = self._read(2 + place, columns)
        if len(self._frames) == 2 + self._metrics:
            return [(mean, mean, mean) for mean in means]
        leasts = self._read(2 + self._metrics + place, columns)
        mosts = self._read(2 + 2 * self._metrics + place, columns)
        return list(zip(leasts, means, mosts, strict=True))

    def slots(self) -> dict[int, Slot]:
        """Return all of them by their place."""
        kinds: list[list[list[float]]] = [[], [], []]
        for metric in METRICS:
            found = self.columns(metric)
            count = len(self._layout.gpus) if metric in GPU_METRICS else 1
            nothing = [NAN] * len(self.places)
            for kind, of_kind in enumerate(kinds):
                of_kind += [column[kind] for column in found] or [nothing] * count
        rows = [[array("f", row) for row in zip(*kind, strict=True)] for kind in kinds]
        return {
            place: Slot(count, least, mean, most)
            for place, count, least, mean, most in zip(self.places, self.rows, *rows, strict=True)
        }

    def with_next(self, place: int, slot: Slot) -> bytes | None:
        """Return the blob with one more step at its end; None: it has to be packed anew, from all its steps."""
        layout, frames = self._layout, self._frames
        are_all = len(frames) == 2 + 3 * self._metrics
        are_metrics_of_now = layout.gpu_metrics == GPU_METRICS and layout.host_metrics == HOST_METRICS
        if not self.places or place <= self.places[-1] or not are_all or not are_metrics_of_now:
            return None
        found = [_pack_integers([*self.places, place]), _pack_integers([*self.rows, slot.rows])]
        for kind in (slot.mean, slot.least, slot.most):
            at = 0
            for columns in _widths(len(layout.gpus)):
                frame = frames[len(found)]
                found.append(extended(frame, len(self.places), kind[at : at + columns]) if columns else frame)
                at += columns
        return bind(found)

    def _read(self, frame: int, columns: int) -> list[list[float]]:
        return [column.floats() for column in decode(self._frames[frame], columns, len(self.places))]


def by_layout(rows: Iterable[Figures]) -> dict[tuple[GpuId, ...], list[Figures]]:
    """Part rows by the GPUs that they are of."""
    parts: dict[tuple[GpuId, ...], list[Figures]] = {}
    for row in rows:
        parts.setdefault(row.gpus, []).append(row)
    return parts
