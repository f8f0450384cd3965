"""`make run`: the server and a mole of this machine, until Ctrl-C."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dev.pair import MOLE, run_both


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address the server listens on")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    return run_both(
        target="run",
        host=options.host,
        port=options.port,
        poster=[MOLE / ".venv/bin/python", "smart_startup.py"],
        environment={**os.environ, "CLUSTER_DASH_JSON_SENDER_LOGGER__ADDRESS_IN": "{url}"},
        say="\n  This machine, live: {url}   (Ctrl-C ends server and mole)\n",
    )


if __name__ == "__main__":
    sys.exit(main())
