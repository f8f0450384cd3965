"""From what is found to alerts, pure: `evaluate(rules, view, state, now)` says what begins, changes and ends.

A condition that begins to hold is a *spell*. When it has held for as long as its rule asks it becomes an alert, alone
or with others of one cause: GPUs of one host, GPUs of one user, hosts of one rack, a tenth and more of the cluster.
Where one trouble of a host or GPU shows by several rules (an Xid, then a GPU in error), what comes later is a part of
the alert that there is. An alert ends when none of its spells has held for a while, twice as long each time that it
comes back; so what flaps is told once. Where nobody knows, nothing begins and nothing ends.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from cluster_dash_server.alerts.book import Alert
from cluster_dash_server.alerts.rules import Rule
from cluster_dash_server.alerts.state import Key, Past, Running, Spell, State, Subject, View, with_waiting
from cluster_dash_server.alerts.words import MANY, told_anew
from cluster_dash_server.notices.receivers import SEVERITIES

JOIN_SECONDS = 600.0
"""What begins within so long of an alert of the same cause belongs to it."""
AGAIN_HOLDS = 6
"""What comes back within so many times its rule's `hold` has not been well in between."""
MOST_DOUBLINGS = 5
MANY_HOSTS = 10
"""From so many hosts on, one alert is raised for all of them, …"""
MANY_SHARE, FEW_HOSTS = 0.2, 3
"""… or from this share of the cluster on, or of hosts with one label (a rack, a partition), if they are a few."""
LABEL_SHARE = 0.8
GROWTH = 2
"""A storm that grows to more than so many times what was told is told anew."""
EVENTS = ("xid", "event")
"""Facts that are moments: they are found for as long as their rule's `hold`, and then over."""


class Step(NamedTuple):
    """What becomes of an alert.

    Attributes:
        is_told: people are to hear of it.
        takes_back: what was not sent yet is not to be.
        joined: rules of which something has become a part of it: people who are told of those only are to hear of it.
    """

    kind: Literal["began", "changed", "ended"]
    running: Running
    is_told: bool
    takes_back: bool = False
    joined: frozenset[str] = frozenset()


def evaluate(rules: Sequence[Rule], view: View, state: State, now: float) -> tuple[State, list[Step]]:
    """Judge what is found; return what is known from now on, and what becomes of alerts."""
    by_name = {rule.name: rule for rule in rules}
    spells = _spells(by_name, view, state.spells, now)
    running = dict(state.running)
    past = {lead: each for lead, each in state.past.items() if now - each.ended_at <= _longest(rules)}
    steps: list[Step] = []
    before = dict(running)
    awaited = {each.alert.rule for each in running.values() if each.expected}
    there = {(name, subject.host) for name, subject in spells if name in awaited} if awaited else set()
    for name in list(running):
        _thin_out(name, by_name, view, spells, there, running, past, steps, now)
    _raise(by_name, view, spells, running, past, steps, now)
    for name, each in list(running.items()):
        was = before.get(name, each)
        if (was.members, was.expected, was.parts) != (each.members, each.expected, each.parts):
            each = running[name] = told_anew(by_name, view, spells, each)
            steps.append(Step("changed", each, is_told=False, joined=each.rules - was.rules))
    _heed_silences(view, running, steps, {step.running.alert.id for step in steps if step.kind == "began"})
    return State(spells=spells, running=running, past=past), steps


def follow(rules: Sequence[Rule], view: View, state: State, now: float) -> State:
    """Note since when something holds, and judge nothing: another replica does, until this one takes its place."""
    return State(spells=_spells({rule.name: rule for rule in rules}, view, with_waiting(State(), state).spells, now))


def _longest(rules: Sequence[Rule]) -> float:
    return max((_again_seconds(rule, MOST_DOUBLINGS + 1) for rule in rules), default=0.0)


def _again_seconds(rule: Rule, times: int) -> float:
    """Return within how long of its end an alert has come back, and is none of its own."""
    return float(AGAIN_HOLDS * _hold_seconds(rule, times))


def _hold_seconds(rule: Rule, times: int) -> float:
    return float(rule.hold_seconds * 2 ** min(times - 1, MOST_DOUBLINGS))


def _quiet_seconds(rule: Rule | None, times: int = 1) -> float:
    """Return for how long a condition must not hold before it is over: an event is found for as long as it counts."""
    return 0.0 if rule is None or rule.condition.fact in EVENTS else _hold_seconds(rule, times)


# -------------------------------------------------------------------------------------------------------- spells


def _spells(rules: Mapping[str, Rule], view: View, known: Mapping[Key, Spell], now: float) -> dict[Key, Spell]:
    """Return the spells as they are now; one whose host raises nothing, or whose rule is gone, is none any more.

    What seems to come lasts from now on: the clock was set back.
    """
    spells: dict[Key, Spell] = {}
    for key, finding in view.found.items():
        spell = known.get(key)
        if finding.level == "lingers" and (spell is None or spell.alert is None):
            continue
        if key[0] not in rules or (key[1].host is not None and view.gone(key[1].host) is not None):
            continue
        if spell is None:
            since = now if finding.since is None else min(now, finding.since)
            spells[key] = Spell(since, finding)
        else:
            spells[key] = Spell(min(spell.since, now), finding, None, spell.alert)
    for key, spell in known.items():
        if key in spells or key[0] not in rules:
            continue
        name, subject = key
        if subject.host is not None and view.gone(subject.host) is not None:
            continue
        if view.is_unknown(name, subject):
            spells[key] = spell
        elif spell.alert is not None:
            gone_since = now if spell.gone_since is None else min(spell.gone_since, now)
            spells[key] = spell if spell.gone_since == gone_since else spell._replace(gone_since=gone_since)
    return spells


def _thin_out(
    name: str,
    rules: Mapping[str, Rule],
    view: View,
    spells: dict[Key, Spell],
    there: set[tuple[str, str | None]],
    running: dict[str, Running],
    past: dict[str, Past],
    steps: list[Step],
    now: float,
) -> None:
    """Let go of what an alert is no longer about, and end it where nothing is left."""
    each = running[name]
    rule = each.alert.rule
    over: list[float] = []
    left: set[Key] = set()
    own = {(rule, subject) for subject in each.members}
    for key in own | each.parts:
        spell = spells.get(key)
        hold_seconds = each.hold_seconds if key in own else _quiet_seconds(rules.get(key[0]))
        if spell is None:
            over.append(now)
        elif spell.gone_since is not None and now - spell.gone_since >= hold_seconds:
            over.append(spell.gone_since)
            del spells[key]
        else:
            left.add(key)
    expected = frozenset(host for host in each.expected if (rule, host) in there)
    if left:
        if over or expected != each.expected:
            members = frozenset(subject for _, subject in own & left)
            running[name] = replace(each, members=members, expected=expected, parts=each.parts & left)
        return
    del running[name]
    past[each.lead] = Past(now, each.times)
    ended = replace(
        each, alert=replace(each.alert, ended_at=max(over, default=now), facts=_at_the_end(each, rules, view))
    )
    steps.append(Step("ended", ended, is_told=True))


def _at_the_end(each: Running, rules: Mapping[str, Rule], view: View) -> tuple[tuple[str, str], ...]:
    """Return the facts of an alert that ends: what to do is no longer among them, why it ended may be."""
    facts = tuple(fact for fact in each.alert.facts if fact[0] not in ("likely cause", "next step"))
    why = {view.gone(subject.host) for subject in each.subjects if subject.host is not None}
    if each.alert.rule not in rules:
        why = {"its rule is switched off"}
    return (*facts, *[("why it ended", reason) for reason in why if reason is not None])


# -------------------------------------------------------------------------------------------------------- alerts


def _raise(
    rules: Mapping[str, Rule],
    view: View,
    spells: dict[Key, Spell],
    running: dict[str, Running],
    past: Mapping[str, Past],
    steps: list[Step],
    now: float,
) -> None:
    """Make alerts of the spells that have lasted long enough."""
    ripe: dict[str, list[Subject]] = {}
    coming: dict[str, set[str]] = {}
    for (name, subject), spell in spells.items():
        if spell.alert is not None or spell.gone_since is not None:
            continue
        if spell.finding.level == "holds" and now - spell.since >= rules[name].for_seconds:
            ripe.setdefault(name, []).append(subject)
        elif subject.host is not None:
            coming.setdefault(name, set()).add(subject.host)
    for name, subjects in sorted(ripe.items(), key=lambda each: _goes_first(rules[each[0]])):
        rule = rules[name]
        makes = _Makes(rules, rule, view, spells, running, past, steps, now)
        for subject in [
            each for each in subjects if each.thing is not None or (each.host is None and each.user is None)
        ]:
            makes.alert((subject,), subject.thing or "")
        by_user: dict[str, list[Subject]] = {}
        by_host: dict[str, list[Subject]] = {}
        for subject in subjects:
            if subject.user is not None:
                by_user.setdefault(subject.user, []).append(subject)
            elif subject.host is not None:
                by_host.setdefault(subject.host, []).append(subject)
        for user, theirs in by_user.items():
            if not makes.joined(theirs, lambda each, user=user: each.alert.user == user):  # type: ignore[misc]
                makes.alert(theirs, f"user {user}")
        makes.of_hosts(by_host, coming.get(name, set()))


def _goes_first(rule: Rule) -> tuple[int, bool]:
    """Order rules: of one cause the gravest is told, and what brings the others about."""
    return -SEVERITIES.index(rule.severity), bool(rule.same_cause)


class _Makes:
    """Makes alerts of one rule in one round."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        rule: Rule,
        view: View,
        spells: dict[Key, Spell],
        running: dict[str, Running],
        past: Mapping[str, Past],
        steps: list[Step],
        now: float,
    ) -> None:
        self._rules = rules
        self._rule = rule
        self._view = view
        self._spells = spells
        self._running = running
        self._past = past
        self._steps = steps
        self._now = now

    def joined(self, subjects: Sequence[Subject], belongs: Callable[[Running], bool]) -> bool:
        """Add to an alert that began lately and that they belong to; False where there is none."""
        for name, each in self._running.items():
            if each.alert.rule == self._rule.name and self._now - each.joined_at <= JOIN_SECONDS and belongs(each):
                self._running[name] = replace(each, members=each.members | frozenset(subjects))
                self._note(subjects, name)
                return True
        return False

    def of_hosts(self, by_host: dict[str, list[Subject]], coming: set[str]) -> None:
        """Make alerts of hosts: one for all of a cause, else one for each host."""
        for host in list(by_host):
            if self.joined(by_host[host], lambda each, host=host: each.alert.host == host and not each.is_storm):  # type: ignore[misc]
                del by_host[host]
        self._add_to_others(by_host)
        if not by_host:
            return
        for name, each in list(self._running.items()):
            if each.is_storm and each.alert.rule == self._rule.name:
                self._swell(name, each, by_host)
        all_hosts = set(by_host) | coming
        while by_host and len(all_hosts) >= FEW_HOSTS:
            cause = self._cause(all_hosts)
            if cause is None:
                break
            hosts, lead = cause
            members = [subject for host in hosts for subject in by_host.pop(host, ())]
            all_hosts -= hosts
            if members:
                self.alert(members, lead, expected=hosts)
        for host, subjects in by_host.items():
            subject = subjects[0] if len(subjects) == 1 else Subject(host)
            self.alert(subjects, f"{subject.host} {subject.gpu}")

    def _add_to_others(self, by_host: dict[str, list[Subject]]) -> None:
        """Make what another rule's alert has brought about a part of that, quietly, unless it is graver."""
        rule = self._rule
        kin = {*rule.same_cause, *(name for name, each in self._rules.items() if rule.name in each.same_cause)}
        if not kin:
            return
        of_host: dict[str, list[str]] = {}
        for name, each in self._running.items():
            is_as_grave = SEVERITIES.index(each.alert.severity) >= SEVERITIES.index(rule.severity)
            if is_as_grave and each.alert.silenced_until is None and kin & {each.alert.rule, *each.rules}:
                for host in {subject.host for subject in each.subjects if subject.host is not None} | each.expected:
                    of_host.setdefault(host, []).append(name)
        for host in by_host.keys() & of_host.keys():
            for name in of_host[host]:
                each = self._running[name]
                there = {subject.gpu for subject in each.subjects if subject.host == host}
                parts = [
                    subject
                    for subject in by_host[host]
                    if subject.gpu is None or {None, subject.gpu} & (there or {None})
                ]
                if parts:
                    keys = {(rule.name, subject) for subject in parts}
                    self._running[name] = replace(each, parts=each.parts | keys, rules=each.rules | {rule.name})
                    self._note(parts, name)
                    by_host[host] = [subject for subject in by_host[host] if subject not in parts]
            if not by_host[host]:
                del by_host[host]

    def _swell(self, name: str, each: Running, by_host: dict[str, list[Subject]]) -> None:
        """Add hosts to an alert of many that they belong to: quietly, as long as it does not become another trouble."""
        label = each.lead.removeprefix(f"{self._rule.name} ")
        is_young = self._now - each.joined_at <= JOIN_SECONDS
        more = {
            host
            for host in by_host
            if host in each.expected
            or (is_young and (label == MANY or label in (" ".join(of) for of in self._view.labels(host).items())))
        }
        hosts = {subject.host for subject in each.subjects} | each.expected | more
        if more and len(hosts) <= GROWTH * each.told_hosts:
            subjects = [subject for host in more for subject in by_host.pop(host)]
            self._running[name] = replace(each, members=each.members | frozenset(subjects))
            self._note(subjects, name)

    def _cause(self, hosts: set[str]) -> tuple[set[str], str] | None:
        """Return hosts of one cause, and what it is called; None: each is on its own."""
        if len(hosts) >= MANY_HOSTS or len(hosts) > MANY_SHARE * self._view.hosts:
            return set(hosts), MANY
        sizes = self._view.sizes()
        having: dict[tuple[str, str], set[str]] = {}
        for host in hosts:
            for label in self._view.labels(host).items():
                having.setdefault(label, set()).add(host)
        found = [
            (len(those), label)
            for label, those in having.items()
            if len(those) >= FEW_HOSTS and len(those) >= LABEL_SHARE * sizes.get(label, 0)
        ]
        if not found:
            return None
        _, label = max(found)
        return having[label], f"{label[0]} {label[1]}"

    def alert(self, subjects: Sequence[Subject], lead: str, expected: Iterable[str] | None = None) -> None:
        """Make one alert of what it is about."""
        rule, now = self._rule, self._now
        lead = f"{rule.name} {lead}"
        before = self._past.get(lead)
        times = 1
        if before is not None and now - before.ended_at <= _again_seconds(rule, before.times):
            times = before.times + 1
        members = frozenset(subjects)
        hosts = {subject.host for subject in subjects if subject.host is not None} | set(expected or ())
        first = min(subjects, key=repr)
        blank = Alert(
            id=hashlib.blake2b(f"{rule.name} {first!r} {now!r}".encode(), digest_size=8).hexdigest(),
            rule=rule.name,
            severity=rule.severity,
            title="",
            host=None,
            gpu=None,
            user=first.user,
            began_at=min(self._spells[rule.name, subject].since for subject in subjects),
            ended_at=None,
            facts=(),
            acknowledged=None,
            silenced_until=None,
            labels={},
        )
        running = Running(
            alert=blank,
            members=members,
            expected=frozenset(expected or ()),
            is_storm=expected is not None,
            lead=lead,
            times=times,
            hold_seconds=_quiet_seconds(rule, times),
            joined_at=now,
            told_hosts=len(hosts),
        )
        running = told_anew(self._rules, self._view, self._spells, running)
        silenced_until = self._view.silenced(running)
        is_told = silenced_until is None
        running = replace(running, alert=replace(running.alert, silenced_until=silenced_until), told=int(is_told))
        self._running[blank.id] = running
        self._note(subjects, blank.id)
        self._steps.append(Step("began", running, is_told=is_told))

    def _note(self, subjects: Iterable[Subject], name: str) -> None:
        for subject in subjects:
            key = (self._rule.name, subject)
            self._spells[key] = self._spells[key]._replace(alert=name)


def _heed_silences(view: View, running: dict[str, Running], steps: list[Step], new: set[str]) -> None:
    """Note which alerts are silenced; one that no longer is and goes on is told of."""
    for name, each in list(running.items()):
        until = view.silenced(each)
        if name in new or until == each.alert.silenced_until:
            continue
        is_over = until is None
        told = each.told + is_over
        each = running[name] = replace(each, alert=replace(each.alert, silenced_until=until), told=told)
        steps.append(Step("changed", each, is_told=is_over, takes_back=not is_over))
