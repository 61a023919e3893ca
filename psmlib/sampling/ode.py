"""Sampling by the probability-flow equation (Song et al., 2021, Eq. 13; PSM, Eq. 3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from psmlib.process import Process
from psmlib.sampling.state import State, check_descending
from psmlib.score import Score
from psmlib.solvers import adaptive, fixed


@torch.no_grad()
def ode(
    score: Score, process: Process, x_T: Tensor, times, *, method: str = "rk4", rtol: float = 1e-5, atol: float = 1e-5,
    max_nfe: int = 20000,
) -> Iterator[State]:  # fmt: skip
    """Integrates dx/dt = velocity from noise to data.

    Args:
        score: Exact or trained.
        process: Its Gaussian path.
        x_T: Noise. Shape: (n, *shape).
        times: Descending times. Shape: (steps + 1,).
        method: "euler", "heun", "rk4", or "adaptive", which controls its error between the times.
        rtol: Relative tolerance of the adaptive method.
        atol: Absolute tolerance.
        max_nfe: Evaluations after which the adaptive method gives up.

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
    times, calls = check_descending(times), [0]

    def fields(t_mid: float):
        piece = score.on_block(t_mid)

        def field(x: Tensor, t: float):
            calls[0] += 1
            return piece.velocity(x, t), 0.0

        return field

    if method == "adaptive":
        for x, _, t, nfe in adaptive(fields, x_T, times, rtol=rtol, atol=atol, max_nfe=max_nfe):
            yield State(x, t, nfe)
        return
    for x, _, t in fixed(fields, x_T, times, method):
        yield State(x, t, calls[0])
