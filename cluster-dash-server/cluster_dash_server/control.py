"""Commands that change a running server reach it by a Unix socket in its data folder: a line of JSON each way.

Only the user who runs the server, and root, may speak to it: the socket is theirs alone (0600, in a folder of 0700
where the server makes it), and the kernel says whose process is at the other end.
"""

import json
import logging
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from cluster_dash_server.access.tokens import Tokens, obey
from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.events import EventLog
from cluster_dash_server.hostlist import HostlistError, matcher
from cluster_dash_server.restart import stripped, unnamed, unnamed_block
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.snapshot import Json, printable
from cluster_dash_server.store import Ledger, Store, StoreError
from cluster_dash_server.waiting import WaitError

log = logging.getLogger(__name__)

SOCKET = "control.sock"
SECONDS = 10.0
"""How long a server waits for a command, and a command for a server to listen."""
ANSWER_SECONDS = 60.0
"""How long a command waits for what it asked for: where a database is away, each part of it takes seconds to say so."""
LINE_BYTES = 65_536
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


class ControlError(Exception):
    """A command that did not reach a server.

    Attributes:
        refused: a server is there and does not let this user in; else there is none.
    """

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


def find_data_folder(given: str | None, environment: Mapping[str, str]) -> Path:
    """Return where the data folder is: the folder given, else systemd's, else one in the home of the user."""
    if given is not None:
        return Path(given)
    if environment.get("STATE_DIRECTORY"):
        return Path(environment["STATE_DIRECTORY"].partition(":")[0])
    state_home = environment.get("XDG_STATE_HOME")
    return (Path(state_home) if state_home else Path.home() / ".local" / "state") / "cluster-dash"


# ------------------------------------------------------------------------------------------------------ commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Which hosts to forget, or which missing GPU of them.

    Attributes:
        hosts: a name, a hostlist, or a pattern.
        silent_for_seconds: only hosts that have been silent for so long; None: whether they are silent or not.
        gpu: the uuid of the missing GPU that is not expected any more; None: the whole host.
    """

    hosts: str
    silent_for_seconds: float | None = None
    gpu: str | None = None


def forget(wish: Forget, cluster: Cluster, events: EventLog, now: float) -> list[str]:
    """Forget what is wished; return the names of the hosts that it touched.

    Raises:
        HostlistError: see `hostlist.expand`.
    """
    meant = matcher(wish.hosts, cluster.names())
    least = wish.silent_for_seconds
    names = [
        host.host
        for host in cluster.hosts(now)
        if meant(host.host) and (least is None or now - host.seen.received_at >= least)
    ]
    if wish.gpu is not None:
        return [name for name in names if cluster.forget_gpu(name, wish.gpu)]
    cluster.forget(names)
    events.forget(names)
    return names


# ---------------------------------------------------------------------------------------------------- the server


class _Past(Store, Ledger, Protocol):
    """All of history."""


class Control:
    """The server's end of the socket.

    Args:
        folder: the data folder; made where it is not there.
        cluster: what commands change.
        events: what is forgotten with a host.
        clock: Unix s.
        tokens: what `token` commands change.
        history: what `prune` prunes, and what forgets users.
        slurm: what forgets users, too.

    Attributes:
        commands: further ones by name, each a function of what the command says.
        forgets: what forgets a user besides, by the name of what it is.
    """

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        events: EventLog,
        clock: Callable[[], float],
        tokens: Tokens,
        history: _Past,
        slurm: Slurm,
    ) -> None:
        self._slurm = slurm
        self.forgets: dict[str, Callable[[str], None]] = {}
        self.commands: dict[str, Callable[[Json], Json]] = {}
        self._tokens = tokens
        self._history = history
        self._path = folder / SOCKET
        self._cluster = cluster
        self._events = events
        self._clock = clock
        self._once = threading.Lock()  # taken by the first start, and never given back

    def start(self) -> None:
        """Listen in a thread of its own from now on; once. A server that cannot listen serves without."""
        if not self._once.acquire(blocking=False):
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _answers(self._path):
                log.warning("%s: another server listens there: commands reach that one", self._path)
                return
            self._path.unlink(missing_ok=True)
            server = _Server(str(self._path), self)
            self._path.chmod(0o600)
        except OSError as error:
            log.warning("%s: commands such as forget cannot reach this server: %s", self._path, error.strerror or error)
            return
        threading.Thread(target=server.serve_forever, name="control", daemon=True).start()

    def answer(self, line: bytes, uid: int) -> Json:
        """Do what a line says; never raises.

        Args:
            line: the command as JSON.
            uid: whose process sent it.
        """
        if uid not in (0, os.geteuid()):
            return {"success": False, "refused": True, "msg": f"user {uid} may not: only root and the server's user"}
        try:
            command = json.loads(line)
            if "prune" in command:
                self._history.prune(self._clock())
                return {"success": True}
            if "forget_user" in command:
                return self.forget_user(**command["forget_user"])
            if "token" in command:
                return obey(self._tokens, command["token"])
            for name, do in self.commands.items():
                if name in command:
                    return do(command[name])
            wish = Forget(**command["forget"])
            forgotten = forget(wish, self._cluster, self._events, self._clock())
        except (HostlistError, StoreError, BookError, WaitError) as error:
            return {"success": False, "msg": str(error)}
        except (ValueError, TypeError, KeyError):
            return {
                "success": False,
                "msg": "this server does not know the command: it and the server differ in version",
            }
        for name in forgotten:
            log.info("forgot %s%s", printable(name), "" if wish.gpu is None else f" GPU {printable(wish.gpu, 64)}")
        return {"success": True, "forgotten": forgotten}

    def forget_user(self, user: str, *, begin: bool) -> Json:
        """Begin to forget a user, and say how far that has come; what cannot be done now keeps nothing else from it."""
        done, failed = list[str](), list[str]()
        parts = {"the live view": self._forget_live, **self.forgets, "history": self._forget_past}
        if begin:
            for part, forget_there in parts.items():
                try:
                    forget_there(user)
                    done.append(part)
                except (StoreError, BookError, WaitError) as error:
                    failed.append(f"{part}: {error}")
            log.info("a user is being forgotten")
        told = None
        if not failed:
            try:
                told = self._history.unnamed(user)
            except StoreError as error:
                done = [part for part in done if part != "history"]
                failed.append(f"history: {error}")
        if failed:
            # no name of a user in the log
            log.warning("a user is not forgotten everywhere yet: %s", "; ".join(failed))
            so_far = f"taken out of {', '.join(done)}; " if done else ""
            return {
                "success": False,
                "msg": f"{so_far}still to be done: {'; '.join(failed)}. The same command again does the rest",
            }
        return {"success": True, "unnamed": None if told is None else asdict(told)}

    def _forget_live(self, user: str) -> None:
        for name in self._cluster.names():
            self._cluster.amend(name, partial(unnamed, user=user))
        self._slurm.amend(partial(unnamed_block, user=user))
        self._events.forget_user(user)

    def _forget_past(self, user: str) -> None:
        self._history.forget_user(user, partial(stripped, user=user))


class _Server(socketserver.UnixStreamServer):
    def __init__(self, path: str, control: Control) -> None:
        super().__init__(path, _Handler)
        self.control = control


class _Handler(socketserver.StreamRequestHandler):
    timeout = SECONDS
    server: _Server

    def handle(self) -> None:
        packed = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(packed)
        try:
            line = self.rfile.readline(LINE_BYTES)
            self.wfile.write(json.dumps(self.server.control.answer(line, uid)).encode() + b"\n")
        except OSError:
            log.info("a command went away before it was answered")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


# --------------------------------------------------------------------------------------------------- the command


def ask(folder: Path, command: Json) -> Json:
    """Send a command to the server of a data folder and return its answer.

    Raises:
        ControlError: there is no server, or it does not let this user in.
    """
    path = folder / SOCKET
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        try:
            connection.connect(str(path))
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(json.dumps(command).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline(2**24))
        except PermissionError:
            raise ControlError(f"{path}: only root and the user who runs the server may", refused=True) from None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ControlError(
                f"no server answers at {path} ({why}); it takes a running "
                "server. Does it run with another --data, or as another user?"
            ) from None
    if answer.get("refused"):
        raise ControlError(str(answer.get("msg")), refused=True)
    return dict(answer)
