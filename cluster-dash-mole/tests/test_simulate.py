"""The simulated fleet: the same seed gives the same night, faults come as dealt, and posts are counted as they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_mole.cli import main
from cluster_dash_mole.simulate import SHIPPED_PASSCODE, _body, night, parse_server, read_auth_code
from cluster_dash_mole.simulate.fleet import Fleet, SimulatedHost
from cluster_dash_mole.simulate.hardware import MODELS, model_at
from cluster_dash_mole.simulate.night import Fault
from cluster_dash_mole.simulate.slurm import SimulatedSlurm
from cluster_dash_mole.simulate.swarm import Latencies, Swarm
from cluster_dash_mole.simulate.work import BEFORE_SECONDS

BEGAN_AT = 1_790_000_000.0
INTERVAL = 5.0


def fleet(seed: int = 15, hosts: int = 8, gpus: int = 8, faults: bool = True) -> list[SimulatedHost]:
    return Fleet(seed=seed, hosts=hosts, gpus=gpus, interval_seconds=INTERVAL, began_at=BEGAN_AT, faults=faults).build()


def seen(host: SimulatedHost, elapsed: float) -> Any:
    """What the host's mole posts at a moment of the night, as the server reads it; None: nothing."""
    snapshot = host.snapshot(BEGAN_AT + elapsed, seq=1)
    return None if snapshot is None else json.loads(json.dumps(snapshot.document(), allow_nan=False))


def with_fault(fault: Fault, seed: int = 15) -> SimulatedHost:
    (host,) = [host for host in fleet(seed) if host.fault is fault]
    return host


def gpus_of(document: Any) -> list[Any]:
    return list(document["gpu"].values())


# -------------------------------------------------------------------------------------------------- the same night


def test_the_same_seed_gives_the_same_night_however_often_one_looks() -> None:
    for often, once in zip(fleet(), fleet(), strict=True):
        for elapsed in range(0, 7200, 40):
            often.snapshot(BEGAN_AT + elapsed, 1)
        assert seen(often, 7200) == seen(once, 7200)


def test_another_seed_gives_another_night() -> None:
    one, other = fleet(1)[0], fleet(2)[0]
    assert seen(one, 0)["machine_id"] != seen(other, 0)["machine_id"]
    assert [each["used_mem"] for each in gpus_of(seen(one, 0))] != [
        each["used_mem"] for each in gpus_of(seen(other, 0))
    ]


def test_a_fleet_has_names_models_and_as_many_gpus_as_asked() -> None:
    documents = [seen(host, 0) for host in fleet(hosts=120, gpus=4, faults=False)]
    assert [document["hostname"] for document in documents][:2] == ["gpu001", "gpu002"]
    assert {len(document["gpu"]) for document in documents} == {4}
    assert {gpu["name"] for document in documents for gpu in gpus_of(document)} == {model.name for model in MODELS}
    uuids = [gpu["uuid"] for document in documents for gpu in gpus_of(document)]
    assert len(set(uuids)) == len(uuids)
    assert model_at(0.999999) is MODELS[-1]


# ------------------------------------------------------------------------------------------------------------ jobs


def test_a_gpu_with_a_job_has_a_user_and_one_without_is_at_rest() -> None:
    for host in fleet(faults=False):
        for gpu in gpus_of(seen(host, 0)):
            if gpu["users"]:
                (processes,) = gpu["users"].values()
                assert sum(each["mem"] for each in processes.values()) <= gpu["used_mem"] <= gpu["total_mem"]
                assert all(each["started_at"] <= BEGAN_AT for each in processes.values())
            else:
                assert (gpu["gpu_util"], gpu["used_mem"], gpu["pstate"]) == (0, 4, 8)


def test_jobs_start_and_end_and_a_part_of_the_fleet_is_free() -> None:
    hosts = fleet(hosts=100, faults=False)
    before, after = ([set(gpu["users"]) for host in hosts for gpu in gpus_of(seen(host, at))] for at in (0, 3600))
    assert sum(one != two for one, two in zip(before, after, strict=True)) > 80
    for users in (before, after):
        assert 0.15 < sum(not each for each in users) / len(users) < 0.5


def test_heat_follows_the_load_slowly_and_power_at_once() -> None:
    host = fleet(hosts=60, faults=False)[0]
    warmer = hotter = 0
    last: dict[int, Any] = {}
    for elapsed in range(0, 2 * 3600, 5):
        for gpu in gpus_of(seen(host, elapsed)):
            before = last.get(gpu["index"], gpu)
            assert abs(gpu["temperature_c"] - before["temperature_c"]) <= 6
            assert gpu["temperature_c"] < gpu["temperature_slowdown_c"]
            assert gpu["power_w"] <= gpu["power_limit_w"]
            if before["gpu_util"] < 5 and gpu["gpu_util"] > 60:
                hotter += gpu["power_w"] > 1.5 * before["power_w"]
                warmer += gpu["temperature_c"] > before["temperature_c"] + 20
            last[gpu["index"]] = gpu
    assert hotter > 0
    assert warmer == 0


def test_cpu_memory_and_network_of_a_host_are_those_of_its_jobs() -> None:
    for place, host in enumerate(fleet(hosts=30, faults=False)):
        document = seen(host, 0)
        jobs = sum(bool(gpu["users"]) for gpu in gpus_of(document))
        assert (document["memory"]["used_gb"] > 9) == (jobs > 0)
        assert 0 < document["cpu"]["cpu_percent"] <= 100
        memory = document["memory"]
        assert memory["used_gb"] + memory["available_gb"] == pytest.approx(memory["total_gb"])
        if place % 5 == 0:
            counts = [seen(host, elapsed)["network"]["rx_bytes"] for elapsed in range(0, 600, 5)]
            assert counts == sorted(counts)


# ---------------------------------------------------------------------------------------------------------- faults


def test_a_fleet_as_large_as_the_faults_has_each_once_and_a_smaller_one_the_most_telling() -> None:
    assert sorted(fault.name for fault in night.deal(3, 8).values()) == sorted(fault.name for fault in Fault)
    assert list(night.deal(3, 1).values()) == [Fault.LOST_GPU]
    dealt = night.deal(3, 200)
    assert len(dealt) == 4 * len(Fault)
    assert max(dealt) < 200


def test_without_faults_nothing_goes_wrong() -> None:
    for host in fleet(hosts=30, faults=False):
        document = seen(host, 100)
        assert all(said["ok"] for said in document["collectors"].values())
        assert all(gpu.get("error") is None for gpu in gpus_of(document))
        assert "events" not in document


def test_a_silent_host_posts_first_and_comes_back() -> None:
    host = with_fault(Fault.SILENT)
    assert seen(host, INTERVAL) is not None
    assert seen(host, 2 * INTERVAL) is None
    assert seen(host, night.SILENT_SECONDS) is None
    assert seen(host, 2 * INTERVAL + night.SILENT_SECONDS) is not None


def test_a_lost_gpu_is_seen_first_then_in_error_with_one_event() -> None:
    host = with_fault(Fault.LOST_GPU)
    assert not [gpu for gpu in gpus_of(seen(host, INTERVAL)) if gpu.get("error")]
    events = []
    for elapsed in range(0, 300, 5):
        document = seen(host, elapsed)
        events += document.get("events", [])
    (lost,) = [gpu for gpu in gpus_of(document) if gpu.get("error")]
    assert "Xid 79" in lost["error"]
    assert "gpu_util" not in lost
    assert [(each["code"], each["gpu"]) for each in events] == [(79, lost["index"])]


def test_held_gpus_have_memory_and_a_user_and_do_nothing_all_night() -> None:
    host = with_fault(Fault.HELD)
    for elapsed in (0, 60, 3600):
        held = [gpu for gpu in gpus_of(seen(host, elapsed)) if gpu["users"] and not gpu["gpu_util"]]
        assert [gpu["index"] for gpu in held][:2] == [0, 1]
        assert all(gpu["used_mem"] > 0.15 * gpu["total_mem"] for gpu in held[:2])
        (process,) = next(iter(held[0]["users"].values())).values()
        assert process["started_at"] < BEGAN_AT - 3000


def test_a_hot_gpu_slows_itself_down() -> None:
    (hot,) = [gpu for gpu in gpus_of(seen(with_fault(Fault.HOT), 60)) if gpu.get("throttle_reasons")]
    assert hot["temperature_c"] > hot["temperature_slowdown_c"]
    assert hot["sm_clock_mhz"] < 0.6 * hot["sm_clock_max_mhz"]


def test_a_host_without_a_driver_says_so_as_a_mole_does() -> None:
    document = seen(with_fault(Fault.NO_DRIVER), 60)
    assert document["gpu"]["gpu_error"]["error"].startswith("CD401 NVML 9: driver not loaded")
    assert "driver_version" not in document["general"]
    assert document["collectors"]["gpu"]["ok"] is False


def test_a_full_disk_and_one_that_does_not_answer() -> None:
    full = seen(with_fault(Fault.FULL_DISK), 60)["disk"]["/dev/md0"]
    assert 99 < full["percent_used"] < 100
    document = seen(with_fault(Fault.COLLECTOR), 60)
    assert "/dev/md0" not in document["disk"]
    assert document["collectors"]["disk"]["error"] == "/data: no answer"


def test_a_reboot_kills_the_jobs_and_gives_another_boot_id() -> None:
    host = with_fault(Fault.REBOOT)
    down_at = night.reboots_at(INTERVAL)
    before = seen(host, down_at - 1)
    assert seen(host, down_at) is None
    after = seen(host, down_at + night.REBOOT_SECONDS)
    assert before["boot_id"] != after["boot_id"]
    assert before["machine_id"] == after["machine_id"]
    assert after["general"]["boottime"] > BEGAN_AT > before["general"]["boottime"] + BEFORE_SECONDS
    assert not any(gpu["users"] for gpu in gpus_of(after))
    assert after["network"]["rx_bytes"] < before["network"]["rx_bytes"]


# --------------------------------------------------------------------------------------------------------- posting


class Sink(ThreadingHTTPServer):
    """Takes every post, or answers with another status; `bodies` are what came."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.bodies: list[Any] = []
        self.status = 200
        self.silent_from: int | None = None
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        sink = self.server
        assert isinstance(sink, Sink)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Connection"] == "close"
        assert self.headers["Date"].endswith("GMT")
        sink.bodies.append(body)
        if sink.silent_from is not None and len(sink.bodies) > sink.silent_from:
            sink.released.wait(60)
            return
        status = sink.status if len(sink.bodies) > 1 else 200  # the first is the one that tries the server
        answer = b'{"success": true}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *_: object) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def simulate(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster_dash_mole", "simulate", *line.split()],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.clocked
def test_every_host_posts_every_interval_and_the_summary_counts_them(sink: Sink) -> None:
    for _ in range(5):  # a machine that stands still leaves rounds out
        sink.bodies.clear()
        done = simulate(f"--server {sink.url} --hosts 5 --gpus 2 --interval 0.2 --seconds 1 --json --quiet")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        if said["posts"] >= 20 and not said["late"]:
            break
    assert said["statuses"] == {"200": said["posts"]}
    assert 20 <= said["posts"] <= 25
    assert (said["refused"], said["timeouts"], said["failed"]) == (0, 0, 0)
    assert 0 < said["p50_ms"] <= said["p99_ms"] <= 1.02 * said["max_ms"]
    bodies = sink.bodies[1:]
    assert {body["auth_code"] for body in bodies} == {SHIPPED_PASSCODE}
    of_first = [body["seq"] for body in bodies if body["hostname"] == "gpu01"]
    assert of_first == list(range(of_first[0], of_first[0] + len(of_first)))
    assert {body["hostname"] for body in bodies} == {f"gpu0{number}" for number in range(1, 6)}


def test_other_answers_are_counted_and_do_not_end_it(sink: Sink) -> None:
    sink.status = 503
    done = simulate(f"--server {sink.url} --hosts 2 --interval 0.1 --seconds 0.5 --json")
    assert list(json.loads(done.stdout)["statuses"]) == ["503"]
    sink.bodies.clear()
    assert "answers other than 200" in simulate(f"--server {sink.url} --hosts 2 --interval 0.1 --seconds 0.3").stdout


def test_a_host_whose_post_is_under_way_leaves_its_round_out(sink: Sink) -> None:
    sink.silent_from = 1
    done = simulate(f"--server {sink.url} --hosts 1 --interval 0.1 --seconds 0.6 --json")
    said = json.loads(done.stdout)
    assert said["posts"] == 0
    assert said["p50_ms"] is None
    assert 1 <= said["late"] <= 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary_and_0(sink: Sink, number: int) -> None:
    command = [
        sys.executable,
        "-m",
        "cluster_dash_mole",
        "simulate",
        "--server",
        sink.url,
        "--interval",
        "0.1",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 100
        while len(sink.bodies) < 20 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(output)["posts"] > 10


def test_a_passcode_comes_from_the_environment_or_a_file_and_never_from_an_argument(sink: Sink, tmp_path: Path) -> None:
    once = f"--server {sink.url} --hosts 1 --interval 0.1 --seconds 0.1"
    simulate(once, CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE="by environment")
    file = tmp_path / "code"
    file.write_text("by file\n")
    simulate(f"{once} --auth-code-file {file}", CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE="by environment")
    assert {body["auth_code"] for body in sink.bodies} == {"by environment", "by file"}
    with pytest.raises(ValueError, match=r"--auth-code-file: .*is empty"):
        read_auth_code(Path(os.devnull), None)
    with pytest.raises(ValueError, match=r"--auth-code-file: .*cannot be read: No such file or directory$"):
        read_auth_code(tmp_path / "none", None)


def test_a_server_that_is_not_there_is_69_with_the_mend() -> None:
    with socket.socket() as deaf:  # it has the port, and nobody listens there
        deaf.bind(("127.0.0.1", 0))
        done = simulate(f"--server http://127.0.0.1:{deaf.getsockname()[1]}")
    assert done.returncode == 69
    assert "CD102 connection refused" in done.stderr
    assert "cluster-dash-server serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_few_open_files_are_raised_and_said(sink: Sink) -> None:
    command = (
        f"ulimit -Sn 70; {sys.executable} -m cluster_dash_mole simulate --server {sink.url} --hosts 100 --seconds 0.1"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "raised the limit of open files from 70 to 164" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hosts", "0"], "expected a whole number >= 1"),
        (["--gpus", "-1"], "expected a whole number >= 0"),
        (["--seed", "x"], "--seed: got 'x', expected a whole number >= 0"),
        (["--hosts", "9" * 5000], "expected a whole number >= 1"),
        (["--interval", "0"], "expected seconds, > 0"),
        (["--interval", "often"], "expected seconds, > 0"),
    ],
)
def test_wrong_numbers_are_said_by_name(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["simulate", "--server", "http://localhost:1", *arguments])
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://localhost:1", "localhost:1", "http://localhost:1/?q=1"])
def test_only_plain_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(ValueError, match="--server: got"):
        parse_server(url)


@pytest.mark.clocked
@pytest.mark.parametrize(("listens", "counted"), [(False, "refused"), (True, "timeouts")])
def test_a_server_that_goes_away_or_hangs_is_counted_and_does_not_end_it(
    listens: bool, counted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster_dash_mole.simulate.swarm.TOTAL_SECONDS", 0.1)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        peer = mute.getsockname()
        if listens:
            mute.listen()
        swarm = Swarm(
            family=socket.AF_INET,
            peer=peer,
            head=lambda now: b"POST / HTTP/1.1\r\n",
            bodies=[lambda now: b"{}", lambda now: None],
            interval_seconds=0.05,
            most_open=10,
        )
        swarm.run(2.0, lambda text: None)
    total = swarm.total()
    assert getattr(total, counted) >= 2
    assert total.statuses == {}
    assert f"{getattr(total, counted)} {'refused' if counted == 'refused' else 'timed out'}" in total.words(2.0)


def test_latencies_keep_percentiles_within_two_percent() -> None:
    latencies = Latencies()
    assert latencies.percentile(0.5) is None
    for number in range(1, 1001):
        latencies.add(number / 10)
    more = Latencies()
    more.add(500.0)
    latencies.merge(more)
    assert latencies.percentile(0.5) == pytest.approx(50, rel=0.03)
    assert latencies.percentile(0.99) == pytest.approx(99, rel=0.03)
    assert latencies.max_ms == 500.0


# ------------------------------------------------------------------------------------------------------- its Slurm


def slurm_of(hosts: list[SimulatedHost]) -> SimulatedSlurm:
    return SimulatedSlurm(hosts, seed=15, began_at=BEGAN_AT)


def block_of(hosts: list[SimulatedHost], elapsed: float = 30) -> Any:
    return slurm_of(hosts).block(BEGAN_AT + elapsed)


def test_every_gpu_with_work_is_one_that_slurm_gave_away() -> None:
    hosts = fleet(faults=False)
    block = block_of(hosts)
    given = dict(zip(block["nodes"]["name"], block["nodes"]["gpu_index"], strict=True))
    for host in hosts:
        working = sorted(gpu["index"] for gpu in gpus_of(seen(host, 31)) if gpu["users"])
        assert given[host.hostname] == ",".join(map(str, working))
    totals = block["totals"]
    assert totals["gpus"]["total"] == 64
    assert totals["gpus"]["allocated"] == sum(
        count
        for count, state in zip(block["jobs"]["gpus"], block["jobs"]["state"], strict=True)
        if block["strings"][state] == "running"
    )
    assert totals["jobs"]["pending"] > 10


def test_a_night_with_faults_has_drained_nodes_one_that_is_down_and_work_past_slurm() -> None:
    block = block_of(fleet())
    states = {block["strings"][state] for state in block["nodes"]["state"]}
    assert "down+not_responding" in states
    assert any(state.endswith("+drain") for state in states)
    assert any("ticket" in text for text in block["strings"])
    hosts = fleet()
    given = dict(zip(block["nodes"]["name"], block["nodes"]["gpu_index"], strict=True))
    passed_by = [
        host.hostname
        for host in hosts
        for gpu in gpus_of(seen(host, 31) or {"gpu": {}})
        if gpu.get("users") and str(gpu["index"]) not in given[host.hostname].split(",")
    ]
    assert len(set(passed_by)) == 1


def test_jobs_that_end_are_kept_and_the_queue_moves_on() -> None:
    slurm = slurm_of(fleet(faults=False))
    first: Any = slurm.block(BEGAN_AT)
    later: Any = {}
    for minute in range(1, 60):
        later = slurm.block(BEGAN_AT + 60 * minute)
    assert sum(later["totals"]["finished_day"].values()) > 5
    assert set(later["finished"]["id"]) & set(first["jobs"]["id"])
    assert set(later["jobs"]["id"]) != set(first["jobs"]["id"])


def test_one_host_speaks_for_slurm_once_a_minute() -> None:
    hosts = fleet(hosts=3, faults=False)
    slurm = slurm_of(hosts)
    bodies = [_body(host, "x", slurm) for host in hosts]
    told = []
    for second in range(0, 120, 5):
        for body in bodies:
            text = body(BEGAN_AT + second)
            assert text is not None
            if "slurm" in (found := json.loads(text)):
                told.append((second, found["hostname"]))
    assert told == [(0, "gpu01"), (60, "gpu01")]
