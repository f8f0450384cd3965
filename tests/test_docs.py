"""Documentation that fails when it lies: settings, routes, commands, paths."""

import dataclasses
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomllib

from cluster_dash_mole import cli as mole_cli
from cluster_dash_mole import config as mole_config
from cluster_dash_server import cli as server_cli
from cluster_dash_server import settings
from cluster_dash_server.alerts import rules as alert_rules
from cluster_dash_server.alerts.facts import FACTS
from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.states import STATES
from tests.processes import BIN, TOP

DOCS = [
    *sorted((TOP / "docs").glob("*.md")),
    TOP / "README.md",
    TOP / "CONTRIBUTING.md",
    TOP / "setup.md",
    TOP / "SECURITY.md",
]
SERVER_SECTIONS = {section.name: section.default_factory for section in dataclasses.fields(Settings)}
SECTIONS = {**SERVER_SECTIONS, **mole_config.SECTIONS}


def shown(value: object) -> str:
    """Word a default as `docs/settings.md` does."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return "`[]`" if value == () else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_settings_page_has_every_key_with_its_default_and_its_help(section: str) -> None:
    rows = [
        f"| `{field.name}` | {shown(field.default)} | {field.metadata['help']} |"
        for field in dataclasses.fields(SECTIONS[section])  # type: ignore[arg-type]
    ]
    table = "\n".join([f"### `[{section}]`", "", "| key | default | |", "| --- | --- | --- |", *rows, ""])
    assert table in (TOP / "docs" / "settings.md").read_text()


def test_the_settings_page_has_no_section_that_does_not_exist() -> None:
    named = set(re.findall(r"^### `\[(\w+)\]`", (TOP / "docs" / "settings.md").read_text(), re.MULTILINE))
    assert named == {*SECTIONS, mole_config.LABELS}


def test_the_shipped_server_toml_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (TOP / "etc" / "server.toml").read_text()
    shipped = tmp_path / "server.toml"
    shipped.write_text(text)
    assert settings.load(shipped, environment={}) == Settings()
    # with each # before a key taken away it must still load, and name every key there is
    shipped.write_text(re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE))
    raw = tomllib.loads(shipped.read_text())
    assert {name: set(section) for name, section in raw.items()} == {
        name: {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        for name, kind in SERVER_SECTIONS.items()
    }
    loaded = settings.load(shipped, environment={})
    for name, kind in SERVER_SECTIONS.items():
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if field.default is not None:  # else there is none to compare with
                assert getattr(getattr(loaded, name), field.name) == field.default, field.name


def test_the_shipped_mole_toml_holds_every_setting(tmp_path: Path) -> None:
    text = (TOP / "etc" / "mole.toml").read_text()
    shipped = tmp_path / "mole.toml"
    shipped.write_text(text)
    config = mole_config.load(shipped, {})
    assert (config.poll.poll_interval_in_secs, config.json_sender.use, config.labels) == (5, True, {})
    raw = tomllib.loads(re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE))
    for name, kind in mole_config.SECTIONS.items():
        assert set(raw[name]) == {field.name for field in dataclasses.fields(kind)}, name
        for field in dataclasses.fields(kind):
            commented = f"#{field.name} = " in text and f"\n{field.name} = " not in text
            free = field.default is None  # has no default to compare with
            assert free or not commented or raw[name][field.name] == field.default, field.name


def test_a_variable_for_one_half_may_stand_in_the_environment_of_the_other(tmp_path: Path) -> None:
    def variables(sections: Mapping[str, Any]) -> dict[str, str]:
        keys = [(name, field.name) for name, kind in sections.items() for field in dataclasses.fields(kind)]
        return {f"CLUSTER_DASH_{name.upper()}__{key.upper()}": "unlike anything" for name, key in keys}

    settings.load(environment=variables(mole_config.SECTIONS))
    (tmp_path / "config.toml").write_text("")
    mole_config.load(tmp_path / "config.toml", variables(SERVER_SECTIONS))


@pytest.mark.parametrize("name", ["config.toml", "config_example-host.toml"])
def test_the_shipped_mole_configurations_load(name: str, tmp_path: Path) -> None:
    text = (TOP / "cluster-dash-mole" / name).read_text().replace("auth_code_file", "# auth_code_file")
    (tmp_path / "c.toml").write_text(text)
    config = mole_config.load(tmp_path / "c.toml", {})
    assert config.poll.poll_interval_in_secs == 5
    assert config.json_sender.use


def test_the_routes_page_and_the_server_name_the_same_routes() -> None:
    routes = {
        re.sub(r"<\w+:", "<", rule.rule)  # that a name may hold a slash is for the server to know
        for rule in create_app(Settings()).url_map.iter_rules()
        if not re.search(r"^/assets/|^/icon\.svg$|\.(css|js|json)$", rule.rule)
    }
    text = (TOP / "docs" / "routes.md").read_text()
    named = {route for route in re.findall(r"`(?:POST )?(/[^`?\s]*)`", text) if not route.endswith(".json")}
    assert named == routes


@pytest.mark.parametrize("half", ["mole", "server"])
def test_every_module_is_on_the_map(half: str) -> None:
    package = TOP / f"cluster-dash-{half}" / f"cluster_dash_{half}"
    page = (TOP / "docs" / "architecture.md").read_text()
    _, _, table = page.partition(f"`cluster_dash_{half}/`")
    cells = table.partition("\n\n|")[2].partition("\n\n")[0]
    named = {each.partition("/")[0] for each in re.findall(r"`([\w/]+)`", cells)}
    found = [each.stem for each in package.iterdir() if each.suffix == ".py" or (each / "__init__.py").exists()]
    assert [name for name in sorted(found) if name not in named and not name.startswith("__")] == []


def test_every_state_is_explained() -> None:
    rows = re.findall(r"^\| (\w+) \| ", (TOP / "docs" / "states.md").read_text(), re.MULTILINE)
    assert tuple(row for row in rows if row != "state") == STATES


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_link_and_path_of_a_page_exists(page: Path) -> None:
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    links += re.findall(r'\bsrc(?:set)?="([^"]+)"', text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:docs|etc|dev|tests|bench|cluster-dash-\w+)/[\w./-]*)`", text)
    assert [path for path in paths if not (TOP / path).exists()] == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_make_target_of_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize(
    ("program", "main"), [("cluster-dash-server", server_cli.main), ("cluster-dash-mole", mole_cli.main)]
)
def test_every_command_of_the_commands_page_exists_and_no_other(
    program: str, main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    page = (TOP / "docs" / "commands.md").read_text()
    helped = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, check=True).stdout
    commands = set(re.findall(r"^    (\w[\w-]*)(?: {2,}|$)", helped, re.MULTILINE))
    assert commands == set(re.findall(rf"^\| `{program} ([a-z][\w-]*)", page, re.MULTILINE))
    named = set(re.findall(rf"^\| `{program} ((?:[a-z][\w-]* )*).*?(--[a-z-]+)", page, re.MULTILINE))
    assert named
    for words, option in named:
        with pytest.raises(SystemExit, match=r"^0$"):  # a process for each would take half a second
            main([*words.split(), "--help"])
        assert option in capsys.readouterr().out, words


def test_the_project_names_no_path_of_a_machine_and_no_registry() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    forbidden = re.compile(
        rb"py" rb"pi\.org|files\.python" rb"hosted|registry\.npm" rb"js|/ro" rb"ot/|/wo" rb"rk/|deb\.deb" rb"ian"
    )
    named = []
    for name in tracked:
        path = TOP / name
        if path.is_file() and not path.is_symlink() and forbidden.search(path.read_bytes()):
            named.append(name)
    assert named == []


def test_the_page_of_alerts_has_every_rule_key_and_fact() -> None:
    text = (TOP / "docs" / "alerts.md").read_text()
    shipped = alert_rules.read()
    assert [rule for rule in shipped if f"| `{rule.name}` | `{rule.when}` | " not in text] == []
    assert re.findall(r"^\| `([a-z-]+)` \| `[^|]*` \| [^|]+ \| (\w+) \|$", text, re.MULTILINE) == [
        (rule.name, rule.severity) for rule in shipped
    ]
    keys = [(key, field.metadata["help"]) for key, field in alert_rules.KEYS.items()]
    assert [
        key for key, told in keys if not re.search(rf"^\| `{key}` \| .* \| {re.escape(told)} \|$", text, re.M)
    ] == []
    facts = re.findall(r"^\| `(\w+)`(?: [>=] …)? \| (\w+) \| (.*) \|$", text, re.MULTILINE)
    assert [(name, fact.of, True) for name, fact in FACTS.items()] == [
        (name, of, told.startswith(FACTS[name].help)) for name, of, told in facts if name in FACTS
    ]
