"""Each recorded machine of the mole, posted to the server: its states, and every page that shows it."""

import functools
import html
import json
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.snapshot import decode_by_types
from tests.processes import TOP

MACHINES = TOP / "cluster-dash-mole" / "tests" / "machines"
NAMES = sorted(folder.parent.name for folder in MACHINES.glob("*/expected.json"))

STATES: dict[str, tuple[str | None, list[str]]] = {
    "64-gpus": ("busy", ["busy"] * 64),
    "8-gpus-busy": ("free", [*["busy"] * 6, "free", "busy"]),
    "all-calls-slow": ("busy", ["busy", "busy"]),
    "driver-mismatch": ("error", []),
    "driver-not-loaded": ("error", []),
    "geforce": ("free", ["free", "free"]),
    "gpu-without-library": ("error", []),
    "hidepid": ("busy", ["busy"]),
    "hung-call": ("error", ["free", "free", "error", "free"]),
    "mig-on-two-gpus": ("unknown", ["busy", "busy", "unknown", "free"]),
    "no-gpu": (None, []),
    "no-permission": ("error", []),
    "one-field-fails": ("unknown", ["free", "unknown"]),
    "one-gpu-lost": ("error", ["busy", "error", "error"]),
    "slurm-head": (None, []),
    "unified-memory": ("busy", ["busy"]),
    "vgpu": ("free", ["free"]),
}
"""What is to be seen of each: the state of the host, and those of its GPUs by index."""

SAID = {
    "8-gpus-busy": ["slowed down by heat", "ada", "python3", "4711", "throttling began"],
    "driver-mismatch": ["Its GPUs cannot be read.", "driver mismatch"],
    "geforce": ["PCIe ×8, it can ×16", "Free since"],
    "hidepid": ["owners hidden"],
    "hung-call": ["no answer since", "GPUs 0, 1, 3 are free, the longest since"],
    "mig-on-two-gpus": ["MIG instances", "busy %: not reported under MIG"],
    "no-gpu": ["No GPU."],
    "one-gpu-lost": ["fallen off the bus"],
}
"""What the page of the host says of it, beyond its figures."""


@functools.cache
def server_of(machine: str) -> tuple[FlaskClient, str]:
    """Return a server that took the snapshot of a machine, and the name of its host; the tests only look at it."""
    snapshot: dict[str, Any] = json.loads((MACHINES / machine / "expected.json").read_text())
    client = create_app(Settings(), clock=lambda: snapshot["timestamp"]).test_client()
    answer = client.post("/", json={**snapshot, "auth_code": "lab_cluster_2025"})
    assert answer.status_code == 200, answer.text
    return client, snapshot["hostname"]


@pytest.fixture(params=NAMES)
def posted(request: pytest.FixtureRequest) -> tuple[FlaskClient, str, str]:
    """A server that took the snapshot of a machine, the machine, and the name of its host."""
    client, host = server_of(request.param)
    return client, request.param, host


def text_of(page: str) -> str:
    main = page.partition("<main")[2]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", main)))


def test_a_machine_has_the_states_it_should(posted: tuple[FlaskClient, str, str]) -> None:
    client, machine, _ = posted
    body: Any = client.get("/api/v1/cluster").json
    assert (body["hosts"]["state"][0], body["gpus"]["state"]) == STATES[machine]


@pytest.mark.parametrize(
    "path", ["/", "/gpu-data", "/host/{host}", "/cpu-data", "/memory", "/root_drive", "/load-data-1"]
)
def test_a_machine_is_drawn_on_every_page(posted: tuple[FlaskClient, str, str], path: str) -> None:
    client, machine, host = posted
    answer = client.get(path.format(host=host))
    assert answer.status_code == 200
    # the GPU charts have nothing to show of a host without GPUs
    assert (host in text_of(answer.text)) is (path != "/gpu-data" or bool(STATES[machine][1]))
    assert not re.search(r'[>"\s(](None|nan|undefined)[<"\s,)](?!of |since )', answer.text)


@pytest.mark.parametrize(
    "path", ["/api/v1/free", "/api/v1/events", "/api/dashboard-data", "/api/gpu-summary", "/data-out/gpu-data-simple"]
)
def test_a_machine_is_in_every_list(posted: tuple[FlaskClient, str, str], path: str) -> None:
    client, _, _ = posted
    assert client.get(path).status_code == 200


def test_the_page_of_a_machine_says_what_is_odd(posted: tuple[FlaskClient, str, str]) -> None:
    client, machine, host = posted
    text = text_of(client.get(f"/host/{host}").text)
    assert [said for said in SAID.get(machine, []) if said not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_gpus_of_each_machine_are_read_by_types(name: str) -> None:
    """A field that the mole sends and the schema does not name would make each post cost twice as much."""
    snapshot = json.loads((MACHINES / name / "expected.json").read_text())
    decoded = decode_by_types(json.dumps(snapshot, separators=(",", ":")).encode())
    assert decoded.entries is not None
    assert decoded.is_checked == ("slurm" not in snapshot)
