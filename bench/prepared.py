"""A fleet whose snapshots were made before it posts: so a benchmark's own CPU leaves the servers what they need.

python bench/prepared.py SERVER HOSTS INTERVAL_SECONDS SECONDS

Prints a line as it begins to post, and a JSON object of what became of the posts when it ends.
"""

import json
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from cluster_dash_mole.simulate.fleet import Fleet, SimulatedHost  # noqa: E402 - as run.py does
from cluster_dash_mole.simulate.swarm import Swarm  # noqa: E402

TAKES = 2
"""Snapshots of a host, an interval apart, which it posts in turn."""
PASSCODE = "lab_cluster_2025"
_COUNTED = re.compile(rb'(.*?"timestamp":)[0-9.]+(,.*?"seq":)[0-9]+(,.*})', re.DOTALL)


def main(server: str, hosts: int, interval_seconds: float, seconds: float) -> None:
    """Make the snapshots, post them, and say what became of it."""
    place = urlsplit(server)
    fleet = Fleet(
        seed=1, hosts=hosts, gpus=8, interval_seconds=interval_seconds, began_at=time.time(), faults=False
    ).build()
    bodies = [bodies_of(host, interval_seconds) for host in fleet]
    with socket.create_connection((place.hostname, place.port)) as connection:
        family, peer = connection.family, connection.getpeername()
    swarm = Swarm(
        family=family,
        peer=peer,
        head=_head(place.netloc),
        bodies=bodies,
        interval_seconds=interval_seconds,
        most_open=200,
    )
    print("posts", flush=True)
    swarm.run(seconds, lambda text: None)
    told = swarm.total()
    print(
        json.dumps(
            {
                "statuses": {str(status): count for status, count in told.statuses.items()},
                "lost": told.refused + told.timeouts + told.failed,
                "late": told.late,
            }
        ),
        flush=True,
    )


def bodies_of(host: SimulatedHost, interval_seconds: float) -> Callable[[float], bytes]:
    """Return what gives the bodies of a host: some in turn, each under a number and a moment of its own."""
    began = time.time()
    takes = cycle([_parts(host, began + take * interval_seconds) for take in range(TAKES)])
    seq = int(began * 1000)

    def at(now: float) -> bytes:
        nonlocal seq
        seq += 1
        before, between, after = next(takes)
        return b"%b%.3f%b%d%b" % (before, now, between, seq, after)

    return at


def _parts(host: SimulatedHost, at: float) -> Sequence[bytes]:
    """Return a snapshot without its moment and its number: what stands before, between and after them."""
    snapshot = host.snapshot(at, 1)
    document = {} if snapshot is None else {**snapshot.document(), "auth_code": PASSCODE}
    found = _COUNTED.fullmatch(json.dumps(document, separators=(",", ":")).encode())
    if found is None:
        raise ValueError(f"{host.hostname}: no snapshot with a timestamp before its seq")
    return found.groups()


def _head(host: str) -> Callable[[float], bytes]:
    lines = ("POST / HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Type: application/json", "Date: ")
    fixed = "\r\n".join(lines).encode()
    return lambda now: fixed + formatdate(now, usegmt=True).encode() + b"\r\n"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
