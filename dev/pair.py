"""A server and what posts to it, side by side until Ctrl-C. Uses the two halves' own environments."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SERVER = TOP / "cluster-dash-server"
MOLE = TOP / "cluster-dash-mole"
PATIENCE_SECONDS = 30


def run_both(
    *,
    target: str,
    host: str,
    port: int,
    server_options: Sequence[str | Path] = (),
    poster: Sequence[str | Path],
    environment: Mapping[str, str],
    say: str,
) -> int:
    """Start both, say where to look, end both; return the exit code.

    Args:
        target: the target of make that does this, for messages.
        host: the address that the server listens on.
        port: the port that the server listens on.
        server_options: further options of `cluster-dash-server serve`.
        poster: the command that posts, run in the mole's folder; `{url}` in it is where the server answers.
        environment: of both, whole; `{url}` in it likewise.
        say: what to print once the server answers; `{url}` in it is what a person opens.
    """
    url = f"http://127.0.0.1:{port}"
    if answers(url):
        print(f"a server runs at {url} already; another port: make {target} PORT={port + 1}", file=sys.stderr)
        return 1
    program = SERVER / ".venv/bin/cluster-dash-server"
    mine = {name: value.replace("{url}", url) for name, value in environment.items()}
    serve = [program, "serve", "--host", host, "--port", str(port), *server_options]
    server = subprocess.Popen(serve, env=mine)
    other = None
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        # a shell starts what runs in its background with Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        until = time.monotonic() + PATIENCE_SECONDS
        while not answers(url):
            if server.poll() is not None or time.monotonic() > until:
                print("the server did not start: see its message above", file=sys.stderr)
                return 1
            time.sleep(0.05)
        other = subprocess.Popen([str(part).replace("{url}", url) for part in poster], cwd=MOLE, env=mine)
        where = "localhost" if host in ("127.0.0.1", "0.0.0.0") else host  # noqa: S104 - compared, not bound
        print(say.replace("{url}", f"http://{where}:{port}"), flush=True)
        while server.poll() is None and other.poll() is None:
            time.sleep(0.5)
        ended = "the server" if server.poll() is not None else Path(poster[0]).name
        print(f"{ended} ended", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in (other, server):
            if process is not None:
                process.terminate()
                process.wait()


def answers(url: str) -> bool:
    """Say whether a server answers there."""
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def environment_without_settings() -> dict[str, str]:
    """Return this process's environment less all settings of cluster-dash."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_DASH_")}
