"""The entries of GPUs, nine tenths of a snapshot, as objects: an attribute for each field, None where it is not there.

Types that are made of the schema read and check them in one pass, in half the time that a JSON reader and an engine of
the schema take. They count only where they take all: what they take, the schema takes (a test holds that). What they do
not take, a field that the schema does not know among it, the engines have to judge and to word. So where there is no
msgspec, only speed is lacking.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import GenericAlias
from typing import Annotated, Any, Protocol, Union

Json = dict[str, Any]

_BOUNDS = {
    **{"minimum": "ge", "maximum": "le"},
    **{"minLength": "min_length", "maxLength": "max_length", "maxItems": "max_length"},
}
_WORDS = {
    "$ref",
    "type",
    "description",
    "properties",
    "required",
    "additionalProperties",
    "propertyNames",
    "items",
    *_BOUNDS,
}
_INT64 = {"minimum": -(2**63), "maximum": 2**63 - 1}
"""Integers beyond are read as doubles elsewhere."""
_NAMES = {"type": "string"}
_PIDS = {"minimum": 1, "maximum": 10**10 - 1}
_DIGITS = {"minLength": 1, "maxLength": 10, "not": {"pattern": "[^0-9]"}}
"""The rule of the schema for process ids, which are keys: read as numbers, no pattern needs to look at each of them."""


class GpuProcess(Protocol):
    """One process on a GPU, as on the wire; the fields that are read here."""

    mem: float | None
    type: str | None
    job_id: str | int | None


class GpuEntry(Protocol):
    """One GPU, as on the wire; the fields that the live view reads. History reads more figures, by their names."""

    index: int
    name: str | None
    uuid: str | None
    error: str | None
    pci_bus_id: str | None
    minor_number: int | None
    total_mem: float | None
    used_mem: float | None
    gpu_util: float | None
    temperature_c: float | None
    temperature_slowdown_c: float | None
    power_w: float | None
    read_at: float | None
    throttle_reasons: list[str] | None
    ecc: Any
    pcie: Any
    unattributed_mem: float | None
    users: Mapping[str, Mapping[Any, GpuProcess]] | None


Entries = Mapping[str, GpuEntry]
"""The GPUs of a snapshot by their keys, `gpu_error` among them."""


class _Fields:
    """An object of JSON, by attributes."""

    def __init__(self, fields: Json) -> None:
        self.__dict__ = fields

    def __getattr__(self, name: str) -> None:
        """Say that a field is not there: only then is this called."""


def entries_of(gpus: Mapping[str, Json]) -> Entries:
    """Return the GPUs of a snapshot that was read as JSON, and that the schema has passed."""
    return {key: _entry(gpu) for key, gpu in gpus.items()}


def _entry(gpu: Json) -> Any:
    fields = dict(gpu)
    for part in ("pcie", "ecc"):
        if fields.get(part) is not None:
            fields[part] = _Fields(fields[part])
    if fields.get("users"):
        fields["users"] = {
            user: {pid: _Fields(process) for pid, process in processes.items()}
            for user, processes in fields["users"].items()
        }
    return _Fields(fields)


def reader(schema: Json) -> tuple[Callable[[bytes], dict[str, Any]], Callable[[Any], Entries], type[Exception]]:
    """Make types of the schema, and of them the two steps of reading a snapshot.

    Returns:
        What splits an object of JSON into its members, what reads the member `gpu`, and what both raise.

    Raises:
        ImportError: there is no msgspec.
        KeyError: the schema says of GPUs what has no type.
    """
    msgspec = import_module("msgspec")
    of_gpu = _Types(msgspec, schema["$defs"]).of(schema["properties"]["gpu"])
    split = msgspec.json.Decoder(GenericAlias(dict, (str, msgspec.Raw))).decode
    return split, msgspec.json.Decoder(of_gpu).decode, msgspec.MsgspecError


class _Types:
    """Types for rules of a schema: none takes what its rule does not take."""

    def __init__(self, msgspec: Any, definitions: Mapping[str, Json]) -> None:
        self._meta, self._struct = msgspec.Meta, msgspec.defstruct
        self._definitions = definitions

    def of(self, rule: Json, name: str = "gpu") -> Any:
        """Return the type of what obeys a rule; `name` is for the types of objects."""
        if "$ref" in rule:
            rule = {**self._definitions[rule["$ref"].removeprefix("#/$defs/")], **rule}
        if unknown := rule.keys() - _WORDS:
            raise KeyError(*unknown)
        kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
        return Union[tuple([self._kind(kind, rule, name) for kind in kinds])]  # noqa: UP007 - of a list

    def _kind(self, kind: str, rule: Json, name: str) -> Any:
        match kind:
            case "null":
                return None
            case "boolean":
                return bool
            case "string":
                return self._within(str, rule, "minLength", "maxLength")
            case "integer":
                return self._within(int, {**_INT64, **rule}, "minimum", "maximum")
            case "number":
                return self._kind("integer", rule, name) | self._within(float, rule, "minimum", "maximum")
            case "array":
                return self._within(GenericAlias(list, (self.of(rule["items"], name),)), rule, "maxItems")
            case "object" if "properties" in rule:
                return self._object(rule, name)
            case "object":
                names = rule["propertyNames"]
                key = self._within(int, _PIDS, "minimum", "maximum") if names == _DIGITS else self.of(_NAMES | names)
                return GenericAlias(dict, (key, self.of(rule["additionalProperties"], name)))
        raise KeyError(kind)

    def _object(self, rule: Json, name: str) -> Any:
        """Return a type that takes no field which the schema does not know, and no object without a required one."""
        required = rule.get("required", [])
        types = {field: self.of(of, field) for field, of in rule["properties"].items()}
        fields = [(field, types.pop(field)) for field in required]
        optional = [(field, kind, None) for field, kind in types.items()]
        return self._struct(name, [*fields, *optional], forbid_unknown_fields=True, gc=False)

    def _within(self, kind: Any, rule: Json, *bounds: str) -> Any:
        return Annotated[kind, self._meta(**{_BOUNDS[name]: rule[name] for name in bounds if name in rule})]
