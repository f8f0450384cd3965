"""Tell me when some are free: who waits for which GPUs, and whom to tell of those that have become free.

They are served in the order in which they came: what one of them has been told of is kept from the others for a while,
so that one free GPU does not call twenty people.
"""

import hmac
import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol
from urllib.parse import quote

from cluster_dash_server import filters, free
from cluster_dash_server.access.tokens import digest_of
from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.receivers import PERSON
from cluster_dash_server.privacy import unnamed
from cluster_dash_server.snapshot import printable
from cluster_dash_server.summary import model

log = logging.getLogger(__name__)

HOLDS_SECONDS = 60.0
"""For so long GPUs are free before somebody is told of them: a job that ends is often followed by the next."""
KEPT_SECONDS = 600.0
"""For so long what one was told of is kept from the others, unless somebody takes it."""
DEFAULT_HOURS, MOST_DAYS = 24.0, 30.0
MOST_WAITING = 1_000
MOST_OF_ONE = 5
"""Wishes of one address that wait at a time, …"""
MOST_A_DAY = 20
"""… and messages to it in a day: no address can be flooded from here."""
MOST_TOLD = 80
"""Characters of a filter that stand in a message."""
DAY_SECONDS = 86_400.0
_LINKS = re.compile(r"[/@\\]|www\.", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?", re.ASCII)


class WaitError(Exception):
    """A wish that is not taken.

    Attributes:
        status: 400 (it cannot be meant), 403 (not to that address), 404 (there is none), 429 (too many) or 503.
        text: why, and the mend.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Somebody waits for GPUs.

    Attributes:
        wish: how many on one host, which model, how much free memory.
        q: a filter in the grammar of all pages; empty: any host.
        receiver: who is told: the name of a receiver, or `mailto:` and an address.
        key: the digest of what ends it: known to who asked.
        asked_at: their place in the line is by it (Unix s).
        until: when they no longer want to know.
        client: who asked: the name of who had signed in, or an address; empty: an earlier release did not note it.
    """

    id: int
    wish: free.Wish
    q: str
    receiver: str
    key: bytes
    asked_at: float
    until: float
    client: str = ""

    def is_of(self, key: str) -> bool:
        """Say whether somebody who knows this key asked for it."""
        return hmac.compare_digest(digest_of(key), self.key)


class Told(NamedTuple):
    """Somebody who was told.

    Attributes:
        receiver: as of a `Wait`.
        at: when (Unix s).
        id: which wish it was; 0: an earlier release did not note it, nor what follows.
        key: as of a `Wait`.
        host: where GPUs were free.
        gpus: their indices.
    """

    receiver: str
    at: float
    id: int = 0
    key: bytes = b""
    host: str = ""
    gpus: tuple[int, ...] = ()

    def is_of(self, key: str) -> bool:
        """Say whether somebody who knows this key had asked for it."""
        return hmac.compare_digest(digest_of(key), self.key)


class Called(NamedTuple):
    """A GPU that somebody was told of."""

    host: str
    gpu: int
    uuid: str | None
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """All that is known of those who wait.

    Attributes:
        waits: in the order in which they came.
        called: GPUs that somebody was told of, and that nobody has taken since.
        told: who was told in the last day.
        last_id: of the newest wait there ever was.
    """

    waits: tuple[Wait, ...] = ()
    called: tuple[Called, ...] = ()
    told: tuple[Told, ...] = ()
    last_id: int = 0


class Found(NamedTuple):
    """GPUs for one who waits."""

    wait: Wait
    host: str
    gpus: tuple[GpuView, ...]


class KeptLine(Protocol):
    """Where the line is kept over a restart."""

    is_shared: bool
    """Whether others may have changed it since it was read."""

    def alone(self) -> AbstractContextManager[None]:
        """Let nobody else change it meanwhile.

        Raises:
            WaitError: 503: it cannot be had, or what was written cannot be kept.
        """

    def read(self) -> Line:
        """Return what was written last.

        Raises:
            WaitError: 503: it cannot be read.
        """

    def write(self, line: Line) -> None:
        """Keep it in place of what was.

        Raises:
            WaitError: 503: it cannot be written.
        """


def serve(line: Line, hosts: Sequence[HostView], now: float) -> list[Found]:
    """Say who is to be told of what now: pure.

    Each in turn is given GPUs that fit and that nobody before was given or has been told of lately. They are told once
    those have been free for HOLDS_SECONDS; until then nobody behind them is given these.
    """
    taken = {(each.host, each.gpu) for each in _kept_back(line.called, hosts, now)}
    some_free = [host for host in hosts if any(gpu.state == "free" for gpu in host.gpus)]
    found = []
    for wait in line.waits:
        if wait.until <= now:
            continue
        meant = _meant(wait, some_free, taken, now)
        offers = free.find([_lasting(host, now) for host in meant], wait.wish)
        is_told = bool(offers)
        offers = offers or free.find(meant, wait.wish)
        if not offers:
            continue
        gpus = offers[0].gpus[: wait.wish.count]
        taken.update((offers[0].host, gpu.gpu.index) for gpu in gpus)
        if is_told:
            found.append(Found(wait, offers[0].host, gpus))
    return found


def _kept_back(called: Iterable[Called], hosts: Sequence[HostView], now: float) -> list[Called]:
    """Return the GPUs that are kept for who was told of them: as long as nobody takes them, and not for ever."""
    states = {(host.host, gpu.gpu.index): gpu for host in hosts for gpu in host.gpus}
    kept = []
    for each in called:
        gpu = states.get((each.host, each.gpu))
        is_kept = 0 <= now - each.at < KEPT_SECONDS  # a moment to come was noted before the clock was set back
        if is_kept and gpu is not None and gpu.state == "free" and gpu.gpu.uuid == each.uuid:
            kept.append(each)
    return kept


def _meant(wait: Wait, hosts: Sequence[HostView], taken: set[tuple[str, int]], now: float) -> list[HostView]:
    """Return the hosts that a wish is about, without the GPUs that others have."""
    wanted = filters.parse(wait.q)
    found = []
    for host in hosts:
        is_open = [gpu.state == "free" and (host.host, gpu.gpu.index) not in taken for gpu in host.gpus]
        if sum(is_open) < wait.wish.count:
            continue  # most hosts, most of the time: a filter costs far more than this
        marks = wanted.means(host, now) if wanted.terms else is_open
        if marks is None:
            continue
        left = [gpu for gpu, *is_meant in zip(host.gpus, is_open, marks, strict=True) if all(is_meant)]
        if len(left) >= wait.wish.count:
            found.append(replace(host, gpus=tuple(left)))
    return found


def _lasting(host: HostView, now: float) -> HostView:
    since = [(gpu, gpu.free_since) for gpu in host.gpus if gpu.free_since is not None]
    # since a moment to come: the clock was set back, and it was free before that
    lasting = [gpu for gpu, at in since if not 0 <= now - at < HOLDS_SECONDS]
    return replace(host, gpus=tuple(lasting))


def without(line: Line, user: str) -> Line:
    """Return a line without those whom a user's name reaches, and without what was told to them."""

    def is_theirs(receiver: str) -> bool:
        return unnamed(receiver, user) != receiver

    return replace(
        line,
        waits=tuple([each for each in line.waits if each.client != user and not is_theirs(each.receiver)]),
        told=tuple([each for each in line.told if not is_theirs(each.receiver)]),
    )


# -------------------------------------------------------------------------------------------------- whom one may tell


def receiver_of(to: str, allowed: Sequence[str]) -> str:
    """Return the receiver that an address means: the name of one, or an address of a mail domain.

    Args:
        to: what somebody wrote.
        allowed: `[alerts] waiting_to`.

    Raises:
        WaitError: 400 or 403.
    """
    to = to.strip()
    if not allowed:
        raise WaitError(403, "to: this server tells nobody: its [alerts] waiting_to is empty")
    if to in allowed and not to.startswith("@"):
        return to
    shown = ", ".join(f"an address {each}" if each.startswith("@") else each for each in allowed)
    if _ADDRESS.fullmatch(to) is None or ".." in to:
        raise WaitError(400, f"to: got {printable(to, 64)!r}, expected {shown}")
    name, _, domain = to.rpartition("@")
    if f"@{domain.lower()}" not in {each.lower() for each in allowed}:
        raise WaitError(403, f"to: this server writes to no address of {printable(domain, 64)}; expected {shown}")
    return f"{PERSON}{name}@{domain.lower()}"


def mailbox(receiver: str) -> str:
    """Return where a message to an address ends up: most mail servers take `Ann+x@…` and `ann@…` for one."""
    name, _, domain = receiver.casefold().rpartition("@")
    return f"{name.partition('+')[0]}@{domain}"


def shown(receiver: str, *, in_full: bool) -> str:
    """Return how a receiver is shown: an address to who may know it, to others its first letter and its domain."""
    address = receiver.removeprefix(PERSON)
    if in_full or address == receiver:
        return address
    name, _, domain = address.rpartition("@")
    return f"{name[:1]}…@{domain}"


# ---------------------------------------------------------------------------------------------------------- the line


class Waiting:
    """Those who wait. Thread-safe.

    Args:
        kept: where they are kept.
        allowed: `[alerts] waiting_to`.
        put: puts notices into the outbox, each with its receiver; a known receiver and key are left out.
        link: makes the address of a page of its path; None: the site has no address of its own.
        trouble: says why nobody could be told now; None: they can.
        most_of_client: wishes that wait at a time of one client: who invents addresses fills no line with them.
    """

    def __init__(
        self,
        kept: KeptLine,
        *,
        allowed: Sequence[str],
        put: Callable[[Sequence[tuple[str, Notice]], float], None],
        link: Callable[[str], str | None],
        trouble: Callable[[], str | None] = lambda: None,
        most_of_client: int = MOST_WAITING,
    ) -> None:
        self.allowed = tuple(allowed)
        self._kept = kept
        self._put = put
        self._link = link
        self._trouble = trouble
        self._most_of_client = most_of_client
        self._lock = threading.Lock()
        self._read: Line | None = None

    def add(self, wish: free.Wish, *, q: str, to: str, until: float, now: float, client: str = "") -> tuple[Wait, str]:
        """Let somebody wait; return that, and the key that ends it.

        Args:
            wish: what they look for.
            q: see `Wait`.
            to: whom to tell, as they wrote it.
            until: see `Wait`.
            now: Unix s.
            client: see `Wait`; empty: one whose wishes are not counted.

        Raises:
            WaitError: 400, 403, 429 or 503.
        """
        trouble = self._trouble()
        if trouble is not None:
            raise WaitError(503, f"alerts: nobody is told of anything now: {trouble}")
        problems = filters.parse(q).problems
        if problems:
            raise WaitError(400, f"q: {problems[0]}")
        if not now < until <= now + MOST_DAYS * DAY_SECONDS:
            raise WaitError(400, f"until: expected a moment from now on, within {MOST_DAYS:.0f} days")
        receiver = receiver_of(to, self.allowed)
        key = secrets.token_urlsafe(16)
        with self._alone():
            line = self._current(now)
            self._refuse_too_many(line, receiver, client, now)
            wait = Wait(
                id=line.last_id + 1,
                wish=wish,
                q=q,
                receiver=receiver,
                key=digest_of(key),
                asked_at=now,
                until=until,
                client=client,
            )
            self._keep(replace(line, waits=(*line.waits, wait), last_id=wait.id))
        return wait, key

    def _refuse_too_many(self, line: Line, receiver: str, client: str, now: float) -> None:
        if len(line.waits) >= MOST_WAITING:
            raise WaitError(429, f"count: {MOST_WAITING} wait already")
        if client and sum(each.client == client for each in line.waits) >= self._most_of_client:
            raise WaitError(429, f"request: {self._most_of_client} asked for by {client} wait already: end one")
        if not receiver.startswith(PERSON):
            return
        box = mailbox(receiver)
        if sum(mailbox(each.receiver) == box for each in line.waits) >= MOST_OF_ONE:
            raise WaitError(429, f"to: {MOST_OF_ONE} wishes of this address wait already: end one")
        if sum(mailbox(each.receiver) == box and now - each.at < DAY_SECONDS for each in line.told) >= MOST_A_DAY:
            raise WaitError(429, f"to: this address has had {MOST_A_DAY} messages in a day: that is enough")

    def end(self, id_: int, now: float, *, key: str | None, may_end_any: bool = False) -> Wait:
        """Let somebody wait no longer.

        Raises:
            WaitError: 403, 404 or 503.
        """
        with self._alone():
            line = self._current(now)
            wait = next((each for each in line.waits if each.id == id_), None)
            if wait is None:
                raise WaitError(404, f"id: nobody waits under {id_}")
            if not may_end_any and not wait.is_of(key or ""):
                raise WaitError(403, "key: it is not that of this wish")
            self._keep(replace(line, waits=tuple([each for each in line.waits if each.id != id_])))
        return wait

    def end_all(self, now: float, *, client: str | None = None) -> int:
        """Let nobody wait any longer, or none of whom one client asked for; return how many did.

        Raises:
            WaitError: 503.
        """
        with self._alone():
            line = self._current(now)
            left = tuple([each for each in line.waits if client is not None and each.client != client])
            self._keep(replace(line, waits=left))
        return len(line.waits) - len(left)

    def find(self, id_: int, key: str, now: float) -> Wait | Told | None:
        """Return what became of a wish whose key somebody knows; None: it was ended, or told of more than a day ago.

        Raises:
            WaitError: 503.
        """
        line = self._seen(now)
        known: tuple[Wait | Told, ...] = (*line.waits, *line.told)
        return next((each for each in known if each.id == id_ and each.is_of(key)), None)

    def waits(self, now: float) -> tuple[Wait, ...]:
        """Return who waits, in the order in which they are served.

        Raises:
            WaitError: 503.
        """
        return self._seen(now).waits

    def round(self, hosts: Callable[[], Sequence[HostView]], now: float) -> list[Found]:
        """Tell whoever's turn it is; call it every few seconds.

        Raises:
            BookError: the outbox takes nothing now.
            WaitError: 503.
        """
        line = self._seen(now)
        if not line.waits and not line.called:
            return []
        views = hosts()
        called = tuple(_kept_back(line.called, views, now))
        if called == line.called and not serve(line, views, now):
            return []
        with self._alone():
            line = self._current(now)
            called = tuple(_kept_back(line.called, views, now))
            if called != line.called:  # somebody took one, or nobody did: it is no longer kept for who was told of it
                line = replace(line, called=called)
                self._keep(line)
            found = serve(line, views, now)
            if found:
                # told first and noted then: after a crash in between the same notices come to the outbox, and are known
                told = [each for each in found if self._tell(each, now)]
                ids = {each.wait.id for each in found}
                news = [Called(each.host, gpu.gpu.index, gpu.gpu.uuid, now) for each in told for gpu in each.gpus]
                self._keep(
                    replace(
                        line,
                        waits=tuple([each for each in line.waits if each.id not in ids]),
                        called=(*called, *news),
                        told=(*line.told, *(_told(each, now) for each in told)),
                    )
                )
                return told
            return []

    def _tell(self, found: Found, now: float) -> bool:
        """Put a notice into the outbox; False where there is none to be made of this wish, which then has ended.

        Raises:
            BookError: the outbox takes none.
        """
        try:
            self._put([(found.wait.receiver, self._notice(found, now))], now)
        except BookError:
            raise
        except Exception:  # one wish that cannot be worded or kept must not hold up all those behind it, for ever
            log.exception("%s waits no longer: nobody could be told", found.wait.id)
            return False
        return True

    def forget_user(self, user: str) -> None:
        """Forget whom a user's name reaches.

        Raises:
            WaitError: 503.
        """
        with self._alone():
            line = self._kept.read() if self._read is None else self._read
            left = without(line, user)
            if left != line:
                self._keep(left)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock, self._kept.alone():
            if self._kept.is_shared:
                self._read = None
            yield

    def _seen(self, now: float) -> Line:
        """Return the line for one who changes nothing, and so waits for nobody who does."""
        if self._kept.is_shared:
            return _open(self._kept.read(), now)
        with self._lock:
            return self._current(now)

    def _current(self, now: float) -> Line:
        if self._read is None:
            self._read = self._kept.read()
        return _open(self._read, now)

    def _keep(self, line: Line) -> None:
        self._kept.write(line)
        self._read = line

    def _notice(self, found: Found, now: float) -> Notice:
        wait, first = found.wait, found.gpus[0]
        names = sorted({model(gpu.gpu) for gpu in found.gpus})
        indices = ", ".join(str(gpu.gpu.index) for gpu in found.gpus)
        what = " and ".join(names)
        least = min((mib for gpu in found.gpus if (mib := free.free_mem(gpu)) is not None), default=None)
        since = max((gpu.free_since or now for gpu in found.gpus), default=now)
        facts = [
            ("Free", f"{len(found.gpus)} × {what}"),
            ("Where", f"{found.host} GPU {indices}"),
            *([] if least is None else [("Memory free on each", f"{least / 1024:.0f} GiB")]),
            ("You asked for", words_of(replace(wait, q=told_of(wait.q)))),
            (
                "What now",
                f"for {KEPT_SECONDS / 60:.0f} minutes nobody else who waits is told of them; to wait on, ask again",
            ),
        ]
        return Notice(
            key=f"free:{wait.id}:{wait.asked_at:.0f}",
            kind="free",
            alert=None,
            rule="free",
            severity="info",
            title=f"{len(found.gpus)} × {what} free on {found.host}",
            facts=tuple(facts),
            text="",
            link=self._link(f"host/{quote(found.host, safe='')}"),
            actions=(),
            labels={"rule": "free", "host": found.host, "gpu": str(first.gpu.index), "model": names[0]},
            begun_at=since,
            ended_at=None,
        )


def _open(line: Line, now: float) -> Line:
    """Return a line without those who wait no longer."""
    told = tuple([each for each in line.told if now - each.at < DAY_SECONDS])
    return replace(line, waits=tuple([each for each in line.waits if each.until > now]), told=told)


def _told(found: Found, now: float) -> Told:
    wait = found.wait
    indices = tuple([gpu.gpu.index for gpu in found.gpus])
    return Told(wait.receiver, now, id=wait.id, key=wait.key, host=found.host, gpus=indices)


def told_of(q: str) -> str:
    """Return a filter as it stands in a message: who asks for another's address must not send them words and links."""
    return q if len(q) <= MOST_TOLD and _LINKS.search(q) is None else "what a filter means"


def words_of(wait: Wait) -> str:
    """Say what somebody waits for: `2 on one host, H100, 40 GiB free, part:gpu`."""
    wish = wait.wish
    said = [f"{wish.count} on one host" if wish.count > 1 else "1 GPU"]
    said += [wish.model] if wish.model else []
    said += [f"{wish.free_mem / 1024:g} GiB free on each"] if wish.free_mem else []
    said += [wait.q] if wait.q else []
    return ", ".join(said)
