"""How log lines look: one line each, whatever stands in them."""

import json
import logging
import time

from cluster_dash_mole.snapshot import clean


class OneLine(logging.Formatter):
    """One line a record, whatever is in it: names from the network must not forge lines or move the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line; a trace of calls stays as it is."""
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{at} {record.levelname.lower()} {clean(record.getMessage())}{trace}"


class JsonLine(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line: `at` in Unix s."""
        line = {"at": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        line["text"] = record.getMessage()
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(*, verbose: bool, log_format: str) -> None:
    """Send the log to stderr, from `verbose` on with what only a developer asks for, as `text` or `json`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine() if log_format == "json" else OneLine())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
