"""What the doctor says of each thing, and that it says the cause and a command wherever it is not good."""

import dataclasses
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.access.tokens import TokenFile, Tokens
from cluster_dash_server.cli import main
from cluster_dash_server.commands import doctor
from cluster_dash_server.commands.doctor import Finding
from cluster_dash_server.history.settings import HistorySettings
from cluster_dash_server.ledger.settings import LedgerSettings
from cluster_dash_server.notices.receivers import AlertSettings, Receiver
from cluster_dash_server.port_holder import Holder
from cluster_dash_server.relaying.relay import RelaySettings
from cluster_dash_server.settings import ServerSettings, Settings, ViewerSettings, read
from cluster_dash_server.sharing.kinds import LiveSettings

FAR = "0.0.0.0"  # noqa: S104 - a setting that is looked at


def settings(passcode: str | None = "a-passcode-of-24-characters", **server: Any) -> Settings:
    return dataclasses.replace(
        Settings(),
        server=ServerSettings(**server),
        ingest=dataclasses.replace(Settings().ingest, passcode=passcode),
    )


def only(findings: Any) -> Finding:
    (finding,) = findings
    assert isinstance(finding, Finding)
    assert (finding.mark == "✔") is (finding.cause == "") is (finding.command == "")
    return finding


def test_a_finding_is_worded_as_a_line_and_its_mend() -> None:
    finding = Finding(mark="✘", what="port", measured="in use by a\nb", cause="it is", command="ss", code="CD601")
    assert str(finding) == "✘ port (CD601): in use by a�b\n    likely: it is\n    try:    ss"
    assert str(Finding(mark="✔", what="clock", measured="good")) == "✔ clock: good"
    assert [Finding(mark=mark, what="", measured="").is_problem for mark in ("✔", "!", "✘")] == [False, False, True]


@pytest.mark.parametrize(
    ("passcode", "host", "mark", "says"),
    [
        (None, "127.0.0.1", "!", "none set"),
        (None, FAR, "✘", "none set"),  # no other host can post
        ("lab_cluster_2025", FAR, "!", "the one that everybody has"),
        ("kurz", FAR, "!", "4 characters"),
        ("a-passcode-of-24-characters", FAR, "✔", "the site's own"),
    ],
)
def test_the_passcode(passcode: str | None, host: str, mark: str, says: str) -> None:
    finding = only(doctor.passcode(settings(passcode, host=host), None))
    assert finding.mark == mark
    assert says in finding.measured
    assert finding.code == ("" if mark == "✔" else "CD204")
    if passcode:
        assert passcode not in str(finding)


def test_a_passcode_that_every_user_can_read_is_named_with_its_mode(tmp_path: Path) -> None:
    secret, file = tmp_path / "a passcode", tmp_path / "server.toml"
    secret.write_text("a-passcode-of-24-characters")
    file.write_text(f'[ingest]\npasscode_file = "{secret}"\n')
    secret.chmod(0o640)
    file.chmod(0o644)
    reading = read(file, environment={})
    assert [each.mark for each in doctor.passcode(reading.settings, file)] == ["✔"]
    secret.chmod(0o644)
    _, readable = doctor.passcode(reading.settings, file)
    assert "mode 0644" in readable.measured
    assert readable.command == f"chmod o-r '{secret}'"
    file.write_text('[ingest]\npasscode = "a-passcode-of-24-characters"\n')
    _, readable = doctor.passcode(read(file, environment={}).settings, file)
    assert str(file) in readable.measured


def test_a_free_address_is_good_and_a_server_of_ours_is_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert only([doctor.listening(ServerSettings(port=port), None, None)]).measured == f"127.0.0.1:{port} is free"
    running = doctor.listening(ServerSettings(port=port), {"version": "1.2.3", "hosts": 8}, None)
    assert only([running]).measured == f"cluster-dash-server 1.2.3 answers at 127.0.0.1:{port}, with 8 hosts"


def test_a_port_that_another_has_is_named_with_pid_and_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = doctor.listening(ServerSettings(port=port), None, Holder(pid=4121, program="jupyter"))
    assert finding.code == "CD601"
    assert str(only([finding])).startswith(f"✘ port {port} (CD601): in use by pid 4121 (jupyter)\n")
    assert finding.command == f"cluster-dash-server serve --port {port + 1}"


def test_an_address_of_another_machine_is_a_problem() -> None:
    finding = only([doctor.listening(ServerSettings(host="192.0.2.77", port=0), None, None)])
    assert (finding.mark, finding.what) == ("✘", "address 192.0.2.77:0")


def test_open_files_are_those_of_the_running_server_if_there_is_one() -> None:
    assert "here" in only([doctor.open_files(1, None)]).measured
    running = only([doctor.open_files(2**40, Holder(pid=os.getpid(), program="python"))])
    assert running.mark == "!"
    assert "of the running server" in running.measured
    assert str(2**40 + 64) in running.command


def test_the_data_folder_must_be_there_and_writable(tmp_path: Path) -> None:
    assert only([doctor.data_folder(str(tmp_path))]).mark == "✔"
    missing = only([doctor.data_folder(str(tmp_path / "a b"))])
    assert missing.mark == "✘"
    assert "is no folder" in missing.measured
    assert missing.command.endswith(f"'{tmp_path / 'a b'}'")


def test_a_data_folder_on_a_network_is_warned_of_also_before_it_is_made(tmp_path: Path) -> None:
    mounts = f"1 0 0:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / {tmp_path}/home rw - nfs4 files:/home rw\n"
    finding = only(doctor.network_folder(tmp_path / "home" / "ada" / "cluster-dash", mounts))
    assert finding.mark == "!"
    assert f"{tmp_path}/home/ada/cluster-dash is on nfs4" in finding.measured
    assert list(doctor.network_folder(tmp_path / "local", mounts)) == []


def test_a_slow_json_or_schema_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only([doctor.engines()]).mark == "✔"
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "orjson" else object())
    assert "without orjson a post costs up to a hundred times" in only([doctor.engines()]).measured
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "msgspec" else object())
    assert "without msgspec a post costs twice" in only([doctor.engines()]).measured


@pytest.mark.parametrize(
    ("live", "history", "ledger", "mark", "says"),
    [
        ("redis", "remote", "postgresql", "✔", "several may run"),
        ("memory", "remote", "postgresql", "!", "[live] kind is of one server"),
        ("redis", "sqlite", "sqlite", "!", "[history] kind and [ledger] kind are of one server"),
    ],
)
def test_replicas_that_do_not_share_all_are_warned_of(
    live: str, history: str, ledger: str, mark: str, says: str
) -> None:
    finding = only(doctor.how_many(with_kinds(live, history, ledger)))
    assert finding.mark == mark
    assert says in finding.measured


@pytest.mark.parametrize("history", ["sqlite", "remote"])
def test_of_one_server_nothing_is_said_of_replicas(history: str) -> None:
    assert list(doctor.how_many(with_kinds("memory", history, "sqlite"))) == []


def with_kinds(live: str, history: str, ledger: str) -> Settings:
    return dataclasses.replace(
        Settings(),
        live=LiveSettings(kind=live),
        history=HistorySettings(kind=history),
        ledger=LedgerSettings(kind=ledger),
    )


def test_the_clock_is_the_kernel_s_word() -> None:
    assert only([doctor.clock(5)]).code == "CD302"
    assert doctor.clock(0).measured == "synchronised"
    assert doctor.clock(None).measured == "unknown"
    assert doctor.kernel_clock_state() in {None, *range(6)}


@pytest.mark.parametrize(
    ("server", "mark", "says"),
    [
        ({}, "✔", "from this machine only"),
        ({"public_url": "https://dash.example.org/"}, "✔", "https://dash.example.org/"),
        ({"host": FAR}, "!", "in the clear"),
        ({"host": FAR, "public_url": "http://dash.example.org/"}, "!", "in the clear"),
        ({"host": FAR, "public_url": "https://dash.example.org/"}, "!", "is open beside it"),
    ],
)
def test_what_crosses_the_network_in_the_clear_is_said(server: Any, mark: str, says: str) -> None:
    finding = only(doctor.reach(settings(**server)))
    assert finding.mark == mark
    assert says in finding.measured


def test_a_public_name_that_is_not_trusted_is_a_problem() -> None:
    own = settings(public_url="https://dash.example.org/")
    own = dataclasses.replace(own, viewers=ViewerSettings(trusted_hosts=("dash.lab",)))
    problem, _ = doctor.reach(own)
    assert only([problem]).mark == "✘"
    assert "dash.example.org" in problem.measured
    own = dataclasses.replace(own, viewers=ViewerSettings(trusted_hosts=("Dash.Example.org",)))
    assert only(doctor.reach(own)).mark == "✔"


def test_the_command_ends_with_the_worst_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("CLUSTER_DASH_SERVER__PORT", str(free.getsockname()[1]))
    assert main(["doctor"]) == 0
    assert "✘" not in capsys.readouterr().out
    monkeypatch.setenv("CLUSTER_DASH_SERVER__DATA", str(tmp_path / "missing"))
    assert main(["doctor"]) == 1
    assert "✘ data folder" in capsys.readouterr().out
    monkeypatch.setenv("CLUSTER_DASH_SERVER__PORT", "x")
    assert main(["doctor"]) == 78
    assert "✘ settings (CD602): CLUSTER_DASH_SERVER__PORT: got 'x'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ingest", "made", "mark", "says"),
    [
        ({}, 0, "✔", "none of hosts"),
        ({}, 2, "✔", "2 of hosts, beside the passcode"),
        ({"require_tokens": True}, 1, "✔", "nothing else is taken"),
        ({"require_tokens": True}, 0, "✘", "takes nothing else"),
        ({"allow_plaintext_tokens": True}, 1, "!", "unencrypted"),
    ],
)
def test_the_tokens(ingest: dict[str, Any], made: int, mark: str, says: str, tmp_path: Path) -> None:
    tokens = Tokens(TokenFile(tmp_path), lambda: 1.7e9)
    for number in range(made):
        tokens.new("host", f"gpu{number}")
    far = settings(host=FAR)
    far = dataclasses.replace(far, ingest=dataclasses.replace(far.ingest, **ingest))
    finding = only([doctor.who_posts(far, Tokens(TokenFile(tmp_path), lambda: 1.7e9))])
    assert finding.mark == mark
    assert says in finding.measured


@pytest.mark.parametrize(
    ("viewers", "host", "mark", "says"),
    [
        ({}, FAR, "!", "everybody who reaches"),
        ({}, "127.0.0.1", "✔", "on this machine"),
        ({"mode": "basic"}, FAR, "✘", "users_file"),
        ({"mode": "basic", "users_file": "/not/there"}, FAR, "✘", "/not/there"),
        ({"mode": "proxy"}, FAR, "✘", "trusted_proxies"),
    ],
)
def test_who_may_look(viewers: dict[str, Any], host: str, mark: str, says: str) -> None:
    finding = only([doctor.who_looks(dataclasses.replace(settings(host=host), viewers=ViewerSettings(**viewers)))])
    assert finding.mark == mark
    assert says in finding.measured


def test_who_is_told_of_alerts(tmp_path: Path) -> None:
    assert "on the page /alerts alone" in only(doctor.who_is_told(AlertSettings(), None)).measured
    file = tmp_path / "server.toml"
    file.write_text("")
    file.chmod(0o644)
    receivers = (
        Receiver(name="am", kind="alertmanager", url="http://am.lab"),
        Receiver(name="hook", kind="webhook", url="http://hooks.lab", url_file="x", token="t", token_file="y"),
    )
    alerts = AlertSettings(receivers=receivers, mail_server="mail.lab", mail_security="none", mail_user="dash")
    told, mail, token = doctor.who_is_told(alerts, file)
    assert "told to am, hook" in told.measured
    assert "mails go to mail.lab unencrypted, and the password" in mail.measured
    assert (token.what, token.mark) == ("receiver hook", "!")
    *_, secrets = doctor.who_is_told(dataclasses.replace(alerts, mail_password="p"), file)
    assert secrets.what == "secrets of alerts"
    file.chmod(0o640)
    assert len(list(doctor.who_is_told(dataclasses.replace(alerts, mail_password="p"), file))) == 3
    near = dataclasses.replace(alerts, mail_server="localhost", receivers=receivers[:1])
    assert len(list(doctor.who_is_told(near, file))) == 1


@pytest.fixture
def centre() -> Any:
    """A server that answers /readyz as told: `centre.says = (status, body)`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            status, body = self.server.says  # type: ignore[attr-defined]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("says", "relay", "mark", "words"),
    [
        ((200, b'{"success": true, "hosts": 7, "version": "1.2"}'), {}, "✔", "is cluster-dash-server 1.2 with 7 hosts"),
        ((503, b'{"success": false, "hosts": 7, "version": "1.2"}'), {}, "!", "and not well"),
        ((200, b'{"hosts": 7, "version": "1"}'), {"allow_plaintext": True}, "!", "go there unencrypted"),
        ((200, b"<html>please sign in</html>"), {}, "✘", "answers 200, and not in the words of"),
        ((200, b"[]"), {}, "✘", "answers 200, and not in the words of"),
        (None, {}, "✘", "Connection refused"),
        (None, {"ca_file": "/none.pem"}, "✘", "No such file"),
    ],
)
def test_the_centre_of_a_relay(
    centre: Any, says: tuple[int, bytes] | None, relay: dict[str, Any], mark: str, words: str
) -> None:
    to = f"http://127.0.0.1:{centre.server_address[1]}"
    if says is None:
        with socket.create_server(("127.0.0.1", 0)) as bound:
            to = f"http{'s' * bool(relay)}://127.0.0.1:{bound.getsockname()[1]}"
    centre.says = says
    finding = only(doctor.centre(RelaySettings(to=to, **relay), to))
    assert finding.mark == mark
    assert words in finding.measured


def test_of_a_relay_only_what_it_uses_is_looked_at(centre: Any) -> None:
    centre.says = (200, b'{"success": true, "hosts": 7, "version": "1.2"}')
    to = f"http://127.0.0.1:{centre.server_address[1]}"
    looked_at = {finding.what for finding in doctor.examine(read(environment={"CLUSTER_DASH_RELAY__TO": to}))}
    assert "centre" in looked_at
    assert not looked_at & {"passcode", "data folder", "tokens", "viewers"}
