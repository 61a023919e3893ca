"""Floors: what a perfect score would report as NLL and as loss, by quasi-Monte Carlo under the exact law."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from psmlib.gaussian_path import Process, as_time

if TYPE_CHECKING:
    from psmlib.data.toys import Mixture


def component_average(
    mixture: Mixture, f, *, process: Process | None = None, t: float = 0.0, m: int | None = None, repeats: int = 8
) -> tuple[float, float]:
    """Expectation of f(x_t) under the exact law, by scrambled Sobol points in each component in turn.

    Args:
        mixture: The law of x_0.
        f: Maps points (n, d) to values (n,).
        process: How x_0 is diffused; needed for t > 0.
        t: The time.
        m: 2^m points a component and repeat; by default about 2^13 points a repeat in all.
        repeats: Independent scramblings, which give the standard error.

    Returns:
        The mean and its standard error, floats.

    Example:
        >>> from psmlib.data.toys import HG
        >>> mean, se = component_average(HG(), lambda x: x[:, 0])
        >>> abs(mean) < 1e-4
        True
    """
    d, k = mixture.dim, len(mixture.weights)
    m = max(6, 13 - int(math.log2(k))) if m is None else m
    alpha, sigma = (1.0, 0.0) if process is None else (float(process.alpha(t)), float(process.sigma(t)))
    gaussian = (torch.arange(k) < len(mixture.gauss_weight))[:, None, None]
    totals = []
    for r in range(repeats):
        cube = torch.quasirandom.SobolEngine(2 * d, scramble=True, seed=r).draw(2**m, dtype=torch.float64)
        cube = cube.clamp(1e-12, 1 - 1e-12)
        local, eps = cube[:, :d], torch.special.ndtri(cube[:, d:])
        local = torch.where(gaussian, torch.special.ndtri(local), 2 * local - 1)  # (k, 2^m, d)
        x0 = mixture.centres[:, None] + local @ mixture._factors.mT
        values = f((alpha * x0 + sigma * eps).reshape(-1, d)).reshape(k, -1).mean(1)
        totals.append(mixture.weights @ values)
    totals = torch.stack(totals)
    return float(totals.mean()), float(totals.std() / repeats**0.5)


def nll_floor(mixture: Mixture, process: Process, t0: float, **kw) -> tuple[float, float]:
    r"""What a perfect score would report: :math:`-E\log p_{t_0}(x_0)`, x_0 fed in at t_0 without noise.

    Returns:
        The floor and its standard error, in nats.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> round(nll_floor(HG(), VP(0., 12.), .01)[0], 2)          # the released protocol of SA-DPM
        1.05
    """
    exact = mixture.diffused(process)
    mean, stderr = component_average(mixture, lambda x: exact.log_prob(x, t0), **kw)
    return -mean, stderr


def irreducible_loss(mixture: Mixture, process: Process, t: float, kind: str = "eps", **kw) -> tuple[float, float]:
    r"""The denoising loss of the exact score per axis, :math:`E|y - E[y|x_t]|^2/d`, for y the ``kind`` of target.

    With posterior covariance C, x_0 = given x_t leaves eps = (x_t - alpha x_0)/sigma and the velocity a linear
    function of x_0, so the loss is a multiple of E tr C.

    Returns:
        The loss and its standard error.
    """
    exact = mixture.diffused(process)
    s = as_time(t)
    factor = float(process.conversion(s, "denoised", kind)[1] ** 2) / mixture.dim

    def trace(x):
        return exact.posterior(x, t)[1].diagonal(dim1=-2, dim2=-1).sum(-1)

    mean, stderr = component_average(mixture, trace, process=process, t=t, **kw)
    return factor * mean, factor * stderr
