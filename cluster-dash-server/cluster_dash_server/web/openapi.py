"""The description of the API (OpenAPI 3.1), built from the one schema and from what each route says of itself here."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Blueprint, Flask, Response, current_app

from cluster_dash_server.access.viewers import needs
from cluster_dash_server.snapshot import schema_text
from cluster_dash_server.web.answers import json_response
from cluster_dash_server.web.parameters import MOST_GPUS

Json = dict[str, Any]

PATHS = re.compile(r"^/(api|data-out)/|^/(metrics|healthz|readyz)$|^/$")
"""The routes that are described: those for machines. `/` is, for its POST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one route takes and gives.

    Attributes:
        query: its parameters: what they mean, or a list of the words that they may be.
        gives: the members that its JSON object always has; None: it gives no JSON object.
        types: what else it may answer with.
        refusals: statuses other than 200.
        takes: the members of the JSON object that it is sent: the schema of each; what must be there ends with `*`.
    """

    says: str
    query: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    gives: tuple[str, ...] | None = ()
    types: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()
    takes: Mapping[str, Json] = field(default_factory=dict)


Q = {"q": "a filter, as in the field of the overview; what it cannot mean is said in `problems`"}
SPAN = {"from": "a moment, such as now-6h or Unix s", "to": "a moment, such as now"}
CSV, TEXT = "text/csv", "text/plain"

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/"): Operation(
        says="Take one snapshot.", gives=("success", "msg"), refusals=(400, 401, 403, 409, 413, 422, 429, 503)
    ),
    ("post", "/api/v1/snapshots"): Operation(
        says="Take many snapshots, one a line.",
        gives=("success", "accepted", "duplicates", "rejected", "durable"),
        refusals=(400, 401, 403, 409, 413, 422, 429, 503),
    ),
    ("post", "/api/v1/enrol"): Operation(
        says="Trade a code for a token of this host.",
        gives=("success", "token"),
        refusals=(400, 401, 403, 409, 413, 422, 429),
    ),
    ("get", "/data-out/gpu-data-simple"): Operation(says="The GPU entries of each host, with their age.", query=Q),
    ("get", "/api/dashboard-data"): Operation(
        says="All hosts, in the first version's shape.", gives=("timestamp", "servers"), query=Q
    ),
    ("get", "/api/gpu-summary"): Operation(
        says="A table for a terminal.", query={"color": ("yes", "no"), **Q}, gives=None, types=(TEXT,)
    ),
    ("get", "/api/history-data"): Operation(
        says="History, in the first version's shape.",
        query={"hours": "how far back", **Q},
        gives=("hours", "generated_at", "series", "stats"),
        refusals=(400, 503),
    ),
    ("get", "/api/v1/cluster"): Operation(
        says="The live view in columns: whole, or what changed since a version.",
        query={"since": "the version that the caller has", **Q},
        gives=("version", "at", "full", "gone", "hosts", "gpus"),
    ),
    ("get", "/api/v1/facets"): Operation(says="What one can filter by, with counts.", query=Q),
    ("get", "/api/v1/hosts/{host}"): Operation(
        says="One host: its newest snapshot as it came, less the secret.",
        gives=("host", "received_at", "state", "skew_seconds", "snapshot"),
        refusals=(404,),
    ),
    ("get", "/api/v1/free"): Operation(
        says="Free GPUs, best fit first.",
        query={
            "count": "so many on one host",
            "mem": "so much free on each: 40G is 40 × 2^30 bytes",
            "model": "a part of the model's name",
            "format": ("json", "text", "csv"),
            **Q,
        },
        gives=("at", "gpus", "hosts"),
        types=(TEXT, CSV),
        refusals=(400,),
    ),
    ("get", "/api/v1/alerts"): Operation(
        says="Alerts: those that go on, or those of a stretch of time.",
        query={
            "state": ("open", "all", "firing", "acknowledged", "silenced", "ended"),
            **SPAN,
            "format": ("json", "csv"),
        },
        gives=("at", "alerts", "coming"),
        types=(CSV,),
        refusals=(400, 503),
    ),
    ("post", "/api/v1/alerts/{alert}/acknowledgement"): Operation(
        says="Say that you see to an alert.",
        takes={"note": {"type": "string", "maxLength": 500}},
        gives=("success",),
        refusals=(400, 404, 503),
    ),
    ("delete", "/api/v1/alerts/{alert}/acknowledgement"): Operation(
        says="Take that back.", gives=("success",), refusals=(404, 503)
    ),
    ("get", "/api/v1/silences"): Operation(
        says="Silences that hold now or will.",
        query={"format": ("json", "csv")},
        gives=("at", "silences"),
        types=(CSV,),
        refusals=(400, 503),
    ),
    ("post", "/api/v1/silences"): Operation(
        says="Let nobody be told of some alerts for a while.",
        takes={
            "filter*": {"type": "string", "description": "a filter, and rule:NAME"},
            "reason*": {"type": "string", "maxLength": 500},
            "until": {"type": "string", "description": "2h, 18:00, or a moment, such as now+4h"},
        },
        gives=("success", "id", "until"),
        refusals=(400, 503),
    ),
    ("delete", "/api/v1/silences/{number}"): Operation(says="End a silence.", gives=("success",), refusals=(404, 503)),
    ("get", "/api/v1/waiting"): Operation(
        says="Who waits for free GPUs, in the order in which they are told.",
        query={"format": ("json", "csv")},
        gives=("at", "waiting"),
        types=(CSV,),
        refusals=(400, 503),
    ),
    ("post", "/api/v1/waiting"): Operation(
        says="Tell me when GPUs are free: one message, once they have been free for a minute.",
        takes={
            "to*": {"type": "string", "description": "an address, or the name of a receiver, as the settings allow"},
            "count": {"type": "integer", "minimum": 1, "maximum": MOST_GPUS, "description": "so many on one host"},
            "mem": {"type": "string", "description": "so much free on each: 40G is 40 × 2^30 bytes"},
            "model": {"type": "string", "description": "a part of the model's name"},
            "q": {"type": "string", "description": Q["q"]},
            "until": {"type": "string", "description": "2h, 18:00, or a moment, such as now+12h"},
        },
        gives=("success", "id", "key", "until", "ahead"),
        refusals=(400, 429, 503),
    ),
    ("delete", "/api/v1/waiting"): Operation(
        says="Let nobody wait any longer, or none of whom one client asked for: for operators.",
        takes={"client": {"type": "string", "description": "as it stands in the line; none: everybody"}},
        gives=("success", "ended"),
        refusals=(400, 503),
    ),
    ("delete", "/api/v1/waiting/{number}"): Operation(
        says="Wait no longer.",
        takes={"key": {"type": "string", "description": "what the answer to the wish gave"}},
        gives=("success",),
        refusals=(400, 404, 503),
    ),
    ("get", "/api/v1/events"): Operation(
        says="What happened, newest first.",
        query={"host": "a name, a hostlist or a pattern", "kind": "only these", **SPAN, "format": ("json", "csv"), **Q},
        gives=("at", "events"),
        types=(CSV,),
        refusals=(400,),
    ),
    ("get", "/api/v1/series"): Operation(
        says="A figure over time.",
        query={
            "metric": "a field of a snapshot, such as gpu_util",
            "host": "of these hosts",
            "gpu": "of the GPU of that index",
            "user": "of this user",
            "model": "of this model",
            "by": ("gpu", "host", "cluster", "model", "user"),
            **SPAN,
            "step": "seconds of a step",
            "format": ("json", "csv"),
            **Q,
        },
        gives=("metric", "step", "series"),
        types=(CSV,),
        refusals=(400, 503),
    ),
    ("get", "/api/v1/waste"): Operation(
        says="GPU-hours held, busy and idle.",
        query={**SPAN, "tz": ("local", "UTC"), "format": ("json", "csv")},
        types=(CSV,),
        refusals=(400, 503),
    ),
    ("get", "/api/v1/figures/{metric}"): Operation(
        says="The figure of a chart page, for Plotly.", query=Q, refusals=(400, 404)
    ),
    ("get", "/api/v1/slurm"): Operation(says="Slurm's clusters, each with its totals.", refusals=(400, 404)),
    ("get", "/api/v1/slurm/jobs"): Operation(says="The queue.", types=(CSV,), refusals=(400, 404)),
    ("get", "/api/v1/slurm/nodes"): Operation(says="The nodes.", types=(CSV,), refusals=(400, 404)),
    ("get", "/api/v1/status"): Operation(says="How the server itself does."),
    ("get", "/api/v1/schema"): Operation(
        says="The JSON Schema of a snapshot.", gives=None, types=("application/schema+json",)
    ),
    ("get", "/api/v1/openapi.json"): Operation(says="This description.", gives=("openapi", "paths")),
    ("get", "/api/v1/http-sd"): Operation(
        says="Hosts for Prometheus' HTTP service discovery.", gives=None, types=("application/json",)
    ),
    ("get", "/metrics"): Operation(
        says="Text for Prometheus.",
        query={
            "family": "dcgm, or the family that the settings name",
            "host": "with dcgm: of which host",
            "cluster": "of Slurm",
        },
        gives=None,
        types=(TEXT, "application/openmetrics-text"),
        refusals=(400, 404, 503),
    ),
    ("get", "/healthz"): Operation(says="The process answers.", gives=("success",)),
    ("get", "/readyz"): Operation(says="What fails, if anything does.", gives=("success", "failing"), refusals=(503,)),
}


def routes(app: Flask) -> list[tuple[str, str]]:
    """Return the method and the path of each route that is to be described."""
    found = []
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            if PATHS.search(path) and (method, path) != ("GET", "/"):
                found.append((method.lower(), path))
    return sorted(found)


def describe(app: Flask, version: str, base_path: str) -> Json:
    """Build the description of the routes of an application."""
    snapshot, schemas = _snapshot()
    schemas |= {
        "Snapshot": snapshot,
        "Refusal": {
            "type": "object",
            "required": ["success", "msg"],
            "properties": {"success": {"const": False}, "msg": {"type": "string"}},
        },
    }
    paths: dict[str, Json] = {}
    for method, path in routes(app):
        operation = OPERATIONS.get((method, path))
        if operation is not None:
            paths.setdefault(path, {})[method] = _operation(path, method, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "cluster-dash", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
        "servers": [{"url": base_path or "/"}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"bearer": []}],
    }


def _snapshot() -> tuple[Json, Json]:
    """Return the schema of a snapshot and its parts, which lie beside it in a description."""
    text = schema_text().decode().replace('"#/$defs/', '"#/components/schemas/snapshot_')
    schema: Json = json.loads(text)
    parts = {f"snapshot_{name}": part for name, part in schema.pop("$defs").items()}
    schema.pop("$schema", None)
    return schema, parts


def _operation(path: str, method: str, operation: Operation) -> Json:
    parameters: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    for name, meaning in operation.query.items():
        schema: Json = {"type": "string"} if isinstance(meaning, str) else {"enum": list(meaning)}
        said = {"description": meaning} if isinstance(meaning, str) else {}
        parameters.append({"name": name, "in": "query", "schema": schema, **said})
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    described: Json = {
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_"),
        "summary": operation.says,
        "parameters": parameters,
        "responses": {
            "200": {"description": "what was asked for", "content": _content(operation)},
            **{str(status): {"description": _REFUSALS[status], "content": refusal} for status in _statuses(operation)},
        },
    }
    if operation.takes:
        members = {name.rstrip("*"): schema for name, schema in operation.takes.items()}
        needed = [name.rstrip("*") for name in operation.takes if name.endswith("*")]
        whole = {"type": "object", "required": needed, "properties": members}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": whole}}}
    elif method == "post":
        described["requestBody"] = {"required": True, "content": _body(path)}
    return described


_REFUSALS = {
    400: "it cannot be read",
    401: "who are you",
    403: "not you, or not from here",
    404: "it is not known here",
    409: "another one has this name",
    413: "too large",
    422: "it will never pass",
    429: "not now: too many",
    503: "not now",
}


def _statuses(operation: Operation) -> Sequence[int]:
    """Return its refusals; 401 and 403 wherever the site asks people who they are."""
    return sorted({*operation.refusals, 401, 403})


def _content(operation: Operation) -> Json:
    content: Json = {name: {} for name in operation.types}
    if operation.gives is not None:
        members: Json = {name: {} for name in operation.gives}
        content["application/json"] = {
            "schema": {"type": "object", "required": list(operation.gives), "properties": members}
        }
    return content


def _body(path: str) -> Json:
    snapshot = {"schema": {"$ref": "#/components/schemas/Snapshot"}}
    if path == "/api/v1/enrol":
        members = {
            "code": {"type": "string"},
            "hostname": {"type": "string"},
            "machine_id": {"type": ["string", "null"]},
        }
        return {
            "application/json": {"schema": {"type": "object", "required": ["code", "hostname"], "properties": members}}
        }
    return {"application/json": snapshot} | ({"application/x-ndjson": {}} if path != "/" else {})


def missing(app: Flask) -> Iterable[tuple[str, str]]:
    """Return the routes that are not described, and the descriptions of routes that are not there."""
    return set(routes(app)) ^ OPERATIONS.keys()


def blueprint(version: str, base_path: str) -> Blueprint:
    """Build the route of the description."""
    description = Blueprint("openapi", __name__)
    made: list[Json] = []

    @description.get("/api/v1/openapi.json")
    @needs("public")
    def openapi() -> Response:
        if not made:
            made.append(describe(current_app, version, base_path))
        return json_response(made[0])

    return description
