"""The digest is sent each morning, once; an errand that fails does not keep the others from being done."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from cluster_dash_server.alerts.book import BookError
from cluster_dash_server.cluster import Cluster
from cluster_dash_server.errands import LATE_SECONDS, Errands, Morning
from cluster_dash_server.history.memory import MemoryStore
from cluster_dash_server.nights import Nights
from cluster_dash_server.notices.notice import Notice
from cluster_dash_server.states import Thresholds
from cluster_dash_server.when import zone

BERLIN = zone("Europe/Berlin")
DUE = datetime(2026, 3, 2, 7, 30, tzinfo=BERLIN).timestamp()


class Post:
    """An outbox that takes a notice of one key once, as the real one does."""

    def __init__(self) -> None:
        self.notices: list[tuple[str, Notice]] = []
        self.fails = False

    def put(self, notices: Sequence[tuple[str, Notice]], now: float) -> None:
        if self.fails:
            raise BookError("the disk is full")
        known = {(receiver, notice.key) for receiver, notice in self.notices}
        self.notices += [each for each in notices if (each[0], each[1].key) not in known]


@pytest.fixture
def post() -> Post:
    return Post()


def morning(post: Post, receivers: tuple[str, ...] = ("admins", "chat")) -> Morning:
    store = MemoryStore(lambda: DUE)
    nights = Nights(
        store=store,
        ledger=store,
        newest=lambda begin, end: (),
        cluster=Cluster(Thresholds()),
        pictures=lambda now: (),
        zone=BERLIN,
    )
    link = "https://dash.example.org/{}".format
    return Morning(nights, put=post.put, receivers=receivers, minute_of_day=450, link=link)


def test_the_digest_is_sent_to_each_receiver_once_a_day_at_its_minute(post: Post) -> None:
    sends = morning(post)
    for seconds in (-1, 0, 5, 3600):
        sends.round(DUE + seconds)
        assert len(post.notices) == (0 if seconds < 0 else 2)
    sends.round(DUE + 86_400)
    assert [(receiver, notice.key) for receiver, notice in post.notices] == [
        (receiver, f"digest:{due:.0f}") for due in (DUE, DUE + 86_400) for receiver in ("admins", "chat")
    ]
    notice = post.notices[0][1]
    assert (notice.kind, notice.severity, notice.title) == ("digest", "info", "Monday 2 March: a quiet night")
    assert notice.text.startswith("Now\n  No host has reported yet.\n\nBroke\n  Nothing.")
    assert notice.link == f"https://dash.example.org/digest?from={DUE - 86_400:.0f}&to={DUE:.0f}"


def test_a_server_that_is_started_anew_sends_none_twice_and_one_that_was_away_sends_it_late(post: Post) -> None:
    morning(post).round(DUE + 60)
    morning(post).round(DUE + 120)
    assert len(post.notices) == 2
    away = Post()
    morning(away).round(DUE + LATE_SECONDS + 1)
    assert away.notices == []
    morning(away).round(DUE + LATE_SECONDS - 1)
    assert len(away.notices) == 2


def test_a_digest_that_the_outbox_does_not_take_is_tried_again_and_nobody_gets_what_nobody_asked_for(
    post: Post,
) -> None:
    sends = morning(post)
    post.fails = True
    with pytest.raises(BookError):
        sends.round(DUE)
    post.fails = False
    sends.round(DUE + 5)
    assert len(post.notices) == 2
    morning(post, receivers=()).round(DUE + 5)
    assert len(post.notices) == 2


def test_an_errand_that_fails_is_said_once_and_the_others_are_done(
    clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[float] = []
    why: list[Exception] = [BookError("the disk is full")] * 3 + [ZeroDivisionError()]

    def fails(now: float) -> None:
        if why:
            raise why.pop(0)

    errands = Errands({"one": fails, "other": done.append}, clock)
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            errands.once()
    assert len(done) == 5
    assert [each.getMessage() for each in caplog.records] == ["one: the disk is full", "one failed", "one goes on"]


def test_of_several_replicas_one_does_them() -> None:
    done: list[float] = []
    leads = [False]
    errands = Errands({"first": done.append}, lambda: 7.0, lambda: leads[0])
    errands.once()
    assert done == []
    leads[0] = True
    errands.once()
    assert done == [7.0]
