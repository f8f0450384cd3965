"""The hot ways: how the body of a post is read, whatever a server gives of it at a time."""

from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from cluster_dash_server.ingest import Answer, Limits, Post
from cluster_dash_server.web import hot

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

BODY = b"0123456789"


class Taking:
    """Takes all posts."""

    def __init__(self) -> None:
        self.limits = Limits(body_bytes=len(BODY))
        self.bodies: list[bytes] = []

    def __call__(self, post: Post) -> Answer:
        self.bodies.append(post.body)
        return Answer(status=200, body={"success": True})

    batch = __call__

    def at_once(self, post: Post) -> Answer | None:
        return None


class Dripping(BytesIO):
    """Gives no more than three bytes at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0, "a server may never answer who asks for more than there is"
        return super().read(min(3, size))


class Broken(BytesIO):
    """The connection broke."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError("reset by peer")


@pytest.fixture
def taking() -> Taking:
    return Taking()


def posted(taking: Taking, stream: BytesIO, **environ: str) -> str:
    """Post what a stream gives; return the status."""
    request: WSGIEnvironment = {"wsgi.input": stream, "wsgi.input_terminated": True, "wsgi.url_scheme": "http"}
    way, _ = hot.ways(taking)
    return way.answer(request | environ).status


@pytest.mark.parametrize("stream", [BytesIO, Dripping])
def test_a_body_is_read_to_its_length_and_no_further(taking: Taking, stream: type[BytesIO]) -> None:
    for length in (1, 4, 9, 10):
        assert posted(taking, stream(BODY), CONTENT_LENGTH=str(length)) == "200 OK"
    assert taking.bodies == [BODY[:1], BODY[:4], BODY[:9], BODY]


@pytest.mark.parametrize("length", ["", "x", "-3", "٣", "+3", "0"])
def test_a_length_that_is_no_number_does_not_count(taking: Taking, length: str) -> None:
    posted(taking, BytesIO(BODY), CONTENT_LENGTH=length)
    assert taking.bodies in ([BODY], [b""])


def test_a_chunked_body_is_read_to_its_end(taking: Taking) -> None:
    assert posted(taking, BytesIO(BODY), HTTP_TRANSFER_ENCODING="chunked") == "200 OK"
    assert taking.bodies == [BODY]


@pytest.mark.parametrize("stream", [BytesIO(BODY[:7]), Dripping(BODY[:7]), Dripping(), Broken(BODY)])
def test_a_body_that_is_shorter_than_it_says_is_refused(taking: Taking, stream: BytesIO) -> None:
    assert posted(taking, stream, CONTENT_LENGTH="8") == "400 Bad Request"
    assert not taking.bodies


@pytest.mark.parametrize("length", ["11", "9" * 18, "9" * 19])
def test_a_body_that_says_it_is_too_large_is_not_read(taking: Taking, length: str) -> None:
    stream = BytesIO(BODY)
    assert posted(taking, stream, CONTENT_LENGTH=length).startswith("413")
    assert stream.tell() == 0
    assert not taking.bodies
