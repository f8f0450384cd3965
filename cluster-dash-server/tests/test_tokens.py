"""Tokens: what is kept of them, whom they are for, when they end."""

import hashlib
import sqlite3
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster_dash_server.access.tokens import (
    FILE,
    OVERLAP_SECONDS,
    REMEMBERED_SECONDS,
    Token,
    TokenError,
    TokenFile,
    Tokens,
    obey,
)

DAY = 86_400.0


class Site:
    """A data folder and the server on it; the clock is moved by hand."""

    def __init__(self, folder: Path, clock: Any) -> None:
        self.folder = folder
        self.clock = clock
        self.tokens = self.another_process()

    def another_process(self) -> Tokens:
        return Tokens(TokenFile(self.folder), self.clock)

    def find(self, secret: str, tokens: Tokens | None = None) -> Token | None:
        return (tokens or self.tokens).find(secret, self.clock.now)

    def is_valid(self, secret: str, tokens: Tokens | None = None) -> bool:
        found = self.find(secret, tokens)
        return found is not None and found.is_valid(self.clock.now)


@pytest.fixture
def site(tmp_path: Path, clock: Callable[[], float]) -> Site:
    return Site(tmp_path / "data", clock)


def test_a_token_is_found_by_its_secret_alone_and_outlives_the_server(site: Site) -> None:
    secret = site.tokens.new("host", "gpu01")
    found = site.find(secret)
    assert found is not None
    assert (found.kind, found.hosts, secret[4:12]) == ("host", "gpu01", found.id)
    assert len(secret) == len("cdh_") + 8 + 1 + 43
    assert site.find(secret, site.another_process()) == found
    for wrong in (
        secret[:-1],
        f"{secret[:-1]}~",
        f"cdh_zzzzzzzz_{secret[13:]}",
        f"cdr{secret[3:]}",
        "",
        "cdh_",
        "é\ud800",
    ):
        assert site.find(wrong) is None


def test_only_hashes_are_kept_in_a_file_of_the_server_alone(site: Site) -> None:
    secrets = [site.tokens.new("host", "gpu01"), site.tokens.new("enrol", "gpu*"), site.tokens.rotate("gpu01")]
    kept = b"".join(path.read_bytes() for path in site.folder.iterdir())
    for secret in secrets:
        assert secret.encode() not in kept
        assert secret[13:].encode() not in kept
    assert stat.S_IMODE((site.folder / FILE).stat().st_mode) == 0o600


def test_a_revoked_token_is_remembered_as_such_and_then_forgotten(site: Site) -> None:
    secret = site.tokens.new("host", "gpu01")
    site.tokens.revoke("gpu01")
    found = site.find(secret)
    assert found is not None
    assert found.revoked_at == site.clock.now
    assert not site.is_valid(secret)
    site.clock.now += REMEMBERED_SECONDS + 1
    site.tokens.new("host", "gpu02")
    assert site.find(secret, site.another_process()) is None


def test_what_another_process_writes_is_seen_a_second_later(site: Site) -> None:
    secret = site.tokens.new("host", "gpu01")
    other = site.another_process()
    assert site.is_valid(secret, other)
    site.tokens.revoke("gpu01")
    site.clock.now += 1
    assert not site.is_valid(secret, other)


def test_who_looks_for_a_token_might_wait_while_the_file_is_to_be_read_or_is_written(site: Site) -> None:
    assert site.tokens.waits(site.clock.now)
    site.tokens.look(site.clock.now)
    assert not site.tokens.waits(site.clock.now)
    seen = list[bool]()
    site.tokens._store.write = lambda *_: seen.append(wait_elsewhere(site))  # type: ignore[method-assign]
    site.tokens.new("host", "gpu01")
    assert seen == [True]
    assert not wait_elsewhere(site)
    site.clock.now += 0.7
    assert not site.tokens.waits(site.clock.now)
    site.clock.now += 0.2
    assert site.tokens.waits(site.clock.now), "it is due before the post is taken"


def wait_elsewhere(site: Site) -> bool:
    """Say whether another thread might wait."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(site.tokens.waits, site.clock.now).result(60)


def test_what_was_revoked_stays_so_whatever_a_second_server_still_remembers(site: Site) -> None:
    secret = site.tokens.new("host", "gpu01")
    other = site.another_process()
    remembered = site.find(secret, other)
    assert remembered is not None
    site.tokens.revoke("gpu01")
    other.used(remembered, "machine", site.clock.now)
    assert not site.is_valid(secret, site.another_process())


def test_a_token_ends_when_its_time_is_over(site: Site) -> None:
    secret = site.tokens.new("host", "gpu01", ttl_seconds=3600)
    site.clock.now += 3599
    assert site.is_valid(secret)
    site.clock.now += 1
    assert not site.is_valid(secret)


def test_of_a_rotation_both_are_valid_for_a_day(site: Site) -> None:
    old = site.tokens.new("host", "gpu01")
    new = site.tokens.rotate("gpu01")
    assert site.is_valid(old)
    assert site.is_valid(new)
    site.clock.now += OVERLAP_SECONDS
    assert not site.is_valid(old)
    assert site.is_valid(new)
    assert site.is_valid(new, site.another_process())


def test_a_host_with_two_tokens_is_rotated_by_the_id_of_one(site: Site) -> None:
    site.tokens.new("host", "gpu01")
    second = site.tokens.new("host", "gpu01")
    with pytest.raises(TokenError, match="2 tokens"):
        site.tokens.rotate("gpu01")
    assert site.is_valid(site.tokens.rotate(second[4:12]))


def test_a_code_is_for_the_names_and_the_number_of_hosts_on_it(site: Site) -> None:
    code = site.find(site.tokens.new("enrol", "gpu[01-03]", uses=2))
    assert code is not None
    secret = site.tokens.enrol(code, "gpu01", "machine-1")
    token = site.find(secret)
    assert token is not None
    assert (token.kind, token.hosts, token.machine_id) == ("host", "gpu01", "machine-1")
    for host, why in (("gpu04", "not among the names"), ("gpu01", "has a token already"), ("gpu0[1-3]", "not among")):
        with pytest.raises(TokenError, match=why):
            site.tokens.enrol(code, host, None)
    site.tokens.enrol(code, "gpu02", None)
    with pytest.raises(TokenError, match="as often as it may"):
        site.tokens.enrol(code, "gpu03", None)
    with pytest.raises(TokenError, match="as often as it may"):
        site.another_process().enrol(code, "gpu03", None)


def test_nobody_enrols_under_a_name_that_would_mean_many(site: Site) -> None:
    code = site.find(site.tokens.new("enrol", "gpu*"))
    assert code is not None
    for host in ("gpu*", "gpu?1", "gpu[01-99]", "gpu01,gpu02"):
        with pytest.raises(TokenError, match="not among the names"):
            site.tokens.enrol(code, host, None)


def test_a_token_of_a_relay_speaks_for_its_hosts_only(site: Site) -> None:
    token = site.find(site.tokens.new("host", "gpu[01-03]"))
    assert token is not None
    assert [token.speaks_for(host) for host in ("gpu01", "gpu03", "gpu04", "gpu1", "gpu[01-03]")] == [
        *(True, True, False, False),
        True,
    ]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"kind": "host", "hosts": ""}, "hosts: "),
        ({"kind": "host", "hosts": "a/b"}, "hosts: "),
        ({"kind": "host", "hosts": "gpu\n01"}, "hosts: "),
        ({"kind": "host", "hosts": "gpu[3-1]"}, "hosts: .*backwards"),
        ({"kind": "host", "hosts": "gpu[01-"}, r"hosts: gpu\[01-: its bracket is not closed"),
        ({"kind": "host", "hosts": "gpu01", "ttl_seconds": 0}, "ttl: "),
        ({"kind": "enrol", "hosts": "gpu*", "uses": 0}, "max: "),
        ({"kind": "read", "hosts": "grafana"}, "scopes: "),
        ({"kind": "read", "hosts": "grafana", "scopes": ["all"]}, "scopes: got 'all'"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_refused(site: Site, wish: dict[str, Any], says: str) -> None:
    with pytest.raises(TokenError, match=says):
        site.tokens.new(**wish)
    assert obey(site.tokens, {"new": wish})["success"] is False
    assert site.tokens.all() == []


def test_a_kept_token_for_hosts_that_cannot_be_read_speaks_for_its_very_name_and_no_other() -> None:
    token = Token(id="a", kind="host", digest=b"", hosts="gpu[01-", made_at=0.0)
    assert [token.speaks_for(name) for name in ("gpu[01-", "gpu01", "gpu01")] == [True, False, False]


def test_the_machine_that_uses_a_token_is_kept_with_it(site: Site) -> None:
    secret = site.tokens.new("host", "gpu01")
    token = site.find(secret)
    assert token is not None
    site.tokens.used(token, "machine-1", site.clock.now)
    kept = site.find(secret, site.another_process())
    assert kept is not None
    assert kept.machine_id == "machine-1"
    ((_, used_at),) = site.tokens.all()
    assert used_at == site.clock.now


def test_a_file_of_a_newer_release_is_refused_in_words(site: Site) -> None:
    site.tokens.new("host", "gpu01")
    with sqlite3.connect(site.folder / FILE) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(TokenError, match="newer release"):
        site.another_process().load()


def test_a_file_that_cannot_be_read_leaves_what_is_known(site: Site) -> None:
    secret = site.tokens.new("host", "gpu01")
    (site.folder / FILE).write_bytes(b"not a database, but long enough to be looked at" * 100)
    site.clock.now += 5
    assert site.is_valid(secret)
    with pytest.raises(TokenError, match="cannot be read"):
        site.another_process().load()
    with pytest.raises(TokenError, match="cannot be written"):
        site.tokens.new("host", "gpu02")


def test_a_token_is_looked_up_in_little_more_than_one_hash_takes_however_many_there_are(site: Site) -> None:
    secrets = [site.tokens.new("host", f"gpu{number:03}") for number in range(200)]

    def spent(what: Callable[[str], object]) -> float:
        begin = time.process_time()
        for secret in secrets:
            what(secret)
        return time.process_time() - begin

    hashed, found = (
        min(spent(what) for _ in range(50))
        for what in (lambda secret: hashlib.sha256(secret.encode()).digest(), site.find)
    )
    assert found < 20 * hashed  # each token's hash in turn would take 200
