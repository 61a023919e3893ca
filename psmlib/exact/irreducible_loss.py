"""The least denoising loss that any network can have, that of the exact score."""

from __future__ import annotations

from psmlib.exact.components import Components
from psmlib.exact.expectations import component_average
from psmlib.exact.mixture import DiffusedMixture
from psmlib.process import Process, as_time


def irreducible_loss(mixture: Components, process: Process, t: float, kind: str = "eps", **kw) -> tuple[float, float]:
    r"""The denoising loss of the exact score per axis, :math:`E|y - E[y|x_t]|^2/d`, for y the ``kind`` of target.

    Given x_t, every target, such as eps = (x_t - alpha x_0)/sigma, is a linear function of x_0, so the loss is a
    multiple of E tr C with C the posterior covariance of x_0.

    Args:
        mixture: The distribution of x_0.
        process: How it is diffused.
        t: The time.
        kind: Any of :data:`psmlib.process.PREDICTIONS`.
        **kw: Settings of :func:`psmlib.exact.expectations.component_average`.

    Returns:
        The loss and its standard error.

    Raises:
        ValueError: for an unknown kind.

    Example:
        >>> from psmlib.data.toys import Mixture
        >>> from psmlib.process import VP
        >>> loss, _ = irreducible_loss(Mixture(gaussians=[(1., [0., 0.], 1.)]), VP(), .5)
        >>> abs(loss - float(VP().alpha(.5)) ** 2) < 1e-12          # eps given x has variance alpha^2
        True
    """
    exact = DiffusedMixture(mixture, process)
    s = as_time(t)
    factor = float(process.conversion(s, "denoised", kind)[1] ** 2) / mixture.dim

    def trace(x):
        return exact.posterior(x, t)[1].diagonal(dim1=-2, dim2=-1).sum(-1)

    mean, stderr = component_average(mixture, trace, process=process, t=t, **kw)
    return factor * mean, factor * stderr
