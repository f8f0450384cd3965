"""The digest: what an admin wants to know in the morning, in some fifteen lines. Pure; `nights` asks.

What broke and what healed, reboots and drivers, who used what, what was held for nothing, the queue, whether fewer GPUs
are free than the day before, and what needs a hand today.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from itertools import groupby
from urllib.parse import quote

from cluster_dash_server.cluster import HostView
from cluster_dash_server.events import HARMFUL_THROTTLES
from cluster_dash_server.hostlist import compress, natural
from cluster_dash_server.incidents import Incident, Kind, incidents
from cluster_dash_server.slurm import Picture, is_down, is_drained
from cluster_dash_server.store import Event, Series
from cluster_dash_server.summary import sentence_of
from cluster_dash_server.waste import Line as Usage
from cluster_dash_server.waste import Report
from cluster_dash_server.when import Span

CAUSE_SECONDS = 600.0
"""An Xid so close to the loss of a GPU is its cause, and no line of its own."""
TOGETHER_SECONDS = 300.0
"""Hosts that fall silent within so long of each other are one line: a switch, a rack, a power failure."""
HELD_SECONDS = 12 * 3600.0
"""Who has held a GPU for so long without work should be asked."""
FULL_PERCENT = 95.0
MOST_LINES = 4
"""Lines on one topic; the next says how many more there are."""
MOST_NAMES = 5
PROGRAMS_FAULTS = frozenset((13, 31, 43, 45, 69))
"""Xids that a program causes: the GPU is well, and nobody has to get up."""
DRIVER_KINDS, CHANGE_KINDS = ("driver_changed",), ("gpu_replaced", "machine_changed", "renamed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """All that a digest is made of.

    Attributes:
        span: the night; mostly the 24 hours before the digest.
        events: of the night and of some days before it, in any order.
        hosts: as they stand at its end; None: that is long ago.
        pictures: Slurm at its end.
        report: GPU-hours; None: no history is kept.
        free_before: how many GPUs were free in the stretch of the same length before, on average; None: not known.
        firing: titles of alerts that nobody has taken on.
    """

    span: Span
    events: Sequence[Event]
    hosts: Sequence[HostView] | None
    pictures: Sequence[Picture]
    report: Report | None
    free_before: float | None
    firing: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line.

    Attributes:
        topic: what it is about: Now, Broke, Healed, …
        path: the page that tells more, below the server's own address.
    """

    topic: str
    text: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A night in words."""

    title: str
    span: Span
    lines: tuple[Line, ...]

    @property
    def topics(self) -> list[tuple[str, list[Line]]]:
        """The lines by topic."""
        return [(topic, list(lines)) for topic, lines in groupby(self.lines, key=lambda line: line.topic)]

    @property
    def text(self) -> str:
        """All of it as text, a paragraph for each topic."""
        said = [f"\n{topic}\n" + "".join(f"  {line.text}\n" for line in lines) for topic, lines in self.topics]
        return f"{self.title}\n{''.join(said)}"


def tell(night: Night, zone: tzinfo = UTC) -> Digest:
    """Say a night in words; the times of day are those of a zone."""
    say = _Sayer(night.span, zone)
    xids = [event for event in night.events if event.kind == "xid" and _is_in(event, night.span)]
    serious: dict[str, list[Event]] = defaultdict(list)
    for event in xids:
        if event.code not in PROGRAMS_FAULTS:
            serious[event.host].append(event)
    touched = [each for each in incidents(night.events) if _touches(each, night.span)]
    found = [_with_cause(each, serious.get(each.host, ())) for each in touched]
    of_gpus: dict[str, list[Incident]] = defaultdict(list)
    for each in found:
        of_gpus[each.host].append(each)
    alone = [
        event
        for host, events in serious.items()
        for event in events
        if not any(_is_cause(event, each) for each in of_gpus.get(host, ()))
    ]
    hosts = None if night.hosts is None else {host.host: host for host in night.hosts}
    lasting = [each for each in found if each.ended_at is None and _still(each, hosts)]
    healed = [each for each in found if each.ended_at is not None]
    hand = list(_hand(night, say))
    lines = [
        *([Line(topic="Now", text=sentence_of(night.hosts), path="")] if night.hosts is not None else []),
        *_at_most("Broke", [*_broke(lasting, say), *_xid_lines(alone, say)]),
        *_at_most("Healed", _broke(healed, say)),
        *_programs(xids),
        *_happened(night, say),
        *_usage(night.report),
        *_trend(night, say),
        *_queue(night.pictures, night.span.end, say),
        *(Line(topic="Needs a hand today", text=text, path=path) for text, path in hand),
    ]
    if not found and not alone:
        lines.insert(1 if night.hosts is not None else 0, Line(topic="Broke", text="Nothing.", path="history"))
    if night.hosts is not None and not hand:
        lines.append(Line(topic="Needs a hand today", text="Nothing.", path=""))
    end = datetime.fromtimestamp(night.span.end, zone)
    counts = [f"{len(lasting)} broke" if lasting else "", f"{len(healed)} healed" if healed else ""]
    counts += [f"{len(hand)} {'needs' if len(hand) == 1 else 'need'} a hand" if hand else ""]
    said = ", ".join(each for each in counts if each) or "a quiet night"
    return Digest(title=f"{end:%A} {end.day} {end:%B}: {said}", span=night.span, lines=tuple(lines))


class _Sayer:
    """Says moments, near the end of a night."""

    def __init__(self, span: Span, zone: tzinfo) -> None:
        self._zone = zone
        self._end = datetime.fromtimestamp(span.end, zone)

    def moment(self, at: float) -> str:
        """Say a moment: `02:14`, `Sun 23:10`, `2 Mar 23:10`."""
        there = datetime.fromtimestamp(at, self._zone)
        days = (self._end.date() - there.date()).days
        day = "" if days == 0 else f"{there:%a} " if 0 < days < 7 else f"{there.day} {there:%b} "
        return f"{day}{there:%H:%M}"


def _is_in(event: Event, span: Span) -> bool:
    return span.begin <= event.at <= span.end


def _touches(incident: Incident, span: Span) -> bool:
    if incident.ended_at is None:
        return incident.began_at is not None and incident.began_at <= span.end
    return span.begin <= incident.ended_at <= span.end


def _is_cause(xid: Event, incident: Incident) -> bool:
    same = incident.kind == "gpu" and incident.host == xid.host and incident.gpu in (None, xid.gpu)
    return same and incident.began_at is not None and abs(incident.began_at - xid.at) <= CAUSE_SECONDS


def _with_cause(incident: Incident, xids: Iterable[Event]) -> Incident:
    cause = next((_xid_words(xid) for xid in xids if _is_cause(xid, incident)), None)
    return incident if cause is None else replace(incident, text=cause)


def _still(incident: Incident, hosts: Mapping[str, HostView] | None) -> bool:
    """Say whether something that nothing is known to have ended goes on: what has been forgotten does not."""
    if hosts is None:
        return True
    host = hosts.get(incident.host)
    if host is None:
        return False
    if incident.kind == "silent":
        return host.silent is not None and not _may_be_silent(host)
    gpus = [each for each in host.gpus if incident.gpu in (None, each.gpu.index)]
    if incident.kind == "slow":
        return any(HARMFUL_THROTTLES.intersection(map(str.lower, each.gpu.throttle_reasons)) for each in gpus)
    return any(each.state == "error" or each.missing_since is not None for each in gpus) or bool(host.seen.gpu_error)


def _may_be_silent(host: HostView) -> bool:
    """Say whether nobody misses a host: its mole was stopped on purpose, or it is a pod, which comes and goes."""
    return host.seen.stopping or host.seen.ephemeral


def _at_most(topic: str, lines: Sequence[tuple[str, str]]) -> list[Line]:
    """Give lines their topic, and say of more than MOST_LINES how many there are."""
    left = len(lines) - MOST_LINES
    shown = lines if left <= 1 else lines[:MOST_LINES]
    more = [(f"and {left} more", "history")] if left > 1 else []
    return [Line(topic=topic, text=text, path=path) for text, path in (*shown, *more)]


_WORDS: dict[Kind, str] = {"silent": "silent", "gpu": "in error", "slow": "slowed down by heat or power brake"}


def _broke(found: Iterable[Incident], say: _Sayer) -> list[tuple[str, str]]:
    """Say what broke, hosts that fell silent or came back together in one line, a GPU that did it often likewise."""
    of_silent: list[list[Incident]] = []
    of_gpu: dict[tuple[Kind, str, object], list[Incident]] = defaultdict(list)
    for each in found:
        if each.kind != "silent":
            of_gpu[each.kind, each.host, each.gpu].append(each)
        elif of_silent and _together(of_silent[-1][0], each):
            of_silent[-1].append(each)
        else:
            of_silent.append([each])
    lines = []
    for group in of_silent:
        names = sorted({each.host for each in group}, key=natural)
        count = "" if len(names) == 1 else f" ({len(names)} hosts)"
        lines.append((f"{compress(names)}{count} silent {_stretch(group[0], say)}", _host_path(names)))
    for (kind, host, gpu), group in of_gpu.items():
        last = group[-1]
        often = "" if len(group) == 1 else f", {len(group)} times"
        why = "" if kind == "slow" or last.began_at is None else f": {_cut(last.text)}"
        where = f"{host} GPU {gpu}" if gpu is not None else host
        lines.append((f"{where} {_WORDS[kind]} {_stretch(last, say)}{often}{why}", _host_path([host])))
    return lines


def _together(one: Incident, other: Incident) -> bool:
    """Say whether two hosts fell silent and came back together."""
    if one.began_at is None or other.began_at is None or (one.ended_at is None) != (other.ended_at is None):
        return False
    ended_apart = 0.0 if one.ended_at is None or other.ended_at is None else abs(one.ended_at - other.ended_at)
    return one.host != other.host and max(abs(one.began_at - other.began_at), ended_apart) <= TOGETHER_SECONDS


def _stretch(incident: Incident, say: _Sayer) -> str:
    """Say from when to when: `since 02:14`, `01:10 to 01:52 (42 min)`, `until 01:52`."""
    if incident.ended_at is None:
        return f"since {say.moment(incident.began_at or 0)}"
    if incident.began_at is None:
        return f"until {say.moment(incident.ended_at)}"
    begin, end = say.moment(incident.began_at), say.moment(incident.ended_at)
    end = end.removeprefix(begin.rpartition(":")[0][:-2])  # the day is said once
    return f"{begin} to {end} ({_lasted(incident.ended_at - incident.began_at)})"


def _xid_lines(events: Iterable[Event], say: _Sayer) -> list[tuple[str, str]]:
    groups: dict[tuple[str, object, object], list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.at):
        groups[event.host, event.gpu, event.code].append(event)
    lines = []
    for (host, gpu, _), group in groups.items():
        where = f"{host} GPU {gpu}" if gpu is not None else host
        often = "" if len(group) == 1 else f", {len(group)} times, last"
        text = f"{where} {_cut(_xid_words(group[-1]))}{often} at {say.moment(group[-1].at)}"
        lines.append((text, _host_path([host])))
    return lines


def _xid_words(event: Event) -> str:
    return event.text if str(event.code) in event.text else f"Xid {event.code}: {event.text}"


def _programs(xids: Iterable[Event]) -> list[Line]:
    faults = [event for event in xids if event.code in PROGRAMS_FAULTS]
    if not faults:
        return []
    codes = ", ".join(f"{code} ({count})" for code, count in Counter(event.code for event in faults).most_common())
    names = sorted({event.host for event in faults}, key=natural)
    return [Line(topic="Programs that failed", text=f"Xid {codes} on {compress(names)}", path=_host_path(names))]


def _happened(night: Night, say: _Sayer) -> list[Line]:
    """Say what was started anew, and what was changed on purpose."""
    inside = sorted((each for each in night.events if _is_in(each, night.span)), key=lambda event: event.at)
    lines = []
    reboots = Counter(event.host for event in inside if event.kind == "rebooted")
    if reboots:
        often = [f"{host} {count} times" for host, count in reboots.items() if count > 1]
        also = f" ({', '.join(often)})" if often else ""
        lines.append(Line(topic="Changed", text=f"Rebooted: {compress(reboots)}{also}", path=_host_path(list(reboots))))
    stopped = [
        host.host
        for host in night.hosts or ()
        if host.silent is not None and host.seen.stopping and host.seen.received_at >= night.span.begin
    ]
    if stopped:
        lines.append(
            Line(topic="Changed", text=f"Moles stopped on purpose: {compress(stopped)}", path=_host_path(stopped))
        )
    drivers: dict[str, list[str]] = defaultdict(list)
    for event in inside:
        if event.kind in DRIVER_KINDS:
            drivers[event.text].append(event.host)
    texts = [(f"{compress(names)}: {_cut(text)}", _host_path(names)) for text, names in drivers.items()]
    for event in inside:
        if event.kind in CHANGE_KINDS:
            where = f"{event.host} GPU {event.gpu}" if event.gpu is not None else event.host
            texts.append((f"{where}: {_cut(event.text)} at {say.moment(event.at)}", _host_path([event.host])))
    return [*lines, *_at_most("Changed", texts)]


def _usage(report: Report | None) -> list[Line]:
    if report is None:
        return [Line(topic="Used", text="Not known: no history is kept.", path="waste")]
    users = [line for line in report.lines["user"] if line.held_seconds > 0]
    if not users and report.total.held_seconds <= 0:
        return [Line(topic="Used", text="Nobody held a GPU.", path="waste")]
    held = sorted(users, key=lambda line: (-line.held_seconds, line.name))
    total = report.total
    whole = f"{_hours(total.held_seconds)} GPU-hours held, {_hours(total.busy_seconds)} of them busy"
    lines = [
        Line(topic="Used", text=f"{whole}: {_named(held, lambda line: line.held_seconds)}", path="waste?from=now-1d")
    ]
    idle = [line for line in users if line.idle_seconds >= 1800]
    if idle:
        share = f" ({100 * total.idle_share:.0f} %)" if total.idle_share is not None else ""
        text = f"{_hours(total.idle_seconds)} GPU-hours{share}: {_named(idle, lambda line: line.idle_seconds)}"
        longest = total.longest
        if longest is not None:
            text += f"; the longest {_lasted(longest.seconds)}, {longest.user} on {longest.host} GPU {longest.gpu}"
        lines.append(Line(topic="Held for nothing", text=text, path="waste?from=now-1d"))
    return lines


def _named(lines: Sequence[Usage], seconds: Callable[[Usage], float]) -> str:
    """Name those with the most: `alice 120, bob 40 and 3 others 12`."""
    named = ", ".join(f"{line.name} {_hours(seconds(line))}" for line in lines[:MOST_NAMES])
    rest = lines[MOST_NAMES:]
    if not rest:
        return named
    others = "1 other" if len(rest) == 1 else f"{len(rest)} others"
    return f"{named} and {others} {_hours(sum(map(seconds, rest)))}"


def mean_of(series: Series | None) -> float | None:
    """Return the mean of what is known; None: nothing is."""
    known = [] if series is None else [value for value in series.mean if value is not None]
    return sum(known) / len(known) if known else None


def _trend(night: Night, say: _Sayer) -> list[Line]:
    free = None if night.report is None else night.report.free
    mean = mean_of(free)
    if free is None or mean is None:
        return []
    least, at = min((low, at) for low, at in zip(free.min, free.t, strict=True) if low is not None)
    text = f"{_short(mean)} on average, at least {least:.0f} ({say.moment(max(at, night.span.begin))})"
    if night.free_before is not None:
        text += f"; {_short(night.free_before)} on average the day before"
    return [Line(topic="Free", text=text, path="history")]


def _queue(pictures: Iterable[Picture], now: float, say: _Sayer) -> list[Line]:
    lines = []
    for picture in pictures:
        if picture.jobs is None:
            continue
        pending = [job for job in picture.jobs if job.state == "pending"]
        jobs = sum(job.tasks or 1 for job in pending)
        gpus = sum((job.gpus or 0) * (job.tasks or 1) for job in pending)
        for each in picture.omitted.get("by") or ():
            jobs += each.get("jobs") or 0
            gpus += each.get("gpus") or 0
        name = f"{picture.cluster}: " if picture.cluster else ""
        text = f"{name}no job waits"
        if jobs:
            text = f"{name}{jobs} {'job waits' if jobs == 1 else 'jobs wait'} for {gpus} GPUs"
            oldest = min((job.submitted_at for job in pending if job.submitted_at is not None), default=None)
            text += "" if oldest is None else f", the oldest for {_lasted(now - oldest)}"
        late = f", as of {say.moment(picture.at)}" if picture.at is not None and picture.is_late(now) else ""
        lines.append(Line(topic="Queue", text=text + late, path="slurm"))
    return lines


# ------------------------------------------------------------------------------------------------ what needs a hand


def _hand(night: Night, say: _Sayer) -> Iterable[tuple[str, str]]:
    """Say what somebody has to see to, as things stand: what is broken, shut, held for long, or nearly full."""
    hosts = night.hosts or ()
    firing = list(night.firing)
    if firing:
        more = f" and {len(firing) - 2} more" if len(firing) > 2 else ""
        yield f"Alerts that nobody has taken on: {'; '.join(map(_cut, firing[:2]))}{more}", "alerts"
    silent = [host for host in hosts if host.silent is not None and not _may_be_silent(host)]
    if silent:
        longest = night.span.end - min(host.seen.received_at for host in silent)
        names = [host.host for host in silent]
        yield f"Silent: {compress(names)}, the longest for {_lasted(longest)}", _host_path(names)
    blind = [host.host for host in hosts if host.silent is None and host.seen.gpu_error is not None]
    if blind:
        yield f"GPUs cannot be read: {compress(blind)}", _host_path(blind)
    broken = [f"{host.host} GPU {each.gpu.index}" for host in hosts for each in host.gpus if each.state == "error"]
    if broken:
        yield f"In error: {_few(broken)}", "?q=state:error"
    worn = [
        f"{host.host} GPU {each.gpu.index}"
        for host in hosts
        for each in host.gpus
        if each.gpu.remap_pending or each.gpu.remap_failed
    ]
    if worn:
        yield f"Memory to be put out of use, reset when idle: {_few(worn)}", ""
    for picture in night.pictures:
        shut = [node for node in picture.nodes or () if is_down(node.state) or is_drained(node.state)]
        if shut:
            reasons = Counter(node.reason or node.state for node in shut)
            why = ", ".join(_cut(each, 60) for each, _ in reasons.most_common(2))
            yield f"Slurm gives no jobs to {compress(node.name for node in shut)}: {why}", "slurm/nodes"
    held: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        for each in host.gpus:
            since = each.idle_since
            if each.state == "held" and since is not None and night.span.end - since >= HELD_SECONDS:
                for user in each.gpu.users or ("somebody",):
                    held[user].append(host.host)
    if held:
        who = [f"{user} {len(on)} ({compress(on)})" for user, on in sorted(held.items(), key=lambda at: -len(at[1]))]
        yield f"Held for over {_lasted(HELD_SECONDS)} without work: {_few(who)}", "?q=state:held"
    full = [
        f"{host.host} {mount} {percent:.0f} %"
        for host in hosts
        for mount, percent in host.seen.disks
        if percent >= FULL_PERCENT and host.silent is None
    ]
    if full:
        yield f"Disk nearly full: {_few(full)}", "root_drive"


def _few(texts: Sequence[str]) -> str:
    more = len(texts) - MOST_NAMES
    shown = texts if more <= 1 else texts[:MOST_NAMES]
    return ", ".join(shown) + (f" and {more} more" if more > 1 else "")


def _host_path(hosts: Sequence[str]) -> str:
    return f"host/{quote(hosts[0], safe='')}" if len(hosts) == 1 else "history"


def _cut(text: str, length: int = 110) -> str:
    text = text.rstrip(".")
    return text if len(text) <= length else text[: length - 1] + "…"


def _lasted(seconds: float) -> str:
    for size, word, least in ((86_400, "d", 2 * 86_400), (3600, "h", 2 * 3600), (60, "min", 60)):
        if seconds >= least:
            return f"{seconds / size:.0f} {word}"
    return f"{max(0.0, seconds):.0f} s"


def _hours(seconds: float) -> str:
    return _short(seconds / 3600)


def _short(value: float) -> str:
    text = f"{value:.1f}" if value < 10 else f"{value:,.0f}"
    return text.removesuffix(".0")
