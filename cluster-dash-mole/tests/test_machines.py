"""Recorded machines: /proc, /sys and NVML's answers of each, and the whole snapshot that must come of them.

`pytest --rewrite-goldens` writes the expected snapshots anew: review the difference.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

HERE = Path(__file__).parent
MACHINES = sorted(path.name for path in (HERE / "machines").iterdir() if path.name != "common")
SCHEMA = HERE.parents[1] / "cluster-dash-server/cluster_dash_server/machine-post-schema.json"


def take(machine: Path, nvml_folder: Path, folder: Path) -> dict[str, Any]:
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent), "TZ": "UTC"}
    conf = folder / "nvml.conf"
    if (machine / "nvml.conf").exists():
        conf.write_text((machine / "nvml.conf").read_text())
        environ |= {"LD_LIBRARY_PATH": str(nvml_folder), "FAKE_NVML_CONFIG": str(conf)}
    options = json.dumps({"machine": str(machine), "deadline": 5.0 if machine.name == "hung-call" else 10.0})
    command = [sys.executable, str(HERE / "take.py"), options]
    try:
        done = subprocess.run(command, env=environ, input="\n", capture_output=True, text=True, timeout=60, check=True)
    finally:
        conf.write_text("")  # a call that hangs returns, so that the child ends
    assert "Traceback" not in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)["document"]
    return document


@pytest.mark.parametrize("name", MACHINES)
def test_a_recorded_machine_gives_the_expected_snapshot_and_the_servers_schema_takes_it(
    name: str, nvml_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    machine = HERE / "machines" / name
    document = take(machine, nvml_folder, tmp_path)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    golden = machine / "expected.json"
    if request.config.getoption("--rewrite-goldens"):
        golden.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    assert document == json.loads(golden.read_text())
