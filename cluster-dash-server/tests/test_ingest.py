"""A post from bytes to the live view: every refusal by its row of the contract, nothing stored is lost."""

import dataclasses
import gzip
import json
import logging
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server.access.auth import Auth, Caller, Passcode
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.ingest import LINES_A_MINUTE, Answer, Ingest, Limits, Post, bearer, date
from cluster_dash_server.snapshot import checker
from cluster_dash_server.states import Thresholds

Snapshot = dict[str, Any]
LOCAL = Caller(peer="127.0.0.1", host="localhost", forwarded=False, origin=None, fetch_site=None)
CHECK = checker()


class Bench:
    """An `Ingest` with its cluster, and posts in one line."""

    def __init__(self, clock: Callable[[], float], passcode: str | None = None, **limits: int) -> None:
        self.cluster = Cluster(Thresholds(), limits.get("max_hosts", 10_000))
        self.clock = clock
        self.ingest = Ingest(
            cluster=self.cluster, auth=Auth(Passcode(passcode)), check=CHECK, limits=Limits(**limits), clock=clock
        )

    def post(self, body: Snapshot | bytes, caller: Caller = LOCAL, **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ingest(
            Post(caller=caller, headers={name.replace("_", "-"): value for name, value in headers.items()}, body=raw)
        )

    def batch(self, body: bytes, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ingest.batch(Post(caller=LOCAL, headers=named, body=body))

    def stored(self) -> list[tuple[str, float]]:
        return [(host.host, host.seen.received_at) for host in self.cluster.hosts(self.clock())]


@pytest.fixture
def bench(clock: Callable[[], float]) -> Bench:
    return Bench(clock)


def test_a_snapshot_of_the_first_agents_is_stored_without_its_secret(bench: Bench, example: Snapshot) -> None:
    answer = bench.post(example)
    assert (answer.status, answer.body) == (200, {"success": True, "msg": "stored result"})
    (host,) = bench.cluster.hosts(bench.clock())
    del example["auth_code"]
    assert host.seen.snapshot == example


def test_a_snapshot_with_an_identity_hears_whether_it_is_a_duplicate_and_no_durable_seq(
    bench: Bench, example: Snapshot
) -> None:
    example.update(boot_id="b", seq=3, interval_seconds=5)
    assert bench.post(example).body == {"success": True, "msg": "stored result", "duplicate": False, "next_seconds": 5}
    assert bench.post(example).body["duplicate"] is True


@pytest.mark.parametrize(("pack", "encoding"), [(gzip.compress, "gzip"), (zstandard.ZstdCompressor().compress, "zstd")])
def test_compressed_posts_with_the_secret_in_a_header_are_taken(
    bench: Bench, example: Snapshot, pack: Callable[[bytes], bytes], encoding: str
) -> None:
    secret = example.pop("auth_code")
    body = pack(json.dumps(example).encode())
    assert bench.post(body, content_encoding=encoding, authorization=f"Bearer {secret}").status == 200


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (lambda body: b"not json", 400, "body: not JSON"),
        (lambda body: b"[]", 400, "body: expected a JSON object"),
        (lambda body: b"[" * 100_000, 400, "body: nested deeper"),
        (lambda body: json.dumps(body).replace("97", "NaN").encode(), 400, "body: not JSON"),
        (lambda body: {**body, "hostname": "a/b"}, 400, "hostname: "),
        (lambda body: {**body, "timestamp": "now"}, 400, "timestamp: "),
        (lambda body: {key: value for key, value in body.items() if key != "gpu"}, 400, "gpu: missing"),
        (
            lambda body: {**body, "cpu": {"cpu_percent": 400}},
            400,
            "cpu.cpu_percent: 400 is greater than the maximum of 100",
        ),
        (lambda body: {**body, "auth_code": "guess"}, 401, "auth_code: not known here"),
        (lambda body: {**body, "auth_code": None}, 401, "auth_code: no passcode"),
        (lambda body: {**body, "auth_code": 5}, 401, "auth_code: not known here"),
        (lambda body: {**body, "gpu": {str(i): {"index": i} for i in range(65)}}, 422, "gpu: 65 entries, limit 64"),
        (lambda body: b" " * (2 * 2**20 + 1), 413, "body: 2097153 bytes, limit 2097152"),
    ],
)
def test_bad_input_is_answered_with_the_field_and_what_is_stored_stays(
    bench: Bench, example: Snapshot, change: Callable[[Snapshot], Any], status: int, says: str
) -> None:
    bench.post(example)
    before = bench.stored()
    answer = bench.post(change(example))
    assert (answer.status, answer.body["success"]) == (status, False)
    assert answer.body["msg"].startswith(says)
    assert bench.stored() == before


def test_the_secret_is_checked_before_the_schema_and_never_repeated(
    clock: Callable[[], float], example: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(clock, passcode="s3cret-of-the-site")
    caplog.set_level(logging.DEBUG)
    assert bench.post({**example, "cpu": 5, "auth_code": "guessed"}).status == 401
    wrong = bench.post({**example, "auth_code": "s3cret-of-the-site", "cpu": "s3cret"})
    assert wrong.status == 400
    everything = caplog.text + json.dumps(wrong.body)
    assert "s3cret-of-the-site" not in everything
    assert "guessed" not in everything


@pytest.mark.parametrize("facts", [{"origin": "https://evil.example"}, {"fetch_site": "cross-site"}])
def test_a_page_in_a_browser_may_not_post(bench: Bench, example: Snapshot, facts: Any) -> None:
    caller = dataclasses.replace(LOCAL, **facts)
    assert bench.post(example, caller=caller).status == 403
    assert bench.stored() == []


def test_one_host_too_many_hears_when_to_come_again(clock: Callable[[], float], example: Snapshot) -> None:
    bench = Bench(clock, max_hosts=1)
    bench.post(example)
    answer = bench.post({**example, "hostname": "another"})
    assert answer.status == 429
    assert answer.retry_after_seconds


def test_the_clock_of_a_host_is_compared_by_the_date_it_sends(bench: Bench, example: Snapshot) -> None:
    bench.post(example, date=formatdate(bench.clock() + 412, usegmt=True))
    assert bench.cluster.hosts(bench.clock())[0].seen.skew_seconds == 412


def test_a_timestamp_that_cannot_be_is_taken_and_the_receipt_counts(bench: Bench, example: Snapshot) -> None:
    for timestamp in (-1, 0, 1e300, 10**18):
        assert bench.post({**example, "timestamp": timestamp}).status == 200
    assert bench.stored() == [("gpu01", bench.clock())]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = [
    "hostname",
    "timestamp",
    "auth_code",
    "cpu",
    "gpu",
    "memory",
    "disk",
    "general",
    "boot_id",
    "seq",
    "collectors",
    "events",
]


@given(
    fields=st.dictionaries(st.sampled_from(names), values, max_size=4),
    encoding=st.sampled_from(["", "gzip", "zstd", "br"]),
)
@settings(max_examples=300, deadline=None)
def test_no_post_ends_in_an_exception(fields: Snapshot, encoding: str) -> None:
    bench = Bench(lambda: 1.0)
    body = {"hostname": "a", "timestamp": 1, "cpu": {}, "gpu": {}, "auth_code": "lab_cluster_2025", **fields}
    headers: dict[str, Any] = {"content_encoding": encoding} if encoding else {}
    answer = bench.post(json.dumps(body).encode("utf-8", "surrogatepass"), **headers)
    assert answer.status in (200, 400, 401, 415, 422)
    assert (answer.status == 200) is answer.body["success"]


def test_headers_that_make_no_sense_are_none() -> None:
    assert bearer("Bearer abc") == "abc"
    assert bearer("bearer  abc ") == "abc"
    assert bearer("Basic abc") is None
    assert bearer("Bearer") is None
    assert bearer(None) is None
    assert date(None) is None
    assert date("yesterday") is None
    assert date("Sun, 06 Nov 1994 08:49:37 GMT") == 784111777.0


def lines(*bodies: Snapshot | bytes) -> bytes:
    return b"\n".join(body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies)


def test_each_line_of_a_batch_is_taken_or_refused_for_itself(bench: Bench, example: Snapshot) -> None:
    known = {**example, "boot_id": "b", "seq": 1}
    bench.post(known)
    answer = bench.batch(
        lines(
            {**example, "hostname": "a"},
            b"not json",
            known,
            {**example, "hostname": "b", "cpu": 5},
            {**example, "hostname": "c", "auth_code": "guess"},
            b"",
            {**example, "hostname": "d"},
        )
    )
    assert answer.status == 200
    assert (answer.body["success"], answer.body["accepted"], answer.body["duplicates"]) == (True, 2, 1)
    assert [(each["line"], each["status"]) for each in answer.body["rejected"]] == [(1, 400), (3, 400), (4, 401)]
    assert answer.body["rejected"][1]["msg"] == "cpu: 5 is not of type object"
    assert [host for host, _ in bench.stored()] == ["a", "d", "gpu01"]


def test_the_log_says_why_lines_of_a_batch_are_refused_so_often_a_minute(
    bench: Bench, example: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    body = lines(example, {**example, "hostname": "b", "cpu": 5}, b"not json")
    for _ in range(LINES_A_MINUTE + 5):
        bench.batch(body)
    assert len(caplog.messages) == LINES_A_MINUTE
    (said,) = set(caplog.messages)
    assert said.startswith("refused 2 of 3 lines from ")
    assert said.endswith(", such as 400: cpu: 5 is not of type object")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "body: no snapshot in it"),
        (b"\n\n", 400, "body: no snapshot in it"),
        (b"{}\n" * 101, 413, "body: 101 lines, limit 100"),
        (gzip.compress(b" " * (4 * 2**20 + 1), mtime=0), 413, "body: larger than 4194304 bytes when inflated"),
    ],
)
def test_a_batch_that_is_none_or_too_large_is_refused_whole(bench: Bench, body: bytes, status: int, says: str) -> None:
    headers = {"content_encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
    answer = bench.batch(body, **headers)
    assert (answer.status, answer.body["msg"]) == (status, says)


def test_a_batch_of_which_no_line_has_room_is_answered_429(clock: Callable[[], float], example: Snapshot) -> None:
    bench = Bench(clock, max_hosts=1)
    bench.post(example)
    full = [{**example, "hostname": name} for name in "ab"]
    assert bench.batch(lines(*full)).status == 429
    assert bench.batch(lines(*full, example)).status == 200


def test_a_page_may_not_post_a_batch_either(bench: Bench, example: Snapshot) -> None:
    page = dataclasses.replace(LOCAL, origin="https://evil.example")
    assert bench.ingest.batch(Post(caller=page, headers={}, body=lines(example))).status == 403


def test_what_no_real_host_has_is_refused(bench: Bench, example: Snapshot) -> None:
    processes: Snapshot = {str(pid): {} for pid in range(1, 2002)}
    for body, says in [
        (
            {**example, "gpu": {"0_X_0": {"index": 0, "users": {"a": processes}}}},
            "gpu.users: 2001 processes, limit 2000",
        ),
        (
            {**example, "gpu": {"0_X_0": {"index": 0, "users": {f"u{i}": {} for i in range(2001)}}}},
            "gpu.users: 2001 users",
        ),
        (
            {**example, "gpu": {"gpu_error": {"index": 0, "users": {"a": processes}}}},
            "gpu.users: 2001 processes, limit 2000",
        ),
        ({**example, "disk": {f"/{i}": {} for i in range(501)}}, "disk: 501 entries, limit 500"),
    ]:
        answer = bench.post(body)
        assert answer.status == 422
        assert answer.body["msg"].startswith(says)


def test_invented_names_from_afar_are_slowed_and_known_hosts_and_this_machine_are_not(
    clock: Any, example: Snapshot
) -> None:
    bench = Bench(clock, passcode="of the site", new_hosts_per_minute=2)
    afar = dataclasses.replace(LOCAL, peer="192.0.2.7")
    example["auth_code"] = "of the site"

    def status(host: str, caller: Caller = afar) -> int:
        return bench.post({**example, "hostname": host}, caller=caller).status

    assert [status(host) for host in ("a", "b", "c", "a", "b")] == [200, 200, 429, 200, 200]
    assert status("d", LOCAL) == 200
    clock.now += 61
    assert status("c") == 200


def test_one_snapshot_laid_out_over_lines_is_a_batch_of_one(bench: Bench, example: Snapshot) -> None:
    answer = bench.batch(json.dumps(example, indent=2).encode())
    assert (answer.body["accepted"], answer.body["rejected"]) == (1, [])


def test_an_empty_auth_code_leaves_the_word_to_the_header(bench: Bench, example: Snapshot) -> None:
    secret, example["auth_code"] = example["auth_code"], ""
    assert bench.post(example, authorization=f"Bearer {secret}").status == 200
