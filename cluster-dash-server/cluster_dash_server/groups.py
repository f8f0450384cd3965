"""In which group a user is: the Slurm account that their newest job runs under, else their Unix group on this machine.

The accounts of this machine say something only where it knows the site's people (LDAP, SSSD, NIS); where it does not,
the group is not known.
"""

import grp
import pwd
import threading
from collections.abc import Callable, Iterable

from cluster_dash_server.slurm import Picture

REMEMBERED_SECONDS = 600
"""A directory of people may be slow to answer, and groups rarely change."""


class Groups:
    """Says in which group a user is. Thread-safe.

    Args:
        pictures: Slurm as it is now, by the time (Unix s).
        clock: Unix s.
        unix_group: the group of a user on this machine; None: it knows no such user.
    """

    def __init__(
        self,
        pictures: Callable[[float], Iterable[Picture]],
        clock: Callable[[], float],
        unix_group: Callable[[str], str | None] | None = None,
    ) -> None:
        self._pictures = pictures
        self._clock = clock
        self._unix_group = unix_group or _unix_group
        self._accounts: dict[str, str] = {}
        self._of_user: dict[str, str | None] = {}
        self._until = float("-inf")
        self._lock = threading.Lock()

    def of(self, user: str) -> str | None:
        """Return the group of a user; None: nobody knows."""
        with self._lock:
            now = self._clock()
            if now >= self._until:
                self._accounts |= _accounts(self._pictures(now))  # of jobs that are gone, too
                self._of_user = {}
                self._until = now + REMEMBERED_SECONDS
            if user not in self._of_user:
                self._of_user[user] = self._accounts.get(user) or self._unix_group(user)
            return self._of_user[user]


def _accounts(pictures: Iterable[Picture]) -> dict[str, str]:
    """Return the account of each user's newest job."""
    newest: dict[str, tuple[float, str]] = {}
    for picture in pictures:
        for table in (picture.finished or (), picture.jobs or ()):
            for job in table:
                at = job.submitted_at or 0.0
                if job.account and at >= newest.get(job.user, (at, ""))[0]:
                    newest[job.user] = at, job.account
    return {user: account for user, (_, account) in newest.items()}


def _unix_group(user: str) -> str | None:
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except (KeyError, ValueError, OSError):
        return None
