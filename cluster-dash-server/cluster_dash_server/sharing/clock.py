"""The one clock that all replicas go by: the engine's, as far as this machine's own differs from it."""

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

OFF_SECONDS = 1.0
"""A machine's clock that differs from the engine's by more is not gone by."""
LATE_SECONDS = 5.0
"""A live view that is older is shown with its age, and as it was then."""


class EngineClock:
    """Gives Unix s when it is called.

    Args:
        clock: this machine's (Unix s).
        monotonic: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.ahead_seconds = 0.0
        """What this machine's clock lacks."""
        self._clock = clock
        self._monotonic = monotonic
        self._heard_at = monotonic()

    def __call__(self) -> float:
        """Return the time by which posts are received."""
        return self._clock() + self.ahead_seconds

    def of_view(self) -> float:
        """Return the time for which the live view speaks: it stands still while the engine is away.

        Else all hosts would seem to fall silent, though it is us who do not hear what others hear of them.
        """
        age_seconds = self.age_seconds
        return self() - (age_seconds if age_seconds > LATE_SECONDS else 0.0)

    @property
    def age_seconds(self) -> float:
        """How long ago the engine last answered."""
        return self._monotonic() - self._heard_at

    def hear(self, at: float, asked_at: float) -> None:
        """Take the engine's time, of an answer that came just now.

        Args:
            at: the engine's time (Unix s).
            asked_at: when it was asked, by this clock.
        """
        self._heard_at = self._monotonic()
        self._go_by(at, asked_at, self())

    def _go_by(self, at: float, asked_at: float, answered_at: float) -> None:
        off_seconds = at - (asked_at + answered_at) / 2
        if abs(off_seconds) <= OFF_SECONDS + (answered_at - asked_at):
            return
        ahead_seconds = self.ahead_seconds + off_seconds
        self.ahead_seconds = ahead_seconds if abs(ahead_seconds) > OFF_SECONDS else 0.0
        log.warning("this machine's clock is %.1f s behind the one of the shared live view", self.ahead_seconds)
