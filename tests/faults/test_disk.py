"""A mole's disk that is full or read-only, on a real file system: nothing is lost that memory can hold."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.chaos import Chaos
from tests.processes import wait_until

NAME = "mole00"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB where the mole keeps its state."""
    folder = tmp_path / NAME
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"this machine lets nobody mount: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", "-R", str(folder)], check=True)


def outage(chaos: Chaos, seconds: float) -> None:
    """Take the server away for so long."""
    chaos.proxy.weather.refuse = True
    process = chaos._moles[NAME]
    wait_until(lambda: b"CD102" in process.output, 20, "the mole has noticed")
    wait_until(lambda: not chaos.proxy.is_busy, 20, "what was on its way has come")
    known = len(chaos.oracle.sent)
    time.sleep(seconds)
    assert len(chaos.oracle.sent) == known
    chaos.proxy.weather.refuse = False
    wait_until(lambda: len(chaos.oracle.sent) > known, 20, "it is back")


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_cannot_be_written_loses_nothing(trouble: str, small_disk: Path, tmp_path: Path) -> None:
    with Chaos(tmp_path, moles=1, seed=1) as chaos:
        wait_until(lambda: len(chaos.oracle.sent) >= 2, 20, "it is live")
        if trouble == "full":
            with (small_disk / "filler").open("wb") as filler, pytest.raises(OSError, match="No space"):
                filler.write(os.urandom(2**17))
        else:
            (small_disk / "spool").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(small_disk / "spool")], check=True)
        outage(chaos, 6)
        mole = chaos._moles[NAME]
        wait_until(lambda: b"no file can be written" in mole.output, 20, "the mole says so")
        verdict = chaos.settle()
    assert (verdict.lost, verdict.missing, verdict.double) == ([], [], [])
    assert verdict.rows >= 6


@pytest.mark.clocked
def test_a_frozen_mole_and_a_frozen_server_lose_nothing_and_cause_no_burst(tmp_path: Path) -> None:
    with Chaos(tmp_path, moles=1, seed=1) as chaos:
        wait_until(lambda: len(chaos.oracle.sent) >= 2, 20, "it is live")
        for process in (chaos._moles[NAME], chaos.server):
            os.kill(process.popen.pid, signal.SIGSTOP)
            try:
                time.sleep(2)  # what was on its way comes
                known = len(chaos.oracle.sent)
                time.sleep(4)
                assert len(chaos.oracle.sent) == known
            finally:
                os.kill(process.popen.pid, signal.SIGCONT)
            wait_until(lambda: len(chaos.oracle.sent) >= known + 2, 20, "it goes on")  # noqa: B023
        verdict = chaos.settle()
    assert (verdict.lost, verdict.missing, verdict.double) == ([], [], [])
