"""The command `token` where no server runs: in the data folder, under its lock."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster_dash_server.cli import main
from cluster_dash_server.history import folder as data_folder

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type `cluster-dash-server token …`; return its exit code and what it prints."""

    def typed(*arguments: str) -> tuple[int, str]:
        code = main(["token", *arguments, "--data", str(tmp_path)])
        return code, capsys.readouterr().out

    return typed


def test_tokens_are_made_listed_rotated_and_revoked(run: Run) -> None:
    code, secret = run("new", "--host", "gpu01")
    assert (code, bool(re.fullmatch(r"cdh_[a-z2-7]{8}_[\w-]{43}\n", secret))) == (0, True)
    assert run("new", "--enrol", "--names", "gpu[01-20]", "--max", "20", "--ttl", "2h")[0] == 0
    assert run("new", "--read", "grafana", "--scopes", "state:read,pii:read")[0] == 0
    code, table = run("list")
    assert code == 0
    rows = [line.split() for line in table.splitlines()]
    assert [row[1:3] for row in rows[1:]] == [["host", "gpu01"], ["enrol", "gpu[01-20]"], ["read", "grafana"]]
    assert secret.strip()[13:] not in table
    code, second = run("rotate", "gpu01")
    assert (code, second.startswith("cdh_"), second != secret) == (0, True, True)
    assert run("revoke", rows[1][0]) == (0, f"revoked {rows[1][0]}\n")
    assert rows[1][0] not in run("list")[1]
    assert f"{rows[1][0]}  host   gpu01" in run("list", "--all")[1]
    assert len(json.loads(run("list", "--json")[1])) == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("new", "--host", "gpu01", "--max", "3"), 2),
        (("new", "--host", "gpu01", "--scopes", "state:read"), 2),
        (("new", "--read", "x", "--names", "gpu*"), 2),
        (("new", "--read", "x", "--scopes", "everything"), 2),
        (("new", "--host", "a/b"), 2),
        (("revoke", "gpu01"), 1),
        (("rotate", "gpu01"), 1),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, arguments: tuple[str, ...], code: int) -> None:
    assert run(*arguments) == (code, "")


def test_a_folder_that_is_not_there_is_not_made_to_look_for_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what in (["list"], ["revoke", "gpu01"], ["rotate", "gpu01"]):
        assert main(["token", *what, "--data", str(tmp_path / "x")]) == 1
        printed = capsys.readouterr()
        assert (printed.out, "is not there: is it the data folder?" in printed.err) == ("", True)
    assert not (tmp_path / "x").exists()
    assert main(["token", "new", "--host", "gpu01", "--data", str(tmp_path / "x")]) == 0


def test_a_folder_that_a_silent_server_has_is_left_alone(run: Run, tmp_path: Path) -> None:
    lock = data_folder.take(tmp_path)
    try:
        assert run("new", "--host", "gpu01") == (69, "")
        assert run("list")[0] == 0
    finally:
        os.close(lock)
    assert run("new", "--host", "gpu01")[0] == 0
