"""How log lines look: one line each, whatever stands in them."""

import json
import logging
import sys
from dataclasses import dataclass
from typing import Literal

from cluster_dash_server.snapshot import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What `-v` and `--log-format` choose."""

    log_format: Literal["text", "json"] = "text"
    verbose: bool = False


class OneLine(logging.Formatter):
    """`time level logger: message`; control characters are replaced, so that no name can forge a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without a traceback."""
        return printable(super().formatMessage(record), 2000)


class JsonLine(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {"at": record.created, "level": record.levelname, "logger": record.name, "msg": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def setup(options: LogOptions) -> None:
    """Send the log to stderr as the options say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine() if options.log_format == "json" else OneLine())
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.INFO, handlers=[handler], force=True)
    # waitress warns about each burst that waits for a thread
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
