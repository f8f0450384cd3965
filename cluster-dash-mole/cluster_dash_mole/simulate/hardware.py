"""The GPU models of a simulated fleet, and what they report at rest and at their limits."""

from itertools import accumulate
from typing import NamedTuple


class Model(NamedTuple):
    """One model of GPU; `share` is of the fleet, of 1, `total_mem` in 2^20 bytes."""

    name: str
    share: float
    total_mem: int
    idle_power_w: float
    power_limit_w: float
    temperature_slowdown_c: int
    idle_clock_mhz: int
    sm_clock_max_mhz: int
    memory_clock_max_mhz: int
    has_fan: bool


# name, share, total_mem, idle_power_w, power_limit_w, slowdown, idle clock, SM clock, memory clock, fan
MODELS = (
    Model("NVIDIA H100 80GB HBM3", 0.4, 81_559, 71, 700, 87, 345, 1_980, 2_619, False),
    Model("NVIDIA A100-SXM4-80GB", 0.25, 81_920, 58, 400, 92, 210, 1_410, 1_593, False),
    Model("NVIDIA L40S", 0.2, 46_068, 33, 350, 92, 210, 2_520, 9_001, False),
    Model("NVIDIA RTX A6000", 0.15, 49_140, 22, 300, 95, 210, 2_100, 8_001, True),
)


def model_at(place: float) -> Model:
    """Return the model of the host at a place in the fleet, from 0 to below 1: a site buys in batches."""
    ends = accumulate(model.share for model in MODELS)
    return next((model for model, end in zip(MODELS, ends, strict=True) if place < end), MODELS[-1])
