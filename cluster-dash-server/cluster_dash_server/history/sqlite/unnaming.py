"""A user's name taken out of the file of history: host-hour by host-hour, so that rows that come in need not wait long.

GPU-hours of hosts and models stay, and so do the figures; who had the GPUs is then not known. What was asked for is in
the file until it is done, so a restart goes on with it, from the start.
"""

import json
import sqlite3
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from cluster_dash_server.history.chunks import Rows, pack_stretches, unpack_stretches
from cluster_dash_server.history.sqlite.sealing import Names
from cluster_dash_server.privacy import unnamed
from cluster_dash_server.store import LastSeen, StoreError, Unnamed

_PENDING = "unname "
"""What stands in the table of what was done, before the name of who is to be forgotten."""


@dataclass(slots=True, kw_only=True)
class Sweep:
    """How far the forgetting of one user has come.

    Attributes:
        hosts: ids of the hosts that are left to look through, the current one last.
        after_hour: up to which hour the current one has been looked through.
    """

    user: str
    hosts: list[int]
    after_hour: float = float("-inf")
    host_hours: int = 0
    events: int = 0
    snapshots: int = 0

    def told(self, *, is_done: bool) -> Unnamed:
        """Return how far it has come, for those who asked."""
        hosts_left = 0 if is_done else max(1, len(self.hosts))
        return Unnamed(hosts_left=hosts_left, host_hours=self.host_hours, events=self.events, snapshots=self.snapshots)


def pending(db: sqlite3.Connection) -> list[Sweep]:
    """Return what was begun before a restart."""
    found = db.execute("SELECT what FROM done WHERE substr(what, 1, ?) = ?", (len(_PENDING), _PENDING)).fetchall()
    return [Sweep(user=what[len(_PENDING) :], hosts=_hosts(db)) for (what,) in found]


def begin(db: sqlite3.Connection, user: str, strip: Callable[[LastSeen], LastSeen], now: float) -> Sweep:
    """Take a name out of sums, events and newest snapshots; inside the caller's transaction."""
    db.execute("INSERT OR REPLACE INTO done VALUES (?, ?)", (_PENDING + user, now))
    sweep = Sweep(user=user, hosts=_hosts(db))
    for table in ("usage_hours", "usage_days", "user_hours", "user_days"):
        db.execute(f"DELETE FROM {table} WHERE user = ?", (user,))  # noqa: S608 - names of ours
    for key, text, code in db.execute("SELECT id, text, code FROM events").fetchall():
        code_now = code if code is None else json.dumps(_unnamed_code(json.loads(code), user))
        if (unnamed(text, user), code_now) != (text, code):
            db.execute("UPDATE events SET text = ?, code = ? WHERE id = ?", (unnamed(text, user), code_now, key))
            sweep.events += 1
    for host, *rest in db.execute("SELECT host, received_at, skew_seconds, packed, known FROM last").fetchall():
        last = LastSeen(host=host, received_at=rest[0], skew_seconds=rest[1], packed=rest[2], known=rest[3])
        now_known = strip(last)
        if now_known is not last:
            db.execute(
                "UPDATE last SET packed = ?, known = ? WHERE host = ?", (now_known.packed, now_known.known, host)
            )
            sweep.snapshots += 1
    return sweep


def _unnamed_code(code: int | str | None, user: str) -> int | str | None:
    return unnamed(code, user) if isinstance(code, str) else code


def _hosts(db: sqlite3.Connection) -> list[int]:
    return [host for (host,) in db.execute("SELECT id FROM hosts ORDER BY id DESC")]


def go_on(db: sqlite3.Connection, names: Names, sweep: Sweep, until: float) -> bool:
    """Look through hours until a moment (of the monotonic clock), one at least; True: some are left.

    The last part takes out the wish itself. Inside the caller's transaction; a sweep whose transaction fails has to be
    begun anew, for it has moved on.
    """
    while sweep.hosts:
        host = sweep.hosts[-1]
        (hour,) = db.execute(
            "SELECT MIN(hour) FROM (SELECT MIN(hour) AS hour FROM hot WHERE host = :host AND hour > :after "
            "UNION ALL SELECT MIN(hour) FROM sealed WHERE host = :host AND hour > :after "
            "UNION ALL SELECT MIN(hour) FROM uses WHERE host = :host AND hour > :after)",
            {"host": host, "after": sweep.after_hour},
        ).fetchone()
        if hour is None:
            sweep.hosts.pop()
            sweep.after_hour = float("-inf")
        else:
            changed = [each(db, names, host, hour, sweep.user) for each in (_hot, _sealed, _uses)]
            sweep.host_hours += any(changed)
            sweep.after_hour = hour
        if time.monotonic() >= until:
            return True
    db.execute("DELETE FROM holdings WHERE id NOT IN (SELECT holding FROM hot)")
    db.execute("DELETE FROM done WHERE what = ?", (_PENDING + sweep.user,))
    return False


def _hot(db: sqlite3.Connection, names: Names, host: int, hour: int, user: str) -> bool:
    """Take a name out of rows as they came: the holder, and his memory at the end of the figures."""
    found = db.execute(
        "SELECT id, holding, figures FROM hot WHERE host = ? AND hour = ?",
        (host, hour),
    ).fetchall()
    changed = False
    for key, holding, blob in found:
        holders = names.holders_of(holding)
        if all(holder.user != user for holder in holders):
            continue
        whole = array("f", blob)
        split = len(whole) - len(holders)
        for place in reversed(range(len(holders))):
            if holders[place].user == user:
                del whole[split + place]
        left = tuple([holder for holder in holders if holder.user != user])
        db.execute("UPDATE hot SET holding = ?, figures = ? WHERE id = ?", (names.holding(left), whole.tobytes(), key))
        changed = True
    return changed


def _sealed(db: sqlite3.Connection, names: Names, host: int, hour: int, user: str) -> bool:
    changed = False
    found = db.execute("SELECT layout, rows FROM sealed WHERE host = ? AND hour = ?", (host, hour)).fetchall()
    for layout, blob in found:
        try:
            left = Rows(blob, names.layout_of(layout)).without_user(user)
        except StoreError:  # what cannot be read might name anybody
            db.execute("DELETE FROM sealed WHERE host = ? AND hour = ? AND layout = ?", (host, hour, layout))
            continue
        if left is not None:
            db.execute(
                "UPDATE sealed SET rows = ? WHERE host = ? AND hour = ? AND layout = ?", (left, host, hour, layout)
            )
            changed = True
    return changed


def _uses(db: sqlite3.Connection, _: Names, host: int, hour: int, user: str) -> bool:
    row = db.execute("SELECT stretches FROM uses WHERE host = ? AND hour = ?", (host, hour)).fetchone()
    if row is None:
        return False
    try:
        before = unpack_stretches(row[0])
    except StoreError:  # the same
        before, left = [], []
    else:
        left = [each for each in before if each.user != user]
        if len(left) == len(before):
            return False
    if left:
        db.execute("UPDATE uses SET stretches = ? WHERE host = ? AND hour = ?", (pack_stretches(left), host, hour))
    else:
        db.execute("DELETE FROM uses WHERE host = ? AND hour = ?", (host, hour))
    return True
