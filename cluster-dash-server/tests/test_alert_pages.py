"""Alerts for people and machines: how they stand, who may acknowledge and silence, and how it is undone."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from cluster_dash_server.access import users
from cluster_dash_server.alerts.book import Alert, Book, Silence, Transition
from cluster_dash_server.alerts.coming import Coming
from cluster_dash_server.alerts.watch import Watch
from cluster_dash_server.app import create_app
from cluster_dash_server.history.settings import PrivacySettings
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.settings import ServerSettings, Settings, ViewerSettings

EVIL = "</title><script>alert(1)</script>"
OWN = {"Sec-Fetch-Site": "same-origin"}
AFAR = {"REMOTE_ADDR": "10.0.0.9"}
MakeSite = Callable[..., Flask]
TEST_NOTICE: dict[str, Any] = {
    **{"key": "free:1:1", "kind": "free", "alert": None, "rule": "free", "severity": "info", "title": "1 free"},
    **{"facts": (), "text": "", "link": None, "actions": (), "labels": {}, "begun_at": 0.0, "ended_at": None},
}


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "N", 2**4)


@pytest.fixture
def make_site(clock: Any, tmp_path: Path) -> Iterator[MakeSite]:
    made: list[Flask] = []

    def make(**settings: Any) -> Flask:
        site = create_app(Settings(server=ServerSettings(data=str(tmp_path)), **settings), clock)
        site.extensions["start"]()
        made.append(site)
        return site

    yield make
    for site in made:
        site.extensions["book"].close()
        site.extensions["history"].close()


@pytest.fixture
def site(make_site: MakeSite) -> Flask:
    return make_site()


@pytest.fixture
def client(site: Flask) -> FlaskClient:
    return site.test_client()


def book_of(site: Flask) -> Book:
    book: Book = site.extensions["book"].book
    return book


def raise_alert(site: Flask, clock: Any, name: str = "a1", **fields: Any) -> Alert:
    alert = replace(
        Alert(
            id=name,
            rule="gpu-too-hot",
            severity="warning",
            title=f"gpu01 GPU 3 too hot {name}",
            host="gpu01",
            gpu=3,
            user="mallory",
            began_at=clock.now - 3600,
            ended_at=None,
            facts=(("what", "91 °C, held by mallory"), ("who", "mallory (job 7), trent"), ("next step", "look")),
            acknowledged=None,
            silenced_until=None,
            labels={"rule": "gpu-too-hot", "host": "gpu01", "user": "mallory"},
        ),
        **fields,
    )
    kind: Any = "began" if alert.ended_at is None else "ended"
    book_of(site).commit([Transition(kind=kind, alert=alert, at=clock.now, memory="")])
    return alert


def json_of(client: FlaskClient, path: str, **more: Any) -> Any:
    return client.get(path, **more).json


def states(client: FlaskClient, query: str = "state=all&from=now-7d") -> dict[str, str]:
    return {each["id"]: each["state"] for each in json_of(client, f"/api/v1/alerts?{query}")["alerts"]}


def test_a_quiet_site_says_so_and_counts_nothing(client: FlaskClient) -> None:
    page = client.get("/alerts").text
    assert "No alert that nobody has taken on." in page
    assert "<title>Alerts – cluster</title>" in page
    assert 'id="open-alerts" hidden' in page


def test_how_alerts_stand_is_told_to_people_and_machines(site: Flask, client: FlaskClient, clock: Any) -> None:
    raise_alert(site, clock, "a1", severity="critical")
    raise_alert(site, clock, "a2")
    raise_alert(site, clock, "a3", silenced_until=clock.now + 600)
    raise_alert(site, clock, "a4", ended_at=clock.now - 60)
    book_of(site).acknowledge("a2", "nora", clock.now, "a fan is on its way")
    assert states(client) == {"a1": "firing", "a2": "acknowledged", "a3": "silenced", "a4": "ended"}
    assert states(client, "") == {"a1": "firing", "a2": "acknowledged", "a3": "silenced"}
    assert states(client, "state=firing") == {"a1": "firing"}
    body = json_of(client, "/api/v1/alerts?state=acknowledged")
    assert body["at"] == clock.now
    (row,) = body["alerts"]
    assert row["acknowledged"] == {"by": "nora", "at": clock.now, "note": "a fan is on its way"}
    assert row["facts"]["next step"] == "look"
    csv = client.get("/api/v1/alerts?format=csv").text.splitlines()
    assert csv[0].startswith("id,state,rule,severity")
    assert len(csv) == 4
    page = client.get("/alerts").text
    assert "1 alert that nobody has taken on: 1 critical. 1 acknowledged. 1 silenced." in page
    assert "a fan is on its way" in page
    for path in ("/", "/alerts", "/history", "/host/nowhere", "/status"):
        text = client.get(path).text
        assert "<title>1 alert · " in text, path
        assert re.search(r'id="open-alerts">1</b>', text), path
    assert client.get("/api/v1/alerts?state=odd").status_code == 400
    assert client.get("/api/v1/alerts?from=soon").status_code == 400


def test_the_silence_that_the_page_offers_means_the_alert_and_no_other_user(
    site: Flask, client: FlaskClient, clock: Any
) -> None:
    raise_alert(site, clock, rule="gpu-held", host=None)
    raise_alert(site, clock, "a2", user=None)
    page = client.get("/alerts").text
    assert 'value="rule:gpu-held user:mallory"' in page
    assert 'value="rule:gpu-too-hot host:gpu01"' in page


def test_what_is_done_on_the_page_can_be_undone_there(site: Flask, client: FlaskClient, clock: Any) -> None:
    raise_alert(site, clock)
    done = client.post("/alerts/acknowledge", data={"alert": "a1", "note": "mine"}, headers=OWN)
    assert done.status_code == 303
    assert states(client) == {"a1": "acknowledged"}
    page = client.get(done.headers["Location"]).text
    assert "Noted: you see to it." in page
    undo = re.search(
        r'action="(/alerts/withdraw)"><input type="hidden" name="alert" value="a1"><button[^>]*>Undo', page
    )
    assert undo
    client.post(undo[1], data={"alert": "a1"}, headers=OWN)
    assert states(client) == {"a1": "firing"}
    wish = {"filter": "rule:gpu-too-hot host:gpu01", "reason": "a new fan comes", "until": "now+4h"}
    done = client.post("/alerts/silence", data=wish, headers=OWN)
    (silence,) = book_of(site).silences(clock.now)
    assert (silence.by, silence.ends_at) == ("who sits at the server", clock.now + 4 * 3600)
    page = client.get(done.headers["Location"]).text
    assert "Silenced: nobody is told of it any more." in page
    assert page.count("a new fan comes") == 1
    client.post("/alerts/end-silence", data={"silence": str(silence.id)}, headers=OWN)
    assert book_of(site).silences(clock.now) == []
    for does, data in (
        ("acknowledge", {"alert": "no"}),
        ("withdraw", {"alert": "a1"}),
        ("end-silence", {"silence": "7"}),
        ("end-silence", {"silence": "x"}),
        ("delete", {}),
    ):
        assert client.post(f"/alerts/{does}", data=data, headers=OWN).status_code == 404, does


@pytest.mark.parametrize("until", ["2h", "now+2h"])
def test_a_silence_ends_when_the_command_line_would_end_it(until: str, client: FlaskClient, clock: Any) -> None:
    wish = {"filter": "rule:gpu-too-hot", "reason": "a new fan comes", "until": until}
    assert client.post("/api/v1/silences", json=wish).status_code == 200
    assert json_of(client, "/api/v1/silences")["silences"][0]["ends_at"] == clock.now + 2 * 3600


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"filter": ""}, "filter: says nothing"),
        ({"filter": "hots:gpu01"}, "filter: "),
        ({"filter": "rule:"}, "filter: rule: says nothing"),
        ({"reason": " "}, "reason: says nothing"),
        ({"until": "soon"}, "until: got &#39;soon&#39;"),
        ({"until": "now-1h"}, "until: expected a moment from now on"),
        ({"until": "now+2y"}, "within 366 days"),
        ({"filter": "x" * 2001}, "at most 2000"),
    ],
)
def test_a_silence_that_cannot_be_meant_is_refused_and_what_was_typed_stands_there_still(
    wish: dict[str, str], words: str, client: FlaskClient
) -> None:
    given = {"filter": "rule:gpu-too-hot", "reason": "a <b>fan</b>", "until": "now+4h", **wish}
    answer = client.post("/alerts/silence", data=given, headers=OWN)
    assert (answer.status_code, words in answer.text) == (400, True)
    if "reason" not in wish:
        assert 'value="a &lt;b&gt;fan' in answer.text
    assert client.post("/api/v1/silences", json=given).status_code == 400
    assert json_of(client, "/api/v1/silences")["silences"] == []


def test_programs_acknowledge_and_silence_by_json(site: Flask, client: FlaskClient, clock: Any) -> None:
    raise_alert(site, clock)
    assert client.post("/api/v1/alerts/a1/acknowledgement", json={"note": "mine"}).status_code == 200
    assert client.post("/api/v1/alerts/a2/acknowledgement", json={}).status_code == 404
    assert client.post("/api/v1/alerts/a1/acknowledgement", json={"note": 7}).status_code == 400
    assert client.post("/api/v1/alerts/a1/acknowledgement", json=[]).status_code == 400
    assert states(client) == {"a1": "acknowledged"}
    assert client.delete("/api/v1/alerts/a1/acknowledgement", json={}).status_code == 200
    assert client.delete("/api/v1/alerts/a1/acknowledgement", json={}).status_code == 404
    made: Any = client.post("/api/v1/silences", json={"filter": "host:gpu01", "reason": "moved"}).json
    assert json_of(client, "/api/v1/silences")["silences"][0]["id"] == made["id"]
    table = client.get("/api/v1/silences?format=csv").text.splitlines()
    assert table[0] == "id,filter,by,reason,begins_at,ends_at"
    assert table[1].startswith(f"{made['id']},host:gpu01,")
    assert client.get("/api/v1/silences?format=pdf").status_code == 400
    unwritable = '{"filter": "host:gpu02", "reason": "\\ud800"}'
    assert client.post("/api/v1/silences", data=unwritable, content_type="application/json").status_code == 400
    assert client.delete(f"/api/v1/silences/{made['id']}", json={}).status_code == 200
    assert client.delete(f"/api/v1/silences/{made['id']}", json={}).status_code == 404


def test_where_the_site_is_open_only_who_sits_at_the_server_changes_anything(
    site: Flask, client: FlaskClient, clock: Any
) -> None:
    raise_alert(site, clock)
    near, far = (client.get("/alerts", environ_base=base).text for base in ({}, AFAR))
    assert ("I see to it" in near, "I see to it" in far) == (True, False)
    own = client.post("/alerts/acknowledge", data={"alert": "a1"}, headers=OWN, environ_base=AFAR)
    assert own.status_code == 403
    assert (
        client.post("/api/v1/silences", json={"filter": "host:a", "reason": "x"}, environ_base=AFAR).status_code == 403
    )
    proxied = {**OWN, "X-Forwarded-For": "10.0.0.9"}
    assert client.post("/alerts/acknowledge", data={"alert": "a1"}, headers=proxied).status_code == 403
    elsewhere = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert client.post("/alerts/acknowledge", data={"alert": "a1"}, headers=elsewhere).status_code == 403
    assert states(client) == {"a1": "firing"}


def test_viewers_look_operators_act_and_their_names_are_kept(make_site: MakeSite, clock: Any, tmp_path: Path) -> None:
    for name, role in (("ada", "operator"), ("vic", "viewer")):
        entry: Any = (role, users.hash_password("correct horse battery"))
        users.write(tmp_path / "users", name, entry)
    site = make_site(viewers=ViewerSettings(mode="basic", users_file=str(tmp_path / "users")))
    raise_alert(site, clock)
    client = site.test_client()
    ada, vic = ((name, "correct horse battery") for name in ("ada", "vic"))
    assert client.get("/api/v1/alerts").status_code == 401
    assert "I see to it" not in client.get("/alerts", auth=vic).text
    assert client.post("/api/v1/alerts/a1/acknowledgement", json={}, auth=vic).status_code == 403
    page = client.get("/alerts", auth=ada).text
    assert client.post("/alerts/acknowledge", data={"alert": "a1"}, headers=OWN, auth=ada).status_code == 403
    csrf = re.findall(r'name="csrf" value="(\w+)"', page)[0]
    assert page.count(f'name="csrf" value="{csrf}"') == page.count("<form") - 1  # all but the filter
    data = {"alert": "a1", "note": "", "csrf": csrf}
    assert client.post("/alerts/acknowledge", data=data, headers=OWN, auth=ada).status_code == 303
    assert json_of(client, "/api/v1/alerts", auth=vic)["alerts"][0]["acknowledged"]["by"] == "ada"


def test_who_may_not_know_names_finds_none_in_alerts(make_site: MakeSite, clock: Any, tmp_path: Path) -> None:
    (tmp_path / "users").touch(0o600)
    site = make_site(
        viewers=ViewerSettings(mode="basic", users_file=str(tmp_path / "users"), allow_anonymous=True),
        privacy=PrivacySettings(user_names="signed_in"),
    )
    raise_alert(site, clock, title="gpu01 GPU 3: mallory holds it")
    raise_alert(site, clock, "a2", title="gpu01 GPU 4: mallory holds it")
    book_of(site).acknowledge("a1", "nora", clock.now, "I asked mallory")
    book_of(site).silence(
        Silence(id=None, filter="host:a", by="nora", reason="x", begins_at=clock.now, ends_at=clock.now + 60)
    )
    for filter_ in ("rule:gpu-held user:mallory", "part:gpu mallory", "host:c"):
        said = Silence(id=None, filter=filter_, by="nora", reason="x", begins_at=clock.now, ends_at=clock.now + 60)
        book_of(site).silence(said)
    site.extensions["book"].book.put([("mailto:trent@example.org", Notice(**TEST_NOTICE))], clock.now)
    (waits,) = site.extensions["book"].book.due(clock.now, 1)
    site.extensions["book"].book.failed(waits.row, clock.now, "451 no trent here", clock.now + 60)
    client = site.test_client()
    assert "1 person" in client.get("/alerts").text
    assert "host:c" in client.get("/alerts").text
    for path in ("/alerts", "/api/v1/alerts", "/api/v1/alerts?format=csv", "/api/v1/silences", "/history", "/digest"):
        text = client.get(path).text
        assert not {name for name in ("mallory", "trent", "nora") if name in text}, path
    assert "gpu01 GPU 3: unknown holds it" in client.get("/alerts").text
    assert "gpu01 GPU 4: unknown holds it" in client.get("/digest").text


def test_hostile_texts_stand_there_as_text(site: Flask, client: FlaskClient, clock: Any) -> None:
    raise_alert(site, clock, title=EVIL, host=EVIL, rule="r", facts=((EVIL, EVIL),), labels={EVIL: EVIL})
    book_of(site).acknowledge("a1", EVIL, clock.now, EVIL)
    raise_alert(site, clock, "a2", title=EVIL, ended_at=clock.now - 5)
    book_of(site).silence(
        Silence(id=None, filter=EVIL, by=EVIL, reason=EVIL, begins_at=clock.now, ends_at=clock.now + 60)
    )
    for path in ("/alerts", "/history", f"/alerts?done=acknowledged:{EVIL}", f"/alerts?filter={EVIL}&reason={EVIL}"):
        assert "<script>alert" not in client.get(path).text, path
    client.get("/api/v1/alerts?format=csv")


def test_alerts_are_marks_on_charts_over_time(site: Flask, client: FlaskClient, clock: Any, make_snapshot: Any) -> None:
    for _ in range(30):
        said = {"auth_code": "lab_cluster_2025", "interval_seconds": 10, **make_snapshot(timestamp=clock.now)}
        assert client.post("/", json=said).status_code == 200
        clock.now += 10
    site.extensions["history"].flush()
    raise_alert(site, clock, began_at=clock.now - 120)
    query = "by=host&from=now-10m&metric=cpu_percent"
    assert "alert: gpu01 GPU 3 too hot" in client.get(f"/history?{query}").text
    assert "alert: gpu01 GPU 3 too hot" not in client.get(f"/history?{query}&host=gpu02").text


def test_where_alerts_cannot_be_read_the_other_pages_go_on(site: Flask, client: FlaskClient) -> None:
    site.extensions["book"].close()
    assert client.get("/").status_code == 200
    assert client.get("/history").status_code == 200
    assert client.get("/alerts").status_code == 503
    assert client.get("/api/v1/alerts").status_code == 503


def test_what_is_about_to_be_an_alert_stands_in_a_fold_without_names_for_who_may_not_know_them(
    make_site: MakeSite, clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users").touch(0o600)
    found: list[Coming] = []
    monkeypatch.setattr(Watch, "coming", lambda watch: found)
    site = make_site(
        viewers=ViewerSettings(mode="basic", users_file=str(tmp_path / "users"), allow_anonymous=True),
        privacy=PrivacySettings(user_names="signed_in"),
    )
    client = site.test_client()
    assert "About to" not in client.get("/alerts").text
    found += [
        Coming(
            rule=rule,
            severity="warning",
            title=f"gpu01 GPU 0: {rule}",
            host="gpu01",
            figure=figure,
            since=clock.now - 20,
            due_at=clock.now + 40,
            is_of_users=is_of_users,
        )
        for rule, figure, is_of_users in (("gpu-error", "lost", False), ("allocated-unused", "job of alice", True))
    ]
    page = client.get("/alerts").text
    assert "About to: 2 conditions hold, not yet for long enough" in page
    assert ("gpu01 GPU 0: gpu-error" in page, "lost" in page, "alice" in page) == (True, True, False)
    coming = json_of(client, "/api/v1/alerts")["coming"]
    assert [(each["rule"], each["due_at"], each["figure"]) for each in coming] == [
        ("gpu-error", clock.now + 40, "lost"),
        ("allocated-unused", clock.now + 40, None),
    ]
