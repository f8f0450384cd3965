"""`make bench`: every benchmark beside its reference, medians of several runs.

python bench/run.py [--runs N] [--full] [--write] [CASE …]
"""

import argparse
import sys
from collections.abc import Callable
from datetime import datetime, timezone
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
    results,
    scrape,
    sharing,
    simulate,
    start,
)
from bench.harness import Cores, Figure, machine  # noqa: E402

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
    "month": history.month,
    "relay": relay.run,
    "sharing": sharing.run,
    "replicas": replicas.run,
    "alerts": alerts.run,
}
FULL: dict[str, Callable[..., list[Figure]]] = {"month": history.month, "replicas": replicas.run}
"""Those that have a long form."""


RESULTS = TOP / "bench" / "RESULTS.md"


def main() -> int:
    """Run the cases; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--write", action="store_true", help="put them into bench/RESULTS.md; other cases stay there")
    parser.add_argument("--full", action="store_true", help="month: 1,000 hosts, for hours; replicas: 10,000 hosts")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]}: known are {', '.join(CASES)}")
    has_missed = False
    for name in options.cases or CASES:
        print(f"{name} …", file=sys.stderr, flush=True)
        is_long = options.full and name in FULL
        before_it = Cores.now()
        figures = FULL[name](options.runs, full=True) if is_long else CASES[name](options.runs)
        has_missed |= any(figure.met is False for figure in figures)
        day = datetime.now(tz=timezone.utc).date().isoformat()
        stolen = Cores.now().stolen_since(before_it)
        found = results.section(
            name, figures, runs=options.runs, is_long=is_long, day=day, machine=machine(), stolen=stolen
        )
        print(found, flush=True)
        if options.write:  # after each case: who ends a long run keeps what it has found
            before = RESULTS.read_text() if RESULTS.exists() else ""
            RESULTS.write_text(results.with_section(before, found, list(CASES)))
    return int(has_missed)


if __name__ == "__main__":
    sys.exit(main())
