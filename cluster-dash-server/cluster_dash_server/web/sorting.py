"""The orders of a table, which a click on the head of a column chooses; addresses, so that no script is needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")
Key = Callable[[Row], Any]


@dataclass(frozen=True)
class Orders(Generic[Row]):
    """The orders that a table has.

    Attributes:
        keys: by column, what its rows go by (None: not known), and whether the largest comes first at first.
        usual: the order that the table has by itself.
    """

    keys: Mapping[str, tuple[Key[Row], bool]]
    usual: str

    def choices(self) -> tuple[str, ...]:
        """Return every order that can be asked for, the usual one first."""
        return tuple(dict.fromkeys((self.usual, *(f"{sign}{name}" for name in self.keys for sign in ("", "-")))))

    def of(self, rows: Sequence[Row], sort: str) -> list[Row]:
        """Put rows that have the usual order into another one: by a column, or by its reverse, `-free`.

        Equal ones stay as they were; what is not known comes last.
        """
        if sort == self.usual:
            return list(rows)
        key, _ = self.keys[sort.removeprefix("-")]
        keyed = [(key(row), row) for row in rows]
        known = [each for each in keyed if each[0] is not None]
        known.sort(key=lambda each: each[0], reverse=sort.startswith("-"))
        return [row for _, row in known] + [row for value, row in keyed if value is None]

    def next(self, name: str, sort: str) -> str:
        """Return the order that a click on a column gives: its useful end first, then the other, then the usual one."""
        first, other = (f"-{name}", name) if self.keys[name][1] else (name, f"-{name}")
        return other if sort == first else self.usual if sort == other else first

    def direction(self, name: str, sort: str) -> str | None:
        """Say in the words of ARIA how a column is sorted; None: it is not."""
        return {name: "ascending", f"-{name}": "descending"}.get(sort)
