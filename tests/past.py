"""A past for tests: figures of hosts, minute by minute, as history keeps them."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from cluster_dash_server.figures import NAN
from cluster_dash_server.store import DOINGS, GPU_METRICS, HOST_METRICS, Doing, Figures, GpuId, Holder

H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100-SXM4-40GB"


class Card(NamedTuple):
    """What a GPU does: by whom it is had, and its figures."""

    doing: Doing = "free"
    user: str | None = None
    util: float | None = 0.0
    mem: float | None = 3.0
    model: str | None = H100
    job: str | None = None
    temperature_c: float | None = 40.0


def busy(user: str, util: float = 90.0, model: str | None = H100) -> Card:
    return Card("busy", user, util, 60_000.0, model)


def idle(user: str, model: str | None = H100) -> Card:
    return Card("idle", user, 0.0, 60_000.0, model)


def figures(
    host: str, at: float, cards: Sequence[Card], interval_seconds: float = 60, seq: int | None = None
) -> Figures:
    """Make what is kept of one snapshot."""
    of_gpu: dict[str, list[float | None]] = {
        "gpu_util": [card.util for card in cards],
        "used_mem": [card.mem for card in cards],
        "temperature_c": [card.temperature_c for card in cards],
        "doing": [float(DOINGS.index(card.doing)) for card in cards],
    }
    of_host: dict[str, float | None] = {"cpu_percent": 12.5, "interval_seconds": interval_seconds}
    values: list[float | None] = []
    for metric in GPU_METRICS:
        values += of_gpu.get(metric, [None] * len(cards))
    values += [of_host.get(metric) for metric in HOST_METRICS]
    had = [(place, card) for place, card in enumerate(cards) if card.user is not None]
    return Figures(
        host=host,
        at=at,
        boot_id=None if seq is None else "b",
        seq=seq,
        oldest_seq=None,
        gpus=tuple(GpuId(place, f"GPU-{host}-{place}", card.model, 81_559.0) for place, card in enumerate(cards)),
        values=array("f", [NAN if value is None else value for value in values]),
        holders=tuple(Holder(place, card.user, card.job) for place, card in had if card.user is not None),
        holder_mem=array("f", [NAN if card.mem is None else card.mem for _, card in had]),
    )
