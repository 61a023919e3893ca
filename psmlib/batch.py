"""A batch of notebooks within a time limit, going on from where the last one stopped.

A lent machine comes with a limit. Notebooks run one after another; one whose run still stands is not run again, one
that the limit cuts off goes on, the next time, from the snapshots that its training has kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from psmlib.notebooks import Outcome


class OutOfTime(Exception):
    """The limit was reached while a notebook ran."""


def run_within(
    jobs: Mapping[str, Callable[[Callable[[float], None]], Outcome]], seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Outcome], list[str]]:  # fmt: skip
    """Runs jobs in order until all are done or the time is up.

    Args:
        jobs: By name; each is handed a function to call now and then, which ends it when the time is up.
        seconds: The limit.
        clock: Seconds from some fixed moment.

    Returns:
        How those that ended did so, and the names of those that did not.

    Example:
        >>> run_within({"a": lambda tick: Outcome(1.0), "b": lambda tick: Outcome(2.0)}, 60)[1]
        []
    """
    end, done = clock() + seconds, {}

    def tick(_: Any = None) -> None:
        if clock() > end:
            raise OutOfTime

    for name, job in jobs.items():
        try:
            tick()
            done[name] = job(tick)
        except OutOfTime:
            break
    return done, [name for name in jobs if name not in done]
