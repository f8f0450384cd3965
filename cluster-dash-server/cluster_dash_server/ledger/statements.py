"""A book of alerts in SQL, as SQLite and PostgreSQL both understand it: tables, statements, and what rows mean.

What differs is in the shells, `ledger/sqlite.py` and `ledger/postgresql.py`: connections, transactions, errors.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from cluster_dash_server.alerts.book import (
    Acknowledgement,
    Addressed,
    Alert,
    Maintenance,
    NoLongerLeads,
    Remembered,
    Silence,
    Transition,
)
from cluster_dash_server.notices.notice import Notice, Outcome, Waiting
from cluster_dash_server.privacy import unnamed

if TYPE_CHECKING:
    from cluster_dash_server.postgresql import Statements  # what it needs is an extra

KEPT_SECONDS = 400 * 86_400.0
"""How long alerts, silences and maintenance are kept after their end, unless it is said."""
SENT_KEPT_SECONDS = 30 * 86_400.0
"""How long a notice is kept after it was sent or given up."""
FAILING_SECONDS = 86_400.0
"""How long it is said that a receiver fails, where nothing waits for it any more."""
PRUNE_SECONDS = 3600.0

STEPS = (
    """
-- facts, labels: JSON; memory: what evaluation noted of it
CREATE TABLE alerts (id TEXT PRIMARY KEY, rule TEXT NOT NULL, severity TEXT NOT NULL, title TEXT NOT NULL, host TEXT,
  gpu INTEGER, "user" TEXT, began_at REAL NOT NULL, ended_at REAL, facts TEXT NOT NULL, labels TEXT NOT NULL,
  silenced_until REAL, acknowledged_by TEXT, acknowledged_at REAL, acknowledged_note TEXT, memory TEXT NOT NULL);
CREATE INDEX alerts_began ON alerts (began_at);
CREATE INDEX alerts_ended ON alerts (ended_at);
CREATE TABLE transitions (id INTEGER PRIMARY KEY, alert TEXT NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL,
  by TEXT, text TEXT NOT NULL);
CREATE INDEX transitions_alert ON transitions (alert);
-- outcome: NULL while it waits; sent, given up, or replaced by the notice of its end
CREATE TABLE outbox (id INTEGER PRIMARY KEY, receiver TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, alert TEXT,
  notice TEXT NOT NULL, made_at REAL NOT NULL, next_try_at REAL NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
  outcome TEXT, done_at REAL, why TEXT, UNIQUE (receiver, key));
CREATE INDEX outbox_waiting ON outbox (next_try_at) WHERE outcome IS NULL;
CREATE INDEX outbox_alert ON outbox (alert, receiver);
CREATE TABLE failing (receiver TEXT PRIMARY KEY, since REAL NOT NULL, last_at REAL NOT NULL, why TEXT NOT NULL);
CREATE TABLE silences (id INTEGER PRIMARY KEY, filter TEXT NOT NULL, by TEXT NOT NULL, reason TEXT NOT NULL,
  begins_at REAL NOT NULL, ends_at REAL NOT NULL, ended_by TEXT);
CREATE TABLE maintenance (id INTEGER PRIMARY KEY, hosts TEXT NOT NULL, by TEXT NOT NULL, reason TEXT NOT NULL,
  begins_at REAL NOT NULL, ends_at REAL NOT NULL, ended_by TEXT);
""",
)
"""Each takes the tables one form further; one that was released is never changed."""

_ALERT = (
    'id, rule, severity, title, host, gpu, "user", began_at, ended_at, facts, labels, silenced_until, '
    "acknowledged_by, acknowledged_at, acknowledged_note"
)


_NAMING = {
    "alerts": ("id", "title", '"user"', "facts", "labels", "acknowledged_by", "acknowledged_note", "memory"),
    "transitions": ("id", "by", "text"),
    "outbox": ("id", "notice", "why"),
    "failing": ("receiver", "why"),
    "silences": ("id", "filter", "by", "reason", "ended_by"),
    "maintenance": ("id", "by", "reason", "ended_by"),
}
"""Where names of people may stand, by table; what a row is known by stands first."""


class SqlBook(ABC):
    """A `Book`, but for its connections.

    Args:
        clock: Unix s.
        kept_seconds: how long what has ended is kept.
    """

    def __init__(self, clock: Callable[[], float], kept_seconds: float) -> None:
        self.trouble: str | None = None
        """Why it cannot be read or written for a while; None: it can, as far as is known."""
        self._clock = clock
        self._kept_seconds = kept_seconds
        self._pruned_at = float("-inf")

    @abstractmethod
    def _reading(self) -> "AbstractContextManager[Statements]":
        """Give what takes one statement that reads.

        Raises:
            BookError: it cannot be read.
        """

    @abstractmethod
    def _writing(self) -> "AbstractContextManager[Statements]":
        """Give what takes statements in a transaction: all of it is kept, or nothing.

        Raises:
            BookError: it cannot be written.
        """

    @abstractmethod
    def _inserted(self, db: "Statements", sql: str, parameters: Sequence[Any]) -> int:
        """Insert a row and return the id that it was given."""

    @abstractmethod
    def _stand_still(self, db: "Statements") -> None:
        """Keep who evaluates from writing until this transaction ends, and have them begin with what is kept then."""

    @abstractmethod
    def _check(self, db: "Statements", fence: int) -> None:
        """Keep the fence from being raised until this transaction ends.

        Raises:
            NoLongerLeads: it was raised already.
        """

    # -------------------------------------------------------------------------------------------------- alerts

    def firing(self) -> list[Alert]:
        """See `Book`."""
        with self._reading() as db:
            rows = db.execute(f"SELECT {_ALERT} FROM alerts WHERE ended_at IS NULL ORDER BY began_at DESC, id")  # noqa: S608 # ours
            return [_alert(row) for row in rows]

    def open_count(self, now: float) -> int:
        """See `Book`."""
        with self._reading() as db:
            (count,) = db.execute(
                "SELECT COUNT(*) FROM alerts WHERE ended_at IS NULL AND acknowledged_at IS NULL "
                "AND (silenced_until IS NULL OR silenced_until <= ?)",
                (now,),
            ).fetchone()
            return int(count)

    def history(self, begin: float, end: float, most: int) -> list[Alert]:
        """See `Book`."""
        with self._reading() as db:
            rows = db.execute(
                f"SELECT {_ALERT} FROM alerts WHERE began_at <= ? AND (ended_at IS NULL OR ended_at >= ?) "  # noqa: S608 # ours
                "ORDER BY began_at DESC, id LIMIT ?",
                (end, begin, most),
            )
            return [_alert(row) for row in rows]

    def acknowledge(self, alert: str, by: str, at: float, note: str) -> bool:
        """See `Book`."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE alerts SET acknowledged_by = ?, acknowledged_at = ?, acknowledged_note = ? "
                "WHERE id = ? AND ended_at IS NULL",
                (by, at, note, alert),
            )
            if done.rowcount:
                _note(db, alert, at, "acknowledged", by, note)
            return done.rowcount > 0

    def withdraw(self, alert: str, by: str, at: float) -> bool:
        """See `Book`."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE alerts SET acknowledged_by = NULL, acknowledged_at = NULL, acknowledged_note = NULL "
                "WHERE id = ? AND ended_at IS NULL AND acknowledged_by IS NOT NULL",
                (alert,),
            )
            if done.rowcount:
                _note(db, alert, at, "withdrawn", by, "")
            return done.rowcount > 0

    def commit(self, transitions: Sequence[Transition], fence: int = 0) -> None:
        """See `Book`."""
        with self._writing() as db:
            self._check(db, fence)
            for each in transitions:
                _keep(db, each)
                if each.takes_back:
                    db.execute(
                        "DELETE FROM outbox WHERE alert = ? AND kind = 'firing' AND outcome IS NULL AND tries = 0",
                        (each.alert.id,),
                    )
                for addressed in each.notices:
                    if addressed.notice.kind != "resolved" or _takes_its_place(db, addressed, each.at):
                        _put(db, addressed, each.at)
            self._prune(db)

    def forget_user(self, user: str) -> int:
        """See `Book`."""
        with self._writing() as db:
            self._stand_still(db)
            found = 0
            for table, key in (("outbox", "id"), ("failing", "receiver")):
                # what waits for them would have to go to somebody else
                people = db.execute(f"SELECT {key}, receiver FROM {table} WHERE receiver LIKE 'mailto:%'").fetchall()  # noqa: S608 # ours
                theirs = [(row,) for row, receiver in people if unnamed(receiver, user) != receiver]
                found += len(theirs)
                db.executemany(f"DELETE FROM {table} WHERE {key} = ?", theirs)  # noqa: S608 # ours
            for table, (key, *columns) in _NAMING.items():
                kept = db.execute(f"SELECT {key}, {', '.join(columns)} FROM {table}").fetchall()  # noqa: S608 # ours
                changed = [
                    (*texts, row) for row, *were in kept if (texts := [_without(each, user) for each in were]) != were
                ]
                found += len(changed)
                places = ", ".join(f"{column} = ?" for column in columns)
                db.executemany(f"UPDATE {table} SET {places} WHERE {key} = ?", changed)  # noqa: S608 # ours
            return found

    def begin_anew(self) -> None:
        """See `Book`."""
        with self._writing() as db:
            self._stand_still(db)

    def remembered(self, since: float) -> list[Remembered]:
        """See `Book`."""
        with self._reading() as db:
            rows = db.execute(
                f"SELECT memory, {_ALERT} FROM alerts WHERE ended_at IS NULL OR ended_at >= ? ORDER BY began_at, id",  # noqa: S608 # ours
                (since,),
            )
            return [Remembered(_alert(row[1:]), row[0]) for row in rows]

    def _prune(self, db: "Statements") -> None:
        now = self._clock()
        if now - self._pruned_at < PRUNE_SECONDS:
            return
        self._pruned_at = now
        db.execute(
            "DELETE FROM outbox WHERE done_at < ? AND "
            "(alert IS NULL OR alert NOT IN (SELECT id FROM alerts WHERE ended_at IS NULL))",
            (now - min(SENT_KEPT_SECONDS, self._kept_seconds),),
        )
        db.execute("DELETE FROM failing WHERE last_at < ?", (now - min(SENT_KEPT_SECONDS, self._kept_seconds),))
        db.execute(
            "DELETE FROM transitions WHERE alert IN (SELECT id FROM alerts WHERE ended_at < ?)",
            (now - self._kept_seconds,),
        )
        db.execute("DELETE FROM alerts WHERE ended_at < ?", (now - self._kept_seconds,))
        for table in ("silences", "maintenance"):
            db.execute(f"DELETE FROM {table} WHERE ends_at < ?", (now - self._kept_seconds,))  # noqa: S608 # ours

    # --------------------------------------------------------------------------------- silences and maintenance

    def silence(self, silence: Silence) -> int:
        """See `Book`."""
        with self._writing() as db:
            return self._inserted(
                db,
                "INSERT INTO silences (filter, by, reason, begins_at, ends_at) VALUES (?, ?, ?, ?, ?)",
                (silence.filter, silence.by, silence.reason, silence.begins_at, silence.ends_at),
            )

    def end_silence(self, silence: int, by: str, at: float) -> bool:
        """See `Book`."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE silences SET ends_at = ?, ended_by = ? WHERE id = ? AND ends_at > ?", (at, by, silence, at)
            )
            return done.rowcount > 0

    def silences(self, now: float) -> list[Silence]:
        """See `Book`."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, filter, by, reason, begins_at, ends_at FROM silences WHERE ends_at > ? "
                "ORDER BY ends_at, id",
                (now,),
            )
            return [
                Silence(id=row[0], filter=row[1], by=row[2], reason=row[3], begins_at=row[4], ends_at=row[5])
                for row in rows
            ]

    def maintain(self, maintenance: Maintenance) -> None:
        """See `Book`."""
        with self._writing() as db:
            _end_maintenance(db, maintenance.hosts, maintenance.by, maintenance.begins_at)
            db.execute(
                "INSERT INTO maintenance (hosts, by, reason, begins_at, ends_at) VALUES (?, ?, ?, ?, ?)",
                (maintenance.hosts, maintenance.by, maintenance.reason, maintenance.begins_at, maintenance.ends_at),
            )

    def end_maintenance(self, hosts: str, by: str, at: float) -> bool:
        """See `Book`."""
        with self._writing() as db:
            return _end_maintenance(db, hosts, by, at)

    def maintenance(self, now: float) -> list[Maintenance]:
        """See `Book`."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT hosts, by, reason, begins_at, ends_at FROM maintenance WHERE begins_at <= ? AND ends_at > ? "
                "ORDER BY ends_at, id",
                (now, now),
            )
            return [
                Maintenance(hosts=row[0], by=row[1], reason=row[2], begins_at=row[3], ends_at=row[4]) for row in rows
            ]

    # ---------------------------------------------------------------------------------------------------- outbox

    def put(self, notices: Sequence[tuple[str, Notice]], now: float) -> None:
        """See `Outbox`."""
        with self._writing() as db:
            for receiver, notice in notices:
                _put(db, Addressed(receiver, notice, now), now)

    def due(self, now: float, most: int) -> list[Waiting]:
        """See `Outbox`."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, receiver, notice, made_at, tries FROM outbox WHERE outcome IS NULL AND next_try_at <= ? "
                "ORDER BY id LIMIT ?",
                (now, most),
            )
            return [
                Waiting(row=row[0], receiver=row[1], notice=_notice(json.loads(row[2])), made_at=row[3], tries=row[4])
                for row in rows
            ]

    def sent(self, row: int, at: float) -> None:
        """See `Outbox`."""
        with self._writing() as db:
            db.execute("UPDATE outbox SET outcome = 'sent', done_at = ?, tries = tries + 1 WHERE id = ?", (at, row))
            db.execute("DELETE FROM failing WHERE receiver = (SELECT receiver FROM outbox WHERE id = ?)", (row,))

    def failed(self, row: int, at: float, why: str, next_try_at: float | None) -> None:
        """See `Outbox`."""
        with self._writing() as db:
            db.execute(
                "UPDATE outbox SET tries = tries + 1, why = ?, next_try_at = COALESCE(?, next_try_at), "
                "outcome = CASE WHEN ? IS NULL THEN 'given up' END, done_at = CASE WHEN ? IS NULL THEN ? END "
                "WHERE id = ? AND outcome IS NULL",
                (why, next_try_at, next_try_at, next_try_at, at, row),
            )
            db.execute(
                "INSERT INTO failing (receiver, since, last_at, why) SELECT receiver, ?, ?, ? FROM outbox WHERE id = ? "
                "AND NOT (kind = 'free' AND receiver LIKE 'mailto:%' AND ? IS NULL) "
                "ON CONFLICT (receiver) DO UPDATE SET last_at = excluded.last_at, why = excluded.why",
                (at, at, why, row, next_try_at),
            )

    def outcome(self, receiver: str, key: str) -> Outcome | None:
        """See `Outbox`."""
        with self._reading() as db:
            row = db.execute(
                "SELECT outcome, why FROM outbox WHERE receiver = ? AND key = ?", (receiver, key)
            ).fetchone()
            if row is None or row == (None, None):
                return None
            return Outcome(None if row[0] == "sent" else row[1])

    def postponed(self, rows: Sequence[int], until: float) -> None:
        """See `Outbox`."""
        with self._writing() as db:
            # counted as a try: it was due, so its end takes its place and is told
            db.executemany(
                "UPDATE outbox SET tries = tries + 1, next_try_at = ? WHERE id = ? AND outcome IS NULL",
                [(until, row) for row in rows],
            )

    def told(self, receiver: str) -> list[Notice]:
        """See `Outbox`."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT alert, notice FROM outbox WHERE receiver = ? AND kind = 'firing' AND outcome = 'sent' "
                "AND alert IN (SELECT id FROM alerts WHERE ended_at IS NULL AND silenced_until IS NULL) ORDER BY id",
                (receiver,),
            )
            return [_notice(json.loads(notice)) for notice in dict(rows.fetchall()).values()]

    def failing(self) -> Mapping[str, tuple[float, str]]:
        """See `Outbox`."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT receiver, since, why FROM failing WHERE last_at >= ? OR receiver IN "
                "(SELECT receiver FROM outbox WHERE outcome IS NULL) ORDER BY receiver",
                (self._clock() - FAILING_SECONDS,),
            )
            return {receiver: (since, why) for receiver, since, why in rows}


def _without(text: str | None, user: str) -> str | None:
    """Return what a column holds without the name of a user; JSON stays JSON."""
    if text is None:
        return None
    try:
        read = json.loads(text) if text[:1] in ("{", "[") else None
    except ValueError:
        read = None
    if read is None:
        return unnamed(text, user)
    written = _all_without(read, user)
    return text if written == read else json.dumps(written, ensure_ascii=False)


def _all_without(read: Any, user: str) -> Any:
    if isinstance(read, str):
        return unnamed(read, user)
    if isinstance(read, list):
        return [_all_without(each, user) for each in read]
    if isinstance(read, dict):
        return {unnamed(name, user): _all_without(each, user) for name, each in read.items()}
    return read


def _note(db: "Statements", alert: str, at: float, kind: str, by: str | None, text: str) -> None:
    db.execute(
        "INSERT INTO transitions (alert, at, kind, by, text) VALUES (?, ?, ?, ?, ?)", (alert, at, kind, by, text)
    )


def _keep(db: "Statements", transition: Transition) -> None:
    alert = transition.alert
    done = db.execute(
        'INSERT INTO alerts (id, rule, severity, title, host, gpu, "user", began_at, ended_at, facts, labels, '
        "silenced_until, memory) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
        "severity = excluded.severity, title = excluded.title, host = excluded.host, gpu = excluded.gpu, "
        "ended_at = excluded.ended_at, facts = excluded.facts, labels = excluded.labels, "
        "silenced_until = excluded.silenced_until, memory = excluded.memory WHERE alerts.ended_at IS NULL",
        (
            *(alert.id, alert.rule, alert.severity, alert.title, alert.host, alert.gpu, alert.user),
            *(alert.began_at, alert.ended_at, json.dumps(alert.facts), json.dumps(dict(alert.labels))),
            *(alert.silenced_until, transition.memory),
        ),
    )
    if not done.rowcount:
        raise NoLongerLeads(f"alert {alert.id} has ended already")
    if transition.kind != "changed":
        _note(db, alert.id, transition.at, transition.kind, None, alert.title)


def _takes_its_place(db: "Statements", end: Addressed, at: float) -> bool:
    """Take what still waits of an alert's beginning out of the outbox; say whether its end is to be told."""
    rows = db.execute(
        "SELECT id, outcome, tries, next_try_at FROM outbox WHERE alert = ? AND receiver = ? AND kind = 'firing'",
        (end.notice.alert, end.receiver),
    ).fetchall()
    is_told = False
    for row, outcome, tries, next_try_at in rows:
        if outcome is not None:
            is_told = True
        elif tries or next_try_at <= at:
            db.execute("UPDATE outbox SET outcome = 'replaced', done_at = ? WHERE id = ?", (at, row))
            is_told = True
        else:  # nobody was to hear of it yet
            db.execute("DELETE FROM outbox WHERE id = ?", (row,))
    return is_told


def _put(db: "Statements", addressed: Addressed, now: float) -> None:
    notice = addressed.notice
    db.execute(
        "INSERT INTO outbox (receiver, key, kind, alert, notice, made_at, next_try_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (receiver, key) DO NOTHING",
        (
            *(addressed.receiver, notice.key, notice.kind, notice.alert, _written(notice), now),
            max(now, addressed.not_before),
        ),
    )


def _end_maintenance(db: "Statements", hosts: str, by: str, at: float) -> bool:
    done = db.execute(
        "UPDATE maintenance SET ends_at = ?, ended_by = ? WHERE hosts = ? AND ends_at > ?", (at, by, hosts, at)
    )
    return done.rowcount > 0


def _alert(row: Sequence[Any]) -> Alert:
    by, at, note = row[12:15]
    return Alert(
        id=row[0],
        rule=row[1],
        severity=row[2],
        title=row[3],
        host=row[4],
        gpu=row[5],
        user=row[6],
        began_at=row[7],
        ended_at=row[8],
        facts=_pairs(json.loads(row[9])),
        labels=json.loads(row[10]),
        silenced_until=row[11],
        acknowledged=None if by is None else Acknowledgement(by=by, at=at, note=note),
    )


def _pairs(read: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple([(name, text) for name, text in read])


def _written(notice: Notice) -> str:
    names = Notice.__dataclass_fields__
    return json.dumps(
        {name: dict(notice.labels) if name == "labels" else getattr(notice, name) for name in names}, ensure_ascii=False
    )


def _notice(read: dict[str, Any]) -> Notice:
    return Notice(**{**read, "facts": _pairs(read["facts"]), "actions": _pairs(read["actions"])})
