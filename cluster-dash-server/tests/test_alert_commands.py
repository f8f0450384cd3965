import argparse
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster_dash_server import control
from cluster_dash_server.alerts.commands import obey_maintenance
from cluster_dash_server.commands import CommandError, UsageError
from cluster_dash_server.commands import alerts as alert_commands
from cluster_dash_server.commands.alerts import wish_of
from cluster_dash_server.history import folder as data_folder
from cluster_dash_server.ledger.sqlite import FILE, SqliteBook
from cluster_dash_server.settings import Settings
from cluster_dash_server.snapshot import Json
from cluster_dash_server.when import WhenError, until

NOW = datetime(2026, 3, 1, 14, 30, tzinfo=UTC).timestamp()


def given(hosts: str | None = "gpu01", **more: object) -> argparse.Namespace:
    return argparse.Namespace(**{"hosts": hosts, "until": None, "end": False, "reason": "", **more})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", "2026-03-01T16:30"),
        ("18:00", "2026-03-01T18:00"),
        ("9:05", "2026-03-02T09:05"),
        ("now+1d", "2026-03-02T14:30"),
        ("2026-03-05T08:00", "2026-03-05T08:00"),
    ],
)
def test_an_end_is_a_span_an_hour_of_the_day_or_a_moment(text: str, expected: str) -> None:
    assert datetime.fromtimestamp(until(text, NOW, UTC), UTC).strftime("%Y-%m-%dT%H:%M") == expected


def test_an_end_that_is_none_is_refused_with_what_could_be_said() -> None:
    with pytest.raises(WhenError, match="2h, or 18:00"):
        until("soon", NOW, UTC)


def test_maintenance_is_kept_told_and_ended(tmp_path: Path) -> None:
    book = SqliteBook(tmp_path / FILE, lambda: NOW)
    wish = {"hosts": "gpu[01-02]", "until": "2h", "reason": "disks", "by": "nora"}
    told = {"hosts": "gpu[01-02]", "until": "2026-03-01 16:30", "by": "nora", "reason": "disks"}
    assert obey_maintenance(book, wish, NOW, UTC) == {"success": True, "maintenance": [told]}
    assert obey_maintenance(book, {}, NOW, UTC) == {"success": True, "maintenance": [told]}
    assert obey_maintenance(book, {**wish, "until": None}, NOW + 60, UTC) == {"success": True, "maintenance": []}
    book.close()


def test_maintenance_of_a_host_whose_name_reads_as_no_hostlist_is_kept(tmp_path: Path) -> None:
    book = SqliteBook(tmp_path / FILE, lambda: NOW)
    wish = {"hosts": "gpu[1", "until": "2h", "reason": "disks", "by": "nora"}
    (told,) = obey_maintenance(book, wish, NOW, UTC, {"gpu[1", "gpu01"})["maintenance"]
    assert told["hosts"] == "gpu[1"
    book.close()


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"hosts": "gpu01", "until": None}, "gpu01 is in no maintenance; what is: none"),
        ({"hosts": "gpu01", "until": "soon"}, "--until: got 'soon'"),
        ({"hosts": "gpu01", "until": "now-1h"}, "is past"),
        ({"hosts": "gpu[5-1]", "until": "1h"}, "[5-1] runs backwards"),
        ({"hosts": " ", "until": "1h"}, "HOST: got an empty name, expected a name, a hostlist or a pattern"),
        ({"hosts": "gpu[01-", "until": "1h"}, "gpu[01-: its bracket is not closed, as in gpu[01-03,07]"),
    ],
)
def test_maintenance_that_cannot_be_meant_is_refused_in_words(
    tmp_path: Path, wish: dict[str, str | None], why: str
) -> None:
    book = SqliteBook(tmp_path / FILE, lambda: NOW)
    answer = obey_maintenance(book, {"reason": "", "by": "nora", **wish}, NOW, UTC)
    assert answer["success"] is False
    assert why in answer["msg"]
    assert book.maintenance(NOW) == []
    book.close()


def test_without_a_server_it_is_noted_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alert_commands.maintain(wish_of(given(until="2h", reason="disks")), Settings(), tmp_path)
    assert capsys.readouterr().out.startswith("gpu01 until ")
    alert_commands.maintain({}, Settings(), tmp_path)
    assert "disks" in capsys.readouterr().out
    alert_commands.maintain(wish_of(given(end=True)), Settings(), tmp_path)
    assert capsys.readouterr().out == "no host is in maintenance\n"


@pytest.mark.parametrize("wish", [{}, wish_of(given(end=True))])
def test_a_folder_that_is_not_there_is_not_made_to_look_into(wish: Json, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="is not there: is it the data folder"):
        alert_commands.maintain(wish, Settings(), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    alert_commands.maintain(wish_of(given(until="2h")), Settings(), tmp_path / "x")


@pytest.mark.parametrize(("hosts", "until"), [("gpu[2-1]", "2h"), ("gpu01", "soon"), ("gpu01", "now-1h"), (" ", "2h")])
def test_what_is_typed_wrong_is_a_wrong_command_line(hosts: str, until: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        alert_commands.maintain(wish_of(given(hosts, until=until)), Settings(), tmp_path)


def test_a_folder_of_a_server_that_does_not_answer_is_left_alone(tmp_path: Path) -> None:
    lock = data_folder.take(tmp_path)
    with pytest.raises(control.ControlError, match="does not answer"):
        alert_commands.maintain({}, Settings(), tmp_path)
    assert lock
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("options", [given(), given(hosts=None, until="2h"), given(hosts=None, end=True)])
def test_a_command_line_that_does_not_fit_is_refused(options: argparse.Namespace) -> None:
    with pytest.raises(UsageError):
        wish_of(options)


def test_reload_without_a_server_says_so(tmp_path: Path) -> None:
    with pytest.raises(control.ControlError, match="no server answers"):
        alert_commands.reload(tmp_path)
