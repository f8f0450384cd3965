"""Long columns where no compiled engine is: what the quick loop takes, the engine takes too."""

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server.snapshot import SnapshotError, checker, schema_text
from cluster_dash_server.tables import TABLES, TEXTS, fault, lighter

compiled, reference = checker("compiled"), checker("reference")
SCHEMA = json.loads(schema_text())
COLUMNS = [(table, name) for table in TABLES for name in SCHEMA["$defs"]["slurm"]["properties"][table]["properties"]]


def block(rows: int = 3) -> dict[str, Any]:
    found: dict[str, Any] = {"strings": ["", "alice", "idle"], **{table: {} for table in TABLES}}
    for table, name in COLUMNS:
        kind = SCHEMA["$defs"]["slurm"]["properties"][table]["properties"][name]["items"]
        is_text = "string" in kind.get("type", ())
        found[table][name] = ["x"] * rows if is_text else [1] * rows
    return found


def snapshot(slurm: object) -> dict[str, Any]:
    return {"hostname": "head", "timestamp": 1.0, "cpu": {}, "gpu": {}, "slurm": slurm}


def said(check: Any, body: dict[str, Any]) -> str | None:
    try:
        check(body)
    except SnapshotError as error:
        return error.text.partition(":")[0]
    return None


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([10**16, 2**53, 200_001, 1e18, 2e18, 1.0, 1.5, -0.5]),
    st.sampled_from(["", "x", "x" * 4096, "x" * 4097]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@settings(max_examples=200)
@given(
    column=st.sampled_from([*COLUMNS, ("strings", "")]),
    values=st.one_of(st.lists(VALUES, max_size=4), VALUES),
)
def test_both_engines_say_the_same_of_any_column(column: tuple[str, str], values: Any) -> None:
    found = block()
    table, name = column
    if name:
        found[table][name] = values
    else:
        found[table] = values
    assert said(compiled, snapshot(found)) == said(reference, snapshot(found))


@pytest.mark.parametrize(
    "slurm", [None, {}, [], "x", {"jobs": None}, {"jobs": []}, {"jobs": {"new": [object.__name__]}}]
)
def test_both_engines_say_the_same_of_any_block(slurm: object) -> None:
    assert said(compiled, snapshot(slurm)) == said(reference, snapshot(slurm))


def test_the_quick_loop_leaves_the_engine_nothing_of_a_block_as_it_should_be() -> None:
    left = lighter(SCHEMA)(snapshot(block()))["slurm"]
    assert left == {table: {} for table in TABLES}


def test_a_column_of_more_than_50000_items_is_refused() -> None:
    found = block()
    found["jobs"]["id"] = [1] * 50_001
    assert said(compiled, snapshot(found)) == said(reference, snapshot(found)) == "slurm.jobs.id"


def test_20000_jobs_take_the_reference_engine_about_as_long_as_reading_them_as_json() -> None:
    body = snapshot(block(20_000))
    text = json.dumps(body)
    spent = {}
    for what in (lambda: json.loads(text), lambda: reference(body)):
        began = time.process_time()
        what()
        spent[what] = time.process_time() - began
    reading, checking = spent.values()
    assert checking < 6 * reading  # as long as that; the engine alone: a hundred times as long


def test_columns_of_one_table_are_equally_long() -> None:
    found = block()
    assert fault(found) is None
    found["jobs"]["name"].append("y")
    found["jobs"]["unknown_column"] = [1, 2, 3, 4]
    assert fault(found) == "slurm.jobs.id: 3 items, name has 4"


@pytest.mark.parametrize("table", TABLES)
def test_a_text_must_be_there(table: str) -> None:
    for name in TEXTS[table]:
        found = copy.deepcopy(block())
        found[table][name][1] = 3
        assert fault(found) == f"slurm.{table}.{name}: place 3 of 3 strings"
        found[table][name][1] = None
        assert fault(found) is None
    assert {name for each, name in COLUMNS if each == table} >= TEXTS[table]
