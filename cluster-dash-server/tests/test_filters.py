"""The grammar of `q`: what each kind of term means, what is said of slips, and that no text breaks it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_dash_server import when
from cluster_dash_server.cluster import Cluster, HostView
from cluster_dash_server.filters import KEYS, NUMBERS, Alternative, Filter, Term, parse, size_mib
from cluster_dash_server.slurm import Place
from cluster_dash_server.snapshot import read
from cluster_dash_server.states import Allotment, JobOnGpu, Thresholds

NOW = 1_700_000_000.0
Json = dict[str, Any]


def gpu(index: int, **fields: Any) -> Json:
    idle = {"name": "NVIDIA H100 80GB HBM3", "total_mem": 81559.0, "used_mem": 3.0, "gpu_util": 0.0, "users": {}}
    return {"index": index, "uuid": f"GPU-{index}", **idle, **fields}


def busy(user: str, **fields: Any) -> Json:
    return {"used_mem": 61440.0, "gpu_util": 97.0, "users": {user: {"1": {"name": "python", **fields}}}}


@pytest.fixture(scope="module")
def fleet() -> list[HostView]:
    """Return five hosts after two hours in which nothing changed but what was silent."""
    cluster = Cluster(Thresholds())

    def post(host: str, *gpus: Json, at: float, cpu: float = 3.0, **general: Any) -> None:
        snapshot = {
            "hostname": host,
            "timestamp": at,
            "cpu": {"cpu_percent": cpu, "load_avgs": [8.0, 4.0, 2.0]},
            "gpu": {f"{each['index']}_X_{host}": {**each, "uuid": f"{each['uuid']}-{host}"} for each in gpus},
            "interval_seconds": 5,
            "general": general,
        }
        cluster.offer(read(snapshot, received_at=at))

    a100 = {"name": "NVIDIA A100-SXM4-40GB", "total_mem": 40960.0}
    for at in (*(NOW - age for age in range(10_800, 30, -500)), NOW - 30):
        held = gpu(1, used_mem=50_000.0, users={"carol": {"7": {}}})
        post("gpu01", gpu(0), held, at=at, labels={"rack": "r1", "partition": "long, debug"}, mole_version="1.2.0")
        post("gpu02", gpu(0, **busy("alice", job_id=4711)), gpu(1, **busy("bob", job_id="x-1")), at=at, cpu=99.0)
        post("gpu10", gpu(0, **a100), gpu(1, **a100, **busy("Alice")), at=at, labels={"rack": "r2"})
        post("login", at=at)
    post("gpu11", gpu(0), at=NOW - 9000, labels={"partition": "long"})
    return cluster.hosts(NOW)


def meant(fleet: list[HostView], q: str) -> str:
    """Write what a filter means: `gpu01:1 login` is GPU 1 of gpu01, and login, which has none."""
    return " ".join(_meant(fleet, parse(q)))


def _meant(fleet: list[HostView], wish: Filter) -> Iterator[str]:
    for host in fleet:
        marks = wish.means(host, NOW)
        if marks is not None:
            indices = [str(each.gpu.index) for each, is_meant in zip(host.gpus, marks, strict=True) if is_meant]
            yield f"{host.host}:{','.join(indices)}" if indices else host.host


EVERY_HOST = "gpu01:0,1 gpu02:0,1 gpu10:0,1 gpu11:0 login"


@pytest.mark.parametrize(
    ("q", "what"),
    [
        ("", EVERY_HOST),
        ("  ", EVERY_HOST),
        # bare words: host, user, model
        ("gpu01", "gpu01:0,1"),
        ("GPU0", "gpu01:0,1 gpu02:0,1"),
        ("carol", "gpu01:1"),
        ("ali", "gpu02:0 gpu10:1"),
        ("a100", "gpu10:0,1"),
        ("login", "login"),
        ("gpu[01-02]", "gpu01:0,1 gpu02:0,1"),
        ("gpu1?", "gpu10:0,1 gpu11:0"),
        ('"gpu0"', ""),
        ('"gpu01"', "gpu01:0,1"),
        ("gpu01,bob", "gpu01:0,1 gpu02:1"),
        ("-gpu", "login"),
        # keys
        ("host:gpu01", "gpu01:0,1"),
        ("host:gpu", ""),
        ("host:gpu*", "gpu01:0,1 gpu02:0,1 gpu10:0,1 gpu11:0"),
        ("host:gpu[02-10],login", "gpu02:0,1 gpu10:0,1 login"),
        ("HOST:GPU01", "gpu01:0,1"),
        ("user:alice", "gpu02:0 gpu10:1"),
        ("user:ali", ""),
        ("user:*", "gpu01:1 gpu02:0,1 gpu10:1"),
        ("-user:*", "gpu01:0 gpu10:0 gpu11:0 login"),
        ("model:h100", "gpu01:0,1 gpu02:0,1 gpu11:0"),
        ('model:"H100 80G"', "gpu01:0,1 gpu02:0,1 gpu11:0"),
        ('model:"H100"', ""),
        ("model:a100*", "gpu10:0,1"),
        ("part:debug", "gpu01:0,1"),
        ("part:long,debug", "gpu01:0,1 gpu11:0"),
        ("-part:debug -login", "gpu02:0,1 gpu10:0,1 gpu11:0"),
        ("state:free", "gpu01:0 gpu10:0"),
        ("state:held,busy", "gpu01:1 gpu02:0,1 gpu10:1"),
        ("state:down", "gpu11:0"),
        ("state:none", "login"),
        ("-state:free,busy", "gpu01:1 gpu11:0 login"),
        ("job:4711", "gpu02:0"),
        ("job:x-*", "gpu02:1"),
        ("label:rack", "gpu01:0,1 gpu10:0,1"),
        ("label:rack=r2", "gpu10:0,1"),
        ("label:rack=r1,rack=r2", "gpu01:0,1 gpu10:0,1"),
        ("mole:1.2.0", "gpu01:0,1"),
        ("mole:unknown host:gpu*", "gpu02:0,1 gpu10:0,1 gpu11:0"),
        # numbers
        ("mem>40G", "gpu01:1 gpu02:0,1 gpu10:1"),
        ("free_mem>=40G", "gpu01:0 gpu11:0"),
        ("free_mem>20000M model:a100", "gpu10:0"),
        ("util<5", "gpu01:0,1 gpu10:0 gpu11:0"),
        ("util<5%", "gpu01:0,1 gpu10:0 gpu11:0"),
        ("-util<5", "gpu02:0,1 gpu10:1 login"),
        ("util=97", "gpu02:0,1 gpu10:1"),
        ("temp>0", ""),
        ("idle>2h state:held", "gpu01:1"),
        ("idle>2h state:free", "gpu01:0 gpu10:0"),
        ("idle>4h", ""),
        ("cpu>90", "gpu02:0,1"),
        ("load>=8 -host:gpu*", "login"),
        ("gpus=0", "login"),
        ("free>=1", "gpu01:0,1 gpu10:0,1"),
        # together
        ("state:free model:h100 free_mem>40G host:gpu[01-16] -part:long", ""),
        ("state:free model:h100 free_mem>40G host:gpu[01-16]", "gpu01:0"),
        ("state:free,user:carol", "gpu01:0,1 gpu10:0"),
        ("user=alice", "gpu02:0 gpu10:1"),
    ],
)
def test_a_filter_means_what_people_expect(fleet: list[HostView], q: str, what: str) -> None:
    assert (meant(fleet, q), parse(q).problems) == (what, ())


@pytest.mark.parametrize(
    ("q", "problem"),
    [
        ("usr:alice", "usr: no such key, did you mean user?"),
        ("State:fre", "state: fre is none, did you mean free?"),
        ("sate:free", "sate: no such key, did you mean state?"),
        ("zzz:1", "zzz: no such key; known here: host, user, model"),
        ("foo>3", "foo: no such key"),
        ("user:", "user: says nothing yet"),
        ("mem:40G", "mem: compare it with > < or =, as in mem>40G"),
        ("mem>40", "mem: got 40, expected a number, as in mem>40G"),
        ("util<x", "util: got x, expected a number, as in util<5"),
        ("idle>2", "idle: got 2, expected a number, as in idle>2h"),
        ("user>alice", "user>alice: user is a text: write user:alice"),
        ("host:gpu[3-1]", "host: [3-1] runs backwards"),
        ("gpu[01-", "gpu[01-: its bracket is not closed"),
        ("mem>\x1b[31m", "mem>�[31m: its bracket is not closed"),
        (21 * "a ", "more than 20 terms or 100 alternatives: the filter is read up to a"),
        ("user:" + ",".join(map(str, range(101))), "more than 20 terms or 100 alternatives"),
        (2001 * "x", "the filter has 2001 characters, the first 2000 are read"),
    ],
)
def test_a_slip_is_explained_and_hides_nothing(fleet: list[HostView], q: str, problem: str) -> None:
    said = parse(q).problems
    assert len(said) == 1
    assert said[0].startswith(problem)
    if not q.startswith(("x", "a ")):
        assert meant(fleet, q) == EVERY_HOST
        assert meant(fleet, f"{q} user:carol") in ("gpu01:1", EVERY_HOST)


@pytest.mark.parametrize("q", ["-", ",", "-,", '"', '""', '-""', ",,,"])
def test_what_is_only_begun_says_nothing_and_hides_nothing(fleet: list[HostView], q: str) -> None:
    assert (meant(fleet, q), parse(q).problems) == (EVERY_HOST, ())


@pytest.mark.parametrize("text", ["*", "a b", 'a"b', "a\\b", "a,b", "[1]", "-x", "user:x", "\\", "<b>", "$x$", "é"])
def test_quotes_mean_exactly_what_is_in_them(text: str) -> None:
    wish = Term((Alternative("user", ":", text, True),), is_negated=False)
    assert parse(str(wish)).terms == (wish,)


def test_one_kind_of_filter_is_written_in_one_way() -> None:
    assert str(parse('  STATE:free,state:held   -Part:debug user:"alice" mem>=40G usr:x ')) == (
        'state:free,held -part:debug user:"alice" mem>=40G'
    )


grammar = st.lists(
    st.sampled_from(
        [
            *KEYS,
            *':<>=,-"\\[]*? ',
            ">=",
            "alice",
            "gpu[01-16]",
            "40G",
            "2h",
            "5",
            "rack=r1",
            '"a b"',
            "free",
            "\x00",
            "é",
        ]
    ),
    max_size=24,
).map("".join)


@given(st.one_of(st.text(max_size=60), grammar))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_and_reads_the_same_when_written_again(text: str) -> None:
    wish = parse(text)
    again = parse(str(wish))
    assert again.terms == wish.terms
    assert again.problems == ()
    assert all("\n" not in problem and "\x1b" not in problem for problem in wish.problems)


@given(grammar)
@settings(max_examples=300, deadline=None)
def test_a_term_and_its_negation_part_every_fleet_in_two(fleet: list[HostView], text: str) -> None:
    for term in parse(text).terms:
        one, other = parse(str(term)), parse(str(term._replace(is_negated=not term.is_negated)))
        for host in fleet:
            count = len(host.gpus)
            marks = [wish.means(host, NOW) for wish in (one, other)]
            if not count:
                assert sorted([each is None for each in marks]) == [False, True]
            else:
                first, second = (each or [False] * count for each in marks)
                assert [a != b for a, b in zip(first, second, strict=True)] == [True] * count


@pytest.mark.parametrize(
    "text", [4000 * "-", 2000 * '"', 1000 * "a,", 1000 * '"a', 999 * "*", 666 * "a[1", "h[1-9" * 300]
)
def test_no_text_takes_long(
    text: str, fleet: list[HostView], count_calls: Callable[[Callable[[], object]], int]
) -> None:
    assert count_calls(lambda: meant(fleet, text)) < 100_000


@pytest.fixture
def count_calls() -> Callable[[Callable[[], object]], int]:
    """Count the calls of Python functions that something makes: a measure of work that no loaded machine changes."""
    import sys

    def count(act: Callable[[], object]) -> int:
        calls = 0

        def seen(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        parse.cache_clear()
        sys.setprofile(seen)
        try:
            act()
        finally:
            sys.setprofile(None)
        return calls

    return count


@pytest.mark.parametrize(
    ("text", "mib"), [("40G", 40960.0), ("0.5t", 524288.0), ("512 MiB", 512.0), ("40", None), ("G", None), ("٤G", None)]
)
def test_a_size_has_a_unit(text: str, mib: float | None) -> None:
    assert size_mib(text) == mib


@pytest.mark.parametrize(
    ("text", "length"),
    [("2h", 7200.0), ("30m", 1800.0), ("30min", 1800.0), ("1.5d", 129600.0), ("2", None), ("2y", None)],
)
def test_a_stretch_of_time_has_a_unit(text: str, length: float | None) -> None:
    assert when.seconds(text) == length


def test_slurm_says_whose_a_gpu_is_and_in_which_partition(fleet: list[HostView]) -> None:
    job = JobOnGpu(id="99", user="dan", name=None)
    allotment = Allotment(drained=False, reserved=False, allocated=True, jobs=(job,))
    host = next(each for each in fleet if each.host == "gpu01")
    place = Place(node="n1", state="ALLOCATED", reason="", partitions=("gpu",), gpus=2, allotments={}, other=allotment)
    given = replace(host, place=place, gpus=(replace(host.gpus[0], slurm=allotment), host.gpus[1]))
    assert [meant([given], q) for q in ("user:dan", "job:99", "part:gpu", "part:debug", "dan,carol")] == [
        *("gpu01:0", "gpu01:0", "gpu01:0,1", "", "gpu01:0,1")
    ]


def test_every_number_shows_an_example_that_is_understood() -> None:
    for key, number in NUMBERS.items():
        assert [term.key for term in parse(number.example).terms] == [key]
