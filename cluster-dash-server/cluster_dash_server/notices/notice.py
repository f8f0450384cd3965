"""What people are told, and the seams around it: who tells them (`Notifier`), what waits to be told (`Outbox`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

Severity = Literal["info", "warning", "critical"]
Kind = Literal["firing", "resolved", "digest", "free", "test"]


class NotifyError(Exception):
    """A receiver did not take a notice; the text says why, without any secret.

    Args:
        why: one line.
        is_final: trying again would change nothing: the receiver refused this very notice.
        retry_after_seconds: how long the receiver asks to be left alone; None: it does not say.
    """

    def __init__(self, why: str, *, is_final: bool = False, retry_after_seconds: float | None = None) -> None:
        super().__init__(why)
        self.is_final = is_final
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing to tell one receiver.

    Attributes:
        key: the same at each try, so that a receiver can drop what it has.
        kind: `firing` and `resolved` are of an alert, `digest` of a night, `free` of a GPU somebody waits for.
        alert: the identity of the alert: its firing and its end have the same; None where there is none.
        rule: the rule's name; for other kinds the kind.
        title: one line: a mail's subject, a chat's first line.
        facts: what, where, who, since when, the figure, likely cause, next step: name and text, as they are read.
        text: what is no fact of one alert, in paragraphs: the digest; empty where there is none.
        link: where to read on; None where the site has no address of its own.
        actions: further links: "I need it until …".
        labels: rule, host, gpu, model, user, …: for machines that route by them.
        begun_at: since when it holds (Unix s).
        ended_at: when it ended (Unix s); None: it goes on.
    """

    key: str
    kind: Kind
    alert: str | None
    rule: str
    severity: Severity
    title: str
    facts: tuple[tuple[str, str], ...]
    text: str
    link: str | None
    actions: tuple[tuple[str, str], ...]
    labels: Mapping[str, str]
    begun_at: float
    ended_at: float | None


class Notifier(Protocol):
    """One receiver: a mail address, a webhook, a channel. Called by one thread at a time."""

    def send(self, notice: Notice) -> None:
        """Hand a notice over; returns when the receiver has taken it.

        Raises:
            NotifyError: it did not.
        """


@runtime_checkable
class Forgetful(Protocol):
    """A receiver that lets go of an alert when it does not hear of it again, and of all when started anew."""

    def repeat(self, notices: Sequence[Notice]) -> None:
        """Say again which alerts go on.

        Raises:
            NotifyError: it did not take them.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A row of the outbox.

    Attributes:
        receiver: the name of the receiver in the settings, or `mailto:…` for one person.
        made_at: when it was put there (Unix s).
        tries: how often it was tried or postponed.
    """

    row: int
    receiver: str
    notice: Notice
    made_at: float
    tries: int


class Outcome(NamedTuple):
    """What became of the last try of a notice; `why` None: the receiver took it."""

    why: str | None


class Outbox(Protocol):
    """Notices that wait. They are put there in the transaction that makes the alert; any thread may call."""

    def put(self, notices: Sequence[tuple[str, Notice]], now: float) -> None:
        """Add notices that belong to no alert, each with its receiver; a known receiver and key are left out."""

    def due(self, now: float, most: int) -> list[Waiting]:
        """Return what is to be tried now, oldest first; a firing and its end that both wait are one, the end."""

    def claim(self, waiting: Waiting, seconds: float) -> bool:
        """Say whether it is still to be sent, and by this replica: for so long no other tells this receiver."""

    def release(self, receiver: str) -> None:
        """Let other replicas tell this receiver again: what it has is noted."""

    def sent(self, row: int, at: float) -> None:
        """Note that the receiver has it."""

    def failed(self, row: int, at: float, why: str, next_try_at: float | None) -> None:
        """Note that it was not taken; without a next try it is given up.

        Who gave a wrong address for what is free is not reached, and is no receiver that fails.
        """

    def outcome(self, receiver: str, key: str) -> Outcome | None:
        """Return what became of the last try of a notice; None: it was not tried yet."""

    def postponed(self, rows: Sequence[int], until: float) -> None:
        """Note that they were due and have to wait on: for quiet hours, for their turn, for a receiver that rests."""

    def set_back(self, seconds: float) -> None:
        """Have what waits wait no longer than it was to: the clock by which its moments were noted was set back."""

    def told(self, receiver: str) -> list[Notice]:
        """Return of which alerts a receiver was told that go on and are not silenced, each as it was told last."""

    def failing(self) -> Mapping[str, tuple[float, str]]:
        """Return receivers that do not take notices: since when (Unix s), and why."""
