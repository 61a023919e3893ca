"""The state of a sampler after each step, and checks of its times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from psmlib.process import Process
from psmlib.process.path import check_within


class State(NamedTuple):
    """Points after a step of a sampler.

    Attributes:
        x: The points. Shape: (n, *shape).
        t: Their time.
        nfe: Evaluations of the score so far.
    """

    x: Tensor
    t: float
    nfe: int


def last(states: Iterable[State]) -> State:
    """The final state of a sampler.

    Raises:
        ValueError: when there is none.

    Example:
        >>> last([State(None, 1., 0), State(None, .5, 1)]).t
        0.5
    """
    state = None
    for item in states:
        state = item
    if state is None:
        raise ValueError("the sampler made no step: give it at least two times, descending")
    return state


def check_descending(times, process: Process) -> list[float]:
    """Times as floats; raises ValueError unless they strictly descend, within the process."""
    out = [float(t) for t in times]
    for t in out:
        check_within(t, process.T, "times")
    if len(out) < 2 or any(not b < a for a, b in zip(out, out[1:], strict=False)):
        raise ValueError(f"times must descend from noise to data, got {out[:3]}...: flip the grid with .flip(0)")
    return out
