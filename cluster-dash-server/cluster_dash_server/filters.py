"""The one grammar of `q`, for pages, lists and the API: text to what says whether a host and its GPUs are meant.

`state:free model:h100 mem>40G host:gpu[01-16] -part:debug`: a blank is *and*, a comma is *or*, `-` is *not*. Pure; no
text raises. A term that cannot be understood is left out and said in `problems`: a slip of a finger hides nothing.
"""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal, NamedTuple

from cluster_dash_server import when
from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.hostlist import HostlistError, matcher
from cluster_dash_server.snapshot import printable
from cluster_dash_server.states import STATES
from cluster_dash_server.summary import model_of

MOST_CHARACTERS = 2_000
MOST_TERMS = 20
MOST_ALTERNATIVES = 100
"""How much of a filter is read, so that no text costs more than a look at each GPU should."""
REMEMBERED = 20_000
"""Texts of which a term remembers whether it means them: users and models are few, GPUs many."""
PARTITION_LABEL = "partition"
"""The label that names the partitions of a host that Slurm does not know."""

Test = Callable[[HostView, GpuView | None, float], bool]
"""Says of a host and one of its GPUs (None: it has none), at a time (Unix s), whether a term means it."""
Operator = Literal[":", ">", ">=", "<", "<=", "="]


class _Wrong(Exception):
    """A term that cannot be understood; the text says why and names the mend."""


class Alternative(NamedTuple):
    """One of the things that a term may mean.

    Attributes:
        key: what is looked at; None: the names of host, users and model.
        operator: how; `:` for texts.
        text: as it was written, less its quotes.
        is_exact: it stood in quotes: it means itself only, whole, without patterns and lists.
    """

    key: str | None
    operator: Operator
    text: str
    is_exact: bool

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        quoted = '"' + self.text.replace("\\", "\\\\").replace('"', '\\"') + '"' if self.is_exact else self.text
        return quoted if self.key is None else f"{self.key}{self.operator}{quoted}"


class Term(NamedTuple):
    """What stands between two blanks: one of its alternatives must hold, or none where it is negated."""

    alternatives: tuple[Alternative, ...]
    is_negated: bool

    @property
    def key(self) -> str | None:
        """What all of it looks at; None where that is more than one thing."""
        keys = {each.key for each in self.alternatives}
        return keys.pop() if len(keys) == 1 else None

    @property
    def of_hosts(self) -> bool:
        """Whether it says the same of all GPUs of a host."""
        return all(each.key in HOST_KEYS for each in self.alternatives)

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        parts = [str(self.alternatives[0])]
        for before, each in zip(self.alternatives, self.alternatives[1:], strict=False):
            is_alike = (each.key, each.operator) == (before.key, before.operator)
            parts.append(str(each._replace(key=None)) if is_alike else str(each))
        return "-" * self.is_negated + ",".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What somebody wants to see.

    Attributes:
        terms: what was understood; all of them must hold.
        problems: what was not, in words.
        host_tests: the terms that say the same of all GPUs of a host, ready to ask.
        gpu_tests: the others; one GPU must pass all of them.
        moves_by_time: what it means changes by time alone.
    """

    terms: tuple[Term, ...]
    problems: tuple[str, ...] = ()
    host_tests: tuple[Test, ...] = field(repr=False, compare=False, default=())
    gpu_tests: tuple[Test, ...] = field(repr=False, compare=False, default=())
    moves_by_time: bool = field(repr=False, compare=False, default=False)

    def __str__(self) -> str:
        """Write it as `parse` reads it: what was not understood is not in it."""
        return " ".join(map(str, self.terms))

    def means(self, host: HostView, now: float) -> list[bool] | None:
        """Say which GPUs of a host are meant, in their order; None where the host is not meant.

        A host with GPUs is meant where one of them is; one without, where its own name, labels, state and figures
        say so: it has no user and no model, and no figure of a GPU.
        """
        for test in self.host_tests:
            if not test(host, None, now):
                return None
        tests = self.gpu_tests
        if not host.gpus:
            return [] if all(test(host, None, now) for test in tests) else None
        if not tests:
            return [True] * len(host.gpus)
        meant = [test(host, gpu, now) for gpu in host.gpus for test in tests[:1]]
        for test in tests[1:]:
            meant = [so_far and test(host, gpu, now) for so_far, gpu in zip(meant, host.gpus, strict=True)]
        return meant if True in meant else None

    def of(self, terms: "tuple[Term, ...]") -> "Filter":
        """Return the filter of other terms, with the same problems."""
        return _built(terms, self.problems)


EVERYTHING = Filter(terms=())


@lru_cache(maxsize=256)
def parse(text: str) -> Filter:
    """Read a filter; never raises."""
    problems: list[str] = []
    terms: list[Term] = []
    if len(text) > MOST_CHARACTERS:
        problems.append(f"the filter has {len(text)} characters, the first {MOST_CHARACTERS} are read")
        text = text[:MOST_CHARACTERS]
    count = 0
    for token in _TOKEN.findall(text):
        try:
            term = _term(token)
            if term is None:
                continue
            _tested(term)
        except _Wrong as wrong:
            problems.append(str(wrong))
            continue
        count += len(term.alternatives)
        if len(terms) >= MOST_TERMS or count > MOST_ALTERNATIVES:
            problems.append(
                f"more than {MOST_TERMS} terms or {MOST_ALTERNATIVES} alternatives: "
                f"the filter is read up to {printable(token, 40)}"
            )
            break
        terms.append(term)
    return _built(tuple(terms), tuple(problems))


@lru_cache(maxsize=256)
def _built(terms: tuple[Term, ...], problems: tuple[str, ...]) -> Filter:
    return Filter(
        terms=terms,
        problems=problems,
        host_tests=tuple([_tested(term) for term in terms if term.of_hosts]),
        gpu_tests=tuple([_tested(term) for term in terms if not term.of_hosts]),
        moves_by_time=any(each.key in _MOVED_BY_TIME for term in terms for each in term.alternatives),
    )


# -------------------------------------------------------------------------------------------------- text to terms

# possessive, so that no text takes more than one look at each of its characters
_TOKEN = re.compile(r'(?:"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[^\s"])++', re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)(?:"|\\?\Z)', re.DOTALL)
_KEYED = re.compile(r"([^\W\d]\w{0,31})(:|>=|<=|>|<|=)", re.ASCII)


def _term(token: str) -> Term | None:
    """Read what stands between two blanks; None where it says nothing, as while somebody types."""
    written = token.lstrip(",-")
    is_negated = "-" in token[: len(token) - len(written)]
    alternatives: list[Alternative] = []
    for part in _parts(written):
        before = alternatives[-1] if alternatives else None
        alternative = _alternative(part, before)
        if alternative is not None and alternative not in alternatives:
            alternatives.append(alternative)
    return Term(tuple(alternatives), is_negated) if alternatives else None


def _parts(token: str) -> Iterator[str]:
    """Cut at the commas that stand in no quotes and in no bracket."""
    begin, is_inside, place = 0, False, 0
    while place < len(token):
        character = token[place]
        if character == '"':
            quoted = _QUOTED.match(token, place)
            place = len(token) if quoted is None else quoted.end()
            continue
        if character in "[]":
            is_inside = character == "["
        elif character == "," and not is_inside:
            yield token[begin:place]
            begin = place + 1
        place += 1
    if is_inside:
        raise _Wrong(f"{printable(token, 64)}: its bracket is not closed")
    yield token[begin:]


def _alternative(part: str, before: Alternative | None) -> Alternative | None:
    """Read one alternative; without a key of its own it has that of the one before."""
    if not part:
        return None
    keyed = _KEYED.match(part)
    key: str | None = None
    how: Operator = ":"
    if keyed is not None and (before is None or keyed[1].lower() in KEYS):
        key, how, text = keyed[1].lower(), keyed[2], part[keyed.end() :]  # type: ignore[assignment]
        if key not in KEYS:
            raise _Wrong(f"{key}: no such key{_nearest(key, KEYS)}")
        if not text:
            raise _Wrong(f"{key}{how} says nothing yet")
    else:
        text = part
        if before is not None:
            key, how = before.key, before.operator
    if how == "=" and key not in NUMBERS:
        how = ":"  # user=alice can mean one thing only
    said = _QUOTED.sub(lambda quoted: re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL), text)
    return Alternative(key, how, said, '"' in text) if said else None


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word[:32], known, n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


# -------------------------------------------------------------------------------------------------- terms to tests


def _tested(term: Term) -> Test:
    """Turn a term into one test; alternatives of one kind become one, which asks each name once."""
    alike: dict[str | None, list[Alternative]] = {}
    tests = []
    for each in term.alternatives:
        if each.key in NUMBERS:
            tests.append(_comparison(each))
        elif each.operator != ":":
            raise _Wrong(f"{each}: {each.key} is a text: write {each.key}:{printable(each.text, 40)}")
        else:
            alike.setdefault(each.key, []).append(each)
    tests += [TEXTS[key](alternatives) for key, alternatives in alike.items()]
    if len(tests) == 1:
        one = tests[0]
        return (lambda host, gpu, now: not one(host, gpu, now)) if term.is_negated else one
    is_negated = term.is_negated

    def any_of(host: HostView, gpu: GpuView | None, now: float) -> bool:
        for test in tests:  # a generator would take twice the time
            if test(host, gpu, now):
                return not is_negated
        return is_negated

    return any_of


class _Remembers(dict[object, bool]):
    """Remembers what was said of a text or a name."""

    def __init__(self, says: Callable[..., bool]) -> None:
        self._says = says

    def __missing__(self, asked: object) -> bool:
        if len(self) >= REMEMBERED:
            self.clear()
        said = self[asked] = self._says(asked)
        return said


Says = Callable[[str], bool]


def _meant(alternatives: Sequence[Alternative]) -> Says:
    """Return what says whether a name is meant: in any case, exactly or by a pattern with `*` and `?`."""
    exactly = {each.text.lower() for each in alternatives}
    patterns = [each.text.lower().replace("[", "[[]") for each in alternatives if _is_pattern(each)]
    if not patterns:
        return lambda name: name.lower() in exactly
    return lambda name: name.lower() in exactly or any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _is_pattern(alternative: Alternative) -> bool:
    return not alternative.is_exact and ("*" in alternative.text or "?" in alternative.text)


def _held(texts: Sequence[str]) -> Says:
    """Return what says whether one of some texts, in lower case, stands in another."""
    return lambda name: any(text in name.lower() for text in texts)


def _host(alternatives: Sequence[Alternative]) -> Test:
    """Compare with names, hostlists and patterns."""
    exactly = _meant([each for each in alternatives if each.is_exact])
    try:
        in_list = matcher(",".join(each.text.lower() for each in alternatives if not each.is_exact))
    except HostlistError as error:
        raise _Wrong(f"host: {printable(str(error), 100)}") from None
    means = _Remembers(lambda name: in_list(name.lower()) or exactly(name))
    return lambda host, gpu, now: means[host.seen.host]


def users_of(view: GpuView) -> Iterable[str]:
    """Return who is on a GPU: whose processes are there, and to whom Slurm has given it."""
    on = (view.gpu.users or {}).keys()
    if view.slurm is None or not view.slurm.jobs:
        return on
    return tuple(dict.fromkeys((*on, *(job.user for job in view.slurm.jobs))))


def jobs_of(view: GpuView) -> Iterable[str]:
    """Return the jobs that are on a GPU: those of its processes, and those that Slurm has given it to."""
    if view.slurm is None or not view.slurm.jobs:
        return view.gpu.jobs
    return tuple(dict.fromkeys((*view.gpu.jobs, *(job.id for job in view.slurm.jobs))))


def _users(says: Says) -> Test:
    means = _Remembers(says)
    return lambda host, gpu, now: gpu is not None and any(map(means.__getitem__, users_of(gpu)))


def _models(named: Says, spoken: Says) -> Test:
    """Compare with the names of a model: each for itself, and both as one text."""

    def says(which: tuple[str | None, float | None]) -> bool:
        full, called = which[0] or "", model_of(*which)
        return named(full) or named(called) or spoken(f"{full} {called}")

    means = _Remembers(says)
    return lambda host, gpu, now: gpu is not None and means[gpu.gpu.name, gpu.gpu.total_mem]


def _model(alternatives: Sequence[Alternative]) -> Test:
    return _models(_meant(alternatives), _held(_words(alternatives)))


def _words(alternatives: Sequence[Alternative]) -> list[str]:
    return [each.text.lower() for each in alternatives if not each.is_exact and not _is_pattern(each)]


def _state(alternatives: Sequence[Alternative]) -> Test:
    asked = frozenset(each.text.lower() for each in alternatives)
    for text in asked:
        if text not in FILTERED_STATES:
            raise _Wrong(f"state: {printable(text, 40)} is none{_nearest(text, FILTERED_STATES)}")
    return lambda host, gpu, now: (host.headline.state or "none" if gpu is None else gpu.state) in asked


def _job(alternatives: Sequence[Alternative]) -> Test:
    says = _meant(alternatives)
    return lambda host, gpu, now: gpu is not None and any(map(says, jobs_of(gpu)))


def partitions(host: HostView) -> tuple[str, ...]:
    """Return the partitions of a host: Slurm's, else what its label `partition` says."""
    if host.place is not None and host.place.partitions:
        return host.place.partitions
    said = host.seen.labels.get(PARTITION_LABEL, "")
    return tuple(dict.fromkeys(part.strip() for part in said.split(",") if part.strip()))


def _part(alternatives: Sequence[Alternative]) -> Test:
    says = _meant(alternatives)
    return lambda host, gpu, now: any(map(says, partitions(host)))


def labels(host: HostView) -> list[str]:
    """Return the labels of a host, each as one text: `rack=r1`."""
    return [f"{name}={value}" for name, value in host.seen.labels.items()]


def _label(alternatives: Sequence[Alternative]) -> Test:
    says = _meant(alternatives)
    return lambda host, gpu, now: any(map(says, host.seen.labels)) or any(map(says, labels(host)))


def _mole(alternatives: Sequence[Alternative]) -> Test:
    says = _meant(alternatives)
    return lambda host, gpu, now: says(host.seen.mole_version or "unknown")


def _bare(alternatives: Sequence[Alternative]) -> Test:
    """Look at all that people call by name: host, users, model; a hostlist means hosts."""
    named = [each for each in alternatives if each.is_exact or _is_pattern(each)]
    lists = [each for each in alternatives if not each.is_exact and "[" in each.text]
    says, holds = _meant(named), _held([text for text in _words(alternatives) if "[" not in text])
    is_host = _host([*named, *lists])
    spoken = _Remembers(holds)
    is_user, is_model = _users(lambda name: says(name) or holds(name)), _models(says, holds)
    return lambda host, gpu, now: (
        spoken[host.seen.host] or is_host(host, gpu, now) or is_model(host, gpu, now) or is_user(host, gpu, now)
    )


FILTERED_STATES = (*STATES, "none")
TEXTS: Mapping[str | None, Callable[[Sequence[Alternative]], Test]] = {
    None: _bare,
    "host": _host,
    "user": lambda alternatives: _users(_meant(alternatives)),
    "model": _model,
    "part": _part,
    "state": _state,
    "job": _job,
    "label": _label,
    "mole": _mole,
}
"""What a text is compared with, by key."""


# ---------------------------------------------------------------------------------------------------- comparisons

_MIB_BY_UNIT = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024}
_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,6})?)"


def size_mib(text: str) -> float | None:
    """Read an amount of memory such as `40G` (40 × 2^30 bytes), to 2^20 bytes; None where it is none.

    A number without its unit is none, for nobody could say what it means.
    """
    match = re.fullmatch(_NUMBER + r"\s?([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    return None if match is None else float(match[1]) * _MIB_BY_UNIT[match[2].upper()]


def _plain(unit: str) -> Callable[[str], float | None]:
    pattern = re.compile(_NUMBER + (rf"\s?(?:{unit})?" if unit else ""), re.IGNORECASE | re.ASCII)

    def read(text: str) -> float | None:
        match = pattern.fullmatch(text.strip())
        return None if match is None else float(match[1])

    return read


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A figure that can be compared.

    Attributes:
        read: turns what was written into the unit of the figure; None where it is none.
        value: the figure; None where it is not known, and then no comparison holds.
        example: what to write.
    """

    read: Callable[[str], float | None]
    value: Callable[[HostView, GpuView | None, float], float | None]
    example: str


def _free_mem(host: HostView, gpu: GpuView | None, now: float) -> float | None:
    if gpu is None or gpu.gpu.used_mem is None or gpu.gpu.total_mem is None:
        return None
    return max(0.0, gpu.gpu.total_mem - gpu.gpu.used_mem)


def _idle_seconds(host: HostView, gpu: GpuView | None, now: float) -> float | None:
    """Return for how long a GPU has had nothing to do, be it held or free."""
    if gpu is None:
        return None
    since = gpu.free_since if gpu.idle_since is None else gpu.idle_since
    return None if since is None else now - since


def _of_gpu(name: str) -> Callable[[HostView, GpuView | None, float], float | None]:
    read = operator.attrgetter(name)
    return lambda host, gpu, now: None if gpu is None else read(gpu.gpu)


NUMBERS: Mapping[str, Number] = {
    "mem": Number(read=size_mib, value=_of_gpu("used_mem"), example="mem>40G"),
    "free_mem": Number(read=size_mib, value=_free_mem, example="free_mem>40G"),
    "util": Number(read=_plain("%"), value=_of_gpu("gpu_util"), example="util<5"),
    "temp": Number(read=_plain("°?C"), value=_of_gpu("temperature_c"), example="temp>80"),
    "power": Number(read=_plain("W"), value=_of_gpu("power_w"), example="power>300"),
    "idle": Number(read=when.seconds, value=_idle_seconds, example="idle>2h"),
    "cpu": Number(read=_plain("%"), value=lambda host, gpu, now: host.seen.cpu_percent, example="cpu>90"),
    "load": Number(read=_plain(""), value=lambda host, gpu, now: host.seen.load_avg_1, example="load>64"),
    "gpus": Number(read=_plain(""), value=lambda host, gpu, now: len(host.gpus), example="gpus>=8"),
    "free": Number(
        read=_plain(""),
        value=lambda host, gpu, now: sum([each.state == "free" for each in host.gpus]),
        example="free>=4",
    ),
}
"""What a number is compared with, by key."""

_MOVED_BY_TIME = ("idle",)
HOST_KEYS = frozenset(("host", "part", "label", "mole", "cpu", "load", "gpus", "free"))
KEYS = (*filter(None, TEXTS), *NUMBERS)


def _comparison(alternative: Alternative) -> Test:
    key = str(alternative.key)
    number = NUMBERS[key]
    if alternative.operator == ":":
        raise _Wrong(f"{key}: compare it with > < or =, as in {number.example}")
    limit = number.read(alternative.text)
    if limit is None:
        raise _Wrong(f"{key}: got {printable(alternative.text, 40)}, expected a number, as in {number.example}")
    value = number.value
    compare: Callable[[float, float], bool] = _COMPARE[alternative.operator]

    def test(host: HostView, gpu: GpuView | None, now: float) -> bool:
        known = value(host, gpu, now)
        return known is not None and compare(known, limit)

    return test


_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
}
