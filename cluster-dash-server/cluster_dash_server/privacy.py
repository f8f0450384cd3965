"""Who may know whose processes these are: the one place where names of people and programs are put behind pseudonyms.

What nobody is to know is taken out of a snapshot before anything is kept of it. What only those who have signed in may
know is kept, and everybody else looks at the cluster through `veiled`: pages, JSON, CSV, text and metrics are made of
what that shows, and know of no names.
"""

import contextlib
import dataclasses
import hmac
import os
import re
import secrets
import threading
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from cluster_dash_server.access.viewers import current
from cluster_dash_server.cluster import Cluster, GpuView, HostView
from cluster_dash_server.inflate import pack
from cluster_dash_server.slurm import Picture, Place, Slurm
from cluster_dash_server.snapshot import Gpu, Json, Seen, dumps
from cluster_dash_server.states import Allotment
from cluster_dash_server.store import Figures, Series, SeriesQuery, Usage, UsageQuery, Use, UseQuery

KEY_FILE = "pseudonyms.key"
NO_PERSON = ("root", "")
"""Users of whom no person is meant; nor is one by what begins with `unknown`."""
_keys = threading.Lock()  # held while a key is read or made
UNNAMED = "unknown"
"""What stands in the place of who was forgotten."""
MOST_REMEMBERED = 10_000

T = TypeVar("T")
Q = TypeVar("Q", SeriesQuery, UsageQuery, UseQuery)
R = TypeVar("R", Series, Usage, Use)


class Veil:
    """Puts pseudonyms in the place of names: the same one for the same name, as long as the key stays.

    Args:
        key: a secret; without it nobody can try names until one fits.
        hides_people: names of users.
        hides_programs: names of programs, containers and jobs.
    """

    def __init__(self, key: bytes, *, hides_people: bool, hides_programs: bool) -> None:
        self._key = key
        self.hides_people = hides_people
        self.hides_programs = hides_programs
        self._remembered: dict[str, str] = {}

    def person(self, name: str) -> str:
        """Return how a user is called."""
        if not self.hides_people or name in NO_PERSON or name.startswith("unknown"):
            return name
        found = self._remembered.get(name)
        if found is None:
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered = {}
            digest = hmac.digest(self._key, name.encode("utf-8", "surrogatepass"), "sha256")
            found = self._remembered[name] = f"user-{digest.hex()[:10]}"
        return found

    def snapshot(self, snapshot: Json) -> Json:
        """Return a snapshot, checked against the schema, without what is hidden; the given one stays as it is."""
        gpus = {key: {**gpu, "users": self._users(gpu.get("users"))} for key, gpu in snapshot["gpu"].items()}
        block = snapshot.get("slurm")
        return {**snapshot, "gpu": gpus, **({"slurm": self._slurm(block)} if block else {})}

    def _users(self, users: Mapping[str, Mapping[str, Json]] | None) -> Json | None:
        if users is None:
            return None
        found: dict[str, dict[str, Json]] = {}
        for user, processes in users.items():
            named = found.setdefault(self.person(user), {})
            for pid, process in processes.items():
                hidden: Json = {name: None for name in ("name", "command", "container") if name in process}
                named[pid] = {**process, **hidden} if self.hides_programs else dict(process)
        return found

    def _slurm(self, block: Json) -> Json:
        """Return Slurm's part; its tables hold places in a list of texts, and an account may share a user's."""
        texts = list(block.get("strings") or ())
        tables = {name: dict(block[name]) for name in ("jobs", "finished") if isinstance(block.get(name), dict)}
        people = {place for table in tables.values() for place in table.get("user") or ()}
        shown = [self.person(text) if place in people else text for place, text in enumerate(texts)]
        if self.hides_programs:
            for table in tables.values():
                table.pop("name", None)
        omitted = block.get("jobs_omitted")
        return {**block, **tables, "strings": shown, **({"jobs_omitted": self.omitted(omitted)} if omitted else {})}

    def omitted(self, omitted: Json) -> Json:
        """Return what a mole left out of Slurm's jobs, counted by user among others."""
        by = omitted.get("by")
        if not isinstance(by, list):
            return omitted
        named = [
            {**each, "user": self.person(each["user"])} if isinstance(each.get("user"), str) else each for each in by
        ]
        return {**omitted, "by": named}

    def names_of(self, pseudonyms: Sequence[str]) -> tuple[str, ...]:
        """Return whom pseudonyms mean, of those who have been given one; a name means nobody."""
        remembered = {pseudonym: name for name, pseudonym in list(self._remembered.items())}
        return tuple([remembered.get(each, "\0" if self.hides_people else each) for each in pseudonyms])

    def view(self, view: HostView, seen: Seen) -> HostView:
        """Return a host as those see it who may not know the names; `seen` is its snapshot, veiled."""
        gpus = tuple([self._gpu_view(each) for each in view.gpus])
        place = None if view.place is None else self._place(view.place)
        return dataclasses.replace(view, seen=seen, gpus=gpus, place=place)

    def _gpu_view(self, view: GpuView) -> GpuView:
        slurm = None if view.slurm is None else self._allotment(view.slurm)
        return dataclasses.replace(view, gpu=self.gpu(view.gpu), slurm=slurm)

    def gpu(self, gpu: Gpu) -> Gpu:
        """Return a GPU without what is hidden."""
        if not gpu.users:
            return gpu
        users: dict[str, int] = {}
        for user, count in gpu.users.items():
            users[self.person(user)] = users.get(self.person(user), 0) + count
        return dataclasses.replace(gpu, users=users)

    def _allotment(self, allotment: Allotment) -> Allotment:
        jobs = tuple([job._replace(user=self.person(job.user), name=None) for job in allotment.jobs])
        return dataclasses.replace(allotment, jobs=jobs)

    def _place(self, place: Place) -> Place:
        allotments = {number: self._allotment(each) for number, each in place.allotments.items()}
        return dataclasses.replace(place, allotments=allotments)


class Unnaming(Veil):
    """Takes one name out of snapshots for good, and out of the texts of that user's programs and of events."""

    def __init__(self, user: str) -> None:
        super().__init__(b"", hides_people=False, hides_programs=False)
        self.user = user

    def person(self, name: str) -> str:
        """Return how a user is called."""
        return UNNAMED if name == self.user else name

    def snapshot(self, snapshot: Json) -> Json:
        """Return a snapshot without the name."""
        found = super().snapshot(snapshot)
        if "events" in found:
            found["events"] = [
                {**each, **{name: unnamed(each[name], self.user) for name in ("text", "code") if _is_text(each, name)}}
                for each in found["events"]
            ]
        return found

    def _users(self, users: Mapping[str, Mapping[str, Json]] | None) -> Json | None:
        if users is None:
            return None
        texts = ("name", "command", "container")
        left = {
            user: {
                pid: {
                    key: unnamed(value, self.user) if key in texts and isinstance(value, str) else value
                    for key, value in process.items()
                    if key not in texts or user != self.user
                }
                for pid, process in processes.items()
            }
            for user, processes in users.items()
        }
        return super()._users(left)

    def _slurm(self, block: Json) -> Json:
        found = super()._slurm(block)
        return {**found, "strings": [unnamed(text, self.user) for text in found["strings"]]}


def unnamed(text: str, user: str) -> str:
    """Return a text without the name of a user, where that is a word of it."""
    return re.sub(rf"(?<!\w){re.escape(user)}(?!\w)", UNNAMED, text) if user in text else text


def _is_text(event: Json, name: str) -> bool:
    return isinstance(event.get(name), str)


class _Veiled:
    """A cluster seen through a veil; all that names nobody is the cluster's own. Thread-safe."""

    def __init__(self, cluster: Cluster, veil: Veil) -> None:
        self._cluster = cluster
        self._veil = veil
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[Seen, Seen]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def __len__(self) -> int:
        return len(self._cluster)

    def host(self, name: str, now: float) -> HostView | None:
        view = self._cluster.host(name, now)
        return None if view is None else self._veil.view(view, self._veiled(view.seen))

    def hosts(self, now: float) -> list[HostView]:
        views = self._cluster.hosts(now)
        with self._lock:
            if len(self._seen) > 2 * len(views):
                self._seen.clear()  # many have been forgotten
        return [self._veil.view(view, self._veiled(view.seen)) for view in views]

    def _veiled(self, seen: Seen) -> Seen:
        with self._lock:
            known = self._seen.get(seen.host)
        if known is not None and known[0] is seen:
            return known[1]
        packed = pack(dumps(self._veil.snapshot(seen.snapshot)))
        veiled = dataclasses.replace(seen, packed=packed, gpus=tuple([self._veil.gpu(gpu) for gpu in seen.gpus]))
        with self._lock:
            self._seen[seen.host] = seen, veiled
        return veiled


class _VeiledPast:
    """History seen through a veil: who asks for somebody does so by pseudonym, too."""

    def __init__(self, history: Any, veil: Veil) -> None:
        self._history = history
        self._veil = veil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._history, name)

    def series(self, ask: SeriesQuery) -> list[Series]:
        return self._named(self._history.series(self._meant(ask)))

    def usage(self, ask: UsageQuery) -> list[Usage]:
        return self._named(self._history.usage(self._meant(ask)))

    def uses(self, ask: UseQuery) -> list[Use]:
        return self._named(self._history.uses(self._meant(ask)))

    def moment(self, at: float, silent_seconds: float = 600) -> list[Figures]:
        return [
            dataclasses.replace(
                row, holders=tuple([holder._replace(user=self._veil.person(holder.user)) for holder in row.holders])
            )
            for row in self._history.moment(at, silent_seconds)
        ]

    def _meant(self, ask: Q) -> Q:
        users = ask.users
        return ask if users is None else dataclasses.replace(ask, users=self._veil.names_of(users))

    def _named(self, rows: Sequence[R]) -> list[R]:
        return [row if row.user is None else dataclasses.replace(row, user=self._veil.person(row.user)) for row in rows]


class _VeiledSlurm:
    """Slurm seen through a veil."""

    def __init__(self, slurm: Slurm, veil: Veil) -> None:
        self._slurm = slurm
        self._veil = veil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slurm, name)

    def pictures(self, now: float) -> list[Picture]:
        return [self._picture(picture) for picture in self._slurm.pictures(now)]

    def _picture(self, picture: Picture) -> Picture:
        person = self._veil.person
        jobs, finished = picture.jobs, picture.finished
        return dataclasses.replace(
            picture,
            jobs=None if jobs is None else tuple([job._replace(user=person(job.user), name=None) for job in jobs]),
            finished=None
            if finished is None
            else tuple([job._replace(user=person(job.user), name=None) for job in finished]),
            omitted=self._veil.omitted(picture.omitted),
        )


def veiled(cluster: Cluster, veil: Veil) -> Cluster:
    """Return a cluster as those see it who may not know the names."""
    return cast(Cluster, _Veiled(cluster, veil))


def veiled_past(history: T, veil: Veil) -> T:
    """Return a `Store` and `Ledger` as those see it who may not know the names."""
    return cast(T, _VeiledPast(history, veil))


def veiled_slurm(slurm: Slurm, veil: Veil) -> Slurm:
    """Return Slurm's view as those see it who may not know the names."""
    return cast(Slurm, _VeiledSlurm(slurm, veil))


class _ByViewer:
    def __init__(self, named: Any, nameless: Any) -> None:
        self._named = named
        self._nameless = nameless

    def __getattr__(self, name: str) -> Any:
        return getattr(self._named if current.get().sees_names else self._nameless, name)

    def __len__(self) -> int:
        return len(self._named)


def by_viewer(named: T, nameless: T) -> T:
    """Return what is the one to viewers who may know the names, and the other to those who may not."""
    return cast(T, _ByViewer(named, nameless))


def kept_key(folder: Path, name: str = KEY_FILE) -> bytes:
    """Return a key of a data folder, that of the pseudonyms unless another is named; made where there is none.

    Raises:
        OSError: it cannot be read or made.
    """
    path, new = folder / name, folder / f"{name}.tmp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _keys:
        with contextlib.suppress(FileNotFoundError):
            key = path.read_bytes()
            if key:  # an empty one, of a loss of power, would be known to everybody
                return key
        key = secrets.token_bytes(32)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        return key


def without_user(row: Figures, user: str) -> Figures:
    """Return a row without a holder; the same object where he holds nothing."""
    left = [place for place, holder in enumerate(row.holders) if holder.user != user]
    if len(left) == len(row.holders):
        return row
    return Figures(
        host=row.host,
        at=row.at,
        boot_id=row.boot_id,
        seq=row.seq,
        oldest_seq=row.oldest_seq,
        gpus=row.gpus,
        values=row.values,
        holders=tuple([row.holders[place] for place in left]),
        holder_mem=array("f", [row.holder_mem[place] for place in left]),
    )
