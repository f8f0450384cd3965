"""Hostlists, as Slurm and pdsh write them: `gpu[01-03,07]` for gpu01, gpu02, gpu03 and gpu07. Pure.

Of a name the last number is counted: `rack2-gpu[07-08].lab`. A name that holds a bracket, a comma or a blank stands
as it is. `static/js/hostlist.js` compresses alike.
"""

import re
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from itertools import product

MOST_NAMES = 100_000
"""How many names a hostlist may stand for."""

_NUMBERED = re.compile(r"(.*?)([0-9]{1,15})([^0-9]*)", re.DOTALL)
_SPECIAL = re.compile(r"[\[\],\s]")
_RANGES = re.compile(r"\[([0-9]{1,15}(?:-[0-9]{1,15})?(?:,[0-9]{1,15}(?:-[0-9]{1,15})?)*)\]")

_OPEN = re.compile(r"\[[0-9][^\[\]]*\Z")
_OF_NUMBERS = re.compile(r"\[[0-9,\s-]*\]")


class HostlistError(Exception):
    """A hostlist that cannot be expanded; the text says why."""


def natural(host: str) -> str:
    """Return what sorts host names as people count: gpu2 before gpu10."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(12), host)


def compress(names: Iterable[str]) -> str:
    """Write names as one hostlist: each once, in the order in which people count."""
    series: dict[tuple[str, str] | str, list[str]] = {}
    for name in sorted(set(names), key=lambda name: (natural(name), name)):
        match = None if _SPECIAL.search(name) else _NUMBERED.fullmatch(name)
        if match is None:
            series[name] = []
        else:
            series.setdefault((match[1], match[3]), []).append(match[2])
    parts = []
    for around, numbers in series.items():
        if isinstance(around, str):
            parts.append(around)
            continue
        prefix, suffix = around
        parts.append(f"{prefix}{numbers[0] if len(numbers) == 1 else f'[{_runs(numbers)}]'}{suffix}")
    return ",".join(parts)


def _runs(numbers: list[str]) -> str:
    """Write numbers as ranges: `01-03,07`. A range counts on from its first number, filled up to that one's width."""
    runs: list[tuple[str, str]] = []
    for number in sorted(numbers, key=lambda number: (len(number), number)):
        if runs and number == str(int(runs[-1][1]) + 1).zfill(len(runs[-1][0])):
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ",".join(first if first == last else f"{first}-{last}" for first, last in runs)


def expand(hostlist: str) -> list[str]:
    """Return the names that a hostlist stands for, in its order.

    Raises:
        HostlistError: it stands for too many, or a range in it runs backwards.
    """
    names: list[str] = []
    for part in _parts(hostlist):
        pieces = _RANGES.split(part)  # text, inside of a bracket, text, …
        count = 1
        choices = []
        for place, piece in enumerate(pieces):
            choices.append(_numbers(piece) if place % 2 else [piece])
            count *= len(choices[-1])
            if len(names) + count > MOST_NAMES:  # at once: each bracket more would take memory
                raise HostlistError(f"{hostlist[:64]} stands for more than {MOST_NAMES} names")
        names += ["".join(chosen) for chosen in product(*choices) if any(chosen)]
    return names


def _parts(hostlist: str) -> list[str]:
    """Cut at the commas that stand in no bracket. By hand: a pattern that looks ahead takes quadratic time."""
    parts, begin, inside = [], 0, False
    for place, character in enumerate(hostlist):
        if character in "[]":
            inside = character == "["
        elif character == "," and not inside:
            parts.append(hostlist[begin:place])
            begin = place + 1
    return [*parts, hostlist[begin:]]


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if int(last) < int(first):
            raise HostlistError(f"[{part}] runs backwards")
        if len(numbers) + int(last) - int(first) >= MOST_NAMES:
            raise HostlistError(f"[{part}] stands for more than {MOST_NAMES} names")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def matcher(hosts: str, known: Collection[str] = ()) -> Callable[[str], bool]:
    """Return what says whether a name is meant by a name, a hostlist or a pattern with `*` and `?`.

    Nothing is expanded: a list of a million names takes no more memory than its text.

    Args:
        hosts: the name, hostlist or pattern.
        known: names of hosts that there are; one of them means itself, also where it reads as no hostlist: `gpu[1`.

    Raises:
        HostlistError: a range runs backwards, or cannot be read; or a bracket with numbers is not closed. Another one
            may be a pattern's, or part of a name.
    """
    try:
        return _matcher(hosts)
    except HostlistError:
        if hosts not in known:
            raise
    return lambda host: host == hosts


def _matcher(hosts: str) -> Callable[[str], bool]:
    exactly, patterns, lists = {hosts}, [], []
    for part in filter(None, _parts(hosts)):
        _refuse_what_is_no_list(part)
        if _RANGES.search(part):
            lists.append(_pieces(part))
        elif re.search(r"[*?\[]", part):
            patterns.append(part)
        else:
            exactly.add(part)
    return lambda host: (
        host in exactly
        or any(fnmatchcase(host, pattern) for pattern in patterns)
        or any(_is_in(host, pieces) for pieces in lists)
    )


def _refuse_what_is_no_list(part: str) -> None:
    if _OPEN.search(part):
        raise HostlistError(f"{part[:64]}: its bracket is not closed, as in gpu[01-03,07]")
    for bracket in _OF_NUMBERS.findall(part):
        if not _RANGES.fullmatch(bracket):
            raise HostlistError(f"{bracket[:64]}: expected numbers and ranges, as in gpu[01-03,07]")


_Piece = Callable[[str, set[int]], Iterable[int]]
"""Says where a piece of a hostlist may end in a name, where the pieces before it may have ended."""


def _pieces(part: str) -> list[_Piece]:
    pieces: list[_Piece] = []
    for place, piece in enumerate(_RANGES.split(part)):
        if place % 2:
            pieces.append(_range_piece(piece))
        else:
            pieces += [_any_piece if each == "*" else _text_piece(each) for each in re.findall(r"\*|[^*]+", piece)]
    return pieces


def _any_piece(name: str, begins: set[int]) -> Iterable[int]:
    return range(min(begins), len(name) + 1)


def _text_piece(text: str) -> _Piece:
    pattern = re.compile("".join("." if each == "?" else re.escape(each) for each in text), re.DOTALL)
    return lambda name, begins: [begin + len(text) for begin in begins if pattern.match(name, begin)]


def _range_piece(text: str) -> _Piece:
    ranges = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise HostlistError(f"[{part}] runs backwards")
        ranges.append((int(first), int(last or first), len(first)))

    def is_meant(digits: str) -> bool:
        if not (digits.isascii() and digits.isdigit()):
            return False
        number = int(digits)
        return any(low <= number <= high and digits == str(number).zfill(width) for low, high, width in ranges)

    return lambda name, begins: [
        end for begin in begins for end in range(begin + 1, min(len(name), begin + 15) + 1) if is_meant(name[begin:end])
    ]


def _is_in(name: str, pieces: list[_Piece]) -> bool:
    places = {0}
    for piece in pieces:
        places = set(piece(name, places))
        if not places:
            return False
    return len(name) in places
