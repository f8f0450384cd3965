"""The archive of `make dist`: what it holds, and that it installs and runs where no package index is in reach."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest
import tomllib

from dev.dist import PYTHONS, requirements
from tests.processes import BIN, TOP, Listening

pytestmark = pytest.mark.slow

PLACES = (
    "/usr/bin",
    "/usr/local/bin",
    "~/.pyenv/versions/*/bin",
    "~/.local/share/uv/python/*/bin",
    "/opt/python/*/bin",
)


def pythons() -> dict[str, Path]:
    """Find the Pythons of this machine that the archive serves, by version; the oldest first."""
    folders = [Path(sys.executable).resolve().parent, *(Path(part) for part in os.environ["PATH"].split(":"))]
    for place in PLACES:
        pattern = Path(place).expanduser()
        folders += Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    found = {}
    for version in PYTHONS["mole"]:
        for folder in folders:
            program = folder / f"python{version}"
            # a pyenv shim is there for each version, and works for some
            if (
                program.exists()
                and subprocess.run([program, "-c", "import venv"], capture_output=True, check=False).returncode == 0
            ):
                found[version] = program
                break
    return found


FOUND = pythons()


def oldest_and_newest(half: str) -> list[str]:
    served = [version for version in FOUND if version in PYTHONS[half]]
    return sorted({served[0], served[-1]}, key=served.index)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive for the Pythons that are tried, unpacked."""
    folder = tmp_path_factory.mktemp("dist")
    wanted = {*oldest_and_newest("server"), *oldest_and_newest("mole")}
    served = [part for version in sorted(wanted) for part in ("--python", version)]
    subprocess.run([BIN / "python", "dev/dist.py", "--to", folder, *served], cwd=TOP, check=True, capture_output=True)
    (archive,) = folder.iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (top,) = (each for each in folder.iterdir() if each.is_dir())
    assert archive.name == f"{top.name}.tar.gz"
    return top


def install(unpacked: Path, half: str, version: str, folder: Path) -> str:
    """Install a half with no route to anywhere; return what was said."""
    command: list[str | Path] = ["sh", unpacked / "install.sh", half, folder]
    if (
        shutil.which("unshare")
        and subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode == 0
    ):
        command = ["unshare", "-rn", *command]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    environment |= {"PYTHON": str(FOUND[version]), "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_server_and_mole_install_without_an_index_and_the_snapshot_is_taken(
    which: str, unpacked: Path, tmp_path: Path
) -> None:
    place = 0 if which == "oldest" else -1
    programs = {}
    for half in PYTHONS:
        version = oldest_and_newest(half)[place]
        folder = tmp_path / half
        assert install(unpacked, half, version, folder).startswith(f"installed: cluster-dash-{half} ")
        programs[half] = folder / "bin" / f"cluster-dash-{half}"
        runs_under = subprocess.run(
            [folder / "bin" / "python", "-c", "import sys; print(*sys.version_info[:2], sep='.')"],
            **{"capture_output": True, "text": True, "check": True},  # type: ignore[call-overload]
        )
        assert runs_under.stdout.strip() == version
    with Listening([programs["server"], "serve", "--port", "0"], folder=tmp_path) as server:
        once = subprocess.run(
            [programs["mole"], "--once", "-c", unpacked / "etc" / "mole.toml"],
            cwd=tmp_path,
            env={
                **os.environ,
                "CLUSTER_DASH_JSON_SENDER_LOGGER__ADDRESS_IN": server.url,
                "CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE": "lab_cluster_2025",
            },
            **{"capture_output": True, "text": True, "check": False},  # type: ignore[call-overload]
        )
        assert once.returncode == 0, once.stderr
        with urllib.request.urlopen(f"{server.url}/api/v1/cluster", timeout=60) as answer:
            assert len(json.load(answer)["hosts"]["host"]) == 1
        for page in ("/", "/cpu-data"):  # templates, static files and Plotly came along
            with urllib.request.urlopen(f"{server.url}{page}", timeout=60) as answer:
                assert b"</html>" in answer.read()


def test_installing_again_over_an_installation_brings_it_up_to_date(unpacked: Path, tmp_path: Path) -> None:
    version = oldest_and_newest("mole")[-1]
    install(unpacked, "mole", version, tmp_path / "mole")
    (installed,) = (tmp_path / "mole").glob("lib/*/site-packages/cluster_dash_mole/mole.py")
    installed.write_text("of an older build of the same version")
    install(unpacked, "mole", version, tmp_path / "mole")
    assert "class Mole" in installed.read_text()


def test_a_wheel_that_was_tampered_with_is_not_installed(unpacked: Path, tmp_path: Path) -> None:
    bad = tmp_path / unpacked.name
    shutil.copytree(unpacked, bad)
    (wheel,) = (bad / "wheels").glob("cluster_dash_mole-*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("cluster_dash_mole/more.py", "")
    refused = subprocess.run(
        ["sh", bad / "install.sh", "mole", tmp_path / "mole"],
        env={**os.environ, "PYTHON": str(FOUND[oldest_and_newest("mole")[-1]])},
        **{"capture_output": True, "text": True, "check": False},  # type: ignore[call-overload]
    )
    assert refused.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in refused.stderr


def test_an_old_python_is_refused_in_words(unpacked: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.6"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for half, floor in (("server", "3.11"), ("mole", "3.10")):
        refused = subprocess.run(
            ["sh", unpacked / "install.sh", half, tmp_path / half],
            **{"env": {**os.environ, "PYTHON": str(old)}, "capture_output": True, "text": True, "check": False},  # type: ignore[call-overload]
        )
        assert refused.returncode == 1
        assert f"{old} is no Python {floor} to 3.14" in refused.stderr
        assert not (tmp_path / half).exists()


@pytest.mark.parametrize("half", PYTHONS)
def test_the_wheel_holds_every_file_of_the_package(half: str, unpacked: Path) -> None:
    (wheel,) = (unpacked / "wheels").glob(f"cluster_dash_{half}-*.whl")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", f"cluster_dash_{half}"],
        **{"cwd": TOP / f"cluster-dash-{half}", "capture_output": True, "text": True, "check": True},  # type: ignore[call-overload]
    ).stdout.split()
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in tracked if (TOP / f"cluster-dash-{half}" / name).exists()} <= held
    assert not any(name.endswith("/config.py") for name in held) or half == "mole"  # a site's passcode stays at home


def test_pages_units_and_examples_come_along_and_nobody_s_name(unpacked: Path) -> None:
    for name in ("setup.md", "LICENSE", "CHANGELOG.md", "etc/server.toml", "docs/settings.md", "systemd"):
        assert (unpacked / name).exists(), name
    links = re.findall(r"\]\(([^)#]+)", (unpacked / "setup.md").read_text())
    assert [link for link in links if not link.startswith("http") and not (unpacked / link).exists()] == []
    served = (unpacked / "SERVES.txt").read_text()
    tried = {*oldest_and_newest("server"), *oldest_and_newest("mole")}
    assert f"mole: Python {', '.join(version for version in FOUND if version in tried)}\n" in served
    with tarfile.open(unpacked.with_name(f"{unpacked.name}.tar.gz")) as tar:
        assert {(entry.uname, entry.gname) for entry in tar} == {("root", "root")}


def test_a_requirement_counts_under_the_python_that_is_served() -> None:
    lock = (
        "a==1.0 \\\n    --hash=sha256:00\n"
        "b==2.0 ; python_full_version < '3.11' \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\n"
    )
    assert [line.split()[0] for line in requirements(lock, "3.10")] == ["a==1.0", "b==2.0"]
    assert [line.split()[0] for line in requirements(lock, "3.13")] == ["a==1.0"]
    assert list(requirements(lock, "3.10"))[1].count("--hash") == 2


def test_one_server_installs_nothing_that_only_replicas_need() -> None:
    folder = TOP / "cluster-dash-server"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    of_replicas = {
        re.split(r"[^\w-]", need)[0]
        for extra in ("granian", "postgresql", "redis", "remote")
        for need in project["optional-dependencies"][extra]
    }
    locked = {
        name: {line.split("==")[0] for line in requirements((folder / name).read_text(), "3.11")}
        for name in ("requirements.lock", "requirements-replicas.lock")
    }
    assert of_replicas == {"granian", "psycopg", "redis", "cramjam"}
    assert of_replicas <= locked["requirements-replicas.lock"]
    assert not of_replicas & locked["requirements.lock"]


@pytest.mark.parametrize("half", PYTHONS)
def test_every_pin_of_a_lock_file_is_read(half: str) -> None:
    lock = (TOP / f"cluster-dash-{half}" / "requirements.lock").read_text()
    read = {line.split()[0] for version in PYTHONS[half] for line in requirements(lock, version)}
    assert read == set(re.findall(r"^([\w.-]+==\S+)", lock, re.MULTILINE))
