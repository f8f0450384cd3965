"""Rows of many hosts in one packed piece, and an hour of such pieces read back host by host; pure.

What takes room and seldom changes (names, boots, layouts of GPUs, who has which) stands elsewhere under numbers; a
piece holds those, moments, sequence numbers and the few figures that GPU-hours are made of: 30 to 60 bytes a snapshot
of 8 GPUs.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

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
    return _bound(columns, figures.tobytes())


def _bound(columns: "Sequence[array[Any]]", floats: bytes) -> bytes:
    head = array("q", [len(columns[0]), len(floats) // 4])
    # the bytes of floats by their place: those that seldom change then stand in a row
    planes = [floats[place::4] for place in range(4)]
    return pack(b"".join((head.tobytes(), *(column.tobytes() for column in columns), *planes)))


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
        _, seqs, boots, layouts, holdings, _, moments = self._columns
        rows = []
        for place in self._places(host):
            boot, seq = boots[place], seqs[place]
            gpus, holders = self._lookup.gpus(layouts[place]), self._lookup.holders(holdings[place])
            figures = self._figures[self._starts[place] : self._starts[place + 1]]
            count = len(gpus)
            mem_at = len(KEPT) * count + 1
            values = array("f", [_NAN]) * (len(GPU_METRICS) * count + len(HOST_METRICS))
            for number, metric in enumerate(KEPT):
                values[metric * count : metric * count + count] = figures[number * count : number * count + count]
            values[-1] = figures[mem_at - 1]
            mems = figures[mem_at:]
            if any(holder.user == NOBODY for holder in holders):
                left = [number for number, holder in enumerate(holders) if holder.user != NOBODY]
                holders, mems = tuple([holders[each] for each in left]), array("f", [mems[each] for each in left])
            rows.append(
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
                )
            )
        return rows

    def _places(self, host: int) -> list[int]:
        """Return where the rows of a host stand, oldest first, each once."""
        _, seqs, boots, _, _, _, moments = self._columns
        known: set[tuple[int, int]] = set()
        found = []
        for place in sorted(self._by_host.get(host, ()), key=moments.__getitem__):
            identity = boots[place], seqs[place]
            if identity[0] == _NONE or identity not in known:
                known.add(identity)
                found.append(place)
        return found

    def again(self) -> bytes:
        """Return all of it as one piece, each row once, host by host."""
        places = [place for host in self._by_host for place in self._places(host)]
        columns = [array(column.typecode, [column[place] for place in places]) for column in self._columns]
        floats = memoryview(self._figures).cast("B")
        starts = self._starts
        return _bound(columns, b"".join([floats[4 * starts[place] : 4 * starts[place + 1]] for place in places]))
