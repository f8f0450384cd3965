"""The GPUs, read through NVML by a child process, since a call into a sick driver may never return.

This is the mole's side: it asks the child in each round, waits no longer than a deadline, and tells what it knows.
A child that hangs is left alone: it is neither killed (that can freeze the GPU) nor waited for again, and taken back
when its call returns.
"""

import contextlib
import select
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cluster_dash_mole.collectors.gpu.changes import Changes
from cluster_dash_mole.collectors.gpu.nursery import Nursery
from cluster_dash_mole.collectors.gpu.processes import ProcessTable
from cluster_dash_mole.collectors.gpu.wire import pack, unpack
from cluster_dash_mole.mole import Clock, Reading
from cluster_dash_mole.snapshot import Event, gpu_error

_NVIDIA = "0x10de"  # the vendor's number on the PCI bus
_LIBRARY_NOT_FOUND, _MISMATCH = 12, 18  # NVML's numbers; this process does not load pynvml
_FAULT = -1  # a number NVML does not use: the child failed, not NVML
_START_SECONDS = 60.0  # that NVML may take to begin: without persistence mode a driver starts each GPU anew
_LONGEST_PAUSE_SECONDS = 600.0
_BREATH_SECONDS = 0.002  # between two looks at what comes: one waking for each GPU would cost as much as reading it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the child last told of a GPU, and when it had read it (s of the monotonic clock of the machine)."""

    entry: dict[str, object]
    read: float


class GpuCollector:
    """Reads the part `gpu`, and the driver's version for `general`.

    `collect` returns within `deadline_seconds`, and at once while a call hangs. There are at most two children: when
    one is silent for `patience_seconds` a second begins, and leaves out the GPU at which the first one hangs; when that
    one hangs too there is nothing to be done but wait. Where NVML does not work it is tried again after
    `retry_seconds`; after a mismatch of driver and library after `mismatch_retry_seconds`, in a new child.
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
        patience_seconds: float | None = None,
        retry_seconds: float = 60.0,
        mismatch_retry_seconds: float = 300.0,
        renew_seconds: float = 24 * 3600.0,
    ) -> None:
        table = processes or ProcessTable(proc)
        self._nursery = Nursery(lambda connection: _serve(connection, table, proc))
        self._clock = clock
        self._sys = sys
        self._interval = interval
        self._deadline = min(10.0, interval / 2) if deadline_seconds is None else deadline_seconds
        self._patience = max(0.25, self._deadline / 2) if patience_seconds is None else patience_seconds
        self._retry = retry_seconds
        self._mismatch_retry = mismatch_retry_seconds
        self._renew = renew_seconds
        self._child: _Child | None = None  # the one that is asked
        self._elder: _Child | None = None  # hangs, and another has taken its place
        self._heir: _Child | None = None  # will take the place of one that has grown old
        self._failure: Reading | None = None
        self._retry_at = float("-inf")
        self._pause = 0.0  # s, after both have hung: grows each time
        self._ask_at = float("-inf")
        self._driver: dict[str, object] = {}
        self._seen: dict[int, _Seen] = {}
        self._count = 0  # of GPUs
        self._told: set[int] = set()  # and what was told since the last question
        self._remarks: list[str] = []
        self._events: list[Event] = []
        self._changes = Changes()

    def collect(self) -> Reading:
        """Ask the child about all GPUs, unless it is still at the last question or there is no use in asking yet."""
        self._take_stock()
        self._told, self._remarks = set(), []
        if self._failure and self._clock.monotonic() < self._retry_at:
            return self._with_events(self._failure)
        if self._child is None:
            self._child = _Child(self._nursery.birth())
        if self._hangs(self._child):
            asked = self._call_another()
        elif asked := not self._child.busy and self._clock.monotonic() >= self._ask_at:
            self._ask()
        if asked:
            self._hear(self._child, self._deadline)
            if self._child and self._hangs(self._child) and self._call_another() and len(self._seen) < self._count - 1:
                self._hear(self._child, self._deadline)  # the first round, and the only one of --print and pick
        self._renew_child()
        return self._with_events(self._failure or self._reading())

    def close(self) -> None:
        """Let the children and the nursery end, each when its call returns."""
        for child in (self._child, self._elder, self._heir):
            if child:
                child.close()
        self._child = self._elder = self._heir = None
        self._nursery.close()

    def _take_stock(self) -> None:
        """Take in what was said since the last round; an elder that speaks again may go, an heir that works begin."""
        if self._child:
            self._hear(self._child, 0)
        if self._heir:
            self._hear(self._heir, 0)
        if self._heir and not self._heir.fresh:
            if self._child:
                self._child.close()
            self._child, self._heir = self._heir, None
        elder = self._elder
        if elder is None:
            return
        silent_since = elder.spoke
        self._hear(elder, 0)
        if self._elder is None:  # it has ended
            return
        child = self._child
        if elder.busy and elder.spoke == silent_since:
            return  # it hangs on
        if child is None or self._hangs(child):  # this one works again, so let it
            self._child, self._elder = elder, child
            elder.hung = False
            if child:
                child.hung = True
        elif not child.fresh:  # there is no use for two
            self._elder = None
            elder.close()
            silent = elder.spoke - silent_since
            if elder.hung and silent < self._interval:  # it was only slow
                self._patience = max(self._patience, min(self._interval, 2 * silent))

    def _hangs(self, child: "_Child") -> bool:
        """Return whether a call does not return. Starting NVML may take long where the driver rests between clients."""
        return child.busy and time.monotonic() - child.spoke >= (self._patience if child.begun else _START_SECONDS)

    def _call_another(self) -> bool:
        """Let another child take over from one that hangs, and ask it: a new one, or the idle elder; never a third."""
        child = self._child
        if child is None or child.hung:
            return False
        child.hung = True
        if self._elder is None:
            self._child, self._elder, self._heir = self._heir or _Child(self._nursery.birth()), child, None
        elif not self._elder.busy:  # it works again
            self._child, self._elder = self._elder, child
        else:
            self._ask_at = self._clock.monotonic() + self._pause
            self._pause = min(_LONGEST_PAUSE_SECONDS, max(self._interval, 2 * self._pause))
            return False
        if not self._child.busy:
            self._ask()
        return True

    def _renew_child(self) -> None:
        """Begin a new child beside one that has grown old: it may hold memory for good, or not know a new GPU."""
        child = self._child
        if not child or child.busy or self._elder or self._heir or time.monotonic() - child.born < self._renew:
            return
        self._heir = _Child(self._nursery.birth())
        self._heir.ask(self._clock.now(), set())

    def _ask(self) -> None:
        if self._child:
            hung_at = self._elder.at if self._elder and self._elder.busy else None
            self._child.ask(self._clock.now(), set() if hung_at is None else {hung_at})

    def _hear(self, child: "_Child", seconds: float) -> None:
        """Take in what a child says, for at most `seconds`, or until it has answered the question."""
        until = time.monotonic() + seconds
        while child in (self._child, self._elder, self._heir):
            messages = child.hear(max(0.0, until - time.monotonic()))
            if messages is None:
                self._bury(child, "CD404 the process that reads NVML ended")
            elif not messages:
                return
            else:
                for message in messages:
                    self._take(child, message)
                if not child.busy:
                    return
                time.sleep(min(_BREATH_SECONDS, max(0.0, until - time.monotonic())))

    def _take(self, child: "_Child", message: dict[str, object]) -> None:
        match message:
            case {"event": dict() as event}:
                if child is (self._elder or self._child):  # both hear of an Xid: it is one event
                    self._events.append(Event(**event))
            case {"driver": dict() as driver}:
                self._driver, self._failure = driver, None
            case {"count": int() as count}:
                if child is self._child:
                    if count != child.count is not None:
                        child.born = float("-inf")  # only a new one hears the events of all
                    self._count = count
                    self._seen = {index: seen for index, seen in self._seen.items() if index < count}
                child.count = count
            case {"index": int() as index, "entry": dict() as entry, "read": float() as read}:
                child.told.add(index)
                self._told.add(index)
                if index not in self._seen or self._seen[index].read < read:
                    self._seen[index] = _Seen(entry=entry, read=read)
            case {"done": list() as remarks}:
                child.fresh = False
                if child is self._child:
                    self._remarks, self._failure = remarks, None
                    if not child.left_out:
                        self._pause = 0.0
            case {"failed": str() as why, "number": int() as number, "over": bool() as over}:
                if over or child is not self._child or self._elder:
                    self._bury(child, why, number)
                else:
                    self._fail(why, self._retry, number)

    def _bury(self, child: "_Child", why: str, number: int | None = None) -> None:
        """Let go of a child that ended or failed: it ends when it finds the connection closed."""
        child.close()
        if child is self._elder:
            self._elder = None
            return
        if child is self._heir:  # it could not begin, but the one before it works: a driver that waits for a reboot
            self._heir = None
            if self._child:  # not in each round, nor a day later: a reboot or a mended library may be near
                self._child.born = time.monotonic() - self._renew + self._mismatch_retry
            return
        self._child = None
        self._fail(why, self._mismatch_retry if number == _MISMATCH else self._retry, number)

    def _fail(self, why: str, retry_seconds: float, number: int | None = None) -> None:
        self._retry_at = self._clock.monotonic() + retry_seconds
        self._driver, self._seen, self._count = {}, {}, 0
        if number == _LIBRARY_NOT_FOUND and not has_nvidia_device(self._sys):
            self._failure = Reading(
                parts={"gpu": {}}, error="no NVIDIA GPU on this host: neither a device nor a library"
            )
        else:
            self._failure = Reading(parts={"gpu": gpu_error(why)}, ok=False, error=why)

    def _with_events(self, reading: Reading) -> Reading:
        """Add what happened to a reading, each event once."""
        now = self._clock.now()
        entries = reading.parts["gpu"]
        if self._failure:
            changes = self._changes.fail(reading.error or "not read", at=now)
        elif isinstance(entries, dict) and "gpu_error" not in entries:
            changes = self._changes.see(entries, at=now)
        else:
            changes = []
        events, self._events = [*self._events, *changes], []
        return replace(reading, events=events) if events else reading

    def _reading(self) -> Reading:
        """Return what is known."""
        child, elder = self._child, self._elder
        silent = child.silence if child and child.busy else None
        if self._count == 0:
            return self._none(silent)
        hung_at = elder.at if elder and elder.busy else None
        gpu = {}
        for index in range(self._count):
            why = elder.silence if elder and index == hung_at else silent
            entry = self._entry(index, why)
            gpu[key_of(entry)] = entry
        if elder and elder.busy and elder.hung:
            where = "" if hung_at is None else f"GPU {hung_at}: "
            error = f"timeout: {where}{elder.silence}"
            return Reading(parts={"gpu": gpu}, general=self._driver, ok=False, error=error)
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

    def _entry(self, index: int, silent: str | None) -> dict[str, object]:
        """Return a GPU's entry: as read in this round; up to one interval old, with its time; else its silence."""
        seen = self._seen.get(index)
        if seen and index in self._told:
            return seen.entry
        age = time.monotonic() - seen.read if seen else float("inf")
        if seen and age <= 1.5 * self._interval:
            return {**seen.entry, "read_at": round(self._clock.now() - age, 3)}
        entry: dict[str, object] = {"index": index, "error": f"GPU {index}: {silent or 'not read'}"}
        if seen:
            entry |= {name: seen.entry[name] for name in ("name", "uuid", "pci_bus_id") if name in seen.entry}
        return entry


class _Child:
    """Our end of the connection to a child.

    `busy` from a question to the end of its answer, `fresh` until its first answer, `begun` once NVML works in it,
    `hung` when another has taken over. `born` and `spoke` (the last message or question) in s of the monotonic clock.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.busy = self.begun = self.hung = False
        self.fresh = True
        self.born = self.spoke = time.monotonic()
        self.count: int | None = None
        self.left_out: set[int] = set()
        self.told: set[int] = set()
        self._asked_at = 0.0  # Unix s
        self._connection = connection
        self._rest = b""

    @property
    def at(self) -> int | None:
        """Return the GPU that it is at, None if it is at none."""
        if not self.busy or self.count is None:
            return None
        return next((index for index in range(self.count) if index not in self.told | self.left_out), None)

    @property
    def silence(self) -> str:
        """Return in words since when it has not answered."""
        return f"no answer since {time.strftime('%H:%M UTC', time.gmtime(self._asked_at))}"

    def ask(self, now: float, leave_out: set[int]) -> None:
        """Ask about all GPUs but those to be left out; `now` in Unix s."""
        self.busy, self.hung, self.spoke, self._asked_at = True, False, time.monotonic(), now
        self.told, self.left_out = set(), leave_out
        with contextlib.suppress(OSError):  # it ended: hear() tells
            self._connection.sendall((",".join(map(str, leave_out)) + "\n").encode())

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
        messages, self._rest = unpack(self._rest + data)
        for message in messages:
            if "event" not in message:  # that is said by another thread
                self.spoke = time.monotonic()
            self.begun |= "driver" in message
            if "done" in message or "failed" in message:
                self.busy = False
        return messages

    def close(self) -> None:
        """Close our end: the child ends when it finds that out."""
        self._connection.close()


def _serve(connection: socket.socket, processes: ProcessTable, proc: str) -> None:
    try:
        from cluster_dash_mole.collectors.gpu import child  # in the child only: NVML's module is 3 MiB

        child.serve(connection, processes, proc)
    except Exception as error:  # a fault of ours is to be told, and this process has no other voice
        words = f"CD404 cannot read NVML: {type(error).__name__}: {error}"
        connection.sendall(pack({"failed": words, "number": _FAULT, "over": True}))


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
