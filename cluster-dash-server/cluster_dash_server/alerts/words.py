"""An alert in words: its title, facts and labels, by what it is about now. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster_dash_server.alerts.rules import Rule
from cluster_dash_server.alerts.state import Key, Running, Spell, Subject, View
from cluster_dash_server.hostlist import compress

MANY = "many"
"""What the cause of an alert of many hosts is called where no label names it."""
NAMED = 4


def told_anew(rules: Mapping[str, Rule], view: View, spells: Mapping[Key, Spell], each: Running) -> Running:
    """Word an alert by what it is about now; where only what it has brought about is left, by that."""
    name = each.alert.rule if each.members else min(name for name, _ in each.parts)
    rule = rules[name]
    members = sorted(each.members or {subject for other, subject in each.parts if other == name}, key=repr)
    found = [spells[name, subject].finding for subject in members if (name, subject) in spells]
    hosts = sorted({subject.host for subject in members if subject.host is not None} | each.expected)
    where = _where(members, hosts, each, view)
    user, gpu = members[0].user, members[0].gpu if len(members) == 1 else None
    models = Counter(finding.model for finding in found if finding.model)
    who = list(dict.fromkeys(finding.who for finding in found if finding.who))
    host_labels = dict(view.labels(hosts[0])) if len(hosts) == 1 else _shared(view, hosts) if each.is_storm else {}
    facts = [
        ("what", "; ".join(dict.fromkeys(finding.figure for finding in found[:NAMED] if finding.figure))),
        ("where", places(members, hosts)),
        (
            "model",
            ", ".join(f"{count} × {model}" if count > 1 else model for model, count in models.most_common(NAMED)),
        ),
        ("who", "; ".join(who[:NAMED]) or (user or "")),
        ("also", _also(rules, spells, each, name)),
        ("again", f"time {each.times} in a row: it comes and goes" if each.times > 1 else ""),
        ("likely cause", rule.cause),
        ("next step", rule.next),
    ]
    severity = rule.severity if each.members else each.alert.severity
    labels = {
        **host_labels,
        "rule": each.alert.rule,
        "severity": severity,
        **({"host": hosts[0]} if len(hosts) == 1 else {}),
        **({"gpu": str(gpu)} if gpu is not None else {}),
        **({"user": user} if user is not None else {}),
        **({"model": next(iter(models))} if len(models) == 1 else {}),
    }
    alert = replace(
        each.alert,
        host=hosts[0] if len(hosts) == 1 else None,
        gpu=gpu,
        title=f"{where}: {_title(rules, each, name)}",
        severity=severity,
        facts=tuple([fact for fact in facts if fact[1]]),
        labels=labels,
    )
    return replace(each, alert=alert)


def _title(rules: Mapping[str, Rule], each: Running, name: str) -> str:
    title = rules[name].title or name
    first = rules.get(each.alert.rule)
    # it was told of by the title of the first, and that is over
    return title if name == each.alert.rule or first is None else f"{title}, after {first.title or first.name}"


def _also(rules: Mapping[str, Rule], spells: Mapping[Key, Spell], each: Running, name: str) -> str:
    """Say what an alert has brought about besides."""
    figures: dict[str, list[str]] = {}
    for key in sorted(each.parts, key=repr):
        if key[0] != name and key in spells:
            figures.setdefault(rules[key[0]].title or key[0], []).append(spells[key].finding.figure)
    return "; ".join(f"{title}: {', '.join(dict.fromkeys(those[:NAMED]))}" for title, those in figures.items())


def _where(members: Sequence[Subject], hosts: Sequence[str], each: Running, view: View) -> str:
    first = members[0]
    if first.thing is not None:
        return first.thing
    if not hosts:
        return "this server"
    count = len({(subject.host, subject.gpu) for subject in members})
    if each.is_storm:
        label = each.lead.removeprefix(f"{each.alert.rule} ")
        if label != MANY:
            return f"{len(hosts)} hosts of {label}"
        return f"{len(hosts)} of {view.hosts} hosts"
    place = places(members, hosts) if len(hosts) == 1 else f"{count} GPUs on {len(hosts)} hosts"
    return place if first.user is None else f"{first.user}, {place}"


def places(members: Sequence[Subject], hosts: Sequence[str]) -> str:
    """Name hosts and GPUs: `gpu07 GPU 3`, `gpu07 GPUs 0, 1`, `gpu[01-40]`."""
    if len(hosts) != 1:
        return compress(list(hosts))
    gpus = sorted({subject.gpu for subject in members if subject.gpu is not None})
    if not gpus:
        return hosts[0]
    return f"{hosts[0]} GPU{'s' * (len(gpus) > 1)} {', '.join(map(str, gpus))}"


def _shared(view: View, hosts: Sequence[str]) -> dict[str, str]:
    """Return the labels that all of some hosts have alike."""
    shared = dict(view.labels(hosts[0]))
    for host in hosts[1:]:
        labels = view.labels(host)
        shared = {name: value for name, value in shared.items() if labels.get(name) == value}
    return shared
