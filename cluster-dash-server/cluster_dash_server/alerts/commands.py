"""What the running server does for the commands `maintenance` and `reload`."""

from collections.abc import Collection, Mapping
from datetime import datetime, tzinfo

from cluster_dash_server.alerts.book import Book, BookError, Maintenance
from cluster_dash_server.alerts.rules import RulesError
from cluster_dash_server.alerts.watch import Watch
from cluster_dash_server.hostlist import HostlistError, matcher
from cluster_dash_server.snapshot import Json
from cluster_dash_server.when import WhenError, until


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
                    return _misunderstood("HOST: got an empty name, expected a name, a hostlist or a pattern")
                matcher(hosts, known)
                ends_at = until(wish["until"], now, site_zone)
                if ends_at <= now:
                    return _misunderstood(f"--until: {wish['until']} is past")
                book.maintain(
                    Maintenance(hosts=hosts, by=wish["by"], reason=wish["reason"], begins_at=now, ends_at=ends_at)
                )
        return {"success": True, "maintenance": [_told(each, site_zone) for each in book.maintenance(now)]}
    except WhenError as error:
        return _misunderstood(f"--until: got {wish['until']!r}, {error}")
    except HostlistError as error:
        return _misunderstood(str(error))
    except BookError as error:
        return {"success": False, "msg": str(error)}


def _misunderstood(why: str) -> Json:
    return {"success": False, "is_usage": True, "msg": why}


def _told(maintenance: Maintenance, site_zone: tzinfo) -> Mapping[str, str]:
    ends = datetime.fromtimestamp(maintenance.ends_at, site_zone).strftime("%Y-%m-%d %H:%M")
    return {"hosts": maintenance.hosts, "until": ends, "by": maintenance.by, "reason": maintenance.reason}


def obey_reload(watch: Watch) -> Json:
    """Do what `reload` asks of the server."""
    try:
        return {"success": True, "rules": len(watch.reload())}
    except RulesError as error:
        return {"success": False, "msg": f"{error}; the rules from before are still in force"}
    except BookError as error:
        return {"success": False, "msg": f"they are in force on this replica alone: {error}"}
