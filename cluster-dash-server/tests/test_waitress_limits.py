"""waitress as we set it, on real sockets."""

import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected
from waitress.server import create_server

from cluster_dash_server.app import create_app
from cluster_dash_server.ingest import AT_ONCE_BYTES
from cluster_dash_server.settings import Settings
from cluster_dash_server.web import waitress_limits, waitress_turns
from cluster_dash_server.web.edge import Reply


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server: Any = create_server(create_app(Settings()), host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server.effective_port
    server.close()
    thread.join(5)


def exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while True:
            more = connection.recv(65536)
            if not more:
                return answer
            answer += more
            head, _, body = answer.partition(b"\r\n\r\n")
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
            if length is not None and len(body) >= int(length.split(b":")[1]):
                return answer


def test_three_hundred_idle_clients_do_not_keep_others_out(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        for each in idle:
            each.close()


def test_head_and_body_of_an_answer_leave_in_one_piece(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, send = list[bytes](), waitress_limits.Channel.send

    def sent(channel: waitress_limits.Channel, data: bytes, **more: Any) -> int:
        pieces.append(bytes(data))
        return int(send(channel, data, **more))

    monkeypatch.setattr(waitress_limits.Channel, "send", sent)
    answer = exchange(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert pieces == [answer]
    assert answer.endswith(b'\r\n\r\n{"success":true}\n')


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"400"),
        (b"transfer-encoding: chunked\r\ncontent-length: 3\r\n", b"400"),
        (b"Content-Length: 3\r\nContent-Length: 4\r\n", b"400"),
        (b"Content-Length: +3\r\n", b"400"),
        (b"Content-Length: 3, 3\r\n", b"400"),
        (b"Transfer-Encoding: chunked, identity\r\n", b"400"),
        (b"Content-Length: 17000000\r\n", b"413"),
        (b"X-Large: " + b"x" * 20_000 + b"\r\n", b"431"),
    ],
)
def test_a_request_that_two_readers_could_cut_differently_is_refused_in_the_one_shape(
    port: int, head: bytes, status: bytes
) -> None:
    answer = exchange(port, b"POST / HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n3\r\n{}\n\r\n0\r\n\r\n")
    assert answer.split(b" ")[1] == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["success"] is False


@pytest.mark.parametrize(
    ("request_line", "words"),
    [
        (b"GET http://[ HTTP/1.1", "Request cannot be read (Invalid IPv6 URL)"),
        (b"POST http://[ HTTP/1.1", "Request cannot be read (Invalid IPv6 URL)"),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000, "Request cannot be read (Exceeds the limit"),
        (b"GET ", "Start line is invalid"),
        (b"get /", "Malformed HTTP method"),
        (b"GET /\xff HTTP/1.1", "Bad URI"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "this port speaks plain HTTP, and TLS came: ask for http:"),
    ],
)
def test_a_request_that_cannot_be_read_is_answered_in_words_and_leaves_no_traceback(
    port: int, request_line: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    for before in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(before + request_line + b"\r\n\r\n")
            answer = b"".join(iter(partial(connection.recv, 65536), b""))
        head, _, body = answer.rpartition(b"\r\n\r\n")
        assert head.rpartition(b"HTTP/")[2].split(b" ")[1] == b"400"
        assert words in json.loads(body)["msg"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_who_goes_before_the_refusal_of_a_broken_request_leaves_no_traceback(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "waitress")

    def gone(channel: waitress_limits.Channel, data: Any) -> int:
        raise ClientDisconnected

    monkeypatch.setattr(waitress_limits.Channel, "write_soon", gone)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"broken\r\n\r\n")
        assert connection.recv(100) == b""
    assert [record.message.strip() for record in caplog.records] == ["Client disconnected while serving"]


fragments = st.sampled_from(
    [
        *(
            "GET ",
            "POST ",
            "get ",
            "/",
            "http://",
            "//",
            "[",
            "]",
            "::1",
            "@",
            ":99999",
            "?a=b",
            "#",
            "%",
            " HTTP/1.1",
            "\r\n",
        ),
        *("\r\n\r\n", "\n", "\r", "Host: x", "Content-Length: ", "Transfer-Encoding: chunked", "Expect: 100-continue"),
        *("3", "9" * 5000, "-", "f;", "\xff", "\0", " ", "\t", ":", ",", "x" * 17_000, "\x16\x03\x01"),
    ]
)


@given(st.lists(st.lists(fragments | st.text("aZ0é/ \r\n", max_size=5), max_size=12).map("".join), max_size=4))
def test_whatever_comes_is_read_or_refused(pieces: list[str]) -> None:
    request = waitress_limits.RequestParser(Adjustments())
    for piece in pieces:
        if not request.completed:
            data = piece.encode("latin-1")
            assert 0 <= request.received(data) <= len(data)
    assert isinstance(request.path, str)
    error: Any = request.error
    if error is not None:
        status, _, body = error.to_response()
        assert (status[:1], json.loads(body)["success"]) == ("4", False)


def test_a_chunked_body_over_the_limit_stops(port: int) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answer = exchange(port, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 257)
    assert answer.split(b" ")[1] == b"413"


def test_the_connection_of_a_mole_is_closed_after_its_answer_and_a_browser_s_is_kept(port: int, example: Any) -> None:
    body = json.dumps(example).encode()
    answer = exchange(port, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.split(b" ")[1] == b"200"
    assert b"connection: close" in answer.lower()
    assert b"connection: close" not in exchange(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").lower()


def test_the_application_sees_that_a_proxy_passed_a_request_on(port: int, example: Any) -> None:
    body = json.dumps(example).encode()
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.7\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert exchange(port, head + body).split(b" ")[1] == b"401"


def test_a_post_that_waited_too_long_for_a_thread_is_refused_unread(
    port: int, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(example).encode()
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert exchange(port, request).split(b" ")[1] == b"200"
    # as if the time had begun later for those who wrote down when the request was whole
    behind = SimpleNamespace(monotonic=lambda: time.monotonic() - 11, time=time.time)
    monkeypatch.setattr(waitress_limits, "time", behind)
    answer = exchange(port, request)
    assert answer.split(b" ")[1] == b"503"
    assert b"retry-after: " in answer.lower()
    assert b"the server is behind by 11 s" in answer


@pytest.mark.parametrize("sent_first", [b"POST / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"])
def test_who_sends_a_byte_now_and_then_is_sent_away_all_the_same(sent_first: bytes) -> None:
    app = create_app(Settings())
    server: Any = create_server(app, host="127.0.0.1", port=0, channel_timeout=1, cleanup_interval=1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with socket.create_connection(("127.0.0.1", server.effective_port), timeout=0.2) as slow:
        slow.sendall(sent_first)
        for _ in range(200):  # 40 s, of which some 3 are needed
            try:
                slow.sendall(b"x")
                assert slow.recv(100) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("the connection stays")
    server.close()
    thread.join(5)


def test_a_relay_and_a_proxy_keep_their_connection_and_a_mole_does_not(port: int) -> None:
    kept = []
    for headers in ({}, {"Relayed-Dates": "-"}, {"X-Forwarded-For": "10.0.0.7"}):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/api/v1/snapshots", b"{}", headers)
        answer = connection.getresponse()
        answer.read()
        kept.append(answer.getheader("Connection"))
        connection.close()
    assert kept == ["close", None, None]


class Shop:
    """Has an answer ready for `/ready…`, of as many bytes as the path says; notes which thread said what.

    `/ready-304`, `/304` and `/204` are answered without a body.
    """

    def __init__(self) -> None:
        self.in_the_loop = list[int]()
        self.by_a_thread = list[str]()
        self.environs = list[dict[str, Any]]()
        self.is_asked_in_the_loop = True

    def ready(self, environ: Any) -> Reply | None:
        self.in_the_loop.append(threading.get_ident())
        self.environs.append(environ)
        return self.made(environ["PATH_INFO"]) if self.is_asked_in_the_loop else None

    def made(self, path: str) -> Reply | None:
        if not path.startswith("/ready"):
            return None
        if path == "/ready-304":
            return Reply(b"", "304 Not Modified", [("ETag", '"1"')])
        content = b"r" * int(path.removeprefix("/ready"))
        return Reply(content, "200 OK", [("Content-Length", str(len(content)))])

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.by_a_thread.append(environ["PATH_INFO"])
        reply = None if self.is_asked_in_the_loop else self.made(environ["PATH_INFO"])
        if reply is not None:
            start_response(reply.status, reply.headers)
            return [reply.content]
        if environ["PATH_INFO"] in ("/204", "/304"):
            start_response(environ["PATH_INFO"].removeprefix("/") + " No Body", [])
            return []
        content = environ["PATH_INFO"].encode()
        start_response("200 OK", [("Content-Length", str(len(content)))])
        return [content]


class Open(NamedTuple):
    shop: Shop
    server: Any
    loop: int | None

    def connect(self) -> Any:
        return closing(http.client.HTTPConnection("127.0.0.1", self.server.effective_port, timeout=60))

    def send_little_at_a_time(self) -> None:
        """Let the system keep little of what is sent, for connections from now on."""
        self.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)

    def unsent_bytes(self) -> int:
        return sum(channel.total_outbufs_len for channel in list(self.server.active_channels.values()))


@pytest.fixture
def shop() -> Iterator[Open]:
    waitress_limits.apply(Settings().limits.body_bytes)
    shop = Shop()
    server: Any = create_server(shop, host="127.0.0.1", port=0, channel_timeout=3600)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield Open(shop, server, thread.ident)
    with socket.create_connection(("127.0.0.1", server.effective_port), timeout=60):
        until(lambda: server.active_channels)
        server.task_dispatcher.shutdown()
        server.close()
    thread.join(60)  # the end of that connection wakes the loop
    assert not thread.is_alive()


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def ask(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


def test_what_lies_ready_is_answered_by_the_loop_itself_and_all_else_by_a_thread(shop: Open) -> None:
    with shop.connect() as connection:
        answers = [ask(connection, path) for path in ("/ready5", "/page", "/ready0", "/ready5")]
    assert answers == [b"rrrrr", b"/page", b"", b"rrrrr"]
    assert set(shop.shop.in_the_loop) == {shop.loop}
    assert shop.shop.by_a_thread == ["/page"]


def test_an_answer_that_waitress_would_put_into_a_file_is_left_to_a_thread(shop: Open) -> None:
    with shop.connect() as connection:
        assert len(ask(connection, f"/ready{waitress_limits.READY_BYTES}")) == waitress_limits.READY_BYTES
        assert ask(connection, f"/ready{waitress_limits.READY_BYTES + 1}").startswith(b"/ready")


def test_a_short_body_that_lay_ready_leaves_with_its_head_and_a_long_one_is_not_copied(
    shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[int]()
    send = waitress_limits.Channel.send

    def noted(channel: Any, data: bytes, *more: Any, **also: Any) -> Any:
        sizes.append(len(data))
        return send(channel, data, *more, **also)

    monkeypatch.setattr(waitress_limits.Channel, "send", noted)
    with shop.connect() as connection:
        assert len(ask(connection, f"/ready{waitress_limits.LARGE_BYTES}")) == waitress_limits.LARGE_BYTES
        assert sizes[0] > waitress_limits.LARGE_BYTES
        sizes.clear()
        assert len(ask(connection, f"/ready{waitress_limits.LARGE_BYTES + 1}")) == waitress_limits.LARGE_BYTES + 1
    assert sizes[0] < 1000
    assert sizes[1] == waitress_limits.LARGE_BYTES + 1


@pytest.mark.parametrize(("version", "header"), [("1.1", "Connection: close\r\n"), ("1.0", "")])
def test_a_connection_that_is_to_end_ends_after_what_lay_ready(shop: Open, version: str, header: str) -> None:
    with socket.create_connection(("127.0.0.1", shop.server.effective_port), timeout=60) as connection:
        connection.sendall(f"GET /ready3 HTTP/{version}\r\nHost: x\r\n{header}\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.endswith(b"\r\n\r\nrrr")
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("path", ["/ready-304", "/304", "/204"])
def test_an_answer_without_a_body_leaves_the_connection_open_unless_its_asker_closes_it(shop: Open, path: str) -> None:
    with shop.connect() as connection:
        connection.request("GET", path)
        first = connection.getresponse()
        assert (first.read(), first.getheader("Connection")) == (b"", None)
        used = connection.sock
        assert (ask(connection, "/ready5"), connection.sock) == (b"rrrrr", used)
        connection.request("GET", path, headers={"Connection": "close"})
        last = connection.getresponse()
        assert (last.read(), last.getheader("Connection"), connection.sock) == (b"", "close", None)


@pytest.mark.parametrize("cut", [2, 30, 1000])
def test_requests_in_pieces_or_together_are_answered_in_their_order(shop: Open, cut: int) -> None:
    lines = "HTTP/1.1\r\nHost: x\r\n"
    requests = f"GET /ready3 {lines}\r\nGET /2 {lines}\r\nGET /3 {lines}Connection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", shop.server.effective_port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin in range(0, len(requests), cut):
            connection.sendall(requests[begin : begin + cut])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    first, *others = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert first in (b"rrr", b"/ready3")  # the loop answers it where it has come whole and alone
    assert others == [b"/2", b"/3"]


def test_who_reads_slowly_keeps_nobody_waiting_and_gets_all(shop: Open) -> None:
    shop.send_little_at_a_time()
    with shop.connect() as slow, shop.connect() as quick:
        slow.request("GET", "/ready1000000")
        until(shop.unsent_bytes)
        assert [ask(quick, "/ready5") for _ in range(20)] == [b"rrrrr"] * 20
        assert slow.getresponse().read() == b"r" * 1_000_000


@pytest.mark.parametrize("path", ["/ready3", "/ready-304"])
@pytest.mark.parametrize("connection", ["", "Connection: close\r\n", "Connection: Keep-Alive\r\n"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_loop_answers_as_a_thread_does(shop: Open, version: str, connection: str, path: str) -> None:
    request = f"GET {path} HTTP/{version}\r\nHost: x\r\n{connection}\r\n".encode()
    answers = []
    for in_the_loop in (True, False):
        shop.shop.is_asked_in_the_loop = in_the_loop
        with socket.create_connection(("127.0.0.1", shop.server.effective_port), timeout=60) as asker:
            asker.sendall(request)
            asker.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: asker.recv(65536), b""))
        answers.append(re.sub(rb"\r\nDate: [^\r]*", b"", answer))
    assert answers[0] == answers[1]
    assert shop.shop.by_a_thread == [path]


def test_what_a_page_asks_again_and_again_is_read_once(shop: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    read, parse_header = list[bytes](), waitress_limits.RequestParser.parse_header

    def parsed(parser: waitress_limits.RequestParser, header: bytes) -> None:
        read.append(header)
        parse_header(parser, header)

    monkeypatch.setattr(waitress_limits.RequestParser, "parse_header", parsed)
    with shop.connect() as connection:
        for number in range(5):
            assert ask(connection, f"/ready3?columns=state,users&since=life-{number}") == b"rrr"
        assert len(read) == 1
        assert ask(connection, "/ready5?columns=state,users&since=life-5") == b"rrrrr"
        assert len(read) == 2
    asked = [(environ["PATH_INFO"], environ["QUERY_STRING"], environ["REQUEST_URI"]) for environ in shop.shop.environs]
    queries = [f"columns=state,users&since=life-{number}" for number in range(6)]
    paths = ["/ready3"] * 5 + ["/ready5"]
    assert asked == [(path, query, f"{path}?{query}") for path, query in zip(paths, queries, strict=True)]


HEADERS = (
    "Host: x\r\n",
    "Cookie: a=b?c d\r\n",
    "Connection: close\r\n",
    'If-None-Match: "a?b"\r\n',
    "Content-Length: 2\r\n",
)
LINES = st.builds(
    "GET {}{}{} HTTP/{}\r\n{}\r\n{}".format,
    st.sampled_from(["/", "/a", "//a", "/a/b:c", "/%41", "http://x/a", "/a?b", "/a#b", "*"]),
    st.sampled_from(["?", "", " ?"]),
    st.one_of(
        st.sampled_from(
            ["", "since=a-1", "since=a-2&q=%20x", "a b", "a#b", "a?b", "a\r\nX: y", "a HTTP/1.1\r\nX: y", "é"]
        ),
        st.text("ab=&%#? \t\r\n", max_size=5),
        st.just("x" * 17_000),
    ),
    st.sampled_from(["1.1", "1.0", "2.0"]),
    st.lists(st.sampled_from(HEADERS), max_size=3, unique=True).map("".join),
    st.sampled_from(["", "", "ab", "GET / HTTP/1.1\r\n\r\n"]),
)


@given(LINES, st.lists(LINES, min_size=1, max_size=4), st.integers(0, 3))
@hypothesis.settings(max_examples=150, deadline=None)
def test_a_request_that_is_not_read_anew_says_what_it_says_when_it_is(
    first: str, others: list[str], place: int
) -> None:
    def told(data: bytes) -> waitress_limits.Get | None:
        """Return a request read from its bytes; None where the loop leaves it to others."""
        channel: Any = SimpleNamespace(
            adj=Adjustments(),
            server=SimpleNamespace(adj=Adjustments(), effective_port=80, server_name="x"),
            addr=("192.0.2.7", 4711),
            check_client_disconnected=None,
        )
        request = waitress_limits.Channel._lone_request(channel, data)
        if request is None:
            return None
        return waitress_limits.Get(data, request, waitress_limits.Task(channel, request).get_environment())

    def said(get: waitress_limits.Get) -> Any:
        passing = ("wsgi.input", f"HTTP_{waitress_limits.WHOLE_SINCE}")
        environ = {name: value for name, value in get.environ.items() if name not in passing}
        return get.version, get.connection, environ

    get = told(first.encode("latin-1"))
    if get is None:
        return
    # most of them differ from the first by little, or all would be read anew
    for other in (*others, first.replace("since=a-1", "since=a-2"), first.replace("?", "?z=1&", place), first):
        again = other.encode("latin-1")
        if get.becomes(again):
            anew = told(again)
            assert anew is not None
            assert said(get) == said(anew)


def test_who_asks_twice_and_reads_late_gets_both_answers_in_their_order(shop: Open) -> None:
    shop.send_little_at_a_time()
    with socket.create_connection(("127.0.0.1", shop.server.effective_port), timeout=60) as connection:
        connection.sendall(b"GET /ready1000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(shop.unsent_bytes)
        connection.sendall(b"GET /ready-304 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"r" * 1_000_000 + b"HTTP/1.1 304 Not Modified\r\n") == 1


def test_who_goes_while_an_answer_is_sent_harms_nobody(shop: Open) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", shop.server.effective_port), timeout=60) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it ends by a reset
            gone.sendall(b"GET /ready1000000 HTTP/1.1\r\nHost: x\r\n\r\n")
    with shop.connect() as connection:
        assert ask(connection, "/ready5") == b"rrrrr"
        until(lambda: len(shop.server.active_channels) == 1)


def test_a_connection_holds_nothing_of_what_it_has_sent(shop: Open) -> None:
    with shop.connect() as connection:
        for _ in range(20):
            ask(connection, "/ready20000")
        (channel,) = shop.server.active_channels.values()
        held = [len(buffer.buf.file.getbuffer()) for buffer in list(channel.outbufs) if buffer.buf is not None]
    assert sum(held) <= 21_000


@pytest.mark.parametrize(
    ("path", "headers", "is_kept"),
    [
        ("/ready3?since=1", {}, True),
        ("/ready3", {}, False),  # nothing differs from it in its query alone
        ("/ready3?since=1", {f"a{number}": "" for number in range(60)}, False),
        ("/ready3?since=1", {"Cookie": "a" * 5000}, False),
    ],
)
def test_a_connection_keeps_a_request_only_where_it_is_small_and_serves_again(
    shop: Open, path: str, headers: dict[str, str], is_kept: bool
) -> None:
    with shop.connect() as connection:
        connection.request("GET", path, headers=headers)
        assert connection.getresponse().read() == b"rrr"
        (channel,) = shop.server.active_channels.values()
        assert (channel._answered is not None) == is_kept


class Till:
    """Takes posts in the loop, but for those to `/waits`; `/hold` holds up a thread until `goes_on`."""

    def __init__(self) -> None:
        self.is_held = threading.Semaphore(0)
        self.goes_on = threading.Event()

    def ready(self, environ: Any) -> Reply | None:
        if environ["PATH_INFO"] != "/":
            return None
        content = b"loop %d" % len(environ["wsgi.input"].read())
        return Reply(content, "200 OK", [("Content-Length", str(len(content)))])

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/hold":
            self.is_held.release()
            self.goes_on.wait(60)
        content = b"thread %d" % len(environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Length", str(len(content)))])
        return [content]


class OpenTill(NamedTuple):
    till: Till
    server: Any

    def post(self, *bodies: bytes, path: str = "/", cut: int = 2**30, headers: str = "") -> list[bytes]:
        """Send them, so many bytes at a time; return what is answered."""
        requests = b""
        for body in bodies:
            length = "" if "chunked" in headers else f"Content-Length: {len(body)}\r\n"
            requests += f"POST {path} HTTP/1.1\r\nHost: x\r\n{length}{headers}\r\n".encode() + body
        with socket.create_connection(("127.0.0.1", self.server.effective_port), timeout=60) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for begin in range(0, len(requests), cut):
                connection.sendall(requests[begin : begin + cut])
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        return [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]


@pytest.fixture
def till(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenTill]:
    monkeypatch.setattr(waitress_turns, "behind_seconds", lambda unknown=0.0: 0.0)  # however busy this machine is
    waitress_limits.apply(Settings().limits.body_bytes)
    till = Till()
    server: Any = create_server(till, host="127.0.0.1", port=0, threads=1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield OpenTill(till, server)
    till.goes_on.set()
    with socket.create_connection(("127.0.0.1", server.effective_port), timeout=60):
        until(lambda: server.active_channels)
        server.task_dispatcher.shutdown()
        server.close()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("cut", [7, 60, 10**6])
def test_a_small_post_is_taken_by_the_loop_itself_in_however_many_pieces_it_comes(till: OpenTill, cut: int) -> None:
    assert till.post(b"x" * 100, cut=cut) == [b"loop 100"]
    assert till.post(b"", cut=cut) == [b"loop 0"]


def test_a_post_that_is_large_or_waits_or_does_not_say_its_length_is_left_to_a_thread(till: OpenTill) -> None:
    most = AT_ONCE_BYTES
    assert till.post(b"x" * most) == [b"loop %d" % most]
    assert till.post(b"x" * (most + 1)) == [b"thread %d" % (most + 1)]
    assert till.post(b"x", path="/waits") == [b"thread 1"]
    assert till.post(b"3\r\nxyz\r\n0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n") == [b"thread 3"]


@pytest.mark.parametrize("cut", [50, 120, 10**6])
def test_posts_of_a_proxy_that_come_together_are_answered_in_their_order(till: OpenTill, cut: int) -> None:
    answers = till.post(*[b"x" * length for length in range(5)], cut=cut, headers="X-Forwarded-For: 10.0.0.1\r\n")
    assert [answer.split()[1] for answer in answers] == [b"0", b"1", b"2", b"3", b"4"]


def test_who_asks_behind_a_post_whether_to_go_on_is_told_to(till: OpenTill) -> None:
    head = "POST / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.1\r\nContent-Length: 1\r\n"
    with socket.create_connection(("127.0.0.1", till.server.effective_port), timeout=60) as connection:
        connection.sendall(f"{head}\r\nx{head}Expect: 100-continue\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while b"100 Continue" not in answer:
            answer += (more := connection.recv(65536))
            assert more, answer
        connection.sendall(b"y")
        answer += b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_a_post_goes_behind_those_that_wait_for_a_thread(till: OpenTill) -> None:
    answers: list[bytes] = []

    def post(path: str) -> None:
        answers.extend(till.post(path.encode(), path=path))

    threads = [threading.Thread(target=post, args=("/hold",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert till.till.is_held.acquire(timeout=60)
    until(lambda: till.server.task_dispatcher.queue)  # the second one
    threads.append(threading.Thread(target=post, args=("/",)))
    threads[-1].start()
    until(lambda: len(till.server.task_dispatcher.queue) == 2)
    till.till.goes_on.set()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [b"thread 1", b"thread 5", b"thread 5"]


def test_a_loop_that_is_behind_leaves_posts_to_threads(till: OpenTill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waitress_turns, "behind_seconds", lambda _=0.0: waitress_limits.BEHIND_SECONDS + 0.01)
    assert till.post(b"x") == [b"thread 1"]
    monkeypatch.setattr(waitress_turns, "behind_seconds", lambda _=0.0: waitress_limits.BEHIND_SECONDS - 0.01)
    assert till.post(b"x") == [b"loop 1"]
