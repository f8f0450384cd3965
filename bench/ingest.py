"""Server CPU per accepted post of an 8-GPU, 32-process snapshot, beside the plain server."""

import sys
from pathlib import Path

from bench.harness import Figure, medians, post
from tests.processes import TOP, Listening, body_of, snapshot, start_server

SCHEMA = TOP / "cluster-dash-server" / "cluster_dash_server" / "machine-post-schema.json"
AT_LEAST = 10


def run(runs: int) -> list[Figure]:
    """Measure."""
    bodies = [body_of(snapshot(f"gpu{number:02}")) for number in range(50)]

    def cpu_ms(server: Listening, posts: int) -> float:
        sent = [bodies[number % len(bodies)] for number in range(posts)]
        before = server.cpu_seconds()
        taken = post(server.url, sent)
        if taken != posts:
            raise RuntimeError(f"only {taken} of {posts} posts were taken: {server.output.decode()[-500:]}")
        return (server.cpu_seconds() - before) / posts * 1000

    plain: list[str | Path] = [sys.executable, TOP / "bench" / "plain_server.py", SCHEMA]
    with start_server() as ours, Listening(plain) as reference:
        post(ours.url, bodies)
        post(reference.url, bodies)
        value, beside = medians(runs, lambda: cpu_ms(ours, 1000), lambda: cpu_ms(reference, 100))
    name = f"server CPU per accepted post ({len(bodies[0]):,} bytes, waitress, a connection each)"
    return [
        Figure(
            name=name,
            value=value,
            unit="ms",
            reference=beside,
            target=f"≥ {AT_LEAST} × less",
            met=beside / value >= AT_LEAST,
        )
    ]
