"""The blobs of history: an hour of rows of a host, and a day of roll-ups of it; pure. One layout of GPUs each."""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster_dash_server.history.columns import (
    DAMAGED,
    NAN,
    Columns,
    Frames,
    Sums,
    added,
    added_parts,
    bind,
    decode,
    encode,
    pack_integers,
    unpack_integers,
    unzip,
    zip_,
)
from cluster_dash_server.history.late_numpy import np
from cluster_dash_server.history.rollups import HourRows, Run, Stretch
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder, StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

METRICS = GPU_METRICS + HOST_METRICS
_TIMES, _SEQS, _WHO, _FIRST = range(4)
_NO_SEQ = -1
_DECIMALS = 2
"""To so many means are rounded."""
_ALONE = b""
"""The first frame of a step that stands alone; that of a day has the places of its steps, and is never empty."""


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

    def is_of_now(self) -> bool:
        """Say whether it has the metrics that this release keeps."""
        return self.gpu_metrics == GPU_METRICS and self.host_metrics == HOST_METRICS

    def widths(self) -> tuple[int, ...]:
        """Return how many columns each metric has."""
        return (len(self.gpus),) * len(self.gpu_metrics) + (1,) * len(self.host_metrics)

    def as_now(self, values: "array[float]") -> "array[float]":
        """Return the values of a row as this release lays them out: an older one may have kept fewer metrics."""
        if self.is_of_now():
            return values
        found = self.columns_as_now(np.array(values, np.float32).reshape(-1, 1))
        return array("f", found.tobytes())

    def columns_as_now(self, columns: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Return each value of rows over time as this release lays them out, NaN where it was not kept."""
        if self.is_of_now():
            return columns
        of_metric = dict(zip(self.gpu_metrics + self.host_metrics, _split(columns, self.widths()), strict=True))
        now = Layout(self.gpus)
        found = np.full((sum(now.widths()), columns.shape[1]), NAN, np.float32)
        for metric, rows in zip(METRICS, _split(found, now.widths()), strict=True):
            if metric in of_metric:
                rows[:] = of_metric[metric]
        return found

    def frame_of(self, metric: str) -> tuple[int, int] | None:
        """Return the place of a metric among the frames, and how many columns it has; None: it is not kept here."""
        if metric in self.gpu_metrics:
            return self.gpu_metrics.index(metric), len(self.gpus)
        if metric in self.host_metrics:
            return len(self.gpu_metrics) + self.host_metrics.index(metric), 1
        return None


def _split(columns: "NDArray[np.float32]", widths: Sequence[int]) -> "list[NDArray[np.float32]]":
    """Return the rows of each metric."""
    return np.split(columns, np.cumsum(widths[:-1]))


# --------------------------------------------------------------------------------------------------- an hour of rows


def columns_of(rows: "Sequence[array[float]] | NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return each value of rows of one layout over time: values × rows, of rows or a matrix of them."""
    if not isinstance(rows, np.ndarray):
        rows = np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), -1)
    return np.ascontiguousarray(rows.T)


def pack_rows(rows: HourRows, columns: "NDArray[np.float32]") -> bytes:
    """Pack the rows of an hour, all of the same GPUs; `columns_of` made columns of their values."""
    boots = [(boot_id, len(list(group))) for boot_id, group in groupby(rows.boot_ids)]
    who = json.dumps([boots, list(map(_holding, rows.runs))], ensure_ascii=False, separators=(",", ":"))
    return bind(
        [
            pack_integers(np.rint(np.array(rows.times) * 1000)),
            pack_integers([_NO_SEQ if seq is None else seq for seq in rows.seqs]),
            zip_(who.encode()),
            *encode(columns, Layout(rows.runs[0].gpus).widths()),
        ]
    )


def _holding(run: Run) -> tuple[int, list[Any]]:
    """Return how many rows have the same holders, and these with the most memory that each had meanwhile."""
    peaks = np.fmax.reduce(run.holder_mem).tolist()
    who = [[*holder, None if peak != peak else peak] for holder, peak in zip(run.holders, peaks, strict=True)]
    return len(run.figures), who


class Rows:
    """An hour of rows, read back as far as is asked for.

    Raises:
        StoreError: the blob is damaged; so do all that read in it.
    """

    def __init__(self, blob: bytes, layout: Layout) -> None:
        self._frames = Frames(blob)
        self._layout = layout

    @cached_property
    def times(self) -> "NDArray[np.float64]":
        """When each row was taken (Unix s), the oldest first."""
        return unpack_integers(self._frames[_TIMES]) / 1000

    def columns(self, metric: str) -> Columns | None:
        """Return the figures of a metric: a column for each GPU, or one for the host; None where it is not kept."""
        frame = self._layout.frame_of(metric)
        if frame is None or not frame[1]:
            return None
        return decode([self._frames[_FIRST + frame[0]]], frame[1:], len(self.times))

    def all_columns(self) -> "NDArray[np.float32]":
        """Return each value of a row of this release over time, NaN where unknown: values × rows."""
        return _all_columns(self._frames, _FIRST, self._layout, len(self.times))

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
        seqs = unpack_integers(self._frames[_SEQS]).tolist()
        boots, holdings = json.loads(unzip(self._frames[_WHO]))
        boot_ids = [boot for boot, count in boots for _ in range(count)]
        held: list[tuple[tuple[Holder, ...], array[float]]] = []
        for count, holders in holdings:
            who = tuple([Holder(*holder[:3]) for holder in holders])
            mems = array("f", [NAN if holder[3] is None else holder[3] for holder in holders])
            held += [(who, mems)] * count
        values = np.ascontiguousarray(self.all_columns().T)
        return [
            Figures(
                host=host,
                at=at,
                boot_id=boot_id,
                seq=None if seq == _NO_SEQ else seq,
                oldest_seq=None,
                gpus=self._layout.gpus,
                values=array("f", row.tobytes()),
                holders=who,
                holder_mem=mems,
            )
            for at, seq, boot_id, (who, mems), row in zip(
                self.times.tolist(), seqs, boot_ids, held, values, strict=True
            )
        ]


def _all_columns(frames: Frames, first: int, layout: Layout, length: int) -> "NDArray[np.float32]":
    """Return the columns of all METRICS, NaN where one is not kept; `first` is the place of the first one's frame."""
    widths = layout.widths()
    of_metrics = [frames[first + place] for place in range(len(widths))]
    return layout.columns_as_now(decode(of_metrics, widths, length).figures().astype(np.float32))


# ---------------------------------------------------------------------------------------------------- a day of steps


@dataclass(frozen=True, slots=True)
class Slot:
    """The least, mean and most of every value of a row in one step, from how many rows; NaN where unknown."""

    rows: int
    least: "NDArray[np.float32]"
    mean: "NDArray[np.float32]"
    most: "NDArray[np.float32]"


def slot_of(rows: "NDArray[np.float32]") -> Slot:
    """Add up rows of one layout: a line of values each."""
    return Slot(len(rows), *_least_mean_most(added(rows)))


def _least_mean_most(sums: Sums) -> "list[NDArray[np.float32]]":
    """Return the least, mean and most of figures that were added up."""
    with np.errstate(invalid="ignore"):  # where nothing is known
        mean = np.round(sums.total / sums.known, _DECIMALS)
    mean = np.where(sums.least == sums.most, sums.least, mean)  # that of equal figures is each of them
    return [each.astype(np.float32) for each in (sums.least, mean, sums.most)]


@dataclass(frozen=True, slots=True)
class Day:
    """Steps of a day: the least, mean and most of every value of a row, NaN where unknown.

    Attributes:
        places: which steps of the day there are, in order.
        rows: from how many rows each was made.
        least: matrices of values × steps, one after the other; so are `mean` and `most`.
    """

    places: list[int]
    rows: list[int]
    least: "list[NDArray[np.float32]]"
    mean: "list[NDArray[np.float32]]"
    most: "list[NDArray[np.float32]]"

    def extend(self, later: "Day") -> None:
        """Put later steps behind those that are here."""
        self.places.extend(later.places)
        self.rows.extend(later.rows)
        self.least.extend(later.least)
        self.mean.extend(later.mean)
        self.most.extend(later.most)

    def slots(self) -> dict[int, Slot]:
        """Return the steps by their place."""
        kinds = [np.hstack(kind).T for kind in (self.least, self.mean, self.most)]
        return {
            place: Slot(count, least, mean, most)
            for place, count, least, mean, most in zip(self.places, self.rows, *kinds, strict=True)
        }


def minutes_of(blob: bytes, layout: Layout, day: int) -> Day:
    """Add up an hour of rows to minutes of their day.

    Raises:
        StoreError: the blob is damaged.
    """
    rows = Rows(blob, layout)
    places, starts, counts = np.unique((rows.times - day).astype(np.int64) // 60, return_index=True, return_counts=True)
    least, mean, most = _least_mean_most(added_parts(rows.all_columns(), starts))
    return Day(places.tolist(), counts.tolist(), [least], [mean], [most])


def pack_slot(slot: Slot) -> bytes:
    """Pack a step that stands alone until its day is over: as it is, for it is packed again, with the others."""
    kinds = np.concatenate([slot.least, slot.mean, slot.most])
    return bind([_ALONE, slot.rows.to_bytes(4, "little"), zip_(kinds.tobytes())])


def pack_slots(slots: dict[int, Slot], gpus: int) -> bytes:
    """Pack the steps of a day, by their place in it: a few, of which least, mean and most are looked at together."""
    places = sorted(slots)
    of = [slots[place] for place in places]
    rows = [slot.rows for slot in of]
    kinds = _kinds(rows)
    whole = np.concatenate([[getattr(slot, kind) for slot in of] for kind in kinds], axis=1)
    return _bound(places, rows, encode(columns_of(whole), _widths(gpus) * len(kinds)))


def pack_day(day: Day, gpus: int) -> bytes:
    """Pack the steps of a day: many."""
    frames: list[bytes] = []
    for kind in _kinds(day.rows):
        frames += encode(np.hstack(getattr(day, kind)), _widths(gpus))
    return _bound(day.places, day.rows, frames)


def _bound(places: Sequence[int], rows: Sequence[int], frames: Sequence[bytes]) -> bytes:
    return bind([pack_integers(places), pack_integers(rows), *frames])


def _kinds(rows: Sequence[int]) -> tuple[str, ...]:
    """Return what is kept of steps of so many rows: of single ones, least and most are the mean."""
    return ("mean",) if all(count == 1 for count in rows) else ("mean", "least", "most")


def _widths(gpus: int) -> tuple[int, ...]:
    """Return how many columns each of METRICS has."""
    return (gpus,) * len(GPU_METRICS) + (1,) * len(HOST_METRICS)


class Slots:
    """A day of steps, read back as far as is asked for; or one that is alone, under the moment at which it begins.

    Raises:
        StoreError: the blob is damaged; so do all that read in it.
    """

    def __init__(self, blob: bytes, layout: Layout) -> None:
        self._frames = Frames(blob)
        self._layout = layout
        self._metrics = len(layout.gpu_metrics) + len(layout.host_metrics)

    @property
    def is_alone(self) -> bool:
        """Whether it is one step that `pack_slot` packed."""
        return self._frames[0] == _ALONE

    @cached_property
    def places(self) -> "NDArray[np.int64]":
        """Which steps of the day there are."""
        return unpack_integers(self._frames[0])

    @cached_property
    def rows(self) -> "NDArray[np.int64]":
        """From how many rows each step was made."""
        return unpack_integers(self._frames[1])

    @property
    def rows_alone(self) -> int:
        """From how many rows the one step was made."""
        return int.from_bytes(self._frames[1], "little")

    def columns(self, metric: str) -> tuple[Columns, Columns, Columns] | None:
        """Return the least, mean and most of a metric: a column for each GPU, or one; None where it is not kept."""
        frame = self._layout.frame_of(metric)
        if frame is None or not frame[1]:
            return None
        place, width = frame
        mean, *found = [decode([self._frames[first + place]], [width], len(self.places)) for first in self._firsts()]
        least, most = found or (mean, mean)
        return least, mean, most

    def alone(self, metric: str) -> "NDArray[np.float64] | None":
        """Return the least, mean and most of a metric in the one step, by GPU; None where it is not kept."""
        frame = self._layout.frame_of(metric)
        if frame is None or not frame[1]:
            return None
        place, width = frame
        begin = sum(self._layout.widths()[:place])
        return self._kinds_alone()[:, begin : begin + width, None].astype(np.float64)

    def slots(self) -> dict[int, Slot]:
        """Return all of them by their place; one that is alone has the first."""
        if self.is_alone:
            kinds = [self._layout.columns_as_now(kind[:, None])[:, 0] for kind in self._kinds_alone()]
            return {0: Slot(self.rows_alone, *kinds)}
        mean, *found = [_all_columns(self._frames, first, self._layout, len(self.places)) for first in self._firsts()]
        least, most = found or (mean, mean)
        return Day(self.places.tolist(), self.rows.tolist(), [least], [mean], [most]).slots()

    def _kinds_alone(self) -> "NDArray[np.float32]":
        """Return the least, mean and most of every value of the one step."""
        try:
            return np.frombuffer(unzip(self._frames[2]), np.float32).reshape(3, -1)
        except ValueError:
            raise StoreError(DAMAGED) from None

    def _firsts(self) -> range:
        """Return where the frames of the means begin, then those of the least and the most, where there are such."""
        return range(2, len(self._frames), self._metrics)


# ---------------------------------------------------------------------------------------------- who had which GPU


def pack_stretches(held: Sequence[Stretch]) -> bytes:
    """Pack who had which GPU."""
    return zip_(json.dumps(held, ensure_ascii=False, separators=(",", ":")).encode())


def unpack_stretches(packed: bytes) -> list[Stretch]:
    """Return what `pack_stretches` was given.

    Raises:
        StoreError: it is damaged.
    """
    return [Stretch(*each) for each in json.loads(unzip(packed))]
