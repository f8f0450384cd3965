"""The lines of notes and units in the field, typed in a fresh copy of the project that has no environment yet."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.processes import TOP, Listening, Process, free_port, wait_until

pytestmark = pytest.mark.needs("git")

SERVER_LINES = [
    "FLASK_APP=cluster_dash_server uv run flask run --host=0.0.0.0 --port=8080",
    "uv run waitress-serve --host=0.0.0.0 --port=8080 --call cluster_dash_server:create_app",
    "PYTHONPATH=. .venv/bin/waitress-serve --host=0.0.0.0 --port=8080 --call cluster_dash_server:create_app",
]
CURL_LINES = [
    'curl -d "@etc/example_data1.json" -H "Content-Type: application/json" -X POST http://localhost:8080',
    'curl -d "@etc/example_data1.json" http://localhost:8080',
]
MOLE_LINES = ["uv run python smart_startup.py", "PYTHONPATH=. .venv/bin/python smart_startup.py"]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clean clone holds: the tracked files, and those that would be tracked."""
    folder = tmp_path_factory.mktemp("clone") / "cluster-dash"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (TOP / name).exists() or (TOP / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def environment(clone: Path) -> dict[str, str]:
    """A shell of a user who has uv, and none of our environments."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "VIRTUAL_ENV"))}
    subprocess.run([TOP / "dev" / "uv", "--version"], check=True, capture_output=True)
    environment["PATH"] = f"{TOP / '.tools' / 'bin'}:{environment['PATH']}"
    return environment


@pytest.fixture(scope="module")
def synced(clone: Path, environment: dict[str, str]) -> Path:
    for half in ("cluster-dash-server", "cluster-dash-mole"):
        subprocess.run(f"cd {half} && uv sync", shell=True, cwd=clone, env=environment, check=True, capture_output=True)  # noqa: S602 - the line as people type it
    return clone


@pytest.mark.parametrize("line", SERVER_LINES)
def test_each_line_that_starts_the_server_serves(line: str, synced: Path, environment: dict[str, str]) -> None:
    port = free_port()
    line = line.replace("8080", str(port)).replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - it is taken out
    assignment = re.match(r"^((?:[A-Z_]+=\S+ )*)", line)
    assert assignment
    own = dict(part.split("=", 1) for part in assignment[1].split())
    command = line[assignment.end() :].split()
    with Listening(command, environment={**environment, **own}, folder=synced / "cluster-dash-server") as server:
        for curl in CURL_LINES:
            for folder in (synced, synced / "cluster-dash-server"):
                answer = subprocess.run(
                    curl.replace("8080", str(port)).replace("curl ", "curl -s ", 1),
                    **{"shell": True, "cwd": folder, "check": True, "capture_output": True},  # type: ignore[call-overload]
                )
                assert json.loads(answer.stdout) == {"success": True, "msg": "stored result"}
        assert list(get(f"{server.url}/data-out/gpu-data-simple")) == ["gpu01"]


@pytest.mark.parametrize("line", MOLE_LINES)
def test_each_line_that_starts_the_mole_posts(
    line: str, synced: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    serve: list[str | Path] = [
        synced / "cluster-dash-server" / ".venv" / "bin" / "cluster-dash-server",
        "serve",
        "--port",
        "0",
    ]
    with Listening(serve, environment=environment, folder=tmp_path) as server:
        own = {
            **environment,
            **{
                "CLUSTER_DASH_JSON_SENDER_LOGGER__ADDRESS_IN": server.url,
                "STATE_DIRECTORY": str(tmp_path),
                "PYTHONPATH": ".",
            },
        }
        with Process(
            line.removeprefix("PYTHONPATH=. ").split(), environment=own, folder=synced / "cluster-dash-mole"
        ) as mole:
            wait_until(lambda: get(f"{server.url}/api/v1/cluster")["hosts"]["host"], 60, "a snapshot")
            assert mole.stop() in (0, -signal.SIGTERM)


def test_uv_sync_gives_the_versions_that_make_installs(synced: Path, environment: dict[str, str]) -> None:
    for half in ("cluster-dash-server", "cluster-dash-mole"):
        frozen = subprocess.run(
            ["uv", "pip", "freeze", "--python", ".venv"],
            **{"cwd": synced / half, "env": environment, "capture_output": True, "text": True, "check": True},  # type: ignore[call-overload]
        ).stdout
        locked = set(re.findall(r"^([\w.-]+==[\w.]+)", (synced / half / "requirements.lock").read_text(), re.MULTILINE))
        assert {line for line in frozen.splitlines() if "==" in line} <= locked


def test_once_and_print_do_what_they_say(synced: Path, environment: dict[str, str], tmp_path: Path) -> None:
    mole = synced / "cluster-dash-mole" / ".venv" / "bin" / "cluster-dash-mole"
    server = synced / "cluster-dash-server" / ".venv" / "bin" / "cluster-dash-server"
    own = {**environment, "STATE_DIRECTORY": str(tmp_path)}
    options: dict[str, Any] = {"cwd": synced / "cluster-dash-mole", "capture_output": True, "text": True}
    printed = subprocess.run([mole, "--print"], env=own, check=True, **options).stdout
    assert json.loads(printed)["auth_code"] == "***"
    with Listening([server, "serve", "--port", "0"], environment=environment, folder=tmp_path) as serving:
        own["CLUSTER_DASH_JSON_SENDER_LOGGER__ADDRESS_IN"] = serving.url
        assert subprocess.run([mole, "--once"], env=own, check=False, **options).returncode == 0
        (host,) = get(f"{serving.url}/api/v1/cluster")["hosts"]["host"]
        assert not {"boot_id", "seq"} & set(get(f"{serving.url}/api/v1/hosts/{host}")["snapshot"])
        own["CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE"] = "wrong"
        assert subprocess.run([mole, "--once"], env=own, check=False, **options).returncode == 77
    assert subprocess.run([mole, "--once"], env=own, check=False, **options).returncode == 69
    own["CLUSTER_DASH_POLL_SETTINGS__POLL_INTERVAL_IN_SECS"] = "often"
    assert subprocess.run([mole, "--once"], env=own, check=False, **options).returncode == 78
    assert subprocess.run([mole, "--nonsense"], env=own, check=False, **options).returncode == 2


@pytest.mark.needs("make")
def test_make_run_shows_this_machine_with_nothing_else_typed(
    clone: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    own = {**environment, "XDG_STATE_HOME": str(tmp_path)}
    with Process(["make", "run", f"PORT={port}"], environment=own, folder=clone) as run:
        url = f"http://127.0.0.1:{port}"

        def shown() -> Any:
            if run.popen.poll() is not None:
                raise RuntimeError(run.output.decode())
            try:
                hosts = get(f"{url}/api/v1/cluster")["hosts"]
            except OSError:
                return None
            return hosts if hosts["host"] else None

        hosts = wait_until(shown, 120, "this machine on its own dashboard")
        assert hosts["num_cpus"] == [os.cpu_count()]
        assert hosts["memory_total_gb"][0] > 0
        for pid in run.family()[1:]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"dev/run.py"]:
                    os.kill(pid, signal.SIGINT)
        run.popen.wait(60)
    with pytest.raises(OSError, match="refused"):
        get(f"{url}/healthz")


@pytest.mark.needs("make")
def test_make_bench_prints_its_table(clone: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["make", "-n", "bench", "check", "test"], cwd=TOP, env=environment, capture_output=True, text=True, check=True
    )
    assert "bench/run.py" in done.stdout
    few_hosts = "import sys; from bench import run, start; start.HOSTS = 50; sys.exit(run.main())"
    printed = subprocess.run(
        [TOP / ".venv" / "bin" / "python", "-c", few_hosts, "start", "--runs", "1"],
        **{"cwd": TOP, "capture_output": True, "text": True, "check": False},  # type: ignore[call-overload]
    )
    assert "| server answers after its start |" in printed.stdout, printed.stderr
    script = subprocess.run(  # by itself, from elsewhere: it has to find its parts
        [TOP / ".venv" / "bin" / "python", TOP / "bench" / "run.py", "--help"],
        **{"cwd": clone, "capture_output": True, "text": True, "check": False},  # type: ignore[call-overload]
    )
    assert "usage: run.py" in script.stdout, script.stderr
