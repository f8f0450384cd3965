"""The port that Prometheus scrapes: what it says, and that a slow scraper delays nobody."""

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_mole.config import ConfigError, for_listening
from cluster_dash_mole.senders import listen
from cluster_dash_mole.senders.listen import GpuPage, ListenSender, SlurmPage, parse_address
from cluster_dash_mole.senders.listen.text import dcgm, labels
from cluster_dash_mole.snapshot import Snapshot

MACHINES = Path(__file__).parent / "machines"


class StillClock:
    seconds = 1000.0

    def now(self) -> float:
        return 1_700_000_000.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def gpu(index: int, **more: Any) -> dict[str, Any]:
    return {"index": index, "name": "NVIDIA H100", "uuid": f"GPU-{index}", "used_mem": 1024, "total_mem": 4096, **more}


SNAPSHOT = Snapshot(
    hostname="gpu01",
    timestamp=1_700_000_000.0,
    interval_seconds=5.0,
    machine_id=None,
    boot_id="b",
    seq=1,
    parts={"gpu": {"a": gpu(0, gpu_util=97, pcie={"replays": 2}, energy_j=2.5)}, "general": {}},
    collectors={},
)


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def sender(clock: StillClock) -> Iterator[ListenSender]:
    sender = ListenSender("127.0.0.1:0", GpuPage(interval=5.0), clock=clock)
    yield sender
    sender.close()


def get(sender: ListenSender, path: str = "/metrics", **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", sender.port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_a_scrape_gets_the_newest_snapshot(sender: ListenSender) -> None:
    assert get(sender)[:2] == (503, b"nothing was read yet\n")
    sender.send(SNAPSHOT)
    status, body, headers = get(sender)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    where = '{gpu="0",UUID="GPU-0",device="nvidia0",modelName="NVIDIA H100",hostname="gpu01"}'
    assert [line for line in body.decode().splitlines() if line[0] != "#"] == [
        f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{where} 2500.0",
        f"DCGM_FI_DEV_PCIE_REPLAY_COUNTER{where} 2",
        f"DCGM_FI_DEV_GPU_UTIL{where} 97",
        f"DCGM_FI_DEV_FB_FREE{where} 3072",
        f"DCGM_FI_DEV_FB_USED{where} 1024",
    ]
    sender.send(replace(SNAPSHOT, parts={"gpu": {"a": gpu(0, gpu_util=3)}}))
    assert b"DCGM_FI_DEV_GPU_UTIL" + where.encode() + b" 3\n" in get(sender)[1]
    assert get(sender, "/")[0] == 404


def test_a_scrape_is_packed_for_who_takes_it_so(sender: ListenSender) -> None:
    sender.send(SNAPSHOT)
    _, body, headers = get(sender, **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == get(sender)[1]


def test_a_mole_whose_round_hangs_says_so_instead_of_old_figures(sender: ListenSender, clock: StillClock) -> None:
    sender.send(SNAPSHOT)
    clock.seconds += 60
    assert get(sender)[0] == 200
    clock.seconds += 1
    assert get(sender)[:2] == (503, b"what was read last is 61 s old\n")


def test_the_last_xid_stays_after_the_snapshot_that_told_of_it(sender: ListenSender) -> None:
    xid = {"at": 1.0, "kind": "xid", "gpu": 0, "code": 79, "text": ""}
    sender.send(replace(SNAPSHOT, parts={**SNAPSHOT.parts, "events": [{**xid, "code": 31}, xid]}))
    sender.send(SNAPSHOT)
    assert b'DCGM_FI_DEV_XID_ERRORS{gpu="0"' in get(sender)[1]
    assert b"} 79\n" in get(sender)[1]


def test_scrapers_that_never_end_take_nobodys_place_and_one_too_many_is_closed(sender: ListenSender) -> None:
    sender.send(SNAPSHOT)
    stuck = []

    def one_more() -> socket.socket:
        stuck.append(socket.create_connection(("127.0.0.1", sender.port), timeout=60))
        return stuck[-1]

    try:
        for _ in range(listen.MOST_CONNECTIONS - 4):
            one_more().sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")  # never ends
        assert get(sender)[0] == 200
        sender.send(replace(SNAPSHOT, hostname="gpu02"))  # a round is not delayed
        assert b"gpu02" in get(sender)[1]
        for _ in range(4):
            one_more().sendall(b"GET")
        assert one_more().recv(1) == b""
    finally:
        for each in stuck:
            each.close()


def test_a_page_of_slurm_tells_what_it_said_last_until_that_is_old(clock: StillClock) -> None:
    block = {"totals": {"gpus": {"total": 16, "allocated": 12}}, "scheduler": {"server_threads": 3}}
    sender = ListenSender("127.0.0.1:0", SlurmPage(interval=60.0, users=False), clock=clock)
    try:
        sender.send(SNAPSHOT)
        assert get(sender)[0] == 503
        sender.send(replace(SNAPSHOT, parts={"slurm": block}))
        clock.seconds += 180
        sender.send(SNAPSHOT)  # no news of Slurm
        lines = [line for line in get(sender)[1].decode().splitlines() if line[0] != "#"]
        assert lines == [
            *("slurm_gpus_alloc 12", "slurm_gpus_total 16", "slurm_gpus_utilization 0.75", "slurm_scheduler_threads 3"),
        ]
        clock.seconds += 1
        assert get(sender)[0] == 503
    finally:
        sender.close()


def test_a_connection_is_kept_for_the_next_scrape(sender: ListenSender) -> None:
    sender.send(SNAPSHOT)
    connection = http.client.HTTPConnection("127.0.0.1", sender.port, timeout=60)
    for _ in range(3):
        connection.request("GET", "/metrics")
        assert connection.getresponse().read().startswith(b"# HELP")
    connection.close()


def test_no_thread_is_left_once_it_is_closed(clock: StillClock) -> None:
    before = threading.active_count()
    ListenSender("127.0.0.1:0", GpuPage(interval=5.0), clock=clock).close()
    assert threading.active_count() <= before + 1  # it may still be on its way out


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        (":9400", ("", 9400)),
        ("10.0.0.7:9400", ("10.0.0.7", 9400)),
        ("[::1]:9341", ("::1", 9341)),
        ("gpu01:0", ("gpu01", 0)),
    ],
)
def test_an_address_has_a_port_and_perhaps_a_host(address: str, parsed: tuple[str, int]) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize("address", ["9400", ":", ":http", "::1:9400", ":70000", ":-1", ":٣"])
def test_an_address_that_is_none_is_refused_with_one_that_is(address: str) -> None:
    with pytest.raises(ValueError, match="such as :9400"):
        parse_address(address)


def test_a_port_that_is_taken_is_an_error_at_start(sender: ListenSender, clock: StillClock) -> None:
    with pytest.raises(OSError, match="in use"):
        ListenSender(f"127.0.0.1:{sender.port}", GpuPage(interval=5.0), clock=clock)


def test_no_host_means_both_families(clock: StillClock) -> None:
    sender = ListenSender(":0", GpuPage(interval=5.0), clock=clock)
    try:
        assert get(sender)[0] == 503  # by 127.0.0.1
        if socket.has_dualstack_ipv6():
            with socket.create_connection(("::1", sender.port), timeout=60):
                pass
    finally:
        sender.close()


def test_a_mole_that_is_only_scraped_needs_no_file(tmp_path: Path) -> None:
    config = for_listening(":9400", None, {"CLUSTER_DASH_LABELS__RACK": "r1"}, folder=tmp_path)
    assert (config.poll.poll_interval_in_secs, config.json_sender.use, config.listen.address) == (5, False, ":9400")
    assert config.listen.use
    (tmp_path / "config.toml").write_text("[Poll_Settings]\npoll_interval_in_secs = 30\n[Listen]\nuse = false\n")
    config = for_listening(":9401", None, {}, folder=tmp_path)
    assert (config.poll.poll_interval_in_secs, config.listen.use, config.listen.address) == (30, True, ":9401")
    with pytest.raises(ConfigError, match='hostname_label: got "host", expected hostname or Hostname or both'):
        for_listening(":9400", None, {"CLUSTER_DASH_LISTEN__HOSTNAME_LABEL": "host"}, folder=tmp_path)


@pytest.mark.parametrize("machine", sorted(path.parent.name for path in MACHINES.glob("*/expected.json")))
def test_every_recorded_machine_can_be_scraped(machine: str) -> None:
    document = json.loads((MACHINES / machine / "expected.json").read_text())
    document = {"hostname": "gpu01", "timestamp": 1.7e9, **document}
    text = dcgm(document, {}, hostname_label="both", old_after_seconds=15)
    lines = [line for line in text.splitlines() if line[0] != "#"]
    assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)
    assert not {"None", "nan", "True", "False"} & {line.rpartition(" ")[2] for line in lines}


def test_a_gpu_that_was_read_long_ago_and_what_is_not_known_are_absent() -> None:
    document = {
        "hostname": "gpu01",
        "timestamp": 1000.0,
        "gpu": {"a": gpu(0, read_at=980.0), "b": gpu(1, used_mem=None, gpu_util=None)},
    }
    assert dcgm(document, {}, hostname_label="hostname", old_after_seconds=15) == ""
    assert labels({"a": 'x"\\\n', "b": None}) == '{a="x\\"\\\\\\n"}'
