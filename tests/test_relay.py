"""A real relay before a real server: the centre judges the secret of each host as if it had come by itself."""

import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.control import ask
from tests.processes import BIN, Listening, snapshot, start_mole, start_server, wait_until

PASSCODE = "a passcode of a test"


@contextmanager
def relayed(data: Path, kind: str = "waitress", **environment: str) -> Iterator[tuple[Listening, Listening]]:
    """A centre, with its data folder, and a relay before it: both on this machine, where the rules are laxest."""
    with ExitStack() as stack:
        centre = stack.enter_context(start_server("--data", data, environment=environment))
        relay = stack.enter_context(
            start_server("-v", "--server", kind, environment={"CLUSTER_DASH_RELAY__TO": centre.url})
        )
        wait_until(lambda: get(relay, "/readyz")[0] == 200)
        yield centre, relay


def exchange(server: Listening, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def get(server: Listening, path: str) -> tuple[int, Any]:
    try:
        return exchange(server, "GET", path)
    except OSError:
        return 0, None


def post(server: Listening, host: str, secret: str | None) -> tuple[int, str]:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    body = json.dumps(snapshot(host, gpus=1, processes=1)).encode()
    status, said = exchange(server, "POST", "/", body, **headers)
    return status, said["msg"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["waitress", "granian"])
def test_a_token_speaks_for_its_own_host_through_a_relay_as_it_does_without(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    with relayed(data, kind, CLUSTER_DASH_INGEST__REQUIRE_TOKENS="true") as (centre, relay):
        first, second = (
            ask(data, {"token": {"new": {"kind": "host", "hosts": host}}})["token"] for host in ("gpu01", "gpu02")
        )
        told = [post(relay, *each) for each in (("gpu01", first), ("gpu02", second), ("gpu02", first), ("gpu03", "no"))]
        assert [status for status, _ in told] == [200, 200, 403, 401]
        assert told == [post(centre, *each) for each in (("gpu01", first), ("gpu02", second))] + [
            post(centre, *each) for each in (("gpu02", first), ("gpu03", "no"))
        ]
        assert ask(data, {"token": {"revoke": "gpu01"}})["success"]
        assert post(relay, "gpu01", first)[0] == 403
        assert post(relay, "gpu02", second)[0] == 200

        code = ask(data, {"token": {"new": {"kind": "enrol", "hosts": "*"}}})["token"]
        state = tmp_path / "mole"
        subprocess.run(
            [BIN / "cluster-dash-mole", "enrol", relay.url, "-"],
            input=code.encode(),
            env={"STATE_DIRECTORY": str(state), "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
        )
        enrolled = (state / "token").read_text().strip()
        assert enrolled.startswith("cdh_")
        for secret in (first, second, code, enrolled):
            assert secret.encode() not in relay.output


@pytest.mark.slow
def test_the_passcode_that_everybody_has_is_not_taken_through_a_relay_on_the_same_machine(tmp_path: Path) -> None:
    with relayed(tmp_path) as (centre, relay):
        assert post(centre, "gpu01", "lab_cluster_2025")[0] == 200
        status, words = post(relay, "gpu01", "lab_cluster_2025")
        assert (status, words.startswith("auth_code: this server has no passcode of its own yet")) == (401, True)


@pytest.mark.slow
def test_a_mole_behind_a_relay_is_live_and_in_history(tmp_path: Path) -> None:
    with relayed(tmp_path / "data", CLUSTER_DASH_INGEST__PASSCODE="lab_cluster_2025") as (centre, relay):
        state = tmp_path / "mole"
        state.mkdir()

        def spool() -> dict[str, Any]:
            hosts = get(centre, "/api/v1/cluster")[1]["hosts"]["host"]
            return get(centre, f"/api/v1/hosts/{hosts[0]}")[1]["snapshot"].get("spool", {}) if hosts else {}

        with start_mole(relay.url, state=state):
            first = wait_until(spool, what="it is live")["oldest_seq"]
            # what it holds begins later: it was told that the first ones are durable
            wait_until(lambda: spool()["oldest_seq"] > first, what="it lets go of what is in history")
