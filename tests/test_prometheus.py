"""A real Prometheus scrapes server and mole; every expression of the dashboards and rules is asked of it."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grafana_foundation_sdk.models import dashboard as grafana

from cluster_dash_mole.senders.listen.slurm_text import vpenso as slurm_of_mole
from cluster_dash_mole.senders.listen.text import dcgm as text_of_mole
from cluster_dash_server import slurm
from cluster_dash_server.prometheus import slurm as slurm_metrics
from cluster_dash_server.prometheus.dcgm import text as text_of_server
from cluster_dash_server.prometheus.exposition import section
from dev import dashboards
from tests.processes import BIN, TOP, Process, fake_nvml, free_port, snapshot, start_server, wait_until

ETC = TOP / "etc" / "prometheus"
MACHINES = sorted((TOP / "cluster-dash-mole" / "tests" / "machines").glob("*/expected.json"))
PASSCODE = "a passcode of a test"
Json = dict[str, Any]
SLURM: Json = {
    "cluster": "hpc1",
    "interval_seconds": 60,
    "strings": ["", "mixed", "idle+drain", "gpu"],
    "totals": {
        "cpus": {"total": 128, "allocated": 24, "idle": 40, "other": 64},
        "gpus": {"total": 16, "allocated": 4, "idle": 4, "drained": 8, "down": 0},
        "nodes": {"mixed": 1, "drained": 1},
        "jobs": {"running": 1, "pending": 2},
        "pending_gpus": 16,
    },
    "scheduler": {"server_threads": 3, "main_mean_us": 900, "backfill_mean_us": 45000},
    "partitions": [{"name": "gpu", "running": 1, "pending": 2, "gpus": 16}],
    "nodes": {"name": ["gpu1", "gpu2"], "state": [1, 2], "partitions": [3, 3], "cpus": [64, 64], "gpus": [8, 8]},
    "jobs": {"id": [1]},
}
STOCK = {
    "GPU temperature": 'DCGM_FI_DEV_GPU_TEMP{instance=~"$instance", gpu=~"$gpu"}',
    "GPU average temperature": 'avg(DCGM_FI_DEV_GPU_TEMP{instance=~"$instance", gpu=~"$gpu"})',
    "GPU power usage": 'DCGM_FI_DEV_POWER_USAGE{instance=~"$instance", gpu=~"$gpu"}',
    "GPU power total": 'sum(DCGM_FI_DEV_POWER_USAGE{instance=~"$instance", gpu=~"$gpu"})',
    "GPU SM clocks": 'DCGM_FI_DEV_SM_CLOCK{instance=~"$instance", gpu=~"$gpu"} * 1000000',
    "GPU utilization": 'DCGM_FI_DEV_GPU_UTIL{instance=~"$instance", gpu=~"$gpu"}',
    "GPU framebuffer used": 'DCGM_FI_DEV_FB_USED{instance=~"$instance", gpu=~"$gpu"}',
}
"""What the panels of dcgm-exporter's own dashboard ask, but for its tensor panel: no driver call gives that."""


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str) -> list[Json]:
        """Return the series that an expression of a dashboard gives, with its variables as it has them at first."""
        expression = expression.replace("$__rate_interval", "10s")
        found: list[Json] = self.get("query", query=re.sub(r"\$\{?\w+\}?", ".*", expression))["result"]
        return found


def post(url: str, body: Json) -> None:
    data = json.dumps({**body, "timestamp": time.time(), "auth_code": PASSCODE}).encode()
    urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=60).close()


def unlucky() -> Json:
    """A host on which a GPU is held, one had an Xid, and whose mole asks Slurm."""
    body = snapshot("unlucky", gpus=2, processes=2)
    for entry in body["gpu"].values():
        entry.update(gpu_util=0, used_mem=40_000.0)
    body["events"] = [{"at": 1.7e9, "kind": "xid", "gpu": 1, "code": 79, "text": "fell off the bus"}]
    now = time.time()
    sources = {name: {"ok": True, "at": now} for name in ("nodes", "jobs")}
    body["slurm"] = {**SLURM, "collected_at": now, "sources": sources}
    body["interval_seconds"] = 5
    return body


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Server, simulated fleet with faults, a mole that is scraped, and Prometheus."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = folder / "server.toml"
    settings.write_text(f'[ingest]\npasscode = "{PASSCODE}"\n[metrics]\nusers = true\n[states]\nheld_seconds = 2\n')
    environment = {"CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE": PASSCODE}
    port, mole_port = free_port(), free_port()
    driver = {"LD_LIBRARY_PATH": str(fake_nvml()), "FAKE_NVML_CONFIG": str(TOP / "tests/fake-nvml/h100x8.conf")}
    with ExitStack() as stack:
        server = stack.enter_context(start_server("-c", settings, "--data", folder / "data"))
        simulate: list[str | Path] = [
            BIN / "cluster-dash-mole",
            "simulate",
            "--server",
            server.url,
            "--faults",
            "--quiet",
        ]
        stack.enter_context(
            Process([*simulate, "--hosts", "6", "--gpus", "4", "--interval", "1"], environment=environment)
        )
        mole: list[str | Path] = [BIN / "cluster-dash-mole", "run", "--listen", f"127.0.0.1:{mole_port}"]
        stack.enter_context(Process(mole, environment=driver, folder=folder))
        address = server.url.removeprefix("http://")
        scrapes = (ETC / "prometheus.yml").read_text().replace("server:8080", address)
        scrapes = scrapes.replace("scrape_interval: 15s", "scrape_interval: 1s").replace("evaluation_interval: 15s", "")
        scrapes = scrapes.replace("refresh_interval: 60s", "refresh_interval: 1s")
        scrapes += f'  - job_name: moles\n    static_configs: [{{targets: ["127.0.0.1:{mole_port}"]}}]\n'
        (folder / "prometheus.yml").write_text(scrapes)
        shutil.copy(ETC / "rules.yml", folder)
        stack.enter_context(
            Process(
                [
                    *("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"),
                    *(f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=expand-external-labels"),
                ],
                environment={"PUBLIC_URL": "https://dash.example.org"},
                folder=folder,
            )
        )
        prometheus = Prometheus(port)

        def is_scraped() -> bool:
            post(server.url, unlucky())
            try:
                gone = {target["labels"]["job"] for target in prometheus.get("targets")["activeTargets"]}
                held = prometheus.series("cluster_dash_gpu_held_seconds")
                energy = prometheus.series("rate(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION[10s])")
                mole = prometheus.series('DCGM_FI_DEV_GPU_UTIL{job="moles"}')
                posts = prometheus.series("rate(cluster_dash_snapshots_total[10s])")
            except OSError:
                return False
            time.sleep(0.3)
            return gone == {"cluster-dash", "cluster-dash-gpus", "moles"} and all((held, energy, mole, posts))

        wait_until(is_scraped, 60, "Prometheus has scraped everybody")
        yield SimpleNamespace(server=server, prometheus=prometheus)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:cluster_dash_|DCGM_)\w+", text))


@pytest.mark.needs("prometheus")
def test_every_target_that_posts_is_up_and_its_instance_is_the_host(world: SimpleNamespace) -> None:
    hosts = {series["metric"]["instance"] for series in world.prometheus.series('up{job="cluster-dash-gpus"} == 1')}
    assert "unlucky" in hosts
    assert len(hosts) > 4
    assert world.prometheus.series('up{job="cluster-dash"} == 1')
    assert world.prometheus.series('up{job="moles"} == 1')


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize(
    ("name", "title", "expression"),
    [
        (name, panel["title"], target["expr"])
        for name, dashboard in dashboards.DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ],
)
def test_every_panel_shows_something(world: SimpleNamespace, name: str, title: str, expression: str) -> None:
    post(world.server.url, unlucky())
    assert world.prometheus.series(expression), (name, title)


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize("panel", STOCK)
def test_the_dashboard_of_dcgm_exporter_shows_something(world: SimpleNamespace, panel: str) -> None:
    series = world.prometheus.series(STOCK[panel])
    assert series
    if "(" not in STOCK[panel]:
        assert {each["metric"]["job"] for each in series} == {"cluster-dash-gpus", "moles"}
        assert all(each["metric"]["gpu"].isdigit() and each["metric"]["UUID"] for each in series)


@pytest.mark.needs("prometheus")
def test_every_metric_of_the_rules_is_there_and_the_rules_are_evaluated(world: SimpleNamespace) -> None:
    text = (ETC / "rules.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", text))
    missing = [
        name for name in sorted(names_in(text)) if ":" not in name and not name.startswith("cluster_dash_slurm_x")
    ]
    missing = [name for name in missing if not any(name in each for each in recorded)]
    assert [name for name in missing if not world.prometheus.series(name)] == []
    groups = world.prometheus.get("rules")["groups"]
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []


@pytest.mark.needs("prometheus")
def test_no_scrape_lost_a_sample(world: SimpleNamespace) -> None:
    for target in world.prometheus.get("targets")["activeTargets"]:
        silent = "503" in target["lastError"]  # a host that the faults have made silent
        assert target["health"] == "up" or silent, target["lastError"]


@pytest.mark.needs("promtool")
def test_promtool_finds_no_fault_in_what_we_say_under_our_own_names(world: SimpleNamespace) -> None:
    with urllib.request.urlopen(f"{world.server.url}/metrics", timeout=60) as answer:
        text = answer.read()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@pytest.mark.needs("promtool")
def test_promtool_finds_no_fault_in_the_rules_and_their_tests_pass() -> None:
    for arguments in (
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
        ["check", "config", "prometheus.yml"],
    ):
        checked = subprocess.run(["promtool", *arguments], cwd=ETC, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_has_a_test_of_its_own() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (ETC / "rules.yml").read_text()))
    assert set(re.findall(r"alertname: (\w+)", (ETC / "rules_test.yml").read_text())) == alerts


@pytest.mark.needs("prometheus")
def test_the_metrics_page_names_what_the_server_says_and_nothing_else(world: SimpleNamespace) -> None:
    with urllib.request.urlopen(f"{world.server.url}/metrics", timeout=60) as answer:
        said = set(re.findall(r"^# TYPE (cluster_dash_\w+)", answer.read().decode(), re.MULTILINE))
    page = (TOP / "docs" / "metrics.md").read_text()
    assert {name for name in names_in(page) if name.startswith("cluster_dash_")} == said


# ---------------------------------------------------------------------------------------- without a Prometheus


def test_both_halves_have_the_same_table_of_names() -> None:
    tables = [
        resources.files(package).joinpath("dcgm-names.json").read_bytes()
        for package in ("cluster_dash_mole", "cluster_dash_server.prometheus")
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.parent.name)
def test_a_mole_and_the_server_say_the_same_of_a_host(machine: Path) -> None:
    document = {"hostname": "gpu01", "timestamp": 1.7e9, **json.loads(machine.read_text())}
    xids = {0: 79}
    same: Json = {"hostname_label": "both", "old_after_seconds": 15.0}
    assert text_of_mole(document, xids, **same) == text_of_server(document, xids, open_metrics=False, **same)


def test_a_mole_and_the_server_say_the_same_of_slurm() -> None:
    strings = [
        "",
        "mixed",
        "idle+drain",
        "allocated+maintenance",
        "gpu",
        "gpu,cpu",
        "alice",
        "pending",
        "running",
        "Dependency",
    ]
    block: Json = {
        **SLURM,
        "strings": strings,
        "nodes": {
            "name": ["gpu1", "gpu2", "cpu1"],
            "state": [1, 2, 3],
            "partitions": [4, 5, 5],
            "cpus": [64, 64, None],
            "cpus_allocated": [24, 0, 1],
            "memory_mib": [1000, None, 5],
        },
        "jobs": {
            "id": [1, 2, 3],
            "tasks": [1, 7, None],
            "user": [6, 6, 0],
            "account": [4, 4, 4],
            "partition": [4, 5, 4],
            "state": [8, 7, 7],
            "reason": [0, 9, 0],
            "cpus": [24, 8, None],
        },
    }
    picture = slurm.read("head", block, time.time())
    for users in (False, True):
        sections = slurm_metrics.vpenso(picture, users=users)
        server = "".join(section(family, samples, open_metrics=False) for family, samples in sections)
        assert server == slurm_of_mole(block, users=users)
        assert ("alice" in server) is users


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_a_dashboard_is_as_it_is_written_and_can_be_read(name: str) -> None:
    text = (dashboards.FOLDER / f"{name}.json").read_text()
    assert text == dashboards.text(name), "run: python dev/dashboards.py"
    dashboard = json.loads(text)
    read = grafana.Dashboard.from_json(dashboard)
    assert (read.title, len(read.panels or [])) == (dashboard["title"], len(dashboard["panels"]))
    assert dashboard["id"] is None


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_the_panels_of_a_dashboard_fit_and_use_what_is_declared(name: str) -> None:
    dashboard = json.loads((dashboards.FOLDER / f"{name}.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert {name for name in used if not name.startswith("__")} <= declared
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in panels} <= {
        *("short", "percentunit", "bytes", "watt", "celsius", "hertz", "s", "cps"),
    }
