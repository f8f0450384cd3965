"""A backup made while a server runs, and what becomes of it."""

import io
import os
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.app import create_app
from cluster_dash_server.history.backups import FORM, MARK, BackupError, backup, restore
from cluster_dash_server.history.folder import take
from cluster_dash_server.settings import ServerSettings, Settings


@pytest.fixture
def serve(clock: Any) -> Any:
    """Start servers in data folders; they end with the test."""
    started = []

    def start(folder: Path) -> Any:
        app = create_app(Settings(server=ServerSettings(data=str(folder))), clock)
        app.extensions["start"]()
        started.append(app.extensions["history"])
        return app

    yield start
    for history in started:
        history.close()


def post(app: Any, snapshot: Any) -> None:
    answer = app.test_client().post("/", json={**snapshot, "auth_code": "lab_cluster_2025"})
    assert answer.status_code == 200, answer.text


def test_a_backup_of_a_running_server_restores_all_that_it_kept(
    tmp_path: Path, serve: Any, make_snapshot: Any, make_gpu: Any, clock: Any
) -> None:
    first = serve(tmp_path / "first")
    gpus = [make_gpu(0, gpu_util=80.0, users={"alice": {"1": {"mem": 100, "name": "python"}}})]
    for _ in range(90):
        post(first, make_snapshot("gpu01", gpus, timestamp=clock.now, interval_seconds=60))
        clock.now += 60
    first.extensions["history"].flush()
    assert "history.db" in backup(tmp_path / "first", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    asked = "/api/v1/series?metric=gpu_util&host=gpu01&from=now-2h"
    before = first.test_client().get(asked).json
    assert any(before["series"][0]["mean"])

    restore(tmp_path / "copy", tmp_path / "second")
    second = serve(tmp_path / "second")
    assert second.test_client().get(asked).json == before
    assert [host["host"] for host in [second.test_client().get("/api/v1/hosts/gpu01").json]] == ["gpu01"]
    post(second, make_snapshot("gpu02", gpus, timestamp=clock.now))
    second.extensions["history"].flush()


def test_what_stood_in_the_folder_is_moved_aside_not_deleted(
    tmp_path: Path, serve: Any, make_snapshot: Any, clock: Any
) -> None:
    post(serve(tmp_path / "first"), make_snapshot("gpu01"))
    backup(tmp_path / "first", tmp_path / "copy")
    folder = tmp_path / "second"
    folder.mkdir()
    (folder / "history.db").write_text("of before")
    (folder / "history.db-wal").write_text("its journal")
    restore(tmp_path / "copy", folder)
    (aside,) = folder.glob("before-restore-*")
    assert (aside / "history.db").read_text() == "of before"
    assert not (folder / "history.db-wal").exists()
    assert (folder / "history.db").read_bytes()[:15] == b"SQLite format 3"


def test_a_folder_in_use_is_not_restored_into(tmp_path: Path, serve: Any, make_snapshot: Any) -> None:
    post(serve(tmp_path / "first"), make_snapshot("gpu01"))
    backup(tmp_path / "first", tmp_path / "copy")
    (tmp_path / "second").mkdir()
    take(tmp_path / "second")
    with pytest.raises(BackupError, match="stop it first"):
        restore(tmp_path / "copy", tmp_path / "second")


def test_what_root_restores_belongs_to_whom_the_folder_belongs(
    tmp_path: Path, serve: Any, make_snapshot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(serve(tmp_path / "first"), make_snapshot("gpu01"))
    backup(tmp_path / "first", tmp_path / "copy")
    (tmp_path / "elsewhere").write_text("not his")
    folder = tmp_path / "second"
    folder.mkdir()
    (folder / "linked").hardlink_to(tmp_path / "elsewhere")
    (folder / "sym").symlink_to(tmp_path / "elsewhere")
    if os.geteuid() == 0:
        os.chown(folder, 12345, 12345)
    given: dict[str, int] = {}
    monkeypatch.setattr("cluster_dash_server.history.folder.ROOT", os.geteuid())
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **how: given.update({Path(path).name: uid}))

    restore(tmp_path / "copy", folder)
    assert {"history.db", "lock"} <= given.keys()
    assert set(given.values()) == {folder.stat().st_uid}
    assert not given.keys() & {"linked", "sym", "elsewhere"}


def tarred(file: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def newer(folder: Path) -> bytes:
    with sqlite3.connect(folder / "newer.db") as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("CREATE TABLE t (a)")
    db.close()
    return (folder / "newer.db").read_bytes()


def test_what_is_no_sound_backup_is_refused_and_the_folder_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "history.db").write_text("of before")
    (tmp_path / "text").write_text("hello")
    mark = (MARK, FORM)
    for file, says in (
        (tmp_path / "nowhere", "No such file"),
        (tmp_path / "text", "it cannot be restored"),
        (tarred(tmp_path / "other", ("a", b"b")), "is no backup of cluster-dash"),
        (tarred(tmp_path / "form", (MARK, b"2\n")), "newer release"),
        (tarred(tmp_path / "evil", mark, ("../history.db", b"x")), r"'\.\./history\.db' does not belong in a backup"),
        (tarred(tmp_path / "deep", mark, ("a/b", b"x")), "does not belong"),
        (tarred(tmp_path / "newer", mark, ("history.db", newer(tmp_path))), r"newer release \(form 99\)"),
        (tarred(tmp_path / "damaged", mark, ("history.db", b"x" * 5000)), "not a database"),
    ):
        with pytest.raises(BackupError, match=says):
            restore(file, folder)
    assert (folder / "history.db").read_text() == "of before"
    assert not (tmp_path / "history.db").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackupError, match="holds nothing to back up"):
        backup(tmp_path / "empty", tmp_path / "x")
