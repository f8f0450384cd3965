"""The users file: people who sign in by a password. A line each: `name:role:hash`.

People choose passwords that can be guessed, so each guess is made dear: scrypt, of the standard library, with 32 MiB of
memory. What has been found right is remembered under a key of this process, so that a program that sends it with each
request pays once.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import threading
from pathlib import Path

from cluster_dash_server.access.viewers import ROLES, Role

N, R, P = 2**15, 8, 1
"""The cost of scrypt: 128 · N · R bytes of memory, some 80 ms."""
_MEMORY = 128 * N * R * 2
_NAME = re.compile(r"[^\x00-\x20:\x7f-\x9f]{1,64}")
_HASH = re.compile(r"scrypt\$(\d{1,7})\$(\d{1,2})\$(\d{1,2})\$([\w+/=]+)\$([\w+/=]+)", re.ASCII)
_AT_ONCE = threading.BoundedSemaphore(2)
MOST_REMEMBERED = 1000
SHORTEST_PASSWORD = 8


class UsersError(Exception):
    """A users file that cannot be used; the text names file and line, never a hash."""


def check_password(password: str, kept: str) -> bool:
    """Say whether a password is the one that a hash was made of."""
    match = _HASH.fullmatch(kept)
    if match is None:
        return False
    n, r, p = (int(match[place]) for place in (1, 2, 3))
    salt, wanted = (base64.b64decode(match[place]) for place in (4, 5))
    with _AT_ONCE:
        got = hashlib.scrypt(_bytes(password), salt=salt, n=n, r=r, p=p, maxmem=_MEMORY, dklen=len(wanted))
    return hmac.compare_digest(got, wanted)


def hash_password(password: str) -> str:
    """Return what is kept of a password."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(_bytes(password), salt=salt, n=N, r=R, p=P, maxmem=_MEMORY, dklen=32)
    return f"scrypt${N}${R}${P}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


def parse(text: str, source: str) -> dict[str, tuple[Role, str]]:
    """Read a users file: role and hash by name.

    Raises:
        UsersError: a line that is none.
    """
    found: dict[str, tuple[Role, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        role, _, kept = rest.partition(":")
        if not _NAME.fullmatch(name) or role not in ROLES or not _HASH.fullmatch(kept) or name in found:
            raise UsersError(
                f"{source}, line {number}: expected name:role:hash, each name once; roles: {', '.join(ROLES)}; "
                "write it by cluster-dash-server user add"
            )
        found[name] = (next(each for each in ROLES if each == role), kept)
    return found


class UsersFile:
    """People of a file, read again when it changes. Thread-safe.

    Raises:
        UsersError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = secrets.token_bytes(32)
        self._nobody = hash_password(secrets.token_urlsafe())
        self._remembered: set[bytes] = set()
        self._stamp: object = None
        self._users: dict[str, tuple[Role, str]] = {}
        self._read()

    def _read(self) -> dict[str, tuple[Role, str]]:
        try:
            found = self._path.stat()
            stamp = found.st_ino, found.st_mtime_ns, found.st_size
            if stamp != self._stamp:
                self._users = parse(self._path.read_text(encoding="utf-8"), str(self._path))
                self._stamp = stamp
        except OSError as error:
            raise UsersError(f"{self._path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsersError(f"{self._path}: cannot be read: it is no text in UTF-8") from None
        return self._users

    def _known(self) -> dict[str, tuple[Role, str]]:
        try:
            return self._read()
        except UsersError:
            return {}  # a file that somebody broke lets nobody in; the doctor says why

    def role(self, name: str) -> Role | None:
        """Return the role of somebody; None: there is nobody of that name any more."""
        found = self._known().get(name)
        return None if found is None else found[0]

    def knows_right(self, name: str, password: str) -> bool:
        """Say whether it has been found right since it was set; quick."""
        found = self._known().get(name)
        return found is not None and self._mark(name, password, found[1]) in self._remembered

    def is_right(self, name: str, password: str) -> bool:
        """Say whether it is their password; in the same time whether or not there is somebody of that name."""
        found = self._known().get(name)
        right = check_password(password, self._nobody if found is None else found[1]) and found is not None
        if right and found is not None:
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered = set()
            self._remembered.add(self._mark(name, password, found[1]))
        return right

    def _mark(self, name: str, password: str, kept: str) -> bytes:
        return hmac.digest(self._key, b"\0".join(map(_bytes, (name, password, kept))), "sha256")


def write(path: Path, name: str, entry: tuple[Role, str] | None) -> None:
    """Add or replace somebody, or take them out (None); the file is its owner's alone.

    Raises:
        UsersError: the name cannot be one, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise UsersError(f"{name!r}: expected a name of at most 64 characters, without blanks and colons")
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        users = parse(text, str(path))
        if entry is None and name not in users:
            raise UsersError(f"{path}: there is nobody of the name {name}")
        kept = [line for line in text.splitlines() if line.partition(":")[0] != name]
        kept += [] if entry is None else [f"{name}:{entry[0]}:{entry[1]}"]
        new = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in kept))
            file.flush()
            os.fsync(file.fileno())
        owner = path.stat() if path.exists() else path.parent.stat()  # root may type it for the server's user
        if path.exists():
            new.chmod(owner.st_mode & 0o777)
        if os.geteuid() == 0:
            os.chown(new, owner.st_uid, owner.st_gid)
        new.replace(path)
    except OSError as error:
        raise UsersError(f"{path}: cannot be written: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsersError(f"{path}: cannot be read: it is no text in UTF-8") from None
