"""PostgreSQL, for the parts of the server that keep things there: connections, transactions, schemas with a version.

Imported only where a site has chosen it: psycopg is an extra. Statements are written as for SQLite, with `?`. A part
hands its schema to `Database.expects` and asks; the first connection brings the schema up to date, so a server may
start while the database is away, and mends itself when that comes back.
"""

import contextlib
import re
import select
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import psycopg
from psycopg import conninfo

OLDEST = 13
"""The oldest PostgreSQL that is known to do."""
ENCODING = "UTF8"
"""What a database must have: in any other one a name of a user or a process may be one that it cannot hold."""
CONNECTIONS = 4
ASKING = 2
"""So many of them at most are with pages that ask for much: who writes finds another one."""
SECONDS = 5.0
"""How long a statement may take: a database that was stopped never answers, and pages wait for it."""
ANSWER_SECONDS = 1.0
"""How long the database has to say that it ended a statement which took longer: then the connection still stands."""
CONNECT_SECONDS = 3
MIGRATE_SECONDS = 120.0
IDLE_SECONDS = 3
"""A transaction whose server fell asleep in it is ended by the database: it holds locks that others wait for."""
READER_IDLE_SECONDS = 60
"""The same where it only reads, and adds up what it has read: nobody waits for that."""
REST_SECONDS = 1.0
"""After the database was away it is asked again only then: who asks meanwhile is told so at once."""
_SAID_ALREADY = re.compile(
    r"^connection failed: (connection to server at [^ ]+ ?[^ ]*, port \d+ failed: )?|"
    r" Is the server running on that host and accepting TCP/IP connections\?"
)
"""What libpq says of where it tried, and what it asks its reader."""
_ASK = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_MIGRATING = 0x636C6162  # "clab": the advisory lock of who brings a schema up to date


class PostgresqlError(Exception):
    """The database did not do what it was asked to; the text says why, without the password.

    Args:
        why: one line.
        is_away: it cannot be reached, or does not answer: the same may be asked again later.
        is_of_values: it does not take the very values that it was given, now or ever.
    """

    def __init__(self, why: str, *, is_away: bool = False, is_of_values: bool = False) -> None:
        super().__init__(why)
        self.is_away = is_away
        self.is_of_values = is_of_values


class Rows(Protocol):
    """What a statement gave; a cursor of SQLite has the same."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def fetchone(self) -> Any:
        """Return the next row; None where there is none."""

    def fetchall(self) -> list[Any]:
        """Return all further rows."""

    def __iter__(self) -> Iterator[Any]: ...


class Statements(Protocol):
    """What takes statements in a transaction; a connection of SQLite has the same."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        """Do one statement."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows:
        """Do one statement for each row of parameters."""


def problem_of(url: str) -> str | None:
    """Say what is wrong with the address of a database, without repeating it; None: nothing."""
    if not url.startswith(("postgresql://", "postgres://")):
        return "got an address of another form, expected postgresql://USER@HOST:5432/DATABASE"
    who, _, _ = url.partition("://")[2].partition("?")[0].rpartition("@")
    if "/" in who or "@" in who:  # libpq would take what stands before it for a host, and say its name
        return "a password that holds / or @ is written with %2F and %40 for them"
    try:
        parts = conninfo.conninfo_to_dict(url)
        ports = [int(port) for port in str(parts.get("port", "5432")).split(",") if port]
    except (psycopg.Error, ValueError):
        return "cannot be read, expected postgresql://USER@HOST:5432/DATABASE"
    if not all(0 < port < 65_536 for port in ports):
        return "names no port, expected postgresql://USER@HOST:5432/DATABASE"
    return None if parts.get("dbname") else "names no database, expected postgresql://USER@HOST:5432/DATABASE"


class Database:
    """A database, and a few connections to it that are kept. Any thread may call.

    Args:
        url: where it is, as `postgresql://dash:secret@db1,db2:5432/dash?sslmode=verify-full`; of several hosts the one
            that can be written is used.
        connections: how many there are at most.
        asking: how many of them may be asked for much at once.
        seconds: how long a statement may take, and how long a connection is waited for.
    """

    def __init__(
        self, url: str, *, connections: int = CONNECTIONS, asking: int = ASKING, seconds: float = SECONDS
    ) -> None:
        parts: Mapping[str, Any] = conninfo.conninfo_to_dict(url)
        self._url = conninfo.make_conninfo(
            **{
                "connect_timeout": CONNECT_SECONDS,
                "application_name": "cluster-dash",
                "target_session_attrs": "read-write",
                "keepalives_idle": 10,
                "keepalives_interval": 3,
                "keepalives_count": 3,
                **parts,
                "client_encoding": ENCODING,
            }
        )
        host = parts.get("host") or parts.get("hostaddr") or "this machine"
        self.where = f"the database {parts.get('dbname', '')} at {host}"
        """What is said of where it is."""
        self._seconds = seconds
        self._turns = threading.BoundedSemaphore(connections)
        self._asking = threading.BoundedSemaphore(asking)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._parts: dict[str, Sequence[str]] = {}
        self._is_prepared = threading.Event()
        self._trouble: tuple[float, str] | None = None  # until when nobody asks, and why
        self._trying = threading.Lock()  # held by the one who asks after that
        self._preparing = threading.Lock()

    def expects(self, part: str, steps: Sequence[str]) -> None:
        """Name the schema of a part: its version is how many steps were done; called before the part asks anything.

        Args:
            part: its name: that of no other part.
            steps: each takes the schema one version further: statements, parted by semicolons. A step that was
                released is never changed.
        """
        with self._lock:
            self._parts = {**self._parts, part: steps}
            self._is_prepared.clear()

    def problem(self) -> str | None:
        """Look whether it is one that can be used; None: it is.

        Raises:
            PostgresqlError: it cannot be asked.
        """
        with self._connection(self._seconds) as connection:
            version, folder, may_create = connection.execute(
                "SELECT current_setting('server_version_num')::int, current_schema(), "
                "COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE)"
            ).fetchone()
            misfit = self._misfit_of(connection)
        if version < OLDEST * 10_000:
            return f"{self.where} is PostgreSQL {version // 10_000}, expected {OLDEST} or newer"
        if misfit is not None:
            return misfit
        if not may_create:
            return f"{self.where}: the user may make no tables in the schema {folder or 'public'}"
        return None

    def _misfit_of(self, connection: "_Connection") -> str | None:
        """Say which encoding it has, and the mend, where that cannot hold all names."""
        if connection.encoding in (ENCODING, None):
            return None
        return (
            f"{self.where} has the encoding {connection.encoding}, expected {ENCODING}: make another one by CREATE "
            f"DATABASE … ENCODING '{ENCODING}' LOCALE 'C' TEMPLATE template0, and name that"
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[Statements]:
        """Give a connection on which each statement stands for itself: for one that reads.

        Raises:
            PostgresqlError: it cannot be asked, or refuses.
        """
        with self._connection(self._seconds) as connection:
            self._prepare(connection)
            yield connection

    @contextlib.contextmanager
    def asking(self) -> Iterator[Statements]:
        """Give a connection to one who asks for much, as pages of the past do, and sees all as of one moment.

        Only a few may at once, so that who writes need not wait for them; the database ends what takes too long.

        Raises:
            PostgresqlError: it cannot be asked, or refuses; or too many ask.
        """
        with self._connection(self._seconds, self._asking) as connection:
            self._prepare(connection)
            with _in_transaction(connection, self._seconds, _ASK, READER_IDLE_SECONDS):
                yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Statements]:
        """Give a connection in a transaction: all of it is kept, or nothing.

        Raises:
            PostgresqlError: it cannot be asked, or refuses; where the connection broke in the very end, the
                transaction may have been kept all the same.
        """
        with self._connection(self._seconds) as connection:
            self._prepare(connection)
            with _in_transaction(connection, self._seconds):
                yield connection

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()

    # --------------------------------------------------------------------------------------------------- connections

    @contextlib.contextmanager
    def _connection(self, seconds: float, *limits: threading.Semaphore) -> "Iterator[_Connection]":
        with self._turn(seconds, (*limits, self._turns)):
            connection = None
            try:
                connection = self._kept() or _Connection.open(self._url)
                connection.may_take(seconds)
                yield connection
            except psycopg.Error as error:
                raise self._failed(error, connection) from error
            except BaseException:  # raised again: a connection that stands in the middle of something is not kept
                if connection is not None and not connection.is_at_rest:
                    connection.close()
                raise
            else:
                self._trouble = None
            finally:
                if connection is not None and connection.is_at_rest:
                    with self._lock:
                        self._idle.append(connection)

    @contextlib.contextmanager
    def _turn(self, seconds: float, limits: Iterable[threading.Semaphore]) -> Iterator[None]:
        """Wait for a turn; where the database was away, one alone tries, and the others hear so at once."""
        trouble = self._trouble
        if trouble is not None and (time.monotonic() < trouble[0] or not self._trying.acquire(blocking=False)):
            raise PostgresqlError(trouble[1], is_away=True)
        try:
            with contextlib.ExitStack() as held:
                for limit in limits:
                    if not limit.acquire(timeout=seconds):
                        raise PostgresqlError(f"{self.where}: all connections are busy: try again later", is_away=True)
                    held.callback(limit.release)
                if trouble is None and self._trouble is not None:  # it went while this one waited
                    raise PostgresqlError(self._trouble[1], is_away=True)
                yield
        finally:
            if trouble is not None:
                self._trying.release()

    def _kept(self) -> "_Connection | None":
        """Return a connection that was kept and still stands, as far as can be seen without asking."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.stands:
                return connection
            connection.close()

    def _failed(self, error: psycopg.Error, connection: "_Connection | None") -> PostgresqlError:
        is_ended = isinstance(error, psycopg.errors.QueryCanceled)
        why = f"{self.where}: {'it took too long and was ended' if is_ended else _in_one_line(error)}"
        is_lost = connection is None or not connection.is_at_rest
        is_of_values = not is_lost and _is_of_values(error)
        is_away = is_lost or (isinstance(error, psycopg.OperationalError) and not is_of_values)
        if connection is not None and is_lost:
            connection.close()
        if is_lost:
            self._trouble = time.monotonic() + REST_SECONDS, why
        return PostgresqlError(why, is_away=is_away, is_of_values=is_of_values)

    # -------------------------------------------------------------------------------------------------------- schema

    def _prepare(self, connection: "_Connection") -> None:
        """Bring all schemas up to date, once; who comes meanwhile waits."""
        if self._is_prepared.is_set():
            return
        with self._preparing:
            if self._is_prepared.is_set():
                return
            misfit = self._misfit_of(connection)
            if misfit is not None:
                raise PostgresqlError(misfit)
            connection.may_take(MIGRATE_SECONDS)
            parts = self._parts
            with _in_transaction(connection, MIGRATE_SECONDS):
                connection.execute("SELECT pg_advisory_xact_lock(?)", (_MIGRATING,))
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS schema_versions (part TEXT PRIMARY KEY, version INTEGER NOT NULL)"
                )
                versions = dict(connection.execute("SELECT part, version FROM schema_versions").fetchall())
                for part, steps in parts.items():
                    version = versions.get(part, 0)
                    if version > len(steps):
                        raise PostgresqlError(
                            f"{self.where} was written by a newer release ({part}: form {version}, this one knows "
                            f"{len(steps)}): install that release, or name another database"
                        )
                    for step in steps[version:]:
                        connection.execute(step)
                    connection.execute(
                        "INSERT INTO schema_versions (part, version) VALUES (?, ?) "
                        "ON CONFLICT (part) DO UPDATE SET version = excluded.version",
                        (part, len(steps)),
                    )
            connection.may_take(self._seconds)
            with self._lock:
                if parts is self._parts:  # else one more was named meanwhile
                    self._is_prepared.set()


@contextlib.contextmanager
def _in_transaction(
    connection: "_Connection", seconds: float, begin: str = "BEGIN", idle_seconds: int = IDLE_SECONDS
) -> Iterator[None]:
    connection.may_take(seconds + ANSWER_SECONDS)
    # said for this transaction alone: a pooler such as PgBouncer may give each to another connection of its own
    connection.execute(
        f"{begin}; SET LOCAL statement_timeout = '{seconds:g}s'; SET LOCAL lock_timeout = '{seconds:g}s'; "
        f"SET LOCAL idle_in_transaction_session_timeout = '{idle_seconds}s'"
    )
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:  # raised again: whatever ends it, half of it must not stand
        with contextlib.suppress(psycopg.Error):
            connection.execute("ROLLBACK")
        raise


class _Limited(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose statements end in time, whatever becomes of the database."""

    deadline = float("inf")

    def wait(self, gen: Any, *args: Any, **named: Any) -> Any:
        return super().wait(self._watched(gen), *args, **named)

    def _watched(self, gen: Any) -> Any:
        """Pass on what a running statement waits for, and end it when its time is over."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > self.deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("no answer in time")
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value


class _Connection:
    """A connection that takes statements as they are written for SQLite. One thread at a time."""

    def __init__(self, connection: _Limited) -> None:
        self._connection = connection
        self._seconds = SECONDS
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)

    @classmethod
    def open(cls, url: str) -> "_Connection":
        # values are written into the statement: one way for all, and no types to be guessed by the database
        return cls(_Limited.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor))

    def may_take(self, seconds: float) -> None:
        """Say how long each statement may take from now on."""
        self._seconds = seconds

    @property
    def is_at_rest(self) -> bool:
        """Whether it is open, and in no transaction."""
        return self._connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

    @property
    def stands(self) -> bool:
        """Whether the other end said nothing since: it says something only when it goes."""
        return self.is_at_rest and not self._poll.poll(0)

    @property
    def encoding(self) -> str | None:
        """How the database keeps texts, as PostgreSQL names it; None: what stands between does not say."""
        return self._connection.info.parameter_status("server_encoding")

    def close(self) -> None:
        self._connection.close()

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        self._connection.deadline = time.monotonic() + self._seconds
        cursor = self._connection.cursor()
        if parameters:
            return cursor.execute(_translated(sql), _writable(parameters))
        return cursor.execute(sql.encode())

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows:
        self._connection.deadline = time.monotonic() + self._seconds
        cursor = self._connection.cursor()
        cursor.executemany(_translated(sql), [_writable(row) for row in parameters])
        return cursor


def _translated(sql: str) -> bytes:
    return sql.replace("%", "%%").replace("?", "%s").encode()


def _writable(parameters: Sequence[Any]) -> list[Any]:
    """Return values that a text of PostgreSQL can hold: it takes neither NUL nor half a surrogate pair."""
    return [
        each.replace("\0", "\ufffd").encode(errors="replace").decode() if isinstance(each, str) else each
        for each in parameters
    ]


def _is_of_values(error: psycopg.Error) -> bool:
    """Say whether an error is one of data, of a constraint, or of a limit, as a text too long for an index."""
    return isinstance(error, psycopg.DataError) or (error.sqlstate or "")[:2] in ("22", "23", "54")


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = _SAID_ALREADY.sub("", text)
    return text if len(text) <= 300 else text[:300] + " …"
