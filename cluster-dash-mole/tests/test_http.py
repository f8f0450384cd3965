"""The HTTP sender against a real socket that answers by a script."""

import contextlib
import gzip
import json
import logging
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_mole.mole import Row, SendError, SystemClock
from cluster_dash_mole.senders import HttpSender
from cluster_dash_mole.senders.http import exchange, parse_retry_after
from cluster_dash_mole.senders.http.exchange import parse_address, parse_chunked, parse_headers, proxy_of
from cluster_dash_mole.snapshot import Snapshot

SECRET = "planted-s3cret"
SNAPSHOT = Snapshot(
    hostname="gpu01",
    timestamp=1.0,
    interval_seconds=5,
    machine_id="m",
    boot_id="b",
    seq=1,
    parts={"cpu": {}, "gpu": {}},
    collectors={},
)


class Request(NamedTuple):
    line: str
    headers: dict[str, str]
    body: bytes

    def document(self) -> dict[str, object]:
        body = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        document: dict[str, object] = json.loads(body)
        return document


def answer(status: int, body: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body.encode())}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()


STORED = '{"success": true, "msg": "stored result"}'
FIRST_VERSION = answer(200, STORED, Content_Type="application/json")
OURS = answer(200, STORED, Content_Type="application/json", Accept_Encoding="gzip, zstd")


class Server:
    """Answers each connection by the next entry of the script: bytes to send, or what to do with the connection."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.script: list[bytes | Callable[[socket.socket], None]] = []
        self.requests: list[Request] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        step = self.script.pop(0)
        if self._tls:
            with self._tls.wrap_socket(connection, server_side=True) as secure:
                self._answer(secure, step)
        else:
            self._answer(connection, step)

    def _answer(self, connection: socket.socket, step: bytes | Callable[[socket.socket], None]) -> None:
        stream = connection.makefile("rb")
        head = b"".join(iter(stream.readline, b"\r\n"))
        headers = parse_headers(head)
        body = stream.read(int(headers.get("content-length", 0)))
        self.requests.append(Request(line=head.split(b"\r\n")[0].decode(), headers=headers, body=body))
        if callable(step):
            step(connection)
        else:
            connection.sendall(step)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def sender(server: Server, *, path: str = "", environ: dict[str, str] | None = None) -> HttpSender:
    address = f"http://127.0.0.1:{server.port}{path}"
    return HttpSender(address=address, auth_code=SECRET, clock=SystemClock(), environ=environ or {})


def failure(subject: HttpSender) -> SendError:
    with pytest.raises(SendError) as caught:
        subject.send(SNAPSHOT)
    assert SECRET not in str(caught.value)
    return caught.value


def test_a_first_post_is_plain_json_with_the_secret_in_the_body(server: Server) -> None:
    server.script = [FIRST_VERSION]
    sender(server).send(SNAPSHOT)
    (request,) = server.requests
    assert request.line == "POST / HTTP/1.1"
    assert request.document() == {**SNAPSHOT.document(), "auth_code": SECRET}
    assert request.headers["connection"] == "close"
    assert request.headers["content-type"] == "application/json"
    assert time.strptime(request.headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert not {"authorization", "content-encoding"} & set(request.headers)


def test_a_server_of_the_first_version_keeps_getting_plain_posts(server: Server) -> None:
    server.script = [FIRST_VERSION, FIRST_VERSION]
    subject = sender(server)
    subject.send(SNAPSHOT)
    subject.send(SNAPSHOT)
    assert server.requests[1].document()["auth_code"] == SECRET


def test_a_server_that_says_it_takes_gzip_gets_gzip_and_a_header(server: Server) -> None:
    server.script = [OURS, OURS]
    subject = sender(server)
    subject.send(SNAPSHOT)
    subject.send(SNAPSHOT)
    second = server.requests[1]
    assert second.headers["content-encoding"] == "gzip"
    assert second.headers["authorization"] == f"Bearer {SECRET}"
    assert second.document() == SNAPSHOT.document()


def test_a_server_that_went_back_to_the_first_version_costs_no_snapshot(server: Server) -> None:
    server.script = [OURS, answer(400, '{"success": false, "msg": "no JSON"}'), FIRST_VERSION]
    subject = sender(server)
    subject.send(SNAPSHOT)
    assert failure(subject).row is Row.TROUBLE
    subject.send(SNAPSHOT)
    assert server.requests[2].document()["auth_code"] == SECRET


def test_a_refusal_of_the_first_post_is_told_as_it_is(server: Server) -> None:
    server.script = [answer(401, '{"success": false}', Accept_Encoding="gzip, zstd")]
    assert failure(sender(server)).row is Row.WHO_ARE_YOU


def test_a_path_in_the_address_is_kept(server: Server) -> None:
    server.script = [FIRST_VERSION]
    sender(server, path="/dash/").send(SNAPSHOT)
    assert server.requests[0].line == "POST /dash/ HTTP/1.1"


@pytest.mark.parametrize(
    ("status", "headers", "row", "words"),
    [
        (400, {}, Row.NEVER, "CD301 refused (400): cpu: wrong"),
        (413, {}, Row.NEVER, "CD303 snapshot too large (413): cpu: wrong"),
        (422, {}, Row.NEVER, "CD301 refused (422): cpu: wrong"),
        (401, {}, Row.WHO_ARE_YOU, "CD201 no passcode or token, or not known here (401): cpu: wrong"),
        (403, {}, Row.WHO_ARE_YOU, "CD203 token revoked, or made for another host (403): cpu: wrong"),
        (409, {}, Row.WHO_ARE_YOU, "CD202 another machine still reports under this name (409): cpu: wrong"),
        (429, {"Retry_After": "7"}, Row.NOT_NOW, "server is busy (429): cpu: wrong"),
        (503, {"Retry_After": "7"}, Row.NOT_NOW, "server is busy (503): cpu: wrong"),
        (503, {}, Row.TROUBLE, "server answered 503: cpu: wrong"),
        (500, {}, Row.TROUBLE, "server answered 500: cpu: wrong"),
        (
            *(404, {}, Row.TROUBLE),
            "CD104 nothing takes snapshots at this address (404): cpu: wrong: look at the path of address_in",
        ),
        (204, {}, Row.TROUBLE, "server answered 204: cpu: wrong"),
        (200, {}, Row.TROUBLE, "not taken (200): cpu: wrong"),
    ],
)
def test_each_answer_is_read_by_its_row_of_the_contract(
    server: Server, status: int, headers: dict[str, str], row: Row, words: str
) -> None:
    server.script = [answer(status, '{"success": false, "msg": "cpu: wrong"}', **headers)]
    error = failure(sender(server))
    assert (error.row, str(error)) == (row, words)
    assert error.wait == (7 if row is Row.NOT_NOW else 0)


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.script = [answer(302, "", Location=f"http://127.0.0.1:{server.port}/elsewhere")]
    error = failure(sender(server))
    assert error.row is Row.TROUBLE
    assert f"redirected to http://127.0.0.1:{server.port}/elsewhere (302), not followed" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", ["<html>Please sign in</html>", "", "[]", "true"])
def test_html_in_place_of_json_is_no_receipt(server: Server, body: str) -> None:
    server.script = [answer(200, body)]
    error = failure(sender(server))
    assert error.row is Row.TROUBLE
    assert str(error).startswith("CD104")


def test_the_servers_words_are_cut_cleaned_and_rid_of_the_secret(server: Server) -> None:
    server.script = [answer(400, json.dumps({"msg": f"{SECRET}\n\x1b[2J" + "x" * 1000}))]
    text = str(failure(sender(server)))
    assert text.isprintable()
    assert "***" in text
    assert len(text) < 400


def hang_up(connection: socket.socket) -> None:
    connection.close()


def half(connection: socket.socket) -> None:
    connection.sendall(FIRST_VERSION[:-10])


def not_http(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def endless(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 65536)


def early_refusal(connection: socket.socket) -> None:
    connection.sendall(answer(413, "{}"))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (hang_up, "closed the connection without an answer"),
        (half, "closed the connection in mid-answer"),
        (not_http, "does not speak HTTP"),
        (endless, "too long"),
        (early_refusal, "snapshot too large"),
    ],
)
def test_an_answer_that_is_none_is_told_by_its_step(
    server: Server, step: Callable[[socket.socket], None], words: str
) -> None:
    server.script = [step]
    assert words in str(failure(sender(server)))


def test_a_chunked_answer_is_read(server: Server) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.script = [head + f"{len(STORED):x}\r\n{STORED}\r\n0\r\n\r\n".encode()]
    sender(server).send(SNAPSHOT)


def test_an_answer_to_the_end_of_the_connection_is_read(server: Server) -> None:
    server.script = [b"HTTP/1.0 200 OK\r\n\r\n" + STORED.encode()]
    sender(server).send(SNAPSHOT)


def test_a_black_hole_is_given_up_after_the_time_to_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "READ_SECONDS", 0.2)
    done = threading.Event()

    def wait(_: socket.socket) -> None:
        done.wait(60)

    server.script = [wait]
    started = time.monotonic()
    error = failure(sender(server))
    done.set()
    assert time.monotonic() - started < 20
    assert "no answer" in str(error)


def test_an_answer_in_drips_is_given_up_after_the_time_for_all(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "TOTAL_SECONDS", 0.4)
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        for byte in FIRST_VERSION * 10:
            connection.sendall(bytes([byte]))
            if done.wait(0.05):
                return

    server.script = [drip]
    started = time.monotonic()
    error = failure(sender(server))
    done.set()
    assert time.monotonic() - started < 20
    assert "no answer" in str(error)


def test_a_refused_connection_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    subject = HttpSender(address=f"http://127.0.0.1:{port}", auth_code=None, clock=SystemClock(), environ={})
    error = failure(subject)
    assert (error.row, str(error)) == (Row.TROUBLE, f"CD102 connection refused by 127.0.0.1:{port}")


def test_a_name_that_does_not_resolve_is_told() -> None:
    subject = HttpSender(address="http://dash.invalid:8080", auth_code=None, clock=SystemClock(), environ={})
    assert str(failure(subject)).startswith("CD101 cannot resolve dash.invalid")


def test_the_next_address_of_a_name_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where) for where in (closed, ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    server.script = [FIRST_VERSION]
    HttpSender(address="http://dash.lab", auth_code=None, clock=SystemClock(), environ={}).send(SNAPSHOT)


def test_a_secret_in_clear_is_warned_about_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    subject = HttpSender(address="http://dash.invalid", auth_code=SECRET, clock=SystemClock(), environ={})
    failure(subject)
    failure(subject)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert SECRET not in warnings[0]


def test_a_proxy_gets_the_whole_address(server: Server) -> None:
    server.script = [FIRST_VERSION]
    environ = {"http_proxy": f"http://127.0.0.1:{server.port}"}
    HttpSender(address="http://dash.lab:8080/x", auth_code=None, clock=SystemClock(), environ=environ).send(SNAPSHOT)
    assert server.requests[0].line == "POST http://dash.lab:8080/x HTTP/1.1"
    assert server.requests[0].headers["host"] == "dash.lab:8080"


def test_a_proxy_is_asked_for_a_tunnel_to_an_https_address(server: Server) -> None:
    server.script = [answer(403, "no")]
    environ = {"HTTPS_PROXY": f"127.0.0.1:{server.port}"}
    subject = HttpSender(address="https://dash.lab", auth_code=SECRET, clock=SystemClock(), environ=environ)
    assert "refused the way to dash.lab:443 (403)" in str(failure(subject))
    assert server.requests[0].line == "CONNECT dash.lab:443 HTTP/1.1"


@pytest.mark.parametrize(
    ("address", "environ", "proxied"),
    [
        ("http://dash.lab", {"HTTP_PROXY": "p:1"}, True),
        ("http://dash.lab", {"HTTPS_PROXY": "p:1"}, False),
        ("http://dash.lab", {"HTTP_PROXY": "p:1", "NO_PROXY": "x,.lab"}, False),
        ("http://dash.lab", {"HTTP_PROXY": "p:1", "NO_PROXY": "dash.lab"}, False),
        ("http://dash.lab", {"HTTP_PROXY": "p:1", "NO_PROXY": "*"}, False),
        ("http://dash.lab", {"HTTP_PROXY": "p:1", "NO_PROXY": "ash.lab"}, True),
        ("http://localhost", {"HTTP_PROXY": "p:1"}, False),
    ],
)
def test_the_environment_says_when_a_proxy_is_asked(address: str, environ: dict[str, str], proxied: bool) -> None:
    assert bool(proxy_of(parse_address(address), environ)) == proxied


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    path = tmp_path_factory.mktemp("ca") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path)]
    done = subprocess.run([*command.split(), *more], capture_output=True, check=False)
    if done.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("openssl cannot make a certificate here")
    return path


@pytest.fixture
def secure(ca: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_split(ca)[1], _split(ca)[0])
    running = Server(context)
    yield running
    running.close()


def _split(both: Path) -> tuple[Path, Path]:
    key, certificate = both.with_name("key.pem"), both.with_name("certificate.pem")
    text = both.read_text()
    begin = text.index("-----BEGIN CERTIFICATE-----")
    key.write_text(text[:begin])
    certificate.write_text(text[begin:])
    return key, certificate


def test_a_server_whose_ca_is_named_is_posted_to_by_tls(secure: Server, ca: Path) -> None:
    secure.script = [OURS, OURS]
    subject = HttpSender(
        address=f"https://127.0.0.1:{secure.port}",
        auth_code=SECRET,
        clock=SystemClock(),
        environ={},
        ca_file=str(_split(ca)[1]),
    )
    subject.send(SNAPSHOT)
    subject.send(SNAPSHOT)
    assert secure.requests[1].headers["authorization"] == f"Bearer {SECRET}"


def test_a_ca_file_that_holds_no_certificate_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(ValueError, match=f"^ca_file: {file}: holds no certificate in PEM"):
        HttpSender(address="https://dash", auth_code=SECRET, clock=SystemClock(), environ={}, ca_file=str(file))


def test_a_certificate_of_nobody_known_fails_closed(secure: Server) -> None:
    secure.script = [OURS]
    subject = HttpSender(address=f"https://127.0.0.1:{secure.port}", auth_code=SECRET, clock=SystemClock(), environ={})
    text = str(failure(subject))
    assert text.startswith("CD103 certificate of 127.0.0.1 not trusted")
    assert "ca_file" in text
    assert secure.requests == []


@pytest.mark.parametrize("says", [FIRST_VERSION, b"HTTP/1.0 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_no_tls_where_tls_was_asked_for_is_told(says: bytes) -> None:
    def speak_plainly() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(says)
            connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak_plainly)
        thread.start()
        peer = f"127.0.0.1:{listener.getsockname()[1]}"
        error = failure(HttpSender(address=f"https://{peer}", auth_code=SECRET, clock=SystemClock(), environ={}))
        thread.join(10)
    mend = "name an http:// address, or have TLS spoken there"
    assert (error.row, str(error)) == (Row.TROUBLE, f"CD105 {peer} does not speak TLS: {mend}")


def test_who_waits_in_vain_for_tls_is_told_that_plain_http_may_be_spoken_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        error = failure(HttpSender(address=address, auth_code=SECRET, clock=SystemClock(), environ={}))
    assert str(error).endswith("in time (if it speaks plain HTTP, name an http:// address)")


@pytest.mark.parametrize(
    "words",
    [
        "<title>400 The plain HTTP request was sent to HTTPS port</title>",
        "Client sent an HTTP request to an HTTPS server.",
        "Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ],
)
def test_plain_http_to_a_port_for_tls_is_told_and_costs_no_snapshot(server: Server, words: str) -> None:
    server.script = [answer(400, words), b"\x15\x03\x01\x00\x02\x02\x46"]
    subject = sender(server)
    for _ in range(2):
        error = failure(subject)
        told = f"CD105 127.0.0.1:{server.port} speaks TLS: name an https:// address"
        assert (error.row, str(error)) == (Row.TROUBLE, told)


def test_a_400_of_the_server_itself_is_no_port_for_tls_whatever_it_repeats_of_the_snapshot(server: Server) -> None:
    server.script = [answer(400, '{"success": false, "msg": "host: got \'to HTTPS\', expected a name"}')]
    assert failure(sender(server)).row == Row.NEVER


def test_a_real_port_for_tls_that_is_asked_in_plain_http_is_told(secure: Server) -> None:
    secure.script = [OURS]
    assert "if it speaks TLS, name an https:// address" in str(failure(sender(secure)))


@pytest.mark.parametrize(
    "text", ["dash", "ftp://dash", "http://", "http://a:99999", "http://u:p@dash", "http://dash/?q", "http://a b"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected http://"):
        parse_address(text)


def test_an_address_of_ipv6_is_taken() -> None:
    address = parse_address("https://[fd00::5]:8443/x")
    assert (address.host, address.port, address.authority) == ("fd00::5", 8443, "[fd00::5]:8443")
    assert parse_address("http://[::1]").loopback


@pytest.mark.parametrize(("value", "seconds"), [("5", 5), ("1e9", 3600), ("-1", None), ("soon", None), ("nan", None)])
def test_what_the_server_asks_to_wait_is_bounded(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


@given(st.lists(st.binary(min_size=1, max_size=50)), st.binary(max_size=20))
def test_chunks_are_put_together_and_a_part_of_them_is_not_the_whole(parts: list[bytes], rest: bytes) -> None:
    chunks = b"".join(f"{len(part):x}".encode() + b"\r\n" + part + b"\r\n" for part in parts)
    assert parse_chunked(chunks + b"0\r\n\r\n") == b"".join(parts)
    assert parse_chunked(chunks) is None
    parse_chunked(rest)


@pytest.mark.parametrize(
    ("address", "goes"),
    [
        ("http://dash.lab:8080", False),
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", True),
        ("https://dash.lab", True),
    ],
)
def test_a_token_goes_where_nobody_can_read_it(address: str, goes: bool) -> None:
    def make(allow_plaintext: bool = False) -> HttpSender:
        return HttpSender(
            address=address,
            auth_code="cdh_abcdefgh_x",
            clock=SystemClock(),
            environ={},
            allow_plaintext=allow_plaintext,
        )

    make(allow_plaintext=True)
    if goes:
        make()
    else:
        with pytest.raises(ValueError, match="a token does not travel unencrypted") as refusal:
            make()
        assert "cdh_" not in str(refusal.value)
