"""What the page of one host says, in words: its GPUs and what is odd about them, processes, the machine. Pure."""

import difflib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

from cluster_dash_server.cluster import GpuView, HostView
from cluster_dash_server.hostlist import natural
from cluster_dash_server.states import SKEW_SECONDS, Thresholds, counts_as_use
from cluster_dash_server.store import Event
from cluster_dash_server.summary import standing
from cluster_dash_server.web import rows, slurm_words, words

MOST_EVENTS = 50
NOTHING = f"{words.DASH} ·"
"""What a text consists of that says nothing."""
WARM_C, HOT_C = 15, 5
"""How far below the temperature at which it slows itself down a card counts as warm, and as hot."""

Json = dict[str, Any]

THROTTLES = {
    "gpu_idle": None,
    "none": None,
    "sw_power_cap": "at its power limit",
    "applications_clocks_setting": "clocks are set lower",
    "display_clock_setting": "clocks are set by its display",
    "sync_boost": "clocks follow the slowest of its group",
    "hw_slowdown": "slowed down by its hardware",
    "hw_thermal_slowdown": "slowed down by heat (hardware)",
    "sw_thermal_slowdown": "slowed down by heat",
    "hw_power_brake_slowdown": "slowed down by the power supply",
}
"""Why a card runs slower, as people say it; None: that is nothing to say."""


def words_of(view: HostView, events: Sequence[Event], thresholds: Thresholds, now: float) -> dict[str, object]:
    """Return what the page of one host says.

    Args:
        view: the host.
        events: what happened on it, newest first.
        thresholds: the settings in force.
        now: Unix s.
    """
    snapshot = view.seen.snapshot
    glyph, headline = rows.badge(view)
    entries = [cast(Json, snapshot["gpu"].get(gpu.gpu.key) or {}) for gpu in view.gpus]
    anchors = _anchors(view)
    gpus = [
        {
            "row": row,
            "anchor": anchor,
            "entry": entry,
            "heat": heat(entry),
            "notes": list(findings(gpu, entry, thresholds, now)),
        }
        for row, gpu, entry, anchor in zip(rows.gpu_rows([view]), view.gpus, entries, anchors, strict=True)
    ]
    memory = snapshot.get("memory") or {}
    skew = view.seen.skew_seconds
    said = standing(view)
    processes = _processes(view, snapshot, now)
    return {
        "host": view,
        "state": view.headline.state or "none",
        "glyph": glyph,
        "headline": headline,
        "icon": rows.icon([view]),
        "standing": said.text,
        "standing_at": said.at,
        "gpus_title": _gpus_title(view),
        "no_gpu": rows.no_gpu(view),
        "age_seconds": now - view.seen.received_at,
        "skewed": skew is not None and abs(skew) > SKEW_SECONDS,
        "skew_words": f"{words.age(abs(skew or 0))} {'ahead' if (skew or 0) > 0 else 'behind'}",
        "gpus": gpus,
        "health": _known_columns(
            [health(gpu, entry) for gpu, entry in zip(view.gpus, entries, strict=True) if _says_health(entry)]
        ),
        "instances": list(instances(view, snapshot)),
        "processes": processes,
        "told": {name for each in processes or () for name, value in each["process"].items() if value is not None},
        "node": _node(view),
        "cpu": snapshot["cpu"],
        "memory": memory,
        "memory_share": words.share(memory.get("used_gb"), memory.get("total_gb")),
        "disks": _disks(snapshot),
        "network": _network(snapshot),
        "collectors": {name: said or {} for name, said in (snapshot.get("collectors") or {}).items()},
        "events": list(islice(events, MOST_EVENTS)),
        "more_events": max(0, len(events) - MOST_EVENTS),
        "facts": _facts(view, snapshot, now),
    }


NEAREST = 5
LIKELY = 200
"""Names that are compared letter by letter: those that begin most like the one asked for."""
MOST_COMPARED = 64
"""Letters of a name that are compared."""
LEAST_ALIKE = 0.5
"""How alike a name must be, from 0 to 1."""


def nearest(asked: str, names: Sequence[str]) -> list[str]:
    """Return the names that are most like one that nobody has; of 10,000 it looks closely at few."""
    asked = asked[:MOST_COMPARED].lower()
    likely = heapq.nlargest(LIKELY, names, key=lambda name: _alike(asked, name.lower()))
    compare = difflib.SequenceMatcher(b=asked)
    scored = []
    for name in likely:
        compare.set_seq1(name[:MOST_COMPARED].lower())
        scored.append((-compare.ratio(), -_alike(asked, name.lower()), natural(name), name))
    return [name for score, _, _, name in sorted(scored)[:NEAREST] if -score >= LEAST_ALIKE]


def _alike(one: str, other: str) -> int:
    """Return with how many letters alike two names begin."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def neighbours(host: str, names: Iterable[str]) -> tuple[str | None, str | None]:
    """Return the hosts before and after one, as people count; None at an end."""
    place = natural(host)
    keyed = [(natural(name), name) for name in names]
    before = max((each for each in keyed if each[0] < place), default=(None, None))
    after = min((each for each in keyed if each[0] > place), default=(None, None))
    return before[1], after[1]


def _gpus_title(view: HostView) -> str:
    if not view.gpus:
        return "GPUs"
    return words.plural(len(view.gpus), "GPU") + ("" if view.silent is None else ", as last seen")


def _anchors(view: HostView) -> list[str | None]:
    """Name each GPU's row by its index; where a missing card has the index of another, that one has the name."""
    present = {gpu.gpu.index for gpu in view.gpus if gpu.missing_since is None}
    taken: set[int] = set()
    anchors: list[str | None] = []
    for gpu in view.gpus:
        index = gpu.gpu.index
        named = index not in taken and (gpu.missing_since is None or index not in present)
        taken |= {index} if named else set()
        anchors.append(f"gpu-{index}" if named else None)
    return anchors


# ------------------------------------------------------------------------------------------------------- one GPU


def heat(entry: Json) -> str:
    """Say `warm` or `hot` by the distance to where this very card slows itself down, hot where heat slows it now."""
    if any("thermal" in each.lower() for each in entry.get("throttle_reasons") or ()):
        return "hot"
    temperature, slowdown = entry.get("temperature_c"), entry.get("temperature_slowdown_c")
    if temperature is None or slowdown is None:
        return ""
    return "hot" if slowdown - temperature < HOT_C else "warm" if slowdown - temperature < WARM_C else ""


def findings(view: GpuView, entry: Json, thresholds: Thresholds, now: float) -> Iterator[str]:
    """Say what is special about a GPU, the gravest first.

    Args:
        view: the GPU.
        entry: its entry in the snapshot; empty where it is missing.
        thresholds: the settings in force.
        now: Unix s.
    """
    if view.missing_since is not None:
        yield f"missing for {words.age(now - view.missing_since)}: the last snapshot does not hold it"
    if view.gpu.error is not None:
        yield words.cut(view.gpu.error, 240)
    if view.old and view.gpu.read_at is not None:
        yield f"figures of {words.age(now - view.gpu.read_at)} ago"
    if view.slurm is not None and (said := view.slurm.said(view.gpu.working)):
        yield words.cut(said)
    if view.state == "held" and view.idle_since is not None:
        kind = "allocated" if view.slurm is not None and view.slurm.allocated else "memory"
        yield f"{kind}, no work for {words.age(now - view.idle_since)}"
    if view.state == "unknown" and not view.old:
        named = (("processes", view.gpu.users), ("memory", view.gpu.used_mem), ("busy %", view.gpu.gpu_util))
        yield "not reported: " + ", ".join(name for name, value in named if value is None)
    yield from _memory_findings(entry)
    yield from _link_findings(view, entry, thresholds)
    yield from _throttles(entry)
    unattributed = entry.get("unattributed_mem")
    if counts_as_use(unattributed, view.gpu.total_mem, thresholds):
        yield f"{words.gib(unattributed)} GiB that no process explains"
    if entry.get("compute_mode") == "prohibited":
        yield "compute mode: prohibited"
    if (entry.get("mig") or {}).get("instances") is not None:
        count = len(entry["mig"]["instances"])
        unread = "" if view.gpu.gpu_util is not None else "; busy %: not reported under MIG"
        yield f"MIG: {words.plural(count, 'instance')}{unread}"


def _memory_findings(entry: Json) -> Iterator[str]:
    ecc = entry.get("ecc") or {}
    if ecc.get("remap_failed"):
        yield "a memory row could not be remapped: replace the card"
    if ecc.get("remap_pending"):
        yield "memory rows wait to be remapped: reset it when it is idle"
    if ecc.get("uncorrected"):
        yield f"{words.plural(ecc['uncorrected'], 'uncorrected memory error')}"
    if ecc.get("retired_pages"):
        yield f"{words.plural(ecc['retired_pages'], 'retired memory page')}"


def _link_findings(view: GpuView, entry: Json, thresholds: Thresholds) -> Iterator[str]:
    pcie = entry.get("pcie") or {}
    width, width_max = pcie.get("width"), pcie.get("width_max")
    if width is not None and width_max is not None and 0 < width < width_max:
        yield f"PCIe ×{width}, it can ×{width_max}"
    gen, gen_max, util = pcie.get("gen"), pcie.get("gen_max"), view.gpu.gpu_util
    # an idle card saves power by a slower link
    is_working = util is not None and util >= thresholds.busy_percent
    if is_working and gen is not None and gen_max is not None and 0 < gen < gen_max:
        yield f"PCIe generation {gen}, it can {gen_max}"


def _throttles(entry: Json) -> Iterator[str]:
    for reason in islice(entry.get("throttle_reasons") or (), 6):
        said = THROTTLES.get(reason.lower(), words.cut(reason.replace("_", " "), 40))
        if said is not None:
            yield said


def health(view: GpuView, entry: Json) -> Json:
    """Return what a GPU says of links, memory and modes, as texts by column."""
    pcie, nvlink, ecc = (entry.get(name) or {} for name in ("pcie", "nvlink", "ecc"))
    traffic = [
        words.amount(None if each is None else each * 1024) for each in (pcie.get("rx_kib_s"), pcie.get("tx_kib_s"))
    ]
    said: Json = {
        "PCIe": ", ".join(_link(pcie)) or words.DASH,
        "PCIe in · out, /s": " · ".join(traffic),
        "NVLink": f"{words.whole(nvlink.get('active'))} active, {words.whole(nvlink.get('errors'))} errors"
        if nvlink
        else words.DASH,
        "ECC corrected · not": f"{words.whole(ecc.get('corrected'))} · {words.whole(ecc.get('uncorrected'))}",
        "Remapped rows": words.whole(ecc.get("remapped_rows")),
        "Memory temp.": words.unit(entry.get("memory_temperature_c"), "°C"),
        "Memory clock": f"{_of(entry.get('memory_clock_mhz'), entry.get('memory_clock_max_mhz'))} MHz",
        "Enc. · dec.": f"{words.percent(entry.get('encoder_util'))} · {words.percent(entry.get('decoder_util'))}",
        "Energy": words.DASH if entry.get("energy_j") is None else f"{words.short(entry['energy_j'] / 3.6e6)} kWh",
        "Mode": ", ".join(_modes(entry)) or words.DASH,
    }
    return {"index": view.gpu.index, "key": view.gpu.key, "said": said}


def _known_columns(rows_of_gpus: list[Json]) -> list[Json]:
    """Leave out the columns of which no GPU knows anything."""
    known = {
        name for row in rows_of_gpus for name, text in row["said"].items() if text.replace("MHz", "").strip(NOTHING)
    }
    return [
        {**row, "said": {name: text for name, text in row["said"].items() if name in known}} for row in rows_of_gpus
    ]


def _says_health(entry: Json) -> bool:
    names = ("pcie", "nvlink", "ecc", "memory_temperature_c", "memory_clock_mhz", "encoder_util", "pstate", "energy_j")
    return any(entry.get(name) is not None for name in names)


def _of(value: float | None, most: float | None) -> str:
    return words.whole(value) if most is None or value == most else f"{words.whole(value)} of {words.whole(most)}"


def _link(pcie: Json) -> Iterator[str]:
    if pcie.get("gen") is not None:
        yield f"gen {_of(pcie['gen'], pcie.get('gen_max'))}"
    if pcie.get("width") is not None:
        yield f"×{_of(pcie['width'], pcie.get('width_max'))}"
    if pcie.get("replays"):
        yield words.plural(pcie["replays"], "replay")


def _modes(entry: Json) -> Iterator[str]:
    if entry.get("pstate") is not None:
        yield f"P{entry['pstate']}"
    if entry.get("compute_mode") is not None:
        yield words.cut(entry["compute_mode"].replace("_", " "), 40)
    if entry.get("persistence") is not None:
        yield "persistent" if entry["persistence"] else "not persistent"


def instances(view: HostView, snapshot: Json) -> Iterator[Json]:
    """Return the MIG instances of all GPUs, each with who is on it."""
    for gpu in view.gpus:
        entry = snapshot["gpu"].get(gpu.gpu.key) or {}
        for each in (entry.get("mig") or {}).get("instances") or ():
            users = [
                user
                for user, processes in (entry.get("users") or {}).items()
                if any(_is_on(process, each) for process in processes.values())
            ]
            yield {"gpu": gpu.gpu.index, "instance": each, "users": users if entry.get("users") is not None else None}


def _is_on(process: Json, instance: Json) -> bool:
    gi, ci = process.get("gi"), process.get("ci")
    return gi is not None and gi == instance.get("gi") and (ci is None or ci == instance.get("ci"))


def _node(view: HostView) -> Json | None:
    """Return what Slurm says of the host as one of its nodes, None where it is none."""
    if view.place is None:
        return None
    place = view.place
    on: dict[Any, list[int]] = {}
    for gpu in view.gpus:
        for job in gpu.slurm.jobs if gpu.slurm is not None else ():
            on.setdefault(job, []).append(gpu.gpu.index)
    text, like = slurm_words.badge(place.state)
    return {
        "name": place.node,
        "text": text,
        "like": like,
        "title": slurm_words.state_title(place.state),
        "reason": place.reason,
        "partitions": place.partitions,
        "jobs": [(job, ", ".join(map(str, indexes))) for job, indexes in on.items()],
    }


def _processes(view: HostView, snapshot: Json, now: float) -> list[Json] | None:
    """Return the processes on all GPUs, None where none of the GPUs could say."""
    found: list[Json] = []
    known = False
    # Slurm 26.05 names control groups by another id than the one that people use
    labels = {job.sluid: job.id for gpu in view.gpus if gpu.slurm for job in gpu.slurm.jobs if job.sluid}
    for gpu in view.gpus:
        users = (snapshot["gpu"].get(gpu.gpu.key) or {}).get("users")
        known = known or users is not None
        for user, processes in (users or {}).items():
            for pid, process in processes.items():
                started_at = process.get("started_at")
                running = None if started_at is None else now - started_at
                job = process.get("job_id")
                said = {**process, "job_id": labels[job]} if job in labels else process
                found.append(
                    {"gpu": gpu.gpu.index, "user": user, "pid": pid, "process": said, "running_seconds": running}
                )
    return found if known else None


# --------------------------------------------------------------------------------------------------- the machine


def _disks(snapshot: Json) -> list[Json]:
    disks = []
    for key, each in (snapshot.get("disk") or {}).items():
        disk = dict(each or {})
        share = disk.get("percent_used")
        if share is None:
            share = words.share(disk.get("used_gb"), disk.get("total_gb"))
        disks.append({**disk, "mount_point": disk.get("mount_point") or key, "share": share})
    return disks


def _network(snapshot: Json) -> list[tuple[str, str]]:
    """Return each interface with what it received and sent; its shape is not in the schema, so any is expected."""
    network = snapshot.get("network") or {}
    interfaces = network.get("interfaces")
    named = interfaces if isinstance(interfaces, dict) and interfaces else {"all": network}
    said = []
    for name, counts in named.items():
        if isinstance(counts, dict) and (words.known(counts.get("rx_bytes")) or words.known(counts.get("tx_bytes"))):
            received, sent = words.amount(counts.get("rx_bytes")), words.amount(counts.get("tx_bytes"))
            said.append((words.cut(name, 40), f"{received} in, {sent} out"))
    return said


def _facts(view: HostView, snapshot: Json, now: float) -> list[tuple[str, str]]:
    general = snapshot.get("general") or {}
    boottime = general.get("boottime")
    labels = ", ".join(f"{name}={value or ''}" for name, value in (general.get("labels") or {}).items())
    said = (
        ("Up for", None if boottime is None else words.age(now - boottime)),
        ("System", general.get("os")),
        ("Kernel", general.get("kernel")),
        ("GPU driver", general.get("driver_version")),
        ("CUDA", general.get("cuda_version")),
        ("Mole", general.get("mole_version")),
        ("Labels", labels or None),
        ("Interval", words.age(view.interval_seconds)),
    )
    return [(name, words.cut(text)) for name, text in said if text is not None]
