"""The text that Prometheus reads: its format 0.0.4 and OpenMetrics 1.0. Pure.

Unknown is an absent line, never 0 and never NaN. A line has no timestamp: its age is a figure of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OPEN_METRICS_END = "# EOF\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: all its lines stand together, below what it is."""

    name: str
    kind: Kind
    help: str

    def head(self, *, open_metrics: bool) -> str:
        """Return the lines above its samples."""
        name, kind = self.name, str(self.kind)
        if open_metrics and kind == "counter":
            # there a counter is called by its name without the ending, and one without it cannot be told as one
            name, kind = (name[:-6], kind) if name.endswith("_total") else (name, "unknown")
        return f"# HELP {name} {escape(self.help) if open_metrics else _one_line(self.help)}\n# TYPE {name} {kind}\n"


def wants_open_metrics(accept: str | None) -> bool:
    """Say whether an Accept header asks for OpenMetrics, at least as much as for anything else.

    Prometheus names both and prefers the one it names with the higher `q`.
    """
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in (accept or "").lower().split(","):
        kind, *parameters = (each.strip() for each in part.split(";"))
        if kind in best:
            best[kind] = max(best[kind], _quality(parameters))
    return best["application/openmetrics-text"] > 0 and best["application/openmetrics-text"] >= best["text/plain"]


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def escape(text: str) -> str:
    """Write a text as it may stand between the quotes of a label."""
    if "\\" in text or '"' in text or "\n" in text:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return text


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def labels(pairs: Mapping[str, str | None]) -> str:
    """Write labels, `{a="b"}`; one that is not known, or empty, is left out, which means the same."""
    known = [f'{name}="{escape(value)}"' for name, value in pairs.items() if value]
    return "{" + ",".join(known) + "}" if known else ""


def section(family: Family, samples: Iterable[tuple[str, float | None]], *, open_metrics: bool) -> str:
    """Write a family, nothing where no value is known.

    Args:
        family: what it is.
        samples: pairs of labels, as `labels` writes them, and values; no two of them may have the same labels.
        open_metrics: in which of the two formats.
    """
    name = family.name
    lines = [f"{name}{where} {value}\n" for where, value in samples if value is not None]
    return family.head(open_metrics=open_metrics) + "".join(lines) if lines else ""
