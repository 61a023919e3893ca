r"""The divergence of x_T from its prior, KL[p_T || nu], its derivative in T, and the expectations that make it up.

The density of a mixture is known at every time, so all are expectations of closed forms
(:mod:`psmlib.exact.expectations`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from psmlib.data.toys import Mixture
from psmlib.exact.expectations import Quadrature, estimate, expectation, weighted_sum
from psmlib.likelihood import end_law
from psmlib.process import Process, Shortened


class Density(Protocol):
    """A model of the distribution of x_T."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Shape: (n, d) -> (n,)."""


def mean_log_density(toy: Mixture, process: Process, t: float, rule: Quadrature | None = None) -> tuple[float, float]:
    """E log p_t(x_t), the negative entropy of x_t, with its standard error; t = 0 stands for the data.

    Example:
        >>> from psmlib.process import VE
        >>> unit = Mixture(gaussians=[(1., [0.], 1.)])
        >>> round(mean_log_density(unit, VE(), 0.)[0], 6)                  # -log(2 pi e) / 2
        -1.418939
    """
    return estimate(log_density_by_repeat(rule or Quadrature(toy), process, t))


def log_density_by_repeat(rule: Quadrature, process: Process, t: float) -> Tensor:
    """E log p_t(x_t) for each repeat of a rule, one exact value for the data. Shape: (r,) or (1,)."""
    if t == 0:
        return torch.tensor([-rule.toy.entropy], dtype=torch.float64)
    law = rule.law(process)
    return expectation(rule, process, t, lambda x: law.log_prob(x, t))


def prior_kl(
    toy: Mixture, process: Process, T: float, *, prior: Density | None = None, rule: Quadrature | None = None
) -> tuple[float, float]:
    """KL[p_T || prior] in nats, with its standard error.

    Args:
        toy: The distribution of x_0.
        process: The process, not stopped.
        T: Where it is stopped; at 0 the data are compared with the prior.
        prior: A model of the distribution of x_T; by default the prior of the process stopped at T.
        rule: Quadrature for expectations.

    Example:
        >>> from psmlib.process import VP
        >>> unit = Mixture(gaussians=[(1., [1.], 1.)])                  # |mean|^2 / 2 = exp(-B) / 2
        >>> round(prior_kl(unit, VP(), .3)[0] / float(VP().alpha(.3) ** 2), 9)
        0.5
    """
    return estimate(kl_by_repeat(rule or Quadrature(toy), process, T, log_prior_of(process, T, prior)))


def log_prior_of(process: Process, T: float, prior: Density | None) -> Callable[[Tensor], Tensor]:
    """The log density of a model of x_T, by default of the prior of the process stopped at T."""
    return end_law(prior, process if T == 0 else Shortened(process, T), T)


def kl_by_repeat(rule: Quadrature, process: Process, T: float, log_prior: Callable[[Tensor], Tensor]) -> Tensor:
    """KL[p_T || prior] for each repeat of a rule. Shape: (r,)."""
    # the difference at the same points: the errors of two separate entropies would exceed a small divergence
    if T == 0:
        return weighted_sum(rule.data(), lambda x: rule.toy.log_prob(x) - log_prior(x).to(x))
    law = rule.law(process)
    return expectation(rule, process, T, lambda x: law.log_prob(x, T) - log_prior(x).to(x))


def prior_kl_rate(toy: Mixture, process: Process, T: float, rule: Quadrature | None = None) -> tuple[float, float]:
    r"""Derivative of :func:`prior_kl` in T for the process's own prior :math:`N(0, s^2(T) I)`, with its standard error.

    With :math:`r = ds^2/dT - (2fs^2 + g^2)`, by which the variance of the prior grows faster than the diffusion would
    make it grow (0 for VP and VE, whose priors follow the diffusion), and :math:`M = E|x_T|^2`,

    .. math:: \frac{d}{dT}\mathrm{KL} = -\tfrac12 g^2\,E|\nabla\log p_T + x_T/s^2|^2
              - \tfrac12 r\,(M/s^2 - D)/s^2 .

    The square keeps its digits where the divergence is tiny.

    Shape: two floats, in nats per unit of time.

    Example:
        >>> from psmlib.process import VP
        >>> unit = Mixture(gaussians=[(1., [1.], 1.)])                         # KL = exp(-B) / 2
        >>> abs(prior_kl_rate(unit, VP(), .3)[0] / prior_kl(unit, VP(), .3)[0] + float(VP().beta(.3))) < 1e-9
        True
    """
    rule, short = rule or Quadrature(toy), Shortened(process, T)
    law = rule.law(process)
    g2, s = float(process.diffusion2(T)), short.prior_std
    ahead = 2 * s * short.prior_std_rate - 2 * float(process.drift(T)) * s**2 - g2

    def rate(x: Tensor) -> Tensor:
        apart = (law.score(x, T) + x / s**2).square().sum(1)
        return -0.5 * g2 * apart - 0.5 * ahead * (x.square().sum(1) / s**2 - toy.dim) / s**2

    return estimate(expectation(rule, process, T, rate))
