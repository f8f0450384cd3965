"""The users file: hashes, roles, and what is wrong with a line."""

import io
import stat
import sys
from pathlib import Path

import pytest

from cluster_dash_server import cli
from cluster_dash_server.access import users
from cluster_dash_server.access.users import UsersError, UsersFile, check_password, hash_password, parse


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "N", 2**4)


def test_a_password_is_kept_as_a_salted_hash() -> None:
    first, second = hash_password("secret-1"), hash_password("secret-1")
    assert first != second
    assert "secret-1" not in first
    assert check_password("secret-1", first)
    assert not check_password("secret-2", first)
    assert not check_password("\ud800", first)


def test_a_hash_costs_an_attacker_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 128 * users.N * users.R >= 32 * 2**20


@pytest.mark.parametrize(
    "line", ["ann", "ann:viewer", "ann:king:x", "ann:viewer:plaintext", "a b:viewer:x", ":viewer:x"]
)
def test_a_line_that_is_none_is_named_and_not_shown(line: str) -> None:
    with pytest.raises(UsersError, match=r"users, line 2: expected name:role:hash") as refusal:
        parse(f"# people\n{line}\n", "users")
    assert "plaintext" not in str(refusal.value)


def test_the_command_adds_lists_and_removes_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "users"

    def user(*arguments: str, typed: str = "") -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        return cli.main(["user", *arguments, "--file", str(file)])

    assert user("add", "ann", typed="long enough\n") == 0
    assert user("add", "otto", "--role", "operator", typed="long enough, too\n") == 0
    assert user("add", "ann", "--role", "admin", typed="another one\n") == 0
    assert user("add", "bob", typed="short\n") == 1
    assert user("add", "b:b", typed="long enough\n") == 1
    assert user("list") == 0
    assert capsys.readouterr().out == "ann\tadmin\notto\toperator\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    people = UsersFile(file)
    assert people.is_right("ann", "another one")
    assert people.knows_right("ann", "another one")
    assert not people.knows_right("ann", "long enough")
    assert user("remove", "ann") == 0
    assert user("remove", "ann") == 1
    assert people.role("ann") is None
    assert not people.knows_right("ann", "another one")


def test_a_file_that_somebody_broke_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "users"
    users.write(file, "ann", ("viewer", hash_password("long enough")))
    people = UsersFile(file)
    file.write_text("broken")
    assert people.role("ann") is None
    assert not people.is_right("ann", "long enough")
    with pytest.raises(UsersError, match="line 1"):
        UsersFile(file)
