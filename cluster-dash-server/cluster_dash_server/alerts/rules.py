"""Rules as data: those that are shipped, and what a site changes in them by a file of its own."""

import dataclasses
import difflib
import functools
import operator
import re
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import tomllib

from cluster_dash_server import filters, when
from cluster_dash_server.alerts.facts import FACTS, Fact
from cluster_dash_server.notices.notice import Severity
from cluster_dash_server.notices.receivers import SEVERITIES

SHIPPED = "rules.toml"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,47}", re.ASCII)
_WHEN = re.compile(r"\s*([a-z_]+)\s*(?:(>=|<=|>|<|=)\s*(.+?)\s*)?", re.ASCII)
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
}


class RulesError(Exception):
    """A rule that cannot be used: the text names the file, the rule, the key and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a rule looks at, and when it holds.

    Attributes:
        fact: its name in `FACTS`.
        compare: how it is compared; None: it says yes or no by itself.
        threshold: with what, in the fact's own unit; the word, where it is one.
        clear: beyond which an alert that goes on may end; None: the threshold.
    """

    fact: str
    compare: str | None = None
    threshold: float | str | None = None
    clear: float | None = None

    @property
    def comparison(self) -> Callable[[float, float], bool]:
        """How a number is compared with another."""
        return _COMPARE[self.compare or "="]

    def holds(self, value: object, *, is_on: bool) -> bool | None:
        """Say whether it holds for a value; `is_on`: it did before, so that it takes more to end it."""
        if value is None:
            return None
        if self.compare is None:
            return bool(value)
        if isinstance(self.threshold, str):
            return value == self.threshold
        limit = self.clear if is_on and self.clear is not None else self.threshold
        return _COMPARE[self.compare](typing.cast(float, value), typing.cast(float, limit))


def _help(text: str, **more: Any) -> dict[str, Any]:
    return {"help": text, **more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule; the fields with a help are the keys of its section.

    Attributes:
        condition: `when` and `clear`, read.
        meant: `filter`, read.
    """

    name: str
    when: str = field(
        metadata=_help("what it looks at: `NAME`, or `NAME OP VALUE` with OP one of `>` `>=` `<` `<=` `=`")
    )
    clear: float | str | None = field(
        default=None, metadata=_help("an alert that goes on ends only beyond this value; else at that of `when`")
    )
    filter: str = field(default="", metadata=_help("only hosts and GPUs that [fit](filter.md)"))
    for_seconds: float = field(
        default=0.0, metadata=_help("how long it must hold before there is an alert: `5m`", key="for")
    )
    hold_seconds: float = field(
        default=600.0,
        metadata=_help("how long it must not hold before the alert ends; doubled each time it comes back", key="hold"),
    )
    severity: Severity = field(default="warning", metadata=_help("`info`, `warning` or `critical`", choices=SEVERITIES))
    to: tuple[str, ...] = field(
        default=(), metadata=_help("receivers that are told; none named: all that take rules of this severity")
    )
    title: str = field(
        default="",
        metadata=_help("what is wrong, in a few words: `too hot`; it stands after host and GPU; else the name"),
    )
    cause: str = field(default="", metadata=_help("the likely cause"))
    next: str = field(default="", metadata=_help("the next step"))
    same_cause: tuple[str, ...] = field(
        default=(),
        metadata=_help(
            "rules by which the same trouble shows, too: of one GPU or host there is one alert, and what comes later "
            "is a part of it"
        ),
    )
    enabled: bool = field(default=True, metadata=_help("whether it is on"))
    condition: Condition
    meant: filters.Filter

    @property
    def fact(self) -> Fact:
        """What it looks at."""
        return FACTS[self.condition.fact]


KEYS: Mapping[str, dataclasses.Field[Any]] = {
    each.metadata.get("key", each.name): each for each in dataclasses.fields(Rule) if "help" in each.metadata
}
"""The keys of a rule's section, as they are written."""


def load(file: Path | None = None, *, receivers: Collection[str] | None = None) -> tuple[Rule, ...]:
    """Return the rules that are on: the shipped ones, changed and added to by a site's file.

    Args:
        file: the site's own; None: it has none.
        receivers: the names of those there are; None: they are not looked at.

    Raises:
        RulesError: see there.
    """
    found = tuple([rule for rule in read(file) if rule.enabled])
    for rule in found:
        for name in rule.to:
            if receivers is not None and name not in receivers:
                near = difflib.get_close_matches(name, list(receivers), n=1, cutoff=0.5)
                mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(receivers) or 'none'}"
                raise RulesError(f"{file}: [{rule.name}] to: no receiver is called {name}, {mend}")
    return found


def read(file: Path | None = None) -> tuple[Rule, ...]:
    """Return all rules, those that are off, too.

    Raises:
        RulesError: see there.
    """
    shipped = _shipped()
    own: dict[str, object] = {}
    if file is not None:
        try:
            own = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RulesError(f"alerts.rules_file: {file}: cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RulesError(f"{file}: not TOML: {error}") from None
    for name, section in own.items():
        if isinstance(section, list) and section and all(isinstance(each, dict) for each in section):
            named = [name, *[each["name"] for each in section if isinstance(each.get("name"), str)]]
            meant = next((each for each in named if each in shipped), named[-1] if len(named) > 1 else "NAME")
            raise RulesError(f"{file}: [[{name}]]: each rule is a section under its own name: [{meant}], no list")
        if not isinstance(section, dict):
            raise RulesError(f"{file}: {name}: expected a section [{name}]")
        inner = next((key for key, value in section.items() if isinstance(value, dict)), None)
        if inner is not None and name not in shipped:
            raise RulesError(f"{file}: [{name}.{inner}]: write [{inner}], the name of the rule alone")
        if name not in shipped and _NAME.fullmatch(name) is None:
            raise RulesError(f"{file}: [{name}]: expected a name of a-z, 0-9 and -, at most 48 long")
        if name not in shipped and "when" not in section:
            near = difflib.get_close_matches(name, list(shipped), n=1, cutoff=0.6)
            mend = f"did you mean [{near[0]}]?" if near else "a rule of your own needs `when`"
            raise RulesError(f"{file}: [{name}]: no rule of this name is shipped; {mend}")
    names = [*shipped, *(name for name in own if name not in shipped)]
    for name, section in own.items():
        same_cause = typing.cast(dict[str, object], section).get("same_cause", ())
        for other in same_cause if isinstance(same_cause, list) else ():
            if other not in names:
                near = difflib.get_close_matches(str(other), names, n=1, cutoff=0.5)
                mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
                raise RulesError(f"{file}: [{name}] same_cause: no rule is called {other}, {mend}")
    return tuple(
        [
            _rule(name, {**shipped.get(name, {}), **typing.cast(dict[str, object], own.get(name, {}))}, file or SHIPPED)
            for name in names
        ]
    )


@functools.cache
def _shipped() -> Mapping[str, Mapping[str, object]]:
    """Return the sections of the file that comes along: it is the same for as long as this process lives."""
    return tomllib.loads(resources.files(__package__).joinpath(SHIPPED).read_text(encoding="utf-8"))


def _rule(name: str, section: Mapping[str, object], source: Path | str) -> Rule:
    where = f"{source}: [{name}]"
    values: dict[str, Any] = {}
    for key, value in section.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, list(KEYS), n=1, cutoff=0.5)
            mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(KEYS)}"
            raise RulesError(f"{where}: unknown key {key}, {mend}")
        values[KEYS[key].name] = _value(key, value, f"{where} {key}")
    condition = _condition(values["when"], values.get("clear"), where)
    meant = filters.parse(values.get("filter", ""))
    if meant.problems:
        raise RulesError(f"{where} filter: {meant.problems[0]}")
    if meant.terms and FACTS[condition.fact].of == "cluster":
        raise RulesError(f"{where} filter: {condition.fact} is of no host: leave the filter out")
    return Rule(name=name, condition=condition, meant=meant, **values)


def _value(key: str, value: object, where: str) -> object:
    metadata = KEYS[key].metadata
    if key in ("for", "hold"):
        seconds = when.seconds(value) if isinstance(value, str) else None
        if seconds is None:
            raise RulesError(f"{where}: got {value!r}, expected a time such as '5m'")
        return seconds
    if key in ("to", "same_cause"):
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            what = "receivers" if key == "to" else "rules"
            raise RulesError(f"{where}: got {value!r}, expected a list of names of {what}")
        return tuple(value)
    if key == "enabled":
        if not isinstance(value, bool):
            raise RulesError(f"{where}: got {value!r}, expected true or false")
        return value
    if key == "clear" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        raise RulesError(f"{where}: got {value!r}, expected a text")
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise RulesError(f"{where}: got {value!r}, expected {' or '.join(choices)}")
    return value


def _condition(when: str, clear: float | str | None, where: str) -> Condition:
    match = _WHEN.fullmatch(when)
    if match is None:
        raise RulesError(f"{where} when: got {when!r}, expected NAME or NAME OP VALUE, such as 'temp > 85'")
    name, compare, text = match.groups()
    if name not in FACTS:
        near = difflib.get_close_matches(name, list(FACTS), n=1, cutoff=0.5)
        mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(FACTS)}"
        raise RulesError(f"{where} when: {name}: no such fact, {mend}")
    fact = FACTS[name]
    if fact.number is not None:
        threshold = None if text is None else fact.number(text)
        if threshold is None:
            raise RulesError(f"{where} when: {name} is a number: compare it, such as '{name} > …'; got {when!r}")
        if clear is None:
            return Condition(fact=name, compare=compare, threshold=threshold)
        beyond = fact.number(clear if isinstance(clear, str) else f"{clear:g}")
        if beyond is None:
            raise RulesError(f"{where} clear: got {clear!r}, expected a value such as that of `when`")
        if compare == "=" or _COMPARE[compare](threshold, beyond):
            return Condition(fact=name, compare=compare, threshold=threshold, clear=beyond)
        raise RulesError(f"{where} clear: {clear!r} would end the alert no later than {when!r} does")
    if clear is not None:
        raise RulesError(f"{where} clear: {name} is no number")
    if fact.words or name == "event":
        if compare != "=" or not text or (fact.words and text not in fact.words):
            expected = " or ".join(fact.words) or "a kind of event"
            raise RulesError(f"{where} when: write {name} = {expected}; got {when!r}")
        return Condition(fact=name, compare="=", threshold=text)
    if compare is not None:
        raise RulesError(f"{where} when: {name} holds or not: leave out {compare} {text}")
    return Condition(fact=name)
