from dataclasses import fields
from pathlib import Path

import pytest

from cluster_dash_mole.config import SECTIONS, Config, ConfigError, find, load

HALF = Path(__file__).parents[1]
FIRST_VERSION = """
[Poll_Settings]
poll_interval_in_secs = 300

[Json_Sender_Logger]
use = true
min_interval_in_secs = 5
address_in = "http://dash:8080"
auth_code = "s3cret"

[Google_Sheets_Logger]
use = false
min_interval_in_secs = 600
service_account_file_path = "account.json"
spreadsheets_id = "1abc"
worksheet_name = "!hostname"

[StdOut_Logger]
use = false
min_interval_in_secs = 5
"""


def config(tmp_path: Path, text: str, **environ: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load(path, environ)


def refused(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text, **environ)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_file_of_the_first_version_loads(tmp_path: Path) -> None:
    loaded = config(tmp_path, FIRST_VERSION)
    assert loaded.poll.poll_interval_in_secs == 300
    assert (loaded.json_sender.use, loaded.json_sender.auth_code) == (True, "s3cret")
    assert loaded.google_sheets.worksheet_name == "!hostname"


def test_what_is_not_said_has_the_old_defaults(tmp_path: Path) -> None:
    loaded = config(tmp_path, "")
    assert (loaded.poll.poll_interval_in_secs, loaded.json_sender.min_interval_in_secs) == (300, 5)
    assert [loaded.json_sender.use, loaded.stdout.use, loaded.google_sheets.use] == [False] * 3


@pytest.mark.parametrize("name", ["config.toml", "config_example-host.toml"])
def test_the_files_we_ship_load_and_say_five_seconds(name: str, tmp_path: Path) -> None:
    text = (HALF / name).read_text().replace('auth_code_file = "/etc/cluster-dash/auth_code"', "")
    loaded = config(tmp_path, text)
    assert loaded.poll.poll_interval_in_secs == 5
    assert loaded.json_sender.use


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[Poll_Settings]\npoll_interval_in_secs = "5s"',
            'config.toml: Poll_Settings.poll_interval_in_secs: got "5s", expected a number >= 1 and <= 86400',
        ),
        (
            "[Poll_Settings]\npoll_interval_in_secs = true",
            "config.toml: Poll_Settings.poll_interval_in_secs: got true, expected a number >= 1 and <= 86400",
        ),
        (
            "[Poll_Settings]\npoll_interval_in_secs = nan",
            "config.toml: Poll_Settings.poll_interval_in_secs: got NaN, expected a number >= 1 and <= 86400",
        ),
        (
            "[Poll_Settings]\npoll_intervall_in_sec = 5",
            "config.toml: Poll_Settings.poll_intervall_in_sec: unknown key, did you mean poll_interval_in_secs?",
        ),
        ("[PollSettings]", "config.toml: unknown section [PollSettings], did you mean Poll_Settings?"),
        ("[Slrum]\nuse = true", "config.toml: unknown section [Slrum], did you mean Slurm?"),
        ("Labels = 5", "config.toml: Labels: expected a section [Labels]"),
        (
            "[[Json_Sender_Logger]]\nauth_code = 'hunter2'",
            "config.toml: Json_Sender_Logger: expected a section [Json_Sender_Logger], once and in single brackets",
        ),
        ("[Labels]\nrack = 5", "config.toml: Labels.rack: got 5, expected text of at most 256 characters"),
        (
            '[StdOut_Logger]\nuse = "yes"',
            'config.toml: StdOut_Logger.use: got "yes", expected true or false',
        ),
        (
            '[Json_Sender_Logger]\nuse = true\naddress_in = "dash:8080"',
            'config.toml: Json_Sender_Logger.address_in: got "dash:8080", expected an http:// or https:// address',
        ),
    ],
)
def test_a_mistake_is_told_with_file_key_got_and_wanted(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == message


def test_what_is_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    assert refused(tmp_path, "[Poll_Settings\n").startswith("config.toml: not TOML: ")
    assert "line 1" in refused(tmp_path, "[Poll_Settings\n")


def test_a_secret_of_the_wrong_type_is_not_told(tmp_path: Path) -> None:
    assert refused(tmp_path, "[Json_Sender_Logger]\nauth_code = 12345678") == (
        "config.toml: Json_Sender_Logger.auth_code: got something else, expected text"
    )


def test_a_section_that_is_none_is_told_as_such_beside_a_variable_for_it(tmp_path: Path) -> None:
    wrong = "config.toml: Json_Sender_Logger: expected a section [Json_Sender_Logger]"
    assert refused(tmp_path, "Json_Sender_Logger = 5", CLUSTER_DASH_JSON_SENDER_LOGGER__USE="true") == wrong


def test_a_secret_shows_in_no_repr(tmp_path: Path) -> None:
    assert "s3cret" not in repr(config(tmp_path, FIRST_VERSION))


def test_a_secret_from_a_file_goes_before_one_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "code").write_text("from the file\n")
    loaded = config(tmp_path, FIRST_VERSION, CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE_FILE=str(tmp_path / "code"))
    assert loaded.json_sender.auth_code == "from the file"


def test_a_secret_that_cannot_be_read_refuses_the_start(tmp_path: Path) -> None:
    text = '[Json_Sender_Logger]\nauth_code_file = "/nowhere/code"'
    assert refused(tmp_path, text) == (
        "config.toml: Json_Sender_Logger.auth_code_file: /nowhere/code: cannot be read: No such file or directory"
    )
    (tmp_path / "empty").write_text("\n")
    assert "got nothing" in refused(tmp_path, f'[Json_Sender_Logger]\nauth_code_file = "{tmp_path / "empty"}"')


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    loaded = config(
        tmp_path,
        FIRST_VERSION,
        CLUSTER_DASH_POLL_SETTINGS__POLL_INTERVAL_IN_SECS="2.5",
        CLUSTER_DASH_STDOUT_LOGGER__USE="true",
        CLUSTER_DASH_LABELS__RACK="r1",
        CLUSTER_DASH_SERVER__PORT="the other half's",
        CLUSTER_DASH_CONFIG="no section",
    )
    assert (loaded.poll.poll_interval_in_secs, loaded.stdout.use, loaded.labels) == (2.5, True, {"rack": "r1"})


def test_the_environment_is_checked_as_the_file_is(tmp_path: Path) -> None:
    assert 'got "soon"' in refused(tmp_path, "", CLUSTER_DASH_POLL_SETTINGS__POLL_INTERVAL_IN_SECS="soon")
    assert "did you mean use?" in refused(tmp_path, "", CLUSTER_DASH_STDOUT_LOGGER__USES="true")


def test_the_file_of_the_full_name_goes_before_the_short_ones_and_the_common_one(tmp_path: Path) -> None:
    for name in ("config.toml", "config_gpu01.toml", "config_gpu01.lab.toml"):
        (tmp_path / name).write_text("")
        assert find(tmp_path, "gpu01.lab") == tmp_path / name


def test_what_is_typed_on_a_host_means_the_file_of_its_unit_unless_the_folder_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_unit = tmp_path / "etc" / "mole.toml"
    of_the_unit.parent.mkdir()
    of_the_unit.write_text("")
    monkeypatch.setattr("cluster_dash_mole.config.OF_THE_UNIT", of_the_unit)
    assert find(tmp_path, "gpu01.lab") == of_the_unit
    (tmp_path / "config.toml").write_text("")
    assert find(tmp_path, "gpu01.lab") == tmp_path / "config.toml"


def test_without_a_file_the_names_looked_for_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config_gpu01\.lab\.toml or config_gpu01\.toml or config\.toml"):
        find(tmp_path, "gpu01.lab")


def test_every_setting_carries_help() -> None:
    for kind in SECTIONS.values():
        assert all(setting.metadata["help"] for setting in fields(kind))
