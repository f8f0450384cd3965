"""How soon a server answers after its start, with an empty data folder."""

import statistics
import time

from bench.harness import Figure, get
from tests.processes import start_server, wait_until


def run(runs: int) -> list[Figure]:
    """Measure."""
    seconds = statistics.median(_seconds() for _ in range(runs))
    return [
        Figure(name="server answers after its start", value=seconds, unit="s", target="≤ 0.5 s", met=seconds <= 0.5)
    ]


def _seconds() -> float:
    begin = time.monotonic()
    with start_server() as server:
        wait_until(lambda: get(server.url, "/healthz") is not None)
        return time.monotonic() - begin
