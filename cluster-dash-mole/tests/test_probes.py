from collections.abc import Callable
from typing import Any

from cluster_dash_mole.collectors.gpu.probes import ProcessShares
from cluster_dash_mole.collectors.gpu.xids import XIDS, xid_text

Sample = tuple[int, int, int]  # pid, moment, percent


def library(samples: list[Sample]) -> Callable[..., int]:
    """Return a function that answers as nvmlDeviceGetProcessUtilization does."""

    def answer(handle: object, buffer: Any, count: Any, since: object) -> int:
        room, count._obj.value = count._obj.value, len(samples)
        if room < len(samples):
            return 7  # insufficient size
        for place, (pid, moment, percent) in enumerate(samples):
            buffer[place].pid, buffer[place].timeStamp, buffer[place].smUtil = pid, moment, percent
        return 0

    return answer


def test_the_share_of_a_process_is_the_mean_of_its_samples_since_the_last_reading() -> None:
    shares = ProcessShares()
    assert shares.read(library([(7, 100, 10), (8, 150, 40), (7, 200, 30)]), None, 0) == ({7: 20, 8: 40}, 200)
    # the driver's ring keeps old samples: they were told
    assert shares.read(library([(7, 100, 10), (7, 200, 30), (7, 300, 90)]), None, 200) == ({7: 90}, 300)


def test_unused_places_and_impossible_samples_of_the_ring_count_for_nobody() -> None:
    assert ProcessShares().read(library([(0, 0, 0), (7, 100, 4_294_967_295)]), None, 0) == ({}, 0)


def test_a_longer_list_than_the_buffer_is_read_whole() -> None:
    many = [(pid, 100, pid % 100) for pid in range(1, 1000)]
    assert len(ProcessShares().read(library(many), None, 0)[0]) == 999


def test_no_sample_is_no_error() -> None:
    assert ProcessShares().read(lambda *_: 6, None, 5) == ({}, 5)


def test_an_xid_has_a_meaning_and_a_remedy_and_an_unknown_one_its_number() -> None:
    assert all(meaning and remedy for meaning, remedy in XIDS.values())
    assert xid_text(79).startswith("Xid 79: the GPU has fallen off the bus: reboot")
    assert "4711" in xid_text(4711)
