"""Alerts from posts of hosts to a real mail server and a real receiver of webhooks, over a kill of the server."""

import json
import sqlite3
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.post_office import HookServer, MailServer
from tests.processes import BIN, Listening, body_of, free_port, snapshot, start_server, wait_until

pytestmark = pytest.mark.slow

RULES = """
[gpu-error]
for = "0s"
hold = "1s"
[host-silent]
hold = "1s"
[allocated-unused]
enabled = false
"""


class Fleet:
    """Hosts that post every half second, to whatever server there is."""

    def __init__(self) -> None:
        self.url = ""
        self.posting = {"gpu01", "gpu02", "gpu03"}
        self.lost: set[str] = set()

    def body(self, host: str) -> bytes:
        entry = snapshot(host, 2) | {"interval_seconds": 0.5, "machine_id": host}
        if host in self.lost:
            next(iter(entry["gpu"].values()))["error"] = "NVML 15: lost"
        return body_of(entry)

    def post(self) -> None:
        for host in sorted(self.posting):
            request = urllib.request.Request(self.url, self.body(host), {"Content-Type": "application/json"})
            try:
                urllib.request.urlopen(request, timeout=10).close()
            except OSError:
                return  # the server is away

    @contextmanager
    def runs(self) -> Iterator[None]:
        ends = threading.Event()

        def run() -> None:
            while not ends.wait(0.5):
                self.post()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()


def settings(folder: Path, mail: MailServer, hook: HookServer, *, down_seconds: int) -> Path:
    """Write a site's settings; hosts are silent after `down_seconds`, which no pause of this machine may take."""
    rules, file = folder / "rules.toml", folder / "server.toml"
    rules.write_text(RULES)
    file.write_text(f"""
[server]
data = "{folder / "data"}"
public_url = "https://dash.example"
[states]
stale_seconds = 2
down_seconds = {down_seconds}
down_intervals = 2
[alerts]
rules_file = "{rules}"
mail_server = "127.0.0.1"
mail_port = {mail.port}
mail_security = "none"
mail_from = "dash@lab.example"
[alerts.receivers.admins]
kind = "email"
to = ["admin@lab.example"]
[alerts.receivers.hook]
kind = "webhook"
url = "http://127.0.0.1:{hook.port}/"
rules = ["gpu-error"]
allow_private = true
""")
    return file


def subjects(mail: MailServer) -> list[str]:
    return [str(message["Subject"]) for _, message in mail.mails]


def is_all_noted(folder: Path) -> bool:
    """Say whether no notice waits, or is with its receiver and not noted as sent yet."""
    with closing(sqlite3.connect(f"file:{folder / 'data' / 'alerts.db'}?mode=ro", uri=True)) as db:
        return db.execute("SELECT 1 FROM outbox WHERE outcome IS NULL").fetchone() is None


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "cluster-dash-server", *words], capture_output=True, text=True, check=False)


def asked(server: Listening, path: str) -> Any:
    with urllib.request.urlopen(f"{server.url}{path}", timeout=60) as answer:
        return json.load(answer)


@pytest.mark.timeout(300)
def test_faults_reach_mail_and_webhook_once_and_a_killed_server_says_nothing_new(tmp_path: Path) -> None:
    fleet = Fleet()
    with MailServer() as mail, HookServer() as hook:
        file = settings(tmp_path, mail, hook, down_seconds=12)
        with start_server("-c", file) as first:
            fleet.url = first.url
            with fleet.runs():
                wait_until(lambda: len(asked(first, "/api/v1/cluster")["hosts"]["host"]) == 3, 60)
                fleet.lost.add("gpu02")
                wait_until(lambda: len(mail.mails) == 1 and len(hook.posts) == 1, 60)
                told = command("maintenance", "gpu03", "--until", "1h", "--reason", "disks", "-c", file)
                assert told.returncode == 0, told.stderr
                assert "gpu03 until" in told.stdout
                fleet.posting -= {"gpu01", "gpu03"}  # one is in maintenance
                wait_until(lambda: len(mail.mails) == 2, 60)
                # before it is noted, a kill doubles it: that is the next test
                wait_until(lambda: is_all_noted(tmp_path), 60)
                first.popen.kill()
                first.popen.wait()
        with start_server("-c", file) as second:
            fleet.url = second.url
            with fleet.runs():
                wait_until(lambda: len(asked(second, "/api/v1/cluster")["hosts"]["host"]) == 3, 60)
                fleet.posting.add("gpu01")
                fleet.lost.clear()
                wait_until(lambda: len(mail.mails) == 4 and len(hook.posts) == 2, 60)
                assert asked(second, "/api/v1/alerts")["alerts"] == []
                reloaded = command("reload", "-c", file)
                assert (reloaded.returncode, reloaded.stdout) == (0, "24 rules are on\n")
                (tmp_path / "rules.toml").write_text("[gpu-eror]\nfor = '1m'\n")
                refused = command("reload", "-c", file)
                assert refused.returncode == 78
                assert "did you mean [gpu-error]?" in refused.stderr
    assert subjects(mail)[:2] == [
        "[cluster] critical: gpu02 GPU 0: in error",
        "[cluster] critical: gpu01: silent",
    ]
    assert sorted(subjects(mail)[2:]) == ["[cluster] ended: gpu01: silent", "[cluster] ended: gpu02 GPU 0: in error"]
    assert [(post["kind"], post["title"]) for post in hook.posts] == [
        ("firing", "gpu02 GPU 0: in error"),
        ("resolved", "gpu02 GPU 0: in error"),
    ]
    assert hook.posts[0]["alert"] == hook.posts[1]["alert"]
    assert "https://dash.example/alerts#" in mail.mails[0][1].get_body(("plain",)).get_content()  # type: ignore[union-attr]


class Victims:
    """Servers that are killed at the moment at which a receiver has taken a message and has not said so yet."""

    def __init__(self) -> None:
        self.popen: subprocess.Popen[bytes] | None = None
        """Who is to be killed next; None: nobody."""

    def die(self) -> None:
        """Kill the one that is there."""
        popen, self.popen = self.popen, None
        if popen is not None:
            popen.kill()
            popen.wait()


@pytest.mark.timeout(600)
def test_a_server_killed_between_send_and_mark_loses_nothing_and_doubles_that_one(tmp_path: Path) -> None:
    fleet = Fleet()
    by_hook, by_mail = Victims(), Victims()
    fleet.url = f"http://127.0.0.1:{free_port()}"
    with MailServer(then=by_mail.die) as mail, HookServer(then=by_hook.die) as hook, fleet.runs():
        file = settings(tmp_path, mail, hook, down_seconds=600)

        def posts() -> Counter[str]:
            """Count what the hook has, by that by which it knows a double."""
            return Counter(headers["webhook-id"] for headers in hook.headers)

        def mails() -> Counter[str]:
            return Counter(str(message["Message-ID"]) for _, message in mail.mails)

        def begun(server: Listening) -> None:
            fleet.url = server.url
            wait_until(lambda: len(asked(server, "/api/v1/cluster")["hosts"]["host"]) == 3, 60)

        def have(count: int) -> bool:
            return len(posts()) == len(mails()) == count

        with start_server("-c", file) as first:
            begun(first)
            by_hook.popen = first.popen
            fleet.lost.update(("gpu01", "gpu02"))
            wait_until(lambda: first.popen.poll() is not None, 60)
        with start_server("-c", file) as second:
            begun(second)
            wait_until(lambda: have(2), 60)
            by_mail.popen = second.popen
            fleet.lost.clear()
            wait_until(lambda: second.popen.poll() is not None, 60)
        with start_server("-c", file) as third:
            begun(third)
            wait_until(lambda: have(4), 60)
            wait_until(lambda: not asked(third, "/api/v1/alerts")["alerts"], 60)
    assert {*posts().values(), *mails().values()} == {1, 2}, "none comes more than twice"
    # by the one kill the hook has one twice, by the other the mailbox; what the other was being sent then may be, too
    assert posts()[hook.headers[0]["webhook-id"]] == 2
    assert posts().total() <= 4 + 2
    assert 4 + 1 <= mails().total() <= 4 + 2
