"""What a request says, read word by word; what cannot be understood is refused with its name and its mend."""

from collections.abc import Mapping, Sequence
from datetime import UTC, tzinfo
from typing import NoReturn, TypeVar

from flask import request

from cluster_dash_server import filters, when
from cluster_dash_server.snapshot import Json, loads, printable

MOST_GPUS = 64
"""How many may be wished for at once."""

Word = TypeVar("Word", bound=str)


class QueryError(Exception):
    """A query that cannot be answered; the text names the parameter and its mend."""


def json_object() -> Json:
    """Return what a request holds, by the parser of snapshots: a lone surrogate could be kept and shown nowhere.

    Raises:
        QueryError: it is no JSON object.
    """
    try:
        body = loads(request.get_data()) if request.is_json else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise QueryError("body: expected a JSON object, sent with Content-Type: application/json")
    return body


def text_of(said: Mapping[str, object], name: str, longest: int) -> str:
    """Return a text of a form or a JSON object; empty where it is not said.

    Args:
        said: all that was said.
        name: of what is wanted.
        longest: how many characters it may have.

    Raises:
        QueryError: it is no text, or longer.
    """
    value = said.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > longest:
        raise QueryError(f"{name}: got {printable(str(value), 64)!r}, expected a text of at most {longest} characters")
    return value.strip()


def choice(name: str, known: Sequence[Word]) -> Word:
    """Return a parameter that is one of a few words, the first where it is not given.

    Raises:
        QueryError: it is another.
    """
    wanted = request.args.get(name) or known[0]
    found = next((word for word in known if word == wanted), None)
    return _refuse(name, wanted, f"one of {', '.join(known)}") if found is None else found


def digits(text: str, most: int) -> int | None:
    """Read a whole number of at most so many digits; None: it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= most else None


def count(text: str) -> int:
    """Read how many GPUs are wished.

    Raises:
        QueryError: no whole number, or out of its range.
    """
    wished = digits(text, 3)
    if wished is None or not 1 <= wished <= MOST_GPUS:
        return _refuse("count", text, f"a whole number from 1 to {MOST_GPUS}")
    return wished


def size_mib(name: str, text: str) -> float:
    """Read an amount of memory such as `40G` (40 × 2^30 bytes), to 2^20 bytes.

    Raises:
        QueryError: it is none; a number without its unit is none, for nobody could say what it means.
    """
    size = filters.size_mib(text)
    return _refuse(name, text, "a size with its unit, such as 40G or 512M") if size is None else size


def moment(name: str, text: str, now: float, zone: tzinfo = UTC) -> float:
    """Read a moment in Grafana's grammar (see `when`), to Unix s.

    Raises:
        QueryError: it is none.
    """
    try:
        return when.moment(text, now, zone, is_end=name == "to")
    except when.WhenError as error:
        raise QueryError(f"{name}: got {printable(text, 64)!r}, {error}") from None


def until(text: str, now: float, zone: tzinfo) -> float:
    """Read until when (see `when.until`), to Unix s.

    Raises:
        QueryError: it says no moment.
    """
    try:
        return when.until(text, now, zone)
    except when.WhenError as error:
        raise QueryError(f"until: got {printable(text, 64)!r}, {error}") from None


def span(default: str, now: float, zone: tzinfo, *, most_seconds: float = when.MOST_SECONDS) -> when.Span:
    """Return the time `from` … `to` that the request asks for, from `default` to now where it says nothing.

    Raises:
        QueryError: no such time, or a longer one.
    """
    begin, end = request.args.get("from") or default, request.args.get("to") or "now"
    try:
        return when.span(begin, end, now, zone, most_seconds=most_seconds)
    except when.WhenError as error:
        raise QueryError(printable(str(error))) from None


def _refuse(name: str, got: str, expected: str) -> NoReturn:
    raise QueryError(f"{name}: got {printable(got, 64)!r}, expected {expected}")
