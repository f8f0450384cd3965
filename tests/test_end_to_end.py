"""A real mole on the driver's stand-in, real processes, a real server, over HTTP."""

import http.client
import json
import os
import pwd
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from tests.processes import (
    PATIENCE,
    Listening,
    Process,
    body_of,
    fake_nvml,
    free_port,
    sleepers,
    snapshot,
    start_mole,
    start_server,
    wait_until,
)

Json = dict[str, Any]
ME = pwd.getpwuid(os.getuid()).pw_name


def get(server: Listening, path: str) -> Any:
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        return json.load(answer)


def post(server: Listening, body: bytes, **headers: str) -> tuple[int, Json]:
    place = urlsplit(server.url)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        return answer.status, orjson.loads(answer.read())


def only_host(server: Listening) -> Any:
    hosts = get(server, "/api/v1/cluster")["hosts"]["host"]
    return get(server, f"/api/v1/hosts/{hosts[0]}") if hosts else None


@pytest.fixture
def nvml(tmp_path: Path) -> Iterator[Path]:
    """A stand-in machine: 8 GPUs, GPU 0 to 3 with two real processes each."""
    with ExitStack() as stack:
        pids = [stack.enter_context(process).popen.pid for process in sleepers(8)]
        lines = ["gpus = 8", "gpu.0-3.util_gpu = 90", "gpu.2.temp = 77", "gpu.4-7.util_gpu = 0"]
        lines += [f"proc {place % 4} {pid} {3000 + place} C" for place, pid in enumerate(pids)]
        path = tmp_path / "nvml.conf"
        path.write_text("\n".join(lines) + "\n")
        yield path


def rewrite(path: Path, text: str) -> None:
    """Change the stand-in's configuration at once, as it wants it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@pytest.mark.needs("gcc")
def test_a_mole_on_eight_gpus_is_live_on_the_server(server: Listening, nvml: Path, tmp_path: Path) -> None:
    fake_nvml()
    with start_mole(server.url, state=tmp_path, nvml=nvml) as mole:

        def whole() -> Any:
            """Return the host once all is read: NVML may take longer than the first snapshot waits for it."""
            host = only_host(server)
            return host if host and all(each["ok"] for each in host["snapshot"]["collectors"].values()) else None

        shown = wait_until(whole, 20, "a snapshot with all in it")
        gpus = sorted(shown["snapshot"]["gpu"].values(), key=lambda gpu: gpu["index"])
        assert [gpu["index"] for gpu in gpus] == list(range(8))
        assert gpus[2]["temperature_c"] == 77
        assert set(gpus[0]["users"]) == {ME}
        assert [len(gpu["users"].get(ME, {})) for gpu in gpus] == [2] * 4 + [0] * 4
        assert {
            process["name"] for gpu in gpus for processes in gpu["users"].values() for process in processes.values()
        } == {"sleep"}
        live = get(server, "/api/v1/cluster")
        assert live["gpus"]["state"] == ["busy"] * 4 + ["free"] * 4
        assert live["summary"] == "4 of 8 GPUs free: 4 × H100 80G."
        first = shown["snapshot"]["seq"]
        wait_until(lambda: only_host(server)["snapshot"]["seq"] > first, 10, "the next snapshot")
        begin = time.monotonic()
        assert mole.stop() == 0
        assert time.monotonic() - begin < 6 * PATIENCE


@pytest.mark.needs("gcc")
def test_a_stopped_mole_shows_as_stale_then_down_and_never_goes(nvml: Path, tmp_path: Path) -> None:
    fake_nvml()
    environment = {
        **{"CLUSTER_DASH_STATES__STALE_SECONDS": "2", "CLUSTER_DASH_STATES__STALE_INTERVALS": "0"},
        # who looks may stand still for a while, and is to see what is between the two
        **{"CLUSTER_DASH_STATES__DOWN_SECONDS": "10", "CLUSTER_DASH_STATES__DOWN_INTERVALS": "0"},
    }
    with start_server(environment=environment) as server:
        with start_mole(server.url, state=tmp_path, nvml=nvml):
            wait_until(lambda: only_host(server), 20, "the first snapshot")

        def states() -> set[str]:
            return set(get(server, "/api/v1/cluster")["gpus"]["state"])

        wait_until(lambda: states() == {"stale"}, 10, "stale")
        wait_until(lambda: states() == {"down"}, 10, "down")
        assert len(get(server, "/api/v1/cluster")["gpus"]["state"]) == 8
        assert only_host(server)["state"] == "down"


@pytest.mark.needs("gcc")
def test_a_driver_that_is_not_loaded_is_said_in_words_and_heals_by_itself(
    server: Listening, nvml: Path, tmp_path: Path
) -> None:
    fake_nvml()
    healthy = nvml.read_text()
    rewrite(nvml, healthy + "fault nvmlInit* DRIVER_NOT_LOADED\n")

    def without_driver() -> Any:
        host = only_host(server)
        said = host and host["snapshot"]["gpu"].get("gpu_error")
        return host if said and "driver" in said["error"] else None

    with start_mole(server.url, state=tmp_path, nvml=nvml):
        # on a machine that is busy the first snapshot may say that NVML has not answered yet
        shown = wait_until(without_driver, 20, "the driver is not loaded")
        assert shown["snapshot"]["cpu"]["num_cpus"] == os.cpu_count()
        assert shown["state"] == "error"


@pytest.mark.needs("gcc")
def test_a_call_of_the_driver_that_hangs_never_stops_the_heartbeat(
    server: Listening, nvml: Path, tmp_path: Path
) -> None:
    fake_nvml()
    with start_mole(server.url, state=tmp_path, nvml=nvml) as mole:
        first = wait_until(lambda: only_host(server), 20, "the first snapshot")["snapshot"]["seq"]
        healthy = nvml.read_text()
        rewrite(nvml, healthy + "fault nvmlDeviceGetMemoryInfo* hang\n")
        wait_until(
            lambda: only_host(server)["snapshot"]["collectors"]["gpu"]["ok"] is False, 20, "the collector says so"
        )
        later = only_host(server)["snapshot"]["seq"]
        begin = time.monotonic()
        wait_until(lambda: only_host(server)["snapshot"]["seq"] >= later + 4, 15, "four more snapshots")
        assert later > first
        assert time.monotonic() - begin < 10 * PATIENCE
        wait_until(lambda: len(mole.family()) <= 4, 20, "the mole, the nursery, and two children of it")
        rewrite(nvml, healthy)
        wait_until(lambda: only_host(server)["snapshot"]["collectors"]["gpu"]["ok"], 20, "healed")


def test_a_mole_outlives_its_server_and_finds_it_again(tmp_path: Path) -> None:
    port = str(free_port())
    with start_server("--port", port) as first, start_mole(first.url, state=tmp_path) as mole:
        wait_until(lambda: only_host(first), 20, "the first snapshot")
        first.stop()
        time.sleep(2.5)
        assert mole.popen.poll() is None
        with start_server("--port", port) as second:
            wait_until(lambda: only_host(second), 30, "a snapshot after the restart")


BAD = [
    (b"not json", 400, "body: not JSON"),
    (b"[" * 100_000, 400, "body: nested deeper than 32 levels"),
    (body_of(snapshot()).replace(b'"gpu_util":60', b'"gpu_util":NaN'), 400, "body: not JSON"),
    (body_of({**snapshot(), "timestamp": "now"}), 400, "timestamp: "),
    (body_of({key: value for key, value in snapshot().items() if key != "cpu"}), 400, "cpu: missing"),
    (b" " * (2 * 2**20 + 2), 413, "body: larger than 2097152 bytes"),
]


@pytest.mark.parametrize(("body", "status", "says"), BAD, ids=lambda value: str(value)[:20])
def test_bad_input_names_the_field_and_what_was_stored_stays(
    server: Listening, body: bytes, status: int, says: str
) -> None:
    assert post(server, body_of(snapshot()))[0] == 200
    before = get(server, "/api/v1/hosts/gpu01")
    answer = post(server, body)
    assert answer[0] == status
    assert answer[1]["msg"].startswith(says)
    assert get(server, "/api/v1/hosts/gpu01") == before
    assert b"Traceback" not in server.output


def test_a_server_ends_at_once_and_with_0_when_told_to(server: Listening) -> None:
    begin = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin < 6 * PATIENCE


def test_a_port_in_use_is_said_in_one_line(server: Listening) -> None:
    port = str(urlsplit(server.url).port)
    with pytest.raises(RuntimeError, match="ended with 78") as error:
        start_server("--port", port)
    assert f"on 127.0.0.1:{port}: CD601 port {port} in use by pid {server.popen.pid} (" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_every_snapshot_a_mole_makes_passes_the_schema_of_the_server(tmp_path: Path) -> None:
    from cluster_dash_server.snapshot import checker

    config = tmp_path / "config.toml"
    config.write_text('[Json_Sender_Logger]\nuse = true\naddress_in = "http://127.0.0.1:9"\nauth_code = "hush"\n')
    from tests.processes import BIN

    with Process(
        [BIN / "cluster-dash-mole", "--print", "-c", config], environment={"STATE_DIRECTORY": str(tmp_path)}
    ) as mole:
        assert mole.popen.wait(60) == 0
        printed = json.loads(mole.output)
    assert printed.pop("auth_code") == "***"
    checker()(printed)
