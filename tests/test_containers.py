"""Images, compose, Kubernetes, Ansible and clouds: what can be held without an engine and without a cloud."""

import dataclasses
import fnmatch
import importlib.util
import ipaddress
import json
import os
import re
import shlex
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import tomllib
import yaml

from cluster_dash_mole import config as mole_config
from cluster_dash_server import settings as server_settings
from cluster_dash_server.settings import Settings
from tests.nginx import make_certificates, nginx
from tests.processes import BIN, TOP, Process, free_port, start_server, wait_until

ETC = TOP / "etc"
CONTAINERFILE = re.sub(r"\\\n", " ", (TOP / "Containerfile").read_text())
COMPOSE = {file: yaml.safe_load((ETC / file).read_text()) for file in ("compose.yaml", "compose-replicas.yaml")}
SECRETS = {"PASSCODE": "x", "DATABASE_PASSWORD": "y"}
PASSCODE = 'a "passcode" of $5 \\ more'
AWKWARD = "12/34@5 6%7?8#9'0"
SCRIPTS = sorted((ETC / "container").glob("start-*"))


def compose(*arguments: str, file: str = "compose.yaml", **environment: str) -> subprocess.CompletedProcess[str]:
    package = importlib.util.find_spec("compose")
    assert package is not None
    assert package.origin is not None
    program = Path(package.origin).with_name("docker-compose")
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    command: list[str | Path] = [program, "-f", ETC / file, *arguments]
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=False)


# --------------------------------------------------------------------------------------------------------- compose


@pytest.mark.parametrize("profiles", [[], ["demo"], ["development"], ["demo", "development"]])
@pytest.mark.parametrize("file", COMPOSE)
def test_the_compose_file_is_valid_with_each_profile(file: str, profiles: list[str]) -> None:
    options = [option for profile in profiles for option in ("--profile", profile)]
    done = compose(*options, "config", "-q", file=file, **SECRETS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", COMPOSE)
def test_nothing_starts_without_a_passcode(file: str) -> None:
    assert "set PASSCODE" in compose("config", "-q", file=file, DATABASE_PASSWORD="y").stderr


def test_two_replicas_know_the_same_engines_and_trust_nginx_which_knows_both() -> None:
    done = compose("config", "--format", "json", file="compose-replicas.yaml", **SECRETS)
    services = json.loads(done.stdout)["services"]
    replicas, front = [services["replica1"], services["replica2"]], services["nginx"]
    address = {name: (each["networks"]["inside"] or {}).get("ipv4_address") for name, each in services.items()}
    settings = [each["environment"] for each in replicas]
    assert settings[0] == settings[1]
    assert settings[0]["CLUSTER_DASH_SERVER__TRUSTED_PROXIES"] == address["nginx"]
    assert [front["environment"][f"REPLICA_{number}"] for number in (1, 2)] == [
        f"{address[name]}:8080" for name in ("replica1", "replica2")
    ]
    assert [name for name, each in services.items() if "ports" in each] == ["nginx"]
    for key, section in (("LIVE__URL", "redis"), ("HISTORY__WRITE_URL", "victoria"), ("LEDGER__URL", "postgresql")):
        assert urlsplit(settings[0][f"CLUSTER_DASH_{key}"]).hostname == section
    environment = {name: value for name, value in settings[0].items() if name.startswith("CLUSTER_DASH_")}
    assert server_settings.load(None, environment=environment).live.kind == "redis"


@pytest.mark.parametrize("file", COMPOSE)
def test_an_address_that_is_fixed_is_none_that_a_service_gets_which_starts_before(file: str) -> None:
    done = compose("--profile", "demo", "config", "--format", "json", file=file, **SECRETS, NETWORK="10.7.7")
    said = json.loads(done.stdout)
    (pool,) = said["networks"]["inside"]["ipam"]["config"]
    net, given_away = ipaddress.ip_network(pool["subnet"]), ipaddress.ip_network(pool["ip_range"])
    fixed = [
        ipaddress.ip_address(each["networks"]["inside"]["ipv4_address"])
        for each in said["services"].values()
        if each["networks"]["inside"]
    ]
    assert fixed
    assert all(address in net and address not in given_away for address in fixed)


def test_ports_and_addresses_of_the_compose_file_are_variables() -> None:
    chosen = {"PASSCODE": "x", "GATEWAY_PORT": "13000", "PUBLIC_URL": "https://dash.example.org"}
    done = compose("config", "--format", "json", **chosen, GRAFANA_PORT="13001", PROMETHEUS_PORT="19090")
    services = json.loads(done.stdout)["services"]
    assert [services[name]["ports"][0]["published"] for name in ("gateway", "grafana", "prometheus")] == [
        *("13000", "13001", "19090"),
    ]
    assert {services[name]["ports"][0].get("host_ip") for name in ("grafana", "prometheus")} == {"127.0.0.1"}
    assert "ports" not in services["server"]
    assert services["server"]["environment"]["CLUSTER_DASH_SERVER__PUBLIC_URL"] == "https://dash.example.org"
    assert services["grafana"]["environment"]["GF_SERVER_ROOT_URL"] == "https://dash.example.org/grafana/"


@pytest.mark.parametrize("file", COMPOSE)
def test_settings_in_the_compose_file_exist(file: str) -> None:
    sections = {name.upper(): kind for name, kind in mole_config.SECTIONS.items()}
    sections |= {
        name.upper(): type(getattr(Settings(), name)) for name in (field.name for field in dataclasses.fields(Settings))
    }
    for service in COMPOSE[file]["services"].values():
        for name in service.get("environment", {}):
            if name.startswith("CLUSTER_DASH_"):
                section, _, key = name.removeprefix("CLUSTER_DASH_").partition("__")
                assert key.lower() in {field.name for field in dataclasses.fields(sections[section])}, name


@pytest.mark.parametrize("file", COMPOSE)
def test_what_the_compose_file_mounts_and_builds_is_there(file: str) -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", CONTAINERFILE, re.MULTILINE))
    for service in COMPOSE[file]["services"].values():
        if "build" in service:
            assert service["build"]["target"] in stages
            assert (ETC / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ETC / source).is_dir(), volume


# ---------------------------------------------------------------------------------------------------------- images


def test_all_images_begin_with_one_base_and_fetch_from_the_two_registries_only() -> None:
    sources = re.findall(r"^FROM (\S+)", CONTAINERFILE, re.MULTILINE)
    stages = re.findall(r"^FROM \S+ AS (\w+)$", CONTAINERFILE, re.MULTILINE)
    assert set(sources) <= {"${BASE}", *stages}
    assert not re.search(r"^ADD |\bcurl\b|\bwget\b|https?://", CONTAINERFILE, re.MULTILINE)
    assert all(
        "--require-hashes" in line or "--no-deps" in line for line in re.findall(r"pip install[^&\n]*", CONTAINERFILE)
    )


def test_what_the_images_copy_is_there_and_not_left_out() -> None:
    ignored = (TOP / ".containerignore").read_text().split()
    assert (TOP / ".dockerignore").read_text().split() == ignored
    for line in re.findall(r"^COPY (?!--from)(.*)$", CONTAINERFILE, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (TOP / source).exists(), source
            assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored), source


@pytest.mark.parametrize("half", ["server", "mole"])
def test_what_an_image_is_built_from_is_enough_for_its_half(half: str) -> None:
    copied = {"README.md", "LICENSE"}
    project = tomllib.loads((TOP / f"cluster-dash-{half}" / "pyproject.toml").read_text())["project"]
    named = [str(project.get("readme", "")), *map(str, project.get("license-files", []))]
    assert all(
        not name or Path(name).name in copied or (TOP / f"cluster-dash-{half}" / name).exists() for name in named
    )


@pytest.mark.parametrize("stage", ["server", "mole"])
def test_our_own_images_do_not_run_as_root(stage: str) -> None:
    (text,) = re.findall(rf"^FROM base AS {stage}$(.*?)(?=^FROM|\Z)", CONTAINERFILE, re.MULTILINE | re.DOTALL)
    assert re.search(r"^USER cluster-dash$", text, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_of_the_images_are_shell_and_may_run(script: Path) -> None:
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    assert os.access(script, os.X_OK)


def test_a_pod_trades_its_code_once_and_is_live_under_its_name(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with start_server("--data", data) as server:
        command: list[str | Path] = [
            BIN / "cluster-dash-server",
            "token",
            "new",
            "--enrol",
            "--names",
            "lab-pod-*",
            "--data",
            data,
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        code = max(re.findall(r"\S{16,}", made.stdout), key=len)
        environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "STATE_DIRECTORY": str(tmp_path),
            "CLUSTER_DASH_MOLE_CONFIG": str(ETC / "container" / "mole.toml"),
            "CLUSTER_DASH_URL": server.url + "/",
            "CLUSTER_DASH_CODE": code,
            "CLUSTER_DASH_HOST__NAME": "lab-pod-1",
            "CLUSTER_DASH_HOST__EPHEMERAL": "true",
        }

        def snapshot() -> Any:
            try:
                with urllib.request.urlopen(f"{server.url}/api/v1/hosts/lab-pod-1", timeout=60) as answer:
                    found = json.load(answer)["snapshot"]
            except urllib.error.HTTPError:
                return None
            return found if "seq" in found else None  # the first one after the trade has none

        start: list[str | Path] = ["sh", ETC / "container" / "start-mole"]
        with Process(start, environment=environment, folder=tmp_path) as pod:
            found = wait_until(snapshot, 40, f"the pod is live: {pod.output.decode()}")
            assert found["general"]["ephemeral"] is True
            assert code.encode() not in Path(f"/proc/{pod.popen.pid}/environ").read_bytes()
        token = (tmp_path / "token").read_text()
        with Process(start, environment={**environment, "CLUSTER_DASH_CODE": "spent"}, folder=tmp_path) as pod:
            wait_until(lambda: snapshot()["seq"] > found["seq"], 40, "it posts again, by its token")
        assert (tmp_path / "token").read_text() == token


# ---------------------------------------------------------------------------------- Kubernetes, Ansible, clouds


def test_the_daemonset_names_settings_that_exist_and_asks_for_no_rights() -> None:
    (mole,) = yaml.safe_load_all((ETC / "kubernetes" / "mole.yaml").read_text())
    pod = mole["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    names = {each["name"] for each in container["env"]}
    for name in names:
        section, double, key = name.removeprefix("CLUSTER_DASH_").partition("__")
        if double:
            kinds = {each.upper(): kind for each, kind in mole_config.SECTIONS.items()}
            assert key.lower() in {field.name for field in dataclasses.fields(kinds[section])}
    assert {"CLUSTER_DASH_URL", "CLUSTER_DASH_HOST__NAME"} <= names
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
    assert mole["spec"]["selector"]["matchLabels"].items() <= mole["spec"]["template"]["metadata"]["labels"].items()


def cloud_config() -> str:
    values = {
        "url": "https://dash.example.org/",
        "code": "c0de",
        "archive": "https://files.example.org/a.tar.gz",
        "sha256": "0",
    }
    template = (ETC / "cloud-init" / "mole.yaml.tftpl").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", template)) == set(values)
    assert set(values) == set(
        re.findall(r'^variable "(\w+)"', (ETC / "terraform" / "main.tf").read_text(), re.MULTILINE)
    )
    return re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], template)


def test_cloud_init_writes_a_configuration_that_loads_and_runs_shell(tmp_path: Path) -> None:
    document = yaml.safe_load(cloud_config())
    files = {each["path"]: each for each in document["write_files"]}
    (tmp_path / "mole.toml").write_text(files["/etc/cluster-dash/mole.toml"]["content"])
    config = mole_config.load(tmp_path / "mole.toml", {})
    assert (config.json_sender.address_in, config.host.ephemeral) == ("https://dash.example.org/", True)
    assert files["/etc/cluster-dash/code"]["permissions"] == "0600"
    (script,) = document["runcmd"]
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    for path in re.findall(r"(?<=\s)systemd/[\w./-]+", script):
        assert (TOP / path.removesuffix("/")).exists(), path


def test_the_role_of_ansible_is_whole_and_its_configuration_loads(tmp_path: Path) -> None:
    role = ETC / "ansible" / "roles" / "cluster_dash_mole"
    tasks = yaml.safe_load((role / "tasks" / "main.yml").read_text())
    handlers = {each["name"] for each in yaml.safe_load((role / "handlers" / "main.yml").read_text())}
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    (play,) = yaml.safe_load((ETC / "ansible" / "mole.yml").read_text())
    assert play["roles"] == [role.name]
    assert {each["notify"] for each in tasks if "notify" in each} <= handlers
    text = (role / "tasks" / "main.yml").read_text()
    assert set(re.findall(r"\bcluster_dash_\w+", text)) == set(defaults)
    for path in [item for each in tasks for item in each.get("loop", [])]:
        assert (TOP / "systemd" / path).is_file()
    (configuration,) = [
        each["ansible.builtin.copy"]["content"]
        for each in tasks
        if each.get("ansible.builtin.copy", {}).get("dest", "").endswith("mole.toml")
    ]
    configuration = configuration.replace("{{ cluster_dash_interval_seconds }}", "5")
    configuration = configuration.replace("{{ cluster_dash_url | to_json }}", '"https://dash.example.org/"')
    configuration = configuration.replace("{{ cluster_dash_ca_file | to_json }}", f'"{tmp_path}/ca.pem"')
    configuration = re.sub(r"\{%.*?%\}\n", "", configuration)
    configuration = configuration.replace("{{ name }} = {{ value | string | to_json }}", 'rack = "r1"')
    (tmp_path / "ca.pem").touch()
    (tmp_path / "mole.toml").write_text(configuration)
    assert mole_config.load(tmp_path / "mole.toml", {}).labels == {"rack": "r1"}


@pytest.mark.needs("ansible-playbook")
@pytest.mark.parametrize("play", ["mole.yml", "replicas.yml"])
def test_ansible_reads_the_play(play: str) -> None:
    command = shlex.split(f"ansible-playbook --syntax-check -i localhost, {play}")
    assert subprocess.run(command, cwd=ETC / "ansible", check=False).returncode == 0


def test_the_role_of_replicas_has_a_task_for_each_part_and_tells_handlers_that_exist() -> None:
    role = ETC / "ansible" / "roles" / "cluster_dash_replica"
    plays = yaml.safe_load((ETC / "ansible" / "replicas.yml").read_text())
    parts = {each["cluster_dash_part"] for play in plays for each in play.get("roles", [])}
    assert parts | {"main"} == {path.stem for path in (role / "tasks").glob("*.yml")}
    handlers = {each["name"] for each in yaml.safe_load((role / "handlers" / "main.yml").read_text())}
    tasks = [each for part in parts for each in yaml.safe_load((role / "tasks" / f"{part}.yml").read_text())]
    assert {each["notify"] for each in tasks if "notify" in each} == handlers
    named = {each[module]["src"] for each in tasks for module in each if module == "ansible.builtin.template"}
    assert named == {path.name for path in (role / "templates").iterdir()}
    used = set(re.findall(r"\bcluster_dash_\w+", "".join(path.read_text() for path in role.rglob("*/*"))))
    assert used - {"cluster_dash_replica"} == set(yaml.safe_load((role / "defaults" / "main.yml").read_text()))
    (unit,) = re.findall(r"systemd/([\w.-]+service)$", (role / "tasks" / "replica.yml").read_text(), re.MULTILINE)
    assert (TOP / "systemd" / unit).is_file()


@pytest.mark.needs("ansible-playbook")
@pytest.mark.needs("nginx")
@pytest.mark.needs("openssl")
def test_what_ansible_writes_for_replicas_loads(tmp_path: Path) -> None:
    for folder in ("secrets", "play", "written"):
        (tmp_path / folder).mkdir()
    (tmp_path / "nginx").symlink_to(ETC / "nginx")
    written = tmp_path / "written"
    for name, secret in (("passcode", PASSCODE), ("redis-password", AWKWARD), ("database-password", AWKWARD)):
        (tmp_path / "secrets" / name).write_text(secret + "\n")
    templates = ETC / "ansible" / "roles" / "cluster_dash_replica" / "templates"
    names = [path.name for path in templates.iterdir()]
    tasks = [
        {"ansible.builtin.template": {"src": f"{templates}/{name}", "dest": f"{written}/{name[:-3]}"}} for name in names
    ]
    values = {
        "cluster_dash_public_url": "https://dash.lab.example",
        "cluster_dash_secrets": f"{tmp_path}/secrets",
        "cluster_dash_replicas": ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
        "cluster_dash_nginx": ["10.0.0.2"],
        **{f"cluster_dash_{each}": f"{each}.lab.example" for each in ("redis", "victoria", "postgresql")},
    }
    (tmp_path / "play" / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "vars": values, "tasks": tasks}])
    )
    command: list[str | Path] = ["ansible-playbook", "-c", "local", "-i", "localhost,", tmp_path / "play" / "play.yml"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout

    secrets = dict(each.split("=", 1) for each in shlex.split((written / "secrets.env").read_text()))
    settings = server_settings.load(written / "server.toml", environment=secrets)
    assert settings.ingest.passcode == PASSCODE
    for url, place in (
        (settings.live.url, "redis.lab.example:6379"),
        (settings.ledger.url, "postgresql.lab.example:5432"),
    ):
        parts = urlsplit(str(url))
        assert (unquote(parts.password or ""), parts.netloc.rpartition("@")[2]) == (AWKWARD, place)
    assert settings.server.trusted_proxies == ("10.0.0.2",)
    assert f"requirepass {json.dumps(AWKWARD)}" in (written / "redis.conf").read_text()

    make_certificates(tmp_path)
    site = (written / "nginx.conf").read_text()
    assert re.findall(r"^    server (\S+):8080 max_fails", site, re.MULTILINE) == values["cluster_dash_replicas"]
    assert "server_name dash.lab.example;" in site
    port = free_port()
    site = site.replace("listen 443", f"listen 127.0.0.1:{port}").replace("/etc/ssl/dash.", f"{tmp_path}/site.")
    with nginx(site, port, tmp_path):
        pass
