"""What `check-config` says of the settings in force."""

import json
import logging
from pathlib import Path

import pytest

from cluster_dash_server.cli import EXIT_USAGE, main
from cluster_dash_server.commands.check_config import report
from cluster_dash_server.settings import read


def test_each_setting_that_is_no_default_comes_with_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('[server]\nport = 9000\nhost = "127.0.0.1"\n[viewers]\ntrusted_hosts = ["a"]\n')
    reading = read(
        file,
        environment={"CLUSTER_DASH_SITE__NAME": "ö", "CLUSTER_DASH_SERVER__PORT": "9001"},
        site={"PASSCODE": "hidden"},
        site_file="/site/config.py",
    )
    assert report(reading).splitlines() == [
        f"file in force: {file}",
        "server.port = 9001              # CLUSTER_DASH_SERVER__PORT",
        'ingest.passcode = "***"         # /site/config.py',
        f'viewers.trusted_hosts = ["a"]   # {file}',
        'site.name = "ö"                 # CLUSTER_DASH_SITE__NAME',
        "all other settings are at their defaults",
    ]


def test_a_passcode_file_is_the_origin_of_its_passcode(tmp_path: Path) -> None:
    secret = tmp_path / "passcode"
    secret.write_text("hidden")
    told = report(read(environment={"CLUSTER_DASH_INGEST__PASSCODE_FILE": str(secret)}))
    assert 'ingest.passcode = "***"' in told
    assert f"# {secret}" in told
    assert "hidden" not in told


def test_the_address_of_a_redis_may_hold_a_password_and_is_not_shown() -> None:
    told = report(
        read(environment={"CLUSTER_DASH_LIVE__KIND": "redis", "CLUSTER_DASH_LIVE__URL": "redis://:hidden@redis/0"})
    )
    assert 'live.url = "***"' in told
    assert "hidden" not in told


def test_the_address_of_a_database_holds_a_password_and_is_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://dash:hidden@db/dash")
    told = report(
        read(
            environment={
                "CLUSTER_DASH_LEDGER__KIND": "postgresql",
                "CLUSTER_DASH_LEDGER__URL_FILE": str(secret),
            }
        )
    )
    assert 'ledger.url = "***"' in told
    assert "hidden" not in told


def test_without_any_setting_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert report(read(environment={})) == "file in force: none\nall settings are at their defaults\n"


def test_the_command_prints_it_and_ends_with_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text("PASSCODE = 'hidden'\n")
    assert main(["check-config"]) == 0
    assert f'ingest.passcode = "***"   # {tmp_path / "config.py"}' in capsys.readouterr().out


def test_a_setting_that_cannot_be_used_ends_it_with_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "server.toml"
    file.write_text("[sever]\n")
    assert main(["check-config", "-c", str(file)]) == 78
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{file}: unknown section [sever], did you mean [server]?" in told.err


def test_receivers_are_told_key_by_key_and_their_secrets_never(tmp_path: Path) -> None:
    (tmp_path / "hook").write_text("https://hooks.lab/s3cret\n")
    file = tmp_path / "server.toml"
    file.write_text(f"""
[alerts]
mail_password = "s3cret"
[alerts.receivers.chat]
kind = "webhook"
url_file = "{tmp_path / "hook"}"
severity = "critical"
""")
    told = report(read(file, environment={"CLUSTER_DASH_ALERTS__RECEIVERS__CHAT__TOKEN": "s3cret"}))
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert f'alerts.receivers.chat.severity = "critical" # {file}' in lines
    assert f'alerts.receivers.chat.url = "***" # {file}' in lines
    assert 'alerts.receivers.chat.token = "***" # CLUSTER_DASH_ALERTS__RECEIVERS__CHAT__TOKEN' in lines
    assert f'alerts.mail_password = "***" # {file}' in lines
    assert "s3cret" not in told


def test_a_receiver_of_a_rule_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "server.toml"
    hook = '[alerts.receivers.hook]\nkind = "webhook"\nurl = "https://hooks.lab/"\n'
    file.write_text(f'{hook}rules = ["gpu-error", "host-silence"]\n')
    assert main(["check-config", "-c", str(file)]) == 78
    said = capsys.readouterr().err
    assert "alerts.receivers.hook.rules: no rule is called host-silence, did you mean host-silent?" in said
    file.write_text(f'{hook}rules = ["gpu-error", "host-silent"]\n')
    assert main(["check-config", "-c", str(file)]) == 0


def test_the_data_folder_of_the_command_line_is_the_one_that_is_told_and_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "kept"
    assert main(["check-config", "--data", str(folder)]) == 0
    assert f'server.data = "{folder}"   # --data' in capsys.readouterr().out
    main(["doctor", "--data", str(folder)])
    assert f" data folder: {folder}" in capsys.readouterr().out


def test_how_to_log_may_stand_before_the_command_and_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["-v", "--log-format", "json", "forget"], ["forget", "-v", "--log-format", "json"]):
        assert main(line) == EXIT_USAGE
        assert json.loads(capsys.readouterr().err)["msg"] == "name a HOST, or --user NAME"
        assert logging.getLogger().level == logging.DEBUG
