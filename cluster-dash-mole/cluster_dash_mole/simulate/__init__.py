"""The command `simulate`: posts believable snapshots of hosts that do not exist, for a demo and for load tests."""

import gc
import json
import logging
import math
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster_dash_mole import __version__
from cluster_dash_mole.mole import Row, SendError, SystemClock
from cluster_dash_mole.senders.http import HttpSender
from cluster_dash_mole.senders.http.exchange import CONNECT_SECONDS, Address, parse_address
from cluster_dash_mole.simulate import past
from cluster_dash_mole.simulate.fleet import Fleet, SimulatedHost
from cluster_dash_mole.simulate.slurm import INTERVAL_SECONDS, SimulatedSlurm
from cluster_dash_mole.simulate.swarm import Swarm, Tally
from cluster_dash_mole.simulate.work import BEFORE_SECONDS

log = logging.getLogger(__name__)

SHIPPED_PASSCODE = "lab_cluster_2025"
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False)
_FILES_BESIDE = 64  # what the process has open besides the connections
_MOST_NAMED = 8
_MENDS = {
    Row.WHO_ARE_YOU: "set CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE, or name a file with --auth-code-file",
    Row.NOT_NOW: "the server has no room: see its [limits]",
    Row.TROUBLE: "does the server run? cluster-dash-server serve",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What to simulate: a fleet, and how to post it. `seconds` None: for ever; `past_seconds`: also what was before."""

    address: Address
    auth_code: str
    hosts: int
    gpus: int
    interval_seconds: float
    seed: int
    faults: bool
    seconds: float | None
    quiet: bool
    as_json: bool
    slurm: bool = False
    past_seconds: float = 0.0


def run(simulation: Simulation) -> None:
    """Post until the time is over; whatever ends it, write what became of the posts to standard output.

    Raises:
        SendError: the server cannot be reached or did not take the first snapshot; the text says how to mend it.
    """
    began_at, clock = time.time(), SystemClock()
    fleet = Fleet(
        seed=simulation.seed,
        hosts=simulation.hosts,
        gpus=simulation.gpus,
        interval_seconds=simulation.interval_seconds,
        began_at=began_at,
        faults=simulation.faults,
        before_seconds=max(BEFORE_SECONDS, simulation.past_seconds),
    )
    hosts = fleet.build()
    slurm = SimulatedSlurm(hosts, seed=simulation.seed, began_at=began_at) if simulation.slurm else None
    _try_first(hosts[0], simulation, clock)
    family, peer = _peer(simulation.address)
    swarm = Swarm(
        family=family,
        peer=peer,
        head=_head(simulation.address),
        bodies=[_body(host, simulation.auth_code, slurm) for host in hosts],
        interval_seconds=simulation.interval_seconds,
        most_open=_room_for(simulation.hosts),
    )
    faults = [(host.hostname, host.fault.value) for host in hosts if host.fault]
    for hostname, fault in faults[:_MOST_NAMED]:
        _say(f"{hostname}: {fault}")
    if len(faults) > _MOST_NAMED:
        _say(f"… and {len(faults) - _MOST_NAMED} more hosts with faults")
    gc.freeze()  # thousands of hosts stay as they are: to look through them would hold posts up, and count as delay
    if simulation.past_seconds:
        threading.Thread(target=_tell_past, args=(simulation, fleet, clock), daemon=True).start()
    began, cpu_before = time.monotonic(), time.process_time()
    try:
        swarm.run(simulation.seconds, _keep_quiet if simulation.quiet else _say)
    finally:
        passed, cpu = time.monotonic() - began, time.process_time() - cpu_before
        tally = swarm.total()
        line = (
            json.dumps(summary(tally, passed, cpu)) if simulation.as_json else f"{passed:.0f} s: {tally.words(passed)}"
        )
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def summary(tally: Tally, seconds: float, cpu_seconds: float) -> dict[str, object]:
    """Return what `--json` prints: `posts` are those that were answered, times in ms are None where none was."""
    p50, p99 = tally.latencies.percentile(0.5), tally.latencies.percentile(0.99)
    posts = tally.statuses.total()
    return {
        "seconds": round(seconds, 3),
        "posts": posts,
        "posts_per_second": round(posts / seconds, 1),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "refused": tally.refused,
        "timeouts": tally.timeouts,
        "failed": tally.failed,
        "late": tally.late,
        "p50_ms": p50 and round(p50, 2),
        "p99_ms": p99 and round(p99, 2),
        "max_ms": tally.latencies.max_ms and round(tally.latencies.max_ms, 2),
        "cpu_seconds": round(cpu_seconds, 3),
    }


def parse_server(url: str) -> Address:
    """Return the address of a server.

    Raises:
        ValueError: it is none, or wants TLS, which would measure TLS.
    """
    try:
        address = parse_address(url)
    except ValueError as error:
        raise ValueError(f"--server: {error}") from None
    if address.tls:
        raise ValueError(f"--server: got {url!r}, expected http://HOST[:PORT]: simulated hosts post without TLS")
    return address


def read_auth_code(file: Path | None, from_environment: str | None) -> str:
    """Return the passcode to post with: of the file, else of the environment, else the shipped one.

    Raises:
        ValueError: the file cannot be read or is empty.
    """
    if file is None:
        return from_environment or SHIPPED_PASSCODE
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"--auth-code-file: {file}: cannot be read: {why}") from None
    if not secret:
        raise ValueError(f"--auth-code-file: {file}: is empty, expected the passcode")
    return secret


def _try_first(host: SimulatedHost, simulation: Simulation, clock: SystemClock) -> None:
    """Post the first snapshot as a mole does."""
    snapshot = host.snapshot(clock.now(), 1)
    try:
        if snapshot is not None:
            _sender(simulation, clock).send(snapshot)
    except SendError as error:
        url = f"http://{simulation.address.authority}{simulation.address.path}"
        mend = _MENDS.get(error.row)
        raise SendError(f"{url}: {error}" + (f": {mend}" if mend else ""), row=error.row) from error


def _tell_past(simulation: Simulation, fleet: Fleet, clock: SystemClock) -> None:
    """Tell what was before the night, beside the live posts."""
    found = past.snapshots(fleet, simulation.past_seconds)
    hours = simulation.past_seconds / 3600
    told = past.tell(_sender(simulation, clock), found, clock)
    refused = f"; {told.refused:,} were refused, such as {told.such_as}" if told.refused else ""
    if told.ended_by is None:
        _say(f"the past {hours:g} h are in history: {told.taken:,} snapshots{refused}")
    else:
        _say(f"the past {hours:g} h are not all in history, {told.taken:,} snapshots are: {told.ended_by}{refused}")


def _sender(simulation: Simulation, clock: SystemClock) -> HttpSender:
    """Return a mole's own sender, which knows what each refusal means."""
    address = simulation.address
    url = f"http://{address.authority}{address.path}"
    return HttpSender(address=url, auth_code=simulation.auth_code, clock=clock, environ={})


def _peer(address: Address) -> tuple[int, object]:
    """Return the family and the address of the server's socket, looked up once for the whole night."""
    try:
        with socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS) as connection:
            return connection.family, connection.getpeername()
    except OSError as error:
        raise SendError(f"{address.authority}: {error}", row=Row.TROUBLE) from error


def _head(address: Address) -> Callable[[float], bytes]:
    lines = [
        f"POST {address.path} HTTP/1.1",
        f"Host: {address.authority}",
        "Connection: close",
        "Content-Type: application/json",
        f"User-Agent: cluster-dash-mole/{__version__} simulate",
        "Date: ",
    ]
    fixed, made, head = "\r\n".join(lines).encode("latin-1"), 0, b""

    def at(now: float) -> bytes:
        nonlocal made, head
        if int(now) != made:
            made = int(now)
            head = fixed + time.strftime("%a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now)).encode()
        return head

    return at


def _body(host: SimulatedHost, auth_code: str, slurm: SimulatedSlurm | None = None) -> Callable[[float], bytes | None]:
    """Return what makes the bodies of a host; like a mole without a past it counts from the time in Unix ms.

    One host speaks for Slurm, too, once a minute, and at once when the night begins.
    """
    seq = int(time.time() * 1000)
    asks = slurm is not None and slurm.speaker is host
    asked_at = -math.inf

    def at(now: float) -> bytes | None:
        nonlocal seq, asked_at
        snapshot = host.snapshot(now, seq)
        if snapshot is None:
            return None
        seq += 1
        more: dict[str, object] = {"auth_code": auth_code}
        if asks and slurm is not None and now - asked_at >= INTERVAL_SECONDS:
            more["slurm"], asked_at = slurm.block(now), now
        return _ENCODER.encode({**snapshot.document(), **more}).encode()

    return at


def _room_for(hosts: int) -> int:
    """Raise the limit of open files as far as the hosts need it; return how many connections may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hosts + _FILES_BESIDE
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return hosts
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    _say(f"raised the limit of open files from {soft} to {raised}")
    if raised < wanted:
        _say(f"the hard limit allows {raised - _FILES_BESIDE} connections at a time for {hosts} hosts: ulimit -Hn")
    return raised - _FILES_BESIDE


def _say(text: str) -> None:
    sys.stderr.write(f"simulate: {text}\n")
    sys.stderr.flush()


def _keep_quiet(_: str) -> None:
    pass
