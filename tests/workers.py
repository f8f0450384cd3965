"""Which tests a worker of `pytest -n` gets at a time, in which order: none is to be left with a long one at the end.

A worker takes the next unit when it is done with one. Units that wait, and units that compute, take turns, so that the
cores have work while a server is away or a minute has to pass.
"""

import itertools
from collections.abc import Sequence
from zlib import crc32

WAITING = (
    "cluster-dash-mole/tests/test_gpu.py",
    "tests/faults/test_chaos.py",
    "tests/faults/test_clock.py",
    "tests/faults/test_disk.py",
    "tests/faults/test_outage.py",
    "tests/faults/test_relay.py",
    "tests/faults/test_replicas.py",
    "tests/faults/test_versions.py",
    "tests/faults/test_way.py",
    "tests/test_alerts_end_to_end.py",
    "tests/test_alerts_replicas.py",
    "tests/test_browser_mole.py",
    "tests/test_end_to_end.py",
    "tests/test_history_kills.py",
    "tests/test_history_server.py",
    "tests/test_mole_endurance.py",
    "tests/test_notices.py",
    "tests/test_relay.py",
    "tests/test_senders_together.py",
    "tests/test_simulate.py",
    "tests/test_systemd.py",
)
"""Modules whose tests mostly wait, and share nothing that is dear to set up: each test is a unit."""

FIRST = {
    "tests/test_slurm_end_to_end.py": 1,
    "tests/test_dist.py": 1,
    "tests/test_machines_set_up.py": 1,
    "tests/test_commands.py": 1,
    "tests/test_browser_long.py": 1,
    "tests/test_browser_everybody.py": 4,
    "tests/test_history_engines.py": 1,
    "tests/test_browser_history.py": 2,
    "tests/test_hostile.py": 1,
    "tests/test_setup_walk.py": 1,
    "tests/test_links.py": 1,
    "tests/test_containers.py": 1,
    "tests/test_docs.py": 1,
    "tests/test_browser.py": 2,
    "tests/test_slurm_large.py": 1,
}
"""Of all others, those that take longest, and in how many units: each unit has the fixtures of its module to itself."""


def module_of(nodeid: str) -> str:
    """Return the file that a test is in."""
    return nodeid.partition("::")[0]


def unit_of(nodeid: str) -> str:
    """Return the name of the unit that a test belongs to; the same in each process."""
    module = module_of(nodeid)
    if module in WAITING:
        return nodeid
    return f"{module}#{crc32(nodeid.encode()) % FIRST.get(module, 1)}"


def arranged(nodeids: Sequence[str]) -> list[str]:
    """Return all of them, unit by unit, as workers are to take these; within a unit the order is as it was."""
    units: dict[str, list[str]] = {}
    for nodeid in nodeids:
        units.setdefault(unit_of(nodeid), []).append(nodeid)
    places = {module: place for place, module in enumerate(FIRST)}
    waiting = [unit for unit in units if module_of(unit) in WAITING]
    others = [unit for unit in units if module_of(unit) not in WAITING]
    others.sort(key=lambda unit: places.get(unit.partition("#")[0], len(places)))
    turns = itertools.chain.from_iterable(itertools.zip_longest(others, waiting))
    return [nodeid for unit in turns if unit is not None for nodeid in units[unit]]
