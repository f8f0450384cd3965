"""kill -9 of moles and server at random, through a proxy that drops half of the answers."""

from pathlib import Path

import pytest

from tests.faults.chaos import ACKNOWLEDGE_BEFORE_COMMIT, Chaos
from tests.faults.oracle import Verdict


def run(folder: Path, *, seconds: float, moles: int, seed: int, planted: str = "") -> tuple[Verdict, Chaos]:
    folder.mkdir(exist_ok=True)
    with Chaos(folder, moles=moles, seed=seed, planted=planted) as chaos:
        chaos.rage(seconds, pause_seconds=1.0)
        return chaos.settle(), chaos


def test_nothing_acknowledged_is_missing_and_nothing_is_double_whoever_is_killed(tmp_path: Path) -> None:
    verdict, chaos = run(tmp_path, seconds=20, moles=6, seed=1)
    assert (verdict.missing, verdict.double, verdict.changed, verdict.unsent) == ([], [], [], [])
    assert verdict.rows >= 20
    assert len(verdict.lost) <= 2 * chaos.kills["mole"]


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_same_for_ten_minutes(tmp_path: Path) -> None:
    verdict, chaos = run(tmp_path, seconds=600, moles=5, seed=2)
    assert (verdict.missing, verdict.double, verdict.changed, verdict.unsent) == ([], [], [], [])
    assert len(verdict.lost) <= 2 * chaos.kills["mole"]


def test_the_oracle_finds_a_server_that_acknowledges_before_it_commits(tmp_path: Path) -> None:
    # a kill must come between the answer and the commit, which it may miss where the machine is slow
    verdicts = (
        run(tmp_path / str(seed), seconds=20, moles=6, seed=seed, planted=ACKNOWLEDGE_BEFORE_COMMIT)[0]
        for seed in range(1, 5)
    )
    assert any(verdict.missing for verdict in verdicts)
