"""Who may post."""

from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.access.auth import (
    SHIPPED_PASSCODE,
    Auth,
    AuthError,
    Caller,
    Limiter,
    Passcode,
    Proxies,
    name_of,
)
from cluster_dash_server.access.tokens import TokenFile, Tokens


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


NOW = 1_700_000_000.0


@pytest.fixture
def tokens(tmp_path: Path, clock: Any) -> Tokens:
    return Tokens(TokenFile(tmp_path), clock)


def refused(auth: Auth, presented: object, who: Caller = LOCAL, now: float = NOW) -> tuple[int, str]:
    with pytest.raises(AuthError) as refusal:
        auth.admit(presented, who, now)
    return refusal.value.status, refusal.value.text


def test_tokens_and_a_passcode_are_taken_side_by_side(tokens: Tokens) -> None:
    auth = Auth(Passcode("the site's own"), tokens)
    secret = tokens.new("host", "gpu01")
    token = auth.admit(secret, LOCAL, NOW)
    assert token is not None
    assert token.hosts == "gpu01"
    assert auth.admit("the site's own", AFAR, NOW) is None
    only = Auth(Passcode(None), tokens, requires_tokens=True)
    assert only.admit(secret, LOCAL, NOW) is not None
    assert refused(only, SHIPPED_PASSCODE)[0] == 401


def test_an_unknown_token_and_a_wrong_secret_of_a_known_one_are_answered_alike(tokens: Tokens) -> None:
    auth = Auth(Passcode("x"), tokens)
    secret = tokens.new("host", "gpu01")
    wrong = [secret[:13] + "A" * 43, "cdh_zzzzzzzz_" + secret[13:], "cdh_", "cdr" + secret[3:], "anything"]
    assert {refused(auth, each) for each in wrong} == {(401, "auth_code: not known here")}


def test_who_holds_a_token_that_has_ended_is_told_so(tokens: Tokens, clock: Any) -> None:
    auth = Auth(Passcode("x"), tokens)
    revoked, short = tokens.new("host", "gpu01"), tokens.new("host", "gpu02", ttl_seconds=60)
    tokens.revoke("gpu01")
    assert refused(auth, revoked) == (403, "auth_code: this token was revoked on 2023-11-14")
    assert refused(auth, short, now=NOW + 60) == (403, "auth_code: this token expired on 2023-11-14")


def test_a_token_speaks_for_its_own_host_and_machine_only(tokens: Tokens) -> None:
    auth = Auth(Passcode("x"), tokens)
    secret = tokens.new("host", "gpu01")
    token = auth.admit(secret, LOCAL, NOW)
    assert token is not None
    auth.refuse_another(token, {"hostname": "gpu01"})
    auth.refuse_another(token, {"hostname": 5})  # the schema says what is wrong with it
    with pytest.raises(AuthError, match="not for gpu02") as refusal:
        auth.refuse_another(token, {"hostname": "gpu02"})
    assert refusal.value.status == 403
    auth.used(token, "gpu01", "machine-1", NOW)
    bound = auth.admit(secret, LOCAL, NOW)
    assert bound is not None
    auth.refuse_another(bound, {"hostname": "gpu01", "machine_id": "machine-1"})
    with pytest.raises(AuthError, match="machine_id: missing"):
        auth.refuse_another(bound, {"hostname": "gpu01"})


BEHIND = {"peer": "127.0.0.1", "host": "dash.lab", "forwarded": True}


@pytest.mark.parametrize(
    ("facts", "trusted", "in_clear"),
    [
        ({}, (), False),
        ({"peer": "192.0.2.7"}, (), True),
        ({"peer": "192.0.2.7", "scheme": "https"}, (), False),
        (BEHIND, (), True),
        ({**BEHIND, "forwarded_proto": "http"}, (), True),
        ({**BEHIND, "forwarded_proto": "https"}, (), False),
        ({**BEHIND, "forwarded_proto": "https", "peer": "192.0.2.7"}, (), True),
        ({**BEHIND, "forwarded_proto": "HTTPS, http", "peer": "192.0.2.7"}, ("192.0.2.0/24",), False),
    ],
)
def test_a_token_that_others_could_have_read_on_its_way_is_refused(
    tokens: Tokens, facts: dict[str, Any], trusted: tuple[str, ...], in_clear: bool
) -> None:
    secret, came = tokens.new("host", "gpu01"), caller(**facts)
    auth = Auth(Passcode("x"), tokens, proxies=Proxies(trusted))
    if in_clear:
        status, text = refused(auth, secret, came)
        assert status == 403
        assert "allow_plaintext_tokens" in text
    else:
        assert auth.admit(secret, came, NOW) is not None
    assert auth.admit("x", came, NOW) is None  # a passcode over plain HTTP goes on as ever
    assert Auth(Passcode("x"), tokens, allows_plaintext=True).admit(secret, came, NOW) is not None


def test_guessing_is_slowed_by_address_and_a_right_secret_never_is(tokens: Tokens) -> None:
    auth = Auth(Passcode("right"), tokens, limiter=Limiter(10), allows_plaintext=True)
    secret = tokens.new("host", "gpu01")
    said = [refused(auth, "wrong", AFAR)[0] for _ in range(12)]
    assert said == [401] * 10 + [429] * 2
    for _ in range(1000):  # a whole fleet behind one address
        auth.admit("right", AFAR, NOW)
        auth.admit(secret, AFAR, NOW)
    assert refused(auth, "wrong", caller(peer="192.0.2.8"))[0] == 401
    assert {refused(auth, "wrong")[0] for _ in range(20)} == {401}  # this machine itself


@pytest.mark.parametrize(
    ("facts", "trusted", "address"),
    [
        ({"peer": "192.0.2.7"}, (), "192.0.2.7"),
        ({"peer": "::ffff:192.0.2.7"}, (), "192.0.2.7"),
        ({"peer": "2001:db8:1:2:3:4:5:6"}, (), "2001:db8:1:2::/64"),
        ({"peer": "192.0.2.7", "forwarded_for": "203.0.113.5"}, (), "192.0.2.7"),
        ({"peer": "192.0.2.7", "forwarded_for": "1.1.1.1, 203.0.113.5"}, ("192.0.2.7",), "203.0.113.5"),
        ({"peer": "192.0.2.7", "forwarded_for": "203.0.113.5, 192.0.2.9"}, ("192.0.2.0/24",), "203.0.113.5"),
        ({"peer": "192.0.2.7", "forwarded_for": ", ,"}, ("192.0.2.0/24",), "192.0.2.7"),
    ],
)
def test_the_address_that_counts_is_that_of_a_trusted_proxys_client(
    facts: dict[str, Any], trusted: tuple[str, ...], address: str
) -> None:
    assert Proxies(trusted).address(caller(**facts)) == address


def test_a_host_enrols_by_a_code_and_is_told_why_it_may_not(tokens: Tokens) -> None:
    auth = Auth(Passcode("x"), tokens)
    code = tokens.new("enrol", "gpu[01-03]", uses=5, ttl_seconds=3600)
    token = auth.admit(auth.enrol(code, "gpu01", "machine-1", LOCAL, NOW), LOCAL, NOW)
    assert token is not None
    assert (token.hosts, token.machine_id) == ("gpu01", "machine-1")
    for wrong, host, machine, who, now, status in (
        ("cde_wrong", "gpu02", None, LOCAL, NOW, 401),
        (5, "gpu02", None, LOCAL, NOW, 401),
        (code, "gpu01", None, LOCAL, NOW, 403),
        (code, "gpu09", None, LOCAL, NOW, 403),
        (code, "gpu02", None, AFAR, NOW, 403),
        (code, "gpu02", None, LOCAL, NOW + 3600, 403),
        (code, "gpu/2", None, LOCAL, NOW, 400),
        (code, None, None, LOCAL, NOW, 400),
        (code, "gpu02", 5, LOCAL, NOW, 400),
    ):
        with pytest.raises(AuthError) as refusal:
            auth.enrol(wrong, host, machine, who, now)
        assert refusal.value.status == status
        assert code not in refusal.value.text


def test_the_pages_say_what_is_open_and_who_is_still_on_the_passcode(tokens: Tokens) -> None:
    def said(auth: Auth, *, from_afar: bool = True, is_open: bool = True, now: float = NOW) -> list[str]:
        return auth.notices(now, from_afar=from_afar, is_open=is_open)

    shipped, shared = Auth(Passcode(None), tokens), Auth(Passcode("x"), tokens)
    assert "No passcode is set" in said(shipped)[0]
    assert said(shared, from_afar=False) == []
    assert said(shared) == [
        "Anyone who reaches this server may look; any host that knows the passcode can speak for any other."
    ]
    assert said(shared, is_open=False) == ["Any host that knows the passcode can speak for any other."]
    assert said(Auth(Passcode("x"), tokens, requires_tokens=True)) == ["Anyone who reaches this server may look."]
    for host in ("gpu01", "gpu02", "gpu03"):
        shared.used(None, host, None, NOW)
    assert len(said(shared)) == 1  # nobody has begun to move
    token = shared.admit(tokens.new("host", "gpu02"), LOCAL, NOW)
    shared.used(token, "gpu02", None, NOW)
    assert said(shared)[1] == "Still on the shared passcode: gpu[01,03]."
    assert len(said(shared, now=NOW + 3600)) == 1
