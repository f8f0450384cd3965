"""`make run`: the server and a mole of this machine, until Ctrl-C. Uses the two halves' own environments."""

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 30


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main() -> int:
    """Start both, say where to look, end both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address the server listens on")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    url = f"http://127.0.0.1:{options.port}"
    if _answers(url):
        print(f"a server runs at {url} already; another port: make run PORT={options.port + 1}", file=sys.stderr)
        return 1
    program = str(TOP / "cluster-dash-server/.venv/bin/cluster-dash-server")
    server = subprocess.Popen([program, "serve", "--host", options.host, "--port", str(options.port)])
    mole = None
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        until = time.monotonic() + PATIENCE_SECONDS
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > until:
                print("the server did not start: see its message above", file=sys.stderr)
                return 1
            time.sleep(0.05)
        mole = subprocess.Popen(
            [str(TOP / "cluster-dash-mole/.venv/bin/python"), "smart_startup.py"],
            cwd=TOP / "cluster-dash-mole",
            env={**os.environ, "CLUSTER_DASH_JSON_SENDER_LOGGER__ADDRESS_IN": url},
        )
        where = "localhost" if options.host in ("127.0.0.1", "0.0.0.0") else options.host  # noqa: S104 - compared, not bound
        print(f"\n  This machine, live: http://{where}:{options.port}   (Ctrl-C ends server and mole)\n", flush=True)
        while server.poll() is None and mole.poll() is None:
            time.sleep(0.5)
        print("the server ended" if server.poll() is not None else "the mole ended", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in (mole, server):
            if process is not None:
                process.terminate()
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
