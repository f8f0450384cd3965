"""In which portions and in which order workers get the tests."""

from itertools import pairwise

from tests import workers
from tests.processes import TOP

PLAIN = [f"tests/test_{name}.py::test_{number}" for name in ("one", "two", "three") for number in range(3)]
WAITS = [f"tests/faults/test_chaos.py::test_{number}" for number in range(4)]
LONG = [f"tests/test_browser_everybody.py::test_a_page[{number}]" for number in range(40)]


def test_every_module_that_has_a_place_exists() -> None:
    assert [name for name in (*workers.WAITING, *workers.FIRST) if not (TOP / name).exists()] == []
    assert set(workers.WAITING).isdisjoint(workers.FIRST)


def test_no_test_is_lost_and_those_of_a_unit_follow_each_other_as_they_were() -> None:
    arranged = workers.arranged([*PLAIN, *WAITS, *LONG])
    assert sorted(arranged) == sorted([*PLAIN, *WAITS, *LONG])
    for unit in {workers.unit_of(nodeid) for nodeid in arranged}:
        of_unit = [nodeid for nodeid in (*PLAIN, *WAITS, *LONG) if workers.unit_of(nodeid) == unit]
        begin = arranged.index(of_unit[0])
        assert arranged[begin : begin + len(of_unit)] == of_unit


def test_a_module_is_one_unit_a_long_one_several_and_each_test_that_waits_one() -> None:
    assert len({workers.unit_of(nodeid) for nodeid in PLAIN}) == 3
    assert len({workers.unit_of(nodeid) for nodeid in LONG}) == 4
    assert len({workers.unit_of(nodeid) for nodeid in WAITS}) == 4


def test_long_ones_come_first_in_turns_with_those_that_wait() -> None:
    units = [workers.unit_of(nodeid) for nodeid in workers.arranged([*PLAIN, *WAITS, *LONG])]
    units = [unit for before, unit in pairwise(["", *units]) if unit != before]
    assert [unit.partition("#")[0] for unit in units[::2]][:4] == ["tests/test_browser_everybody.py"] * 4
    assert units[1:8:2] == WAITS
    assert [unit.partition("#")[0] for unit in units[8:]] == [
        f"tests/test_{name}.py" for name in ("one", "two", "three")
    ]
