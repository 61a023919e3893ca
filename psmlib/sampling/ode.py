"""The probability-flow equation (Song et al., 2021, Eq. 13; PSM, Eq. 3), followed from noise to data or back."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from psmlib.machine.checks import check_points
from psmlib.process import Process
from psmlib.sampling.state import State, check_descending
from psmlib.sampling.variables import LONGEST, fields_in, points, variable_of
from psmlib.score import Score
from psmlib.solvers import adaptive, fixed


def ode(score: Score, process: Process, x_T: Tensor, times, **settings) -> Iterator[State]:
    """Samples by the probability-flow equation, from noise to data.

    Args:
        score: Exact or trained.
        process: Its Gaussian path.
        x_T: Noise. Shape: (n, *shape).
        times: Descending times. Shape: (steps + 1,).
        settings: method, variable, rtol, atol and max_nfe of :func:`probability_flow`.

    Yields:
        A :class:`~psmlib.sampling.state.State` after each step.

    Raises:
        ValueError: for an unknown method or times that do not descend.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> from psmlib.sampling import last
        >>> from psmlib.sampling.grids import quadratic
        >>> vp = VP(0., 10.)
        >>> x = vp.prior_sample(4, (2,), torch.Generator().manual_seed(0))
        >>> last(ode(HG().diffused(vp), vp, x, quadratic(1e-3, 1., 20).flip(0))).x.shape
        torch.Size([4, 2])
    """
    return probability_flow(score, x_T, check_descending(times, process), **settings)


@torch.no_grad()
def probability_flow(
    score: Score, x: Tensor, times, *, method: str = "rk4", rtol: float = 1e-5, atol: float = 1e-5,
    max_nfe: int = 20000, variable: str | None = None,
) -> Iterator[State]:  # fmt: skip
    """Integrates dx/dt = velocity through the times, which may descend (noise to data) or ascend (data to noise).

    Args:
        score: Exact or trained.
        x: Points at the first time. Shape: (n, *shape).
        times: Shape: (steps + 1,).
        method: "euler", "heun", "rk4", or "adaptive", which controls its error between the times.
        rtol: Relative tolerance of the adaptive method.
        atol: Absolute tolerance.
        max_nfe: Evaluations after which the adaptive method gives up.
        variable: What is stepped in, "t" or "log_snr"; by default the process's own, log SNR for reciprocal VE
            and else t. See :mod:`psmlib.sampling.variables`.

    Yields:
        A :class:`~psmlib.sampling.state.State` after each step.

    Raises:
        ValueError: for an unknown method, or a variable that does not suit the process or the times.
        RuntimeError: when the adaptive method runs out of evaluations.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> x, score = HG().sample(4, torch.Generator().manual_seed(0)), HG().diffused(VP())
        >>> there = [state.x for state in probability_flow(score, x, [.01, .02, .03])]
        >>> back = [state.x for state in probability_flow(score, there[-1], [.03, .02, .01])]
        >>> bool((back[-1] - x).abs().max() < 1e-3)
        True
    """
    check_points(x)
    calls = [0]

    def field_of(piece: Score):
        def field(x: Tensor, t: float):
            calls[0] += 1
            return piece.velocity(x, t), 0.0

        return field

    process, times = score.process, [float(t) for t in times]
    variable = variable_of(process, variable)
    ends = points(process, times, variable, math.inf if method == "adaptive" else LONGEST)
    fields = fields_in(variable, field_of, score, process, times)
    if method == "adaptive":
        steps = adaptive(fields, x, ends, rtol=rtol, atol=atol, max_nfe=max_nfe, variable=variable)
    else:
        steps = fixed(fields, x, ends, method)
    for (y, *_), t in zip(steps, times[1:], strict=True):
        yield State(y, t, calls[0])
