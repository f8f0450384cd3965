"""`make demo`: a server and a simulated fleet with faults, in a temporary data folder, until Ctrl-C."""

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dev.pair import MOLE, environment_without_settings, run_both

INTERVAL_SECONDS = 5
SEED = 29
SETTINGS = """\
[site]
name = "demo"
notice = "DEMO: simulated. Times are short here: stale after 20 s, held after 45 s, down after 5 min."
[states]
stale_seconds = 20
held_seconds = 45
down_seconds = 300
"""
"""Short times, so that the first minutes show every state."""

SAY = """
  DEMO, simulated: {url}   (Ctrl-C ends it; nothing of it is kept)

    what is free, what is wrong   {url}/
    who uses gpu01                {url}/host/gpu01
    the queue, and why jobs wait  {url}/slurm
    the same in a terminal        curl {url}/api/gpu-summary
"""


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address the server listens on")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--hosts", type=int, default=8, help="how many hosts to simulate")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed, another night")
    options = parser.parse_args()
    passcode = secrets.token_urlsafe()
    with tempfile.TemporaryDirectory(prefix="cluster-dash-demo-") as folder:
        settings = Path(folder, "server.toml")
        settings.write_text(SETTINGS)
        return run_both(
            target="demo",
            host=options.host,
            port=options.port,
            server_options=["-c", settings, "--data", Path(folder, "data")],
            poster=[
                *(MOLE / ".venv/bin/cluster-dash-mole", "simulate", "--server", "{url}"),
                *("--faults", "--quiet", "--slurm", "--past", "24"),
                *("--hosts", str(options.hosts), "--interval", str(INTERVAL_SECONDS), "--seed", str(options.seed)),
            ],
            environment={
                **environment_without_settings(),
                "CLUSTER_DASH_INGEST__PASSCODE": passcode,
                "CLUSTER_DASH_JSON_SENDER_LOGGER__AUTH_CODE": passcode,
            },
            say=SAY,
        )


if __name__ == "__main__":
    sys.exit(main())
