"""What stands round the table of the overview, in words: the legend's links, its head, ways out of a filter.

`static/js/overview.js` says the same in the browser; a browser test holds the two to each other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flask import request

from cluster_dash_server import facets
from cluster_dash_server.snapshot import printable
from cluster_dash_server.states import STATES
from cluster_dash_server.web import fleet, words
from cluster_dash_server.web.fleet import Page
from cluster_dash_server.web.parameters import QueryError
from cluster_dash_server.web.views import View, here

COLUMNS = (
    ("host", "Host", ""),
    ("state", "State", ""),
    ("model", "Model", ""),
    ("gpus", "GPUs", ""),
    ("free", "Free", "GPUs that are free"),
    ("users", "Users", "sorted by how many there are"),
    ("busy", "Busy", "GPU busy %, mean of the host's GPUs"),
    ("mem", "Mem", "GPU memory in use"),
    ("cpu", "CPU", ""),
    ("load", "Load", "load average of 1 minute"),
    ("seen", "Seen", "age of the newest snapshot"),
)
"""The columns of the table: name, head, tooltip."""
GROUPINGS = (("model", "by model"), ("part", "by partition"), ("state", "by state"), ("none", "hide"))


CHOOSABLE = tuple(name for name, _, _ in COLUMNS if name != "host")


class Column(NamedTuple):
    """A column to choose: its name, its head, the view in which it is shown or not, and whether it is."""

    name: str
    says: str
    href: str
    is_shown: bool


class Link(NamedTuple):
    """One entry of the legend: the same view with the state added to its filter, or taken away where it is chosen."""

    href: str
    chosen: bool


def words_of(view: View, part: Page, sort: str) -> dict[str, object]:
    """Return what the template needs beside rows and groups."""
    chosen = chosen_columns()
    return {
        "columns_to_choose": columns_to_choose(CHOOSABLE if chosen is None else chosen),
        "hidden": None if chosen is None else " ".join(name for name in CHOOSABLE if name not in chosen),
        "links": legend_links(view),
        "without": without(view),
        "said_count": said_count(part, sort),
        "columns": COLUMNS,
        "groupings": GROUPINGS,
        "grouped_from": fleet.GROUPED_FROM,
        "page_size": fleet.PAGE,
        "at_once": fleet.ALL_AT_ONCE,
    }


def chosen_columns() -> Sequence[str] | None:
    """Return the columns that `cols` names; None: it names none, and the width of the page decides.

    Raises:
        QueryError: there is no such column.
    """
    text = request.args.get("cols")
    if not text:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ("host", *CHOOSABLE):
            raise QueryError(f"cols: got {printable(name, 64)!r}, expected some of {', '.join(CHOOSABLE)}")
    return names


def columns_to_choose(shown: Sequence[str]) -> list[Column]:
    """Return each column, with the view in which it is the other way round."""
    found = []
    for name, says, _ in COLUMNS:
        if name in CHOOSABLE:
            wished = [each for each in CHOOSABLE if (each in shown) is not (each == name)]
            cols = None if len(wished) == len(CHOOSABLE) else ",".join(wished) or "host"
            found.append(Column(name, says, here(cols=cols), name in shown))
    return found


def legend_links(view: View) -> dict[str, Link]:
    """Return the link of each state."""
    chosen = {
        each.text
        for term in view.wish.terms
        if term.key == "state" and not term.is_negated
        for each in term.alternatives
    }
    return {
        state: Link(here(q=str(facets.toggled(view.wish, "state", state)) or None), state in chosen) for state in STATES
    }


def without(view: View) -> list[tuple[str, str | None]]:
    """Return each term of the filter with the filter that lacks it."""
    terms = view.wish.terms
    return [
        (str(term), str(view.wish.of((*terms[:place], *terms[place + 1 :]))) or None)
        for place, term in enumerate(terms)
    ]


def said_count(part: Page, sort: str) -> str:
    """Say which hosts the table shows, and in which order: `8 hosts, worst first`."""
    which = words.plural(part.total, "host")
    if part.pages > 1:
        which = f"hosts {part.first}–{part.last} of {part.total}"
    if sort == fleet.ORDERS.usual:
        return f"{which}, worst first"
    heads = {name: head for name, head, _ in COLUMNS}
    return f"{which}, by {heads[sort.removeprefix('-')].lower()}"
