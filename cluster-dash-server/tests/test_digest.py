"""The digest: a night that follows a script is told as the script has it."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from cluster_dash_server import cli
from cluster_dash_server.app import create_app
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.digest import MOST_LINES, Digest, Night, tell
from cluster_dash_server.events import EventLog
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.history.settings import PrivacySettings
from cluster_dash_server.incidents import incidents
from cluster_dash_server.nights import Nights, last_due, night_before
from cluster_dash_server.settings import ServerSettings, Settings, ViewerSettings
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import Event
from cluster_dash_server.when import Span, zone
from tests.past import Card, busy, figures, idle

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]

BERLIN = zone("Europe/Berlin")
END = datetime(2026, 3, 2, 7, 30, tzinfo=BERLIN).timestamp()  # a Monday
NIGHT = Span(begin=END - 86_400, end=END, is_relative=False)
STEP_SECONDS = 600


def at(clock: str, day: int = 2) -> float:
    hour, minute = map(int, clock.split(":"))
    return datetime(2026, 3, day, hour, minute, tzinfo=BERLIN).timestamp()


class Script:
    """Four hosts of two GPUs each, that post every ten minutes, and what befalls them."""

    def __init__(self, make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
        self._make_seen, self._make_gpu = make_seen, make_gpu
        self.store = MemoryStore(lambda: END)
        self.log = EventLog(Thresholds(), ledger=self.store)
        self.cluster = Cluster(Thresholds(), witness=self.log.witness)

    def play(self) -> None:
        for step in range(int(NIGHT.seconds / STEP_SECONDS) + 1):
            now = NIGHT.begin + step * STEP_SECONDS
            for host in ("gpu01", "gpu02", "gpu03", "gpu04"):
                self._post(host, now)

    def _post(self, host: str, now: float) -> None:
        gpus, cards, rest = self._alice(), [busy("alice"), busy("alice")], self._rest(host, now)
        events = [each for each in EVENTS.get(host, ()) if now - STEP_SECONDS < each["at"] <= now]
        if host == "gpu01" and at("01:10") < now < at("02:00"):
            return
        if host == "gpu04" and now > at("05:00"):
            return
        if host == "gpu02":
            gpus, cards = [self._make_gpu(0), self._make_gpu(1)], [Card(), Card()]
            if now >= at("02:10"):
                gpus, cards = gpus[:1], [Card(), Card("error")]
        if host == "gpu03":
            gpus = [self._make_gpu(0), self._make_gpu(1, used_mem=60_000.0, users=_user("dan"))]
            cards = [Card(), idle("dan")]
            if at("03:00") <= now < at("04:00"):
                gpus, cards = gpus[1:], [Card("error"), idle("dan")]
        seen = self._make_seen(host, gpus, received_at=now, timestamp=now, interval_seconds=600, events=events, **rest)
        self.cluster.offer(seen)
        self.store.append(figures(host, now, cards, interval_seconds=STEP_SECONDS))

    def _alice(self) -> list[dict[str, Any]]:
        return [self._make_gpu(index, used_mem=60_000.0, gpu_util=95.0, users=_user("alice")) for index in (0, 1)]

    def _rest(self, host: str, now: float) -> dict[str, Any]:
        is_renewed = host == "gpu01" and now > at("01:30")
        driver = "560.35" if is_renewed else "550.54"
        full = {"/data": {"mount_point": "/data", "percent_used": 97.0}} if host == "gpu02" else {}
        return {"boot_id": f"b{is_renewed}", "seq": int(now), "general": {"driver_version": driver}, "disk": full}

    def told(self, span: Span = NIGHT, now: float = END, firing: Sequence[str] = ()) -> Digest:
        nights = Nights(
            store=self.store,
            ledger=self.store,
            newest=lambda begin, end: self.log.newest(begin=begin, end=end),
            cluster=self.cluster,
            pictures=lambda _: (),
            zone=BERLIN,
            firing=lambda: firing,
        )
        return nights.told(span, now)


def _user(name: str) -> dict[str, Any]:
    return {name: {"4711": {"mem": 60_000.0, "time": 1.0, "name": "python", "type": "C"}}}


EVENTS: dict[str, list[dict[str, Any]]] = {
    "gpu02": [
        {"at": at("02:05"), "kind": "xid", "gpu": 1, "code": 79, "text": "Xid 79: the GPU has fallen off the bus"}
    ],
    "gpu03": [
        {"at": at("22:05", day=1), "kind": "xid", "gpu": 1, "code": 31, "text": "Xid 31: the program is at fault"},
        {"at": at("23:45", day=1), "kind": "xid", "gpu": 1, "code": 31, "text": "Xid 31: the program is at fault"},
    ],
}


@pytest.fixture
def script(make_seen: MakeSeen, make_gpu: MakeGpu) -> Script:
    script = Script(make_seen, make_gpu)
    script.play()
    return script


def test_the_digest_of_a_scripted_night_agrees_with_the_script(script: Script) -> None:
    digest = script.told(firing=["gpu04 silent"])
    assert digest.title == "Monday 2 March: 2 broke, 2 healed, 5 need a hand"
    assert [(line.topic, line.text) for line in digest.lines] == [
        ("Now", "2 of 8 GPUs free: 2 × H100 80G. 1 held. 1 in error. 1 of 4 hosts down."),
        ("Broke", "gpu04 silent since 05:30"),
        ("Broke", "gpu02 GPU 1 in error since 02:10: Xid 79: the GPU has fallen off the bus"),
        ("Healed", "gpu01 silent 01:40 to 02:00 (20 min)"),
        ("Healed", "gpu03 GPU 0 in error 03:00 to 04:00 (60 min): missing: the snapshot does not hold it"),
        ("Programs that failed", "Xid 31 (2) on gpu03"),
        ("Changed", "Rebooted: gpu01"),
        ("Changed", "gpu01: the driver changed from 550.54 to 560.35"),
        ("Used", "115 GPU-hours held, 91 of them busy: alice 91, dan 24"),
        ("Held for nothing", "24 GPU-hours (21 %): dan 24; the longest 24 h, dan on gpu03 GPU 1"),
        ("Free", "2.7 on average, at least 1 (03:00)"),
        ("Needs a hand today", "Alerts that nobody has taken on: gpu04 silent"),
        ("Needs a hand today", "Silent: gpu04, the longest for 2 h"),
        ("Needs a hand today", "In error: gpu02 GPU 1"),
        ("Needs a hand today", "Held for over 12 h without work: dan 1 (gpu03)"),
        ("Needs a hand today", "Disk nearly full: gpu02 /data 97 %"),
    ]
    assert digest.text.startswith("Monday 2 March: 2 broke, 2 healed, 5 need a hand\n\nNow\n  2 of 8 GPUs free")
    assert {line.path for line in digest.lines if line.topic == "Broke"} == {"host/gpu02", "host/gpu04"}
    # a week later how it stands now says nothing of that night, and nothing is known to have ended
    topics = {line.topic for line in script.told(now=END + 7 * 86_400).lines}
    assert topics == {"Broke", "Healed", "Programs that failed", "Changed", "Used", "Held for nothing", "Free"}


def night(*events: Event, **fields: Any) -> Digest:
    usual = {"hosts": None, "pictures": (), "report": None, "free_before": None}
    return tell(Night(span=NIGHT, events=events, **{**usual, **fields}), BERLIN)


def event(kind: str, moment: float, host: str = "gpu01", gpu: int | None = None, **fields: Any) -> Event:
    return Event(at=moment, host=host, gpu=gpu, kind=kind, **{"code": None, "text": kind, **fields})


def texts(digest: Digest, topic: str) -> list[str]:
    return [line.text for line in digest.lines if line.topic == topic]


def test_of_a_quiet_night_it_says_so() -> None:
    digest = night(hosts=())
    assert digest.title == "Monday 2 March: a quiet night"
    assert texts(digest, "Broke") == texts(digest, "Needs a hand today") == ["Nothing."]
    assert texts(digest, "Used") == ["Not known: no history is kept."]


def test_a_rack_that_falls_silent_and_comes_back_together_is_one_line() -> None:
    hosts = [f"gpu{number:02}" for number in range(1, 9)]
    silent = [event("host_silent", at("01:10") + place, host) for place, host in enumerate(hosts)]
    back = [event("host_back", at("01:52") + place, host) for place, host in enumerate(hosts)]
    assert texts(night(*silent, *back), "Healed") == ["gpu[01-08] (8 hosts) silent 01:10 to 01:52 (42 min)"]
    assert texts(night(*silent), "Broke") == ["gpu[01-08] (8 hosts) silent since 01:10"]


def test_of_many_lines_on_one_topic_the_rest_is_counted() -> None:
    apart = [event("host_silent", at("01:00") + 600 * number, f"gpu{number}") for number in range(9)]
    assert texts(night(*apart), "Broke")[MOST_LINES:] == ["and 5 more"]


def test_what_was_broken_for_days_says_since_when_and_what_healed_before_the_night_is_not_told() -> None:
    lost = event("gpu_lost", at("09:00", day=1) - 2 * 86_400, gpu=3, text="lost")
    earlier = [event("host_silent", at("02:00", day=1)), event("host_back", at("03:00", day=1))]
    digest = night(lost, *earlier, event("gpu_back", at("05:00"), gpu=3))
    assert texts(digest, "Healed") == ["gpu01 GPU 3 in error Fri 09:00 to 05:00 (3 d): lost"]
    assert texts(night(event("gpu_back", at("05:00"), gpu=3)), "Healed") == ["gpu01 GPU 3 in error until 05:00"]


def test_a_card_that_is_slowed_down_again_and_again_is_one_line() -> None:
    hot = [event("throttling_began", at("01:00") + 1200 * spell, gpu=2) for spell in range(5)]
    cool = [event("throttling_ended", at("01:10") + 1200 * spell, gpu=2) for spell in range(5)]
    assert texts(night(*hot, *cool), "Healed") == [
        "gpu01 GPU 2 slowed down by heat or power brake 02:20 to 02:30 (10 min), 5 times"
    ]


def test_an_end_without_a_gpu_ends_what_was_of_any_of_them() -> None:
    found = incidents(
        [event("gpu_lost", 10, gpu=0), event("gpu_lost", 20, gpu=1), event("gpu_back", 30), event("gpu_error", 40)]
    )
    assert [(each.gpu, each.began_at, each.ended_at) for each in found] == [(0, 10, 30), (1, 20, 30), (None, 40, None)]


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-03-02T07:30", "2026-03-02T07:30"),
        ("2026-03-02T07:29", "2026-03-01T07:30"),
        ("2026-03-29T12:00", "2026-03-29T07:30"),  # the clock was set that night
    ],
)
def test_the_newest_digest_that_was_due_is_that_of_the_wall_clock(now: str, due: str) -> None:
    at_now, at_due = (datetime.fromisoformat(each).replace(tzinfo=BERLIN).timestamp() for each in (now, due))
    assert last_due(450, at_now, BERLIN) == at_due


def test_a_night_in_which_the_clock_is_set_is_an_hour_shorter_or_longer() -> None:
    lengths = [
        night_before(datetime(2026, month, day, 7, 30, tzinfo=BERLIN).timestamp(), BERLIN).seconds / 3600
        for month, day in ((3, 29), (3, 30), (10, 25))
    ]
    assert lengths == [23, 24, 25]
    # an hour that the clock leaves out: the digest comes an hour later, not never
    missing = datetime(2026, 3, 29, 5, 0, tzinfo=UTC).timestamp()
    assert missing - timedelta(hours=24).total_seconds() < last_due(150, missing, BERLIN) <= missing


@pytest.fixture
def app(clock: Any, tmp_path: Path) -> Iterator[Flask]:
    made = create_app(Settings(server=ServerSettings(data=str(tmp_path))), clock)
    yield made
    made.extensions["history"].close()


def post(app: Flask, snapshot: dict[str, Any]) -> None:
    assert app.test_client().post("/", json={"auth_code": "lab_cluster_2025", **snapshot}).status_code == 200


def test_the_page_is_html_text_and_json_and_takes_hostile_names_as_text(
    app: Flask, clock: Any, make_snapshot: Any, make_gpu: MakeGpu
) -> None:
    client = app.test_client()
    evil = "<script>alert(1)</script>"
    xid = {"at": clock.now, "kind": "xid", "gpu": 0, "code": 79, "text": f"Xid 79: {evil}"}
    post(app, make_snapshot("gpu01", [make_gpu(0)], timestamp=clock.now, events=[xid]))
    page = client.get("/digest")
    assert page.status_code == 200
    assert evil not in page.text
    assert "Xid 79: &lt;script&gt;" in page.text
    told: Any = client.get("/digest?format=json").json
    assert told["lines"][0] == {"topic": "Now", "text": "1 of 1 GPU free: 1 × H100 80G.", "path": ""}
    text = client.get("/digest?format=text")
    assert text.mimetype == "text/plain"
    assert text.text.startswith(told["title"])
    assert "\nBroke\n  gpu01 GPU 0 Xid 79: <script>" in text.text
    clock.now += 0.1  # 31 days are 31 days, whatever doubles make of them
    assert client.get("/digest?from=now-31d").status_code == 200
    for wrong, words in (("from=now-2y", "31 days"), ("from=yes", "from: got"), ("format=pdf", "format: got")):
        refused = client.get(f"/digest?{wrong}")
        assert (refused.status_code, words in refused.text) == (400, True)


def test_who_may_not_know_names_finds_none_in_the_digest(
    clock: Any, make_snapshot: Any, make_gpu: MakeGpu, tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.touch(0o600)
    viewers = ViewerSettings(mode="basic", users_file=str(users), allow_anonymous=True)
    site = create_app(
        Settings(
            server=ServerSettings(data=str(tmp_path / "data")),
            viewers=viewers,
            privacy=PrivacySettings(user_names="signed_in"),
        ),
        clock,
    )
    start = clock.now
    for _ in range(3):
        held = make_gpu(0, used_mem=60_000.0, users=_user("mallory"))
        post(site, make_snapshot("gpu01", [held], timestamp=clock.now))
        clock.now = clock.now + 13 * 3600
    clock.now = start + 26 * 3600 + 60
    text = site.test_client().get("/digest?format=text").text
    assert "mallory" not in text
    assert "Held for over 12 h without work: user-" in text
    control = site.extensions["control"]
    line = json.dumps({"digest": {"begin": "now-24h", "end": "now"}}).encode()
    assert "mallory 1 (gpu01)" in control.answer(line, 0)["text"]
    wrong = json.dumps({"digest": {"begin": "soon", "end": "now"}}).encode()
    assert control.answer(wrong, 0)["msg"].startswith("from: got 'soon'")


def test_the_command_prints_what_the_server_tells(
    app: Flask, clock: Any, make_snapshot: Any, make_gpu: MakeGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["digest", "--data", str(tmp_path)]) == cli.EXIT_NO_SERVER
    app.extensions["start"]()
    post(app, make_snapshot("gpu\x1b[31m", [make_gpu(0)], timestamp=clock.now) | {"hostname": "gpu01"})
    assert cli.main(["digest", "--data", str(tmp_path)]) == 0
    assert "Now\n  1 of 1 GPU free: 1 × H100 80G.\n" in capsys.readouterr().out
    assert cli.main(["digest", "--from", "soon", "--data", str(tmp_path)]) == cli.EXIT_USAGE


def test_the_command_summary_prints_the_sentence_of_the_overview(
    app: Flask, clock: Any, make_snapshot: Any, make_gpu: MakeGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["summary", "--data", str(tmp_path)]) == cli.EXIT_NO_SERVER
    app.extensions["start"]()
    post(app, make_snapshot("gpu01", [make_gpu(0), make_gpu(1, gpu_util=97.0)], timestamp=clock.now))
    assert cli.main(["summary", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 of 2 GPUs free: 1 × H100 80G.\n"
