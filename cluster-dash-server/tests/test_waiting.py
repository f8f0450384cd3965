"""Tell me when some are free: who is told of what, in which order, and who may ask for it."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.app import create_app
from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.filters import Filter
from cluster_dash_server.free import Wish
from cluster_dash_server.ledger.waiting_line import LineFile
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.receivers import AlertSettings
from cluster_dash_server.settings import ServerSettings, Settings
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds
from cluster_dash_server.waiting import (
    HOLDS_SECONDS,
    KEPT_SECONDS,
    MOST_A_DAY,
    MOST_OF_ONE,
    Line,
    Told,
    Wait,
    WaitError,
    Waiting,
    receiver_of,
    shown,
)

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
ALLOWED = ("@example.org", "chat")
HOUR = 3600.0


class Floor:
    """A cluster in which GPUs are taken and left, a line of people, and what they were told."""

    def __init__(self, make_seen: MakeSeen, make_gpu: MakeGpu, clock: Any, folder: Path) -> None:
        self._make_seen, self._make_gpu, self._clock, self._folder = make_seen, make_gpu, clock, folder
        self.cluster = Cluster(Thresholds())
        self.told: list[tuple[str, Notice]] = []
        self.unspeakable: set[str] = set()
        self.unspeakable_by: Exception = UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        self.line = self.opened()

    def opened(self) -> Waiting:
        return Waiting(
            LineFile(self._folder),
            allowed=ALLOWED,
            put=self._put,
            link=lambda path: f"https://dash/{path}",
            most_of_client=3,
        )

    def _put(self, notices: Sequence[tuple[str, Notice]], now: float) -> None:
        if any(receiver in self.unspeakable for receiver, _ in notices):
            raise self.unspeakable_by
        known = {(receiver, notice.key) for receiver, notice in self.told}
        self.told += [each for each in notices if (each[0], each[1].key) not in known]

    def stands(self, host: str = "gpu01", **busy: int) -> None:
        """Post what a host has: `stands("gpu01", free=2, busy=6)`."""
        count = {"free": 1, "busy": 0, **busy}
        gpus = [self._make_gpu(index) for index in range(count["free"])]
        for index in range(count["free"], count["free"] + count["busy"]):
            gpus.append(self._make_gpu(index, used_mem=70_000.0, gpu_util=95.0))
        self.cluster.offer(self._make_seen(host, gpus, received_at=self._clock.now, interval_seconds=3600))

    def wait(self, who: str, count: int = 1, **fields: Any) -> tuple[int, str]:
        wish = Wish(count=count, free_mem=fields.pop("free_mem", 0.0), model=fields.pop("model", ""))
        now = self._clock.now
        usual = {"q": "", "to": f"{who}@example.org", "until": now + HOUR, "now": now}
        wait, key = self.line.add(wish, **{**usual, **fields})
        return wait.id, key

    def after(self, seconds: float) -> list[str]:
        """Let time pass; return who is told."""
        self._clock.now += seconds
        before = len(self.told)
        self.line.round(lambda: self.cluster.hosts(self._clock.now), self._clock.now)
        return [receiver.removeprefix("mailto:").partition("@")[0] for receiver, _ in self.told[before:]]


@pytest.fixture
def floor(make_seen: MakeSeen, make_gpu: MakeGpu, clock: Any, tmp_path: Path) -> Floor:
    return Floor(make_seen, make_gpu, clock, tmp_path)


def test_one_is_told_once_when_gpus_have_been_free_for_a_minute(floor: Floor) -> None:
    floor.stands(free=0, busy=4)
    floor.wait("ann", 2, model="h100", free_mem=40 * 1024.0, q="host:gpu*")
    assert floor.after(300) == []
    floor.stands(free=2, busy=2)
    assert floor.after(HOLDS_SECONDS - 1) == []
    assert floor.after(1) == ["ann"]
    receiver, notice = floor.told[0]
    assert receiver == "mailto:ann@example.org"
    assert (notice.kind, notice.severity, notice.title) == ("free", "info", "2 × H100 80G free on gpu01")
    assert notice.link == "https://dash/host/gpu01"
    assert dict(notice.facts)["Where"] == "gpu01 GPU 0, 1"
    assert dict(notice.facts)["You asked for"] == "2 on one host, h100, 40 GiB free on each, host:gpu*"
    assert floor.after(KEPT_SECONDS * 3) == []
    assert floor.line.waits(floor._clock.now) == ()


@pytest.mark.parametrize("words", ["see https://evil.example", "www.evil.example", "ask me@evil.example", "word " * 20])
def test_nobody_sends_words_and_links_to_another_by_a_filter(words: str, floor: Floor) -> None:
    floor.stands(free=1)
    floor.wait("ann", q=f'-"{words}"')
    assert floor.after(HOLDS_SECONDS) == ["ann"]
    assert dict(floor.told[0][1].facts)["You asked for"] == "1 GPU, what a filter means"


def test_a_gpu_that_is_taken_within_the_minute_calls_nobody(floor: Floor) -> None:
    floor.stands(free=1)
    floor.wait("ann")
    assert floor.after(30) == []
    floor.stands(free=0, busy=1)
    assert floor.after(60) == []
    floor.stands(free=1)
    assert floor.after(30) == []


def test_one_free_gpu_calls_one_and_the_next_only_if_nobody_takes_it(floor: Floor) -> None:
    for who in ("ann", "bob", "cid"):
        floor.wait(who)
        floor._clock.now += 1
    floor.stands(free=1, busy=3)
    assert floor.after(HOLDS_SECONDS) == ["ann"]
    assert floor.after(KEPT_SECONDS - 1) == []
    assert floor.after(1) == ["bob"]
    floor.stands(free=0, busy=4)  # bob takes it
    assert floor.after(HOLDS_SECONDS) == []
    floor.stands(free=1, busy=3)  # and leaves it: that is for cid, at once
    assert floor.after(HOLDS_SECONDS) == ["cid"]


def test_a_clock_that_is_set_back_keeps_nothing_from_who_waits(floor: Floor) -> None:
    floor.stands(free=1, busy=3)
    floor.wait("ann")
    assert floor.after(HOLDS_SECONDS) == ["ann"]
    floor._clock.now -= 10 * HOUR  # free since a moment to come, and kept for ann since another one
    floor.wait("bob")
    assert floor.after(5) == ["bob"]
    floor.wait("cid")
    assert floor.after(5) == []


def test_two_free_gpus_call_two_and_each_is_told_of_another_one(floor: Floor) -> None:
    for who in ("ann", "bob", "cid"):
        floor.wait(who)
    floor.stands(free=2)
    assert floor.after(HOLDS_SECONDS) == ["ann", "bob"]
    assert {dict(notice.facts)["Where"] for _, notice in floor.told} == {"gpu01 GPU 0", "gpu01 GPU 1"}


def test_who_came_later_is_not_given_what_is_about_to_be_enough_for_who_came_first(floor: Floor) -> None:
    floor.wait("ann", 2)
    floor.wait("bob", 1)
    floor.stands(free=1, busy=1)
    assert floor.after(HOLDS_SECONDS / 2) == []
    floor.stands(free=2)  # the second one becomes free: ann's wish is fulfilled, if it lasts
    assert floor.after(HOLDS_SECONDS / 2) == []
    assert floor.after(HOLDS_SECONDS / 2) == ["ann"]


def test_who_wants_what_nobody_has_does_not_hold_up_the_others(floor: Floor) -> None:
    floor.wait("ann", 8)
    floor.wait("bob", model="a100")
    floor.wait("cid", q="-host:gpu01")
    floor.wait("dan", free_mem=100 * 1024.0)
    floor.wait("eve")
    floor.stands(free=2)
    assert floor.after(HOLDS_SECONDS) == ["eve"]


def test_a_filter_is_asked_only_of_hosts_with_enough_free_gpus(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    means = Filter.means

    def counted(self: Filter, host: HostView, now: float) -> Any:
        asked.append(host.host)
        return means(self, host, now)

    floor.wait("ann", 2, q="-user:a*b")
    for host, free in (("gpu01", 0), ("gpu02", 1), ("gpu03", 2)):
        floor.stands(host, free=free, busy=2)
    monkeypatch.setattr(Filter, "means", counted)
    assert floor.after(HOLDS_SECONDS) == ["ann"]
    assert set(asked) == {"gpu03"}


def test_the_line_ends_by_time_by_key_and_stands_after_a_restart(floor: Floor) -> None:
    floor.wait("ann")
    number, key = floor.wait("bob")
    third, _ = floor.wait("cid", until=floor._clock.now + 24 * HOUR)
    floor.line = floor.opened()
    now = floor._clock.now
    assert [each.receiver for each in floor.line.waits(now)] == [
        f"mailto:{who}@example.org" for who in ("ann", "bob", "cid")
    ]
    for wrong in (None, "", key[:-1] + "~"):
        with pytest.raises(WaitError) as refused:
            floor.line.end(number, now, key=wrong)
        assert refused.value.status == 403
    floor.line.end(number, now, key=key)
    floor.line.end(third, now, key=None, may_end_any=True)
    with pytest.raises(WaitError, match="nobody waits under"):
        floor.line.end(number, now, key=key)
    assert len(floor.line.waits(now)) == 1
    assert floor.line.waits(now + HOUR) == ()
    assert floor.line.add(Wish(), q="", to="chat", until=now + HOUR, now=now)[0].id > third


def test_who_is_told_before_the_note_of_it_is_kept_is_told_once(floor: Floor) -> None:
    floor.wait("ann")
    before = LineFile(floor._folder).read()
    floor.stands(free=1)
    assert floor.after(HOLDS_SECONDS) == ["ann"]
    LineFile(floor._folder).write(before)  # killed in between
    floor.line = floor.opened()
    assert floor.after(5) == []
    assert floor.line.waits(floor._clock.now) == ()


def test_one_wish_that_cannot_be_told_ends_and_holds_up_nobody(floor: Floor) -> None:
    floor.stands(free=3)
    for who in ("ann", "bob", "cid"):
        floor.wait(who)
    floor.unspeakable = {"mailto:bob@example.org"}
    assert floor.after(HOLDS_SECONDS) == ["ann", "cid"]
    assert floor.line.waits(floor._clock.now) == ()
    floor.wait("dan")
    assert floor.after(1) == ["dan"]  # by what was meant for bob


def test_an_outbox_that_takes_nothing_ends_no_wish(floor: Floor) -> None:
    floor.stands(free=1)
    floor.wait("ann")
    floor.unspeakable, floor.unspeakable_by = {"mailto:ann@example.org"}, BookError("the disk is full")
    with pytest.raises(BookError):
        floor.after(HOLDS_SECONDS)
    floor.unspeakable.clear()
    assert floor.after(1) == ["ann"]


def test_who_knows_the_key_finds_what_became_of_a_wish_for_a_day(floor: Floor) -> None:
    floor.stands(free=2)
    number, key = floor.wait("ann", 2)
    found = floor.line.find(number, key, floor._clock.now)
    assert isinstance(found, Wait)
    assert floor.after(HOLDS_SECONDS) == ["ann"]
    floor.line = floor.opened()  # over a restart, too
    now = floor._clock.now
    assert floor.line.find(number, key, now) == Told(
        "mailto:ann@example.org", now, id=number, key=found.key, host="gpu01", gpus=(0, 1)
    )
    assert floor.line.find(number, f"{key}x", now) is None
    assert floor.line.find(number, "", now) is None
    assert floor.line.find(number, key, now + 24 * HOUR) is None


def test_one_client_fills_no_line_with_addresses_it_invents(floor: Floor) -> None:
    for who in ("a1", "a2", "a3"):
        floor.wait(who, client="10.0.0.9")
    with pytest.raises(WaitError, match="3 asked for by") as refused:
        floor.wait("a4", client="10.0.0.9")
    assert refused.value.status == 429
    for who in ("b1", "b2", "b3", "b4"):
        floor.wait(who)  # an operator
    floor.wait("ann", client="10.0.0.8")
    now = floor._clock.now
    floor.line = floor.opened()
    assert floor.line.end_all(now, client="10.0.0.9") == 3
    assert [each.client for each in floor.line.waits(now)] == [""] * 4 + ["10.0.0.8"]
    floor.wait("ann", client="10.0.0.9")
    assert floor.line.end_all(now) == 6
    assert floor.opened().waits(now) == ()


def test_a_user_who_is_forgotten_waits_no_longer_and_their_address_is_kept_nowhere(floor: Floor) -> None:
    floor.stands(free=1)
    floor.wait("zoe")
    assert floor.after(HOLDS_SECONDS) == ["zoe"]
    floor.wait("zoe")
    floor.wait("zoey")
    floor.wait("team", client="zoe")
    floor.line.forget_user("zoe")
    assert [each.receiver for each in floor.line.waits(floor._clock.now)] == ["mailto:zoey@example.org"]
    kept = LineFile(floor._folder).path.read_text()
    assert ("zoe@" in kept, '"zoe"' in kept) == (False, False)


def test_a_silent_host_offers_nothing(floor: Floor) -> None:
    floor.stands(free=1)
    floor._clock.now += 4 * HOUR  # its interval is an hour
    floor.wait("ann")
    assert floor.after(HOLDS_SECONDS) == []


@pytest.mark.parametrize(
    ("to", "receiver"),
    [
        ("ann@example.org", "mailto:ann@example.org"),
        (" Ann.Lee+gpu@Example.ORG ", "mailto:Ann.Lee+gpu@example.org"),
        ("chat", "chat"),
    ],
)
def test_addresses_that_the_settings_allow(to: str, receiver: str) -> None:
    assert receiver_of(to, ALLOWED) == receiver


@pytest.mark.parametrize(
    "to",
    [
        *("ann@evil.example", "ann@sub.example.org", "ann@example.org.evil.example", "@example.org", "admins", ""),
        *("ann@example.org\nBcc: all@evil.example", "a,b@example.org", "ann@evil.example,ann@example.org"),
        *('"ann"@example.org', "ann@example.org>", "mailto:ann@example.org", "ann@evil.example@example.org"),
        *("a..b@example.org", "änn@example.org", "-ann@example.org", "ann@exämple.org"),
    ],
)
def test_no_other_address_can_be_told(to: str) -> None:
    with pytest.raises(WaitError) as refused:
        receiver_of(to, ALLOWED)
    assert refused.value.status in (400, 403)
    assert "\n" not in refused.value.text
    with pytest.raises(WaitError, match="waiting_to is empty"):
        receiver_of("ann@example.org", ())


def test_one_address_can_be_flooded_neither_with_wishes_nor_with_messages(floor: Floor) -> None:
    for _ in range(MOST_OF_ONE):
        floor.wait("ann")
    with pytest.raises(WaitError, match="wait already") as refused:
        floor.wait("ann")
    assert refused.value.status == 429
    floor.wait("bob")
    for each in floor.line.waits(floor._clock.now):
        floor.line.end(each.id, floor._clock.now, key=None, may_end_any=True)
    kept = LineFile(floor._folder)
    now = floor._clock.now
    kept.write(replace(kept.read(), told=(Told("mailto:ann@example.org", now - 60),) * MOST_A_DAY))
    floor.line = floor.opened()
    with pytest.raises(WaitError, match="in a day"):
        floor.wait("ann")
    floor._clock.now += 24 * HOUR
    floor.wait("ann")


def test_a_mailbox_cannot_be_flooded_by_other_spellings_of_its_address(floor: Floor) -> None:
    for who in ("ann", "Ann", "ANN", "ann+1", "aNN+2+3"):
        floor.wait(who)
    with pytest.raises(WaitError, match="wait already"):
        floor.wait("anN+4")
    floor.wait("anne")
    LineFile(floor._folder).write(Line(told=(Told("mailto:Ann+x@example.org", floor._clock.now - 60),) * MOST_A_DAY))
    floor.line = floor.opened()
    with pytest.raises(WaitError, match="in a day"):
        floor.wait("ann")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"q": "hots:gpu01"}, "q: "),
        ({"until": 1.0}, "until: "),
        ({"until": 1e11}, "within 30 days"),
    ],
)
def test_what_cannot_be_meant_is_said(fields: dict[str, Any], words: str, floor: Floor) -> None:
    with pytest.raises(WaitError, match=words) as refused:
        floor.wait("ann", **fields)
    assert refused.value.status == 400


def test_addresses_of_others_are_shown_by_their_first_letter() -> None:
    assert shown("mailto:ann@example.org", in_full=False) == "a…@example.org"
    assert shown("mailto:ann@example.org", in_full=True) == "ann@example.org"
    assert shown("chat", in_full=False) == "chat"


def test_the_file_of_the_line_is_the_owners_alone_and_one_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    kept = LineFile(tmp_path / "data")
    assert kept.read() == Line()
    kept.write(Line(last_id=7))
    assert (kept.read().last_id, kept.path.stat().st_mode & 0o777) == (7, 0o600)
    kept.path.write_text(json.dumps({**json.loads(kept.path.read_text()), "format": 3}))
    with pytest.raises(WaitError, match="newer release"):
        kept.read()
    kept.path.write_text(json.dumps({"format": 1, "waits": [], "called": [], "told": [["chat", 7.0]], "last_id": 1}))
    assert kept.read() == Line(told=(Told("chat", 7.0),), last_id=1)  # of the release before
    kept.path.write_text("{")
    with pytest.raises(WaitError, match="cannot be read"):
        kept.read()


# ------------------------------------------------------------------------------------------------------ by the web


@pytest.fixture
def site(clock: Any, tmp_path: Path) -> Iterator[Flask]:
    settings = Settings(
        server=ServerSettings(data=str(tmp_path), public_url="https://dash.example.org"),
        alerts=AlertSettings(
            waiting_to=("@example.org",), mail_server="mail.example.org", mail_from="dash@example.org"
        ),
    )
    app = create_app(settings, clock)
    app.extensions["start"]()
    yield app
    app.extensions["book"].close()
    app.extensions["history"].close()


WISH = {"count": 2, "model": "h100", "mem": "40G", "to": "ann@example.org", "until": "now+12h"}
OWN = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}


def told(answer: Any) -> Any:
    return answer.json


def due(site: Flask) -> list[tuple[str, str]]:
    site.extensions["errands"].once()
    return [(each.receiver, each.notice.title) for each in site.extensions["book"].book.due(1e12, 10)]


def test_an_end_may_be_a_length_of_time(site: Flask, clock: Any) -> None:
    asked = site.test_client().post("/api/v1/waiting", json={**WISH, "until": "12h"})
    assert told(asked)["until"] == clock.now + 12 * 3600


def test_curl_asks_and_one_notice_goes_out_when_it_holds(
    site: Flask, clock: Any, make_snapshot: Any, make_gpu: MakeGpu
) -> None:
    client = site.test_client()
    asked = client.post("/api/v1/waiting", json=WISH)
    assert (asked.status_code, told(asked)["ahead"], told(asked)["until"]) == (200, 0, clock.now + 12 * 3600)
    listed = told(client.get("/api/v1/waiting"))
    assert listed["waiting"][0]["text"] == "2 on one host, h100, 40 GiB free on each"
    assert "key" not in listed["waiting"][0]
    table = client.get("/api/v1/waiting?format=csv").text.splitlines()
    assert (table[0], len(table)) == (",".join(listed["waiting"][0]), 2)
    for _ in range(2):
        body = {"auth_code": "lab_cluster_2025", **make_snapshot("gpu01", [make_gpu(0), make_gpu(1)])}
        assert client.post("/", json=body).status_code == 200
        assert due(site) == []
        clock.now += HOLDS_SECONDS / 2
    assert due(site) == [("mailto:ann@example.org", "2 × H100 80G free on gpu01")]
    clock.now += 60
    assert len(due(site)) == 1
    assert told(client.get("/api/v1/waiting"))["waiting"] == []


def test_the_line_of_the_page_works_without_scripts(site: Flask) -> None:
    client = site.test_client()
    assert 'action="/waiting"' in client.get("/").text
    form = {"count": "1", "model": "<b>h100</b>", "mem": "", "q": "", "to": "ann@example.org", "until": "now+4h"}
    wrong = client.post("/waiting", data={**form, "mem": "40"}, headers=OWN)
    assert (wrong.status_code, "mem: got" in wrong.text) == (400, True)
    assert 'value="ann@example.org"' in wrong.text  # what was typed stands there still
    asked = client.post("/waiting", data=form, headers=OWN)
    assert asked.status_code == 303
    page = client.get(asked.headers["Location"])
    assert "Nobody waits before you." in page.text
    assert "&lt;b&gt;h100" in page.text
    assert "<b>h100" not in page.text
    key = page.text.partition('name="key" value="')[2].partition('"')[0]
    assert client.post("/waiting/end", data={"id": "1", "key": key}, headers=OWN).status_code == 303
    assert told(client.get("/api/v1/waiting"))["waiting"] == []


def test_the_page_says_that_one_was_told_when_and_of_what(
    site: Flask, clock: Any, make_snapshot: Any, make_gpu: MakeGpu
) -> None:
    client = site.test_client()
    asked = told(client.post("/api/v1/waiting", json=WISH))
    path = f"/waiting?id={asked['id']}&key={asked['key']}"
    assert "You are in the line" in client.get(path).text
    for _ in range(2):
        body = {"auth_code": "lab_cluster_2025", **make_snapshot("gpu01", [make_gpu(0), make_gpu(1)])}
        assert client.post("/", json=body).status_code == 200
        clock.now += HOLDS_SECONDS / 2
    assert len(due(site)) == 1
    page = client.get(path, environ_base=AFAR).text
    assert ("You were told" in page, "ann@example.org" in page, "GPUs 0, 1" in page) == (True, True, True)
    assert f'data-at="{clock.now}"' in page
    for other in (f"{path}x", "/waiting?id=7&key=x", "/waiting?id=x&key=x"):
        page = client.get(other, environ_base=AFAR).text
        assert ("This wish has ended" in page, "ann@" in page) == (True, False)
    assert "This wish" not in client.get("/waiting").text


def test_an_operator_ends_all_wishes_or_those_of_one_client(site: Flask) -> None:
    client = site.test_client()
    for number in range(3):
        client.post("/api/v1/waiting", json={**WISH, "to": f"a{number}@example.org"}, environ_base=AFAR)
    client.post("/api/v1/waiting", json=WISH)
    rows = told(client.get("/api/v1/waiting"))["waiting"]
    assert [row["client"] for row in rows] == ["10.0.0.9"] * 3 + [None]
    assert "10.0.0.9: 3</option>" in client.get("/waiting").text
    page = client.get("/waiting", environ_base=AFAR).text
    assert ("10.0.0.9" in page, "end-all" in page) == (False, False)
    assert [row["client"] for row in told(client.get("/api/v1/waiting", environ_base=AFAR))["waiting"]] == [None] * 4
    refused = client.delete("/api/v1/waiting", json={}, environ_base=AFAR)
    assert (refused.status_code, len(told(client.get("/api/v1/waiting"))["waiting"])) == (403, 4)
    assert client.post("/waiting/end-all", data={"client": "*"}, headers=OWN, environ_base=AFAR).status_code == 403
    assert told(client.delete("/api/v1/waiting", json={"client": "10.0.0.9"})) == {"success": True, "ended": 3}
    assert client.post("/waiting/end-all", data={}, headers=OWN).status_code == 400
    assert client.post("/waiting/end-all", data={"client": "*"}, headers=OWN).status_code == 303
    assert told(client.get("/api/v1/waiting"))["waiting"] == []


def test_what_another_site_sends_and_what_is_no_json_is_refused(site: Flask) -> None:
    client = site.test_client()
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post("/api/v1/waiting", json=WISH, headers=headers).status_code == 403
        assert client.post("/waiting", data=WISH, headers=headers).status_code == 403
    assert client.post("/api/v1/waiting", data=json.dumps(WISH), content_type="text/plain").status_code == 403
    assert client.post("/waiting", data=WISH).status_code == 403
    for body, words in (
        ({**WISH, "to": "ann@evil.example"}, "to: this server writes to no address of evil.example"),
        ({**WISH, "count": True}, "count: got"),
        ({**WISH, "count": 65}, "count: got"),
        ({**WISH, "model": "x" * 65}, "at most 64"),
        ({**WISH, "until": "soon"}, "until: got 'soon'"),
        ({**WISH, "q": 7}, "q: got '7'"),
        ([], "body: expected a JSON object"),
    ):
        answer = client.post("/api/v1/waiting", json=body)
        assert (answer.status_code in (400, 403), words in told(answer)["msg"]) == (True, True), told(answer)
    assert client.post("/api/v1/waiting", json=WISH).status_code == 200
    assert client.delete("/api/v1/waiting/1", json={"key": "x"}, environ_base=AFAR).status_code == 403
    assert client.delete("/api/v1/waiting/2", json={"key": "x"}).status_code == 404


AFAR = {"REMOTE_ADDR": "10.0.0.9"}


def test_addresses_are_shown_to_who_sits_at_the_server_and_their_first_letter_to_others(site: Flask) -> None:
    client = site.test_client()
    key = told(client.post("/api/v1/waiting", json=WISH, environ_base=AFAR))["key"]
    assert told(client.get("/api/v1/waiting"))["waiting"][0]["to"] == "ann@example.org"
    assert told(client.get("/api/v1/waiting", environ_base=AFAR))["waiting"][0]["to"] == "a…@example.org"
    assert "ann@" not in client.get("/waiting", environ_base=AFAR).text
    for guess in ("x", "", key[:-1]):
        assert "ann@" not in client.get(f"/waiting?id=1&key={guess}", environ_base=AFAR).text
    assert "ann@" in client.get(f"/waiting?id=1&key={key}", environ_base=AFAR).text
    assert client.delete("/api/v1/waiting/1", json={"key": key}, environ_base=AFAR).status_code == 200


def test_a_text_that_nothing_can_write_is_refused_and_others_wait_on(site: Flask) -> None:
    client = site.test_client()
    for wish in (
        '{"to": "ann@example.org", "q": "-host:\\ud800"}',
        '{"to": "ann@example.org", "until": NaN}',
        "[" * 5000,
    ):
        answer = client.post("/api/v1/waiting", data=wish, content_type="application/json")
        assert (answer.status_code, told(answer)["success"]) == (400, False), wish[:60]
    assert client.get("/waiting").status_code == 200
    assert told(client.get("/api/v1/waiting"))["waiting"] == []


def test_one_client_asks_no_more_than_a_few_times_a_minute(site: Flask) -> None:
    client = site.test_client()
    statuses = [client.post("/api/v1/waiting", json={}).status_code for _ in range(24)]  # two minutes at most
    assert 429 in statuses


def test_where_the_settings_name_nobody_there_is_no_form_and_the_mend_is_said(clock: Any, tmp_path: Path) -> None:
    client = create_app(Settings(server=ServerSettings(data=str(tmp_path))), clock).test_client()
    assert 'action="/waiting"' not in client.get("/").text + client.get("/waiting").text
    answer = client.post("/api/v1/waiting", json=WISH)
    assert (answer.status_code, "waiting_to is empty" in told(answer)["msg"]) == (403, True)


def test_who_looks_at_a_shared_line_waits_for_nobody_who_changes_it() -> None:
    class SharedLine:
        is_shared = True

        @contextmanager
        def alone(self) -> Iterator[None]:
            assert line.waits(0.0) == ()  # else this test hangs: whoever is alone holds what lookers would wait for
            yield

        def read(self) -> Line:
            return Line()

        def write(self, line: Line) -> None:
            """Keep nothing."""

    line = Waiting(SharedLine(), allowed=ALLOWED, put=lambda notices, now: None, link=lambda path: None)
    line.forget_user("zoe")
