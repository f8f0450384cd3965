"""Export, backup, restore and prune, as typed in a terminal."""

import csv
import importlib
import io
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from cluster_dash_server import cli
from cluster_dash_server.history.exports import COLUMNS, ExportError, Wish, rows_by, write_parquet
from cluster_dash_server.history.gpu_hours import hours_of
from cluster_dash_server.history.history import History
from cluster_dash_server.history.settings import HistorySettings, PrivacySettings
from cluster_dash_server.store import Event, KeptEvent, Usage, UsageQuery
from cluster_dash_server.when import Span
from tests.past import busy, figures, idle

NOW = 1_700_006_400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with three hours of history."""
    data = tmp_path / "data"
    history = History(
        data, settings=HistorySettings(), privacy=PrivacySettings(), clock=lambda: NOW, last_seen=lambda hosts: ()
    )
    history.start()
    for minute in range(180):
        for host in ("gpu01", "gpu02"):
            history.append(figures(host, NOW - 3 * 3600 + minute * 60, [busy("alice", 50 + minute % 10), idle("=bob")]))
    event = Event(at=NOW - 60, host="gpu01", gpu=1, kind="xid", code=79, text="=fell off the bus")
    history.record(KeptEvent(event, told=True, source=None))
    history.flush()
    history.close()
    return data


def run(folder: Path, *arguments: str) -> int:
    return cli.main([*arguments, "--data", str(folder)])


def exported(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert run(folder, "export", *arguments, "--from", str(NOW - 4 * 3600), "--to", str(NOW)) == 0
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


def test_figures_are_a_row_for_each_gpu_and_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = exported(folder, capsys, "figures", "--host", "gpu[01-01]", "--step", "600")
    assert tuple(head) == tuple(COLUMNS["figures"])
    assert len(rows) == 2 * 18
    first = dict(zip(head, rows[0], strict=True))
    assert (first["host"], first["gpu"], first["gpu_util_min"], first["gpu_util_max"]) == ("gpu01", "0", "50.0", "59.0")
    assert first["power_w_mean"] == ""


def test_gpu_hours_of_a_day_that_has_just_begun_are_taken_out_once() -> None:
    asked = list[tuple[int, int]]()

    class Reader:
        def usage(self, ask: UsageQuery) -> list[Usage]:
            asked.append(hours_of(ask))
            return []

    midnight = 1_700_006_400.0 // 86_400 * 86_400
    span = Span(begin=midnight - 7000, end=midnight + 300, is_relative=False)
    list(rows_by(cast(Any, Reader()), Wish(what="hours", span=span, hosts=None, step_seconds=60), ["gpu01"]))
    assert asked == [(midnight - 7200, midnight), (midnight, midnight + 3600)]


def test_a_host_whose_name_reads_as_no_hostlist_is_exported_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(
        tmp_path, settings=HistorySettings(), privacy=PrivacySettings(), clock=lambda: NOW, last_seen=lambda hosts: ()
    )
    history.start()
    for host in ("gpu01", "gpu[1"):
        history.append(figures(host, NOW - 3600, [idle("bob")]))
        event = Event(at=NOW - 60, host=host, gpu=None, kind="note", code=None, text="hello")
        history.record(KeptEvent(event, told=True, source=None))
    history.flush()
    history.close()
    for what in ("figures", "events"):
        head, *rows = exported(tmp_path, capsys, what, "--host", "gpu[1")
        assert {row[head.index("host")] for row in rows} == {"gpu[1"}


def test_figures_that_an_engine_has_are_not_exported_from_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER_DASH_HISTORY__KIND", "remote")
    monkeypatch.setenv("CLUSTER_DASH_HISTORY__WRITE_URL", "http://vm/api/v1/write")
    assert run(folder, "export", "figures") == 1
    assert "figures are in the engine" in capsys.readouterr().err
    assert run(folder, "export", "events") == 0


def test_hours_uses_and_events_are_told_and_no_text_runs_in_a_spreadsheet(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *uses = exported(folder, capsys, "uses")
    assert sorted((row[head.index("host")], row[head.index("user")]) for row in uses) == [
        (host, user) for host in ("gpu01", "gpu02") for user in ("'=bob", "alice")
    ]
    head, *events = exported(folder, capsys, "events")
    assert events == [[str(NOW - 60), "gpu01", "1", "xid", "79", "'=fell off the bus"]]
    head, *hours = exported(folder, capsys, "hours", "--host", "gpu02")
    assert {row[head.index("host")] for row in hours} <= {"gpu02"}


def test_parquet_needs_its_extra_and_says_which(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match="uv sync --extra parquet"):
        write_parquet(tmp_path / "x.parquet", "uses", [])
    assert run(folder, "export", "uses", "--format", "parquet") == 2
    assert run(folder, "export", "uses", "--format", "parquet", "-o", str(tmp_path / "x.parquet")) == 1


def test_parquet_holds_what_csv_holds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    file = tmp_path / "uses.parquet"
    times = ("--from", str(NOW - 4 * 3600), "--to", str(NOW))
    assert run(folder, "export", "uses", *times, "--format", "parquet", "-o", str(file)) == 0
    rows = parquet.read_table(file).to_pylist()
    head, *plain = exported(folder, capsys, "uses")
    assert [(row["host"], row["gpu"], row["from_at"]) for row in rows] == [
        (row[0], int(row[1]), float(row[head.index("from_at")])) for row in plain
    ]
    assert rows[0]["job"] is None


def test_a_backup_is_made_and_restored_by_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "backup", str(tmp_path / "copy")) == 0
    assert "with history.db; it holds secrets" in capsys.readouterr().out
    assert run(tmp_path / "second", "restore", str(tmp_path / "copy")) == 0
    capsys.readouterr()
    assert exported(tmp_path / "second", capsys, "uses") == exported(folder, capsys, "uses")
    assert run(tmp_path / "second", "restore", str(tmp_path / "nowhere")) == 1


def test_what_cannot_be_exported_says_what_would_mend_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, says in (
        (("export", "uses", "--from", "x"), 2, "--from: got 'x', expected now, now-6h"),
        (("export", "uses", "--host", "gpu[2-1]"), 2, "--host: [2-1] runs backwards"),
        (("export", "uses", "--host", "gpu[01-"), 2, "--host: gpu[01-: its bracket is not closed, as in"),
        (("export", "uses", "-o", str(tmp_path)), 1, f"{tmp_path}: Is a directory"),
    ):
        assert run(folder, *arguments) == code
        assert says in capsys.readouterr().err
    for command in (("export", "uses"), ("backup", str(tmp_path / "copy")), ("prune",)):
        assert run(tmp_path / "empty", *command) == 1
        assert "is it the data folder? --data names another" in capsys.readouterr().err
        assert not (tmp_path / "empty").exists()


def test_without_a_server_prune_does_it_in_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(exported(folder, capsys, "uses")) > 1
    assert run(folder, "prune") == 0
    _, *rows = exported(folder, capsys, "uses")
    assert rows == []  # years old by the clock of this machine
