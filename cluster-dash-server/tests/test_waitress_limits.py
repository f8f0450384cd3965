"""waitress as we set it, on real sockets."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from waitress.server import create_server

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.web import waitress_limits


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
    behind = SimpleNamespace(monotonic=lambda: time.monotonic() - 11)
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
