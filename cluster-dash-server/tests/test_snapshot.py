"""Bytes to checked snapshots; the two engines are held to each other."""

import contextlib
import copy
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server import snapshot as module
from cluster_dash_server.snapshot import SnapshotError, checker, decode, printable, read

Snapshot = dict[str, Any]
MakeSnapshot = Callable[..., Snapshot]

compiled = checker("compiled")
reference = checker("reference")


def verdict(check: Any, body: Snapshot) -> bool:
    try:
        check(body)
    except SnapshotError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ decode


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": Infinity}', "not JSON"),
        (b'{"a": 1e999}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b"[" * 100_000, "nested deeper than 32"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper than 32"),
        (b'{"hostname": "a", "hostname": "b"}', "hostname: given twice"),
        (b'{"auth_code": "right", "auth_c\\u006fde": "wrong"}', "auth_code: given twice"),
    ],
)
@pytest.mark.parametrize("engine", ["orjson", "json"])
def test_what_is_no_json_object_is_refused_in_words(
    body: bytes, says: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "json":
        monkeypatch.setattr(module, "loads", module._loads_reference)
    with pytest.raises(SnapshotError) as refusal:
        decode(body)
    assert says in refusal.value.text
    assert refusal.value.status == 400


@pytest.mark.parametrize("depth", [10**power for power in range(2, 7)])
def test_deep_nesting_is_refused_quickly(depth: int) -> None:
    begin = time.thread_time()
    for opening in (b"[", b'{"a":'):
        with pytest.raises(SnapshotError):
            decode(opening * depth)
    assert time.thread_time() - begin < 10  # of a million: without end where each is looked back from


def test_brackets_inside_of_strings_are_no_nesting() -> None:
    assert decode(json.dumps({"a": "[" * 100, "b": '\\"{' * 50}).encode()).snapshot["a"] == "[" * 100


@pytest.mark.parametrize("engine", ["orjson", "json"])
@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")], ids=["objects", "arrays"])
def test_nesting_of_32_levels_is_taken_and_33_are_not(
    engine: str, opening: bytes, closing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "json":
        monkeypatch.setattr(module, "loads", module._loads_reference)
        monkeypatch.setattr(module, "dumps", module._dumps_reference)
    decode(b'{"b":1,"a":' + opening * 31 + b"1" + closing * 31 + b"}")
    for more in (1, 200, 221, 222, 223, 300, 990, 1100, 100_000):
        with pytest.raises(SnapshotError, match="nested deeper than 32 levels"):
            decode(b'{"b":1,"a":' + opening * (31 + more) + b"1" + closing * (31 + more) + b"}")


def test_a_deep_secret_is_refused_like_all_that_is_deep() -> None:
    for depth in (40, 900, 1000, 2000):
        with pytest.raises(SnapshotError, match="nested deeper"):
            decode(b'{"auth_code":' + b"[" * depth + b"]" * depth + b',"a":1,"a":2}')


def test_a_key_that_returns_deeper_down_is_not_given_twice(example: Snapshot) -> None:
    example["collectors"] = {"cpu": {"ok": True}, "gpu": {"ok": True}}
    example["gpu"]["2_X_000000"] = {"index": 9, "users": {"memory": {"1": {"name": "hostname"}}}}
    secret = example.pop("auth_code")
    decoded = decode(json.dumps({"auth_code": secret, **example}).encode())
    assert (decoded.snapshot, decoded.auth_code, json.loads(decoded.compact)) == (example, secret, example)


@pytest.mark.parametrize("secret", [b"", b',"auth_code":"x:y"'], ids=["no secret", "a secret"])
def test_a_key_given_twice_is_seen_however_long_the_numbers_beside_it_become(secret: bytes) -> None:
    twice = b'{"a":"' + b"x" * 7 + b'","n":1e9,"m":1e9,"a":"x"' + secret + b"}"
    with pytest.raises(SnapshotError, match="a: given twice"):
        decode(twice)


@pytest.mark.parametrize("secret", ["a:b", "", None, 5, [1], {"a": {"b": 1}}, "é", "\\"])
def test_whatever_stands_as_the_secret_is_taken_out_and_no_key_is_thought_to_stand_twice(
    secret: object, example: Snapshot
) -> None:
    example["auth_code"] = secret
    for indent in (None, 2):
        for ascii_only in (True, False):
            decoded = decode(json.dumps(example, indent=indent, ensure_ascii=ascii_only).encode())
            assert decoded.auth_code == secret
            assert b"auth_code" not in decoded.compact


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_decode_crash(body: bytes) -> None:
    with contextlib.suppress(SnapshotError):
        assert isinstance(decode(body).snapshot, dict)


@given(json_values.filter(lambda value: isinstance(value, dict)))
@settings(max_examples=200, deadline=None)
def test_both_json_readers_agree(value: Any) -> None:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    assert module._loads_reference(body) == module.loads(body)


# ------------------------------------------------------------------------------------------------ the schema


def test_what_agents_in_the_field_send_is_taken(example: Snapshot) -> None:
    del example["auth_code"]
    compiled(example)
    reference(example)


def test_a_host_that_cannot_read_its_gpus_is_taken(example: Snapshot) -> None:
    del example["auth_code"]
    example["gpu"] = {
        "gpu_error": {
            **{"name": "error", "uuid": "none", "index": 0, "total_mem": 0, "used_mem": 0, "users": {}},
            **{"gpu_util": 0, "memory_util": 0, "error": "Driver Not Loaded"},
        }
    }
    compiled(example)
    assert read(example, received_at=1.0).gpu_error == "Driver Not Loaded"
    assert read(example, received_at=1.0).gpus == ()


def test_fields_and_words_nobody_knows_are_taken(make_snapshot: MakeSnapshot) -> None:
    body = make_snapshot(flux_capacitor={"gigawatts": 1.21}, collectors={"quantum": {"ok": True, "mood": "good"}})
    next(iter(body["gpu"].values()))["throttle_reasons"] = ["a_reason_of_next_year"]
    compiled(body)
    reference(body)


BROKEN: list[tuple[str, Any, str]] = [
    ("hostname", None, "hostname: "),
    ("hostname", "", "hostname: "),
    ("hostname", "..", "hostname: "),
    ("cpu.load_avgs", [1.7e308, 1, 1], "cpu.load_avgs.0: "),
    ("network", {"interfaces": {"b": {"rx_bytes": 1, "tx_bytes": -1.7e308}}}, "network.interfaces.b.tx_bytes: "),
    ("hostname", "a/b", "hostname: must hold no control character"),
    ("hostname", "gpu01\n", "hostname: must hold no control character"),
    ("hostname", "x" * 254, "hostname: "),
    ("timestamp", "today", 'timestamp: "today" is not of type number'),
    ("timestamp", True, "timestamp: "),
    ("cpu", [], "cpu: "),
    ("cpu.cpu_percent", 101, "cpu.cpu_percent: 101 is greater than the maximum of 100"),
    ("cpu.cpu_percent", -1, "cpu.cpu_percent: -1 is less than the minimum of 0"),
    ("cpu.num_cpus", 2.5, "cpu.num_cpus: 2.5 is not of type"),
    ("cpu.num_cpus", 2.0**70, "cpu.num_cpus: "),
    ("cpu.load_avgs", [1, 2], "cpu.load_avgs: "),
    ("gpu", None, "gpu: "),
    ("gpu.0.index", None, "gpu.0_H100_000000.index: "),
    ("gpu.0.index", "0", "gpu.0_H100_000000.index: "),
    ("gpu.0.gpu_util", 101, "gpu.0_H100_000000.gpu_util: 101 is greater than the maximum of 100"),
    ("gpu.0.gpu_util", "N/A", 'gpu.0_H100_000000.gpu_util: "N/A" is not of type null or number'),
    ("gpu.0.used_mem", -1, "gpu.0_H100_000000.used_mem: "),
    ("gpu.0.users", [], "gpu.0_H100_000000.users: "),
    ("gpu.0.users", {"alice": {"12x": {}}}, "gpu.0_H100_000000.users.alice: "),
    ("gpu.0.users", {"alice": {"12\n": {}}}, "gpu.0_H100_000000.users.alice: "),
    ("gpu.0.users", {"alice": {"12": {"mem": "much"}}}, "gpu.0_H100_000000.users.alice.12.mem: "),
    ("seq", -1, "seq: "),
    ("seq", 1.5, "seq: "),
    ("interval_seconds", 0, "interval_seconds: "),
    ("memory", {"total_gb": "big"}, "memory.total_gb: "),
    ("disk", {"/": {"percent_used": 140}}, "disk./.percent_used: "),
    ("events", {}, "events: "),
]


def _with(body: Snapshot, path: str, value: Any) -> Snapshot:
    body = copy.deepcopy(body)
    *way, last = path.split(".")
    place = body
    for step in way:
        place = next(iter(place.values())) if step == "0" else place[step]
    place[last] = value
    return body


@pytest.mark.parametrize(("path", "value", "says"), BROKEN)
def test_a_broken_field_is_named_with_what_is_wrong(
    path: str, value: Any, says: str, make_snapshot: MakeSnapshot
) -> None:
    body = _with(make_snapshot(), path, value)
    for check in (compiled, reference):
        with pytest.raises(SnapshotError) as refusal:
            check(body)
        assert refusal.value.text.startswith(says)
        assert refusal.value.status == 400


@pytest.mark.parametrize("field", ["hostname", "timestamp", "cpu", "gpu"])
def test_a_missing_field_is_named(field: str, make_snapshot: MakeSnapshot) -> None:
    body = make_snapshot()
    del body[field]
    for check in (compiled, reference):
        with pytest.raises(SnapshotError, match=f"^{field}: missing$"):
            check(body)


def test_a_gpu_needs_its_index(make_snapshot: MakeSnapshot) -> None:
    body = make_snapshot()
    del next(iter(body["gpu"].values()))["index"]
    for check in (compiled, reference):
        with pytest.raises(SnapshotError, match=r"^gpu\.0_H100_000000\.index: missing$"):
            check(body)


@pytest.mark.parametrize("field", ["name", "uuid", "total_mem", "used_mem", "gpu_util", "memory_util", "users"])
def test_every_figure_of_a_gpu_may_be_unknown(field: str, make_snapshot: MakeSnapshot) -> None:
    compiled(_with(make_snapshot(), f"gpu.0.{field}", None))


PATHS = [path for path, _, _ in BROKEN] + [
    "general",
    "network",
    "spool",
    "machine_id",
    "boot_id",
    "slurm",
    "collectors",
]


@given(path=st.sampled_from(PATHS), value=json_values)
@settings(max_examples=400, deadline=None)
def test_both_engines_agree_on_every_case(path: str, value: Any) -> None:
    body = {
        **{"hostname": "gpu01", "timestamp": 1.0, "cpu": {"cpu_percent": 1.0, "load_avgs": [1, 2, 3], "num_cpus": 4}},
        **{"gpu": {"0_H100_000000": {"index": 0, "users": {"alice": {"12": {"mem": None}}}}}},
    }
    broken = _with(body, path, value)
    assert verdict(compiled, broken) == verdict(reference, broken)


def test_texts_from_outside_are_cut_and_cannot_forge_a_line() -> None:
    assert printable("a\nERROR forged\x1b[2J\u2028") == "a�ERROR forged�[2J�"
    assert len(printable("x" * 10_000)) == 240


def test_processes_are_counted_by_user_and_pure_graphics_does_no_work(make_snapshot: MakeSnapshot) -> None:
    users = {"alice": {"1": {"type": "C"}, "2": {"type": None}}, "gdm": {"3": {"type": "G"}}}
    seen = read(_with(make_snapshot(), "gpu.0.users", users), received_at=1.0)
    assert seen.gpus[0].users == {"alice": 2, "gdm": 1}
    assert seen.gpus[0].working == 2


def test_bounds_of_the_schema_are_written_as_integers() -> None:
    """At a bound such as 1e18 the compiled engine compares at any precision: the check takes three times as long."""
    numbers: list[object] = []
    json.loads(module.schema_text(), parse_float=lambda text: numbers.append(text))
    assert numbers == []


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 40 + b'"\\' * 500_000,
        b"{" + b",".join(b'"k%d":1' % number for number in range(100_000)) + b',"k99999":1}',
        b"[" * 40 + b'"' + b"x\\" * 500_000,
    ],
    ids=["a string that never ends", "a key given twice among many", "backslashes"],
)
def test_no_body_takes_long_to_refuse(body: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(SnapshotError):
        decode(body)
    assert time.process_time() - begin < 10  # a look back at each byte would take hours


def test_a_bracket_too_many_is_no_deep_nesting() -> None:
    for body in (b"{", b"xx{", b"[[["):
        with pytest.raises(SnapshotError, match="not JSON"):
            decode(body)


@pytest.mark.parametrize("timestamp", [-1, 0, 1e300, 2e9])
def test_a_timestamp_that_cannot_be_becomes_the_time_of_receipt(timestamp: float, make_snapshot: MakeSnapshot) -> None:
    assert read(make_snapshot(timestamp=timestamp), received_at=1.7e9).timestamp == 1.7e9
    assert read(make_snapshot(timestamp=1.7e9 - 5), received_at=1.7e9).timestamp == 1.7e9 - 5
