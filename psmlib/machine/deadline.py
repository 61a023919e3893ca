"""The moment at which long trainings keep their state and end, so that what is finished can be reported.

The environment variable PSMLIB_UNTIL gives it, in seconds as of ``time.time``; without it nothing ends early.
"""

import os
import time

VARIABLE = "PSMLIB_UNTIL"


class Unfinished(Exception):
    """A training has kept its state and ended before its last update; the same call goes on from there.

    Args:
        done: Updates done, per network.
        updates: Updates to do.
        seconds: Time that those done have taken.

    Example:
        >>> Unfinished(100, 400, 2.0).left
        6.0
    """

    def __init__(self, done: int, updates: int, seconds: float):
        super().__init__(done, updates, seconds)  # the arguments make it again in another process
        self.done, self.updates, self.seconds = done, updates, seconds

    def __str__(self) -> str:
        return f"{self.done:,} of {self.updates:,} updates"

    @property
    def left(self) -> float | None:
        """Seconds that the others will take at the same rate; None before the first."""
        return self.seconds * (self.updates - self.done) / self.done if self.done else None


def late() -> bool:
    """Whether the moment has come."""
    until = os.environ.get(VARIABLE)
    return until is not None and time.time() >= float(until)
