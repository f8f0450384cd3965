"""Hostile requests: a grammar of broken snapshots, headers and encodings, and a judge that is no code of the server."""

import contextlib
import copy
import gzip
import json
import math
import random
import socket
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import zstandard
from jsonschema import Draft202012Validator

from cluster_dash_server.snapshot import schema_text
from tests.processes import snapshot

PASSCODE = "the passcode of this site"
MOST_BYTES, MOST_DEPTH = 8 * 2**20, 32
VALIDATOR = Draft202012Validator(json.loads(schema_text()))

TEXTS = (
    *(
        "",
        " ",
        "\n",
        "gpu01\n",
        "a/b",
        "../../etc/passwd",
        "\x00",
        "\x1b[2J",
        "a\nERROR forged",
        "\u2028",
        "\u202e",
        "é",
        "日本",
    ),
    *(
        "<script>alert(1)</script>",
        "{{7*7}}",
        "=1+1",
        "'; DROP TABLE hosts;--",
        "%s%n",
        "x" * 300,
        "x" * 70_000,
        "\ud800",
    ),
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 1e308, -0.0, 0.1, 101, 1e18, True, False)
RAW_NUMBERS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"01",
    b"0x10",
    b"1_000",
    b"+1",
    b".5",
    b"1.",
    b"9" * 5000,
)


class Case(NamedTuple):
    """One request, and whether it is to be taken."""

    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_good: bool


def hostile_value(rng: random.Random, depth: int = 0) -> Any:
    """Return a value that no field expects."""
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return None
    if kind == 3:
        return rng.choice(([], {}, [[]], [{}], {"": {}}))
    if kind == 4:
        return [hostile_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS)[:64]: hostile_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _spoil(rng: random.Random, value: Any, chance: float) -> Any:
    """Replace, drop and add members here and there."""
    if rng.random() < chance:
        return hostile_value(rng)
    if isinstance(value, dict):
        spoiled = {key: _spoil(rng, each, chance) for key, each in value.items() if rng.random() > chance / 4}
        if rng.random() < chance:
            spoiled[rng.choice(TEXTS)[:300]] = hostile_value(rng)
        return spoiled
    return [_spoil(rng, each, chance) for each in value] if isinstance(value, list) else value


def _bytes_of(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=True).encode()


def broken_bytes(rng: random.Random, body: bytes) -> bytes:
    """Cut, flip, insert or repeat bytes."""
    place = rng.randrange(len(body))
    kind = rng.randrange(7)
    if kind == 0:
        return body[:place]
    if kind == 1:
        return body[:place] + bytes([body[place] ^ (1 << rng.randrange(8))]) + body[place + 1 :]
    if kind == 2:
        return body[:place] + rng.randbytes(rng.randrange(1, 9)) + body[place:]
    if kind == 3:
        number = body.find(b": ", place)
        return body if number < 0 else body[: number + 2] + rng.choice(RAW_NUMBERS) + b"," + body[number + 2 :]
    if kind == 4:
        return rng.choice((b"[", b'{"a":')) * rng.choice((10, 33, 1000, 100_000))
    if kind == 5:
        return body[:-1] + b', "hostname": "other"}'
    return rng.choice((b"", b"null", b"[]", b'"x"', b"{}", b"\xff\xfe", b"\xef\xbb\xbf" + body, body + b"\n" + body))


def _packed(rng: random.Random, body: bytes) -> tuple[str | None, bytes, bool]:
    """Return an encoding, the body in it, and whether it is what it says."""
    kind = rng.randrange(14)
    gzipped = gzip.compress(body, 1)
    if kind == 0:
        return "gzip", gzipped, True
    if kind == 1:
        return "zstd", zstandard.ZstdCompressor().compress(body), True
    if kind == 2:
        return "gzip", gzipped[: rng.randrange(len(gzipped))], False
    if kind == 3:
        return "gzip", gzipped + gzipped, False
    if kind == 4:
        return "gzip", gzip.compress(gzipped, 1), False
    if kind == 5:
        return "gzip", body, False
    if kind == 6:
        return rng.choice(("br", "deflate", "gzip, gzip", "x" * 500, "\x7f")), zlib.compress(body), False
    if kind == 7:
        return "zstd", rng.randbytes(200), False
    return None, body, True


def generate(rng: random.Random) -> Case:
    """Make one request."""
    document: dict[str, Any] = copy.deepcopy(snapshot(f"gpu{rng.randrange(20):02}", rng.randrange(4), rng.randrange(6)))
    auth: Any = rng.choice((PASSCODE,) * 8 + ("wrong", "", None, 5, [], {}, True, "\ud800", "é", PASSCODE + "\n"))
    document["auth_code"] = auth
    if rng.random() < 0.6:
        document = _spoil(rng, document, rng.choice((0.003, 0.02, 0.2)))
    body = _bytes_of(document)
    if rng.random() < 0.35:
        body = broken_bytes(rng, body)
    headers: list[tuple[str, str]] = []
    encoding, packed, is_honest = _packed(rng, body)
    if encoding is not None:
        headers.append(("Content-Encoding", encoding))
    for name, values in (
        (
            "Content-Type",
            ("application/json", "application/x-www-form-urlencoded", "multipart/form-data", "\xff", "a" * 2000),
        ),
        ("Date", ("yesterday", "Mon, 99 Foo 9999 99:99:99 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "1" * 200)),
        ("Accept-Encoding", ("*;q=x", ",,,;", "gzip;q=\xe9")),
        ("X-Forwarded-For", ("127.0.0.1", "::::", "a" * 1000)),
    ):
        if rng.random() < 0.1:
            headers.append((name, rng.choice(values)))
    is_from_a_page = rng.random() < 0.03
    if is_from_a_page:
        headers.append(("Origin", rng.choice(("https://evil.example", "null"))))
    return Case(tuple(headers), packed, is_honest and not is_from_a_page and judge(body))


def judge(body: bytes) -> bool:
    """Say whether a plain body is a snapshot with the right passcode, by the plainest means."""
    try:
        text = body.decode("utf-8")
        document = json.loads(
            text, parse_constant=_no, parse_float=_finite, parse_int=_whole, object_pairs_hook=_Members
        )
        json.dumps(document).encode()
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return False
    if (
        not isinstance(document, _Members)
        or document.is_twice
        or _depth(document) > MOST_DEPTH
        or len(body) > MOST_BYTES
    ):
        return False
    if document.pop("auth_code", None) != PASSCODE:
        return False
    return VALIDATOR.is_valid(_plain(document))


class _Members(dict[str, Any]):
    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.is_twice = len(pairs) != len(self)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _no(name: str) -> float:
    raise ValueError(name)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def _whole(text: str) -> int | float:
    return _finite(text) if len(text) > 20 or not -(2**63) <= int(text) < 2**64 else int(text)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


# ------------------------------------------------------------------------------------------------------ over HTTP


class Said(NamedTuple):
    """An answer; status 0: the connection was closed without one."""

    status: int
    body: bytes


def request_of(case: Case, path: str = "/") -> bytes:
    """Return the bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(case.body)}"]
    lines += [f"{name}: {value}" for name, value in case.headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + case.body


def say(port: int, data: bytes, seconds: float = 30) -> Said:
    """Send bytes on a connection of their own, and return the first answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with contextlib.suppress(OSError):  # it may have answered before it read all
            connection.sendall(data)
        return hear(connection)


def hear(connection: socket.socket) -> Said:
    """Read one answer."""
    got = b""
    with contextlib.suppress(OSError):
        while True:
            head, end, body = got.partition(b"\r\n\r\n")
            if end:
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                if len(body) >= length:
                    return Said(int(head.split(b" ")[1]), body[:length])
            more = connection.recv(65536)
            if not more:
                break
            got += more
    return Said(int(got.split(b" ")[1]) if got.startswith(b"HTTP/") else 0, b"")


def good(host: str) -> bytes:
    """Return a request that is to be taken."""
    body = _bytes_of({**snapshot(host, 2, 4), "auth_code": PASSCODE, "timestamp": time.time()})
    return request_of(Case((), body, is_good=True))


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Say whether something becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def send_good(port: int, count: int) -> None:
    """Send so many good posts of twenty hosts, one after the other."""
    for number in range(count):
        said = say(port, good(f"gpu{number % 20:02}"))
        assert said.status == 200, said


def fuzz(port: int, count: int, seed: int) -> Counter[int]:
    """Send so many generated requests; fail at the first that is answered otherwise than the judge says."""
    rng, statuses = random.Random(seed), Counter[int]()
    for number in range(count):
        case = generate(rng)
        said = say(port, request_of(case))
        statuses[said.status] += 1
        assert said.status in (200, 400, 401, 403, 413, 415, 422, 429), (seed, number, said)
        assert (said.status == 200) is case.is_good, (seed, number, said, case.headers, case.body[:2000])
    return statuses
