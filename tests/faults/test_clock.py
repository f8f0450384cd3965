"""Steps of a mole's clock in mid-run, by libfaketime: nothing is lost, nobody seems down, and history is in order."""

import json
import shutil
import sqlite3
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from cluster_dash_server.history.sqlite.store import FILE
from tests.faults.chaos import Chaos
from tests.processes import wait_until

DAY = 86_400
NAME = "mole00"


def library() -> Path:
    """Return libfaketime, where the command `faketime` has it."""
    found = sorted(Path(shutil.which("faketime") or "").resolve().parents[1].glob("lib*/**/libfaketime.so.1"))
    return found[0]


def posts(chaos: Chaos) -> int:
    return sum(who.hostname == NAME for who in list(chaos.oracle.sent))


def state(chaos: Chaos) -> str:
    with urllib.request.urlopen(f"{chaos.server.url}/api/v1/hosts/{NAME}", timeout=60) as answer:
        return str(json.load(answer)["state"])


@pytest.mark.needs("faketime")
@pytest.mark.parametrize("outage", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_steps_of_the_clock_lose_nothing_and_raise_no_false_down(outage: bool, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = {
        "LD_PRELOAD": str(library()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    began = time.time()
    states = set()
    with Chaos(tmp_path, moles=0, seed=1) as chaos:
        chaos._names = [NAME]
        chaos.start_mole(NAME, environment=fake)
        for step in ("+0", f"+{DAY}", "-3600", f"-{DAY}", "+0"):
            fresh = clock.with_suffix(".new")
            fresh.write_text(step)
            fresh.rename(clock)  # never half written
            if outage and step.startswith("+8"):
                chaos.proxy.weather.refuse = True
            known = posts(chaos)
            if chaos.proxy.weather.refuse:
                time.sleep(4)
                chaos.proxy.weather.refuse = False
            wait_until(lambda: posts(chaos) >= known + 3, 30, "it posts on")  # noqa: B023 - called at once
            states.add(state(chaos))
        verdict = chaos.settle()
    assert (verdict.lost, verdict.missing, verdict.double, verdict.changed) == ([], [], [], [])
    assert verdict.rows >= 15
    assert states & {"stale", "down"} == set()
    with closing(sqlite3.connect(tmp_path / "data" / FILE)) as db:
        events = [kind for (kind,) in db.execute("SELECT kind FROM events")]
        moments = [at for (at,) in db.execute("SELECT at FROM hot ORDER BY seq")]
    assert "host_silent" not in events
    if not outage:  # what waits while the clock is set is dated by the clock that it is sent with
        impossible = [at for at in moments if not began - 5 <= at <= time.time() + 5]
        assert len(impossible) <= 4, "at each step one may have been on its way"
