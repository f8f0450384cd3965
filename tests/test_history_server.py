"""History with a real server: what is there again after a restart, and what happens where it cannot be written."""

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.harness import get
from tests.processes import PATIENCE, Listening, body_of, snapshot, start_server, wait_until


def ask(server: Listening, path: str) -> Any:
    return json.loads(get(server.url, path) or b"null")


def told(server: Listening, seq: int, **fields: Any) -> Any:
    body = body_of({**snapshot("gpu01"), "boot_id": "boot", "seq": seq, "spool": {"oldest_seq": 1}, **fields})
    place = urlsplit(server.url)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def durable(server: Listening, seq: int) -> int:
    status, answer = told(server, seq)
    assert status == 200
    return int(answer["durable_seq"] or 0)


def test_after_a_kill_the_newest_snapshot_and_held_since_are_there_with_the_first_answer(tmp_path: Path) -> None:
    with start_server("--data", tmp_path) as server:
        wait_until(lambda: get(server.url, "/healthz"))
        assert told(server, 1)[1]["duplicate"] is False
        wait_until(lambda: durable(server, 1) == 1, 10, "durable")
        before = ask(server, "/api/v1/hosts/gpu01")
        server.popen.kill()
        server.popen.wait()
    with start_server("--data", tmp_path) as server:
        after = ask(server, "/api/v1/hosts/gpu01")  # the first request of all
        assert after["received_at"] == before["received_at"]
        assert after["snapshot"] == before["snapshot"]
        assert told(server, 1)[1] == {
            **{"success": True, "msg": "stored result", "duplicate": True},
            **{"next_seconds": 5, "durable_seq": 1},
        }


def test_a_second_server_shows_the_live_view_and_says_who_has_the_folder(tmp_path: Path) -> None:
    with start_server("--data", tmp_path) as first:
        wait_until(lambda: get(first.url, "/healthz"))
        with start_server("--data", tmp_path) as second:
            status, answer = told(second, 1)
            assert status == 200
            assert "durable_seq" not in answer
            ready = ask(second, "/readyz")
            assert f"pid {first.popen.pid}" in ready["failing"][0]["why"]
            assert ask(first, "/readyz")["success"] is True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("needs leave to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


@pytest.mark.slow
def test_a_full_disk_stops_history_only_and_it_resumes_by_itself(small_disk: Path) -> None:
    with start_server("--data", small_disk) as server:
        wait_until(lambda: get(server.url, "/healthz"))
        wait_until(lambda: durable(server, 1) == 1, 10, "durable")
        ballast = fill(small_disk)

        seqs = iter(range(2, 10_000))
        last = 1

        def is_named() -> bool:
            nonlocal last
            last = next(seqs)
            assert told(server, last)[0] == 200
            return ask(server, "/readyz")["success"] is False

        wait_until(is_named, 60, "/readyz names the reason")
        assert "full" in ask(server, "/readyz")["failing"][0]["why"]
        assert ask(server, "/healthz") == {"success": True}
        assert b"History is not written" in (get(server.url, "/") or b"")
        stands_at = durable(server, last)
        time.sleep(1)
        assert durable(server, last) == stands_at < last
        assert ask(server, "/api/v1/hosts/gpu01")["snapshot"]["seq"] == last

        began = time.monotonic()
        ballast.unlink()
        wait_until(lambda: ask(server, "/readyz")["success"], 30, "history resumes")
        assert time.monotonic() - began < 10 * PATIENCE
        wait_until(lambda: durable(server, last) == last, 10, "what came meanwhile is durable")
