"""Enrolment: a code for a token, kept for its owner alone."""

import json
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster_dash_mole.cli import main
from cluster_dash_mole.config import before_enrolment
from cluster_dash_mole.enrol import TokenPlace, address_of, trade
from cluster_dash_mole.host import Host
from cluster_dash_mole.mole import Row, SendError
from cluster_dash_mole.senders.http.exchange import Answer

CODE = "cde_abcdefgh_0123456789"
HOST = Host(hostname="gpu01", boot_id=None, machine_id="m1", boottime=None, os=None, kernel=None)


class Server:
    """Answers one wish."""

    def __init__(self, status: int, body: object) -> None:
        self.answer = Answer(
            status=status, headers={}, body=body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        self.asked: Mapping[str, object] = {}

    def post(self, document: Mapping[str, object]) -> Answer:
        self.asked = document
        return self.answer


def test_a_host_says_who_it_is_and_gets_its_token() -> None:
    server = Server(200, {"success": True, "token": "cdh_x_y"})
    assert trade(server, CODE, HOST) == "cdh_x_y"
    assert server.asked == {"code": CODE, "hostname": "gpu01", "machine_id": "m1"}
    assert address_of("https://dash.lab/dash/") == "https://dash.lab/dash/api/v1/enrol"
    with pytest.raises(ValueError, match=r"^got 'dash', expected http://HOST"):
        address_of("dash")


@pytest.mark.parametrize(
    ("status", "body", "row", "says"),
    [
        (401, {"success": False, "msg": "code: not known here"}, Row.WHO_ARE_YOU, "CD201"),
        (403, {"success": False, "msg": f"gpu01: {CODE} is over"}, Row.WHO_ARE_YOU, "CD203"),
        (404, {"success": False, "msg": "request: not found"}, Row.NEVER, "older than this mole"),
        (429, {"success": False, "msg": "too many"}, Row.NOT_NOW, "429"),
        (500, {"success": False, "msg": "x\n2026-01-01 error forged"}, Row.TROUBLE, "500"),
        (200, {"success": True, "token": "a\nb"}, Row.TROUBLE, "200"),
        (200, {"success": True}, Row.TROUBLE, "200"),
        (200, b"<html>sign in", Row.TROUBLE, "CD104"),
        (200, b"[]", Row.TROUBLE, "CD104"),
    ],
)
def test_why_there_is_no_token_is_said_without_the_code(status: int, body: object, row: Row, says: str) -> None:
    with pytest.raises(SendError, match=says) as refusal:
        trade(Server(status, body), CODE, HOST)
    assert refusal.value.row is row
    assert CODE not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_token_is_its_owners_alone_and_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    for token in ("cdh_1", "cdh_2"):
        with TokenPlace(path) as place:
            place.keep(token)
        assert path.read_text() == f"{token}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["token"]


def test_a_code_is_not_used_up_where_the_token_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"exists|directory"):
        TokenPlace(tmp_path / "file" / "token")
    with TokenPlace(tmp_path / "token"):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_host_without_a_secret_and_without_a_file_has_settings(tmp_path: Path) -> None:
    assert before_enrolment(None, {}, folder=tmp_path).json_sender.auth_code_file is None
    file = tmp_path / "config.toml"
    file.write_text('[Json_Sender_Logger]\nuse = true\nauth_code_file = "/not/there/yet"\n')
    assert before_enrolment(None, {}, folder=tmp_path).json_sender.auth_code_file == "/not/there/yet"


@pytest.mark.parametrize("url", ["http://192.0.2.1", "http://dash.lab:8080/dash"])
def test_a_code_does_not_travel_in_clear(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enrol", url, CODE, "--file", str(tmp_path / "token"), "-c", str(empty(tmp_path))]) == 78
    assert "does not travel unencrypted" in capsys.readouterr().err
    assert list(tmp_path.glob("*token*")) == []


def empty(folder: Path) -> Path:
    (folder / "config.toml").touch()
    return folder / "config.toml"
