"""Slurm for Prometheus: our own names, and those of vpenso's exporter, held as data."""

from typing import Any

import pytest

from cluster_dash_server import slurm
from cluster_dash_server.app import create_app
from cluster_dash_server.prometheus.exposition import section
from cluster_dash_server.prometheus.slurm import own, vpenso
from cluster_dash_server.settings import MetricsSettings, Settings

NOW = 1_700_000_000.0
VPENSO = {
    "": """cpus_alloc cpus_idle cpus_other cpus_total gpus_alloc gpus_idle gpus_total gpus_utilization nodes_alloc
        nodes_comp nodes_down nodes_drain nodes_err nodes_fail nodes_idle nodes_maint nodes_mix nodes_resv queue_pending
        queue_pending_dependency queue_running queue_suspended queue_cancelled queue_completing queue_completed
        queue_configuring queue_failed queue_timeout queue_preempted queue_node_fail scheduler_threads
        scheduler_queue_size scheduler_dbd_queue_size scheduler_mean_cycle scheduler_backfill_mean_cycle""",
    "node,status": "node_cpu_alloc node_cpu_idle node_cpu_other node_cpu_total node_mem_alloc node_mem_total",
    "partition": """partition_cpus_allocated partition_cpus_idle partition_cpus_other partition_cpus_total
        partition_jobs_pending""",
    "account": "account_jobs_pending account_jobs_running account_cpus_running account_jobs_suspended",
    "user": "user_jobs_pending user_jobs_running user_cpus_running user_jobs_suspended",
}
"""The names of vpenso's exporter 0.20, by their labels."""

NODES = {
    "name": ["gpu1", "gpu2", "cpu1"],
    "state": [1, 2, 3],
    "partitions": [4, 4, 5],
    "cpus": [64, 64, 96],
    "cpus_allocated": [24, 0, 96],
    "memory_mib": [515000, 515000, None],
    "memory_allocated_mib": [65536, 0, None],
}
JOBS = {
    "id": [1, 2, 3, 4],
    "tasks": [1, 20, 1, 1],
    "user": [6, 6, 7, 6],
    "account": [8, 8, 8, 8],
    "partition": [4, 4, 5, 9],
    "state": [10, 11, 12, 11],
    "reason": [0, 13, 0, 14],
    "cpus": [24, 8, 96, 1],
}
BLOCK: dict[str, Any] = {
    "cluster": "hpc1",
    "collected_at": NOW,
    "interval_seconds": 60,
    "sources": {name: {"ok": True, "at": NOW} for name in ("nodes", "jobs")},
    "strings": [
        *("", "mixed", "idle+drain", "allocated", "gpu", "cpu", "alice", "bob", "physics", "gpu,cpu"),
        *("running", "pending", "suspended", "Priority", "Dependency"),
    ],
    "totals": {
        "cpus": {"total": 224, "allocated": 120, "idle": 40, "other": 64},
        "gpus": {"total": 16, "allocated": 12, "idle": 4, "drained": 0, "down": 0},
        "nodes": {"mixed": 1, "drained": 1, "allocated": 1},
        "jobs": {"running": 1, "pending": 21, "suspended": 1},
        "pending_gpus": 40,
    },
    "scheduler": {
        "server_threads": 3,
        "agent_queue": 0,
        "dbd_agent_queue": 1,
        "main_mean_us": 900,
        "backfill_mean_us": 45000,
    },
    "partitions": [{"name": "gpu", "running": 1, "pending": 21, "gpus": 16}, {"name": "cpu", "running": 0}],
    "nodes": NODES,
    "jobs": JOBS,
}


def told(sections: Any) -> dict[str, float]:
    """Return the lines of a text by name and labels."""
    text = "".join(section(family, samples, open_metrics=False) for family, samples in sections)
    lines = [line.rpartition(" ") for line in text.splitlines() if line[0] != "#"]
    assert len({where for where, _, _ in lines}) == len(lines)
    return {where: float(value) for where, _, value in lines}


@pytest.fixture
def picture() -> slurm.Picture:
    slurm.check(BLOCK)
    return slurm.read("head", BLOCK, NOW)


def test_the_names_and_labels_are_those_of_the_exporter(picture: slurm.Picture) -> None:
    found: dict[str, set[str]] = {}
    for where in told(vpenso(picture, users=True)):
        name, _, labels = where.partition("{")
        found.setdefault(",".join(part.partition("=")[0] for part in labels[:-1].split('",') if part), set()).add(name)
    assert found == {labels: {f"slurm_{name}" for name in names.split()} for labels, names in VPENSO.items()}


def test_the_figures_are_those_of_slurm(picture: slurm.Picture) -> None:
    found = told(vpenso(picture, users=True))
    assert {
        name: found[f"slurm_{name}"] for name in ("cpus_other", "gpus_utilization", "nodes_drain", "nodes_mix")
    } == {
        "cpus_other": 64,
        "gpus_utilization": 0.75,
        "nodes_drain": 1,
        "nodes_mix": 1,
    }
    assert (found["slurm_queue_pending"], found["slurm_queue_failed"]) == (21, 0)
    assert found["slurm_queue_pending_dependency"] == 1
    assert found['slurm_node_cpu_other{node="gpu2",status="drained"}'] == 64
    assert found['slurm_node_cpu_idle{node="gpu1",status="mixed"}'] == 40
    assert 'slurm_node_mem_total{node="cpu1",status="allocated"}' not in found
    assert found['slurm_partition_cpus_other{partition="gpu"}'] == 64
    assert found['slurm_partition_jobs_pending{partition="cpu"}'] == 1
    assert found['slurm_user_jobs_pending{user="alice"}'] == 21
    assert found['slurm_user_jobs_suspended{user="bob"}'] == 1
    assert found['slurm_account_cpus_running{account="physics"}'] == 24


def test_users_are_named_only_where_the_site_says_so(picture: slurm.Picture) -> None:
    assert not [where for where in told(vpenso(picture, users=False)) if "alice" in where]


def test_our_own_names_tell_clusters_apart_and_name_nodes_that_take_no_jobs(picture: slurm.Picture) -> None:
    found = told(own([picture], NOW))
    assert found['cluster_dash_slurm_node_unavailable{cluster="hpc1",node="gpu2",state="drained"}'] == 1
    assert found['cluster_dash_slurm_gpus{cluster="hpc1",state="allocated"}'] == 12
    assert 'cluster_dash_slurm_gpus{cluster="hpc1",state="total"}' not in found
    assert found['cluster_dash_slurm_jobs{cluster="hpc1",state="pending"}'] == 21
    assert found['cluster_dash_slurm_partition_running{cluster="hpc1",partition="gpu"}'] == 1
    assert 'cluster_dash_slurm_partition_pending{cluster="hpc1",partition="cpu"}' not in found
    assert found['cluster_dash_slurm_scheduler_cycle_seconds{cluster="hpc1",cycle="backfill"}'] == 0.045


def test_what_slurm_said_long_ago_is_absent_but_for_its_age(picture: slurm.Picture) -> None:
    name = 'cluster_dash_slurm_last_read_timestamp_seconds{cluster="hpc1"}'
    assert told(own([picture], NOW + 200)) == {name: NOW}


def test_what_was_never_read_is_absent() -> None:
    assert told(vpenso(slurm.read("head", {"cluster": "hpc1"}, NOW), users=True)) == {}


def test_the_family_is_served_where_the_site_chose_it_and_while_it_is_fresh(clock: Any, make_snapshot: Any) -> None:
    post = {**make_snapshot("head", []), "auth_code": "lab_cluster_2025", "slurm": BLOCK}
    chosen = create_app(Settings(metrics=MetricsSettings(slurm_family="vpenso")), clock).test_client()
    assert chosen.get("/metrics?family=vpenso").status_code == 404
    assert chosen.post("/", json=post).status_code == 200
    assert "slurm_gpus_total 16\n" in chosen.get("/metrics?family=vpenso").text
    assert "\nslurm_gpus_total" not in chosen.get("/metrics").text  # families are never mixed
    assert chosen.get("/metrics?family=vpenso&cluster=other").status_code == 404
    clock.now += 200
    assert chosen.get("/metrics?family=vpenso").status_code == 503
    answer = create_app(Settings(), clock).test_client().get("/metrics?family=vpenso")
    assert answer.get_json()["msg"] == "family: got vpenso, expected dcgm, or none for our own names"
