"""The page of one host: its standing, what is odd about each GPU, who is on it, what happened."""

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from cluster_dash_server.app import create_app
from cluster_dash_server.cluster import Cluster, GpuView
from cluster_dash_server.settings import Settings
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds
from cluster_dash_server.web.host_page import findings, heat, instances

MakeSeen = Callable[..., Seen]
Json = dict[str, Any]
NOW = 1_700_000_000.0


@pytest.fixture
def client(clock: Callable[[], float]) -> FlaskClient:
    return create_app(Settings(), clock).test_client()


@pytest.fixture
def post(client: FlaskClient, make_snapshot: Any) -> Callable[..., None]:
    def send(*args: Any, **fields: Any) -> None:
        answer = client.post("/", json={**make_snapshot(*args, **fields), "auth_code": "lab_cluster_2025"})
        assert answer.status_code == 200, answer.text

    return send


def text_of(client: FlaskClient, host: str = "gpu01") -> str:
    answer = client.get(f"/host/{host}")
    assert answer.status_code == 200
    main = answer.text.partition("<main")[2]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", main)))


@pytest.fixture
def view(make_seen: MakeSeen) -> Callable[[Json], GpuView]:
    def make(entry: Json) -> GpuView:
        cluster = Cluster(Thresholds())
        cluster.offer(make_seen(gpus=[entry], timestamp=NOW, interval_seconds=5, received_at=NOW))
        return cluster.hosts(NOW)[0].gpus[0]

    return make


def test_how_many_gpus_are_free_or_busy_is_said_once(
    client: FlaskClient, post: Callable[..., None], make_gpu: Any
) -> None:
    post("gpu01", [make_gpu(0, gpu_util=90.0), make_gpu(1, gpu_util=90.0)])

    text = text_of(client)

    assert "All 2 GPUs busy. 2 GPUs " in text
    assert "free" not in text.partition("Notes")[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, []),
        ({"error": "GPU is lost"}, ["GPU is lost"]),
        ({"read_at": NOW - 400}, ["figures of 6 min ago"]),
        ({"users": None, "used_mem": None}, ["not reported: processes, memory"]),
        ({"users": None, "used_mem": None, "gpu_util": None}, ["not reported: processes, memory, busy %"]),
        ({"pcie": {"gen": 1, "gen_max": 5, "width": 8, "width_max": 16}}, ["PCIe ×8, it can ×16"]),
        (
            {"pcie": {"gen": 3, "gen_max": 4, "width": 16, "width_max": 16}, "gpu_util": 50.0},
            ["PCIe generation 3, it can 4"],
        ),
        ({"pcie": {"gen": None, "width": 0, "width_max": 16}}, []),
        ({"ecc": {"remap_failed": True}}, ["a memory row could not be remapped: replace the card"]),
        ({"ecc": {"remap_pending": True}}, ["memory rows wait to be remapped: reset it when it is idle"]),
        (
            {"ecc": {"uncorrected": 1, "retired_pages": 2, "corrected": 9}},
            ["1 uncorrected memory error", "2 retired memory pages"],
        ),
        ({"throttle_reasons": ["gpu_idle"]}, []),
        (
            {"throttle_reasons": ["sw_power_cap", "HW_Thermal_Slowdown"]},
            ["at its power limit", "slowed down by heat (hardware)"],
        ),
        ({"throttle_reasons": ["bits_0x800"]}, ["bits 0x800"]),
        ({"unattributed_mem": 3276.8}, ["3.2 GiB that no process explains"]),
        ({"unattributed_mem": 1631.0}, []),
        ({"compute_mode": "prohibited"}, ["compute mode: prohibited"]),
        ({"compute_mode": "default"}, []),
        ({"mig": {"instances": [{}, {}]}, "gpu_util": None}, ["MIG: 2 instances; busy %: not reported under MIG"]),
        ({"mig": {"instances": []}}, ["MIG: 0 instances"]),
        ({"mig": None, "ecc": None, "pcie": None, "throttle_reasons": None}, []),
    ],
)
def test_what_is_odd_about_a_gpu_is_said_in_words(
    view: Callable[[Json], GpuView], make_gpu: Any, fields: Json, said: list[str]
) -> None:
    entry = make_gpu(0, **fields)
    assert list(findings(view(entry), entry, Thresholds(), NOW)) == said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature_c": 75, "temperature_slowdown_c": 90}, ""),
        ({"temperature_c": 76, "temperature_slowdown_c": 90}, "warm"),
        ({"temperature_c": 85, "temperature_slowdown_c": 90}, "warm"),
        ({"temperature_c": 86, "temperature_slowdown_c": 90}, "hot"),
        ({"temperature_c": 99}, ""),
        ({"temperature_slowdown_c": 90}, ""),
        ({"throttle_reasons": ["sw_thermal_slowdown"]}, "hot"),
        ({"throttle_reasons": ["sw_power_cap"]}, ""),
    ],
)
def test_heat_is_the_distance_to_where_the_card_slows_down(fields: Json, said: str) -> None:
    assert heat(fields) == said


def test_a_host_says_since_when_it_is_free(client: FlaskClient, post: Any, make_gpu: Any, clock: Any) -> None:
    post("gpu01", [make_gpu(0), make_gpu(1, gpu_util=50.0)], interval_seconds=300)
    assert "GPU 0 is free since 22:13 UTC ." in text_of(client)
    clock.now += 60
    post("gpu01", [make_gpu(0), make_gpu(1)], interval_seconds=300)
    assert "Free since 22:14 UTC ." in text_of(client)
    assert 'title="2023-11-14 22:14:20 UTC"' in client.get("/host/gpu01").text
    clock.now += 86_400
    assert "Silent since 14 Nov 22:14 UTC ." in text_of(client)


def test_each_process_has_its_user_job_and_container(client: FlaskClient, post: Any, make_gpu: Any) -> None:
    process = {
        **{"mem": 2048, "time": 7300, "name": "python3", "command": "python3.11", "type": "C", "gpu_util": 61},
        **{"job_id": "4711_3", "container": "docker:3f1c9a7e5b2d", "user_from": "session", "started_at": NOW - 10_900},
    }
    post("gpu01", [make_gpu(0, users={"ada": {"4101": process}})])
    assert "0 ada 4101 python3.11 2.0 GiB 61 % 2 h 3 h C 4711_3 docker:3f1c9a7e5b2d" in text_of(client)
    assert 'title="known by the session"' in client.get("/host/gpu01").text


def test_mig_instances_have_their_memory_and_users_and_say_why_they_have_no_busy(
    client: FlaskClient, post: Any, make_gpu: Any
) -> None:
    mig = {
        "instances": [
            {"gi": 1, "ci": 0, "profile": "3g.40gb", "uuid": "MIG-a", "total_mem": 40_960, "used_mem": 20_480},
            {"gi": 2, "ci": 0, "profile": "1g.10gb", "uuid": None, "total_mem": None, "used_mem": None},
        ]
    }
    users = {"ada": {"1": {"gi": 1, "ci": 0}}, "bob": {"2": {"gi": 1}}, "eve": {"3": {}}}
    post("gpu01", [make_gpu(0, mig=mig, gpu_util=None, users=users), make_gpu(1, mig={"instances": None})])
    text = text_of(client)
    assert "0 1 / 0 3g.40gb 20 of 40 GiB – ada, bob MIG-a" in text
    assert "0 2 / 0 1g.10gb – – none –" in text
    assert "MIG: 2 instances; busy %: not reported under MIG" in text


def test_users_of_an_instance_are_unknown_where_processes_are(make_seen: MakeSeen, make_gpu: Any) -> None:
    cluster = Cluster(Thresholds())
    entry = make_gpu(0, users=None, mig={"instances": [{"gi": 1, "ci": 0}]})
    cluster.offer(make_seen(gpus=[entry]))
    (host,) = cluster.hosts(NOW)
    assert [each["users"] for each in instances(host, {"gpu": {host.gpus[0].gpu.key: entry}})] == [None]


def test_links_memory_and_modes_are_a_row_a_gpu(client: FlaskClient, post: Any, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0)])
    assert "Links, memory and modes" not in text_of(client)
    full = {
        "pcie": {"gen": 3, "gen_max": 5, "width": 16, "width_max": 16, "rx_kib_s": 2048, "tx_kib_s": 0, "replays": 2},
        **{"nvlink": {"active": 18, "errors": 7}, "ecc": {"corrected": 4, "uncorrected": 0, "remapped_rows": 1}},
        **{"memory_temperature_c": 71, "memory_clock_mhz": 2619, "memory_clock_max_mhz": 2619, "pstate": 0},
        **{"encoder_util": 0, "decoder_util": None, "energy_j": 7_200_000, "compute_mode": "exclusive_process"},
        "persistence": True,
    }
    post("gpu01", [make_gpu(0, **full), make_gpu(1)])
    assert (
        "0 gen 3 of 5, ×16, 2 replays 2.0 MiB · 0 B 18 active, 7 errors 4 · 0 1 71 °C 2619 MHz 0 % · – 2.0 kWh "
        "P0, exclusive process, persistent" in text_of(client)
    )


def test_a_column_of_which_no_gpu_knows_anything_is_left_out(client: FlaskClient, post: Any, make_gpu: Any) -> None:
    post("gpu01", [make_gpu(0, pstate=0, memory_clock_mhz=None), make_gpu(1, pstate=8)])
    text = text_of(client)
    assert "Links, memory and modes GPU Mode 0 P0 1 P8" in text
    post("gpu01", [make_gpu(0, pstate=0, users={"ada": {"4101": {"mem": 1, "time": 1, "job_id": "7"}}})])
    text = text_of(client)
    assert "Type Job 0 ada 4101" in text
    assert "Container" not in text


def test_events_of_the_host_are_told_and_those_of_others_are_not(
    client: FlaskClient, post: Any, make_gpu: Any, clock: Any
) -> None:
    assert client.get("/host/gpu01").status_code == 404
    post("gpu02", [make_gpu(0)], events=[{"kind": "xid", "code": 48}])
    post("gpu01", [make_gpu(0), make_gpu(1)])
    assert "None since the server started." in text_of(client)
    post("gpu01", [make_gpu(0)], events=[{"at": -1e300, "kind": "xid", "gpu": 0, "code": 79, "text": "off the bus"}])
    text = text_of(client)
    assert "22:13 UTC 1 gpu lost – missing: the snapshot does not hold it – 0 xid 79 off the bus" in text
    assert "48" not in text.partition("Events")[2]
    for number in range(60):
        post("gpu01", [make_gpu(0)], events=[{"kind": "n", "code": number}])
    assert "(12 more)" in text_of(client)


def test_a_missing_card_whose_index_another_has_leaves_it_the_anchor(
    client: FlaskClient, post: Any, make_gpu: Any
) -> None:
    post("gpu01", [make_gpu(0), make_gpu(1)])
    post("gpu01", [make_gpu(0, uuid=make_gpu(1)["uuid"], pci_bus_id=make_gpu(1)["pci_bus_id"])])
    page = client.get("/host/gpu01").text
    assert page.count('id="gpu-0"') == 1
    row = page.partition('<tr id="gpu-0"')[2].partition("</tr>")[0]
    assert "missing" not in row
