"""The way to the centre, on real sockets: one connection for many requests, and words for what goes wrong."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.relaying import centre
from cluster_dash_server.relaying.centre import Centre, CentreError


class Answers(ThreadingHTTPServer):
    """A server that notes connections and requests, and answers as told."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.connections: list[Any] = []
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda _: None
        super().__init__(("127.0.0.1", 0), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Answers

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, body, dict(self.headers.items())))
        self.server.answer(self)

    do_GET = do_POST


def say(status: int, body: bytes = b"{}", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def answers(context: ssl.SSLContext | None = None) -> Iterator[Answers]:
    server = Answers(context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for each in server.connections:
            each.close()


@pytest.fixture
def server() -> Iterator[Answers]:
    with answers() as found:
        found.answer = say(200)
        yield found


@contextmanager
def way(to: str, **more: Any) -> Iterator[Centre]:
    with closing(Centre(to, **more)) as found:
        yield found


def test_many_requests_go_over_one_connection_below_the_path_of_the_address(server: Answers) -> None:
    with way(f"{server.url}/dash/") as to:
        for number in range(5):
            assert to.exchange("POST", "/api/v1/snapshots", b"%d" % number, {"Date": "now"}).status == 200
    assert [(path, body) for _, path, body, _ in server.requests] == [
        ("/dash/api/v1/snapshots", b"%d" % number) for number in range(5)
    ]
    assert server.requests[0][3]["Date"] == "now"
    assert len(server.connections) == 1


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced(server: Answers) -> None:
    with way(server.url) as to:
        to.exchange("GET", "/healthz")
        server.connections[0].shutdown(socket.SHUT_RDWR)
        assert to.exchange("GET", "/healthz").status == 200
    assert len(server.connections) == 2


def test_a_new_connection_that_ends_without_an_answer_is_not_tried_again(server: Answers) -> None:
    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    server.answer = hang_up
    with way(server.url) as to, pytest.raises(CentreError, match=r"^127\.0\.0\.1:\d+: closed the connection without"):
        to.exchange("POST", "/", b"{}")
    assert len(server.requests) == 1


def test_an_idle_connection_is_not_used_again(server: Answers) -> None:
    now = [0.0]
    with way(server.url, clock=lambda: now[0]) as to:
        to.exchange("GET", "/healthz")
        now[0] += centre.IDLE_SECONDS
        to.exchange("GET", "/healthz")
    assert len(server.connections) == 2


def test_the_wish_to_be_left_alone_is_read(server: Answers) -> None:
    with way(server.url) as to:
        told = []
        for text in ("7", "99999", "soon"):
            server.answer = say(503, Retry_After=text)
            told.append(to.exchange("GET", "/").retry_after_seconds)
    assert told == [7, 3600, None]


def test_a_redirect_is_not_followed(server: Answers) -> None:
    server.answer = say(307, Location=f"{server.url}/elsewhere")
    with way(server.url) as to:
        assert to.exchange("POST", "/", b"a secret").status == 307
    assert len(server.requests) == 1


def test_a_centre_that_does_not_answer_in_time_is_said_so(server: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centre, "ANSWER_SECONDS", 0.05)
    asked = threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        asked.wait(60)

    server.answer = wait
    with way(server.url) as to, pytest.raises(CentreError, match="does not answer in time"):
        to.exchange("POST", "/", b"{}")
    asked.set()


def test_nobody_there_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    with way(f"http://127.0.0.1:{port}") as to, pytest.raises(CentreError, match="Connection refused"):
        to.exchange("GET", "/")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with way("http://dash.lab") as to, pytest.raises(CentreError, match=r"^dash\.lab: Name or service not known"):
        to.exchange("GET", "/")


def test_an_endless_answer_is_not_read_to_its_end(server: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centre, "MOST_ANSWER_BYTES", 1000)
    server.answer = say(200, b"x" * 1001)
    with way(server.url) as to, pytest.raises(CentreError, match="too long"):
        to.exchange("GET", "/")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that is its own CA, of the address 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "ca.pem", "-days", "2", "-subj", "/CN=a test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_the_centre_is_known_by_its_certificate(tls: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "ca.pem", tls / "key.pem")
    with answers(context) as server:
        server.answer = say(200)
        port = server.server_address[1]
        with way(f"https://127.0.0.1:{port}", ca_file=str(tls / "ca.pem")) as to:
            assert to.exchange("GET", "/").status == 200
        with way(f"https://127.0.0.1:{port}") as to, pytest.raises(CentreError, match=r"does not hold.* ca_file"):
            to.exchange("POST", "/", b"a secret")
        with (
            way(f"https://localhost:{port}", ca_file=str(tls / "ca.pem")) as to,
            pytest.raises(CentreError, match="does not hold"),
        ):
            to.exchange("POST", "/", b"a secret")
        assert len(server.requests) == 1


def test_a_ca_file_that_holds_none_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(OSError, match="certificate"):
        Centre("https://dash", ca_file=str(tmp_path / "ca.pem"))
