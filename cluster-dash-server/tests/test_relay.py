"""A relay between moles and a centre that is a list of answers: what goes out, and what each mole is told."""

import gzip
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest
import zstandard

from cluster_dash_server.access.auth import Auth, Caller, Passcode, Proxies
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.ingest import Answer, Ingest, Limits, Post
from cluster_dash_server.relaying import relay as relay_module
from cluster_dash_server.relaying.centre import CentreError, Said
from cluster_dash_server.relaying.relay import Relay, RelaySettings
from cluster_dash_server.snapshot import checker
from cluster_dash_server.states import Thresholds

Snapshot = dict[str, Any]
MakeSnapshot = Callable[..., Snapshot]
HERE = Caller(peer="127.0.0.1", host="localhost", forwarded=False, origin=None, fetch_site=None)
FAR = Caller(peer="10.0.0.7", host="relay", forwarded=False, origin=None, fetch_site=None)
TOKEN = "cdh_12345678_" + "x" * 43


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self) -> list[Snapshot]:
        return [json.loads(line) for line in zstandard.decompress(self.body).splitlines()]


def taken(count: int, **more: object) -> Said:
    answers = [{"status": 200, "success": True, "msg": "stored result", **more} for _ in range(count)]
    return Said(status=200, body=json.dumps({"success": True, "answers": answers}).encode())


def each_taken(request: Request) -> Said:
    return taken(len(request.lines))


def away(_: Request) -> Said:
    raise CentreError("dash: Connection refused")


@dataclass
class Scripted:
    """A way to a centre that answers by a function."""

    answer: Callable[[Request], Said] = each_taken
    requests: list[Request] = field(default_factory=list)

    def exchange(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Said:
        request = Request(method, path, dict(headers or {}), body)
        self.requests.append(request)
        return self.answer(request)


class Bench:
    """A relay, its two ways, and posts that wait in threads."""

    def __init__(
        self, pool: ThreadPoolExecutor, *, plaintext: bool = False, is_still: bool = False, **settings: Any
    ) -> None:
        self.live, self.aside = Scripted(), Scripted()
        self.now = 1000.0  # what a test moves; the real time goes on beside it, unless time stands still
        self.relay = Relay(
            settings=RelaySettings(**{"wait_seconds": 0.05, **settings}),
            limits=Limits(),
            live=self.live,
            aside=self.aside,
            auth=Auth(Passcode(None), proxies=Proxies(), allows_plaintext=plaintext),
            clock=lambda: self.now + (0 if is_still else time.monotonic()),
        )
        self._pool = pool

    def post(self, body: Snapshot | bytes, caller: Caller = HERE, **headers: str) -> Answer:
        return self.relay(self._post(body, caller, headers))

    def later(self, body: Snapshot | bytes, **headers: str) -> Future[Answer]:
        return self._pool.submit(self.relay, self._post(body, HERE, headers))

    def batch(self, body: bytes, caller: Caller = HERE, **headers: str) -> Answer:
        return self.relay.batch(self._post(body, caller, headers))

    def _post(self, body: Snapshot | bytes, caller: Caller, headers: Mapping[str, str]) -> Post:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Post(caller=caller, headers=named, body=raw)


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(80) as found:
        yield found


@pytest.fixture
def bench(pool: ThreadPoolExecutor) -> Bench:
    return Bench(pool)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ------------------------------------------------------------------------------------------------------ live posts


def test_what_comes_together_goes_in_one_body_each_with_its_secret_and_its_date(pool: ThreadPoolExecutor) -> None:
    bench = Bench(pool, lines=3, wait_seconds=5)
    moment = 1_764_000_000
    asked = [
        bench.later({"hostname": "gpu01", "cpu": {"x": "\n"}}, authorization="Bearer of one"),
        bench.later({"hostname": "gpu02", "auth_code": "in the body"}, date=formatdate(moment, usegmt=True)),
        bench.later(gzip.compress(b'{"hostname":\n\n"gpu03"}'), content_encoding="gzip", authorization="Basic xyz"),
    ]
    assert [each.result(60).status for each in asked] == [200, 200, 200]
    (request,) = bench.live.requests
    assert (request.method, request.path) == ("POST", "/api/v1/snapshots")
    assert request.headers["Content-Encoding"] == "zstd"
    assert request.headers["Via"]
    sent = {line.pop("hostname"): line for line in request.lines}
    assert sent == {
        "gpu01": {"cpu": {"x": "\n"}, "auth_code": "of one"},
        "gpu02": {"auth_code": "in the body"},
        "gpu03": {},
    }
    dates = dict(
        zip([line["hostname"] for line in request.lines], request.headers["relayed-dates"].split(","), strict=True)
    )
    assert dates == {"gpu01": "-", "gpu02": str(moment), "gpu03": "-"}


def test_a_snapshot_waits_for_others_no_longer_than_the_setting_says(bench: Bench) -> None:
    assert bench.post({"hostname": "gpu01"}).status == 200
    assert len(bench.live.requests[0].lines) == 1


def test_while_a_body_is_under_way_the_next_one_is_put_together(pool: ThreadPoolExecutor) -> None:
    bench, gate = Bench(pool, lines=10, wait_seconds=0), threading.Event()

    def slow(request: Request) -> Said:
        gate.wait(60)
        return each_taken(request)

    bench.live.answer = slow
    first = bench.later({"hostname": "gpu00"})
    until(lambda: bench.live.requests)
    rest = [bench.later({"hostname": f"gpu{number:02}"}) for number in range(1, 25)]
    until(lambda: bench.relay.standing().waiting == 25)
    gate.set()
    assert {each.result(60).status for each in (first, *rest)} == {200}
    assert [len(request.lines) for request in bench.live.requests] == [1, 10, 10, 4]


def test_a_body_is_no_larger_than_the_centre_takes(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "BATCH_BYTES", 2500)
    bench = Bench(pool, lines=3, wait_seconds=1)
    asked = [bench.later({"hostname": f"gpu{number}", "x": "y" * 1000}) for number in range(3)]
    assert {each.result(60).status for each in asked} == {200}
    assert sorted(len(request.lines) for request in bench.live.requests) == [1, 2]


def test_each_mole_is_told_the_centres_answer_to_its_own_line(pool: ThreadPoolExecutor) -> None:
    words = {
        "gpu01": {"status": 200, "success": True, "msg": "stored result", "durable_seq": 7, "next_seconds": 5.0},
        "gpu02": {"status": 422, "success": False, "msg": "gpu: 65 entries, limit 64"},
        "gpu03": {"status": 429, "success": False, "msg": "hostname: more than 600 new hosts in a minute"},
    }

    def by_name(request: Request) -> Said:
        answers = [words[line["hostname"]] for line in request.lines]
        return Said(status=200, body=json.dumps({"success": True, "answers": answers}).encode())

    bench = Bench(pool, lines=3, wait_seconds=5)
    bench.live.answer = by_name
    asked = {name: bench.later({"hostname": name}) for name in words}
    for name, said in words.items():
        answer = asked[name].result(60)
        assert {"status": answer.status, **answer.body} == said
        assert answer.retry_after_seconds == (10 if answer.status == 429 else None)
    assert bench.relay.standing().hosts == 1


def test_a_line_is_as_a_server_of_ours_takes_it(
    pool: ThreadPoolExecutor, make_snapshot: MakeSnapshot, clock: Callable[[], float]
) -> None:
    cluster = Cluster(Thresholds())
    centre = Ingest(cluster=cluster, auth=Auth(Passcode("of the site")), check=checker(), limits=Limits(), clock=clock)

    def real(request: Request) -> Said:
        lower = {name.lower(): value for name, value in request.headers.items()}
        answer = centre.batch(Post(caller=FAR, headers=lower, body=request.body))
        return Said(status=answer.status, body=json.dumps(answer.body).encode())

    bench = Bench(pool, lines=3, wait_seconds=5)
    bench.live.answer = real
    good = make_snapshot("gpu01", boot_id="b", seq=3, interval_seconds=5)
    asked = [
        bench.later(good, authorization="Bearer of the site", date=formatdate(clock() - 90, usegmt=True)),
        bench.later({**make_snapshot("gpu02"), "auth_code": "wrong"}),
        bench.later({"auth_code": "of the site", "hostname": "gpu03"}),
    ]
    assert [each.result(60).status for each in asked] == [200, 401, 400]
    assert asked[0].result().body["next_seconds"] == 5
    (host,) = cluster.hosts(clock())
    assert (host.host, host.seen.skew_seconds) == ("gpu01", -90)


def test_what_is_no_json_is_refused_here_and_nobody_else_hears_of_it(pool: ThreadPoolExecutor) -> None:
    bench = Bench(pool, lines=2, wait_seconds=0.05)
    asked = [bench.later(b"{]"), bench.later({"hostname": "gpu01"})]
    assert [each.result(60).status for each in asked] == [400, 200]
    assert asked[0].result().body["msg"].startswith("body: not JSON")
    assert len(bench.live.requests[0].lines) == 1


def test_a_page_in_a_browser_may_not_post_through_a_relay(bench: Bench) -> None:
    page = Caller(peer="127.0.0.1", host="localhost", forwarded=False, origin="http://evil", fetch_site="cross-site")
    assert bench.post({"hostname": "gpu01"}, page).status == 403
    assert bench.batch(b"{}", page).status == 403
    assert (bench.live.requests, bench.aside.requests) == ([], [])


def test_a_body_that_the_centre_refuses_whole_is_halved_until_the_bad_line_is_alone(pool: ThreadPoolExecutor) -> None:
    def touchy(request: Request) -> Said:
        if any(line["hostname"] == "gpu05" for line in request.lines):
            return Said(status=413, body=b'{"success": false, "msg": "body: too large"}')
        return each_taken(request)

    bench = Bench(pool, lines=8, wait_seconds=5)
    bench.live.answer = touchy
    asked = [bench.later({"hostname": f"gpu{number:02}"}) for number in range(8)]
    assert [each.result(60).status for each in asked] == [200] * 5 + [413] + [200] * 2
    assert asked[5].result().body["msg"] == "body: too large"


def test_a_centre_that_asks_for_time_is_heard_by_the_moles(bench: Bench) -> None:
    bench.live.answer = lambda _: Said(
        status=503, body=b'{"success": false, "msg": "request: the server is behind by 11 s"}', retry_after_seconds=23
    )
    answer = bench.post({"hostname": "gpu01"})
    assert (answer.status, answer.retry_after_seconds) == (503, 23)
    assert answer.body["msg"] == "request: the server is behind by 11 s"
    assert bench.relay.standing().trouble is None


# ------------------------------------------------------------------------------------------------- a centre is away


def test_a_centre_that_is_away_is_answered_for_by_503_until_it_is_tried_again(pool: ThreadPoolExecutor) -> None:
    bench = Bench(pool, is_still=True, wait_seconds=0)
    bench.live.answer = away
    pauses = []
    for _ in range(5):
        answer = bench.post({"hostname": "gpu01"})
        assert (answer.status, answer.body) == (503, {"success": False, "msg": "centre: dash: Connection refused"})
        tried = len(bench.live.requests)
        again = bench.post({"hostname": "gpu02"})
        assert (again.status, len(bench.live.requests)) == (503, tried)
        assert again.retry_after_seconds is not None
        pauses.append(again.retry_after_seconds)
        bench.now += again.retry_after_seconds
    assert pauses == [1, 2, 4, 5, 5]
    assert bench.relay.standing().trouble == "dash: Connection refused"
    bench.live.answer = each_taken
    assert bench.post({"hostname": "gpu01"}).status == 200
    assert bench.relay.standing().trouble is None


def test_backlogs_wait_for_a_centre_that_is_away_too(pool: ThreadPoolExecutor) -> None:
    bench = Bench(pool, is_still=True, wait_seconds=0)
    bench.live.answer = away
    bench.post({"hostname": "gpu01"})
    assert bench.batch(b"{}\n{}").status == 503
    assert bench.aside.requests == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said(status=302, body=b"<html>"), "a redirect, which is not followed"),
        (Said(status=200, body=b"<html>please sign in</html>"), "not as a server that knows relays"),
        (Said(status=200, body=b'{"success": true, "accepted": 1, "durable": []}'), "of an older release"),
        (Said(status=200, body=b'{"answers": []}'), "not as a server that knows relays"),
        (Said(status=200, body=b'{"answers": [{"status": "yes"}]}'), "not as a server that knows relays"),
        (Said(status=404, body=b"{}"), "answers 404"),
        (Said(status=401, body=b"{}"), "answers 401"),
    ],
)
def test_an_answer_that_is_none_of_ours_takes_nothing_from_a_mole(bench: Bench, said: Said, words: str) -> None:
    bench.live.answer = lambda _: said
    answer = bench.post({"hostname": "gpu01"})
    assert (answer.status, answer.retry_after_seconds) == (503, 1)
    assert words in answer.body["msg"]


def test_a_fault_of_the_relay_itself_leaves_nobody_waiting(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Request) -> Said:
        raise RuntimeError("a fault")

    bench.live.answer = broken
    assert bench.post({"hostname": "gpu01"}).status == 503
    assert "a fault" in caplog.text
    bench.live.answer = each_taken
    assert bench.post({"hostname": "gpu01"}).status == 200


def test_a_post_that_gets_no_answer_in_time_is_told_to_come_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "ANSWER_SECONDS", 0.1)
    gate = threading.Event()

    def slow(request: Request) -> Said:
        gate.wait(60)
        return each_taken(request)

    bench.live.answer = slow
    assert bench.post({"hostname": "gpu01"}).status == 503
    assert bench.post({"hostname": "gpu02"}).status == 503
    assert bench.relay.standing().waiting == 0
    gate.set()
    assert bench.post({"hostname": "gpu03"}).status == 200
    assert [line["hostname"] for request in bench.live.requests for line in request.lines] == ["gpu01", "gpu03"]


def test_a_post_that_has_waited_too_long_for_a_thread_is_not_passed_on(bench: Bench) -> None:
    answer = bench.relay(Post(caller=HERE, headers={}, body=b"{}", waited_seconds=6))
    assert answer.status == 503
    assert bench.live.requests == []


def test_what_waits_here_has_an_end(pool: ThreadPoolExecutor) -> None:
    bench, gate = Bench(pool, waiting_bytes=2**20, lines=1), threading.Event()

    def slow(request: Request) -> Said:
        gate.wait(60)
        return each_taken(request)

    bench.live.answer = slow
    asked = [bench.later({"hostname": f"gpu{number}", "x": "y" * 400_000}) for number in range(2)]
    until(lambda: bench.relay.standing().waiting == 2)
    answer = bench.post({"hostname": "gpu2", "x": "y" * 400_000})
    assert answer.status == 503
    assert "[relay] waiting_bytes" in answer.body["msg"]
    gate.set()
    assert [each.result(60).status for each in asked] == [200, 200]
    assert bench.post({"hostname": "gpu2", "x": "y" * 400_000}).status == 200


# ---------------------------------------------------------------------------------------------- backlogs and the rest


def test_a_backlog_passes_as_it_came_and_so_does_its_answer(bench: Bench) -> None:
    body = gzip.compress(b'{"hostname": "gpu01", "seq": 1}\n{"hostname": "gpu01", "seq": 2}')
    said = {"success": True, "accepted": 2, "duplicates": 0, "rejected": [], "durable": []}
    bench.aside.answer = lambda _: Said(status=200, body=json.dumps(said).encode())
    named = {"authorization": "Bearer x", "content-encoding": "gzip", "date": "Tue, 25 Nov 2025 12:00:00 GMT"}
    answer = bench.relay.batch(Post(caller=HERE, headers=named, body=body))
    assert (answer.status, answer.body) == (200, said)
    (request,) = bench.aside.requests
    assert (request.method, request.path, request.body) == ("POST", "/api/v1/snapshots", body)
    assert {name: request.headers[name] for name in named} == named
    assert "relayed-dates" not in request.headers


def test_what_another_relay_has_put_together_passes_as_it_came(bench: Bench) -> None:
    said = {"success": True, "accepted": 1, "duplicates": 0, "rejected": [], "answers": [{"status": 200}]}
    bench.aside.answer = lambda _: Said(status=200, body=json.dumps(said).encode())
    assert bench.batch(b"{}", relayed_dates="-").body == said
    assert bench.aside.requests[0].headers["relayed-dates"] == "-"


def test_a_large_snapshot_passes_as_it_came(bench: Bench) -> None:
    bench.aside.answer = lambda _: Said(status=200, body=b'{"success": true, "msg": "stored result"}')
    plain = json.dumps({"hostname": "head", "slurm": "x" * 1_500_000}).encode()
    for answer in (bench.post(plain), bench.post(gzip.compress(plain), content_encoding="gzip")):
        assert answer.body == {"success": True, "msg": "stored result"}
    assert bench.aside.requests[0].path == "/"
    assert bench.aside.requests[0].body == plain
    assert bench.live.requests == []


@pytest.mark.parametrize(
    ("said", "status", "wait_seconds"),
    [
        (Said(status=429, body=b'{"success": false, "msg": "body: other backlogs"}', retry_after_seconds=40), 429, 40),
        (Said(status=503, body=b'{"success": false, "msg": "history: full"}'), 503, 10),
        (Said(status=413, body=b"<html>413 of nginx</html>"), 413, None),
        (Said(status=422, body=b'{"success": false, "msg": "cpu: missing"}'), 422, None),
        (Said(status=200, body=b"<html>please sign in</html>"), 503, 10),
        (Said(status=502, body=b""), 503, 10),
    ],
)
def test_a_refusal_of_a_backlog_passes_as_the_contract_has_it(
    bench: Bench, said: Said, status: int, wait_seconds: int | None
) -> None:
    bench.aside.answer = lambda _: said
    answer = bench.batch(b"{}\n{}")
    assert (answer.status, answer.retry_after_seconds) == (status, wait_seconds)
    assert answer.body["success"] is False


def test_only_so_many_backlogs_are_here_at_a_time(
    bench: Bench, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slow(_: Request) -> Said:
        gate.wait(60)
        return Said(status=200, body=b'{"success": true}')

    bench.aside.answer = slow
    asked = [pool.submit(bench.batch, b"{}") for _ in range(relay_module.PASSED_ASIDE)]
    until(lambda: len(bench.aside.requests) == relay_module.PASSED_ASIDE)
    assert bench.batch(b"{}").status == 503
    assert bench.post({"hostname": "gpu01"}).status == 200, "live posts do not wait for them"
    gate.set()
    assert {each.result(60).status for each in asked} == {200}
    assert bench.batch(b"{}").status == 200


def test_a_wish_to_enrol_passes_as_it_came(bench: Bench) -> None:
    bench.aside.answer = lambda _: Said(status=200, body=b'{"success": true, "token": "cdh_x"}')
    answer = bench.relay.enrol(Post(caller=HERE, headers={}, body=b'{"code": "cde_x", "hostname": "gpu01"}'))
    assert answer.body == {"success": True, "token": "cdh_x"}
    assert [request.path for request in bench.aside.requests] == ["/api/v1/enrol"]


# ----------------------------------------------------------------------------------------------------------- secrets


def test_a_token_that_came_unencrypted_is_refused_here_as_the_centre_cannot_see_it(bench: Bench) -> None:
    packed = gzip.compress(json.dumps({"hostname": "a", "auth_code": TOKEN, "x": "y" * 2**21}).encode())
    refused = [
        bench.post({"hostname": "gpu01"}, FAR, authorization=f"Bearer {TOKEN}"),
        bench.post({"hostname": "gpu01", "auth_code": TOKEN}, FAR),
        bench.post(packed, FAR, content_encoding="gzip"),
        bench.batch(b"{}\n" + json.dumps({"hostname": "a", "auth_code": TOKEN}).encode(), FAR),
        bench.batch(b"{}\n{}", FAR, authorization=f"Bearer {TOKEN}"),
        bench.relay.enrol(Post(caller=FAR, headers={}, body=b'{"code": "cde_x"}')),
    ]
    for answer in refused:
        assert answer.status == 403
        assert "came unencrypted" in answer.body["msg"]
        assert TOKEN not in json.dumps(answer.body)
    assert (bench.live.requests, bench.aside.requests) == ([], [])


def test_a_passcode_passes_as_it_does_without_a_relay_and_a_token_where_the_setting_lets_it(
    bench: Bench, pool: ThreadPoolExecutor
) -> None:
    bench.aside.answer = lambda _: Said(status=200, body=b'{"success": true}')
    assert bench.post({"hostname": "gpu01", "auth_code": "a passcode"}, FAR).status == 200
    assert bench.batch(b'{"auth_code": "a passcode"}\n{}', FAR).status == 200
    lenient = Bench(pool, plaintext=True)
    assert lenient.post({"hostname": "gpu01", "auth_code": TOKEN}, FAR).status == 200
    over_tls = Caller(peer="10.0.0.7", host="r", forwarded=False, origin=None, fetch_site=None, scheme="https")
    assert bench.post({"hostname": "gpu01", "auth_code": TOKEN}, over_tls).status == 200


# ------------------------------------------------------------------------------------------------------ how it does


def test_who_asks_a_quiet_relay_how_it_does_makes_it_ask_the_centre(pool: ThreadPoolExecutor) -> None:
    bench = Bench(pool, is_still=True)
    bench.aside.answer = away
    bench.relay.ask()
    assert bench.relay.standing().trouble == "dash: Connection refused"
    bench.relay.ask()
    assert [request.path for request in bench.aside.requests] == ["/healthz"], "not each time"
    bench.now += 60
    bench.aside.answer = lambda _: Said(status=200, body=b'{"success": true}')
    bench.relay.ask()
    assert bench.relay.standing().trouble is None


def test_hosts_that_no_longer_post_are_not_counted(pool: ThreadPoolExecutor) -> None:
    bench = Bench(pool, is_still=True, wait_seconds=0)
    bench.post({"hostname": "gpu01"})
    bench.now += 500
    bench.post({"hostname": "gpu02"})
    assert bench.relay.standing().hosts == 2
    bench.now += 200
    assert bench.relay.standing().hosts == 1
