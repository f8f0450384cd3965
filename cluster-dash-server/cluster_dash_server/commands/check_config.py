"""`check-config`: the settings in force, and where each comes from."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from cluster_dash_server.notices.receivers import Receiver
from cluster_dash_server.settings import Reading, Settings


def report(reading: Reading) -> str:
    """Word the settings that are not at their defaults, a line each; secrets as `***`."""
    rows = list(_rows(reading))
    left = max((len(row[0]) for row in rows), default=0)
    lines = [f"file in force: {reading.file or 'none'}"]
    lines += [f"{setting.ljust(left)}   # {origin}" for setting, origin in rows]
    lines.append("all other settings are at their defaults" if rows else "all settings are at their defaults")
    return "\n".join(lines) + "\n"


def fault_of_database(settings: Settings) -> str | None:
    """Say why the database that is named cannot be used though it answers; None: it can, it is away, or none is."""
    if settings.ledger.kind != "postgresql" or settings.ledger.url is None:
        return None
    from cluster_dash_server import postgresql  # only who has one needs it

    database = postgresql.Database(settings.ledger.url, connections=1)
    try:
        return database.problem()
    except postgresql.PostgresqlError:  # settings may be looked at where it cannot be reached: the doctor says that
        return None
    finally:
        database.close()


def _rows(reading: Reading) -> Iterator[tuple[str, str]]:
    for section in dataclasses.fields(reading.settings):
        yield from _of(getattr(reading.settings, section.name), section.name, reading)


def _of(values: Any, name: str, reading: Reading) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(values):
        value, key = getattr(values, field.name), f"{name}.{field.name}"
        if value == field.default or "help" not in field.metadata:
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], Receiver):
            for receiver in value:
                yield from _of(receiver, f"{key}.{receiver.name}", reading)
            continue
        shown = '"***"' if field.metadata.get("secret") else json.dumps(value, ensure_ascii=False)
        yield f"{key} = {shown}", reading.origins.get(key) or reading.origins[f"{key}_file"]
