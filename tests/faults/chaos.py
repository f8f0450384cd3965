"""Moles and a server as real processes, killed at random, behind a proxy that loses answers; and their orderly end."""

import contextlib
import json
import random
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.faults.oracle import Oracle, Verdict
from tests.faults.proxy import FaultProxy, Weather
from tests.processes import Listening, Process, wait_until

MOLE = (
    "import select, socket, sys, time; socket.gethostname = lambda: sys.argv[1];"
    " time.sleep = lambda seconds: select.select([], [], [], seconds);"
    " from cluster_dash_mole import cli; sys.exit(cli.main(['run', '-c', sys.argv[2]]))"
)
"""A mole under another name, as all that run here would have this machine's, and with a sleep that libfaketime knows:
it refuses the one of Python 3.11."""
SERVER = (
    "import sys; from cluster_dash_server.history.sqlite import store as sqlite; sqlite.COMMIT_SECONDS = 1.0;"
    " from cluster_dash_server import cli; sys.exit(cli.main(sys.argv[1:]))"
)
"""A server that commits as rarely as the contract allows."""
ACKNOWLEDGE_BEFORE_COMMIT = (
    "from cluster_dash_server.history.sqlite import store as sqlite;"
    " sqlite.SqliteStore.durable_seq = lambda self, host, boot, oldest:"
    " self._snapshots._hosts[host][boot].taken.last_from(oldest)"
    " if boot in self._snapshots._hosts.get(host, ()) else None;"
)
"""A bug to plant: what is only taken counts as durable."""


class Chaos:
    """Some moles, a server, a proxy between them, and an oracle; ends what it started with its block.

    Args:
        folder: for configurations, state and data.
        moles: how many.
        seed: decides who is killed when, and whose answers are lost.
        planted: a piece of Python that the server runs first: a bug that the oracle must find.
        interval_seconds: of the moles.
    """

    def __init__(
        self, folder: Path, *, moles: int, seed: int, planted: str = "", interval_seconds: float = 1.0
    ) -> None:
        self.oracle = Oracle()
        self.kills = {"mole": 0, "server": 0}
        self._folder = folder
        self._random = random.Random(seed)
        self._planted = planted
        self._interval = interval_seconds
        self._stack = ExitStack()
        self._names = [f"mole{number:02}" for number in range(moles)]
        self._moles: dict[str, Process] = {}
        self.proxy = FaultProxy(1, seed=seed, watch=self.oracle.watch)

    @property
    def data(self) -> Path:
        """The server's data folder."""
        return self._folder / "data"

    def __enter__(self) -> Self:
        self._stack.enter_context(self.proxy)
        self.start_server()
        for name in self._names:
            self.start_mole(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_server(self) -> None:
        """Start the server, where it was."""
        command = [sys.executable, "-c", self._planted + SERVER, "serve", "--port", "0", "--data", str(self.data)]
        self.server = self._stack.enter_context(Listening(command, folder=self._folder))
        self.proxy.server_port = int(self.server.url.rpartition(":")[2])

    def start_mole(self, name: str, environment: dict[str, str] | None = None) -> None:
        """Start a mole, with the state it had."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        config = folder / "config.toml"
        config.write_text(
            f"[Poll_Settings]\npoll_interval_in_secs = {self._interval}\n[Json_Sender_Logger]\nuse = true\n"
            f'min_interval_in_secs = 0\naddress_in = "{self.proxy.url}"\nauth_code = "lab_cluster_2025"\n'
        )
        command = [sys.executable, "-c", MOLE, name, str(config)]
        more = {"STATE_DIRECTORY": str(folder), **(environment or {})}
        self._moles[name] = self._stack.enter_context(Process(command, environment=more, folder=folder))

    def kill_server(self) -> None:
        """Kill the server right after it took something, before it can have committed that, and start it again."""
        self.kills["server"] += 1
        known = self.oracle.statuses[200]
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self.oracle.statuses[200] >= known + 3, 5, "it takes something")
        _kill(self.server)
        self.start_server()

    def kill_mole(self, name: str | None = None) -> None:
        """Kill a mole and start it again."""
        self.kills["mole"] += 1
        name = name or self._random.choice(self._names)
        _kill(self._moles[name])
        self.start_mole(name)

    def rage(self, seconds: float, *, pause_seconds: float = 2.0, weather: Weather | None = None) -> None:
        """Kill for so long, at random moments, each kind twice at least; then the weather is fine again."""
        self.proxy.weather = weather or Weather(drop_answers=0.5)
        until = time.monotonic() + seconds
        while time.monotonic() < until or min(self.kills.values()) < 2:
            time.sleep(self._random.uniform(0, 2 * pause_seconds))
            if self._random.random() < 0.5:
                self.kill_server()
            else:
                self.kill_mole()
        self.proxy.weather = Weather()

    def spools(self) -> dict[str, dict[str, int]]:
        """Return what each host's newest snapshot says that its mole holds."""
        found = {}
        for name in self._names:
            with urllib.request.urlopen(f"{self.server.url}/api/v1/hosts/{name}", timeout=60) as answer:
                found[name] = json.load(answer)["snapshot"]["spool"]
        return found

    def settle(self, seconds: float = 120) -> Verdict:
        """Wait until no mole holds more than what it just sent, end all in good order, and judge."""

        def is_calm() -> bool:
            try:
                return all(spool["waiting"] <= 3 for spool in self.spools().values())
            except OSError:
                return False

        time.sleep(3 * self._interval)  # so that each has spoken since
        wait_until(is_calm, seconds, "the spools are empty")
        for mole in self._moles.values():
            mole.stop()
        self.server.stop()
        time.sleep(0.2)  # what came last is taken by the proxy
        wait_until(lambda: not self.proxy.is_busy, 20, "the oracle has heard of all")
        return self.oracle.judge(self.data)


def _kill(process: Process) -> None:
    process.popen.kill()  # the processes of its own end by themselves, as they would in the field
    process.popen.wait()
