"""Requests to addresses of the settings: where they go, and where they never go."""

import http.server
import socket
import threading
from collections.abc import Iterator
from email.utils import formatdate
from typing import ClassVar

import pytest

from cluster_dash_server.notices import guarded
from cluster_dash_server.notices.notice import NotifyError


class Answers(http.server.BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    answer_headers: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[tuple[str, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((f"{self.command} {self.path}", dict(self.headers), body))
        self.send_response_only(self.status)
        for name, value in self.answer_headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def answers() -> type[Answers]:
    Answers.status, Answers.answer_headers, Answers.asked = 200, {}, []
    return Answers


@pytest.fixture
def url(answers: type[Answers]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook?x=1"
    server.shutdown()
    thread.join(60)
    server.server_close()


def test_a_request_arrives_whole(url: str, answers: type[Answers]) -> None:
    guarded.request(url, body=b"hello", headers={"X-One": "1"}, allow_private=True)
    ((line, headers, body),) = answers.asked
    assert (line, body, headers["X-One"]) == ("POST /hook?x=1", b"hello", "1")
    assert headers["Host"] == url.split("/")[2]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1", "2002:7f00:1::"),  # noqa: S104 - none is bound to
        *("169.254.169.254", "169.254.1.1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"),
        *("64:ff9b::a9fe:a9fe", "224.0.0.1", "ff02::1"),
    ],
)
def test_this_machine_its_link_and_metadata_are_refused(address: str) -> None:
    assert guarded.is_private(address)
    with pytest.raises(NotifyError, match="nothing is sent without allow_private"):
        guarded.request("http://hooks.example.org/", resolve=lambda host, port: [address])


@pytest.mark.parametrize("address", ["10.0.0.5", "192.168.1.9", "172.16.3.4", "fd12::1", "203.0.113.9", "2001:db8::1"])
def test_networks_of_a_site_are_not(address: str) -> None:
    assert not guarded.is_private(address)


def test_a_name_that_turns_to_this_machine_is_refused_at_the_time_of_connecting(
    url: str, answers: type[Answers]
) -> None:
    port = int(url.split(":")[2].partition("/")[0])
    flips = iter([["203.0.113.9"], ["127.0.0.1"]])
    asked: list[str] = []

    def stub(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(flips)

    def unreachable(address: tuple[str, int], timeout: float) -> socket.socket:
        raise OSError(101, f"Network is unreachable: {address[0]}")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket, "create_connection", unreachable)
        with pytest.raises(NotifyError, match=r"Network is unreachable: 203\.0\.113\.9"):
            guarded.request(f"http://hooks.example.org:{port}/", resolve=stub)
    with pytest.raises(NotifyError, match=r"hooks.example.org is 127.0.0.1: this machine"):
        guarded.request(f"http://hooks.example.org:{port}/", resolve=stub)
    assert (asked, answers.asked) == (["hooks.example.org"] * 2, [])


def test_what_is_connected_to_is_the_address_that_was_looked_at(url: str, answers: type[Answers]) -> None:
    port = int(url.split(":")[2].partition("/")[0])
    once = iter([["127.0.0.1"]])  # a second look would fail
    guarded.request(f"http://hooks.invalid:{port}/", allow_private=True, resolve=lambda host, port: next(once))
    assert answers.asked[0][1]["Host"] == f"hooks.invalid:{port}"


def test_one_good_address_beside_a_bad_one_does_not_help() -> None:
    with pytest.raises(NotifyError, match="allow_private"):
        guarded.request("http://hooks.example.org/", resolve=lambda host, port: ["203.0.113.9", "127.0.0.1"])


def test_a_redirect_is_an_error_and_not_followed(url: str, answers: type[Answers]) -> None:
    answers.status, answers.answer_headers = 302, {"Location": url}
    with pytest.raises(NotifyError, match="answers 302, a redirect, which is not followed"):
        guarded.request(url, allow_private=True)
    assert len(answers.asked) == 1


@pytest.mark.parametrize(("status", "is_final"), [(422, True), (404, False), (401, False), (500, False), (599, False)])
def test_an_answer_says_whether_another_try_makes_sense(
    url: str, answers: type[Answers], status: int, is_final: bool
) -> None:
    answers.status = status
    with pytest.raises(NotifyError, match=f"answers {status}") as caught:
        guarded.request(url, allow_private=True)
    assert caught.value.is_final is is_final
    assert caught.value.retry_after_seconds is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": formatdate(5000, usegmt=True), "Date": formatdate(4400, usegmt=True)}, 600.0),
        ({"Retry-After": "9" * 40}, guarded.MOST_RETRY_AFTER_SECONDS),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": formatdate(5000, usegmt=True)}, None),
    ],
)
def test_how_long_to_wait_is_heard(
    url: str, answers: type[Answers], headers: dict[str, str], seconds: float | None
) -> None:
    answers.status, answers.answer_headers = 429, headers
    with pytest.raises(NotifyError) as caught:
        guarded.request(url, allow_private=True)
    assert caught.value.retry_after_seconds == seconds


def test_who_answers_a_byte_now_and_then_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "MOST_SECONDS", 0.3)
    ends = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                while not ends.wait(0.05):
                    try:
                        connection.send(b"HTTP/1.1 200 OK\r\nX: "[:1])
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(NotifyError):
            guarded.request(f"http://127.0.0.1:{listening.getsockname()[1]}/", allow_private=True)
        ends.set()
        thread.join(60)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://a/", "expected http://"),
        ("https:///x", "expected http://"),
        ("http://u:p@a/", "no user and password"),
        ("http://a/#x", "no blanks"),
        ("http://a/\nX: 1", "no blanks"),
        ("http://[x/", "cannot be read"),
        ("http://a:99999/", "cannot be read"),
    ],
)
def test_an_address_that_cannot_be_sent_to_is_said(url: str, says: str) -> None:
    problem = guarded.url_problem(url)
    assert problem is not None
    assert says in problem


def test_an_address_that_can_is_fine() -> None:
    assert guarded.url_problem("https://hooks.example.org:8443/a/b?c=d") is None
