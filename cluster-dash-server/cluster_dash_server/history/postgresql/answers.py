"""Answers from the history in PostgreSQL, for any replica: who had which GPU, GPU-hours, events."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from operator import add
from typing import Any, cast

from cluster_dash_server.history.chunks import unpack_stretches
from cluster_dash_server.history.exports import ExportError, Wish, rows_by
from cluster_dash_server.history.gpu_hours import (
    Key,
    asked_for,
    hours_of,
    is_wanted,
    key_of,
    order,
    spans_of,
    sums_of,
    usage_of,
)
from cluster_dash_server.history.postgresql.numbered import KEPT_USAGE, PART, SCHEMA, USAGE, part_of
from cluster_dash_server.history.postgresql.running import Sums
from cluster_dash_server.history.rollups import HOUR, Share, Stretch, uses
from cluster_dash_server.history.steps import passed_seconds, steps_of, user_series
from cluster_dash_server.hostlist import matcher
from cluster_dash_server.inflate import pack, unpack
from cluster_dash_server.postgresql import Database, PostgresqlError, Statements
from cluster_dash_server.snapshot import dumps, loads
from cluster_dash_server.store import (
    Event,
    EventQuery,
    KeptEvent,
    Series,
    SeriesQuery,
    StoreError,
    Unnamed,
    Usage,
    UsageQuery,
    Use,
    UseQuery,
)

EVENT = "at, host, gpu, kind, code, text, told, boot_id, seq"


class Asking:
    """Lets what a reader is told be a `StoreError`."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """End; see the class."""
        if isinstance(error, PostgresqlError):
            raise StoreError(f"the ledger cannot be read: {error}") from error


class Questions:
    """Answers.

    Args:
        database: where it is kept.
        clock: Unix s.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._db = database
        self._clock = clock

    def unnamed(self, user: str) -> Unnamed | None:
        """See `Ledger`."""
        with Asking(), self._db.reading() as db:
            row = db.execute('SELECT host_hours, events FROM forgetting WHERE "user" = ?', (user,)).fetchone()
        if row is None:
            return None
        host_hours, events = row
        is_done = host_hours < 0
        return Unnamed(
            hosts_left=0 if is_done else 1,
            host_hours=-1 - host_hours if is_done else host_hours,
            events=events,
            snapshots=0,
        )

    def events(self, ask: EventQuery) -> list[Event]:
        """See `Ledger`."""
        where, values = ["NOT is_gone", "at >= ?", "at <= ?"], [ask.begin, ask.end]
        for column, wanted in (("host", ask.hosts), ("kind", ask.kinds)):
            if wanted is not None:
                where.append(f"{column} = ANY(?)")
                values.append(list(wanted))  # type: ignore[arg-type]
        with Asking(), self._db.asking() as db:
            found = db.execute(
                f"SELECT {EVENT} FROM events WHERE {' AND '.join(where)} ORDER BY at DESC, id DESC LIMIT ?",  # noqa: S608 - names of ours
                (*values, ask.most),
            ).fetchall()
        return [kept_of(row).event for row in found]

    def series(self, ask: SeriesQuery) -> list[Series]:
        """Return how many GPUs users had over time: see `Store`."""
        steps = steps_of(ask)
        found = self.usage(
            UsageQuery(begin=steps.begin, end=steps.end, by=("user", "hour"), users=ask.users, hosts=ask.hosts)
        )
        measured = self.usage(UsageQuery(begin=steps.begin, end=steps.end, by=("hour",), hosts=ask.hosts))
        with Asking(), self._db.asking() as db:
            (counted_to,) = db.execute("SELECT COALESCE(MAX(counted_to), 0) FROM running").fetchone()
        now = self._clock()
        passed = passed_seconds(measured, counted_to if now - counted_to < HOUR else now)
        return user_series(found, passed, ask.metric, steps)

    def usage(self, ask: UsageQuery) -> list[Usage]:
        """See `Ledger`."""
        first, last = hours_of(ask)
        sums: dict[Key, Share] = {}

        def gather(key: Key, share: Share) -> None:
            was = sums.get(key)
            sums[key] = share if was is None else tuple(map(add, was, share))

        with Asking(), self._db.asking() as db:
            for span in spans_of(ask):
                for row in db.execute(*sums_of(span, ask, USAGE, _one_of)):
                    if row[-1] is not None:
                        gather(tuple(row[:5]), tuple(row[5:]))
            for hour, of_host in self._running_hours(db, first, last - 1, None):
                for name, told in of_host.items():
                    if ask.hosts is not None and name not in ask.hosts:
                        continue
                    for (user, model), share in told.usage.items():
                        if is_wanted(ask, user, model):
                            gather(key_of(ask, user, name, model, hour), tuple(share[place] for place in KEPT_USAGE))
        return [usage_of(key, *share) for key, share in sorted(sums.items(), key=lambda each: order(each[0]))]

    def uses(self, ask: UseQuery) -> list[Use]:
        """See `Ledger`; of the running hour what was added up, some half a minute ago."""
        hosts = ask.hosts
        if ask.users is not None:
            there = self.usage(
                UsageQuery(begin=ask.begin, end=ask.end + HOUR, by=("host",), users=ask.users, hosts=hosts)
            )
            hosts = tuple(str(each.host) for each in there)
        first, last = int(ask.begin // HOUR) * HOUR, ask.end
        where, values = "", list[Any]()
        if hosts is not None:
            where, values = " AND name = ANY(?)", [list(hosts)]
        of_host: dict[str, list[tuple[int, list[Stretch]]]] = {}
        with Asking(), self._db.asking() as db:
            for name, hour, blob in db.execute(
                "SELECT name, hour, stretches FROM uses JOIN hosts ON hosts.id = uses.host "  # noqa: S608 - ours
                f"WHERE hour >= ? AND hour <= ?{where}",
                (first, last, *values),
            ):
                of_host.setdefault(name, []).append((hour, unpack_stretches(bytes(blob))))
            for hour, sums_of in self._running_hours(db, first, last, hosts):
                for name, sums in sums_of.items():
                    if hosts is None or name in hosts:
                        of_host.setdefault(name, []).append((hour, sums.held))
        found: list[Use] = []
        for name, pieces in of_host.items():
            pieces.sort(key=lambda each: each[0])
            found += uses(name, sorted([each for _, piece in pieces for each in piece], key=lambda each: each.from_at))
        return asked_for(found, ask)

    def _running_hours(
        self, db: Statements, first: float, last: float, hosts: tuple[str, ...] | None
    ) -> Iterator[tuple[int, dict[str, Sums]]]:
        where, values = "", list[Any]()
        if hosts is not None:
            where, values = " AND part = ANY(?)", [sorted({part_of(host) for host in hosts})]
        for hour, body in db.execute(
            f"SELECT hour, body FROM running WHERE hour >= ? AND hour <= ?{where}",  # noqa: S608 - ours
            (first, last, *values),
        ):
            told: dict[str, Any] = cast(dict[str, Any], loads(unpack(bytes(body))))
            yield (
                hour,
                {
                    name: Sums(
                        {(user, model): tuple(share) for user, model, *share in usage},
                        [Stretch(*each) for each in held],
                    )
                    for name, (usage, held) in told.items()
                },
            )


def export_rows(url: str, wish: Wish) -> Iterator[Sequence[object]]:
    """Give the rows that `export` is asked for, of a database.

    Raises:
        ExportError: it cannot be read.
        HostlistError: the hosts cannot be read.
    """
    database = Database(url)
    database.expects(PART, SCHEMA)
    try:
        with database.reading() as db:
            names = [name for (name,) in db.execute("SELECT name FROM hosts ORDER BY name")]
        meant = None if wish.hosts is None else matcher(wish.hosts, names)
        hosts = [name for name in names if meant is None or meant(name)]
        yield from rows_by(Questions(database, time.time), wish, hosts)
    except (PostgresqlError, StoreError) as error:
        raise ExportError(str(error)) from error
    finally:
        database.close()


def told_of(of: dict[str, Sums]) -> bytes:
    """Pack what hours of hosts have given so far."""
    return pack(
        dumps(
            {
                name: [[[*key, *share] for key, share in sums.usage.items()], [list(each) for each in sums.held]]
                for name, sums in of.items()
            }
        )
    )


def kept_of(row: Sequence[Any]) -> KeptEvent:
    """Return an event of its columns."""
    at, host, gpu, kind, code, text, told, boot_id, seq = row[:9]
    return KeptEvent(
        Event(at=at, host=host, gpu=json.loads(gpu), kind=kind, code=json.loads(code), text=text),
        told,
        None if boot_id is None else (boot_id, seq),
    )


def _one_of(column: str, wanted: Sequence[str]) -> tuple[str, list[object]]:
    return f"{column} = ANY(?)", [list(wanted)]
