"""What the running server does for the commands `maintenance` and `reload`."""

import re
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta, tzinfo

from cluster_dash_server.alerts.book import Book, BookError, Maintenance
from cluster_dash_server.alerts.rules import RulesError
from cluster_dash_server.alerts.watch import Watch
from cluster_dash_server.filters import seconds
from cluster_dash_server.hostlist import HostlistError, matcher
from cluster_dash_server.snapshot import Json
from cluster_dash_server.when import WhenError, moment

_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)


def obey_maintenance(book: Book, wish: Json, now: float, site_zone: tzinfo, known: Collection[str] = ()) -> Json:
    """Do what `maintenance` asks of the server; returns what holds after it.

    Args:
        book: where it is kept.
        wish: what is asked.
        now: Unix s.
        site_zone: in which `18:00` is meant, and ends are told.
        known: names of hosts that there are; see `hostlist.matcher`.
    """
    try:
        if "hosts" in wish:
            hosts = str(wish["hosts"])
            if wish["until"] is None:
                if not book.end_maintenance(hosts, wish["by"], now):
                    named = ", ".join(each.hosts for each in book.maintenance(now)) or "none"
                    return {"success": False, "msg": f"{hosts} is in no maintenance; what is: {named}"}
            else:
                if not hosts.strip():
                    return {
                        "success": False,
                        "msg": "HOST: got an empty name, expected a name, a hostlist or a pattern",
                    }
                matcher(hosts, known)
                ends_at = until(wish["until"], now, site_zone)
                if ends_at <= now:
                    return {"success": False, "msg": f"--until: {wish['until']} is past"}
                book.maintain(
                    Maintenance(hosts=hosts, by=wish["by"], reason=wish["reason"], begins_at=now, ends_at=ends_at)
                )
        return {"success": True, "maintenance": [_told(each, site_zone) for each in book.maintenance(now)]}
    except (WhenError, HostlistError, BookError) as error:
        return {"success": False, "msg": f"--until: {error}" if isinstance(error, WhenError) else str(error)}


def _told(maintenance: Maintenance, site_zone: tzinfo) -> Mapping[str, str]:
    ends = datetime.fromtimestamp(maintenance.ends_at, site_zone).strftime("%Y-%m-%d %H:%M")
    return {"hosts": maintenance.hosts, "until": ends, "by": maintenance.by, "reason": maintenance.reason}


def until(text: str, now: float, site_zone: tzinfo) -> float:
    """Read until when: `2h`, `18:00` (the next one), or a moment.

    Raises:
        WhenError: it says no moment.
    """
    span = seconds(text)
    if span is not None:
        return now + span
    clock = _CLOCK.fullmatch(text.strip())
    if clock is not None:
        here = datetime.fromtimestamp(now, site_zone)
        then = here.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return (then if then > here else then + timedelta(days=1)).timestamp()
    try:
        return moment(text, now, site_zone)
    except WhenError as error:
        raise WhenError(f"got {text!r}, {error}, or 2h, or 18:00") from None


def obey_reload(watch: Watch) -> Json:
    """Do what `reload` asks of the server."""
    try:
        return {"success": True, "rules": len(watch.reload())}
    except RulesError as error:
        return {"success": False, "msg": f"{error}; the rules from before are still in force"}
    except BookError as error:
        return {"success": False, "msg": f"they are in force on this replica alone: {error}"}
