"""A real Slurm, a real mole that asks it, a real server: the pages say what Slurm's own commands print."""

import html
import json
import re
import signal
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.processes import (
    PATIENCE,
    Listening,
    Process,
    body_of,
    free_port,
    snapshot,
    start_mole,
    start_server,
    wait_until,
)
from tests.slurm_lab import Lab

pytestmark = [
    pytest.mark.needs("slurmctld"),
    pytest.mark.needs("root"),
    pytest.mark.slow,
    pytest.mark.clocked,
    pytest.mark.in_order,
]

INTERVAL_SECONDS = 5
SLACK_SECONDS = 10
"""Two of the collector's intervals; and what posting, and a machine that does more than this, may take."""
STILL_SECONDS = 25
"""How long slurmctld stands still at least; a minute in the long form."""

STANDS_STILL = re.compile(r"Slurm's data are \d+ (s|min) old: \w+: ")

Json = dict[str, Any]


class Cluster:
    """The lab, a server, and a mole that asks."""

    def __init__(self, lab: Lab, server: Listening) -> None:
        self.lab = lab
        self.server = server

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.server.url + path, timeout=60) as answer:
            return str(answer.read().decode())

    def api(self, path: str) -> Any:
        return json.loads(self.get(f"/api/v1/slurm{path}"))

    @property
    def totals(self) -> Any:
        found = self.api("")["slurm"]
        return found[0]["totals"] if found else {}

    def node(self, name: str) -> Json:
        return next(node for node in self.api("/nodes")["nodes"] if node["name"] == name)

    def follows(self, true: Callable[[], Any]) -> Any:
        """Wait for two of the collector's intervals, which grow where Slurm takes long to answer."""
        intervals = [each["interval_seconds"] for each in self.api("")["slurm"]]
        return wait_until(true, seconds=2 * max([INTERVAL_SECONDS, *intervals]) + SLACK_SECONDS)

    def post(self, host: str, **changes: Any) -> None:
        made = snapshot(host, gpus=8, processes=0)
        for entry in made["gpu"].values():
            entry |= {"used_mem": 4, "gpu_util": 0, "unattributed_mem": 0, **changes}
        request = urllib.request.Request(self.server.url, body_of(made), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200


def mole(server: Listening, lab: Lab, folder: Path, **environment: str) -> Process:
    folder.mkdir(exist_ok=True)
    slurm = {"CLUSTER_DASH_SLURM__USE": "true", "CLUSTER_DASH_SLURM__INTERVAL_IN_SECS": str(INTERVAL_SECONDS)}
    return start_mole(server.url, state=folder, environment={**lab.environment, **slurm, **environment})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    with Lab() as lab, start_server() as server:
        lab.fill()
        with mole(server, lab, folder / "mole"):
            found = Cluster(lab, server)
            wait_until(lambda: found.totals.get("cpus"), seconds=40)
            yield found


# ------------------------------------------------------------------------------------- the same figures as Slurm


def said_by_slurm(lab: Lab) -> Json:
    """What Slurm's own commands print now, in the words of the API."""
    allocated, idle, other, total = map(int, lab.run("sinfo", "-h", "-o", "%C").strip().split("/"))
    nodes = [line.split("|") for line in lab.run("sinfo", "-h", "-N", "-o", "%N|%T|%E").splitlines()]
    told = lab.run("scontrol", "-o", "-d", "show", "node")
    jobs = lab.run("squeue", "-h", "-r", "-t", "all", "-o", "%T").lower().split()
    waiting = [line.split("|") for line in lab.run("squeue", "-h", "-t", "PD", "-o", "%A|%r").splitlines()]
    indexes = {}
    for number in lab.run("squeue", "-h", "-t", "R", "-o", "%A").split():
        record = lab.run("scontrol", "-o", "-d", "show", "job", number)
        groups = re.findall(r" Nodes=(\S+) CPU_IDs=\S+ Mem=\d+ GRES=gpu\S*\(IDX:([\d,-]+)\)", record)
        indexes[int(number)] = ";".join(f"{host}:{index}" for host, index in groups)
    window = ["-S", "now-1440minutes", "-E", "now", "-s", "CD,F,TO,CA,NF,OOM,DL,PR,BF"]
    finished = lab.run("sacct", "-a", "-X", "-n", "-P", *window, "-o", "State").lower().splitlines()
    return {
        "cpus": {"total": total, "allocated": allocated, "idle": idle, "other": other},
        "gpus": sum(map(int, re.findall(r" Gres=gpu:h100:(\d+)", told))),
        "gpus_allocated": sum(map(int, re.findall(r" GresUsed=gpu:h100:(\d+)", told))),
        "states": {name: re.sub(r"[*~#!%$@^-]$", "", state) for name, state, _ in nodes},
        "reasons": {name: reason for name, _, reason in nodes if reason != "none"},
        "jobs": dict(Counter(jobs)),
        "waiting": {int(number): reason for number, reason in waiting},
        "indexes": indexes,
        "finished": dict(Counter(line.split()[0] for line in finished)),
    }


def said_by_us(cluster: Cluster) -> Json:
    totals, nodes, jobs = cluster.totals, cluster.api("/nodes")["nodes"], cluster.api("/jobs")["jobs"]
    return {
        "cpus": totals["cpus"],
        "gpus": totals["gpus"]["total"],
        "gpus_allocated": totals["gpus"]["allocated"],
        "states": {node["name"]: node["word"] for node in nodes},
        "reasons": {node["name"]: node["reason"] for node in nodes if node["reason"]},
        "jobs": totals["jobs"],
        "waiting": {job["id"]: job["reason"] for job in jobs if job["state"] == "pending"},
        "indexes": {job["id"]: job["gpu_index"] for job in jobs if job["state"] == "running"},
        "finished": totals["finished_day"],
    }


def test_a_mole_that_is_scraped_tells_what_slurms_commands_print(cluster: Cluster, tmp_path: Path) -> None:
    port = free_port()
    listen = {"LISTEN__USE": "true", "LISTEN__ADDRESS": "127.0.0.1:0", "LISTEN__SLURM_ADDRESS": f"127.0.0.1:{port}"}
    settings = {f"CLUSTER_DASH_{name}": value for name, value in listen.items()}

    def scraped() -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if line[0] != "#"]
        except OSError:
            return {}
        return {where: float(value) for where, _, value in lines}

    def same() -> bool:
        told, slurm = scraped(), said_by_slurm(cluster.lab)
        words = Counter(slurm["states"].values())
        return bool(told) and (
            [told[f"slurm_cpus_{name}"] for name in ("alloc", "idle", "other", "total")]
            == [slurm["cpus"][name] for name in ("allocated", "idle", "other", "total")]
            and [told["slurm_gpus_alloc"], told["slurm_gpus_total"]] == [slurm["gpus_allocated"], slurm["gpus"]]
            and [told["slurm_nodes_down"], told["slurm_nodes_drain"]] == [words["down"], words["drained"]]
            and [told["slurm_queue_running"], told["slurm_queue_pending"]]
            == [slurm["jobs"]["running"], slurm["jobs"]["pending"]]
        )

    # a server of its own: there it would be a second mole of one host
    with start_server() as server, mole(server, cluster.lab, tmp_path, **settings):
        cluster.follows(same)
        assert scraped()["slurm_gpus_total"] > 0


def test_every_figure_is_what_slurms_commands_print_at_the_same_moment(cluster: Cluster) -> None:
    def same() -> bool:
        before = said_by_slurm(cluster.lab)
        ours = said_by_us(cluster)
        return ours == before == said_by_slurm(cluster.lab)

    try:
        cluster.follows(same)
    except TimeoutError:
        assert said_by_us(cluster) == said_by_slurm(cluster.lab)
    found = said_by_us(cluster)
    assert found["states"] | {"gpu1": "", "gpu2": "", "cpu1": ""} == {
        **{"gpu1": "", "gpu2": "", "cpu1": ""},
        **{"cpu2": "drained", "cpu3": "down"},
    }
    assert found["reasons"]["cpu2"] == "bad DIMM, ticket 4711"
    assert set(found["waiting"].values()) == {
        *("Resources", "Priority", "Dependency", "BeginTime", "JobHeldUser", "PartitionTimeLimit", "JobArrayTaskLimit"),
    }
    assert sorted(index for index in found["indexes"].values() if index) == [
        *("gpu1:0-3", "gpu1:4-5;gpu2:4-5", "gpu2:0-3"),
    ]


def plain(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_pages_show_these_figures_in_words(cluster: Cluster) -> None:
    totals = cluster.totals
    page = plain(cluster.get("/slurm"))
    assert f"{totals['gpus']['allocated']} of 16 GPUs allocated" in page
    assert f"{totals['cpus']['allocated']} of 224 CPUs allocated" in page
    assert f"idle {totals['cpus']['idle']} other {totals['cpus']['other']} total 224" in page
    for name in ("running", "pending", "failed"):
        assert f"{name} {totals['jobs'][name]}" in page
    assert "PartitionTimeLimit 1 0 asks for more time than its partition allows: it will never start" in page
    assert "cpu2 IDLE +DRAIN bad DIMM, ticket 4711" in page
    assert "cpu3 DOWN +NOT_RESPONDING Not responding" in page
    jobs = plain(cluster.get("/slurm/jobs?user=labcarol"))
    assert "ddp-2node labcarol physics gpu running 4 h100 gpu1:4-5;gpu2:4-5" in jobs
    assert "train-llm" not in jobs
    assert "MIXED" in plain(cluster.get("/slurm/nodes"))


def test_a_job_shows_its_gpus_and_a_gpu_its_job(cluster: Cluster) -> None:
    cluster.post("gpu1")
    cluster.post("gpu2.lab")
    train = next(job for job in cluster.api("/jobs")["jobs"] if job["name"] == "train-llm")

    def states() -> list[str]:
        body = json.loads(cluster.get("/api/v1/cluster"))
        place = body["hosts"]["host"].index("gpu1")
        pairs = zip(body["gpus"]["host"], body["gpus"]["state"], strict=True)
        return [state for host, state in pairs if host == place]

    assert cluster.follows(lambda: states()[:4] == ["busy"] * 4)  # given away, without a process so far
    assert states()[6:] == ["free"] * 2
    page = plain(cluster.get(f"/slurm/job/{train['id']}"))
    assert "Its GPUs now" in page
    assert "gpu1 3" in page
    assert f"job {train['id']} of labalice" in plain(cluster.get("/host/gpu1"))


# -------------------------------------------------------------------------------------------- it follows, in time


def test_the_page_follows_what_happens_within_two_intervals(cluster: Cluster) -> None:
    lab = cluster.lab
    before = cluster.totals["jobs"].get("pending", 0)
    number = lab.submit("labbob", "wants-many", "-p", "gpu", "--gres=gpu:h100:8", "-N2", "--mem=1G")
    wait_until(lambda: lab.run("squeue", "-h", "-j", number, "-o", "%T").strip() == "PENDING")
    cluster.follows(lambda: cluster.totals["jobs"].get("pending") == before + 1)
    assert any(job["id"] == int(number) and job["gpus"] == 16 for job in cluster.api("/jobs")["jobs"])

    lab.run("scancel", number)
    cluster.follows(lambda: cluster.totals["jobs"].get("pending") == before)

    lab.run("scontrol", "update", "NodeName=gpu2", "State=DRAIN", "Reason=fan 3 = dead, see 'ticket'")
    cluster.follows(lambda: cluster.node("gpu2")["word"] == "draining")
    assert cluster.node("gpu2")["reason"] == "fan 3 = dead, see 'ticket'"
    cluster.post("gpu2.lab")
    assert "gpu2.lab" in cluster.get("/slurm/nodes?state=draining")
    page = json.loads(cluster.get("/api/v1/cluster"))
    assert page["hosts"]["state"][page["hosts"]["host"].index("gpu2.lab")] == "drained"
    lab.run("scontrol", "update", "NodeName=gpu2", "State=RESUME")
    cluster.follows(lambda: cluster.node("gpu2")["word"] == "mixed")

    lab.signal("cpu1", signal.SIGKILL)
    lab.run("scontrol", "update", "NodeName=cpu1", "State=DOWN", "Reason=slurmd killed")
    cluster.follows(lambda: cluster.node("cpu1")["word"] == "down")
    assert cluster.totals["nodes"]["down"] == 2
    running = int(lab.run("squeue", "-h", "-t", "R", "-o", "%A").count("\n"))
    cluster.follows(lambda: cluster.totals["jobs"]["running"] == running)


HOSTILE = [
    "a\nJobId=1 JobName=z UserId=root(0) GroupId=root(0) MCS_label=N/A Command=",
    "x UserId=root(0) JobState=FAILED NodeList=gpu1 Nodes=gpu1 CPU_IDs=0 Mem=1 GRES=gpu:h100:8(IDX:0-7)",
    "<img src=x onerror=alert(1)>|\t'\"",
    "name=with = and \\ and % and Command=/bin/true Reason=None",
]


def test_names_that_forge_records_keys_and_markup_change_no_figure(cluster: Cluster) -> None:
    lab = cluster.lab
    honest = said_by_us(cluster)["indexes"]
    numbers = [int(lab.submit("labbob", name, "-p", "cpu", "-H", script="true")) for name in HOSTILE]

    def known() -> dict[int, Json]:
        return {job["id"]: job for job in cluster.api("/jobs")["jobs"]}

    cluster.follows(lambda: set(numbers) <= set(known()))
    jobs = known()
    assert {jobs[number]["user"] for number in numbers} == {"labbob"}
    assert {jobs[number]["state"] for number in numbers} == {"pending"}
    # the record forged for job 1 costs that job its indexes; what is allocated stays known by its node
    after = {number: job["gpu_index"] for number, job in jobs.items() if job["state"] == "running"}
    assert {number: index for number, index in after.items() if number in honest and number != 1} == {
        number: index for number, index in honest.items() if number in after and number != 1
    }
    assert after.get(1) is None
    assert cluster.node("gpu1")["gpu_index"] == "0-5"
    page = cluster.get("/slurm/jobs?user=labbob")
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    for number in numbers:  # a record outlives its job for a while: none is to be forged for the tests that follow
        lab.run("scontrol", "update", f"jobid={number}", "jobname=plain")
        lab.run("scancel", str(number))
    cluster.follows(lambda: not set(numbers) & set(known()))
    cluster.follows(lambda: said_by_us(cluster)["indexes"] == honest)


def test_slurmctld_is_asked_at_most_8_rpcs_an_interval_however_many_look(cluster: Cluster) -> None:
    asked = ("NODE_INFO", "JOB_INFO", "PARTITION_INFO", "STATS_INFO", "BUILD_INFO", "PING")
    cluster.lab.run("sdiag", "-r")
    with ThreadPoolExecutor(8) as viewers:
        pages = ["/slurm", "/slurm/jobs", "/slurm/nodes", "/api/v1/slurm/jobs", "/", "/slurm/job/1"]
        begun, looked = time.monotonic(), 0
        while time.monotonic() < begun + 4 * INTERVAL_SECONDS:
            looked += len(list(viewers.map(cluster.get, pages * 4)))
    ours = 1  # this test's own sdiag
    # each round asks twice for the nodes: once more for the details of jobs
    while (counts := cluster.lab.rpcs())["REQUEST_NODE_INFO"] < 4 and time.monotonic() < begun + 60:
        ours += 1
        time.sleep(1)
    counts["REQUEST_STATS_INFO"] -= ours
    rounds = counts["REQUEST_NODE_INFO"] / 2
    assert rounds >= 2
    total = sum(counts[f"REQUEST_{name}"] for name in asked)
    print(f"{total} RPCs in {rounds:g} rounds, {looked} pages: {dict(counts)}")  # noqa: T201 - a figure to report
    assert total <= 8 * (rounds + 1)
    assert total / rounds <= 8 + 1  # a round may be under way
    assert set(counts) - {f"REQUEST_{name}" for name in asked} <= {
        *("MESSAGE_NODE_REGISTRATION_STATUS", "REQUEST_COMPLETE_BATCH_SCRIPT", "MESSAGE_EPILOG_COMPLETE"),
        *("ACCOUNTING_UPDATE_MSG", "REQUEST_STEP_COMPLETE"),
    }


# ------------------------------------------------------------------------------------------------ half of a Slurm


def still(cluster: Cluster, seconds: float) -> None:
    """Stop slurmctld for so long, and until the page says how old Slurm's data are: the mole's other data flow on.

    When the page says so depends on the mole's pace, which is slower where Slurm has been slow to answer.
    """
    name = json.loads(cluster.get("/api/v1/slurm"))["slurm"][0]["host"]
    cluster.lab.signal("slurmctld", signal.SIGSTOP)
    ages, said, page = list[float](), False, ""
    try:
        began = time.monotonic()
        while not said or time.monotonic() < began + seconds:
            assert time.monotonic() < began + seconds + 60 * PATIENCE, page
            host = json.loads(cluster.get(f"/api/v1/hosts/{name}"))
            ages.append(time.time() - host["received_at"])
            page = plain(cluster.get("/slurm"))
            said = said or (STANDS_STILL.search(page) is not None and "12 of 16 GPUs allocated" in page)
            time.sleep(0.2)
    finally:
        cluster.lab.signal("slurmctld", signal.SIGCONT)
    old = statistics.quantiles(ages, n=10)[-1]  # one or two may be old where this machine stands still
    print(f"snapshots are up to {old:.1f} s old; {re.findall('Slurm.s data are[^.]*', page)}")  # noqa: T201
    assert old < 5
    # each failed round has doubled the pause before the next
    patience = 4 * (time.monotonic() - began) + 2 * INTERVAL_SECONDS + SLACK_SECONDS
    wait_until(lambda: not cluster.api("")["slurm"][0]["late"], seconds=patience)


def test_a_slurmctld_that_stands_still_delays_no_snapshot_and_the_page_says_its_age(cluster: Cluster) -> None:
    still(cluster, STILL_SECONDS)


@pytest.mark.soak
def test_a_slurmctld_that_stands_still_for_a_minute(cluster: Cluster) -> None:
    still(cluster, 60)


def test_a_mole_without_the_right_sees_less_and_says_so(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("scontrol", "squeue", "sdiag", "sacct"):
        real = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / name).write_text(
            f'#!/bin/sh\nexec setpriv --reuid=labbob --regid=labbob --init-groups {real} "$@"\n'
        )
        (tmp_path / name).chmod(0o755)
    conf = cluster.lab.folder / "etc/slurm.conf"
    was = conf.read_text()
    conf.write_text(was + "PrivateData=jobs\n")
    cluster.lab.run("scontrol", "reconfigure")
    try:
        with (
            start_server() as server,
            mole(server, cluster.lab, tmp_path / "mole", CLUSTER_DASH_SLURM__BIN_FOLDER=str(tmp_path)),
        ):
            seen = Cluster(cluster.lab, server)
            wait_until(lambda: seen.totals.get("cpus"), seconds=40)
            assert {job["user"] for job in seen.api("/jobs")["jobs"]} == {"labbob"}
            assert seen.node("gpu1")["gpu_index"] == "0-5"
            note = "PrivateData hides jobs of others, unless"
            wait_until(lambda: note in plain(seen.get("/slurm")), seconds=40)
    finally:
        conf.write_text(was)
        cluster.lab.run("scontrol", "reconfigure")


def test_a_machine_without_slurm_says_so_in_words(tmp_path: Path) -> None:
    empty = tmp_path / "none"
    empty.mkdir()
    slurm = {"CLUSTER_DASH_SLURM__USE": "true", "CLUSTER_DASH_SLURM__BIN_FOLDER": str(empty)}
    with start_server() as server, start_mole(server.url, state=tmp_path, environment=slurm):

        def page() -> str:
            try:
                with urllib.request.urlopen(f"{server.url}/slurm", timeout=60) as answer:
                    return plain(answer.read().decode())
            except urllib.error.HTTPError:
                return ""

        said = wait_until(page, seconds=20)
        assert "Slurm has not answered yet: scontrol: not found in" in said
