"""The command in a process of its own, as a user or systemd starts it."""

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

import pytest

from cluster_dash_mole import __version__

HALF = Path(__file__).parents[1]
SECRET = "planted-s3cret"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Dash)
        server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = b'{"success": %s, "msg": "words"}' % (b"true" if server.status == 200 else b"false")
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Dash(ThreadingHTTPServer):
    """A server of the first version."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.bodies: list[dict[str, object]] = []


@pytest.fixture
def dash() -> Iterator[Dash]:
    with Dash() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def config(folder: Path, port: int, more: str = "") -> Path:
    path = folder / "config.toml"
    path.write_text(
        "[Poll_Settings]\npoll_interval_in_secs = 1\n"
        f'[Json_Sender_Logger]\nuse = true\naddress_in = "http://127.0.0.1:{port}"\nauth_code = "{SECRET}"\n'
        f"min_interval_in_secs = 0\n{more}"
    )
    return path


def environ(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HALF), "XDG_STATE_HOME": str(folder / "state"), **more}


def run(folder: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster_dash_mole", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environ(folder, **more), capture_output=True, text=True, timeout=60, check=False
    )


def start(folder: Path, *command: str | Path, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environ(folder, **more), stderr=subprocess.PIPE, text=True
    )


def eventually(right: object, seconds: float = 60) -> None:
    assert callable(right)
    until = time.monotonic() + seconds
    while not right():
        assert time.monotonic() < until
        time.sleep(0.02)


def ends_at_once(process: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> str:
    sent = time.monotonic()
    process.send_signal(number)
    _, log = process.communicate(timeout=60)
    assert time.monotonic() - sent < 45  # a post or a driver that hangs would hold it for ever
    assert process.returncode == 0
    return log


def test_the_version_is_told(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == f"cluster-dash-mole {__version__}\n"


def test_help_names_what_there_is_and_nothing_that_comes_later(tmp_path: Path) -> None:
    text = run(tmp_path, "--help").stdout
    for word in (
        "run",
        "doctor",
        "pick",
        "simulate",
        "--once",
        "--print",
        "--log-format",
        "-c FILE",
        "--version",
        "-v",
    ):
        assert word in text
    for word in ("slurm", "sheets"):
        assert word not in text.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["--log-format", "xml"],
        ["doctor", "-c", ""],
        ["enrol", "http://localhost:1", ""],
        ["enrol", "http://localhost:1", "-"],
        ["enrol", "localhost", "x"],
        ["simulate", "--server", "localhost"],
    ],
)
def test_wrong_usage_is_2(tmp_path: Path, arguments: list[str]) -> None:
    assert run(tmp_path, *arguments).returncode == 2


@pytest.mark.parametrize("arguments", [["run", "--nonsense"], ["run", "--listen", ""], ["--log-format", "xml", "run"]])
def test_wrong_usage_of_run_is_78_as_a_unit_would_start_it_again(tmp_path: Path, arguments: list[str]) -> None:
    assert run(tmp_path, *arguments).returncode == 78


@pytest.mark.parametrize("command", [["--once"], ["run", "--once"]])
def test_once_sends_one_snapshot_without_an_identity(tmp_path: Path, dash: Dash, command: list[str]) -> None:
    done = run(tmp_path, *command, "-c", config(tmp_path, dash.server_port))
    assert (done.returncode, done.stderr[20:]) == (0, "info http: the snapshot was taken\n")
    (body,) = dash.bodies
    assert body["auth_code"] == SECRET
    assert not {"boot_id", "seq", "interval_seconds"} & set(body)
    cpu = body["cpu"]
    assert isinstance(cpu, dict)
    assert cpu["cpu_percent"] is not None


@pytest.mark.parametrize(("status", "code"), [(400, 77), (401, 77), (500, 69), (503, 69)])
def test_once_tells_a_refusal_from_trouble(tmp_path: Path, dash: Dash, status: int, code: int) -> None:
    dash.status = status
    done = run(tmp_path, "--once", "-c", config(tmp_path, dash.server_port))
    assert done.returncode == code
    assert f"({status})" in done.stderr or f"answered {status}" in done.stderr


def test_once_tells_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run(tmp_path, "--once", "-c", config(tmp_path, port))
    assert done.returncode == 69
    assert "CD102 connection refused" in done.stderr


def test_print_shows_what_would_be_sent_without_the_secret(tmp_path: Path) -> None:
    done = run(tmp_path, "--print", "-c", config(tmp_path, 1, '[Labels]\nrack = "r1"\n'))
    assert done.returncode == 0
    assert SECRET not in done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["auth_code"] == "***"
    assert document["general"]["labels"] == {"rack": "r1"}
    assert done.stdout.startswith("{\n  ")


@pytest.mark.parametrize("command", ["run", "doctor", "enrol", "pick", "simulate"])
def test_a_command_takes_what_it_does_and_no_more(tmp_path: Path, command: str) -> None:
    text = run(tmp_path, command, "--help").stdout
    assert ("--verbose" in text, "--log-format" in text, "--once" in text) == (True, True, command == "run")


def test_once_needs_a_sender_even_where_the_mole_can_be_scraped(tmp_path: Path) -> None:
    (tmp_path / "listen.toml").write_text("[Listen]\nuse = true\n")
    done = run(tmp_path, "--once", "-c", tmp_path / "listen.toml")
    assert (done.returncode, "nowhere to send to" in done.stderr) == (78, True)


def test_a_pod_is_named_by_its_settings(tmp_path: Path) -> None:
    more = {"CLUSTER_DASH_HOST__NAME": "lab-pod-1", "CLUSTER_DASH_HOST__EPHEMERAL": "true"}
    document = json.loads(run(tmp_path, "--print", "-c", config(tmp_path, 1), **more).stdout)
    assert (document["hostname"], document["general"]["ephemeral"]) == ("lab-pod-1", True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[Poll_Settings]\npoll_interval_in_secs = 0", "got 0, expected a number >= 1"),
        ("", "no sender is in use"),
        ('[Json_Sender_Logger]\nuse = true\naddress_in = "http://"', "expected http://HOST"),
        ("[Google_Sheets_Logger]\nuse = true", "service_account_file_path: got nothing"),
    ],
)
def test_a_wrong_configuration_is_78_in_words(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    done = run(tmp_path, "run")
    assert done.returncode == 78
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_no_configuration_is_78(tmp_path: Path) -> None:
    done = run(tmp_path, "run")
    assert done.returncode == 78
    assert f"config_{socket.gethostname()}.toml" in done.stderr


def test_a_log_of_json_is_lines_of_json(tmp_path: Path) -> None:
    (line,) = run(tmp_path, "run", "--log-format", "json").stderr.splitlines()
    assert json.loads(line)["level"] == "error"


@pytest.mark.parametrize("command", [["-m", "cluster_dash_mole", "run"], [str(HALF / "smart_startup.py")]])
def test_a_mole_posts_numbered_snapshots_and_ends_at_once(tmp_path: Path, dash: Dash, command: list[str]) -> None:
    config(tmp_path, dash.server_port)
    with start(tmp_path, *command) as mole:
        eventually(lambda: len(dash.bodies) >= 2)
        log = ends_at_once(mole)
    first, second = dash.bodies[:2]
    assert second["seq"] == first["seq"] + 1  # type: ignore[operator]
    assert first["boot_id"] == second["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert SECRET not in log


def test_a_mole_goes_on_counting_after_a_restart(tmp_path: Path, dash: Dash) -> None:
    config(tmp_path, dash.server_port)
    for _ in range(2):
        already = len(dash.bodies)
        with start(tmp_path, "-m", "cluster_dash_mole", "run") as mole:
            eventually(lambda before=already: len(dash.bodies) > before)
            mole.kill()
    numbers = [body["seq"] for body in dash.bodies]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # type: ignore[call-overload, operator]


@pytest.mark.parametrize("status", [400, 401, 403, 409, 413, 500])
def test_a_mole_never_ends_because_of_what_a_server_says(tmp_path: Path, dash: Dash, status: int) -> None:
    dash.status = status
    config(tmp_path, dash.server_port)
    with start(tmp_path, "-m", "cluster_dash_mole", "run") as mole:
        eventually(lambda: dash.bodies)
        assert mole.poll() is None
        log = ends_at_once(mole, signal.SIGINT)
    assert SECRET not in log


def test_two_signals_at_once_are_one_end_without_a_trace(tmp_path: Path, dash: Dash) -> None:
    config(tmp_path, dash.server_port)
    with start(tmp_path, "-m", "cluster_dash_mole", "run") as mole:
        eventually(lambda: dash.bodies)
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM):  # Ctrl-C of `make run`: the shell's and its own
            mole.send_signal(number)
        log = ends_at_once(mole, signal.SIGCONT)
    assert "Traceback" not in log


def test_a_mole_ends_at_once_while_a_post_hangs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config(tmp_path, silent.getsockname()[1])
        with start(tmp_path, "-m", "cluster_dash_mole", "run") as mole:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(4) == b"POST"
                ends_at_once(mole)


def test_a_mole_ends_at_once_while_the_driver_hangs(tmp_path: Path, dash: Dash, nvml_folder: Path) -> None:
    conf = tmp_path / "nvml.conf"
    conf.write_text("gpus = 2\nfault nvmlDeviceGetMemoryInfo*@1 hang\n")
    config(tmp_path, dash.server_port)
    driver = {"LD_LIBRARY_PATH": str(nvml_folder), "FAKE_NVML_CONFIG": str(conf)}
    try:
        with start(tmp_path, "-m", "cluster_dash_mole", "run", **driver) as mole:
            eventually(lambda: len(dash.bodies) >= 3)
            ends_at_once(mole)
    finally:
        conf.with_suffix(".new").write_text("gpus = 2\n")
        conf.with_suffix(".new").rename(conf)  # so that the child ends too
    outcomes = dash.bodies[-1]["collectors"]
    assert isinstance(outcomes, dict)
    assert outcomes["gpu"]["error"].startswith("timeout")
