"""The lab itself: a real Slurm of several nodes starts here, within seconds."""

from pathlib import Path

import pytest

from tests.slurm_lab import Lab

pytestmark = [pytest.mark.needs("slurmctld"), pytest.mark.needs("root")]


def test_a_cluster_of_five_nodes_starts_without_accounting_and_ends_with_its_block() -> None:
    with Lab(accounting=False) as lab:
        assert lab.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines()[:2] == ["cpu1 idle", "cpu2 idle"]
        pid = lab.daemon("slurmctld")
    assert not lab.folder.exists()
    assert not Path(f"/proc/{pid}/exe").exists()  # a zombie waits for its parent
