"""The simulated fleet against the real server: its law, its ingest, and `make demo`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_mole.simulate.fleet import Fleet
from cluster_dash_server.snapshot import checker
from tests.processes import BIN, TOP, Listening, Process, free_port, wait_until

CHECK = checker()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**63),
    gpus=st.integers(0, 16),
    interval=st.floats(0.1, 3600),
    times=st.lists(st.floats(0, 2e6), min_size=1, max_size=4).map(sorted),
    faults=st.booleans(),
)
def test_every_snapshot_passes_the_schema(
    seed: int, gpus: int, interval: float, times: list[float], faults: bool
) -> None:
    fleet = Fleet(seed=seed, hosts=8, gpus=gpus, interval_seconds=interval, began_at=1.79e9, faults=faults)
    for host in fleet.build():
        for elapsed in times:
            snapshot = host.snapshot(1.79e9 + elapsed, seq=1)
            if snapshot is not None:
                document = json.loads(json.dumps(snapshot.document(), allow_nan=False))
                assert CHECK(document) is None
                assert len(document["gpu"]) == (gpus if "gpu_error" not in document["gpu"] else 1)


def test_a_simulated_fleet_is_taken_whole_by_the_server(server: Listening) -> None:
    command = [str(BIN / "cluster-dash-mole"), "simulate", "--server", server.url, "--hosts", "50", "--interval", "1"]
    done = subprocess.run([*command, "--seconds", "3", "--json"], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["statuses"] == {"200": said["posts"]}
    live = get(f"{server.url}/api/v1/cluster")
    assert len(live["hosts"]["host"]) == 50
    assert len(live["gpus"]["host"]) == 400
    assert {"busy", "free"} <= set(live["gpus"]["state"])


@pytest.mark.needs("make")
def test_make_demo_shows_the_fleet_and_its_faults_and_leaves_nothing(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {**os.environ, "TMPDIR": str(tmp_path), "CLUSTER_DASH_STATES__BUSY_PERCENT": "of no account"}
    with Process(["make", "demo", f"PORT={port}"], environment=own) as demo:

        def shown() -> Any:
            if demo.popen.poll() is not None:
                raise RuntimeError(demo.output.decode())
            try:
                live = get(f"{url}/api/v1/cluster")
            except OSError:
                return None
            return live if len(live["hosts"]["host"]) == 8 and "error" in live["gpus"]["state"] else None

        live = wait_until(shown, 60, "eight hosts, one with a lost GPU")
        assert Counter(error is not None for error in live["hosts"]["gpu_error"])[True] == 1
        with urllib.request.urlopen(url) as page:
            assert "DEMO: simulated" in page.read().decode()
        assert f"curl http://localhost:{port}/api/gpu-summary" in demo.output.decode()
        for pid in demo.family()[1:]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"dev/demo.py"]:
                    os.kill(pid, signal.SIGINT)
        demo.popen.wait(60)
    with pytest.raises(OSError, match="refused"):
        get(f"{url}/healthz")
    assert list(tmp_path.iterdir()) == []


def test_make_demo_says_when_the_port_is_taken(server: Listening) -> None:
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "dev/demo.py", "--port", port], cwd=TOP, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"another port: make demo PORT={int(port) + 1}" in done.stderr
