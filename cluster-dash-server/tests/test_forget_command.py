"""`forget` as typed in a terminal, where no server runs: hosts, and users."""

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cluster_dash_server import cli, control
from cluster_dash_server.alerts.book import Silence
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.commands import forget
from cluster_dash_server.history import folder as data_folder
from cluster_dash_server.history.history import History
from cluster_dash_server.history.settings import HistorySettings, PrivacySettings
from cluster_dash_server.history.sqlite import schema, unnaming
from cluster_dash_server.inflate import unpack
from cluster_dash_server.ledger.sqlite import FILE as ALERTS
from cluster_dash_server.ledger.sqlite import SqliteBook
from cluster_dash_server.restart import remember
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds
from tests.past import busy, figures

NOW = time.time()
"""The command reads the clock itself, and what is old is dropped when a folder is opened."""


@pytest.fixture
def folder(tmp_path: Path, make_seen: Callable[..., Seen], make_gpu: Callable[..., dict[str, object]]) -> Path:
    """A data folder that a server has left behind."""
    data, cluster = tmp_path / "data", Cluster(Thresholds())
    history = History(
        data,
        settings=HistorySettings(),
        privacy=PrivacySettings(),
        clock=lambda: NOW,
        last_seen=lambda hosts: map(remember, cluster.known(hosts)),
    )
    history.start()
    for host in ("gpu01", "gpu02"):
        gpu = {**make_gpu(0), "users": {"zoe": {"1": {"command": "/home/zoe/run"}}}}
        cluster.offer(make_seen(host, [gpu], received_at=NOW))
        history.append(figures(host, NOW - 60, [busy("zoe")]))
    history.flush()
    history.close()
    return data


def run(folder: Path, *arguments: str) -> int:
    return cli.main(["forget", *arguments, "--data", str(folder)])


def newest(folder: Path) -> dict[str, str]:
    with closing(sqlite3.connect(folder / "history.db")) as db:
        found = {host: unpack(packed).decode() for host, packed in db.execute("SELECT host, packed FROM last")}
    for text in found.values():
        json.loads(text)
    return found


def test_without_a_server_hosts_are_forgotten_in_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "gpu02") == 0
    assert capsys.readouterr().out == "forgot gpu02\n"
    assert set(newest(folder)) == {"gpu01"}
    assert run(folder, "gpu02") == 1
    assert "no such host is known" in capsys.readouterr().err


def test_without_a_server_a_user_is_forgotten_in_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all("zoe" in text for text in newest(folder).values())
    with closing(SqliteBook(folder / ALERTS, lambda: 0.0)) as book:
        book.silence(Silence(id=None, filter="user:zoe", by="root", reason="asked", begins_at=0, ends_at=60))
    assert run(folder, "--user", "zoe") == 0
    with closing(SqliteBook(folder / ALERTS, lambda: 0.0)) as book:
        assert [each.filter for each in book.silences(1)] == ["user:unknown"]
    said = capsys.readouterr().out
    assert said.startswith("forgot zoe: taken out of 2 hours of hosts, 0 events and 2 newest snapshots")
    assert "Backups" in said
    assert [("zoe" in text, "unknown" in text) for text in newest(folder).values()] == [(False, True)] * 2
    assert all(b"zoe" not in file.read_bytes() for file in folder.glob("history.db*"))
    assert run(folder, "--user", "zoe") == 0
    assert "was in no hour" in capsys.readouterr().out


def test_a_folder_that_somebody_has_is_let_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = data_folder.take(folder)
    try:
        assert run(folder, "--user", "zoe") == 1
    finally:
        os.close(lock)
    assert "belongs to another server" in capsys.readouterr().err
    assert all("zoe" in text for text in newest(folder).values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a HOST, or --user NAME"),
        (["gpu01", "--user", "zoe"], "--user goes alone"),
        (["--user", "zoe", "--gpu", "GPU-1"], "--user goes alone"),
        (["--user", " "], "got an empty name"),
    ],
)
def test_a_command_line_that_says_too_little_or_too_much(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(folder, *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_missing_gpu_takes_a_running_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "gpu01", "--gpu", "GPU-1") == 69
    assert "no server answers" in capsys.readouterr().err


def test_without_a_server_a_file_that_is_damaged_meanwhile_ends_the_command_with_words(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> bool:
        raise schema.Damaged("a page is never used")

    with monkeypatch.context() as patch:
        patch.setattr(unnaming, "go_on", breaks)
        assert run(folder, "--user", "zoe") == 1
    said = capsys.readouterr().err
    assert "a new one was begun, before the name was out of all that the file held. The same command again does" in said
    assert run(folder, "--user", "zoe") == 0


def test_a_server_that_was_started_anew_meanwhile_is_not_waited_for_for_ever(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ask", lambda *_: {"success": True, "unnamed": None})
    monkeypatch.setattr(forget, "UNKNOWN_SECONDS", 0.5)
    assert run(folder, "--user", "zoe") == 1
    assert (
        "it was started anew, or could not write it, as its log says then: the same command again"
        in capsys.readouterr().err
    )
