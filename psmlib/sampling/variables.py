r"""The variable of integration: flows and stochastic equations are stepped in t or in log SNR.

In :math:`\lambda=\log\alpha^2/\sigma^2`, where :math:`d\lambda/dt=-g^2/\sigma^2` (Kingma et al., 2021), the equation
:math:`dx/dt = v` reads

.. math:: \frac{dx}{d\lambda} = -\frac{\sigma^2}{g^2}\,v ,

and a noise rate :math:`\gamma` becomes :math:`\gamma\sigma^2/g^2`. The solution is the same; a step's error is not. A
reciprocal VE path adds nearly all of its noise within a thousandth of [0, T], so that it can be stepped in log SNR
alone, and so can one whose clock starts infinitely fast (``Retimed`` by a power below 1). The others are smooth in t
down to t = 0 and, if flow matching, up to t = 1, where log SNR is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from psmlib.machine.checks import check_choice
from psmlib.process import Process
from psmlib.score import Score
from psmlib.solvers import Field

VARIABLES = ("t", "log_snr")
LONGEST = 4.0
"""Longest step of a process that is stepped in log SNR alone. Without drift noise shrinks like exp(-lambda / 2): longer
steps of Euler's or Heun's method make it grow."""


def variable_of(process: Process, variable: str | None = None, grid: str | Tensor | None = None) -> str:
    """The variable of integration: as given, else "log_snr" for the grid of that name, else the process's own.

    Raises:
        ValueError: for an unknown name, or "t" for a process that is not smooth in t.

    Example:
        >>> from psmlib.process import RVE, VP
        >>> variable_of(VP()), variable_of(RVE()), variable_of(VP(), grid="log_snr")
        ('t', 'log_snr', 'log_snr')
        >>> variable_of(RVE(eps=1e-5), "t")
        Traceback (most recent call last):
        ...
        ValueError: RVE(sigma_min=0.001, sigma_max=50.0, eps=1e-05) is not smooth in t: use variable="log_snr"
    """
    if variable is None:
        variable = "log_snr" if grid == "log_snr" else process.variable
    check_choice("variable", variable, VARIABLES)
    if variable == "t" and process.variable != "t":
        raise ValueError(f'{process} is not smooth in t: use variable="log_snr"')
    return variable


def points(process: Process, times, variable: str, longest: float = LONGEST) -> list[float]:
    """Values of the variable at the times.

    Args:
        process: The Gaussian path.
        times: Ascending or descending. Shape: (steps + 1,).
        variable: "t" or "log_snr".
        longest: As :data:`LONGEST`; infinity for an adaptive solver.

    Raises:
        ValueError: for a step that has no end in log SNR, or of a process that is stepped in it alone, one that is too
            long: as the first of equal steps in t, which would miss the noise.

    Example:
        >>> from psmlib.process import OTFlow
        >>> points(OTFlow(), [.5, 1.], "log_snr")
        Traceback (most recent call last):
        ...
        ValueError: log SNR of OTFlow() is infinite at t = 1: keep clear of it, or step in t by variable="t"
    """
    times = [float(t) for t in times]
    if variable == "t":
        return times
    found = [float(process.log_snr(t)) for t in times]
    for t, value in zip(times, found, strict=True):
        if not math.isfinite(value):
            mend = ', or step in t by variable="t"' if process.variable == "t" else ""
            raise ValueError(f"log SNR of {process} is infinite at t = {t:g}: keep clear of it{mend}")
    for (t, a), (s, b) in pairwise(zip(times, found, strict=True)):
        if process.variable != "t" and abs(b - a) > longest:
            fault = f"the step from t = {t:g} to {s:g} spans {abs(b - a):.3g} of log SNR, where {longest:g} is the most"
            raise ValueError(f'{fault}: space the times evenly in it (grid="log_snr"), or take more')
    return found


def pace(score: Score, process: Process, t: float) -> float:
    """dt/dlambda at t, or at a discrete block's own time.

    A discrete block holds the velocity at its own time; of a process that is smooth in log SNR alone, the velocity in
    log SNR.
    """
    return 1 / float(process.log_snr_rate(t if process.variable == "t" else score.coefficient_time(t)))


def fields_in(
    variable: str, field_of: Callable[[Score], Field], score: Score, process: Process, times
) -> Callable[[float], Field]:
    """The fields of an equation, as functions of the variable, from the middle of each step.

    Args:
        variable: "t" or "log_snr".
        field_of: Maps the score of a block of time to the field of the equation in t.
        score: Its block is chosen by the middle of a step.
        process: Its Gaussian path.
        times: Those that are solved along; times within steps are kept between them. Shape: (steps + 1,).
    """
    if variable == "t":
        return lambda middle: field_of(score.on_block(middle))
    first, last = sorted((float(times[0]), float(times[-1])))

    def time(value: float) -> float:
        found = process.time_of_log_snr(torch.tensor(value, dtype=torch.float64))
        return min(max(float(found), first), last)  # rounding must not leave the blocks of a bank

    def changed(middle: float) -> Field:
        piece = score.on_block(time(middle))
        field = field_of(piece)

        def in_log_snr(x: Tensor, value: float) -> tuple[Tensor, Tensor | float]:
            t = time(value)
            rate = pace(piece, process, t)
            velocity, slope = field(x, t)
            return rate * velocity, rate * slope

        return in_log_snr

    return changed
