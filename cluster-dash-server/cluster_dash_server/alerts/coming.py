"""What is about to be an alert: conditions that hold, and not yet for as long as their rules ask. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from cluster_dash_server.alerts.rules import Rule
from cluster_dash_server.alerts.state import Spell, State, Subject
from cluster_dash_server.alerts.words import places
from cluster_dash_server.notices.notice import Severity


class Coming(NamedTuple):
    """What will be told of a host, or of a thing of the cluster, if it lasts.

    Attributes:
        title: what, and where; no user's name is in it.
        figure: in words; of a rule that is about users it may name them.
        since: since when it holds (Unix s).
        due_at: when it is an alert.
        is_of_users: whether the rule is about users.
    """

    rule: str
    severity: Severity
    title: str
    host: str | None
    figure: str
    since: float
    due_at: float
    is_of_users: bool


def coming(rules: Sequence[Rule], state: State, now: float) -> list[Coming]:
    """Return what waits, that which is due first at the front; GPUs of one host by one rule are one."""
    by_name = {rule.name: rule for rule in rules}
    found: dict[tuple[str, str | None, str | None], list[tuple[Subject, Spell]]] = {}
    for (name, subject), spell in state.spells.items():
        waits = spell.alert is None and spell.gone_since is None and spell.finding.level == "holds"
        if waits and name in by_name and now - spell.since < by_name[name].for_seconds:
            found.setdefault((name, subject.host, subject.thing), []).append((subject, spell))
    rows = [_row(by_name[name], host, thing, those) for (name, host, thing), those in found.items()]
    return sorted(rows, key=lambda each: (each.due_at, each.title))


def _row(rule: Rule, host: str | None, thing: str | None, those: Sequence[tuple[Subject, Spell]]) -> Coming:
    since = min(spell.since for _, spell in those)
    where = thing or ("this server" if host is None else places([subject for subject, _ in those], [host]))
    return Coming(
        rule=rule.name,
        severity=rule.severity,
        title=f"{where}: {rule.title or rule.name}",
        host=host,
        figure="; ".join(dict.fromkeys(spell.finding.figure for _, spell in those if spell.finding.figure)),
        since=since,
        due_at=since + rule.for_seconds,
        is_of_users=rule.fact.of_users,
    )
