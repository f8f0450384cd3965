"""Compressed bodies: what is honest passes, what grows too large stops early."""

import gzip
import resource

import pytest
import zstandard

from cluster_dash_server.inflate import InflateError, inflate

PLAIN = b'{"a": "' + b"x" * 5000 + b'"}'
LIMIT = 8 * 2**20


def zstd(plain: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(plain)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(PLAIN, None), (PLAIN, "identity"), (gzip.compress(PLAIN, mtime=0), "gzip"), (zstd(PLAIN), " ZSTD ")],
)
def test_each_encoding_gives_the_body_back(body: bytes, encoding: str | None) -> None:
    assert inflate(body, encoding, LIMIT) == PLAIN


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (PLAIN, "gzip", 400),
        (PLAIN, "zstd", 400),
        (b"", "gzip", 400),
        (b"", "zstd", 400),
        (gzip.compress(PLAIN, mtime=0)[:-9], "gzip", 400),
        (zstd(PLAIN)[:-3], "zstd", 400),
        (gzip.compress(PLAIN, mtime=0) * 100, "gzip", 400),
        (zstd(PLAIN) * 100, "zstd", 400),
        (PLAIN, "br", 415),
        (PLAIN, "gzip, gzip", 415),
    ],
)
def test_a_body_that_is_not_what_it_says_is_refused(body: bytes, encoding: str, status: int) -> None:
    with pytest.raises(InflateError) as refusal:
        inflate(body, encoding, LIMIT)
    assert refusal.value.status == status


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_stops_at_the_limit(encoding: str) -> None:
    blanks = b" " * 200_000_000
    bomb = gzip.compress(blanks, 9) if encoding == "gzip" else zstd(blanks)
    del blanks
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InflateError) as refusal:
        inflate(bomb, encoding, LIMIT)
    assert refusal.value.status == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB


def test_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    for pack, encoding in ((gzip.compress, "gzip"), (zstd, "zstd")):
        assert len(inflate(pack(b"x" * 1000), encoding, 1000)) == 1000
        with pytest.raises(InflateError):
            inflate(pack(b"x" * 1001), encoding, 1000)
