"""What every benchmark shares: repeat, take medians, lay figures out beside their reference."""

import http.client
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

WITHOUT_HISTORY = {"CLUSTER_DASH_HISTORY__KIND": "none"}
"""The environment of a server that keeps the live view only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the results.

    Attributes:
        name: what was measured.
        value: the median of several runs, in `unit`.
        reference: the same of the reference, in the same run; None: there is none.
        target: what is wanted, in words.
        met: whether it was reached; None: there is no target.
        more_is_better: the value is a rate, not a cost.
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    target: str = ""
    met: bool | None = None
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better than the reference."""
        if self.reference is None:
            return None
        return self.value / self.reference if self.more_is_better else self.reference / self.value


def medians(runs: int, *measures: Callable[[], float]) -> list[float]:
    """Run the measures in turn, A B A B …, and return the median of each: a machine's speed drifts."""
    rows = [[measure() for measure in measures] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def post(url: str, bodies: Iterable[bytes], headers: Sequence[tuple[str, str]] = ()) -> int:
    """Post each body over a connection of its own, as moles do; return how many were answered 200.

    Where the server asks for a pause, as between batches, it is made and the body comes again.
    """
    place = urlsplit(url)
    taken = 0
    for body in bodies:
        pauses = 0
        while (pause := _posted(place.hostname or "", place.port, place.path or "/", body, headers)) and pauses < 60:
            pauses += 1
            time.sleep(pause)
        taken += pause == 0
    return taken


def _posted(host: str, port: int | None, path: str, body: bytes, headers: Sequence[tuple[str, str]]) -> float | None:
    """Post a body; return 0 where it was taken, the seconds after which to come again, or None where it is refused."""
    with closing(http.client.HTTPConnection(host, port, timeout=60)) as connection:
        connection.request("POST", path, body, dict(headers))
        answer = connection.getresponse()
        answer.read()
        return 0 if answer.status == 200 else float(answer.headers.get("Retry-After", 0)) or None


def get(url: str, path: str, encoding: str = "identity", length: int | None = None) -> bytes | None:
    """Return the body at a path (or its first bytes), packed as it came; None where nobody answers."""
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        try:
            connection.request("GET", path, headers={"Accept-Encoding": encoding})
            return connection.getresponse().read(length)
        except OSError:
            return None


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def machine() -> str:
    """Name the machine and the versions that were measured."""
    packages = (
        "flask",
        "waitress",
        "granian",
        "jsonschema",
        "jsonschema-rs",
        "msgspec",
        "orjson",
        "numpy",
        "nvidia-ml-py",
    )
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    host = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    return f"{host}, Python {platform.python_version()}, {versions}"


class Cores(NamedTuple):
    """What the cores of this machine have done since it began, in seconds of a core.

    Attributes:
        worked: something ran.
        stolen: something was to run, and the machine that this one is a guest of had other things to do.
    """

    worked: float
    stolen: float

    @classmethod
    def now(cls) -> "Cores":
        """Read them."""
        times = psutil.cpu_times()
        return cls(times.user + times.nice + times.system, getattr(times, "steal", 0.0))  # Linux alone knows the last

    def stolen_since(self, before: "Cores") -> float:
        """Return the share of the time in which something was to run and had to wait."""
        worked, stolen = self.worked - before.worked, self.stolen - before.stolen
        return stolen / (worked + stolen) if worked + stolen > 0 else 0.0


def table(figures: Iterable[Figure]) -> str:
    """Lay the figures out as a Markdown table."""
    lines = ["| figure | value | reference | ratio | target | |", "| --- | ---: | ---: | ---: | --- | --- |"]
    for figure in figures:
        reference = "" if figure.reference is None else f"{figure.reference:,.2f} {figure.unit}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.1f} ×"
        met = "" if figure.met is None else "met" if figure.met else "**missed**"
        lines.append(
            f"| {figure.name} | {figure.value:,.2f} {figure.unit} | {reference} | {ratio} | {figure.target} | {met} |"
        )
    return "\n".join(lines)
