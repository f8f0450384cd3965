"""Each row of what the doctor may find, from a real cause where a machine without a GPU has it."""

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from cluster_dash_mole import doctor
from cluster_dash_mole.batches import Held, Source
from cluster_dash_mole.doctor import Finding
from cluster_dash_mole.mole import Reading, SystemClock
from cluster_dash_mole.senders import GoogleSheetsSender, HttpSender
from cluster_dash_mole.snapshot import gpu_error
from cluster_dash_mole.spool import Spool

SECRET = "planted-s3cret"
Script = Callable[[socket.socket], None]


NOW = "(when it is sent)"


def answer(status: int, msg: str, **headers: str) -> bytes:
    body = json.dumps({"success": status == 200, "msg": msg})
    every = {"Content-Type": "application/json", "Accept-Encoding": "gzip, zstd", "Date": NOW}
    every |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Words", *(f"{name}: {value}" for name, value in every.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode()


TAKEN = answer(400, "timestamp: missing")
HTML = b"HTTP/1.1 %d Words\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"


class Server:
    """Answers every connection with the same bytes; `bodies` are what it was sent."""

    def __init__(self, says: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.bodies: list[dict[str, object]] = []
        self._says = says
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._talk(self._tls.wrap_socket(connection, server_side=True) if self._tls else connection)

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            head = b"".join(iter(stream.readline, b"\r\n"))
            length = re.search(rb"Content-Length: (\d+)", head)
            self.bodies.append(json.loads(stream.read(int(length[1]) if length else 0)))
            connection.sendall(self._says.replace(NOW.encode(), formatdate(usegmt=True).encode()))


def http(address: str, ca_file: Path | None = None) -> HttpSender:
    return HttpSender(
        address=address,
        auth_code=SECRET,
        clock=SystemClock(),
        environ={},
        ca_file=None if ca_file is None else str(ca_file),
    )


def asked(says: bytes) -> list[Finding]:
    with Server(says) as server:
        findings = list(doctor.server(http(f"http://127.0.0.1:{server.port}/dash/"), "gpu01"))
        assert server.bodies == [{"hostname": "gpu01", "auth_code": SECRET}]
    assert SECRET not in "".join(map(str, findings))
    return findings


def test_a_server_that_knows_the_passcode_is_good_and_is_given_nothing_to_store() -> None:
    found = asked(TAKEN)
    assert [(finding.mark, finding.what) for finding in found] == [("✔", "server"), ("✔", "clock")]
    assert doctor.exit_code(found) == 0


@pytest.mark.parametrize(
    ("says", "code", "words", "exit_code"),
    [
        (answer(401, "auth_code: not known here"), "CD201", "not known here", 77),
        (answer(403, "revoked"), "CD203", "revoked", 77),
        (answer(409, "gpu01: another machine"), "CD202", "another machine", 77),
        (answer(200, "stored result"), "CD104", "not cluster-dash", 69),
        (HTML % 200, "CD104", "not cluster-dash", 69),
        (HTML % 400, "CD104", "not cluster-dash", 69),
        (HTML % 404, "CD104", "not cluster-dash", 69),
        (answer(302, "", Location="https://login.example.org/"), "CD104", "redirected", 69),
        (HTML % 502, "", "502", 69),
        (answer(503, "starting", Retry_After="5"), "", "busy (503): starting", 69),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "CD104", "does not speak HTTP", 69),
        (b"\x15\x03\x01\x00\x02\x02\x46", "CD105", "speaks TLS: name an https:// address", 69),
        (b"", "CD102", "if it speaks TLS, name an https:// address", 69),
    ],
)
def test_what_a_server_may_answer_has_a_code_a_cause_and_a_command(
    says: bytes, code: str, words: str, exit_code: int
) -> None:
    (finding,) = asked(says)
    assert (finding.mark, finding.code) == ("✘", code)
    assert words in finding.measured
    assert finding.cause
    assert finding.command
    assert "{" not in finding.command
    assert doctor.exit_code([finding]) == exit_code


def test_a_server_of_the_first_version_does_not_tell_whether_it_knows_the_passcode() -> None:
    found = asked(TAKEN.replace(b"Accept-Encoding", b"X-Nothing"))
    assert [finding.mark for finding in found] == ["!", "✔"]
    assert found[0].command == "cluster-dash-mole --once"


@pytest.mark.parametrize(("ahead", "mark"), [(412, "✘"), (-412, "✘"), (30, "✔"), (0, "✔")])
def test_a_clock_that_is_off_is_measured_by_the_servers_date(ahead: int, mark: str) -> None:
    finding = asked(answer(400, "timestamp: missing", Date=formatdate(time.time() - ahead, usegmt=True)))[1]
    assert finding.mark == mark
    if mark == "✘":
        assert finding.code == "CD302"
        assert re.search(rf"41[123] s {'ahead' if ahead > 0 else 'behind'}", finding.measured)


@pytest.mark.parametrize("date", ["", "yesterday", "Thu, 99 Foo 2026 00:00:00 GMT"])
def test_a_date_that_is_none_says_nothing(date: str) -> None:
    assert [finding.what for finding in asked(answer(400, "timestamp: missing", Date=date))] == ["server"]


def test_a_name_that_is_not_resolved() -> None:
    (finding,) = doctor.server(http("http://no-such-host.invalid:8080"), "gpu01")
    assert (finding.code, finding.command) == ("CD101", "getent hosts no-such-host.invalid")
    assert doctor.exit_code([finding]) == 69
    (finding,) = doctor.server(http("http://$(reboot).invalid"), "gpu01")
    assert finding.command == "getent hosts '$(reboot).invalid'"


def test_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    (finding,) = doctor.server(http(url), "gpu01")
    assert (finding.code, finding.command) == ("CD102", f"curl -v {url}/healthz")
    assert "refused" in finding.measured


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for another name, with its key, in one file."""
    path = tmp_path_factory.mktemp("ca") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=other.lab"
    more = ["-addext", "subjectAltName=DNS:other.lab", "-keyout", str(path), "-out", str(path)]
    if subprocess.run([*command.split(), *more], capture_output=True, check=False).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("openssl cannot make a certificate here")
    return path


@pytest.mark.parametrize("known", [False, True], ids=["of an unknown CA", "for another name"])
def test_a_certificate_that_is_not_trusted(certificate: Path, known: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(TAKEN, context) as server:
        address = f"https://127.0.0.1:{server.port}"
        (finding,) = doctor.server(http(address, certificate if known else None), "gpu01")
        assert server.bodies == []
    assert finding.code == "CD103"
    assert ("IP address mismatch" if known else "self-signed") in finding.measured
    assert f"-connect 127.0.0.1:{server.port}" in finding.command


def test_a_proxy_is_named() -> None:
    with Server(answer(401, "auth_code: not known here")) as proxy:
        sender = HttpSender(
            address="http://dash.lab:8080",
            auth_code=None,
            clock=SystemClock(),
            environ={"http_proxy": f"http://127.0.0.1:{proxy.port}"},
        )
        found = list(doctor.server(sender, "gpu01"))
    assert [(finding.what, finding.mark) for finding in found] == [("proxy", "✔"), ("server", "✘")]
    assert f"127.0.0.1:{proxy.port}" in found[0].measured


def test_google_sheets_without_a_key_file_or_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets = GoogleSheetsSender(key_file=str(tmp_path / "key"), spreadsheet_id="1", worksheet_name="x")
    finding = doctor.google(sheets)
    assert (finding.mark, finding.command) == ("✘", f"grep client_email {tmp_path}/key")
    assert "service_account_file_path" in finding.measured
    monkeypatch.setitem(sys.modules, "gspread", None)
    assert doctor.google(sheets).command == "uv sync --extra sheets"


def gpu(**more: object) -> dict[str, object]:
    return {"0_H100_aaaaaa": {"index": 0}, "1_H100_bbbbbb": {"index": 1, **more}}


@pytest.mark.parametrize(
    ("reading", "devices", "expected"),
    [
        (Reading(parts={"gpu": gpu()}), 2, [("✔", "")]),
        (Reading(parts={"gpu": {}}, error="no NVIDIA GPU on this host: NVML sees none"), 0, [("✔", "")]),
        (Reading(parts={"gpu": gpu()}), 3, [("!", "CD403"), ("✔", "")]),
        (Reading(parts={"gpu": gpu(error="GPU 1: NVML 15: lost")}), 2, [("✘", ""), ("✔", "")]),
        (Reading(parts={"gpu": gpu()}, error="CD405 owners hidden: 2 of 9 processes"), 2, [("!", "CD405"), ("✔", "")]),
        (Reading(parts={"gpu": gpu_error("x")}, ok=False, error="CD404 NVML sees no GPU"), 1, [("✘", "CD404")]),
        (Reading(parts={"gpu": gpu_error("x")}, ok=False, error="timeout: no answer"), 1, [("✘", "")]),
    ],
)
def test_what_nvml_gives_is_judged(reading: Reading, devices: int, expected: list[tuple[str, str]]) -> None:
    found = list(doctor.gpus(reading, 0.05, devices))
    assert [(finding.mark, finding.code) for finding in found] == expected
    assert all(finding.cause and finding.command for finding in found if finding.mark != "✔")


def test_gpus_on_the_bus_are_counted_without_their_sound_cards_and_switches(tmp_path: Path) -> None:
    kinds = [("0x10de", "0x030200"), ("0x10de", "0x030000"), ("0x10de", "0x040300"), ("0x10de", "0x068000")]
    for number, (vendor, kind) in enumerate([*kinds, ("0x1a03", "0x030000")]):
        folder = tmp_path / "bus/pci/devices" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    assert doctor.on_the_bus(str(tmp_path)) == 2


class Failing:
    def __init__(self, name: str, answer: Reading | Exception) -> None:
        self.name = name
        self._answer = answer

    def collect(self) -> Reading:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def test_a_collector_that_fails_hides_no_other() -> None:
    dead_mount = Reading(parts={"disk": {"/dev/sda": {}}}, ok=False, error="/scratch: no answer")
    kinds = [
        Failing("cpu", OSError(2, "No such file")),
        Failing("disk", dead_mount),
        Failing("memory", Reading()),
    ]
    found = list(doctor.hardware(kinds))
    assert [(finding.mark, finding.what) for finding in found] == [("✘", "cpu"), ("!", "disks"), ("✔", "memory")]
    assert "/scratch: no answer" in found[1].measured


HIDDEN = "sysfs /sys sysfs rw 0 0\nproc /proc proc rw,nosuid,relatime,gid=990,hidepid=invisible 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "uid", "groups", "mark"),
    [
        ("proc /proc proc rw,nosuid,relatime 0 0\n", 1000, [1000], "✔"),
        ("proc /proc proc rw,hidepid=off 0 0\n", 1000, [1000], "✔"),
        (HIDDEN, 1000, [1000], "!"),
        (HIDDEN, 1000, [1000, 990], "✔"),
        (HIDDEN, 0, [0, 990], "!"),  # root itself sees all, and is not who the mole runs as
        ("proc /proc proc rw,hidepid=2 0 0\n", 1000, [1000], "!"),
    ],
)
def test_owners_that_proc_hides_from_this_user(mounts: str, uid: int, groups: list[int], mark: str) -> None:
    finding = doctor.owners(mounts, uid=uid, groups=groups)
    assert (finding.mark, finding.code) == (mark, "" if mark == "✔" else "CD405")


def test_a_state_folder_that_cannot_be_made_is_said_and_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o755)
    assert doctor.state({"STATE_DIRECTORY": str(tmp_path / "file/x")}, "gpu01").mark == "!"
    assert doctor.state({"XDG_STATE_HOME": str(tmp_path / "new")}, "gpu01").mark == "✔"
    assert doctor.state({"STATE_DIRECTORY": str(tmp_path)}, "gpu01").measured == f"{tmp_path} can be written"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_exit_code_is_the_worst() -> None:
    def found(*codes: int) -> list[Finding]:
        return [Finding(mark="✘", what="x", measured="y", exit_code=code) for code in codes]

    good = Finding(mark="!", what="x", measured="y")
    assert [doctor.exit_code([good, *found(*codes)]) for codes in ((), (69,), (77,), (69, 1), (77, 78), (1, 78))] == [
        *(0, 69, 77, 1, 78, 78)
    ]


def examine(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_DASH_")}
    return subprocess.run(
        [sys.executable, "-m", "cluster_dash_mole", "doctor", *arguments],
        cwd=folder,
        env={**own, "STATE_DIRECTORY": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    with Server(TAKEN) as server:
        path = tmp_path / "config.toml"
        path.write_text(
            '[Json_Sender_Logger]\nuse = true\nauth_code_file = "secret"\n'
            f'address_in = "http://127.0.0.1:{server.port}"\n'
        )
        (tmp_path / "secret").write_text(SECRET)
        (tmp_path / "secret").chmod(0o600)
        yield path


def test_the_command_says_all_and_ends_with_0_where_all_is_good(config: Path, nvml_folder: Path) -> None:
    done = examine(config.parent, LD_LIBRARY_PATH=str(nvml_folder), LC_ALL="C.UTF-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert SECRET not in done.stdout
    subjects = re.findall(r"^[✔!] ([^:]+): ", done.stdout, re.MULTILINE)
    assert [subject for subject in subjects if subject != "user"] == [
        *("mole", "configuration", "server", "clock", "GPUs", "cpu", "memory", "disks", "network"),
        *("owners of processes", "state folder"),
    ]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("fault nvmlInit* DRIVER_NOT_LOADED", "CD401"),
        ("fault nvmlInit* LIB_RM_VERSION_MISMATCH", "CD402"),
        ("fault nvmlInit* NO_PERMISSION", "CD404"),
        ("gpu.1.lost = 1", "1: NVML 15"),
    ],
)
def test_the_command_reads_the_driver_itself(config: Path, nvml_folder: Path, fault: str, says: str) -> None:
    nvml = config.with_name("nvml.conf")
    nvml.write_text(f"gpus = 2\n{fault}\n")
    done = examine(config.parent, LD_LIBRARY_PATH=str(nvml_folder), FAKE_NVML_CONFIG=str(nvml), PYTHONUTF8="1")
    assert done.returncode == 1
    assert re.search(rf"^✘ GPU.*{says}.*\n    likely: .+\n    try:    .+$", done.stdout, re.MULTILINE)


def test_a_secret_that_everybody_can_read_is_said(config: Path) -> None:
    (config.parent / "secret").chmod(0o644)
    done = examine(config.parent)
    assert "! auth_code_file: secret has mode 0644" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("text", [None, "[Sender]\n", ""], ids=["no file", "a wrong section", "no sender"])
def test_a_wrong_configuration_ends_with_78_and_the_host_is_looked_at_all_the_same(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "config.toml").write_text(text)
    done = examine(tmp_path)
    assert done.returncode == 78
    assert "✘ configuration: " in done.stdout
    assert "memory: read" in done.stdout


def test_a_terminal_without_the_signs_still_shows_them_apart(config: Path) -> None:
    done = examine(config.parent, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"\u2714 mole" in done.stdout


def test_the_spool_is_said_where_there_is_one_and_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    assert list(doctor.spooled(folder, 0.0)) == []
    source = Source("gpu01", "boot")
    spool = Spool(folder, most_bytes=2**20, source=source)
    spool.failed(0.0)
    for seq in range(40):
        body = b'{"hostname":"gpu01","boot_id":"boot"}'
        spool.add(Held(source, seq, 1_790_000_000.0 + seq, body))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (waiting,) = doctor.spooled(folder, 1_790_000_000.0 + 4 * 3600)
    assert waiting.mark == "!"
    assert waiting.measured.startswith("40 snapshots wait for the server, the oldest for 4 h: 0.0 MiB")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    spool.durable(source, 40)
    (folder / "0000000001.batch.bad-1790000000").touch()
    damaged, nothing = doctor.spooled(folder, 1_790_000_000.0)
    assert (damaged.mark, nothing.mark) == ("!", "✔")


def test_slurm_is_judged_by_what_it_said_and_what_it_kept_to_itself() -> None:
    block = {"version": "24.11.5", "nodes": {"name": ["a"]}, "jobs": {"id": []}, "notes": ["PrivateData hides jobs"]}
    found = list(doctor.slurm(Reading(once={"slurm": block}), 0.5))
    assert [(each.mark, each.measured) for each in found] == [
        ("✔", "1 nodes, 0 jobs of version 24.11.5 in 0.5 s"),
        ("!", "PrivateData hides jobs"),
    ]
    (failed,) = doctor.slurm(Reading(ok=False, error="Slurm not read (never yet): no answer"), 20.0)
    assert (failed.mark, failed.command) == ("✘", "scontrol ping")
