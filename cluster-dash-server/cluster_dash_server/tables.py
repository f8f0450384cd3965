"""Tables that come as columns: the long lists of a snapshot's part `slurm`. Pure.

The reference engine of the schema takes 3 s for 20,000 jobs. So where it is in use, a loop looks through the columns,
by the schema's own words, and leaves the engine those that it cannot vouch for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Json = dict[str, Any]

TABLES = ("nodes", "jobs", "finished")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = frozenset({"type", "minimum", "maximum", "maxLength", "description"})


def lighter(schema: Json) -> Callable[[Json], Json]:
    """Return what takes out of a snapshot the columns that obey the schema; the rest is for an engine to check."""
    definitions = schema["$defs"]
    columns = {
        (table, name): (column["maxItems"], _resolved(column["items"], definitions))
        for table in TABLES
        for name, column in definitions["slurm"]["properties"][table]["properties"].items()
    }
    strings = definitions["slurm"]["properties"]["strings"]
    strings_rule = strings["maxItems"], _resolved(strings["items"], definitions)

    def take_out(snapshot: Json) -> Json:
        block = snapshot.get("slurm")
        if not isinstance(block, dict):
            return snapshot
        left = dict(block)
        for table in TABLES:
            if isinstance(block.get(table), dict):
                left[table] = {
                    name: values
                    for name, values in block[table].items()
                    if not ((rule := columns.get((table, name))) and _obeys(values, *rule))
                }
        if _obeys(block.get("strings"), *strings_rule):
            del left["strings"]
        return {**snapshot, "slurm": left}

    return take_out


def _resolved(items: Json, definitions: Json) -> Json:
    """Return the rule of a column's items, with what it refers to in its place."""
    reference = items.get("$ref")
    return definitions[reference.removeprefix("#/$defs/")] if reference else items


def _obeys(values: object, most: int, rule: Json) -> bool:
    """Say whether all values surely obey a rule; False too where this cannot tell."""
    if not isinstance(values, list) or len(values) > most or not _KNOWN.issuperset(rule):
        return False
    named = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    allowed = {kind for name in named for kind in _TYPES[name]}
    kinds = set(map(type, values))
    if not kinds <= allowed:
        return False
    texts = [value for value in values if type(value) is str] if str in kinds else []
    if texts and max(map(len, texts)) > rule.get("maxLength", float("inf")):
        return False
    numbers = [value for value in values if type(value) in (int, float)] if kinds & {int, float} else []
    if not numbers:
        return True
    return bool(
        min(numbers) >= rule.get("minimum", -float("inf")) and max(numbers) <= rule.get("maximum", float("inf"))
    )


def fault(block: Mapping[str, Any]) -> str | None:
    """Say what no schema can: columns of unequal length, texts that are not there; None: all is well."""
    strings = len(block.get("strings") or ())
    for table in TABLES:
        columns = {name: values for name, values in (block.get(table) or {}).items() if isinstance(values, list)}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            longest = max(lengths, key=lambda name: lengths[name])
            name = next(name for name in lengths if lengths[name] != lengths[longest])
            return f"slurm.{table}.{name}: {lengths[name]} items, {longest} has {lengths[longest]}"
        for name in TEXTS[table] & columns.keys():
            if (most := _largest(columns[name])) is not None and most >= max(strings, 1):
                return f"slurm.{table}.{name}: place {most} of {strings} strings"
    return None


def _largest(places: Iterable[int | None]) -> int | None:
    return max((place for place in places if place is not None), default=None)


TEXTS: Mapping[str, frozenset[str]] = {
    "nodes": frozenset({"state", "partitions", "gpu", "features", "reason"}),
    "jobs": frozenset({"user", "account", "partition", "qos", "state", "reason", "gpu_type"}),
    "finished": frozenset({"user", "account", "partition", "state", "exit"}),
}
"""The columns that hold places in `strings`."""
