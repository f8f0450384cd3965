from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_server.alerts import rules
from cluster_dash_server.alerts.book import Remembered
from cluster_dash_server.alerts.evaluate import Step, evaluate
from cluster_dash_server.alerts.state import Finding, Key, Level, State, Subject, View, recall

NOW = 1_700_000_000.0
RULES = rules.load()
NAMES = ("host-silent", "gpu-error", "gpu-held", "xid-fatal", "posts-refused")
HOSTS = tuple(f"gpu{number:02}" for number in range(30))


def _subject(rule: str, host: str, gpu: int, user: str | None) -> Subject:
    if rule == "posts-refused":
        return Subject(thing=f"receiver {gpu}")
    if rule == "host-silent":
        return Subject(host)
    return Subject(host, gpu, user if rule == "gpu-held" else None)


@st.composite
def _found(draw: st.DrawFn) -> dict[Key, Finding]:
    found = {}
    for rule, host, gpu, user, level in draw(
        st.lists(
            st.tuples(
                st.sampled_from(NAMES),
                st.sampled_from(HOSTS),
                st.integers(0, 3),
                st.sampled_from((None, "alice", "bob")),
                st.sampled_from(("holds", "comes", "lingers")),
            ),
            max_size=40,
        )
    ):
        known: Level = level  # type: ignore[assignment]
        found[rule, _subject(rule, host, gpu, user)] = Finding("figure", None, known)
    return found


_NIGHT = st.lists(st.tuples(_found(), st.sampled_from((5.0, 60.0, 700.0, 4_000.0))), max_size=12)


def _live(night: Sequence[tuple[dict[Key, Finding], float]]) -> tuple[State, list[Step], float]:
    """Live through a night; return how it stands in the end, all that became of alerts, and the time."""
    state, steps, now = State(), list[Step](), NOW
    for found, seconds in night:
        now += seconds
        state, more = evaluate(RULES, View(found=found, hosts=len(HOSTS)), state, now)
        steps += more
    return state, steps, now


@given(_NIGHT, _found())
def test_evaluating_twice_says_nothing_new(
    night: list[tuple[dict[Key, Finding], float]], found: dict[Key, Finding]
) -> None:
    state, _, now = _live(night)
    view = View(found=found, hosts=len(HOSTS))
    once, _ = evaluate(RULES, view, state, now + 5)
    twice, more = evaluate(RULES, view, once, now + 5)
    assert more == []
    assert twice == once


def test_a_clock_that_is_set_back_delays_neither_the_beginning_nor_the_end_of_an_alert() -> None:
    key, day = ("gpu-error", Subject("gpu01", 1)), 86_400.0
    bad, well = View(found={key: Finding("lost")}, hosts=100), View(found={}, hosts=100)
    state, steps = evaluate(RULES, bad, State(), NOW + day)
    for view, at, kinds in (
        (bad, NOW, []),
        (bad, NOW + 60, ["began"]),
        (well, NOW + day, []),
        (well, NOW + 70, []),
        (well, NOW + 670, ["ended"]),
    ):
        state, steps = evaluate(RULES, view, state, at)
        assert [step.kind for step in steps] == kinds, at - NOW


@given(_NIGHT)
def test_each_alert_begins_once_and_ends_once_after_it_began(night: list[tuple[dict[Key, Finding], float]]) -> None:
    state, steps, _ = _live(night)
    going: set[str] = set()
    for step in steps:
        name = step.running.alert.id
        if step.kind == "began":
            assert name not in going
            going.add(name)
        else:
            assert name in going
        if step.kind == "ended":
            assert step.running.alert.ended_at is not None
            assert step.running.alert.ended_at >= step.running.alert.began_at
            going.remove(name)
    assert going == set(state.running)


@given(_NIGHT)
def test_each_condition_belongs_to_one_alert_at_most(night: list[tuple[dict[Key, Finding], float]]) -> None:
    state, _, _ = _live(night)
    owners: dict[Key, str] = {}
    for name, running in state.running.items():
        assert running.members
        for subject in running.members:
            assert owners.setdefault((running.alert.rule, subject), name) == name
            assert state.spells[running.alert.rule, subject].alert == name


@given(_NIGHT)
def test_a_restart_is_no_news(night: list[tuple[dict[Key, Finding], float]]) -> None:
    state, steps, now = _live(night)
    kept = {step.running.alert.id: step.running for step in steps}
    found = {
        (running.alert.rule, subject): Finding("figure")
        for running in state.running.values()
        for subject in running.members
    }
    again = recall([Remembered(running.alert, running.memory()) for running in kept.values()])
    assert set(again.running) == set(state.running)
    _, more = evaluate(RULES, View(found=found, hosts=len(HOSTS)), again, now + 5)
    assert [step for step in more if step.is_told] == []


def _silent(hosts: Sequence[str], level: Level = "holds") -> dict[Key, Finding]:
    return {("host-silent", Subject(host)): Finding("no snapshot", NOW - 600, level) for host in hosts}


def test_a_storm_that_grows_to_twice_what_was_told_is_told_anew() -> None:
    view = View(found=_silent(HOSTS[:10]), hosts=100)
    state, steps = evaluate(RULES, view, State(), NOW)
    assert [step.running.alert.title for step in steps] == ["10 of 100 hosts: silent"]
    state, steps = evaluate(RULES, replace(view, found=_silent(HOSTS[:15])), state, NOW + 60)
    assert [(step.kind, step.is_told) for step in steps] == [("changed", False)]
    hosts = [f"other{number:02}" for number in range(40)]
    _, steps = evaluate(RULES, replace(view, found=_silent([*HOSTS[:15], *hosts])), state, NOW + 120)
    assert [(step.kind, step.is_told) for step in steps] == [("began", True)]
    assert steps[0].running.alert.title == "40 of 100 hosts: silent"


def test_hosts_that_are_about_to_fail_count_towards_a_storm() -> None:
    view = View(found={**_silent(HOSTS[:1]), **_silent(HOSTS[1:], "comes")}, hosts=1_000)
    _, steps = evaluate(RULES, view, State(), NOW)
    assert [step.running.alert.title for step in steps] == ["30 of 1000 hosts: silent"]


def test_two_hosts_of_a_large_cluster_are_two_alerts() -> None:
    _, steps = evaluate(RULES, View(found=_silent(HOSTS[:2]), hosts=1_000), State(), NOW)
    assert sorted(step.running.alert.title for step in steps) == ["gpu00: silent", "gpu01: silent"]


def test_what_an_earlier_release_noted_is_taken_up() -> None:
    state, _ = evaluate(RULES, View(found=_silent(HOSTS[:1]), hosts=10), State(), NOW)
    (running,) = state.running.values()
    again = recall([Remembered(running.alert, '{"of": "another form"}')])
    _, steps = evaluate(RULES, View(found=_silent(HOSTS[:1]), hosts=10), again, NOW + 5)
    assert steps == []
