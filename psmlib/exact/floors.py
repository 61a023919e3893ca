"""Floors: the NLL and the loss of a perfect score, by quasi-Monte Carlo under the exact distribution."""

from __future__ import annotations

from psmlib.exact.components import Components
from psmlib.exact.expectations import component_average
from psmlib.exact.mixture import DiffusedMixture
from psmlib.process import Process, as_time


def nll_floor(mixture: Components, process: Process, t0: float, **kw) -> tuple[float, float]:
    r"""The NLL of a perfect score: :math:`-E\log p_{t_0}(x_0)`, with x_0 inserted at t_0 without noise.

    Returns:
        The floor and its standard error, in nats.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> round(nll_floor(HG(), VP(0., 12.), .01)[0], 2)          # the released protocol of SA-DPM
        1.05
    """
    exact = DiffusedMixture(mixture, process)
    mean, stderr = component_average(mixture, lambda x: exact.log_prob(x, t0), **kw)
    return -mean, stderr


def irreducible_loss(mixture: Components, process: Process, t: float, kind: str = "eps", **kw) -> tuple[float, float]:
    r"""The denoising loss of the exact score per axis, :math:`E|y - E[y|x_t]|^2/d`, for y the ``kind`` of target.

    Given x_t, every target, such as eps = (x_t - alpha x_0)/sigma, is a linear function of x_0, so the loss is a
    multiple of E tr C with C the posterior covariance of x_0.

    Returns:
        The loss and its standard error.
    """
    exact = DiffusedMixture(mixture, process)
    s = as_time(t)
    factor = float(process.conversion(s, "denoised", kind)[1] ** 2) / mixture.dim

    def trace(x):
        return exact.posterior(x, t)[1].diagonal(dim1=-2, dim2=-1).sum(-1)

    mean, stderr = component_average(mixture, trace, process=process, t=t, **kw)
    return factor * mean, factor * stderr
