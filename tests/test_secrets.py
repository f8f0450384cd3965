"""Secrets are planted wherever one can be, and looked for in all that comes out: files, pages, logs, backups."""

import base64
import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import zstandard

from cluster_dash_server.control import ask
from tests.processes import BIN, Listening, Process, fake_nvml, snapshot, start_server, wait_until

PASSCODE = "planted-passcode-of-the-site"
PASSWORD = "planted-password-of-ann"
IN_ARGUMENTS, IN_ENVIRONMENT = "planted-in-a-command-line", "planted-in-an-environment"
GUESSES = ("planted-by-a-guesser", "cdh_planted0_" + "p" * 43, "planted-wrong-password", "planted-in-a-query")
CANARY = "canary-of-this-test"
"""A user's name, which is no secret: where it is not found, the search itself is broken."""
PATHS = (
    *("/", "/?format=csv", "/?format=json", "/gpu-data", "/gpu-data?format=csv", "/cpu-data", "/memory", "/root_drive"),
    *("/load-data-1", f"/user/{CANARY}", "/host/gpu01", "/host/gpu01?format=json", "/history", "/history?by=user"),
    *("/history?by=gpu&format=json", "/waste", "/waste?format=csv", "/slurm", "/status", "/tv", "/embed/overview"),
    *("/badge/free.svg", "/sign-in", "/data-out/gpu-data-simple", "/api/dashboard-data", "/api/gpu-summary"),
    *("/api/history-data", "/api/v1/series?metric=gpu_util", "/api/v1/waste", "/api/v1/cluster", "/api/v1/facets"),
    *("/api/v1/hosts/gpu01", "/api/v1/free", "/api/v1/events", "/api/v1/slurm", "/api/v1/status", "/api/v1/http-sd"),
    *("/api/v1/openapi.json", "/metrics", "/metrics?family=dcgm&host=gpu01", "/readyz", "/healthz"),
)


def inflated(blob: bytes) -> bytes:
    """Return bytes with what is packed in them: zstd and zlib, wherever a frame begins."""
    found = [blob]
    place = blob.find(b"\x28\xb5\x2f\xfd")
    while place >= 0:
        with contextlib.suppress(zstandard.ZstdError):
            found.append(zstandard.ZstdDecompressor().decompressobj().decompress(blob[place:]))
        place = blob.find(b"\x28\xb5\x2f\xfd", place + 1)
    with contextlib.suppress(zlib.error):
        found.append(zlib.decompressobj(47).decompress(blob))
    return b"\n".join(found)


def rows_of(file: Path) -> Iterator[bytes]:
    """Give every cell of every table of a database."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in db.execute(f"SELECT * FROM {table}"):  # noqa: S608 - a name of the file's own
                for cell in row:
                    yield inflated(cell) if isinstance(cell, bytes) else str(cell).encode()


def kept_in(folder: Path) -> bytes:
    """Return all that the files of a folder hold: as they are, and what is packed in them."""
    found = []
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        found.append(inflated(file.read_bytes()))
        if file.suffix in (".db", ".sqlite"):
            found += rows_of(file)
    return b"\n".join(found)


def answers(server: Listening, paths: Iterable[str], headers: dict[str, str]) -> bytes:
    """Return the answers to some requests, headers and refusals too."""
    found = []
    for path in paths:
        try:
            answer = urllib.request.urlopen(urllib.request.Request(server.url + path, headers=headers), timeout=60)
        except urllib.error.HTTPError as refusal:
            answer = refusal
        assert answer.status in (200, 401, 403, 404, 429), f"{path}: {server.output[-4000:].decode()}"
        found += [str(answer.headers).encode(), answer.read()]
    return b"\n".join(found)


def post(server: Listening, path: str, document: object, **headers: str) -> None:
    request = urllib.request.Request(server.url + path, json.dumps(document).encode(), headers)
    request.add_header("Content-Type", "application/json")
    try:
        urllib.request.urlopen(request, timeout=60).read()
    except urllib.error.HTTPError as refusal:
        refusal.read()


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()}


def run(*command: str | Path, typed: str = "") -> bytes:
    done = subprocess.run([str(each) for each in command], input=typed.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.needs("gcc")
def test_planted_secrets_are_found_nowhere(tmp_path: Path) -> None:
    fake_nvml()
    data, state = tmp_path / "data", tmp_path / "mole"
    state.mkdir()
    run(BIN / "cluster-dash-server", "user", "add", "ann", "--file", tmp_path / "users", typed=PASSWORD + "\n")
    settings = {
        "CLUSTER_DASH_INGEST__PASSCODE": PASSCODE,
        "CLUSTER_DASH_VIEWERS__MODE": "basic",
        "CLUSTER_DASH_VIEWERS__USERS_FILE": str(tmp_path / "users"),
    }
    with ExitStack() as stack:
        sleeper = [sys.executable, "-c", "import time; time.sleep(3600)", f"--password={IN_ARGUMENTS}"]
        busy = stack.enter_context(Process(sleeper, environment={"PLANTED_TOKEN": IN_ENVIRONMENT}))
        (tmp_path / "nvml.conf").write_text(f"gpus = 2\nproc 0 {busy.popen.pid} 3000 C\n")
        server = stack.enter_context(start_server("--data", data, "-v", environment=settings))
        made = [
            ask(data, {"token": {"new": {"kind": kind, "hosts": whose, "scopes": scopes}}})["token"]
            for kind, whose, scopes in (("host", "*", ()), ("enrol", "gpu*", ()), ("read", "grafana", ("state:read",)))
        ]
        (state / "auth_code").write_text(made[0])
        (state / "auth_code").chmod(0o600)
        (state / "config.toml").write_text(
            "[Poll_Settings]\npoll_interval_in_secs = 1\n"
            f'[Json_Sender_Logger]\nuse = true\naddress_in = "{server.url}"\nauth_code_file = "{state}/auth_code"\n'
        )
        mole = stack.enter_context(
            Process(
                [BIN / "cluster-dash-mole", "run", "-v", "-c", state / "config.toml"],
                environment={
                    **{"STATE_DIRECTORY": str(tmp_path / "state"), "LD_LIBRARY_PATH": str(fake_nvml())},
                    "FAKE_NVML_CONFIG": str(tmp_path / "nvml.conf"),
                },
                folder=state,
            )
        )
        secrets = [PASSCODE, PASSWORD, IN_ARGUMENTS, IN_ENVIRONMENT, *GUESSES, *made]
        canary = {"auth_code": PASSCODE, **snapshot("gpu01", 1, 0)}
        entry = next(iter(canary["gpu"].values()))
        entry["users"] = {CANARY: {"4242": {"mem": 4000.0, "name": "python3"}}}
        for secret in secrets:
            post(server, "/", {**snapshot("gpu02", 1, 1), "auth_code": secret})
            post(server, "/", {**snapshot("gpu02", 1, 1), "auth_code": secret, "cpu": secret})
            post(server, "/", canary, Authorization=f"Bearer {secret}", Cookie=f"cluster_dash={secret}")
            post(server, "/api/v1/enrol", {"code": secret, "hostname": "gpu03", "machine_id": "m"})
            answers(server, [f"/?token={secret}", f"/api/v1/cluster?auth_code={secret}"], {})
            answers(server, ["/", "/api/v1/cluster"], basic(secret))
        post(server, "/", canary)
        mole_host = socket.gethostname()
        wait_until(
            lambda: mole_host.encode() in answers(server, ["/api/v1/cluster"], basic(PASSWORD)), 20, "the mole's host"
        )
        wait_until(lambda: CANARY.encode() in kept_in(data), 60, "history is written")
        paths = [*PATHS, f"/host/{mole_host}", f"/api/v1/hosts/{mole_host}"]
        shown = answers(server, paths, basic(PASSWORD)) + answers(server, paths, {})
        assert f'"{busy.popen.pid}"'.encode() in shown  # the process with secrets is told of
        files = [tmp_path / f"{what}.csv" for what in ("figures", "hours", "uses", "events")]
        said = run(BIN / "cluster-dash-server", "backup", "--data", data, tmp_path / "backup.tar")
        for file in files:
            said += run(*(BIN / "cluster-dash-server", "export", file.stem, "--data", data, "--step", "1", "-o", file))
        output = server.output + mole.output
    with tarfile.open(tmp_path / "backup.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    places = {
        "pages and answers": shown,
        "logs": output,
        "what commands say": said,
        "the data folder": kept_in(data),
        "the backup": kept_in(tmp_path / "unpacked"),
        "exports": b"\n".join(file.read_bytes() for file in files),
        "the mole's state": kept_in(tmp_path / "state"),
        "the users file": (tmp_path / "users").read_bytes(),
    }
    found = [(place, secret) for place, text in places.items() for secret in secrets if secret.encode() in text]
    assert found == []
    for place in ("pages and answers", "the data folder", "the backup", "exports"):
        assert CANARY.encode() in places[place], place
