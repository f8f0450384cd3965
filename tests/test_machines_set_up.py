"""setup.md, typed as root on machines of their own with their own systemd: a server behind nginx, and a GPU host."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.blocks import BLOCKS
from tests.machines import Machine, machine, python
from tests.processes import BIN, FAKE_NVML, TOP, fake_nvml, snapshot, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.in_order,
    *(
        pytest.mark.needs(part)
        for part in ("machines of its own", "a Python of its system for the server", "gcc", "nginx", "openssl", "curl")
    ),
]

NAME = "dash.example.org"
"""The server's, on that page."""
UNPACKED = "/srv/cluster-dash"


def block(begin: str, kind: str = "sh") -> str:
    """Return the first block of setup.md in which a line begins so."""
    line = re.compile(f"^{re.escape(begin)}", re.MULTILINE)
    of_kind = (each.text for each in BLOCKS if each.page == "setup.md" and each.kind == kind)
    return next(text for text in of_kind if line.search(text))


@dataclass(frozen=True)
class Site:
    """The two machines."""

    server: Machine
    host: Machine

    def told(self, path: str) -> Any:
        """Ask the server, on its own machine."""
        return json.loads(self.server.types(f"curl -fsS 'http://localhost:8080{path}'"))

    def hears(self, host: str = "gpu001") -> None:
        """Wait until the server has a snapshot of a host that came after now."""
        now = time.time()

        def newest() -> float:
            try:
                return float(self.told(f"/api/v1/hosts/{host}")["received_at"])
            except AssertionError:  # not known yet, or the server starts
                return 0.0

        wait_until(lambda: newest() > now, what=f"a snapshot of {host} arrives")


def shown(machine: Machine, unit: str, field: str) -> str:
    """Return a property of a unit."""
    return machine.types(f"systemctl show {unit} -p {field} --value").strip()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` makes, for the Python of this machine's system."""
    folder = tmp_path_factory.mktemp("archive")
    command: list[str | Path] = [BIN / "python", "dev/dist.py", "--to", folder, "--python", str(python())]
    subprocess.run(command, cwd=TOP, check=True, capture_output=True)
    (found,) = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def site(archive: Path) -> Iterator[Site]:
    """Both set up as the page says, the server behind nginx with a certificate of the site's own."""
    with ExitStack() as stack:
        found = Site(*(stack.enter_context(machine(name)) for name in ("dash", "gpu001")))
        found.server.link(found.host, "10.99.78")
        for each in (found.server, found.host):
            shutil.copy(archive, each.path("/srv"))
            with each.path("/etc/hosts").open("a") as hosts:
                hosts.write(f"{found.server.address} {NAME}\n")
        _set_up_server(found.server)
        _set_up_host(found)
        yield found


def _set_up_server(server: Machine) -> None:
    server.types(block("tar xzf"))
    settings = server.path("/etc/cluster-dash/server.toml")
    settings.write_text(block("public_url", "toml"))
    server.types(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout /etc/ssl/dash.key -out /etc/ssl/dash.pem "
        f"-subj /CN={NAME} -addext subjectAltName=DNS:{NAME} 2>&1"
    )
    server.path("/etc/nginx/nginx.conf").write_text("events {}\nhttp {\n" + block("server {", "nginx") + "}\n")
    server.types("systemctl restart cluster-dash-server && systemctl start nginx")


def _set_up_host(site: Site) -> None:
    """Set up the GPU host: its driver's library is the stand-in."""
    host = site.host
    shutil.copy(fake_nvml() / "libnvidia-ml.so.1", host.path("/usr/lib"))
    host.path("/etc/fake-nvml.conf").write_text((FAKE_NVML / "h100x8.conf").read_text())
    drop_in = host.path("/etc/systemd/system/cluster-dash-mole.service.d/driver.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nEnvironment=FAKE_NVML_CONFIG=/etc/fake-nvml.conf\n")
    host.types("tar xzf cluster-dash-*.tar.gz && mv cluster-dash-*/ cluster-dash")
    ca = site.server.path("/etc/ssl/dash.pem").read_text()
    host.path("/etc/ssl/dash-ca.pem").write_text(ca)
    mole = block("[Poll_Settings]", "toml") + 'ca_file = "/etc/ssl/dash-ca.pem"\n'
    host.path(f"{UNPACKED}/mole.toml").write_text(mole)
    shutil.copy(site.server.path("/etc/cluster-dash/passcode"), host.path(f"{UNPACKED}/auth_code"))
    host.types(block("sh install.sh mole  "), folder=UNPACKED)


def test_both_run_by_their_units_without_rights_and_the_host_is_shown_with_its_gpus(site: Site) -> None:
    site.hears()
    assert len(site.told("/api/v1/cluster")["gpus"]["state"]) == 8
    for each, unit in ((site.server, "cluster-dash-server"), (site.host, "cluster-dash-mole")):
        assert (shown(each, unit, "SubState"), shown(each, unit, "NRestarts")) == ("running", "0")
        status = each.path(f"/proc/{shown(each, unit, 'MainPID')}/status").read_text()
        assert re.search(r"^Uid:\t(?!0\t)", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)


def test_rules_of_alerts_are_taken_up_by_a_reload(site: Site) -> None:
    pid = shown(site.server, "cluster-dash-server", "MainPID")
    site.server.types("systemctl reload cluster-dash-server")
    assert shown(site.server, "cluster-dash-server", "MainPID") == pid


def test_a_host_trades_a_code_for_a_token_of_its_own(site: Site) -> None:
    said = site.server.types(block("cluster-dash-server token new --enrol"))
    (code,) = re.findall(r"^\s*(\S*cde_\S+|\S{20,})\s*$", said, re.MULTILINE)
    site.host.path(f"{UNPACKED}/code").write_text(code)
    passcode = site.host.path("/etc/cluster-dash/auth_code").read_text()
    site.host.types(block("cluster-dash-mole enrol"), folder=UNPACKED)
    assert site.host.path("/etc/cluster-dash/auth_code").read_text() != passcode
    assert site.host.path("/etc/cluster-dash/auth_code").stat().st_mode & 0o777 == 0o600
    site.hears()
    assert "gpu001" in site.server.types("cluster-dash-server token list --data /var/lib/cluster-dash")


def test_what_a_backup_has_is_there_again_after_it_is_restored(site: Site) -> None:
    site.server.types("install -d /var/backups")
    site.server.types(block("cluster-dash-server backup"))
    site.server.types(block("systemctl stop cluster-dash-server\ncluster-dash-server restore"))
    site.hears()  # by its token


def test_both_are_brought_up_to_date_in_the_folder_of_a_new_archive(site: Site) -> None:
    server, mole = block("sh install.sh server && systemctl").splitlines()
    (folder,) = (f"/srv/{each.name}" for each in site.server.path("/srv").glob("cluster-dash-*/"))
    site.server.types(server, folder=folder)
    assert site.told("/api/v1/hosts/gpu001")["host"] == "gpu001"
    site.host.types(mole, folder=UNPACKED)
    site.hears()


def test_a_server_that_is_killed_is_back_by_itself(site: Site) -> None:
    site.server.types(f"kill -9 {shown(site.server, 'cluster-dash-server', 'MainPID')}")
    site.hears()
    assert shown(site.server, "cluster-dash-server", "NRestarts") == "1"


def test_a_wrong_setting_keeps_the_server_down_and_the_journal_names_it(site: Site) -> None:
    settings = site.server.path("/etc/cluster-dash/server.toml")
    good = settings.read_text()
    settings.write_text(good.replace("public_url", "pubic_url"))
    site.server.types("! systemctl restart cluster-dash-server")
    assert shown(site.server, "cluster-dash-server", "ActiveState") == "failed"
    assert "pubic_url" in site.server.types("journalctl -u cluster-dash-server -n 5 -o cat")
    settings.write_text(good)
    site.server.types("systemctl restart cluster-dash-server")
    site.hears()


def test_a_passcode_reaches_the_server_with_an_old_systemd(site: Site) -> None:
    site.server.types(block("groupadd --system cluster-dash"))
    passcode = site.server.path("/etc/cluster-dash/passcode").read_text().strip()
    body = orjson.dumps({**snapshot("gpu002"), "auth_code": passcode})
    site.server.path("/srv/body").write_bytes(body)
    site.server.types("curl -fsS -H 'Content-Type: application/json' --data-binary @body http://localhost:8080/")


def test_a_mole_runs_without_root_by_the_systemd_of_a_login(site: Site, archive: Path) -> None:
    with machine("ws1") as own:
        own.types("useradd --create-home ann && loginctl enable-linger ann")
        shutil.copy(archive, own.path("/home/ann"))
        home = "/home/ann"
        own.types("tar xzf cluster-dash-*.tar.gz && mv cluster-dash-*/ cluster-dash", folder=home, user="ann")
        settings = own.path(f"{home}/.config/cluster-dash/config.toml")
        own.types("mkdir -p .config/cluster-dash", folder=home, user="ann")
        settings.write_text('[Json_Sender_Logger]\nuse = true\naddress_in = "http://127.0.0.1:9"\n')
        (installs,) = re.findall(r"`(sh install\.sh mole ~/\S+)`", (TOP / "setup.md").read_text())
        own.types(installs, folder=f"{home}/cluster-dash", user="ann")
        # the last line is for a session, and for polkit to allow it: root has said the same above
        *lines, lingers = block("mkdir -p ~/.config/systemd/user").splitlines()
        assert lingers == "loginctl enable-linger"
        own.types("\n".join(lines), folder=f"{home}/cluster-dash", user="ann")
        said = own.types("systemctl --user show cluster-dash-mole -p SubState,NRestarts", folder=home, user="ann")
        assert said.split() == ["NRestarts=0", "SubState=running"]


@pytest.mark.soak
@pytest.mark.needs("ansible-playbook")
def test_ansible_sets_a_host_up_and_changes_nothing_the_next_time(archive: Path) -> None:
    with machine("gpu002") as host:
        shutil.copytree(TOP / "etc" / "ansible", host.path("/srv/ansible"))
        shutil.copy(archive, host.path("/srv/archive.tar.gz"))
        host.path("/srv/inventory").write_text(
            "[gpu]\ngpu002 ansible_connection=local ansible_become=false ansible_python_interpreter=/usr/bin/python3\n"
        )
        host.path("/srv/auth_code").write_text("of the site")
        play = (
            "ansible-playbook -i inventory ansible/mole.yml -e cluster_dash_url=https://dash.example.org/ "
            "-e cluster_dash_archive=/srv/archive.tar.gz -e cluster_dash_auth_code_file=/srv/auth_code"
        )
        for changed in (True, False):
            said = host.types(play)
            assert re.search(r"changed=0\b", said) is None if changed else re.search(r"changed=0\b", said)
            assert shown(host, "cluster-dash-mole", "SubState") == "running"
        # what was left half done is done
        host.path("/opt/cluster-dash-mole/installed.lock").unlink()
        assert "changed=2 " in host.types(play)  # it is installed, and restarted


def test_nothing_is_left_of_what_is_removed(site: Site) -> None:
    for each in (site.server, site.host):
        each.types(block("systemctl stop 'cluster-dash-*'"))
        assert each.types("find /etc /opt /usr/local /var/lib /run -xdev -name '*cluster-dash*'") == ""
        assert each.types("ps -eo comm | grep cluster-dash || true") == ""
