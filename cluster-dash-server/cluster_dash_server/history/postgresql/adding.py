"""What the rows of all replicas add up to in PostgreSQL: written by the one that leads.

The running hour is added up as it comes; an hour that is over is made of all of its pieces at once, and anew whenever
rows of it come late. It is written only in the place of the very pieces it was made of, so somebody who led before, and
was asleep, can neither double nor overwrite anything.
"""

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from operator import add
from typing import NamedTuple, Protocol

from cluster_dash_server.history.chunks import pack_stretches, unpack_stretches
from cluster_dash_server.history.postgresql.answers import Asking, told_of
from cluster_dash_server.history.postgresql.numbered import KEPT_USAGE, USAGE, USED, Names, insert, part_of
from cluster_dash_server.history.postgresql.running import Running, Sums
from cluster_dash_server.history.rollups import DAY, HOUR, Share, UsageKey, covers_of, roll_runs, runs_of, stretches_of
from cluster_dash_server.postgresql import Database, Statements
from cluster_dash_server.store import Figures, StoreError

LAG_SECONDS = 20.0
"""How old a row is before it is added up: each replica has written its own by then."""
SEAL_AFTER_SECONDS = 60.0
"""An hour is made whole so long after its end, and after the last row of it came."""
PRUNE_SECONDS = 3600.0
PRUNE_FOR_SECONDS = 5.0
"""For how long at a time what is old is dropped: rows wait meanwhile to be added up."""
PRUNED_AT_ONCE = 1000
PIECES_AT_ONCE = 64
"""Where there are many hosts a piece is megabytes."""
GONE_KEPT_SECONDS = 3600
"""For how long it is known that an event was taken back: the other replicas have heard of it by then."""


class HostHour(NamedTuple):
    """What an hour of a host adds up to: GPU-seconds, and who had which GPU, packed; None: nobody."""

    usage: Mapping[UsageKey, Share]
    held: bytes | None


class Retention(Protocol):
    """For how long what is kept (seconds)."""

    @property
    def rows_seconds(self) -> float:
        """Of rows as they came."""

    @property
    def hours_seconds(self) -> float:
        """Of events."""

    @property
    def users_seconds(self) -> float:
        """Of who had which GPU, and GPU-hours."""


class Sum:
    """Adds up, where it is called. Thread-safe.

    Args:
        database: where it is kept.
        names: what stands there under numbers.
        clock: Unix s.
        keep: for how long.
        added: given the rows of all replicas, once each and in the order of time.
    """

    def __init__(
        self,
        database: Database,
        names: Names,
        *,
        clock: Callable[[], float],
        keep: Retention,
        added: Callable[[Sequence[Figures]], None],
    ) -> None:
        self._db = database
        self._names = names
        self._clock = clock
        self._keep = keep
        self._added = added
        self._adding = threading.Lock()  # guards what follows
        self._running = Running()
        self._read: set[uuid.UUID] = set()
        self._waiting: list[Figures] = []
        self._times = -1
        self._pruned_at = float("-inf")

    def lay_down(self) -> None:
        """Forget what only the leader needs to know."""
        with self._adding:
            self._times = -1
            self._running = Running()
            self._read.clear()
            self._waiting = []

    def add_up(self, *, at_once: bool) -> None:
        """Add up what has come since the last time.

        Args:
            at_once: also what may be followed by something older.
        """
        with self._adding:
            self._finish_forgetting()
            with self._db.reading() as db:
                (times,) = db.execute("SELECT times FROM forgotten").fetchone()
            if times != self._times:
                self._running, self._times, self._waiting = Running(), times, []
                self._read.clear()
                self._names.begin_anew(times)
            now = self._clock()
            with self._db.reading() as db:
                found = db.execute(
                    "SELECT id, hour, part, extract(epoch FROM clock_timestamp() - kept_at) FROM pieces "
                    "WHERE NOT is_sealed ORDER BY kept_at"
                ).fetchall()
            self._read &= {key for key, *_ in found}
            quiet: dict[tuple[int, int], float] = {}
            fresh: list[uuid.UUID] = []
            for key, hour, part, age in found:
                if hour + HOUR + SEAL_AFTER_SECONDS <= now:
                    quiet[hour, part] = min(quiet.get((hour, part), float("inf")), float(age))
                elif key not in self._read:
                    fresh.append(key)
            self._take(fresh, now, at_once=at_once)
            self._write_running()
            for (hour, part), seconds in sorted(quiet.items()):
                if at_once or seconds >= SEAL_AFTER_SECONDS:
                    self._seal(hour, part)
            is_due = now - self._pruned_at >= PRUNE_SECONDS
            if is_due and not self._prune(now, time.monotonic() + PRUNE_FOR_SECONDS):
                self._pruned_at = now

    def _take(self, fresh: Sequence[uuid.UUID], now: float, *, at_once: bool) -> None:
        running = self._running
        for start in range(0, len(fresh), PIECES_AT_ONCE):
            keys = list(fresh[start : start + PIECES_AT_ONCE])
            with self._db.reading() as db:
                bodies = db.execute("SELECT body FROM pieces WHERE id = ANY(?)", (keys,)).fetchall()
            hour = self._names.hour(bytes(body) for (body,) in bodies)
            self._waiting += [row for host in hour.hosts() for row in hour.rows(host, self._names.host(host))]
            self._read.update(keys)
        self._waiting.sort(key=lambda row: row.at)
        until = now if at_once else now - LAG_SECONDS
        ready = [row for row in self._waiting if row.at <= until]
        self._waiting = self._waiting[len(ready) :]
        self._added(running.take(ready))

    def _write_running(self) -> None:
        running = self._running
        parts: dict[tuple[int, int], dict[str, Sums]] = {}
        touched = {(hour, part_of(name)) for hour, name in running.changed}
        for hour, name, sums in running.all():
            if (hour, part_of(name)) in touched:
                parts.setdefault((hour, part_of(name)), {})[name] = sums
        for (hour, part), of in parts.items():
            body = told_of(of)
            with self._db.transaction() as db:
                (times,) = db.execute("SELECT times FROM forgotten FOR SHARE").fetchone()
                if times != self._times:
                    return
                db.execute(
                    "INSERT INTO running (hour, part, counted_to, body) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (hour, part) DO UPDATE SET counted_to = excluded.counted_to, body = excluded.body "
                    "WHERE running.counted_to <= excluded.counted_to",
                    (hour, part, min(running.counted_to, hour + HOUR), body),
                )
        running.changed.clear()

    def _seal(self, hour: int, part: int) -> None:
        """Make an hour of a part of the hosts, of all of its rows."""
        with self._db.reading() as db:
            found = db.execute(
                "SELECT id, body, is_sealed FROM pieces WHERE hour = ? AND part = ?", (hour, part)
            ).fetchall()
        news = self._names.hour(
            bytes(body) for key, body, is_sealed in found if not is_sealed and key not in self._read
        )
        late = [row for host in news.hosts() for row in news.rows(host, self._names.host(host))]
        self._added(sorted(late, key=lambda row: row.at))
        whole = self._names.hour(bytes(body) for _, body, _ in found)
        made: dict[int, HostHour] = {}
        for host in whole.hosts():
            rows = whole.rows(host, self._names.host(host))
            runs, covers = runs_of(rows), covers_of(rows, hour, hour + HOUR)
            had, rolled = stretches_of(runs, covers), roll_runs(runs, covers)
            made[host] = HostHour(rolled.by_user(), pack_stretches(had) if had else None)
        merged = whole.again()
        keys = [key for key, *_ in found]
        with self._db.transaction() as db:
            (times,) = db.execute("SELECT times FROM forgotten FOR SHARE").fetchone()
            gone = db.execute("DELETE FROM pieces WHERE id = ANY(?)", (keys,)).rowcount
            if times != self._times or gone != len(keys):
                raise StoreError("somebody else has added up the same hour, or a user is being forgotten: tried again")
            db.execute(
                "INSERT INTO pieces (id, hour, part, is_sealed, body) VALUES (?, ?, ?, true, ?)",
                (uuid.uuid4(), hour, part, merged),
            )
            db.execute("DELETE FROM running WHERE hour = ? AND part = ?", (hour, part))
            _write(db, hour, part, made)
        self._read -= set(keys)
        self._running.close(hour, map(self._names.host, made))

    def put(self, hour: int, of_hosts: Mapping[str, HostHour]) -> None:
        """Write an hour that was added up elsewhere, and of which there are no rows here.

        Raises:
            PostgresqlError: it cannot be written.
        """
        parts: dict[int, dict[int, HostHour]] = {}
        for name, number in self._names.hosts(of_hosts).items():
            parts.setdefault(part_of(name), {})[number] = of_hosts[name]
        for part, made in parts.items():
            with self._db.transaction() as db:
                _write(db, hour, part, made)

    def prune(self, now: float) -> None:
        """Drop what is older than the settings keep."""
        self._prune(now, float("inf"))

    def _prune(self, now: float, until: float) -> bool:
        """Drop that until a moment (of the monotonic clock); True: there is more."""
        keep = self._keep
        for table, what, than in (
            ("pieces", "hour < ?", now - keep.rows_seconds - 2 * HOUR),
            *((table, "used_at < now() - ? * interval '1 second'", keep.rows_seconds + 3 * DAY) for table in USED),
            *((table, "hour < ?", now - keep.users_seconds - HOUR) for table in ("usage_hours", "user_hours", "uses")),
            *((table, "day < ?", now - keep.users_seconds - DAY) for table in ("usage_days", "user_days")),
            ("events", "NOT is_gone AND at < ?", now - keep.hours_seconds),
            ("events", "is_gone AND changed_at < now() - ? * interval '1 second'", GONE_KEPT_SECONDS),
        ):
            # some at a time: a statement that takes too long is ended, and has done nothing
            at_once = PIECES_AT_ONCE if table == "pieces" else PRUNED_AT_ONCE
            some = f"SELECT ctid FROM {table} WHERE {what} LIMIT {at_once}"  # noqa: S608 - names of ours
            while True:
                with Asking(), self._db.transaction() as db:
                    count = db.execute(f"DELETE FROM {table} WHERE ctid = ANY(ARRAY({some}))", (than,)).rowcount  # noqa: S608 - names of ours
                if count < at_once:
                    break
                if time.monotonic() > until:  # what rows refer to goes only after all of these
                    return True
        return False

    def _finish_forgetting(self) -> None:
        """Take names that are being forgotten out of the hours that hold them; goes on after a restart."""
        with self._db.reading() as db:
            users = [user for (user,) in db.execute('SELECT "user" FROM forgetting WHERE host_hours >= 0').fetchall()]
        for user in users:
            while self._forget_some(user):
                pass

    def _forget_some(self, user: str) -> bool:
        """Take a name out of some hours; False: it was in no more."""
        with self._db.transaction() as db:
            done = db.execute('SELECT 1 FROM forgetting WHERE "user" = ? FOR UPDATE', (user,)).fetchone()
            found = db.execute(
                'SELECT DISTINCT hour, host FROM usage_hours WHERE "user" = ? LIMIT 500', (user,)
            ).fetchall()
            if done is None or not found:
                for table in ("usage_days", "user_hours", "user_days"):
                    db.execute(f'DELETE FROM {table} WHERE "user" = ?', (user,))  # noqa: S608 - names of ours
                db.execute(
                    'UPDATE forgetting SET host_hours = -1 - host_hours WHERE "user" = ? AND host_hours >= 0', (user,)
                )
                return False
            for hour, host in found:
                row = db.execute("SELECT stretches FROM uses WHERE host = ? AND hour = ?", (host, hour)).fetchone()
                if row is not None:
                    left = [each for each in unpack_stretches(bytes(row[0])) if each.user != user]
                    db.execute("DELETE FROM uses WHERE host = ? AND hour = ?", (host, hour))
                    if left:
                        insert(db, "uses (host, hour, stretches)", [(host, hour, pack_stretches(left))])
                db.execute('DELETE FROM usage_hours WHERE "user" = ? AND hour = ? AND host = ?', (user, hour, host))
            db.execute('UPDATE forgetting SET host_hours = host_hours + ? WHERE "user" = ?', (len(found), user))
            return True


def _write(db: Statements, hour: int, part: int, made: Mapping[int, HostHour]) -> None:
    """Write an hour of a part of the hosts in the place of what was there, and add up its day anew."""
    hosts, day = list(made), hour // DAY * DAY
    of_users: dict[UsageKey, Share] = {}
    for each in made.values():
        for key, share in each.usage.items():
            was = of_users.get(key)
            of_users[key] = share if was is None else tuple(map(add, was, share))
    db.execute("DELETE FROM uses WHERE hour = ? AND host = ANY(?)", (hour, hosts))
    insert(
        db,
        "uses (host, hour, stretches)",
        [(host, hour, each.held) for host, each in made.items() if each.held is not None],
    )
    db.execute("DELETE FROM usage_hours WHERE hour = ? AND host = ANY(?)", (hour, hosts))
    insert(
        db,
        f'usage_hours (hour, host, "user", model, {USAGE})',
        [
            (hour, host, *key, *[share[place] for place in KEPT_USAGE])
            for host, each in made.items()
            for key, share in each.usage.items()
        ],
    )
    db.execute("DELETE FROM user_hours WHERE hour = ? AND part = ?", (hour, part))
    insert(
        db,
        f'user_hours (hour, part, "user", model, {USAGE})',
        [(hour, part, *key, *[share[place] for place in KEPT_USAGE]) for key, share in of_users.items()],
    )
    for days, hours, column, ids in (
        ("usage_days", "usage_hours", "host", hosts),
        ("user_days", "user_hours", "part", [part]),
    ):
        db.execute(f"DELETE FROM {days} WHERE day = ? AND {column} = ANY(?)", (day, ids))  # noqa: S608 - ours
        sums = ", ".join(f"SUM({name})" for name in USAGE.split(", "))
        db.execute(
            f'INSERT INTO {days} (day, {column}, "user", model, {USAGE}) '  # noqa: S608 - names of ours
            f'SELECT ?::bigint, {column}, "user", model, {sums} FROM {hours} WHERE hour >= ? AND hour < ? '
            f'AND {column} = ANY(?) GROUP BY {column}, "user", model',
            (day, day, day + DAY, ids),
        )
