"""What evaluation is given and what it knows from round to round, over a restart, too: findings, spells, alerts."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from cluster_dash_server.alerts.book import Alert, Remembered

Level = Literal["holds", "comes", "lingers"]


class Subject(NamedTuple):
    """What a condition is about: a host, one of its GPUs, a user of it; or a thing of the cluster, by name."""

    host: str | None = None
    gpu: int | None = None
    user: str | None = None
    thing: str | None = None


Key = tuple[str, Subject]
"""The name of a rule and what it is about."""


class Finding(NamedTuple):
    """A condition that holds now.

    Attributes:
        figure: in words.
        since: since when (Unix s); None: since it is found.
        level: `comes`: it does not hold yet, but begins to: it counts when others of its kind hold; `lingers`: it would
            not begin any more and is not over either.
        model: of the GPU.
        who: users and jobs there.
    """

    figure: str
    since: float | None = None
    level: Level = "holds"
    model: str | None = None
    who: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is there to judge.

    Attributes:
        found: what holds, by rule and subject.
        is_unknown: whether nobody knows if a rule's condition holds, of what is not found.
        gone: why a host raises nothing: it is in maintenance, or was forgotten; None: it may.
        hosts: how many there are.
        labels: of a host, its partition among them.
        sizes: how many hosts have a label, by name and value; asked for only where many are in trouble.
        silenced: until when nobody is told of an alert (Unix s); None: it is not silenced.
    """

    found: Mapping[Key, Finding]
    hosts: int
    is_unknown: Callable[[str, Subject], bool] = lambda rule, subject: False
    gone: Callable[[str], str | None] = lambda host: None
    labels: Callable[[str], Mapping[str, str]] = lambda host: {}
    sizes: Callable[[], Mapping[tuple[str, str], int]] = dict
    silenced: "Callable[[Running], float | None]" = lambda running: None


class Spell(NamedTuple):
    """A condition that holds, or has until lately: since when, until when (None: it does), and its alert, if any."""

    since: float
    finding: Finding
    gone_since: float | None = None
    alert: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An alert that goes on.

    Attributes:
        members: what it is about.
        parts: what else it has brought about: conditions of other rules, of the same hosts and GPUs.
        rules: the rules of all parts that it has had: who is told of those is told of it, too.
        expected: hosts that it was told of, though their condition did not hold yet.
        is_storm: it is about many hosts.
        lead: what it is known by when it comes back.
        times: how often it has come back, less one.
        hold_seconds: for how long nothing of it may hold before it ends.
        joined_at: when something was last added.
        told_hosts: of how many hosts was told.
        told: how often it was told.
    """

    alert: Alert
    members: frozenset[Subject]
    expected: frozenset[str] = frozenset()
    is_storm: bool = False
    lead: str
    times: int
    hold_seconds: float
    joined_at: float
    told_hosts: int
    told: int = 0
    parts: frozenset[Key] = frozenset()
    rules: frozenset[str] = frozenset()

    @property
    def subjects(self) -> frozenset[Subject]:
        """All that it is about, by its own rule and by those of its parts."""
        return self.members | {subject for _, subject in self.parts} if self.parts else self.members

    def memory(self) -> str:
        """Write what has to be known after a restart."""
        return json.dumps(
            {
                "members": sorted(self.members, key=repr),
                "expected": sorted(self.expected),
                "is_storm": self.is_storm,
                "lead": self.lead,
                "times": self.times,
                "hold_seconds": self.hold_seconds,
                "joined_at": self.joined_at,
                "told_hosts": self.told_hosts,
                "told": self.told,
                "parts": sorted(self.parts, key=repr),
                "rules": sorted(self.rules),
            }
        )


class Past(NamedTuple):
    """When an alert ended, and the how many-th time in a row it was."""

    ended_at: float
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What evaluation knows from round to round.

    Attributes:
        past: alerts that ended lately, by what they are known by.
    """

    spells: Mapping[Key, Spell] = field(default_factory=dict)
    running: Mapping[str, Running] = field(default_factory=dict)
    past: Mapping[str, Past] = field(default_factory=dict)


def with_waiting(state: State, seen: State) -> State:
    """Return a state with what another one has seen to hold, and not for long enough to be an alert."""
    waiting = {key: spell for key, spell in seen.spells.items() if spell.alert is None and spell.gone_since is None}
    return replace(state, spells={**waiting, **state.spells})


def recall(remembered: Iterable[Remembered]) -> State:
    """Return the state that goes on where an earlier life of the server ended."""
    spells: dict[Key, Spell] = {}
    running: dict[str, Running] = {}
    past: dict[str, Past] = {}
    for alert, memory in remembered:
        try:
            noted = json.loads(memory)
            each = Running(
                **{
                    **noted,
                    "alert": alert,
                    "members": frozenset(Subject(*member) for member in noted["members"]),
                    "expected": frozenset(noted["expected"]),
                    "parts": frozenset((name, Subject(*subject)) for name, subject in noted.get("parts", ())),
                    "rules": frozenset(noted.get("rules", ())),
                }
            )
        except (ValueError, TypeError, KeyError):  # of an earlier release: it is taken up anew
            each = Running(
                alert=alert,
                members=frozenset((Subject(alert.host, alert.gpu, alert.user),)),
                lead=alert.rule,
                times=1,
                hold_seconds=0.0,
                joined_at=alert.began_at,
                told_hosts=1,
                told=1,
            )
        if alert.ended_at is not None:
            past[each.lead] = Past(alert.ended_at, each.times)
            continue
        running[alert.id] = each
        for key in (*((alert.rule, subject) for subject in each.members), *each.parts):
            spells[key] = Spell(alert.began_at, Finding(""), None, alert.id)
    return State(spells=spells, running=running, past=past)
