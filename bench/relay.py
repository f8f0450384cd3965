"""A fleet behind a relay: the centre's CPU per snapshot beside direct posts, and how soon a host is live there."""

import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.harness import Figure, get, post
from tests.processes import BIN, Listening, Process, body_of, snapshot, start_server, wait_until

HOSTS = 500
INTERVAL_SECONDS = 5
SECONDS = 20
PROBES = 20
PASSCODE = {"CLUSTER_DASH_INGEST__PASSCODE": "lab_cluster_2025"}
"""Set by the site, as the shipped one is not taken through a relay."""


def run(runs: int) -> list[Figure]:
    """Measure: a fleet posts directly, then the same fleet through a relay."""
    runs = min(runs, 3)
    direct, relayed, own, lags, lost = [], [], [], [], []
    for _ in range(runs):
        with ExitStack() as stack:
            centre = _ready(stack.enter_context(start_server(environment=PASSCODE)))
            with _fleet(centre.url):
                direct.append(_cpu_ms(centre, [centre])[0])
        with ExitStack() as stack:
            centre = _ready(stack.enter_context(start_server(environment=PASSCODE)))
            relay = _ready(stack.enter_context(start_server(environment={"CLUSTER_DASH_RELAY__TO": centre.url})))
            with _fleet(relay.url):
                costs = _cpu_ms(centre, [centre, relay])
                lags += _lags(relay.url, centre.url)
            relayed.append(costs[0])
            own.append(costs[1])
            said = json.loads(get(centre.url, "/readyz") or b"{}")
            lost.append(HOSTS + 1 - said["hosts"])
    lag = statistics.quantiles(lags, n=20)[-1]
    name = f"{HOSTS} hosts at {INTERVAL_SECONDS} s behind a relay"
    return [
        Figure(
            name=f"{name}: centre's CPU per snapshot, beside direct posts",
            value=statistics.median(relayed),
            unit="ms",
            reference=statistics.median(direct),
        ),
        Figure(name=f"{name}: the relay's own CPU per snapshot", value=statistics.median(own), unit="ms"),
        Figure(
            name=f"{name}: from the begin of a post to the centre's live view, p95",
            value=lag,
            unit="s",
            target="≤ 2 s",
            met=lag <= 2,
        ),
        Figure(name=f"{name}: hosts that are not live", value=max(lost), unit="", target="0", met=max(lost) == 0),
    ]


def _ready(server: Listening) -> Listening:
    wait_until(lambda: get(server.url, "/healthz") is not None)
    return server


@contextmanager
def _fleet(url: str) -> Iterator[None]:
    """Let a fleet post."""
    command: list[str | Path] = [BIN / "cluster-dash-mole", "simulate", "--server", url, "--hosts", str(HOSTS)]
    with Process([*command, "--interval", str(INTERVAL_SECONDS), "--seconds", "600", "--quiet"]):
        time.sleep(INTERVAL_SECONDS + 2)  # the first round makes the hosts known
        yield


def _cpu_ms(centre: Listening, processes: list[Listening]) -> list[float]:
    """Return the CPU time of each process per snapshot that the centre takes in some intervals."""
    before, taken = [each.cpu_seconds() for each in processes], _taken(centre)
    time.sleep(SECONDS)
    spent = [each.cpu_seconds() - used for each, used in zip(processes, before, strict=True)]
    count = _taken(centre) - taken
    return [seconds / count * 1000 for seconds in spent]


def _taken(centre: Listening) -> int:
    said: dict[str, Any] = json.loads(get(centre.url, "/api/v1/status") or b"{}")
    return int(said["ingest"]["taken"])


def _lags(relay_url: str, centre_url: str) -> list[float]:
    """Post one host of our own among the others, and look how soon the centre's live view has each snapshot (s)."""
    told: list[float] = []
    for number in range(PROBES):
        percent = float(number)
        load = {"cpu_percent": percent, "load_avgs": [0, 0, 0], "num_cpus": 1}
        body = body_of({**snapshot("probe"), "cpu": load})
        began = time.monotonic()
        poster = threading.Thread(target=post, args=(relay_url, [body]))
        poster.start()
        wait_until(lambda percent=percent: _shown(centre_url) == percent, what="it is shown")  # type: ignore[misc]
        told.append(time.monotonic() - began)
        poster.join()
    return told


def _shown(url: str) -> float | None:
    """Return what the live view, as pages ask for it, has of our host."""
    hosts = json.loads(get(url, "/api/v1/cluster?q=host:probe&columns=cpu_percent") or b"{}").get("hosts", {})
    return next((float(each) for each in hosts.get("cpu_percent", []) if each is not None), None)
