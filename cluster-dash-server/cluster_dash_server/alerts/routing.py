"""Who is told of an alert, and what; and which alerts a silence means. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal, NamedTuple

from cluster_dash_server import filters
from cluster_dash_server.alerts.book import Addressed, Alert, Silence
from cluster_dash_server.alerts.evaluate import Step
from cluster_dash_server.alerts.rules import Rule
from cluster_dash_server.alerts.state import Running, Subject
from cluster_dash_server.cluster import HostView
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.notices.receivers import Receiver
from cluster_dash_server.snapshot import printable

HostOf = Callable[[str], HostView | None]
Owners = Callable[[Alert, Notice, Sequence[str], float], Sequence[Addressed]]
"""Given an alert, its notice, the receivers that are to have it and the time: who gets it when. Users whose GPUs it is
about may be told first."""

_RULE = re.compile(r"(?:^|(?<=\s))(-?)rule:(\S*)", re.IGNORECASE)


def at_once(alert: Alert, notice: Notice, receivers: Sequence[str], now: float) -> list[Addressed]:
    """Tell all receivers now, and nobody else."""
    return [Addressed(receiver, notice, now) for receiver in receivers]


def notice_of(alert: Alert, kind: Literal["firing", "resolved"], told: int, public_url: str | None) -> Notice:
    """Return what is told of an alert, the how many-th time."""
    return Notice(
        key=f"{alert.id}:{kind}:{told}",
        kind=kind,
        alert=alert.id,
        rule=alert.rule,
        severity=alert.severity,
        title=alert.title,
        facts=alert.facts,
        text="",
        link=None if public_url is None else f"{public_url.rstrip('/')}/alerts#{alert.id}",
        actions=(),
        labels=alert.labels,
        begun_at=alert.began_at,
        ended_at=alert.ended_at,
    )


def addressees(
    step: Step, rules: Mapping[str, Rule], receivers: Sequence[Receiver], host_of: HostOf, now: float
) -> list[str]:
    """Return the names of the receivers that are to hear what becomes of an alert.

    Who is told of a part of it only hears of it when that joins, and all of them when it ends.
    """
    running = step.running
    all_names = (running.alert.rule, *sorted(running.rules))

    def of(names: Iterable[str]) -> list[str]:
        found = [name for each in names for name in receivers_of(running, each, rules, receivers, host_of, now)]
        return list(dict.fromkeys(found))

    if step.is_told:
        return of(all_names)
    known = of(name for name in all_names if name not in step.joined)
    return [name for name in of(sorted(step.joined)) if name not in known]


def receivers_of(
    running: Running,
    name: str,
    rules: Mapping[str, Rule],
    receivers: Iterable[Receiver],
    host_of: HostOf,
    now: float,
) -> list[str]:
    """Return the names of the receivers that hear of what one rule finds, as a part of an alert or as all of it."""
    rule = rules.get(name)  # None: it is switched off by now
    if rule is not None and rule.to:
        return list(rule.to)
    alert = running.alert
    severity = alert.severity if rule is None or name == alert.rule else rule.severity
    return [
        receiver.name
        for receiver in receivers
        if receiver.takes(severity)
        and (not receiver.rules or name in receiver.rules)
        and (not receiver.filter or concerns(filters.parse(receiver.filter), running.subjects, host_of, now))
        and (receiver.ends or alert.ended_at is None)
    ]


def concerns(
    meant: filters.Filter, members: Iterable[Subject], host_of: HostOf, now: float, *, wholly: bool = False
) -> bool:
    """Say whether a filter means what an alert is about: something of it, or all; what is of no host it does not."""
    found = [_is_meant(meant, subject, host_of, now) for subject in members]
    return all(found) if wholly else any(found)


def _is_meant(meant: filters.Filter, subject: Subject, host_of: HostOf, now: float) -> bool:
    if not meant.terms:
        return True
    if subject.user is not None and not _means_user(meant, subject.user):
        return False  # of a GPU that two share, each has an alert of their own
    host = None if subject.host is None else host_of(subject.host)
    marks = None if host is None else meant.means(host, now)
    if host is None or marks is None or subject.gpu is None:
        return marks is not None
    return any(mark and gpu.gpu.index == subject.gpu for mark, gpu in zip(marks, host.gpus, strict=True))


def _means_user(meant: filters.Filter, user: str) -> bool:
    """Say whether a filter, as far as it is about users, means this one."""
    return all(
        term.is_negated is not any(fnmatchcase(user.lower(), each.text.lower()) for each in term.alternatives)
        for term in meant.terms
        if term.key == "user"
    )


# ------------------------------------------------------------------------------------------------------- silences


class Silenced(NamedTuple):
    """What the text of a silence means.

    Attributes:
        rules: names of rules and whether they are meant; empty: all are.
        rest: what else must hold.
        problems: what could not be understood, in words.
    """

    rules: tuple[tuple[frozenset[str], bool], ...]
    rest: filters.Filter
    problems: tuple[str, ...]

    def means_rule(self, name: str) -> bool:
        """Say whether a rule is meant."""
        return all((name in names) is is_meant for names, is_meant in self.rules)


@lru_cache(maxsize=256)
def silence_of(text: str) -> Silenced:
    """Read the filter of a silence: the one grammar, and `rule:NAME` (`rule:A,B`, `-rule:A`); never raises."""
    rules = []
    problems = []
    for minus, names in _RULE.findall(text):
        named = frozenset(name.lower() for name in names.split(",") if name)
        if named:
            rules.append((named, not minus))
        else:
            problems.append("rule: says nothing yet")
    rest = filters.parse(_RULE.sub(" ", text))
    problems += rest.problems
    if not rules and not rest.terms:
        problems.append("a silence of everything: say of which rule, host, user or label")
    return Silenced(tuple(rules), rest, tuple([printable(problem) for problem in problems]))


def silenced_until(running: Running, silences: Sequence[Silence], host_of: HostOf, now: float) -> float | None:
    """Return until when nobody is told of an alert (Unix s); None: it is not silenced.

    A silence that cannot be understood in full silences nothing.
    """
    ends = [
        silence.ends_at
        for silence in silences
        if silence.begins_at <= now < silence.ends_at and _silences(silence_of(silence.filter), running, host_of, now)
    ]
    return max(ends, default=None)


def _silences(silence: Silenced, running: Running, host_of: HostOf, now: float) -> bool:
    return (
        not silence.problems
        and silence.means_rule(running.alert.rule)
        and concerns(silence.rest, running.subjects, host_of, now, wholly=True)
    )
