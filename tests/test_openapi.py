"""schemathesis asks a real server for everything that its description names, and for what it does not."""

import json
import subprocess
import urllib.request

import pytest

from tests.processes import BIN, snapshot, start_server

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    "response_headers_conformance",
)


@pytest.mark.parametrize(
    ("phases", "examples"),
    [
        pytest.param("fuzzing", 2, id="short"),
        pytest.param("examples,coverage,fuzzing", 100, id="whole", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_no_answer_is_another_one_than_the_description_says(phases: str, examples: int) -> None:
    with start_server() as server:
        body = json.dumps({**snapshot("gpu01"), "auth_code": "lab_cluster_2025"}).encode()
        posted = urllib.request.Request(server.url, body, {"Content-Type": "application/json"})
        urllib.request.urlopen(posted, timeout=60).close()
        done = subprocess.run(
            [
                *(str(BIN / "schemathesis"), "run", f"{server.url}/api/v1/openapi.json", "--checks", ",".join(CHECKS)),
                *("--phases", phases, "-n", str(examples), "--seed", "1", "--suppress-health-check", "all"),
                *("--generation-database", "none", "--no-color", "--continue-on-failure"),
            ],
            cwd=server.state_home,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "Tested: " in done.stdout
