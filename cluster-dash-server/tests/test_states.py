"""The state of a GPU: contract section 6, first that fits wins."""

from collections.abc import Callable
from typing import Any

import pytest

from cluster_dash_server.snapshot import Gpu
from cluster_dash_server.states import (
    Headline,
    State,
    Thresholds,
    figures_are_old,
    gpu_state,
    headline,
    idle_while_in_use,
    silence,
)

DEFAULTS = Thresholds()
NOW = 1_700_000_000.0


@pytest.fixture
def make() -> Callable[..., Gpu]:
    def gpu(**fields: Any) -> Gpu:
        known: dict[str, Any] = {
            **{"key": "0_H100_000000", "index": 0, "name": "NVIDIA H100", "uuid": "GPU-0", "pci_bus_id": None},
            **{"total_mem": 80_000.0, "used_mem": 3.0, "gpu_util": 0.0, "temperature_c": None, "power_w": None},
            **{"error": None, "users": {}, "working": 0, "jobs": (), "read_at": None, "throttle_reasons": ()},
        }
        return Gpu(**{**known, **fields})

    return gpu


def state(gpu: Gpu, **facts: Any) -> State:
    usual = {"missing": False, "old": False, "idle_since": None, "silent": None, "now": NOW, "thresholds": DEFAULTS}
    return gpu_state(gpu, **{**usual, **facts})


@pytest.mark.parametrize(
    ("fields", "facts", "wanted"),
    [
        ({}, {}, "free"),
        ({"users": {"gdm": 1}, "working": 0}, {}, "free"),
        ({"users": {"alice": 1}, "working": 1}, {}, "busy"),
        ({"gpu_util": 5.0}, {}, "busy"),
        ({"gpu_util": 4.9}, {}, "free"),
        ({"used_mem": 1600.0}, {}, "free"),
        ({"used_mem": 1601.0}, {}, "busy"),
        ({"used_mem": 513.0, "total_mem": 8000.0}, {}, "busy"),
        ({"used_mem": 513.0, "total_mem": None}, {}, "busy"),
        ({"used_mem": 9000.0}, {"idle_since": NOW - 1799}, "busy"),
        ({"used_mem": 9000.0}, {"idle_since": NOW - 1800}, "held"),
        ({"used_mem": 9000.0, "error": "GPU is lost"}, {"idle_since": NOW - 1800}, "error"),
        ({}, {"missing": True}, "error"),
        ({}, {"old": True}, "unknown"),
        ({"used_mem": 9000.0}, {"old": True, "idle_since": NOW - 1800}, "unknown"),
        ({"error": "no answer"}, {"old": True}, "error"),
        ({"error": "GPU is lost"}, {"silent": "stale"}, "stale"),
        ({}, {"silent": "down"}, "down"),
        ({"users": None, "working": None, "used_mem": None, "gpu_util": None}, {}, "unknown"),
        ({"users": None, "working": None, "used_mem": None}, {}, "unknown"),
        ({"users": None, "working": None, "gpu_util": None}, {}, "unknown"),
        ({"users": None, "working": None}, {}, "free"),
        ({"used_mem": None, "gpu_util": None}, {}, "free"),
        ({"used_mem": None, "gpu_util": None, "users": {"alice": 1}, "working": 1}, {}, "busy"),
    ],
)
def test_the_first_state_that_fits_wins(fields: Any, facts: Any, wanted: State, make: Callable[..., Gpu]) -> None:
    assert state(make(**fields), **facts) == wanted


def test_a_silent_host_is_stale_after_60_s_or_3_intervals_and_down_after_10_min_or_10_intervals() -> None:
    assert silence(60, 5, DEFAULTS) is None
    assert silence(61, 5, DEFAULTS) == "stale"
    assert silence(61, 30, DEFAULTS) is None
    assert silence(91, 30, DEFAULTS) == "stale"
    assert silence(600, 5, DEFAULTS) == "stale"
    assert silence(601, 5, DEFAULTS) == "down"
    assert silence(2999, 300, DEFAULTS) == "stale"
    assert silence(3001, 300, DEFAULTS) == "down"


def test_a_gpu_whose_use_is_unknown_never_idles(make: Callable[..., Gpu]) -> None:
    assert idle_while_in_use(make(used_mem=9000.0, gpu_util=4.0), DEFAULTS)
    assert not idle_while_in_use(make(used_mem=9000.0, gpu_util=None), DEFAULTS)
    assert not idle_while_in_use(make(used_mem=None, gpu_util=0.0), DEFAULTS)


@pytest.mark.parametrize(
    ("states", "silent", "error", "wanted"),
    [
        (["busy", "free", "error"], None, None, Headline("error", 1)),
        (["busy", "held", "held", "free"], None, None, Headline("held", 2)),
        (["busy", "free", "free"], None, None, Headline("free", 2)),
        (["busy", "busy"], None, None, Headline("busy", 2)),
        (["stale", "stale"], "stale", None, Headline("stale", None)),
        ([], None, None, Headline(None, None)),
        ([], None, "driver not loaded", Headline("error", None)),
        ([], "down", "driver not loaded", Headline("down", None)),
    ],
)
def test_the_headline_of_a_host_says_the_worst_first(states: Any, silent: Any, error: Any, wanted: Headline) -> None:
    assert headline(states, silent, error) == wanted


@pytest.mark.parametrize(
    ("read_at", "old"), [(None, False), (NOW, False), (NOW - 15, False), (NOW - 15.1, True), (NOW + 9, False)]
)
def test_figures_are_old_after_three_intervals(read_at: float | None, old: bool) -> None:
    assert figures_are_old(read_at, NOW, 5, DEFAULTS) is old
