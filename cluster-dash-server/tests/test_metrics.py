"""/metrics: what it says of hosts, GPUs, users and the server, in any format and whatever hosts are called."""

import gzip
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as open_metrics_parser

from cluster_dash_server.app import create_app
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.ingest import Answer
from cluster_dash_server.prometheus.metrics import Metrics, PostCounts, XidCounts
from cluster_dash_server.settings import MetricsSettings, ServerSettings, Settings
from cluster_dash_server.slurm import Slurm
from cluster_dash_server.states import Thresholds

Post = Callable[..., int]
Read = Callable[[str], Iterable[Any]]
read_text: Read = text_parser.text_string_to_metric_families
read_open_metrics: Read = open_metrics_parser.text_string_to_metric_families
NOW = 1_700_000_000.0
OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.fixture
def client(clock: Callable[[], float]) -> FlaskClient:
    return create_app(Settings(metrics=MetricsSettings(users=True)), clock).test_client()


@pytest.fixture
def post(client: FlaskClient, make_snapshot: Any) -> Post:
    def send(*args: Any, **fields: Any) -> int:
        return client.post("/", json={"auth_code": "lab_cluster_2025", **make_snapshot(*args, **fields)}).status_code

    return send


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(client: FlaskClient, path: str = "/metrics") -> Samples:
    """Read what a route says; a sample given twice is a failure."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    found: Samples = {}
    for family in read_text(answer.text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def of(found: Samples, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a name by the values of their labels, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(where)): value
        for (each, where), value in found.items()
        if each == f"cluster_dash_{name}"
    }


def test_hosts_and_gpus_are_counted_by_state(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0, gpu_util=50.0), make_gpu(1)])
    post("gpu02", [])
    found = samples(client)
    hosts = of(found, "hosts")
    assert (hosts[("free",)], hosts[("no_gpu",)], hosts[("down",)], sum(hosts.values())) == (1, 1, 0, 2)
    gpus = of(found, "gpus")
    assert (gpus["H100 80G", "busy"], gpus["H100 80G", "free"], sum(gpus.values())) == (1, 1, 2)


def test_a_gpu_has_its_figures_in_base_units(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    ecc = {"remap_pending": True, "remap_failed": False}
    gpu = make_gpu(3, gpu_util=97.0, used_mem=1024.5, power_w=412.5, temperature_c=61, temperature_slowdown_c=90)
    post("gpu01", [{**gpu, "ecc": ecc}])
    found = samples(client)
    where = "3", "gpu01", "H100 80G", gpu["uuid"]
    for name, value in {
        "busy_ratio": 0.97,
        "memory_used_bytes": 1024.5 * 2**20,
        "memory_total_bytes": 81559 * 2**20,
        "power_watts": 412.5,
        "temperature_celsius": 61,
        "temperature_slowdown_celsius": 90,
        "remap_pending": 1,
        "remap_failed": 0,
    }.items():
        assert of(found, f"gpu_{name}") == {where: value}, name


def test_what_a_gpu_does_not_say_is_absent(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0, gpu_util=None, used_mem=None, total_mem=None, uuid=None, name=None)])
    found = samples(client)
    assert [name for name, _ in found if name.startswith("cluster_dash_gpu_")] == []
    assert of(found, "host_gpus_seen") == {("gpu01",): 1}


def test_a_host_has_its_figures_its_disks_and_its_labels(client: FlaskClient, post: Post) -> None:
    disk = {
        "a": {"mount_point": "/", "percent_used": 40.0},
        "b": {"mount_point": "/", "percent_used": 41.0},  # mounted over the first: one series
        "/data": {"percent_used": 97.5},
        "c": {"mount_point": "/gone", "percent_used": None},
    }
    general = {"labels": {"rack": "r1", "rack no.": "7"}, "mole_version": "0.1.0"}
    post("gpu01", disk=disk, general=general)
    found = samples(client)
    assert of(found, "host_disk_used_ratio") == {("gpu01", "/"): 0.41, ("gpu01", "/data"): 0.975}
    assert of(found, "host_cpu_busy_ratio") == {("gpu01",): 0.125}
    assert of(found, "host_memory_used_bytes") == {("gpu01",): 112 * 2**30}
    (info,) = [dict(where) for name, where in found if name == "cluster_dash_host_info"]
    assert info == {"host": "gpu01", "mole_version": "0.1.0", "label_rack": "r1", "label_rack_no_": "7"}


def test_labels_of_a_host_that_become_one_name_are_one(client: FlaskClient, post: Post) -> None:
    post("gpu01", general={"labels": {"rack.no": "7", "rack no": "8"}})
    (info,) = [dict(where) for name, where in samples(client) if name == "cluster_dash_host_info"]
    assert info["label_rack_no"] == "7"


def test_a_stale_host_has_nothing_but_its_age(client: FlaskClient, post: Post, make_gpu: Any, clock: Any) -> None:
    post("gpu01", [make_gpu(0, power_w=70.0)], interval_seconds=5)
    clock.now += 61
    found = samples(client)
    named = {name.removeprefix("cluster_dash_") for name, where in found if ("host", "gpu01") in where}
    assert named == {"host_last_snapshot_timestamp_seconds", "host_stale_after_seconds"}
    assert of(found, "host_last_snapshot_timestamp_seconds") == {("gpu01",): NOW}
    assert of(found, "host_stale_after_seconds") == {("gpu01",): 60}
    assert of(found, "hosts")[("stale",)] == 1


def test_a_missing_gpu_is_expected_and_not_seen_and_has_no_figures(
    client: FlaskClient, post: Post, make_gpu: Any
) -> None:
    post("gpu01", [make_gpu(0), make_gpu(1)])
    post("gpu01", [make_gpu(0)])
    found = samples(client)
    assert of(found, "host_gpus_expected") == {("gpu01",): 2}
    assert of(found, "host_gpus_seen") == {("gpu01",): 1}
    assert len(of(found, "gpu_busy_ratio")) == 1
    assert of(found, "gpus")["H100 80G", "error"] == 1


def test_figures_that_are_too_old_are_absent(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0, read_at=NOW - 60), make_gpu(1)], interval_seconds=5)
    assert [key[0] for key in of(samples(client), "gpu_busy_ratio")] == ["1"]


def test_held_seconds_are_there_only_while_a_gpu_is_held(
    client: FlaskClient, post: Post, make_gpu: Any, clock: Any
) -> None:
    held, busy = make_gpu(0, used_mem=40_000.0), make_gpu(1, used_mem=40_000.0, gpu_util=90.0)
    for _ in range(4):
        post("gpu01", [held, busy], interval_seconds=600)
        clock.now += 600
    post("gpu01", [held, busy], interval_seconds=600)
    assert [(key[0], value) for key, value in of(samples(client), "gpu_held_seconds").items()] == [("0", 2400)]


def test_two_cards_that_look_alike_to_prometheus_are_one_series(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    gpu = make_gpu(0, uuid=None)
    snapshot = {"gpu": {"a": gpu, "b": gpu}}
    assert post("gpu01", **snapshot) == 200
    assert len(of(samples(client), "gpu_busy_ratio")) == 1


def test_users_are_named_only_where_the_site_says_so(
    client: FlaskClient, post: Post, make_gpu: Any, clock: Any, make_snapshot: Any
) -> None:
    users: dict[str, Any] = {"alice": {"1": {}, "2": {}}, "bob": {"3": {}}}
    gpus = [make_gpu(0, users=users), make_gpu(1, users={"alice": {"4": {}}})]
    post("gpu01", gpus)
    assert of(samples(client), "user_gpus") == {("busy", "alice"): 2, ("busy", "bob"): 1}
    other = create_app(Settings(), clock).test_client()
    other.post("/", json={**make_snapshot("gpu01", gpus), "auth_code": "lab_cluster_2025"})
    assert "alice" not in other.get("/metrics").text


def test_posts_are_counted_by_what_became_of_them(client: FlaskClient, post: Post, make_snapshot: Any) -> None:
    assert of(samples(client), "snapshots_total") == {("taken",): 0}
    identity = {"boot_id": "b", "seq": 1}
    assert [post("gpu01", **identity), post("gpu01", **identity), post("")] == [200, 200, 400]
    assert post("gpu01", auth_code="wrong") == 401
    lines = b"\n".join(
        client.application.json.dumps({**make_snapshot(name), "auth_code": "lab_cluster_2025"}).encode()
        for name in ("gpu02", "")
    )
    assert client.post("/api/v1/snapshots", data=lines).status_code == 200
    counts = {("duplicate",): 1, ("malformed", "refused"): 2, ("secret", "refused"): 1, ("taken",): 2}
    counter = PostCounts()
    counter.count(Answer(status=429, body={"success": False}))
    assert counter() == {("taken", 200): 0, ("refused", 429): 1}
    found = samples_after_a_second(client)
    assert of(found, "snapshots_total") == counts


def samples_after_a_second(client: FlaskClient) -> Samples:
    """Read the text once it is made anew: it is kept for a second."""
    clock = client.application.extensions["control"]._clock
    clock.now += 1
    return samples(client)


def test_an_xid_is_counted_once_however_often_it_is_told(
    client: FlaskClient, post: Post, make_gpu: Any, clock: Any
) -> None:
    xid = {"at": NOW - 5, "kind": "xid", "gpu": 0, "code": 79, "text": "fell off the bus"}
    post("gpu01", [make_gpu(0)], boot_id="b", seq=1, events=[xid])
    post("gpu01", [make_gpu(0)], boot_id="b", seq=2, events=[xid, {**xid, "at": NOW - 4}, {"kind": "reboot"}])
    assert of(samples(client), "gpu_xid_events_total") == {("0", "gpu01", "79"): 2}


def test_the_kinds_of_xids_a_host_can_invent_are_bounded(make_seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster_dash_server.prometheus.metrics.MOST_XIDS", 3)
    xids = XidCounts()
    for code in range(9):
        xids.witness(make_seen("gpu01", events=[{"at": code, "kind": "xid", "gpu": 0, "code": code}]), None, None)
    assert len(xids()) == 3


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\\", "ü 🦔", "a}b,c=d", "a{x='y'}"])
def test_a_host_may_be_called_anything(name: str, client: FlaskClient, post: Post, make_gpu: Any) -> None:
    assert post(name, [make_gpu(0, name=name, uuid=name)]) == 200
    assert set(of(samples(client), "host_stale_after_seconds")) == {(name,)}
    labels = {frozenset(where) for each, where in samples(client) if each == "cluster_dash_gpu_busy_ratio"}
    assert [dict(each)["uuid"] for each in labels] == [name]


def test_open_metrics_and_the_older_format_say_the_same(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0, power_w=70.0)], events=[{"kind": "xid", "gpu": 0, "code": 31}])
    plain, open_metrics = client.get("/metrics"), client.get("/metrics", headers={"Accept": OPEN_METRICS})
    assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert open_metrics.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    told = [
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith("cluster_dash_")
        }
        for families in (read_text(plain.text), read_open_metrics(open_metrics.text))
    ]
    assert told[0] == told[1]
    assert len(told[0]) > 20


def test_the_text_is_packed_for_who_takes_it_so(client: FlaskClient, post: Post) -> None:
    post("gpu01")
    answer = client.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert (answer.headers["Content-Encoding"], answer.headers["Vary"]) == ("gzip", "Accept, Accept-Encoding")
    assert b"cluster_dash_hosts" in gzip.decompress(answer.data)


def test_the_text_is_made_once_a_second_however_many_ask(make_seen: Any) -> None:
    cluster = Cluster(Thresholds())
    metrics = Metrics(cluster, PostCounts(), XidCounts(), Slurm(), lambda: None, version="1", users=False)
    first = metrics.body(NOW, "identity", open_metrics=False)
    cluster.offer(make_seen("gpu01"))
    assert metrics.body(NOW + 0.9, "identity", open_metrics=False) is first
    assert b"gpu01" in metrics.body(NOW + 1, "identity", open_metrics=False)


def test_history_that_cannot_be_written_is_told() -> None:
    for trouble, value in (("", 0), ("the disk is full", 1)):
        metrics = Metrics(
            Cluster(Thresholds()), PostCounts(), XidCounts(), Slurm(), partial(str, trouble), version="1", users=False
        )
        text = metrics.body(NOW, "identity", open_metrics=False).decode()
        assert f"cluster_dash_history_failing {value}\n" in text


# ------------------------------------------------------------------------------- one host, under dcgm-exporter's names


def test_a_host_can_be_had_under_the_names_of_dcgm_exporter(client: FlaskClient, post: Post, make_gpu: Any) -> None:
    figures = {"sm_clock_mhz": 1755, "energy_j": 81234.5, "pcie": {"replays": 2}, "ecc": {"remap_failed": True}}
    xid = {"at": NOW, "kind": "xid", "gpu": 0, "code": 79}
    post(
        "gpu01",
        [make_gpu(0, gpu_util=97.0, minor_number=4, **figures)],
        general={"driver_version": "550.54.15"},
        events=[{**xid, "at": NOW - 9, "code": 31}, xid],
    )
    # the reader gives a counter the ending that it ought to have
    found = {
        name.removesuffix("_total"): value
        for (name, _), value in samples(client, "/metrics?family=dcgm&host=gpu01").items()
    }
    assert found == {
        "DCGM_FI_DEV_SM_CLOCK": 1755,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 81234500,
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 2,
        "DCGM_FI_DEV_GPU_UTIL": 97,
        "DCGM_FI_DEV_MEM_COPY_UTIL": 0,
        "DCGM_FI_DEV_XID_ERRORS": 79,
        "DCGM_FI_DEV_FB_FREE": 81556,
        "DCGM_FI_DEV_FB_USED": 3,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": 1,
    }
    (labels,) = {where for _, where in samples(client, "/metrics?family=dcgm&host=gpu01")}
    assert dict(labels) == {
        "gpu": "0",
        "UUID": make_gpu(0)["uuid"],
        "pci_bus_id": "00000000:00:00.0",
        "device": "nvidia4",
        "modelName": "NVIDIA H100 80GB HBM3",
        "hostname": "gpu01",
        "DCGM_FI_DRIVER_VERSION": "550.54.15",
    }


def test_the_instances_of_a_divided_gpu_have_its_memory_and_nobody_its_utilisation(
    client: FlaskClient, post: Post, make_gpu: Any
) -> None:
    instances = [
        {"gi": gi, "ci": 0, "profile": "1g.10gb", "uuid": f"MIG-{gi}", "total_mem": 9856, "used_mem": gi}
        for gi in (7, 8)
    ]
    post("gpu01", [make_gpu(0, power_w=90.0, mig={"instances": instances}), make_gpu(1, used_mem=3.0)])
    found = samples(client, "/metrics?family=dcgm&host=gpu01")
    used = {dict(where).get("GPU_I_ID"): value for (name, where), value in found.items() if name.endswith("FB_USED")}
    assert used == {"7": 7, "8": 8, None: 3}
    gpus = [dict(where)["gpu"] for name, where in found if name == "DCGM_FI_DEV_GPU_UTIL"]
    assert gpus == ["1"]
    assert len([name for name, _ in found if name == "DCGM_FI_DEV_POWER_USAGE"]) == 1


@pytest.mark.parametrize(
    ("setting", "names"), [("hostname", {"hostname"}), ("Hostname", {"Hostname"}), ("both", {"hostname", "Hostname"})]
)
def test_the_label_of_the_host_is_a_setting(setting: str, names: set[str], clock: Any, make_snapshot: Any) -> None:
    client = create_app(Settings(metrics=MetricsSettings(hostname_label=setting)), clock).test_client()
    client.post("/", json={**make_snapshot("gpu01"), "auth_code": "lab_cluster_2025"})
    (where,) = {where for _, where in samples(client, "/metrics?family=dcgm&host=gpu01")}
    assert {name for name, _ in where if name.lower() == "hostname"} == names


def test_a_silent_host_is_503_so_that_its_target_is_down_and_an_unknown_one_404(
    client: FlaskClient, post: Post, clock: Any
) -> None:
    post("gpu01", interval_seconds=5)
    clock.now += 90
    answer = client.get("/metrics?family=dcgm&host=gpu01")
    assert (answer.status_code, answer.get_json()["msg"]) == (503, "host: gpu01 has been silent for 90 s")
    assert client.get("/metrics?family=dcgm&host=gpu02").status_code == 404
    assert client.get("/metrics?family=dcgm").json == {"success": False, "msg": "host: missing"}
    assert client.get("/metrics?family=cards&host=gpu01").status_code == 400
    assert client.get("/metrics?host=gpu01").status_code == 400


def test_a_host_without_gpus_or_without_a_driver_has_an_empty_text(client: FlaskClient, post: Post) -> None:
    post("gpu01", [])
    assert client.get("/metrics?family=dcgm&host=gpu01").text == ""
    error = {"name": "error", "uuid": "none", "index": 0, "total_mem": 0, "used_mem": 0, "users": {}, "error": "x"}
    post("gpu02", gpu={"gpu_error": {**error, "gpu_util": 0, "memory_util": 0}})
    assert client.get("/metrics?family=dcgm&host=gpu02").text == ""


# ---------------------------------------------------------------------------------------------- the list of hosts


def test_prometheus_finds_every_host_at_the_public_url(clock: Any, make_snapshot: Any) -> None:
    server = ServerSettings(public_url="https://www.example.org/dash/")
    client = create_app(Settings(server=server), clock).test_client()
    assert client.get("/dash/api/v1/http-sd").json == []
    client.post("/", json={**make_snapshot("gpu01"), "auth_code": "lab_cluster_2025"})
    clock.now += 5000  # a silent host stays in the list
    labels = {"__metrics_path__": "/dash/metrics", "__param_family": "dcgm", "__scheme__": "https"}
    answer = client.get("/dash/api/v1/http-sd", headers={"Host": "forged.example.org"})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json == [
        {"targets": ["www.example.org"], "labels": {"instance": "gpu01", "__param_host": "gpu01", **labels}}
    ]


def test_without_a_public_url_the_list_names_the_address_that_was_asked(client: FlaskClient, post: Post) -> None:
    post("gpu01")
    (target,) = client.get("/api/v1/http-sd", headers={"Host": "dash.lab:8080"}).get_json()
    assert target["targets"] == ["dash.lab:8080"]
    assert target["labels"]["__metrics_path__"] == "/metrics"
    assert client.get("/api/v1/http-sd").headers["Cache-Control"] == "no-store"
