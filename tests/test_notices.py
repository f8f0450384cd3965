"""Notices on their way to real receivers: mail, webhook, Alertmanager; receivers that are off, and servers killed."""

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.notices.notice import Kind, Notice
from cluster_dash_server.notices.notifiers.alertmanager import Alertmanager
from cluster_dash_server.notices.receivers import Receiver
from cluster_dash_server.notices.wording import Wording
from tests.post_office import HookServer, MailServer
from tests.processes import BIN, TOP, Process, free_port, start_server, wait_until

COUNT = 36


@pytest.mark.timeout(400)
def test_receivers_off_for_six_hours_and_two_kills_lose_nothing_and_double_little(tmp_path: Path) -> None:
    mail_port, hook_port = free_port(), free_port()

    def start(until: float, *dies: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [
                *(sys.executable, str(TOP / "tests" / "delivery_process.py")),
                *(str(tmp_path), str(mail_port), str(hook_port), str(until), *dies),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with start(9) as first:
        assert first.stdout is not None
        assert any(line == "hour 3\n" for line in first.stdout)
        first.kill()  # somewhere in the fourth hour
    with start(9, "n20") as second:
        assert second.stdout is not None
        assert second.stdin is not None
        assert any(line == "hour 6\n" for line in second.stdout)
        with MailServer(mail_port) as mail, HookServer(hook_port) as hook:
            second.stdin.write("\n")
            second.stdin.flush()
            assert second.wait(150) == -9, "it was killed between the mail server's yes and its own note of it"
            with start(9) as third:
                assert third.wait(150) == 0
    mails = Counter(str(message["Subject"]).rpartition(" ")[2] for _, message in mail.mails)
    posts = Counter(str(post["key"]) for post in hook.posts)
    assert mails == {str(number): 2 if number == 20 else 1 for number in range(COUNT)}
    assert set(posts) == {f"n{number}" for number in range(COUNT)}
    assert max(posts.values()) <= 2
    assert posts.total() <= COUNT + 1
    twice = [message for _, message in mail.mails if str(message["Subject"]).endswith(" 20")]
    assert twice[0]["Message-ID"] == twice[1]["Message-ID"], "its reader's server can drop the second"


def settings(folder: Path, mail: MailServer, hook: HookServer) -> Path:
    (folder / "secret").write_text("of the site\n")
    file = folder / "server.toml"
    file.write_text(f"""
[server]
data = "{folder / "data"}"
[alerts]
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
secret_file = "{folder / "secret"}"
allow_private = true
[alerts.receivers.away]
kind = "webhook"
url = "http://127.0.0.1:{free_port()}/s3cret-path"
allow_private = true
""")
    return file


def tried(file: Path) -> list[str] | None:
    """Have a test message sent; return what was said, None where something came of it later only."""
    command = [str(BIN / "cluster-dash-server"), "notify-test", "-c", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    return None if "not yet" in run.stdout else run.stdout.splitlines()


def test_the_test_message_reaches_real_receivers_and_says_who_was_not_reached(tmp_path: Path) -> None:
    with MailServer() as mail, HookServer() as hook:
        file = settings(tmp_path, mail, hook)
        with start_server("-c", file) as server:
            said = wait_until(lambda: tried(file), seconds=60)  # it waits eight seconds for an outcome, and no longer
            assert said[:2] == ["admins: has it", "hook: has it"]
            assert said[2].startswith("away: did not take it: 127.0.0.1:")
            with urllib.request.urlopen(f"{server.url}/readyz", timeout=60) as answer:
                assert json.load(answer)["failing"] == [{"part": "notices", "why": "1 receiver does not take them"}]
            with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
                assert b"cluster_dash_receivers_failing 1\n" in answer.read()
            with urllib.request.urlopen(server.url, timeout=60) as answer:
                assert b"Notices do not reach away: " in answer.read()
            assert b"s3cret" not in server.output
    to, message = mail.mails[0]
    assert to == ("admin@lab.example",)
    assert message["Subject"] == "[cluster] test: This is a test of alerts"
    post = hook.posts[0]
    assert (post["kind"], post["title"]) == ("test", "This is a test of alerts")
    assert hook.headers[0]["webhook-signature"].startswith("v1,")


def test_a_test_without_a_server_says_so(tmp_path: Path) -> None:
    run = subprocess.run(
        [BIN / "cluster-dash-server", "notify-test", "--data", tmp_path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 69
    assert "no server answers" in run.stderr


@pytest.mark.needs("prometheus-alertmanager")
def test_a_real_alertmanager_takes_firing_and_resolved(tmp_path: Path) -> None:
    with HookServer() as hook:
        config = tmp_path / "alertmanager.yml"
        config.write_text(
            "route: {receiver: r, group_by: ['...'], group_wait: 0s, group_interval: 1s}\n"
            f"receivers: [{{name: r, webhook_configs: [{{url: 'http://127.0.0.1:{hook.port}/'}}]}}]\n"
        )
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = ["prometheus-alertmanager", f"--config.file={config}", f"--storage.path={tmp_path / 'data'}"]
        with Process([*command, f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]):
            wait_until(lambda: is_ready(url), seconds=60)
            notifier = Alertmanager(
                Receiver(name="am", kind="alertmanager", url=f"{url}/", allow_private=True),
                Wording(site="lab", zone=UTC),
            )
            began_at = wait_until(lambda: now_of(url))
            notifier.send(notice("firing", began_at - 60, None))
            notifier.send(notice("firing", began_at - 60, None))
            (alert,) = wait_until(lambda: alerts(url), seconds=60)
            assert alert["labels"] == {
                **{"alertname": "gpu-error", "severity": "critical", "site": "lab", "alert": "a1"},
                **{"host": "gpu03", "gpu": "2", "_0rack": "r1"},
            }
            assert alert["annotations"]["summary"] == "gpu03 GPU 2: in error"
            assert alert["annotations"]["next_step"] == "drain the node"
            assert alert["generatorURL"] == "https://dash.lab/alerts#a1"
            wait_until(lambda: hook.posts, seconds=60)
            notifier.repeat([notice("firing", began_at - 60, None)])
            assert len(alerts(url)) == 1, "it knows that it is the same"
            notifier.send(notice("resolved", began_at - 60, began_at))
            wait_until(lambda: len(hook.posts) > 1, seconds=60)
            assert [post["status"] for post in hook.posts] == ["firing", "resolved"]
            wait_until(lambda: not alerts(url), seconds=60)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def alerts(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/api/v2/alerts", timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)
        return found


def now_of(url: str) -> float:
    """Return the time by the Alertmanager's clock, to the second."""
    with urllib.request.urlopen(f"{url}/-/ready", timeout=60) as answer:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()


def notice(kind: Kind, begun_at: float, ended_at: float | None) -> Notice:
    return Notice(
        key=f"a1:{kind}:1",
        kind=kind,
        alert="a1",
        rule="gpu-error",
        severity="critical",
        title="gpu03 GPU 2: in error",
        facts=(("what", "fallen off the bus"), ("next step", "drain the node")),
        text="",
        link="https://dash.lab/alerts#a1",
        actions=(),
        labels={"host": "gpu03", "gpu": "2", "0rack": "r1", "empty": ""},
        begun_at=begun_at,
        ended_at=ended_at,
    )
