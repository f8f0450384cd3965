"""The live view under a filter: the hosts that somebody asked for, as bytes that are ready to send.

What a filter means is looked at once a version, of the hosts that have changed since; those who look through the same
filter share it and its bodies.
"""

import threading
from collections import OrderedDict
from typing import Literal

from cluster_dash_server import facets, filters
from cluster_dash_server.filters import Filter
from cluster_dash_server.live import (
    ALL_COLUMNS,
    FRESH_SECONDS,
    KEPT_BODIES,
    KEPT_GONE,
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
from cluster_dash_server.snapshot import Json, dumps
from cluster_dash_server.summary import Tally, sentence, tally_of

KEPT_FILTERS = 64
"""Filters whose hosts are remembered; who comes back with one more than these gets everything again."""
KEPT_BYTES = 32 * 2**20
"""Bodies of all filters together that are kept ready."""

NOTHING = Rows(version=-1, at=float("-inf"), rows=[], total=Tally())


class Narrowed:
    """What filters show of the live view. Thread-safe.

    Args:
        live: the whole view.
        life: a text that no other life of the server has, as for `Live`.
    """

    def __init__(self, live: Live, life: str) -> None:
        self._live = live
        self._life = life
        self._lock = threading.Lock()
        self._selections: OrderedDict[str, _Selection] = OrderedDict()
        self._count = 0

    def body(self, now: float, q: str, since: str | None, encoding: Encoding, columns: Columns = ALL_COLUMNS) -> Body:
        """Return what a filter means of the view, or what changed of that since a version of the same filter.

        A host that the filter no longer means is gone.

        Args:
            now: Unix s.
            q: the filter.
            since: a version that the caller has of it; None, or one that is not known here: everything.
            encoding: how the bytes are to be packed.
            columns: those that are wanted, beside `matches`.
        """
        selection = self._selection(q)
        with selection.lock:
            selection.look(self._live.rows(now), now)
            known = selection.number(since)
            packed = selection.bodies.get((known, encoding, columns))
            if packed is None:
                packed = pack(selection.join(known, columns), encoding)
                if len(selection.bodies) >= KEPT_BODIES:
                    selection.bodies = {}
                selection.bodies[known, encoding, columns] = packed
            version = selection.version
        self._drop_bodies(selection)
        return Body(version, encoding, packed)

    def facets(self, now: float, q: str, encoding: Encoding) -> Body:
        """Return what a filter leaves to choose from, in JSON."""
        selection = self._selection(q)
        with selection.lock:
            selection.look(self._live.rows(now), now)
            packed = selection.bodies.get(("facets", encoding, ALL_COLUMNS))
            if packed is None:
                packed = pack(selection.facets(now), encoding)
                selection.bodies["facets", encoding, ALL_COLUMNS] = packed
            version = selection.facets_version
        self._drop_bodies(selection)
        return Body(version, encoding, packed)

    def _selection(self, q: str) -> "_Selection":
        with self._lock:
            selection = self._selections.get(q)
            if selection is None:
                self._count += 1
                selection = self._selections[q] = _Selection(filters.parse(q), f"{self._life}-q{self._count}")
                while len(self._selections) > KEPT_FILTERS:
                    self._selections.popitem(last=False)
            self._selections.move_to_end(q)
            return selection

    def _drop_bodies(self, but: "_Selection") -> None:
        """Drop the bodies of the filters that were asked for longest ago, while there are too many bytes."""
        with self._lock:
            too_many = sum(each.size for each in self._selections.values()) - KEPT_BYTES
            for each in self._selections.values():
                if too_many <= 0 or each is but:
                    return
                too_many -= each.size
                each.bodies = {}  # not cleared: another thread may be looking


class _Selection:
    """The hosts that one filter means, as far as they have been looked at; its lock is held by who uses it."""

    def __init__(self, wish: Filter, name: str) -> None:
        self.lock = threading.Lock()
        self.bodies: dict[tuple[int | Literal["facets"] | None, Encoding, Columns], bytes] = {}
        self._wish = wish
        self._name = name
        self._number = 0
        self._seen_version = -1
        self._looked_at = float("-inf")
        self._rows = NOTHING
        self._meant: dict[str, tuple[int, list[bool]]] = {}  # since which number it is so, and which GPUs are meant
        self._gone: dict[str, int] = {}
        self._gone_is_whole_from = 0

    @property
    def version(self) -> str:
        return f"{self._name}-{self._number}"

    @property
    def facets_version(self) -> str:
        """The version of the facets: they move with all hosts, the body with those that are meant."""
        return f"{self._name}-f{self._seen_version}"

    @property
    def size(self) -> int:
        return sum(map(len, list(self.bodies.values())))

    def number(self, since: str | None) -> int | None:
        """Return the number of a version of this filter, None for any other text."""
        name, _, number = (since or "").rpartition("-")
        if name != self._name or not (number.isascii() and number.isdigit() and len(number) <= 18):
            return None
        return int(number) if self._gone_is_whole_from <= int(number) <= self._number else None

    def look(self, rows: Rows, now: float) -> None:
        """Look at the hosts that have changed, and at all of them where what is meant changes by time alone."""
        if rows.version < self._seen_version:
            return  # another thread was quicker
        everything = self._wish.moves_by_time and now - self._looked_at >= FRESH_SECONDS
        if rows.version == self._seen_version and not everything:
            if rows.at != self._rows.at:
                self._rows = rows
                self.bodies = {}
            return
        number = self._number + 1
        changed = (rows.total.hosts, rows.total.gpus) != (self._rows.total.hosts, self._rows.total.gpus)
        for row in rows.rows:
            if everything or row.version > self._seen_version:
                changed = self._look_at(row, number, now) or changed
        for host in self._meant.keys() - {row.view.host for row in rows.rows}:
            self._leave(host, number)
            changed = True
        self._rows = rows
        self._seen_version = rows.version
        self._looked_at = now if everything or not self._number else self._looked_at
        self.bodies = {}
        if changed or not self._number:
            self._number = number

    def _look_at(self, row: Row, number: int, now: float) -> bool:
        """Look at one host; return whether that changes what a viewer has of it."""
        host = row.view.host
        meant = self._wish.means(row.view, now)
        if meant is None:
            if host not in self._meant:
                return False
            self._leave(host, number)
            return True
        if row.version <= self._seen_version and host in self._meant and self._meant[host][1] == meant:
            return False
        self._meant[host] = number, meant
        self._gone.pop(host, None)
        return True

    def _leave(self, host: str, number: int) -> None:
        del self._meant[host]
        self._gone[host] = number
        while len(self._gone) > KEPT_GONE:
            self._gone_is_whole_from = self._gone.pop(next(iter(self._gone)))

    def join(self, since: int | None, columns: Columns) -> bytes:
        """Join a body of all hosts that are meant (since None), or of those that changed since a number."""
        meant = self._meant
        all_rows = [row for row in self._rows.rows if row.view.host in meant]
        rows = all_rows
        if since is not None:
            rows = [row for row in all_rows if meant[row.view.host][0] > since]
            if len(rows) > MOSTLY * len(all_rows):
                since, rows = None, all_rows
        head = {
            "version": self.version,
            "at": self._rows.at,
            "full": since is None,
            "gone": [] if since is None else [host for host, number in self._gone.items() if number > since],
            **self._said(tally_of((row.view, meant[row.view.host][1]) for row in all_rows)),
        }
        return join(head, rows, columns, [dumps(meant[row.view.host][1])[1:-1] for row in rows])

    def facets(self, now: float) -> bytes:
        """Count the facets of the filter."""
        counted = facets.count([row.view for row in self._rows.rows], self._wish, now)
        return dumps(
            {
                "at": self._rows.at,
                **self._said(counted.matching),
                "facets": {
                    key: [
                        {"value": each.value, "count": each.count, "chosen": each.is_chosen, "q": each.q}
                        for each in choices
                    ]
                    for key, choices in counted.choices.items()
                },
                "more": counted.more,
            }
        )

    def _said(self, matching: Tally) -> Json:
        """Say in all what the filter means, of how much, and what of it was not understood."""
        total = self._rows.total
        return {
            "summary": sentence(matching) if matching.hosts or not total.hosts else "Nothing matches.",
            "q": str(self._wish),
            "problems": self._wish.problems,
            "matching": {"hosts": matching.hosts, "gpus": matching.gpus},
            "of": {"hosts": total.hosts, "gpus": total.gpus},
        }
