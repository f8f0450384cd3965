"""The tables of history in PostgreSQL, and what stands in them under numbers: names, boots, layouts, who has what."""

import hashlib
import json
import threading
import time
import zlib
from collections.abc import Iterable, Sequence, Set
from typing import Any, NamedTuple

from cluster_dash_server.history.chunks import Layout
from cluster_dash_server.history.postgresql.segments import NOBODY, Hour, Lookup, Row
from cluster_dash_server.history.rollups import DAY
from cluster_dash_server.postgresql import Database, PostgresqlError, Statements
from cluster_dash_server.store import Figures, GpuId, Holder

PART = "history"
PARTS = 16
"""Into how many parts hosts are divided, so that nobody reads an hour of all of them at once."""
MOST_KNOWN = 50_000
"""Of boots, of layouts, and of who has what: so many numbers are remembered at most, and else asked for again."""
SCHEMA = (
    """
CREATE TABLE hosts (id SERIAL PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE boots (id SERIAL PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE layouts (id SERIAL PRIMARY KEY, text TEXT NOT NULL);
CREATE UNIQUE INDEX layouts_text ON layouts (md5(text));
CREATE TABLE holdings (id SERIAL PRIMARY KEY, text TEXT NOT NULL, is_whole BOOLEAN NOT NULL DEFAULT true,
  used_at TIMESTAMPTZ NOT NULL DEFAULT now());
CREATE UNIQUE INDEX holdings_text ON holdings (md5(text)) WHERE is_whole;
CREATE TABLE pieces (id UUID PRIMARY KEY, hour BIGINT NOT NULL, part INTEGER NOT NULL, is_sealed BOOLEAN NOT NULL,
  kept_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(), body BYTEA NOT NULL);
ALTER TABLE pieces ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX pieces_hours ON pieces (hour, part);
CREATE INDEX pieces_open ON pieces (hour, part) WHERE NOT is_sealed;
CREATE TABLE running (hour BIGINT NOT NULL, part INTEGER NOT NULL, counted_to DOUBLE PRECISION NOT NULL,
  body BYTEA NOT NULL, PRIMARY KEY (hour, part));
CREATE TABLE uses (host INTEGER NOT NULL, hour BIGINT NOT NULL, stretches BYTEA NOT NULL, PRIMARY KEY (host, hour));
CREATE INDEX uses_hours ON uses (hour);
CREATE TABLE usage_hours (hour BIGINT NOT NULL, host INTEGER NOT NULL, "user" TEXT NOT NULL, model TEXT NOT NULL,
  held DOUBLE PRECISION NOT NULL, busy DOUBLE PRECISION NOT NULL, idle DOUBLE PRECISION NOT NULL,
  util DOUBLE PRECISION NOT NULL, seen DOUBLE PRECISION NOT NULL, PRIMARY KEY (hour, host, "user", model));
CREATE INDEX usage_hours_users ON usage_hours ("user", hour) WHERE "user" <> '';
CREATE TABLE usage_days (day BIGINT NOT NULL, host INTEGER NOT NULL, "user" TEXT NOT NULL, model TEXT NOT NULL,
  held DOUBLE PRECISION NOT NULL, busy DOUBLE PRECISION NOT NULL, idle DOUBLE PRECISION NOT NULL,
  util DOUBLE PRECISION NOT NULL, seen DOUBLE PRECISION NOT NULL, PRIMARY KEY (day, host, "user", model));
CREATE TABLE user_hours (hour BIGINT NOT NULL, part INTEGER NOT NULL, "user" TEXT NOT NULL, model TEXT NOT NULL,
  held DOUBLE PRECISION NOT NULL, busy DOUBLE PRECISION NOT NULL, idle DOUBLE PRECISION NOT NULL,
  util DOUBLE PRECISION NOT NULL, seen DOUBLE PRECISION NOT NULL, PRIMARY KEY (hour, part, "user", model));
CREATE TABLE user_days (day BIGINT NOT NULL, part INTEGER NOT NULL, "user" TEXT NOT NULL, model TEXT NOT NULL,
  held DOUBLE PRECISION NOT NULL, busy DOUBLE PRECISION NOT NULL, idle DOUBLE PRECISION NOT NULL,
  util DOUBLE PRECISION NOT NULL, seen DOUBLE PRECISION NOT NULL, PRIMARY KEY (day, part, "user", model));
CREATE TABLE events (id BIGSERIAL PRIMARY KEY, key BYTEA NOT NULL UNIQUE, at DOUBLE PRECISION NOT NULL,
  host TEXT NOT NULL, gpu TEXT NOT NULL, kind TEXT NOT NULL, code TEXT NOT NULL, text TEXT NOT NULL,
  told BOOLEAN NOT NULL, boot_id TEXT, seq BIGINT, is_gone BOOLEAN NOT NULL DEFAULT false,
  changed_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp());
CREATE INDEX events_at ON events (at) WHERE NOT is_gone;
CREATE INDEX events_host ON events (host, at);
CREATE INDEX events_changed ON events (changed_at);
CREATE TABLE forgetting ("user" TEXT PRIMARY KEY, host_hours INTEGER NOT NULL DEFAULT 0,
  events INTEGER NOT NULL DEFAULT 0, asked_at TIMESTAMPTZ NOT NULL DEFAULT now());
CREATE TABLE forgotten (one BOOLEAN PRIMARY KEY CHECK (one), times INTEGER NOT NULL);
INSERT INTO forgotten VALUES (true, 0)
""",
    """
ALTER TABLE boots ADD COLUMN used_at TIMESTAMPTZ NOT NULL DEFAULT now();
ALTER TABLE layouts ADD COLUMN used_at TIMESTAMPTZ NOT NULL DEFAULT now();
CREATE INDEX boots_used ON boots (used_at);
CREATE INDEX layouts_used ON layouts (used_at);
CREATE INDEX holdings_used ON holdings (used_at)
""",
)
"""Each takes the tables one form further; one that was released is never changed."""
USED = ("boots", "layouts", "holdings")
"""Tables of what rows refer to under numbers: it goes once it was not used for longer than rows are kept."""
USAGE = "held, busy, idle, util, seen"
KEPT_USAGE = (0, 1, 2, 4, 5)
"""Places of `USAGE` in `rollups.USAGE`: the one between is for what Slurm gave away, and nothing fills it."""


class _Before(NamedTuple):
    """What the last row of a host referred to, under which numbers, and since when these are known to be used."""

    boot_id: str
    gpus: tuple[GpuId, ...]
    holders: tuple[Holder, ...]
    ids: Row
    used_at: float


def part_of(host: str) -> int:
    """Return to which part of the hosts one belongs."""
    return zlib.crc32(host.encode("utf-8", "surrogatepass")) % PARTS


class Names:
    """What is kept under numbers, as far as this replica has asked for it. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._lock = threading.RLock()
        self.times = -1
        self._hosts: dict[str, int] = {}
        self._host_names: dict[int, str] = {}
        self._boots: dict[str, tuple[int, float]] = {}
        self._boot_texts: dict[int, str] = {}
        self._layout_ids: dict[tuple[GpuId, ...], tuple[int, float]] = {}
        self._layouts: dict[int, tuple[GpuId, ...]] = {}
        self._holding_ids: dict[tuple[Holder, ...], tuple[int, float]] = {}
        self._holdings: dict[int, tuple[Holder, ...]] = {}
        self._before: dict[str, _Before] = {}

    def begin_anew(self, times: int) -> None:
        """Ask anew who has what: somebody was forgotten."""
        with self._lock:
            self.times = times
            self._holding_ids.clear()
            self._holdings.clear()
            self._before.clear()

    def ids(self, rows: Sequence[Figures]) -> list[Row]:
        """Return the numbers of what rows refer to, made where there are none.

        Raises:
            PostgresqlError: they cannot be asked for.
        """
        with self._lock:
            today = time.monotonic() - DAY / 2  # so that it is known what is still used
            found = [self._as_before(row, today) for row in rows]
            others = [row for row, ids in zip(rows, found, strict=True) if ids is None]
            if not others:
                return [ids for ids in found if ids is not None]
            asked = iter(self._asked_for(others, today))
            return [next(asked) if ids is None else ids for ids in found]

    def _as_before(self, row: Figures, today: float) -> Row | None:
        """Return the numbers of a row that refers to what its host's last one did, as nearly all do; None: it does not.

        To compare takes a tenth of the time that looking up takes, for which all of it must be hashed.
        """
        before = self._before.get(row.host)
        is_same = (
            before is not None
            and before.used_at >= today
            and before.boot_id == row.boot_id
            and row.seq is not None
            and before.gpus == row.gpus
            and before.holders == row.holders
        )
        return before.ids if is_same and before is not None else None

    def _asked_for(self, rows: Sequence[Figures], today: float) -> list[Row]:
        for known in (self._boots, self._layout_ids, self._holding_ids):
            if len(known) > MOST_KNOWN:
                known.clear()
        never = 0, float("-inf")
        hosts = {row.host for row in rows} - self._hosts.keys()
        boots = {row.boot_id for row in rows if row.boot_id and self._boots.get(row.boot_id, never)[1] < today}
        layouts = {row.gpus for row in rows if self._layout_ids.get(row.gpus, never)[1] < today}
        holdings = {row.holders for row in rows if self._holding_ids.get(row.holders, never)[1] < today}
        if hosts or boots or layouts or holdings:
            with self._db.transaction() as db:
                found_hosts = _numbered(db, "hosts", "name", hosts)
                found_boots = _numbered(db, "boots", "text", boots)
                found_layouts = _numbered_texts(db, "layouts", {Layout(each).text(): each for each in layouts})
                found_holdings = _numbered_texts(
                    db, "holdings", {_text_of(each): each for each in holdings}, " WHERE is_whole"
                )
                for table, of in zip(USED, (found_boots, found_layouts, found_holdings), strict=True):
                    _use(db, table, set(of.values()))
            now = time.monotonic()
            self._hosts |= found_hosts
            self._boots |= {each: (number, now) for each, number in found_boots.items()}
            self._layout_ids |= {each: (number, now) for each, number in found_layouts.items()}
            self._holding_ids |= {each: (number, now) for each, number in found_holdings.items()}
        return [self._numbered(row) for row in rows]

    def _numbered(self, row: Figures) -> Row:
        """Return the numbers of a row, which are all known."""
        layout, layout_at = self._layout_ids[row.gpus]
        holding, holding_at = self._holding_ids[row.holders]
        if row.boot_id is None or row.seq is None:
            return Row(self._hosts[row.host], None, layout, holding)
        boot, boot_at = self._boots[row.boot_id]
        ids = Row(self._hosts[row.host], boot, layout, holding)
        used_at = min(layout_at, holding_at, boot_at)
        self._before[row.host] = _Before(row.boot_id, row.gpus, row.holders, ids, used_at)
        return ids

    def hosts(self, names: Iterable[str]) -> dict[str, int]:
        """Return the numbers of hosts, made where there are none.

        Raises:
            PostgresqlError: they cannot be asked for.
        """
        with self._db.transaction() as db:
            return _numbered(db, "hosts", "name", names)

    def boot(self, boot: int) -> str:
        """Return the boot_id of a boot."""
        text = self._boot_texts.get(boot)
        if text is None:
            with self._lock, self._db.reading() as db:
                self._boot_texts = dict(db.execute("SELECT id, text FROM boots").fetchall())
            text = self._boot_texts[boot]
        return text

    def host(self, host: int) -> str:
        """Return the name of a host."""
        name = self._host_names.get(host)
        if name is None:
            with self._lock, self._db.reading() as db:
                self._host_names = dict(db.execute("SELECT id, name FROM hosts").fetchall())
            name = self._host_names[host]
        return name

    def hour(self, bodies: Iterable[bytes]) -> Hour:
        """Return an hour of pieces, for which all that they refer to is known."""
        # of its own: another thread may forget what is known here while somebody reads the hour
        layouts: dict[int, tuple[GpuId, ...]] = {}
        holdings: dict[int, tuple[Holder, ...]] = {}
        hour = Hour(bodies, Lookup(layouts.__getitem__, holdings.__getitem__))
        with self._lock:
            for known in (self._layouts, self._holdings):
                if len(known) > MOST_KNOWN:
                    known.clear()
            new_layouts = list(hour.layouts() - self._layouts.keys())
            new_holdings = list(hour.holdings() - self._holdings.keys())
            if new_layouts or new_holdings:
                with self._db.reading() as db:
                    for number, text in db.execute("SELECT id, text FROM layouts WHERE id = ANY(?)", (new_layouts,)):
                        self._layouts[number] = Layout.of(text).gpus
                    for number, text in db.execute("SELECT id, text FROM holdings WHERE id = ANY(?)", (new_holdings,)):
                        self._holdings[number] = _holders_of(text)
            layouts |= {number: self._layouts[number] for number in hour.layouts()}
            holdings |= {number: self._holdings[number] for number in hour.holdings()}
        return hour


def _text_of(holders: tuple[Holder, ...]) -> str:
    return json.dumps(holders, ensure_ascii=False, separators=(",", ":"))


def _holders_of(text: str) -> tuple[Holder, ...]:
    return tuple(Holder(place, NOBODY if user is None else user, job) for place, user, job in json.loads(text))


def _numbered(db: Statements, table: str, column: str, texts: Iterable[str]) -> dict[str, int]:
    """Return the numbers of texts, made where there are none.

    Raises:
        PostgresqlError: some of them went at this very moment.
    """
    kept = {text: text.replace("\0", "\ufffd") for text in texts}  # no text there can hold a NUL
    if not kept:
        return {}
    wanted = sorted(set(kept.values()))
    db.execute(f"INSERT INTO {table} ({column}) SELECT unnest(?::text[]) ON CONFLICT DO NOTHING", (wanted,))
    found = dict(db.execute(f"SELECT {column}, id FROM {table} WHERE {column} = ANY(?)", (wanted,)).fetchall())  # noqa: S608 - ours
    if len(found) < len(wanted):
        raise _gone(table)
    return {text: found[there] for text, there in kept.items()}


def _use(db: Statements, table: str, numbers: Set[int]) -> None:
    """Note that what stands under some numbers is used, so that it stays.

    Raises:
        PostgresqlError: some of it went at this very moment.
    """
    used = db.execute(f"UPDATE {table} SET used_at = now() WHERE id = ANY(?)", (sorted(numbers),)) if numbers else None  # noqa: S608 - ours
    if used is not None and used.rowcount != len(numbers):
        raise _gone(table)


def _gone(table: str) -> PostgresqlError:
    return PostgresqlError(f"{table}: some were dropped as old just when they came again: tried again")


def _numbered_texts(db: Statements, table: str, of: dict[str, Any], where: str = "") -> dict[Any, int]:
    """The same for texts that are too long for an index."""
    if not of:
        return {}
    wanted = sorted(of)  # two replicas that make the same ones wait for each other in one order
    db.execute(f"INSERT INTO {table} (text) SELECT unnest(?::text[]) ON CONFLICT DO NOTHING", (wanted,))
    digests = [hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() for text in wanted]
    also = f" AND {where.removeprefix(' WHERE ')}" if where else ""
    found = db.execute(f"SELECT text, id FROM {table} WHERE md5(text) = ANY(?){also}", (digests,)).fetchall()  # noqa: S608 - ours
    if len(found) < len(set(digests)):
        raise _gone(table)
    return {of[text]: number for text, number in found if text in of}


def insert(db: Statements, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, many with each statement; `into` is the table and its columns."""
    for start in range(0, len(rows), 500):
        some = rows[start : start + 500]
        marks = ", ".join(["(" + ", ".join("?" * len(some[0])) + ")"] * len(some))
        db.execute(f"INSERT INTO {into} VALUES {marks}", [value for row in some for value in row])  # noqa: S608 - names of ours
