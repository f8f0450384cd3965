"""The settings: found, checked, and refused in words."""

import dataclasses
import re
from pathlib import Path

import pytest

from cluster_dash_server import app, site
from cluster_dash_server.history.remote.engine import access_of
from cluster_dash_server.settings import ConfigError, Settings, find_file, load, read_server


@pytest.fixture
def server_toml(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def test_without_any_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(environment={}) == Settings()


def test_a_file_the_environment_and_config_py_are_read_in_this_order(server_toml: Path) -> None:
    server_toml.write_text('[server]\nport = 9000\nhost = "::1"\n[states]\nbusy_percent = 7.5\n')
    settings = load(server_toml, environment={"CLUSTER_DASH_SERVER__PORT": "9001"}, site={"PASSCODE": "of config.py"})
    assert (settings.server.port, settings.server.host, settings.states.busy_percent) == (9001, "::1", 7.5)
    assert settings.ingest.passcode == "of config.py"
    server_toml.write_text('[ingest]\npasscode = "of the file"\n')
    assert load(server_toml, environment={}, site={"PASSCODE": "x"}).ingest.passcode == "of the file"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("", 'history.write_url: kind = "remote" needs it: http://vm:8428/api/v1/write'),
        (
            'write_url = "http://m/api/v1/push"',
            "history.read_url: is needed where write_url does not end with /api/v1/write",
        ),
        ('write_url = "vm:8428/api/v1/write"', "history.write_url: expected http:// or https:// and a host"),
        ('write_url = "http://a:b@vm/api/v1/write"', "history.write_url: expected no user and password in it"),
        (
            'write_url = "http://vm/api/v1/write"\nheaders = ["X-Scope-OrgID: a", "secret"]',
            "history.headers: no. 2: expected",
        ),
        (
            'write_url = "http://vm/api/v1/write"\nbearer_file = "/no/such"',
            "history.bearer_file: /no/such: cannot be read",
        ),
        (
            'write_url = "http://vm/api/v1/write"\nflush_seconds = 0',
            "history.flush_seconds: got 0, expected a number >= 0.1",
        ),
    ],
)
def test_an_engine_that_could_not_be_spoken_to_is_refused_in_words(lines: str, problem: str, server_toml: Path) -> None:
    server_toml.write_text(f'[history]\nkind = "remote"\n{lines}\n')
    with pytest.raises(ConfigError, match=re.escape(problem)) as refusal:
        load(server_toml, environment={})
    assert str(refusal.value).startswith(f"{server_toml}: ")
    assert "secret" not in str(refusal.value)


def test_where_an_engine_is_read_follows_from_where_it_is_written(server_toml: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of a test\n")
    server_toml.write_text(
        f'[history]\nkind = "remote"\nwrite_url = "https://vm/x/api/v1/write"\nbearer_file = "{token}"\n'
        'headers = ["X-Scope-OrgID: lab"]\n'
    )
    access = access_of(load(server_toml, environment={}).history)
    assert (access.read_url, access.headers, access.bearer_file) == (
        "https://vm/x",
        (("X-Scope-OrgID", "lab"),),
        token,
    )


def test_other_names_in_the_environment_are_nobody_s_business() -> None:
    environment = {
        "CLUSTER_DASH_FOO": "1",
        "CLUSTER_DASH_POLL_SETTINGS__X": "1",
        "CLUSTER_DASH_VIEWERS__TRUSTED_HOSTS": "a, b",
    }
    assert load(environment=environment).viewers.trusted_hosts == ("a", "b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sever]\nport = 1", "unknown section [sever], did you mean [server]?"),
        ("[server]\nprot = 1", "server: unknown key prot, did you mean port?"),
        ("[server]\nport = '9000'", "server.port: got '9000', expected a whole number >= 0 and <= 65535"),
        ("[server]\nport = 70000", "server.port: got 70000, expected a whole number >= 0 and <= 65535"),
        ("[server]\nport = true", "server.port: got True, expected a whole number"),
        ("[states]\nbusy_percent = -1", "states.busy_percent: got -1, expected a number >= 0 and <= 100"),
        ("[states]\nheld_seconds = inf", "states.held_seconds: got inf, expected a number >= 0"),
        ("[relay]\nto = 'dash.example.org'", "relay.to: got an address of another form, expected https://HOST"),
        ("[relay]\nto = 'https://me:secret@dash'", "relay.to: got an address of another form, expected https://HOST"),
        ("[relay]\nto = 'https://dash:99999'", "relay.to: got an address of another form, expected https://HOST"),
        ("[relay]\nto = 'http://dash.lab'", "relay.to: got 'http://dash.lab', and the secrets of all hosts would"),
        ("[relay]\nlines = 101", "relay.lines: got 101, expected a whole number >= 1 and <= 100"),
        ("[server]\npublic_url = 'lab/dash'", "server.public_url: got 'lab/dash', expected http://"),
        ("[server]\npublic_url = 'http://[x'", "server.public_url: got 'http://[x', expected http://"),
        ("[server]\nserver = 'apache'", "server.server: got 'apache', expected waitress or granian"),
        ("[site]\ntimezone = 'Mars'", "site.timezone: got 'Mars', expected a time zone such as Europe/Berlin"),
        ("[server]\nhost = ''", "server.host: got '', expected a text"),
        ("[ingest]\npasscode = 12345", "ingest.passcode: got ***, expected a text"),
        ("[viewers]\ntrusted_hosts = 'a'", "viewers.trusted_hosts: got 'a', expected a list of texts"),
        ("server = 1", "server: expected a section [server]"),
        ("[[alerts]]", "alerts: expected a section [alerts], once and in single brackets"),
        ("[server", "not TOML"),
    ],
)
def test_what_cannot_be_used_is_named_with_file_key_and_what_was_expected(
    server_toml: Path, text: str, says: str
) -> None:
    server_toml.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(server_toml, environment={})
    assert str(error.value).startswith(f"{server_toml}: ")
    assert says in str(error.value)


def test_a_bad_value_of_the_environment_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="CLUSTER_DASH_SERVER__PORT: got 'x'"):
        load(environment={"CLUSTER_DASH_SERVER__PORT": "x"})


def test_an_unknown_key_of_our_section_in_the_environment_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"CLUSTER_DASH_INGEST__PASCODE: unknown key pascode, did you mean passcode\?"
    ):
        load(environment={"CLUSTER_DASH_INGEST__PASCODE": "x"})
    with pytest.raises(ConfigError, match="CLUSTER_DASH_SERVER__PORT"):
        load(environment={"CLUSTER_DASH_SERVER__PORT": "80\nfoo=1"})


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load(environment={"CLUSTER_DASH_CONFIG": str(tmp_path / "nowhere.toml")})


def test_server_toml_of_the_working_directory_is_found(server_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_toml.write_text("")
    monkeypatch.chdir(server_toml.parent)
    assert find_file({}) == Path("server.toml")


def test_the_passcode_may_come_from_a_file(tmp_path: Path, server_toml: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    server_toml.write_text(f'[ingest]\npasscode_file = "{tmp_path}/secret"\n')
    assert load(server_toml, environment={}).ingest.passcode == "from a file"
    where = f"{server_toml}: ingest.passcode_file: {tmp_path}/secret"
    (tmp_path / "secret").write_text("\n")
    assert refusal_of(server_toml) == f"{where}: is empty"
    (tmp_path / "secret").write_bytes(b"\xff")
    assert refusal_of(server_toml) == f"{where}: cannot be read: it is no text in UTF-8"
    (tmp_path / "secret").unlink()
    assert refusal_of(server_toml) == f"{where}: cannot be read: No such file or directory"


def refusal_of(file: Path) -> str:
    with pytest.raises(ConfigError) as refusal:
        load(file, environment={})
    return str(refusal.value)


def test_the_passcode_is_never_shown() -> None:
    settings = load(environment={"CLUSTER_DASH_INGEST__PASSCODE": "hush"})
    assert "hush" not in repr(settings)


def test_every_setting_says_what_it_is_for() -> None:
    for section in dataclasses.fields(Settings):
        for field in dataclasses.fields(section.default_factory):  # type: ignore[arg-type]
            assert field.metadata.get("help"), f"[{section.name}] {field.name}"


def test_the_site_s_config_py_is_read_as_flask_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text('PASSCODE = "lab" + "-a"\n')
    assert site.load_settings().ingest.passcode == "lab-a"


def test_a_config_py_that_is_not_ours_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text("raise SystemExit('not meant for you')\n")
    assert site.load_settings().ingest.passcode is None


@pytest.mark.parametrize("text", ["PASSCODE = 1/0\n", "PASSCODE = 5\n", "PASSCODE = ''\n"])
def test_a_broken_config_py_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.py"):
        site.load_settings()


@pytest.mark.parametrize("origin", ["intranet.lab", "https://a.lab; script-src *", "https://a.lab/page", "'self'", "*"])
def test_what_is_no_site_may_not_be_named_as_one_that_frames_our_pages(tmp_path: Path, origin: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'[site]\nembed_from = ["{origin}"]\n')
    with pytest.raises(
        ConfigError, match=r"server.toml: site.embed_from: got .*, expected such as https://intranet.lab"
    ):
        load(file, environment={})


def test_sites_that_may_frame_our_pages_are_named_by_scheme_host_and_port(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('[site]\nembed_from = ["https://a.lab", "http://*.b.lab:8080"]\n')
    assert load(file, environment={}).site.embed_from == ("https://a.lab", "http://*.b.lab:8080")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('digest_to = ["boss"]', "alerts.digest_to: got 'boss', expected a receiver; receivers: admins"),
        ('digest_at = "7.30"', "alerts.digest_at: got '7.30', expected such as 07:30"),
        ('waiting_to = ["@"]', "alerts.waiting_to: got '@', expected a mail domain such as @example.org"),
        ('waiting_to = ["@example.org"]', "alerts.waiting_to: @example.org needs mail_server and mail_from"),
        (
            'waiting_to = ["router"]',
            "alerts.waiting_to: got 'router', expected a receiver or a mail domain such as @example.org",
        ),
    ],
)
def test_who_gets_the_digest_and_who_may_be_told_of_free_gpus_must_be_reachable(
    line: str, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    receivers = '[alerts.receivers.admins]\nkind = "webhook"\nurl = "https://hook.example.org/"\n'
    router = '[alerts.receivers.router]\nkind = "alertmanager"\nurl = "https://alerts.example.org"\n'
    file.write_text(f"[alerts]\n{line}\n{receivers}{router}")
    with pytest.raises(ConfigError) as refused:
        load(file, environment={})
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "to = 'https://dash.example.org/lab'",
        "to = 'http://127.0.0.1:8080'",
        "to = 'http://localhost:8080'",
        "to = 'http://dash.lab'\nallow_plaintext = true",
    ],
)
def test_a_relay_may_pass_on_where_nobody_can_listen_in(server_toml: Path, text: str) -> None:
    server_toml.write_text(f"[relay]\n{text}")
    assert load(server_toml, environment={}).relay.to is not None


def test_a_ca_file_of_a_relay_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    settings = load(
        environment={"CLUSTER_DASH_RELAY__TO": "https://dash", "CLUSTER_DASH_RELAY__CA_FILE": str(tmp_path / "no.pem")}
    )
    with pytest.raises(ConfigError, match=r"relay\.ca_file: .*no\.pem: No such file"):
        app.create_app(settings)


MAIL = "[alerts]\nmail_server = 'mail.lab'\nmail_from = 'dash@lab.example'\n"


def test_a_receiver_is_a_section_and_its_secrets_may_stand_elsewhere(server_toml: Path, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "hook").write_text("of the site\n")
    (tmp_path / "password").write_text("of the mail\n")
    server_toml.write_text(
        MAIL + f"mail_user = 'dash'\nmail_password_file = '{tmp_path / 'password'}'\n"
        "[alerts.receivers.admins]\nkind = 'email'\nto = ['a@lab.example']\nquiet_hours = '22:00-07:00'\n"
        "[alerts.receivers.on-call]\nkind = 'webhook'\nurl = 'https://hooks.lab/'\nsecret_file = 'hook'\nper_hour = 3\n"
    )
    environment = {
        "CREDENTIALS_DIRECTORY": str(credentials),
        "CLUSTER_DASH_ALERTS__RECEIVERS__ON_CALL__TOKEN": "of the environment",
        "CLUSTER_DASH_ALERTS__RECEIVERS__ADMINS__SEVERITY": "info",
    }
    alerts = load(server_toml, environment=environment).alerts
    admins, on_call = alerts.receivers
    assert (admins.name, admins.kind, admins.to, admins.severity) == ("admins", "email", ("a@lab.example",), "info")
    assert (on_call.secret, on_call.token, on_call.per_hour) == ("of the site", "of the environment", 3)
    assert alerts.mail_password == "of the mail"
    assert not any(secret in repr(alerts) for secret in ("of the", "hooks.lab"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[alerts]\nreceivers = 1", "alerts.receivers: expected sections such as [alerts.receivers.admins]"),
        ("[alerts.receivers.A]\nkind = 'email'", "alerts.receivers.A: expected a name of a-z"),
        ("[alerts.receivers.a]\nto = ['x@y']", "alerts.receivers.a.kind: is missing, expected email or webhook"),
        ("[alerts.receivers.a]\nkind = 'fax'", "alerts.receivers.a.kind: got 'fax', expected email or webhook"),
        ("[alerts.receivers.a]\nkind = 'email'\nto = ['x@y']", "a.kind: mail needs [alerts] mail_server and mail_from"),
        (MAIL + "[alerts.receivers.a]\nkind = 'email'", "a.to: is missing, the kind email needs it"),
        (MAIL + "[alerts.receivers.a]\nkind = 'email'\nto = ['x y']", "a.to: got 'x y', expected such as admin@"),
        (
            MAIL + "[alerts.receivers.a]\nkind = 'email'\nto = ['x@y']\nurl = 'https://a'",
            "the kind email has no such key",
        ),
        ("[alerts.receivers.a]\nkind = 'webhook'\nurl = 'ftp://s3cret'", "a.url: expected http:// or https://"),
        ("[alerts.receivers.a]\nkind = 'webhook'\nurl = 5", "a.url: got ***, expected a text"),
        ("[alerts.receivers.a]\nkind = 'webhook'\nurl = 'https://a'\nseverity = 'bad'", "expected info or warning or"),
        ("[alerts.receivers.a]\nkind = 'webhook'\nurl = 'https://a'\nfilter = 'stat:free'", "a.filter: "),
        (
            "[alerts.receivers.a]\nkind = 'webhook'\nurl = 'https://a'\nquiet_hours = '22-7'",
            "a.quiet_hours: got '22-7'",
        ),
        (
            "[alerts.receivers.a]\nkind = 'webhook'\nurl = 'https://a'\nper_hour = 0",
            "a.per_hour: got 0, expected a whole",
        ),
        ("[alerts.receivers.a]\nkind = 'webhook'\nulr = 'https://a'", "a: unknown key ulr, did you mean url?"),
        ("[alerts.receivers.a]\nkind = 'webhook'\nurl_file = '/nowhere/x'", "a.url_file: /nowhere/x: cannot be read"),
        ("[alerts]\nowner_address = 'x@lab'", "alerts.owner_address: got 'x@lab', expected {user} in it"),
        ("[alerts]\nowner_notices = true", "owner_notices: needs mail_server and mail_from and owner_address or"),
        (
            MAIL + "owner_notices = true\nowner_address = '{user}@lab'\n[privacy]\nuser_names = 'pseudonym'",
            'with privacy.user_names = "pseudonym" no owner is known',
        ),
    ],
)
def test_a_receiver_that_could_not_be_told_is_refused_in_words(server_toml: Path, text: str, says: str) -> None:
    server_toml.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(server_toml, environment={})
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{server_toml}: ")
    assert "s3cret" not in str(caught.value)


def test_a_variable_for_a_receiver_that_is_not_there_is_refused(server_toml: Path) -> None:
    server_toml.write_text("[alerts.receivers.a]\nkind = 'webhook'\nurl = 'https://a'\n")
    with pytest.raises(ConfigError, match="CHAT__URL: no receiver of this name"):
        load(server_toml, environment={"CLUSTER_DASH_ALERTS__RECEIVERS__CHAT__URL": "https://b"})


REDIS, POSTGRESQL = '[live]\nkind = "redis"', '[ledger]\nkind = "postgresql"'


@pytest.mark.parametrize(
    ("section", "lines", "problem"),
    [
        (REDIS, "", "live.url: is missing: expected such as redis://"),
        (REDIS, 'url = "http://:hidden@redis"', "live.url: expected redis://, rediss://, redis+sentinel://"),
        (REDIS, 'url = "redis+sentinel://:hidden@a,b"', "live.url: expected redis+sentinel://"),
        (REDIS, 'url = "redis://:hidden@redis:port/0"', "live.url: "),
        (POSTGRESQL, "", "ledger.kind: postgresql needs ledger.url or ledger.url_file"),
        (
            POSTGRESQL,
            'url = "mysql://dash:hidden@db/dash"',
            "ledger.url: got an address of another form, expected post",
        ),
        (POSTGRESQL, 'url = "postgresql://dash:hidden@db/dash?ssl=no"', "ledger.url: cannot be read, expected post"),
        (POSTGRESQL, 'url = "postgresql://dash:hidden@db"', "ledger.url: names no database, expected postgresql://"),
        (POSTGRESQL, 'url = "postgresql://dash:12/hidden@db/dash"', "ledger.url: a password that holds / or @ is writ"),
        (POSTGRESQL, 'url = "postgresql://dash:hidden/12@db/dash"', "ledger.url: a password that holds / or @ is writ"),
        (POSTGRESQL, 'url = "postgresql://dash:12@hidden@db/dash"', "ledger.url: a password that holds / or @ is writ"),
    ],
)
def test_an_engine_that_could_not_be_spoken_to_is_refused_without_its_password(
    server_toml: Path, section: str, lines: str, problem: str
) -> None:
    server_toml.write_text(f"{section}\n{lines}\n")
    with pytest.raises(ConfigError) as refused:
        load(server_toml, environment={})
    assert str(refused.value).startswith(f"{server_toml}: {problem}")
    assert "hidden" not in str(refused.value)


def test_the_address_of_a_redis_may_come_from_a_file_and_is_not_shown(server_toml: Path, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("rediss://:hidden@redis.lab:6379/3\n")
    server_toml.write_text(f'[live]\nkind = "redis"\nurl_file = "{tmp_path / "url"}"\n')
    settings = load(server_toml, environment={})
    assert settings.live.url == "rediss://:hidden@redis.lab:6379/3"
    assert "hidden" not in repr(settings)
    (tmp_path / "url").write_text("redis.lab\n")
    with pytest.raises(ConfigError, match=r"live\.url: expected redis://"):
        load(server_toml, environment={})


def test_the_address_of_a_database_may_come_from_a_file(server_toml: Path, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://dash:hidden@db/dash\n")
    server_toml.write_text(f'[ledger]\nkind = "postgresql"\nurl_file = "{tmp_path / "url"}"\n')
    settings = load(server_toml, environment={})
    assert settings.ledger.url == "postgresql://dash:hidden@db/dash"
    assert "hidden" not in repr(settings)
    (tmp_path / "url").write_text("postgresql://db:no-port/dash")
    with pytest.raises(ConfigError, match=r"ledger\.url_file: "):
        load(server_toml, environment={})
    (tmp_path / "url").write_text("")
    with pytest.raises(ConfigError, match=r"ledger\.url_file: .*is empty"):
        load(server_toml, environment={})


def test_who_asks_a_running_server_needs_none_of_its_secrets(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('[server]\ndata = "/srv/dash"\n[ingest]\npasscode_file = "/nowhere/passcode"\n')
    with pytest.raises(ConfigError, match=r"ingest\.passcode_file"):
        load(file, environment={})
    assert read_server(file, environment={}).data == "/srv/dash"
    assert read_server(file, environment={"CLUSTER_DASH_SERVER__DATA": "/else"}).data == "/else"
