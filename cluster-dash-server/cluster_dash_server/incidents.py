"""What broke and what healed: events that belong together, as one stretch of time. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from cluster_dash_server.store import Event

Kind = Literal["silent", "gpu", "slow"]
"""A host that did not post, a GPU that was lost or in error, a GPU slowed down by heat or power brake."""

BEGINS: dict[str, Kind] = {"host_silent": "silent", "gpu_lost": "gpu", "gpu_error": "gpu", "throttling_began": "slow"}
ENDS: dict[str, Kind] = {"host_back": "silent", "gpu_back": "gpu", "gpu_replaced": "gpu", "throttling_ended": "slow"}
"""The kinds of events that begin and end one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One thing that broke.

    Attributes:
        gpu: which GPU, or what the mole calls it; None: the host, or all its GPUs.
        began_at: Unix s; None: before the first event that is known.
        ended_at: Unix s; None: no event says so.
    """

    kind: Kind
    host: str
    gpu: int | str | None
    text: str
    began_at: float | None
    ended_at: float | None


def incidents(events: Iterable[Event]) -> list[Incident]:
    """Join what began with what ended it, by when it began; what was never seen to begin comes first.

    Args:
        events: in any order.
    """
    found: list[Incident] = []
    lasting: dict[tuple[Kind, str, int | str | None], int] = {}  # places in `found`
    for event in sorted(events, key=lambda event: event.at):
        begins, ends = BEGINS.get(event.kind), ENDS.get(event.kind)
        if begins is not None and (begins, event.host, event.gpu) not in lasting:
            lasting[begins, event.host, event.gpu] = len(found)
            found.append(
                Incident(
                    kind=begins,
                    host=event.host,
                    gpu=event.gpu,
                    text=event.text,
                    began_at=event.at,
                    ended_at=None,
                )
            )
        elif ends is not None:
            ended = [key for key in lasting if key[:2] == (ends, event.host) and _is_of(key[2], event.gpu)]
            for key in ended:
                place = lasting.pop(key)
                found[place] = replace(found[place], ended_at=event.at)
            if not ended and event.kind != "gpu_replaced":
                found.append(
                    Incident(
                        kind=ends,
                        host=event.host,
                        gpu=event.gpu,
                        text=event.text,
                        began_at=None,
                        ended_at=event.at,
                    )
                )
    return sorted(found, key=lambda each: -1.0 if each.began_at is None else each.began_at)


def _is_of(broken: int | str | None, healed: int | str | None) -> bool:
    """Say whether an end is that of a beginning: one that names no GPU is about all of its host."""
    return broken == healed or broken is None or healed is None
