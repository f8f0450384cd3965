"""Alerts of two replicas on one PostgreSQL: who leads is killed and put to sleep, and nothing is told twice."""

import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from tests import databases, redis_servers
from tests.faults.replicas import shared_by
from tests.post_office import HookServer
from tests.processes import BIN, Listening, body_of, snapshot, start_server, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs("postgres"), pytest.mark.needs("redis-server")]

TAKEOVER_SECONDS = 6.0
PATIENCE = 10
"""Machines that test are shared; what it took is printed."""
RULES = """
[gpu-error]
for = "0s"
hold = "1s"
[host-silent]
enabled = false
"""
HOSTS = [f"gpu{number:02d}" for number in range(1, 5)]
WITNESS = """
CREATE TABLE witness (n BIGINT GENERATED ALWAYS AS IDENTITY, kind TEXT, writer TEXT, leader TEXT);
CREATE FUNCTION note_writer() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO witness (kind, writer, leader)
    SELECT NEW.kind, current_setting('application_name'), holder FROM lease WHERE name = 'evaluator';
  RETURN NEW;
END $$;
CREATE TRIGGER note_writer BEFORE INSERT ON transitions FOR EACH ROW EXECUTE FUNCTION note_writer();
"""


class Replicas:
    """Two servers, hosts that post to whichever answers, and somebody who counts what is told.

    Args:
        folder: for what they keep.
        url: of the database.
        live: settings of the live view they share.
        hook: where they tell.
    """

    def __init__(self, folder: Path, url: str, live: dict[str, str], hook: HookServer) -> None:
        self.lost: set[str] = set()
        self.hook = hook
        self.url = url
        self.running: dict[str, Listening] = {}
        self._folder, self._live = folder, live
        self._seq = itertools.count(1)
        self._stack = ExitStack()
        rules = folder / "rules.toml"
        rules.write_text(RULES)
        self.settings = folder / "server.toml"
        self.settings.write_text(
            f'[history]\nkind = "none"\n[alerts]\nrules_file = "{rules}"\n[alerts.receivers.hook]\nkind = "webhook"\n'
            f'url = "http://127.0.0.1:{hook.port}/"\nallow_private = true\nseverity = "info"\n'
        )

    def start(self, name: str) -> None:
        """Start one of them."""
        self.running[name] = start_server("-c", self.settings, environment=self._environment(name))

    def _environment(self, name: str) -> dict[str, str]:
        return {
            **self._live,
            "CLUSTER_DASH_SERVER__DATA": str(self._folder / f"data-{name}"),
            "CLUSTER_DASH_LEDGER__KIND": "postgresql",
            "CLUSTER_DASH_LEDGER__URL": f"{self.url}?application_name={name}",
        }

    def command(self, name: str, *words: str) -> str:
        """Type a command on the machine of one of them; return what it says."""
        done = subprocess.run(
            [BIN / "cluster-dash-server", *words, "-c", self.settings],
            env={**os.environ, **self._environment(name)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def __enter__(self) -> Self:
        self.start("one")
        self.start("two")
        ends = threading.Event()
        thread = threading.Thread(target=self._post_on, args=(ends,))
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(ends.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for server in self.running.values():
            server.popen.send_signal(signal.SIGCONT)
            server.popen.kill()
            server.popen.wait()
            server.__exit__()

    def _post_on(self, ends: threading.Event) -> None:
        while not ends.wait(0.5):
            for host in HOSTS:
                self._post(host)

    def _post(self, host: str) -> None:
        entry = snapshot(host, 1) | {"interval_seconds": 0.5, "machine_id": host, "boot_id": host}
        entry |= {"seq": next(self._seq), "timestamp": time.time()}
        if host in self.lost:
            next(iter(entry["gpu"].values()))["error"] = "NVML 15: lost"
        for server in list(self.running.values()):
            request = urllib.request.Request(server.url, body_of(entry), {"Content-Type": "application/json"})
            try:
                urllib.request.urlopen(request, timeout=1).close()
                return
            except OSError:
                continue  # it is away, or asleep

    def ask(self, name: str, path: str) -> Any:
        """Ask one of them."""
        with urllib.request.urlopen(f"{self.running[name].url}{path}", timeout=60) as answer:
            return json.load(answer)

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            yield connection

    def leader(self) -> str | None:
        """Return the name of the one that leads now; None: none does."""
        with self.database() as db:
            row = db.execute("SELECT holder FROM lease WHERE expires_at > clock_timestamp()").fetchone()
        return None if row is None else self.name_of(row[0])

    def name_of(self, holder: str) -> str | None:
        pid = int(holder.rsplit("-", 2)[1])
        return next((name for name, server in self.running.items() if server.popen.pid == pid), None)

    def firing(self, name: str) -> list[str]:
        """Return the titles of what fires, as one of them says."""
        return sorted(alert["title"] for alert in self.ask(name, "/api/v1/alerts")["alerts"])

    def is_all_noted(self) -> bool:
        """Say whether no notice waits, or is on its way."""
        with self.database() as db:
            return db.execute("SELECT 1 FROM outbox WHERE outcome IS NULL").fetchone() is None

    def told(self) -> Counter[str]:
        """Return how often each notice came."""
        return Counter(headers["webhook-id"] for headers in self.hook.headers)

    def titles(self, kind: str) -> list[str]:
        return [post["title"] for post in self.hook.posts if post["kind"] == kind]


@pytest.fixture
def redis() -> Iterator[dict[str, str]]:
    with redis_servers.running() as server:
        yield shared_by(server.url)


@pytest.fixture
def hook() -> Iterator[HookServer]:
    with HookServer(then=lambda: time.sleep(1.5)) as server:  # meanwhile another replica could send the same
        yield server


@pytest.fixture
def replicas(tmp_path: Path, database_url: str, redis: dict[str, str], hook: HookServer) -> Iterator[Replicas]:
    with Replicas(tmp_path, database_url, redis, hook) as running:
        wait_until(running.leader, 60, "one of them leads")
        with running.database() as db:
            db.execute(WITNESS)
        yield running


def other_than(name: str) -> str:
    return "two" if name == "one" else "one"


def fail_over(replicas: Replicas, fault: signal.Signals, host: str) -> float:
    """Kill or stop the leader, have the other one tell of a GPU; return how long nobody led (s)."""
    leader = wait_until(replicas.leader, 60, "one leads")
    heir = other_than(leader)
    wait_until(lambda: len(replicas.ask(heir, "/api/v1/cluster")["hosts"]["host"]) == len(HOSTS), 60)
    wait_until(replicas.is_all_noted, 60, "what was told is noted")  # else a kill may have it told twice
    asleep = replicas.running[leader]
    began = time.monotonic()
    asleep.popen.send_signal(fault)
    replicas.lost.add(host)
    wait_until(lambda: replicas.leader() == heir, TAKEOVER_SECONDS * PATIENCE, "the other one leads", patience=1)
    took = time.monotonic() - began
    wait_until(lambda: any(host in title for title in replicas.titles("firing")), 60, "it is told of a GPU")
    if fault == signal.SIGKILL:
        asleep.popen.wait()
        asleep.__exit__()
        replicas.start(leader)
    else:
        asleep.popen.send_signal(signal.SIGCONT)
    wait_until(lambda: _follows(replicas, leader, host), 60, "it follows")
    replicas.lost.discard(host)
    wait_until(lambda: any(host in title for title in replicas.titles("resolved")), 60, "it is told of its end")
    print(f"takeover after {fault.name}: {took:.1f} s")  # noqa: T201 # a figure that is reported
    return took


def _follows(replicas: Replicas, name: str, host: str) -> bool:
    try:
        return any(host in title for title in replicas.firing(name))
    except OSError:
        return False


def check_everything(replicas: Replicas, hosts: list[str]) -> None:
    """Hold what was told and written to what may be."""
    told = replicas.told()
    assert {key: times for key, times in told.items() if times > 1} == {}
    assert sorted(replicas.titles("firing")) == sorted(replicas.titles("resolved"))
    assert len(replicas.titles("firing")) == len(hosts)
    assert check_writers(replicas) == {"began": len(hosts), "ended": len(hosts)}


def check_writers(replicas: Replicas) -> Counter[str]:
    """Hold each that wrote to be the one that led; return how often each kind was written."""
    with replicas.database() as db:
        rows = db.execute("SELECT kind, writer, leader FROM witness ORDER BY n").fetchall()
    known = {server.popen.pid: name for name, server in replicas.running.items()}
    for kind, writer, leader in rows:
        pid = int(leader.rsplit("-", 2)[1])
        assert known.get(pid, writer) == writer, (kind, writer, leader)  # of one that was killed the pid is not known
    return Counter(kind for kind, _, _ in rows)


def test_the_other_replica_takes_over_and_nothing_is_told_twice(replicas: Replicas) -> None:
    for fault, host in ((signal.SIGSTOP, HOSTS[0]), (signal.SIGKILL, HOSTS[1])):
        assert fail_over(replicas, fault, host) <= TAKEOVER_SECONDS * PATIENCE
    check_everything(replicas, HOSTS[:2])


@pytest.mark.soak
def test_whoever_leads_is_killed_and_put_to_sleep_again_and_again(replicas: Replicas) -> None:
    faults = [signal.SIGKILL, signal.SIGSTOP] * 5
    hosts = [HOSTS[number % len(HOSTS)] for number in range(len(faults))]
    took = []
    for number, (fault, host) in enumerate(zip(faults, hosts, strict=True)):
        replicas.hook.posts.clear()
        took.append(fail_over(replicas, fault, host))
        print(f"{number + 1} of {len(faults)}")  # noqa: T201 # it takes minutes
    print(f"takeover: {min(took):.1f} … {max(took):.1f} s")  # noqa: T201 # a figure that is reported
    assert max(took) <= TAKEOVER_SECONDS * PATIENCE
    assert {key: times for key, times in replicas.told().items() if times > 1} == {}
    check_writers(replicas)


@pytest.mark.soak
def test_a_leader_that_falls_asleep_in_the_middle_of_writing_writes_nothing(replicas: Replicas) -> None:
    with replicas.database() as db:
        db.execute(
            "CREATE FUNCTION take_time() RETURNS TRIGGER LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;"
            "CREATE TRIGGER take_time BEFORE INSERT ON transitions FOR EACH ROW EXECUTE FUNCTION take_time();"
        )
    for number in range(5):
        leader = wait_until(replicas.leader, 60)
        heir, asleep, host = other_than(leader), replicas.running[leader].popen, HOSTS[number % len(HOSTS)]
        wait_until(lambda heir=heir: len(replicas.ask(heir, "/api/v1/cluster")["hosts"]["host"]) == len(HOSTS), 60)  # type: ignore[misc]
        wait_until(replicas.is_all_noted, 60, "what was told is noted")
        replicas.hook.posts.clear()
        replicas.lost.add(host)
        wait_until(lambda leader=leader: _writes(replicas, leader), 60, "it writes")  # type: ignore[misc]
        asleep.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_until(lambda heir=heir: replicas.leader() == heir, 60, "the other one leads")  # type: ignore[misc]
        print(f"takeover in the middle of a write: {time.monotonic() - began:.1f} s")  # noqa: T201 # reported
        wait_until(lambda: replicas.titles("firing"), 60, "the other one tells of it")
        asleep.send_signal(signal.SIGCONT)
        replicas.lost.discard(host)
        wait_until(lambda: replicas.titles("resolved"), 60, "it is told of its end")
    assert set(replicas.told().values()) == {1}
    assert check_writers(replicas) == {"began": 5, "ended": 5}


def _writes(replicas: Replicas, name: str) -> bool:
    with replicas.database() as db:
        asked = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND query LIKE 'INSERT INTO transitions%%'"
        return db.execute(asked + " AND state = 'active'", (name,)).fetchone() is not None


@pytest.mark.soak
def test_the_database_is_killed_and_put_to_sleep_again_and_again(
    tmp_path: Path, redis: dict[str, str], hook: HookServer
) -> None:
    chance = random.Random(7)
    with databases.running(is_safe=True) as own, Replicas(tmp_path, own.new_database(), redis, hook) as replicas:
        for number in range(10):
            wait_until(replicas.leader, 60, "one of them leads")
            host = HOSTS[number % len(HOSTS)]
            replicas.hook.posts.clear()
            replicas.lost.add(host)
            time.sleep(chance.uniform(0, 6))  # at any moment: while it is found, kept, sent, noted
            if number % 2:
                own.kill()
                time.sleep(chance.uniform(0, 4))
                own.start()
            else:
                own.signal(signal.SIGSTOP)
                time.sleep(chance.uniform(6, 12))
                own.signal(signal.SIGCONT)
            wait_until(lambda: replicas.titles("firing"), 60, "it is told of a GPU")
            replicas.lost.discard(host)
            wait_until(lambda: replicas.titles("resolved"), 60, "it is told of its end")
            print(f"{number + 1} of 10")  # noqa: T201 # it takes minutes
        assert set(replicas.told().values()) == {1}
        assert len(replicas.told()) == 20


@pytest.mark.soak
def test_a_leader_that_may_not_write_lets_the_other_one_lead(replicas: Replicas) -> None:
    leader = wait_until(replicas.leader, 60)
    with replicas.database() as db:
        db.execute(
            "CREATE FUNCTION refuse() RETURNS TRIGGER LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'not {leader}'; END $$;"
            "CREATE TRIGGER refuse BEFORE INSERT ON alerts FOR EACH ROW "
            f"WHEN (current_setting('application_name') = '{leader}') EXECUTE FUNCTION refuse();".encode()
        )
    replicas.lost.add("gpu01")
    wait_until(lambda: replicas.titles("firing"), 600, "the other one tells of it")
    assert replicas.leader() == other_than(leader)


def test_what_people_do_on_any_replica_counts_on_all(replicas: Replicas) -> None:
    leader = wait_until(replicas.leader, 60)
    follower = other_than(leader)
    assert "gpu02 until" in replicas.command(follower, "maintenance", "gpu02", "--until", "1h")
    replicas.lost |= {"gpu01", "gpu02"}
    wait_until(lambda: replicas.firing(follower), 60, "the alert is known to both")
    assert replicas.firing(leader) == replicas.firing(follower) == ["gpu01 GPU 0: in error"]
    for name in (leader, follower):
        assert "hook" in replicas.command(name, "notify-test", "hook")
    assert len(replicas.titles("test")) == 2
    (replicas.settings.parent / "rules.toml").write_text(
        "[gpu-error]\nenabled = false\n[host-silent]\nenabled = false\n"
    )
    assert "rules are on" in replicas.command(follower, "reload")
    wait_until(lambda: replicas.titles("resolved"), 60, "the leader goes by the new rules")
    assert set(replicas.told().values()) == {1}


def test_while_the_database_is_away_all_else_goes_on(tmp_path: Path, redis: dict[str, str], hook: HookServer) -> None:
    with databases.running(is_safe=True) as own, Replicas(tmp_path, own.new_database(), redis, hook) as replicas:
        wait_until(replicas.leader, 60, "one of them leads")
        for name in replicas.running:
            wait_until(lambda name=name: len(replicas.ask(name, "/api/v1/cluster")["hosts"]["host"]) == 4, 60)  # type: ignore[misc]
        own.kill()
        for name in replicas.running:
            wait_until(lambda name=name: replicas.ask(name, "/readyz")["failing"], 60, "it is said")  # type: ignore[misc]
            ready = replicas.ask(name, "/readyz")  # 200: another replica would do no better
            assert "alerts" in [part["part"] for part in ready["failing"]]
            with urllib.request.urlopen(f"{replicas.running[name].url}/", timeout=60) as page:
                text = page.read().decode()
            assert "Alerts are neither kept nor evaluated now, and nobody is told of any" in text
            assert databases.PASSWORD not in text + json.dumps(ready)
        replicas.lost.add("gpu01")
        for name in replicas.running:
            wait_until(lambda name=name: _is_lost(replicas, name), 60, "the live view goes on")  # type: ignore[misc]
        own.start()
        wait_until(lambda: replicas.titles("firing"), 60, "it is told once the database is back")
        for name in replicas.running:
            wait_until(lambda name=name: _is_ready(replicas, name), 60, "all is well")  # type: ignore[misc]
            assert databases.PASSWORD.encode() not in replicas.running[name].output
        assert set(replicas.told().values()) == {1}


def _is_ready(replicas: Replicas, name: str) -> bool:
    try:
        return bool(replicas.ask(name, "/readyz")["success"])
    except urllib.error.HTTPError:  # the other one has the database back already
        return False


def _is_lost(replicas: Replicas, name: str) -> bool:
    return "NVML 15: lost" in json.dumps(replicas.ask(name, "/api/v1/hosts/gpu01"))
