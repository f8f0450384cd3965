"""What the live view begins with: as it stood, with the age of what it shows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster_dash_server.cluster import Cluster
from cluster_dash_server.events import EventLog
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.restart import recall, remember
from cluster_dash_server.snapshot import Seen
from cluster_dash_server.states import Thresholds
from cluster_dash_server.store import EventQuery

MakeSeen = Callable[..., Seen]
MakeGpu = Callable[..., dict[str, Any]]
NOW = 1_700_000_000.0


def restarted(cluster: Cluster) -> Cluster:
    after = Cluster(Thresholds())
    after.begin_with(recall([remember(known) for known in cluster.known(cluster.names())]))
    return after


def test_hosts_stand_as_they_stood(make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    cluster = Cluster(Thresholds())
    held = {"gpu_util": 0.0, "used_mem": 40_000.0}
    hot = {"throttle_reasons": ["hw_slowdown"], "gpu_util": 9.0}
    gpus = [make_gpu(0, **held), make_gpu(1), make_gpu(2, **hot)]
    cluster.offer(make_seen("gpu01", gpus, received_at=NOW, interval_seconds=5, boot_id="b", seq=1))
    gpus = [gpus[0], {**gpus[1], "uuid": None}]  # one has no name now, one is missing
    cluster.offer(make_seen("gpu01", gpus, received_at=NOW + 5, interval_seconds=5, boot_id="b", seq=2))
    cluster.offer(make_seen("gpu02", [], received_at=NOW, boot_id="b", seq=2))
    cluster.offer(make_seen("gpu02", [], received_at=NOW + 200, boot_id="b", seq=3))

    after = restarted(cluster)

    moment = NOW + 1900
    for host in ("gpu01", "gpu02"):
        was, now = cluster.host(host, moment), after.host(host, moment)
        assert was is not None
        assert now is not None
        assert replace(now, seen=was.seen) == was
        assert now.seen.snapshot == was.seen.snapshot
        assert now.seen.received_at == was.seen.received_at
    assert after.host("gpu01", NOW + 10).gpus[0].idle_since == NOW  # type: ignore[union-attr]


def test_what_cannot_be_read_back_is_left_out(
    make_seen: MakeSeen, make_gpu: MakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(Thresholds())
    cluster.offer(make_seen("gpu01", [make_gpu(0)]))
    cluster.offer(make_seen("gpu02", [make_gpu(0)]))
    first, second = [remember(known) for known in cluster.known(("gpu01", "gpu02"))]

    found = list(recall([replace(first, packed=first.packed[:-3]), replace(first, known=b"[1"), second]))

    assert [known.seen.host for known in found] == ["gpu02"]
    assert caplog.text.count("could not be read back") == 2


def test_a_host_that_posted_meanwhile_stays_as_it_is(make_seen: MakeSeen, make_gpu: MakeGpu) -> None:
    before, after = Cluster(Thresholds()), Cluster(Thresholds())
    before.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW))
    after.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW + 60))

    after.begin_with(recall([remember(known) for known in before.known(["gpu01"])]))

    assert after.host("gpu01", NOW + 61).seen.received_at == NOW + 60  # type: ignore[union-attr]


def test_events_are_there_again_and_the_servers_own_absence_is_nobodys_silence(
    make_seen: MakeSeen, make_gpu: MakeGpu
) -> None:
    ledger = MemoryStore(lambda: NOW)
    log = EventLog(Thresholds(), ledger=ledger)
    cluster = Cluster(Thresholds(), witness=log.witness)
    xid = [{"at": NOW, "kind": "xid", "gpu": 0, "code": 79, "text": "fell off"}]
    cluster.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW, boot_id="b", seq=1, events=xid))
    kept = log.newest()
    assert ledger.events(EventQuery(begin=0, end=NOW * 2)) == kept != []

    again = EventLog(Thresholds(), ledger=ledger)
    again.begin_with([ledger._events[0]], NOW + 3600)
    after = Cluster(Thresholds(), witness=again.witness)
    after.begin_with(recall([remember(known) for known in cluster.known(["gpu01"])]))
    assert again.newest() == kept
    after.offer(make_seen("gpu01", [make_gpu(0)], received_at=NOW + 3610, boot_id="b", seq=2, events=xid))
    assert "host_silent" not in [event.kind for event in again.newest()]
