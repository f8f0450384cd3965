"""Two servers that share one live view, as processes of their own, and a Redis that is killed."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.processes import BIN, Listening, Process, body_of, snapshot, start_server, wait_until
from tests.redis_servers import PASSWORD, RedisServer, running

pytestmark = pytest.mark.needs("redis-server")
Json = dict[str, Any]


def get(server: Listening, path: str) -> Json:
    try:
        with urllib.request.urlopen(server.url + path, timeout=30) as answer:
            found: Json = json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
    return found


def post(server: Listening, host: str, **fields: Any) -> int:
    body = body_of({**snapshot(host), **fields})
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}/", body), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code if error.headers["Retry-After"] or error.code != 503 else -503


def shown(server: Listening) -> list[str]:
    found: list[str] = get(server, "/api/v1/cluster")["hosts"]["host"]
    return found


@pytest.fixture
def engine() -> Iterator[RedisServer]:
    with running(PASSWORD) as server:
        yield server


@pytest.fixture
def url_file(engine: RedisServer, tmp_path: Path) -> Path:
    path = tmp_path / "redis-url"
    path.write_text(f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{engine.port}/0\n")
    return path


def start(url_file: Path, **more: str) -> Listening:
    return start_server(
        environment={"CLUSTER_DASH_LIVE__KIND": "redis", "CLUSTER_DASH_LIVE__URL_FILE": str(url_file), **more}
    )


def test_what_one_server_is_posted_the_other_shows_also_over_a_redis_that_is_killed(
    engine: RedisServer, url_file: Path
) -> None:
    with start(url_file) as one, start(url_file) as other:
        assert post(one, "gpu01", boot_id="b", seq=1) == 200
        wait_until(lambda: shown(other) == ["gpu01"], 20, "the other server shows it")
        said = get(other, "/api/v1/hosts/gpu01")["snapshot"]
        assert said["memory"] == snapshot("gpu01")["memory"]
        version = get(one, "/api/v1/cluster")["version"]
        assert get(other, f"/api/v1/cluster?since={version}")["full"] is False
        assert post(other, "gpu02") == 200
        wait_until(lambda: shown(one) == ["gpu01", "gpu02"])

        engine.kill()
        wait_until(lambda: get(one, "/readyz")["failing"], what="it is seen that Redis is away")
        with urllib.request.urlopen(f"{one.url}/readyz", timeout=60) as answer:  # not a 503
            assert json.load(answer)["failing"][0]["part"] == "live view"
        assert get(one, "/api/v1/status")["shared"]["trouble"]
        assert post(one, "gpu03") == 200
        assert post(other, "gpu04") == 200
        wait_until(lambda: "Live view" in get(one, "/api/v1/cluster")["summary"], what="the page shows the age")
        engine.start()
        wait_until(lambda: shown(one) == shown(other) == ["gpu01", "gpu02", "gpu03", "gpu04"])
        wait_until(lambda: "Live view" not in get(one, "/api/v1/cluster")["summary"])
        assert get(one, f"/api/v1/cluster?since={version}")["full"] is True
        wait_until(lambda: get(one, "/readyz")["failing"] == get(other, "/readyz")["failing"] == [])
        shared = get(one, "/api/v1/status")["shared"]
        assert (shared["trouble"], shared["waiting"]) == (None, 0)
        assert shared["age_seconds"] < 60
        for server in (one, other):
            assert quote(PASSWORD, safe="").encode() not in server.output
            assert PASSWORD.encode() not in server.output


def test_after_the_time_of_grace_posts_are_sent_back(engine: RedisServer, url_file: Path) -> None:
    with start(url_file, CLUSTER_DASH_LIVE__GRACE_SECONDS="0.5") as server:
        assert post(server, "gpu01") == 200
        engine.kill()
        wait_until(lambda: post(server, "gpu01") == 503)
        engine.start()
        wait_until(lambda: post(server, "gpu01") == 200)
        assert shown(server) == ["gpu01"]


def test_a_host_that_is_forgotten_by_command_leaves_both_and_one_that_comes_later_knows_the_rest(
    engine: RedisServer, url_file: Path
) -> None:
    with ExitStack() as stack:
        one, other = stack.enter_context(start(url_file)), stack.enter_context(start(url_file))
        post(one, "gpu01")
        post(one, "gpu02")
        wait_until(lambda: shown(other) == ["gpu01", "gpu02"])
        folder = other.state_home / "cluster-dash"
        with Process([BIN / "cluster-dash-server", "forget", "gpu01", "--data", folder]) as command:
            assert command.popen.wait(60) == 0
        wait_until(lambda: shown(one) == shown(other) == ["gpu02"])
        late = stack.enter_context(start(url_file))
        assert shown(late) == ["gpu02"]
