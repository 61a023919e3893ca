r"""Sampling by the reverse stochastic equation, Euler-Maruyama (Song et al., 2021, Eq. 6).

Every equation :math:`dx = [v - \tfrac12\gamma s]\,dt + \sqrt\gamma\,d\bar w` run backwards has the same marginals;
:math:`\gamma = g^2` gives the reverse of the process itself, :math:`dx = [f x - g^2 s]dt + g\,d\bar w`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from psmlib.machine.checks import check_points, floating
from psmlib.process import Process
from psmlib.sampling.state import State, check_descending
from psmlib.sampling.variables import LONGEST, pace, points, variable_of
from psmlib.score import Score


@torch.no_grad()
def sde(
    score: Score, process: Process, x_T: Tensor, times, *, generator: torch.Generator | None = None,
    noise: Callable[[float], float] | None = None, denoise: bool = False, variable: str | None = None,
) -> Iterator[State]:  # fmt: skip
    """Euler-Maruyama steps from noise to data.

    Args:
        score: Exact or trained.
        process: Its Gaussian path.
        x_T: Noise. Shape: (n, *shape).
        times: Descending times. Shape: (steps + 1,).
        generator: Source of the noise.
        noise: The squared noise rate gamma(t); the process's own g^2 by default.
        denoise: Whether the last state is replaced by E[x_0 | x_t].
        variable: What is stepped in, "t" or "log_snr"; by default the process's own, log SNR for reciprocal VE
            and else t. See :mod:`psmlib.sampling.variables`.

    Yields:
        A :class:`~psmlib.sampling.state.State` after each step.

    Raises:
        ValueError: for times that do not descend, a noise rate that is negative or infinite (flow matching at 1), or a
            variable that does not suit the process or the times.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> from psmlib.sampling import last
        >>> from psmlib.sampling.grids import quadratic
        >>> vp, g = VP(0., 10.), torch.Generator().manual_seed(0)
        >>> x = vp.prior_sample(4, (2,), g)
        >>> last(sde(HG().diffused(vp), vp, x, quadratic(1e-3, 1., 50).flip(0), generator=g)).nfe
        50
    """
    check_points(x_T)
    times, x, variable = check_descending(times, process), floating(x_T), variable_of(process, variable)
    ends = points(process, times, variable, LONGEST / 2)  # without drift the mean contracts twice as fast as the noise
    for i, (t, s) in enumerate(pairwise(times)):
        gamma = float(process.diffusion2(t) if noise is None else noise(t))
        if not 0 <= gamma < math.inf:
            raise ValueError(
                f"the noise rate at t = {t:g} is {gamma}: give noise=, for example lambda t: t, or start below T"
            )
        piece, h = score.on_block((t + s) / 2), ends[i] - ends[i + 1]
        velocity, slope = piece.velocity_and_score(x, t)
        if variable == "log_snr":  # h is negative then, as is dt/dlambda
            velocity, gamma = pace(piece, process, t) * velocity, gamma / float(process.log_snr_rate(t))
        x = x - h * (velocity - 0.5 * gamma * slope)
        x = x + math.sqrt(gamma * h) * torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(
            x.device
        )
        if denoise and i == len(times) - 2:
            x = score.denoised(x, s)
        yield State(x, s, i + 1 + (denoise and i == len(times) - 2))
