"""`bench/RESULTS.md`: a section for each case, each with the day, the machine and the versions it was measured with."""

from collections.abc import Iterable, Sequence

from bench.harness import Figure, table

HEAD = (
    "# Results\n\nEach section is of the last time that its case ran by `make bench`, or `bench/run.py --write CASE`.\n"
)
WORTH_SAYING = 0.01
"""From this share of stolen time on, figures that are delays tell of the machine, too."""


def section(
    case: str, figures: Iterable[Figure], *, runs: int, is_long: bool, day: str, machine: str, stolen: float
) -> str:
    """Return what a case found, as Markdown under a heading of its own.

    Args:
        case: its name.
        figures: what it found.
        runs: of how many the medians are.
        is_long: whether it ran in its long form.
        day: when, `2026-11-22`.
        machine: where, and with which versions.
        stolen: the share of the time in which something was to run here and waited for the host of this machine.
    """
    form = ", the long form" if is_long else ""
    what = f"{day}: {machine}. Medians of {runs} run{'' if runs == 1 else 's'}{form}, each beside its reference."
    if stolen >= WORTH_SAYING:
        what += f" Meanwhile the host of this machine kept it waiting for {stolen:.0%} of its time: delays are as long."
    return f"## {case}\n\n{what}\n\n{table(figures)}\n"


def with_section(text: str, new: str, cases: Sequence[str]) -> str:
    """Return the text of the file with a section in the place of the one of its case, or where that belongs.

    Args:
        text: what the file holds; empty where there is none.
        new: the section.
        cases: the names of all cases in their order. Sections of no case are left out.
    """
    parts = [*("\n" + text).split("\n## ")[1:], new.removeprefix("## ")]
    by_case = {part.partition("\n")[0]: f"## {part.strip()}\n" for part in parts}
    return "\n".join([HEAD, *(by_case[case] for case in cases if case in by_case)])
