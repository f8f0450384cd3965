"""Walks setup.md, the README and the docs: each command runs, or stands in a block that says why it cannot here.

A block is marked by a line in italics above it: root, a GPU, another machine. What is in such a block is checked as far
as that goes without running it: its shell, the paths, our own commands and their options.
"""

import dataclasses
import functools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

from cluster_dash_mole import config as mole_config
from cluster_dash_server import settings
from cluster_dash_server.alerts import rules
from cluster_dash_server.notices.receivers import Receiver
from cluster_dash_server.settings import Settings
from tests.blocks import BLOCKS, PAGES, SHELL, Block
from tests.processes import BIN, TOP, Listening, start_server

WHY_NOT_HERE = ("as root", "with internet", "GPU host", "systemd of your own login")
PROVED = (TOP / "tests" / "test_commands.py").read_text()
"""Starts what serves or sets up in a fresh clone, line by line."""


RUN = [block for block in SHELL if block.mark is None]


def proved_elsewhere(command: str) -> bool:
    """Say whether test_commands.py types this line, or test_docs.py looks for its make target."""
    if command.startswith("make ") or command in PROVED:
        return True
    folder, _, rest = command.partition(" && ")
    if re.fullmatch(r"cd cluster-dash-(server|mole)", folder):
        # its fixture `synced` types `cd HALF && uv sync`
        return all(part in PROVED for part in rest.split(" && "))
    return False


@pytest.fixture(scope="module")
def served() -> Iterator[Listening]:
    with start_server(environment={"CLUSTER_DASH_INGEST__PASSCODE": "lab_cluster_2025"}) as server:
        yield server


@pytest.mark.parametrize("block", RUN, ids=str)
def test_each_command_that_is_not_marked_runs(block: Block, served: Listening, tmp_path: Path) -> None:
    port = served.url.rpartition(":")[2]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "CLUSTER_DASH_SERVER__PORT": port}
    for command in block.commands:
        if proved_elsewhere(command):
            continue
        if "cluster-dash-server serve" in command:
            assignment, _, rest = command.partition(".venv/bin/")
            own = dict(part.split("=", 1) for part in shlex.split(assignment))
            program, *options = shlex.split(rest)
            options[options.index("--host") + 1] = "127.0.0.1"
            with Listening([BIN / program, *options, "--port", "0"], environment=own):
                continue
        typed = command.replace("8080", port)
        done = subprocess.run(
            ["sh", "-ec", typed], cwd=TOP, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if command.startswith("curl "):
            assert done.stdout.startswith("{") is ("gpu-summary" not in command)


def test_each_block_is_run_or_says_why_not_here() -> None:
    assert len(RUN) >= 4
    assert [str(block) for block in SHELL if block.mark and not any(why in block.mark for why in WHY_NOT_HERE)] == []


@functools.cache
def help_of(program: str) -> str:
    return subprocess.run([BIN / program, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("block", [block for block in SHELL if block.mark], ids=str)
def test_what_a_marked_block_types_is_there(block: Block) -> None:
    subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)
    for command in block.commands:
        for path in re.findall(r"(?<![\w/.-])(?:etc|systemd|docs|dev)/[\w./@-]*", command):
            assert (TOP / path).exists(), path
        if "install.sh" in command:
            assert re.search(r"install\.sh (server|mole)\b", command)
        for program, name in re.findall(r"bin/(cluster-dash-\w+) ([a-z][\w-]*|--\w+)", command):
            assert name in help_of(program)
        for unit in re.findall(r"systemctl (?:--user )?(?:enable|disable|restart)(?: --now)? ([\w -]+)", command):
            assert [each for each in unit.split() if not (TOP / "systemd" / f"{each}.service").exists()] == []


def test_what_root_types_on_a_machine_that_was_set_up_so_is_on_its_path() -> None:
    linked: set[str] = set()
    for block in (block for block in SHELL if block.page == "setup.md" and block.mark and "as root" in block.mark):
        for command in block.commands:
            linked |= set(re.findall(r"^ln -sf /opt/(cluster-dash-\w+)/bin/\1 /usr/local/bin/$", command))
            if typed := re.match(r"(?:[A-Z_]+=\S+ +)*(cluster-dash-(?:server|mole)) ", command):
                assert typed[1] in linked, command


def test_the_first_doctor_knows_the_passcode_that_was_just_made(tmp_path: Path) -> None:
    typed = next(line for block in SHELL if block.page == "setup.md" for line in block.commands if " doctor" in line)
    (tmp_path / "passcode").write_text("0123456789abcdef")
    here = typed.replace("/etc/cluster-dash", str(tmp_path)).replace("/var/lib/cluster-dash", str(tmp_path))
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    said = subprocess.run(["sh", "-c", here], env=environment, capture_output=True, text=True, check=False).stdout
    assert "✔ passcode: the site's own" in said
    assert f"✔ data folder: {tmp_path} can be written" in said


TOML = [block for block in BLOCKS if block.kind == "toml"]


def is_of_the_server(block: Block) -> bool:
    """Say whether an example is of the server's settings: there are also those of the mole, and rules."""
    return bool(set(tomllib.loads(block.text)) & {field.name for field in dataclasses.fields(Settings)})


def with_those_above(block: Block) -> str:
    """Return an example with what the examples above it on its page have set: they are one file, a piece at a time."""
    lines: dict[str, dict[str, str]] = {}
    for each in (each for each in TOML if each.page == block.page and is_of_the_server(each)):
        for line in each.text.splitlines():
            if line.startswith("["):
                section = lines.setdefault(line, {})
            elif not line.startswith("#"):
                section.setdefault(line.partition(" =")[0], line)
        if each == block:
            break
    return "\n".join(line for header, section in lines.items() for line in (header, *section.values()))


SECRETS = {
    "chat-url": "https://chat.example.org/x",
    "redis-url": "redis://10.0.0.21:6379/0",
    "database-url": "postgresql://dash:secret@10.0.0.23/dash",
}
"""What stands in files of secrets whose settings are looked at; anything, in the others."""


@pytest.mark.parametrize("block", TOML, ids=str)
def test_each_example_of_a_configuration_loads(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "example.toml"
    file.write_text(block.text)
    sections = set(tomllib.loads(block.text))
    if sections & set(mole_config.SECTIONS):
        mole_config.load(file, {})
    elif not is_of_the_server(block):
        assert sections <= {rule.name for rule in rules.read(file)}
    else:
        text = block.text if block.page != "docs/alerts.md" else with_those_above(block)
        file.write_text(text.replace("/etc/cluster-dash/", f"{tmp_path}/"))
        for secret in re.findall(r'_file = "(?:/etc/cluster-dash/)?([\w-]+)"', text):
            (tmp_path / secret).write_text(SECRETS.get(secret, "a secret"))
        settings.load(file, environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize("page", PAGES)
def test_each_setting_that_a_page_names_exists(page: str) -> None:
    known = {
        **{section.name: section.default_factory for section in dataclasses.fields(Settings)},
        **mole_config.SECTIONS,
    }
    keys = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in known.items()}  # type: ignore[arg-type]
    by_variable = {f"{name}__{key}".upper() for name, has in keys.items() for key in has}
    by_variable |= {f"ALERTS__RECEIVERS__CHAT__{field.name}".upper() for field in dataclasses.fields(Receiver)}
    text = (TOP / page).read_text()
    for variable in re.findall(r"CLUSTER_DASH_(\w+__\w+)", text):
        assert variable in by_variable, variable
    for section, key in re.findall(r"\[(\w+)\] ([a-z]\w*_\w+|passcode)\b", text):
        assert key in keys[section], (section, key)


def test_the_trouble_table_has_each_code_that_a_program_says() -> None:
    said: set[str] = set()
    for half in ("cluster-dash-server/cluster_dash_server", "cluster-dash-mole/cluster_dash_mole"):
        for source in (TOP / half).rglob("*.py"):
            said |= set(re.findall(r"\bCD\d{3}\b", source.read_text()))
    assert set(re.findall(r"^\| (CD\d{3}) \|", (TOP / "setup.md").read_text(), re.MULTILINE)) == said
