"""Groups of users: Slurm's accounts, else Unix groups."""

import grp
import os
import pwd
from types import SimpleNamespace
from typing import Any

from cluster_dash_server.groups import REMEMBERED_SECONDS, Groups


def picture(*jobs: tuple[str, str, float], finished: tuple[tuple[str, str, float], ...] = ()) -> Any:
    def made(all_: tuple[tuple[str, str, float], ...]) -> list[Any]:
        return [SimpleNamespace(user=user, account=account, submitted_at=at) for user, account, at in all_]

    return SimpleNamespace(jobs=made(jobs), finished=made(finished))


def test_the_account_of_the_newest_job_goes_before_the_unix_group() -> None:
    slurm = picture(("alice", "vision", 2.0), ("bob", "", 3.0), finished=(("alice", "speech", 1.0),))
    groups = Groups(lambda now: [slurm], lambda: 0.0, {"alice": "staff", "bob": "users"}.get)
    assert [groups.of(user) for user in ("alice", "bob", "carol")] == ["vision", "users", None]


def test_a_user_without_a_job_any_more_stays_in_the_group() -> None:
    pictures, now = [picture(("alice", "vision", 1.0))], [0.0]
    groups = Groups(lambda at: pictures, lambda: now[0], lambda user: None)
    assert groups.of("alice") == "vision"
    pictures[:] = []
    now[0] += REMEMBERED_SECONDS + 1
    assert groups.of("alice") == "vision"


def test_the_directory_of_people_is_asked_once_in_a_while() -> None:
    asked: list[str] = []
    groups = Groups(lambda now: (), lambda: 0.0, lambda user: asked.append(user))
    assert [groups.of("alice"), groups.of("alice"), asked] == [None, None, ["alice"]]


def test_this_machine_says_the_group_of_its_own_users() -> None:
    me = pwd.getpwuid(os.getuid())
    groups = Groups(lambda now: (), lambda: 0.0)
    assert groups.of(me.pw_name) == grp.getgrgid(me.pw_gid).gr_name
    assert [groups.of(name) for name in ("no such user", "a\0b", "")] == [None, None, None]
