"""One host as text for Prometheus, under the names of dcgm-exporter's default set. Pure.

`PROF_*` is never filled: those are counters of the hardware, and what the driver calls a utilisation is another thing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from cluster_dash_server.prometheus.exposition import OPEN_METRICS_END, Family, labels, section
from cluster_dash_server.snapshot import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A line of `dcgm-names.json`, which says what its fields mean."""

    family: Family
    field: str
    less: str | None
    factor: float
    mig: str | None


@lru_cache(maxsize=1)
def metrics() -> tuple[Metric, ...]:
    """Read the table of names."""
    table = json.loads(resources.files(__package__).joinpath("dcgm-names.json").read_bytes())
    return tuple(
        Metric(
            family=Family(name=each["name"], kind=each["kind"], help=each["help"]),
            field=each["field"],
            less=each.get("less"),
            factor=each.get("factor", 1),
            mig=each.get("mig"),
        )
        for each in table["metrics"]
    )


def text(
    snapshot: Json,
    xids: Mapping[int, int],
    *,
    hostname_label: str,
    old_after_seconds: float,
    open_metrics: bool,
) -> str:
    """Write one host.

    Args:
        snapshot: as it came.
        xids: the number of the last Xid of each GPU that had one, by its index.
        hostname_label: how the label is called that names the host: `hostname`, `Hostname` or `both`.
        old_after_seconds: a GPU that was read so long before the snapshot is left out.
        open_metrics: in which of the two formats.
    """
    divided: list[tuple[str, Json]] = []
    whole: list[tuple[str, Json]] = []
    instances: list[tuple[str, Json]] = []
    for key, entry in snapshot["gpu"].items():
        read_at = entry.get("read_at")
        if key == "gpu_error" or (read_at is not None and snapshot["timestamp"] - read_at > old_after_seconds):
            continue
        entry = {**entry, "last_xid": xids.get(entry["index"])}
        parts = (entry.get("mig") or {}).get("instances") or []
        (divided if parts else whole).append((_labels(snapshot, entry, None, hostname_label), entry))
        instances += [(_labels(snapshot, entry, part, hostname_label), part) for part in parts]
    of_kind = {None: [*whole, *divided], "none": whole, "instance": [*whole, *instances]}
    written = [
        section(metric.family, dict(_samples(metric, of_kind[metric.mig])).items(), open_metrics=open_metrics)
        for metric in metrics()
    ]
    return "".join([*written, OPEN_METRICS_END if open_metrics else ""])


def _samples(metric: Metric, entries: list[tuple[str, Json]]) -> Iterator[tuple[str, float]]:
    for where, entry in entries:
        value = _figure(entry, metric.field)
        less = 0 if metric.less is None else _figure(entry, metric.less)
        if value is not None and less is not None:
            yield where, (value - less) * metric.factor


def _figure(entry: Json, field: str) -> float | None:
    """Return a figure of an entry; `pcie.replays` is `replays` of its part `pcie`."""
    part, _, name = field.rpartition(".")
    value: float | None = ((entry.get(part) or {}) if part else entry).get(name)
    return value


def _labels(snapshot: Json, entry: Json, instance: Json | None, hostname_label: str) -> str:
    minor = entry.get("minor_number")
    general = snapshot.get("general") or {}
    host = snapshot["hostname"]
    return labels(
        {
            "gpu": str(entry["index"]),
            "UUID": entry.get("uuid"),
            "pci_bus_id": entry.get("pci_bus_id"),
            "device": f"nvidia{entry['index'] if minor is None else minor}",
            "modelName": entry.get("name"),
            "GPU_I_PROFILE": None if instance is None else instance.get("profile"),
            "GPU_I_ID": None if instance is None or instance.get("gi") is None else str(instance["gi"]),
            "Hostname": None if hostname_label == "hostname" else host,
            "hostname": None if hostname_label == "Hostname" else host,
            "DCGM_FI_DRIVER_VERSION": general.get("driver_version"),
        }
    )
