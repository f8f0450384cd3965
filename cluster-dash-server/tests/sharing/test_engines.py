"""The suite that each kind of engine passes. The root's tests run it on a real Redis."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_dash_server.sharing import engine as seam
from cluster_dash_server.sharing.engine import MOST_CHANGES, MOST_OFFERS, Engine, Offer, Order, is_newer

NOW = 1_700_000_000.0


def epoch_of(engine: Engine) -> str:
    return engine.exchange("", 0, ()).epoch


def put(engine: Engine, *offers: Offer) -> list[int | None]:
    """Put rows as one does who knows all that is there."""
    epoch, since = epoch_of(engine), 0
    taken: list[int | None] = []
    waiting = list(offers)
    while waiting:
        answer = engine.exchange(epoch, since, waiting[:MOST_OFFERS])
        since = answer.version
        taken += answer.taken
        del waiting[: len(answer.taken)]
    return taken


def row(key: str, at: float = NOW, seq: int | None = None, text: bytes = b"row") -> Offer:
    return Offer(key, Order("" if seq is None else "boot", seq, at, 0), text)


def test_a_row_is_given_to_who_has_not_seen_it_in_the_order_in_which_rows_came(kind: Any) -> None:
    one, other = kind.open(), kind.open()

    assert put(one, row("a", text=b"1"), row("b", text=b"2")) == [1, 2]
    assert put(one, row("a", NOW + 1, text=b"3")) == [3]

    answer = other.exchange(epoch_of(other), 0, ())
    assert [(each.key, each.version, each.row) for each in answer.changes] == [("b", 2, b"2"), ("a", 3, b"3")]
    assert (answer.version, answer.is_all) == (3, True)
    assert other.exchange(answer.epoch, 3, ()).changes == []


def test_who_puts_gets_what_others_put_before_and_not_its_own(kind: Any) -> None:
    one, other = kind.open(), kind.open()
    epoch = epoch_of(one)
    put(other, row("b"))

    answer = one.exchange(epoch, 0, [row("a")])

    assert [each.key for each in answer.changes] == ["b"]
    assert (answer.taken, answer.version) == ([2], 2)
    assert one.exchange(epoch, 2, ()).changes == []


def test_who_knows_no_epoch_or_another_one_is_told_it_and_nothing_more(kind: Any) -> None:
    engine = kind.open()
    put(engine, row("a"))

    answer = engine.exchange("another", 0, [row("b")])

    assert (answer.epoch, answer.changes, answer.taken) == (epoch_of(engine), [], [])
    assert [each.key for each in engine.exchange(answer.epoch, 0, ()).changes] == ["a"]


def test_an_engine_that_has_lost_all_is_in_another_epoch(kind: Any) -> None:
    engine = kind.open()
    put(engine, row("a"))
    before = epoch_of(engine)

    kind.lose_all()

    answer = engine.exchange(before, 1, [row("b")])
    assert answer.epoch not in ("", before)
    assert answer.taken == []
    assert engine.exchange(answer.epoch, 0, ()).changes == []


def test_many_rows_come_in_parts_and_nothing_is_put_until_the_last(kind: Any) -> None:
    one, other = kind.open(), kind.open()
    put(one, *(row(f"host{number:04}") for number in range(MOST_CHANGES + 1)))
    epoch = epoch_of(one)

    first = other.exchange(epoch, 0, [row("mine")])
    assert (len(first.changes), first.is_all, first.taken) == (MOST_CHANGES, False, [])
    assert first.version == first.changes[-1].version
    last = other.exchange(epoch, first.version, [row("mine")])
    assert (len(last.changes), last.is_all, last.taken) == (1, True, [MOST_CHANGES + 2])


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        (Order("b", 10, NOW, 0), Order("b", 9, NOW + 5, 0)),
        (Order("b", 9, NOW, 1), Order("b", 9, NOW, 0)),
        (Order("c", 1, NOW + 0.5, 0), Order("b", 9, NOW, 0)),
        (Order("", None, NOW + 0.5, 0), Order("b", 9, NOW, 0)),
        (Order("b", 9, NOW + 0.5, 0), Order("", None, NOW, 0)),
        (Order("", None, NOW, 2), Order("", None, NOW, 1)),
        (Order("b", 2**60 + 1, NOW, 0), Order("b", 2**60, NOW, 0)),
        (Order("b\nb c", 2, NOW, 0), Order("b\nb c", 1, NOW, 0)),
    ],
)
def test_the_newer_of_two_wins_in_whichever_order_they_come(kind: Any, newer: Order, older: Order) -> None:
    engine = kind.open()
    assert put(engine, Offer("a", older, b"old"), Offer("b", newer, b"new")) == [1, 2]
    assert put(engine, Offer("a", newer, b"new"), Offer("b", older, b"old")) == [3, None]
    assert put(engine, Offer("a", newer, b"again")) == [None]
    answer = engine.exchange(epoch_of(engine), 0, ())
    assert {each.key: each.row for each in answer.changes} == {"a": b"new", "b": b"new"}


ORDERS = st.builds(
    Order,
    st.sampled_from(["", "boot", "another boot"]),
    st.one_of(st.none(), st.integers(0, 3), st.sampled_from([9, 10, 2**53, 2**53 + 1])),
    st.sampled_from([NOW, NOW + 0.000001, NOW + 1, NOW + 1000]),
    st.integers(0, 11),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(ORDERS, min_size=2, max_size=8))
def test_engines_order_rows_as_replicas_do(kind: Any, orders: list[Order]) -> None:
    kind.lose_all()
    engine = kind.open()
    known: Order | None = None
    for order in orders:
        is_taken = put(engine, Offer("a", order, b"")) != [None]
        assert is_taken is (known is None or is_newer(order, known))
        known = order if is_taken else known
    engine.close()


def test_rows_are_dropped_while_nobody_has_put_another(kind: Any) -> None:
    engine = kind.open()
    put(engine, row("a"), row("b"), row("c"))
    put(engine, row("b", NOW + 1))

    engine.drop({"a": row("a").order, "b": row("b").order})

    answer = engine.exchange(epoch_of(engine), 0, ())
    assert [(each.key, each.version) for each in answer.changes] == [("c", 3), ("b", 4)]
    assert (answer.whole_from, answer.version) == (1, 4)


def test_of_what_is_no_host_nobody_needs_to_know_that_it_was_dropped(kind: Any) -> None:
    engine = kind.open()
    put(engine, row("a"), row("settled/life/5"))

    engine.drop({"settled/life/5": row("settled/life/5").order})

    answer = engine.exchange(epoch_of(engine), 0, ())
    assert ([each.key for each in answer.changes], answer.whole_from) == (["a"], 0)


def test_any_bytes_and_any_name_come_back(kind: Any) -> None:
    engine = kind.open()
    names = ["slurm/höhle \n", "ὕλη", "a b 'c' \"d\"", "\x7f", "\ud800"]
    texts = [bytes(range(256)), b"", b"\r\n$-1\r\n", random.Random(1).randbytes(9000), b"x"]
    put(engine, *(row(name, text=text) for name, text in zip(names, texts, strict=True)))
    answer = engine.exchange(epoch_of(engine), 0, ())
    assert [(each.key, each.row) for each in answer.changes] == list(zip(names, texts, strict=True))


def test_the_engine_tells_its_time(kind: Any) -> None:
    first = kind.open().exchange("", 0, ()).at
    assert first > NOW
    assert kind.open().exchange("", 0, ()).at >= first


def test_an_engine_that_nobody_reaches_says_so(kind: Any) -> None:
    engine = kind.open()
    epoch = epoch_of(engine)
    kind.part(is_away=True)
    with pytest.raises(seam.Away):
        engine.exchange(epoch, 0, ())
    with pytest.raises(seam.Away):
        engine.drop({"a": row("a").order})
    kind.part(is_away=False)
    assert epoch_of(engine)
