"""GPUs read by types: what the types take, the schema takes, and the same comes of it; the rest goes the slow way."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server import snapshot as module
from cluster_dash_server.entries import entries_of, reader
from cluster_dash_server.figures import figures
from cluster_dash_server.snapshot import Gpu, SnapshotError, checker, decode, decode_by_types, read
from cluster_dash_server.states import Thresholds

Json = dict[str, Any]
SCHEMA: Json = json.loads(module.schema_text())
CHECK = checker()
ETC = Path(__file__).parents[2] / "etc"
NASTY: list[Any] = [
    *(None, True, False, 0, -0.0, 1, -1, 1.0, 0.5, 1e2, 32, 33, 100, 100.5, 101, -100, -101, 200.5, 1000.5),
    *(65535, 65536, 10**18, 10**18 + 1, 1e18, 1.1e18, 2**53 - 1, 2**53, 2**63, 2**64, 2**70, -(2**70), 1e300, 5e-324),
    *("", "x", "G", "é", "\x7f", "\n", "12", '"', "x" * 64, "x" * 65, "x" * 128, "x" * 129, "x" * 256, "x" * 257),
    *("x" * 4096, "x" * 4097, [], ["x"], ["x" * 65], [1], ["x"] * 64, ["x"] * 65, {}, {"x": 1}, {"x": None}, [[]]),
]


def compact(body: Json) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def example(*, process: Json | None = None, **fields: Any) -> Json:
    """Return a snapshot with all that the schema knows of a GPU."""
    gpu = {
        **{"index": 3, "name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-0a1b", "pci_bus_id": "00000000:0A:00.0"},
        **{"minor_number": 3, "total_mem": 81559.0, "used_mem": 17321, "unattributed_mem": 512, "gpu_util": 97},
        **{"memory_util": 30.5, "temperature_c": 50, "temperature_slowdown_c": 90, "power_w": 420.5, "error": None},
        **{"throttle_reasons": ["sw_power_cap"], "persistence": True, "compute_mode": "default", "read_at": 1.7e9},
        "pcie": {"gen": 5, "width": 16, "width_max": 16, "tx_kib_s": 1.5, "rx_kib_s": 2},
        "nvlink": {"active": 18, "errors": 0},
        "ecc": {"corrected": 0, "uncorrected": 2, "remap_pending": False, "remap_failed": None},
        "mig": {
            "instances": [{"gi": 1, "ci": 0, "profile": "1g.10gb", "uuid": "MIG-1", "total_mem": 1, "used_mem": 1}]
        },
        "users": {
            "alice": {"4711": {"mem": 1.5, "type": "C", "job_id": "12", "name": "python3", **(process or {})}},
            "gdm": {"12": {"mem": None, "type": "G"}, "13": {"job_id": 7}},
            "nobody": {},
        },
        **fields,
    }
    return {
        **{"hostname": "gpu01", "timestamp": 1.7e9, "cpu": {"cpu_percent": 1}, "disk": {"/": {"percent_used": 3}}},
        **{"gpu": {"3_H100_0a1b": gpu, "0_unknown": {"index": 0}}, "collectors": {"gpu": {"ok": True}}},
    }


def cases() -> Iterator[tuple[str, Any, Json]]:
    """Give every field of a GPU and of a process with every nasty value: its name, the value, the snapshot."""
    gpu = SCHEMA["$defs"]["gpu"]["properties"]
    process = gpu["users"]["additionalProperties"]["additionalProperties"]["properties"]
    for value in NASTY:
        for name in (*gpu, "unheard_of"):
            yield name, value, example(**{name: value})
        for name in (*process, "unheard_of"):
            yield f"users.{name}", value, example(process={name: value})
        for part in ("pcie", "nvlink", "ecc"):
            for name in (*gpu[part]["properties"], "unheard_of"):
                yield f"{part}.{name}", value, example(**{part: {name: value}})
        for name in (*gpu["mig"]["properties"]["instances"]["items"]["properties"], "unheard_of"):
            yield f"mig.{name}", value, example(mig={"instances": [{name: value}]})


def rest_cases() -> Iterator[tuple[str, Any, Json]]:
    """Give every field of a snapshot but its GPUs with every nasty value: its name, the value, the snapshot."""
    few = {"hostname": "gpu01", "timestamp": 1.7e9, "cpu": {"cpu_percent": 1}, "gpu": {}}
    for value in NASTY:
        for path in PLACES:
            yield ".".join(path), value, {**few, path[0]: within(path[1:], value)}


def places(rule: Json) -> Iterator[tuple[str, ...]]:
    """Give where a rule lets a value stand, in objects and lists in it."""
    if "$ref" in rule:
        rule = SCHEMA["$defs"][rule["$ref"].removeprefix("#/$defs/")]
    known = {**rule["properties"], "unheard_of": {}} if "properties" in rule else {}
    named = {**known, "x" * 64: rule.get("additionalProperties"), "[]": rule.get("items")}
    for name, inner in named.items():
        if inner is not None:
            yield from ((name, *path) for path in [(), *places(inner)])


PLACES = [("auth_code",), *(path for path in places(SCHEMA) if path[0] not in ("gpu", "slurm"))]


def within(path: tuple[str, ...], value: Any) -> Any:
    """Return a value as it stands in objects and lists."""
    for name in reversed(path):
        value = [value] * 3 if name == "[]" else {name: value}
    return value


def keys() -> Iterator[Json]:
    """Give names of processes, users and GPUs that may not pass."""
    for key in ("", "0", "-0", "007", "-1", "+1", "1.0", "1e1", "1_0", " 1", "1\n", "٣", "12x", "9" * 10, "9" * 11):
        yield example(users={"alice": {key: {}}})
    for host in ("", ".", "..", "...", "..\n", "a/b", "a\n", "\x7f", "é", "..\u2028", "x" * 253, "x" * 254):
        yield {**example(), "hostname": host}
    for count in (2, 3, 4, 64, 65, 1000, 1001):
        yield {**example(), "cpu": {"load_avgs": [1] * count}}
        yield {**example(), "general": {"labels": dict.fromkeys(map(str, range(count)), "x")}}
        yield {**example(), "events": [{"kind": "xid"}] * count}
        yield {**example(), "collectors": {str(number): {"ok": True} for number in range(count)}}
        yield {**example(), "general": {"labels": {"x" * count: "x"}}, "disk": {"x" * 4 * count: {}, "x" * 4097: {}}}
    for key in ("", "x" * 256, "x" * 257, "é", '"', "\\", "\x00"):
        yield example(users={key: {"1": {}}})
        yield {**example(), "gpu": {key: {"index": 1}}}
        yield {**example(), key: {"index": 1}}


def is_taken_alike(body: bytes) -> bool:
    """Say whether types take the GPUs of a body; fail where they are refused otherwise, or become another thing."""
    quick = module._decoded_by_types(body)
    if quick is None or quick.entries is None:
        return False
    slow = decode(body)
    assert json.loads(quick.compact) == json.loads(slow.compact)
    assert list(json.loads(quick.compact)) == list(slow.snapshot)
    assert quick.auth_code == slow.auth_code
    assert repr(told({**quick.snapshot, "gpu": slow.snapshot["gpu"]})) == repr(told(slow.snapshot))  # tells 1 from 1.0
    refusal = refusal_of(slow.snapshot)
    assert refusal is None if quick.is_checked else refusal_of(quick.snapshot) == refusal
    if refusal is None:
        seen = read(quick.snapshot, received_at=1.7e9, entries=quick.entries, packed=b"")
        of_json = entries_of(slow.snapshot["gpu"])
        wanted = read(slow.snapshot, received_at=1.7e9, packed=b"")
        assert repr([told(each) for each in seen.events]) == repr([told(each) for each in wanted.events])
        assert repr(replace(seen, events=())) == repr(replace(wanted, events=()))
        rows = [figures(slow.snapshot, each, seen, Thresholds()) for each in (quick.entries, of_json)]
        assert repr(rows[0]) == repr(rows[1])
    return True


def told(part: Any) -> Any:
    """Return what a part of a snapshot tells, by name: a field that is null tells nothing."""
    if isinstance(part, list):
        return [told(each) for each in part]
    if isinstance(part, dict):
        return sorted((name, told(value)) for name, value in part.items() if value is not None)
    return part


def refusal_of(body: Json) -> str | None:
    """Return why the schema refuses a snapshot; None: it does not."""
    try:
        CHECK(body)
    except SnapshotError as error:
        return error.text
    return None


def test_every_field_with_every_value_is_taken_by_types_only_where_the_schema_takes_it() -> None:
    for name, value, body in cases():
        by_types = is_taken_alike(compact(body))
        if repr(value) in ("None", "1", "100", "'x'") and "unheard_of" not in name:
            assert by_types == (refusal_of(body) is None), (name, value)


def test_what_types_take_besides_gpus_the_schema_takes() -> None:
    checked = set()
    for name, value, body in rest_cases():
        quick = module._decoded_by_types(compact(body))
        if quick is not None and quick.is_checked:
            assert refusal_of(body) is None, (name, value)
            assert repr(told({**quick.snapshot, "auth_code": quick.auth_code})) == repr(told(body))
            checked.add(name)
    assert checked == {".".join(path) for path in PLACES if "unheard_of" not in path}


def test_names_are_taken_by_types_only_where_the_schema_takes_them() -> None:
    assert [is_taken_alike(compact(body)) for body in keys()].count(True) > 5


def test_what_our_moles_send_is_read_by_types() -> None:
    assert is_taken_alike(compact(example()))
    assert is_taken_alike(compact({**example(), "auth_code": "secret"}))
    assert is_taken_alike(compact({"auth_code": "secret", **example(), "events": [{"kind": "xid", "text": "é"}]}))
    for name in ("example_data1.json", "example_data2.json"):
        assert is_taken_alike(compact(json.loads((ETC / name).read_text())))


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(example()).encode(),
        compact(example()).replace(b'{"hostname":"gpu01"', b'{"hostname":"a","hostname":"gpu01"'),
        compact(example())[:-1] + b',"gpu":{}}',
        compact(example()).replace(b'"hostname"', b'"host\\u006eame"'),
        compact(example()).replace(b"17321", b"NaN"),
        compact(example()).replace(b"17321", b"1e999"),
        compact(example()).replace(b'"python3"', b'"\\ud800"'),
        compact(example()).replace(b'"python3"', b'"\xff"'),
        compact(example()).replace(b'{"ok":true}', b'{"ok":"\xff"}'),
        compact(example()).replace(b'{"ok":true}', b'{"x":' + b"[" * 40 + b"]" * 40 + b"}"),
        compact(example())[:-1] + b',"auth_code":' + b"[" * 40 + b"]" * 40 + b"}",
        compact(example()) + b"}",
        compact(example())[:-1],
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b'{"gpu":{"0":{"index":' + b"[" * 100_000,
        b'{"gpu":[]}',
        b"[]",
        b"",
    ],
    ids=lambda body: str(body[-30:]),
)
def test_what_is_not_as_our_moles_write_it_goes_the_way_that_says_why(body: bytes) -> None:
    assert module._decoded_by_types(body) is None
    outcomes = []
    for way in (decode, decode_by_types):
        try:
            outcomes.append(repr(way(body)))
        except SnapshotError as error:
            outcomes.append(error.text)
    assert outcomes[0] == outcomes[1]


@given(at=st.integers(0, len(compact(example())) - 1), width=st.integers(0, 3), by=st.binary(max_size=3))
@settings(max_examples=600, deadline=None)
def test_a_body_with_any_bytes_in_it_is_taken_by_types_only_where_it_is_taken_otherwise(
    at: int, width: int, by: bytes
) -> None:
    body = compact(example())
    is_taken_alike(body[:at] + by + body[at + width :])


def test_every_field_of_a_gpu_is_filled() -> None:
    for gpu in read(example(), received_at=1.0).gpus:
        assert [getattr(gpu, name) for name in Gpu.__slots__]


def test_a_rule_without_a_type_is_no_rule_that_is_left_out() -> None:
    schema = copy.deepcopy(SCHEMA)
    schema["$defs"]["gpu"]["properties"]["name"]["pattern"] = "^NVIDIA"
    with pytest.raises(KeyError, match="pattern"):
        reader(schema)


def test_without_msgspec_all_is_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_reading", lambda: None)
    assert decode_by_types(compact(example())) == decode(compact(example()))
