"""Other services, by apprise: here its own JSON, to a server of this machine."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from cluster_dash_server.notices.notice import Notice, NotifyError
from cluster_dash_server.notices.notifiers.apprise import Apprise
from cluster_dash_server.notices.wording import Wording

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")  # apprise asks for it up to Python 3.12


class Keeps(http.server.BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    posts: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    Keeps.status, Keeps.posts = 200, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keeps)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(60)
    server.server_close()


def test_a_notice_goes_through_apprise(port: int, notice: Notice, wording: Wording) -> None:
    Apprise(f"json://127.0.0.1:{port}/secret", wording).send(notice)
    (post,) = Keeps.posts
    assert post["title"] == "[lab] critical: gpu03: GPU 2 is lost – völlig"
    assert "next step: drain the node" in post["message"]
    assert post["type"] == "failure"


def test_what_apprise_does_not_get_through_is_said_without_the_address(
    port: int, notice: Notice, wording: Wording, caplog: pytest.LogCaptureFixture
) -> None:
    Keeps.status = 500
    with pytest.raises(NotifyError, match="did not take it") as caught:
        Apprise(f"json://127.0.0.1:{port}/s3cret", wording).send(notice)
    assert "s3cret" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("url", ["nonsense", "zork://x/s3cret", "slack://", "dbus://", "file:///etc/passwd"])
def test_an_address_that_apprise_does_not_know_is_said_without_it(url: str, notice: Notice, wording: Wording) -> None:
    with pytest.raises(NotifyError, match="apprise does not know the address that begins with") as caught:
        Apprise(url, wording).send(notice)
    assert "s3cret" not in str(caught.value)
