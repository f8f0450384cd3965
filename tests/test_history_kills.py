"""The server is killed while it takes snapshots at full speed: what it called durable is there, once, each time."""

import http.client
import json
import random
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from cluster_dash_server.history.sqlite.sealing import Names, hot_rows, sealed_rows
from tests.processes import Listening, wait_until

HOSTS = 6
LINES = 25
PLANTED = """
import contextlib, itertools, sys
from cluster_dash_server.history.sqlite import store
from cluster_dash_server.cli import main

commits = itertools.count()

@contextlib.contextmanager
def forgetful(db):  # of every other one, from the first on: on a slow machine there are few
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("COMMIT" if next(commits) % 2 else "ROLLBACK")

if sys.argv.pop(1) == "planted":
    store._transaction = forgetful
sys.exit(main(sys.argv[1:]))
"""


class Fleet:
    """Some hosts that post without a pause, and remember what they were told is durable."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seq = dict.fromkeys((f"gpu{number:02}" for number in range(HOSTS)), 1)
        self.durable: dict[str, int] = {}
        self.began_at = time.time() - 6 * 3600

    def batch(self) -> bytes:
        lines = []
        for _ in range(LINES):
            host = self.rng.choice(list(self.seq))
            seq = self.seq[host]
            self.seq[host] += 1
            lines.append(orjson.dumps(self._snapshot(host, seq)))
        return b"\n".join(lines)

    def _snapshot(self, host: str, seq: int) -> dict[str, Any]:
        gpu = {"index": 0, "uuid": f"GPU-{host}", "name": "H100", "total_mem": 80_000.0, "gpu_util": seq % 100}
        users = {"alice": {"1": {"mem": 10.0, "type": "C"}}} if seq // 100 % 2 else {}
        return {
            "hostname": host,
            "timestamp": self.began_at + seq,
            "boot_id": "boot",
            "seq": seq,
            "interval_seconds": 1,
            "spool": {"oldest_seq": 1},
            "cpu": {"cpu_percent": 1.0, "load_avgs": [1, 1, 1], "num_cpus": 1},
            "gpu": {"0_H100": {**gpu, "used_mem": 5.0 * (seq % 7), "users": users}},
            "auth_code": "lab_cluster_2025",
        }

    def post(self, url: str, until: threading.Event) -> None:
        """Post until told, or until the server is gone."""
        place = urlsplit(url)
        # as a mole does: what is not durable is sent again, and some of it is there already
        self.seq = {host: self.durable.get(host, 0) + 1 for host in self.seq}
        while not until.is_set():
            before = dict(self.seq)
            body = self.batch()
            try:
                with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
                    connection.request("POST", "/api/v1/snapshots", body)
                    answer = connection.getresponse()
                    told = json.loads(answer.read())
                if answer.status in (429, 503):  # not now; nothing was taken
                    self.seq = before
                    time.sleep(0.05)
                    continue
                assert answer.status == 200, told
            except (OSError, http.client.HTTPException, ValueError):
                return
            for each in told["durable"]:
                self.durable[each["hostname"]] = max(each["seq"], self.durable.get(each["hostname"], 0))


@contextmanager
def server(data: Path, planted: str) -> Iterator[Listening]:
    with Listening([sys.executable, "-c", PLANTED, planted, "serve", "--port", "0", "--data", data]) as process:
        yield process


def kill_while_it_works(fleet: Fleet, data: Path, planted: str) -> None:
    with server(data, planted) as process:
        url = process.url
        done = threading.Event()
        poster = threading.Thread(target=fleet.post, args=(url, done))
        poster.start()
        begun = sum(fleet.durable.values())
        wait_until(lambda: sum(fleet.durable.values()) > begun or not poster.is_alive(), 30, "something durable")
        time.sleep(fleet.rng.uniform(0, 0.8))
        process.popen.kill()
        process.popen.wait()
        done.set()
        poster.join()


def check(fleet: Fleet, data: Path) -> int:
    """Fail where the file is unsound, or what was durable is not there once; return how many snapshots are there."""
    with closing(sqlite3.connect(data / "history.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        names = Names(db)
        found: Counter[tuple[str, int]] = Counter()
        for host, name in db.execute("SELECT id, name FROM hosts").fetchall():
            hours = db.execute(
                "SELECT hour FROM hot WHERE host = ? UNION SELECT hour FROM sealed WHERE host = ?", (host, host)
            )
            for (hour,) in hours.fetchall():
                for row in hot_rows(db, names, host, hour, name) + sealed_rows(db, names, host, hour, name):
                    assert row.seq is not None
                    assert row.values[0] == row.seq % 100
                    found[name, row.seq] += 1
    assert [key for key, count in found.items() if count > 1] == []
    for host, seq in fleet.durable.items():
        missing = [each for each in range(1, seq + 1) if (host, each) not in found]
        assert missing == [], f"{host}: durable up to {seq}, and {len(missing)} are missing, from {missing[:1]} on"
    return len(found)


def run(data: Path, kills: int, seed: int, planted: str = "") -> int:
    fleet, count = Fleet(seed), 0
    for _ in range(kills):
        kill_while_it_works(fleet, data, planted)
        count = check(fleet, data)
    return count


@pytest.mark.slow
def test_what_was_durable_outlives_some_kills(tmp_path: Path) -> None:
    assert run(tmp_path, kills=4, seed=1) > 100


@pytest.mark.slow
def test_a_commit_left_out_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="are missing"):
        run(tmp_path, kills=4, seed=2, planted="planted")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_what_was_durable_outlives_200_kills(tmp_path: Path) -> None:
    assert run(tmp_path, kills=200, seed=3) > 10_000
