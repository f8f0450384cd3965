"""Server CPU per accepted snapshot of 8 GPUs and 32 processes, beside the plain server: single posts and batches."""

import sys
from collections.abc import Callable
from contextlib import ExitStack

import zstandard

from bench.harness import Figure, get, medians, post
from tests.processes import TOP, Listening, body_of, snapshot, start_server, wait_until

SCHEMA = TOP / "cluster-dash-server" / "cluster_dash_server" / "machine-post-schema.json"
BATCH = 50
MANY = "/api/v1/snapshots"


def plain_server() -> Listening:
    """Start the reference: the same job, done the plain way."""
    return Listening([sys.executable, TOP / "bench" / "plain_server.py", SCHEMA])


def run(runs: int) -> list[Figure]:
    """Measure."""
    bodies = [body_of(snapshot(f"gpu{number:02}")) for number in range(BATCH)]
    batch = b"\n".join(bodies)
    zstd = zstandard.ZstdCompressor(3).compress
    packed = [("Content-Encoding", "zstd")]

    def cpu_ms(server: Listening, snapshots: int, send: Callable[[], int]) -> float:
        before = server.cpu_seconds()
        taken = send()
        if taken != snapshots:
            raise RuntimeError(f"only {taken} of {snapshots} were taken: {server.output.decode()[-500:]}")
        return (server.cpu_seconds() - before) / snapshots * 1000

    def singles(server: Listening, count: int) -> Callable[[], float]:
        sent = (bodies * (count // BATCH + 1))[:count]
        return lambda: cpu_ms(server, count, lambda: post(server.url, sent))

    def batches(server: Listening, count: int, body: bytes, headers: list[tuple[str, str]]) -> Callable[[], float]:
        return lambda: cpu_ms(server, count * BATCH, lambda: BATCH * post(server.url + MANY, [body] * count, headers))

    with ExitStack() as stack:
        reference = stack.enter_context(plain_server())
        waitress = stack.enter_context(start_server())
        granian = stack.enter_context(start_server("--server", "granian"))
        for server in (reference, waitress, granian):
            wait_until(lambda server=server: get(server.url, "/healthz") is not None)  # type: ignore[misc]
            post(server.url, bodies)
        beside, *values = medians(
            runs,
            singles(reference, 50),
            singles(waitress, 1000),
            singles(granian, 1000),
            batches(waitress, 20, batch, []),
            batches(granian, 20, batch, []),
            batches(waitress, 20, zstd(batch), packed),
        )
    rows = [
        (f"single posts ({len(bodies[0]):,} bytes, a connection each), waitress", 25),
        ("the same, granian", 60),
        (f"batches of {BATCH}, waitress", 80),
        (f"batches of {BATCH}, granian", 80),
        (f"batches of {BATCH}, zstd ({len(zstd(batch)) // BATCH:,} bytes a snapshot), waitress", None),
    ]
    return [
        Figure(
            name=f"server CPU per snapshot: {name}",
            value=value,
            unit="ms",
            reference=beside,
            target="" if times is None else f"≥ {times} × less",
            met=None if times is None else beside / value >= times,
        )
        for (name, times), value in zip(rows, values, strict=True)
    ]
