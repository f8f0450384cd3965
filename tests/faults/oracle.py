"""What must be true in the end: compares what went over the wire with what history holds.

It stands at the proxy, so it sees each request and each answer that the server gave, those that got lost too.
"""

import gzip
import json
import sqlite3
import threading
import urllib.request
import zlib
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from cluster_dash_server.history.remote.encoding import NAMES, PREFIX, millis
from cluster_dash_server.history.sqlite.sealing import Names, hot_rows, sealed_rows
from cluster_dash_server.history.sqlite.store import FILE
from tests.faults.proxy import Passage


class Identity(NamedTuple):
    """Which snapshot."""

    hostname: str
    boot_id: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is wrong, if anything.

    Attributes:
        missing: said to be durable, and not in history.
        double: in history more than once.
        changed: in history with another CPU percentage than was sent.
        unsent: in history and never seen on the wire.
        lost: numbers between the first and the last of a boot that are not in history.
        rows: how many snapshots are in history.
    """

    missing: list[Identity]
    double: list[Identity]
    changed: list[Identity]
    unsent: list[Identity]
    lost: list[Identity]
    rows: int


@dataclass
class Oracle:
    """Listens to passages, from any thread.

    Attributes:
        keeps_lines: whether `lines` has each snapshot as it was first seen, packed.
    """

    keeps_lines: bool = False
    sent: dict[Identity, float | None] = field(default_factory=dict)
    claimed: set[Identity] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    skew_at: dict[Identity, float] = field(default_factory=dict)
    taken_at: dict[Identity, float] = field(default_factory=dict)
    lines: dict[Identity, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def watch(self, passage: Passage) -> None:
        """Learn from a connection that is over."""
        request = _parse(bytes(passage.request))
        if request is None:
            return
        bodies = [line for line in request.splitlines() if line.strip()]
        lines = [json.loads(line) for line in bodies]
        oldest: dict[tuple[str, str], int] = {}
        with self._lock:
            for body, line in zip(bodies, lines, strict=True):
                who = Identity(line["hostname"], line["boot_id"], line["seq"])
                self.sent[who] = line["cpu"].get("cpu_percent")
                self.taken_at[who] = line["timestamp"]
                if self.keeps_lines and who not in self.lines:
                    self.lines[who] = zlib.compress(body, 1)
                oldest[who[:2]] = line["spool"]["oldest_seq"]
            answer = _parse(bytes(passage.answer))
            self.statuses[_status(passage)] += 1
            if answer is None or _status(passage) != 200:
                return
            said = json.loads(answer)
            if len(lines) == 1 and "durable_seq" in said:
                (key,) = oldest
                self._claim(key, oldest[key], said["durable_seq"])
            for each in said.get("durable", ()):
                key = each["hostname"], each["boot_id"]
                self._claim(key, oldest[key], each["seq"])

    def _claim(self, key: tuple[str, str], oldest: int, seq: int | None) -> None:
        if seq is not None:
            self.claimed.update(Identity(*key, number) for number in range(oldest, seq + 1))

    def judge(self, data: Path) -> Verdict:
        """Compare with the history in a data folder, of a server that has ended."""
        rows: Counter[Identity] = Counter()
        percents: dict[Identity, float] = {}
        with closing(sqlite3.connect(f"file:{data / FILE}?mode=ro", uri=True)) as db:
            names = Names(db)
            hosts = {number: name for number, name in db.execute("SELECT id, name FROM hosts")}  # noqa: C416
            places = db.execute("SELECT host, hour FROM hot UNION SELECT host, hour FROM sealed").fetchall()
            for host, hour in places:
                found = hot_rows(db, names, host, hour, hosts[host]) + sealed_rows(db, names, host, hour, hosts[host])
                for row in found:
                    if row.boot_id is not None and row.seq is not None:
                        who = Identity(row.host, row.boot_id, row.seq)
                        rows[who] += 1
                        percents[who] = row.values[-6]  # cpu_percent: the first of the host's own
        return self._verdict(rows, percents)

    def judge_engine(self, url: str, cluster: str) -> Verdict:
        """Compare with what VictoriaMetrics holds: a sample of each snapshot, of the moment when it was taken.

        Args:
            url: where it is, with all that it was sent made visible.
            cluster: the label `cluster` of what is looked at.
        """
        named = NAMES["cpu_percent"]
        query = urlencode({"match[]": f'{PREFIX}{named.name}{{cluster="{cluster}"}}'})
        with urllib.request.urlopen(f"{url}/api/v1/export?{query}", timeout=60) as answer:
            series = [json.loads(line) for line in answer]
        known = {(who.hostname, millis(round(at, 3))): who for who, at in self.taken_at.items()}  # as `figures` does
        rows: Counter[Identity] = Counter()
        percents: dict[Identity, float] = {}
        for each in series:
            host = each["metric"]["host"]
            # the same sample twice is one to who asks
            for at, value in dict(zip(each["timestamps"], each["values"], strict=True)).items():
                who = known.get((host, at), Identity(host, "", at))
                rows[who] += 1
                percents[who] = value / named.scale
        return self._verdict(rows, percents)

    def _verdict(self, rows: "Counter[Identity]", percents: Mapping[Identity, float]) -> Verdict:
        boots: dict[tuple[str, str], list[int]] = {}
        for who in rows:
            boots.setdefault(who[:2], []).append(who.seq)
        return Verdict(
            missing=sorted(self.claimed & set(self.sent) - set(rows)),
            double=sorted(who for who, count in rows.items() if count > 1),
            changed=sorted(
                who
                for who, percent in percents.items()
                if isinstance(wanted := self.sent.get(who), (int, float)) and abs(percent - wanted) > 0.01
            ),
            unsent=sorted(set(rows) - set(self.sent)),
            lost=sorted(
                Identity(*key, seq)
                for key, seqs in boots.items()
                for seq in set(range(min(seqs), max(seqs) + 1)) - set(seqs)
            ),
            rows=rows.total(),
        )


def _parse(message: bytes) -> bytes | None:
    """Return the body of an HTTP message, None where it is not whole."""
    head, end, body = message.partition(b"\r\n\r\n")
    if not end:
        return None
    headers: dict[str, Any] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if len(body) != int(headers.get("content-length", -1)):
        return None
    return gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body


def _status(passage: Passage) -> int:
    parts = bytes(passage.answer[:20]).split()
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
