"""The mole's doctor and a real server: what the one finds of the other, and that it leaves nothing behind."""

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.processes import BIN, start_server

PASSCODE = "the site's own passcode"


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize(("passcode", "exit_code"), [(PASSCODE, 0), ("another", 77), (None, 77)])
def test_the_doctor_knows_a_passcode_that_is_taken_and_stores_nothing(
    passcode: str | None, exit_code: int, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    with start_server(environment={"CLUSTER_DASH_INGEST__PASSCODE": PASSCODE}) as server:
        secret = "" if passcode is None else f'auth_code = "{passcode}"\n'
        config.write_text(f'[Json_Sender_Logger]\nuse = true\naddress_in = "{server.url}"\n{secret}')
        done = subprocess.run(
            [BIN / "cluster-dash-mole", "doctor", "-c", config], capture_output=True, text=True, check=False
        )
        assert done.returncode == exit_code, done.stdout
        assert ("✘ server (CD201): " in done.stdout) == (exit_code == 77)
        assert PASSCODE not in done.stdout
        assert get(f"{server.url}/api/v1/cluster")["hosts"]["host"] == []
