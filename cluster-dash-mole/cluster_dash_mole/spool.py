"""What the server has not yet made durable: in memory while all goes well, on disk from the first failure on.

On disk a snapshot lies before it is sent. A file is one of `batches`: 0.8 KB a snapshot where the JSON has 14. What is
present is what is not durable; there is no pointer to lose. Damage costs at most the rest of one batch, and is counted.
No fsync: what a power cut of this host takes is less than what each would cost a host all day.
"""

import json
import logging
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster_dash_mole.batches import (
    NEVER,
    ROWS,
    TYPICAL_BYTES,
    Batch,
    Held,
    Packer,
    Source,
    header,
    is_batch,
    is_newer,
    open_batch,
    prune_bad,
    rows,
    set_aside,
    write,
)

log = logging.getLogger(__name__)

SPOOL = "spool"
"""The folder of these files in the state folder."""
MEMORY_BYTES = 8 * 2**20
"""What is kept packed in memory where no file can be written: some ten thousand snapshots of eight GPUs."""
FRESH = 60
"""How many snapshots are held in memory as they are; beyond, they are packed as after a failure."""
AGAIN_SECONDS = 60.0
"""What was taken and has not become durable after so long is sent again."""

_REMIND_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """How much is held; `oldest_at` in Unix s, None where nothing is. `dropped` counts all that was lost here."""

    waiting: int
    unsent: int
    dropped: int
    oldest_at: float | None


class SpoolFromTheFuture(Exception):
    """The folder was written by a newer mole."""


class Spool:
    """Holds snapshots until the server has made them durable. Thread-safe; one for a folder, whose owner sees to that.

    Args:
        folder: where files go, made when first needed; None: memory only.
        most_bytes: of all files together; beyond, the oldest batch is dropped and counted.
        source: whose snapshots will be added.
        last_seq: the last number that was given under that source's boot, None where nobody knows: what is missing
            at the end of a damaged folder is counted by it.

    Raises:
        SpoolFromTheFuture: a newer mole wrote the folder; nothing in it was touched.
    """

    def __init__(self, folder: Path | None, *, most_bytes: int, source: Source, last_seq: int | None = None) -> None:
        self.dropped = 0
        self.trouble: str | None = None  # why no file can be written
        self._folder = folder if most_bytes else None
        self._most_bytes = most_bytes
        self._source = source
        self._fresh: deque[tuple[Held, float]] = deque()  # what is held as it is, and when it was last taken
        self._batches: deque[Batch] = deque()  # the oldest first; all of them older than what is fresh
        self._packer: Packer | None = None  # of the newest batch, while it is open
        self._file: int | None = None  # its descriptor
        self._failed_at = NEVER  # s of the monotonic clock: what was taken before may have died with the server
        self._put_off_until = NEVER
        self._packing = False
        self._number = 0
        self._reminded = NEVER
        self._lock = threading.Lock()
        if self._folder is not None:
            self._load(self._folder, last_seq)

    def add(self, held: Held) -> None:
        """Hold one more snapshot, newer than all that are held."""
        with self._lock:
            if self._packing:
                self._append(held)
                return
            self._fresh.append((held, NEVER))
            if len(self._fresh) > FRESH:
                self._pack_fresh()

    def failed(self, now: float) -> None:
        """Learn that a post failed (`now` in s of the monotonic clock): from here on what is held lies on disk.

        All of it is to be sent again: the server may have died with what it took and had not yet made durable.
        """
        with self._lock:
            self._failed_at = now
            self._pack_fresh()

    def took(self, held: Iterable[Held], now: float) -> None:
        """Note that the server took these; they are held until they are durable."""
        with self._lock:
            for each in held:
                if (found := self._find(each)) is not None:
                    found[0].take(now, found[1])
                    continue
                for place, (other, _) in enumerate(self._fresh):
                    if other.seq == each.seq and other.source == each.source:
                        self._fresh[place] = (other, now)

    def let_go(self, held: Iterable[Held]) -> None:
        """Hold these no longer: 200 was their receipt, or they will never pass."""
        with self._lock:
            for each in held:
                if (found := self._find(each)) is not None:
                    found[0].let_go(found[1])
                else:
                    self._fresh = deque(
                        (other, at) for other, at in self._fresh if other.seq != each.seq or other.source != each.source
                    )
            self._sweep()

    def durable(self, source: Source, seq: int) -> None:
        """Hold no longer what is of that source and not above seq: it is in the server's history."""
        with self._lock:
            while self._fresh and self._fresh[0][0].source == source and self._fresh[0][0].seq <= seq:
                self._fresh.popleft()
            partly = False
            for batch in self._batches:
                if batch.source != source or batch.seqs[0] > seq:
                    continue
                for place in batch.places():
                    if batch.seqs[place] <= seq:
                        batch.let_go(place)
                partly |= batch.waiting > 0 and batch.path is not None
            self._sweep()
            if partly:
                self._note(source, seq)

    def due(self, now: float) -> bool:
        """Return whether something is to be sent as backlog; `now` in s of the monotonic clock."""
        with self._lock:
            return any(self._is_due(at, now) for _, at in self._fresh) or any(
                self._is_due(batch.sent[place], now) for batch in self._batches for place in batch.places()
            )

    def take(self, most: int, now: float) -> list[Held]:
        """Return the oldest snapshots that are to be sent as backlog, at most so many."""
        taken: list[Held] = []
        with self._lock:
            for batch in list(self._batches):
                places = [place for place in batch.places() if self._is_due(batch.sent[place], now)]
                if places:
                    taken += self._read(batch, places)
                if len(taken) >= most:
                    return taken[:most]
            taken += [held for held, at in self._fresh if self._is_due(at, now)]
        return taken[:most]

    def put_off(self, held: Iterable[Held], until: float) -> None:
        """Note that the server did not take these, and is not to be asked before `until` (s of the monotonic clock)."""
        self.took(held, until - AGAIN_SECONDS)
        with self._lock:
            self._put_off_until = max(self._put_off_until, until)

    def settle(self, now: float) -> None:
        """Go back to memory where all that is held was taken since the last failure, and only is to become durable."""
        with self._lock:
            if not self._packing or now < self._put_off_until:
                return
            if sum(batch.waiting for batch in self._batches) > FRESH:
                return
            if any(batch.sent[place] <= self._failed_at for batch in self._batches for place in batch.places()):
                return
            for batch in list(self._batches):
                places = list(batch.places())
                at = {batch.seqs[place]: batch.sent[place] for place in places}
                self._fresh += [(held, at[held.seq]) for held in self._read(batch, places)]
                self._remove(batch)
            self._sweep()

    def holding(self) -> Holding:
        """Return how much is held."""
        with self._lock:
            oldest_at = next((batch.ats[place] for batch in self._batches for place in batch.places()), None)
            if oldest_at is None and self._fresh:
                oldest_at = self._fresh[0][0].at
            return Holding(
                waiting=sum(batch.waiting for batch in self._batches) + len(self._fresh),
                unsent=sum(batch.unsent for batch in self._batches) + sum(at == NEVER for _, at in self._fresh),
                dropped=self.dropped,
                oldest_at=oldest_at,
            )

    def oldest_seq(self, source: Source) -> int | None:
        """Return the lowest number that is held of a source, None where none is."""
        with self._lock:
            for batch in self._batches:
                if batch.source == source:
                    for place in batch.places():
                        return batch.seqs[place]
            return next((held.seq for held, _ in self._fresh if held.source == source), None)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is in memory, for the next start; where another thread is at it, wait no longer than that."""
        if self._folder is None or not self._lock.acquire(timeout=seconds):
            return
        try:
            self._pack_fresh()
            self._close_file()
        finally:
            self._lock.release()

    # -------------------------------------------------------------------------------------------- in the lock

    def _is_due(self, sent: float, now: float) -> bool:
        return sent <= self._failed_at or sent == NEVER or now - sent >= AGAIN_SECONDS

    def _find(self, held: Held) -> tuple[Batch, int] | None:
        for batch in reversed(self._batches):
            if batch.source == held.source and batch.seqs[0] <= held.seq <= batch.seqs[-1]:
                return (batch, batch.seqs.index(held.seq)) if held.seq in batch.seqs else None
        return None

    def _read(self, batch: Batch, places: list[int]) -> list[Held]:
        """Return rows of a batch; what can no longer be read is lost, and counted."""
        try:
            bodies = batch.bodies()
        except OSError as error:
            log.warning("spool: %s cannot be read: %s", batch.path, error.strerror)
            bodies = []
        lost = [place for place in places if place >= len(bodies)]
        if lost:
            self._lose(len(lost), f"{batch.path or 'memory'} can no longer be read")
            for place in lost:
                batch.let_go(place)
            self._sweep()
        return [
            Held(batch.source, batch.seqs[place], batch.ats[place], bodies[place])
            for place in places
            if place < len(bodies)
        ]

    def _pack_fresh(self) -> None:
        self._packing = True
        fresh, self._fresh = self._fresh, deque()
        for held, at in fresh:
            self._append(held)
            if at != NEVER and self._batches:
                self._batches[-1].take(at, len(self._batches[-1].seqs) - 1)

    def _append(self, held: Held) -> None:
        batch = self._batches[-1] if self._batches else None
        if self._packer is None or batch is None or batch.source != held.source or len(batch.seqs) >= ROWS:
            batch = self._open(held.source)
        row = self._pack(held)
        if self._file is not None:
            try:
                write(self._file, row)
            except OSError as error:
                self._cannot_write(error, batch)
                batch = self._open(held.source, disk=False)
                row = self._pack(held)
        if self._file is None:
            batch.data += row
        batch.add(held.seq, held.at, len(row))
        self._keep_within()

    def _pack(self, held: Held) -> bytes:
        assert self._packer is not None  # noqa: S101 - for mypy: _open makes one
        return self._packer.pack(held)

    def _open(self, source: Source, *, disk: bool = True) -> Batch:
        """Begin a batch: a file, or where none can be written, memory."""
        self._close_file()
        path = None
        if disk and self._folder is not None:
            self._number += 1
            path = self._folder / f"{self._number:010}.batch"
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
                write(self._file, header())
            except OSError as error:
                self._cannot_write(error, None)
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                path = None
            else:
                if self.trouble:
                    log.info("spool: files in %s can be written again", self._folder)
                    self.trouble = None
        batch = Batch(source, path)
        batch.size = len(header())
        if path is None:
            batch.data += header()
        self._packer = Packer()
        self._batches.append(batch)
        return batch

    def _cannot_write(self, error: OSError, batch: Batch | None) -> None:
        """Fall back to memory; of a row that was written in part nothing may stay."""
        if self.trouble is None:
            log.warning("spool: no file can be written in %s: %s: kept in memory", self._folder, error.strerror)
        self.trouble = error.strerror or str(error)
        if batch is not None and batch.path is not None:
            if self._file is not None:
                with suppress(OSError):
                    os.ftruncate(self._file, batch.size)
            if not batch.seqs:
                self._remove(batch)
        self._close_file()

    def _close_file(self) -> None:
        self._packer = None
        if self._file is not None:
            with suppress(OSError):  # a network file system may say only now what it could not write
                os.close(self._file)
            self._file = None

    def _keep_within(self) -> None:
        """Drop the oldest batches beyond the bounds of disk and memory."""
        for on_disk, most in ((True, self._most_bytes), (False, MEMORY_BYTES)):
            kind = [batch for batch in self._batches if (batch.path is not None) == on_disk]
            size = sum(batch.size for batch in kind)
            for batch in kind[:-1]:
                if size <= most:
                    break
                size -= batch.size
                lost = batch.waiting
                self._remove(batch)
                self._lose(lost, "there is room for no more: the oldest were dropped")

    def _lose(self, count: int, why: str) -> None:
        if not count:
            return
        self.dropped += count
        now = time.monotonic()
        if now - self._reminded >= _REMIND_SECONDS:
            self._reminded = now
            log.warning("spool: %s; lost since the start: %d", why, self.dropped)

    def _remove(self, batch: Batch) -> None:
        if batch is self._batches[-1]:
            self._close_file()
        self._batches.remove(batch)
        if batch.path is not None:
            with suppress(OSError):  # a disk that cannot be written: sent again after a restart, as duplicates
                batch.path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove the batches of which nothing is held; back to memory where nothing is left."""
        for batch in [batch for batch in self._batches if not batch.waiting]:
            self._remove(batch)
        if self._packing and not self._batches:
            self._packing = False
            if self._folder is not None:
                with suppress(OSError):
                    (self._folder / "durable").unlink(missing_ok=True)

    def _note(self, source: Source, seq: int) -> None:
        """Note how far a batch is durable that is so in part: the rest of it alone is sent after a restart."""
        if self._folder is not None:
            text = json.dumps([*source, seq]).encode()
            with suppress(OSError):
                (self._folder / "durable").write_bytes(b"%08x %b\n" % (zlib.crc32(text), text))

    # ---------------------------------------------------------------------------------------------- at start

    def _load(self, folder: Path, last_seq: int | None) -> None:
        try:
            paths = sorted(filter(is_batch, folder.iterdir()))
        except OSError:
            return
        contents = []
        for path in paths:
            try:
                contents.append((path, path.read_bytes()))
            except OSError as error:
                log.warning("spool: %s cannot be read: %s", path, error.strerror)
        if any(is_newer(data) for _, data in contents):
            raise SpoolFromTheFuture(f"{folder} was written by a newer mole")
        files = []
        for path, data in contents:
            batch, whole = open_batch(path, data)
            files.append((path, batch, len(data) - whole))
            if batch is not None:
                self._batches.append(batch)
            if batch is None or whole < len(data):
                set_aside(path, data[:whole])
        self._number = max((int(path.stem) for path in paths), default=0)
        self._packing = bool(self._batches)
        durable = _read_durable(folder)
        for place, (path, batch, left_over) in enumerate(files):
            following = [later for _, later, _ in files[place + 1 :] if later is not None]
            before = [earlier for _, earlier, _ in files[: place + 1] if earlier is not None]
            if batch is None or left_over or len(batch.seqs) < ROWS:
                end = following[0].seqs[0] - 1 if following else last_seq
                source = following[0].source if following else self._source
                lost = _missing(before[-1] if before else None, source, end, durable)
                if lost is None and (left_over or batch is None):
                    mean = batch.size / len(batch.seqs) if batch else TYPICAL_BYTES
                    lost = ROWS if following and batch is None else max(1, round(left_over / mean))
                self._lose(lost or 0, f"{path} was damaged")
        for batch in self._batches:
            for place in batch.places():
                if batch.source in durable and batch.seqs[place] <= durable[batch.source]:
                    batch.let_go(place)
        self._sweep()
        prune_bad(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a folder holds, as far as can be seen without reading the snapshots; `oldest_at` in Unix s."""

    snapshots: int
    size: int
    oldest_at: float | None
    damaged: int


def look(folder: Path) -> Found:
    """Look into a folder that a mole may be using, and touch nothing.

    Raises:
        OSError: it cannot be read.
    """
    moments: list[float] = []
    size = 0
    paths = list(folder.iterdir())
    for path in filter(is_batch, paths):
        with suppress(FileNotFoundError):  # sent in this moment
            data = path.read_bytes()
            size += len(data)
            moments += [at for _, at, _, _ in rows(data)]
    damaged = sum(".bad-" in path.name for path in paths)
    return Found(snapshots=len(moments), size=size, oldest_at=min(moments, default=None), damaged=damaged)


def _missing(before: Batch | None, source: Source, end: int | None, durable: Mapping[Source, int]) -> int | None:
    """Return how many snapshots of a source are missing up to the number `end`; None where the numbers do not tell.

    They do not across a boot, and a wide gap is one in the counting, not in the files.
    """
    known = [durable[source]] if source in durable else []
    if before is not None and before.source == source:
        known.append(before.seqs[-1])
    if end is None or not known or end - max(known) > 4 * ROWS:
        return None
    return max(0, end - max(known))


def _read_durable(folder: Path) -> dict[Source, int]:
    """Return what an earlier life of this mole knew to be durable."""
    with suppress(OSError, ValueError, TypeError):
        check, _, text = (folder / "durable").read_bytes().strip().partition(b" ")
        if int(check, 16) == zlib.crc32(text):
            hostname, boot_id, seq = json.loads(text)
            return {Source(hostname, boot_id): seq}
    return {}
