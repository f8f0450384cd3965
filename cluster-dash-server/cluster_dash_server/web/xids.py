"""The Xids of the last day, as the overview lists them: each a line that leads to its GPU. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from cluster_dash_server.store import Event
from cluster_dash_server.web import words

DAY_SECONDS = 86_400
MOST_LINES = 8
"""Lines that are shown; the rest is in the list of events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """One kind of Xid of one GPU: when it came last, how often, and what it means."""

    host: str
    gpu: int | str | None
    code: int | str | None
    at: float
    count: int
    text: str


def lines(events: Iterable[Event], hosts: Iterable[str], now: float) -> tuple[list[Xid], int, int]:
    """Return the Xids of the last day on some hosts, the newest first, how many are left out, and the limit.

    Args:
        events: newest first.
        hosts: of which hosts.
        now: Unix s.
    """
    meant = set(hosts)
    found: dict[tuple[str, object, object], list[Event]] = {}
    for event in events:
        if event.kind == "xid" and now - event.at <= DAY_SECONDS and event.host in meant:
            found.setdefault((event.host, event.gpu, event.code), []).append(event)
    xids = [
        Xid(
            host=each[0].host,
            gpu=each[0].gpu,
            code=each[0].code,
            at=each[0].at,
            count=len(each),
            text=_words(each[0], len(each), now),
        )
        for each in found.values()
    ]
    return xids[:MOST_LINES], max(0, len(xids) - MOST_LINES), MOST_LINES


def _words(event: Event, count: int, now: float) -> str:
    gpu = "" if event.gpu is None else f" GPU {words.cut(str(event.gpu), 24)}"
    code = "" if event.code is None else f" {words.cut(str(event.code), 16)}"
    often = f", {count} times" if count > 1 else ""
    return (
        f"{event.host}{gpu} Xid{code}: {words.cut(event.text.rstrip('.'), 100)}, {words.age(now - event.at)} ago{often}"
    )
