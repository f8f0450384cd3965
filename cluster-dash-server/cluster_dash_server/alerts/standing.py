"""How alerts stand now, and what a viewer may know of them."""

from dataclasses import replace
from typing import Literal, get_args

from cluster_dash_server.access.viewers import Viewer, current
from cluster_dash_server.alerts.book import Alert, Book, BookError
from cluster_dash_server.privacy import unnamed
from cluster_dash_server.store import Event

Standing = Literal["firing", "acknowledged", "silenced", "ended"]
STANDINGS: tuple[Standing, ...] = get_args(Standing)
UNKNOWN_NAMES = ("who",)
"""Facts that name people: who may not know them is not told these."""
MOST_SHOWN = 200


def standing(alert: Alert, now: float) -> Standing:
    """Say how an alert stands."""
    if alert.ended_at is not None:
        return "ended"
    if alert.silenced_until is not None and alert.silenced_until > now:
        return "silenced"
    return "firing" if alert.acknowledged is None else "acknowledged"


def gravity(alert: Alert) -> tuple[int, float]:
    """Return what the gravest, of those the newest, is sorted to the front by."""
    return ("critical", "warning", "info").index(alert.severity), -alert.began_at


def open_count(book: Book, now: float) -> int:
    """Count the alerts that nobody has taken on; 0 where none can be asked for: the pages say why."""
    try:
        return book.open_count(now)
    except BookError:
        return 0


def open_titles(book: Book, now: float, viewer: Viewer | None) -> list[str]:
    """Return the titles of the alerts that nobody has taken on, the gravest first.

    Args:
        book: where alerts are kept.
        now: Unix s.
        viewer: who is told; None: somebody who may know all names.
    """
    found = sorted(_open(book, now), key=gravity)
    return [(each if viewer is None else seen_by(each, viewer)).title for each in found]


def _open(book: Book, now: float) -> list[Alert]:
    try:
        return [each for each in book.firing() if standing(each, now) == "firing"]
    except BookError:
        return []


def seen_by(alert: Alert, viewer: Viewer) -> Alert:
    """Return an alert as a viewer may know it: without names of people where they may not."""
    if viewer.sees_names:
        return alert
    facts = [(name, text) for name, text in alert.facts if name not in UNKNOWN_NAMES]
    acknowledged = alert.acknowledged
    nameless = replace(
        alert,
        user=None,
        facts=tuple(facts),
        labels={name: text for name, text in alert.labels.items() if name != "user"},
        acknowledged=None if acknowledged is None else replace(acknowledged, by="somebody", note=""),
    )
    if alert.user is None:
        return nameless
    return replace(
        nameless,
        title=unnamed(alert.title, alert.user),
        facts=tuple([(name, unnamed(text, alert.user)) for name, text in facts]),
    )


def marks(book: Book, begin: float, end: float) -> list[Event]:
    """Return the alerts that began between two moments as marks of a chart, as the viewer may know them."""
    try:
        found = [seen_by(each, current.get()) for each in book.history(begin, end, MOST_SHOWN)]
    except BookError:
        return []
    return [
        Event(at=each.began_at, host=each.host or "", gpu=each.gpu, kind="alert", code=each.rule, text=each.title)
        for each in found
        if begin <= each.began_at <= end
    ]
