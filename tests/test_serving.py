"""Both kinds of server, as processes: the same answers, a clean end, and words where something is missing."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from tests.processes import BIN, PATIENCE, Listening, body_of, snapshot, start_server, wait_until


def answers(server: Listening) -> bool:
    place = urlsplit(server.url)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False


@pytest.fixture(params=["waitress", "granian"], scope="module")
def either(request: pytest.FixtureRequest) -> Iterator[Listening]:
    with start_server("--server", request.param) as server:
        wait_until(lambda: answers(server))
        yield server


def post(server: Listening, body: bytes, path: str = "/", *, chunked: bool = False) -> tuple[int, dict[str, object]]:
    place = urlsplit(server.url)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        if chunked:
            pieces = (body[start : start + 60_000] for start in range(0, len(body), 60_000))
            connection.request("POST", path, pieces, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        else:
            connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, orjson.loads(answer.read())


@pytest.mark.parametrize("chunked", [False, True])
def test_posts_are_taken_however_their_length_is_told(either: Listening, chunked: bool) -> None:
    assert post(either, body_of(snapshot()), chunked=chunked) == (200, {"success": True, "msg": "stored result"})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(either: Listening, chunked: bool) -> None:
    body = body_of({**snapshot(), "pad": "x" * (2 * 2**20)})

    def answered() -> object:
        try:
            return post(either, body, chunked=chunked)
        except ConnectionError:  # granian answers before it has read all, and a reset may eat the answer
            return None

    status, answer = wait_until(answered)
    assert (status, answer["success"]) == (413, False)


def test_a_batch_is_taken(either: Listening) -> None:
    body = b"\n".join(body_of(snapshot(f"batch{number}")) for number in range(50))
    status, answer = post(either, body, "/api/v1/snapshots")
    assert (status, answer["accepted"], answer["rejected"]) == (200, 50, [])


@pytest.mark.parametrize("kind", ["waitress", "granian"])
def test_it_ends_at_once_and_with_0(kind: str) -> None:
    with start_server("--server", kind) as server:
        wait_until(lambda: answers(server))
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 6 * PATIENCE


@pytest.mark.parametrize("kind", ["waitress", "granian"])
def test_a_port_in_use_is_said_by_both(kind: str, either: Listening) -> None:
    port = str(urlsplit(either.url).port)
    with pytest.raises(RuntimeError, match=r"in use.*--port"):
        start_server("--server", kind, "--port", port)


@pytest.mark.parametrize("kind", ["waitress", "granian"])
def test_what_is_found_wrong_while_it_starts_is_one_line_and_78_that_no_unit_restarts(
    kind: str, tmp_path: Path
) -> None:
    users = {"CLUSTER_DASH_VIEWERS__MODE": "basic", "CLUSTER_DASH_VIEWERS__USERS_FILE": str(tmp_path / "users")}
    command: list[str | Path] = [BIN / "cluster-dash-server", "serve", "--port", "0", "--server", kind]
    environment = {**os.environ, **users, "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 78
    assert f"viewers.users_file: {tmp_path}/users: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_granian_that_is_not_installed_is_said_with_its_mend() -> None:
    code = "import sys; sys.modules['granian'] = None; from cluster_dash_server.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--server", "granian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    assert "pip install 'cluster-dash-server[granian]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_server_answers_soon_after_its_start() -> None:
    def seconds() -> float:
        begin = time.monotonic()
        with start_server() as server:
            wait_until(lambda: answers(server))
            return time.monotonic() - begin

    assert any(seconds() < 6 * PATIENCE for _ in range(3))  # `make bench` has the figure: 0.5 s


def test_it_starts_without_loading_what_only_a_chart_or_a_post_needs() -> None:
    code = (
        "import sys; from cluster_dash_server.app import create_app; from cluster_dash_server.settings import Settings;"
        "create_app(Settings());"
        "print(sorted({'plotly', 'pandas', 'jsonschema', 'msgspec', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([BIN / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "serve",
    [
        "serving._load(Settings(), LogOptions(), *[os.open(os.devnull, os.O_WRONLY)] * 2)",
        "serving.create_server = lambda *_, **more: SimpleNamespace(effective_port=0, run=lambda: None);"
        "serving.by_waitress(Settings(), LogOptions())",
    ],
    ids=["granian", "waitress"],
)
def test_what_is_loaded_at_the_start_is_no_part_of_garbage_collections(serve: str, tmp_path: Path) -> None:
    code = (
        "import gc, os; from types import SimpleNamespace; from cluster_dash_server import serving;"
        "from cluster_dash_server.logs import LogOptions; from cluster_dash_server.settings import Settings;"
        f"{serve}; print(gc.get_freeze_count() > len(gc.get_objects()), flush=True); os._exit(0)"
    )
    done = subprocess.run(
        [BIN / "python", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )
    assert done.stdout == "True\n"


def test_a_command_reaches_the_process_that_serves(either: Listening) -> None:
    post(either, body_of(snapshot("forgettable")))
    command: list[str | Path] = [
        BIN / "cluster-dash-server",
        "forget",
        "forget*",
        "--data",
        either.state_home / "cluster-dash",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "forgot forgettable\n"
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, "no such host" in again.stderr) == (1, True)
