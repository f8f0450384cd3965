"""Input that is to hurt, over real HTTP: nothing of it is taken, nothing answers 5xx, and real hosts stay current."""

import contextlib
import gzip
import json
import os
import re
import socket
import statistics
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cluster_dash_server.control import ask
from tests.hostile import PASSCODE, Case, Said, fuzz, good, hear, request_of, say, send_good, until
from tests.processes import PATIENCE, Listening, snapshot, start_server


@pytest.fixture(scope="module")
def hardened() -> Iterator[Listening]:
    """A server with a passcode of its own, to whom everybody here is a stranger's machine but for the address."""
    with start_server(environment={"CLUSTER_DASH_INGEST__PASSCODE": PASSCODE}) as server:
        yield server


@pytest.fixture(scope="module")
def port(hardened: Listening) -> int:
    return int(hardened.url.rpartition(":")[2])


def body_of(**changes: object) -> bytes:
    return json.dumps({**snapshot("gpu01", 1, 1), "auth_code": PASSCODE, **changes}).encode()


def post(body: bytes, *headers: tuple[str, str], path: str = "/") -> bytes:
    return request_of(Case(headers, body, is_good=False), path)


def raw(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def gpu(**fields: object) -> dict[str, Any]:
    return {"gpu": {"0_x_abc": {"index": 0, "users": {}, **fields}}}


GOOD = body_of()
# a table, as wide as it needs to be
# ruff: noqa: E501
NOT_TAKEN: dict[str, bytes] = {
    # what is no JSON, or not only JSON
    **{name: post(body) for name, body in {
        "nothing": b"", "blank": b"   ", "text": b"hello", "null": b"null", "list": b"[]", "number": b"1", "string": b'"x"',
        "truncated": GOOD[:-1], "trailing": GOOD + b"}", "two": GOOD + GOOD, "comma": GOOD[:-1] + b",}", "BOM": b"\xef\xbb\xbf" + GOOD,
        "UTF-16": GOOD.decode().encode("utf-16"), "Latin-1": GOOD.replace(b"gpu01", b"gp\xfc01"), "NUL": GOOD + b"\0",
        "comment": b"/* */" + GOOD, "single quotes": GOOD.replace(b'"', b"'"), "form": b"payload=" + GOOD,
    }.items()},
    # numbers
    **{f"cpu {number[:12].decode()}": post(GOOD.replace(b"23.4", number)) for number in (
        b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"101", b"1e308", b"01", b"0x1", b"true", b'"5"', b"[]", b"9" * 400, b"-",
    )},
    # deep
    **{f"{opening.decode()} x {count}": post(opening * count) for opening in (b"[", b'{"a":', b'[{"":') for count in (10, 33, 1000, 300_000)},
    "deep in a field": post(body_of(labels=0).replace(b'"labels": 0', b'"labels": ' + b"[" * 40 + b"]" * 40)),
    # names
    **{f"hostname {name[:12]!r}": post(body_of(hostname=name)) for name in (
        "", "a/b", "..", "a\n", "\na", "a\x00b", "a\x1b[31m", "a\x7f", "a\x85", "x" * 254, "a\ud800",
    ) if name != ".."},
    **{f"hostname is {other!r}": post(body_of(hostname=other)) for other in list[Any]((None, 5, True, [], {}, ["gpu01"]))},
    "hostname twice": post(GOOD[:-1] + b', "hostname": "gpu02"}'),
    "hostname twice, escaped": post(GOOD[:-1] + b', "host\\u006eame": "gpu02"}'),
    "auth_code twice": post(b'{"auth_code": "wrong", ' + GOOD[1:]),
    # secrets
    **{f"auth_code {value!r}": post(body_of(auth_code=value)) for value in (
        "wrong", "", None, 5, 0, True, [], {}, [PASSCODE], {"": PASSCODE}, "é", "\ud800", PASSCODE + "\n", " " + PASSCODE,
        PASSCODE.upper(), "lab_cluster_2025", "cdh_abcdefgh_" + "x" * 43, "cdr_", "cde_abcdefgh_x", "x" * 100_000,
    )},
    **{f"Authorization {value[:14]}": post(body_of(auth_code=None), ("Authorization", value)) for value in (
        "Bearer", "Bearer wrong", f"Basic {PASSCODE}", f"bearer{PASSCODE}", "Bearer \xff", "Digest x", "Bearer " + "x" * 4000,
    )},
    # fields
    **{f"field {name}": post(json.dumps({**json.loads(GOOD), **changes}).encode()) for name, changes in dict[str, dict[str, Any]]({
        "gpu list": {"gpu": []}, "gpu null": {"gpu": None}, "no index": {"gpu": {"0": {}}}, "index true": gpu(index=True),
        "index -1": gpu(index=-1), "index 1e9": gpu(index=10**9), "util 101": gpu(gpu_util=101), "users list": gpu(users=[]),
        "user list": gpu(users={"ann": []}), "pid list": gpu(users={"ann": {"1": []}}), "65 GPUs": {"gpu": {str(i): {"index": i} for i in range(65)}},
        "2001 processes": gpu(users={"ann": {str(i): {"mem": 1} for i in range(2001)}}), "timestamp text": {"timestamp": "now"},
        "timestamp null": {"timestamp": None}, "cpu null": {"cpu": None}, "seq text": {"seq": "1", "boot_id": "b"},
        "seq -1": {"seq": -1, "boot_id": "b"}, "seq 2^70": {"seq": 2**70, "boot_id": "b"}, "interval 0": {"interval_seconds": 0}, "disk list": {"disk": []},
        "501 disks": {"disk": {str(i): {"mount_point": "/", "percent_used": 1} for i in range(501)}},
    }).items()},
    # encodings
    **{f"encoding {name}": post(body, ("Content-Encoding", encoding)) for name, encoding, body in (
        ("not gzip", "gzip", GOOD), ("cut gzip", "gzip", gzip.compress(GOOD)[:-9]), ("two members", "gzip", gzip.compress(GOOD) * 2),
        ("nested", "gzip", gzip.compress(gzip.compress(GOOD))), ("list", "gzip, gzip", gzip.compress(gzip.compress(GOOD))),
        ("bomb", "gzip", gzip.compress(b" " * 50_000_000)), ("100 bombs", "gzip", gzip.compress(b" " * 1_000_000) * 100),
        ("not zstd", "zstd", GOOD), ("zstd bomb", "zstd", zstandard.ZstdCompressor().compress(b" " * 100_000_000)),
        ("lying zstd", "zstd", bytes.fromhex("28b52ffde0ffffffffffffff0f") + b"\0" * 50), ("br", "br", GOOD), ("unknown", "\xff", GOOD),
    )},
    # the request itself
    "both lengths": raw("POST / HTTP/1.1", "Host: localhost", "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "two lengths": raw("POST / HTTP/1.1", "Host: localhost", "Content-Length: 5", "Content-Length: 6", body=b"abcdef"),
    "length -1": raw("POST / HTTP/1.1", "Host: localhost", "Content-Length: -1"),
    "length +5": raw("POST / HTTP/1.1", "Host: localhost", "Content-Length: +5", body=b"abcde"),
    "length 0x5": raw("POST / HTTP/1.1", "Host: localhost", "Content-Length: 0x5", body=b"abcde"),
    "length 10^30": raw("POST / HTTP/1.1", "Host: localhost", f"Content-Length: {10**30}"),
    "chunk size text": raw("POST / HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", body=b"zz\r\nabc\r\n0\r\n\r\n"),
    "chunk size negative": raw("POST / HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", body=b"-1\r\n\r\n"),
    "encoding twice": raw("POST / HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "encoding unknown": raw("POST / HTTP/1.1", "Host: localhost", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "blank before colon": raw("POST / HTTP/1.1", "Host: localhost", "Content-Length : 5", body=b"abcde"),
    "folded": raw("POST / HTTP/1.1", "Host: localhost", "X: a", " b", "Content-Length: 0"),
    "large header": raw("POST / HTTP/1.1", "Host: localhost", "X: " + "a" * 20_000, "Content-Length: 0"),
    "many headers": raw("POST / HTTP/1.1", "Host: localhost", *(f"X-{i}: a" for i in range(2000)), "Content-Length: 0"),
    "no method": raw(" / HTTP/1.1", "Host: localhost"),
    "lower-case method": raw("post / HTTP/1.1", "Host: localhost", "Content-Length: 0"),
    "unknown method": raw("BREW / HTTP/1.1", "Host: localhost", "Content-Length: 0"),
    "path with NUL": raw("POST /%00 HTTP/1.1", "Host: localhost", "Content-Length: 0"),
    "path upwards": raw("POST /../../etc/passwd HTTP/1.1", "Host: localhost", "Content-Length: 0"),
    "absolute path": raw("POST http://evil.example/ HTTP/1.1", "Host: evil.example", "Content-Length: 2", body=b"{}"),
    "binary": bytes(range(256)) * 8 + b"\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + b"x" * 200 + b"\r\n\r\n",
    # browsers
    **{f"page of {name}": post(GOOD, *headers) for name, headers in {
        "another site": (("Origin", "https://evil.example"),), "null": (("Origin", "null"),), "this site": (("Origin", "http://localhost"),),
        "cross-site": (("Sec-Fetch-Site", "cross-site"),), "same-site": (("Sec-Fetch-Site", "same-site"),),
    }.items()},
    # many at once
    **{f"batch {name}": post(body, path="/api/v1/snapshots") for name, body in {
        "empty": b"\n\n", "101 lines": (GOOD + b"\n") * 101, "5 MiB": b" " * (5 * 2**20), "brackets": b"[" * 100_000,
    }.items()},
    **{f"enrol {name}": post(body, path="/api/v1/enrol") for name, body in {
        "nothing": b"", "list": b"[]", "wrong": b'{"code": "x", "hostname": "gpu01"}', "types": b'{"code": 5, "hostname": []}',
        "surrogate": b'{"code": "\\ud800", "hostname": "\\ud800"}', "large": b" " * 100_000,
    }.items()},
}  # fmt: skip


def test_there_are_a_hundred_of_them() -> None:
    assert len(NOT_TAKEN) >= 100


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_is_wrong_is_refused_in_words_and_changes_nothing(name: str, port: int) -> None:
    before = known(port)
    said = say(port, NOT_TAKEN[name])
    assert known(port) == before
    answer = json.loads(said.body)
    if said.status == 200:  # a batch answers each line for itself
        assert name.startswith("batch")
        assert (answer["accepted"], len(answer["rejected"])) == (0, 1)
    else:
        assert 400 <= said.status < 500, said
        assert (answer["success"], bool(answer["msg"])) == (False, True)
    assert PASSCODE.encode() not in said.body


def test_and_what_is_right_is_taken(port: int) -> None:
    assert say(port, post(GOOD)).status == 200


def get(port: int, path: str) -> Any:
    """Return the JSON of a route; None where it is 404."""
    said = say(port, raw(f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close"))
    return None if said.status == 404 else json.loads(said.body)


def known(port: int) -> tuple[int, Any]:
    """Return how many hosts are known, and the newest snapshot of the one that everybody here speaks for."""
    return get(port, "/readyz")["hosts"], get(port, "/api/v1/hosts/gpu01")


# --------------------------------------------------------------------------------------------------- generated posts


class Steady:
    """A real host that posts all the while; keeps how long each post took (s)."""

    def __init__(self, port: int, pause_seconds: float = 0.02) -> None:
        self._port, self._pause, self._ends = port, pause_seconds, threading.Event()
        self.took: list[float] = []
        self.refused: list[Said] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ends.is_set():
            begin = time.perf_counter()
            said = say(self._port, good("steady"))
            self.took.append(time.perf_counter() - begin)
            if said.status != 200:
                self.refused.append(said)
            self._ends.wait(self._pause)

    def __enter__(self) -> "Steady":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def p99(self) -> float:
        return sorted(self.took)[int(len(self.took) * 0.99)]


def bombard(count: int, seed: int, rounds: int, quiet_seconds: float) -> None:
    """Send so many generated posts from another process, while a host posts on.

    The references are of the same run, in turn with it: a server that hears of that host alone, and one to which the
    other process sends good posts at the same pace.
    """
    with (
        start_server(environment={"CLUSTER_DASH_INGEST__PASSCODE": PASSCODE}) as server,
        # an attacker has a machine of his own: what making the posts costs is not to be measured here
        ProcessPoolExecutor(1, get_context("spawn"), os.nice, (5,)) as other,
    ):
        port = int(server.url.rpartition(":")[2])
        other.submit(fuzz, port, min(2000, count // 5), seed).result()
        before = server.memory_mib()
        statuses = Counter[int]()
        quiet, fleet, attacked = list[Steady](), list[Steady](), list[Steady]()
        for number in range(rounds):
            with Steady(port) as steady:
                time.sleep(quiet_seconds)
            quiet.append(steady)
            with Steady(port) as steady:
                other.submit(send_good, port, count // rounds // 5).result()
            fleet.append(steady)
            with Steady(port) as steady:
                statuses += other.submit(fuzz, port, count // rounds, seed + 1 + number).result()
            attacked.append(steady)
        grown = server.memory_mib() - before
        # by rounds, for whatever else runs on a machine comes and goes
        slower, than_quiet = (
            statistics.median(now.p99() / then.p99() for now, then in zip(attacked, reference, strict=True))
            for reference in (fleet, quiet)
        )
        said = f"p99 {slower:.2f} times that under good posts, {than_quiet:.2f} times the quiet one; {grown:+.1f} MiB"
        print(sorted(statuses.items()), said)  # noqa: T201
        assert sum(statuses.values()) == count
        assert statuses[200] > count / 30
        assert [said for steady in (*quiet, *fleet, *attacked) for said in steady.refused] == []
        assert grown < 50
        assert b"Traceback" not in server.output
        if count < 50_000:  # of so few posts the p99 is the slowest one, and a busy machine makes some slow
            assert median_of(attacked) < 5 * median_of(quiet)
        else:
            # on a machine that does nothing else: a second sender who never pauses is felt on two cores
            assert than_quiet < 2


def median_of(rounds: list[Steady]) -> float:
    return statistics.median(each for steady in rounds for each in steady.took)


def test_of_generated_posts_exactly_the_good_ones_are_taken() -> None:
    bombard(1500, seed=1, rounds=3, quiet_seconds=1)


@pytest.mark.soak
def test_100_000_generated_posts() -> None:
    bombard(100_000, seed=30, rounds=20, quiet_seconds=10)


# -------------------------------------------------------------------------------------------------- too much of it


def test_a_body_without_end_is_cut_off(hardened: Listening, port: int) -> None:
    before = hardened.memory_mib()
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(raw("POST / HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked"))
        with contextlib.suppress(OSError):
            while sent < 2 * 2**30:
                connection.sendall(chunk)
                sent += len(chunk)
        said = hear(connection)
    assert said.status in (0, 413)
    assert sent < 64 * 2**20
    assert hardened.memory_mib() - before < 30


def test_ten_million_brackets_are_refused(port: int) -> None:
    packed = gzip.compress(b"[" * 8_000_000)
    for body, encoding in ((b"[" * 2_000_000, None), (packed, "gzip")):
        headers = () if encoding is None else (("Content-Encoding", encoding),)
        assert say(port, post(body, *headers)).status in (400, 413)
    assert say(port, post(b"[" * 10_000_000)).status in (0, 413)


def test_invented_host_names_leave_real_hosts_current() -> None:
    """From afar their number a minute is limited; here, where it is not, the number of hosts is."""
    limits = {"CLUSTER_DASH_LIMITS__MAX_HOSTS": "300", "CLUSTER_DASH_INGEST__PASSCODE": PASSCODE}
    with start_server(environment=limits) as server:
        port = int(server.url.rpartition(":")[2])
        assert say(port, good("steady")).status == 200
        first_at = get(port, "/api/v1/hosts/steady")["received_at"]
        lines = [json.dumps({**json.loads(GOOD), "hostname": f"invented-{number}"}).encode() for number in range(1000)]
        with Steady(port, 0.1) as steady:
            statuses = Counter(
                say(port, post(b"\n".join(lines[start : start + 50]), path="/api/v1/snapshots")).status
                for start in range(0, 1000, 50)
            )
        assert statuses[429] >= 10
        assert steady.refused == []
        assert get(port, "/readyz")["hosts"] == 300
        assert get(port, "/api/v1/hosts/steady")["received_at"] > first_at


def flood(port: int, first: int, count: int, sender: str | None) -> Counter[int]:
    """Post so many invented names, 100 in a body; `sender` is the address of a machine behind the trusted proxy."""
    statuses = Counter[int]()
    headers = () if sender is None else (("X-Forwarded-For", sender),)
    for start in range(first, first + count, 100):
        lines = [
            b'{"hostname":"invented-%d","timestamp":1,"cpu":{},"gpu":{},"auth_code":"%s"}' % (number, PASSCODE.encode())
            for number in range(start, start + 100)
        ]
        said = say(port, post(b"\n".join(lines), *headers, path="/api/v1/snapshots"), seconds=60)
        statuses[said.status] += 1
        assert said.status in (200, 429, 503), said
    return statuses


@pytest.mark.soak
@pytest.mark.parametrize("sender", [None, "203.0.113.7"], ids=["from here", "from afar"])
def test_a_million_invented_host_names(sender: str | None) -> None:
    limits = {
        "CLUSTER_DASH_INGEST__PASSCODE": PASSCODE,
        "CLUSTER_DASH_SERVER__TRUSTED_PROXIES": "127.0.0.1",
    }
    real = [f"gpu{number:02}" for number in range(20)]
    with start_server(environment=limits) as server, ProcessPoolExecutor(1, get_context("spawn")) as attacker:
        port = int(server.url.rpartition(":")[2])
        for host in real:
            assert say(port, good(host)).status == 200
        with Steady(port, 0.1) as steady:
            flooding = attacker.submit(flood, port, 0, 1_000_000, sender)
            memory = server.memory_mib()
            while not flooding.done():
                for host in real:
                    assert say(port, good(host)).status == 200
                now, told = time.time(), get(port, "/api/v1/cluster")["hosts"]
                seen = dict(zip(told["host"], told["last_at"], strict=True))
                assert all(now - seen[host] < 60 for host in real)
                time.sleep(2)
            statuses = flooding.result()
        print(statuses, f"{memory:.0f} -> {server.memory_mib():.0f} MiB", get(port, "/readyz")["hosts"])  # noqa: T201
        assert steady.refused == []
        assert statuses[429] > 9_000
        assert get(port, "/readyz")["hosts"] <= 10_000
        assert server.memory_mib() - memory < 500


def test_200_slow_senders_hold_up_nobody_and_are_sent_away(port: int) -> None:
    head = raw("POST / HTTP/1.1", "Host: localhost", f"Content-Length: {len(GOOD)}")
    slow = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(head + GOOD[:10])
        begin = time.monotonic()
        for number in range(50):
            for connection in slow[number::50]:
                connection.sendall(GOOD[10:11])
            assert say(port, good("steady")).status == 200
            assert get(port, "/readyz")["success"]
        assert time.monotonic() - begin < 30 * PATIENCE
    finally:
        for connection in slow:
            connection.close()


# ---------------------------------------------------------------------------------------------- secrets and logs


def test_no_secret_and_no_forged_line_is_in_what_the_server_writes(tmp_path: Path) -> None:
    environment = {"CLUSTER_DASH_INGEST__PASSCODE": PASSCODE}
    planted = [PASSCODE, "planted-by-a-guesser", "cdh_planted0_" + "p" * 43]
    with start_server("--data", tmp_path, "-v", environment=environment) as server:
        port = int(server.url.rpartition(":")[2])
        wishes = (("host", "gpu02", ()), ("enrol", "*", ()), ("read", "grafana", ("state:read",)))
        made = [
            ask(tmp_path, {"token": {"new": {"kind": kind, "hosts": whose, "scopes": scopes}}})["token"]
            for kind, whose, scopes in wishes
        ]
        for secret in [*planted, *made]:
            say(port, post(body_of(auth_code=secret)))
            say(port, post(body_of(auth_code=secret, cpu=secret)))
            say(port, post(body_of(auth_code=secret)[:-1]))
            say(port, post(GOOD, ("Authorization", f"Bearer {secret}"), ("Cookie", f"cluster_dash={secret}")))
            say(port, post(json.dumps({"code": secret, "hostname": "gpu03"}).encode(), path="/api/v1/enrol"))
        forged = "gpu01\n2026-01-01 00:00:00 ERROR forged\x1b[2J\u2028"
        say(port, post(body_of(hostname=forged)))
        say(port, post(body_of(gpu={forged: {"index": "x"}})))
        say(port, raw("GET /host/%0a2026-01-01%20ERROR%20forged%1b HTTP/1.1", "Host: localhost", "Connection: close"))
        time.sleep(1.5)  # what history keeps is written within a second
        paths = (
            "api/v1/cluster",
            "api/v1/hosts/gpu01",
            "metrics",
            "api/gpu-summary",
            "",
            "host/gpu01",
            "readyz",
            "status",
        )
        shown = b"".join(urllib.request.urlopen(f"{server.url}/{path}", timeout=60).read() for path in paths)
        output = server.output
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in [*planted, *made]:
        assert secret.encode() not in shown + output + kept, secret
    assert b"forged" in output
    assert re.search(rb"^2026-01-01", output, re.MULTILINE) is None
    assert b"\x1b" not in output
    assert "\u2028".encode() not in output


def test_a_revoked_token_is_refused_at_once_and_others_stay(tmp_path: Path) -> None:
    with start_server("--data", tmp_path, environment={"CLUSTER_DASH_INGEST__PASSCODE": PASSCODE}) as server:
        port = int(server.url.rpartition(":")[2])
        first, second = (
            ask(tmp_path, {"token": {"new": {"kind": "host", "hosts": host}}})["token"] for host in ("gpu01", "gpu02")
        )

        def posts(secret: str, host: str) -> int:
            return say(port, post(body_of(auth_code=secret, hostname=host))).status

        assert (posts(first, "gpu01"), posts(second, "gpu02"), posts(first, "gpu02")) == (200, 200, 403)
        assert ask(tmp_path, {"token": {"revoke": "gpu01"}})["success"]
        assert until(lambda: posts(first, "gpu01") == 403, 5)
        assert posts(second, "gpu02") == 200
        assert posts(first[:-1] + "~", "gpu01") == 401


@pytest.mark.soak
def test_an_unknown_token_and_a_wrong_secret_take_the_same_time(tmp_path: Path) -> None:
    """20,000 tries in turn, by the CPU time of a look-up: means that differ by less than 5 %, in the best of three."""
    from cluster_dash_server.access.auth import Auth, AuthError, Caller, Passcode
    from cluster_dash_server.access.tokens import TokenFile, Tokens

    tokens = Tokens(TokenFile(tmp_path), time.time)
    auth = Auth(Passcode(PASSCODE), tokens)
    known = tokens.new("host", "gpu01")[:13]
    caller = Caller(peer="127.0.0.1", host="localhost", forwarded=False, origin=None, fetch_site=None)
    tries = {"unknown": "cdh_zzzzzzzz_" + "x" * 43, "wrong": known + "x" * 43}
    best = 1.0
    for _ in range(3):
        spent = dict.fromkeys(tries, 0)
        for _ in range(10_000):
            for name, secret in tries.items():
                begin = time.thread_time_ns()
                with contextlib.suppress(AuthError):
                    auth.admit(secret, caller, 1.7e9)
                spent[name] += time.thread_time_ns() - begin
        best = min(best, abs(spent["unknown"] - spent["wrong"]) / spent["wrong"])
    assert best < 0.05
