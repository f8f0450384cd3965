"""Slurm's pages and lists, from a posted block to HTML, JSON and CSV."""

import csv
import io
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.settings import Settings
from cluster_dash_server.slurm import Picture, SlurmSettings
from cluster_dash_server.web import slurm_words
from cluster_dash_server.web.slurm_words import REASONS, reason
from tests.clocks import StillClock

NOW = 1_795_300_000.0
PAGES = ("/slurm", "/slurm/jobs", "/slurm/nodes")
Json = dict[str, Any]


def block(**changes: Any) -> Json:
    """Two GPU nodes, one drained; a job that runs, one that waits, one that ended."""
    return {
        "version": "24.11.5",
        "cluster": "hpc",
        "collected_at": NOW,
        "interval_seconds": 60,
        "sources": {name: {"ok": True, "at": NOW, "seconds": 0.1, "error": None} for name in ("nodes", "jobs")},
        "notes": [],
        "totals": {
            "cpus": {"total": 96, "allocated": 16, "idle": 48, "other": 32},
            "gpus": {"total": 8, "allocated": 2, "idle": 2, "drained": 4, "down": 0},
            "jobs": {"running": 1, "pending": 3, "failed": 2},
            "pending_gpus": 8,
            "finished_day": {"completed": 9, "failed": 2},
        },
        "scheduler": {"server_threads": 3, "main_mean_us": 2400},
        "partitions": [{"name": "gpu", "state": "up", "default": True, "nodes": 2, "max_time_seconds": 86400}],
        "strings": [
            "",
            "mixed",
            "idle+drain",
            "bad DIMM",
            "alice",
            "running",
            "pending",
            "Resources",
            "gpu",
            "bob",
            "failed",
        ],
        "nodes": {
            "name": ["n1", "n2"],
            "state": [1, 2],
            "reason": [0, 3],
            "gpus": [4, 4],
            "gpus_allocated": [2, 0],
            "gpu_index": ["0-1", ""],
            "partitions": [8, 8],
        },
        "jobs": {
            "id": [7, 8],
            "array": [None, "8_[1-3]"],
            "tasks": [1, 3],
            "name": ["<script>x</script>", "=SUM(A1)"],
            "user": [4, 9],
            "state": [5, 6],
            "reason": [0, 7],
            "partition": [8, 8],
            "gpus": [2, 2],
            "gpu_index": ["n1:0-1", ""],
            "nodes": ["n1", ""],
            "priority": [10, 5],
            "submitted_at": [NOW - 900, NOW - 60],
            "started_at": [NOW - 600, None],
        },
        "finished": {"id": [6], "state": [10], "user": [4], "ended_at": [NOW - 30], "name": ["old"]},
        **changes,
    }


def post(client: FlaskClient, host: str, slurm: Json | None = None, gpus: int = 0, **gpu: Any) -> Any:
    entries = {
        f"{index}_g": {
            **{"index": index, "name": "H100", "uuid": f"GPU-{host}-{index}", "total_mem": 80_000, "used_mem": 0},
            **{"gpu_util": 0, "users": {}},
            **gpu,
        }
        for index in range(gpus)
    }
    snapshot: Json = {"hostname": host, "timestamp": NOW, "interval_seconds": 3600, "cpu": {}, "gpu": entries}
    if slurm is not None:
        snapshot["slurm"] = slurm
    return client.post("/", json={**snapshot, "auth_code": "lab_cluster_2025"})


@pytest.fixture
def clock() -> StillClock:
    return StillClock(NOW)


@pytest.fixture
def client(clock: StillClock) -> FlaskClient:
    return create_app(Settings(), clock=clock).test_client()


@pytest.fixture
def asked(client: FlaskClient) -> FlaskClient:
    """A server that knows the block, and the hosts of both nodes."""
    assert post(client, "head", block()).status_code == 200
    post(client, "n1", gpus=4)
    post(client, "n2", gpus=4)
    return client


def test_a_cluster_without_slurm_shows_no_trace_of_it(client: FlaskClient) -> None:
    post(client, "n1", gpus=4)
    for page in ("/", "/gpu-data", "/host/n1", "/cpu-data"):
        assert 'href="/slurm"' not in client.get(page).text
        assert "Slurm</h2>" not in client.get(page).text
    answer = client.get("/slurm")
    assert answer.status_code == 404
    assert "use = true" in answer.text
    assert client.get("/api/v1/slurm").get_json()["slurm"] == []
    assert client.get("/api/v1/slurm/jobs").get_json()["jobs"] == []


@pytest.mark.parametrize("page", PAGES)
def test_with_slurm_every_page_leads_to_it(asked: FlaskClient, page: str) -> None:
    assert 'href="/slurm"' in asked.get("/").text
    answer = asked.get(page)
    assert answer.status_code == 200
    assert "Slurm 24.11.5" in answer.text


def test_the_overview_shows_what_is_allocated_what_waits_and_what_is_shut(asked: FlaskClient) -> None:
    page = asked.get("/slurm").text
    assert "2 of 8 GPUs allocated" in page
    assert "16 of 96 CPUs allocated" in page
    assert "waits for what it asked for to become free" in page
    assert "bad DIMM" in page
    assert "IDLE +DRAIN" in page


@pytest.mark.parametrize(
    ("sort", "names"), [("-gpus", "alice bob"), ("gpus", "bob alice"), ("-wanted", "bob alice"), ("-name", "bob alice")]
)
def test_who_has_what_is_put_in_order_by_any_column(asked: FlaskClient, sort: str, names: str) -> None:
    by_user = asked.get(f"/slurm?sort={sort}").text.partition('id="users-title"')[2].partition("</section>")[0]
    assert re.findall(r'<tr data-key="(\w+)">', by_user) == names.split()
    assert by_user.count("aria-sort") == 1
    assert 'href="/slurm?sort=-pending#users-title"' in by_user


def test_a_drained_node_a_gpu_given_away_and_one_used_past_slurm_are_told(client: FlaskClient) -> None:
    post(client, "head", block())
    post(client, "n1", gpus=4, users={"eve": {"1": {"mem": 1, "type": "C"}}}, gpu_util=90)
    post(client, "n2", gpus=4)
    body = client.get("/api/v1/cluster").get_json()
    said = dict(zip(zip(body["gpus"]["host"], body["gpus"]["index"], strict=True), body["gpus"]["slurm"], strict=True))
    n1, n2 = body["hosts"]["host"].index("n1"), body["hosts"]["host"].index("n2")
    assert said[n1, 0] == "job 7 of alice"
    assert said[n1, 3] == "used outside Slurm"
    assert said[n2, 0] == "node drained"
    assert body["hosts"]["drained"][n2] == "bad DIMM"
    assert body["summary"].startswith("0 of 8 GPUs free")
    assert "4 drained" in body["summary"]
    assert "2 GPUs used outside Slurm" in client.get("/slurm").text
    assert "n2 drained: bad DIMM" in client.get("/").text
    host = client.get("/host/n1").text
    assert "job 7</a> of alice" in host
    assert "&lt;script&gt;x&lt;/script&gt;" in host


def test_a_process_named_by_the_new_ids_of_slurm_shows_the_job_people_know(client: FlaskClient) -> None:
    found = block()
    found["jobs"]["sluid"] = ["s6KXM7ZXA15900", None]
    post(client, "head", found)
    post(client, "n1", gpus=4, users={"alice": {"1": {"mem": 1, "type": "C", "job_id": "s6KXM7ZXA15900"}}})
    page = client.get("/host/n1").text
    assert "s6KXM7ZXA15900" not in page


def test_the_page_says_how_old_its_figures_are_and_why(asked: FlaskClient, clock: StillClock) -> None:
    clock.now = NOW + 179
    assert "Slurm&#39;s data are 2 min old" in asked.get("/slurm").text  # beside the version, no notice
    failed = {"ok": False, "at": NOW, "error": "squeue: Unable to contact slurm controller"}
    clock.now = NOW + 240
    sources = {"nodes": failed, "jobs": failed}
    assert post(asked, "head", block(collected_at=NOW + 240, sources=sources)).status_code == 200
    page = asked.get("/slurm").text
    assert "Slurm&#39;s data are 4 min old: squeue: Unable to contact slurm controller. What is below" in page
    assert "2 of 8 GPUs allocated" in page
    assert asked.get("/api/v1/slurm").get_json()["slurm"][0]["late"] is True


def test_two_moles_that_ask_are_told_of_each_other(asked: FlaskClient) -> None:
    post(asked, "head2", block(collected_at=NOW + 1))
    assert "Two moles ask Slurm: head2 and head" in asked.get("/slurm").text


def test_jobs_can_be_filtered_sorted_and_turned_page_by_page(client: FlaskClient) -> None:
    count = 120
    jobs = {
        "id": list(range(1, count + 1)),
        "user": [4 if number % 2 else 9 for number in range(count)],
        "state": [6] * count,
        "priority": list(range(count)),
        "name": [f"job-{number}" for number in range(count)],
    }
    post(client, "head", block(jobs=jobs))
    first = client.get("/slurm/jobs?sort=priority").text
    assert "120 jobs" in first
    assert "page 1 of 3" in first
    assert "job-119<" in first
    assert "job-0<" in client.get("/slurm/jobs?sort=priority&page=3").text
    assert "60 jobs of 120" in client.get("/slurm/jobs?user=bob").text
    found = client.get("/api/v1/slurm/jobs?text=job-77").get_json()["jobs"]
    assert [job["id"] for job in found] == [78]
    assert "page 3 of 3" in client.get("/slurm/jobs?page=99999").text
    assert client.get("/slurm/jobs?page=x&sort=").status_code == 200
    assert client.get("/slurm/jobs?sort=nothing").status_code == 400
    assert client.get("/api/v1/slurm/jobs?sort=nothing").get_json()["success"] is False


def test_a_job_has_a_page_with_its_gpus_as_they_are_now(asked: FlaskClient) -> None:
    page = asked.get("/slurm/job/7").text
    assert "Its GPUs now" in page
    assert 'href="/host/n1#gpu-1"' in page
    assert 'href="/host/n1#gpu-2"' not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    waits = asked.get("/slurm/job/8_[1-3]").text
    assert "Pending: it waits for what it asked for to become free" in waits
    assert "Failed" in asked.get("/slurm/job/6").text
    assert asked.get("/slurm/job/999").status_code == 404


def test_the_page_of_a_user_knows_their_jobs_of_slurm_without_a_process_too(asked: FlaskClient) -> None:
    waits = asked.get("/user/bob").text
    assert "No process of this name" in waits
    assert 'href="/slurm/job/8_%5B1-3%5D"' in waits or 'href="/slurm/job/8_[1-3]"' in waits
    assert "waits for what it asked for to become free" in waits
    runs = asked.get("/user/alice").text
    assert "&lt;script&gt;x&lt;/script&gt;" in runs
    assert "n1:0-1" in runs
    assert '<h2 id="jobs-title"' not in asked.get("/user/carol").text


def test_what_slurm_drained_is_free_by_the_first_rule_only(asked: FlaskClient) -> None:
    lines = asked.get("/api/gpu-summary?color=no").text.splitlines()
    told = {cells[0]: cells[2:] for line in lines[1:] if (cells := [cell.strip() for cell in line.split("\t")])}
    assert (told["n2"][0], told["n2"][-1]) == ("4", "4 drained")
    assert told["n1"][-1].startswith("2 free, ")


@pytest.mark.parametrize(("page", "count"), [("/slurm", 1), ("/slurm/jobs", 2), ("/slurm/nodes?state=drained", 1)])
def test_every_table_of_slurm_can_be_taken_away(asked: FlaskClient, page: str, count: int) -> None:
    sign = "&" if "?" in page else "?"
    told = asked.get(f"{page}{sign}format=json").get_json()
    assert (told["at"], len(told["rows"])) == (NOW, count)
    answer = asked.get(f"{page}{sign}format=csv")
    head, columns, *rows = csv.reader(io.StringIO(answer.text))
    assert answer.mimetype == "text/csv"
    assert (columns, len(rows)) == (list(told["rows"][0]), count)
    assert ("state: drained" in head) is ("state" in page)
    assert "format=csv" in asked.get(page).text


def test_lists_are_json_text_and_csv(asked: FlaskClient) -> None:
    nodes = asked.get("/api/v1/slurm/nodes?state=drained").get_json()["nodes"]
    assert [(node["name"], node["host"], node["word"], node["cpus"]) for node in nodes] == [
        ("n2", "n2", "drained", None)
    ]
    table = list(csv.DictReader(io.StringIO(asked.get("/api/v1/slurm/jobs?format=csv&state=pending").text)))
    assert table[0]["name"] == "'=SUM(A1)"
    assert table[0]["reason_text"] == "waits for what it asked for to become free"
    text = asked.get("/api/v1/slurm?format=text").text.splitlines()
    assert text[1].split("\t")[0].strip() == "hpc"
    ended = asked.get("/api/v1/slurm/jobs?table=finished").get_json()["jobs"]
    assert [job["state"] for job in ended] == ["failed"]


def test_a_block_that_does_not_fit_is_refused_in_words_and_nothing_of_it_is_kept(client: FlaskClient) -> None:
    found = block()
    found["jobs"]["user"] = [1]
    answer = post(client, "head", found)
    assert answer.status_code == 422
    assert answer.get_json()["msg"].startswith("slurm.jobs.user: 1 items, ")
    assert client.get("/slurm").status_code == 404


def test_a_block_of_nothing_but_words_shows_them(client: FlaskClient) -> None:
    failed = {"ok": False, "at": None, "error": "scontrol: not found in PATH: see [Slurm] bin_folder"}
    post(client, "head", {"collected_at": NOW, "sources": {"nodes": failed}, "totals": {}})
    for page in PAGES:
        assert "Slurm has not answered yet: scontrol: not found in PATH" in client.get(page).text


def test_the_settings_name_hosts_that_no_name_joins() -> None:
    settings = Settings(slurm=SlurmSettings(hosts=("n1=box-7",)))
    client = create_app(settings, clock=StillClock(NOW)).test_client()
    post(client, "head", block())
    post(client, "box-7", gpus=4)
    assert "node n1" in client.get("/host/box-7").text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Resources", "waits for what it asked for to become free"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n1",
            "waits: nodes that it asked for by name are down, drained or reserved",
        ),
        ("QOSMaxGRESPerUser", "waits: its user has as many GPUs as its QOS allows one user"),
        ("AssocGrpCpuLimit", "waits: as many CPUs as its account allows all of its jobs are in use"),
        ("SomethingNew", ""),
    ],
)
def test_reasons_are_told_in_words(name: str, says: str) -> None:
    assert reason(name) == says


def test_every_reason_reads_on_as_a_sentence_about_the_job() -> None:
    begins = {reason(name).partition(" ")[0].rstrip(":") for name in REASONS}
    assert begins == {*("waits", "is", "asks", "ended", "could", "failed", "ran", "did", "was")}


def test_however_many_look_the_overview_is_counted_once_in_five_seconds(
    asked: FlaskClient, clock: StillClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Picture] = []
    whole = slurm_words.waiting

    def waiting(picture: Picture) -> list[tuple[str, int, int, str]]:
        counted.append(picture)
        return whole(picture)

    monkeypatch.setattr(slurm_words, "waiting", waiting)
    for seconds in (0, 1, 2, 4.9, 5, 6):
        clock.now = NOW + seconds
        asked.get("/slurm")
    assert len(counted) == 2
    assert post(asked, "head", block(collected_at=NOW + 6)).status_code == 200  # something new is seen at once
    asked.get("/slurm")
    assert len(counted) == 3
