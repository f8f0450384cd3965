"""What the overview says of each host, in words: pure. `static/js/rows.js` says the same of the API's columns.

A browser test holds the two to each other, cell by cell.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.hostlist import natural
from cluster_dash_server.states import STATES, State, Thresholds
from cluster_dash_server.summary import model
from cluster_dash_server.web import words

NAMED = 3
"""How many hosts, GPUs or users a line names before it says how many more there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a row: what it says, what its tooltip adds, and how full its bar is (percent, None: no bar).

    Attributes:
        rest: what follows the text and has no room in one line: there only their number stands, `+3`; the tooltip, a
            screen reader, a phone and paper say all of it.
    """

    text: str
    rest: tuple[str, ...] = ()
    title: str = ""
    share: str | None = None
    level: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One GPU of a host's strip.

    Attributes:
        who: who is on it, in brief: `alice +1`.
        busy: how high its fill stands, in percent (None: no fill).
        matches: the filter in force means it.
    """

    index: int
    state: State
    glyph: str
    who: str
    label: str
    busy: str | None
    matches: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One host of the overview."""

    host: str
    state: str
    glyph: str
    badge: str
    silent: bool
    models: Figure
    cells: tuple[Cell, ...]
    no_gpu: str
    free: str
    users: Figure
    busy: Figure
    memory: Figure
    cpu: Figure
    load: Figure
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One GPU of the table below the GPU charts."""

    host: str
    key: str
    index: int
    state: State
    glyph: str
    silent: bool
    model: str
    users: Figure
    busy: Figure
    memory: Figure
    temperature: Figure
    power: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing that needs attention; `host` and `gpu` say where, None where it speaks of several."""

    state: State
    text: str
    host: str | None = None
    gpu: int | None = None


def rows(hosts: Sequence[HostView], now: float, marks: Mapping[str, Sequence[bool]]) -> list[Row]:
    """Return the rows of the overview, in the order of the hosts.

    Args:
        hosts: in full.
        now: Unix s.
        marks: of each host, which of its GPUs the filter means.
    """
    return [_row(host, now, marks[host.host]) for host in hosts]


def gpu_rows(hosts: Sequence[HostView], most: int | None = None) -> list[GpuRow]:
    """Return a row for each GPU, by host and index; of many GPUs the first so many."""
    ordered = sorted(hosts, key=lambda each: natural(each.host))
    return [_gpu_row(host, gpu) for host, gpu in islice(((host, gpu) for host in ordered for gpu in host.gpus), most)]


def order(host: HostView) -> tuple[int, int, str]:
    """Return what puts hosts in order: what is wrong first, then the most free, then by name."""
    state = host.headline.state
    free = sum(gpu.state == "free" for gpu in host.gpus)
    if state is None:
        return (len(STATES) + 1, 0, natural(host.host))
    calm = state in ("free", "busy", "unknown")
    return (len(STATES) if calm else STATES.index(state), -free, natural(host.host))


def badge(host: HostView) -> tuple[str, str]:
    """Return the glyph and the words of a host's headline: `◐` and `3 held`."""
    state, count = host.headline.state, host.headline.count
    if state is None:
        return words.DASH, "no GPU"
    counted = count is not None and state != "busy"
    return words.GLYPHS[state], f"{count} {state}" if counted else state


def _row(host: HostView, now: float, marks: Sequence[bool]) -> Row:
    seen = host.seen
    silent = host.silent is not None
    last = silent or all(gpu.is_past for gpu in host.gpus)
    glyph, headline = badge(host)
    models = Counter(model(gpu.gpu) for gpu in host.gpus)
    return Row(
        host=host.host,
        state=host.headline.state or "none",
        glyph=glyph,
        badge=headline,
        silent=silent,
        models=_models(models),
        cells=tuple(cell(host, gpu, now, matches) for gpu, matches in zip(host.gpus, marks, strict=True)),
        no_gpu="" if host.gpus else no_gpu(host),
        free=str(sum(gpu.state == "free" for gpu in host.gpus)) if host.gpus else words.DASH,
        users=_users(host.gpus),
        busy=_last_known(_busy(host.gpus), last),
        memory=_last_known(_memory(host.gpus), last),
        cpu=_last_known(cpu(seen.cpu_percent, seen.num_cpus), silent),
        load=_last_known(_load(seen.load_avg_1, seen.num_cpus), silent),
        seen=words.age(now - seen.received_at),
    )


def _gpu_row(host: HostView, gpu: GpuView) -> GpuRow:
    silent = host.silent is not None
    last = silent or gpu.is_past
    facts = gpu.gpu
    return GpuRow(
        host=host.host,
        key=facts.key,
        index=facts.index,
        state=gpu.state,
        glyph=words.GLYPHS[gpu.state],
        silent=silent,
        model=words.cut(model(facts), 40),
        users=_users((gpu,)),
        busy=_last_known(_busy((gpu,)), last),
        memory=_last_known(
            Figure(
                text=words.used_of(facts.used_mem, facts.total_mem),
                title="" if words.known(facts.used_mem) else "memory: not reported",
                share=_bar(words.share(facts.used_mem, facts.total_mem)),
            ),
            last,
        ),
        temperature=_last_known(_measured(facts.temperature_c, "°C", "temperature"), last),
        power=_last_known(_measured(facts.power_w, "W", "power"), last),
    )


def _measured(value: float | None, unit: str, name: str) -> Figure:
    return Figure(text=words.unit(value, unit), title=f"{name}: not reported" if value is None else "")


def _last_known(figure: Figure, silent: bool) -> Figure:
    """Put figures in brackets that do not say what is: those of a silent host, for one. They warn of nothing."""
    if not silent or figure.text == words.DASH:
        return figure
    said = f"last known: {figure.title}" if figure.title else "last known"
    return Figure(text=f"({figure.text})", title=said, share=figure.share)


def _models(models: Counter[str]) -> Figure:
    if len(models) < 2:
        return Figure(text=words.cut(next(iter(models), words.DASH), 40))
    text = ", ".join(f"{count} × {words.cut(name, 40)}" for name, count in models.items())
    return Figure(text=text, title=text)


def no_gpu(host: HostView) -> str:
    """Say why a host shows no GPU."""
    if host.seen.gpu_error is not None:
        return f"cannot read its GPUs: {words.cut(host.seen.gpu_error)}"
    if host.seen.gpu_note is not None:
        return f"no GPU: {words.cut(host.seen.gpu_note)}"
    return "no GPU"


def cell(host: HostView, view: GpuView, now: float, matches: bool = True) -> Cell:
    """Return the cell of one GPU; its label says all that the cell shows, and more."""
    gpu = view.gpu
    parts = [f"{host.host} GPU {gpu.index}", view.state]
    on = [user for user, _ in sorted((gpu.users or {}).items(), key=lambda each: (-each[1], each[0]))]
    if gpu.users is None:
        parts.append("processes not reported")
    elif on:
        parts.append(_named(on))
    parts.append("memory not reported" if gpu.used_mem is None else words.used_of(gpu.used_mem, gpu.total_mem))
    idle = f" for {words.age(now - view.idle_since)}" if view.state == "held" and view.idle_since is not None else ""
    parts.append("busy % not reported" if gpu.gpu_util is None else f"busy {words.percent(gpu.gpu_util)}{idle}")
    if view.missing_since is not None:
        parts.append(f"missing for {words.age(now - view.missing_since)}")
    elif gpu.error is not None:
        parts.append(words.cut(gpu.error))
    if view.old and gpu.read_at is not None:
        parts.append(f"figures of {words.age(now - gpu.read_at)} ago")
    if view.slurm is not None and (said := view.slurm.said(gpu.working)):
        parts.append(words.cut(said))
    return Cell(
        index=gpu.index,
        state=view.state,
        glyph=words.GLYPHS[view.state],
        who=(words.cut(on[0], 32) if on else "") + (f" +{len(on) - 1}" if len(on) > 1 else ""),
        label=", ".join(parts),
        matches=matches,
        busy=words.whole(gpu.gpu_util) if view.state == "busy" and gpu.gpu_util is not None else None,
    )


def _users(gpus: Iterable[GpuView]) -> Figure:
    """Say who is on how many of the GPUs: `alice ×4, bob ×2`; in one line `alice ×4 +1`."""
    all_gpus = list(gpus)
    on: Counter[str] = Counter(user for gpu in all_gpus for user in gpu.gpu.users or ())
    unread = sum(gpu.gpu.users is None for gpu in all_gpus)
    said = [f"{user} ×{count}" for user, count in sorted(on.items(), key=lambda each: (-each[1], each[0]))]
    reason = f"processes of {words.plural(unread, 'GPU')} not reported" if unread else ""
    if not said:
        return Figure(text=words.DASH if unread or not all_gpus else "none", title=reason)
    every = ", ".join(said) if len(said) > 1 else ""
    return Figure(text=said[0], rest=tuple(said[1:]), title="; ".join(part for part in (every, reason) if part))


def _named(names: Sequence[str]) -> str:
    left = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {left} more" if left > 0 else "")


def _bar(value: float | None) -> str | None:
    return None if value is None else words.whole(value)


def _fresh(gpus: Sequence[GpuView]) -> Sequence[GpuView]:
    """Return those whose figures go into a sum: the ones that say what is, or all where none does."""
    return [gpu for gpu in gpus if not gpu.is_past] or gpus


def _busy(gpus: Sequence[GpuView]) -> Figure:
    if not gpus:
        return Figure(text=words.DASH, title="no GPU")
    values = [gpu.gpu.gpu_util for gpu in _fresh(gpus) if gpu.gpu.gpu_util is not None]
    if not values:
        return Figure(text=words.DASH, title="busy %: not reported")
    mean = sum(values) / len(values)
    title = "" if len(gpus) == 1 else f"mean of {words.plural(len(values), 'GPU')}{_lacking(len(values), len(gpus))}"
    return Figure(text=words.percent(mean), title=title, share=_bar(mean))


def _memory(gpus: Sequence[GpuView]) -> Figure:
    if not gpus:
        return Figure(text=words.DASH, title="no GPU")
    used, total, count = 0.0, 0.0, 0
    for view in _fresh(gpus):
        if view.gpu.used_mem is not None and view.gpu.total_mem is not None:
            used += view.gpu.used_mem
            total += view.gpu.total_mem
            count += 1
    full = words.share(used, total)
    if full is None:
        return Figure(text=words.DASH, title="memory: not reported")
    title = f"{words.used_of(used, total)} on {words.plural(count, 'GPU')}{_lacking(count, len(gpus))}"
    return Figure(text=words.percent(full), title=title, share=_bar(full))


def _lacking(count: int, total: int) -> str:
    return "" if count == total else f"; {count} of {total} reporting"


def cpu(value: float | None, cores: int | None) -> Figure:
    """Say how busy a host's CPU is; full is bad here, and said by word."""
    if value is None:
        return Figure(text=words.DASH, title="CPU: not reported")
    title = "" if cores is None else f"of {words.plural(cores, 'core')}"
    return Figure(text=words.percent(value), title=title, level=words.level(value))


def _load(value: float | None, cores: int | None) -> Figure:
    if value is None:
        return Figure(text=words.DASH, title="load: not reported")
    title = f"1 min; {words.short(value / cores)} a core, {words.plural(cores, 'core')}" if cores else "1 min"
    return Figure(text=words.short(value), title=title)


def attention(hosts: Sequence[HostView], now: float) -> list[Note]:
    """Return what needs attention, worst first: silent hosts, unreadable or broken GPUs, drained hosts, held GPUs."""
    ordered = sorted(hosts, key=lambda each: natural(each.host))
    notes: list[Note] = []
    for state in ("down", "stale"):
        silent = [
            Note(state=state, text=f"{host.host} {state} {words.age(now - host.seen.received_at)}", host=host.host)
            for host in ordered
            if host.silent == state
        ]
        names = [str(note.host) for note in silent]
        notes += _together(silent, state, f"{len(silent)} hosts {state}", names)
    unreadable = [
        Note(state="error", text=f"{host.host} {no_gpu(host)}", host=host.host)
        for host in ordered
        if host.silent is None and host.seen.gpu_error is not None
    ]
    names = [str(note.host) for note in unreadable]
    notes += _together(unreadable, "error", f"{len(unreadable)} hosts cannot read their GPUs", names)
    notes += _broken_gpus([(host, gpu) for host in ordered for gpu in host.gpus if gpu.state == "error"], now)
    shut = [
        Note(state="drained", text=f"{host.host} drained: {words.cut(host.drained)}", host=host.host)
        for host in ordered
        if host.silent is None and host.drained is not None
    ]
    notes += _together(shut, "drained", f"{len(shut)} hosts drained", [str(note.host) for note in shut])
    held = [gpu.gpu for host in ordered for gpu in host.gpus if gpu.state == "held"]
    if held:
        on = Counter(user for gpu in held for user in gpu.users or ())
        said = [f"{user} {count}" for user, count in sorted(on.items(), key=lambda each: (-each[1], each[0]))]
        notes.append(Note(state="held", text=f"{len(held)} held" + (f" ({_named(said)})" if said else "")))
    return notes


def _broken_gpus(broken: Sequence[tuple[HostView, GpuView]], now: float) -> list[Note]:
    """Say a few broken GPUs one by one; of many those that fare alike in one line: `12 GPUs on 3 hosts too hot: …`."""
    if len(broken) <= NAMED:
        return [_broken(host, view, now) for host, view in broken]
    alike: dict[str, list[tuple[HostView, GpuView]]] = {}
    for host, view in broken:
        reason = "missing" if view.missing_since is not None else words.cut(view.gpu.error or "error")
        alike.setdefault(reason, []).append((host, view))
    notes, said = [], 0
    for reason, found in sorted(alike.items(), key=lambda each: -len(each[1]))[:NAMED]:
        said += len(found)
        on = list(dict.fromkeys(host.host for host, _ in found))
        if len(found) == 1:
            notes.append(_broken(*found[0], now))
        elif len(on) == 1:
            notes.append(Note(state="error", text=f"{on[0]}, {len(found)} GPUs: {reason}", host=on[0]))
        else:
            text = f"{len(found)} GPUs on {len(on)} hosts: {reason} ({_named(on)})"
            notes.append(Note(state="error", text=text))
    if said < len(broken):
        notes.append(Note(state="error", text=f"{words.plural(len(broken) - said, 'more GPU')} in error"))
    return notes


def _broken(host: HostView, view: GpuView, now: float) -> Note:
    name = f"{host.host} GPU {view.gpu.index}"
    if view.missing_since is not None:
        text = f"{name} missing for {words.age(now - view.missing_since)}"
    else:
        text = f"{name}: {words.cut(view.gpu.error or 'error')}"
    return Note(state="error", text=text, host=host.host, gpu=view.gpu.index)


def _together(notes: list[Note], state: State, many: str, names: list[str]) -> list[Note]:
    """Say a few things one by one, many of one kind in one line."""
    return notes if len(notes) <= NAMED else [Note(state=state, text=f"{many}: {_named(names)}")]


def title(hosts: Sequence[HostView], site: str) -> str:
    """Return the title of the overview: `(2!) 31 free – lab-a`."""
    wrong = _wrong(hosts)
    free = sum(gpu.state == "free" for host in hosts for gpu in host.gpus)
    return (f"({wrong}!) " if wrong else "") + (f"{free} free {words.DASH} " if hosts else "") + site


def icon(hosts: Sequence[HostView]) -> str:
    """Return what the icon of a page says by its shape: `error`, `free`, `busy` or `none`."""
    if _wrong(hosts):
        return "error"
    states = {gpu.state for host in hosts for gpu in host.gpus}
    return "free" if "free" in states else "busy" if states else "none"


def _wrong(hosts: Sequence[HostView]) -> int:
    """Count what is wrong: silent hosts, hosts that cannot read their GPUs, GPUs in error."""
    return sum(
        1
        if host.silent is not None
        else (host.seen.gpu_error is not None) + sum(gpu.state == "error" for gpu in host.gpus)
        for host in hosts
    )


def meanings(thresholds: Thresholds) -> dict[State, str]:
    """Say when a GPU has which state, with the thresholds in force."""
    memory = f"max({thresholds.held_memory_mib:g} MiB, {thresholds.held_memory_percent:g} %)"
    idle = f"busy below {thresholds.busy_percent:g} %"
    return {
        "down": f"the host has been silent for {_limit(thresholds.down_seconds, thresholds.down_intervals)}",
        "stale": f"the host has been silent for {_limit(thresholds.stale_seconds, thresholds.stale_intervals)}",
        "error": "the GPU reports an error, is lost, or was seen before and is missing",
        "drained": "Slurm has its node drained, in maintenance, down, or reserved while it would be free",
        "held": f"memory above {memory} and {idle} for {words.age(thresholds.held_seconds)}",
        "busy": f"a compute process, or memory above {memory}, or busy ≥ {thresholds.busy_percent:g} %",
        "unknown": "neither its processes nor its memory and use are known",
        "free": "none of the other states",
    }


def _limit(seconds: float, intervals: float) -> str:
    return f"max({words.age(seconds)}, {intervals:g} intervals)"


def state_counts(hosts: Iterable[HostView]) -> Counter[State]:
    """Count the GPUs of all hosts by state."""
    return Counter(gpu.state for host in hosts for gpu in host.gpus)


def wide(hosts: Iterable[HostView]) -> bool:
    """Say whether a host has more GPUs than one short line of cells holds."""
    return any(len(host.gpus) > 8 for host in hosts)
