"""Standard output, HTTP and Google Sheets beside each other, each failing in turn: the others never miss a round."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_mole.host import Host
from cluster_dash_mole.lane import Lane
from cluster_dash_mole.mole import Mole, Reading, Sender, SystemClock
from cluster_dash_mole.senders import GoogleSheetsSender, HttpSender, StdoutSender
from cluster_dash_mole.snapshot import Snapshot
from tests.processes import PATIENCE, wait_until
from tests.sheets import SPREADSHEET, Sheets, hangs_up

HOST = Host(hostname="gpu01", boot_id="boot", machine_id=None, boottime=None, os=None, kernel=None)
FAULTS = ("refused", "hangs", "raises")


class Rounds:
    """A collector whose figure is the number of the round, so that what arrives tells which round it is of."""

    name = "cpu"

    def __init__(self) -> None:
        self.count = 0

    def collect(self) -> Reading:
        self.count += 1
        return Reading(parts={"cpu": {"cpu_percent": self.count, "load_avgs": [0, 0, 0], "num_cpus": 1}, "gpu": {}})


@dataclass
class Way:
    """A sender and what it sends to, which can be made to fail: `got` gives the rounds that arrived there."""

    sender: Sender
    got: Callable[[], list[int]]
    break_: Callable[[str], None]
    mend: Callable[[], None]

    def __post_init__(self) -> None:
        self._raises = False

    @property
    def name(self) -> str:
        return self.sender.name

    def send(self, snapshot: Snapshot) -> None:
        if self._raises:
            raise RuntimeError("a fault of the sender itself")
        self.sender.send(snapshot)

    def fail(self, fault: str) -> None:
        self._raises = fault == "raises"
        if fault in ("refused", "hangs"):
            self.break_(fault)

    def heal(self) -> None:
        self._raises = False
        self.mend()


class Pipe(TextIOWrapper):
    """Standard output into a pipe, whose reader reads, has gone away, or has stopped reading until the pipe is full."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        super().__init__(os.fdopen(writing, "wb"), write_through=True)
        self.got: list[int] = []
        self._gone = False
        self._reads = threading.Event()
        self._reads.set()
        self._reader = threading.Thread(target=self._follow)
        self._reader.start()

    def write(self, text: str) -> int:
        if self._gone:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)

    def break_(self, fault: str) -> None:
        if fault == "refused":
            self._gone = True
            return
        self._reads.clear()
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self) -> None:
        with contextlib.suppress(OSError):
            while not self._reads.is_set():
                os.write(self.fileno(), b"\n")

    def mend(self) -> None:
        self._gone = False
        self._reads.set()

    def _follow(self) -> None:
        with os.fdopen(self._reading, "rb", buffering=0) as pipe:
            rest = b""
            while self._reads.wait() and (data := pipe.read(65536)):
                *lines, rest = (rest + data).split(b"\n")
                self.got += [json.loads(line)["cpu"]["cpu_percent"] for line in lines if line]

    def close(self) -> None:
        self.mend()
        super().close()
        self._reader.join()


class Server:
    """What the HTTP sender posts to: it takes, hangs up, or says nothing."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self._fault = ""
        self._healthy = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if server._fault == "hangs":
                    server._healthy.wait(60)
                elif not server._fault:
                    server.got.append(document["cpu"]["cpu_percent"])
                    body = b'{"success": true, "msg": "stored result"}'
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def break_(self, fault: str) -> None:
        self._healthy.clear()
        self._fault = fault

    def mend(self) -> None:
        self._fault = ""
        self._healthy.set()

    def close(self) -> None:
        self.mend()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def break_google(google: Sheets, healthy: threading.Event, fault: str) -> None:
    def hang(request: BaseHTTPRequestHandler) -> None:
        healthy.wait(60)
        hangs_up(request)

    healthy.clear()
    google.fault = hang if fault == "hangs" else hangs_up


def mend_google(google: Sheets, healthy: threading.Event) -> None:
    google.fault = None
    healthy.set()


@pytest.fixture
def ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Way]]:
    healthy = threading.Event()
    with (
        contextlib.closing(Pipe()) as pipe,
        contextlib.closing(Server()) as server,
        Sheets("gpu01") as google,
    ):
        google.take_the_place_of_google(monkeypatch)
        key = str(google.key_file(tmp_path))
        sheets = GoogleSheetsSender(key_file=key, spreadsheet_id=SPREADSHEET, worksheet_name="!hostname")
        http = HttpSender(address=server.url, auth_code=None, clock=SystemClock(), environ={})
        all_ways = [
            Way(StdoutSender(pipe), lambda: pipe.got, pipe.break_, pipe.mend),
            Way(http, lambda: server.got, server.break_, server.mend),
            Way(
                sheets,
                lambda: [row[3] for row in google.sheets["gpu01"]],
                partial(break_google, google, healthy),
                partial(mend_google, google, healthy),
            ),
        ]
        yield all_ways
        for way in all_ways:
            way.heal()


def mole(ways: list[Way], rounds: Rounds, clock: SystemClock) -> Mole:
    lanes = [Lane(way, interval=1, clock=clock) for way in ways]
    for lane in lanes:
        lane.start()
    return Mole(host=HOST, collectors=[rounds], lanes=lanes, interval=1, clock=clock, count=lambda: rounds.count)


def schedule(ways: list[Way], rounds_each: int) -> list[tuple[Way, str] | None]:
    """Return what fails in each round: each way in each manner for some rounds, then nothing for one."""
    plan: list[tuple[Way, str] | None] = [None]
    for way in ways:
        for fault in FAULTS:
            plan += [(way, fault)] * rounds_each + [None]
    return plan


def set_fault(ways: list[Way], failing: tuple[Way, str] | None) -> None:
    if failing is None:
        for way in ways:
            way.heal()
    else:
        failing[0].fail(failing[1])


def test_each_round_reaches_all_senders_but_the_one_that_fails(ways: list[Way]) -> None:
    rounds = Rounds()
    subject = mole(ways, rounds, SystemClock())
    for failing in schedule(ways, rounds_each=3):
        set_fault(ways, failing)
        began = time.monotonic()
        subject.round()
        for way in ways:
            if failing is None or way is not failing[0]:
                wait_until(lambda way=way: rounds.count in way.got(), 10, f"round {rounds.count} by {way.name}")  # type: ignore[misc]
        assert time.monotonic() - began < 5 * PATIENCE  # what hangs here does so for longer
    for way in ways:
        assert len(set(way.got())) == len(way.got())


@pytest.mark.soak
def test_a_minute_of_rounds_by_the_clock_reaches_all_senders_but_the_one_that_fails(ways: list[Way]) -> None:
    rounds = Rounds()
    plan = schedule(ways, rounds_each=6)

    class Ended(Exception):
        pass

    class Clock(SystemClock):
        def sleep(self, seconds: float) -> None:  # type: ignore[override]
            time.sleep(seconds)
            if rounds.count == len(plan):
                raise Ended
            set_fault(ways, plan[rounds.count])

    started = time.monotonic()
    with pytest.raises(Ended):
        mole(ways, rounds, Clock()).run()
    assert time.monotonic() - started > 60
    for way in ways:
        missed = set(range(1, rounds.count + 1)) - set(way.got())
        assert missed <= {number for number, failing in enumerate(plan, 1) if failing and failing[0] is way}, way.name
