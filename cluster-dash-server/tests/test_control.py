"""Commands to a running server: who may, what they forget, what is said where none runs."""

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server import cli, control
from cluster_dash_server.access.tokens import TokenFile, Tokens
from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.app import create_app
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.control import Control, ControlError, Forget, ask, find_data_folder, forget
from cluster_dash_server.events import EventLog
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.settings import Settings
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import StoreError

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
NOW = 1_700_000_000.0


@pytest.fixture
def events() -> EventLog:
    return EventLog(Thresholds())


@pytest.fixture
def cluster(events: EventLog, make_seen: MakeSeen, make_gpu: MakeGpu) -> Cluster:
    cluster = Cluster(Thresholds(), witness=events.witness)
    for name, silent in (("gpu01", 0), ("gpu02", 3600), ("gpu12", 86_400), ("login", 86_400)):
        both = [make_gpu(0), make_gpu(1)]
        cluster.offer(make_seen(name, both, events=[{"kind": "note"}], received_at=NOW - silent))
    cluster.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW))
    return cluster


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d")


@pytest.fixture
def running(cluster: Cluster, events: EventLog, folder: Path) -> Control:
    server = Control(folder, cluster, events, lambda: NOW, tokens_of(folder), MemoryStore(lambda: NOW), Slurm())
    server.start()
    return server


def tokens_of(folder: Path) -> Tokens:
    return Tokens(TokenFile(folder), lambda: NOW)


def names(cluster: Cluster) -> list[str]:
    return [host.host for host in cluster.hosts(NOW)]


@pytest.mark.parametrize(
    ("wish", "left"),
    [
        ({"hosts": "gpu01"}, ["gpu02", "gpu12", "login"]),
        ({"hosts": "gpu[01-02],login"}, ["gpu12"]),
        ({"hosts": "gpu*"}, ["login"]),
        ({"hosts": "gpu*", "silent_for_seconds": 3600}, ["gpu01", "login"]),
        ({"hosts": "*", "silent_for_seconds": 3601}, ["gpu01", "gpu02"]),
        ({"hosts": "gpu?"}, ["gpu01", "gpu02", "gpu12", "login"]),
    ],
)
def test_the_hosts_that_are_meant_are_forgotten_with_their_events(
    cluster: Cluster, events: EventLog, wish: dict[str, Any], left: list[str]
) -> None:
    before = names(cluster)
    assert forget(Forget(**wish), cluster, events, NOW) == [name for name in before if name not in left]
    assert names(cluster) == left
    assert {event.host for event in events.newest()} == set(left)


def test_a_host_whose_name_reads_as_no_hostlist_is_forgotten_by_it(
    cluster: Cluster, events: EventLog, make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    cluster.offer(make_seen("gpu[1", [make_gpu(0)], received_at=NOW))
    assert forget(Forget(hosts="gpu[1"), cluster, events, NOW) == ["gpu[1"]
    assert names(cluster) == ["gpu01", "gpu02", "gpu12", "login"]


def test_a_missing_gpu_is_forgotten_and_a_present_one_is_not(
    cluster: Cluster, events: EventLog, make_gpu: MakeGpu
) -> None:
    assert forget(Forget(hosts="*", gpu=make_gpu(1)["uuid"]), cluster, events, NOW) == ["gpu01"]
    assert forget(Forget(hosts="*", gpu=make_gpu(0)["uuid"]), cluster, events, NOW) == []
    assert [len(host.gpus) for host in cluster.hosts(NOW)] == [1, 2, 2, 2]


def test_a_command_reaches_the_running_server(running: Control, cluster: Cluster, folder: Path) -> None:
    assert ask(folder, {"forget": {"hosts": "gpu01"}}) == {"success": True, "forgotten": ["gpu01"]}
    assert names(cluster) == ["gpu02", "gpu12", "login"]
    assert ask(folder, {"forget": {"hosts": "gpu[3-1]"}})["msg"] == "[3-1] runs backwards"
    assert ask(folder, {"forget": {"hosts": "gpu[01-"}})["msg"].startswith("gpu[01-: its bracket is not closed")


def test_a_user_is_forgotten_by_the_running_server_in_what_is_live_and_what_is_kept(
    running: Control, folder: Path, cluster: Cluster, make_seen: MakeSeen, make_gpu: MakeGpu, events: EventLog
) -> None:
    processes = {"4711": {"command": "/home/zoe/run", "used_mem": 100}}
    gpu = {**make_gpu(0), "users": {"zoe": processes, "bob": processes}}
    note = {"kind": "note", "text": "zoe left", "timestamp": NOW}
    cluster.offer(make_seen("gpu03", [gpu, make_gpu(1)], events=[note], received_at=NOW - 1))
    cluster.offer(make_seen("gpu03", [gpu], received_at=NOW))
    before = cluster.host("gpu01", NOW)
    assert ask(folder, {"forget_user": {"user": "zoe", "begin": True}})["unnamed"]["hosts_left"] == 0
    now = cluster.host("gpu03", NOW)
    assert now is not None
    assert now.gpus[0].gpu.users == {"unknown": 1, "bob": 1}
    (gpu_now,) = now.seen.snapshot["gpu"].values()
    assert "zoe" not in str(gpu_now), "nor in what others run"
    assert len(now.gpus) == 2, "what is missing stays missing"
    assert [event.text for event in events.newest(["gpu03"]) if event.kind == "note"] == ["unknown left"]
    after = cluster.host("gpu01", NOW)
    assert before is not None
    assert after is not None
    assert after.seen is before.seen


def test_a_part_that_cannot_forget_a_user_now_is_named_and_a_repeat_does_the_rest(
    running: Control,
    folder: Path,
    cluster: Cluster,
    make_seen: MakeSeen,
    make_gpu: MakeGpu,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster.offer(make_seen("gpu03", [{**make_gpu(0), "users": {"zoe": {"4711": {"used_mem": 100}}}}], received_at=NOW))
    is_away = [True]
    forgotten: list[str] = []

    def forget_in_alerts(user: str) -> None:
        if is_away[0]:
            raise BookError("alerts cannot be kept: the database dash at db: Connection refused")
        forgotten.append(user)

    running.forgets["alerts"] = forget_in_alerts
    running.forgets["who waits"] = forgotten.append
    told = ask(folder, {"forget_user": {"user": "zoe", "begin": True}})
    assert told == {
        "success": False,
        "msg": "taken out of the live view, who waits, history; still to be done: alerts: alerts cannot be kept: the "
        "database dash at db: Connection refused. The same command again does the rest",
    }
    assert forgotten == ["zoe"]
    assert "not forgotten everywhere yet: alerts: " in caplog.text
    host = cluster.host("gpu03", NOW)
    assert host is not None
    assert host.gpus[0].gpu.users == {"unknown": 1}
    is_away[0] = False
    assert ask(folder, {"forget_user": {"user": "zoe", "begin": True}})["unnamed"]["hosts_left"] == 0
    assert forgotten == ["zoe"] * 3


def test_history_that_cannot_say_how_far_it_is_is_named(
    running: Control, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(history: MemoryStore, user: str) -> None:
        raise StoreError("the ledger cannot be read: the database dash at db: Connection refused")

    monkeypatch.setattr(MemoryStore, "unnamed", away)
    left = "still to be done: history: the ledger cannot be read: the database dash at db: Connection refused"
    for begin, so_far in ((True, "taken out of the live view; "), (False, "")):
        told = ask(folder, {"forget_user": {"user": "zoe", "begin": begin}})
        assert told["msg"] == f"{so_far}{left}. The same command again does the rest"


def test_only_the_server_s_user_may_open_the_socket(running: Control, folder: Path) -> None:
    assert stat.S_IMODE((folder / control.SOCKET).stat().st_mode) == 0o600


@pytest.mark.parametrize(("uid", "may"), [(0, True), (os.geteuid(), True), (os.geteuid() + 7, False)])
def test_whose_process_asks_is_checked(running: Control, cluster: Cluster, uid: int, may: bool) -> None:
    answer = running.answer(b'{"forget": {"hosts": "gpu01"}}', uid)
    assert (answer["success"], "gpu01" in names(cluster)) == (may, not may)


def test_the_kernel_says_whose_process_asks(running: Control, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def refuse(control: Control, line: bytes, uid: int) -> dict[str, object]:
        seen.append(uid)
        return {"success": False, "refused": True, "msg": "no"}

    monkeypatch.setattr(Control, "answer", refuse)
    with pytest.raises(ControlError) as error:
        ask(folder, {})
    assert (seen, error.value.refused) == ([os.geteuid()], True)


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{", b"[]\n", b"7\n", b'{"forget": 7}\n', b'{"forget": {"x": 1}}\n', b"\xff\n"]
)
def test_a_line_that_is_no_command_is_answered(running: Control, folder: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / control.SOCKET))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        assert json.loads(connection.makefile("rb").readline())["success"] is False
    assert ask(folder, {"forget": {"hosts": "nowhere"}})["success"] is True


def test_a_socket_that_a_killed_server_left_is_taken_over(cluster: Cluster, events: EventLog, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / control.SOCKET))
    Control(folder, cluster, events, lambda: NOW, tokens_of(folder), MemoryStore(lambda: NOW), Slurm()).start()
    assert ask(folder, {"forget": {"hosts": "gpu01"}})["success"] is True


def test_a_second_server_leaves_the_first_its_socket(
    running: Control, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Cluster(Thresholds())
    Control(
        folder, other, EventLog(Thresholds()), lambda: NOW, tokens_of(folder), MemoryStore(lambda: NOW), Slurm()
    ).start()
    assert "another server listens there" in caplog.text
    assert ask(folder, {"forget": {"hosts": "gpu01"}})["forgotten"] == ["gpu01"]


def test_a_server_that_cannot_listen_serves_without(
    cluster: Cluster, events: EventLog, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").touch()
    Control(folder / "file", cluster, events, lambda: NOW, tokens_of(folder), MemoryStore(lambda: NOW), Slurm()).start()
    Control(
        folder / ("x" * 120), cluster, events, lambda: NOW, tokens_of(folder), MemoryStore(lambda: NOW), Slurm()
    ).start()
    assert caplog.text.count("cannot reach this server") == 2


def test_the_data_folder_is_the_one_named_else_systemd_s_else_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    environment = {"STATE_DIRECTORY": "/var/lib/cluster-dash:/other", "XDG_STATE_HOME": "/s"}
    assert find_data_folder("/data", environment) == Path("/data")
    assert find_data_folder(None, environment) == Path("/var/lib/cluster-dash")
    assert find_data_folder(None, {"XDG_STATE_HOME": "/s"}) == Path("/s/cluster-dash")
    assert find_data_folder(None, {}) == Path("/home/ada/.local/state/cluster-dash")


# -------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_what_was_forgotten(
    running: Control, folder: Path, capsys: pytest.CaptureFixture[str], make_gpu: MakeGpu
) -> None:
    uuid = str(make_gpu(1)["uuid"])
    assert cli.main(["forget", "gpu01", "--gpu", uuid, "--data", str(folder)]) == 0
    assert cli.main(["forget", "*", "--silent-for", "1d", "--data", str(folder)]) == 0
    assert capsys.readouterr().out == f"forgot gpu01 GPU {uuid}\nforgot gpu12\nforgot login\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 1, "nowhere: no such host is known"),
        (["gpu01", "--silent-for", "1w"], 1, "no such host is known that is silent for so long"),
        (["gpu01", "--gpu", "GPU-x"], 1, "no such GPU is missing"),
        (["gpu[9-1]"], 2, "[9-1] runs backwards"),
    ],
)
def test_the_command_says_why_nothing_was_forgotten(
    running: Control, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert cli.main(["forget", *arguments, "--data", str(folder)]) == code
    assert said in capsys.readouterr().err


def test_without_a_server_there_is_nothing_to_forget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["forget", "gpu01", "--data", str(folder)]) == 69
    said = capsys.readouterr().err
    assert "no server answers" in said
    assert "it takes a running server" in said


def test_a_user_who_may_not_is_told_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "connect", closed)
    assert cli.main(["forget", "gpu01", "--data", str(folder)]) == 77
    assert "only root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["serve", "--server", "foo"], 78),
        (["serve", "--nonsense"], 78),
        (["--log-format", "xml", "serve"], 78),
        (["forget", "serve", "--nonsense"], 2),
        (["serv"], 2),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_that_of_serve_with_78(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended: object = cli.main(arguments)
    except SystemExit as end:
        ended = end.code
    assert (ended, "error: " in capsys.readouterr().err) == (code, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["forget", ""],
        ["summary", "--data="],
        ["check-config", "-c", ""],
        ["token", "new", "--host", ""],
        ["backup", ""],
        ["export", "events", "--host", ""],
    ],
)
def test_an_empty_value_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "got an empty value: a variable that is not set?" in capsys.readouterr().err


@pytest.mark.parametrize("span", ["7", "d", "-7d", "1y", "7 d"])
def test_a_span_needs_its_unit(span: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["forget", "gpu01", f"--silent-for={span}"])
    assert ended.value.code == 2
    assert "such as 90s, 12h or 7d" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["token", "new", "--enrol", "--max", "x"], "--max: got 'x', expected a whole number from 1 to 100000"),
        (["export", "figures", "--step", "inf"], "--step: got 'inf', expected a whole number from 1 to 31536000"),
        (["export", "figures", "--step", "9" * 5000], "99', expected a whole number from 1 to 31536000"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_wrong_number_is_refused_with_its_option_and_what_it_may_be(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("port", ["abc", "99999", "-1", ""])
def test_a_wrong_port_is_a_fault_of_configuration_after_which_a_unit_starts_nothing_again(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", f"--port={port}"]) == 78
    assert f"--port: got {port!r}, expected a whole number from 0 to 65535" in capsys.readouterr().err


def test_an_application_that_others_serve_opens_its_socket_with_the_first_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STATE_DIRECTORY", str(folder))
    app = create_app()
    assert not (folder / control.SOCKET).exists()
    app.test_client().get("/healthz")
    assert ask(folder, {"forget": {"hosts": "gpu01"}})["success"] is True


def test_an_application_with_given_settings_leaves_it_to_who_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(folder))
    app = create_app(Settings())
    app.test_client().get("/healthz")
    assert not (folder / control.SOCKET).exists()
    app.extensions["control"].start()
    assert (folder / control.SOCKET).exists()


def test_tokens_are_made_listed_and_revoked_by_the_running_server(running: Control, folder: Path) -> None:
    made = ask(folder, {"token": {"new": {"kind": "host", "hosts": "gpu01"}}})
    assert made["token"].startswith("cdh_")
    (listed,) = ask(folder, {"token": {"list": {}}})["tokens"]
    assert (listed["hosts"], listed["revoked_at"], "digest" in listed) == ("gpu01", None, False)
    assert ask(folder, {"token": {"revoke": "gpu01"}}) == {"success": True, "revoked": [listed["id"]]}
    assert ask(folder, {"token": {"revoke": "gpu01"}})["success"] is False
    assert ask(folder, {"token": {"frobnicate": 1}})["msg"].startswith("this server does not know the command")
