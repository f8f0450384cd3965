"""A night of faults by a script: exactly the messages that are expected, each within its time."""

from collections.abc import Callable
from datetime import UTC
from typing import Any

from cluster_dash_server.alerts.book import Maintenance
from cluster_dash_server.hostlist import expand
from cluster_dash_server.nights import Nights
from cluster_dash_server.when import Span

MINUTE, HOUR = 60.0, 3600.0
Gpu = Callable[..., dict[str, Any]]
HOSTS = expand("gpu[01-40]")


def held(make_gpu: Gpu, index: int, user: str) -> dict[str, Any]:
    return make_gpu(index, used_mem=40_000.0, users={user: {"1": {"mem": 1.0, "time": 1.0, "name": "python"}}})


def test_a_scripted_night_gives_exactly_the_expected_messages_each_within_its_time(site: Any, make_gpu: Gpu) -> None:
    def well(name: str, **fields: Any) -> None:
        rack = f"r{(int(name[3:]) - 1) // 4 + 1}"
        site.host(name, [make_gpu(0), make_gpu(1)], general={"labels": {"rack": rack}}, **fields)

    def ill(name: str, *gpus: dict[str, Any], **fields: Any) -> None:
        site.hosts[name] = {**site.hosts[name], **fields}
        if gpus:
            site.hosts[name]["gpu"] = {f"{each['index']}_H100_{each['uuid'][4:10]}": each for each in gpus}

    def full(percent: float) -> dict[str, Any]:
        return {"disk": {"/": {"mount_point": "/", "percent_used": percent}}}

    def maintenance() -> None:
        hosts = "gpu[37-40]"
        site.book.maintain(
            Maintenance(hosts=hosts, by="nora", reason="", begins_at=site.now, ends_at=site.now + 2 * HOUR)
        )

    script: list[tuple[float, Callable[[], object]]] = [
        (10 * MINUTE, lambda: ill("gpu01", make_gpu(0, error="NVML 15: lost"), make_gpu(1))),
        (10 * MINUTE, lambda: site.event("gpu01", kind="xid", gpu=0, code=79, text="Xid 79: fallen off the bus")),
        (20 * MINUTE, lambda: ill("gpu02", held(make_gpu, 0, "alice"), held(make_gpu, 1, "alice"))),
        (30 * MINUTE, lambda: site.silent.update(expand("gpu[05-08]"))),  # all of rack r2
        (40 * MINUTE, lambda: site.silent.add("gpu09")),
        (45 * MINUTE, lambda: site.silent.discard("gpu09")),  # back before it was down
        (50 * MINUTE, lambda: ill("gpu10", make_gpu(0, temperature_c=92.0, temperature_slowdown_c=90.0), make_gpu(1))),
        (51 * MINUTE, lambda: ill("gpu10", make_gpu(0, temperature_c=70.0, temperature_slowdown_c=90.0), make_gpu(1))),
        (60 * MINUTE, maintenance),
        (61 * MINUTE, lambda: site.silent.update(expand("gpu[37-40]"))),
        (70 * MINUTE, lambda: ill("gpu11", **full(97.0))),
        (80 * MINUTE, lambda: site.silent.difference_update(expand("gpu[05-08]"))),
        (95 * MINUTE, site.restart),
        (100 * MINUTE, lambda: (site.post("gpu12", stopping=True), site.silent.add("gpu12"))),
        (110 * MINUTE, lambda: ill("gpu11", **full(60.0))),
        (150 * MINUTE, lambda: site.silent.difference_update(expand("gpu[37-40]"))),
        (160 * MINUTE, lambda: ill("gpu02", make_gpu(0), make_gpu(1))),
        (170 * MINUTE, lambda: ill("gpu01", make_gpu(0), make_gpu(1))),
    ]
    expected = [
        (10 * MINUTE, 1 * MINUTE, "firing gpu01 GPU 0: fatal Xid"),
        (40 * MINUTE, 1 * MINUTE, "firing 4 hosts of rack r2: silent"),
        (75 * MINUTE, 1 * MINUTE, "firing gpu11: disk full"),
        (90 * MINUTE, 1 * MINUTE, "resolved 4 hosts of rack r2: silent"),
        (120 * MINUTE, 1 * MINUTE, "resolved gpu11: disk full"),
        (140 * MINUTE, 1 * MINUTE, "firing alice, gpu02 GPUs 0, 1: held without work"),
        (170 * MINUTE, 1 * MINUTE, "resolved alice, gpu02 GPUs 0, 1: held without work"),
        (180 * MINUTE, 1 * MINUTE, "resolved gpu01 GPU 0: in error, after fatal Xid"),
    ]
    for name in HOSTS:
        well(name)
    passed = 0.0
    for at, act in script:
        site.run(at - passed)
        passed = at
        act()
    site.run(4 * HOUR - passed)
    assert site.titles == [title for _, _, title in expected]
    for told, (at, within, title) in zip(site.told, expected, strict=True):
        assert at <= told.at <= at + within, title
    assert site.book.firing() == []
    digest = Nights(
        store=site.store,
        ledger=site.store,
        newest=lambda begin, end: site.events.newest(begin=begin, end=end),
        cluster=site.cluster,
        pictures=site.slurm.pictures,
        zone=UTC,
    ).told(Span(begin=site.now - 4 * HOUR, end=site.now, is_relative=False), site.now)
    assert [(line.topic, line.text) for line in digest.lines] == [
        ("Now", "78 of 80 GPUs free: 78 × H100 80G. 1 of 40 hosts down."),
        ("Healed", "gpu[05-08] (4 hosts) silent Tue 22:44 to 23:33 (49 min)"),
        ("Healed", "gpu09 silent Tue 22:54 to 22:58 (4 min)"),
        ("Healed", "gpu[37-40] (4 hosts) silent Tue 23:15 to 00:43 (88 min)"),
        ("Healed", "gpu01 GPU 0 in error Tue 22:23 to 01:03 (3 h): Xid 79: fallen off the bus"),
        ("Changed", "Moles stopped on purpose: gpu12"),
        ("Used", "Nobody held a GPU."),
        ("Needs a hand today", "Nothing."),
    ]
