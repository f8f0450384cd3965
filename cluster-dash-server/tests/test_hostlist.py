"""Hostlists: short for many names, and the same names again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_server.hostlist import HostlistError, compress, expand, matcher


@pytest.mark.parametrize(
    ("names", "hostlist"),
    [
        ([], ""),
        (["gpu01"], "gpu01"),
        (["gpu07", "gpu01", "gpu02", "gpu03", "gpu02"], "gpu[01-03,07]"),
        (["gpu8", "gpu9", "gpu10", "gpu11"], "gpu[8-11]"),
        (["gpu08", "gpu09", "gpu10", "gpu99", "gpu100"], "gpu[08-10,99-100]"),
        (["gpu1", "gpu01", "gpu2"], "gpu[1-2,01]"),
        (["rack2-gpu07.lab", "rack2-gpu08.lab", "rack3-gpu08.lab"], "rack2-gpu[07-08].lab,rack3-gpu08.lab"),
        (["login", "gpu01", "7", "8"], "[7-8],gpu01,login"),
        (["a b1", "a,1", "[1]"], "[1],a b1,a,1"),
        (["gpu1234567890123456"], "gpu1234567890123456"),
    ],
)
def test_names_become_one_list_as_people_count(names: list[str], hostlist: str) -> None:
    assert compress(names) == hostlist


@pytest.mark.parametrize(
    ("hostlist", "names"),
    [
        ("", []),
        ("gpu01", ["gpu01"]),
        ("gpu[01-03,07],login", ["gpu01", "gpu02", "gpu03", "gpu07", "login"]),
        ("r[1-2]n[8-10]", ["r1n8", "r1n9", "r1n10", "r2n8", "r2n9", "r2n10"]),
        ("gpu[098-101].lab", ["gpu098.lab", "gpu099.lab", "gpu100.lab", "gpu101.lab"]),
        ("gpu*,[ab]?", ["gpu*", "[ab]?"]),
        ("a[1-400],b[1-400]", [f"{name}{number}" for name in "ab" for number in range(1, 401)]),
    ],
)
def test_a_list_becomes_names(hostlist: str, names: list[str]) -> None:
    assert expand(hostlist) == names


@pytest.mark.parametrize(
    "hostlist",
    [
        "gpu[3-1]",
        "gpu[1-999999]",
        "a[1-999]b[1-999]",
        "a[1-60000],b[1-60000]",
        "a[" + 20_000 * "1-9," + "1]",
        1800 * "[0-99998]",
    ],
    ids=lambda hostlist: hostlist[:20],
)
def test_a_list_that_means_too_much_is_refused(hostlist: str) -> None:
    with pytest.raises(HostlistError, match=r"backwards|more than 100000"):
        expand(hostlist)


host_names = st.from_regex(r"[a-z]{0,3}[0-9]{0,3}(-[a-z]{1,2}[0-9]{1,3}){0,2}(\.lab)?", fullmatch=True).filter(bool)


@given(st.lists(host_names))
def test_what_is_compressed_expands_to_the_same_names(names: list[str]) -> None:
    assert sorted(expand(compress(names))) == sorted(set(names))


@given(st.lists(st.integers(0, 200)), st.integers(0, 4))
def test_a_numbered_row_is_one_part(numbers: list[int], width: int) -> None:
    names = {f"gpu{str(number).zfill(width)}" for number in numbers}
    hostlist = compress(names)
    assert hostlist.count("gpu") == min(1, len(names))
    assert set(expand(hostlist)) == names


@given(st.text(), st.text())
def test_any_text_can_be_asked_for(hosts: str, name: str) -> None:
    try:
        meant = matcher(hosts)
    except HostlistError:
        return
    assert meant(hosts)
    assert meant(name) in (True, False)


def test_hosts_are_meant_by_name_list_or_pattern() -> None:
    assert [name for name in ("gpu1", "gpu01", "gpu02", "GPU01") if matcher("gpu[01-03]")(name)] == ["gpu01", "gpu02"]
    assert [name for name in ("gpu1", "gpu01", "login") if matcher("gpu?,log*")(name)] == ["gpu1", "login"]
    assert matcher("odd [1], name")("odd [1], name")
    assert not matcher("")("gpu01")
    assert [name for name in ("gpu1-a", "gpu02-b", "gpu2") if matcher("gpu[1-2]-*")(name)] == ["gpu1-a"]
    assert [name for name in ("n11", "n12", "n13", "n111") if matcher("n[1-2][1-2]")(name)] == ["n11", "n12"]


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("gpu[01-", "gpu[01-: its bracket is not closed, as in gpu[01-03,07]"),
        ("gpu[01-03", "gpu[01-03: its bracket is not closed, as in gpu[01-03,07]"),
        ("login,gpu[01-03,07,a", "gpu[01-03,07,a: its bracket is not closed, as in gpu[01-03,07]"),
        ("r[1-2]n[3", "r[1-2]n[3: its bracket is not closed, as in gpu[01-03,07]"),
        ("gpu[01-]", "[01-]: expected numbers and ranges, as in gpu[01-03,07]"),
        ("gpu[1-2]-[1, 3]", "[1, 3]: expected numbers and ranges, as in gpu[01-03,07]"),
        ("gpu[]", "[]: expected numbers and ranges, as in gpu[01-03,07]"),
    ],
)
def test_a_bracket_of_numbers_that_cannot_be_read_is_named_with_its_mend(hosts: str, words: str) -> None:
    with pytest.raises(HostlistError) as caught:
        matcher(hosts)
    assert str(caught.value) == words


def test_a_bracket_of_letters_is_a_patterns_or_part_of_a_name() -> None:
    assert [name for name in ("gpua1", "gpud1") if matcher("gpu[a-c]*")(name)] == ["gpua1"]
    assert matcher("odd [name")("odd [name")


part = st.one_of(
    host_names, st.from_regex(r"[a-c]{0,2}(\[[0-9]{1,2}(-[0-9]{1,3})?(,[0-9]{1,2})?\][a-c]?){1,2}", fullmatch=True)
)


@given(st.lists(part, min_size=1, max_size=3).map(",".join), st.data())
def test_the_names_that_a_list_stands_for_are_those_it_means(hostlist: str, data: st.DataObject) -> None:
    try:
        names = expand(hostlist)
    except HostlistError:
        return
    meant = matcher(hostlist)
    if names:
        assert meant(data.draw(st.sampled_from(names)))
    other = data.draw(st.from_regex(r"[a-c]{0,2}[0-9]{1,3}[a-c]?[0-9]{0,3}", fullmatch=True))
    assert meant(other) == (other in names)


def test_a_list_of_a_billion_names_is_asked_without_making_them() -> None:
    meant = matcher("gpu[1-999999999]n[1-999999999]")
    assert meant("gpu17n4")
    assert not meant("gpu17n0")
