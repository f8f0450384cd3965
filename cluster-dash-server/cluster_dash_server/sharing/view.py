"""The live view as bytes, under versions that all replicas share: a viewer may ask any of them, in any order.

A version says how far its viewer has come: `<epoch>-<n>.<t>`. n counts rows at the engine. t is the latest moment, in
microseconds, at which a state changed by time alone: it follows from the rows, so that all replicas find the same one.
A viewer gets the rows that are newer by either.
"""

import threading
from collections import OrderedDict
from typing import NamedTuple

from cluster_dash_server.cluster import Cluster
from cluster_dash_server.live import (
    ALL_COLUMNS,
    KEPT_BODIES,
    MOSTLY,
    Body,
    Columns,
    Encoding,
    Live,
    Row,
    Rows,
    join,
    pack,
)
from cluster_dash_server.sharing.clock import LATE_SECONDS
from cluster_dash_server.sharing.replica import Replica, Versions
from cluster_dash_server.summary import sentence


class Version(NamedTuple):
    """How far a viewer has come, within an epoch."""

    number: int
    moved: int


class SharedLive:
    """Looks like `Live` to those who ask for bodies. Thread-safe.

    Args:
        live: this replica's own view, whose rows these are.
        cluster: what the rows were laid out from.
        replica: knows the versions.
        name: tells two views of one cluster apart, as those who see names from those who do not.
    """

    def __init__(self, live: Live, cluster: Cluster, replica: Replica, name: str = "") -> None:
        self._live = live
        self._cluster = cluster
        self._replica = replica
        self._name = name
        self._lock = threading.Lock()
        self._rows: Rows | None = None
        self._looked_at: tuple[object, ...] = ()
        self._seen_version = -1
        self._moved: dict[str, int] = {}
        self._latest = 0
        self._bodies: OrderedDict[tuple[str, Version | None, Encoding, Columns], bytes] = OrderedDict()

    def body(self, now: float, since: str | None, encoding: Encoding, columns: Columns = ALL_COLUMNS) -> Body:
        """See `Live.body`."""
        rows = self.rows(now)
        versions = self._replica.versions(rows.changes)
        if versions is None:  # no engine has answered yet
            return self._live.body(now, since, encoding, columns)
        with self._lock:
            text = self._look(rows, versions)
            known = self._number(since, versions)
            if known is not None and known.number > versions.mark.version:
                text = since or text  # of a replica that is ahead of this one: to it nothing is new
                known = Version(known.number, 2**63)
            packed = self._bodies.get((text, known, encoding, columns))
            if packed is None:
                packed = pack(self._join(rows, versions, text, known, columns), encoding)
                self._bodies[text, known, encoding, columns] = packed
                while len(self._bodies) > KEPT_BODIES:
                    self._bodies.popitem(last=False)
        return Body(text, encoding, packed)

    def ready(self, now: float, since: str | None, encoding: Encoding, columns: Columns = ALL_COLUMNS) -> Body | None:
        """See `Live.ready`; nothing ever is: what other replicas were posted is to be looked at."""
        return None

    def version(self, now: float) -> str:
        """See `Live.version`."""
        rows = self.rows(now)
        versions = self._replica.versions(rows.changes)
        if versions is None:
            return self._live.version(now)
        with self._lock:
            return self._look(rows, versions)

    def rows(self, now: float) -> Rows:
        """See `Live.rows`."""
        rows = self._rows = self._live.rows(now, self._rows)
        return rows

    @property
    def cost_seconds(self) -> float:
        """See `Live.cost_seconds`."""
        return self._live.cost_seconds

    def behind(self, now: float) -> float:
        """See `Live.behind`; what other replicas were posted counts, too."""
        return max(self._live.behind(now), self._replica.clock.age_seconds)

    def _look(self, rows: Rows, versions: Versions) -> str:
        """Look at the rows that were laid out anew; return the version."""
        if rows.version > self._seen_version:
            for row in rows.rows:
                if row.version > self._seen_version:
                    # what had not yet come when the row was laid out is not in it
                    next_at = float("inf") if row.next_change_at is None else row.next_change_at
                    moved = int((self._cluster.changed_at(row.view.host, next_at) or 0.0) * 1e6)
                    self._moved[row.view.host] = moved
                    self._latest = max(self._latest, moved)
            self._seen_version = rows.version
            if len(self._moved) > 2 * len(rows.rows):
                self._moved = {row.view.host: self._moved[row.view.host] for row in rows.rows}
        age_seconds = self._replica.clock.age_seconds
        late = f".{age_seconds // LATE_SECONDS:.0f}" if age_seconds > LATE_SECONDS else ""
        looked_at = rows.version, rows.at, versions.mark, late
        if looked_at != self._looked_at:
            self._looked_at = looked_at
            self._bodies.clear()
        return f"{versions.mark.epoch}{self._name}-{versions.mark.version}.{self._latest}{late}"

    def _number(self, since: str | None, versions: Versions) -> Version | None:
        """Return how far a version goes; None where everything is due."""
        epoch, _, numbers = (since or "").rpartition("-")
        parts = numbers.split(".")
        if epoch != versions.mark.epoch + self._name or len(parts) not in (2, 3):
            return None
        if not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in parts):
            return None
        number, moved = int(parts[0]), int(parts[1])
        return Version(number, moved) if number >= versions.whole_from else None

    def _join(self, rows: Rows, versions: Versions, text: str, known: Version | None, columns: Columns) -> bytes:
        chosen, gone = rows.rows, []
        if known is not None:
            chosen = [row for row in rows.rows if self._is_due(row, versions, known)]
            gone = [host for host, version in versions.gone.items() if version > known.number]
            if len(chosen) > MOSTLY * len(rows.rows):
                known, chosen, gone = None, rows.rows, []
        notice = self._replica.notice
        summary = sentence(rows.total) if notice is None else f"{notice}. {sentence(rows.total)}"
        head = {"version": text, "at": rows.at, "full": known is None, "gone": gone, "summary": summary}
        return join(head, chosen, columns)

    def _is_due(self, row: Row, versions: Versions, known: Version) -> bool:
        host = row.view.host
        return versions.of.get(host, 0) > known.number or self._moved.get(host, 0) > known.moved
