"""Halves of different ages together: ours with the last released one, our mole with a server of the first version."""

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.processes import TOP, Listening, Process, free_port, start_mole, start_server, wait_until

SPOOL = "cluster-dash-mole/cluster_dash_mole/spool.py"


def git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(TOP), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last release; before there is one, the last commit whose mole had no spool."""
    began = git("rev-list", "HEAD", "--", SPOOL).split()
    commit = git("describe", "--tags", "--abbrev=0") or (git("rev-parse", f"{began[-1]}^") if began else "")
    if not commit:
        pytest.skip("no release in this checkout: its history is not here")
    folder = tmp_path_factory.mktemp("released")
    archive = subprocess.run(["git", "-C", str(TOP), "archive", commit], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def of(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{folder}/cluster-dash-server:{folder}/cluster-dash-mole"}


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def live(server: Listening) -> dict[str, Any] | None:
    hosts = get(f"{server.url}/api/v1/cluster")["hosts"]["host"]
    return get(f"{server.url}/api/v1/hosts/{hosts[0]}") if hosts else None


def seq(server: Listening) -> int:
    shown = live(server)
    return int(shown["snapshot"]["seq"]) if shown else 0


def test_our_mole_and_a_released_server_across_an_outage(released: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = str(free_port())
        server = stack.enter_context(start_server("--port", port, environment=of(released)))
        mole = stack.enter_context(start_mole(server.url, state=tmp_path))
        first = wait_until(lambda: seq(server), 20, "it is live")
        server.stop()
        wait_until(lambda: list((tmp_path / "spool").glob("*.batch")), 20, "it keeps what it cannot send")
        again = stack.enter_context(start_server("--port", port, environment=of(released)))
        wait_until(lambda: seq(again) > first + 3, 20, "it is live again")
        wait_until(lambda: not list((tmp_path / "spool").glob("*.batch")), 30, "nothing is left to send")
        assert mole.stop() == 0


def test_a_released_mole_and_our_server(released: Path, tmp_path: Path) -> None:
    with (
        start_server("--data", tmp_path / "data") as server,
        start_mole(server.url, state=tmp_path, environment=of(released)) as mole,
    ):
        first = wait_until(lambda: seq(server), 20, "it is live")
        wait_until(lambda: seq(server) >= first + 2, 20, "it goes on")
        assert mole.stop() == 0
        warnings = [line for line in mole.output.splitlines() if b"warning" in line]
        # a busy machine may leave the mole's children no time
        assert [line for line in warnings if b"gpu: timeout: " not in line] == []


class FirstVersion:
    """What the first server did: plain JSON with the passcode in it, the newest post is what it shows."""

    def __init__(self, port: int) -> None:
        self.shown: list[dict[str, Any]] = []
        self.refused: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    document = json.loads(body)
                    if self.path != "/" or document["auth_code"] != "lab_cluster_2025":
                        raise ValueError(self.path)
                except ValueError as error:
                    server.refused.append(str(error))
                    status, said = 400, {"success": False, "msg": str(error)}
                else:
                    server.shown.append(document)
                    status, said = 200, {"success": True, "msg": "stored result"}
                answer = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self.port = port
        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def first_version() -> Iterator[FirstVersion]:
    server = FirstVersion(free_port())
    yield server
    server.close()


def test_our_mole_shows_a_server_of_the_first_version_nothing_old(first_version: FirstVersion, tmp_path: Path) -> None:
    with start_mole(f"http://127.0.0.1:{first_version.port}", state=tmp_path) as mole:
        wait_until(lambda: len(first_version.shown) >= 2, 20, "it is shown")
        first_version.close()
        wait_until(lambda: list((tmp_path / "spool").glob("*.batch")), 20, "it keeps what it cannot send")
        kept_at = time.time()
        time.sleep(3)
        again = FirstVersion(first_version.port)
        try:
            wait_until(lambda: len(again.shown) >= 4, 20, "it is shown again")
            numbers = [each["seq"] for each in again.shown]
            assert numbers == sorted(set(numbers))
            assert again.shown[0]["timestamp"] > kept_at
            assert (first_version.refused, again.refused) == ([], [])
        finally:
            again.close()
        assert mole.stop() == 0


def test_what_a_server_of_the_first_version_could_not_take_goes_to_a_later_one(tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        server = stack.enter_context(start_server("--data", tmp_path / "data", "--port", str(port)))
        server.stop()
        mole: Process = stack.enter_context(start_mole(f"http://127.0.0.1:{port}", state=tmp_path))
        wait_until(lambda: list((tmp_path / "spool").glob("*.batch")), 20, "it keeps what it cannot send")
        time.sleep(3)
        old = FirstVersion(port)
        wait_until(lambda: len(old.shown) >= 2, 20, "it is shown")
        old.close()
        later = stack.enter_context(start_server("--data", tmp_path / "data", "--port", str(port)))
        wait_until(lambda: seq(later), 20, "it is live")
        wait_until(lambda: not list((tmp_path / "spool").glob("*.batch")), 30, "the backlog has arrived")
        assert mole.stop() == 0
        host = live(later)
        assert host is not None
        asked = f"{later.url}/api/v1/series?metric=cpu_percent&host={host['host']}&from=now-10m"
        wait_until(lambda: get(asked)["series"], 20, "history shows it")
