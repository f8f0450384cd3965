"""An engine that answers by halves, slowly, without end, or by a redirect."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster_dash_server.history.remote import engine as module
from cluster_dash_server.history.remote.engine import Access, Connection, EngineError
from cluster_dash_server.history.remote.promql import Asker
from cluster_dash_server.store import SeriesQuery, StoreError

Say = Callable[[BaseHTTPRequestHandler], None]
WHOLE = b'{"status": "success", "data": {"resultType": "vector", "result": []}}'


@pytest.fixture
def engine() -> Iterator[Any]:
    """An engine that answers as `engine.say` does; `engine.access` is where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.server.asked += self.rfile.read(int(self.headers["Content-Length"]))  # type: ignore[attr-defined]
            self.server.say(self)  # type: ignore[attr-defined]

        def log_message(self, *_: object) -> None: ...

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = b""
    url = f"http://127.0.0.1:{server.server_port}"
    server.access = Access(write_url=f"{url}/api/v1/write", read_url=url)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def answer(body: bytes, *, length: int | None = None, status: int = 200, **headers: str) -> Say:
    def say(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        if length is not None:
            handler.close_connection = True

    return say


def chunks_without_end(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    except OSError:
        handler.close_connection = True


def cut_chunk(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"1000\r\nhalf of it")
    handler.close_connection = True


def asked(engine: Any) -> module.Answer:
    connection = Connection(engine.access.read_url, engine.access)
    try:
        return connection.post("/api/v1/query", b"query=1", {})
    finally:
        connection.close()


def test_an_answer_comes_whole_however_it_is_sent(engine: Any) -> None:
    connection = Connection(engine.access.read_url, engine.access)
    for body in (b"x" * 300_000, b"", b"y"):
        engine.say = answer(body)
        assert connection.post("/api/v1/query", b"query=1", {}) == module.Answer(200, body, True, None)
    assert connection.count == 1
    connection.close()


@pytest.mark.parametrize("say", [answer(b"half", length=8), answer(b"", length=8), cut_chunk])
def test_half_an_answer_is_none(say: Say, engine: Any) -> None:
    engine.say = say
    with pytest.raises(EngineError, match="hung up in the middle of its answer"):
        asked(engine)


@pytest.mark.parametrize("limit", ["ANSWER_BYTES", "ANSWER_SECONDS"])
def test_an_answer_without_end_is_given_up(limit: str, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.say = chunks_without_end
    monkeypatch.setattr(module, limit, 2**20 if limit == "ANSWER_BYTES" else 0.2)
    with pytest.raises(EngineError, match="its answer is still not whole after"):
        asked(engine)


def test_a_redirect_is_not_followed(engine: Any) -> None:
    engine.say = answer(b"", status=307, Location="/elsewhere")
    assert "307, a redirect, which is not followed" in module.refusal(asked(engine))
    assert engine.asked == b"query=1"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (WHOLE[:-9], "it answers 200"),
        (b"[]", "it answers 200"),
        (b"", "it answers 200"),
        (WHOLE.replace(b"{", b'{"isPartial": true, ', 1), "a part of the engine is away"),
    ],
)
def test_what_is_no_whole_answer_is_no_history(body: bytes, why: str, engine: Any) -> None:
    asker = Asker(engine.access, "lab", lambda: 1_700_000_000.0)
    engine.say = answer(body)
    with pytest.raises(StoreError, match=why):
        asker.series(SeriesQuery(metric="gpu_util", begin=1_699_999_000.0, end=1_700_000_000.0, step_seconds=60))
    assert b"deny_partial_response=1" in engine.asked
    asker.close()
