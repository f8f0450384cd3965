"""Other services, by apprise: here its own JSON, to a server of this machine."""

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from cluster_dash_server.notices import guarded
from cluster_dash_server.notices.notice import Notice, NotifyError
from cluster_dash_server.notices.notifiers.apprise import Apprise
from cluster_dash_server.notices.wording import Wording

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")  # apprise asks for it up to Python 3.12


HERE_ONLY = "127.0.0.2"
"""Stands for what only this machine can reach, in tests in which its other addresses stand for all the world."""


class Keeps(http.server.BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    posts: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        if self.status == 307:
            self.send_header("Location", f"http://{HERE_ONLY}:{self.server.server_port}/")  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    Keeps.status, Keeps.posts = 200, []
    server = http.server.ThreadingHTTPServer(("", 0), Keeps)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(60)
    server.server_close()


def test_a_notice_goes_through_apprise(port: int, notice: Notice, wording: Wording) -> None:
    Apprise(f"json://127.0.0.1:{port}/secret", wording, allow_private=True).send(notice)
    (post,) = Keeps.posts
    assert post["title"] == "[lab] critical: gpu03: GPU 2 is lost – völlig"
    assert "next step: drain the node" in post["message"]
    assert post["type"] == "failure"


def test_what_apprise_does_not_get_through_is_said_without_the_address(
    port: int, notice: Notice, wording: Wording, caplog: pytest.LogCaptureFixture
) -> None:
    Keeps.status = 500
    with pytest.raises(NotifyError, match="did not take it") as caught:
        Apprise(f"json://127.0.0.1:{port}/s3cret", wording, allow_private=True).send(notice)
    assert "s3cret" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("url", ["nonsense", "zork://x/s3cret", "slack://", "dbus://", "file:///etc/passwd"])
def test_an_address_that_apprise_does_not_know_is_said_without_it(url: str, notice: Notice, wording: Wording) -> None:
    with pytest.raises(NotifyError, match="apprise does not know the address that begins with") as caught:
        Apprise(url, wording).send(notice)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433"])
def test_what_only_this_machine_can_reach_is_refused_and_the_mend_is_said(
    host: str, port: int, notice: Notice, wording: Wording
) -> None:
    for schema in ("json", "xml", "form", "ntfy"):
        with pytest.raises(NotifyError, match="nothing is sent without allow_private = true") as caught:
            Apprise(f"{schema}://{host}:{port}/s3cret", wording).send(notice)
        assert "s3cret" not in str(caught.value)
    assert Keeps.posts == []


@pytest.mark.parametrize("url", ["mailto://ann:pw@localhost:1/?smtp=127.0.0.1", "mqtt://127.0.0.1/t"])
def test_no_other_way_out_is_left_open(url: str, notice: Notice, wording: Wording) -> None:
    with pytest.raises(NotifyError, match=r"allow_private = true|does not know the address"):
        Apprise(url, wording).send(notice)


def test_a_redirect_to_this_machine_is_refused_when_it_is_followed(
    port: int, notice: Notice, wording: Wording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "is_private", lambda address: address == HERE_ONLY)
    Apprise(f"json://127.0.0.1:{port}/", wording).send(notice)
    assert len(Keeps.posts) == 1
    Keeps.status = 307
    with pytest.raises(NotifyError, match=f"{HERE_ONLY}: this machine"):
        Apprise(f"json://127.0.0.1:{port}/", wording).send(notice)
    assert len(Keeps.posts) == 2  # the one that was answered by the redirect, and no other


def connects(port: int) -> bool:
    with contextlib.suppress(PermissionError):
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        return True
    return False


def test_other_threads_connect_as_they_like_meanwhile(port: int) -> None:
    found: list[bool] = []
    with guarded.confined() as confines:
        thread = threading.Thread(target=lambda: found.append(connects(port)))
        thread.start()
        thread.join(60)
        assert (found, confines.refused) == ([True], None)
        found.append(connects(port))
    assert found == [True, False]
    assert "127.0.0.1: this machine" in str(confines.refused)
    assert connects(port)


@pytest.mark.parametrize("address", [("127.0.0.1", 9), ("localhost", 9)])
def test_no_datagram_goes_out_either(address: tuple[str, int]) -> None:
    with (
        guarded.confined(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain,
        pytest.raises(PermissionError, match="nothing is sent"),
    ):
        plain.sendto(b"x", address)
