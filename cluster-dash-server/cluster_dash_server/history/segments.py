"""Rows of many hosts in one packed piece, and an hour of such pieces read back host by host; pure.

What takes room and seldom changes (names, boots, layouts of GPUs, who has which) stands elsewhere under numbers; a
piece holds those, moments, sequence numbers and the few figures that GPU-hours are made of: 30 to 60 bytes a snapshot
of 8 GPUs.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from cluster_dash_server.inflate import InflateError, pack, unpack
from cluster_dash_server.store import GPU_METRICS, HOST_METRICS, Figures, GpuId, Holder, StoreError

KEPT = tuple(GPU_METRICS.index(name) for name in ("gpu_util", "used_mem", "power_w", "doing"))
"""Places of the metrics that are kept of each GPU; of the host its interval is."""
NOBODY = "\0"
"""Stands in the place of a user who was forgotten; nobody can have that name."""
_NAN = float("nan")
_NONE = -1
_COLUMNS = "qqiiiid"  # hosts, seqs, boots, layouts, holdings, floats of a row, moments


class Row(NamedTuple):
    """The numbers under which what a row refers to is kept; boot is None where the snapshot has no identity."""

    host: int
    boot: int | None
    layout: int
    holding: int


class Lookup(NamedTuple):
    """Gives what stands under a number."""

    gpus: Callable[[int], tuple[GpuId, ...]]
    holders: Callable[[int], tuple[Holder, ...]]


def packed(rows: Sequence[tuple[Row, Figures]]) -> bytes:
    """Pack rows, in any order."""
    columns = [array(code) for code in _COLUMNS]
    figures = array("f")
    for ids, row in rows:
        count, values = len(row.gpus), row.values
        before = len(figures)
        for metric in KEPT:
            figures += values[metric * count : metric * count + count]
        figures.append(values[-1])  # the interval
        figures += row.holder_mem
        numbers = (
            *(ids.host, _NONE if row.seq is None else row.seq, _NONE if ids.boot is None else ids.boot),
            *(ids.layout, ids.holding, len(figures) - before, row.at),
        )
        for column, number in zip(columns, numbers, strict=True):
            column.append(number)  # type: ignore[arg-type]
    head = array("q", [len(rows), len(figures)])
    # the bytes of floats by their place: those that seldom change then stand in a row
    floats = figures.tobytes()
    planes = b"".join(floats[place::4] for place in range(4))
    return pack(b"".join((head.tobytes(), *(column.tobytes() for column in columns), planes)))


class Hour:
    """Pieces of one hour, read back host by host.

    Args:
        pieces: what `packed` gave.
        lookup: gives what they refer to.

    Raises:
        StoreError: one is damaged.
    """

    def __init__(self, pieces: Iterable[bytes], lookup: Lookup) -> None:
        self._lookup = lookup
        self._columns = [array(code) for code in _COLUMNS]
        self._figures = array("f")
        for piece in pieces:
            self._read(piece)
        self._starts = [0, *accumulate(self._columns[5])]
        self._by_host: dict[int, list[int]] = {}
        for place, host in enumerate(self._columns[0]):
            self._by_host.setdefault(host, []).append(place)

    def _read(self, piece: bytes) -> None:
        try:
            plain = unpack(piece)
            rows, floats = array("q", plain[:16])
            at = 16
            for column in self._columns:
                after = at + rows * column.itemsize
                column.frombytes(plain[at:after])
                at = after
            whole = bytearray(4 * floats)
            for place in range(4):
                whole[place::4] = plain[at : at + floats]
                at += floats
            self._figures.frombytes(whole)
        except (InflateError, ValueError) as error:
            raise StoreError(f"a piece of history is damaged: {error}") from None

    def hosts(self) -> list[int]:
        """Return the hosts that have rows."""
        return list(self._by_host)

    def layouts(self) -> set[int]:
        """Return the layouts that rows refer to."""
        return set(self._columns[3])

    def holdings(self) -> set[int]:
        """Return who has what, as rows refer to it."""
        return set(self._columns[4])

    def rows(self, host: int, name: str) -> list[Figures]:
        """Return the rows of a host, oldest first, each once however often it was packed."""
        return [row for _, row in self._of(host, name)]

    def _of(self, host: int, name: str) -> Iterator[tuple[Row, Figures]]:
        _, seqs, boots, layouts, holdings, widths, moments = self._columns
        known: set[tuple[int, int]] = set()
        for place in sorted(self._by_host.get(host, ()), key=moments.__getitem__):
            boot, seq = boots[place], seqs[place]
            if boot != _NONE:
                if (boot, seq) in known:
                    continue
                known.add((boot, seq))
            gpus, holders = self._lookup.gpus(layouts[place]), self._lookup.holders(holdings[place])
            start = self._starts[place]
            figures = self._figures[start : start + widths[place]]
            count = len(gpus)
            mem_at = len(KEPT) * count + 1
            values = array("f", [_NAN]) * (len(GPU_METRICS) * count + len(HOST_METRICS))
            for number, metric in enumerate(KEPT):
                values[metric * count : metric * count + count] = figures[number * count : number * count + count]
            values[-1] = figures[mem_at - 1]
            left = [number for number, holder in enumerate(holders) if holder.user != NOBODY]
            mems = figures[mem_at:]
            if len(left) < len(holders):
                holders, mems = tuple(holders[each] for each in left), array("f", [mems[each] for each in left])
            yield (
                Row(host, None if boot == _NONE else boot, layouts[place], holdings[place]),
                Figures(
                    host=name,
                    at=moments[place],
                    boot_id=None if boot == _NONE else str(boot),
                    seq=None if seq == _NONE else seq,
                    oldest_seq=None,
                    gpus=gpus,
                    values=values,
                    holders=holders,
                    holder_mem=mems,
                ),
            )

    def again(self, names: Callable[[int], str]) -> bytes:
        """Return all of it as one piece, each row once, host by host."""
        return packed([each for host in self.hosts() for each in self._of(host, names(host))])
