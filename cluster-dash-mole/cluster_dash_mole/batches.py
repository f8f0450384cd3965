"""A batch of the spool: snapshots of one boot, each packed as what differs from the one before, in memory or a file.

It is one deflate stream that is flushed after each row, and each row has a frame with a sum: damage costs at most the
rest of one batch. What was damaged is set aside, and kept for a while for who wants to look.
"""

import errno
import json
import os
import re
import struct
import time
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cluster_dash_mole.snapshot import encode

ROWS = 32
"""Snapshots in a batch: more would save some bytes, and lose more to a flipped bit."""
_FORMAT = 1
_HEADER = b"cluster-dash-spool %d %08x\n"
_HEADER_SHAPE = re.compile(rb"cluster-dash-spool (\d{1,4}) ([0-9a-f]{8})\n")
_FRAME = struct.Struct("<IIQd")  # length and CRC of what follows, seq, timestamp
_NAME = re.compile(r"(\d{10})\.batch")
_BAD_KEPT = 5
TYPICAL_BYTES = 800  # of a row, for a guess
NEVER = float("-inf")


class Source(NamedTuple):
    """Whose numbers a seq belongs to."""

    hostname: str
    boot_id: str


class Held(NamedTuple):
    """A snapshot that is held: `body` is its JSON object, `at` its timestamp (Unix s)."""

    source: Source
    seq: int
    at: float
    body: bytes


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes `new` of `old`: {key: [value] | difference | 0}, where 0 takes the key away."""
    changes: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if type(value) is dict and type(before) is dict:
            if inner := difference(before, value):
                changes[key] = inner
        elif value != before or type(value) is not type(before) or key not in old:
            changes[key] = [value]
    changes.update(dict.fromkeys((key for key in old if key not in new), 0))
    return changes


def apply(document: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Make the changes of a `difference`."""
    for key, change in changes.items():
        if change == 0:
            del document[key]
        elif type(change) is dict:
            apply(document[key], change)
        else:
            (document[key],) = change


class Packer:
    """Packs one snapshot after the other of a batch."""

    def __init__(self) -> None:
        # level 9: 5 % less for nothing, as differences are short; a window of 16 KiB, that a fleet of these is small
        self._stream = zlib.compressobj(9, zlib.DEFLATED, -14, 7)
        self._last: dict[str, Any] = {}

    def pack(self, held: Held) -> bytes:
        """Return the next row of the file."""
        document = json.loads(held.body)
        text = encode(difference(self._last, document))
        self._last = document
        packed = self._stream.compress(text) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        return _row(packed, held.seq, held.at)


def _row(packed: bytes, seq: int, at: float) -> bytes:
    return _FRAME.pack(len(packed), _check(packed, seq, at), seq, at) + packed


def _check(packed: bytes, seq: int, at: float) -> int:
    return zlib.crc32(packed, zlib.crc32(struct.pack("<Qd", seq, at)))


def rows(data: bytes) -> Iterator[tuple[int, float, bytes, int]]:
    """Give seq, timestamp, packed text and end of each row that is whole, until one is not."""
    place = len(_HEADER % (_FORMAT, 0))
    while len(data) - place >= _FRAME.size:
        length, check, seq, at = _FRAME.unpack_from(data, place)
        place += _FRAME.size
        packed = data[place : place + length]
        if len(packed) < length or _check(packed, seq, at) != check:
            return
        place += length
        yield seq, at, packed, place


def write(file: int, data: bytes) -> None:
    """Write all of it; a disk that fills up takes a part first."""
    if os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def header() -> bytes:
    """Return what a batch begins with."""
    return _HEADER % (_FORMAT, zlib.crc32(b"%d" % _FORMAT))


def is_newer(data: bytes) -> bool:
    """Return whether a file is of a later format, and surely so: not by a flipped bit."""
    found = _HEADER_SHAPE.match(data)
    return found is not None and int(found[1]) > _FORMAT and zlib.crc32(found[1]) == int(found[2], 16)


class Batch:
    """Up to ROWS snapshots of one source, packed: in the file at `path`, else in `data`."""

    __slots__ = ("ats", "data", "gone", "path", "sent", "seqs", "size", "source", "unsent")

    def __init__(self, source: Source, path: Path | None) -> None:
        self.source = source
        self.path = path
        self.data = bytearray()
        self.size = 0
        self.seqs = array("Q")
        self.ats = array("d")
        self.sent = array("d")  # when each was last taken, in s of the monotonic clock
        self.gone = 0  # a bit a row that is no longer held
        self.unsent = 0

    def add(self, seq: int, at: float, size: int) -> None:
        """Note a row."""
        self.seqs.append(seq)
        self.ats.append(at)
        self.sent.append(NEVER)
        self.size += size
        self.unsent += 1

    def places(self) -> Iterator[int]:
        """Give the places of the rows that are held."""
        return (place for place in range(len(self.seqs)) if not self.gone >> place & 1)

    def let_go(self, place: int) -> None:
        """Hold a row no longer."""
        if not self.gone >> place & 1:
            self.gone |= 1 << place
            self.unsent -= self.sent[place] == NEVER

    @property
    def waiting(self) -> int:
        """How many rows are held."""
        return len(self.seqs) - self.gone.bit_count()

    def take(self, at: float, place: int) -> None:
        """Note that the server took a row."""
        self.unsent -= self.sent[place] == NEVER and not self.gone >> place & 1
        self.sent[place] = at

    def bodies(self) -> list[bytes]:
        """Return the JSON of each row, as far as they can be read."""
        data = bytes(self.data) if self.path is None else self.path.read_bytes()
        return list(_bodies(data))


def _bodies(data: bytes) -> Iterator[bytes]:
    stream = zlib.decompressobj(-15)
    document: dict[str, Any] = {}
    for _, _, packed, _ in rows(data):
        try:
            apply(document, json.loads(stream.decompress(packed)))
        except (zlib.error, ValueError, KeyError, TypeError):  # its sum is right, so it was packed wrong
            return
        yield encode(document)


def is_batch(path: Path) -> bool:
    """Say whether a file is one, by its name."""
    return _NAME.fullmatch(path.name) is not None


def open_batch(path: Path, data: bytes) -> tuple[Batch | None, int]:
    """Return the batch in a file, None where not one row of it is whole, and how many bytes of it are."""
    batch, end, source = None, len(header()), None
    for seq, at, packed, place in rows(data):
        if batch is None:
            try:
                document: dict[str, Any] = {}
                apply(document, json.loads(zlib.decompressobj(-15).decompress(packed)))
                source = Source(str(document["hostname"]), str(document["boot_id"]))
            except (zlib.error, ValueError, KeyError, TypeError):
                break
            batch = Batch(source, path)
            batch.size = len(header())
        batch.add(seq, at, place - end)
        end = place
    return batch, min(end, len(data)) if batch else 0


def set_aside(path: Path, whole: bytes) -> None:
    """Keep a damaged file under another name, and what is whole of it under its own."""
    with suppress(OSError):
        path.rename(path.with_name(f"{path.name}.bad-{time.time():.0f}"))
        if whole:
            path.write_bytes(whole)
            path.chmod(0o600)


def prune_bad(folder: Path) -> None:
    """Remove all but the newest that were set aside."""
    bad = sorted(folder.glob("*.bad-*"), key=lambda path: path.name.rpartition("-")[2])
    for path in bad[:-_BAD_KEPT]:
        with suppress(OSError):
            path.unlink()
