from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server.alerts import rules
from cluster_dash_server.alerts.book import Remembered
from cluster_dash_server.alerts.evaluate import Step, evaluate
from cluster_dash_server.alerts.routing import addressees
from cluster_dash_server.alerts.state import Finding, Key, Level, Running, State, Subject, View, recall
from cluster_dash_server.notices.receivers import Receiver

NOW = 1_700_000_000.0
RULES = rules.load()
NAMES = ("host-silent", "gpu-error", "gpu-held", "xid-fatal", "xid-hardware", "node-down", "posts-refused")
HOSTS = tuple(f"gpu{number:02}" for number in range(30))


def _subject(rule: str, host: str, gpu: int, user: str | None) -> Subject:
    if rule == "posts-refused":
        return Subject(thing=f"receiver {gpu}")
    if rule in ("host-silent", "node-down"):
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


NIGHTS = settings(max_examples=50, deadline=None)  # a night is long: other ones each time
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
@NIGHTS
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
@NIGHTS
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
@NIGHTS
def test_each_condition_belongs_to_one_alert_at_most(night: list[tuple[dict[Key, Finding], float]]) -> None:
    state, _, _ = _live(night)
    owners: dict[Key, str] = {}
    for name, running in state.running.items():
        keys = {(running.alert.rule, subject) for subject in running.members} | running.parts
        assert keys
        for key in keys:
            assert owners.setdefault(key, name) == name
            assert state.spells[key].alert == name


@given(_NIGHT)
@NIGHTS
def test_a_restart_is_no_news(night: list[tuple[dict[Key, Finding], float]]) -> None:
    state, steps, now = _live(night)
    kept = {step.running.alert.id: step.running for step in steps}
    found = {
        key: Finding("figure")
        for running in state.running.values()
        for key in {(running.alert.rule, subject) for subject in running.members} | running.parts
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


# ------------------------------------------------------------------------------------------------------- one cause

XID, LOST = ("xid-fatal", Subject("gpu07", 3)), ("gpu-error", Subject("gpu07", 3))
HARDWARE = ("xid-hardware", Subject("gpu07", 3))
MINUTE, HOUR = 60.0, 3600.0


class Trouble:
    """What becomes of a cluster in trouble, step by step."""

    def __init__(self) -> None:
        self.now, self.state = NOW, State()
        self.silenced = ""  # a rule

    def shows(self, *keys: Key, after: float = 0.0) -> list[str]:
        """Let time pass with these conditions; return what is told to whom: `began gpu07: … > ops, errors`."""
        said = []
        for passed in {0.0, after}:
            self.now += passed
            found = {key: Finding(f"figure of {key[0]}") for key in keys}
            view = View(found=found, hosts=1_000, silenced=self._silenced_until)
            self.state, steps = evaluate(RULES, view, self.state, self.now)
            by_name = {rule.name: rule for rule in RULES}
            for step in steps:
                told = addressees(step, by_name, RECEIVERS, lambda name: None, self.now)
                if told:
                    said.append(f"{step.kind} {step.running.alert.title} > {', '.join(sorted(told))}")
        return said

    def _silenced_until(self, running: Running) -> float | None:
        return NOW + HOUR if running.alert.rule == self.silenced else None


RECEIVERS = (Receiver(name="ops", kind="email"), Receiver(name="errors", kind="email", rules=("gpu-error",)))


def test_an_xid_and_the_gpu_that_it_costs_are_one_alert_until_both_are_over() -> None:
    trouble = Trouble()
    assert trouble.shows(XID) == ["began gpu07 GPU 3: fatal Xid > ops"]
    # who is told of GPUs in error only hears of it when it comes to that
    assert trouble.shows(XID, LOST, after=MINUTE) == ["changed gpu07 GPU 3: fatal Xid > errors"]
    (running,) = trouble.state.running.values()
    assert dict(running.alert.facts)["also"] == "in error: figure of gpu-error"
    assert trouble.shows(LOST, after=2 * HOUR) == []
    (running,) = trouble.state.running.values()
    assert running.alert.title == "gpu07 GPU 3: in error, after fatal Xid"
    assert trouble.shows(XID, LOST) == []  # once more: it is known
    assert trouble.shows(after=9 * MINUTE) == []
    assert trouble.shows(after=2 * MINUTE) == ["ended gpu07 GPU 3: in error, after fatal Xid > errors, ops"]
    assert trouble.state.running == {}


def test_what_comes_first_has_what_comes_later_as_a_part_whichever_of_the_rules_names_the_other() -> None:
    trouble = Trouble()
    assert trouble.shows(LOST, after=MINUTE) == ["began gpu07 GPU 3: in error > errors, ops"]
    assert trouble.shows(XID, LOST) == []
    silent, down = ("host-silent", Subject("gpu08")), ("node-down", Subject("gpu08"))
    assert trouble.shows(XID, LOST, silent, down, after=5 * MINUTE) == ["began gpu08: silent > ops"]
    assert len(trouble.state.running) == 2


def test_what_is_graver_or_of_another_gpu_is_told_by_itself() -> None:
    trouble = Trouble()
    assert trouble.shows(HARDWARE) == ["began gpu07 GPU 3: Xid of the hardware > ops"]
    assert trouble.shows(HARDWARE, LOST, after=MINUTE) == ["began gpu07 GPU 3: in error > errors, ops"]
    assert trouble.shows(HARDWARE, XID, LOST) == []
    other = Trouble()
    assert other.shows(XID) == ["began gpu07 GPU 3: fatal Xid > ops"]
    lost = ("gpu-error", Subject("gpu07", 4))
    assert other.shows(XID, lost, after=MINUTE) == ["began gpu07 GPU 4: in error > errors, ops"]


def test_what_is_silenced_hides_nothing_of_another_rule() -> None:
    trouble = Trouble()
    trouble.silenced = "xid-fatal"
    assert trouble.shows(XID) == []
    assert trouble.shows(XID, LOST, after=MINUTE) == ["began gpu07 GPU 3: in error > errors, ops"]


def test_parts_of_an_alert_outlive_a_restart() -> None:
    trouble = Trouble()
    trouble.shows(XID)
    trouble.shows(XID, LOST, after=MINUTE)
    (running,) = trouble.state.running.values()
    trouble.state = recall([Remembered(running.alert, running.memory())])
    assert trouble.shows(LOST, after=2 * HOUR) == []
    assert trouble.shows(after=11 * MINUTE) == ["ended gpu07 GPU 3: in error, after fatal Xid > errors, ops"]


def test_a_rack_that_was_silent_and_then_is_down_in_slurm_is_one_alert() -> None:
    trouble = Trouble()
    silent = [("host-silent", Subject(host)) for host in HOSTS]
    down = [("node-down", Subject(host)) for host in HOSTS]
    assert trouble.shows(*silent) == ["began 30 of 1000 hosts: silent > ops"]
    assert trouble.shows(*down, after=5 * MINUTE) == []
    assert trouble.shows(*down, after=HOUR) == []
    assert trouble.shows(after=11 * MINUTE) == ["ended 30 of 1000 hosts: down in Slurm, after silent > ops"]
