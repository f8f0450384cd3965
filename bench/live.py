"""What looking costs: 200 viewers at 1,000 hosts, and the body of 10,000 hosts, beside rows of objects by jsonify."""

import http.client
import re
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

from bench.harness import WITHOUT_HISTORY, Figure, get, post
from bench.ingest import MANY, plain_server
from tests.processes import TOP, Listening, body_of, snapshot, start_server, wait_until

HOSTS, GPUS = 1000, 8
VIEWERS, POLL_SECONDS = 200, 5
READS = 400
MANY_HOSTS = 10_000
LINES = 100


def fill(server: Listening, hosts: int) -> list[bytes]:
    """Post a snapshot of each host; return the batches."""
    batches = [
        b"\n".join(body_of(snapshot(f"gpu{number:05}", GPUS)) for number in range(first, min(first + LINES, hosts)))
        for first in range(0, hosts, LINES)
    ]
    post(server.url + MANY, batches)
    return batches


def run(runs: int) -> list[Figure]:
    """Measure."""
    figures = []
    with ExitStack() as stack:
        ours = stack.enter_context(start_server())
        batches = fill(ours, HOSTS)
        reference = stack.enter_context(plain_server())
        post(reference.url, [body_of(snapshot(f"gpu{number:05}", GPUS)) for number in range(HOSTS // 10)])

        def read_ms(path: Callable[[], str], server: Listening, reads: int, encoding: str) -> float:
            before = server.cpu_seconds()
            for _ in range(reads):
                get(server.url, path(), encoding)
            return (server.cpu_seconds() - before) / reads * 1000

        whole = statistics.median(read_ms(lambda: "/api/v1/cluster", ours, READS, "zstd") for _ in range(runs))
        # the plain server holds a tenth of the hosts, or a run would take minutes: its cost grows with their number
        plain = 10 * statistics.median(read_ms(lambda: "/hosts", reference, 5, "identity") for _ in range(runs))
        figures.append(
            Figure(name=f"one read of {HOSTS:,} hosts × {GPUS} GPUs", value=whole, unit="ms", reference=plain)
        )
        for what, columns in (("", overview_columns()), (", with every column there is", "")):
            share = statistics.median(_viewers_percent(ours, batches, columns) for _ in range(runs))
            figures.append(
                Figure(
                    name=f"{VIEWERS} viewers of the overview every {POLL_SECONDS} s, {HOSTS:,} hosts that all change "
                    f"(posts not counted){what}",
                    value=share,
                    unit="% of a core",
                    target="≤ 5 %",
                    met=share <= 5,
                )
            )
    with start_server() as ours:
        fill(ours, MANY_HOSTS)
        get(ours.url, "/api/v1/cluster", "zstd")
        with_history = ours.memory_mib()
    with start_server(environment=WITHOUT_HISTORY) as ours:
        fill(ours, MANY_HOSTS)
        size = len(get(ours.url, "/api/v1/cluster", "zstd") or b"") // 1000
        ready = statistics.median(_ready_seconds(ours) for _ in range(runs))
        memory = ours.memory_mib()
    figures.append(
        Figure(
            name=f"{MANY_HOSTS:,} hosts × {GPUS} GPUs: body ready after a change ({size:,} kB in zstd)",
            value=ready,
            unit="s",
            target="≤ 1 s",
            met=ready <= 1,
        )
    )
    figures.append(
        Figure(
            name=f"{MANY_HOSTS:,} hosts × {GPUS} GPUs: memory of the server, history off",
            value=memory,
            unit="MiB",
            target="< 400 MB",
            met=memory * 2**20 < 400e6,
        )
    )
    figures.append(Figure(name="the same, history on, after one snapshot of each", value=with_history, unit="MiB"))
    return figures


def overview_columns() -> str:
    """Return the columns that the overview page asks for, as it asks."""
    script = (TOP / "cluster-dash-server/cluster_dash_server/static/js/api.js").read_text()
    return ",".join(re.findall(r'"(\w+)"', script.partition("OVERVIEW = [")[2].partition("];")[0]))


def _viewers_percent(server: Listening, batches: list[bytes], columns: str) -> float:
    """Return what the viewers cost: some seconds of posts with them, less the same without, before and after.

    They have looked before: what is counted is a moment of a long watch, not its beginning. Each second a fifth of the
    hosts post and a fifth of the viewers ask, each over a connection that it keeps, for what changed since its last
    version.
    """
    place = urlsplit(server.url)
    connections = [http.client.HTTPConnection(place.hostname or "", place.port, timeout=30) for _ in range(VIEWERS)]
    versions = [""] * VIEWERS
    each_second, group_size = len(batches) // POLL_SECONDS, VIEWERS // POLL_SECONDS

    def ask(viewer: int) -> None:
        path = f"/api/v1/cluster?columns={columns}&since={versions[viewer]}"
        connections[viewer].request("GET", path, headers={"Accept-Encoding": "gzip"})
        answer = connections[viewer].getresponse()
        answer.read()
        versions[viewer] = (answer.headers["ETag"] or "").strip('"')

    def percent(viewers: bool) -> float:
        before, begin = server.cpu_seconds(), time.monotonic()
        for second in range(2 * POLL_SECONDS):
            group = second % POLL_SECONDS
            due = begin + second
            time.sleep(max(0.0, due - time.monotonic()))
            post(server.url + MANY, batches[group * each_second : (group + 1) * each_second])
            for number in range(group_size if viewers else 0):
                time.sleep(max(0.0, due + number / group_size - time.monotonic()))
                ask(group * group_size + number)
        time.sleep(max(0.0, begin + 2 * POLL_SECONDS - time.monotonic()))
        return (server.cpu_seconds() - before) / (time.monotonic() - begin) * 100

    try:
        before = percent(False)
        for viewer in range(VIEWERS):
            ask(viewer)
        return percent(True) - (before + percent(False)) / 2
    finally:
        for connection in connections:
            connection.close()


def _ready_seconds(server: Listening) -> float:
    """Return how long after a change a whole body that holds it has arrived, for a viewer who asks all the time."""
    place = urlsplit(server.url)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as viewer:

        def new_version(known: str) -> str:
            viewer.request("GET", "/api/v1/cluster", headers={"Accept-Encoding": "zstd", "If-None-Match": known})
            answer = viewer.getresponse()
            answer.read()
            return (answer.headers["ETag"] or "") if answer.status == 200 else ""

        time.sleep(1.1)
        known = new_version("")
        begin = time.monotonic()
        post(server.url, [body_of({**snapshot("gpu00007", GPUS), "interval_seconds": 6 + int(begin) % 100})])
        wait_until(lambda: new_version(known), 10)
        return time.monotonic() - begin
