"""What is kept of alerts, and the seam to what keeps it: `Book`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from cluster_dash_server.notices.notice import Notice, Outbox, Severity


class BookError(Exception):
    """Alerts cannot be read or written now; the text says why and what would mend it."""


class NoLongerLeads(BookError):
    """What a round of evaluation came to was not kept: another replica evaluates, or what is kept was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Somebody has seen an alert and sees to it; `at` Unix s."""

    by: str
    at: float
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One trouble, from its beginning to its end.

    Attributes:
        id: its identity: another one each time that the trouble begins anew.
        rule: the name of the rule that raised it.
        title: one line: what, and where.
        host: of which host; None: of several, of the cluster or of this server.
        gpu: the index of the GPU; None: of the host, or of several GPUs.
        user: whom it concerns; None: nobody, or not known.
        began_at: since when the trouble is there (Unix s): before the alert, which waits for it to last.
        ended_at: None: it goes on.
        facts: what, where, who, the figure, likely cause, next step: name and text, as they are read.
        acknowledged: None: nobody has.
        silenced_until: until when nobody is told of it (Unix s); None: it is not silenced.
        labels: rule, severity, host, gpu, model, user and the labels of the host: for machines that route by them.
    """

    id: str
    rule: str
    severity: Severity
    title: str
    host: str | None
    gpu: int | None
    user: str | None
    began_at: float
    ended_at: float | None
    facts: tuple[tuple[str, str], ...]
    acknowledged: Acknowledgement | None
    silenced_until: float | None
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Of which alerts nobody is told for a while.

    Attributes:
        id: None: not kept yet.
        filter: the one grammar, and `rule:NAME`.
        by: who asked for it.
        ends_at: Unix s.
    """

    id: int | None
    filter: str
    by: str
    reason: str
    begins_at: float
    ends_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintenance:
    """Hosts that somebody works on: they raise nothing until then.

    Attributes:
        hosts: a name, a hostlist or a pattern, as it was asked for.
        ends_at: Unix s.
    """

    hosts: str
    by: str
    reason: str
    begins_at: float
    ends_at: float


class Addressed(NamedTuple):
    """A notice, the name of its receiver, and from when on it may be sent (Unix s)."""

    receiver: str
    notice: Notice
    not_before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """What becomes of an alert, and who is told: it is kept whole or not at all.

    Attributes:
        alert: as it is from then on, but for its acknowledgement, which is not ours to write.
        kind: `changed`: its title, facts or silence are others.
        at: Unix s.
        memory: what evaluation has to remember of it over a restart; only it reads that.
        notices: what is put into the outbox with it. The end of an alert takes the place of its beginning where that
            still waits, and is not told where that was not due yet.
        takes_back: notices of its beginning that were not tried yet are taken out of the outbox.
    """

    kind: Literal["began", "changed", "ended"]
    alert: Alert
    at: float
    memory: str
    notices: tuple[Addressed, ...] = ()
    takes_back: bool = False


class Remembered(NamedTuple):
    """An alert and what evaluation noted of it."""

    alert: Alert
    memory: str


class Book(Outbox, Protocol):
    """Keeps alerts, notices that wait, silences, maintenance. Any thread may call; every call may raise BookError."""

    def firing(self) -> list[Alert]:
        """Return the alerts that go on, newest first, the silenced and acknowledged ones too."""

    def open_count(self, now: float) -> int:
        """Count the alerts that go on and are neither acknowledged nor silenced: each page asks."""

    def history(self, begin: float, end: float, most: int) -> list[Alert]:
        """Return alerts that were there at some time between two moments (Unix s), newest first."""

    def acknowledge(self, alert: str, by: str, at: float, note: str) -> bool:
        """Note that somebody sees to an alert; False where no such alert goes on."""

    def withdraw(self, alert: str, by: str, at: float) -> bool:
        """Take an acknowledgement back; False where no such alert goes on, or nobody had acknowledged it."""

    def silence(self, silence: Silence) -> int:
        """Keep a silence and return its id."""

    def end_silence(self, silence: int, by: str, at: float) -> bool:
        """End a silence early; False where there is none that still holds."""

    def silences(self, now: float) -> list[Silence]:
        """Return the silences that hold now or will, those that end first at the front."""

    def maintain(self, maintenance: Maintenance) -> None:
        """Begin maintenance, in place of what was said of the very same hosts before."""

    def end_maintenance(self, hosts: str, by: str, at: float) -> bool:
        """End maintenance early; False where none of these very hosts holds."""

    def maintenance(self, now: float) -> list[Maintenance]:
        """Return the maintenance that holds now, what ends first at the front."""

    def forget_user(self, user: str) -> int:
        """Take a user's name out of all that is kept; return in how many rows it was."""

    def commit(self, transitions: Sequence[Transition], fence: int = 0) -> None:
        """Keep what a round of evaluation came to, and put its notices into the outbox: all of it or nothing.

        Args:
            transitions: what became of alerts.
            fence: what the evaluator was given when it began the round; books of a single server do not ask for it.

        Raises:
            NoLongerLeads: it is no longer the fence that counts, or one of the alerts has ended already.
        """

    def begin_anew(self) -> None:
        """Have who evaluates, on whatever replica, read rules and what is kept anew."""

    def remembered(self, since: float) -> list[Remembered]:
        """Return the alerts that go on, and those that ended since then (Unix s), for evaluation to begin with."""
