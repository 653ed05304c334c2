"""How far a long computation is, and how long it still takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

SECONDS = 10.0  # between two lines


class Progress:
    """Says now and then how far it is.

    Args:
        name: of what is being computed.
        clock: seconds that never go back.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.clock = name, clock
        self.started = self.said = clock()

    def reach(self, done: float) -> None:
        """This share of the work is done, from 0 to 1; a line if the last one is ten seconds old."""
        now = self.clock()
        if now - self.said >= SECONDS and 0 < done < 1:
            self.said = now
            logger.info("%s: %.0f %%, %s", self.name, 100 * done, self.left(done))

    def left(self, done: float) -> str:
        """The time that is left, if the rest goes as fast as what is done."""
        elapsed = self.clock() - self.started
        return f"about {duration(elapsed * (1 - done) / done)} left"


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
