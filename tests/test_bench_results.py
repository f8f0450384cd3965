"""What `make bench` writes down: the cases that ran, and beside them what the others found before."""

import subprocess
import sys
from pathlib import Path

from bench import results
from bench.harness import Cores, Figure
from bench.run import CASES

CASE_NAMES = ("ingest", "live", "start")
TOP = Path(__file__).resolve().parent.parent


def section(case: str, value: float, day: str = "2026-11-22", stolen: float = 0.0) -> str:
    figure = Figure(name=f"cost of {case}", value=value, unit="ms")
    return results.section(case, [figure], runs=1, is_long=False, day=day, machine="2 cores", stolen=stolen)


def test_a_case_that_runs_again_leaves_the_others_as_they_were() -> None:
    text = ""
    for case in ("start", "ingest", "live"):
        text = results.with_section(text, section(case, 1), CASE_NAMES)
    after = results.with_section(text, section("ingest", 2, day="2026-12-01"), CASE_NAMES)
    assert after == text.replace(section("ingest", 1), section("ingest", 2, day="2026-12-01"))
    assert [line for line in after.splitlines() if line.startswith("#")] == [
        "# Results",
        *(f"## {case}" for case in CASE_NAMES),
    ]


def test_a_section_says_when_and_where_its_figures_were_found() -> None:
    assert "2026-11-22: 2 cores. Medians of 1 run, each beside its reference.\n\n| figure" in section("ingest", 1)


def test_a_section_says_where_the_machine_itself_was_kept_waiting() -> None:
    assert "kept it waiting for 26% of its time" in section(
        "fleet", 1, stolen=Cores(84, 66).stolen_since(Cores(10, 40))
    )
    assert "waiting" not in section("fleet", 1, stolen=Cores(9_994, 41).stolen_since(Cores(10, 40)))


def test_what_is_of_no_case_is_left_out() -> None:
    text = results.with_section("# Results\n\nan older form\n\n## gone\n\n| x |\n", section("live", 1), CASE_NAMES)
    assert text == f"{results.HEAD}\n{section('live', 1)}"


def test_the_results_in_the_repository_are_of_cases_that_there_are() -> None:
    text = (TOP / "bench" / "RESULTS.md").read_text()
    known = [part.partition("\n")[0] for part in text.split("\n## ")[1:]]
    assert known
    assert known == [case for case in CASES if case in known]
    assert text.startswith(results.HEAD)


def test_a_case_that_there_is_not_is_named_beside_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "bench/run.py", "nonsense"], cwd=TOP, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown case nonsense: known are ingest, fleet" in done.stderr
