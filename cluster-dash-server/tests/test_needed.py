"""The page behind the link “I need it until …”."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from cluster_dash_server import privacy
from cluster_dash_server.access.users import hash_password, write
from cluster_dash_server.alerts.book import Alert, Book, Transition
from cluster_dash_server.app import create_app
from cluster_dash_server.notices.receivers import AlertSettings
from cluster_dash_server.owners import KEY_FILE, Need, signed
from cluster_dash_server.settings import ServerSettings, Settings, ViewerSettings

OWN = {"Sec-Fetch-Site": "same-origin"}
SETTINGS = AlertSettings(
    mail_server="mail.lab",
    mail_from="dash@lab.example",
    owner_notices=True,
    owner_address="{user}@lab.example",
)


@pytest.fixture
def app(tmp_path: Path, clock: Any) -> Iterator[Flask]:
    users = tmp_path / "users"
    write(users, "somebody", ("viewer", hash_password("a good password")))
    server = ServerSettings(data=str(tmp_path / "data"), public_url="https://dash.lab")
    viewers = ViewerSettings(mode="basic", users_file=str(users))
    app = create_app(Settings(server=server, viewers=viewers, alerts=SETTINGS), clock)
    app.extensions["start"]()
    yield app
    app.extensions["book"].close()
    app.extensions["history"].close()


@pytest.fixture
def book(app: Flask, clock: Any) -> Book:
    book: Book = app.extensions["book"].book
    alert = Alert(
        id="a1",
        rule="gpu-held",
        severity="warning",
        title="alice <b>: held without work",
        host="gpu01",
        gpu=1,
        user="alice",
        began_at=clock(),
        ended_at=None,
        facts=(("where", "gpu01, GPU 1"), ("who", "alice and others")),
        acknowledged=None,
        silenced_until=None,
        labels={},
    )
    book.commit([Transition(kind="began", alert=alert, at=clock(), memory="")])
    return book


@pytest.fixture
def path(tmp_path: Path, clock: Any, book: Book) -> str:
    key = privacy.kept_key(tmp_path / "data", KEY_FILE)
    return f"/needed/{signed(Need(alert='a1', user='alice', until=int(clock() + 86_400)), key)}"


def test_looking_at_it_asks_and_changes_nothing(app: Flask, book: Book, path: str, clock: Any) -> None:
    for method in ("get", "head", "get"):
        answer = getattr(app.test_client(), method)(path)
        assert answer.status_code == 200
    assert "I need it until 2023-11-15" in answer.text
    assert "alice &lt;b&gt;: held without work" in answer.text
    assert "alice and others" not in answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert book.silences(clock()) == []


def test_the_button_keeps_it_quiet_until_then_once(app: Flask, book: Book, path: str, clock: Any) -> None:
    for _ in range(2):
        answer = app.test_client().post(path, headers=OWN)
        assert answer.status_code == 200
        assert "It is yours until 2023-11-15" in answer.text
        assert "<form method" not in answer.text.partition("<main")[2]
    (silence,) = book.silences(clock())
    assert (silence.filter, silence.ends_at) == ("rule:gpu-held user:alice", clock() + 86_400)


def test_a_link_that_is_not_ours_says_so(app: Flask, book: Book, path: str, clock: Any) -> None:
    for wrong in (path[:-1], path + "x", "/needed/x", "/needed/%00", "/needed/" + "A" * 3000):
        for method in ("get", "post"):
            answer = getattr(app.test_client(), method)(wrong, headers=OWN)
            assert answer.status_code == 404, wrong
    assert "This link says nothing any more" in answer.text
    assert book.silences(clock()) == []


def test_a_page_of_another_site_cannot_press_the_button(app: Flask, book: Book, path: str, clock: Any) -> None:
    answer = app.test_client().post(path, headers={"Origin": "https://elsewhere.example"})
    assert answer.status_code == 403
    assert book.silences(clock()) == []
