"""`check-config`: the settings in force, and where each comes from."""

import dataclasses
import json
from collections.abc import Iterator

from cluster_dash_server.settings import Reading


def report(reading: Reading) -> str:
    """Word the settings that are not at their defaults, a line each; secrets as `***`."""
    rows = list(_rows(reading))
    left = max((len(row[0]) for row in rows), default=0)
    lines = [f"file in force: {reading.file or 'none'}"]
    lines += [f"{setting.ljust(left)}   # {origin}" for setting, origin in rows]
    lines.append("all other settings are at their defaults" if rows else "all settings are at their defaults")
    return "\n".join(lines) + "\n"


def _rows(reading: Reading) -> Iterator[tuple[str, str]]:
    for section in dataclasses.fields(reading.settings):
        values = getattr(reading.settings, section.name)
        for field in dataclasses.fields(values):
            value, key = getattr(values, field.name), f"{section.name}.{field.name}"
            if value != field.default:
                shown = '"***"' if field.metadata.get("secret") else json.dumps(value, ensure_ascii=False)
                yield f"{key} = {shown}", reading.origins[key]
