"""What docs/growing.md says to type, so that a loss of an engine is none: backup while it serves, and back."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from cluster_dash_server.access.tokens import Tokens
from cluster_dash_server.history.remote import store as remote
from cluster_dash_server.history.remote.store import RemoteStore
from cluster_dash_server.history.settings import HistorySettings
from cluster_dash_server.ledger.access import SharedAccess
from cluster_dash_server.postgresql import Database
from cluster_dash_server.store import Figures, SeriesQuery
from tests.engines import Engine, running
from tests.processes import TOP, wait_until
from tests.test_history_postgresql import rows_of

make_fleet, make_row = rows_of.make_fleet, rows_of.make_row
MakeFleet = Callable[[int, int, float, float], list[Figures]]
GROWING = (TOP / "docs" / "growing.md").read_text()
BEGIN = time.time() // 3600 * 3600 - 7200


def command(program: str) -> str:
    """Return the line of the docs that begins with a program."""
    found = re.search(rf"`({program} [^`]*)`", GROWING)
    assert found is not None
    return found[1]


def typed(line: str, folder: Path, **environment: str) -> None:
    """Type a line into a shell."""
    path = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(line, shell=True, cwd=folder, env=path | environment, capture_output=True, check=False)  # noqa: S602 # of the docs
    assert done.returncode == 0, (line, done.stderr.decode())


@pytest.mark.needs("postgres")
def test_a_dump_of_the_database_brings_back_what_was_there(database_url: str, tmp_path: Path) -> None:
    parts = urlsplit(database_url)
    name = parts.path.removeprefix("/")
    environment = {
        "PGHOST": str(parts.hostname),
        "PGPORT": str(parts.port),
        "PGUSER": str(parts.username),
        "PGPASSWORD": unquote(parts.password or ""),
    }
    with closing(Database(database_url)) as database:
        access = SharedAccess(database, time.time)
        tokens = Tokens(access, time.time)
        secret = tokens.new("host", "gpu01")
        typed(command("pg_dump").replace(" dash ", f" {name} "), tmp_path, **environment)
        tokens.revoke("gpu01")
        tokens.new("host", "gpu02")
        typed(command("pg_restore").replace(" dash ", f" {name} "), tmp_path, **environment)
    with closing(Database(database_url)) as database:
        access = SharedAccess(database, time.time)
        access.look()
        (token,) = access.read()
        assert token.hosts == "gpu01"
        found = Tokens(access, time.time).find(secret, time.time())
        assert found is not None
        assert found.is_valid(time.time())


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    (tmp_path / "engine").mkdir()
    with running("victoria-metrics", tmp_path / "engine") as engine:
        yield engine


def means(store: RemoteStore) -> list[tuple[float | None, ...]]:
    ask = SeriesQuery(metric="cpu_percent", by="host", begin=BEGIN, end=BEGIN + 3600, step_seconds=60)
    return [tuple(line.mean) for line in store.series(ask)]


@pytest.mark.needs("victoria-metrics")
def test_a_backup_of_the_engine_brings_back_the_figures(engine: Engine, tmp_path: Path, make_fleet: MakeFleet) -> None:
    settings = HistorySettings(kind="remote", write_url=engine.access.write_url)
    data, kept = tmp_path / "engine" / "data", tmp_path / "backup"
    with closing(remote.of_move(settings, time.time)) as store:
        for row in make_fleet(2, 2, BEGIN, BEGIN + 600):
            store.append(row)
        store.flush()

        def is_whole() -> bool:
            engine.flush()
            return len(means(store)) == 2

        wait_until(is_whole, 60, "all is visible")
        before = means(store)
        places = {
            "-storageDataPath=…": f"-storageDataPath={data}",
            "fs:///backup": f"fs://{kept}",
            ":8428": f":{engine.port}",
        }
        typed(filled(command("vmbackup"), places), tmp_path)
        engine.stop()
        shutil.rmtree(data)
        typed(filled(command("vmrestore"), places), tmp_path)
        engine.start()
        wait_until(is_whole, 60, "all is back")
        assert means(store) == before


def filled(line: str, places: dict[str, str]) -> str:
    for gap, text in places.items():
        line = line.replace(gap, text)
    return line
