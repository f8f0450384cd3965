"""The entries of GPUs, nine tenths of a snapshot, as objects: an attribute for each field, None where it is not there.

Types that are made of the schema read and check them in one pass, in half the time that a JSON reader and an engine of
the schema take, and so they do with the rest of a snapshot. They count only where they take all: what they take, the
schema takes (a test holds that). What they do not take, a field that the schema does not know among it, the engines
have to judge and to word. So where there is no msgspec, only speed is lacking.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import GenericAlias
from typing import Annotated, Any, NamedTuple, Protocol, Union

Json = dict[str, Any]

_BOUNDS = {
    **{"minimum": "ge", "maximum": "le", "exclusiveMinimum": "gt"},
    **{"minLength": "min_length", "maxLength": "max_length"},
    **{"not": "pattern"},
    **{"minItems": "min_length", "maxItems": "max_length", "maxProperties": "max_length"},
}
_WORDS = {
    "$schema",
    "$defs",
    "title",
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


class Reader(NamedTuple):
    """The steps of reading a snapshot by types; each raises `failure` where they do not take it.

    Attributes:
        split: splits an object of JSON into its members.
        gpus: reads the member `gpu`.
        rest: reads a snapshot without GPUs and with its secret, a text; fields that are null are not there.
    """

    split: Callable[[bytes], dict[str, Any]]
    gpus: Callable[[Any], Entries]
    rest: Callable[[bytes], Json]
    failure: type[Exception]


def reader(schema: Json) -> Reader:
    """Make types of the schema, and of them what reads a snapshot.

    Raises:
        ImportError: there is no msgspec.
        KeyError: the schema says what has no type.
    """
    msgspec = import_module("msgspec")
    types = _Types(msgspec, schema["$defs"])
    decoder = msgspec.json.Decoder
    of_rest = {**schema["properties"], "gpu": {"type": "object"}, "auth_code": _NAMES}
    del of_rest["slurm"]  # 3 MB, where there are many jobs
    read_rest, plain = decoder(types.of({**schema, "properties": of_rest}, "snapshot")).decode, msgspec.to_builtins
    return Reader(
        split=decoder(GenericAlias(dict, (str, msgspec.Raw))).decode,
        gpus=decoder(types.of(schema["properties"]["gpu"])).decode,
        rest=lambda rest: plain(read_rest(rest)),
        failure=msgspec.MsgspecError,
    )


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
        kinds = rule.get("type", "object")  # an object is the most that is meant where nothing is said
        kinds = kinds if isinstance(kinds, list) else [kinds]
        return Union[tuple([self._kind(kind, rule, name) for kind in kinds])]  # noqa: UP007 - of a list

    def _kind(self, kind: str, rule: Json, name: str) -> Any:
        match kind:
            case "null":
                return None
            case "boolean":
                return bool
            case "string":
                return self._within(str, rule, "minLength", "maxLength", "not")
            case "integer":
                bounds = _INT64 | rule
                if "exclusiveMinimum" in rule:  # the one or the other
                    del bounds["minimum"]
                return self._within(int, bounds, "minimum", "exclusiveMinimum", "maximum")
            case "number":
                of_float = self._within(float, rule, "minimum", "exclusiveMinimum", "maximum")
                return self._kind("integer", rule, name) | of_float
            case "array":
                return self._within(GenericAlias(list, (self.of(rule["items"], name),)), rule, "minItems", "maxItems")
            case "object" if "additionalProperties" in rule:
                names = rule.get("propertyNames", {})
                key = self._within(int, _PIDS, "minimum", "maximum") if names == _DIGITS else self.of(_NAMES | names)
                of_each = self.of(rule["additionalProperties"], name)
                return self._within(GenericAlias(dict, (key, of_each)), rule, "maxProperties")
            case "object":
                return self._object(rule, name)
        raise KeyError(kind)

    def _object(self, rule: Json, name: str) -> Any:
        """Return a type that takes no field which the schema does not know, and no object without a required one."""
        required = rule.get("required", [])
        types = {field: self.of(of, field) for field, of in rule.get("properties", {}).items()}
        fields = [(field, types.pop(field)) for field in required]
        optional = [(field, kind, None) for field, kind in types.items()]
        return self._struct(name, [*fields, *optional], forbid_unknown_fields=True, omit_defaults=True, gc=False)

    def _within(self, kind: Any, rule: Json, *bounds: str) -> Any:
        told = {_BOUNDS[name]: rule[name] for name in bounds if name in rule}
        if "pattern" in told:
            told["pattern"] = rf"\A(?![\s\S]*(?:{told['pattern']['pattern']}))"
        return Annotated[kind, self._meta(**told)]
