"""The units: systemd's own checks of them, and what the mole tells systemd while things hang."""

import itertools
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from cluster_dash_mole import config
from cluster_dash_server.settings import Settings
from tests.processes import BIN, TOP, fake_nvml, start_mole, wait_until

UNITS = TOP / "systemd"
SYSTEM = ["cluster-dash-mole.service", "cluster-dash-server.service", "cluster-dash-nvdev.service"]
USER = ["cluster-dash-mole.service", "cluster-dash-server.service"]
EXPOSURE = {"cluster-dash-mole.service": 20, "cluster-dash-server.service": 15}
"""At most, in tenths of systemd's points."""

needs_systemd = pytest.mark.needs("systemd-analyze")


def startable(folder: Path, name: str, target: Path) -> Path:
    """Copy a unit and its drop-ins to where its programs exist; return the copy."""
    for source in (folder / name, *sorted((folder / f"{name}.d").glob("*.conf"))):
        copy = target / source.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        text = re.sub(r"^(Exec(?:Start|Reload)=-?)\S+", r"\1/bin/true", source.read_text(), flags=re.MULTILINE)
        copy.write_text(text)
    return target / name


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@needs_systemd
@pytest.mark.parametrize("name", SYSTEM)
def test_systemd_finds_nothing_to_say_about_a_unit(name: str, tmp_path: Path) -> None:
    for other in SYSTEM:
        startable(UNITS, other, tmp_path)
    done = run("systemd-analyze", "verify", tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", USER)
def test_systemd_finds_nothing_to_say_about_a_unit_of_a_user(name: str, tmp_path: Path) -> None:
    done = run(
        "systemd-analyze",
        "--user",
        "verify",
        startable(UNITS / "user", name, tmp_path),
        **{"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", EXPOSURE)
def test_a_unit_may_do_little_with_its_drop_ins_too(name: str, tmp_path: Path) -> None:
    done = run(
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={EXPOSURE[name]}",
        startable(UNITS, name, tmp_path),
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1]


@pytest.mark.parametrize("unit", [*UNITS.glob("*.service"), *UNITS.glob("user/*.service")], ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_exists_and_waits_for_its_word(unit: Path) -> None:
    text = unit.read_text()
    ours = re.search(r"^ExecStart=\S+/bin/(cluster-dash-\w+) (\w+)", text, re.MULTILINE)
    if ours is None:
        assert unit.name == "cluster-dash-nvdev.service"
        return
    assert run(BIN / ours[1], ours[2], "--help").returncode == 0
    for line in ("Type=notify", "WatchdogSec=60", "Restart=always", "RestartPreventExitStatus=78"):
        assert line in text.splitlines()


def test_settings_in_drop_ins_exist() -> None:
    known = {
        f"CLUSTER_DASH_{section}__{setting.name}".upper()
        for section, kind in (
            *((section.name, section.default_factory) for section in fields(Settings)),
            *config.SECTIONS.items(),
        )
        for setting in fields(kind)  # type: ignore[arg-type]
    }
    named = set()
    for drop_in in UNITS.glob("*.d/*.conf"):
        named |= set(re.findall(r"^Environment=(\w+)=", drop_in.read_text(), re.MULTILINE))
    assert named
    assert named <= known


class Manager:
    """A stand-in for systemd's end of the notify socket: `said` are the words, with when they came (s, monotonic)."""

    def __init__(self, path: Path, watchdog_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._watchdog_seconds = watchdog_seconds
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(watchdog_seconds * 1e6))}
        self.said: list[tuple[str, float]] = []

    def listen(self, seconds: float) -> list[str]:
        """Return what was said and not yet heard, and what is said from now on for so long."""
        until = time.monotonic() + seconds
        words = []
        while True:
            self._socket.settimeout(max(0.0, until - time.monotonic()))
            try:
                words.append(self._socket.recv(100).decode())
            except (TimeoutError, BlockingIOError):
                return words
            self.said.append((words[-1], time.monotonic()))

    def is_fed(self, seconds: float) -> bool:
        """Listen for so long; return whether the watchdog never had to wait for its food."""
        begun = time.monotonic()
        self.listen(seconds)
        pings = [begun, *(at for word, at in self.said if word == "WATCHDOG=1" and at > begun), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(pings)) < self._watchdog_seconds

    def hear(self, word: str) -> bool:
        """Listen for a moment; return whether a word was said at any time."""
        self.listen(0.1)
        return word in [said for said, _ in self.said]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    listening = Manager(tmp_path / "notify", watchdog_seconds=1.5)
    yield listening
    listening.close()


NOBODY = "http://127.0.0.1:9"


@pytest.mark.clocked
@pytest.mark.needs("gcc")
def test_a_mole_whose_driver_hangs_feeds_its_watchdog_and_one_that_is_stopped_does_not(
    manager: Manager, tmp_path: Path
) -> None:
    nvml = tmp_path / "nvml.conf"
    nvml.write_text("gpus = 2\nfault nvmlDeviceGetMemoryInfo* hang\n")
    fake_nvml()
    with start_mole(NOBODY, state=tmp_path, nvml=nvml, environment=manager.environment) as mole:
        wait_until(lambda: manager.hear("READY=1"), 20, "the word that it has started")
        wait_until(lambda: b"gpu: timeout" in mole.output, 20, "the driver hangs")
        # where the machine itself stands still, the best of some tries shows what the mole does
        assert any(manager.is_fed(5) for _ in range(5))

        mole.popen.send_signal(signal.SIGSTOP)
        manager.listen(0.5)  # what was on its way
        assert manager.listen(3) == []
        mole.popen.send_signal(signal.SIGCONT)
        wait_until(lambda: "WATCHDOG=1" in manager.listen(0.5), 20, "it feeds its watchdog again")

        assert mole.stop() == 0
        assert manager.listen(0.2)[-1] == "STOPPING=1"
    nvml.write_text("gpus = 2\n")  # the call returns, and the children end


@pytest.mark.clocked
def test_a_mole_with_a_long_interval_feeds_its_watchdog(manager: Manager, tmp_path: Path) -> None:
    with start_mole(NOBODY, state=tmp_path, interval_seconds=300, environment=manager.environment):
        wait_until(lambda: manager.hear("READY=1"), 20, "the word that it has started")
        assert any(manager.is_fed(3) for _ in range(5))
