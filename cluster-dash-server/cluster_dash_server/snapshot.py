"""Reading a snapshot: bytes to checked JSON, and the facts of it that the live view keeps.

The one law is `machine-post-schema.json`. Two engines apply it: `jsonschema_rs` (compiled; about 130 times
faster) and `jsonschema`, the reference that a test holds the other to and the fallback where no wheel exists.
What our moles send is read and checked by types where that can be (`decode_by_types`).
"""

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module, resources
from itertools import islice
from operator import attrgetter
from sys import intern
from typing import Any, Literal, NamedTuple, cast

from cluster_dash_server.entries import Entries, GpuEntry, GpuProcess, Reader, entries_of, reader
from cluster_dash_server.inflate import pack, packed, unpack
from cluster_dash_server.tables import lighter

MAX_DEPTH = 32
"""Levels of nesting a body may have: a snapshot of ours has 7. Deeper ones would break encoders later."""

AHEAD_SECONDS = 600
"""How far ahead of ours the clock of a host may be for its timestamp to count."""
MOST_ERRORS = 100
"""How many violations of the schema are looked at for the one that is told."""

Json = dict[str, Any]
Engine = Literal["compiled", "reference"]

_BRACKETS_ONLY = bytes(sorted(set(range(256)) - set(b"[]{}")))
# possessive, and a string that never ends matches too: else each of its quotes would be tried anew, in quadratic time
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class SnapshotError(Exception):
    """A body that will never be taken.

    Attributes:
        status: the HTTP status that says so (400 or 422, by contract).
        text: the field and what is wrong with it, safe to show and to log.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


# ---------------------------------------------------------------------------------------------- bytes to JSON


def _too_deep(body: bytes) -> bool:
    """Say whether the nesting exceeds MAX_DEPTH, without parsing: brackets are removed from the inside out."""

    def survives(text: bytes) -> bool:
        brackets = text.translate(None, _BRACKETS_ONLY)
        for _ in range(MAX_DEPTH):
            if not brackets:
                return False
            brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
        return bool(brackets)

    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False  # the parser says better what is wrong with it
    # brackets inside of strings can only make the quick look too strict; the strings are cut out when it says so
    return survives(body) and survives(_STRINGS.sub(b"", body))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number out of range: {text[:32]}")
    return value


def _integer(text: str) -> int | float:
    """Read an integer as orjson does: what no 64 bits hold becomes a double."""
    value = int(text) if len(text) <= 20 else None  # 2^64 has 20 digits; more would cost quadratic time
    return value if value is not None and -(2**63) <= value < 2**64 else _finite(text)


def _loads_reference(body: bytes) -> object:
    """Parse as orjson does: RFC 8259, UTF-8, no NaN, no number beyond a double, no lone surrogate."""
    text = body.decode("utf-8")
    value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate does not encode
    return value


def _dumps_reference(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def _json_engine() -> tuple[Callable[[bytes], object], Callable[[object], bytes]]:
    try:
        orjson = import_module("orjson")
    except ImportError:
        return _loads_reference, _dumps_reference
    return orjson.loads, orjson.dumps


loads, dumps = _json_engine()
"""JSON by orjson where it is installed, else by the standard library. Both raise ValueError."""

ORJSON_DEPTH = 254
"""Levels of nesting that orjson writes; it raises TypeError at one more (a test holds that)."""
_AROUND = ORJSON_DEPTH - MAX_DEPTH
_thread = threading.local()


class _TopLevel(dict[str, object]):
    """A JSON object that remembers whether a key stood in it twice."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.twice: str | None = None
        if len(pairs) > len(self):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    self.twice = name
                    break
                seen.add(name)


class Decoded(NamedTuple):
    """A body that holds a JSON object.

    Attributes:
        snapshot: the object, less its secret.
        auth_code: what stood there as its secret, of whatever type; None: nothing.
        compact: the object as JSON, without a blank and without its secret.
        entries: its GPUs, where types have read and checked them: `snapshot` then holds none; None: they stand there.
        is_checked: types have read and checked the rest, too: fields that are null are not there.
    """

    snapshot: Json
    auth_code: object
    compact: bytes
    entries: Entries | None = None
    is_checked: bool = False


def decode(body: bytes) -> Decoded:
    """Parse a body that must hold one JSON object.

    Raises:
        SnapshotError: 400: no JSON (NaN and numbers beyond a double are none), no object, nested too deep, a
            top-level key given twice.
    """
    is_reference = loads is _loads_reference
    if is_reference and _too_deep(body):
        raise _nested_too_deep()
    try:
        snapshot = loads(body)
    except ValueError as error:
        if str(error).startswith("depth limit"):  # orjson reads 1,024 levels
            raise _nested_too_deep() from None
        raise SnapshotError(f"body: not JSON: {printable(str(error))}") from None
    if not isinstance(snapshot, dict):
        raise SnapshotError("body: expected a JSON object")
    auth_code = snapshot.pop("auth_code", None)
    compact = dumps(snapshot) if is_reference else _dumps_no_deeper(snapshot)
    _refuse_a_key_given_twice(body, auth_code, compact)
    return Decoded(snapshot, auth_code, compact)


def decode_by_types(body: bytes) -> Decoded:
    """Parse a body as `decode` does, and check it: by types, in half the time that both take otherwise.

    Raises:
        SnapshotError: as by `decode`, which looks at all that is not as our moles write it.
    """
    return _decoded_by_types(body) or decode(body)


def _decoded_by_types(body: bytes) -> Decoded | None:
    if (by_types := _reading()) is None:
        return None
    try:
        parts = by_types.split(body)
        places = {}
        end = 1
        for name, part in parts.items():
            places[name] = end
            end += len(name) + len(part) + 4  # two quotes, a colon, a comma or the last bracket
        if end != len(body):
            return None  # there is a blank, or a key stands twice
        gpu_at = places["gpu"] + len('"gpu":')
        rest = b"%b{}%b" % (body[:gpu_at], body[gpu_at + len(parts["gpu"]) :])
        entries = by_types.gpus(parts["gpu"])
        snapshot, is_checked = _read_rest(rest, by_types)
    except (by_types.failure, ValueError, KeyError, RecursionError):
        return None
    auth_code, compact = None, body
    if "auth_code" in parts:
        auth_code, begin = snapshot.pop("auth_code"), places["auth_code"]
        after = begin + len('"auth_code":,') + len(parts["auth_code"])
        compact = body[:begin] + body[after:] if after < end else body[: begin - 1] + b"}"
    return Decoded(snapshot, auth_code, compact, entries, is_checked)


def _read_rest(rest: bytes, by_types: Reader) -> tuple[Json, bool]:
    """Read a snapshot without GPUs; say whether it is checked: one with a field that types do not know is not."""
    try:
        return by_types.rest(rest), True
    except by_types.failure:
        if _too_deep(rest):
            raise ValueError from None
        return cast(Json, loads(rest)), False


@cache
def _reading() -> Reader | None:
    try:
        return reader(json.loads(schema_text()))
    except ImportError:
        return None


def _nested_too_deep() -> SnapshotError:
    return SnapshotError(f"body: nested deeper than {MAX_DEPTH} levels")


def _dumps_no_deeper(snapshot: Json) -> bytes:
    """Write a snapshot as JSON, and refuse what is nested too deep.

    orjson counts levels anyway: with so many brackets around the snapshot that only MAX_DEPTH are left, its limit is
    ours, for a tenth of what looking through the bytes costs.
    """
    brackets: tuple[list[Any], list[Any]] | None = getattr(_thread, "brackets", None)
    if brackets is None:
        inmost: list[Any] = [None]
        outmost = inmost
        for _ in range(_AROUND - 1):
            outmost = [outmost]
        brackets = _thread.brackets = outmost, inmost
    outmost, inmost = brackets
    inmost[0] = snapshot
    try:
        return dumps(outmost)[_AROUND:-_AROUND]
    except TypeError:
        raise _nested_too_deep() from None
    finally:
        inmost[0] = None


def _refuse_a_key_given_twice(body: bytes, auth_code: object, compact: bytes) -> None:
    """Refuse a body in which a top-level key stands twice.

    A parser keeps the last of two, and the first is then invisible to it. What our moles write is, byte for byte, what
    we write of it. Else colons are counted, in 20 µs: without such keys there are as many as before. Only where the
    counts differ is the body parsed again.
    """
    colons = 0
    if isinstance(auth_code, str):
        if body == compact[:-1] + b"," + dumps({"auth_code": auth_code})[1:]:
            return
        colons = 1 + auth_code.count(":")
    if auth_code is None or isinstance(auth_code, str):
        if body == compact or (b"\\" not in body and body.count(b":") == compact.count(b":") + colons):
            return
    elif _too_deep(body):
        raise _nested_too_deep()
    twice = cast(_TopLevel, json.loads(body, object_pairs_hook=_TopLevel)).twice
    if twice is not None:
        raise SnapshotError(f"{printable(twice, 64)}: given twice")


def printable(text: str, length: int = 240) -> str:
    """Cut a text from outside to a length and replace what could forge a log line or a terminal command."""
    text = _CONTROL.sub("�", text)
    return text if len(text) <= length else text[: length - 1] + "…"


def cell(value: object) -> object:
    """Return what stands in a cell of a table: a text that a spreadsheet would take for a formula gets a ' in front."""
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# ------------------------------------------------------------------------------------------------- the schema


def schema_text() -> bytes:
    """Return the schema file as it is shipped."""
    return resources.files(__package__).joinpath("machine-post-schema.json").read_bytes()


def checker(engine: Engine | None = None) -> Callable[[Json], None]:
    """Build a check of snapshots against the schema; it raises SnapshotError (400) naming the field.

    Args:
        engine: which engine applies the schema; None: the compiled one where it is installed.
    """
    schema = json.loads(schema_text())
    if engine != "reference":
        try:
            return _compiled_checker(schema)
        except ImportError:
            if engine == "compiled":
                raise
    return _reference_checker(schema)


def _compiled_checker(schema: Json) -> Callable[[Json], None]:
    engine = import_module("jsonschema_rs")
    validator = engine.Draft202012Validator(schema)
    is_valid = validator.is_valid

    def check(snapshot: Json) -> None:
        if not is_valid(snapshot):
            errors = islice(validator.iter_errors(snapshot), MOST_ERRORS)
            error = min(errors, key=lambda each: _order(each.instance_path, each.message))
            types = error.kind.types if error.schema_path[-1] == "type" else []
            raise _wrong(error.instance_path, error.message, error.schema_path, error.instance, types)

    return check


def _reference_checker(schema: Json) -> Callable[[Json], None]:
    from jsonschema import Draft202012Validator  # 60 ms of imports, needed only here

    validator = Draft202012Validator(schema)
    without_tables = lighter(schema)

    def check(snapshot: Json) -> None:
        errors = list(islice(validator.iter_errors(without_tables(snapshot)), MOST_ERRORS))
        if errors:
            error = min(errors, key=lambda each: _order(each.absolute_path, each.message))
            types = error.validator_value if error.validator == "type" else []
            types = [types] if isinstance(types, str) else types
            raise _wrong(error.absolute_path, error.message, error.absolute_schema_path, error.instance, types)

    return check


def _order(path: Any, message: str) -> tuple[list[str], str]:
    return [str(part) for part in path], message


_RULES = {
    "hostname": "must hold no control character and no '/'",
    "propertyNames": "a name in it is too long or not allowed",
}


def _wrong(path: Any, message: str, schema_path: Any, instance: object, types: list[str]) -> SnapshotError:
    """Word one violation as `field: what is wrong`, alike for both engines."""
    parts = [printable(str(part), 64) for part in path]
    rules = [str(part) for part in schema_path]
    if rules[-1] == "required":
        parts.append(message.split("'")[1] if "'" in message else message.split('"')[1])
        message = "missing"
    elif "propertyNames" in rules:
        message = _RULES["propertyNames"]
    elif rules[-1] == "not":
        message = _RULES["hostname"]
    elif types:
        got = printable(json.dumps(instance, ensure_ascii=False), 64)
        message = f"{got} is not of type {' or '.join(sorted(types))}"
    return SnapshotError(f"{'.'.join(parts) or 'body'}: {printable(message)}")


# ------------------------------------------------------------------------------- the facts the live view keeps


@dataclass(slots=True)  # by place, too: rows of other replicas are read so, in half the time
class Gpu:
    """What one snapshot says of one GPU. Unknown is None; memory in 2^20 bytes.

    Never changed, and yet not frozen: it is made eight times a post, in a third of the time.

    Attributes:
        users: processes by user, None where they could not be read.
        working: processes other than pure graphics ones; None where unknown.
        jobs: the jobs that its processes belong to.
        read_at: when its figures were read, by the host's clock (Unix s); None: with the snapshot.
    """

    key: str
    index: int
    name: str | None
    uuid: str | None
    pci_bus_id: str | None
    total_mem: float | None
    used_mem: float | None
    gpu_util: float | None
    temperature_c: float | None
    power_w: float | None
    error: str | None
    users: Mapping[str, int] | None
    working: int | None
    jobs: tuple[str, ...]
    read_at: float | None
    throttle_reasons: tuple[str, ...]
    minor_number: int | None = None
    temperature_slowdown_c: float | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    ecc_uncorrected: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    unattributed_mem: float | None = None


@dataclass(slots=True, kw_only=True)
class Seen:
    """One accepted snapshot: who sent it, when it came, its bytes, and the facts that lists and states need.

    Never changed but by `pack`, and yet not frozen: it would take three times as long to make.

    Attributes:
        received_at: the server's clock, Unix s; the live view is ordered by it.
        interval_seconds: when the host said to expect its next snapshot; None: it does not say.
        skew_seconds: how far the host's clock is ahead of ours; None: it did not send its time.
        gpu_error: why the host could read no GPU at all, in its words.
        labels: what the host says of itself, by name: `rack` is `r1`.
        disks: where each file system is mounted, and how much of it is used, in percent.
        ephemeral: the host is one that comes and goes, a pod: it leaves the lists some time after it went down.
        stopping: its mole was stopped on purpose: this is its last snapshot for now.
        failing: collectors and senders of the mole that do not fare well, and why.
        events: what the snapshot says has happened, as on the wire, with or without what is null.
        packed: the snapshot as it came, less the secret: JSON, packed or not yet. `snapshot` gives it back.
    """

    host: str
    received_at: float
    timestamp: float
    boot_id: str | None
    seq: int | None
    machine_id: str | None
    interval_seconds: float | None
    skew_seconds: float | None
    cpu_percent: float | None
    num_cpus: int | None
    load_avg_1: float | None
    memory_total_gb: float | None
    memory_used_gb: float | None
    gpus: tuple[Gpu, ...]
    gpu_error: str | None
    gpu_note: str | None
    mole_version: str | None
    driver_version: str | None
    booted_at: float | None
    labels: Mapping[str, str]
    disks: tuple[tuple[str, float], ...]
    ephemeral: bool
    events: tuple[Json, ...]
    packed: bytes
    stopping: bool = False
    failing: tuple[tuple[str, str], ...] = ()

    def pack(self) -> None:
        """Keep the snapshot packed from now on."""
        self.packed = packed(self.packed)

    @property
    def snapshot(self) -> Json:
        """The snapshot as it came, less the secret, read anew at each call."""
        return cast(Json, loads(unpack(self.packed)))


def _gpu(key: str, entry: GpuEntry) -> Gpu:
    gpu = object.__new__(Gpu)  # by __init__ it would take twice as long
    gpu.key = key
    gpu.index = int(entry.index)
    gpu.name = None if entry.name is None else intern(entry.name)  # a fleet has few models
    gpu.uuid = entry.uuid
    gpu.pci_bus_id = entry.pci_bus_id
    gpu.total_mem = entry.total_mem
    gpu.used_mem = entry.used_mem
    gpu.gpu_util = entry.gpu_util
    gpu.temperature_c = entry.temperature_c
    gpu.power_w = entry.power_w
    gpu.error = entry.error or None
    gpu.users, gpu.working, gpu.jobs = _users(entry.users)
    gpu.read_at = entry.read_at
    gpu.throttle_reasons = tuple(entry.throttle_reasons or ())
    gpu.minor_number = entry.minor_number
    gpu.temperature_slowdown_c = entry.temperature_slowdown_c
    ecc, pcie = entry.ecc, entry.pcie
    gpu.remap_pending = ecc and ecc.remap_pending
    gpu.remap_failed = ecc and ecc.remap_failed
    gpu.ecc_uncorrected = ecc and ecc.uncorrected
    gpu.pcie_width = pcie and pcie.width
    gpu.pcie_width_max = pcie and pcie.width_max
    gpu.unattributed_mem = entry.unattributed_mem
    return gpu


def _users(
    users: Mapping[str, Mapping[Any, GpuProcess]] | None,
) -> tuple[dict[str, int] | None, int | None, tuple[str, ...]]:
    """Count the processes by user, and those that are no pure graphics ones; name the jobs, in one round."""
    if users is None:
        return None, None, ()
    counts: dict[str, int] = {}
    jobs: dict[str, None] = {}
    working = 0
    for user, processes in users.items():
        counts[user] = len(processes)
        for process in processes.values():
            if process.type != "G":
                working += 1
            job_id = process.job_id
            if job_id is not None and job_id != "":
                jobs[str(job_id)] = None
    return counts, working, tuple(jobs)


_by_index = attrgetter("index")


def _disks(entries: dict[str, Json | None]) -> tuple[tuple[str, float], ...]:
    return tuple(
        [
            (entry.get("mount_point") or key, entry["percent_used"])
            for key, entry in entries.items()
            if entry is not None and entry.get("percent_used") is not None
        ]
    )


def _failing(collectors: Mapping[str, Json | None]) -> tuple[tuple[str, str], ...]:
    """Return what of a mole does not fare well, and why."""
    return tuple(
        [
            (printable(name, 64), printable(said.get("error") or "does not work"))
            for name, said in collectors.items()
            if said is not None and said.get("ok") is False
        ]
    )


def _possible(timestamp: float, received_at: float) -> float:
    """Return a timestamp, or the moment of receipt in place of one that cannot be: example files work for ever."""
    return timestamp if 0 < timestamp <= received_at + AHEAD_SECONDS else received_at


def read(
    snapshot: Json,
    *,
    received_at: float,
    skew_seconds: float | None = None,
    entries: Entries | None = None,
    packed: bytes | None = None,
) -> Seen:
    """Take the facts out of a snapshot that the schema has passed and that holds no secret any more.

    Where its JSON is at hand already, packed or not, `packed` saves making it; `entries` are its GPUs, where they do
    not stand in it.

    The entry `gpu_error` of agents without a driver is no GPU: its text becomes `Seen.gpu_error`.
    """
    if entries is None:
        entries = entries_of(snapshot["gpu"])
    broken = entries.get("gpu_error")
    gpus = [_gpu(key, entry) for key, entry in entries.items() if key != "gpu_error"]
    gpus.sort(key=_by_index)
    cpu = snapshot["cpu"]
    memory = snapshot.get("memory") or {}
    load_avgs = cpu.get("load_avgs")
    collectors = snapshot.get("collectors") or {}
    collector = collectors.get("gpu") or {}
    general = snapshot.get("general") or {}
    return Seen(
        host=snapshot["hostname"],
        received_at=received_at,
        timestamp=_possible(snapshot["timestamp"], received_at),
        boot_id=snapshot.get("boot_id"),
        seq=snapshot.get("seq"),
        machine_id=snapshot.get("machine_id"),
        interval_seconds=snapshot.get("interval_seconds"),
        skew_seconds=skew_seconds,
        cpu_percent=cpu.get("cpu_percent"),
        num_cpus=cpu.get("num_cpus"),
        load_avg_1=load_avgs[0] if load_avgs else None,
        memory_total_gb=memory.get("total_gb"),
        memory_used_gb=memory.get("used_gb"),
        gpus=tuple(gpus),
        gpu_error=None if broken is None else broken.error or "the host could not read its GPUs",
        gpu_note=collector.get("error"),
        mole_version=general.get("mole_version"),
        driver_version=general.get("driver_version"),
        booted_at=general.get("boottime"),
        labels={name: value or "" for name, value in (general.get("labels") or {}).items()},
        disks=_disks(snapshot.get("disk") or {}),
        ephemeral=general.get("ephemeral") is True,
        events=tuple(snapshot.get("events") or ()),
        packed=pack(dumps(snapshot)) if packed is None else packed,
        stopping=general.get("stopping") is True,
        failing=_failing(collectors),
    )
