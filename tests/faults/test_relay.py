"""A relay between a fleet and the server: killed and paused under load, as the server is; and 500 hosts behind it."""

import json
import random
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.crew import Crew
from tests.faults.oracle import Oracle, Verdict
from tests.faults.proxy import FaultProxy, Passage
from tests.processes import BIN, Listening, Process, start_server, wait_until

PASSCODE = {"CLUSTER_DASH_INGEST__PASSCODE": "lab_cluster_2025"}
"""Set by the site, as the shipped one is not taken through a relay."""


class Line:
    """A proxy for the oracle, a relay, a proxy that knows where the centre is now, and the centre.

    Args:
        data: the centre's data folder.
        oracle: listens before the relay.
    """

    def __init__(self, data: Path, oracle: Oracle) -> None:
        self._data = data
        self._stack = ExitStack()
        self.to_centre: list[Passage] = []
        self.centre_at = self._stack.enter_context(FaultProxy(1, watch=self.to_centre.append))
        self.relay_at = self._stack.enter_context(FaultProxy(1, watch=oracle.watch))
        self.start_centre()
        self.start_relay()

    def start_centre(self) -> None:
        self.centre = self._stack.enter_context(start_server("--data", self._data, environment=PASSCODE))
        self.centre_at.server_port = _port(self.centre)

    def start_relay(self) -> None:
        self.relay = self._stack.enter_context(start_server(environment={"CLUSTER_DASH_RELAY__TO": self.centre_at.url}))
        self.relay_at.server_port = _port(self.relay)

    def kill_relay(self) -> None:
        """Kill it as it stands, whatever it had taken and not passed on or answered."""
        self.relay_at.server_port = 1  # some other server here may get its port
        self.relay.popen.kill()
        self.relay.popen.wait()
        self.start_relay()

    def kill_centre(self) -> None:
        self.centre_at.server_port = 1
        self.centre.popen.kill()
        self.centre.popen.wait()
        self.start_centre()

    def pause(self, process: Process, seconds: float) -> None:
        """Let a process stand still, with all its connections open, as on a machine that hangs."""
        process.popen.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.popen.send_signal(signal.SIGCONT)

    def said(self, path: str) -> Any:
        with urllib.request.urlopen(self.centre.url + path, timeout=60) as answer:
            return json.load(answer)

    def close(self) -> None:
        self._stack.close()


def _port(process: Listening) -> int:
    return int(process.url.rpartition(":")[2])


@contextmanager
def line(data: Path, oracle: Oracle) -> Iterator[Line]:
    found = Line(data, oracle)
    try:
        yield found
    finally:
        found.close()


def rage(
    folder: Path, *, moles: int, interval: float, kills: int, pause_seconds: float, seed: int
) -> tuple[Verdict, dict[str, int]]:
    """Kill and pause relay and centre under load; return the verdict, and from where on each mole held snapshots."""
    oracle, chance = Oracle(), random.Random(seed)
    with line(folder / "data", oracle) as way:
        crew = Crew(
            way.relay_at.url, moles=moles, gpus=1, interval_seconds=interval, folder=folder / "spools", workers=64
        )
        oracle.sent = crew.sent
        with crew:
            crew.start()
            wait_until(lambda: len(crew.log.first_live) == moles, 60, "each is live")
            for number in range(kills):
                time.sleep(chance.uniform(0.2, 2 * interval))
                match number % 5:
                    case 2:
                        way.kill_centre()
                    case 3:
                        way.pause(way.centre, pause_seconds)
                    case 4:
                        way.pause(way.relay, pause_seconds)
                    case _:
                        way.kill_relay()
            newest: dict[str, int] = {}
            for who in list(crew.sent):
                newest[who.hostname] = max(who.seq, newest.get(who.hostname, 0))
            ended = time.monotonic()
            wait_until(lambda: all(seq > newest[host] for host, seq in crew.oldest().items()), 120, "all is durable")
            drained, oldest = time.monotonic() - ended, crew.oldest()
        assert way.relay.stop() == 0
        assert way.centre.stop() == 0
    assert oracle.claimed
    verdict = oracle.judge(folder / "data")
    print(f"{moles} moles, {kills} kills and pauses: {verdict.rows} rows, all durable {drained:.0f} s after the last")  # noqa: T201
    return verdict, oldest


def nothing_lost_or_doubled(verdict: Verdict, oldest: dict[str, int]) -> None:
    assert (verdict.missing, verdict.double, verdict.changed, verdict.unsent) == ([], [], [], [])
    assert [who for who in verdict.lost if who.seq < oldest[who.hostname]] == []
    assert verdict.rows > 2 * len(oldest)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_relay_and_centre_are_killed_and_paused_under_load(tmp_path: Path) -> None:
    nothing_lost_or_doubled(*rage(tmp_path, moles=30, interval=1.0, kills=6, pause_seconds=1.5, seed=1))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_same_for_five_hundred_hosts_and_sixty_kills(tmp_path: Path) -> None:
    nothing_lost_or_doubled(*rage(tmp_path, moles=500, interval=5.0, kills=60, pause_seconds=15, seed=2))


@pytest.mark.slow
def test_five_hundred_hosts_are_live_behind_one_connection(tmp_path: Path) -> None:
    with line(tmp_path / "data", Oracle()) as way:
        fleet = ["--hosts", "500", "--gpus", "2", "--interval", "5", "--seconds", "600", "--quiet"]
        with Process([BIN / "cluster-dash-mole", "simulate", "--server", way.relay.url, *fleet]):
            wait_until(lambda: way.said("/readyz")["hosts"] == 500, 60, "all hosts are live")
        said = way.said("/api/v1/status")["ingest"]
        assert (said["refused"], said["refusals"]) == (0, [])
        assert way.to_centre == [], "the first connection is still open"
        way.relay.stop()
        wait_until(lambda: way.to_centre, what="the connection ends")
        assert len(way.to_centre) == 1
