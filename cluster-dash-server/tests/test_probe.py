"""Asking a server over HTTP, whatever answers there."""

import socket
import threading

import pytest

from cluster_dash_server.probe import Answer, ask, reachable


def ask_one_that_says(text: bytes) -> tuple[Answer | None, bytes]:
    """Ask a server that answers with these bytes; return what was made of it, and what it was asked."""
    asked = b""

    def answer(listening: socket.socket) -> None:
        nonlocal asked
        connection, _ = listening.accept()
        with connection:
            asked = connection.recv(4096)
            connection.sendall(text)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        answered = ask("127.0.0.1", listening.getsockname()[1], "/dash/readyz", seconds=5, name="dash.lab")
        thread.join(5)
    return answered, asked


def test_status_and_object_come_back_and_the_name_is_sent() -> None:
    answered, asked = ask_one_that_says(b'HTTP/1.1 503 Busy\r\n\r\n{"success": false}')
    assert answered == Answer(status=503, json={"success": False})
    assert asked.startswith(b"GET /dash/readyz HTTP/1.1\r\n")
    assert b"\r\nHost: dash.lab\r\n" in asked


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"\xff", b""])
def test_another_body_is_no_object(body: bytes) -> None:
    assert ask_one_that_says(b"HTTP/1.1 200 OK\r\n\r\n" + body)[0] == Answer(status=200, json=None)


@pytest.mark.parametrize("text", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_what_is_not_http_is_no_answer(text: bytes) -> None:
    assert ask_one_that_says(text)[0] is None


def test_nobody_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert ask("127.0.0.1", port, "/", seconds=1) is None
    assert ask("no such host", port, "/", seconds=1) is None


def test_a_server_on_all_addresses_is_asked_by_loopback() -> None:
    assert reachable("0.0.0.0") == "127.0.0.1"  # noqa: S104 - asked, not bound
    assert reachable("::") == "::1"
    assert reachable("10.0.0.5") == "10.0.0.5"
