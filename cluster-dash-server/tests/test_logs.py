"""Log lines that nobody can forge."""

import json
import logging

from cluster_dash_server.logs import JsonLine, OneLine


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("ingest", logging.INFO, __file__, 1, "refused %s", (message,), None)


def test_a_name_cannot_begin_a_line_of_its_own() -> None:
    assert "\n" not in OneLine().format(record("gpu01\n2026-01-01 ERROR forged"))
    assert "\x1b" not in OneLine().format(record("\x1b[2J"))


def test_a_json_line_is_one_object() -> None:
    line = JsonLine().format(record("gpu01\nforged"))
    assert "\n" not in line
    assert json.loads(line)["msg"] == "refused gpu01\nforged"
