"""Write the dashboards of Grafana, etc/grafana/dashboards/*.json, from what they show: `python dev/dashboards.py`.

A test holds the files to this, and asks a real Prometheus for each expression.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "etc" / "grafana" / "dashboards"
Json = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
STATES = {
    "free": "green",
    "busy": "blue",
    "held": "orange",
    "drained": "purple",
    "unknown": "gray",
    "error": "red",
    "stale": "#8a8a8a",
    "down": "#5a5a5a",
}
"""Colours of states; the words stand beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        queries: expressions, and how their series are called.
        unit: Grafana's word for it.
        wide: columns of 24.
        links_to: the label whose value is a host, to which a click leads.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    wide: int = 12
    high: int = 8
    stacked: bool = False
    most: float | None = None
    links_to: str | None = None
    text: str = ""


def _panel(panel: Panel, number: int, x: int, y: int) -> Json:
    instant = panel.kind in ("stat", "table", "bargauge")
    defaults: Json = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 60 if panel.stacked else 8,
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    if panel.links_to is not None:
        url = f"${{public_url}}/host/${{__field.labels.{panel.links_to}}}"
        defaults["links"] = [{"title": "the host", "url": url, "targetBlank": True}]
    overrides = [
        {
            "matcher": {"id": "byName", "options": state},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
        }
        for state, color in STATES.items()
    ]
    by_state = any(legend == "{{state}}" for _, legend in panel.queries)
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend,
            **({"instant": True, "range": False} if instant else {}),
            **({"format": "table"} if panel.kind == "table" else {}),
        }
        for place, (expression, legend) in enumerate(panel.queries)
    ]
    made: Json = {
        "id": number,
        "title": panel.title,
        "description": panel.text,
        "type": panel.kind,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.wide, "h": panel.high},
        "fieldConfig": {"defaults": defaults, "overrides": overrides if by_state else []},
        "targets": targets,
    }
    if panel.kind == "timeseries":
        made["options"] = {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "list"}}
    if instant and panel.kind != "table":
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    if panel.kind == "table":
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
    return made


def _placed(panels: Sequence[Panel]) -> Iterator[Json]:
    x = y = high = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.wide > 24:
            x, y, high = 0, y + high, 0
        yield _panel(panel, number, x, y)
        x, high = x + panel.wide, max(high, panel.high)


def _variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "A"},
        "refresh": 2,
        "sort": 7,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # all names in one address are too many
        "current": {"text": "All", "value": "$__all"},
    }


def _dashboard(uid: str, title: str, panels: Sequence[Panel], variables: Mapping[str, tuple[str, str]]) -> Json:
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "tags": ["cluster-dash"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "tags": ["cluster-dash"], "title": "cluster-dash", "asDropdown": True}],
        "annotations": {"list": []},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "public_url",
                    "type": "constant",
                    "label": "dashboard",
                    "query": "http://localhost:8080",
                    "hide": 2,
                },
                *(_variable(name, label, query) for name, (label, query) in variables.items()),
            ]
        },
        "panels": list(_placed(panels)),
    }


HOST = {"host": ("host", "label_values(cluster_dash_host_last_snapshot_timestamp_seconds, host)")}
GPU = "{{host}} GPU {{gpu}}"

OVERVIEW = (
    Panel(title="GPUs free", queries=[('sum(cluster_dash_gpus{state="free"})', "free")], kind="stat", wide=4, high=4),
    Panel(title="GPUs", queries=[("sum(cluster_dash_gpus)", "GPUs")], kind="stat", wide=4, high=4),
    Panel(
        title="Held without work",
        queries=[('sum(cluster_dash_gpus{state="held"})', "held")],
        kind="stat",
        wide=4,
        high=4,
    ),
    Panel(title="In error", queries=[('sum(cluster_dash_gpus{state="error"})', "error")], kind="stat", wide=4, high=4),
    Panel(
        title="Hosts silent",
        queries=[('sum(cluster_dash_hosts{state=~"stale|down"})', "silent")],
        kind="stat",
        wide=4,
        high=4,
    ),
    Panel(
        title="Power",
        queries=[("sum(cluster_dash_gpu_power_watts)", "power")],
        kind="stat",
        unit="watt",
        wide=4,
        high=4,
    ),
    Panel(title="GPUs by state", queries=[("sum by (state) (cluster_dash_gpus)", "{{state}}")], stacked=True, wide=24),
    Panel(
        title="Busy, by model",
        queries=[("avg by (model) (cluster_dash_gpu_busy_ratio)", "{{model}}")],
        unit="percentunit",
        most=1,
    ),
    Panel(
        title="Memory in use, by model",
        queries=[
            (
                "sum by (model) (cluster_dash_gpu_memory_used_bytes)"
                " / sum by (model) (cluster_dash_gpu_memory_total_bytes)",
                "{{model}}",
            )
        ],
        unit="percentunit",
        most=1,
    ),
    Panel(
        title="Free, by model",
        queries=[('sum by (model) (cluster_dash_gpus{state="free"})', "{{model}}")],
        kind="bargauge",
    ),
    Panel(
        title="Silent for longest",
        queries=[
            ("topk(10, time() - cluster_dash_host_last_snapshot_timestamp_seconds)", "{{host}}"),
        ],
        unit="s",
        kind="bargauge",
    ),
    Panel(
        title="Xids",
        queries=[("sum by (host, xid) (cluster_dash_gpu_xid_events_total)", "{{host}} Xid {{xid}}")],
        links_to="host",
    ),
    Panel(
        title="Snapshots taken",
        queries=[
            ("sum by (result, reason) (rate(cluster_dash_snapshots_total[$__rate_interval]))", "{{result}} {{reason}}")
        ],
        unit="cps",
    ),
)

OF_HOST = (
    Panel(
        title="GPUs busy",
        queries=[('cluster_dash_gpu_busy_ratio{host=~"$host"}', GPU)],
        unit="percentunit",
        most=1,
        links_to="host",
        wide=24,
    ),
    Panel(
        title="GPU memory",
        queries=[('cluster_dash_gpu_memory_used_bytes{host=~"$host"}', GPU)],
        unit="bytes",
        links_to="host",
    ),
    Panel(title="Power", queries=[('cluster_dash_gpu_power_watts{host=~"$host"}', GPU)], unit="watt", links_to="host"),
    Panel(
        title="Temperature",
        queries=[('cluster_dash_gpu_temperature_celsius{host=~"$host"}', GPU)],
        unit="celsius",
        links_to="host",
    ),
    Panel(
        title="SM clock",
        queries=[('DCGM_FI_DEV_SM_CLOCK{hostname=~"$host"} * 1e6', "{{hostname}} GPU {{gpu}}")],
        unit="hertz",
        links_to="hostname",
    ),
    Panel(
        title="Power, from energy",
        queries=[
            (
                'rate(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{hostname=~"$host"}[$__rate_interval]) / 1000',
                "{{hostname}} GPU {{gpu}}",
            )
        ],
        unit="watt",
        links_to="hostname",
    ),
    Panel(
        title="CPU busy",
        queries=[('cluster_dash_host_cpu_busy_ratio{host=~"$host"}', "{{host}}")],
        unit="percentunit",
        most=1,
        links_to="host",
    ),
    Panel(
        title="Main memory",
        queries=[
            (
                'cluster_dash_host_memory_used_bytes{host=~"$host"}'
                ' / cluster_dash_host_memory_total_bytes{host=~"$host"}',
                "{{host}}",
            )
        ],
        unit="percentunit",
        most=1,
        links_to="host",
    ),
    Panel(
        title="Disks",
        queries=[('cluster_dash_host_disk_used_ratio{host=~"$host"}', "{{host}} {{mount}}")],
        unit="percentunit",
        most=1,
        links_to="host",
    ),
    Panel(
        title="GPUs expected and not seen",
        queries=[
            (
                'cluster_dash_host_gpus_expected{host=~"$host"} - cluster_dash_host_gpus_seen{host=~"$host"}',
                "{{host}}",
            )
        ],
        links_to="host",
    ),
)

OF_USERS = (
    Panel(
        title="GPUs, by user",
        queries=[("sum by (user) (cluster_dash_user_gpus)", "{{user}}")],
        stacked=True,
        wide=24,
        text="Needs [metrics] users = true; on a shared GPU each of its users counts.",
    ),
    Panel(
        title="Held without work, by user",
        queries=[('sum by (user) (cluster_dash_user_gpus{state="held"})', "{{user}}")],
        stacked=True,
    ),
    Panel(
        title="Held for longest",
        queries=[("topk(20, cluster_dash_gpu_held_seconds)", GPU)],
        unit="s",
        kind="bargauge",
        links_to="host",
    ),
    Panel(
        title="GPUs in use that do nothing",
        queries=[('sum(cluster_dash_gpus{state="held"}) / sum(cluster_dash_gpus{state=~"held|busy"})', "held")],
        unit="percentunit",
        most=1,
    ),
    Panel(
        title="GPU-hours of today, by user",
        queries=[("sum by (user) (avg_over_time(cluster_dash_user_gpus[24h])) * 24", "{{user}}")],
        kind="bargauge",
        text="Mean over the last 24 hours in which Prometheus looked, times 24.",
    ),
)

OF_SLURM = (
    Panel(
        title="GPUs",
        queries=[('cluster_dash_slurm_gpus{cluster=~"$cluster"}', "{{cluster}} {{state}}")],
        stacked=True,
    ),
    Panel(
        title="GPUs that pending jobs wait for",
        queries=[('cluster_dash_slurm_pending_gpus{cluster=~"$cluster"}', "{{cluster}}")],
    ),
    Panel(
        title="Jobs", queries=[('cluster_dash_slurm_jobs{cluster=~"$cluster"}', "{{cluster}} {{state}}")], stacked=True
    ),
    Panel(
        title="Nodes",
        queries=[('cluster_dash_slurm_nodes{cluster=~"$cluster"}', "{{cluster}} {{state}}")],
        stacked=True,
    ),
    Panel(
        title="CPUs", queries=[('cluster_dash_slurm_cpus{cluster=~"$cluster"}', "{{cluster}} {{state}}")], stacked=True
    ),
    Panel(
        title="Jobs that wait, by partition",
        queries=[('cluster_dash_slurm_partition_pending{cluster=~"$cluster"}', "{{partition}}")],
        stacked=True,
    ),
    Panel(
        title="Jobs that run, by partition",
        queries=[('cluster_dash_slurm_partition_running{cluster=~"$cluster"}', "{{partition}}")],
        stacked=True,
    ),
    Panel(
        title="Nodes that take no jobs",
        queries=[('cluster_dash_slurm_node_unavailable{cluster=~"$cluster"}', "{{node}} {{state}}")],
        kind="table",
    ),
    Panel(
        title="Cycle of the scheduler",
        queries=[('cluster_dash_slurm_scheduler_cycle_seconds{cluster=~"$cluster"}', "{{cycle}}")],
        unit="s",
    ),
    Panel(
        title="Age of what Slurm said",
        queries=[('time() - cluster_dash_slurm_last_read_timestamp_seconds{cluster=~"$cluster"}', "{{cluster}}")],
        unit="s",
    ),
)

DASHBOARDS = {
    "overview": _dashboard("cluster-dash-overview", "GPU cluster", OVERVIEW, {}),
    "host": _dashboard("cluster-dash-host", "GPU hosts", OF_HOST, HOST),
    "users": _dashboard("cluster-dash-users", "GPUs by user, and waste", OF_USERS, {}),
    "slurm": _dashboard(
        "cluster-dash-slurm",
        "Slurm",
        OF_SLURM,
        {"cluster": ("cluster", "label_values(cluster_dash_slurm_last_read_timestamp_seconds, cluster)")},
    ),
}


def text(name: str) -> str:
    """Return the file of a dashboard."""
    return json.dumps(DASHBOARDS[name], indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text(name))
