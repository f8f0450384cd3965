"""Rows: what is known of a host goes through bytes unchanged, and what is no row is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_server.cluster import Cluster, KnownHost
from cluster_dash_server.inflate import pack
from cluster_dash_server.sharing import rows
from cluster_dash_server.snapshot import dumps
from cluster_dash_server.states import Thresholds


@pytest.fixture
def known(make_seen: Any, make_gpu: Any) -> KnownHost:
    """A host of which more is known than its snapshot says."""
    cluster = Cluster(Thresholds())
    gpus = [make_gpu(0, throttle_reasons=["sw_power_cap"]), make_gpu(1, read_at=5.0), make_gpu(2)]
    cluster.offer(make_seen("gpu01", gpus, boot_id="b", seq=1, received_at=1.0))
    gpus[1] |= {"uuid": None, "error": "lost"}
    cluster.offer(make_seen("gpu01", gpus[:2], boot_id="b", seq=2, received_at=6.5, skew_seconds=-3.0))
    cluster.amend("gpu01", lambda host: KnownHost(**{name: getattr(host, name) for name in KnownHost.__slots__}))
    return cluster.known(["gpu01"])[0]


def test_what_is_known_of_a_host_comes_back(known: KnownHost) -> None:
    back = rows.from_bytes(rows.to_bytes(known))
    assert back == KnownHost(**{**{name: getattr(known, name) for name in KnownHost.__slots__}, "change": 0})
    assert [each.missing_since for each in back.gpus] == [None, None, 6.5]
    assert back.gpus[1].gpu.uuid is not None
    assert back.edition == 1


def test_other_rows_come_back() -> None:
    assert rows.gone_from_bytes(rows.gone_to_bytes(5.5, True)) == (5.5, True)
    assert rows.slurm_from_bytes(rows.slurm_to_bytes("head", 5.5, 2, b"packed")) == ("head", 5.5, 2, b"packed")
    assert rows.errand_from_bytes(rows.errand_to_bytes(5.5, "forget_user", "ann")) == (5.5, "forget_user", "ann")


def test_a_host_that_is_there_is_not_gone(known: KnownHost) -> None:
    assert rows.gone_from_bytes(rows.to_bytes(known)) is None


def test_a_row_of_another_release_is_refused(known: KnownHost) -> None:
    row = rows.to_bytes(known)
    later = pack(dumps([rows.FORM + 1]))
    with pytest.raises(rows.RowError, match="expected"):
        rows.from_bytes(len(later).to_bytes(4) + later + row[-9:])


@given(st.binary(max_size=60))
def test_bytes_that_are_no_row_are_refused(noise: bytes) -> None:
    for read in (rows.from_bytes, rows.slurm_from_bytes, rows.errand_from_bytes):
        with pytest.raises(rows.RowError):
            read(noise)
    with pytest.raises(rows.RowError):
        rows.gone_from_bytes(bytes(4) + noise)
