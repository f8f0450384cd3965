"""A clock for tests of whatever takes one."""

from dataclasses import dataclass


@dataclass
class StillClock:
    """A clock that a test moves by hand; Unix s."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now
