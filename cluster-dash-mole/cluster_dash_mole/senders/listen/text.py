"""The text that Prometheus reads: this host's GPUs under the names of dcgm-exporter. Pure.

`PROF_*` is never filled: those are counters of the hardware, and what the driver calls a utilisation is another thing.
Unknown is an absent line, never 0 and never NaN.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

Entry = Mapping[str, Any]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@lru_cache(maxsize=1)
def _metrics() -> list[dict[str, Any]]:
    """Read the table of names, which says itself what its members mean."""
    table = json.loads(resources.files("cluster_dash_mole").joinpath("dcgm-names.json").read_bytes())
    metrics: list[dict[str, Any]] = table["metrics"]
    return metrics


def dcgm(document: Entry, xids: Mapping[int, int], *, hostname_label: str, old_after_seconds: float) -> str:
    """Write the GPUs of a snapshot.

    Args:
        document: the JSON object of a POST.
        xids: the number of the last Xid of each GPU that had one, by its index.
        hostname_label: how the label is called that names the host: `hostname`, `Hostname` or `both`.
        old_after_seconds: a GPU that was read so long before the snapshot is left out.
    """
    divided: list[tuple[str, Entry]] = []
    whole: list[tuple[str, Entry]] = []
    instances: list[tuple[str, Entry]] = []
    for key, known in document["gpu"].items():
        read_at = known.get("read_at")
        if key == "gpu_error" or (read_at is not None and document["timestamp"] - read_at > old_after_seconds):
            continue
        entry = {**known, "last_xid": xids.get(known["index"])}
        parts = (entry.get("mig") or {}).get("instances") or []
        (divided if parts else whole).append((_labels(document, entry, {}, hostname_label), entry))
        instances += [(_labels(document, entry, part, hostname_label), part) for part in parts]
    of_kind = {None: [*whole, *divided], "none": whole, "instance": [*whole, *instances]}
    return "".join(family(metric, dict(_samples(metric, of_kind[metric.get("mig")]))) for metric in _metrics())


def family(metric: Mapping[str, Any], samples: Mapping[str, float]) -> str:
    """Write a metric with its samples by their labels, nothing where there is none."""
    if not samples:
        return ""
    name = metric["name"]
    lines = "".join([f"{name}{where} {value}\n" for where, value in samples.items()])
    return f"# HELP {name} {metric['help']}\n# TYPE {name} {metric['kind']}\n{lines}"


def labels(pairs: Mapping[str, str | None]) -> str:
    """Write labels, `{a="b"}`; one that is not known, or empty, is left out, which means the same."""
    known = [f'{name}="{_escape(value)}"' for name, value in pairs.items() if value]
    return "{" + ",".join(known) + "}" if known else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _samples(metric: Mapping[str, Any], entries: list[tuple[str, Entry]]) -> Iterator[tuple[str, float]]:
    for where, entry in entries:
        value = _figure(entry, metric["field"])
        less = _figure(entry, metric["less"]) if "less" in metric else 0
        if value is not None and less is not None:
            yield where, (value - less) * metric.get("factor", 1)


def _figure(entry: Entry, field: str) -> float | None:
    """Return a figure of an entry; `pcie.replays` is `replays` of its part `pcie`."""
    part, _, name = field.rpartition(".")
    value: float | None = ((entry.get(part) or {}) if part else entry).get(name)
    return value


def _labels(document: Entry, entry: Entry, instance: Entry, hostname_label: str) -> str:
    minor, gi = entry.get("minor_number"), instance.get("gi")
    host = document["hostname"]
    return labels(
        {
            "gpu": str(entry["index"]),
            "UUID": entry.get("uuid"),
            "pci_bus_id": entry.get("pci_bus_id"),
            "device": f"nvidia{entry['index'] if minor is None else minor}",
            "modelName": entry.get("name"),
            "GPU_I_PROFILE": instance.get("profile"),
            "GPU_I_ID": None if gi is None else str(gi),
            "Hostname": None if hostname_label == "hostname" else host,
            "hostname": None if hostname_label == "Hostname" else host,
            "DCGM_FI_DRIVER_VERSION": (document.get("general") or {}).get("driver_version"),
        }
    )
