"""Standard output: one line of JSON a snapshot, for a pipe or a log."""

import json
import sys
from typing import TextIO

from cluster_dash_mole.mole import Row, SendError
from cluster_dash_mole.snapshot import Snapshot


class StdoutSender:
    """Writes each snapshot as one line, without the secret."""

    name = "stdout"

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def send(self, snapshot: Snapshot) -> None:
        """Write the snapshot.

        Raises:
            SendError: the stream is closed or full.
        """
        try:
            self._stream.write(json.dumps(snapshot.document(), allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise SendError(f"cannot write to standard output: {error.strerror}", row=Row.TROUBLE) from error
