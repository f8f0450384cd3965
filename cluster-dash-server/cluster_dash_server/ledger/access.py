"""Tokens, and sessions that were ended, in PostgreSQL: what one replica is told, all of them know within seconds.

A thread asks for them each second; posts and pages look at what it brought, and wait for nobody. While the database is
away, what is known counts for five minutes, for nobody could hear then that a token was revoked.
"""

import contextlib
import dataclasses
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from cluster_dash_server.access.oidc import KEPT_SECONDS, Pending
from cluster_dash_server.access.tokens import REMEMBERED_SECONDS, Token, TokenError, Tokens, TokensAway, digest_of
from cluster_dash_server.access.viewers import ROLES, Role
from cluster_dash_server.postgresql import Database, PostgresqlError, Statements

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
TRUSTED_SECONDS = 300.0
"""For how long tokens count that nobody can ask for."""
STEPS = (
    """
CREATE TABLE tokens (id TEXT PRIMARY KEY, kind TEXT NOT NULL, digest BYTEA NOT NULL, hosts TEXT NOT NULL,
  made_at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION, revoked_at DOUBLE PRECISION, scopes TEXT NOT NULL,
  machine_id TEXT, uses_left INTEGER);
CREATE TABLE token_writes (one BOOLEAN PRIMARY KEY CHECK (one), times BIGINT NOT NULL);
INSERT INTO token_writes VALUES (true, 0);
CREATE TABLE ended_sessions (digest BYTEA PRIMARY KEY, until DOUBLE PRECISION NOT NULL);
CREATE TABLE signing_in (state TEXT PRIMARY KEY, begun_at DOUBLE PRECISION NOT NULL, pending TEXT NOT NULL)
""",
)
_COLUMNS = tuple(field.name for field in dataclasses.fields(Token))


class SharedAccess:
    """What replicas know of tokens and of who has signed out; a `TokenStore`. Any thread may call.

    Args:
        database: where they are.
        clock: Unix s.
        monotonic: s from any beginning.
    """

    def __init__(
        self, database: Database, clock: Callable[[], float], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._db = database
        self._clock = clock
        self._monotonic = monotonic
        self._tokens: list[Token] = []
        self._times: int | None = None
        self._read: object = object()  # another one whenever they were read: what was not kept counts no times
        self._has_written = False
        self._ended: frozenset[bytes] = frozenset()
        self._ended_here: dict[bytes, float] = {}  # until they are seen in the database
        self._looked_at = float("-inf")
        self._why: str = "they were not read yet"
        self.fault: str | None = None
        """Why the database cannot be used though it answers, as one of a newer release; None: it can, or is away."""
        self._alone = threading.local()
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        database.expects("access", STEPS)

    def start(self) -> None:
        """Ask from now on, in a thread."""
        self._thread = threading.Thread(target=self._look_on, name="ledger-access", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()

    def _look_on(self) -> None:
        while not self._ends.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:  # whatever it is: a token that is revoked must be heard of as long as the server lives
                log.exception("a fault in asking for tokens")

    def look(self) -> None:
        """Ask what was written since the last time; what cannot be asked leaves what is known."""
        asked_at = self._monotonic()
        try:
            with self._db.reading() as db:
                self._take(db)
        except PostgresqlError as error:
            self._why = str(error)
            self.fault = None if error.is_away else self._why
            return
        self._looked_at, self.fault = asked_at, None
        self._tell_of_ended()

    def _take(self, db: Statements) -> None:
        (times,) = db.execute("SELECT times FROM token_writes").fetchone()
        if times != self._times:
            rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM tokens").fetchall()  # noqa: S608 - ours
            found = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
            self._tokens = [
                Token(**{**each, "digest": bytes(each["digest"]), "scopes": tuple(each["scopes"].split())})
                for each in found
            ]
            self._times, self._read = times, object()
        ended = db.execute("SELECT digest FROM ended_sessions WHERE until > ?", (self._clock(),)).fetchall()
        self._ended = frozenset(bytes(digest) for (digest,) in ended)
        for digest in self._ended:
            self._ended_here.pop(digest, None)

    # --------------------------------------------------------------------------------------------------- tokens

    @property
    def trouble(self) -> str | None:
        """See `TokenStore`."""
        is_known = self._monotonic() - self._looked_at < TRUSTED_SECONDS
        return None if is_known else self._why

    def stamp(self) -> object:
        """See `TokenStore`."""
        if self._has_written:  # who wrote may remember something older beside it: it is read again
            self._has_written = False
            return object()
        return self._read if self.trouble is None else "unknown"

    def read(self) -> list[Token]:
        """See `TokenStore`; none where they are known no longer, and a command is told why."""
        if self.trouble is not None and self._thread is None:
            raise TokenError(f"tokens cannot be read: {self.trouble}")
        return self._tokens if self.trouble is None else []

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """See `TokenStore`."""
        with self._writing():
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Statements]:
        held: Statements | None = getattr(self._alone, "db", None)
        if held is not None:
            yield held
            return
        try:
            with self._db.transaction() as db:
                db.execute("UPDATE token_writes SET times = times + 1")  # others wait for it
                self._alone.db = db
                asked_at = self._monotonic()
                self._take(db)
                yield db
            self._looked_at = asked_at
        except PostgresqlError as error:
            raise TokensAway(f"tokens cannot be changed now: {error}") from error
        finally:
            self._times = None  # what was written may be there, or not; another's change may get the same number
            self._alone.db = None

    def write(self, tokens: Iterable[Token], now: float) -> None:
        """See `TokenStore`."""
        places = ", ".join("?" * len(_COLUMNS))
        with self._writing() as db:
            for token in tokens:
                values = {name: getattr(token, name) for name in _COLUMNS}
                db.execute(
                    f"INSERT INTO tokens ({', '.join(_COLUMNS)}) VALUES ({places}) ON CONFLICT (id) DO UPDATE SET "  # noqa: S608 - ours
                    "expires_at = excluded.expires_at, revoked_at = COALESCE(tokens.revoked_at, excluded.revoked_at), "
                    "machine_id = excluded.machine_id, uses_left = excluded.uses_left",
                    list({**values, "scopes": " ".join(token.scopes)}.values()),
                )
            db.execute(
                "DELETE FROM tokens WHERE LEAST(COALESCE(revoked_at, 1e18), COALESCE(expires_at, 1e18)) < ?",
                (now - REMEMBERED_SECONDS,),
            )
            self._times = None
            self._take(db)
            self._has_written = True

    # ------------------------------------------------------------------------------------------------- sessions

    def is_ended(self, digest: bytes) -> bool:
        """Say whether a session was ended at any replica."""
        return digest in self._ended or digest in self._ended_here

    def end_session(self, digest: bytes, until: float) -> None:
        """Let all replicas know that a session is over: where the database is away, once it is back.

        Args:
            digest: of what its cookie holds.
            until: when it would have ended (Unix s).
        """
        self._ended_here[digest] = until
        self._tell_of_ended()

    def _tell_of_ended(self) -> None:
        """Let other replicas know of the sessions that were ended here; where they cannot hear of them, later."""
        now = self._clock()
        for digest, until in list(self._ended_here.items()):
            if until <= now:
                self._ended_here.pop(digest, None)
        ended = list(self._ended_here.items())
        if not ended:
            return
        try:
            with self._db.transaction() as db:
                db.execute("DELETE FROM ended_sessions WHERE until < ?", (now,))
                db.executemany("INSERT INTO ended_sessions (digest, until) VALUES (?, ?) ON CONFLICT DO NOTHING", ended)
        except PostgresqlError as error:
            log.warning("a session is ended here, and at other replicas later: %s", error)

    # -------------------------------------------------------------------------------------------- on the way in

    def put(self, state: str, pending: Pending) -> None:
        """See `oidc.OnTheWay`."""
        with contextlib.suppress(PostgresqlError), self._db.transaction() as db:
            db.execute("DELETE FROM signing_in WHERE begun_at < ?", (self._clock() - KEPT_SECONDS,))
            db.execute(
                "INSERT INTO signing_in (state, begun_at, pending) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (state, pending.begun_at, json.dumps(pending)),
            )

    def pop(self, state: str) -> Pending | None:
        """See `oidc.OnTheWay`."""
        try:
            with self._db.transaction() as db:
                row = db.execute("DELETE FROM signing_in WHERE state = ? RETURNING pending", (state,)).fetchone()
        except PostgresqlError:
            return None
        return None if row is None else Pending(*json.loads(row[0]))


@contextlib.contextmanager
def tokens_at(url: str) -> Iterator[Tokens]:
    """Give the tokens of a database, for a command."""
    database = Database(url)
    try:
        access = SharedAccess(database, time.time)
        access.look()
        yield Tokens(access, time.time)
    finally:
        database.close()


class SignedSessions:
    """Who has signed in by a page, told by the cookie itself: any replica that has the key believes it.

    Args:
        seconds: how long one lasts.
        clock: Unix s.
        key: what cookies are signed with.
        access: knows which were ended.
    """

    def __init__(self, seconds: float, clock: Callable[[], float], key: bytes, access: SharedAccess) -> None:
        self.seconds = seconds
        self._clock = clock
        self._key = key
        self._access = access

    def begin(self, name: str, role: Role) -> str:
        """See `KeptSessions`."""
        body = json.dumps([name, role, round(self._clock(), 3), secrets.token_hex(8)]).encode().hex()
        return f"{body}.{self._mark(body)}"

    def find(self, secret: str | None) -> tuple[str, Role] | None:
        """See `KeptSessions`."""
        said = self._said(secret)
        if said is None or self._access.is_ended(digest_of(str(secret))):
            return None
        name, role, made_at = said
        return (name, role) if 0 <= self._clock() - made_at < self.seconds else None

    def end(self, secret: str | None) -> None:
        """See `KeptSessions`."""
        said = self._said(secret)
        if said is not None:
            self._access.end_session(digest_of(str(secret)), said[2] + self.seconds)

    def _said(self, secret: str | None) -> tuple[str, Role, float] | None:
        body, _, mark = (secret or "").partition(".")
        if not hmac.compare_digest(mark.encode("utf-8", "replace"), self._mark(body).encode()):
            return None
        name, role, made_at, _ = cast(Sequence[object], json.loads(bytes.fromhex(body)))
        if not isinstance(name, str) or role not in ROLES or not isinstance(made_at, float | int):
            return None
        return name, role, float(made_at)

    def _mark(self, body: str) -> str:
        return hmac.new(self._key, body.encode("utf-8", "replace"), "sha256").hexdigest()
