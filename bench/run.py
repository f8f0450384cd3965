"""`make bench`: every benchmark beside its reference, medians of several runs.

python bench/run.py [--runs N] [--full] [--write] [CASE …]
"""

import argparse
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from bench import (  # noqa: E402 - the folder is no installed package
    alerts,
    browser,
    drain,
    fleet,
    history,
    ingest,
    live,
    mole,
    prometheus,
    relay,
    replicas,
    scrape,
    sharing,
    simulate,
    start,
)
from bench.harness import Figure, machine, table  # noqa: E402

CASES: dict[str, Callable[[int], list[Figure]]] = {
    "ingest": ingest.run,
    "fleet": fleet.run,
    "drain": drain.run,
    "prometheus": prometheus.run,
    "scrape": scrape.run,
    "live": live.run,
    "browser": browser.run,
    "start": start.run,
    "mole": mole.run,
    "simulate": simulate.run,
    "history": history.run,
    "relay": relay.run,
    "sharing": sharing.run,
    "replicas": replicas.run,
    "alerts": alerts.run,
}
FULL: dict[str, Callable[..., list[Figure]]] = {"history": history.run, "replicas": replicas.run}
"""Those that have a long form."""


def main() -> int:
    """Run the cases; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--write", action="store_true", help="write the table to bench/RESULTS.md")
    parser.add_argument("--full", action="store_true", help="history: 1,000 hosts, for hours; replicas: 10,000 hosts")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]}: known are {', '.join(CASES)}")
    figures = []
    for name in options.cases or CASES:
        print(f"{name} …", file=sys.stderr, flush=True)
        case = partial(FULL[name], full=True) if options.full and name in FULL else CASES[name]
        figures += case(options.runs)
        text = (
            f"{machine()}. Medians of {options.runs} runs, each beside its reference in the same run.\n\n"
            f"{table(figures)}\n"
        )
        if options.write:  # after each case: who ends a long run keeps what it has found
            day = datetime.now(tz=timezone.utc).date().isoformat()
            (TOP / "bench" / "RESULTS.md").write_text(f"# Results\n\nWritten by `make bench` on {day}: {text}")
    print(text)
    return int(any(figure.met is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
