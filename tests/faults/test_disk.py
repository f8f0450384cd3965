"""A mole's disk that is full or read-only, on a real file system: nothing is lost that memory can hold."""

import os
import subprocess
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
    known = len(chaos.oracle.sent)
    process = chaos._moles[NAME]
    wait_until(lambda: b"CD102" in process.output, 20, "the mole has noticed")
    with pytest.raises(TimeoutError):
        wait_until(lambda: len(chaos.oracle.sent) > known, seconds, "nothing comes", patience=1)
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
        assert b"no file can be written" in mole.output
        verdict = chaos.settle()
    assert (verdict.lost, verdict.missing, verdict.double) == ([], [], [])
    assert verdict.rows >= 8


@pytest.mark.clocked
def test_a_frozen_mole_and_a_frozen_server_lose_nothing_and_cause_no_burst(tmp_path: Path) -> None:
    with Chaos(tmp_path, moles=1, seed=1) as chaos:
        wait_until(lambda: len(chaos.oracle.sent) >= 2, 20, "it is live")
        for process in (chaos._moles[NAME], chaos.server):
            known = len(chaos.oracle.sent)
            os.kill(process.popen.pid, 19)
            try:
                with pytest.raises(TimeoutError):
                    wait_until(lambda: len(chaos.oracle.sent) > known + 1, 5, "nothing comes", patience=1)  # noqa: B023
            finally:
                os.kill(process.popen.pid, 18)
            wait_until(lambda: len(chaos.oracle.sent) >= known + 2, 20, "it goes on")  # noqa: B023
        verdict = chaos.settle()
    assert (verdict.lost, verdict.missing, verdict.double) == ([], [], [])
