"""Which snapshots are known: what is claimed is so, what is known is written in the end, and nothing grows for ever."""

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_server.history import boots as module
from cluster_dash_server.history.boots import MOST_BOOTS, MOST_RANGES, Boots
from cluster_dash_server.history.settled import SETTLED_SECONDS, OwnSettled
from cluster_dash_server.history.settled import Identity as Id

FEW = 5
DOINGS = st.tuples(st.sampled_from(("take", "write", "flood")), st.integers(0, 2), st.integers(0, 3 * FEW))


@given(st.lists(DOINGS, max_size=60))
def test_nothing_is_claimed_that_is_not_written_and_nothing_is_known_that_never_will_be(
    doings: list[tuple[str, int, int]],
) -> None:
    with patch.object(module, "MOST_RANGES", FEW):
        do(doings)


def do(doings: list[tuple[str, int, int]]) -> None:
    boots = Boots()
    waiting: dict[tuple[str, int], float] = {}
    written: set[tuple[str, int]] = set()
    for at, (doing, boot, seq) in enumerate(doings):
        name = f"boot{boot}"
        if doing == "take" and boots.take("gpu01", name, seq, at):
            waiting[name, seq] = at
        elif doing == "write" and waiting:
            (of, first), taken_at = waiting.popitem()
            boots.write("gpu01", of, first, taken_at)
            written.add((of, first))
        elif doing == "flood":  # of numbers that are no row: more ranges than are remembered
            for each in range(0, 4 * seq, 2):
                if boots.take("gpu01", name, each, at):
                    boots.write("gpu01", name, each, at)
                    written.add((name, each))
        for oldest in (0, seq, None):
            last = boots.last_from("gpu01", name, oldest)
            if last is not None:
                assert {(name, each) for each in range(last if oldest is None else oldest, last + 1)} <= written
    for (of, seq), taken_at in waiting.items():
        boots.write("gpu01", of, seq, taken_at)
    for boot in range(3):
        for seq in range(12 * FEW):
            identity = "gpu01", f"boot{boot}", seq
            assert boots.knows(*identity) is boots.has_written(*identity)


def test_of_a_host_that_invents_boots_those_last_heard_of_are_known() -> None:
    boots = Boots()
    for number in range(10 * MOST_BOOTS):
        for name in (f"boot{number}", "honest"):
            boots.take("gpu01", name, number, 0.0)
            boots.write("gpu01", name, number, 0.0)
    boots.take("gpu02", "boot", 1, 0.0)
    known = [number for number in range(10 * MOST_BOOTS) if boots.knows("gpu01", f"boot{number}", number)]
    assert known == list(range(9 * MOST_BOOTS + 1, 10 * MOST_BOOTS))
    assert boots.last_from("gpu01", "honest", 0) == 10 * MOST_BOOTS - 1
    assert boots.last_from("gpu01", "boot0", 0) is None
    assert boots.knows("gpu02", "boot", 1)


def test_numbers_that_are_no_row_are_known_as_far_as_there_is_room_and_claimed_no_further() -> None:
    boots = Boots()
    for seq in range(0, 10 * MOST_RANGES, 2):
        boots.take("gpu01", "boot", seq, 0.0)
        boots.write("gpu01", "boot", seq, 0.0)
    last = 10 * MOST_RANGES - 2
    assert len(boots.written("gpu01", "boot").ranges()) <= MOST_RANGES
    assert boots.last_from("gpu01", "boot", last) == boots.last_from("gpu01", "boot", None) == last
    assert not boots.knows("gpu01", "boot", 0)
    assert boots.take("gpu01", "boot", 0, 0.0)


def test_a_boot_is_forgotten_once_all_of_it_is_older_than_what_is_kept() -> None:
    boots = Boots()
    boots.take("gpu01", "old", 1, 100.0)
    boots.take("gpu01", "new", 1, 50.0)
    boots.take("gpu01", "new", 2, 200.0)
    boots.take("gpu02", "old", 1, 100.0)
    boots.forget_before(150.0)
    assert [boots.knows("gpu01", name, 1) for name in ("old", "new")] == [False, True]
    assert not boots.knows("gpu02", "old", 1)


def test_what_is_only_taken_may_come_again_after_a_fault() -> None:
    boots = Boots()
    boots.take("gpu01", "boot", 1, 0.0)
    boots.write("gpu01", "boot", 1, 0.0)
    boots.take("gpu01", "boot", 2, 0.0)
    boots.let_go_unwritten()
    assert [boots.take("gpu01", "boot", seq, 0.0) for seq in (1, 2)] == [False, True]


def test_what_one_process_settled_is_forgotten_a_week_after_its_boot() -> None:
    now = [0.0]
    settled = OwnSettled(monotonic=lambda: now[0])
    settled.add([Id("gpu01", "old", 5)])
    now[0] += SETTLED_SECONDS + 1
    settled.add([Id("gpu01", "new", 7)])
    assert [settled.last_from("gpu01", name, None) for name in ("old", "new")] == [None, 7]
    assert [settled.knows("gpu01", *each) for each in (("old", 5), ("new", 7), ("new", 6))] == [False, True, False]
