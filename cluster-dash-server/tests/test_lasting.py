"""What is made at a start, and the garbage collector."""

import gc
from collections.abc import Iterator

import pytest

from cluster_dash_server.lasting import RARE, made_to_last


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_nothing_is_collected_meanwhile_and_what_was_made_is_left_alone_afterwards() -> None:
    with made_to_last():
        assert not gc.isenabled()
        made: list[object] = [[]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(each is made for each in gc.get_objects())


def test_collections_of_all_are_rare_afterwards_and_those_of_what_is_young_as_before() -> None:
    *young, _ = gc.get_threshold()
    with made_to_last():
        pass
    assert gc.get_threshold() == (*young, RARE)


def test_a_start_that_fails_leaves_the_collector_as_it_was() -> None:
    before = gc.get_threshold()
    with pytest.raises(ValueError, match="port"), made_to_last():
        raise ValueError("port")
    assert gc.isenabled()
    assert gc.get_threshold() == before
