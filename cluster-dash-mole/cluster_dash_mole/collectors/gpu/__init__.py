"""The GPUs, read through NVML by a child process, since a call into a sick driver may never return.

This is the mole's side: it asks the child in each round, waits no longer than a deadline, and tells what it knows.
A child that hangs is left alone: it is neither killed (that can freeze the GPU) nor waited for again, and taken back
when its call returns.
"""

import contextlib
import json
import select
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from cluster_dash_mole.collectors.gpu.nursery import Nursery
from cluster_dash_mole.collectors.gpu.processes import ProcessTable
from cluster_dash_mole.mole import Clock, Reading
from cluster_dash_mole.snapshot import gpu_error

_NVIDIA = "0x10de"  # the vendor's number on the PCI bus
_LIBRARY_NOT_FOUND, _MISMATCH = 12, 18  # NVML's numbers; this process does not load pynvml
_FAULT = -1  # a number NVML does not use: the child failed, not NVML


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the child last told of a GPU, and when it had read it (s of the monotonic clock of the machine)."""

    entry: dict[str, object]
    read: float


class GpuCollector:
    """Reads the part `gpu`, and the driver's version for `general`.

    `collect` returns within `deadline_seconds`, and at once while a call hangs. Where NVML does not work it is tried
    again after `retry_seconds`; after a mismatch of driver and library after `mismatch_retry_seconds`, in a new child.
    """

    name = "gpu"

    def __init__(
        self,
        *,
        interval: float,
        clock: Clock,
        proc: str = "/proc",
        sys: str = "/sys",
        processes: ProcessTable | None = None,
        deadline_seconds: float | None = None,
        retry_seconds: float = 60.0,
        mismatch_retry_seconds: float = 300.0,
    ) -> None:
        table = processes or ProcessTable(proc)
        self._nursery = Nursery(lambda connection: _serve(connection, table, proc))
        self._clock = clock
        self._sys = sys
        self._interval = interval
        self._deadline = min(10.0, interval / 2) if deadline_seconds is None else deadline_seconds
        self._retry = retry_seconds
        self._mismatch_retry = mismatch_retry_seconds
        self._child: _Child | None = None
        self._failure: Reading | None = None
        self._retry_at = float("-inf")
        self._driver: dict[str, object] = {}
        self._seen: dict[int, _Seen] = {}
        self._asked_at = 0.0  # Unix s
        self._count = 0  # of GPUs, and the rest of what was told since the last question
        self._told: set[int] = set()
        self._remarks: list[str] = []

    def collect(self) -> Reading:
        """Ask the child about all GPUs, unless it is still at the last question or there is no use in asking yet."""
        self._hear(0)
        if self._failure and self._clock.monotonic() < self._retry_at:
            return self._failure
        if self._child is None:
            self._child = _Child(self._nursery.birth())
        asked = not self._child.busy
        if asked:
            self._asked_at = self._clock.now()
            self._told, self._remarks = set(), []
            self._child.ask()
            self._hear(self._deadline)
        return self._failure or self._reading(self._told if asked else set())

    def close(self) -> None:
        """Let the child and the nursery end, each when its call returns."""
        self._drop_child()
        self._nursery.close()

    def _hear(self, seconds: float) -> None:
        """Take in what the child says, for at most `seconds`, or until it has answered the question."""
        until = time.monotonic() + seconds
        while self._child and self._child.busy:
            messages = self._child.hear(max(0.0, until - time.monotonic()))
            if messages is None:
                self._drop_child()
                self._fail("CD404 the process that reads NVML ended", self._retry)
            elif not messages:
                return
            else:
                for message in messages:
                    self._take(message)

    def _take(self, message: dict[str, object]) -> None:
        match message:
            case {"driver": dict() as driver}:
                self._driver, self._failure = driver, None
            case {"count": int() as count}:
                self._count = count
                self._seen = {index: seen for index, seen in self._seen.items() if index < count}
            case {"index": int() as index, "entry": dict() as entry, "read": float() as read}:
                self._seen[index] = _Seen(entry=entry, read=read)
                self._told.add(index)
            case {"done": list() as remarks}:
                self._remarks, self._failure = remarks, None
            case {"failed": str() as why, "number": int() as number}:
                if number in (_MISMATCH, _FAULT):  # this child's library stays the wrong one; or it has ended
                    self._drop_child()
                self._fail(why, self._mismatch_retry if number == _MISMATCH else self._retry, number)

    def _drop_child(self) -> None:
        """Let the child end: it does, when it finds the connection closed."""
        if self._child:
            self._child.close()
            self._child = None

    def _fail(self, why: str, retry_seconds: float, number: int | None = None) -> None:
        self._retry_at = self._clock.monotonic() + retry_seconds
        self._driver, self._seen, self._count = {}, {}, 0
        if number == _LIBRARY_NOT_FOUND and not has_nvidia_device(self._sys):
            self._failure = Reading(
                parts={"gpu": {}}, error="no NVIDIA GPU on this host: neither a device nor a library"
            )
        else:
            self._failure = Reading(parts={"gpu": gpu_error(why)}, ok=False, error=why)

    def _reading(self, told: set[int]) -> Reading:
        """Return what is known: `told` are the GPUs that were read in this very round."""
        silent = None
        if self._child and self._child.busy:
            silent = f"no answer since {time.strftime('%H:%M UTC', time.gmtime(self._asked_at))}"
        if self._count == 0:
            return self._none(silent)
        gpu = {}
        for index in range(self._count):
            entry = self._entry(index, index in told, silent)
            gpu[key_of(entry)] = entry
        error = f"timeout: {silent}" if silent else "; ".join(self._remarks)
        return Reading(parts={"gpu": gpu}, general=self._driver, ok=not silent, error=error or None)

    def _none(self, silent: str | None) -> Reading:
        if silent:
            why = f"timeout: NVML gives {silent}"
        elif has_nvidia_device(self._sys):
            why = "CD404 NVML sees no GPU, but there is one: may the mole use the devices /dev/nvidia*?"
        else:
            return Reading(parts={"gpu": {}}, general=self._driver, error="no NVIDIA GPU on this host: NVML sees none")
        return Reading(parts={"gpu": gpu_error(why)}, general=self._driver, ok=False, error=why)

    def _entry(self, index: int, told: bool, silent: str | None) -> dict[str, object]:
        """Return a GPU's entry: as read in this round; up to one interval old, with its time; else its silence."""
        seen = self._seen.get(index)
        if seen and told:
            return seen.entry
        age = time.monotonic() - seen.read if seen else float("inf")
        if seen and age <= 1.5 * self._interval:
            return {**seen.entry, "read_at": round(self._clock.now() - age, 3)}
        entry: dict[str, object] = {"index": index, "error": f"GPU {index}: {silent or 'not read'}"}
        if seen:
            entry |= {name: seen.entry[name] for name in ("name", "uuid", "pci_bus_id") if name in seen.entry}
        return entry


class _Child:
    """Our end of the connection to a child; `busy` from a question to the end of its answer."""

    def __init__(self, connection: socket.socket) -> None:
        self.busy = False
        self._connection = connection
        self._rest = b""

    def ask(self) -> None:
        self.busy = True
        with contextlib.suppress(OSError):  # it ended: hear() tells
            self._connection.sendall(b"?\n")

    def hear(self, seconds: float) -> list[dict[str, object]] | None:
        """Return the messages that have come, none after `seconds` of silence; None when the child has ended."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return []
        try:
            data = self._connection.recv(2**20)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages: list[dict[str, object]] = [json.loads(line) for line in lines]
        if any("done" in message or "failed" in message for message in messages):
            self.busy = False
        return messages

    def close(self) -> None:
        self._connection.close()


def _serve(connection: socket.socket, processes: ProcessTable, proc: str) -> None:
    try:
        from cluster_dash_mole.collectors.gpu import child  # in the child only: NVML's module is 3 MiB

        child.serve(connection, processes, proc)
    except Exception as error:  # a fault of ours is to be told, and this process has no other voice
        words = {"failed": f"CD404 cannot read NVML: {type(error).__name__}: {error}", "number": _FAULT}
        connection.sendall(json.dumps(words).encode() + b"\n")


def key_of(entry: dict[str, object]) -> str:
    """Return the key of a GPU's entry in the snapshot: `<index>_<name-with-dashes>_<6 of uuid>`."""
    index, name, uuid = entry["index"], entry.get("name"), entry.get("uuid")
    if not isinstance(name, str) or not isinstance(uuid, str):
        return f"{index}_unknown"
    return f"{index}_{name.replace(' ', '-')}_{uuid.removeprefix('GPU-')[:6]}"


def has_nvidia_device(sys: str) -> bool:
    """Return whether a device of NVIDIA is on the PCI bus."""
    for vendor in Path(sys, "bus/pci/devices").glob("*/vendor"):
        try:
            if vendor.read_text().strip() == _NVIDIA:
                return True
        except OSError:
            continue
    return False
