"""Who may post."""

from typing import Any

import pytest

from cluster_dash_server.auth import SHIPPED_PASSCODE, AuthError, Caller, Passcode, name_of


def caller(**facts: Any) -> Caller:
    return Caller(
        **{
            "peer": "127.0.0.1",
            "host": "localhost:8080",
            "forwarded": False,
            "origin": None,
            "fetch_site": None,
            **facts,
        }
    )


LOCAL = caller()
AFAR = caller(peer="192.0.2.7", host="dash.lab:8080")


def test_the_shipped_passcode_is_taken_from_this_machine_only() -> None:
    passcode = Passcode(None)
    passcode.check(SHIPPED_PASSCODE, LOCAL)
    with pytest.raises(AuthError, match="its own machine only") as refusal:
        passcode.check(SHIPPED_PASSCODE, AFAR)
    assert refusal.value.status == 401


def test_a_passcode_the_site_wrote_is_taken_from_anywhere_even_the_shipped_one() -> None:
    Passcode("secret").check("secret", AFAR)
    Passcode(SHIPPED_PASSCODE).check(SHIPPED_PASSCODE, AFAR)


@pytest.mark.parametrize("presented", [None, "", "wrong", "é", "\ud800", 5, True, [], {"a": 1}])
@pytest.mark.parametrize("site", [None, "secret"])
def test_anything_else_is_refused_and_never_repeated(presented: object, site: str | None) -> None:
    with pytest.raises(AuthError) as refusal:
        Passcode(site).check(presented, LOCAL)
    assert refusal.value.status == 401
    assert "wrong" not in refusal.value.text
    assert "secret" not in refusal.value.text


@pytest.mark.parametrize(
    ("facts", "local"),
    [
        ({}, True),
        ({"peer": "::1", "host": "[::1]:8080"}, True),
        ({"peer": "::ffff:127.0.0.1"}, True),
        ({"peer": "127.3.2.1", "host": "127.3.2.1"}, True),
        ({"host": "LOCALHOST."}, True),
        ({"peer": "10.0.0.2"}, False),
        ({"peer": ""}, False),
        ({"peer": "not an address"}, False),
        ({"host": "dash.lab"}, False),
        ({"host": "localhost.evil.example"}, False),
        ({"host": None}, False),
        ({"forwarded": True}, False),
        ({"origin": "http://localhost:8080"}, False),
    ],
)
def test_what_counts_as_this_machine(facts: Any, local: bool) -> None:
    assert caller(**facts).local is local


@pytest.mark.parametrize(
    ("facts", "page"),
    [
        ({}, False),
        ({"fetch_site": "none"}, False),
        ({"fetch_site": "same-origin"}, False),
        ({"fetch_site": "cross-site"}, True),
        ({"origin": "null"}, True),
    ],
)
def test_a_post_of_a_page_is_known_by_its_headers(facts: Any, page: bool) -> None:
    assert caller(**facts).from_a_page is page


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Dash.Lab:8080", "dash.lab"),
        ("dash.lab.", "dash.lab"),
        ("[::1]:8080", "::1"),
        ("::1", "::1"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_the_name_in_a_host_header(host: str, name: str) -> None:
    assert name_of(host) == name
