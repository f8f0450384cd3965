"""Tokens: secrets of one host, codes by which many hosts get theirs, and tokens for programs that read.

Kept are hashes only. A token holds 256 random bits, so there is nothing to guess and a plain SHA-256 is as good as a
slow hash: those are for what people choose. It is looked up by its id; where there is none, a secret that nobody has is
compared instead, so that an unknown id and a wrong secret take the same time.
"""

import base64
import dataclasses
import hashlib
import hmac
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cluster_dash_server.hostlist import HostlistError, matcher
from cluster_dash_server.snapshot import Json, printable

log = logging.getLogger(__name__)

Kind = Literal["host", "enrol", "read"]
PREFIXES: dict[Kind, str] = {"host": "cdh_", "enrol": "cde_", "read": "cdr_"}
READ_SCOPES = ("state:read", "history:read", "metrics:read", "pii:read")
"""What a read token may be for; pii:read: the names of users and of their programs."""

FILE = "tokens.sqlite"
FORMAT = 1
FILE_CLOCK_NS = 2 * 10**9
"""How coarse the clock of a file system may be."""
LOOK_SECONDS = 1.0
"""How often the file is looked at for what another process wrote; a revocation works after so long at the latest."""
SOON_SECONDS = 0.2
"""So long before it is due, whoever must not wait leaves the look to others."""
OVERLAP_SECONDS = 86_400.0
"""How long the old token stays valid beside the new one of a rotation."""
REMEMBERED_SECONDS = 90 * 86_400.0
"""How long a revoked or expired token is remembered, so that its holder is told what became of it."""


class TokenError(Exception):
    """A wish about tokens that cannot be granted; the text says why, and never holds a secret."""


class TokenUsageError(TokenError):
    """A wish that nobody can mean: it was typed wrong."""


class TokensAway(TokenError):
    """What keeps tokens does not answer now: the same wish may be granted later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of a token; moments in Unix s.

    Attributes:
        id: eight characters; part of the token, and no secret.
        digest: SHA-256 of the whole token.
        hosts: host: the name, or the hostlist of a relay; enrol: which names may ask, a hostlist or a pattern;
            read: a word that says what it is for.
        scopes: read: what it opens.
        machine_id: host: the machine that uses it; None: none has yet, or it is for several.
        uses_left: enrol: how many hosts may still ask with it.
    """

    id: str
    kind: Kind
    digest: bytes
    hosts: str
    made_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    scopes: tuple[str, ...] = ()
    machine_id: str | None = None
    uses_left: int | None = None

    def is_valid(self, now: float) -> bool:
        """Say whether it opens anything at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def binds(self, machine_id: object) -> bool:
        """Say whether the machine that posts with it now is to be written down as the one it belongs to."""
        return machine_id is not None and machine_id != self.machine_id and names_one(self.hosts)

    def speaks_for(self, host: str) -> bool:
        """Say whether it is for a host of this name."""
        return host == self.hosts or _matcher(self.hosts)(host)


class TokenStore(Protocol):
    """Where tokens are kept. Each call may raise TokenError."""

    def read(self) -> list[Token]:
        """Return all of them."""

    def write(self, tokens: Iterable[Token], now: float) -> None:
        """Add or replace tokens, all or none, on disk when it returns; forget those that ended long before `now`."""

    def stamp(self) -> object:
        """Return what is another value once somebody else has written; cheap."""

    def alone(self) -> AbstractContextManager[None]:
        """Let nobody else write meanwhile, where several servers do; what is read then is the newest."""

    @property
    def trouble(self) -> str | None:
        """Why nobody can say now whether a token is known; None: it can be said."""


_NOBODY = Token(id="", kind="host", digest=secrets.token_bytes(32), hosts="", made_at=0.0)
_matchers: dict[str, Callable[[str], bool]] = {}


def _matcher(hosts: str) -> Callable[[str], bool]:
    """Return what tells whether a name is meant; remembered, as a fleet asks with one code."""
    found = _matchers.get(hosts)
    if found is None:
        if len(_matchers) > 1000:
            _matchers.clear()
        try:
            found = matcher(hosts)
        except HostlistError:  # it was checked when it was made, by an older version maybe; a wrong one means nothing
            found = _means_nobody
        _matchers[hosts] = found
    return found


def _means_nobody(host: str) -> bool:
    return False


class Tokens:
    """All tokens, in memory and in their store. Thread-safe.

    Args:
        store: where they are kept.
        clock: Unix s.
    """

    def __init__(self, store: TokenStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.RLock()
        self._by_id: dict[str, Token] = {}
        self._used_at: dict[str, float] = {}
        self._stamp: object = None
        self._looked_at = float("-inf")

    def load(self) -> None:
        """Read the store where somebody has written to it.

        Raises:
            TokenError: it cannot be read.
        """
        with self._lock:
            stamp = self._store.stamp()
            if stamp != self._stamp:
                self._by_id = {token.id: token for token in self._store.read()}
                self._stamp = stamp

    def waits(self, now: float) -> bool:
        """Say whether to look for a token might mean to wait now: the store is to be looked at, or is written to."""
        if not self._has_looked(now + SOON_SECONDS) or not self._lock.acquire(blocking=False):
            return True
        self._lock.release()
        return False

    def _has_looked(self, now: float) -> bool:
        return 0 <= now - self._looked_at < LOOK_SECONDS

    def look(self, now: float) -> None:
        """Take in what another process has written; what cannot be read leaves what is known."""
        if self._has_looked(now):
            return
        self._looked_at = now
        try:
            self.load()
        except TokenError as error:
            log.warning("tokens: changes are not seen: %s", error)

    @property
    def trouble(self) -> str | None:
        """Why one that is not found may be valid all the same; None: it is not."""
        return self._store.trouble

    def find(self, presented: str, now: float) -> Token | None:
        """Return the token whose secret was presented, valid or not; None where it is none of ours.

        Takes the same time for an unknown id and for a wrong secret.
        """
        self.look(now)
        token = self._by_id.get(presented[4:12], _NOBODY)
        return token if hmac.compare_digest(digest_of(presented), token.digest) else None

    def used(self, token: Token, machine_id: str | None, now: float) -> None:
        """Note that a host posted with its token; the first machine that does is the one it belongs to from then on."""
        self._used_at[token.id] = now
        if not token.binds(machine_id):
            return
        with self._lock:
            token = self._by_id.get(token.id, token)  # it may have been revoked since it was found
            if token.machine_id is not None:
                log.warning("audit: token %s of %s is used by another machine now", token.id, printable(token.hosts))
            token = self._by_id[token.id] = dataclasses.replace(token, machine_id=machine_id)
            try:
                self._keep(token)
            except TokenError as error:
                log.warning("token %s: its machine cannot be noted: %s", token.id, error)

    def _keep(self, *tokens: Token) -> None:
        now = self._clock()
        with self._lock:
            self._store.write(tokens, now)
            self._stamp = self._store.stamp()
            for token in tokens:
                self._by_id[token.id] = token

    # ---------------------------------------------------------------------------------------------------- commands

    def new(
        self,
        kind: Kind,
        hosts: str,
        *,
        ttl_seconds: float | None = None,
        uses: int | None = None,
        scopes: Iterable[str] = (),
        machine_id: str | None = None,
    ) -> str:
        """Make a token; return it, for the only time that anybody sees it.

        Raises:
            TokenUsageError: a name, hostlist, scope or number that cannot be meant.
            TokenError: it cannot be kept.
        """
        now = self._clock()
        self._refuse_what_cannot_be_meant(kind, hosts, ttl_seconds, uses, tuple(scopes))
        secret, token = _made(kind, hosts, now, ttl_seconds)
        self._keep(dataclasses.replace(token, uses_left=uses, scopes=tuple(scopes), machine_id=machine_id))
        log.info("audit: made %s token %s for %s", kind, token.id, printable(hosts))
        return secret

    def _refuse_what_cannot_be_meant(
        self, kind: Kind, hosts: str, ttl_seconds: float | None, uses: int | None, scopes: tuple[str, ...]
    ) -> None:
        if not hosts or len(hosts) > 4096 or printable(hosts, 4096) != hosts or "/" in hosts:
            raise TokenUsageError(f"hosts: got {printable(hosts, 64)!r}, expected a host's name or a hostlist")
        try:
            matcher(hosts)
        except HostlistError as error:
            raise TokenUsageError(f"hosts: {error}") from None
        unknown = [scope for scope in scopes if scope not in READ_SCOPES]
        if unknown:
            got = printable(unknown[0], 64)
            raise TokenUsageError(f"scopes: got {got!r}, expected some of {', '.join(READ_SCOPES)}")
        if kind == "read" and not scopes:
            raise TokenUsageError(f"scopes: a read token needs some of {', '.join(READ_SCOPES)}")
        if ttl_seconds is not None and not 0 < ttl_seconds <= 10 * 366 * 86_400:
            raise TokenUsageError(f"ttl: got {ttl_seconds:g} s, expected more than 0 and at most ten years")
        if uses is not None and not 1 <= uses <= 100_000:
            raise TokenUsageError(f"max: got {uses}, expected 1 to 100000")

    def enrol(self, code: Token, host: str, machine_id: str | None) -> str:
        """Trade a use of an enrolment code for a host's own token; return that.

        Raises:
            TokenError: the name is not on its list, is taken, or no use is left.
        """
        with self._lock, self._store.alone():
            self.load()
            code = self._by_id.get(code.id, code)  # another host may have taken the last use since it was found
            now = self._clock()
            name = printable(host, 64)
            # a host named gpu* would have a token for all of them
            if not names_one(host) or not code.speaks_for(host):
                raise TokenError(f"{name} is not among the names that this code is for: {printable(code.hosts)}")
            if code.uses_left is not None and code.uses_left < 1:
                raise TokenError("this code has been used as often as it may be: a new one by token new --enrol")
            holder = self._token_of(host, now)
            if holder is not None:
                raise TokenError(
                    f"{name} has a token already; if it was set up anew: cluster-dash-server token revoke {holder.id}"
                )
            secret, token = _made("host", host, now, None)
            token = dataclasses.replace(token, machine_id=machine_id)
            left = None if code.uses_left is None else code.uses_left - 1
            changed = (dataclasses.replace(code, uses_left=left), token)
            self._store.write(changed, now)
            self._stamp = self._store.stamp()
            self._by_id.update((each.id, each) for each in changed)
        log.info("audit: %s enrolled by code %s, token %s", name, code.id, token.id)
        return secret

    def _token_of(self, host: str, now: float) -> Token | None:
        of_host = (each for each in self._by_id.values() if each.kind == "host" and each.hosts == host)
        return next((each for each in of_host if each.is_valid(now)), None)

    def revoke(self, which: str) -> list[Token]:
        """Revoke a token by its id, or all of a host's by its name; return them.

        Raises:
            TokenError: there is none.
        """
        now = self._clock()
        with self._lock, self._store.alone():
            found = [dataclasses.replace(each, revoked_at=now) for each in self._meant(which, now)]
            self._keep(*found)
        for token in found:
            log.info("audit: revoked %s token %s of %s", token.kind, token.id, printable(token.hosts))
        return found

    def rotate(self, which: str) -> str:
        """Make a second token for a host; the old one ends in a day. Return the new one.

        Raises:
            TokenError: there is none, or not one only.
        """
        now = self._clock()
        with self._lock, self._store.alone():
            found = self._meant(which, now)
            if len(found) != 1:
                raise TokenError(f"{printable(which, 64)} has {len(found)} tokens: name one by its id")
            (old,) = found
            ends_at = min(now + OVERLAP_SECONDS, old.expires_at or float("inf"))
            lifetime = None if old.expires_at is None else old.expires_at - old.made_at
            secret, token = _made(old.kind, old.hosts, now, lifetime)
            self._keep(
                dataclasses.replace(old, expires_at=ends_at),
                dataclasses.replace(token, scopes=old.scopes, uses_left=old.uses_left, machine_id=old.machine_id),
            )
        log.info("audit: token %s of %s takes the place of %s", token.id, printable(token.hosts), old.id)
        return secret

    def _meant(self, which: str, now: float) -> list[Token]:
        self.load()
        valid = [each for each in self._by_id.values() if each.is_valid(now)]
        found = [each for each in valid if each.id == which] or [
            each for each in valid if each.kind == "host" and each.hosts == which
        ]
        if not found:
            raise TokenError(f"no valid token has the id, or is of the host, {printable(which, 64)}")
        return found

    def all(self) -> list[tuple[Token, float | None]]:
        """Return each token, the newest last, and when it was last used, None: not since this server began."""
        self.look(self._clock())
        by_age = sorted(self._by_id.values(), key=lambda each: each.made_at)
        return [(token, self._used_at.get(token.id)) for token in by_age]

    def has_valid(self, kind: Kind, now: float) -> bool:
        """Say whether there is any token of a kind that opens something."""
        self.look(now)
        return any(each.kind == kind and each.is_valid(now) for each in list(self._by_id.values()))


def obey(tokens: Tokens, wish: Json) -> Json:
    """Do what a command about tokens says, in the server or where none runs; never raises TokenError.

    Args:
        tokens: what it changes.
        wish: {"new": the arguments of `Tokens.new`}, {"list": {}}, {"revoke": id or host} or {"rotate": id or host}.

    Returns:
        success, and what came of it, or msg: why not.

    Raises:
        TypeError, KeyError: the command is none of these.
    """
    try:
        if "new" in wish:
            return {"success": True, "token": tokens.new(**wish["new"])}
        if "revoke" in wish:
            return {"success": True, "revoked": [token.id for token in tokens.revoke(wish["revoke"])]}
        if "rotate" in wish:
            return {"success": True, "token": tokens.rotate(wish["rotate"])}
        wish["list"]
        return {"success": True, "tokens": [_told(token, used_at) for token, used_at in tokens.all()]}
    except TokenError as error:
        return {"success": False, "is_usage": isinstance(error, TokenUsageError), "msg": str(error)}


def _told(token: Token, used_at: float | None) -> Json:
    told = {name: getattr(token, name) for name in _COLUMNS if name != "digest"}
    return {**told, "used_at": used_at}


def names_one(hosts: str) -> bool:
    """Say whether it is the name of one host, and neither a hostlist nor a pattern."""
    return not any(sign in hosts for sign in "[],*?")


def _made(kind: Kind, hosts: str, now: float, ttl_seconds: float | None) -> tuple[str, Token]:
    # lower-case letters and digits: an id is read aloud, and stands in commands
    own = base64.b32encode(secrets.token_bytes(5)).decode().lower()
    secret = f"{PREFIXES[kind]}{own}_{secrets.token_urlsafe(32)}"
    expires_at = None if ttl_seconds is None else now + ttl_seconds
    return secret, Token(id=own, kind=kind, digest=digest_of(secret), hosts=hosts, made_at=now, expires_at=expires_at)


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 of a secret; of any text, even one that cannot be a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def looks_like(presented: object, kind: Kind) -> bool:
    """Say whether what was presented wants to be a token of a kind."""
    return isinstance(presented, str) and presented.startswith(PREFIXES[kind])


# -------------------------------------------------------------------------------------------------------- the file


_COLUMNS = tuple(field.name for field in dataclasses.fields(Token))
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, digest BLOB NOT NULL, hosts TEXT NOT NULL, made_at REAL NOT NULL,
    expires_at REAL, revoked_at REAL, scopes TEXT NOT NULL, machine_id TEXT, uses_left INTEGER
) WITHOUT ROWID
"""


class TokenFile:
    """A file of tokens in the data folder, readable by the server's user alone.

    It has no write-ahead log, so it may lie on NFS; a crash in the middle of a write leaves what was there before.

    Args:
        folder: the data folder; made by the first write.
    """

    trouble = None

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def alone(self) -> AbstractContextManager[None]:
        """Return nothing to wait for: one server has the folder."""
        return nullcontext()

    def stamp(self) -> object:
        """Return what differs once somebody has written; None where there is no file."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        if time.time_ns() - found.st_mtime_ns < FILE_CLOCK_NS:
            return object()  # a second write within a tick of the file system's clock could not be told from the first
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> list[Token]:
        """Return all tokens.

        Raises:
            TokenError: the file cannot be read.
        """
        if not self.path.exists():
            return []
        try:
            with closing(self._open()) as database:
                rows = database.execute(f"SELECT {', '.join(_COLUMNS)} FROM tokens").fetchall()  # noqa: S608 - ours
        except sqlite3.Error as error:
            raise TokenError(f"{self.path}: cannot be read: {error}") from error
        found = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        return [Token(**{**each, "scopes": tuple(each["scopes"].split())}) for each in found]

    def write(self, tokens: Iterable[Token], now: float) -> None:
        """Add or replace tokens in one transaction.

        Raises:
            TokenError: the file cannot be written.
        """
        rows = [(*(getattr(token, name) for name in _COLUMNS[:7]), *_rest(token)) for token in tokens]
        places = ", ".join("?" * len(_COLUMNS))
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(self._open()) as database, database:
                database.execute(_SCHEMA)
                database.execute(f"PRAGMA user_version = {FORMAT}")
                # what was revoked stays so, whatever a second server on this folder still remembers
                database.executemany(
                    f"INSERT INTO tokens ({', '.join(_COLUMNS)}) VALUES ({places}) ON CONFLICT (id) DO UPDATE SET "  # noqa: S608 - ours
                    "expires_at = excluded.expires_at, revoked_at = ifnull(revoked_at, excluded.revoked_at), "
                    "machine_id = excluded.machine_id, uses_left = excluded.uses_left",
                    rows,
                )
                database.execute(
                    "DELETE FROM tokens WHERE min(ifnull(revoked_at, 1e18), ifnull(expires_at, 1e18)) < ?",
                    (now - REMEMBERED_SECONDS,),
                )
        except (sqlite3.Error, OSError) as error:
            raise TokenError(f"{self.path}: cannot be written: {error}") from error

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=5)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > FORMAT:
            database.close()
            raise TokenError(f"{self.path}: written by a newer release (format {version}, this one knows {FORMAT})")
        database.execute("PRAGMA synchronous = FULL")
        return database


def _rest(token: Token) -> tuple[object, ...]:
    return " ".join(token.scopes), token.machine_id, token.uses_left
