import io
import json

import pytest

from cluster_dash_mole.mole import Row, SendError
from cluster_dash_mole.senders.stdout import StdoutSender
from cluster_dash_mole.snapshot import Snapshot

SNAPSHOT = Snapshot(
    hostname="gpu01\u2028",
    timestamp=1.0,
    interval_seconds=None,
    machine_id=None,
    boot_id=None,
    seq=None,
    parts={},
    collectors={},
)


def test_a_snapshot_is_one_line() -> None:
    stream = io.StringIO()
    StdoutSender(stream).send(SNAPSHOT)
    assert len(stream.getvalue().splitlines()) == 1
    assert json.loads(stream.getvalue()) == SNAPSHOT.document()


def test_a_closed_pipe_is_trouble() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SendError, match="Broken pipe") as caught:
        StdoutSender(Closed()).send(SNAPSHOT)
    assert caught.value.row is Row.TROUBLE
